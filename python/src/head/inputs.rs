//! What a call of the head loss reads, level by level.

use gfocal::HeadLoss;
use gfocal::head::{Layout, Layouts, MAX_LEVELS};
use pyo3::prelude::*;

use crate::error::{Outcome, shape, type_error};
use crate::tensor::{DType, Device, Needs, Tensor};

/// Tensors of an argument that is a list; `names` are those of its elements.
pub fn of_levels(
    names: [&'static str; MAX_LEVELS],
    objects: Vec<Bound<'_, PyAny>>,
    stream: Option<usize>,
) -> Outcome<Vec<Tensor>> {
    if objects.len() > MAX_LEVELS {
        let list = names[0].trim_end_matches("[0]");
        let actual = objects.len();
        return Err(shape(format!("{list} has {actual} levels, there can be {MAX_LEVELS}")));
    }
    names.into_iter().zip(&objects).map(|(name, object)| Tensor::on_stream(name, object, stream)).collect()
}

/// The tensors of a list, named as its elements.
macro_rules! each {
    ($name:literal, $objects:expr, $stream:expr) => {
        $crate::head::inputs::of_levels(
            [
                concat!($name, "[0]"),
                concat!($name, "[1]"),
                concat!($name, "[2]"),
                concat!($name, "[3]"),
                concat!($name, "[4]"),
                concat!($name, "[5]"),
                concat!($name, "[6]"),
                concat!($name, "[7]"),
            ],
            $objects,
            $stream,
        )
    };
}
pub(crate) use each;

/// All but the first four are optional: empty, or as many as there are levels.
pub struct Inputs {
    pub cls: Vec<Tensor>,
    pub boxes: Vec<Tensor>,
    pub labels: Vec<Tensor>,
    pub targets: Vec<Tensor>,
    pub label_weights: Vec<Tensor>,
    pub quality: Vec<Tensor>,
    pub box_weights: Vec<Tensor>,
    pub box_scores: Vec<Tensor>,
    pub scores: Vec<Tensor>,
    pub element_weights: Vec<Tensor>,
    pub points: Vec<Tensor>,
    pub class_weights: Option<Tensor>,
    pub normalisers: Option<Tensor>,
    pub upstream: Option<Tensor>,
    pub strides: Vec<f64>,
    pub offset: f64,
}

/// Batch, channels, height and width of logits; `[B, C, A]` is one row.
pub fn axes(logits: &Tensor) -> Outcome<[usize; 4]> {
    match *logits.shape() {
        [batch, channels, height, width] => Ok([batch, channels, height, width]),
        [batch, channels, anchors] => Ok([batch, channels, 1, anchors]),
        ref actual => {
            let name = logits.name;
            Err(shape(format!("{name} has shape {actual:?}, it must be [B, C, H, W] or [B, C, anchors]")))
        }
    }
}

/// Where logits or gradients are, from their first element on.
pub fn layout(logits: &Tensor) -> Layout {
    let steps: Vec<usize> = logits.strides().iter().map(|&stride| stride.max(0) as usize).collect();
    match (logits.shape(), &*steps) {
        (&[_, _, height, width], &[batch, channel, row, column]) => {
            let position = if width == 1 { row } else { column };
            let layout = Layout { offset: 0, batch, channel, position, rows: None };
            let follow = height <= 1 || width <= 1 || width.checked_mul(column) == Some(row);
            if follow { layout } else { layout.with_rows(width, row) }
        }
        (_, &[batch, channel, position]) => Layout { offset: 0, batch, channel, position, rows: None },
        _ => Layout::nchw(0, 0), // `axes` refuses others
    }
}

impl Inputs {
    pub fn device(&self) -> Device {
        self.cls[0].device
    }

    /// What numbers beside logits come in.
    pub fn beside(&self) -> DType {
        if self.cls[0].dtype == DType::F64 { DType::F64 } else { DType::F32 }
    }

    /// Batch, classes.
    pub fn sizes(&self) -> [usize; 2] {
        let shape = self.cls[0].shape();
        [shape[0], shape[1]]
    }

    /// Height and width of a level.
    pub fn extent(&self, level: usize) -> [usize; 2] {
        match *self.cls[level].shape() {
            [_, _, height, width] => [height, width],
            ref shape => [1, shape[2]],
        }
    }

    /// Anchors of an image on a level.
    pub fn positions(&self, level: usize) -> usize {
        self.extent(level).iter().product()
    }

    /// How many class logits there are, which is what a call takes its time for.
    pub fn elements(&self) -> usize {
        self.cls.iter().map(Tensor::len).sum()
    }

    fn lists(&self) -> [&Vec<Tensor>; 11] {
        [
            &self.cls,
            &self.boxes,
            &self.labels,
            &self.targets,
            &self.label_weights,
            &self.quality,
            &self.box_weights,
            &self.box_scores,
            &self.scores,
            &self.element_weights,
            &self.points,
        ]
    }

    pub fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        let others = [&self.class_weights, &self.normalisers, &self.upstream];
        self.lists().into_iter().flatten().chain(others.into_iter().flatten())
    }

    /// Compares shapes and types, by Python's names.
    pub fn check(&self, head: &HeadLoss) -> Outcome {
        let levels = self.cls.len();
        if levels == 0 {
            return Err(shape("cls_scores has no levels".to_owned()));
        }
        for list in &self.lists()[1..] {
            if let Some(first) = list.first()
                && list.len() != levels
            {
                let (name, actual) = (first.name.trim_end_matches("[0]"), list.len());
                return Err(shape(format!("{name} has {actual} levels, cls_scores {levels}")));
            }
        }
        for (name, list) in
            [("bbox_preds", &self.boxes), ("labels", &self.labels), ("box_targets", &self.targets)]
        {
            if list.is_empty() {
                return Err(shape(format!("{name} has no levels, cls_scores {levels}")));
            }
        }
        if self.strides.len() != levels {
            let actual = self.strides.len();
            return Err(shape(format!("there are {actual} strides, cls_scores has {levels} levels")));
        }
        (0..levels).try_for_each(|level| self.check_level(level, head))?;
        let [_, classes] = self.sizes();
        if let Some(weights) = &self.class_weights {
            weights.expect(&[classes], &format_args!("{classes} classes"))?;
            weights.expect_dtype(self.beside(), &"what is beside the logits")?;
        }
        if let Some(upstream) = &self.upstream {
            upstream.expect(&[levels, 3], &format_args!("{levels} levels"))?;
            upstream.expect_dtype(self.beside(), &"what is beside the logits")?;
        }
        self.normalisers.as_ref().map_or(Ok(()), |normalisers| self.check_normalisers(normalisers))
    }

    pub fn check_normalisers(&self, normalisers: &Tensor) -> Outcome {
        normalisers.expect(&[2], &"what the losses are divided by")?;
        let (dtype, because) = match self.device() {
            Device::Cpu => (DType::F64, "on the CPU the head loss"),
            Device::Cuda(_) => (DType::F32, "on CUDA the head loss"),
        };
        normalisers.expect_dtype(dtype, &because)
    }

    fn check_level(&self, level: usize, head: &HeadLoss) -> Outcome {
        let (cls, boxes) = (&self.cls[level], &self.boxes[level]);
        let [batch, classes, height, width] = axes(cls)?;
        axes(boxes)?;
        let because = Needs(cls.name, cls.shape());
        if level > 0 && [batch, classes] != self.sizes() {
            let [batch, classes] = self.sizes();
            cls.expect(
                &[batch, classes, height, width],
                &format_args!("cls_scores[0] {:?}", self.cls[0].shape()),
            )?;
        }
        let mut expected = cls.shape().to_vec();
        expected[1] = head.box_channels();
        boxes.expect(&expected, &format_args!("{because} with {} logits a side", head.bins()))?;
        cls.expect_dtype(self.cls[0].dtype, &self.cls[0].name)?;
        boxes.expect_dtype(self.boxes[0].dtype, &self.boxes[0].name)?;

        let positions = height * width;
        let (labels, anchors) = (&self.labels[level], [batch, positions]);
        labels.expect(&anchors, &because)?;
        if !matches!(labels.dtype, DType::I64 | DType::I32) {
            let (name, actual) = (labels.name, labels.dtype.name());
            return Err(type_error(format!("{name} is {actual}, it must be int64 or int32")));
        }
        let dtype = self.beside();
        let beside = |tensor: &Tensor, expected: &[usize]| {
            tensor.expect(expected, &because)?;
            tensor.expect_dtype(dtype, &because)
        };
        beside(&self.targets[level], &[batch, positions, 4])?;
        for list in [&self.label_weights, &self.quality, &self.box_weights, &self.box_scores] {
            list.get(level).map_or(Ok(()), |tensor| beside(tensor, &anchors))?;
        }
        for list in [&self.scores, &self.element_weights] {
            list.get(level).map_or(Ok(()), |tensor| beside(tensor, &[batch, positions, classes]))?;
        }
        match self.points.get(level) {
            Some(points) if points.shape().len() == 3 => beside(points, &[batch, positions, 2]),
            Some(points) => beside(points, &[positions, 2]),
            None if cls.shape().len() == 3 => {
                let (name, shape_of) = (cls.name, cls.shape());
                Err(shape(format!("{name} has shape {shape_of:?}, without rows it needs points")))
            }
            None => Ok(()),
        }
    }
}

/// Where gradients go: a tensor for each of the logits, of its shape and type, with strides of its own.
pub struct Gradients {
    pub cls: Vec<Tensor>,
    pub boxes: Vec<Tensor>,
}

impl Gradients {
    pub fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        self.cls.iter().chain(&self.boxes)
    }

    pub fn layouts(&self) -> Vec<Layouts> {
        let both = self.cls.iter().zip(&self.boxes);
        both.map(|(cls, boxes)| Layouts { cls: layout(cls), boxes: layout(boxes) }).collect()
    }

    pub fn check(&self, inputs: &Inputs) -> Outcome {
        for (gradients, logits) in [(&self.cls, &inputs.cls), (&self.boxes, &inputs.boxes)] {
            if gradients.len() != logits.len() {
                let (actual, expected) = (gradients.len(), logits.len());
                return Err(shape(format!("there are gradients of {actual} levels, logits of {expected}")));
            }
            for (gradient, logits) in gradients.iter().zip(logits) {
                gradient.expect(logits.shape(), &logits.name)?;
                gradient.expect_dtype(logits.dtype, &logits.name)?;
            }
        }
        Ok(())
    }
}
