//! Quality Focal Loss on the CPU: from logits to the loss and its gradient, in one pass.
//!
//! ```text
//! cargo run --example 01_qfl_cpu
//! ```

use gfocal::{AvgPolicy, QualityFocalLoss, Reduction};

fn main() -> Result<(), gfocal::Error> {
    // Three anchors and four classes. The first is an object of class 2, whose box has an IoU of 0.8 with the truth;
    // label 4 is background.
    let shape = [3, 4];
    let logits = [
        [-3.0f32, -1.0, 0.5, -2.0], //
        [-4.0, -4.5, -3.5, -5.0],
        [-4.6, -4.6, 1.0, -4.6],
    ];
    let (labels, quality) = ([2i64, 4, 4], [0.8f32, 0.0, 0.0]);
    let (mut loss, mut grad) = ([0.0f32], [0.0f32; 12]);

    let status = QualityFocalLoss::default() // beta 2
        .cpu(logits.as_flattened(), shape, &labels, &quality)
        // What mmdetection divides by: the number of positives, one at least.
        .reduction(Reduction::MeanBy { avg_factor: 1.0, policy: AvgPolicy::AtLeast(1.0) })
        .forward_backward(&mut loss, &mut grad)?;
    assert!(status.is_ok()); // it counts labels and qualities that cannot be used

    println!("loss {:.6}", loss[0]);
    for (logits, grad) in logits.iter().zip(grad.chunks(4)) {
        println!("logits {logits:5.2?}, gradient {grad:9.6?}");
    }
    // Below its quality the score of the object is to rise; the sure false positive is to fall most.
    assert!(grad[2] < 0.0 && grad[10] == grad.iter().copied().fold(0.0, f32::max));
    Ok(())
}
