//! A CUDA driver in software, for tests.
//!
//! A shared library that answers to the name of libcuda, implements the part of the driver API
//! that cudarc calls on host memory, and runs the kernels of this repository (`kernels/*.cu`),
//! compiled by the system's C++ compiler: with fibers for threads, real shuffles, votes and
//! barriers, shared memory and atomics. Once it is installed in a process, cudarc finds it as it
//! would find the driver of a GPU.
//!
//! ```no_run
//! match gfocal_emulator::driver() {
//!     Ok(driver) => println!("testing on {}", driver.name()),
//!     Err(error) if gfocal_emulator::skip_allowed() => println!("skipped: {error}"),
//!     Err(error) => panic!("{error}"),
//! }
//! ```
//!
//! It finds accesses outside of allocations and after a free, misaligned vector accesses,
//! indices beyond shared arrays, divergent barriers and shuffles, missing barriers and missing
//! order between blocks (by running them in many orders), uninitialised memory (it is NaN),
//! kernel parameters that differ from the PTX's, and calls that a capture forbids. It cannot show
//! what the PTX or the machine code does, how fast anything is, or what overlaps on a GPU: work
//! is done when it is enqueued.
//!
//! Environment, read at the first call: `GFOCAL_EMULATOR_CC` (compute capability, `90`),
//! `GFOCAL_EMULATOR_SMS` (multiprocessors, `4`), `GFOCAL_EMULATOR_DRIVER` (driver version,
//! `13000`), `GFOCAL_EMULATOR_DEVICES` (`2`), `GFOCAL_EMULATOR_MEMORY` (bytes of each, 4 GiB),
//! `GFOCAL_EMULATOR_FENCES` (`1`: see [`Emulator::set_tight_fences`]), `GFOCAL_EMULATOR_SEED`
//! (`1`: see [`Emulator::set_seed`]); and by [`driver`]: `GFOCAL_FORCE_EMULATOR=1`, to use the
//! emulator although there is a GPU.

mod error;

#[cfg(target_os = "linux")]
mod compile;
#[cfg(target_os = "linux")]
mod emulator;
#[cfg(not(target_os = "linux"))]
#[path = "unsupported.rs"]
mod emulator;

pub use emulator::{Counters, Emulator};
pub use error::Error;

/// To which side an approximate function is off; see [`Emulator::set_special_errors`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Sign {
    /// Too small by the allowed error.
    Minus = -1,
    /// Not at all.
    None = 0,
    /// Too large by the allowed error.
    Plus = 1,
}

use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// What tests run on.
#[derive(Clone, Debug)]
pub enum Driver {
    /// A real one, with at least one GPU.
    Real {
        /// The name of the first GPU.
        name: String,
    },
    /// The emulator.
    Emulated(Emulator),
}

impl Driver {
    /// The emulator, if it is one.
    pub fn emulator(&self) -> Option<Emulator> {
        match self {
            Self::Real { .. } => None,
            Self::Emulated(emulator) => Some(*emulator),
        }
    }

    /// The name of the GPU, or words that say that there is none.
    pub fn name(&self) -> &str {
        match self {
            Self::Real { name } => name,
            Self::Emulated(_) => "gfocal emulator (not a GPU)",
        }
    }
}

/// Makes the emulator the CUDA driver of this process, with the kernels of this repository: what
/// runs is the PTX that is loaded if `GFOCAL_EMULATOR_PTX=1` is set, otherwise the sources.
///
/// The first call in a tree compiles it, which takes some seconds. Later calls in the process
/// return the same emulator. cudarc must not have been used before.
pub fn install() -> Result<Emulator, Error> {
    if set("GFOCAL_EMULATOR_PTX") { install_for_ptx() } else { install_with(&default_kernels()) }
}

/// [`install`], with the sources of another folder, which run whatever the environment says. They
/// may include the headers of this repository's.
pub fn install_with(kernels: &Path) -> Result<Emulator, Error> {
    emulator::install(Some(kernels))
}

/// [`install`], for PTX alone, whatever the environment says. No kernel is compiled.
pub fn install_for_ptx() -> Result<Emulator, Error> {
    emulator::install(None)
}

/// The folder of the compiled driver, for a library path.
pub fn library_folder() -> Result<PathBuf, Error> {
    #[cfg(target_os = "linux")]
    return compile::library((!set("GFOCAL_EMULATOR_PTX")).then(default_kernels).as_deref());
    #[cfg(not(target_os = "linux"))]
    Err(Error::Unsupported)
}

fn default_kernels() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../kernels")
}

/// The driver that tests use: the system's if it has a GPU, else the emulator, which is then
/// installed. Says once per process on stderr which one it is.
pub fn driver() -> Result<Driver, Error> {
    static CHOSEN: Mutex<Option<Driver>> = Mutex::new(None);
    let mut chosen = CHOSEN.lock().unwrap_or_else(|e| e.into_inner());
    if let Some(driver) = chosen.as_ref() {
        return Ok(driver.clone());
    }
    let driver = choose()?;
    eprintln!("driver: {}", driver.name());
    *chosen = Some(driver.clone());
    Ok(driver)
}

#[cfg(target_os = "linux")]
fn choose() -> Result<Driver, Error> {
    if !set("GFOCAL_FORCE_EMULATOR")
        && let emulator::Probe::Real(name) = emulator::probe()
    {
        return Ok(Driver::Real { name });
    }
    install().map(Driver::Emulated)
}

#[cfg(not(target_os = "linux"))]
fn choose() -> Result<Driver, Error> {
    Err(Error::Unsupported)
}

/// Whether a test may be skipped because there is no C++ compiler: `GFOCAL_SKIP_EMULATOR=1`.
pub fn skip_allowed() -> bool {
    set("GFOCAL_SKIP_EMULATOR")
}

fn set(variable: &str) -> bool {
    std::env::var_os(variable).is_some_and(|value| !value.is_empty() && value != "0")
}
