//! The head loss as mmdetection composes it, in f64: what results are compared with.
//!
//! The slope of the box loss comes from dual numbers, so that no formula for it is shared with the library.

use std::ops::{Add, Div, Mul, Sub};
use std::thread;

use super::data::{Inputs, LevelInputs};
use super::{BINS, SIDES};
use crate::bench::cpu::threads;
use crate::bench::data::Stored;
use crate::bench::formula::{Row, dfl, integral, qfl};

const EPS: f64 = 1e-6;
const BOX_WEIGHT: f64 = 2.0;
const DFL_WEIGHT: f64 = 0.25;
/// Target distances are clamped below the last bin, 16.
const LAST_TARGET: f64 = 15.9;

/// What a case must give.
pub struct Truth {
    /// The losses of each level.
    pub losses: Vec<[f64; 3]>,
    /// What the unweighted losses of each kind are multiplied by.
    pub factors: [f64; 3],
    /// Those of each level, in the order of their anchors.
    pub positives: Vec<Vec<Positive>>,
}

/// An anchor that is to become an object.
pub struct Positive {
    pub anchor: usize,
    /// IoU with the target.
    quality: f64,
    /// The largest score.
    pub weight: f64,
    box_loss: f64,
    dfl_loss: f64,
    /// Of the box loss and of the distribution loss, with respect to each box logit.
    slopes: Vec<[f64; 2]>,
}

impl Truth {
    pub fn of<T: Stored>(inputs: &Inputs<T>) -> Truth {
        let positives: Vec<Vec<Positive>> =
            inputs.levels.iter().map(|level| of_level(inputs, level)).collect();
        // An image without positives counts as having one.
        let mut of_images = vec![0usize; inputs.images];
        for (level, positives) in inputs.levels.iter().zip(&positives) {
            positives.iter().for_each(|positive| of_images[positive.anchor / level.size.positions()] += 1);
        }
        let count: usize = of_images.iter().map(|&count| count.max(1)).sum();
        let weights: f64 = positives.iter().flatten().map(|positive| positive.weight).sum();
        let (weights, eps) = (weights.max(1.0), f64::from(f32::EPSILON));
        let factors = [
            1.0 / (count as f64 + eps),
            BOX_WEIGHT / (weights * (1.0 + eps)),
            DFL_WEIGHT / (weights * (4.0 + eps)),
        ];
        let mut truth = Truth { losses: Vec::new(), factors, positives };
        for (i, level) in inputs.levels.iter().enumerate() {
            let sum = |loss: fn(&Positive) -> f64| -> f64 {
                truth.positives[i].iter().map(|positive| positive.weight * loss(positive)).sum()
            };
            let (of_boxes, of_sides) = (sum(|positive| positive.box_loss), sum(|positive| positive.dfl_loss));
            let sums = [truth.classification(inputs, i, level), of_boxes, of_sides];
            truth.losses.push([0, 1, 2].map(|kind| factors[kind] * sums[kind]));
        }
        truth
    }

    /// The gradient of an anchor's class logits.
    pub fn cls_grad<T: Stored>(&self, inputs: &Inputs<T>, level: usize, anchor: usize) -> Vec<f64> {
        let factor = self.cls_factor(inputs, level, anchor);
        self.row(inputs, level, anchor).grad.into_iter().map(|slope| slope * factor).collect()
    }

    /// What an anchor's classification gradient is multiplied by.
    pub fn cls_factor<T: Stored>(&self, inputs: &Inputs<T>, level: usize, anchor: usize) -> f64 {
        f64::from(inputs.levels[level].label_weights[anchor]) * self.factors[0] * inputs.grad_scale
    }

    /// The gradient of an anchor's box logits.
    pub fn box_grad<T: Stored>(&self, inputs: &Inputs<T>, level: usize, anchor: usize) -> Vec<f64> {
        let Some(positive) = self.positive(level, anchor) else { return vec![0.0; SIDES * BINS] };
        let [_, of_box, of_dfl] = self.box_factors(inputs, positive);
        positive.slopes.iter().map(|[of_iou, of_sides]| of_box * of_iou + of_dfl * of_sides).collect()
    }

    /// What a positive's gradients are multiplied by.
    pub fn box_factors<T: Stored>(&self, inputs: &Inputs<T>, positive: &Positive) -> [f64; 3] {
        self.factors.map(|factor| factor * positive.weight * inputs.grad_scale)
    }

    pub fn positive(&self, level: usize, anchor: usize) -> Option<&Positive> {
        let of_level = &self.positives[level];
        let at = of_level.binary_search_by_key(&anchor, |positive| positive.anchor).ok()?;
        Some(&of_level[at])
    }

    fn row<T: Stored>(&self, inputs: &Inputs<T>, level: usize, anchor: usize) -> Row {
        let quality = self.positive(level, anchor).map_or(0.0, |positive| positive.quality);
        let of_level = &inputs.levels[level];
        qfl(&of_level.channels(&of_level.cls, anchor, inputs.classes), of_level.labels[anchor], quality)
    }

    /// The weighted sum over the anchors of a level, by all cores.
    fn classification<T: Stored>(&self, inputs: &Inputs<T>, i: usize, level: &LevelInputs<T>) -> f64 {
        let anchors = level.labels.len();
        let share = anchors.div_ceil(threads());
        let weighted = |anchor| f64::from(level.label_weights[anchor]) * self.row(inputs, i, anchor).value;
        let sum = |start: usize| -> f64 { (start..anchors.min(start + share)).map(weighted).sum() };
        thread::scope(|scope| {
            let parts: Vec<_> =
                (0..anchors).step_by(share).map(|start| scope.spawn(move || sum(start))).collect();
            parts.into_iter().map(|part| part.join().expect("the formula does not panic")).sum()
        })
    }
}

impl<T: Stored> LevelInputs<T> {
    /// The logits of an anchor, of which `tensor` has so many channels.
    fn channels(&self, tensor: &[T], anchor: usize, channels: usize) -> Vec<f64> {
        let positions = self.size.positions();
        let (image, position) = (anchor / positions, anchor % positions);
        (0..channels)
            .map(|channel| tensor[(image * channels + channel) * positions + position].to_f64())
            .collect()
    }
}

fn of_level<T: Stored>(inputs: &Inputs<T>, level: &LevelInputs<T>) -> Vec<Positive> {
    let is_positive = |&anchor: &usize| level.labels[anchor] != inputs.classes as i64;
    (0..level.labels.len()).filter(is_positive).map(|anchor| positive(inputs, level, anchor)).collect()
}

fn positive<T: Stored>(inputs: &Inputs<T>, level: &LevelInputs<T>, anchor: usize) -> Positive {
    let scores = level.channels(&level.cls, anchor, inputs.classes);
    let most = scores.into_iter().fold(f64::NEG_INFINITY, f64::max);
    let logits = level.channels(&level.boxes, anchor, SIDES * BINS);
    let sides: Vec<&[f64]> = logits.chunks(BINS).collect();
    let position = anchor % level.size.positions();
    let [x, y] = [position % level.size.width, position / level.size.width].map(|at| at as f64);
    let target = [0, 1, 2, 3].map(|i| f64::from(level.targets[4 * anchor + i]) / level.size.stride);

    let distances = [0, 1, 2, 3].map(|side| integral(sides[side]));
    // The box, as a function of one of its distances.
    let decoded = |by: usize| {
        let distance = |side: usize| Dual(distances[side].value, if side == by { 1.0 } else { 0.0 });
        let (x, y) = (Dual(x, 0.0), Dual(y, 0.0));
        [x - distance(0), y - distance(1), x + distance(2), y + distance(3)]
    };
    let box_losses = [0, 1, 2, 3].map(|side| giou_loss(decoded(side), target));
    let [quality, box_loss] = box_losses[0].map(|dual| dual.0);
    let targets = [x - target[0], y - target[1], target[2] - x, target[3] - y];
    let (mut dfl_loss, mut slopes) = (0.0, Vec::new());
    for (side, target) in targets.into_iter().enumerate() {
        let Row { value, grad } = dfl(sides[side], target.clamp(0.0, LAST_TARGET));
        dfl_loss += value;
        let [_, Dual(_, by_distance)] = box_losses[side];
        slopes.extend(
            distances[side].grad.iter().zip(grad).map(|(by_logit, dfl)| [by_distance * by_logit, dfl]),
        );
    }
    Positive { anchor, quality, weight: 1.0 / (1.0 + (-most).exp()), box_loss, dfl_loss, slopes }
}

/// A number and its derivative.
#[derive(Clone, Copy)]
struct Dual(f64, f64);

impl Add for Dual {
    type Output = Dual;
    fn add(self, other: Dual) -> Dual {
        Dual(self.0 + other.0, self.1 + other.1)
    }
}
impl Sub for Dual {
    type Output = Dual;
    fn sub(self, other: Dual) -> Dual {
        Dual(self.0 - other.0, self.1 - other.1)
    }
}
impl Mul for Dual {
    type Output = Dual;
    fn mul(self, other: Dual) -> Dual {
        Dual(self.0 * other.0, self.1 * other.0 + self.0 * other.1)
    }
}
impl Div for Dual {
    type Output = Dual;
    fn div(self, other: Dual) -> Dual {
        Dual(self.0 / other.0, (self.1 * other.0 - self.0 * other.1) / (other.0 * other.0))
    }
}
impl Dual {
    fn max(self, other: Dual) -> Dual {
        if self.0 >= other.0 { self } else { other }
    }
    fn min(self, other: Dual) -> Dual {
        if self.0 <= other.0 { self } else { other }
    }
}

/// The IoU, and 1 - GIoU.
fn giou_loss([x1, y1, x2, y2]: [Dual; 4], target: [f64; 4]) -> [Dual; 2] {
    let [tx1, ty1, tx2, ty2] = target.map(|side| Dual(side, 0.0));
    let (zero, one, eps) = (Dual(0.0, 0.0), Dual(1.0, 0.0), Dual(EPS, 0.0));
    let overlap = (x2.min(tx2) - x1.max(tx1)).max(zero) * (y2.min(ty2) - y1.max(ty1)).max(zero);
    let union = ((x2 - x1) * (y2 - y1) + (tx2 - tx1) * (ty2 - ty1) - overlap).max(eps);
    let hull = ((x2.max(tx2) - x1.min(tx1)) * (y2.max(ty2) - y1.min(ty1))).max(eps);
    let iou = overlap / union;
    [iou, one - (iou - (hull - union) / hull)]
}
