//! The head loss on CUDA.

use gfocal::HeadLoss;
use gfocal::cuda::{Borrowed, Device, LabelBuffer, StorageElement};
use gfocal::cudarc::driver::{DevicePtr, DevicePtrMut};
use gfocal::head::{Gradients as Of, HeadCall, HeadWorkspace, Level, Logits, Points, Targets};
use pyo3::prelude::*;

use super::Outputs;
use super::inputs::{Inputs, layout};
use crate::cuda::{Memory, On, Stream};
use crate::error::Outcome;
use crate::pool::enqueue;
use crate::status::status_block;
use crate::tensor::{DType, Item, Tensor};

enum Labels {
    I64(Borrowed<i64>),
    I32(Borrowed<i32>),
}

/// The buffers of a level.
struct Buffers<T, U> {
    cls: Borrowed<T>,
    boxes: Borrowed<U>,
    labels: Labels,
    targets: Borrowed<f32>,
    label_weights: Option<Borrowed<f32>>,
    quality: Option<Borrowed<f32>>,
    box_weights: Option<Borrowed<f32>>,
    box_scores: Option<Borrowed<f32>>,
    scores: Option<Borrowed<f32>>,
    element_weights: Option<Borrowed<f32>>,
    points: Option<Borrowed<f32>>,
}

fn given(buffer: &Option<Borrowed<f32>>) -> Option<&dyn DevicePtr<f32>> {
    buffer.as_ref().map(|buffer| buffer as &dyn DevicePtr<f32>)
}

impl<T: StorageElement + Item, U: StorageElement + Item> Buffers<T, U> {
    fn new(inputs: &Inputs, i: usize, stream: &Stream) -> Outcome<Self> {
        let of_level = |list: &[Tensor]| list.get(i).map(|tensor| tensor.borrowed(stream)).transpose();
        Ok(Buffers {
            cls: inputs.cls[i].whole_borrowed(stream)?,
            boxes: inputs.boxes[i].whole_borrowed(stream)?,
            labels: match inputs.labels[i].dtype {
                DType::I32 => Labels::I32(inputs.labels[i].borrowed(stream)?),
                _ => Labels::I64(inputs.labels[i].borrowed(stream)?),
            },
            targets: inputs.targets[i].borrowed(stream)?,
            label_weights: of_level(&inputs.label_weights)?,
            quality: of_level(&inputs.quality)?,
            box_weights: of_level(&inputs.box_weights)?,
            box_scores: of_level(&inputs.box_scores)?,
            scores: of_level(&inputs.scores)?,
            element_weights: of_level(&inputs.element_weights)?,
            points: of_level(&inputs.points)?,
        })
    }

    fn level(&self, inputs: &Inputs, i: usize) -> Level<'_, Device, T, U> {
        let [height, width] = inputs.extent(i);
        Level {
            height,
            width,
            stride: inputs.strides[i],
            points: match &self.points {
                Some(points) => Points::<Device>::Explicit(points as &dyn DevicePtr<f32>),
                None => Points::Grid { offset: inputs.offset },
            },
            logits: Logits::Separate { cls: &self.cls, boxes: &self.boxes },
            cls_layout: layout(&inputs.cls[i]),
            box_layout: layout(&inputs.boxes[i]),
            targets: Targets {
                labels: match &self.labels {
                    Labels::I64(labels) => LabelBuffer::I64(labels),
                    Labels::I32(labels) => LabelBuffer::I32(labels),
                },
                label_weights: given(&self.label_weights),
                boxes: &self.targets,
                quality: given(&self.quality),
                box_weights: given(&self.box_weights),
                box_scores: given(&self.box_scores),
                scores: given(&self.scores),
                element_weights: given(&self.element_weights),
            },
        }
    }
}

/// What a call works in, and what keeps that if nobody else does.
fn workspace(
    py: Python<'_>,
    on: &On,
    inputs: &Inputs,
    out: &Outputs,
) -> Outcome<(HeadWorkspace, Option<Memory>)> {
    let [batch, _] = inputs.sizes();
    let anchors = (0..inputs.cls.len()).map(|level| inputs.positions(level)).sum();
    let (handle, stream) = (&on.handle, &on.stream);
    if let Some(memory) = &out.workspace {
        let memory = memory.borrowed_mut::<u8>(stream)?;
        let make = if out.resume { HeadWorkspace::resumed } else { HeadWorkspace::over };
        return Ok((make(handle, memory, batch, anchors)?, None));
    }
    let bytes = HeadWorkspace::bytes(handle.kernels(), batch, anchors)?;
    let memory = Memory::new(py, on.stream.ordinal(), bytes)?;
    let workspace = match &memory {
        Some(memory) => HeadWorkspace::over(handle, memory.borrowed(stream)?, batch, anchors)?,
        None => HeadWorkspace::new(handle, batch, anchors)?,
    };
    Ok((workspace, memory))
}

fn gradients_of<'b, T: StorageElement, U: StorageElement>(
    cls: &'b mut Borrowed<T>,
    boxes: &'b mut Borrowed<U>,
) -> Of<'b, Device, T, U> {
    Of::Separate { cls: cls as &mut dyn DevicePtrMut<T>, boxes: boxes as &mut dyn DevicePtrMut<U> }
}

pub fn run<T: StorageElement + Item, U: StorageElement + Item>(
    head: &HeadLoss,
    py: Python<'_>,
    on: &On,
    inputs: &Inputs,
    out: &Outputs,
) -> Outcome {
    let (handle, stream) = (&on.handle, &on.stream);
    let [batch, classes] = inputs.sizes();
    let read = |tensor: &Option<Tensor>| tensor.as_ref().map(|tensor| tensor.borrowed(stream)).transpose();
    let write =
        |tensor: &Option<Tensor>| tensor.as_ref().map(|tensor| tensor.borrowed_mut(stream)).transpose();
    let count = inputs.cls.len();
    let buffers = (0..count).map(|i| Buffers::<T, U>::new(inputs, i, stream)).collect::<Outcome<Vec<_>>>()?;
    let (class_weights, upstream) = (read(&inputs.class_weights)?, read(&inputs.upstream)?);
    let (normalisers, counted) = (read(&inputs.normalisers)?, write(&out.counted)?);
    let (mut losses, mut found_inf) = (write(&out.losses)?, write(&out.found_inf)?);
    let layouts = out.gradients.as_ref().map(|gradients| gradients.layouts());
    let mut of_cls = Vec::new();
    let mut of_boxes = Vec::new();
    if let Some(gradients) = &out.gradients {
        for (cls, boxes) in gradients.cls.iter().zip(&gradients.boxes) {
            of_cls.push(cls.whole_borrowed_mut::<T>(stream)?);
            of_boxes.push(boxes.whole_borrowed_mut::<U>(stream)?);
        }
    }
    let mut status = out.status.as_ref().map(|status| status_block(status, stream)).transpose()?;
    let (mut workspace, _memory) = workspace(py, on, inputs, out)?;
    enqueue(py, move || {
        let levels: Vec<_> =
            buffers.iter().enumerate().map(|(i, buffers)| buffers.level(inputs, i)).collect();
        let phase_one_alone = counted.is_some();
        if let Some(counted) = counted {
            workspace = workspace.with_normalisers(handle, counted)?;
        }
        if phase_one_alone || (normalisers.is_some() && !out.resume) {
            let mut call = head.cuda(handle, &mut workspace, batch, classes, &levels);
            if let Some(status) = &mut status {
                call = call.status(status);
            }
            call.normalisers()?;
        }
        if phase_one_alone {
            return Ok(());
        }
        let normalised = normalisers.is_some() || out.resume;
        if let Some(normalisers) = normalisers {
            workspace = workspace.with_normalisers(handle, normalisers)?;
        }
        let mut call: HeadCall<'_, '_, Device, T, U> =
            head.cuda(handle, &mut workspace, batch, classes, &levels);
        if normalised {
            call = call.normalised();
        } else if let Some(status) = &mut status {
            call = call.status(status);
        }
        if let Some(weights) = &class_weights {
            call = call.class_weights(weights);
        }
        if let Some(upstream) = &upstream {
            call = call.upstream(upstream);
        }
        if let Some(found_inf) = &mut found_inf {
            call = call.found_inf(found_inf);
        }
        if let Some(layouts) = &layouts {
            call = call.gradient_layouts(layouts);
        }
        let both = of_cls.iter_mut().zip(&mut of_boxes);
        let mut gradients: Vec<Of<'_, Device, T, U>> =
            both.map(|(cls, boxes)| gradients_of(cls, boxes)).collect();
        match (&mut losses, layouts.is_some()) {
            (Some(losses), true) => call.forward_backward(losses, &mut gradients)?,
            (Some(losses), false) => call.forward(losses)?,
            (None, _) => call.backward(&mut gradients)?,
        }
        Ok(())
    })
}
