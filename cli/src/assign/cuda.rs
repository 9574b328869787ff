//! On a GPU: tensors up, two launches.

use std::sync::Arc;

use gfocal::assign::{Anchors, AssignWorkspace, GroundTruth, LevelTargets};
use gfocal::cuda::{Device, StatusBlock};
use gfocal::cudarc::driver::CudaStream;
use gfocal::{Result, Status};

use super::{AssignedLevel, Assigner, Problem};
use crate::buffer::Buffer;
use crate::device::Cuda;

/// An [`AssignedLevel`] on the device.
pub struct DeviceLevel {
    pub labels: Buffer<i64>,
    pub boxes: Buffer<f32>,
    pub label_weights: Buffer<f32>,
    pub box_weights: Option<Buffer<f32>>,
    pub centerness: Option<Buffer<f32>>,
}

/// The ground truth on the device.
struct DeviceTruth {
    boxes: Buffer<f32>,
    labels: Buffer<i64>,
    images: Buffer<i64>,
    weights: Option<Buffer<f32>>,
    ignore: Option<(Buffer<f32>, Buffer<i64>)>,
    valid_hw: Option<Buffer<i64>>,
}

/// With its status read.
pub fn alone(cuda: &Cuda, problem: &Problem) -> Result<(Vec<AssignedLevel>, Status)> {
    let stream = cuda.stream();
    let mut status = StatusBlock::new(stream)?;
    let levels = run(cuda, problem, &mut status)?;
    let levels = levels.iter().map(|level| level.download(stream)).collect::<Result<_>>()?;
    Ok((levels, status.read(stream)?))
}

pub fn run(cuda: &Cuda, problem: &Problem, status: &mut StatusBlock) -> Result<Vec<DeviceLevel>> {
    let stream = cuda.stream();
    let boxes = problem.boxes();
    let boxes = boxes.iter().map(|boxes| Buffer::upload(stream, boxes)).collect::<Result<Vec<_>>>()?;
    let anchors: Vec<Anchors<Device>> = (problem.places.iter().zip(&boxes))
        .map(|(place, boxes)| match place.grid(problem.scale()) {
            Some(grid) => Anchors::Grid(grid),
            None => Anchors::cuda(boxes),
        })
        .collect();
    let truth = DeviceTruth::upload(stream, problem)?;
    let truth = truth.borrowed();

    let mut levels = DeviceLevel::of(stream, problem)?;
    let mut into: Vec<_> = levels.iter_mut().map(DeviceLevel::targets).collect();
    let mut workspace = AssignWorkspace::new(stream, problem.batch, problem.anchors(), problem.truth.len())?;
    let (batch, classes) = (problem.batch, problem.classes);
    match problem.assigner {
        Assigner::Atss { atss, .. } => {
            atss.cuda(&cuda.handle, &anchors, truth, batch, classes, &mut into, &mut workspace, Some(status))?
        }
        Assigner::Fcos(fcos) => {
            fcos.cuda(&cuda.handle, &anchors, truth, batch, classes, &mut into, &mut workspace, Some(status))?
        }
    }
    drop(into);
    Ok(levels)
}

impl DeviceTruth {
    fn upload(stream: &Arc<CudaStream>, problem: &Problem) -> Result<DeviceTruth> {
        let truth = problem.truth;
        let ignore = truth.ignore.as_ref().map(|ignore| {
            Ok((Buffer::upload(stream, &ignore.boxes)?, Buffer::upload(stream, &ignore.images)?))
        });
        Ok(DeviceTruth {
            boxes: Buffer::upload(stream, &truth.boxes)?,
            labels: Buffer::upload(stream, &truth.labels)?,
            images: Buffer::upload(stream, &truth.images)?,
            weights: truth.weights.as_ref().map(|weights| Buffer::upload(stream, weights)).transpose()?,
            ignore: ignore.transpose()?,
            valid_hw: truth.valid_hw.as_ref().map(|sizes| Buffer::upload(stream, sizes)).transpose()?,
        })
    }

    fn borrowed(&self) -> GroundTruth<'_, Device, i64> {
        let mut truth = GroundTruth::cuda(&self.boxes, &self.labels, &self.images);
        if let Some(weights) = &self.weights {
            truth = truth.weights(weights);
        }
        if let Some((boxes, images)) = &self.ignore {
            truth = truth.ignore(boxes, images);
        }
        if let Some(sizes) = &self.valid_hw {
            truth = truth.valid_hw(sizes);
        }
        truth
    }
}

impl DeviceLevel {
    /// Nothing assigned yet.
    fn of(stream: &Arc<CudaStream>, problem: &Problem) -> Result<Vec<DeviceLevel>> {
        let optional =
            |wanted: bool, anchors| wanted.then(|| Buffer::<f32>::zeros(stream, anchors)).transpose();
        let level = |anchors: usize| {
            Ok(DeviceLevel {
                labels: Buffer::zeros(stream, anchors)?,
                boxes: Buffer::zeros(stream, 4 * anchors)?,
                label_weights: Buffer::zeros(stream, anchors)?,
                box_weights: optional(problem.truth.weights.is_some(), anchors)?,
                centerness: optional(matches!(problem.assigner, Assigner::Fcos(_)), anchors)?,
            })
        };
        problem.places.iter().map(|place| level(problem.batch * place.positions())).collect()
    }

    pub fn download(&self, stream: &Arc<CudaStream>) -> Result<AssignedLevel> {
        let optional =
            |buffer: &Option<Buffer<f32>>| buffer.as_ref().map(|buffer| buffer.download(stream)).transpose();
        Ok(AssignedLevel {
            labels: self.labels.download(stream)?,
            boxes: self.boxes.download(stream)?,
            label_weights: self.label_weights.download(stream)?,
            box_weights: optional(&self.box_weights)?,
            centerness: optional(&self.centerness)?,
        })
    }

    fn targets(&mut self) -> LevelTargets<'_, Device, i64> {
        let mut targets =
            LevelTargets::cuda(&mut self.labels, &mut self.boxes).label_weights(&mut self.label_weights);
        if let Some(weights) = &mut self.box_weights {
            targets = targets.box_weights(weights);
        }
        if let Some(centerness) = &mut self.centerness {
            targets = targets.centerness(centerness);
        }
        targets
    }
}
