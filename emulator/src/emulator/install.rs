//! Opens the library, once in a process.

use super::Emulator;
use crate::{Error, compile};
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use std::ffi::{c_char, c_int, c_uint};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// Of the functions that [`Emulator`] calls.
const INTERFACE: c_uint = 2;

impl Emulator {
    /// `None` if the library is another driver.
    fn of(library: &Library) -> Option<Self> {
        // SAFETY: no other library has symbols of these names, and the version says that they
        // have these types. The library is never closed: see `keep`.
        unsafe {
            let version = *library.get::<unsafe extern "C" fn() -> c_uint>("gfocal_emulator_version").ok()?;
            if version() != INTERFACE {
                return None;
            }
            Some(Self {
                counters: *library.get("gfocal_emulator_counters").ok()?,
                set_seed: *library.get("gfocal_emulator_set_seed").ok()?,
                set_ptx: *library.get("gfocal_emulator_set_ptx").ok()?,
                set_special_errors: *library.get("gfocal_emulator_set_special_errors").ok()?,
                seed: *library.get("gfocal_emulator_seed").ok()?,
                faults: *library.get("gfocal_emulator_faults").ok()?,
                last_fault: *library.get("gfocal_emulator_last_fault").ok()?,
                set_fences: *library.get("gfocal_emulator_set_fences").ok()?,
                live_allocations: *library.get("gfocal_emulator_live_allocations").ok()?,
                fail_loads: *library.get("gfocal_emulator_fail_loads").ok()?,
            })
        }
    }
}

/// Function pointers into the library stay valid, because it is never closed.
fn keep(library: Library) {
    let _ = library.into_raw();
}

/// A library of this name that the process has opened already.
fn opened(name: &str) -> Option<Library> {
    const RTLD_NOLOAD: c_int = 4;
    // SAFETY: with RTLD_NOLOAD nothing is loaded, so no code of a library runs.
    unsafe { Library::open(Some(name), RTLD_NOW | RTLD_NOLOAD) }.ok()
}

/// What this process has installed.
#[derive(Clone, PartialEq)]
enum Installed {
    /// It was there before, by a library path.
    Found,
    /// The sources of this folder run.
    Sources(PathBuf),
    /// PTX runs.
    Ptx,
}

static INSTALLED: Mutex<Option<(Installed, Emulator)>> = Mutex::new(None);

/// `None` as kernels: what runs is PTX.
pub(crate) fn install(kernels: Option<&Path>) -> Result<Emulator, Error> {
    let wanted = kernels.map_or(Installed::Ptx, |folder| Installed::Sources(folder.to_owned()));
    let mut installed = INSTALLED.lock().unwrap_or_else(|e| e.into_inner());
    if let Some((used, emulator)) = installed.as_ref() {
        return match used {
            Installed::Sources(folder) if *used != wanted => Err(Error::Installed(folder.clone())),
            Installed::Ptx if *used != wanted => Err(Error::InstalledForPtx),
            _ => Ok(*emulator),
        };
    }
    if let Some(library) = opened("libcuda.so") {
        let emulator = Emulator::of(&library).ok_or(Error::OtherDriver)?;
        keep(library);
        *installed = Some((Installed::Found, emulator));
        return Ok(emulator);
    }
    let folder = compile::library(kernels)?;
    let open = |name: &str| {
        // SAFETY: both libraries are what `compile::library` has built; their initialisers only
        // list the kernels.
        unsafe { Library::open(Some(folder.join(name)), RTLD_NOW | RTLD_GLOBAL) }
    };
    let library = open("libcuda.so")?;
    let emulator = Emulator::of(&library).ok_or(Error::OtherDriver)?;
    keep(library);
    keep(open("libcuda.so.1")?);
    // SAFETY: the function takes any value, on any thread.
    unsafe { (emulator.set_ptx)((wanted == Installed::Ptx).into()) };
    *installed = Some((wanted, emulator));
    Ok(emulator)
}

/// What the system's own driver turned out to be.
pub(crate) enum Probe {
    /// It has a device, of this name.
    Real(String),
    /// The emulator, found by its library path.
    Emulated,
    /// No driver, or none with a device.
    Nothing,
}

pub(crate) fn probe() -> Probe {
    // Not "libcuda.so": if that name were opened here, it would stay with this library, even if
    // it has no device and the emulator takes its place.
    // SAFETY: opening the system's CUDA driver runs its initialisers, as any use of CUDA does.
    let Ok(library) = (unsafe { Library::open(Some("libcuda.so.1"), RTLD_NOW) }) else {
        return Probe::Nothing;
    };
    if Emulator::of(&library).is_some() {
        keep(library);
        // cudarc asks for this name first.
        // SAFETY: as above.
        if let Ok(library) = unsafe { Library::open(Some("libcuda.so"), RTLD_NOW | RTLD_GLOBAL) } {
            keep(library);
        }
        return Probe::Emulated;
    }
    match device_name(&library) {
        Some(name) => {
            keep(library);
            Probe::Real(name)
        }
        None => Probe::Nothing,
    }
}

fn device_name(library: &Library) -> Option<String> {
    let mut count: c_int = 0;
    let mut device: c_int = 0;
    let mut name = [0u8; 256];
    // SAFETY: the types are those of the CUDA driver API; the pointers are to live variables,
    // and the length is that of the array.
    unsafe {
        let init = library.get::<unsafe extern "C" fn(c_uint) -> c_int>("cuInit").ok()?;
        let get_count = library.get::<unsafe extern "C" fn(*mut c_int) -> c_int>("cuDeviceGetCount").ok()?;
        let get = library.get::<unsafe extern "C" fn(*mut c_int, c_int) -> c_int>("cuDeviceGet").ok()?;
        let get_name = library
            .get::<unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int>("cuDeviceGetName")
            .ok()?;
        if init(0) != 0 || get_count(&mut count) != 0 || count < 1 || get(&mut device, 0) != 0 {
            return None;
        }
        if get_name(name.as_mut_ptr().cast(), name.len() as c_int - 1, device) != 0 {
            return None;
        }
    }
    let length = name.iter().position(|&byte| byte == 0)?;
    Some(String::from_utf8_lossy(&name[..length]).into_owned())
}
