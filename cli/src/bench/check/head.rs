//! The head.

use gfocal_bench::head::{Inputs, Outcome};
use gfocal_bench::{Op, Pass, Stored};

use super::truth::Truth;
use super::{ROWS, close, tolerance};
use crate::bench::case::Case;
use crate::error::{Error, Result};
use crate::floats::Dtype;

const KINDS: [&str; 3] = ["classification", "box", "distribution"];

/// Runs every pass once, and compares: all losses with the plain formula's, and the gradients of all
/// positives and of a sample of the other anchors.
pub fn check<T: Stored>(
    case: &Case,
    inputs: &Inputs<T>,
    mut run: impl FnMut(Pass) -> Result<Outcome<T>>,
) -> Result<()> {
    let truth = Truth::of(inputs);
    for &pass in Op::Head.passes() {
        let outcome = run(pass)?;
        let checked = check_losses(inputs, &truth, &outcome).and_then(|()| {
            if pass == Pass::Forward { Ok(()) } else { check_grads(case, inputs, &truth, &outcome) }
        });
        checked.map_err(|what| Error::Wrong {
            case: case.to_string(),
            what: format!("{}: {what}", pass.name()),
        })?;
    }
    Ok(())
}

fn check_losses<T: Stored>(inputs: &Inputs<T>, truth: &Truth, outcome: &Outcome<T>) -> Result<(), String> {
    for (level, (found, expected)) in outcome.losses.chunks_exact(3).zip(&truth.losses).enumerate() {
        // One term may be off by as much, where a target is subtracted from a probability in it.
        let heaviest = truth.positives[level].iter().map(|positive| positive.weight).fold(0.0, f64::max);
        let label_weights = &inputs.levels[level].label_weights;
        let weights = [f64::from(label_weights.iter().copied().fold(0.0, f32::max)), heaviest, heaviest];
        for kind in 0..KINDS.len() {
            let (found, expected) = (f64::from(found[kind]), expected[kind]);
            if !close(found, expected, 2e-6, 2e-7 * weights[kind] * truth.factors[kind]) {
                let name = KINDS[kind];
                return Err(format!(
                    "the {name} loss of level {level} is {found}, the plain formula's {expected}"
                ));
            }
        }
    }
    Ok(())
}

fn check_grads<T: Stored>(
    case: &Case,
    inputs: &Inputs<T>,
    truth: &Truth,
    outcome: &Outcome<T>,
) -> Result<(), String> {
    for level in 0..inputs.levels.len() {
        let anchors = inputs.levels[level].labels.len();
        let positives = truth.positives[level].iter().map(|positive| positive.anchor);
        for anchor in (0..anchors).step_by(anchors.div_ceil(ROWS)).chain(positives) {
            check_anchor(case.dtype, inputs, truth, outcome, [level, anchor])?;
        }
    }
    Ok(())
}

fn check_anchor<T: Stored>(
    dtype: Dtype,
    inputs: &Inputs<T>,
    truth: &Truth,
    outcome: &Outcome<T>,
    [level, anchor]: [usize; 2],
) -> Result<(), String> {
    let (relative, absolute) = tolerance(dtype);
    // The least number of f16, since gradients below its normal ones are rounded to multiples of that; of the
    // others, what arithmetic in f32 loses.
    let least = if dtype == Dtype::F16 { 2f64.powi(-24) } else { 1e-36 };
    let positions = inputs.levels[level].size.positions();
    let (image, position) = (anchor / positions, anchor % positions);
    let label = inputs.levels[level].labels[anchor];
    let positive = truth.positive(level, anchor);
    let of_cls = truth.cls_factor(inputs, level, anchor);
    let of_boxes = positive.map_or(0.0, |positive| {
        let [_, of_box, of_dfl] = truth.box_factors(inputs, positive);
        of_box.max(of_dfl)
    });
    let compare = |name: &str, found: &[T], truths: Vec<f64>, scale: &dyn Fn(usize) -> f64| {
        let channels = truths.len();
        for (channel, truth) in truths.into_iter().enumerate() {
            let found = found[(image * channels + channel) * positions + position].to_f64();
            let scale = scale(channel);
            let absolute = absolute * scale + if truth == 0.0 { 0.0 } else { least };
            if !close(found, truth, relative, absolute) {
                let at = format!("level {level}, image {image}, position {position}, channel {channel}");
                return Err(format!("the gradient of the {name} logits is {found} and not {truth} at {at}"));
            }
        }
        Ok(())
    };
    let [cls, boxes] = &outcome.grads[level];
    // Only where a target is subtracted.
    let cls_scale = |channel: usize| if channel as i64 == label { of_cls } else { 0.0 };
    compare("class", cls, truth.cls_grad(inputs, level, anchor), &cls_scale)?;
    compare("box", boxes, truth.box_grad(inputs, level, anchor), &|_| of_boxes)
}

#[cfg(test)]
mod tests {
    use gfocal_bench::Size;
    use gfocal_bench::head::pyramid::BINS;

    use super::super::assert_noticed;
    use super::*;

    #[test]
    fn right_results_pass_and_wrong_ones_do_not() {
        let size = Size { rows: 1000, columns: 5 };
        let case = Case { op: Op::Head, dtype: Dtype::F32, size, passes: vec![] };
        let inputs = Inputs::<f32>::random(case.size);
        let positive = Truth::of(&inputs).positives[0][0].anchor;
        let at = |channel: usize| channel * inputs.levels[0].size.positions() + positive;
        assert_noticed(
            &case,
            &inputs,
            &[
                ("a classification loss", &|outcome| outcome.losses[0] *= 1.0001),
                ("a box loss", &|outcome| outcome.losses[1] *= 1.0001),
                ("a distribution loss", &|outcome| outcome.losses[5] *= 1.0001),
                ("nothing written", &|outcome| outcome.grads[1][0].fill(f32::NAN)),
                ("a class logit's gradient", &|outcome| outcome.grads[0][0][at(2)] *= 1.001),
                ("a box logit's gradient", &|outcome| outcome.grads[0][1][at(BINS + 3)] *= 1.001),
                ("a negative's box", &|outcome| {
                    outcome.grads[0][1].iter_mut().for_each(|grad| *grad += 1e-9)
                }),
            ],
        );
    }
}
