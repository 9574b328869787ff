//! The opened library.

use crate::{Error, Sign, compile};
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use std::ffi::{c_char, c_int, c_uint};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// What the calling thread has asked of the driver since it began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Counters {
    /// Allocations of device memory and of pinned host memory.
    pub allocations: u64,
    /// Frees of them.
    pub frees: u64,
    /// Calls that made the host wait: for a stream, an event or the context, for a synchronous
    /// copy, or for a copy into pageable host memory.
    pub waits: u64,
    /// Launches of kernels, captured ones included, and of graphs.
    pub launches: u64,
    /// Copies from a device to the host.
    pub copies_to_host: u64,
}

impl Counters {
    /// What has been added since `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            allocations: self.allocations.wrapping_sub(earlier.allocations),
            frees: self.frees.wrapping_sub(earlier.frees),
            waits: self.waits.wrapping_sub(earlier.waits),
            launches: self.launches.wrapping_sub(earlier.launches),
            copies_to_host: self.copies_to_host.wrapping_sub(earlier.copies_to_host),
        }
    }
}

/// The emulator of this process: what it can be asked and told, next to the driver API.
#[derive(Clone, Copy, Debug)]
pub struct Emulator {
    counters: unsafe extern "C" fn(*mut Counters),
    set_seed: unsafe extern "C" fn(u64),
    set_ptx: unsafe extern "C" fn(c_int),
    set_special_errors: unsafe extern "C" fn(c_int, c_int, c_int),
    seed: unsafe extern "C" fn() -> u64,
    faults: unsafe extern "C" fn() -> u64,
    last_fault: unsafe extern "C" fn(*mut c_char, usize) -> usize,
    set_fences: unsafe extern "C" fn(c_int),
    live_allocations: unsafe extern "C" fn() -> u64,
    fail_loads: unsafe extern "C" fn(c_int, c_uint),
}

/// Of the functions that [`Emulator`] calls.
const INTERFACE: c_uint = 2;

impl Emulator {
    /// `None` if the library is another driver.
    pub(crate) fn of(library: &Library) -> Option<Self> {
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

    /// What the calling thread has done so far. Other threads have counters of their own.
    pub fn counters(&self) -> Counters {
        let mut counters = Counters::default();
        // SAFETY: the function writes one `Counters`, whose layout is the same in control.cpp.
        unsafe { (self.counters)(&mut counters) };
        counters
    }

    /// From here on, the order in which blocks, warps and lanes run follows from this seed and
    /// the number of launches since this call. `GFOCAL_EMULATOR_SEED` is the first seed.
    pub fn set_seed(&self, seed: u64) {
        // SAFETY: the function takes any value, on any thread.
        unsafe { (self.set_seed)(seed) }
    }

    /// From here on, the special functions of the kernels (`ex2.approx`, `lg2.approx`, and
    /// `rcp.approx` with `div.full`) are off by -1, 0 or 1 times the error that NVIDIA's manual
    /// allows, where 0 is as near as the CPU comes.
    pub fn set_special_errors(&self, exp2: Sign, log2: Sign, reciprocal: Sign) {
        // SAFETY: the function takes any values, on any thread; it waits for a running kernel.
        unsafe { (self.set_special_errors)(exp2 as c_int, log2 as c_int, reciprocal as c_int) }
    }

    /// The seed that was set last.
    pub fn seed(&self) -> u64 {
        // SAFETY: the function has no preconditions.
        unsafe { (self.seed)() }
    }

    /// How many faults there have been in this process: accesses outside of allocations,
    /// misaligned ones, divergent barriers, double frees, parameters that do not fit and so on.
    /// Each has been printed on stderr.
    pub fn faults(&self) -> u64 {
        // SAFETY: the function has no preconditions.
        unsafe { (self.faults)() }
    }

    /// The last fault in words, if there was one.
    pub fn last_fault(&self) -> Option<String> {
        let mut buffer = [0u8; 4096];
        // SAFETY: the function writes at most as many bytes as it is told that there are.
        let length = unsafe { (self.last_fault)(buffer.as_mut_ptr().cast(), buffer.len()) };
        let text = String::from_utf8_lossy(&buffer[..length.min(buffer.len() - 1)]).into_owned();
        (!text.is_empty()).then_some(text)
    }

    /// Whether allocations from here on end within 16 bytes of a page that cannot be touched,
    /// rather than within 256. Addresses are then multiples of 16, not of 256.
    /// `GFOCAL_EMULATOR_FENCES=1` begins that way.
    pub fn set_tight_fences(&self, tight: bool) {
        // SAFETY: the function takes any value, on any thread.
        unsafe { (self.set_fences)(tight.into()) }
    }

    /// The next `count` loads of a module, in whatever thread, fail with this code of the driver,
    /// such as 209 (`CUDA_ERROR_NO_BINARY_FOR_GPU`).
    pub fn fail_loads(&self, error: i32, count: u32) {
        // SAFETY: the function takes any values, on any thread.
        unsafe { (self.fail_loads)(error, count) }
    }

    /// Allocations of all contexts that have not been freed.
    pub fn live_allocations(&self) -> u64 {
        // SAFETY: the function has no preconditions.
        unsafe { (self.live_allocations)() }
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
