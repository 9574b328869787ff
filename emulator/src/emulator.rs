//! The opened library, which there is on Linux alone.

#[cfg(target_os = "linux")]
mod install;

use crate::{Counters, Sign};
#[cfg(target_os = "linux")]
pub(crate) use install::{Probe, install, probe};
use std::ffi::{c_char, c_int, c_uint};

/// The emulator of this process: what it can be asked and told, next to the driver API.
#[derive(Clone, Copy, Debug)]
pub struct Emulator {
    counters: unsafe extern "C" fn(*mut Counters),
    set_seed: unsafe extern "C" fn(u64),
    #[cfg(target_os = "linux")]
    set_ptx: unsafe extern "C" fn(c_int),
    set_special_errors: unsafe extern "C" fn(c_int, c_int, c_int),
    seed: unsafe extern "C" fn() -> u64,
    faults: unsafe extern "C" fn() -> u64,
    last_fault: unsafe extern "C" fn(*mut c_char, usize) -> usize,
    set_fences: unsafe extern "C" fn(c_int),
    live_allocations: unsafe extern "C" fn() -> u64,
    fail_loads: unsafe extern "C" fn(c_int, c_uint),
}

impl Emulator {
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
