//! Shows what the emulator cannot: that the committed PTX has every kernel in every variant, takes
//! the parameters that the library passes, and holds the instructions that the kernels were
//! written for and none that they avoid. And that the twins of structures and constants in Rust
//! and in the kernels are the same, field by field.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use gfocal::cuda::raw::{
    AssignArgs, AssignLevel, BoxesArgs, DecodeArgs, DecodeLevel, DflArgs, GflArgs, HeadArgs, HeadLevel,
    IntegralArgs, QflArgs, ScaleArgs, StatusWords, Strides,
};

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The operation that a unit is part of: the first word of its name.
fn family(unit: &str) -> &str {
    unit.split('_').next().expect("a word")
}

/// The device code of an operation: its headers (`head.cuh`, `head_boxes.cuh`), then its units.
fn family_source(family: &str) -> String {
    let files = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels")).expect("kernels");
    let names = files.map(|file| file.expect("a file").file_name().to_string_lossy().into_owned());
    let (mut units, mut headers) = (Vec::new(), Vec::new());
    for name in names {
        match name.split_once('.') {
            Some((stem, "cu")) if self::family(stem) == family => units.push(name),
            Some((stem, "cuh")) if self::family(stem) == family => headers.push(name),
            _ => {}
        }
    }
    headers.sort();
    units.sort();
    headers.iter().chain(&units).map(|name| read(&format!("kernels/{name}"))).collect()
}

/// The structures and launches of raw pointers.
fn raw_source() -> String {
    let launches = families().map(|(family, ..)| read(&format!("src/{family}/launch.rs"))).concat();
    launches + &read("src/head/launch/plan.rs") + &read("src/cuda/args.rs")
}

/// The storage types, and the compute capabilities that each is compiled for.
const VARIANTS: [(&str, u32); 4] = [("f32", 75), ("f16", 75), ("bf16", 75), ("bf16", 80)];

/// The units without logits, or with those of any type, are compiled for f32 alone, and those that store no
/// gradient for the lowest capability alone.
fn variants(unit: &str) -> &'static [(&'static str, u32)] {
    let count = if !has_logits(unit) || unit == "head_positives" {
        1
    } else if unit.ends_with("forward") {
        3
    } else {
        4
    };
    &VARIANTS[..count]
}

fn has_logits(unit: &str) -> bool {
    !["assign", "boxes", "decode"].contains(&unit)
}

/// Each unit, and how many kernels it has.
const UNITS: [(&str, usize); 16] = [
    ("assign", 2),
    ("boxes", 2),
    ("decode", 2),
    ("qfl", 3),
    ("qfl_forward", 3),
    ("qfl_any_beta", 4),
    ("dfl", 3),
    ("dfl_forward", 3),
    ("gfl", 1),
    ("gfl_forward", 1),
    ("integral", 2),
    ("head_positives", 1),
    ("head", 1),
    ("head_forward", 1),
    ("head_any_beta", 2),
    ("scale", 1),
];

/// Each operation, the structure that its kernels take, and its size.
fn families() -> [(&'static str, &'static str, usize); 9] {
    [
        ("assign", "AssignArgs", size_of::<AssignArgs>()),
        ("boxes", "BoxesArgs", size_of::<BoxesArgs>()),
        ("decode", "DecodeArgs", size_of::<DecodeArgs>()),
        ("qfl", "QflArgs", size_of::<QflArgs>()),
        ("dfl", "DflArgs", size_of::<DflArgs>()),
        ("gfl", "GflArgs", size_of::<GflArgs>()),
        ("integral", "IntegralArgs", size_of::<IntegralArgs>()),
        ("head", "HeadArgs", size_of::<HeadArgs>()),
        ("scale", "ScaleArgs", size_of::<ScaleArgs>()),
    ]
}

/// A kernel as its source has it: its name without the storage type, and its threads.
fn kernels(unit: &str) -> Vec<(String, u32)> {
    let constants = constants(&family_source(family(unit)));
    let source = read(&format!("kernels/{unit}.cu"));
    let lines = source.lines().filter_map(|line| line.strip_prefix("KERNEL("));
    let kernel = |line: &str| {
        let mut words = line.split([',', ')']).map(str::trim);
        let (name, threads) = (words.next().expect("a name"), words.next().expect("a number of threads"));
        (name.to_owned(), constants[threads])
    };
    lines.map(kernel).collect()
}

/// `constexpr int NAME = VALUE;` and `const NAME: u32 = VALUE;`, `pub(super)` or not.
fn constants(source: &str) -> BTreeMap<String, u32> {
    let mut found = BTreeMap::new();
    for line in source.lines() {
        let line = line.strip_prefix("pub(super) ").unwrap_or(line);
        let Some(declaration) = line.strip_prefix("constexpr int ").or_else(|| line.strip_prefix("const "))
        else {
            continue;
        };
        if let Some((name, rest)) = declaration.split_once('=')
            && let Some((value, _)) = rest.split_once(';')
            && let Ok(value) = value.trim().parse()
        {
            found.insert(name.split(':').next().expect("a name").trim().to_owned(), value);
        }
    }
    found
}

/// The texts of the entry points by name: declaration and body.
fn entries(ptx: &str) -> BTreeMap<&str, &str> {
    let parts = ptx.split(".visible .entry ").skip(1);
    parts.map(|part| (part.split('(').next().expect("a name"), part)).collect()
}

#[test]
fn every_kernel_is_in_every_variant_and_takes_what_it_is_given() {
    let mut checked = 0;
    for (unit, count) in UNITS {
        let (_, _, size) =
            families().into_iter().find(|known| known.0 == family(unit)).expect("an operation");
        let kernels = kernels(unit);
        assert_eq!(kernels.len(), count, "{unit}");
        let raw = raw_source();
        for &(storage, capability) in variants(unit) {
            let ptx = read(&format!("kernels/ptx/{unit}.{storage}.sm_{capability}.ptx"));
            assert!(
                ptx.contains("\n.version 8.0\n"),
                "{unit} {storage}: every driver from 525 on takes PTX 8.0"
            );
            assert!(ptx.contains(&format!("\n.target sm_{capability}\n")), "{unit} {storage}");
            let entries = entries(&ptx);
            assert_eq!(entries.len(), count, "{unit} {storage}: {:?}", entries.keys());
            for (kernel, threads) in &kernels {
                let named = raw.matches(&format!("\"{kernel}\"")).count();
                assert!(named >= 2, "src/*/launch.rs loads and launches {kernel}");
                let name = format!("{kernel}_{storage}");
                let entry = entries.get(name.as_str()).unwrap_or_else(|| panic!("{name} is missing"));
                let parameter = format!("(\n.param .align 8 .b8 args[{size}]\n)");
                assert!(
                    entry[name.len()..].starts_with(&parameter),
                    "{name} takes one parameter of {size} bytes"
                );
                assert!(
                    entry.contains(&format!(".maxntid {threads},1,1\n")),
                    "{name} has blocks of {threads}"
                );
                checked += 1;
            }
        }
    }
    assert_eq!(checked, 3 * (3 + 3 + 1 + 1) + 4 * (3 + 4 + 3 + 1 + 2 + 1 + 2 + 1) + 2 + 2 + 2 + 1);
    assert!(
        UNITS.iter().all(|(unit, _)| raw_source().contains(&format!("\"{unit}\""))),
        "src/*/launch.rs loads all"
    );
    let files = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels/ptx")).expect("kernels/ptx");
    let ptx =
        files.filter(|file| file.as_ref().expect("a file").path().extension().is_some_and(|e| e == "ptx"));
    assert_eq!(ptx.count(), 3 * 4 + 4 * 8 + 4, "a file for each unit and variant, and no other");
}

fn stores_gradients(kernel: &str) -> bool {
    kernel.contains("backward") || kernel.starts_with("scale_")
}

/// No spills, no arrays in local memory, no calls, no approximation that is too coarse; no loads of which the
/// compiler does not know what memory they are from; nothing of the trials of `cargo xtask ptx --variants`.
const FORBIDDEN: [&str; 13] = [
    ".local",
    "call",
    ".func",
    "tanh",
    "sin.approx",
    "cos.approx",
    "trap",
    "\nld.f32",
    "\nld.u",
    "\nld.v",
    "cp.async",
    "no_allocate",
    ".cs.",
];

#[test]
fn instructions() {
    for (unit, _) in UNITS {
        for &(storage, capability) in variants(unit) {
            let ptx = read(&format!("kernels/ptx/{unit}.{storage}.sm_{capability}.ptx"));
            for forbidden in FORBIDDEN {
                assert!(!ptx.contains(forbidden), "{unit} {storage} sm_{capability} has {forbidden}");
            }
            for (name, entry) in entries(&ptx) {
                let has = |instruction: &str| entry.contains(instruction);
                let need = |instruction: &str| assert!(has(instruction), "{name} lacks {instruction}");
                if unit == "decode" {
                    continue; // Bins lie a channel apart: a warp has 32 positions of one, a number each.
                }
                need("ld.global.v4");
                if !has_logits(unit) {
                    continue;
                }
                // Phase one of the head loss is in double; it alone reports, so that nothing is counted twice.
                let positives = name.starts_with("head_positives");
                assert_eq!(
                    has("ex2.approx.ftz.f32"),
                    !positives && unit != "scale",
                    "{name}: float's exponential"
                );
                let reduces = !["integral", "scale"].contains(&unit);
                let reports = reduces && (family(unit) != "head" || positives);
                // The ticket of the grid's reduction, which wraps by itself; and the status.
                assert_eq!(has("atom.acq_rel.gpu.global.inc.u32"), reduces, "{name}: the ticket");
                assert_eq!(has("red.global.max.u64"), reports, "{name}: the first bad row");
                if reduces {
                    need("shfl.sync");
                    need("ld.global.cg.f64");
                }
                // bf16 is converted by pairs from sm_80 on, and rounded by integers before.
                let stores = stores_gradients(name);
                // Box logits of the head loss, and their gradients, are of any type.
                let any_type = family(unit) == "head" && (positives || stores);
                assert_eq!(
                    has("cvt.f32.f16"),
                    storage == "f16" || any_type,
                    "{name}: f16 is converted by one instruction"
                );
                let packs = has("cvt.rn.bf16x2.f32");
                assert_eq!(packs, stores && storage == "bf16" && capability >= 80, "{name}: bf16 by pairs");
                // Products and sums whose rounding errors are made good: not to be contracted.
                if name.contains("any_beta") || name.starts_with("gfl") {
                    need("mul.rn.f32");
                    need("add.rn.f32");
                }
                let to_f16 = stores && (storage == "f16" || any_type);
                assert_eq!(has("cvt.rn.f16.f32"), to_f16, "{name}: conversion to f16");
            }
        }
    }
}

/// Every kernel that writes a gradient writes it 16 bytes at a time where alignment allows; but for decoding, of which
/// a warp has 32 positions of one bin.
#[test]
fn gradients_are_stored_16_bytes_at_a_time() {
    let mut missing = Vec::new();
    for (unit, _) in UNITS.into_iter().filter(|&(unit, _)| unit != "decode") {
        for &(storage, capability) in variants(unit) {
            let ptx = read(&format!("kernels/ptx/{unit}.{storage}.sm_{capability}.ptx"));
            for (name, entry) in entries(&ptx) {
                if stores_gradients(name) && !entry.contains("st.global.v4") {
                    missing.push(format!("{name} for sm_{capability}"));
                }
            }
        }
    }
    assert!(missing.is_empty(), "no st.global.v4 in {}", missing.join(", "));
}

/// The fields of a structure of the kernels, with their sizes in bytes.
fn device_fields(source: &str, name: &str) -> Vec<(String, usize)> {
    let (_, rest) =
        source.split_once(&format!("struct {name} {{\n")).unwrap_or_else(|| panic!("no struct {name}"));
    let (body, _) = rest.split_once("\n};").expect("its end");
    let mut fields = Vec::new();
    for line in body.lines() {
        let declaration = line.split("//").next().expect("a line").trim().trim_end_matches(';');
        if declaration.is_empty() {
            continue;
        }
        let (kind, names) = match declaration.split_once('*') {
            Some((_, name)) => ("pointer", name),
            None => {
                let first = declaration.split(',').next().expect("a field");
                let end = first.trim_end().rfind(' ').expect("a type and a name");
                declaration.split_at(end)
            }
        };
        let size = match kind.trim() {
            "pointer" | "u64" | "long long" | "double" => 8,
            "u32" | "float" => 4,
            "Scaling" => 88,
            "QflArgs" => size_of::<QflArgs>(),
            "DflArgs" => size_of::<DflArgs>(),
            "AssignLevel" => size_of::<AssignLevel>(),
            "Strides" => size_of::<Strides>(),
            "DecodeLevel" => 8 * size_of::<DecodeLevel>(),
            "HeadLevel" => 8 * size_of::<HeadLevel>(),
            other => panic!("{name} has a field of the unknown type {other}"),
        };
        for name in names.split(',') {
            // The length of an array, unless it is in the size already.
            let (name, length) = name.trim().split_once('[').unwrap_or((name.trim(), ""));
            let length = length.trim_end_matches(']').parse().unwrap_or(1);
            fields.push((name.to_owned(), size * length));
        }
    }
    fields
}

/// The fields of a structure of the library, with their sizes in bytes.
fn host_fields(name: &str) -> Vec<(String, usize)> {
    let source = raw_source();
    let (_, rest) =
        source.split_once(&format!("pub struct {name} {{\n")).unwrap_or_else(|| panic!("no struct {name}"));
    let (body, _) = rest.split_once("\n}").expect("its end");
    let fields =
        body.lines().filter_map(|line| line.trim().strip_prefix("pub ")?.strip_suffix(',')?.split_once(": "));
    let size = |kind: &str| match kind {
        "DeviceAddress" | "u64" | "i64" | "f64" => 8,
        "u32" | "f32" => 4,
        "[f64; 3]" => 24,
        "[f32; 2]" => 8,
        "Strides" => size_of::<Strides>(),
        "[DecodeLevel; MAX_LEVELS]" => gfocal::head::MAX_LEVELS * size_of::<DecodeLevel>(),
        "[HeadLevel; MAX_LEVELS]" => gfocal::head::MAX_LEVELS * size_of::<HeadLevel>(),
        "Scaling" => size_of::<gfocal::cuda::raw::Scaling>(),
        "QflArgs" => size_of::<QflArgs>(),
        "DflArgs" => size_of::<DflArgs>(),
        "[AssignLevel; MAX_LEVELS]" => gfocal::assign::MAX_LEVELS * size_of::<AssignLevel>(),
        "[f32; 32]" => 128,
        "[u32; 4]" => 16,
        "[u64; 4]" => 32,
        other => panic!("{name} has a field of the unknown type {other}"),
    };
    fields.map(|(field, kind)| (field.to_owned(), size(kind))).collect()
}

#[test]
fn structures_are_twins() {
    let (call, status) = (read("kernels/call.cuh"), size_of::<StatusWords>());
    let mut pairs = vec![
        ("AssignLevel", "AssignLevel", family_source("assign"), size_of::<AssignLevel>()),
        ("Scaling", "Scaling", call.clone(), size_of::<gfocal::cuda::raw::Scaling>()),
        ("Status", "StatusWords", call, status),
        ("DecodeLevel", "DecodeLevel", family_source("decode"), size_of::<DecodeLevel>()),
        ("HeadLevel", "HeadLevel", family_source("head"), size_of::<HeadLevel>()),
    ];
    for (family, name, size) in families() {
        pairs.push((name, name, family_source(family), size));
    }
    for (device, host, source, size) in pairs {
        let fields = device_fields(&source, device);
        assert!(fields.len() >= 5, "{device}: {fields:?}");
        assert_eq!(fields, host_fields(host), "{device}: the kernels and the library");
        let sum: usize = fields.iter().map(|(_, size)| size).sum();
        assert_eq!(sum.next_multiple_of(8), size, "{device}: no padding but at the end");
    }
}

#[test]
fn constants_are_twins() {
    let host = constants(&(raw_source() + &read("src/cuda/launch.rs")));
    let mut checked = 0;
    for (family, ..) in families() {
        for (name, value) in constants(&family_source(family)) {
            if name.ends_with("BLOCK") || name.starts_with("HEAD_") {
                let prefix = format!("{}_", family.to_uppercase());
                let twin = if name.starts_with(&prefix) { name } else { prefix + &name };
                assert_eq!(host.get(&twin), Some(&value), "{twin}");
                checked += 1;
            }
        }
    }
    assert_eq!(checked, 13);
    let device = constants(&read("kernels/assign.cuh"));
    let host =
        ["mod.rs", "atss/mod.rs", "anchors.rs"].map(|file| read(&format!("src/assign/{file}"))).concat();
    for name in ["MAX_LEVELS", "MAX_TOPK", "MAX_SIZES"] {
        assert!(host.contains(&format!("pub const {name}: usize = {};", device[name])), "{name}");
    }
    assert_eq!(gfocal::head::MAX_LEVELS, 8, "HEAD_LEVELS in kernels/head.cuh");
    let (device, host) = (family_source("head"), read("src/head/launch/plan.rs"));
    assert!(device.contains("constexpr u32 HEAD_LEVELS = 8;"));
    for (prefix, names) in [
        ("CLS", ["Scalars", "Positions", "HalfVectors", "Channels"]),
        ("BOX", ["Scalars", "Channels", "Anchors", "Positions"]),
    ] {
        for (number, name) in names.into_iter().enumerate() {
            let upper: String =
                name.char_indices()
                    .map(|(i, c)| {
                        if i > 0 && c.is_uppercase() { format!("_{c}") } else { c.to_uppercase().to_string() }
                    })
                    .collect();
            assert!(device.contains(&format!("{prefix}_{upper} = {number}")), "{prefix}_{upper}");
            assert!(host.contains(&format!("    {name} = {number},\n")), "{name}");
        }
    }
}
