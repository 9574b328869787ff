//! Throughput of the losses and of the head, in the bytes that must move.
//!
//! Each case is checked before it is timed: both passes must give the same losses. CUDA is timed where there is a GPU,
//! never on the emulator: replays of a graph of launches, each on buffers of its own.

use std::cell::{LazyCell, RefCell};
use std::sync::Arc;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use gfocal::cuda::{self, Kernels};
use gfocal::{bf16, f16};
use gfocal_bench::head::pyramid::COCO_ANCHORS;
use gfocal_bench::{Calls, Op, Pass, Replays, Set, Size, Stored, Workload, head, rows};

const PASSES: [Pass; 2] = [Pass::Forward, Pass::ForwardBackward];

/// Anchors of one 640x640 image, and of batches of 4, 16 and 128; sides of boxes; anchors of images of COCO. The
/// columns, and the largest, which is for one 32-bit and one 16-bit type.
const LADDERS: [(Op, usize, &[usize], usize); 3] = [
    (Op::Qfl, 80, &[8_400, 33_600, 134_400, 1_075_200], 1_075_200),
    (Op::Dfl, 17, &[256, 4_096, 33_600, 262_144, 2_097_152], 2_097_152),
    (Op::Head, 80, &[COCO_ANCHORS, 4 * COCO_ANCHORS, 16 * COCO_ANCHORS], 16 * COCO_ANCHORS),
];

/// `--test` runs everything once, and is to be done soon.
fn is_test() -> bool {
    std::env::args().any(|argument| argument == "--test")
}

/// Whether there is memory for the largest sizes; yes, where the system does not tell.
fn memory_allows() -> bool {
    let information = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = information.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse().ok());
    kib.is_none_or(|kib: u64| kib > 2 << 20)
}

/// A case, of a type.
struct Case<'a> {
    op: Op,
    size: Size,
    dtype: &'a str,
    /// Of an element.
    bytes: usize,
    is_largest: bool,
}

impl Case<'_> {
    /// Times some passes. The inputs are made when the first of them is run: a filter may leave out all.
    fn bench<W: Workload>(&self, c: &mut Criterion, gpu: Option<&Replays>, inputs: impl FnOnce() -> W) {
        let inputs = LazyCell::new(inputs);
        self.on_cpu(c, &inputs);
        if let Some(gpu) = gpu {
            self.on_cuda(c, gpu, &inputs);
        }
    }

    fn on_cpu<W: Workload, F: FnOnce() -> W>(&self, c: &mut Criterion, inputs: &LazyCell<W, F>) {
        let checked = LazyCell::new(|| {
            let mut calls = inputs.on_cpu();
            let [once, both] = PASSES.map(|pass| calls.outcome(pass).expect("lengths fit"));
            assert_eq!(W::losses(&once), W::losses(&both));
        });
        // On the CPU the largest are long, and forward alone tells nothing new of them.
        let passes = if self.is_largest { &PASSES[1..] } else { &PASSES };
        self.each(c, "cpu", passes, |b, pass| {
            LazyCell::force(&checked);
            let mut calls = inputs.on_cpu();
            b.iter(|| calls.run(pass));
        });
    }

    fn on_cuda<W: Workload, F: FnOnce() -> W>(
        &self,
        c: &mut Criterion,
        gpu: &Replays,
        inputs: &LazyCell<W, F>,
    ) {
        let sets = LazyCell::new(|| {
            let [moved, held] = PASSES.map(|pass| self.op.bytes(self.size, self.bytes, pass));
            let count = gpu.sets(moved, held, 512).expect("a device tells its memory");
            let mut sets: Vec<W::Set> =
                (0..count).map(|_| inputs.upload(&gpu.handle).expect("memory for the sets")).collect();
            let [once, both] = PASSES.map(|pass| {
                sets[0].launch(&gpu.handle, pass).expect("lengths fit");
                sets[0].outcome(gpu.stream()).expect("the launches have run")
            });
            for (once, both) in W::losses(&once).iter().zip(W::losses(&both)) {
                assert!((once - both).abs() <= 4e-6 * both.abs(), "the passes give the same losses");
            }
            RefCell::new(sets)
        });
        self.each(c, "cuda", &PASSES, |b, pass| {
            let mut sets = sets.borrow_mut();
            let launches = || sets.iter_mut().try_for_each(|set| set.launch(&gpu.handle, pass));
            let graph = gpu.capture(launches).expect("a call can be captured");
            b.iter_custom(|launches| {
                // Whole replays, and of their time the share of the launches.
                let replays = launches.div_ceil(sets.len() as u64);
                let seconds = gpu.seconds(&graph, replays).expect("replays");
                Duration::from_secs_f64(seconds * launches as f64 / (replays * sets.len() as u64) as f64)
            });
        });
    }

    fn each(
        &self,
        c: &mut Criterion,
        device: &str,
        passes: &[Pass],
        mut time: impl FnMut(&mut criterion::Bencher, Pass),
    ) {
        let mut group = c.benchmark_group(format!("{}/{device}/{}", self.op.name(), self.dtype));
        for &pass in passes {
            let bytes = self.op.bytes(self.size, self.bytes, pass);
            group.throughput(Throughput::BytesDecimal(bytes as u64));
            group.bench_function(BenchmarkId::new(pass.name(), self.size.rows), |b| time(b, pass));
        }
    }
}

fn losses<T: Stored>(c: &mut Criterion, gpu: Option<&Replays>, dtype: &str) {
    for (op, columns, ladder, largest) in LADDERS {
        for &rows in if is_test() { &ladder[..1] } else { ladder } {
            let is_largest = rows == largest;
            if is_largest && (dtype == "f16" || !memory_allows()) {
                continue;
            }
            let size = Size { rows, columns };
            let case = Case { op, size, dtype, bytes: size_of::<T>(), is_largest };
            match op.on_rows() {
                Some(op) => case.bench(c, gpu, || rows::Inputs::<T>::random(op, size)),
                None => case.bench(c, gpu, || head::Inputs::<T>::random(size)),
            }
        }
    }
}

/// The first device; why not, in words.
fn gpu() -> Result<Replays, String> {
    let words = |error: gfocal::Error| error.to_string();
    let context = cuda::context(0).map_err(words)?;
    let info = cuda::DeviceInfo::of(&context).map_err(words)?;
    info.usable().map_err(words)?;
    if info.name.contains("not a GPU") {
        return Err(format!("cuda:0 is {}, whose times say nothing", info.name));
    }
    let kernels = Arc::new(Kernels::new(&context).map_err(words)?);
    Replays::new(&context, kernels, false).map_err(words)
}

fn all(c: &mut Criterion) {
    let gpu = gpu().inspect_err(|why| eprintln!("no CUDA benches: {why}")).ok();
    losses::<f32>(c, gpu.as_ref(), "f32");
    losses::<f16>(c, gpu.as_ref(), "f16");
    losses::<bf16>(c, gpu.as_ref(), "bf16");
}

/// Short, unless the command line says otherwise.
fn settings() -> Criterion {
    let warm_up = Duration::from_millis(300);
    Criterion::default().sample_size(10).warm_up_time(warm_up).measurement_time(Duration::from_secs(1))
}

criterion_group!(name = benches; config = settings(); targets = all);
criterion_main!(benches);
