//! The handle that calls run on.

use std::fmt;
use std::sync::Arc;
use std::thread::{self, ThreadId};

use cudarc::driver::{CudaStream, DevicePtr};

use super::args::{DeviceAddress, scratch_bytes};
use super::buffer::{Borrowed, Buffer, Parts};
use super::current::Current;
use super::{Kernels, Units};
use crate::error::{Error, Result};

/// What calls run on: a stream, the kernels, and scratch memory for the reductions.
///
/// One stream's calls run one after the other, and so may share a handle, also from several
/// threads. Make another for another stream ([`Handle::on`] shares the kernels).
///
/// A per-thread default stream (`CudaContext::per_thread_stream`, `CU_STREAM_PER_THREAD`) is another
/// stream on each thread: a handle for it works on the thread that made it, and calls on others are
/// refused. The null stream is always the legacy one here, also in a program that nvcc has built with
/// `--default-stream per-thread`: such a program gives its own by the name above.
pub struct Handle {
    kernels: Arc<Kernels>,
    stream: Arc<CudaStream>,
    scratch: Buffer<u64>,
    scratch_address: DeviceAddress,
    /// Whose the stream is, if every thread has its own by this name.
    thread: Option<ThreadId>,
}

impl Handle {
    /// A handle without any kernels loaded yet: each is when a call first needs it, or by
    /// [`prepare`](Handle::prepare).
    ///
    /// # Errors
    /// If the device is too old, the stream is captured, or the driver has no memory left.
    pub fn new(stream: &Arc<CudaStream>) -> Result<Handle> {
        Handle::with_kernels(stream, Arc::new(Kernels::new(stream.context())?))
    }

    /// A handle for another stream of the same context, with the same kernels.
    ///
    /// # Errors
    /// If the stream is of another context or captured, or the driver has no memory left.
    pub fn on(&self, stream: &Arc<CudaStream>) -> Result<Handle> {
        Handle::with_kernels(stream, self.kernels.clone())
    }

    /// A handle with kernels that were made before.
    ///
    /// # Errors
    /// If the stream is of another context than the kernels or captured, or the driver has no memory left.
    pub fn with_kernels(stream: &Arc<CudaStream>, kernels: Arc<Kernels>) -> Result<Handle> {
        check_stream(stream, &kernels)?;
        let scratch = Buffer::zeros(SCRATCH, stream, scratch_bytes(&kernels).div_ceil(8))?;
        Ok(Handle::made_of(stream, kernels, scratch))
    }

    /// A handle with kernels that were made before, whose scratch memory is the caller's:
    /// [`raw::scratch_bytes`](super::raw::scratch_bytes) bytes at a multiple of 16, which nothing else
    /// writes as long as the handle lives. They are zeroed in the stream's order. While the stream is
    /// captured that is a part of the graph, and the handle is for calls of this capture alone.
    ///
    /// # Errors
    /// If the stream or the memory is of another context than the kernels, or there is too little memory.
    pub fn over(stream: &Arc<CudaStream>, kernels: Arc<Kernels>, scratch: Borrowed<u8>) -> Result<Handle> {
        check_stream(stream, &kernels)?;
        let bytes = scratch_bytes(&kernels);
        let scratch = Parts::of(SCRATCH, scratch, bytes, stream)?.zeros(bytes.div_ceil(8), stream)?;
        Ok(Handle::made_of(stream, kernels, scratch))
    }

    fn made_of(stream: &Arc<CudaStream>, kernels: Arc<Kernels>, scratch: Buffer<u64>) -> Handle {
        let _current = Current::keep();
        let per_thread = stream.cu_stream() as usize == CU_STREAM_PER_THREAD;
        let scratch_address = scratch.device_ptr(stream).0;
        let thread = per_thread.then(|| thread::current().id());
        Handle { kernels, stream: stream.clone(), scratch, scratch_address, thread }
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
        self.scratch.zero(&self.stream)
    }

    /// Whether its stream is the same on this thread.
    pub(super) fn check_thread(&self) -> Result<()> {
        let here = self.thread.is_none_or(|made_on| made_on == thread::current().id());
        if here { Ok(()) } else { Err(Error::OtherThread) }
    }

    pub(super) fn scratch(&self) -> DeviceAddress {
        self.scratch_address
    }
}

/// The stream's name in cuda.h, which is another stream on every thread.
const CU_STREAM_PER_THREAD: usize = 2;

const SCRATCH: &str = "a handle's scratch memory";

fn check_stream(stream: &CudaStream, kernels: &Kernels) -> Result<()> {
    let (actual, expected) = (stream.context(), kernels.context());
    if actual == expected {
        return Ok(());
    }
    let (actual, expected) = (actual.ordinal(), expected.ordinal());
    Err(Error::OtherContext { tensor: "the stream", actual, expected })
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").field("kernels", &self.kernels).finish_non_exhaustive()
    }
}
