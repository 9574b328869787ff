//! The handle that calls run on.

use std::fmt;
use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, DevicePtr};

use super::args::{DeviceAddress, scratch_bytes};
use super::{Kernels, Units, check};
use crate::error::{Error, Result};

/// What calls run on: a stream, the kernels, and scratch memory for the reductions.
///
/// One stream's calls run one after the other, and so may share a handle, also from several
/// threads. Make another for another stream ([`Handle::on`] shares the kernels).
pub struct Handle {
    kernels: Arc<Kernels>,
    stream: Arc<CudaStream>,
    scratch: CudaSlice<u64>,
    scratch_address: DeviceAddress,
}

impl Handle {
    /// A handle without any kernels loaded yet: each is when a call first needs it, or by
    /// [`prepare`](Handle::prepare).
    ///
    /// # Errors
    /// If the device is too old, or the driver has no memory left.
    pub fn new(stream: &Arc<CudaStream>) -> Result<Handle> {
        Handle::with_kernels(stream, Arc::new(Kernels::new(stream.context())?))
    }

    /// A handle for another stream of the same context, with the same kernels.
    ///
    /// # Errors
    /// If the stream is of another context, or the driver has no memory left.
    pub fn on(&self, stream: &Arc<CudaStream>) -> Result<Handle> {
        Handle::with_kernels(stream, self.kernels.clone())
    }

    /// A handle with kernels that were made before.
    ///
    /// # Errors
    /// If the stream is of another context than the kernels, or the driver has no memory left.
    pub fn with_kernels(stream: &Arc<CudaStream>, kernels: Arc<Kernels>) -> Result<Handle> {
        if stream.context() != kernels.context() {
            return Err(Error::OtherContext {
                tensor: "the stream",
                actual: stream.context().ordinal(),
                expected: kernels.context().ordinal(),
            });
        }
        let scratch =
            check("cuMemAllocAsync", stream.alloc_zeros::<u64>(scratch_bytes(&kernels).div_ceil(8)))?;
        let scratch_address = scratch.device_ptr(stream).0;
        Ok(Handle { kernels, stream: stream.clone(), scratch, scratch_address })
    }

    /// Loads the kernels that some calls will need, which is where the time of a first call goes:
    /// the driver assembles PTX for the device. A capture needs it, since nothing can be loaded
    /// inside, and whoever cannot wait then. What is loaded already stays; other handles with the
    /// same kernels have it too.
    ///
    /// ```no_run
    /// use gfocal::cuda::{self, Handle, Pass, Storage};
    /// use gfocal::{HeadLoss, assign::Atss};
    ///
    /// let handle = Handle::new(&cuda::context(0)?.new_stream()?)?;
    /// let head = HeadLoss::mmdetection();
    /// handle.prepare(head.units(Storage::Bf16, Pass::ForwardBackward) | Atss::units())?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// If the driver takes none of the embedded images of a unit.
    pub fn prepare(&self, units: Units) -> Result<()> {
        self.kernels.prepare(units)
    }

    /// The stream that calls are enqueued on.
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// The kernels, for [`raw`](super::raw).
    pub fn kernels(&self) -> &Arc<Kernels> {
        &self.kernels
    }

    /// Zeroes the scratch memory: needed only after a launch that did not run to its end.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn reset(&mut self) -> Result<()> {
        check("cuMemsetD8Async", self.stream.memset_zeros(&mut self.scratch))
    }

    pub(super) fn scratch(&self) -> DeviceAddress {
        self.scratch_address
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").field("kernels", &self.kernels).finish_non_exhaustive()
    }
}
