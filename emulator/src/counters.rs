//! What a thread has done.

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
