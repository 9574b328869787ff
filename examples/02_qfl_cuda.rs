//! The same on CUDA, in f16: one launch on your stream, which waits for nothing.
//!
//! ```text
//! cargo run --example 02_qfl_cuda
//! ```
//! Without a GPU: `cargo run --package gfocal-emulator -- cargo run --example 02_qfl_cuda`.

use std::error::Error;

use gfocal::cuda::{self, Handle, StatusBlock};
use gfocal::{AvgPolicy, QualityFocalLoss, Reduction, f16};

const ROWS: usize = 8400;
const CLASSES: usize = 80;

fn main() -> Result<(), Box<dyn Error>> {
    let stream = cuda::context(0)?.default_stream();
    // Kernels, and scratch memory of the reductions: one for each stream, made once.
    let handle = Handle::new(&stream)?;

    // What a network and an assigner have left on the device. Label 80 is background, 99 a mistake.
    let logits = stream.clone_htod(&vec![f16::from_f32(-4.6); ROWS * CLASSES])?;
    let label = |row: usize| match row {
        5000 => 99,
        row if row.is_multiple_of(100) => 17,
        _ => CLASSES as i64,
    };
    let labels = stream.clone_htod(&(0..ROWS).map(label).collect::<Vec<i64>>())?;
    let quality = stream.clone_htod(&[0.7f32; ROWS])?;
    let positives = stream.clone_htod(&[83.0f32])?; // stays there, like the scale of mixed precision
    let scale = stream.clone_htod(&[65536.0f32])?;

    // Where the results go. Nothing is allocated after this.
    let mut loss = stream.alloc_zeros::<f32>(1)?;
    let mut grad = stream.alloc_zeros::<f16>(ROWS * CLASSES)?;
    let mut status = StatusBlock::new(&stream)?;
    QualityFocalLoss::default()
        .cuda(&handle, &logits, [ROWS, CLASSES], &labels, &quality)
        .reduction(Reduction::MeanBy { avg_factor: (&positives).into(), policy: AvgPolicy::AtLeast(1.0) })
        .grad_scale(&scale)
        .status(&mut status)
        .forward_backward(&mut loss, &mut grad)?;

    // Only reading waits.
    let (loss, grad) = (stream.clone_dtoh(&loss)?[0], stream.clone_dtoh(&grad)?);
    let status = status.read(&stream)?;
    println!("loss {loss:.6}, first gradients {:?}", &grad[16..19]);
    println!("{} bad labels, the first in row {:?}", status.bad_labels, status.first_bad_row);
    assert_eq!((status.bad_labels, status.first_bad_row), (1, Some(5000)));
    assert!(grad[17] < f16::ZERO && grad[16] > f16::ZERO);
    Ok(())
}
