//! A stream of a GPU whose launches are captured in graphs, and how replays are timed.

use std::sync::Arc;
use std::time::Instant;

use gfocal::Result;
use gfocal::cuda::{Handle, Kernels, check, driver_version};
use gfocal::cudarc::driver::sys::{
    CUdevice_attribute, CUevent_flags, CUgraphInstantiate_flags, CUstreamCaptureMode,
};
use gfocal::cudarc::driver::{CudaContext, CudaGraph, CudaStream};

/// cuEventElapsedTime_v2 is there from CUDA 12.8 on, and cudarc calls no other.
const EVENTS: i32 = 12_080;

/// A stream that can be captured, with a handle.
pub struct Replays {
    /// Of the stream.
    pub handle: Handle,
    /// Whether times are those of events, and not by the clock on the wall.
    pub has_events: bool,
    l2: usize,
}

impl Replays {
    /// On a stream of its own, with or without cudarc's tracking.
    pub fn new(context: &Arc<CudaContext>, kernels: Arc<Kernels>, tracked: bool) -> Result<Replays> {
        let l2 = context.attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE);
        let l2 = check("cuDeviceGetAttribute", l2)?.unsigned_abs() as usize;
        if !tracked {
            // SAFETY: all work from here on is on one stream, so that nothing needs to be ordered by events.
            unsafe { context.disable_event_tracking() };
        }
        // The legacy default stream cannot be captured.
        let stream = check("cuStreamCreate", context.new_stream())?;
        let has_events = driver_version()? >= EVENTS;
        Ok(Replays { handle: Handle::with_kernels(&stream, kernels)?, has_events, l2 })
    }

    /// The stream.
    pub fn stream(&self) -> &Arc<CudaStream> {
        self.handle.stream()
    }

    /// How many sets of buffers of `held` bytes, of which a launch moves `moved`, it takes to get past
    /// the L2 cache; of half the free memory at most.
    pub fn sets(&self, moved: usize, held: usize, most: usize) -> Result<usize> {
        let (free, _) = check("cuMemGetInfo", self.stream().context().mem_get_info())?;
        let wanted = (4 * self.l2).div_ceil(moved.max(1)).max(2);
        Ok(wanted.min(free / 2 / held.max(1)).clamp(1, most))
    }

    /// A graph of some launches.
    pub fn capture(&self, launches: impl FnOnce() -> Result<()>) -> Result<CudaGraph> {
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        check("cuStreamBeginCapture", self.stream().begin_capture(mode))?;
        let launched = launches();
        let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
        let graph = self.stream().end_capture(flags);
        launched?;
        let graph = check("cuStreamEndCapture", graph)?;
        Ok(graph.expect("a capture that has begun gives a graph"))
    }

    /// Seconds of so many replays.
    pub fn seconds(&self, graph: &CudaGraph, replays: u64) -> Result<f64> {
        let stream = self.stream();
        let replay = || (0..replays).try_for_each(|_| check("cuGraphLaunch", graph.launch()));
        if !self.has_events {
            let start = Instant::now();
            replay()?;
            check("cuStreamSynchronize", stream.synchronize())?;
            return Ok(start.elapsed().as_secs_f64());
        }
        let record = || check("cuEventRecord", stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT)));
        let start = record()?;
        replay()?;
        let end = record()?;
        Ok(f64::from(check("cuEventElapsedTime", start.elapsed_ms(&end))?) * 1e-3)
    }
}
