//! Quality Focal Loss on the CPU: one pass over the logits.
//!
//! Elements with target 0, and dense targets, go through vectors of f32; the labelled element of
//! a row, and whole rows that f32 does not suit (a loss that is not finite, an extreme scale,
//! another beta than 2, logits in f64) through the functions of math.rs.

use super::{Class, QualityFocalLoss, Targets};
use crate::call::{Call, Lengths};
use crate::cpu::{Block, Host, fits_single};
use crate::element::Element;
use crate::error::Result;
use crate::math::{LossGrad, qfl_background, qfl_soft};
use crate::status::Status;
use crate::vector::{self, Isa, Out};

/// What the inputs say of a row.
enum Target<'a> {
    Background,
    Class { column: usize, quality: f64 },
    Dense(&'a [f32]),
}

pub(super) fn run<T: Element>(
    call: &mut Call<'_, QualityFocalLoss, Host, T>,
    loss: Option<&mut [T::Loss]>,
    grad: Option<&mut [T]>,
) -> Result<Status> {
    let (qfl, targets, shape) = (call.operation, call.targets, call.shape);
    let (labels, quality, target) = match targets {
        Targets::Sparse { labels, quality } => (Some(labels.len()), Some(quality.len()), None),
        Targets::Dense { target } => (None, None, Some(target.len())),
    };
    let lengths = Lengths {
        shape,
        logits: call.logits.len(),
        per_row: &[
            ("labels", labels),
            ("quality", quality),
            ("weight", call.weight.map(<[_]>::len)),
            ("upstream", call.upstream.map(<[_]>::len)),
        ],
        like_logits: &[("target", target), ("grad", grad.as_deref().map(<[_]>::len))],
        loss: loss.as_deref().map(|loss| (loss.len(), call.reduction.losses(shape[0]))),
        scalars: &[("found_inf", call.found_inf.as_deref().map(<[_]>::len))],
    };
    super::check(&lengths, &call.reduction, call.upstream.is_some(), Some(call.grad_scale))?;

    let isa = Isa::detect();
    call.for_blocks(qfl.loss_weight, loss, grad, |block| {
        if T::SINGLE && qfl.beta == 2.0 {
            run_single(isa, qfl, &targets, block);
        } else {
            run_double(isa, qfl, &targets, block);
        }
    })
}

/// A block, element by element.
fn run_double<T: Element>(isa: Isa, qfl: &QualityFocalLoss, targets: &Targets<Host>, block: &mut Block<T>) {
    for row in 0..block.rows() {
        let loss =
            target_of(isa, qfl, targets, block, row).map(|target| double_row(qfl, &target, block, row));
        block.finish(row, loss);
    }
}

/// The loss of a row; writes its gradient.
fn double_row<T: Element>(qfl: &QualityFocalLoss, target: &Target, block: &mut Block<T>, row: usize) -> f64 {
    let (scale, elements) = (block.scale(row), row * block.columns..(row + 1) * block.columns);
    let mut grad = block.grad.as_deref_mut().map(|grad| &mut grad[elements.clone()]);
    let mut row_loss = 0.0;
    for (column, logit) in block.logits[elements].iter().enumerate() {
        let LossGrad { loss, grad: slope } = element(qfl, target, column, logit.to_f64());
        row_loss += loss;
        if let Some(grad) = &mut grad {
            grad[column] = T::from_f64(slope * scale);
        }
    }
    row_loss
}

/// Elements that are computed at a time, if so many are whole rows: few enough to stay in the
/// nearest cache.
const TILE: usize = 1024;

/// A block in vectors, some rows at a time.
fn run_single<T: Element>(isa: Isa, qfl: &QualityFocalLoss, targets: &Targets<Host>, block: &mut Block<T>) {
    let (rows, columns) = (block.rows(), block.columns);
    let tile_rows = (TILE / columns).max(1);
    let [mut widened, mut scales, mut losses, mut narrow] =
        [(); 4].map(|()| vec![0.0; columns * tile_rows.min(rows)]);
    if block.has_one_scale() {
        scales.fill(block.scale(0) as f32);
    }
    for first in (0..rows).step_by(tile_rows) {
        let tile = first..rows.min(first + tile_rows);
        let elements = tile.start * columns..tile.end * columns;
        if !block.has_one_scale() {
            for (row, scales) in tile.clone().zip(scales.chunks_exact_mut(columns)) {
                scales.fill(block.scale(row) as f32);
            }
        }
        let x = T::widen(isa, &block.logits[elements.clone()], &mut widened);
        let run = |loss: &mut [f32], grad: Option<&mut [f32]>| {
            let out = Out { loss, grad };
            match targets {
                Targets::Sparse { .. } => vector::qfl_background(isa, x, &scales, out),
                Targets::Dense { target } => {
                    let y = &target[block.first * columns..][elements.clone()];
                    vector::qfl_soft(isa, x, y, &scales, out);
                }
            }
        };
        match &mut block.grad {
            Some(grad) => {
                T::narrow(isa, &mut grad[elements.clone()], &mut narrow, |grad| run(&mut losses, Some(grad)));
            }
            None => run(&mut losses, None),
        }
        for (row, losses) in tile.zip(losses.chunks_exact_mut(columns)) {
            let loss = target_of(isa, qfl, targets, block, row)
                .map(|target| single_row(isa, qfl, &target, block, row, losses));
            block.finish(row, loss);
        }
    }
}

/// The loss of a row, given the losses that its elements have without a label. Writes the
/// gradient where f32 is not enough.
fn single_row<T: Element>(
    isa: Isa,
    qfl: &QualityFocalLoss,
    target: &Target,
    block: &mut Block<T>,
    row: usize,
    losses: &mut [f32],
) -> f64 {
    let scale = block.scale(row);
    let mut labelled_loss = 0.0;
    if let Target::Class { column, .. } = *target {
        let at = row * block.columns + column;
        let LossGrad { loss, grad: slope } = element(qfl, target, column, block.logits[at].to_f64());
        (losses[column], labelled_loss) = (0.0, loss);
        if let Some(grad) = &mut block.grad {
            grad[at] = T::from_f64(slope * scale);
        }
    }
    let mut loss = 0.0;
    vector::sum(isa, losses, &mut loss);
    loss += labelled_loss;
    if loss.is_finite() && fits_single(scale) { loss } else { double_row(qfl, target, block, row) }
}

/// `None`: neither loss nor gradient, whatever the logits hold.
fn target_of<'a, T: Element>(
    isa: Isa,
    qfl: &QualityFocalLoss,
    targets: &Targets<'a, Host>,
    block: &mut Block<T>,
    row: usize,
) -> Option<Target<'a>> {
    let (number, columns) = (block.first + row, block.columns);
    if block.is_masked(row) {
        None
    } else {
        row_target(isa, qfl, targets, number, columns, &mut block.status)
    }
}

/// The target of a row that is not masked, by its number in the call.
fn row_target<'a>(
    isa: Isa,
    qfl: &QualityFocalLoss,
    targets: &Targets<'a, Host>,
    row: usize,
    classes: usize,
    status: &mut Status,
) -> Option<Target<'a>> {
    match *targets {
        Targets::Dense { target } => {
            let target = &target[row * classes..(row + 1) * classes];
            let mut any_nan = false;
            vector::any_nan(isa, target, &mut any_nan);
            if any_nan {
                status.bad_quality(row);
                return None;
            }
            Some(Target::Dense(target))
        }
        Targets::Sparse { labels, quality } => match qfl.class_of(labels.get(row), classes) {
            Class::Background => Some(Target::Background),
            Class::Ignored => None,
            Class::Foreground(_) if quality[row].is_nan() => {
                status.bad_quality(row);
                None
            }
            Class::Foreground(column) => {
                Some(Target::Class { column, quality: f64::from(quality[row]).clamp(0.0, 1.0) })
            }
            Class::Invalid => {
                status.bad_label(row);
                None
            }
        },
    }
}

fn element(qfl: &QualityFocalLoss, target: &Target, column: usize, logit: f64) -> LossGrad {
    match *target {
        Target::Class { column: labelled, quality } if labelled == column => {
            qfl_soft(logit, quality, qfl.beta)
        }
        Target::Background | Target::Class { .. } => qfl_background(logit, qfl.beta),
        Target::Dense(target) => qfl_soft(logit, f64::from(target[column]).clamp(0.0, 1.0), qfl.beta),
    }
}
