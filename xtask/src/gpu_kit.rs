//! `cargo xtask gpu-kit`: what a machine with a GPU needs to test and time gfocal, in one folder.
//!
//! That machine needs neither Rust nor a network: an x86-64 Linux with glibc 2.36 or newer and
//! NVIDIA's driver, version 525 or newer. PyTorch, Triton, compute-sanitizer and ncu are used where
//! they are.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::root;

const SCRIPT: &str = include_str!("gpu_kit/run.sh");
/// More than this does not travel everywhere.
const MOST_BYTES: u64 = 60_000_000;
/// As in the script.
const STAGES: &str = "check|sanitize|bench|peers|profile|criterion";
/// Folders of the checkout that the tests and the script read.
const DATA: [&str; 4] = ["tests/golden", "tests/boxes", "benches/peers", "samples"];

/// Builds everything and fills `folder`, which is emptied first.
pub fn run(folder: &Path) -> Result<(), String> {
    if folder.exists() && !folder.join("run.sh").exists() && !is_empty(folder) {
        return Err(format!("{} is there, and is not a kit: name another folder", folder.display()));
    }
    // What may well fail comes before the folder is touched.
    let programs = [
        built(&["test", "--package", "gfocal", "--no-run", "--test", "kit"])?,
        built(&["build", "--package", "gfocal-cli"])?,
        built(&["bench", "--package", "gfocal", "--bench", "losses", "--no-run"])?,
    ];
    let _ = fs::remove_dir_all(folder);
    let bin = folder.join("bin");
    fs::create_dir_all(&bin).map_err(|error| cannot_write(folder, &error))?;
    for program in &programs {
        copy(program, &bin)?;
    }
    for data in DATA {
        let from = root().join(data);
        if from.exists() {
            copy_folder(&from, &folder.join(data))?;
        }
    }
    let script = folder.join("run.sh");
    fs::write(&script, SCRIPT).map_err(|error| cannot_write(&script, &error))?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))
        .map_err(|error| cannot_write(&script, &error))?;

    let bytes = size(folder)?;
    println!("{}: {:.1} MB; there: ./run.sh [{STAGES}]", folder.display(), bytes as f64 / 1e6);
    if bytes > MOST_BYTES {
        return Err(format!("the kit has {bytes} bytes, at most {MOST_BYTES} should travel"));
    }
    pack(folder)
}

/// The same in one compressed file beside the folder, if there are tar and xz.
fn pack(folder: &Path) -> Result<(), String> {
    let (Some(parent), Some(name)) = (folder.parent(), folder.file_name()) else { return Ok(()) };
    let packed = folder.with_extension("tar.xz");
    let mut tar = Command::new("tar");
    tar.args(["--create", "--xz", "--file"]).arg(&packed).arg("--directory");
    tar.arg(if parent.as_os_str().is_empty() { Path::new(".") } else { parent }).arg(name);
    let done = tar.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success());
    if done {
        let bytes = packed.metadata().map_or(0, |data| data.len());
        println!("{}: {:.1} MB, the same packed", packed.display(), bytes as f64 / 1e6);
    } else {
        println!("not packed: tar with xz does not run here");
    }
    Ok(())
}

/// Runs cargo in release mode, small and without symbols; gives the programs that it made. They carry the
/// committed PTX, unless GFOCAL_NVRTC names a compiler.
fn built(arguments: &[&str]) -> Result<Vec<PathBuf>, String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(root()).args(arguments).args(["--message-format", "json-render-diagnostics"]);
    command.args(["--config", "profile.release.strip=true", "--config", "profile.bench.strip=true"]);
    if std::env::var_os("GFOCAL_NVRTC").is_none() {
        command.env("GFOCAL_NVRTC", "none");
    }
    if arguments[0] != "bench" {
        command.arg("--release");
    }
    let output =
        command.stderr(Stdio::inherit()).output().map_err(|error| format!("cargo cannot run: {error}"))?;
    if !output.status.success() {
        return Err(format!("cargo {} failed", arguments.join(" ")));
    }
    let messages = String::from_utf8_lossy(&output.stdout);
    let programs: Vec<PathBuf> = messages.lines().filter_map(executable).collect();
    if programs.is_empty() {
        Err(format!("cargo {} made no program", arguments.join(" ")))
    } else {
        Ok(programs)
    }
}

/// The program that a message of cargo's announces.
fn executable(message: &str) -> Option<PathBuf> {
    let message: serde_json::Value = serde_json::from_str(message).ok()?;
    message.get("executable")?.as_str().map(PathBuf::from)
}

/// Copies programs, without the hash that cargo puts behind a test's name.
fn copy(programs: &[PathBuf], to: &Path) -> Result<(), String> {
    for program in programs {
        let name = program.file_stem().unwrap_or_default().to_string_lossy();
        let plain = match name.rsplit_once('-') {
            Some((plain, hash)) if hash.len() == 16 => plain,
            _ => &name,
        };
        let to = to.join(plain);
        fs::copy(program, &to).map_err(|error| cannot_write(&to, &error))?;
    }
    Ok(())
}

fn copy_folder(from: &Path, to: &Path) -> Result<(), String> {
    fs::create_dir_all(to).map_err(|error| cannot_write(to, &error))?;
    for path in entries(from)? {
        let to = to.join(path.file_name().unwrap_or_default());
        if path.is_dir() {
            copy_folder(&path, &to)?;
        } else {
            fs::copy(&path, &to).map_err(|error| cannot_write(&to, &error))?;
        }
    }
    Ok(())
}

fn size(folder: &Path) -> Result<u64, String> {
    let mut bytes = 0;
    for path in entries(folder)? {
        bytes += if path.is_dir() { size(&path)? } else { path.metadata().map_or(0, |data| data.len()) };
    }
    Ok(bytes)
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let cannot_read = |error| format!("{} cannot be read: {error}", folder.display());
    let entries = fs::read_dir(folder).map_err(cannot_read)?;
    entries.map(|entry| Ok(entry.map_err(cannot_read)?.path())).collect()
}

fn is_empty(folder: &Path) -> bool {
    entries(folder).is_ok_and(|entries| entries.is_empty())
}

fn cannot_write(path: &Path, error: &std::io::Error) -> String {
    format!("{} cannot be written: {error}", path.display())
}
