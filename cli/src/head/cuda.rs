//! On a GPU: tensors up, two launches for the targets if they are assigned and two for the losses,
//! results down.

use std::sync::Arc;

use gfocal::Result;
use gfocal::cuda::{Device, LabelBuffer, StatusBlock, check};
use gfocal::cudarc::driver::{CudaStream, DevicePtr};
use gfocal::head::{Gradients, HeadWorkspace, LOSSES, Level, Logits, Normalisers, Targets};

use super::Outcome;
use super::scene::{Pair, Scene, Tensor};
use super::targets::{LevelTargets, TargetOptions};
use crate::assign::{self, DeviceLevel};
use crate::buffer::{Buffer, Stored};
use crate::device::Cuda;
use crate::floats::{Float, Floats};
use crate::inputs::Labels;

/// The targets of a level on the device.
struct DeviceTargets {
    labels: DeviceLabels,
    boxes: Buffer<f32>,
    options: TargetOptions<Buffer<f32>>,
    /// Where they were assigned: what else came out.
    centerness: Option<Buffer<f32>>,
}

enum DeviceLabels {
    I64(Buffer<i64>),
    I32(Buffer<i32>),
}

/// Buffers of a level, for class and box logits or for both.
enum Buffers<T, U> {
    Separate(Buffer<T>, Buffer<U>),
    Joint(Buffer<T>),
}

/// `_` tells the types of class and box logits.
pub fn run<T: Stored, U: Stored>(
    _: (&[T], &[U]),
    cuda: &Cuda,
    scene: &Scene,
    grad_scale: f64,
) -> Result<Outcome> {
    let stream = cuda.stream();
    let mut status = StatusBlock::new(stream)?;
    let targets = device_targets(cuda, scene, &mut status)?;
    let class_weights =
        scene.class_weights.as_deref().map(|weights| Buffer::beside(stream, weights)).transpose()?;
    let (mut points, mut logits, mut gradients) = (Vec::new(), Vec::new(), Vec::new());
    for (place, level) in scene.places.iter().zip(&scene.levels) {
        points.push(Buffer::beside(stream, &place.points())?);
        logits.push(Buffers::<T, U>::upload(stream, &level.logits)?);
        gradients.push(Buffers::<T, U>::zeros(stream, &level.logits)?);
    }
    let anchors = scene.places.iter().map(|place| place.positions()).sum();
    let mut workspace = HeadWorkspace::new(&cuda.handle, scene.batch, anchors)?;
    let mut losses = Buffer::<f32>::zeros(stream, LOSSES * scene.levels.len())?;

    let mut levels: Vec<Level<Device, T, U>> = Vec::new();
    for (i, (place, level)) in scene.places.iter().zip(&scene.levels).enumerate() {
        levels.push(Level {
            height: place.height,
            width: place.width,
            stride: place.stride,
            points: place.points_in::<Device, f32>(&points[i]),
            logits: match &logits[i] {
                Buffers::Separate(cls, boxes) => Logits::Separate { cls, boxes },
                Buffers::Joint(both) => Logits::<Device, T, U>::Joint(both),
            },
            cls_layout: level.cls_layout,
            box_layout: level.box_layout,
            targets: targets[i].borrowed(),
        });
    }
    let mut into: Vec<_> = gradients.iter_mut().map(Buffers::borrowed).collect();
    let mut call = scene
        .head
        .cuda(&cuda.handle, &mut workspace, scene.batch, scene.classes, &levels)
        .grad_scale(grad_scale)
        .status(&mut status);
    if let Some(weights) = &class_weights {
        call = call.class_weights(weights);
    }
    call.forward_backward(&mut losses, &mut into)?;
    drop(into);

    let normalisers = check("cuMemcpyDtoHAsync", stream.clone_dtoh(workspace.normalisers()))?;
    let status = status.read(stream)?;
    Ok(Outcome {
        losses: Float::floats(losses.download(stream)?),
        gradients: gradients.iter().map(|gradients| gradients.download(stream)).collect::<Result<_>>()?,
        normalisers: Normalisers { positives: normalisers[0].into(), box_weights: normalisers[1].into() },
        status,
        targets: host_targets(stream, &targets)?,
    })
}

fn download(stream: &Arc<CudaStream>, buffer: &Buffer<f32>) -> Result<Vec<f64>> {
    Ok(buffer.download(stream)?.into_iter().map(f64::from).collect())
}

/// What the levels are to become, as the file says or assigned.
fn device_targets(cuda: &Cuda, scene: &Scene, status: &mut StatusBlock) -> Result<Vec<DeviceTargets>> {
    let (stream, levels) = (cuda.stream(), scene.levels.iter());
    match scene.problem() {
        Some(problem) => levels
            .zip(assign::on_cuda(cuda, &problem, status)?)
            .map(|(level, assigned)| DeviceTargets::assigned(stream, &level.targets, assigned))
            .collect(),
        None => levels.map(|level| DeviceTargets::upload(stream, &level.targets)).collect(),
    }
}

fn host_targets(stream: &Arc<CudaStream>, targets: &[DeviceTargets]) -> Result<Vec<LevelTargets>> {
    targets.iter().map(|targets| targets.download(stream)).collect()
}

impl<T: Stored, U: Stored> Buffers<T, U> {
    fn upload(stream: &Arc<CudaStream>, logits: &Pair<Tensor>) -> Result<Self> {
        Ok(match logits {
            Pair::Separate([cls, boxes]) => Buffers::Separate(
                Buffer::upload(stream, T::of(&cls.numbers))?,
                Buffer::upload(stream, U::of(&boxes.numbers))?,
            ),
            Pair::Joint(both) => Buffers::Joint(Buffer::upload(stream, T::of(&both.numbers))?),
        })
    }

    fn zeros(stream: &Arc<CudaStream>, logits: &Pair<Tensor>) -> Result<Self> {
        Ok(match logits {
            Pair::Separate([cls, boxes]) => Buffers::Separate(
                Buffer::zeros(stream, T::of(&cls.numbers).len())?,
                Buffer::zeros(stream, U::of(&boxes.numbers).len())?,
            ),
            Pair::Joint(both) => Buffers::Joint(Buffer::zeros(stream, T::of(&both.numbers).len())?),
        })
    }

    fn download(&self, stream: &Arc<CudaStream>) -> Result<Pair<Floats>> {
        Ok(match self {
            Buffers::Separate(cls, boxes) => {
                Pair::Separate([Float::floats(cls.download(stream)?), Float::floats(boxes.download(stream)?)])
            }
            Buffers::Joint(both) => Pair::Joint(Float::floats(both.download(stream)?)),
        })
    }

    fn borrowed(&mut self) -> Gradients<'_, Device, T, U> {
        match self {
            Buffers::Separate(cls, boxes) => Gradients::Separate { cls, boxes },
            Buffers::Joint(both) => Gradients::<Device, T, U>::Joint(both),
        }
    }
}

impl DeviceTargets {
    fn upload(stream: &Arc<CudaStream>, targets: &LevelTargets) -> Result<DeviceTargets> {
        Ok(DeviceTargets {
            labels: match &targets.labels {
                Labels::I64(labels) => DeviceLabels::I64(Buffer::upload(stream, labels)?),
                Labels::I32(labels) => DeviceLabels::I32(Buffer::upload(stream, labels)?),
            },
            boxes: Buffer::beside(stream, &targets.boxes)?,
            options: targets.options.try_map(|numbers| Buffer::beside(stream, numbers))?,
            centerness: None,
        })
    }

    /// What was assigned, where it is, unless the file has weights to multiply.
    fn assigned(stream: &Arc<CudaStream>, given: &LevelTargets, level: DeviceLevel) -> Result<DeviceTargets> {
        if given.weighs() {
            let targets = DeviceTargets::upload(stream, &given.assigned(level.download(stream)?))?;
            return Ok(DeviceTargets { centerness: level.centerness, ..targets });
        }
        let options = given.options.try_map(|numbers| Buffer::beside(stream, numbers))?;
        Ok(DeviceTargets {
            labels: DeviceLabels::I64(level.labels),
            boxes: level.boxes,
            options: TargetOptions {
                label_weights: Some(level.label_weights),
                box_weights: level.box_weights,
                ..options
            },
            centerness: level.centerness,
        })
    }

    /// What the reports and the output need.
    fn download(&self, stream: &Arc<CudaStream>) -> Result<LevelTargets> {
        Ok(LevelTargets {
            labels: match &self.labels {
                DeviceLabels::I64(labels) => Labels::I64(labels.download(stream)?),
                DeviceLabels::I32(labels) => Labels::I32(labels.download(stream)?),
            },
            boxes: download(stream, &self.boxes)?,
            options: self.options.try_map(|numbers| download(stream, numbers))?,
            centerness: self.centerness.as_ref().map(|numbers| numbers.download(stream)).transpose()?,
        })
    }

    fn borrowed(&self) -> Targets<'_, Device> {
        let labels = match &self.labels {
            DeviceLabels::I64(labels) => LabelBuffer::I64(labels),
            DeviceLabels::I32(labels) => LabelBuffer::I32(labels),
        };
        let options = self.options.map(|buffer| buffer as &dyn DevicePtr<f32>);
        let TargetOptions { label_weights, quality, box_weights, box_scores, scores, element_weights } =
            options;
        Targets {
            label_weights,
            quality,
            box_weights,
            box_scores,
            scores,
            element_weights,
            ..Targets::<Device>::new(labels, &self.boxes)
        }
    }
}
