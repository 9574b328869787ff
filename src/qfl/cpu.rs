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
use crate::vector::{self, Isa, NO_LOSS};

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

/// A block in vectors, row by row.
fn run_single<T: Element>(isa: Isa, qfl: &QualityFocalLoss, targets: &Targets<Host>, block: &mut Block<T>) {
    let mut room = [(); 3].map(|()| vec![0.0; block.columns]);
    for row in 0..block.rows() {
        let loss = target_of(isa, qfl, targets, block, row).map(|target| {
            let loss = single_row(isa, qfl, &target, block, row, &mut room);
            if loss.is_finite() { loss } else { double_row(qfl, &target, block, row) }
        });
        block.finish(row, loss);
    }
}

/// The loss of a row, not finite if f32 is not enough; writes its gradient.
fn single_row<T: Element>(
    isa: Isa,
    qfl: &QualityFocalLoss,
    target: &Target,
    block: &mut Block<T>,
    row: usize,
    [widened, narrow, others]: &mut [Vec<f32>; 3],
) -> f64 {
    let (scale, elements) = (block.scale(row), row * block.columns..(row + 1) * block.columns);
    if !fits_single(scale) {
        return f64::NAN;
    }
    let mut x = T::widen(isa, &block.logits[elements.clone()], widened);
    if let Target::Class { column, .. } = *target {
        others.copy_from_slice(x);
        others[column] = NO_LOSS;
        x = others;
    }
    let run = |grad: Option<&mut [f32]>| match target {
        Target::Dense(y) => vector::qfl_soft(isa, x, y, scale as f32, grad),
        Target::Background | Target::Class { .. } => vector::qfl_background(isa, x, scale as f32, grad),
    };
    let mut loss = match &mut block.grad {
        Some(grad) => T::narrow(isa, &mut grad[elements.clone()], narrow, |grad| run(Some(grad))),
        None => run(None),
    };
    if let Target::Class { column, .. } = *target {
        let at = elements.start + column;
        let labelled = element(qfl, target, column, block.logits[at].to_f64());
        loss += labelled.loss;
        if let Some(grad) = &mut block.grad {
            grad[at] = T::from_f64(labelled.grad * scale);
        }
    }
    loss
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
            if vector::any_nan(isa, target) {
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
