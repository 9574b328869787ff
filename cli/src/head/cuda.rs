//! On a GPU: tensors up, two launches for the targets if they are assigned and two for the losses,
//! results down.

use gfocal::Result;
use gfocal::assign::{self, Anchors, AssignWorkspace, Atss, GroundTruth};
use gfocal::cuda::{Device, LabelBuffer, StatusBlock, check};
use gfocal::cudarc::driver::{CudaView, DevicePtr};
use gfocal::head::{Gradients, HeadWorkspace, LOSSES, Level, Logits, Normalisers, Points, Targets};

use super::Outcome;
use super::scene::{LevelTargets, Scene, SceneLevel, Truth};
use crate::buffer::{Buffer, Stored};
use crate::device::Cuda;
use crate::floats::Float;
use crate::inputs::Labels;

/// The targets of a level on the device.
struct DeviceTargets {
    labels: DeviceLabels,
    boxes: Buffer<f32>,
    label_weights: Option<Buffer<f32>>,
    quality: Option<Buffer<f32>>,
}

enum DeviceLabels {
    I64(Buffer<i64>),
    I32(Buffer<i32>),
}

/// `_` tells the type of the logits.
pub fn run<T: Stored>(_: &[T], cuda: &Cuda, scene: &Scene, grad_scale: f64) -> Result<Outcome> {
    let stream = cuda.stream();
    let targets = match &scene.truth {
        Some(truth) => assign(cuda, scene, truth)?,
        None => {
            let given = scene.levels.iter().filter_map(|level| level.targets.as_ref());
            given.map(|targets| DeviceTargets::upload(cuda, targets)).collect::<Result<_>>()?
        }
    };
    let points =
        scene.points().iter().map(|points| Buffer::upload(stream, points)).collect::<Result<Vec<_>>>()?;
    let mut logits = Vec::new();
    let mut gradients = Vec::new();
    for level in &scene.levels {
        let (cls, boxes) = (T::of(&level.cls.numbers), T::of(&level.boxes.numbers));
        logits.push([Buffer::upload(stream, cls)?, Buffer::upload(stream, boxes)?]);
        gradients.push([Buffer::<T>::zeros(stream, cls.len())?, Buffer::<T>::zeros(stream, boxes.len())?]);
    }
    let anchors = scene.levels.iter().map(|level| level.positions()).sum();
    let mut workspace = HeadWorkspace::new(&cuda.handle, scene.batch, anchors)?;
    let mut losses = Buffer::<f32>::zeros(stream, LOSSES * scene.levels.len())?;
    let mut status = StatusBlock::new(stream)?;

    // Views outlive the levels that borrow them.
    let points: Vec<_> = points.iter().map(Buffer::view).collect();
    let logits: Vec<_> = logits.iter().map(|logits| logits.each_ref().map(Buffer::view)).collect();
    let views: Vec<_> = targets.iter().map(DeviceTargets::views).collect();
    let level = |(i, level): (usize, &SceneLevel)| -> Level<Device, T> {
        Level {
            height: level.height,
            width: level.width,
            stride: level.stride,
            points: match level.offset() {
                Some(offset) => Points::Grid { offset },
                None => Points::<Device>::Explicit(&points[i]),
            },
            logits: Logits::Separate { cls: &logits[i][0], boxes: &logits[i][1] },
            cls_layout: level.cls.layout,
            box_layout: level.boxes.layout,
            targets: views[i].targets(),
        }
    };
    let levels: Vec<_> = scene.levels.iter().enumerate().map(level).collect();
    let mut written: Vec<_> =
        gradients.iter_mut().map(|gradients| gradients.each_mut().map(Buffer::view_mut)).collect();
    let mut into: Vec<_> = (written.iter_mut())
        .map(|[cls, boxes]| -> Gradients<Device, T> { Gradients::Separate { cls, boxes } })
        .collect();
    scene
        .head
        .cuda(&cuda.handle, &mut workspace, scene.batch, scene.classes, &levels)
        .grad_scale(grad_scale)
        .status(&mut status)
        .forward_backward(&mut losses.view_mut(), &mut into)?;
    drop(into);
    drop(written);

    let download = |[cls, boxes]: &[Buffer<T>; 2]| {
        Ok([Float::floats(cls.download(stream)?), Float::floats(boxes.download(stream)?)])
    };
    let normalisers = check("cuMemcpyDtoHAsync", stream.clone_dtoh(workspace.normalisers()))?;
    Ok(Outcome {
        losses: Float::floats(losses.download(stream)?),
        gradients: gradients.iter().map(download).collect::<Result<_>>()?,
        normalisers: Normalisers { positives: normalisers[0].into(), box_weights: normalisers[1].into() },
        status: status.read(stream)?,
        targets: targets.iter().map(|targets| targets.download(cuda)).collect::<Result<_>>()?,
    })
}

/// Assigns targets on the device.
fn assign(cuda: &Cuda, scene: &Scene, truth: &Truth) -> Result<Vec<DeviceTargets>> {
    let stream = cuda.stream();
    let boxes = scene.anchors();
    let boxes = boxes.iter().map(|boxes| Buffer::upload(stream, boxes)).collect::<Result<Vec<_>>>()?;
    let boxes: Vec<_> = boxes.iter().map(Buffer::view).collect();
    let anchors: Vec<Anchors<Device>> = (scene.levels.iter().zip(&boxes))
        .map(|(level, boxes)| match scene.grid(level) {
            Some(grid) => Anchors::Grid(grid),
            None => Anchors::cuda(boxes),
        })
        .collect();
    let mut targets = Vec::new();
    for level in &scene.levels {
        let anchors = scene.batch * level.positions();
        targets.push((Buffer::<i64>::zeros(stream, anchors)?, Buffer::<f32>::zeros(stream, 4 * anchors)?));
    }
    let all = scene.levels.iter().map(|level| level.positions()).sum();
    let mut workspace = AssignWorkspace::new(stream, scene.batch, all, truth.labels.len())?;
    let corners = Buffer::upload(stream, &truth.boxes)?;
    let [labels, images] = [Buffer::upload(stream, &truth.labels)?, Buffer::upload(stream, &truth.images)?];
    let (corners, labels, images) = (corners.view(), labels.view(), images.view());
    let truth = GroundTruth::cuda(&corners, &labels, &images);
    let mut views: Vec<_> =
        targets.iter_mut().map(|(labels, boxes)| (labels.view_mut(), boxes.view_mut())).collect();
    let mut into: Vec<_> =
        views.iter_mut().map(|(labels, boxes)| assign::LevelTargets::cuda(labels, boxes)).collect();
    let atss = Atss::new(scene.topk)?;
    atss.cuda(&cuda.handle, &anchors, truth, scene.batch, scene.classes, &mut into, &mut workspace, None)?;
    drop(into);
    drop(views);
    let assigned = |(labels, boxes)| DeviceTargets {
        labels: DeviceLabels::I64(labels),
        boxes,
        label_weights: None,
        quality: None,
    };
    Ok(targets.into_iter().map(assigned).collect())
}

impl DeviceTargets {
    fn upload(cuda: &Cuda, targets: &LevelTargets) -> Result<DeviceTargets> {
        let stream = cuda.stream();
        let optional = |numbers: &Option<Vec<f32>>| {
            numbers.as_ref().map(|numbers| Buffer::upload(stream, numbers)).transpose()
        };
        Ok(DeviceTargets {
            labels: match &targets.labels {
                Labels::I64(labels) => DeviceLabels::I64(Buffer::upload(stream, labels)?),
                Labels::I32(labels) => DeviceLabels::I32(Buffer::upload(stream, labels)?),
            },
            boxes: Buffer::upload(stream, &targets.boxes)?,
            label_weights: optional(&targets.label_weights)?,
            quality: optional(&targets.quality)?,
        })
    }

    /// What the reports and the output need.
    fn download(&self, cuda: &Cuda) -> Result<LevelTargets> {
        let stream = cuda.stream();
        Ok(LevelTargets {
            labels: match &self.labels {
                DeviceLabels::I64(labels) => Labels::I64(labels.download(stream)?),
                DeviceLabels::I32(labels) => Labels::I32(labels.download(stream)?),
            },
            boxes: self.boxes.download(stream)?,
            label_weights: None,
            quality: None,
        })
    }

    fn views(&self) -> Views<'_> {
        Views {
            labels: match &self.labels {
                DeviceLabels::I64(labels) => LabelViews::I64(labels.view()),
                DeviceLabels::I32(labels) => LabelViews::I32(labels.view()),
            },
            boxes: self.boxes.view(),
            label_weights: self.label_weights.as_ref().map(Buffer::view),
            quality: self.quality.as_ref().map(Buffer::view),
        }
    }
}

/// Views of [`DeviceTargets`], for the library to borrow.
struct Views<'a> {
    labels: LabelViews<'a>,
    boxes: CudaView<'a, f32>,
    label_weights: Option<CudaView<'a, f32>>,
    quality: Option<CudaView<'a, f32>>,
}

enum LabelViews<'a> {
    I64(CudaView<'a, i64>),
    I32(CudaView<'a, i32>),
}

impl Views<'_> {
    fn targets(&self) -> Targets<'_, Device> {
        fn borrowed<'a>(view: &'a Option<CudaView<'_, f32>>) -> Option<&'a dyn DevicePtr<f32>> {
            view.as_ref().map(|view| view as &dyn DevicePtr<f32>)
        }
        Targets {
            label_weights: borrowed(&self.label_weights),
            quality: borrowed(&self.quality),
            ..Targets::<Device>::new(
                match &self.labels {
                    LabelViews::I64(labels) => LabelBuffer::I64(labels),
                    LabelViews::I32(labels) => LabelBuffer::I32(labels),
                },
                &self.boxes,
            )
        }
    }
}
