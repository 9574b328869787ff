//! A level of the pyramid: its raw outputs, and what they are to become.

use candle_core::{Result, Tensor};

use crate::pyramid::Points;
use crate::tensor::{Held, Tracked, beside, constant_like, labels, numbers};

/// What the outputs of a level are to become: [`Targets::new`], with other options by struct update.
/// [`assign`](crate::assign()) gives them.
///
/// A is the number of anchors, H·W; a tensor may also have H and W in its place.
#[derive(Clone, Debug)]
pub struct Targets {
    /// `[B, A]`, integers: a class, or background.
    pub labels: Tensor,
    /// `[B, A, 4]`, x1, y1, x2, y2 in pixels; read for positives only.
    pub boxes: Tensor,
    /// `[B, A]`, weights of the classification loss; 0 masks an anchor there. Not given: ones.
    pub label_weights: Option<Tensor>,
    /// `[B, A]`, weights of the box losses of positives; they have no part in what these are divided by, and 0 masks.
    /// Not given: ones.
    pub box_weights: Option<Tensor>,
    /// `[B, A]`, read for positives, and only with [`QualitySource::Given`](gfocal::head::QualitySource::Given). It may
    /// be computed from predictions: it is detached.
    pub quality: Option<Tensor>,
    /// `[B, A]`, v of positives, read with [`BoxWeight::Given`](gfocal::head::BoxWeight::Given). It is detached.
    pub box_scores: Option<Tensor>,
    /// `[B, A, C]`, a target in the classification loss for each class of each anchor, in place of the quality at the
    /// label. It is detached.
    pub scores: Option<Tensor>,
    /// `[B, A, C]`, weights of the elements of the classification loss; 0 masks one. Not given: ones.
    pub element_weights: Option<Tensor>,
}

impl Targets {
    /// Labels and boxes, and no options.
    pub fn new(labels: Tensor, boxes: Tensor) -> Self {
        Targets {
            labels,
            boxes,
            label_weights: None,
            box_weights: None,
            quality: None,
            box_scores: None,
            scores: None,
            element_weights: None,
        }
    }
}

/// A level of the pyramid.
#[derive(Clone, Debug)]
pub struct HeadLevel {
    /// Class logits: `[B, C, H, W]` with any strides, as convolutions or channels-last ones give them, or a part of
    /// something larger. Or `[B, C, A]`, with explicit points.
    pub cls: Tensor,
    /// Box logits, `[B, 4·K, H, W]` or `[B, 4·K, A]`; channel side·K + bin, sides left, top, right, bottom, K the
    /// number of bins, or 1 without.
    pub boxes: Tensor,
    /// Pixels from one position to the next.
    pub stride: f64,
    /// The anchor points.
    pub points: Points,
    /// What the outputs are to become.
    pub targets: Targets,
}

impl HeadLevel {
    /// As calls take it: detached, of the right types, one element after the other but for the logits. `level`: its
    /// name.
    pub(super) fn checked(&self, level: &str, axes: [usize; 4]) -> Result<HeadLevel> {
        let HeadLevel { cls, boxes, stride, points, targets } = self;
        let [batch, classes, height, width] = axes;
        let of_cls = format!("{level}.cls");
        let (like, dtype) = ((of_cls.as_str(), cls), beside(cls.dtype()));
        let shaped = |name: &str, tensor: &Tensor, each: Option<usize>, tracked| {
            let each: Vec<usize> = each.into_iter().collect();
            let flat = [&[batch, height * width][..], &each].concat();
            let grid = [&[batch, height, width][..], &each].concat();
            constant_like(name, tensor, &[&flat, &grid], like, tracked)
        };
        let floats = |tensor: &Option<Tensor>, name: &str, each, tracked| {
            let Some(tensor) = tensor else { return Ok(None) };
            let name = format!("{level}.targets.{name}");
            Ok::<_, candle_core::Error>(Some(numbers(&name, &shaped(&name, tensor, each, tracked)?, dtype)?))
        };
        let (of_labels, of_boxes) = (format!("{level}.targets.labels"), format!("{level}.targets.boxes"));
        let (constant, refused) = (Tracked::Detached, Tracked::Refused);
        let boxes_of = shaped(&of_boxes, &targets.boxes, Some(4), refused)?;
        Ok(HeadLevel {
            cls: cls.detach(),
            boxes: boxes.detach(),
            stride: *stride,
            points: points.checked(level, like, axes)?,
            targets: Targets {
                labels: labels(&of_labels, &shaped(&of_labels, &targets.labels, None, constant)?)?,
                boxes: numbers(&of_boxes, &boxes_of, dtype)?,
                label_weights: floats(&targets.label_weights, "label_weights", None, refused)?,
                box_weights: floats(&targets.box_weights, "box_weights", None, refused)?,
                quality: floats(&targets.quality, "quality", None, constant)?,
                box_scores: floats(&targets.box_scores, "box_scores", None, constant)?,
                scores: floats(&targets.scores, "scores", Some(classes), constant)?,
                element_weights: floats(&targets.element_weights, "element_weights", Some(classes), refused)?,
            },
        })
    }

    /// Height and width, after the checks.
    pub(super) fn extent(&self) -> [usize; 2] {
        match *self.cls.dims() {
            [_, _, height, width] => [height, width],
            ref dims => [1, dims.last().copied().unwrap_or(0)],
        }
    }

    pub(super) fn hold(&self) -> Result<HeldLevel<'_>> {
        let targets = &self.targets;
        Ok(HeldLevel {
            cls: Held::whole(&self.cls),
            boxes: Held::whole(&self.boxes),
            points: self.points.explicit().map(Held::new).transpose()?,
            labels: Held::new(&targets.labels)?,
            target_boxes: Held::new(&targets.boxes)?,
            label_weights: Held::of(&targets.label_weights)?,
            box_weights: Held::of(&targets.box_weights)?,
            quality: Held::of(&targets.quality)?,
            box_scores: Held::of(&targets.box_scores)?,
            scores: Held::of(&targets.scores)?,
            element_weights: Held::of(&targets.element_weights)?,
        })
    }
}

/// What is held of a level.
pub(super) struct HeldLevel<'t> {
    pub cls: Held<'t>,
    pub boxes: Held<'t>,
    pub points: Option<Held<'t>>,
    pub labels: Held<'t>,
    pub target_boxes: Held<'t>,
    pub label_weights: Option<Held<'t>>,
    pub box_weights: Option<Held<'t>>,
    pub quality: Option<Held<'t>>,
    pub box_scores: Option<Held<'t>>,
    pub scores: Option<Held<'t>>,
    pub element_weights: Option<Held<'t>>,
}
