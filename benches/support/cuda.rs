//! The losses on a GPU: launches in a graph, each on buffers of its own, timed by events.

use std::cell::{LazyCell, RefCell};
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput};
use gfocal::cuda::{self, Handle, StorageElement, check};
use gfocal::cudarc::driver::sys::{
    CUdevice_attribute, CUevent_flags, CUgraphInstantiate_flags, CUstreamCaptureMode,
};
use gfocal::cudarc::driver::{CudaGraph, CudaSlice, CudaStream, DeviceRepr, ValidAsZeroBits};
use gfocal::{DistributionFocalLoss, QualityFocalLoss, Result};

use super::head_cuda::HeadSet;
use super::{BINS, CLASSES, DFL_PER_ROW, DFL_ROWS, Inputs, LARGEST_DFL, LARGEST_QFL, QFL_PER_ROW, QFL_ROWS};
use super::{bytes, head, ladder};

/// A GPU with a stream that can be captured.
pub struct Gpu {
    handle: Handle,
    l2: usize,
    has_events: bool,
}

/// The tensors of a call.
pub trait Set {
    /// Enqueues it, with the gradient or without.
    fn launch(&mut self, handle: &Handle, with_grad: bool) -> Result<()>;

    /// Where its losses are.
    fn losses(&self) -> &CudaSlice<f32>;
}

/// Those of an operation on rows.
struct RowSet<T> {
    shape: [usize; 2],
    logits: CudaSlice<T>,
    labels: CudaSlice<i64>,
    quality: CudaSlice<f32>,
    target: CudaSlice<f32>,
    loss: CudaSlice<f32>,
    grad: CudaSlice<T>,
}

impl Gpu {
    /// The first device; why not, in words.
    pub fn open() -> std::result::Result<Gpu, String> {
        let words = |error: gfocal::Error| error.to_string();
        let context = cuda::context(0).map_err(words)?;
        let info = cuda::DeviceInfo::of(&context).map_err(words)?;
        info.usable().map_err(words)?;
        if info.name.contains("not a GPU") {
            return Err(format!("cuda:0 is {}, whose times say nothing", info.name));
        }
        let open = || -> Result<Gpu> {
            let l2 = context.attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE);
            let l2 = check("cuDeviceGetAttribute", l2)?.unsigned_abs() as usize;
            // SAFETY: all work is on one stream, so that nothing needs to be ordered by events.
            unsafe { context.disable_event_tracking() };
            let stream = check("cuStreamCreate", context.new_stream())?;
            // cudarc asks for elapsed times by a function that is there from CUDA 12.8 on.
            Ok(Gpu { handle: Handle::new(&stream)?, l2, has_events: cuda::driver_version()? >= 12_080 })
        };
        open().map_err(words)
    }

    pub fn losses<T>(&self, c: &mut Criterion, dtype: &str)
    where
        T: StorageElement + DeviceRepr + ValidAsZeroBits,
    {
        for rows in ladder(&QFL_ROWS, LARGEST_QFL, dtype) {
            let bytes = bytes::<T>(rows, CLASSES, QFL_PER_ROW);
            let inputs = || Inputs::<T>::qfl(rows);
            self.bench(c, &format!("qfl/cuda/{dtype}"), rows, bytes, inputs, RowSet::new);
        }
        for rows in ladder(&DFL_ROWS, LARGEST_DFL, dtype) {
            let bytes = bytes::<T>(rows, BINS, DFL_PER_ROW);
            let inputs = || Inputs::<T>::dfl(rows);
            self.bench(c, &format!("dfl/cuda/{dtype}"), rows, bytes, inputs, RowSet::new);
        }
        for images in ladder(&head::IMAGES, head::LARGEST_IMAGES, dtype) {
            let (rows, bytes) = (head::anchors(images), head::bytes::<T>(images));
            let inputs = || head::Inputs::<T>::random(images);
            self.bench(c, &format!("head/cuda/{dtype}"), rows, bytes, inputs, HeadSet::new);
        }
    }

    /// The buffers are made when the first pass is run: a filter may leave out both.
    fn bench<I, S: Set>(
        &self,
        c: &mut Criterion,
        name: &str,
        rows: usize,
        [read, written]: [usize; 2],
        inputs: impl FnOnce() -> I,
        upload: impl Fn(&Handle, &I) -> Result<S>,
    ) {
        let count = (4 * self.l2).div_ceil(read).clamp(2, 512);
        let sets = LazyCell::new(|| {
            let inputs = inputs();
            let sets: Result<Vec<S>> = (0..count).map(|_| upload(&self.handle, &inputs)).collect();
            let mut sets = sets.expect("memory for the sets");
            self.check(&mut sets[0]);
            RefCell::new(sets)
        });
        let mut group = c.benchmark_group(name);
        for (pass, with_grad, bytes) in [("forward", false, read), ("forward_backward", true, read + written)]
        {
            group.throughput(Throughput::BytesDecimal(bytes as u64));
            group.bench_function(BenchmarkId::new(pass, rows), |b| {
                let graph = self.capture(&mut sets.borrow_mut(), with_grad);
                b.iter_custom(|launches| {
                    // Whole replays, and of their time the share of the launches.
                    let replays = launches.div_ceil(count as u64);
                    let time = self.time(&graph, replays).expect("replays");
                    time.mul_f64(launches as f64 / (replays * count as u64) as f64)
                });
            });
        }
    }

    /// Both passes must give the same losses.
    fn check(&self, set: &mut impl Set) {
        let [once, both] = [false, true].map(|with_grad| {
            set.launch(&self.handle, with_grad).expect("lengths fit");
            let losses = self.stream().clone_dtoh(set.losses()).expect("a copy");
            self.stream().synchronize().expect("the launches have run");
            losses
        });
        for (once, both) in once.iter().zip(&both) {
            assert!((once - both).abs() <= 4e-6 * both.abs(), "the passes give the same losses");
        }
    }

    fn stream(&self) -> &Arc<CudaStream> {
        self.handle.stream()
    }

    fn capture(&self, sets: &mut [impl Set], with_grad: bool) -> CudaGraph {
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        self.stream().begin_capture(mode).expect("a capture begins");
        let launched = sets.iter_mut().try_for_each(|set| set.launch(&self.handle, with_grad));
        let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
        let graph = self.stream().end_capture(flags).expect("a capture ends").expect("a graph");
        launched.expect("a call can be captured");
        graph
    }

    fn time(&self, graph: &CudaGraph, replays: u64) -> Result<Duration> {
        let stream = self.stream();
        let replay = || (0..replays).try_for_each(|_| check("cuGraphLaunch", graph.launch()));
        if !self.has_events {
            let start = Instant::now();
            replay()?;
            check("cuStreamSynchronize", stream.synchronize())?;
            return Ok(start.elapsed());
        }
        let event = || check("cuEventRecord", stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT)));
        let start = event()?;
        replay()?;
        let end = event()?;
        let milliseconds = check("cuEventElapsedTime", start.elapsed_ms(&end))?;
        Ok(Duration::from_secs_f64(f64::from(milliseconds) * 1e-3))
    }
}

impl<T: StorageElement + DeviceRepr + ValidAsZeroBits> RowSet<T> {
    fn new(handle: &Handle, inputs: &Inputs<T>) -> Result<RowSet<T>> {
        let stream = handle.stream();
        // The driver refuses to allocate nothing.
        let floats = |numbers: &[f32]| {
            check(
                "cuMemcpyHtoDAsync",
                stream.clone_htod(if numbers.is_empty() { &[0.0][..] } else { numbers }),
            )
        };
        let labels = if inputs.labels.is_empty() { &[0][..] } else { &inputs.labels };
        Ok(RowSet {
            shape: inputs.shape,
            logits: check("cuMemcpyHtoDAsync", stream.clone_htod(&inputs.logits))?,
            labels: check("cuMemcpyHtoDAsync", stream.clone_htod(labels))?,
            quality: floats(&inputs.quality)?,
            target: floats(&inputs.target)?,
            loss: check("cuMemAllocAsync", stream.alloc_zeros(1))?,
            grad: check("cuMemAllocAsync", stream.alloc_zeros(inputs.logits.len()))?,
        })
    }
}

impl<T: StorageElement> Set for RowSet<T> {
    /// DFL if the columns are bins, else QFL.
    fn launch(&mut self, handle: &Handle, with_grad: bool) -> Result<()> {
        const { assert!(CLASSES != BINS) };
        let RowSet { shape, logits, labels, quality, target, loss, grad } = self;
        let shape = *shape;
        let (qfl, dfl) = (QualityFocalLoss::default(), DistributionFocalLoss::default());
        match (shape[1] == BINS, with_grad) {
            (false, false) => qfl.cuda(handle, logits, shape, labels, quality).forward(loss),
            (false, true) => qfl.cuda(handle, logits, shape, labels, quality).forward_backward(loss, grad),
            (true, false) => dfl.cuda(handle, logits, shape, target).forward(loss),
            (true, true) => dfl.cuda(handle, logits, shape, target).forward_backward(loss, grad),
        }
    }

    fn losses(&self) -> &CudaSlice<f32> {
        &self.loss
    }
}
