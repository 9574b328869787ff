//! What a step of the head must give, by the plain formulas of `reference/`.

use gfocal_bench::Stored;
use gfocal_bench::head::pyramid::{BINS, SIDES};
use gfocal_bench::head::{Inputs, LevelInputs};
use gfocal_reference::{BoxLoss, Decoded, Normaliser, decoded_loss, dfl, distances, integral, qfl_row};

use crate::bench::cpu;

/// Of the classification, the box and the distribution loss.
const LOSS_WEIGHTS: [f64; 3] = [1.0, 2.0, 0.25];
const EPS: f64 = 1e-6;
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
        let divisors = Normaliser::Mmdetection.divisors(count as f64, weights);
        let factors = [0, 1, 2].map(|kind| LOSS_WEIGHTS[kind] / divisors[kind]);
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
        self.row(inputs, level, anchor).1.into_iter().map(|slope| slope * factor).collect()
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

    fn row<T: Stored>(&self, inputs: &Inputs<T>, level: usize, anchor: usize) -> (f64, Vec<f64>) {
        let quality = self.positive(level, anchor).map_or(0.0, |positive| positive.quality);
        let of_level = &inputs.levels[level];
        qfl_row(
            &of_level.channels(&of_level.cls, anchor, inputs.classes),
            of_level.labels[anchor],
            quality,
            2.0,
        )
    }

    /// The weighted sum over the anchors of a level, by all cores.
    fn classification<T: Stored>(&self, inputs: &Inputs<T>, i: usize, level: &LevelInputs<T>) -> f64 {
        let weighted = |anchor: usize| f64::from(level.label_weights[anchor]) * self.row(inputs, i, anchor).0;
        cpu::sum(level.labels.len(), weighted)
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

    let expected: [_; SIDES] = std::array::from_fn(|side| integral(sides[side]));
    let decoded = decoded_loss(BoxLoss::Giou, [x, y], expected.each_ref().map(|side| side.0), target, EPS);
    let Decoded { iou, loss: box_loss, slopes: of_sides } = decoded;
    let (mut dfl_loss, mut slopes) = (0.0, Vec::new());
    for (side, target) in distances([x, y], target).into_iter().enumerate() {
        let (value, of_dfl) = dfl(sides[side], target.clamp(0.0, LAST_TARGET));
        dfl_loss += value;
        let of_box = expected[side].1.iter().map(|by_logit| of_sides[side] * by_logit);
        slopes.extend(of_box.zip(of_dfl).map(|(of_box, of_dfl)| [of_box, of_dfl]));
    }
    Positive { anchor, quality: iou, weight: 1.0 / (1.0 + (-most).exp()), box_loss, dfl_loss, slopes }
}
