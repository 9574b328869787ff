//! Throughput of the losses, in bytes of logits, labels, targets and gradients.
//!
//! Each case is checked before it is timed: the one-pass loss must equal the loss of the forward
//! pass. The head is timed on pyramids of COCO. CUDA is timed where there is a GPU, never on the emulator.

use std::cell::LazyCell;
use std::sync::LazyLock;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use gfocal::{Call, DistributionFocalLoss, Element, Host, Operation, QualityFocalLoss, bf16, f16};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

#[cfg(feature = "cuda")]
#[path = "support/cuda.rs"]
mod cuda;
#[path = "support/head.rs"]
mod head;
#[cfg(feature = "cuda")]
#[path = "support/head_cuda.rs"]
mod head_cuda;

/// Anchors of one 640x640 image, and of batches of 4, 16 and 128.
const QFL_ROWS: [usize; 4] = [8_400, 33_600, 134_400, LARGEST_QFL];
const LARGEST_QFL: usize = 1_075_200;
const CLASSES: usize = 80;
const DFL_ROWS: [usize; 5] = [256, 4_096, 33_600, 262_144, LARGEST_DFL];
const LARGEST_DFL: usize = 2_097_152;
const BINS: usize = 17;
static QFL: LazyLock<QualityFocalLoss> = LazyLock::new(QualityFocalLoss::default);
static DFL: LazyLock<DistributionFocalLoss> = LazyLock::new(DistributionFocalLoss::default);

/// Inputs of a case; what a loss does not take is empty.
struct Inputs<T> {
    logits: Vec<T>,
    shape: [usize; 2],
    labels: Vec<i64>,
    quality: Vec<f32>,
    target: Vec<f32>,
}

impl<T: Element> Inputs<T> {
    /// Logits as at the start of training: the prior of 0.01 is a logit of -4.6.
    fn qfl(rows: usize) -> Self {
        let mut rng = StdRng::seed_from_u64(7);
        let logits = (0..rows * CLASSES).map(|_| T::from_f64(rng.random_range(-6.6..-2.6))).collect();
        let label = |rng: &mut StdRng| {
            if rng.random_bool(0.01) { rng.random_range(0..CLASSES as i64) } else { CLASSES as i64 }
        };
        let labels = (0..rows).map(|_| label(&mut rng)).collect();
        let quality = (0..rows).map(|_| rng.random_range(0.3..1.0)).collect();
        Inputs { logits, shape: [rows, CLASSES], labels, quality, target: Vec::new() }
    }

    fn dfl(rows: usize) -> Self {
        let mut rng = StdRng::seed_from_u64(11);
        let logits = (0..rows * BINS).map(|_| T::from_f64(rng.random_range(-2.0..2.0))).collect();
        let target = (0..rows).map(|_| rng.random_range(0.0..16.0)).collect();
        Inputs { logits, shape: [rows, BINS], labels: Vec::new(), quality: Vec::new(), target }
    }
}

/// What is read of so many rows, and what is written besides. `per_row` is what a row has beside its logits.
fn bytes<T>(rows: usize, columns: usize, per_row: usize) -> [usize; 2] {
    let logits = rows * columns * size_of::<T>();
    [logits + rows * per_row, logits]
}
/// Of a label and a quality; of a target.
const QFL_PER_ROW: usize = 8 + 4;
const DFL_PER_ROW: usize = 4;

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

/// The ladder for a type: in tests the least; the largest for one 32-bit and one 16-bit type, if
/// there is memory for it.
fn ladder(rows: &[usize], largest: usize, dtype: &str) -> Vec<usize> {
    let rows = if is_test() { &rows[..1] } else { rows };
    rows.iter().copied().filter(|&rows| rows < largest || (dtype != "f16" && memory_allows())).collect()
}

/// Times the forward pass, but for the largest, and the one pass for loss and gradient. The inputs are
/// made when the first of them is run: a filter may leave out both.
fn bench<Op: Operation, T: Element>(
    c: &mut Criterion,
    name: &str,
    rows: usize,
    [read, written]: [usize; 2],
    is_largest: bool,
    inputs: impl FnOnce() -> Inputs<T>,
    call: impl for<'a> Fn(&'a Inputs<T>) -> Call<'a, Op, Host, T>,
) {
    let zero = T::Loss::from_f64(0.0);
    let inputs = LazyCell::new(|| {
        let inputs = inputs();
        let (mut once, mut both, mut grad) = ([zero], [zero], inputs.logits.clone());
        call(&inputs).forward(&mut once).expect("lengths fit");
        call(&inputs).forward_backward(&mut both, &mut grad).expect("lengths fit");
        assert_eq!(once[0].to_f64(), both[0].to_f64());
        inputs
    });
    let mut group = c.benchmark_group(name);
    if !is_largest {
        group.throughput(Throughput::BytesDecimal(read as u64));
        group.bench_function(BenchmarkId::new("forward", rows), |b| {
            let (inputs, mut loss) = (&*inputs, [zero]);
            b.iter(|| call(inputs).forward(&mut loss));
        });
    }
    group.throughput(Throughput::BytesDecimal((read + written) as u64));
    group.bench_function(BenchmarkId::new("forward_backward", rows), |b| {
        let (inputs, mut loss) = (&*inputs, [zero]);
        let mut grad = inputs.logits.clone();
        b.iter(|| call(inputs).forward_backward(&mut loss, &mut grad));
    });
}

fn losses<T: Element>(c: &mut Criterion, dtype: &str) {
    for rows in ladder(&QFL_ROWS, LARGEST_QFL, dtype) {
        let (name, bytes) = (format!("qfl/cpu/{dtype}"), bytes::<T>(rows, CLASSES, QFL_PER_ROW));
        bench(
            c,
            &name,
            rows,
            bytes,
            rows == LARGEST_QFL,
            || Inputs::<T>::qfl(rows),
            |inputs| QFL.cpu(&inputs.logits, inputs.shape, &inputs.labels, &inputs.quality),
        );
    }
    for rows in ladder(&DFL_ROWS, LARGEST_DFL, dtype) {
        let (name, bytes) = (format!("dfl/cpu/{dtype}"), bytes::<T>(rows, BINS, DFL_PER_ROW));
        bench(
            c,
            &name,
            rows,
            bytes,
            rows == LARGEST_DFL,
            || Inputs::<T>::dfl(rows),
            |inputs| DFL.cpu(&inputs.logits, inputs.shape, &inputs.target),
        );
    }
    for images in ladder(&head::IMAGES, head::LARGEST_IMAGES, dtype) {
        head::bench::<T>(c, dtype, images);
    }
}

fn all(c: &mut Criterion) {
    losses::<f32>(c, "f32");
    losses::<f16>(c, "f16");
    losses::<bf16>(c, "bf16");
    #[cfg(feature = "cuda")]
    match cuda::Gpu::open() {
        Ok(gpu) => {
            gpu.losses::<f32>(c, "f32");
            gpu.losses::<f16>(c, "f16");
            gpu.losses::<bf16>(c, "bf16");
        }
        Err(why) => eprintln!("no CUDA benches: {why}"),
    }
}

/// Short, unless the command line says otherwise.
fn settings() -> Criterion {
    let warm_up = Duration::from_millis(300);
    Criterion::default().sample_size(10).warm_up_time(warm_up).measurement_time(Duration::from_secs(1))
}

criterion_group!(name = benches; config = settings(); targets = all);
criterion_main!(benches);
