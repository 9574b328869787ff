//! What the targets say of the anchors of a level: their weights in the classification loss, and
//! the positives with their boxes. All in f64.
//!
//! What the targets say alone comes first, then what class logits, and then what box logits add: so
//! little depends on their types, and nothing on both.

use crate::boxes::math::{IouLoss, distances_to_box, iou_loss};
use crate::cpu::map;
use crate::element::{Element, any_nan, same};
use crate::head::{BoxCoding, BoxWeight, HeadCall, HeadLoss, Layout, Level, Logits, Points, Targets};
use crate::math::{Softmax, TwoHot, dfl, exp_below, softmax, two_hot};
use crate::memory::Host;
use crate::qfl::Class;
use crate::status::Status;
use crate::vector::Isa;

/// A positive whose targets can be used.
pub struct Positive {
    /// Its number among the anchors of the level.
    pub anchor: usize,
    pub class: usize,
    /// q.
    pub quality: f64,
    /// v.
    weight: f64,
    /// What its box losses are multiplied by, and their gradients: v, times its weight there. `None`:
    /// they are masked.
    pub box_factor: Option<f64>,
    pub sides: [Side; 4],
    /// 1 - IoU or its variant.
    iou_loss: f64,
}

/// A side of a positive's box.
pub struct Side {
    /// Of the box loss, with respect to E.
    slope: f64,
    /// E.
    distance: f64,
    code: Code,
}

/// What the logits of a side are.
enum Code {
    Bins {
        softmax: Softmax,
        target: TwoHot,
        dfl: f64,
    },
    /// One number, by which the derivative of E is this.
    Number(f64),
}

impl Side {
    /// The gradient with respect to the logit `z` of a bin.
    pub fn grad(&self, bin: usize, z: f64, [of_iou, of_dfl]: [f64; 2]) -> f64 {
        match &self.code {
            Code::Bins { softmax, target, .. } => {
                let p = exp_below(z, softmax.peak) / softmax.total;
                let share = match bin.wrapping_sub(target.left) {
                    0 => target.left_weight,
                    1 => target.right_weight,
                    _ => 0.0,
                };
                of_iou * self.slope * p * (bin as f64 - self.distance) + of_dfl * (p - share)
            }
            Code::Number(derivative) => of_iou * (self.slope * derivative),
        }
    }

    fn dfl(&self) -> f64 {
        match self.code {
            Code::Bins { dfl, .. } => dfl,
            Code::Number(_) => 0.0,
        }
    }
}

/// The anchors of a level.
pub struct Anchors<W> {
    /// Of each in the classification loss; 0 masks it.
    pub weights: Vec<W>,
    pub positives: Vec<Positive>,
    pub status: Status,
}

impl<W> Anchors<W> {
    /// The sums of v, and of the box losses and the four distribution losses times v and their weights.
    pub fn sums(&self) -> [f64; 3] {
        self.positives.iter().fold([0.0; 3], |[weights, iou, dfl], positive| {
            let weights = weights + positive.weight;
            let Some(factor) = positive.box_factor else { return [weights, iou, dfl] };
            let of_sides: f64 = positive.sides.iter().map(Side::dfl).sum();
            [weights, iou + factor * positive.iou_loss, dfl + factor * of_sides]
        })
    }
}

/// A level without its tensors.
#[derive(Clone, Copy)]
pub struct Frame<'h> {
    head: &'h HeadLoss,
    batch: usize,
    classes: usize,
    positions: usize,
    width: usize,
    stride: f64,
    /// The number of its first anchor in the status.
    first: usize,
}

/// A level with its targets, in the type of what is beside the class logits.
#[derive(Clone, Copy)]
pub struct Given<'h, 'a, W: Element> {
    frame: Frame<'h>,
    targets: Targets<'a, Host, W>,
    points: Points<'a, Host, W>,
}

/// Anchors that a thread takes at a time.
const CHUNK: usize = 4096;

/// Looks at the anchors of a level, the first of which is `first` in the status.
pub(super) fn anchors<T: Element, U: Element>(
    &HeadCall { head, batch, classes, .. }: &HeadCall<Host, T, U>,
    level: &Level<Host, T, U>,
    first: usize,
) -> Anchors<T::Loss> {
    let (positions, width, stride) = (level.positions(), level.width, level.stride);
    let frame = Frame { head, batch, classes, positions, width, stride, first };
    let given = Given { frame, targets: level.targets, points: level.points };
    let (cls, boxes) = both(&level.logits);
    T::anchors(&given, &|targets| {
        let tops = match head.box_weight {
            BoxWeight::MaxScore => T::tops(&frame, cls, &level.cls_layout, &targets),
            BoxWeight::Quality | BoxWeight::Given => vec![],
        };
        U::positives(&frame, boxes, &level.box_layout, targets, &tops)
    })
}

/// The targets of a positive, in units of the stride.
pub struct Target {
    anchor: usize,
    class: usize,
    point: [f64; 2],
    corners: [f64; 4],
    /// Of the sides from the point.
    distances: [f64; 4],
    quality: Option<f64>,
    /// v, if it is given.
    box_score: Option<f64>,
    box_weight: f64,
}

/// What makes positives of their targets.
pub type Finish<'f> = dyn Fn(Vec<Target>) -> Vec<Positive> + Sync + 'f;

impl<W: Element> Given<'_, '_, W> {
    /// All anchors, whose positives are what `finish` makes of their targets.
    pub fn anchors(&self, finish: &Finish) -> Anchors<W> {
        let mut weights = vec![W::from_f64(0.0); self.frame.batch * self.frame.positions];
        let look = |(chunk, weights): (usize, &mut [W])| {
            let (targets, status) = self.look(chunk * CHUNK, weights);
            (finish(targets), status)
        };
        let chunks = map(8 * weights.len(), weights.chunks_mut(CHUNK).enumerate(), look);
        let mut anchors = Anchors { weights, positives: Vec::new(), status: Status::default() };
        for (positives, status) in chunks {
            anchors.positives.extend(positives);
            anchors.status.append(&status);
        }
        anchors
    }

    /// Looks at the targets of some anchors, from `start` of the level on.
    fn look(&self, start: usize, weights: &mut [W]) -> (Vec<Target>, Status) {
        let (mut targets, mut status) = (Vec::new(), Status::default());
        let Frame { head, classes, first, .. } = self.frame;
        let max = head.target_max();
        for (anchor, weight) in (start..).zip(weights) {
            let given = self.targets.label_weights.map_or(W::from_f64(1.0), |weights| weights[anchor]);
            let masked = given.to_f64() == 0.0;
            match head.qfl.class_of(self.targets.labels.get(anchor), classes) {
                Class::Ignored => {}
                Class::Invalid if masked => {}
                Class::Invalid => status.bad_label(first + anchor),
                _ if !masked && self.has_bad_scores(anchor) => status.bad_quality(first + anchor),
                Class::Background => *weight = given,
                Class::Foreground(class) => {
                    let Some(target) = self.target(anchor, class) else {
                        status.bad_quality(first + anchor);
                        continue;
                    };
                    if target.box_weight != 0.0 && max.is_finite() {
                        let beyond = target.distances.iter().filter(|side| !(0.0..=max).contains(*side));
                        beyond.for_each(|_| status.out_of_range_target(first + anchor));
                    }
                    targets.push(target);
                    *weight = given;
                }
            }
        }
        (targets, status)
    }

    /// Whether a score of the anchor is NaN.
    fn has_bad_scores(&self, anchor: usize) -> bool {
        let classes = self.frame.classes;
        let row = |scores: &[W]| any_nan(Isa::detect(), &scores[anchor * classes..(anchor + 1) * classes]);
        self.targets.scores.is_some_and(row)
    }

    /// `None` if one of the targets is not a number to compute with.
    fn target(&self, anchor: usize, class: usize) -> Option<Target> {
        let (Frame { head, positions, width, stride, .. }, targets) = (self.frame, &self.targets);
        let position = anchor % positions;
        let point = match self.points {
            Points::Grid { offset } => [position % width, position / width].map(|at| at as f64 + offset),
            Points::Explicit(points) => {
                let of_batch = points.len() == 2 * targets.labels.len();
                let at = 2 * if of_batch { anchor } else { position };
                [points[at], points[at + 1]].map(|at| at.to_f64() / stride)
            }
        };
        let corners = [0, 1, 2, 3].map(|i| targets.boxes[4 * anchor + i].to_f64() / stride);
        let of_anchor = |values: &[W]| values[anchor].to_f64();
        let reads_quality = head.reads_quality(targets.scores.is_some());
        let quality = targets.quality.filter(|_| reads_quality).map(of_anchor);
        let box_score = targets.box_scores.filter(|_| head.box_weight == BoxWeight::Given).map(of_anchor);
        let usable = corners.iter().chain(&point).all(|x| x.is_finite())
            && !quality.is_some_and(f64::is_nan)
            && box_score.is_none_or(f64::is_finite);
        let ([x, y], [x1, y1, x2, y2]) = (point, corners);
        usable.then_some(Target {
            anchor,
            class,
            point,
            corners,
            distances: [x - x1, y - y1, x2 - x, y2 - y],
            quality,
            box_score,
            box_weight: targets.box_weights.map_or(1.0, of_anchor),
        })
    }
}

impl Frame<'_> {
    /// The largest class logit of each positive; NaN if one is.
    pub fn tops<T: Element>(&self, cls: &[T], layout: &Layout, targets: &[Target]) -> Vec<f64> {
        let top = |target: &Target| {
            let (image, position) = (target.anchor / self.positions, target.anchor % self.positions);
            let logits = (0..self.classes).map(|c| cls[layout.place(image, c, position)].to_f64());
            // Not f64::max, which would hide a NaN.
            logits.fold(f64::NEG_INFINITY, |most, x| if x > most || x.is_nan() { x } else { most })
        };
        targets.iter().map(top).collect()
    }

    /// The positives; `tops` if they are weighted by their largest scores.
    pub fn positives<U: Element>(
        &self,
        boxes: &[U],
        layout: &Layout,
        targets: Vec<Target>,
        tops: &[f64],
    ) -> Vec<Positive> {
        let mut tops = tops.iter();
        // Together, because in most layouts each is in a part of memory of its own.
        let mut z = vec![0.0; self.head.box_channels()];
        let positive = |target: Target| {
            let (image, position) = (target.anchor / self.positions, target.anchor % self.positions);
            for (channel, z) in z.iter_mut().enumerate() {
                *z = boxes[layout.place(image, channel, position)].to_f64();
            }
            self.positive(target, &z, tops.next().copied())
        };
        targets.into_iter().map(positive).collect()
    }

    /// A positive with these box logits, and this largest class logit.
    fn positive(&self, target: Target, z: &[f64], top: Option<f64>) -> Positive {
        let head = self.head;
        let mut sides = z.chunks_exact(head.bins()).zip(target.distances).map(|(z, t)| side(head, z, t));
        let mut sides = [(); 4].map(|()| sides.next().expect("four sides"));
        let distances = [0, 1, 2, 3].map(|i| sides[i].distance);
        let pred = distances_to_box(target.point, distances);
        let IouLoss { mut iou, mut loss, grad } = iou_loss(head.iou, pred, target.corners, head.iou_eps);
        let bad = !distances.iter().all(|distance| distance.is_finite());
        if bad {
            // A box without end has an IoU, but no loss to learn from.
            (iou, loss) = (f64::NAN, f64::NAN);
        }
        for (i, side) in sides.iter_mut().enumerate() {
            side.slope = if bad {
                f64::NAN
            } else if i < 2 {
                -grad[i]
            } else {
                grad[i]
            };
        }
        let quality = target.quality.unwrap_or(iou).clamp(0.0, 1.0);
        let weight = match (head.box_weight, target.box_score, top) {
            (BoxWeight::Given, Some(score), _) => score,
            (BoxWeight::MaxScore, _, Some(top)) => 1.0 / (1.0 + (-top).exp()),
            _ => quality,
        };
        let box_factor = (target.box_weight != 0.0).then_some(weight * target.box_weight);
        let Target { anchor, class, .. } = target;
        Positive { anchor, class, quality, weight, box_factor, sides, iou_loss: loss }
    }
}

/// The side of a box with these logits, and this target. The slope is still to come.
fn side(head: &HeadLoss, z: &[f64], target: f64) -> Side {
    let bins = match head.coding {
        BoxCoding::Bins(bins) => bins,
        BoxCoding::Exp | BoxCoding::Relu => {
            let (distance, derivative) = number(head.coding, z[0]);
            return Side { slope: 0.0, distance, code: Code::Number(derivative) };
        }
    };
    let softmax = softmax(z.iter().copied());
    let weighted = z.iter().enumerate().map(|(bin, &z)| bin as f64 * exp_below(z, softmax.peak));
    let distance = weighted.sum::<f64>() / softmax.total;
    let target = two_hot(target.clamp(0.0, head.target_max()), bins);
    let dfl = dfl(&target, &softmax, z[target.left], z[target.left + 1]);
    Side { slope: 0.0, distance, code: Code::Bins { softmax, target, dfl } }
}

/// E and its derivative, for one logit. Above 300 exp(z) counts as infinite, so that areas never are.
fn number(coding: BoxCoding, z: f64) -> (f64, f64) {
    if !z.is_finite() {
        return (f64::NAN, f64::NAN);
    }
    match coding {
        BoxCoding::Relu => (z.max(0.0), f64::from(u8::from(z > 0.0))),
        _ if z > 300.0 => (f64::INFINITY, f64::INFINITY),
        _ => (z.exp(), z.exp()),
    }
}

/// Class logits and box logits.
pub(super) fn both<'a, T: Element, U: Element>(logits: &Logits<'a, Host, T, U>) -> (&'a [T], &'a [U]) {
    match *logits {
        Logits::Separate { cls, boxes } => (cls, boxes),
        Logits::Joint(both) => (both, same(both).expect("joint logits are of one type")),
    }
}
