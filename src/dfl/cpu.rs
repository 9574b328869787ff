//! Distribution Focal Loss on the CPU.
//!
//! Rows go through vectors of f32 that hold the same bin of many rows; rows that f32 does not suit
//! (logits that are not finite or are f64, an extreme scale), and the few that are left over at the
//! end, through the functions of math.rs.

use std::ops::Range;

use super::{DistributionFocalLoss, Target};
use crate::call::{Call, Lengths};
use crate::cpu::{Block, Host, fits_single};
use crate::element::Element;
use crate::error::Result;
use crate::math::{TwoHot, dfl, exp_below, softmax, two_hot};
use crate::status::Status;
use crate::vector::{self, DflRows, Isa, LANES};

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
            run_double(target, max, block, 0..block.rows());
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
    let bins = block.columns;
    let mut z = vec![[0.0; LANES]; bins];
    let [mut widened, mut narrow] = [(); 2].map(|()| vec![0.0; bins * LANES]);
    let whole = block.rows() - block.rows() % LANES;
    for first in (0..whole).step_by(LANES) {
        let elements = first * bins..(first + LANES) * bins;
        let mut rows = DflRows::default();
        let mut fits = [false; LANES];
        for lane in 0..LANES {
            let (target, scale) = (targets[block.first + first + lane], block.scale(first + lane));
            fits[lane] = !target.is_nan() && fits_single(scale);
            rows.target[lane] = if fits[lane] { target.clamp(0.0, max) } else { 0.0 };
            rows.scale[lane] = scale as f32;
        }
        let x = T::widen(isa, &block.logits[elements.clone()], &mut widened);
        let mut run = |grad: Option<&mut [f32]>| vector::dfl_rows(isa, x, &mut z, &mut rows, grad);
        match &mut block.grad {
            Some(grad) => T::narrow(isa, &mut grad[elements], &mut narrow, |grad| run(Some(grad))),
            None => run(None),
        }
        for (lane, (fits, loss)) in fits.into_iter().zip(rows.loss).enumerate() {
            let row = first + lane;
            if !fits || !loss.is_finite() {
                run_double(targets, max, block, row..row + 1);
                continue;
            }
            let is_masked = block.is_masked(row);
            if !is_masked && !(0.0..=max).contains(&targets[block.first + row]) {
                block.status.out_of_range_target(block.first + row);
            }
            block.finish(row, (!is_masked).then_some(loss.into()));
        }
    }
    run_double(targets, max, block, whole..block.rows());
}

/// Rows of a block, bin by bin.
fn run_double<T: Element>(targets: &[f32], max: f32, block: &mut Block<T>, rows: Range<usize>) {
    for row in rows {
        let loss = target_of(targets, max, block, row).map(|target| double_row(&target, block, row));
        block.finish(row, loss);
    }
}
