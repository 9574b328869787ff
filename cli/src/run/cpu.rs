//! On the CPU.

use gfocal::{Call, DistributionFocalLoss, Element, Host, Operation, QualityFocalLoss, Result, Status};

use super::{Outcome, Scaling, losses};
use crate::floats::{Float, numbers};
use crate::inputs::{DflInputs, Inputs, Labels, QflInputs, QflRows, QflTargets};

pub fn qfl<T>(loss: &QualityFocalLoss, logits: &[T], inputs: &QflInputs, scaling: Scaling) -> Result<Outcome>
where
    T: Float + Element<Loss: Float>,
{
    let shape = inputs.shape;
    let QflTargets { rows, class_weights, element_weights } = &inputs.targets;
    let targets: Vec<T::Loss> = match rows {
        QflRows::Sparse { quality: beside, .. } | QflRows::Dense { target: beside } => numbers(beside),
    };
    let [class_weights, element_weights] =
        [class_weights, element_weights].map(|weights| weights.as_deref().map(numbers));
    run(logits, inputs, scaling, |weight, losses, grad| {
        let mut call = match rows {
            QflRows::Sparse { labels: Labels::I64(labels), .. } => loss.cpu(logits, shape, labels, &targets),
            QflRows::Sparse { labels: Labels::I32(labels), .. } => loss.cpu(logits, shape, labels, &targets),
            QflRows::Dense { .. } => loss.cpu_dense(logits, shape, &targets),
        };
        if let Some(weights) = &class_weights {
            call = call.class_weights(weights);
        }
        if let Some(weights) = &element_weights {
            call = call.element_weights(weights);
        }
        with_options(call, weight, scaling).forward_backward(losses, grad)
    })
}

pub fn dfl<T>(
    loss: &DistributionFocalLoss,
    logits: &[T],
    inputs: &DflInputs,
    scaling: Scaling,
) -> Result<Outcome>
where
    T: Float + Element<Loss: Float>,
{
    let targets: Vec<T::Loss> = numbers(&inputs.targets);
    run(logits, inputs, scaling, |weight, losses, grad| {
        let call = loss.cpu(logits, inputs.shape, &targets);
        with_options(call, weight, scaling).forward_backward(losses, grad)
    })
}

fn with_options<'a, Op: Operation, T: Element>(
    call: Call<'a, Op, Host, T>,
    weight: Option<&'a [T::Loss]>,
    scaling: Scaling,
) -> Call<'a, Op, Host, T> {
    let call = call.reduction(scaling.reduction).grad_scale(scaling.grad_scale);
    match weight {
        Some(weight) => call.weight(weight),
        None => call,
    }
}

fn run<T, G>(
    logits: &[T],
    inputs: &Inputs<G>,
    scaling: Scaling,
    call: impl FnOnce(Option<&[T::Loss]>, &mut [T::Loss], &mut [T]) -> Result<Status>,
) -> Result<Outcome>
where
    T: Float + Element<Loss: Float>,
{
    let mut loss = vec![T::Loss::from_f64(0.0); losses(inputs, logits, scaling)];
    let mut grad = vec![T::from_f64(0.0); logits.len()];
    let weight = inputs.weight.as_deref().map(numbers);
    let status = call(weight.as_deref(), &mut loss, &mut grad)?;
    Ok(Outcome { loss: Float::floats(loss), grad: Float::floats(grad), exact_grad: None, status })
}
