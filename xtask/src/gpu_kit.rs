//! `cargo xtask gpu-kit`: what a machine with a GPU needs to test and time gfocal, in one folder and in
//! one file.
//!
//! That machine needs neither Rust nor a network: an x86-64 Linux with bash 5, glibc 2.36 or newer and
//! NVIDIA's driver, version 525 or newer. PyTorch, Triton, compute-sanitizer and ncu are used where
//! they are.

#[cfg(test)]
mod tests;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::files::{cannot_write, create_folder, entries, write};
use crate::wheels::run as run_tool;
use crate::{cargo, root};

/// What runs there; the first of them is started, and has the others read.
const SCRIPTS: [(&str, &str); 3] = [
    ("run.sh", include_str!("gpu_kit/run.sh")),
    ("items.sh", include_str!("gpu_kit/items.sh")),
    ("summary.sh", include_str!("gpu_kit/summary.sh")),
];
/// More than this does not travel everywhere: unpacked, and packed.
const MOST_BYTES: u64 = 45_000_000;
const MOST_PACKED_BYTES: u64 = 12_000_000;
/// Folders of the checkout that the tests and the script read, and what the kit calls them.
const DATA: [(&str, &str); 6] = [
    ("tests/golden", "tests/golden"),
    ("tests/boxes", "tests/boxes"),
    ("tests/reports", "tests/reports"),
    ("benches/peers", "benches/peers"),
    ("benches/record/prediction", "prediction"),
    ("samples", "samples"),
];

/// Builds everything and fills `folder`, which is emptied first.
pub fn run(folder: &Path) -> Result<(), String> {
    if folder.exists() && !folder.join("run.sh").exists() && !is_empty(folder) {
        return Err(format!("{} is there, and is not a kit: name another folder", folder.display()));
    }
    // What may well fail comes before the folder is touched.
    let programs = [
        built(&["test", "--package", "gfocal", "--no-run", "--test", "kit"])?,
        built(&["build", "--package", "gfocal-cli"])?,
    ];
    let module = python_module()?;
    let _ = fs::remove_dir_all(folder);
    let bin = folder.join("bin");
    create_folder(&bin)?;
    for program in &programs {
        copy(program, &bin)?;
    }
    for (from, to) in DATA {
        copy_folder(&root().join(from), &folder.join(to))?;
    }
    let package = folder.join("python/gfocal");
    for from in entries(&root().join("python/gfocal"))? {
        if from.extension().is_some_and(|extension| extension == "py") {
            copy_as(&from, &package, &from.file_name().unwrap_or_default().to_string_lossy())?;
        }
    }
    copy_as(&module, &package, "_native.abi3.so")?;
    copy_as(&root().join("python/tests/gpu.py"), &folder.join("python"), "gpu.py")?;
    write_scripts(folder)?;
    crate::ptx::variants::run(&folder.join("variants"))?;

    let bytes = size(folder)?;
    println!("{}: {:.1} MB", folder.display(), bytes as f64 / 1e6);
    at_most(bytes, MOST_BYTES, "unpacked")?;
    let packed = pack(folder)?;
    let bytes = packed.metadata().map_or(0, |data| data.len());
    let name = folder.file_name().unwrap_or_default().display();
    println!("{}: {:.1} MB; there: tar xf, then {name}/run.sh lease", packed.display(), bytes as f64 / 1e6);
    at_most(bytes, MOST_PACKED_BYTES, "packed")
}

fn write_scripts(folder: &Path) -> Result<(), String> {
    for (name, text) in SCRIPTS {
        let script = folder.join(name);
        write(&script, text)?;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755))
            .map_err(|error| cannot_write(&script, &error))?;
    }
    Ok(())
}

fn at_most(bytes: u64, most: u64, how: &str) -> Result<(), String> {
    if bytes > most {
        return Err(format!("the kit has {bytes} bytes {how}, and should have {most} at most to travel"));
    }
    Ok(())
}

/// The same in one compressed file beside the folder.
fn pack(folder: &Path) -> Result<PathBuf, String> {
    let folder = folder.canonicalize().map_err(|error| cannot_write(folder, &error))?;
    let (Some(parent), Some(name)) = (folder.parent(), folder.file_name()) else {
        return Err(format!("{} cannot be packed", folder.display()));
    };
    let packed = folder.with_extension("tar.xz");
    let mut tar = Command::new("tar");
    tar.args(["--create", "--xz", "--file"]).arg(&packed).arg("--directory").arg(parent).arg(name);
    run_tool(&mut tar).map_err(|log| format!("tar with xz does not pack the kit: {log}"))?;
    Ok(packed)
}

/// Runs cargo in release mode, small and without symbols; gives the programs that it made. They carry the
/// committed PTX, unless GFOCAL_NVRTC names a compiler.
fn built(arguments: &[&str]) -> Result<Vec<PathBuf>, String> {
    let nvrtc = std::env::var_os("GFOCAL_NVRTC").unwrap_or_else(|| "none".into());
    let arguments = [arguments, &["--release", "--config", "profile.release.strip=true"]].concat();
    let messages = cargo::build(&arguments, nvrtc)?;
    let executable = |message: &serde_json::Value| Some(message.get("executable")?.as_str()?.into());
    let programs: Vec<PathBuf> = messages.iter().filter_map(executable).collect();
    if programs.is_empty() {
        Err(format!("cargo {} made no program", arguments.join(" ")))
    } else {
        Ok(programs)
    }
}

/// The native module of the Python package, as it is installed.
fn python_module() -> Result<PathBuf, String> {
    let arguments =
        ["build", "--package", "gfocal-python", "--profile", "wheel", "--config", "profile.wheel.strip=true"];
    let messages = cargo::build(&arguments, "none")?;
    let file = |message: &serde_json::Value| {
        (message.get("target")?.get("name")? == "_native")
            .then(|| Some(message.get("filenames")?.get(0)?.as_str()?.into()))?
    };
    messages.iter().find_map(file).ok_or_else(|| "cargo made no module for Python".to_owned())
}

fn copy_as(from: &Path, folder: &Path, name: &str) -> Result<(), String> {
    create_folder(folder)?;
    let to = folder.join(name);
    fs::copy(from, &to).map(|_| ()).map_err(|error| cannot_write(&to, &error))
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
    create_folder(to)?;
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

fn is_empty(folder: &Path) -> bool {
    entries(folder).is_ok_and(|entries| entries.is_empty())
}
