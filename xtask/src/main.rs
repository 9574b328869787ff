//! The repository's chores: `cargo xtask ptx`, `cargo xtask sass`, `cargo xtask model` and `cargo xtask gpu-kit`.

mod cargo;
mod files;
#[cfg(unix)]
mod gpu_kit;
#[allow(dead_code)] // the build script wants more of it, and of the next one
#[path = "../../build/manifest.rs"]
mod manifest;
mod model;
#[allow(dead_code)]
#[path = "../../build/nvrtc.rs"]
mod nvrtc;
mod ptx;
mod sass;
#[path = "../../build/variants.rs"]
mod variants;
mod wheels;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The chores of the gfocal repository.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Compile the kernels to kernels/ptx with a pinned NVRTC from PyPI
    Ptx(ptx::Options),
    /// Assemble kernels/ptx for several GPUs and hold the machine code against kernels/budgets.toml;
    /// no GPU is needed
    Sass(sass::Options),
    /// Foretell how long the operations take on a GPU, by arithmetic on the machine code; no GPU is needed
    Model(model::Options),
    /// Put tests, the command and a script into a folder for a machine with a GPU
    #[cfg(unix)]
    GpuKit {
        /// Where to put it
        #[arg(default_value = "target/gpu-kit")]
        folder: PathBuf,
    },
}

fn main() -> ExitCode {
    let done = match Arguments::parse().chore {
        Chore::Ptx(options) => ptx::run(&options),
        Chore::Sass(options) => sass::run(&options),
        Chore::Model(options) => model::run(&options),
        #[cfg(unix)]
        Chore::GpuKit { folder } => gpu_kit::run(&folder),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The root of the checkout. Cargo tells it at run time: with a target folder that several checkouts
/// share, the program may have been compiled in another one.
fn root() -> PathBuf {
    let package = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    package.unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into()).join("..")
}

/// The folder that these chores may fill.
fn cache() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").filter(|folder| !folder.is_empty());
    target.map_or_else(|| root().join("target"), PathBuf::from).join("xtask")
}
