//! What a level of a head is to become.

use gfocal::QualityFocalLoss;
use gfocal::head::{BoxWeight, QualitySource};
use gfocal::qfl::Class;

use super::args::SceneArgs;
use super::choices::QualityChoice;
use super::level::LevelReader;
use super::scene::Axes;
use crate::assign::AssignedLevel;
use crate::error::{Error, Result};
use crate::floats::{Dtype, numbers};
use crate::inputs::Labels;

/// What a level is to become: numbers that the type of what is beside its logits has.
#[derive(Clone, Default)]
pub struct LevelTargets {
    /// `[B, H*W]`.
    pub labels: Labels,
    /// `[B, H*W, 4]`.
    pub boxes: Vec<f64>,
    pub options: TargetOptions<Vec<f64>>,
    /// `[B, H*W]`, of an assignment that has any: for the output.
    pub centerness: Option<Vec<f32>>,
}

/// What a level may have besides: `[B, H*W]`, and the last two `[B, H*W, C]`.
#[derive(Clone)]
pub struct TargetOptions<T> {
    pub label_weights: Option<T>,
    pub quality: Option<T>,
    pub box_weights: Option<T>,
    pub box_scores: Option<T>,
    pub scores: Option<T>,
    pub element_weights: Option<T>,
}

/// What of a file's tensors a head reads.
#[derive(Clone, Copy)]
pub struct Reads {
    pub quality: QualitySource,
    pub box_weight: BoxWeight,
}

impl<T> Default for TargetOptions<T> {
    fn default() -> Self {
        TargetOptions {
            label_weights: None,
            quality: None,
            box_weights: None,
            box_scores: None,
            scores: None,
            element_weights: None,
        }
    }
}

impl<T> TargetOptions<T> {
    pub fn try_map<'a, U, E>(
        &'a self,
        mut to: impl FnMut(&'a T) -> std::result::Result<U, E>,
    ) -> std::result::Result<TargetOptions<U>, E> {
        let mut to = |option: &'a Option<T>| option.as_ref().map(&mut to).transpose();
        Ok(TargetOptions {
            label_weights: to(&self.label_weights)?,
            quality: to(&self.quality)?,
            box_weights: to(&self.box_weights)?,
            box_scores: to(&self.box_scores)?,
            scores: to(&self.scores)?,
            element_weights: to(&self.element_weights)?,
        })
    }

    pub fn map<'a, U>(&'a self, mut to: impl FnMut(&'a T) -> U) -> TargetOptions<U> {
        let Ok(mapped) = self.try_map(|option| Ok::<_, std::convert::Infallible>(to(option)));
        mapped
    }
}

impl LevelTargets {
    /// Those beside class logits of a type.
    pub fn read(
        reader: &LevelReader,
        args: &SceneArgs,
        axes: Axes,
        positions: usize,
        reads: Reads,
        logits: Dtype,
    ) -> Result<LevelTargets> {
        let anchors = [axes.batch, positions];
        let elements = [axes.batch, positions, axes.classes];
        let floats = |tensor: &str, expected: &[usize]| reader.floats(tensor, expected, logits);
        let optional = |tensor: &str, expected: &[usize]| {
            let is_there = reader.tensors.has(&reader.name(tensor));
            is_there.then(|| floats(tensor, expected)).transpose()
        };
        let (labels, boxes) = if args.assign {
            (Labels::default(), Vec::new())
        } else {
            (reader.labels(&anchors)?, floats("box_targets", &[axes.batch, positions, 4])?)
        };
        let scores = optional("scores", &elements)?;
        // Dense targets take the place of the quality, but for the weights of boxes.
        let by_quality = scores.is_none() || reads.box_weight == BoxWeight::Quality;
        let quality = match reads.quality {
            QualitySource::Given if by_quality => {
                let quality = optional("quality", &anchors)?;
                Some(quality.ok_or_else(|| reader.no_quality(args.quality))?)
            }
            _ => None,
        };
        let box_scores = match reads.box_weight {
            BoxWeight::Given => Some(floats("box_scores", &anchors)?),
            _ => None,
        };
        let options = TargetOptions {
            label_weights: optional("label_weights", &anchors)?,
            quality,
            box_weights: optional("box_weights", &anchors)?,
            box_scores,
            scores,
            element_weights: optional("element_weights", &elements)?,
        };
        Ok(LevelTargets { labels, boxes, options, centerness: None })
    }

    /// Whether there are weights to multiply.
    pub fn weighs(&self) -> bool {
        self.options.label_weights.is_some() || self.options.box_weights.is_some()
    }

    /// What was found, beside what else was given. Weights of the file multiply those of the assignment.
    pub fn assigned(&self, level: AssignedLevel) -> LevelTargets {
        let f64s = |numbers: Vec<f32>| -> Vec<f64> { numbers.into_iter().map(f64::from).collect() };
        let product = |assigned: Option<Vec<f32>>, given: &Option<Vec<f64>>| match (assigned.map(f64s), given)
        {
            (Some(mut weights), Some(given)) => {
                weights.iter_mut().zip(given).for_each(|(weight, by)| *weight *= by);
                Some(weights)
            }
            (assigned, given) => assigned.or(given.clone()),
        };
        let options = TargetOptions {
            label_weights: product(Some(level.label_weights), &self.options.label_weights),
            box_weights: product(level.box_weights, &self.options.box_weights),
            ..self.options.clone()
        };
        let (labels, boxes) = (Labels::I64(level.labels), f64s(level.boxes));
        LevelTargets { labels, boxes, options, centerness: level.centerness }
    }

    /// The other way round, for the output.
    pub fn as_assigned(&self) -> AssignedLevel {
        AssignedLevel {
            labels: (0..self.labels.len()).map(|anchor| self.labels.get(anchor)).collect(),
            boxes: numbers(&self.boxes),
            label_weights: self.options.label_weights.as_deref().map(numbers).unwrap_or_default(),
            box_weights: self.options.box_weights.as_deref().map(numbers),
            centerness: self.centerness.clone(),
        }
    }

    /// Anchors whose label is a class.
    pub fn positives(&self, qfl: &QualityFocalLoss, classes: usize) -> usize {
        (0..self.labels.len()).filter(|&anchor| self.is_positive(anchor, qfl, classes)).count()
    }

    pub fn is_positive(&self, anchor: usize, qfl: &QualityFocalLoss, classes: usize) -> bool {
        matches!(qfl.class_of(self.labels.get(anchor), classes), Class::Foreground(_))
    }

    /// The target box of an anchor.
    pub fn target_box(&self, anchor: usize) -> &[f64] {
        &self.boxes[4 * anchor..4 * anchor + 4]
    }
}

impl LevelReader<'_> {
    fn labels(&self, anchors: &[usize]) -> Result<Labels> {
        let name = self.name("labels");
        if !self.tensors.has(&name) && self.tensors.has("gt_boxes") {
            return Err(self.tensors.missing(format!("{name} (with --assign, none is needed)")));
        }
        let (shape, labels) = self.tensors.labels(&name)?;
        if shape == anchors { Ok(labels) } else { Err(self.wrong_shape(name, shape, anchors)) }
    }

    fn no_quality(&self, choice: Option<QualityChoice>) -> Error {
        let name = self.name("quality");
        let why = match choice {
            Some(QualityChoice::Given) => "--quality given".to_owned(),
            _ => format!("--profile {}", self.args.profile().name()),
        };
        self.tensors.missing(format!(
            "{name}, from which {why} takes the quality of positives (--quality iou takes the IoU of their boxes)"
        ))
    }

    /// Numbers beside logits of a type.
    fn floats(&self, tensor: &str, expected: &[usize], logits: Dtype) -> Result<Vec<f64>> {
        let name = self.name(tensor);
        let (shape, numbers) = self.tensors.floats(&name)?;
        if shape == expected {
            Ok(numbers.beside(logits))
        } else {
            Err(self.wrong_shape(name, shape, expected))
        }
    }
}
