//! Throughput of the losses, in bytes of logits, labels, targets and gradients.
//!
//! Each case is checked before it is timed: the one-pass loss must equal the loss of the forward
//! pass. CUDA is timed where there is a GPU, never on the emulator.

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use gfocal::{Call, DistributionFocalLoss, Element, Host, Operation, QualityFocalLoss, bf16, f16};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

#[cfg(feature = "cuda")]
#[path = "support/cuda.rs"]
mod cuda;

/// Anchors of one 640x640 image, and of batches of 4, 16 and 128.
const QFL_ROWS: [usize; 4] = [8_400, 33_600, 134_400, LARGEST_QFL];
const LARGEST_QFL: usize = 1_075_200;
const CLASSES: usize = 80;
const DFL_ROWS: [usize; 5] = [256, 4_096, 33_600, 262_144, LARGEST_DFL];
const LARGEST_DFL: usize = 2_097_152;
const BINS: usize = 17;

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

    /// What is read, and what is written besides.
    fn bytes(&self) -> [usize; 2] {
        let logits = size_of_val(&*self.logits);
        let per_row = size_of_val(&*self.labels) + size_of_val(&*self.quality) + size_of_val(&*self.target);
        [logits + per_row, logits]
    }
}

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

/// Times the forward pass, but for the largest, and the one pass for loss and gradient.
fn bench<'a, Op: Operation + 'a, T: Element>(
    c: &mut Criterion,
    name: &str,
    inputs: &'a Inputs<T>,
    is_largest: bool,
    call: impl Fn(&'a Inputs<T>) -> Call<'a, Op, Host, T>,
) {
    let rows = inputs.shape[0];
    let zero = T::Loss::from_f64(0.0);
    let (mut once, mut both, mut grad) = ([zero], [zero], inputs.logits.clone());
    call(inputs).forward(&mut once).expect("lengths fit");
    call(inputs).forward_backward(&mut both, &mut grad).expect("lengths fit");
    assert_eq!(once[0].to_f64(), both[0].to_f64());

    let mut group = c.benchmark_group(name);
    group.sample_size(10).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    let [read, written] = inputs.bytes();
    if !is_largest {
        group.throughput(Throughput::BytesDecimal(read as u64));
        group.bench_function(BenchmarkId::new("forward", rows), |b| {
            b.iter(|| call(inputs).forward(&mut once));
        });
    }
    group.throughput(Throughput::BytesDecimal((read + written) as u64));
    group.bench_function(BenchmarkId::new("forward_backward", rows), |b| {
        b.iter(|| call(inputs).forward_backward(&mut both, &mut grad));
    });
}

fn losses<T: Element>(c: &mut Criterion, dtype: &str) {
    for rows in ladder(&QFL_ROWS, LARGEST_QFL, dtype) {
        let (inputs, qfl) = (Inputs::<T>::qfl(rows), QualityFocalLoss::default());
        bench(c, &format!("qfl/cpu/{dtype}"), &inputs, rows == LARGEST_QFL, |inputs| {
            qfl.cpu(&inputs.logits, inputs.shape, &inputs.labels, &inputs.quality)
        });
    }
    for rows in ladder(&DFL_ROWS, LARGEST_DFL, dtype) {
        let (inputs, dfl) = (Inputs::<T>::dfl(rows), DistributionFocalLoss::default());
        bench(c, &format!("dfl/cpu/{dtype}"), &inputs, rows == LARGEST_DFL, |inputs| {
            dfl.cpu(&inputs.logits, inputs.shape, &inputs.target)
        });
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

criterion_group!(benches, all);
criterion_main!(benches);
