//! Distribution Focal Loss on the CPU.
//!
//! Rows go through vectors of f32 that hold the same bin of many rows; rows that f32 does not suit
//! (logits that are not finite or are f64, an extreme scale), and the few that are left over at the
//! end, through the functions of math.rs.

use std::ops::Range;

use half::{bf16, f16};

use super::{DistributionFocalLoss, Target};
use crate::call::{Call, Lengths};
use crate::cpu::{Block, fits_single, lanes_at};
use crate::element::{Element, compiled, singles};
use crate::error::Result;
use crate::math::{TwoHot, dfl, exp_below, softmax, two_hot};
use crate::memory::Host;
use crate::status::Status;
use crate::vector::{self, DflRows, Isa, LANES};

compiled! {
    /// Distribution Focal Loss on the CPU.
    DflOnCpu: Element for [f64, f32, f16, bf16] {
        fn dfl(
            call: &mut Call<'_, DistributionFocalLoss, Host, Self>,
            loss: Option<&mut [<Self as Element>::Loss]>,
            grad: Option<&mut [Self]>,
        ) -> Result<Status> = run;
    }
}

fn run<T: Element>(
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
        per_column: &[],
        like_logits: &[("grad", grad.as_deref().map(<[_]>::len))],
        loss: loss.as_deref().map(|loss| (loss.len(), call.reduction.losses(shape[0]))),
        scalars: &[("found_inf", call.found_inf.as_deref().map(<[_]>::len))],
    };
    operation.check(&lengths, &call.reduction, call.upstream.is_some(), Some(call.grad_scale))?;

    let isa = Isa::detect();
    let max = T::Loss::from_f64(operation.target_end(shape[1])).to_f64();
    call.for_blocks(operation.loss_weight, loss, grad, |block| {
        if T::SINGLE && shape[1] <= MOST_SINGLE_BINS {
            run_single(isa, target, max, block);
        } else {
            run_double(target, max, block, 0..block.rows());
        }
    })
}

/// `None`: neither loss nor gradient, whatever the logits hold.
fn target_of<T: Element>(target: &[T::Loss], max: f64, block: &mut Block<T>, row: usize) -> Option<TwoHot> {
    let number = block.first + row;
    if block.is_masked(row) {
        return None;
    }
    let target = target[number].to_f64();
    if !(0.0..=max).contains(&target) {
        block.status.out_of_range_target(number);
    }
    (!target.is_nan()).then(|| two_hot(target.clamp(0.0, max), block.columns))
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

/// Vectors of rows that are prepared, computed and finished together, so that none of them waits for
/// what has just been stored.
const BATCH: usize = 8;

/// A block in vectors, some rows at a time.
fn run_single<T: Element>(isa: Isa, targets: &[T::Loss], max: f64, block: &mut Block<T>) {
    let (bins, count) = (block.columns, block.rows());
    let mut z = vec![[0.0; LANES]; bins];
    let mut rows = [DflRows::default(); BATCH];
    let mut plain = [false; BATCH];
    for first in (0..count).step_by(BATCH * LANES) {
        let end = count.min(first + BATCH * LANES);
        let groups = (first..end).step_by(LANES);
        for ((first, rows), plain) in groups.clone().zip(&mut rows).zip(&mut plain) {
            *plain = prepare(targets, max, block, first, rows);
        }
        let whole = (end - first) / LANES;
        let (inside, rest) = (first * bins..(first + whole * LANES) * bins, end * bins);
        let grad = block.grad.as_deref_mut().map(|grad| &mut grad[inside.clone()]);
        vector::dfl_rows(isa, &block.logits[inside.clone()], &mut z, &mut rows[..whole], grad);
        if inside.end < rest {
            // Too few rows for a vector; those behind them do not matter.
            let inside = inside.end..rest;
            let (mut x, mut slopes) = (vec![T::NO_LOSS; bins * LANES], vec![T::NO_LOSS; bins * LANES]);
            x[..inside.len()].copy_from_slice(&block.logits[inside.clone()]);
            vector::dfl_rows(isa, &x, &mut z, &mut rows[whole..=whole], Some(&mut slopes));
            if let Some(grad) = &mut block.grad {
                grad[inside.clone()].copy_from_slice(&slopes[..inside.len()]);
            }
        }
        for ((first, rows), plain) in groups.zip(&rows).zip(plain) {
            if plain && rows.loss.iter().all(|loss| loss.is_finite()) {
                block.finish_lanes(first, &rows.loss);
            } else {
                finish_one_by_one(targets, max, block, first, &rows.loss);
            }
        }
    }
}

/// Rows from `first`, as many as there are. Whether they are [`LANES`] and all as most are: with a target in
/// range, not masked, of a scale that suits f32.
fn prepare<T: Element>(
    targets: &[T::Loss],
    max: f64,
    block: &Block<T>,
    first: usize,
    rows: &mut DflRows,
) -> bool {
    let (target, max) = (lanes_at(singles(targets), block.first + first, 0.0), max as f32);
    let (weight, scale) = (block.weights(first), block.scales(first));
    let mut plain = first + LANES <= block.rows();
    for lane in 0..LANES {
        let in_range = (target[lane] >= 0.0) & (target[lane] <= max);
        plain &= in_range & (weight[lane] != 0.0) & fits_single(scale[lane]);
        // NaN becomes 0.
        rows.target[lane] = target[lane].max(0.0).min(max);
        rows.scale[lane] = scale[lane] as f32;
    }
    plain
}

/// Rows from `first`, as many as there are, whose losses and gradients are computed, but of which some may
/// be masked or not fit f32.
fn finish_one_by_one<T: Element>(
    targets: &[T::Loss],
    max: f64,
    block: &mut Block<T>,
    first: usize,
    losses: &[f32; LANES],
) {
    for (row, loss) in (first..block.rows()).zip(losses) {
        let target = targets[block.first + row].to_f64();
        if target.is_nan() || !fits_single(block.scale(row)) || !loss.is_finite() {
            run_double(targets, max, block, row..row + 1);
            continue;
        }
        let is_masked = block.is_masked(row);
        if !is_masked && !(0.0..=max).contains(&target) {
            block.status.out_of_range_target(block.first + row);
        }
        block.finish(row, (!is_masked).then_some((*loss).into()));
    }
}

/// Rows of a block, bin by bin.
fn run_double<T: Element>(targets: &[T::Loss], max: f64, block: &mut Block<T>, rows: Range<usize>) {
    for row in rows {
        let loss = target_of(targets, max, block, row).map(|target| double_row(&target, block, row));
        block.finish(row, loss);
    }
}
