//! The classification loss of a level. Elements without a target above 0 go through vectors of f32,
//! whatever the layout; others, called labelled, and where f32 does not suit (logits that are not finite
//! or are f64, an extreme scale or beta), through the functions of math.rs. `W` is the type of what is
//! beside the logits.

use std::borrow::Cow;
use std::ops::{MulAssign, Range};

use super::order::{Block, Order, Run};
use super::positives::Anchors;
use crate::QualityFocalLoss;
use crate::cpu::fits_single;
use crate::element::Element;
use crate::math::{LossGrad, qfl_background, qfl_soft};
use crate::vector::{self, Beta, Isa};

/// The class logits of a level, but for themselves.
#[derive(Clone, Copy)]
pub struct OfClasses<'a, W> {
    pub isa: Isa,
    pub qfl: &'a QualityFocalLoss,
    /// Of the logits, and of the gradient: elements have the same numbers in both.
    pub orders: [Order; 2],
    pub anchors: &'a Anchors<W>,
    pub elements: Elements<'a, W>,
    /// What the gradients are multiplied by.
    pub factor: f64,
    pub look_for_inf: bool,
}

/// The class logits of a level, and what all blocks of it need.
pub(super) struct Classes<'a, T: Element> {
    pub of: OfClasses<'a, T::Loss>,
    logits: &'a [T],
    /// No weight is other than 1.
    plain: bool,
    /// f32 is enough.
    single: bool,
    /// The number of each labelled element and its target, in order. Scores are looked at tile by tile.
    labelled: Vec<(usize, f64)>,
}

/// What a call says of single elements.
#[derive(Clone, Copy)]
pub struct Elements<'a, W> {
    /// `[anchors, C]`: targets.
    pub scores: Option<&'a [W]>,
    /// `[anchors, C]`
    pub weights: Option<&'a [W]>,
    /// `[C]`
    pub class_weights: Option<&'a [W]>,
}

/// What α of focal loss multiplies an element with target `y` by.
fn of_target(alpha: Option<f64>, y: f64) -> f64 {
    alpha.map_or(1.0, |alpha| y * alpha + (1.0 - y) * (1.0 - alpha))
}

/// A weight times that; 0 stays 0, whatever the target.
fn weighted(weight: f64, alpha: Option<f64>, y: f64) -> f64 {
    if weight == 0.0 { 0.0 } else { weight * of_target(alpha, y) }
}

/// The least and the largest of some weights besides 0. NaN if one is.
fn range<W: Element>(weights: &[W]) -> [f64; 2] {
    let mut range = [f64::INFINITY, 0.0];
    for weight in weights.iter().map(|weight| weight.to_f64()).filter(|&weight| weight != 0.0) {
        let [least, most] = range;
        let size = weight.abs();
        // Written so that NaN stays.
        range = [
            if size < least || size.is_nan() { size } else { least },
            if size > most || size.is_nan() { size } else { most },
        ];
    }
    range
}

/// What a block gives: the sum of its losses, before normalisation.
#[derive(Clone, Copy, Default)]
pub struct Sum {
    pub loss: f64,
    pub not_finite: bool,
}

/// Elements that are computed at a time: few enough to stay in the nearest cache.
const TILE: usize = 1024;

/// Memory for the elements of a tile.
struct Room<T> {
    logits: Vec<T>,
    grad: Vec<T>,
    weights: Vec<f32>,
    others: Vec<T>,
}

impl<'a, T: Element> Classes<'a, T> {
    pub fn new(of: OfClasses<'a, T::Loss>, logits: &'a [T]) -> Self {
        let OfClasses { isa, qfl, orders, anchors, elements, factor, .. } = of;
        let (beta, alpha) = (qfl.beta, qfl.alpha);
        let (order, positions) = (&orders[1], orders[1].extents()[2]);
        let number = |anchor, class| {
            order.number(order.coordinates_of([anchor / positions, class, anchor % positions]))
        };
        let of_positives = anchors.positives.iter().filter(|_| elements.scores.is_none());
        let mut labelled: Vec<_> = of_positives
            .map(|positive| (number(positive.anchor, positive.class), positive.quality))
            .collect();
        labelled.sort_unstable_by_key(|&(element, _)| element);
        let background = of_target(alpha, 0.0);
        let fits = |weight: f64| fits_single(weight) && fits_single(weight * factor * background);
        let all =
            [Some(&anchors.weights[..]), elements.weights, elements.class_weights].into_iter().flatten();
        let ranges: Vec<_> = all.map(range).collect();
        let [least, most] = [0, 1].map(|end| ranges.iter().map(|range| range[end]).product());
        let all_masked = ranges.iter().any(|&[_, most]| most == 0.0);
        let single = T::SINGLE
            && background != 0.0 // it masks
            && (beta == 2.0 || Beta::new(isa, beta).is_some())
            && (all_masked || (fits(least) && fits(most)));
        let plain = elements.weights.or(elements.class_weights).is_none()
            && ranges == [[1.0, 1.0]]
            && anchors.weights.iter().all(|weight| weight.to_f64() == 1.0);
        Classes { of, logits, plain, single, labelled }
    }

    pub fn run(&self, block: &mut Block<T>) -> Sum {
        let mut room = Room::new(self);
        let mut sum = Sum::default();
        for start in block.elements.clone().step_by(TILE) {
            let tile = start..block.elements.end.min(start + TILE);
            let Room { logits: gathered, grad: to_scatter, .. } = &mut room;
            let (mut gathered, mut to_scatter) = (std::mem::take(gathered), std::mem::take(to_scatter));
            let [of_logits, of_gradient] = &self.of.orders;
            let together = of_gradient.contiguous(&tile);
            let x = match of_logits.contiguous(&tile) {
                Some(place) => &self.logits[place..place + tile.len()],
                None => {
                    let gathered = &mut gathered[..tile.len()];
                    of_logits.gather(tile.clone(), self.logits, gathered);
                    gathered
                }
            };
            let mut grad = match (block.part.as_deref_mut(), together) {
                (None, _) => None,
                (Some(part), Some(place)) => Some(&mut part[place - block.start..][..tile.len()]),
                (Some(_), None) => Some(&mut to_scatter[..tile.len()]),
            };
            if T::SINGLE && self.single {
                self.write_weights(tile.clone(), &mut room.weights);
            }
            sum.loss += self.tile(tile.clone(), x, grad.as_deref_mut(), &mut room);
            if let Some(grad) = &grad {
                sum.not_finite |= self.of.look_for_inf && T::any_not_finite(grad);
            }
            if let (Some(part), None) = (block.part.as_deref_mut(), together) {
                of_gradient.scatter(tile.clone(), &to_scatter[..tile.len()], part, block.start);
            }
            (room.logits, room.grad) = (gathered, to_scatter);
        }
        sum
    }

    /// The weights of the elements of a tile.
    fn write_weights<V: Element + MulAssign>(&self, tile: Range<usize>, weights: &mut [V]) {
        if self.plain {
            return; // They are 1 already.
        }
        let ([_, order], [further, next_class]) = (&self.of.orders, self.of.orders[1].step());
        let positions = order.extents()[2];
        for run in order.runs(tile.clone()) {
            let [image, class, position] = run.first;
            let weights = &mut weights[run.elements.start - tile.start..run.elements.end - tile.start];
            let anchors = &self.of.anchors.weights[image * positions + position..];
            let read = |weight: &T::Loss| V::from_f64(weight.to_f64());
            let write = |(to, from): (&mut V, &T::Loss)| *to = read(from);
            match further {
                0 => weights.fill(read(&anchors[0])),
                1 => weights.iter_mut().zip(anchors).for_each(write),
                _ => weights.iter_mut().zip(anchors.iter().step_by(further)).for_each(write),
            }
            let multiply = |(to, by): (&mut V, &T::Loss)| *to *= read(by);
            match self.of.elements.class_weights {
                Some(by) if next_class == 1 => weights.iter_mut().zip(&by[class..]).for_each(multiply),
                Some(by) => weights.iter_mut().for_each(|weight| *weight *= read(&by[class])),
                None => {}
            }
            if let Some(by) = self.of.elements.weights {
                weights.iter_mut().zip(self.of_run(&run, by)).for_each(multiply);
            }
        }
    }

    /// What the elements of a run have in a `[anchors, C]` tensor, from the first on.
    fn of_run<'v>(&self, run: &Run, values: &'v [T::Loss]) -> impl Iterator<Item = &'v T::Loss> + use<'v, T> {
        let order = &self.of.orders[1];
        let ([_, classes, positions], [further, next_class]) = (order.extents(), order.step());
        let [image, class, position] = run.first;
        let step = further * classes + next_class;
        values[(image * positions + position) * classes + class..].iter().step_by(step)
    }

    /// The labelled elements of a tile.
    fn labelled(&self, tile: Range<usize>) -> Cow<'_, [(usize, f64)]> {
        let Some(scores) = self.of.elements.scores else {
            let before = |end| self.labelled.partition_point(|&(element, _)| element < end);
            return Cow::Borrowed(&self.labelled[before(tile.start)..before(tile.end)]);
        };
        let of_run = |run: Run| {
            let scores = self.of_run(&run, scores).map(|score| score.to_f64());
            run.elements.zip(scores).filter(|&(_, score)| score > 0.0)
        };
        let labelled = self.of.orders[1].runs(tile).flat_map(of_run);
        labelled.map(|(element, score)| (element, score.min(1.0))).collect()
    }

    /// The loss of a tile; writes its gradient.
    fn tile(&self, tile: Range<usize>, x: &[T], grad: Option<&mut [T]>, room: &mut Room<T>) -> f64 {
        let (count, OfClasses { isa, qfl, factor: scale, .. }) = (tile.len(), self.of);
        let (beta, alpha) = (qfl.beta, qfl.alpha);
        let labelled = self.labelled(tile.clone());
        let labelled = &labelled[..];
        if !(T::SINGLE && self.single) {
            return self.double_tile(tile, x, labelled, grad);
        }
        let weights = &room.weights[..count];
        let mut single = x;
        if !(self.plain && labelled.is_empty()) {
            let others = &mut room.others[..count];
            for ((other, &x), &weight) in others.iter_mut().zip(x).zip(weights) {
                *other = if weight == 0.0 { T::NO_LOSS } else { x };
            }
            for &(element, _) in labelled {
                others[element - tile.start] = T::NO_LOSS;
            }
            single = others;
        }
        let given = if self.plain { &[] } else { weights };
        let background = of_target(alpha, 0.0);
        let factor = (scale * background) as f32;
        let mut grad = grad;
        let to = grad.as_deref_mut();
        let other = if beta == 2.0 { None } else { Beta::new(isa, beta) };
        let mut loss = background * vector::qfl_background(isa, other, single, given, factor, to);
        for &(element, quality) in labelled {
            let at = element - tile.start;
            let weight = weighted(f64::from(weights[at]), alpha, quality);
            if weight != 0.0 {
                let of_label = qfl_soft(x[at].to_f64(), quality, beta);
                loss += of_label.loss * weight;
                if let Some(grad) = &mut grad {
                    grad[at] = T::from_f64(of_label.grad * weight * scale);
                }
            }
        }
        if loss.is_finite() { loss } else { self.double_tile(tile, x, labelled, grad) }
    }

    /// The same, element by element.
    fn double_tile(
        &self,
        tile: Range<usize>,
        x: &[T],
        labelled: &[(usize, f64)],
        mut grad: Option<&mut [T]>,
    ) -> f64 {
        let (first, mut weights) = (tile.start, vec![1.0; x.len()]);
        let OfClasses { qfl: &QualityFocalLoss { beta, alpha, .. }, factor, .. } = self.of;
        self.write_weights::<f64>(tile, &mut weights);
        let (mut sum, mut labelled) = (0.0, labelled.iter().peekable());
        for (i, x) in x.iter().enumerate() {
            let quality = labelled.next_if(|&&(element, _)| element == first + i);
            let weight = weighted(weights[i], alpha, quality.map_or(0.0, |&(_, quality)| quality));
            let LossGrad { loss, grad: slope } = match quality {
                _ if weight == 0.0 => LossGrad { loss: 0.0, grad: 0.0 },
                Some(&(_, quality)) => qfl_soft(x.to_f64(), quality, beta),
                None => qfl_background(x.to_f64(), beta),
            };
            sum += loss * weight;
            if let Some(grad) = &mut grad {
                grad[i] = T::from_f64(slope * weight * factor);
            }
        }
        sum
    }
}

impl<T: Element> Room<T> {
    fn new(classes: &Classes<T>) -> Self {
        Room {
            logits: vec![T::from_f64(0.0); TILE],
            grad: vec![T::from_f64(0.0); TILE],
            weights: vec![1.0; TILE],
            others: vec![T::NO_LOSS; if classes.single { TILE } else { 0 }],
        }
    }
}
