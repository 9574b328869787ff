//! The head loss on the CPU.

use gfocal::head::{Gradients as Of, Level, Logits, Normalisers, Points, Targets};
use gfocal::{Element, HeadLoss, Host, LabelSlice, Status};
use pyo3::prelude::*;

use super::Outputs;
use super::inputs::{Inputs, layout};
use crate::error::Outcome;
use crate::pool;
use crate::status::write_status;
use crate::tensor::{DType, Item, Real, Tensor};

fn labels(tensor: &Tensor) -> Outcome<LabelSlice<'_>> {
    Ok(match tensor.dtype {
        DType::I32 => tensor.slice::<i32>()?.into(),
        _ => tensor.slice::<i64>()?.into(),
    })
}

fn of_level<T: Item>(list: &[Tensor], level: usize) -> Outcome<Option<&[T]>> {
    list.get(level).map(Tensor::slice).transpose()
}

fn level<T: Real, U: Real>(inputs: &Inputs, i: usize) -> Outcome<Level<'_, Host, T, U>>
where
    T::Loss: Item,
{
    let [height, width] = inputs.extent(i);
    Ok(Level {
        height,
        width,
        stride: inputs.strides[i],
        points: match of_level(&inputs.points, i)? {
            Some(points) => Points::Explicit(points),
            None => Points::Grid { offset: inputs.offset },
        },
        logits: Logits::Separate { cls: inputs.cls[i].whole()?, boxes: inputs.boxes[i].whole()? },
        cls_layout: layout(&inputs.cls[i]),
        box_layout: layout(&inputs.boxes[i]),
        targets: Targets {
            labels: labels(&inputs.labels[i])?,
            label_weights: of_level(&inputs.label_weights, i)?,
            boxes: inputs.targets[i].slice()?,
            quality: of_level(&inputs.quality, i)?,
            box_weights: of_level(&inputs.box_weights, i)?,
            box_scores: of_level(&inputs.box_scores, i)?,
            scores: of_level(&inputs.scores, i)?,
            element_weights: of_level(&inputs.element_weights, i)?,
        },
    })
}

fn gradients_of<'t, T: Real, U: Real>(
    (cls, boxes): (&'t mut Tensor, &'t mut Tensor),
) -> Outcome<Of<'t, Host, T, U>> {
    Ok(Of::Separate { cls: cls.whole_mut()?, boxes: boxes.whole_mut()? })
}

pub fn run<T: Real, U: Real>(head: &HeadLoss, py: Python<'_>, inputs: &Inputs, out: &mut Outputs) -> Outcome {
    let Outputs { counted, losses, gradients, found_inf, status, .. } = out;
    let status_of_call = pool::run(py, inputs.elements(), move || {
        let levels = (0..inputs.cls.len()).map(|i| level(inputs, i)).collect::<Outcome<Vec<_>>>()?;
        let [batch, classes] = inputs.sizes();
        let mut call = head.cpu::<T, U>(batch, classes, &levels);
        if let Some(weights) = &inputs.class_weights {
            call = call.class_weights(weights.slice()?);
        }
        if let Some(counted) = counted {
            let Normalisers { positives, box_weights } = call.normalisers()?;
            counted.slice_mut::<f64>()?.copy_from_slice(&[positives, box_weights]);
            return Ok(Status::default());
        }
        if let Some(normalisers) = &inputs.normalisers {
            let normalisers = normalisers.slice::<f64>()?;
            call = call.normalised_by(Normalisers { positives: normalisers[0], box_weights: normalisers[1] });
        }
        if let Some(upstream) = &inputs.upstream {
            call = call.upstream(upstream.slice()?);
        }
        if let Some(found_inf) = found_inf {
            call = call.found_inf(found_inf.slice_mut()?);
        }
        let losses = losses.as_mut().map(Tensor::slice_mut::<<T as Element>::Loss>).transpose()?;
        let Some(gradients) = gradients else {
            return losses.map_or(Ok(Status::default()), |losses| Ok(call.forward(losses)?));
        };
        let layouts = gradients.layouts();
        let both = gradients.cls.iter_mut().zip(&mut gradients.boxes);
        let mut gradients = both.map(gradients_of).collect::<Outcome<Vec<_>>>()?;
        let call = call.gradient_layouts(&layouts);
        Ok(match losses {
            Some(losses) => call.forward_backward(losses, &mut gradients)?,
            None => call.backward(&mut gradients)?,
        })
    })?;
    status.as_mut().map_or(Ok(()), |status| write_status(&status_of_call, status))
}
