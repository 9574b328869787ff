//! A batch over two devices: each has a thread, a stream and a handle of its own, and both divide by the positives of
//! the whole batch. With one device both halves go there. (Between processes, on the device: `head_all_reduce.rs`.)
//!
//! ```text
//! cargo run --example 06_two_devices
//! ```

use std::thread;

use gfocal::cuda::{self, Handle, check};
use gfocal::{AvgPolicy, QualityFocalLoss, Reduction, bf16};

const ROWS: usize = 4200;
const CLASSES: usize = 80;

/// The loss of some rows on a device.
fn half(ordinal: usize, labels: &[i64], positives: f64) -> gfocal::Result<f32> {
    let stream = cuda::context(ordinal)?.default_stream();
    let handle = Handle::new(&stream)?;
    let logits = vec![bf16::from_f32(-4.6); labels.len() * CLASSES];
    let logits = check("cuMemcpyHtoDAsync", stream.clone_htod(&logits))?;
    let quality = check("cuMemcpyHtoDAsync", stream.clone_htod(&vec![0.9f32; labels.len()]))?;
    let labels_there = check("cuMemcpyHtoDAsync", stream.clone_htod(labels))?;
    let mut loss = check("cuMemAllocAsync", stream.alloc_zeros::<f32>(1))?;
    let mut grad = check("cuMemAllocAsync", stream.alloc_zeros::<bf16>(labels.len() * CLASSES))?;
    QualityFocalLoss::default()
        .cuda(&handle, &logits, [labels.len(), CLASSES], &labels_there, &quality)
        .reduction(Reduction::MeanBy { avg_factor: positives.into(), policy: AvgPolicy::AtLeast(1.0) })
        .forward_backward(&mut loss, &mut grad)?;
    Ok(check("cuMemcpyDtoHAsync", stream.clone_dtoh(&loss))?[0])
}

fn main() -> gfocal::Result<()> {
    let devices = cuda::devices()?.len();
    let labels: Vec<i64> =
        (0..2 * ROWS as i64).map(|row| if row % 70 == 0 { 5 } else { CLASSES as i64 }).collect();
    let positives = labels.iter().filter(|&&label| label == 5).count() as f64;
    let halves: Vec<f32> = thread::scope(|scope| {
        let work = |(rank, labels)| scope.spawn(move || half(rank % devices, labels, positives));
        let threads: Vec<_> = labels.chunks(ROWS).enumerate().map(work).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect::<gfocal::Result<_>>()
    })?;
    let whole = half(0, &labels, positives)?;
    println!("{} devices: {halves:.6?} are {whole:.6}", devices);
    assert!((halves.iter().sum::<f32>() - whole).abs() <= 4e-6 * whole);
    Ok(())
}
