//! A GPU: launches in a graph, timed by events.

use std::sync::Arc;

use gfocal::cuda::{DeviceInfo, Handle, check, driver_version};
use gfocal::cudarc::driver::sys::{
    CUdevice_attribute, CUevent_flags, CUgraphInstantiate_flags, CUstreamCaptureMode,
};
use gfocal::cudarc::driver::{CudaContext, CudaGraph, CudaSlice, CudaStream};
use gfocal::{Call, DistributionFocalLoss, Operation, QualityFocalLoss, Reduction, cuda, integral};

use super::Outcome;
use super::case::{Case, Op, Pass};
use super::data::{Inputs, Stored};
use super::timing::{Samples, wall_clock};
use crate::device::Cuda;
use crate::error::{Error, Result};

/// cuEventElapsedTime_v2 is there from CUDA 12.8 on, and cudarc calls no other.
const EVENTS: i32 = 12_080;
/// Launches in a graph, at most.
const MOST_SETS: usize = 512;

/// A GPU with a stream that can be captured.
pub struct Gpu {
    name: String,
    handle: Handle,
    has_events: bool,
    l2: usize,
}

impl Gpu {
    pub fn new(cuda: &Cuda) -> Result<Gpu> {
        let context = cuda.stream().context();
        let failed = Error::cuda(cuda.ordinal);
        let info = DeviceInfo::of(context).map_err(&failed)?;
        if info.name.contains("not a GPU") {
            return Err(Error::Emulated { device: format!("cuda:{}", cuda.ordinal), name: info.name });
        }
        Gpu::open(context, &cuda.handle, info.name).map_err(&failed)
    }

    fn open(context: &Arc<CudaContext>, handle: &Handle, name: String) -> gfocal::Result<Gpu> {
        let l2 = context.attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE);
        let l2 = check("cuDeviceGetAttribute", l2)?.unsigned_abs() as usize;
        // SAFETY: all work from here on is on one stream, so that nothing needs to be ordered by events.
        unsafe { context.disable_event_tracking() };
        // The legacy default stream cannot be captured.
        let stream = check("cuStreamCreate", context.new_stream())?;
        Ok(Gpu { name, handle: handle.on(&stream)?, has_events: driver_version()? >= EVENTS, l2 })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn note(&self) -> Option<String> {
        let note = "the driver is older than CUDA 12.8, so times are by the wall clock around graph replays";
        (!self.has_events).then(|| note.to_owned())
    }

    fn stream(&self) -> &Arc<CudaStream> {
        self.handle.stream()
    }

    /// How many sets of buffers it takes to get past the L2 cache, of the free memory.
    fn sets(&self, bytes: usize) -> gfocal::Result<usize> {
        let (free, _) = check("cuMemGetInfo", self.stream().context().mem_get_info())?;
        let wanted = (4 * self.l2).div_ceil(bytes.max(1)).max(2);
        Ok(wanted.min(free / 2 / bytes.max(1)).clamp(1, MOST_SETS))
    }

    /// Seconds of a copy from device to device that reads and writes so many bytes in all.
    pub fn copy_seconds(&self, bytes: usize, seconds: f64) -> Result<f64> {
        let half = bytes.div_ceil(2).max(1);
        let allocate = || check("cuMemAllocAsync", self.stream().alloc_zeros::<u8>(half));
        let sets = self.sets(2 * half)?;
        let mut buffers =
            (0..sets).map(|_| Ok((allocate()?, allocate()?))).collect::<gfocal::Result<Vec<_>>>()?;
        let (samples, _) = self.time(seconds, sets, |i| {
            let (source, target) = &mut buffers[i];
            check("cuMemcpyDtoDAsync", self.stream().memcpy_dtod(source, target))
        })?;
        Ok(samples.median())
    }

    /// Times `count` launches, the i-th on the i-th set of buffers, and gives the time of one and how it
    /// was taken.
    fn time(
        &self,
        seconds: f64,
        count: usize,
        mut launch: impl FnMut(usize) -> gfocal::Result<()>,
    ) -> gfocal::Result<(Samples, &'static str)> {
        check("cuStreamSynchronize", self.stream().synchronize())?;
        // Once without a graph, so that what is made at the first call is there.
        (0..count).try_for_each(&mut launch)?;
        check("cuStreamSynchronize", self.stream().synchronize())?;
        let graph = self.capture(|| (0..count).try_for_each(&mut launch))?;
        let method = match (&graph, self.has_events) {
            (Some(_), true) => "CUDA events around replays of a graph",
            (Some(_), false) => "wall clock around replays of a graph",
            (None, true) => "CUDA events around launches without a graph",
            (None, false) => "wall clock around launches without a graph",
        };
        let samples = Samples::take(seconds, || {
            let time = self.once(|| match &graph {
                Some(graph) => check("cuGraphLaunch", graph.launch()),
                None => (0..count).try_for_each(&mut launch),
            })?;
            Ok(time / count as f64)
        });
        // Nothing but the library's errors comes out of it.
        let samples = samples.map_err(|error| match error {
            Error::Library(error) => error,
            other => unreachable!("{other}"),
        })?;
        Ok((samples, method))
    }

    /// A graph of some launches; `None` where the driver does not take it.
    fn capture(&self, launches: impl FnOnce() -> gfocal::Result<()>) -> gfocal::Result<Option<CudaGraph>> {
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        if self.stream().begin_capture(mode).is_err() {
            return Ok(None);
        }
        let launched = launches();
        let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
        let graph = self.stream().end_capture(flags);
        Ok(if launched.is_ok() { graph.ok().flatten() } else { None })
    }

    fn once(&self, run: impl FnOnce() -> gfocal::Result<()>) -> Result<f64> {
        let stream = self.stream();
        if !self.has_events {
            return wall_clock(|| {
                run()?;
                Ok(check("cuStreamSynchronize", stream.synchronize())?)
            });
        }
        let record = || check("cuEventRecord", stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT)));
        let start = record()?;
        run()?;
        let end = record()?;
        Ok(f64::from(check("cuEventElapsedTime", start.elapsed_ms(&end))?) * 1e-3)
    }
}

/// The tensors of a launch.
struct Set<T> {
    logits: CudaSlice<T>,
    labels: CudaSlice<i64>,
    quality: CudaSlice<f32>,
    target: CudaSlice<f32>,
    weight: CudaSlice<f32>,
    grad: CudaSlice<T>,
    loss: CudaSlice<f32>,
}

/// Sets of buffers with the same inputs.
pub struct Sets<'a, T> {
    gpu: &'a Gpu,
    op: Op,
    shape: [usize; 2],
    sets: Vec<Set<T>>,
}

impl<'a, T: Stored> Sets<'a, T> {
    pub fn new(gpu: &'a Gpu, case: &Case, inputs: &Inputs<T>) -> Result<Self> {
        // The pass that moves least says how many it takes.
        let least = case.passes.iter().map(|&pass| case.bytes(pass)).min().unwrap_or(1);
        let count = gpu.sets(least)?.min(gpu.sets(case.bytes(Pass::Backward))?.max(1) * 2);
        let sets = (0..count).map(|_| Set::new(gpu, inputs)).collect::<gfocal::Result<_>>()?;
        Ok(Sets { gpu, op: inputs.op, shape: inputs.shape, sets })
    }

    /// What a pass gives, in memory that held NaN before.
    pub fn outcome(&mut self, pass: Pass) -> Result<Outcome<T>> {
        let (stream, set) = (self.gpu.stream(), &mut self.sets[0]);
        let nan = |len| vec![f32::NAN; len];
        check("cuMemcpyHtoDAsync", stream.memcpy_htod(&nan(set.loss.len()), &mut set.loss))?;
        let grad = vec![T::from_f64(f64::NAN); set.grad.len()];
        check("cuMemcpyHtoDAsync", stream.memcpy_htod(&grad, &mut set.grad))?;
        set.launch(&self.gpu.handle, self.op, self.shape, pass)?;
        let loss = check("cuMemcpyDtoHAsync", stream.clone_dtoh(&set.loss))?;
        let grad = check("cuMemcpyDtoHAsync", stream.clone_dtoh(&set.grad))?;
        check("cuStreamSynchronize", stream.synchronize())?;
        Ok(Outcome { loss, grad })
    }

    pub fn time(&mut self, pass: Pass, seconds: f64) -> Result<(Samples, &'static str)> {
        let (gpu, op, shape, sets) = (self.gpu, self.op, self.shape, &mut self.sets);
        Ok(gpu.time(seconds, sets.len(), |i| sets[i].launch(&gpu.handle, op, shape, pass))?)
    }
}

impl<T: Stored> Set<T> {
    fn new(gpu: &Gpu, inputs: &Inputs<T>) -> gfocal::Result<Set<T>> {
        let stream = gpu.stream();
        let losses = if inputs.op == Op::Integral { inputs.shape[0] } else { 1 };
        // The driver refuses to allocate nothing; what an operation does not take may be of any length.
        let floats = |numbers: &[f32]| {
            check(
                "cuMemcpyHtoDAsync",
                stream.clone_htod(if numbers.is_empty() { &[0.0][..] } else { numbers }),
            )
        };
        let labels = if inputs.labels.is_empty() { &[0] } else { &*inputs.labels };
        Ok(Set {
            logits: check("cuMemcpyHtoDAsync", stream.clone_htod(&inputs.logits))?,
            labels: check("cuMemcpyHtoDAsync", stream.clone_htod(labels))?,
            quality: floats(&inputs.quality)?,
            target: floats(&inputs.target)?,
            weight: floats(&inputs.weight)?,
            grad: check("cuMemAllocAsync", stream.alloc_zeros(inputs.logits.len()))?,
            loss: check("cuMemAllocAsync", stream.alloc_zeros(losses))?,
        })
    }

    fn launch(&mut self, handle: &Handle, op: Op, shape: [usize; 2], pass: Pass) -> gfocal::Result<()> {
        let Set { logits, labels, quality, target, weight, grad, loss } = self;
        match op {
            Op::Qfl => {
                let qfl = QualityFocalLoss::default();
                launch(qfl.cuda(handle, logits, shape, labels, quality).weight(weight), pass, loss, grad)
            }
            Op::Dfl => {
                let dfl = DistributionFocalLoss::default();
                launch(dfl.cuda(handle, logits, shape, target).weight(weight), pass, loss, grad)
            }
            Op::Integral if pass == Pass::Forward => integral::forward_cuda(handle, logits, shape, loss),
            Op::Integral => integral::backward_cuda(handle, logits, shape, weight, grad),
        }
    }
}

fn launch<L: Operation, T: Stored>(
    call: Call<'_, L, cuda::Device, T>,
    pass: Pass,
    loss: &mut CudaSlice<f32>,
    grad: &mut CudaSlice<T>,
) -> gfocal::Result<()> {
    let call = call.reduction(Reduction::Sum);
    match pass {
        Pass::Forward => call.forward(loss),
        Pass::ForwardBackward => call.forward_backward(loss, grad),
        Pass::Backward => call.backward(grad),
    }
}
