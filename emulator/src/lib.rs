//! A CUDA driver in software, for tests.
//!
//! A shared library that answers to the name of libcuda, implements the part of the driver API
//! that cudarc calls on host memory, and runs kernels: with real shuffles, votes and barriers, shared
//! memory and atomics. Once it is installed in a process, cudarc finds it as it would find the
//! driver of a GPU.
//!
//! There are two modes. Usually the sources of this repository (`kernels/*.cu`) run, compiled by the
//! system's C++ compiler, with a fiber for each thread: quick to change, with bounds of arrays and
//! the names of lines. With `GFOCAL_EMULATOR_PTX=1` what runs is the PTX that is loaded, decoded and
//! executed warp by warp: what NVRTC has made of the sources, and the inline PTX. An instruction that
//! is not known is an error when its function is asked for, with its line.
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
//! order between blocks (by running them in many orders), uninitialised memory (it is NaN, or in some
//! launches shared memory holds plausible numbers, or zeros), kernel parameters that differ from the
//! PTX's, calls that a capture forbids, and modules that are unloaded while a kernel may run. It cannot
//! show what the machine code does, how fast anything is, or what overlaps on a GPU: work is done when it
//! is enqueued.
//!
//! Environment, read at the first call:
//! - `GFOCAL_EMULATOR_PTX`: `1` for the second mode.
//! - `GFOCAL_EMULATOR_CC`: the compute capability (`90`).
//! - `GFOCAL_EMULATOR_SMS`: multiprocessors (`4`).
//! - `GFOCAL_EMULATOR_DRIVER`: the driver's version (`13000`); below `12010` there are only the
//!   functions of a driver for CUDA 12.0.
//! - `GFOCAL_EMULATOR_DEVICES` (`2`), `GFOCAL_EMULATOR_MEMORY`: bytes of each (4 GiB).
//! - `GFOCAL_EMULATOR_FENCES`: `1`, see [`Emulator::set_tight_fences`].
//! - `GFOCAL_EMULATOR_SEED`: see [`Emulator::set_seed`] (`1`).
//! - `GFOCAL_EMULATOR_CONTRACT`: `1`, and the host's compiler may contract products and sums of the
//!   sources, which it does at other places than NVRTC.
//! - `GFOCAL_EMULATOR_COVERAGE`: a folder to which each process adds which instructions of PTX have
//!   run; `GFOCAL_EMULATOR_MUTANT`: a line of PTX to change. `cargo xtask ptx` has options that set
//!   them.
//! - `GFOCAL_FORCE_EMULATOR`: `1`, and [`driver`] takes the emulator although there is a GPU.

mod counters;
mod error;

#[cfg(target_os = "linux")]
mod compile;
mod emulator;

pub use counters::Counters;
pub use emulator::Emulator;
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
    if set("GFOCAL_EMULATOR_PTX") { install_for_ptx() } else { install_sources() }
}

/// [`install`], with the sources, whatever the environment says: those in `kernels/naive` too, of which there is no
/// PTX.
pub fn install_sources() -> Result<Emulator, Error> {
    install_with(&default_kernels())
}

/// [`install`], with the sources of another folder, which run whatever the environment says. They
/// may include the headers of this repository's.
pub fn install_with(kernels: &Path) -> Result<Emulator, Error> {
    install_or_not(Some(kernels))
}

/// [`install`], for PTX alone, whatever the environment says. No kernel is compiled.
pub fn install_for_ptx() -> Result<Emulator, Error> {
    install_or_not(None)
}

/// `None` as kernels: what runs is PTX.
fn install_or_not(kernels: Option<&Path>) -> Result<Emulator, Error> {
    #[cfg(target_os = "linux")]
    return emulator::install(kernels);
    #[cfg(not(target_os = "linux"))]
    {
        let _ = kernels;
        Err(Error::Unsupported)
    }
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

fn choose() -> Result<Driver, Error> {
    #[cfg(target_os = "linux")]
    if !set("GFOCAL_FORCE_EMULATOR")
        && let emulator::Probe::Real(name) = emulator::probe()
    {
        return Ok(Driver::Real { name });
    }
    install().map(Driver::Emulated)
}

/// Whether a test may be skipped because there is no C++ compiler: `GFOCAL_SKIP_EMULATOR=1`.
pub fn skip_allowed() -> bool {
    set("GFOCAL_SKIP_EMULATOR")
}

fn set(variable: &str) -> bool {
    std::env::var_os(variable).is_some_and(|value| !value.is_empty() && value != "0")
}
