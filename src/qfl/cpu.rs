//! Quality Focal Loss on the CPU: one pass over the logits.
//!
//! Elements with target 0, and at beta 2 dense targets, go through vectors of f32; others, and whole
//! rows that f32 does not suit (a loss that is not finite, an extreme scale or beta, logits in f64)
//! through the functions of math.rs.

use super::{Class, QualityFocalLoss, Targets};
use crate::call::{Call, Lengths};
use crate::cpu::{Block, Host, fits_single};
use crate::element::Element;
use crate::error::Result;
use crate::math::{LossGrad, qfl_background, qfl_soft};
use crate::status::Status;
use crate::vector::{self, Beta, Isa, NONE, QflRow};

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
        let beta = if qfl.beta == 2.0 { None } else { Beta::new(isa, qfl.beta) };
        if T::SINGLE && (qfl.beta == 2.0 || beta.is_some()) {
            run_single(isa, qfl, beta, &targets, block);
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

/// Rows that are prepared, computed and finished together, so that none of them waits for what has just
/// been stored.
const BATCH: usize = 64;

/// A block in vectors, some rows at a time. `beta`: if it is not 2.
fn run_single<T: Element>(
    isa: Isa,
    qfl: &QualityFocalLoss,
    beta: Option<Beta>,
    targets: &Targets<Host>,
    block: &mut Block<T>,
) {
    let mut rows = [QflRow::default(); BATCH];
    let mut special = Vec::with_capacity(BATCH); // rows of which there is more to say than their loss
    for first in (0..block.rows()).step_by(BATCH) {
        let rows = &mut rows[..BATCH.min(block.rows() - first)];
        special.clear();
        for (row, plan) in (first..).zip(&mut *rows) {
            let (target, scale) = (target_of(isa, qfl, targets, block, row), block.scale(row));
            (plan.scale, plan.left_out) = (scale as f32, NONE);
            if let Some(Target::Class { column, .. }) = target {
                plan.left_out = column;
            }
            if !matches!(target, Some(Target::Background)) || !fits_single(scale) {
                special.push((row, target));
            }
        }
        let elements = first * block.columns..(first + rows.len()) * block.columns;
        let grad = block.grad.as_deref_mut().map(|grad| &mut grad[elements.clone()]);
        let x = &block.logits[elements.clone()];
        let start = (block.first + first) * block.columns;
        let y = match *targets {
            Targets::Sparse { .. } => &[],
            Targets::Dense { target } => &target[start..start + x.len()],
        };
        match (beta, targets) {
            (Some(beta), _) => vector::qfl_any_beta_rows(isa, x, y, beta, rows, grad),
            (None, Targets::Sparse { .. }) => vector::qfl_background_rows(isa, x, rows, grad),
            (None, Targets::Dense { .. }) => vector::qfl_soft_rows(isa, x, y, rows, grad),
        }
        let mut gives_none = [false; BATCH];
        for (row, target) in &special {
            let plan = &mut rows[row - first];
            if let Some(target) = target {
                plan.loss += loss_above_0(qfl, beta, target, block, *row);
                if !plan.loss.is_finite() || !fits_single(block.scale(*row)) {
                    plan.loss = double_row(qfl, target, block, *row);
                }
            } else {
                gives_none[row - first] = true;
                block.clear_grad(*row);
            }
        }
        for (row, plan) in (first..).zip(&mut *rows) {
            if !plan.loss.is_finite() && !special.iter().any(|&(special, _)| special == row) {
                plan.loss = double_row(qfl, &Target::Background, block, row);
            }
        }
        let losses = rows.iter().zip(gives_none);
        block.finish_rows(first, losses.map(|(plan, gives_none)| (!gives_none).then_some(plan.loss)));
    }
}

/// The losses of a row's elements with a target above 0 that the vectors have left out; writes their gradients.
fn loss_above_0<T: Element>(
    qfl: &QualityFocalLoss,
    beta: Option<Beta>,
    target: &Target,
    block: &mut Block<T>,
    row: usize,
) -> f64 {
    match *target {
        Target::Background => 0.0,
        Target::Class { column, .. } => labelled_loss(qfl, target, column, block, row),
        Target::Dense(_) if beta.is_none() => 0.0,
        Target::Dense(y) => (0..block.columns)
            .filter(|&column| y[column] > 0.0)
            .map(|column| labelled_loss(qfl, target, column, block, row))
            .sum(),
    }
}

/// The loss of an element with a target above 0; writes its gradient.
fn labelled_loss<T: Element>(
    qfl: &QualityFocalLoss,
    target: &Target,
    column: usize,
    block: &mut Block<T>,
    row: usize,
) -> f64 {
    let at = row * block.columns + column;
    let labelled = element(qfl, target, column, block.logits[at].to_f64());
    let scale = block.scale(row);
    if let Some(grad) = &mut block.grad {
        grad[at] = T::from_f64(labelled.grad * scale);
    }
    labelled.loss
}

/// `None`: neither loss nor gradient, whatever the logits hold.
#[inline]
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
#[inline]
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
