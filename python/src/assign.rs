//! Assignment of targets: ATSS, and FCOS' rule.

use gfocal::assign::{AnchorGrid, AssignWorkspace, Atss, Fcos, GroundTruth, LevelTargets};
use gfocal::cuda::{Borrowed, Device as Cuda};
use gfocal::{Host, Label};
use pyo3::prelude::*;

use crate::cuda::{Memory, On};
use crate::error::{Outcome, shape};
use crate::pool::{enqueue, run};
use crate::qfl::background;
use crate::status::{status_block, write_status};
use crate::tensor::{DType, Device, Item, Needs, Tensor, check_overlaps};

enum Rule {
    Atss(Atss),
    Fcos(Fcos),
}

/// A rule with its options, which are checked when it is made, and where its anchors are.
#[pyclass(frozen, module = "gfocal._native")]
pub struct Assigner {
    rule: Rule,
    /// Of square anchors, in strides.
    scale: f32,
    /// Of their centres, in strides.
    offset: f32,
}

/// What a call reads.
struct Inputs {
    boxes: Tensor,
    labels: Tensor,
    image: Tensor,
    weights: Option<Tensor>,
    /// Boxes, and the image of each.
    ignore: Option<(Tensor, Tensor)>,
    /// Heights and widths.
    image_sizes: Option<Tensor>,
    grids: Vec<AnchorGrid>,
    images: usize,
    classes: usize,
}

/// Where results go: those of all levels, one after the other.
struct Outputs {
    labels: Tensor,
    boxes: Tensor,
    label_weights: Option<Tensor>,
    box_weights: Option<Tensor>,
    centerness: Option<Tensor>,
    status: Option<Tensor>,
}

impl Inputs {
    fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        let ignore = self.ignore.iter().flat_map(|(boxes, image)| [boxes, image]);
        let others = [&self.weights, &self.image_sizes].into_iter().flatten();
        [&self.boxes, &self.labels, &self.image].into_iter().chain(ignore).chain(others)
    }

    /// How many targets each level has, in all images.
    fn targets(&self) -> Vec<usize> {
        self.grids.iter().map(|grid| self.images.saturating_mul(grid.anchors())).collect()
    }

    fn check(&self, out: &Outputs) -> Outcome {
        let [count, 4] = *self.boxes.shape() else {
            return Err(shape(format!("gt_boxes has shape {:?}, it must be [N, 4]", self.boxes.shape())));
        };
        let because = Needs("gt_boxes", self.boxes.shape());
        self.boxes.expect_dtype(DType::F32, &"an assignment")?;
        for tensor in [Some(&self.labels), Some(&self.image), self.weights.as_ref()].into_iter().flatten() {
            tensor.expect(&[count], &because)?;
        }
        if let Some((boxes, image)) = &self.ignore {
            let count = boxes.shape().first().copied().unwrap_or(0);
            boxes.expect(&[count, 4], &"a list of boxes")?;
            image.expect(&[count], &format_args!("ignore_boxes [{count}, 4]"))?;
        }
        if let Some(sizes) = &self.image_sizes {
            sizes.expect(&[self.images, 2], &format_args!("a batch of {}", self.images))?;
        }
        let all = self.targets().into_iter().fold(0, usize::saturating_add);
        let because = format!("the levels of {} images", self.images);
        out.labels.expect(&[all], &because)?;
        out.boxes.expect(&[all, 4], &because)?;
        for tensor in [&out.label_weights, &out.box_weights, &out.centerness].into_iter().flatten() {
            tensor.expect(&[all], &because)?;
        }
        let of_labels = self.labels.dtype;
        let others =
            [Some(&self.image), self.image_sizes.as_ref(), self.ignore.as_ref().map(|(_, image)| image)];
        for tensor in others.into_iter().flatten().chain([&out.labels]) {
            tensor.expect_dtype(of_labels, &"the type of gt_labels")?;
        }
        let written: Vec<_> = out.tensors().collect();
        for tensor in self.tensors().chain(written.iter().copied()) {
            tensor.expect_device(self.boxes.device, "gt_boxes")?;
        }
        check_overlaps(written, self.tensors())
    }
}

impl Outputs {
    fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        let others = [&self.label_weights, &self.box_weights, &self.centerness, &self.status];
        [&self.labels, &self.boxes].into_iter().chain(others.into_iter().flatten())
    }
}

/// The parts of a slice, each of so many elements.
fn parts<'s, T>(mut slice: &'s mut [T], counts: &[usize], each: usize) -> Vec<&'s mut [T]> {
    let part = |&count: &usize| {
        let (part, rest) = std::mem::take(&mut slice).split_at_mut(count * each);
        slice = rest;
        part
    };
    counts.iter().map(part).collect()
}

/// The same of an optional tensor; empty without it.
fn numbers<'t>(
    tensor: &'t mut Option<Tensor>,
    counts: &[usize],
) -> Outcome<std::vec::IntoIter<&'t mut [f32]>> {
    let slice = tensor.as_mut().map(Tensor::slice_mut).transpose()?;
    Ok(slice.map_or_else(Vec::new, |slice| parts(slice, counts, 1)).into_iter())
}

impl Assigner {
    fn cpu<L: Label + Item>(&self, py: Python<'_>, inputs: &Inputs, out: &mut Outputs) -> Outcome {
        let Outputs { labels, boxes, label_weights, box_weights, centerness, status } = out;
        // What it takes its time for are boxes, of which a few are enough.
        let counted = run(py, usize::MAX, move || {
            let counts = inputs.targets();
            let mut gt = GroundTruth::<Host, L>::cpu(
                inputs.boxes.slice()?,
                inputs.labels.slice()?,
                inputs.image.slice()?,
            );
            if let Some(weights) = &inputs.weights {
                gt = gt.weights(weights.slice()?);
            }
            if let Some((boxes, image)) = &inputs.ignore {
                gt = gt.ignore(boxes.slice()?, image.slice()?);
            }
            if let Some(sizes) = &inputs.image_sizes {
                gt = gt.valid_hw(sizes.slice()?);
            }
            let mut label_weights = numbers(label_weights, &counts)?;
            let mut box_weights = numbers(box_weights, &counts)?;
            let mut centerness = numbers(centerness, &counts)?;
            let labels = parts(labels.slice_mut::<L>()?, &counts, 1);
            let boxes = parts(boxes.slice_mut::<f32>()?, &counts, 4);
            let mut targets = Vec::with_capacity(counts.len());
            for (labels, boxes) in labels.into_iter().zip(boxes) {
                let mut to = LevelTargets::<Host, L>::cpu(labels, boxes);
                if let Some(weights) = label_weights.next() {
                    to = to.label_weights(weights);
                }
                if let Some(weights) = box_weights.next() {
                    to = to.box_weights(weights);
                }
                if let Some(centerness) = centerness.next() {
                    to = to.centerness(centerness);
                }
                targets.push(to);
            }
            let anchors: Vec<_> = inputs.grids.iter().map(|&grid| grid.into()).collect();
            let (images, classes) = (inputs.images, inputs.classes);
            Ok(match &self.rule {
                Rule::Atss(atss) => atss.cpu(&anchors, gt, images, classes, &mut targets)?,
                Rule::Fcos(fcos) => fcos.cpu(&anchors, gt, images, classes, &mut targets)?,
            })
        })?;
        status.as_mut().map_or(Ok(()), |status| write_status(&counted, status))
    }

    fn cuda<L: Label + Item>(&self, py: Python<'_>, on: &On, inputs: &Inputs, out: &Outputs) -> Outcome {
        let (handle, stream) = (&on.handle, &on.stream);
        let counts = inputs.targets();
        let of_boxes: Vec<_> = counts.iter().map(|count| 4 * count).collect();
        let (boxes, labels) = (inputs.boxes.borrowed(stream)?, inputs.labels.borrowed::<L>(stream)?);
        let image = inputs.image.borrowed::<L>(stream)?;
        let weights = inputs.weights.as_ref().map(|weights| weights.borrowed(stream)).transpose()?;
        let sizes = inputs.image_sizes.as_ref().map(|sizes| sizes.borrowed::<L>(stream)).transpose()?;
        let ignore = inputs.ignore.as_ref().map(|(boxes, image)| {
            Outcome::Ok((boxes.borrowed::<f32>(stream)?, image.borrowed::<L>(stream)?))
        });
        let ignore = ignore.transpose()?;
        let of_levels = |tensor: &Option<Tensor>| -> Outcome<Vec<Borrowed<f32>>> {
            tensor.as_ref().map_or(Ok(Vec::new()), |tensor| tensor.borrowed_parts(stream, &counts))
        };
        let mut to_labels = out.labels.borrowed_parts::<L>(stream, &counts)?;
        let mut to_boxes = out.boxes.borrowed_parts::<f32>(stream, &of_boxes)?;
        let mut label_weights = of_levels(&out.label_weights)?;
        let mut box_weights = of_levels(&out.box_weights)?;
        let mut centerness = of_levels(&out.centerness)?;
        let mut status = out.status.as_ref().map(|status| status_block(status, stream)).transpose()?;

        let (images, classes, count) = (inputs.images, inputs.classes, inputs.labels.len());
        // FCOS claims no anchors.
        let anchors = match self.rule {
            Rule::Atss(_) => inputs.grids.iter().map(AnchorGrid::anchors).fold(0, usize::saturating_add),
            Rule::Fcos(_) => 0,
        };
        let bytes = AssignWorkspace::bytes(images, anchors, count)?;
        let memory = Memory::new(py, stream.ordinal(), bytes)?;
        let memory_of_call = memory.as_ref().map(|memory| memory.borrowed(stream)).transpose()?;
        enqueue(py, move || {
            let mut workspace = match memory_of_call {
                Some(memory) => AssignWorkspace::over(stream.of_driver(), memory, images, anchors, count)?,
                None => AssignWorkspace::new(stream.of_driver(), images, anchors, count)?,
            };
            let mut gt = GroundTruth::<Cuda, L>::cuda(&boxes, &labels, &image);
            if let Some(weights) = &weights {
                gt = gt.weights(weights);
            }
            if let Some((boxes, image)) = &ignore {
                gt = gt.ignore(boxes, image);
            }
            if let Some(sizes) = &sizes {
                gt = gt.valid_hw(sizes);
            }
            let (mut label_weights, mut box_weights) = (label_weights.iter_mut(), box_weights.iter_mut());
            let mut centerness = centerness.iter_mut();
            let mut targets = Vec::with_capacity(counts.len());
            for (labels, boxes) in to_labels.iter_mut().zip(&mut to_boxes) {
                let mut to = LevelTargets::<Cuda, L>::cuda(labels, boxes);
                if let Some(weights) = label_weights.next() {
                    to = to.label_weights(weights);
                }
                if let Some(weights) = box_weights.next() {
                    to = to.box_weights(weights);
                }
                if let Some(centerness) = centerness.next() {
                    to = to.centerness(centerness);
                }
                targets.push(to);
            }
            let anchors: Vec<_> = inputs.grids.iter().map(|&grid| grid.into()).collect();
            let (to, memory, status) = (&mut targets[..], &mut workspace, status.as_mut());
            match &self.rule {
                Rule::Atss(atss) => atss.cuda(handle, &anchors, gt, images, classes, to, memory, status)?,
                Rule::Fcos(fcos) => fcos.cuda(handle, &anchors, gt, images, classes, to, memory, status)?,
            }
            Ok(())
        })?;
        drop(memory);
        Ok(())
    }
}

#[pymethods]
impl Assigner {
    #[staticmethod]
    fn atss(
        topk: usize,
        scale: f32,
        offset: f32,
        ignore_iof: f32,
        fallback: usize,
        background: &str,
    ) -> Outcome<Assigner> {
        let atss = Atss::new(topk)?.with_ignore_iof(ignore_iof)?.with_fallback(fallback)?;
        let rule = Rule::Atss(atss.with_background(self::background(background)?));
        Ok(Assigner { rule, scale, offset })
    }

    #[staticmethod]
    fn fcos(
        regress_ranges: Vec<[f32; 2]>,
        center_sampling: Option<f32>,
        offset: f32,
        ignore_iof: f32,
        fallback: usize,
        background: &str,
    ) -> Outcome<Assigner> {
        let mut fcos = Fcos::new(&regress_ranges)?.with_ignore_iof(ignore_iof)?.with_fallback(fallback)?;
        if let Some(radius) = center_sampling {
            fcos = fcos.with_center_sampling(radius)?;
        }
        let rule = Rule::Fcos(fcos.with_background(self::background(background)?));
        Ok(Assigner { rule, scale: 1.0, offset })
    }

    /// Targets of a level are those of its anchors in all images, image after image.
    #[pyo3(signature = (
        gt_boxes, gt_labels, gt_image, sizes, strides, images, classes, *, weights=None, ignore_boxes=None,
        ignore_image=None, image_sizes=None, labels, boxes, label_weights=None, box_weights=None, centerness=None,
        status=None, stream=None,
    ))]
    #[allow(clippy::too_many_arguments, reason = "Python's, which have names")]
    fn run(
        &self,
        py: Python<'_>,
        gt_boxes: &Bound<'_, PyAny>,
        gt_labels: &Bound<'_, PyAny>,
        gt_image: &Bound<'_, PyAny>,
        sizes: Vec<[usize; 2]>,
        strides: Vec<f32>,
        images: usize,
        classes: usize,
        weights: Option<&Bound<'_, PyAny>>,
        ignore_boxes: Option<&Bound<'_, PyAny>>,
        ignore_image: Option<&Bound<'_, PyAny>>,
        image_sizes: Option<&Bound<'_, PyAny>>,
        labels: &Bound<'_, PyAny>,
        boxes: &Bound<'_, PyAny>,
        label_weights: Option<&Bound<'_, PyAny>>,
        box_weights: Option<&Bound<'_, PyAny>>,
        centerness: Option<&Bound<'_, PyAny>>,
        status: Option<&Bound<'_, PyAny>>,
        stream: Option<usize>,
    ) -> Outcome {
        if sizes.len() != strides.len() {
            let (sizes, strides) = (sizes.len(), strides.len());
            return Err(shape(format!("sizes has {sizes} levels, strides {strides}")));
        }
        let grid = |(&[height, width], &stride): (&[usize; 2], &f32)| {
            AnchorGrid::new(height, width, stride).with_scale(self.scale).with_offset(self.offset)
        };
        let of = |name, object: &Bound<'_, PyAny>| Tensor::on_stream(name, object, stream);
        let optional =
            |name, object: Option<&Bound<'_, PyAny>>| object.map(|object| of(name, object)).transpose();
        let ignore = match (ignore_boxes, ignore_image) {
            (Some(boxes), Some(image)) => Some((of("ignore_boxes", boxes)?, of("ignore_image", image)?)),
            (None, None) => None,
            _ => return Err(shape("ignore_boxes and ignore_image are given both, or neither".to_owned())),
        };
        let inputs = Inputs {
            boxes: of("gt_boxes", gt_boxes)?,
            labels: of("gt_labels", gt_labels)?,
            image: of("gt_image", gt_image)?,
            weights: optional("weights", weights)?,
            ignore,
            image_sizes: optional("image_sizes", image_sizes)?,
            grids: sizes.iter().zip(&strides).map(grid).collect(),
            images,
            classes,
        };
        let mut out = Outputs {
            labels: of("labels", labels)?,
            boxes: of("boxes", boxes)?,
            label_weights: optional("label_weights", label_weights)?,
            box_weights: optional("box_weights", box_weights)?,
            centerness: optional("centerness", centerness)?,
            status: optional("status", status)?,
        };
        inputs.check(&out)?;
        let of_i32 = inputs.labels.dtype == DType::I32;
        match inputs.boxes.device {
            Device::Cpu if of_i32 => self.cpu::<i32>(py, &inputs, &mut out),
            Device::Cpu => self.cpu::<i64>(py, &inputs, &mut out),
            Device::Cuda(_) => {
                let on = crate::cuda::on_of(py, &inputs.boxes, stream)?;
                if of_i32 {
                    self.cuda::<i32>(py, &on, &inputs, &out)
                } else {
                    self.cuda::<i64>(py, &on, &inputs, &out)
                }
            }
        }
    }
}
