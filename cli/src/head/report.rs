//! What is told of a head, in JSON and in a table.

use std::borrow::Cow;
use std::fmt::Write;

use gfocal::head::BoxCoding;
use serde::Serialize;

use super::choices::{NormaliserChoice, Profile};
use super::scene::{Pair, Scene, SceneLevel};
use super::status::Anchors;
use super::{Outcome, raw};
use crate::assign::{AssignerChoice, AssignmentReport};
use crate::device::Device;
use crate::floats::Floats;
use crate::report::{GradReport, Number, StatusReport};
use crate::table::{number, sentences, table};
use crate::words::count;

/// The losses of a head.
#[derive(Debug, Serialize)]
pub struct HeadReport {
    op: &'static str,
    device: String,
    dtype: String,
    profile: Profile,
    /// Whether targets were assigned, and how.
    assigned: bool,
    assigner: Option<&'static str>,
    batch: usize,
    classes: usize,
    bins: usize,
    grad_scale: f64,
    /// The sum of the three.
    loss: Number,
    loss_cls: Number,
    loss_bbox: Number,
    loss_dfl: Number,
    /// As the normalisers count them.
    num_pos: Number,
    box_weight_sum: Number,
    images_without_positives: usize,
    levels: Vec<LevelReport>,
    #[serde(flatten)]
    grad: GradReport,
    status: StatusReport,
    #[serde(flatten)]
    assignment: Option<AssignmentReport>,
    #[serde(skip)]
    told: Told,
}

/// What only the text needs.
#[derive(Debug)]
struct Told {
    normaliser: NormaliserChoice,
    coding: BoxCoding,
    /// Of class and box logits, with their types.
    gradients: [(GradReport, &'static str); 2],
}

/// Those of a level.
#[derive(Debug, Serialize)]
struct LevelReport {
    stride: f64,
    height: usize,
    width: usize,
    positives: usize,
    loss_cls: Number,
    loss_bbox: Number,
    loss_dfl: Number,
    grad_cls_norm: Number,
    grad_box_norm: Number,
}

impl HeadReport {
    /// `exact`: the gradients in f64, if they are known.
    pub fn new(
        scene: &Scene,
        device: &Device,
        outcome: &Outcome,
        exact: Option<&[Pair<Floats>]>,
        grad_scale: f64,
    ) -> HeadReport {
        let losses: Vec<f64> = outcome.losses.iter().collect();
        let (losses, _) = losses.as_chunks::<3>();
        let mut grads = [GradReport::default(); 2];
        let mut levels = Vec::new();
        for (i, (level, &losses)) in scene.levels.iter().zip(losses).enumerate() {
            let gradients = parts(scene, level, &outcome.gradients[i]);
            let exact = exact.map(|exact| parts(scene, level, &exact[i]));
            for (output, gradient) in gradients.iter().enumerate() {
                let exact = exact.as_ref().map(|exact| &*exact[output]);
                grads[output] = grads[output] + GradReport::new(gradient, exact);
            }
            let [loss_cls, loss_bbox, loss_dfl] = losses.map(Number);
            let [grad_cls_norm, grad_box_norm] = gradients.map(|gradient| Number(gradient.norm()));
            let place = &scene.places[i];
            levels.push(LevelReport {
                stride: place.stride,
                height: place.height,
                width: place.width,
                positives: outcome.targets[i].positives(&scene.head.qfl(), scene.classes),
                loss_cls,
                loss_bbox,
                loss_dfl,
                grad_cls_norm,
                grad_box_norm,
            });
        }
        let total = |loss: usize| Number(losses.iter().fold(0.0, |sum, losses| sum + losses[loss]));
        let [loss_cls, loss_bbox, loss_dfl] = [0, 1, 2].map(total);
        let anchors = Anchors::new(scene, &outcome.targets);
        let [cls, boxes] = scene.dtypes().map(|dtype| dtype.name());
        HeadReport {
            op: "head",
            device: device.name(),
            dtype: scene.dtype(),
            profile: scene.profile,
            assigned: scene.assignment.is_some(),
            assigner: scene.assigner().map(AssignerChoice::name),
            batch: scene.batch,
            classes: scene.classes,
            bins: scene.head.bins(),
            grad_scale,
            loss: Number(loss_cls.0 + loss_bbox.0 + loss_dfl.0),
            loss_cls,
            loss_bbox,
            loss_dfl,
            num_pos: Number(outcome.normalisers.positives),
            box_weight_sum: Number(outcome.normalisers.box_weights),
            images_without_positives: anchors.images_without(),
            levels,
            grad: grads[0] + grads[1],
            status: anchors.status(outcome.status),
            assignment: scene.problem().map(|problem| {
                AssignmentReport::new(outcome.status.assignment, problem.truth, problem.batch)
            }),
            told: Told {
                normaliser: scene.normaliser,
                coding: scene.head.box_coding(),
                gradients: [(grads[0], cls), (grads[1], boxes)],
            },
        }
    }

    pub fn table(&self) -> String {
        let header = ["stride", "positions", "positives", "cls", "bbox", "dfl", "|grad cls|", "|grad box|"];
        let mut rows = vec![header.map(str::to_owned)];
        for level in &self.levels {
            rows.push([
                number(level.stride),
                format!("{}x{}", level.height, level.width),
                level.positives.to_string(),
                number(level.loss_cls.0),
                number(level.loss_bbox.0),
                number(level.loss_dfl.0),
                number(level.grad_cls_norm.0),
                number(level.grad_box_norm.0),
            ]);
        }
        rows.push([
            "sum".to_owned(),
            String::new(),
            self.positives().to_string(),
            number(self.loss_cls.0),
            number(self.loss_bbox.0),
            number(self.loss_dfl.0),
            String::new(),
            String::new(),
        ]);
        let assigned =
            self.assigner.map(|assigner| format!(", targets assigned by {}", assigner.to_uppercase()));
        let mut text = format!(
            "{} on {}: batch {}, {}, {}, {} profile{}\n\n",
            self.dtype,
            self.device,
            self.batch,
            count(self.classes, "class", "classes"),
            match self.told.coding {
                BoxCoding::Bins(bins) => count(bins, "bin", "bins"),
                BoxCoding::Exp => "boxes by exp".to_owned(),
                BoxCoding::Relu => "boxes by relu".to_owned(),
            },
            self.profile.name(),
            assigned.unwrap_or_default()
        );
        text += &table(&rows);
        let _ = writeln!(text, "\nloss {}, {}", number(self.loss.0), self.divisors());
        let [(cls, cls_dtype), (boxes, box_dtype)] = self.told.gradients;
        let mut told = cls.sentences("the class logits", cls_dtype);
        told.extend(boxes.sentences("the box logits", box_dtype));
        text += &sentences("", &told);
        text += &sentences("", &self.status.sentences);
        if let Some(assignment) = &self.assignment {
            text += &sentences("", &assignment.sentences());
        }
        text
    }

    fn positives(&self) -> usize {
        self.levels.iter().map(|level| level.positives).sum()
    }

    /// What the losses are divided by.
    fn divisors(&self) -> String {
        let weights = number(self.box_weight_sum.0);
        // NaN counts as less.
        let least = if self.box_weight_sum.0 >= 1.0 { "" } else { ", which count as 1" };
        let positives = count(self.num_pos.0 as usize, "positive", "positives");
        let stand_in = match (self.told.normaliser, self.images_without_positives) {
            (NormaliserChoice::Ultralytics, _) => return format!("over box weights of {weights}{least}"),
            (NormaliserChoice::Mmdetection, 0) => String::new(),
            (NormaliserChoice::Mmdetection, 1) => " (an image without any counts as one)".to_owned(),
            (NormaliserChoice::Mmdetection, images) => {
                format!(" ({images} images without any count as one each)")
            }
            (NormaliserChoice::Nanodet, _) if self.num_pos.0 < 1.0 => " (which count as one)".to_owned(),
            (NormaliserChoice::Nanodet, _) => String::new(),
        };
        format!("over {positives}{stand_in} and box weights of {weights}{least}")
    }
}

/// The gradients of class and box logits.
fn parts<'a>(scene: &Scene, level: &SceneLevel, gradients: &'a Pair<Floats>) -> [Cow<'a, Floats>; 2] {
    match gradients {
        Pair::Separate([cls, boxes]) => [Cow::Borrowed(cls), Cow::Borrowed(boxes)],
        Pair::Joint(both) => {
            let (channels, of_boxes) = (level.logits.cls().shape[1], scene.head.box_channels());
            let rows = |range| raw::channels(both, scene.batch, channels, range);
            [Cow::Owned(rows(of_boxes..channels)), Cow::Owned(rows(0..of_boxes))]
        }
    }
}
