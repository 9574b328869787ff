//! On the CPU.

use gfocal::{Call, DistributionFocalLoss, Element, Host, Operation, QualityFocalLoss, Result, Status};

use super::{Outcome, Scaling, losses};
use crate::floats::Float;
use crate::inputs::{DflInputs, Inputs, Labels, QflInputs, QflRows, QflTargets};

pub fn qfl<T>(loss: &QualityFocalLoss, logits: &[T], inputs: &QflInputs, scaling: Scaling) -> Result<Outcome>
where
    T: Float + Element<Loss: Float>,
{
    let shape = inputs.shape;
    run(logits, inputs, scaling, |losses, grad| {
        let QflTargets { rows, class_weights, element_weights } = &inputs.targets;
        let mut call = match rows {
            QflRows::Sparse { labels: Labels::I64(labels), quality } => {
                loss.cpu(logits, shape, labels, quality)
            }
            QflRows::Sparse { labels: Labels::I32(labels), quality } => {
                loss.cpu(logits, shape, labels, quality)
            }
            QflRows::Dense { target } => loss.cpu_dense(logits, shape, target),
        };
        if let Some(weights) = class_weights {
            call = call.class_weights(weights);
        }
        if let Some(weights) = element_weights {
            call = call.element_weights(weights);
        }
        with_options(call, inputs, scaling).forward_backward(losses, grad)
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
    run(logits, inputs, scaling, |losses, grad| {
        let call = loss.cpu(logits, inputs.shape, &inputs.targets);
        with_options(call, inputs, scaling).forward_backward(losses, grad)
    })
}

fn with_options<'a, Op: Operation, T: Element, G>(
    call: Call<'a, Op, Host, T>,
    inputs: &'a Inputs<G>,
    scaling: Scaling,
) -> Call<'a, Op, Host, T> {
    let call = call.reduction(scaling.reduction).grad_scale(scaling.grad_scale);
    match &inputs.weight {
        Some(weight) => call.weight(weight),
        None => call,
    }
}

fn run<T, G>(
    logits: &[T],
    inputs: &Inputs<G>,
    scaling: Scaling,
    call: impl FnOnce(&mut [T::Loss], &mut [T]) -> Result<Status>,
) -> Result<Outcome>
where
    T: Float + Element<Loss: Float>,
{
    let mut loss = vec![T::Loss::from_f64(0.0); losses(inputs, logits, scaling)];
    let mut grad = vec![T::from_f64(0.0); logits.len()];
    let status = call(&mut loss, &mut grad)?;
    Ok(Outcome { loss: Float::floats(loss), grad: Float::floats(grad), exact_grad: None, status })
}
