//! What the targets say of the anchors of a level: their weights in the classification loss, and
//! the positives with their boxes. All in f64.

use rayon::prelude::*;

use crate::boxes::math::{IouLoss, distances_to_box, iou_loss};
use crate::cpu::Host;
use crate::element::Element;
use crate::head::{BoxWeight, HeadLoss, Level, Logits, Points, QualitySource};
use crate::math::{Softmax, TwoHot, dfl, exp_below, softmax, two_hot};
use crate::qfl::Class;
use crate::status::Status;

/// A positive whose targets can be used.
pub(super) struct Positive {
    /// Its number among the anchors of the level.
    pub anchor: usize,
    pub class: usize,
    /// q.
    pub quality: f64,
    /// v.
    pub weight: f64,
    pub sides: [Side; 4],
    /// 1 - IoU or its variant.
    iou_loss: f64,
}

/// A side of a positive's box.
pub(super) struct Side {
    softmax: Softmax,
    /// E.
    distance: f64,
    /// Of the box loss, with respect to E.
    slope: f64,
    target: TwoHot,
    dfl: f64,
}

impl Side {
    /// The gradient with respect to the logit `z` of a bin.
    pub fn grad(&self, bin: usize, z: f64, [of_iou, of_dfl]: [f64; 2]) -> f64 {
        let p = exp_below(z, self.softmax.peak) / self.softmax.total;
        let share = match bin.wrapping_sub(self.target.left) {
            0 => self.target.left_weight,
            1 => self.target.right_weight,
            _ => 0.0,
        };
        of_iou * self.slope * p * (bin as f64 - self.distance) + of_dfl * (p - share)
    }
}

/// The anchors of a level.
#[derive(Default)]
pub(super) struct Anchors {
    /// Of each in the classification loss; 0 masks it.
    pub weights: Vec<f32>,
    /// The least and the largest weight besides 0. NaN if one is.
    pub weight_range: [f32; 2],
    pub positives: Vec<Positive>,
    pub status: Status,
}

impl Anchors {
    /// Whether no anchor needs a look at its weight.
    pub fn is_plain(&self) -> bool {
        self.weight_range == [1.0, 1.0] && self.weights.iter().all(|&weight| weight == 1.0)
    }

    /// The sums of v, of v times the box loss, and of v times the four distribution losses.
    pub fn sums(&self) -> [f64; 3] {
        self.positives.iter().fold([0.0; 3], |[weights, iou, dfl], positive| {
            let v = positive.weight;
            let of_sides: f64 = positive.sides.iter().map(|side| side.dfl).sum();
            [weights + v, iou + v * positive.iou_loss, dfl + v * of_sides]
        })
    }
}

/// Anchors that a thread takes at a time.
const CHUNK: usize = 4096;

/// Looks at the anchors of a level, the first of which is `first` in the status.
pub(super) fn anchors<T: Element>(
    head: &HeadLoss,
    level: &Level<Host, T>,
    batch: usize,
    classes: usize,
    first: usize,
) -> Anchors {
    let mut weights = vec![0.0; batch * level.positions()];
    let look =
        |(chunk, weights): (usize, &mut [f32])| look(head, level, classes, first, chunk * CHUNK, weights);
    let chunks: Vec<_> = if weights.len() <= CHUNK {
        weights.chunks_mut(CHUNK).enumerate().map(look).collect()
    } else {
        weights.par_chunks_mut(CHUNK).enumerate().map(look).collect()
    };
    let mut anchors = Anchors { weight_range: [f32::INFINITY, 0.0], ..Anchors::default() };
    for (positives, status) in chunks {
        anchors.positives.extend(positives);
        anchors.status.append(&status);
    }
    for &weight in weights.iter().filter(|&&weight| weight != 0.0) {
        let [least, most] = anchors.weight_range;
        let size = weight.abs();
        // Written so that NaN stays.
        anchors.weight_range = [
            if size < least || size.is_nan() { size } else { least },
            if size > most || size.is_nan() { size } else { most },
        ];
    }
    anchors.weights = weights;
    anchors
}

/// Looks at some anchors, from `start` of the level on.
fn look<T: Element>(
    head: &HeadLoss,
    level: &Level<Host, T>,
    classes: usize,
    first: usize,
    start: usize,
    weights: &mut [f32],
) -> (Vec<Positive>, Status) {
    let (mut positives, mut status) = (Vec::new(), Status::default());
    for (anchor, weight) in (start..).zip(weights) {
        let given = level.targets.label_weights.map_or(1.0, |weights| weights[anchor]);
        match head.qfl.class_of(level.targets.labels.get(anchor), classes) {
            Class::Background => *weight = given,
            Class::Ignored => {}
            Class::Invalid if given == 0.0 => {}
            Class::Invalid => status.bad_label(first + anchor),
            Class::Foreground(class) => {
                if let Some(target) = target(head, level, anchor) {
                    positives.push(positive(head, level, classes, anchor, class, &target, |beyond| {
                        (0..beyond).for_each(|_| status.out_of_range_target(first + anchor));
                    }));
                    *weight = given;
                } else {
                    status.bad_quality(first + anchor);
                }
            }
        }
    }
    (positives, status)
}

/// The targets of a positive, in units of the stride.
struct Target {
    point: [f64; 2],
    corners: [f64; 4],
    quality: Option<f64>,
}

/// `None` if one of them is not a number to compute with.
fn target<T: Element>(head: &HeadLoss, level: &Level<Host, T>, anchor: usize) -> Option<Target> {
    let positions = level.positions();
    let point = match level.points {
        Points::Grid { offset } => {
            let position = anchor % positions;
            [position % level.width, position / level.width].map(|at| at as f64 + offset)
        }
        Points::Explicit(points) => {
            let of_batch = points.len() == 2 * level.targets.labels.len();
            let at = 2 * if of_batch { anchor } else { anchor % positions };
            [points[at], points[at + 1]].map(|at| f64::from(at) / level.stride)
        }
    };
    let corners = [0, 1, 2, 3].map(|i| f64::from(level.targets.boxes[4 * anchor + i]) / level.stride);
    let quality = match (head.quality, level.targets.quality) {
        (QualitySource::Given, Some(quality)) => Some(f64::from(quality[anchor])),
        _ => None,
    };
    let usable = corners.iter().chain(&point).all(|x| x.is_finite()) && !quality.is_some_and(f64::is_nan);
    usable.then_some(Target { point, corners, quality })
}

/// `out_of_range` is told how many sides of its target box are beyond the bins.
fn positive<T: Element>(
    head: &HeadLoss,
    level: &Level<Host, T>,
    classes: usize,
    anchor: usize,
    class: usize,
    target: &Target,
    out_of_range: impl FnOnce(usize),
) -> Positive {
    let (cls, boxes) = both(&level.logits);
    let (image, position) = (anchor / level.positions(), anchor % level.positions());
    let bins = head.bins;
    // Together, because in most layouts each is in a part of memory of its own.
    let logit = |channel| boxes[level.box_layout.place(image, channel, position)].to_f64();
    let z: Vec<f64> = (0..4 * bins).map(logit).collect();

    let softmaxes = [0, 1, 2, 3].map(|side| softmax(z[side * bins..][..bins].iter().copied()));
    let distances = [0, 1, 2, 3].map(|side| {
        let Softmax { peak, total, .. } = softmaxes[side];
        let z = z[side * bins..][..bins].iter().enumerate();
        z.map(|(bin, &z)| bin as f64 * exp_below(z, peak)).sum::<f64>() / total
    });
    let pred = distances_to_box(target.point, distances);
    let IouLoss { iou, loss: iou_loss, grad } = iou_loss(head.iou, pred, target.corners, head.iou_eps);
    let quality = target.quality.unwrap_or(iou).clamp(0.0, 1.0);
    let weight = match head.box_weight {
        BoxWeight::Quality => quality,
        BoxWeight::MaxScore => {
            let logits = (0..classes).map(|c| cls[level.cls_layout.place(image, c, position)].to_f64());
            // Not f64::max, which would hide a NaN.
            let most =
                logits.fold(f64::NEG_INFINITY, |most, x| if x > most || x.is_nan() { x } else { most });
            1.0 / (1.0 + (-most).exp())
        }
    };

    let ([x, y], [x1, y1, x2, y2]) = (target.point, target.corners);
    let max = (bins - 1) as f64 - head.dfl.target_eps;
    let targets = [x - x1, y - y1, x2 - x, y2 - y];
    out_of_range(targets.iter().filter(|target| !(0.0..=max).contains(*target)).count());
    let mut side = 0;
    let sides = softmaxes.map(|softmax| {
        let target = two_hot(targets[side].clamp(0.0, max), bins);
        let first = side * bins + target.left;
        let of_side = Side {
            distance: distances[side],
            slope: if side < 2 { -grad[side] } else { grad[side] },
            dfl: dfl(&target, &softmax, z[first], z[first + 1]),
            target,
            softmax,
        };
        side += 1;
        of_side
    });
    Positive { anchor, class, quality, weight, sides, iou_loss }
}

/// Class logits and box logits.
pub(super) fn both<'a, T: Element>(logits: &Logits<'a, Host, T>) -> (&'a [T], &'a [T]) {
    match *logits {
        Logits::Separate { cls, boxes } => (cls, boxes),
        Logits::Joint(both) => (both, both),
    }
}
