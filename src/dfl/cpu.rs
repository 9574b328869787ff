//! Distribution Focal Loss on the CPU: arithmetic in f64.

use super::{DistributionFocalLoss, Target};
use crate::call::{Call, Lengths};
use crate::cpu::Host;
use crate::element::Element;
use crate::error::Result;
use crate::math::{dfl, exp_below, softmax, two_hot};
use crate::status::Status;

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

    let mut status = Status::default();
    let bins = shape[1];
    let range = 0.0..=operation.target_max(bins);
    call.for_rows(operation.loss_weight, loss, grad, |row, logits, scale, grad| {
        if !range.contains(&target[row]) {
            status.out_of_range_target(row);
        }
        if target[row].is_nan() {
            return None;
        }
        let target = two_hot(target[row].clamp(*range.start(), *range.end()).into(), bins);
        let softmax = softmax(logits.iter().map(|z| z.to_f64()));
        for (bin, grad) in grad.into_iter().flatten().enumerate() {
            let share = match bin.wrapping_sub(target.left) {
                0 => target.left_weight,
                1 => target.right_weight,
                _ => 0.0,
            };
            let p = exp_below(logits[bin].to_f64(), softmax.peak) / softmax.total;
            *grad = T::from_f64((p - share) * scale);
        }
        let [z_left, z_right] = [logits[target.left], logits[target.left + 1]].map(T::to_f64);
        Some(dfl(&target, &softmax, z_left, z_right))
    })?;
    Ok(status)
}
