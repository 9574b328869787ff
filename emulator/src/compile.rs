//! Compiles the driver and the kernels into `libcuda.so`.
//!
//! Every object file is kept under the hash of all that went into it (sources, headers, flags,
//! compiler), and so is the library: an unchanged tree costs some hashing, and a change of one
//! kernel compiles that kernel. Processes that come at the same time wait for each other.

use crate::Error;
use rayon::prelude::*;
use rustix::fs::{FlockOperation, flock};
use sha2::{Digest, Sha256};
use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

const DRIVER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/driver");
const KERNELS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../kernels");
/// Kernels for reading and for tests, in a folder of the others'.
const NAIVE: &str = "naive";
const DRIVER_12_0: &str = include_str!("../driver/symbols-12.0.txt");
const CACHE: &str = concat!(env!("OUT_DIR"), "/driver");

/// Of everything: no part may need the C++ runtime's exceptions, and all but the API is hidden.
const COMMON: &[&str] =
    &["-std=c++17", "-fPIC", "-fvisibility=hidden", "-fno-exceptions", "-fno-rtti", "-U_FORTIFY_SOURCE"];
const DRIVER_FLAGS: &[&str] = &["-O1", "-Wall", "-Wextra"];
const EXECUTOR_FLAGS: &[&str] = &["-O2", "-Wall", "-Wextra"];
/// Of what runs PTX: its loops over 32 lanes become vector instructions. Bits count, so nothing
/// is contracted.
const SIMT_FLAGS: &[&str] = &[
    "-O3",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fno-strict-aliasing",
    "-Wall",
    "-Wextra",
];
/// Of kernels. CUDA has no strict aliasing and no errno; contraction is off, unless it is asked for,
/// because the compiler would choose other places than NVRTC. The checks call handlers in driver/faults.cpp. -O2
/// compiles twice as long, and the switches between threads take most of the time anyway.
const KERNEL_FLAGS: &[&str] =
    &["-O1", "-fno-math-errno", "-fno-strict-aliasing", "-fsanitize=alignment,bounds", "-w"];
const STORAGES: &[&str] = &["F32", "F16", "BF16"];

fn io<T>(path: &Path, result: std::io::Result<T>) -> Result<T, Error> {
    result.map_err(|source| Error::Io { path: path.into(), source })
}

struct Compiler {
    program: OsString,
    arguments: Vec<String>,
    version: Vec<u8>,
}

impl Compiler {
    fn find() -> Result<Self, Error> {
        let mut candidates = vec!["c++".to_owned(), "g++".to_owned(), "clang++".to_owned()];
        if let Ok(cxx) = std::env::var("CXX")
            && !cxx.trim().is_empty()
        {
            candidates.insert(0, cxx);
        }
        for candidate in &candidates {
            let mut words = candidate.split_whitespace().map(str::to_owned);
            let Some(program) = words.next() else { continue };
            let arguments: Vec<String> = words.collect();
            let output = Command::new(&program).args(&arguments).arg("--version").output();
            if let Ok(output) = output
                && output.status.success()
            {
                return Ok(Self { program: program.into(), arguments, version: output.stdout });
            }
        }
        Err(Error::NoCompiler { tried: candidates.join(", ") })
    }

    fn run(&self, what: &str, arguments: &[OsString]) -> Result<(), Error> {
        let output = Command::new(&self.program).args(&self.arguments).args(arguments).output();
        let output = io(Path::new(&self.program), output)?;
        if output.status.success() {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        Err(Error::Compile { what: what.to_owned(), output: text })
    }
}

/// One object file to be.
struct Unit {
    what: String,
    source: String,
    flags: Vec<String>,
    key: String,
}

/// A hash over pieces that keeps them apart.
struct Key(Sha256);

impl Key {
    fn new() -> Self {
        Self(Sha256::new())
    }

    fn add(&mut self, piece: impl AsRef<[u8]>) -> &mut Self {
        let piece = piece.as_ref();
        self.0.update((piece.len() as u64).to_le_bytes());
        self.0.update(piece);
        self
    }

    fn text(&self) -> String {
        self.0.clone().finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
    }
}

/// The files of a folder with one of these extensions, with their contents, by name.
fn files(folder: &Path, extensions: &[&str]) -> Result<Vec<(PathBuf, Vec<u8>)>, Error> {
    let mut found = Vec::new();
    for entry in io(folder, fs::read_dir(folder))? {
        let path = io(folder, entry)?.path();
        if path.extension().is_some_and(|e| extensions.iter().any(|x| e == *x)) {
            let contents = io(&path, fs::read(&path))?;
            found.push((path, contents));
        }
    }
    found.sort();
    Ok(found)
}

/// The names in `KERNEL(name, ...)`, comments and definitions of the macro aside.
fn entry_points(source: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut in_comment = false;
    for line in source.lines() {
        let mut code = line;
        if in_comment {
            let Some((_, rest)) = code.split_once("*/") else { continue };
            in_comment = false;
            code = rest;
        }
        let code = code.split("//").next().unwrap_or_default();
        let code = match code.split_once("/*") {
            Some((before, after)) => {
                in_comment = !after.contains("*/");
                before
            }
            None => code,
        };
        if code.trim_start().starts_with('#') {
            continue;
        }
        for (at, word) in code.match_indices("KERNEL(") {
            let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
            if code[..at].ends_with(is_word) {
                continue;
            }
            let name: String =
                code[at + word.len()..].trim_start().chars().take_while(|&c| is_word(c)).collect();
            if !name.is_empty() {
                names.push(name);
            }
        }
    }
    names
}

/// A kernel file for one storage type, with what registers its entry points. Everything is in
/// an unnamed namespace: the same template of two storage types is not the same function, and
/// the linker must not merge them.
fn kernel_source(path: &Path, contents: &str, storage: &str) -> String {
    let mut source = format!("namespace {{\n#include \"{}\"\n", path.display());
    for name in entry_points(contents) {
        let name = format!("{name}_{}", storage.to_lowercase());
        source += &format!(
            "emu::Kernel kernel_{name} = {{\"{name}\", emu::Entry<&{name}>::call, emu::Entry<&{name}>::parameters, 0}};\n\
             emu::Register register_{name}(kernel_{name});\n"
        );
    }
    source + "}\n"
}

fn cpu_flags() -> Vec<&'static str> {
    #[allow(unused_mut, reason = "not on other processors")]
    let mut flags = Vec::new();
    #[cfg(target_arch = "x86_64")]
    {
        if std::arch::is_x86_feature_detected!("fma") {
            flags.push("-mfma");
        }
        if std::arch::is_x86_feature_detected!("avx2") {
            flags.push("-mavx2");
        }
    }
    flags
}

fn units(compiler: &Compiler, kernels: Option<&Path>) -> Result<Vec<Unit>, Error> {
    let driver = Path::new(DRIVER);
    let mut base = Key::new();
    base.add(&compiler.version).add(compiler.arguments.join(" ")).add(COMMON.join(" "));
    for (path, contents) in files(driver, &["h"])? {
        base.add(path.to_string_lossy().as_bytes()).add(contents);
    }
    let unit = |base: &Key, what: String, source: String, flags: Vec<String>, inputs: &[&[u8]]| {
        let mut key = Key(base.0.clone());
        key.add(&source).add(flags.join(" "));
        for input in inputs {
            key.add(input);
        }
        Unit { what, source, flags, key: key.text() }
    };
    let strings = |flags: &[&str]| flags.iter().map(|&f| f.to_owned()).collect::<Vec<_>>();

    // Kernels first: they take longest.
    let mut units = Vec::new();
    if let Some(kernels) = kernels {
        let mut kernel_base = Key(base.0.clone());
        let mut folders = vec![kernels.to_owned()];
        folders.extend(fs::canonicalize(KERNELS).ok().filter(|own| own != kernels));
        for folder in &folders {
            for (path, contents) in files(folder, &["cuh", "h"])? {
                kernel_base.add(path.as_os_str().as_encoded_bytes()).add(contents);
            }
        }
        let contract = if crate::set("GFOCAL_EMULATOR_CONTRACT") { "fast" } else { "off" };
        let mut sources = files(kernels, &["cu"])?;
        let naive = kernels.join(NAIVE);
        if naive.is_dir() {
            sources.extend(files(&naive, &["cu"])?);
        }
        for (path, contents) in sources {
            let text = String::from_utf8_lossy(&contents);
            for storage in STORAGES {
                let mut flags = strings(KERNEL_FLAGS);
                flags.push(format!("-ffp-contract={contract}"));
                flags.extend(strings(&cpu_flags()).into_iter().filter(|flag| flag == "-mfma"));
                flags.push(format!("-DSTORAGE_{storage}"));
                flags.extend(folders.iter().map(|folder| format!("-I{}", folder.display())));
                flags.extend(["-include".to_owned(), format!("{DRIVER}/prelude.h")]);
                let what = format!("{} for {}", path.display(), storage.to_lowercase());
                let source = kernel_source(&path, &text, storage);
                units.push(unit(&kernel_base, what, source, flags, &[&contents]));
            }
        }
    }
    let mut simt_flags = strings(SIMT_FLAGS);
    simt_flags.extend(strings(&cpu_flags()));
    // Some files together: the C++ library's headers are most of the work.
    let mut groups = vec![
        (simt_flags.clone(), vec!["simt_convert", "simt_float", "simt_compare"]),
        (simt_flags.clone(), vec!["simt_integer", "simt_move", "simt_names", "simt_operands", "simt_decode"]),
        (simt_flags, vec!["simt_lanes", "simt_memory", "simt_run"]),
        (strings(EXECUTOR_FLAGS), vec!["executor", "fibers", "faults", "report"]),
    ];
    let mut rest = [Vec::new(), Vec::new()];
    let sources = files(driver, &["cpp"])?;
    for (path, _) in &sources {
        let stem = path.file_stem().and_then(|s| s.to_str()).unwrap_or_default();
        if !groups.iter().any(|(_, stems)| stems.contains(&stem)) {
            let half = usize::from(rest[0].len() > rest[1].len());
            rest[half].push(stem);
        }
    }
    groups.extend(rest.map(|stems| (strings(DRIVER_FLAGS), stems)));
    for (flags, stems) in groups {
        let mut source = String::new();
        let mut inputs: Vec<&[u8]> = Vec::new();
        for (path, contents) in &sources {
            let stem = path.file_stem().and_then(|s| s.to_str()).unwrap_or_default();
            if stems.contains(&stem) {
                source += &format!("#include \"{}\"\n", path.display());
                inputs.push(contents);
            }
        }
        units.push(unit(&base, format!("the driver ({})", stems.join(", ")), source, flags, &inputs));
    }
    Ok(units)
}

/// Compiles what is not there yet, on all cores.
fn compile(compiler: &Compiler, units: &[Unit], objects: &Path) -> Result<(), Error> {
    let missing = units.iter().filter(|unit| !object(objects, unit).exists());
    // In their order: see `units`.
    missing.par_bridge().try_for_each(|unit| compile_one(compiler, unit, objects))
}

fn object(objects: &Path, unit: &Unit) -> PathBuf {
    objects.join(format!("{}.o", unit.key))
}

fn compile_one(compiler: &Compiler, unit: &Unit, objects: &Path) -> Result<(), Error> {
    let source = objects.join(format!("{}.cpp", unit.key));
    let unfinished = objects.join(format!("{}.tmp", unit.key));
    io(&source, fs::write(&source, &unit.source))?;
    let mut arguments: Vec<OsString> = COMMON.iter().map(OsString::from).collect();
    arguments.extend(unit.flags.iter().map(OsString::from));
    arguments.push(format!("-I{DRIVER}").into());
    arguments.extend(["-c".into(), source.clone().into(), "-o".into(), unfinished.clone().into()]);
    compiler.run(&unit.what, &arguments)?;
    io(&unfinished, fs::rename(&unfinished, object(objects, unit)))?;
    io(&source, fs::remove_file(&source))
}

/// `libcuda.so`, and `libcuda.so.1`, which is empty and needs the first: so both names lead to
/// one library, also for `dlopen` of a bare name once they have been opened by their paths.
fn link(
    compiler: &Compiler,
    units: &[Unit],
    objects: &Path,
    folder: &Path,
    exported: Option<&str>,
) -> Result<(), Error> {
    let library = folder.join("libcuda.so");
    let mut arguments: Vec<OsString> =
        ["-shared", "-pthread", "-Wl,-soname,libcuda.so", "-Wl,-z,defs", "-Wl,-Bsymbolic", "-o"]
            .iter()
            .map(OsString::from)
            .collect();
    arguments.push(library.into());
    if let Some(exported) = exported {
        let script = folder.join("exported.map");
        io(&script, fs::write(&script, exported))?;
        let mut option = OsString::from("-Wl,--version-script=");
        option.push(script);
        arguments.push(option);
    }
    arguments.extend(units.iter().map(|unit| object(objects, unit).into()));
    compiler.run("libcuda.so", &arguments)?;
    let empty = folder.join("empty.cpp");
    io(&empty, fs::write(&empty, ""))?;
    let mut arguments: Vec<OsString> =
        ["-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-Wl,-rpath,$ORIGIN", "-Wl,--no-as-needed", "-o"]
            .iter()
            .map(OsString::from)
            .collect();
    arguments.push(folder.join("libcuda.so.1").into());
    arguments.push(empty.into());
    let mut search = OsString::from("-L");
    search.push(folder);
    arguments.extend([search, "-l:libcuda.so".into()]);
    compiler.run("libcuda.so.1", &arguments)
}

/// What the library exports, in the linker's words, if `GFOCAL_EMULATOR_DRIVER` is a driver for
/// CUDA 12.0: the functions that it has, and those of the emulator itself. `None`: all.
fn exported() -> Option<String> {
    let version: u32 = std::env::var("GFOCAL_EMULATOR_DRIVER").ok()?.trim().parse().ok()?;
    (version < 12_010).then(|| {
        let names = DRIVER_12_0.lines().filter(|line| !line.starts_with('#'));
        let names: String = names.map(|name| format!("{name}; ")).collect();
        format!("{{ global: {names}gfocal_emulator_*; local: *; }};\n")
    })
}

/// A file that is locked as long as it is open.
fn locked(path: &Path) -> Result<File, Error> {
    let file = io(path, File::create(path))?;
    let taken = rustix::io::retry_on_intr(|| flock(&file, FlockOperation::LockExclusive));
    io(path, taken.map_err(Into::into))?;
    Ok(file)
}

/// The folder of a `libcuda.so` with these kernels; without any, for PTX alone.
pub(crate) fn library(kernels: Option<&Path>) -> Result<PathBuf, Error> {
    let kernels = kernels.map(|folder| io(folder, fs::canonicalize(folder))).transpose()?;
    let compiler = Compiler::find()?;
    let units = units(&compiler, kernels.as_deref())?;
    let mut key = Key::new();
    for unit in &units {
        key.add(&unit.key);
    }
    let exported = exported();
    key.add(exported.as_deref().unwrap_or_default());
    let cache = Path::new(CACHE);
    let folder = cache.join(key.text());
    if folder.exists() {
        return Ok(folder);
    }
    let objects = cache.join("objects");
    io(&objects, fs::create_dir_all(&objects))?;
    let _lock = locked(&cache.join("lock"))?;
    if folder.exists() {
        return Ok(folder);
    }
    compile(&compiler, &units, &objects)?;
    let unfinished = tempfile::Builder::new().prefix("link-").tempdir_in(cache);
    let unfinished = io(cache, unfinished)?;
    link(&compiler, &units, &objects, unfinished.path(), exported.as_deref())?;
    io(&folder, fs::rename(unfinished.path(), &folder))?;
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_entry_points() {
        let source = "#define KERNEL(x) y\n// KERNEL(a, 1, 1)\nKERNEL(one, 32, 1)(int n) {}\n\
                      /* KERNEL(b,\n 2) */ KERNEL( two , BLOCK, 2)()\nMY_KERNEL(c)\n";
        assert_eq!(entry_points(source), ["one", "two"]);
    }
}
