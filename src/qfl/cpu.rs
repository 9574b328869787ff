//! Quality Focal Loss on the CPU: one pass over the logits, arithmetic in f64.

use super::{Class, QualityFocalLoss, Targets};
use crate::call::{Call, Lengths};
use crate::cpu::Host;
use crate::element::Element;
use crate::error::Result;
use crate::math::{LossGrad, qfl_background, qfl_soft};
use crate::status::Status;

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

    let mut status = Status::default();
    call.for_rows(qfl.loss_weight, loss, grad, |row, logits, scale, mut grad| {
        let target = row_target(qfl, &targets, row, shape[1], &mut status)?;
        let mut row_loss = 0.0;
        for (column, logit) in logits.iter().enumerate() {
            let LossGrad { loss, grad: slope } = element(qfl, &target, column, logit.to_f64());
            row_loss += loss;
            if let Some(grad) = &mut grad {
                grad[column] = T::from_f64(slope * scale);
            }
        }
        Some(row_loss)
    })?;
    Ok(status)
}

/// `None`: neither loss nor gradient, whatever the logits hold.
fn row_target<'a>(
    qfl: &QualityFocalLoss,
    targets: &Targets<'a, Host>,
    row: usize,
    classes: usize,
    status: &mut Status,
) -> Option<Target<'a>> {
    match *targets {
        Targets::Dense { target } => {
            let target = &target[row * classes..(row + 1) * classes];
            if target.iter().any(|y| y.is_nan()) {
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
