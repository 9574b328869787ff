//! What stands for the emulator where there is none.

use crate::{Error, Sign};
use std::path::Path;

/// See the documentation for Linux.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Allocations of device memory and of pinned host memory.
    pub allocations: u64,
    /// Frees of them.
    pub frees: u64,
    /// Calls that made the host wait.
    pub waits: u64,
    /// Launches of kernels and graphs.
    pub launches: u64,
    /// Copies from a device to the host.
    pub copies_to_host: u64,
}

impl Counters {
    /// What has been added since `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let _ = earlier;
        *self
    }
}

/// Never made on this system.
#[derive(Clone, Copy, Debug)]
pub struct Emulator(std::convert::Infallible);

impl Emulator {
    /// What the calling thread has done so far.
    pub fn counters(&self) -> Counters {
        match self.0 {}
    }

    /// Sets the seed of everything random.
    pub fn set_seed(&self, _seed: u64) {
        match self.0 {}
    }

    /// Sets how far off the special functions are.
    pub fn set_special_errors(&self, _exp2: Sign, _log2: Sign, _reciprocal: Sign) {
        match self.0 {}
    }

    /// The seed that was set last.
    pub fn seed(&self) -> u64 {
        match self.0 {}
    }

    /// How many faults there have been.
    pub fn faults(&self) -> u64 {
        match self.0 {}
    }

    /// The last fault in words.
    pub fn last_fault(&self) -> Option<String> {
        match self.0 {}
    }

    /// Whether allocations end within 16 bytes of a fence.
    pub fn set_tight_fences(&self, _tight: bool) {
        match self.0 {}
    }

    /// Makes loads of modules fail.
    pub fn fail_loads(&self, _error: i32, _count: u32) {
        match self.0 {}
    }

    /// Allocations that have not been freed.
    pub fn live_allocations(&self) -> u64 {
        match self.0 {}
    }
}

pub(crate) fn install(_kernels: Option<&Path>) -> Result<Emulator, Error> {
    Err(Error::Unsupported)
}
