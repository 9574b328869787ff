//! Every mistake: exit status 2, one line on standard error, nothing on standard output, and no
//! output file.

use std::fs;
use std::path::Path;

use crate::support::*;

/// Runs with `--output`, and gives the line.
fn mistake(folder: &Folder, op: &str, file: &Path, args: &str) -> String {
    let before = folder.names();
    let out = folder.path("out.safetensors");
    let line = cpu(op, file, &format!("--output {} {args}", out.display())).mistake();
    assert_eq!(folder.names(), before, "{line}");
    line
}

#[track_caller]
fn assert_says(line: &str, parts: &[&str]) {
    for part in parts {
        assert!(line.contains(part), "{line:?} does not say {part:?}");
    }
}

#[test]
fn files_that_cannot_be_read() {
    let folder = Folder::new();
    assert_says(&mistake(&folder, "qfl", &folder.path("none"), ""), &["cannot read", "none: "]);
    assert_says(&mistake(&folder, "qfl", &folder.path(""), ""), &["it is a folder"]);
    #[cfg(unix)]
    assert_says(&mistake(&folder, "qfl", Path::new("/dev/zero"), ""), &["not a regular file"]);
    #[cfg(unix)]
    assert_says(&mistake(&folder, "qfl", &folder.path("a\nb"), ""), &["a\\nb"]);
}

/// A file with a header of one's own.
fn raw(folder: &Folder, header: &str, data: &[u8]) -> std::path::PathBuf {
    let path = folder.path("raw.safetensors");
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn files_of_another_kind() {
    let folder = Folder::new();
    let path = folder.path("odd.safetensors");
    for bytes in [&b""[..], b"abc", b"just a text, and not a short one either", &[255; 64], &[0; 64]] {
        fs::write(&path, bytes).unwrap();
        assert_says(
            &mistake(&folder, "qfl", &path, ""),
            &["odd.safetensors is not a valid .safetensors file: "],
        );
    }
    for header in [
        "",
        "{",
        "[]",
        "7",
        r#"{"logits":7}"#,
        r#"{"logits":{"dtype":"F32","shape":[1,1],"data_offsets":[0,8]}}"#,
        r#"{"logits":{"dtype":"F32","shape":[1,1],"data_offsets":[8,4]}}"#,
        r#"{"logits":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}"#,
        r#"{"logits":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#,
        r#"{"logits":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]}}"#,
    ] {
        let path = raw(&folder, header, &[0; 4]);
        assert_says(&mistake(&folder, "qfl", &path, ""), &["is not a valid .safetensors file: "]);
    }
}

#[test]
fn truncated_files() {
    let folder = Folder::new();
    let bytes = fs::read(qfl_file(&folder)).unwrap();
    let path = folder.path("cut.safetensors");
    for length in (0..bytes.len()).rev().step_by(7) {
        fs::write(&path, &bytes[..length]).unwrap();
        assert_says(&mistake(&folder, "qfl", &path, ""), &["is not a valid .safetensors file: "]);
    }
}

#[test]
fn shapes_that_no_memory_holds() {
    let folder = Folder::new();
    // No columns, so that the rows take no space.
    let header = r#"{"logits":{"dtype":"F32","shape":[4611686018427387904,0],"data_offsets":[0,0]},
        "target":{"dtype":"F32","shape":[4611686018427387904,0],"data_offsets":[0,0]}}"#;
    let path = raw(&folder, header, &[]);
    for reduction in ["none", "mean", "sum"] {
        let line = mistake(&folder, "qfl", &path, &format!("--reduction {reduction}"));
        assert_says(&line, &["logits [4611686018427387904, 0] has 0 classes"]);
    }
    let header = r#"{"logits":{"dtype":"F32","shape":[0,4611686018427387904],"data_offsets":[0,0]},
        "target":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}"#;
    assert_says(&mistake(&folder, "dfl", &raw(&folder, header, &[]), ""), &["has 4611686018427387904 bins"]);
    // Sizes that add up to more than 2^64.
    let size = (1u64 << 61) - 8;
    let tensors: Vec<String> = (0..8)
        .map(|i| {
            let shape = size / 8;
            format!(
                r#""{i}":{{"dtype":"F64","shape":[{shape}],"data_offsets":[{},{}]}}"#,
                i * size,
                (i + 1) * size
            )
        })
        .collect();
    let path = raw(&folder, &format!("{{{}}}", tensors.join(",")), &[]);
    assert_says(&mistake(&folder, "qfl", &path, ""), &["more data than the file has"]);
}

#[test]
fn tensors_that_are_missing() {
    let folder = Folder::new();
    let logits = || ("logits", f32s(&[2, 2], &LOGITS));
    let file = folder.file("in", &[logits()]);
    assert_says(&mistake(&folder, "qfl", &file, ""), &["has no tensor labels", "target", "it holds logits"]);
    assert_says(&mistake(&folder, "dfl", &file, ""), &["has no tensor target; it holds logits"]);
    assert_says(&mistake(&folder, "gfl", &file, ""), &["has no tensor qfl.logits; it holds logits"]);
    let file = folder.file("in", &[logits(), ("labels", i64s(&[0, 1]))]);
    assert_says(&mistake(&folder, "qfl", &file, ""), &["has no tensor quality; it holds labels, logits"]);
    let file = folder.file("in", &[("weight", f32s(&[1], &[1.0]))]);
    assert_says(&mistake(&folder, "qfl", &file, ""), &["has no tensor logits; it holds weight"]);
    assert_says(&mistake(&folder, "qfl", &folder.file("in", &[]), ""), &["it holds none at all"]);
    let names: Vec<String> = (0..12).map(|i| format!("t{i:02}")).collect();
    let many: Vec<_> = names.iter().map(|name| (&**name, i64s(&[]))).collect();
    assert_says(&mistake(&folder, "qfl", &folder.file("in", &many), ""), &["t06, t07 and 4 more"]);
}

#[test]
fn labels_and_target_at_once() {
    let folder = Folder::new();
    let tensors = [
        ("logits", f32s(&[1, 1], &[0.0])),
        ("labels", i64s(&[0])),
        ("quality", f32s(&[1], &[1.0])),
        ("target", f32s(&[1, 1], &[1.0])),
    ];
    let line = mistake(&folder, "qfl", &folder.file("in", &tensors), "");
    assert_says(&line, &["has both labels and target", "remove"]);
}

#[test]
fn types_that_do_not_fit() {
    let folder = Folder::new();
    let check = |op: &str, tensors: &[(&str, Tensor)], parts: &[&str]| {
        assert_says(&mistake(&folder, op, &folder.file("in", tensors), ""), parts);
    };
    let logits = || ("logits", f32s(&[1, 2], &[0.0, 0.0]));
    check(
        "qfl",
        &[("logits", i64s(&[0]))],
        &["logits in", "is of type I64; it must be F32, F16, BF16 or F64"],
    );
    let labels = ("labels", f32s(&[1], &[0.0]));
    check("qfl", &[logits(), labels], &["labels in", "is of type F32; it must be I64 or I32"]);
    let quality = ("quality", i32s(&[0]));
    check("qfl", &[logits(), ("labels", i64s(&[0])), quality], &["quality in", "is of type I32"]);
    check("dfl", &[logits(), ("target", i64s(&[0]))], &["target in", "is of type I64"]);
    let weight = ("weight", i64s(&[0]));
    check("dfl", &[logits(), ("target", f32s(&[1], &[0.0])), weight], &["weight in", "is of type I64"]);
}

#[test]
fn shapes_that_do_not_fit() {
    let folder = Folder::new();
    let check = |op: &str, tensors: &[(&str, Tensor)], parts: &[&str]| {
        assert_says(&mistake(&folder, op, &folder.file("in", tensors), ""), parts);
    };
    let logits = || ("logits", f32s(&[2, 2], &LOGITS));
    check(
        "qfl",
        &[("logits", f32s(&[4], &LOGITS))],
        &["the shape [4]; it must have two axes, [rows, classes]"],
    );
    check("dfl", &[("logits", f32s(&[1, 2, 2], &LOGITS))], &["the shape [1, 2, 2]", "[rows, bins]"]);
    let quality = || ("quality", f32s(&[2], &[0.0, 0.0]));
    check(
        "qfl",
        &[logits(), ("labels", i64s(&[0; 3])), quality()],
        &["labels in", "[3]; logits [2, 2] needs [2]"],
    );
    let short = ("quality", f32s(&[1], &[0.0]));
    check(
        "qfl",
        &[logits(), ("labels", i64s(&[0; 2])), short],
        &["quality in", "[1]; logits [2, 2] needs [2]"],
    );
    let wide = ("target", f32s(&[1, 4], &[0.0; 4]));
    check("qfl", &[logits(), wide], &["target in", "[1, 4]; logits [2, 2] needs [2, 2]"]);
    let weight = ("weight", f32s(&[2, 1], &[1.0; 2]));
    check(
        "qfl",
        &[logits(), ("labels", i64s(&[0; 2])), quality(), weight],
        &["weight in", "[2, 1]", "needs [2]"],
    );
    check("dfl", &[logits(), ("target", f32s(&[], &[0.0]))], &["target in", "[]; logits [2, 2] needs [2]"]);
    let narrow = [("logits", f32s(&[2, 1], &[0.0; 2])), ("target", f32s(&[2], &[0.0; 2]))];
    check("dfl", &narrow, &["logits [2, 1] has 1 bin, it must have 2 to"]);
    let none = [("logits", f32s(&[2, 0], &[])), ("labels", i64s(&[0; 2])), quality()];
    check("qfl", &none, &["logits [2, 0] has 0 classes, it must have 1 to"]);
}

#[test]
fn values_of_options() {
    let folder = Folder::new();
    let (qfl, dfl) = (qfl_file(&folder), dfl_file(&folder));
    for (option, values) in [
        ("--beta", "NaN inf -1 1e7 two"),
        ("--avg-factor", "NaN inf -1 many"),
        ("--loss-weight", "NaN inf -inf x"),
        ("--grad-scale", "NaN inf -inf x"),
        ("--reduction", "max"),
        ("--background", "middle"),
        ("--ignore-label", "1.5 99999999999999999999"),
        ("--dtype", "f8 f64"),
        ("--device", "gpu cuda:x cuda:-1"),
    ] {
        for value in values.split(' ') {
            // The device of the helper comes first, so that it is not given twice.
            let run: Run = command().arg("qfl").arg(&qfl).args([option, value]).output().unwrap().into();
            assert_says(&run.mistake(), &["invalid value", value, option]);
        }
    }
    for value in ["NaN", "inf", "-0.1"] {
        assert_says(
            &mistake(&folder, "dfl", &dfl, &format!("--target-eps {value}")),
            &["invalid value", value],
        );
    }
    for value in ["min=0", "min=NaN", "max=1"] {
        let line = mistake(&folder, "qfl", &qfl, &format!("--avg-factor 1 --avg-policy {value}"));
        assert_says(&line, &["invalid value", value]);
    }
    assert_says(&mistake(&folder, "dfl", &dfl, "--target-eps 4"), &["--target-eps is 4, it must be at most"]);
}

#[test]
fn options_that_do_not_go_together() {
    let folder = Folder::new();
    let file = qfl_file(&folder);
    for reduction in ["none", "sum"] {
        let line = mistake(&folder, "qfl", &file, &format!("--avg-factor 3 --reduction {reduction}"));
        assert_says(
            &line,
            &["--avg-factor goes with --reduction mean", &format!("not with --reduction {reduction}")],
        );
    }
    assert_says(&mistake(&folder, "qfl", &file, "--avg-policy eps"), &["--avg-factor"]);
    for option in ["--qfl-avg-factor", "--dfl-avg-factor"] {
        let line = mistake(&folder, "gfl", &file, &format!("{option} 3 --reduction mean"));
        assert_says(&line, &[option, "goes with --reduction head"]);
    }
    assert_says(&mistake(&folder, "qfl", &file, "--target-eps 0.1"), &["unexpected argument '--target-eps'"]);
    assert_says(&mistake(&folder, "dfl", &file, "--beta 1"), &["unexpected argument '--beta'"]);
}

#[test]
fn commands_that_are_not() {
    for args in [&["focal"][..], &["qfl"], &["qfl", "a", "b"], &["info", "--wrong"]] {
        let run: Run = command().args(args).output().unwrap().into();
        run.mistake();
    }
    let run: Run = command().output().unwrap().into();
    assert_eq!((run.code, &*run.stdout), (Some(2), ""));
    assert!(run.stderr.contains("Usage: gfocal"));
}

#[test]
fn outputs_that_cannot_be_written() {
    let folder = Folder::new();
    let file = qfl_file(&folder);
    let before = (fs::read(&file).unwrap(), folder.names());
    let out = |path: &Path| cpu("qfl", &file, &format!("--output {}", path.display())).mistake();
    assert_says(&out(&folder.path("no/out")), &["cannot write", "there is no folder", "make it first"]);
    assert_says(&out(&file.join("out")), &["cannot write", "there is no folder"]);
    assert_says(&out(&folder.path("")), &["it is a folder"]);
    assert_says(&out(&file), &["it is the input file"]);
    assert_says(&out(&folder.path(".").join("qfl.safetensors")), &["it is the input file"]);
    #[cfg(unix)]
    assert_says(&out(Path::new("/dev/null")), &["not a regular file"]);
    #[cfg(target_os = "linux")]
    assert_says(&out(Path::new("/proc/out.safetensors")), &["cannot write /proc/out.safetensors: "]);
    assert_eq!((fs::read(&file).unwrap(), folder.names()), before);
}

#[test]
fn devices_that_are_not_there() {
    let folder = Folder::new();
    let file = qfl_file(&folder);
    let line =
        run("qfl", &file, &["--device", "cuda:4096", "--output", folder.path("out").to_str().unwrap()])
            .mistake();
    assert_says(&line, &["cannot use cuda:4096: ", "--device cpu"]);
    let hidden =
        command().arg("qfl").arg(&file).args(["--device", "cuda"]).env("CUDA_VISIBLE_DEVICES", "").output();
    assert_says(&Run::from(hidden.unwrap()).mistake(), &["cannot use cuda:0: ", "--device cpu"]);
    let tensors = [("logits", f64s(&[1, 2], &[0.0; 2])), ("target", f32s(&[1], &[0.0]))];
    let line = run("dfl", &folder.file("f64", &tensors), &["--device", "cuda"]).mistake();
    assert_says(&line, &["logits are f64", "--dtype f32", "--device cpu"]);
    assert_eq!(folder.names(), ["f64", "qfl.safetensors"]);
}
