//! Throughput of the losses, in bytes of logits, labels, targets and gradients.
//!
//! Each case is checked before it is timed: the one-pass loss must equal the loss of the forward
//! pass. CUDA is timed where there is a GPU, never on the emulator.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use gfocal::{DistributionFocalLoss, Element, QualityFocalLoss, bf16, f16};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// Anchors of one 640x640 image, and of a batch of four.
const QFL_ROWS: [usize; 2] = [8_400, 33_600];
const CLASSES: usize = 80;
const DFL_ROWS: [usize; 2] = [4_096, 33_600];
const BINS: usize = 17;

/// Logits as at the start of training: the prior of 0.01 is a logit of -4.6.
fn logits<T: Element>(rng: &mut StdRng, len: usize) -> Vec<T> {
    (0..len).map(|_| T::from_f64(rng.random_range(-6.6..-2.6))).collect()
}

fn qfl<T: Element>(c: &mut Criterion, dtype: &str) {
    let mut group = c.benchmark_group(format!("qfl/cpu/{dtype}"));
    for rows in QFL_ROWS {
        let mut rng = StdRng::seed_from_u64(7);
        let shape = [rows, CLASSES];
        let logits: Vec<T> = logits(&mut rng, rows * CLASSES);
        let labels: Vec<i64> = (0..rows)
            .map(|_| if rng.random_bool(0.01) { rng.random_range(0..CLASSES as i64) } else { CLASSES as i64 })
            .collect();
        let quality: Vec<f32> = (0..rows).map(|_| rng.random_range(0.3..1.0)).collect();
        let qfl = QualityFocalLoss::default();
        let call = || qfl.cpu(&logits, shape, &labels, &quality);
        let zero = T::Loss::from_f64(0.0);
        let (mut once, mut both, mut grad) = ([zero], [zero], logits.clone());
        call().forward(&mut once).expect("lengths fit");
        call().forward_backward(&mut both, &mut grad).expect("lengths fit");
        assert_eq!(once[0].to_f64(), both[0].to_f64());

        let inputs = rows * (CLASSES * size_of::<T>() + 8 + 4);
        group.throughput(Throughput::BytesDecimal(inputs as u64));
        group.bench_function(BenchmarkId::new("forward", rows), |b| b.iter(|| call().forward(&mut once)));
        group.throughput(Throughput::BytesDecimal((inputs + size_of_val(grad.as_slice())) as u64));
        group.bench_function(BenchmarkId::new("forward_backward", rows), |b| {
            b.iter(|| call().forward_backward(&mut both, &mut grad));
        });
    }
}

fn dfl<T: Element>(c: &mut Criterion, dtype: &str) {
    let mut group = c.benchmark_group(format!("dfl/cpu/{dtype}"));
    for rows in DFL_ROWS {
        let mut rng = StdRng::seed_from_u64(11);
        let shape = [rows, BINS];
        let logits: Vec<T> = logits(&mut rng, rows * BINS);
        let target: Vec<f32> = (0..rows).map(|_| rng.random_range(0.0..16.0)).collect();
        let dfl = DistributionFocalLoss::default();
        let call = || dfl.cpu(&logits, shape, &target);
        let zero = T::Loss::from_f64(0.0);
        let (mut once, mut both, mut grad) = ([zero], [zero], logits.clone());
        call().forward(&mut once).expect("lengths fit");
        call().forward_backward(&mut both, &mut grad).expect("lengths fit");
        assert_eq!(once[0].to_f64(), both[0].to_f64());

        let inputs = rows * (BINS * size_of::<T>() + 4);
        group.throughput(Throughput::BytesDecimal(inputs as u64));
        group.bench_function(BenchmarkId::new("forward", rows), |b| b.iter(|| call().forward(&mut once)));
        group.throughput(Throughput::BytesDecimal((inputs + size_of_val(grad.as_slice())) as u64));
        group.bench_function(BenchmarkId::new("forward_backward", rows), |b| {
            b.iter(|| call().forward_backward(&mut both, &mut grad));
        });
    }
}

fn cpu(c: &mut Criterion) {
    qfl::<f32>(c, "f32");
    qfl::<f16>(c, "f16");
    qfl::<bf16>(c, "bf16");
    dfl::<f32>(c, "f32");
    dfl::<bf16>(c, "bf16");
}

criterion_group!(benches, cpu);
criterion_main!(benches);
