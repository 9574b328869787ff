//! `gfocal-emulator COMMAND ARGS...`: runs a command on the emulated CUDA driver.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let Some(command) = arguments.next() else {
        eprintln!("usage: gfocal-emulator COMMAND ARGS...   runs COMMAND on a CUDA driver in software");
        return ExitCode::from(2);
    };
    let folder = match gfocal_emulator::library_folder() {
        Ok(folder) => folder,
        Err(error) => {
            eprintln!("gfocal-emulator: {error}");
            return ExitCode::FAILURE;
        }
    };
    let mut child = Command::new(&command);
    child.args(arguments).env("LD_LIBRARY_PATH", prepend(folder, "LD_LIBRARY_PATH"));
    // Where cargo has put this program it also puts `gfocal`.
    if let Some(own) = std::env::current_exe().ok().and_then(|p| p.parent().map(PathBuf::from)) {
        child.env("PATH", prepend(own, "PATH"));
    }
    run(child, &command)
}

fn prepend(folder: PathBuf, variable: &str) -> OsString {
    let mut path = folder.into_os_string();
    if let Some(old) = std::env::var_os(variable).filter(|old| !old.is_empty()) {
        path.push(":");
        path.push(old);
    }
    path
}

#[cfg(unix)]
fn run(mut child: Command, name: &OsString) -> ExitCode {
    use std::os::unix::process::CommandExt;
    failed(&child.exec(), name)
}

#[cfg(not(unix))]
fn run(mut child: Command, name: &OsString) -> ExitCode {
    match child.status() {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => failed(&error, name),
    }
}

fn failed(error: &std::io::Error, name: &OsString) -> ExitCode {
    let shown = name.to_string_lossy();
    if error.kind() != std::io::ErrorKind::NotFound {
        eprintln!("gfocal-emulator: `{shown}`: {error}");
    } else if name == "gfocal" {
        eprintln!("gfocal-emulator: `gfocal` was not found: run `cargo build -p gfocal-cli` first");
    } else {
        eprintln!("gfocal-emulator: `{shown}` was not found");
    }
    ExitCode::from(127)
}
