//! Distribution Focal Loss on the CPU.
//!
//! Rows go through vectors of f32 that hold the same bin of many rows; the two bins that the target
//! names, and rows that f32 does not suit (logits that are not finite or are f64, an extreme scale)
//! through the functions of math.rs.

use super::{DistributionFocalLoss, Target};
use crate::call::{Call, Lengths};
use crate::cpu::{Block, Host, fits_single};
use crate::element::Element;
use crate::error::Result;
use crate::math::{Softmax, TwoHot, dfl, exp_below, softmax, two_hot};
use crate::status::Status;
use crate::vector::{self, Isa, LANES, Lanes};

pub(super) fn run<T: Element>(
    call: &mut Call<'_, DistributionFocalLoss, Host, T>,
    loss: Option<&mut [T::Loss]>,
    grad: Option<&mut [T]>,
) -> Result<Status> {
    let (operation, Target { target }, shape) = (call.operation, call.targets, call.shape);
    let lengths = Lengths {
        shape,
        logits: call.logits.len(),
        per_row: &[
            ("target", Some(target.len())),
            ("weight", call.weight.map(<[_]>::len)),
            ("upstream", call.upstream.map(<[_]>::len)),
        ],
        like_logits: &[("grad", grad.as_deref().map(<[_]>::len))],
        loss: loss.as_deref().map(|loss| (loss.len(), call.reduction.losses(shape[0]))),
        scalars: &[("found_inf", call.found_inf.as_deref().map(<[_]>::len))],
    };
    operation.check(&lengths, &call.reduction, call.upstream.is_some(), Some(call.grad_scale))?;

    let isa = Isa::detect();
    let max = operation.target_max(shape[1]);
    call.for_blocks(operation.loss_weight, loss, grad, |block| {
        if T::SINGLE && shape[1] <= MOST_SINGLE_BINS {
            run_single(isa, target, max, block);
        } else {
            for row in 0..block.rows() {
                let loss = target_of(target, max, block, row).map(|target| double_row(&target, block, row));
                block.finish(row, loss);
            }
        }
    })
}

/// `None`: neither loss nor gradient, whatever the logits hold.
fn target_of<T: Element>(target: &[f32], max: f32, block: &mut Block<T>, row: usize) -> Option<TwoHot> {
    let number = block.first + row;
    if block.is_masked(row) {
        return None;
    }
    let target = target[number];
    if !(0.0..=max).contains(&target) {
        block.status.out_of_range_target(number);
    }
    (!target.is_nan()).then(|| two_hot(target.clamp(0.0, max).into(), block.columns))
}

/// The loss of a row; writes its gradient.
fn double_row<T: Element>(target: &TwoHot, block: &mut Block<T>, row: usize) -> f64 {
    let (scale, elements) = (block.scale(row), row * block.columns..(row + 1) * block.columns);
    let logits = &block.logits[elements.clone()];
    let softmax = softmax(logits.iter().map(|z| z.to_f64()));
    if let Some(grad) = &mut block.grad {
        for (bin, grad) in grad[elements].iter_mut().enumerate() {
            let share = match bin.wrapping_sub(target.left) {
                0 => target.left_weight,
                1 => target.right_weight,
                _ => 0.0,
            };
            let p = exp_below(logits[bin].to_f64(), softmax.peak) / softmax.total;
            *grad = T::from_f64((p - share) * scale);
        }
    }
    let [z_left, z_right] = [logits[target.left], logits[target.left + 1]].map(T::to_f64);
    dfl(target, &softmax, z_left, z_right)
}

/// A sum of more f32 than this may be off by more than a loss may be.
const MOST_SINGLE_BINS: usize = 256;

/// A block in vectors, some rows at a time.
fn run_single<T: Element>(isa: Isa, targets: &[f32], max: f32, block: &mut Block<T>) {
    let (rows, bins) = (block.rows(), block.columns);
    let mut z = vec![[0.0; LANES]; bins];
    let [mut widened, mut narrow] = [(); 2].map(|()| vec![0.0; bins * LANES]);
    let mut softmax = vector::Softmax::default();
    for first in (0..rows).step_by(LANES) {
        let tile = first..rows.min(first + LANES);
        let elements = tile.start * bins..tile.end * bins;
        let x = T::widen(isa, &block.logits[elements.clone()], &mut widened);
        to_lanes(x, &mut z);
        vector::softmax_rows(isa, &mut z, &mut softmax);
        let (mut scales, mut two_hots): ([f64; LANES], [_; LANES]) = Default::default();
        for (lane, row) in tile.clone().enumerate() {
            scales[lane] = block.scale(row);
            two_hots[lane] = target_of(targets, max, block, row);
        }
        if let Some(grad) = &mut block.grad {
            T::narrow(isa, &mut grad[elements], &mut narrow, |grad| {
                write_grad(&z, &softmax, &scales, &two_hots, grad);
            });
        }
        for (lane, row) in tile.enumerate() {
            let loss = two_hots[lane].as_ref().map(|target| {
                if softmax.bad[lane].is_nan() || !fits_single(scales[lane]) {
                    return double_row(target, block, row);
                }
                let of_row = Softmax {
                    peak: softmax.peak[lane].into(),
                    total: softmax.total[lane].into(),
                    log_total: softmax.log_total[lane].into(),
                };
                let at = lane * bins + target.left;
                dfl(target, &of_row, x[at].into(), x[at + 1].into())
            });
            block.finish(row, loss);
        }
    }
}

/// The gradients of rows, given their exp(z - peak), `[bin][row]`.
fn write_grad(
    z: &[Lanes],
    softmax: &vector::Softmax,
    scales: &[f64; LANES],
    targets: &[Option<TwoHot>; LANES],
    grad: &mut [f32],
) {
    for (lane, grad) in grad.chunks_exact_mut(z.len()).enumerate() {
        let (scale, total) = (scales[lane], softmax.total[lane]);
        let factor = scale as f32 / total;
        for (z, grad) in z.iter().zip(grad.iter_mut()) {
            *grad = z[lane] * factor;
        }
        // The two bins that a target is subtracted from, without cancellation.
        if let Some(target) = &targets[lane] {
            for (bin, share) in [(target.left, target.left_weight), (target.left + 1, target.right_weight)] {
                let p = f64::from(z[bin][lane]) / f64::from(total);
                grad[bin] = ((p - share) * scale) as f32;
            }
        }
    }
}

/// Rows to `[bin][row]`. Lanes without a row keep what they had, which is finite or not used.
fn to_lanes(rows: &[f32], lanes: &mut [Lanes]) {
    for (lane, row) in rows.chunks_exact(lanes.len()).enumerate() {
        for (lanes, z) in lanes.iter_mut().zip(row) {
            lanes[lane] = *z;
        }
    }
}
