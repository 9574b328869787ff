//! What a step of the head loss must give: the plain formulas of `reference/`, and the library's table of semantics.
//! Shares no code with the library.

use gfocal::boxes::IouKind;
use gfocal::head::{BoxCoding, BoxWeight, Normaliser, Normalisers, QualitySource};
use gfocal::{Background, Status};
use gfocal_reference::{BoxLoss, Decoded, decoded_loss, dfl, distance, distances, qfl};

use super::super::tolerance::Want;
use super::{LevelScene, PointsAt, Scene};

/// What a call must give. `None`: nothing is promised of this element.
pub struct Expected {
    pub losses: Vec<Option<Want>>,
    pub grads: Vec<[Vec<Option<Want>>; 2]>,
    pub status: Status,
    pub normalisers: Normalisers,
}

pub fn box_loss(kind: IouKind) -> BoxLoss {
    match kind {
        IouKind::Iou => BoxLoss::Iou,
        IouKind::Giou => BoxLoss::Giou,
        IouKind::Diou => BoxLoss::Diou,
        IouKind::Ciou => BoxLoss::Ciou,
        IouKind::CiouUltralytics => BoxLoss::CiouUltralytics,
        other => panic!("{other:?} is not known here"),
    }
}

fn divisors(rule: Normaliser, Normalisers { positives, box_weights }: Normalisers) -> [f64; 3] {
    let rule = match rule {
        Normaliser::Mmdetection => gfocal_reference::Normaliser::Mmdetection,
        Normaliser::Nanodet => gfocal_reference::Normaliser::Nanodet,
        Normaliser::Ultralytics => gfocal_reference::Normaliser::Ultralytics,
    };
    rule.divisors(positives, box_weights)
}

/// What the targets say of an anchor.
enum Anchor {
    Nothing,
    Background,
    Positive(usize),
}

/// All of a positive before normalisation.
struct Positive {
    image: usize,
    position: usize,
    class: usize,
    q: f64,
    v: f64,
    /// Of its box losses.
    m: f64,
    iou_loss: f64,
    dfl_loss: f64,
    /// Of box loss and distribution loss, for each box logit; `None` where nothing is promised.
    grads: Vec<Option<[f64; 2]>>,
}

impl Scene {
    fn cls(&self, level: &LevelScene, image: usize, position: usize) -> Vec<f64> {
        let (classes, positions) = (self.classes, level.positions());
        (0..classes).map(|c| level.cls[(image * classes + c) * positions + position]).collect()
    }

    /// The logits of each side.
    pub fn sides(&self, level: &LevelScene, image: usize, position: usize) -> [Vec<f64>; 4] {
        let (bins, positions) = (self.box_channels() / 4, level.positions());
        [0, 1, 2, 3].map(|side| {
            let at = |bin| ((image * 4 + side) * bins + bin) * positions + position;
            (0..bins).map(|bin| level.boxes[at(bin)]).collect()
        })
    }

    fn anchor(&self, level: &LevelScene, anchor: usize, row: usize, status: &mut Status) -> Anchor {
        let (label, settings) = (level.labels[anchor], &self.settings);
        let masked = level.label_weights.as_ref().is_some_and(|weights| weights[anchor] == 0.0);
        if settings.ignore_label == Some(label) {
            return Anchor::Nothing;
        }
        let classes = i64::try_from(self.classes).expect("a small number");
        let class = match settings.background {
            Background::Last if label < 0 || label == classes => None,
            Background::First if label == 0 => None,
            Background::Last if label < classes => Some(label),
            Background::First if (1..=classes).contains(&label) => Some(label - 1),
            _ => {
                if !masked {
                    status.bad_labels += 1;
                    status.first_bad_row = status.first_bad_row.or(Some(row as u64));
                }
                return Anchor::Nothing;
            }
        };
        if !masked && self.scores(level, anchor).unwrap_or(&[]).iter().any(|score| score.is_nan()) {
            status.bad_qualities += 1;
            status.first_bad_row = status.first_bad_row.or(Some(row as u64));
            return Anchor::Nothing;
        }
        let Some(class) = class else { return Anchor::Background };
        let mut numbers = level.box_targets[4 * anchor..4 * anchor + 4].to_vec();
        numbers.extend(self.point(level, anchor));
        let needed = level.scores.is_none() || settings.box_weight == BoxWeight::Quality;
        let given = match (settings.quality, &level.quality) {
            (QualitySource::Given, Some(quality)) if needed => quality[anchor],
            _ => 0.0,
        };
        if settings.box_weight == BoxWeight::Given {
            numbers.push(level.box_scores.as_ref().expect("weights of boxes")[anchor]);
        }
        if given.is_nan() || numbers.iter().any(|x| !x.is_finite()) {
            status.bad_qualities += 1;
            status.first_bad_row = status.first_bad_row.or(Some(row as u64));
            return Anchor::Nothing;
        }
        Anchor::Positive(class as usize)
    }

    /// The targets of an anchor's elements, if they are given.
    fn scores<'a>(&self, level: &'a LevelScene, anchor: usize) -> Option<&'a [f64]> {
        let of_anchor = anchor * self.classes..(anchor + 1) * self.classes;
        level.scores.as_ref().map(|scores| &scores[of_anchor])
    }

    /// What an element is weighted by besides its label weight.
    fn element_weight(&self, level: &LevelScene, anchor: usize, class: usize) -> f64 {
        let of = |weights: &Option<Vec<f64>>, at: usize| weights.as_ref().map_or(1.0, |w| w[at]);
        of(&self.class_weights, class) * of(&level.element_weights, anchor * self.classes + class)
    }

    /// E of a side and its derivatives by the logits.
    pub fn distance(&self, z: &[f64]) -> (f64, Vec<f64>) {
        let coding = match self.settings.coding() {
            BoxCoding::Bins(_) => gfocal_reference::BoxCoding::Bins,
            BoxCoding::Exp => gfocal_reference::BoxCoding::Exp,
            BoxCoding::Relu => gfocal_reference::BoxCoding::Relu,
        };
        distance(coding, z)
    }

    /// In units of the stride.
    pub fn point(&self, level: &LevelScene, anchor: usize) -> [f64; 2] {
        let positions = level.positions();
        match &level.points {
            PointsAt::Grid(offset) => {
                let (x, y) = (anchor % positions % level.width, anchor % positions / level.width);
                [(x as f64 + offset) * level.stride / level.stride, (y as f64 + offset)]
            }
            PointsAt::Explicit(points) => {
                let at = if points.len() == 2 * positions { anchor % positions } else { anchor };
                [points[2 * at], points[2 * at + 1]].map(|x| x / level.stride)
            }
        }
    }

    fn positive(
        &self,
        level: &LevelScene,
        anchor: usize,
        class: usize,
        row: usize,
        status: &mut Status,
    ) -> Positive {
        let settings = &self.settings;
        let (image, position) = (anchor / level.positions(), anchor % level.positions());
        let (cls, sides) = (self.cls(level, image, position), self.sides(level, image, position));
        let point = self.point(level, anchor);
        let target = [0, 1, 2, 3].map(|i| level.box_targets[4 * anchor + i] / level.stride);
        let outputs = [0, 1, 2, 3].map(|side| self.distance(&sides[side]));
        let known = sides.iter().flatten().all(|z| z.is_finite()) && outputs.iter().all(|d| d.0.is_finite());
        let (kind, eps) = (box_loss(settings.iou), settings.iou_eps());
        let decoded = decoded_loss(kind, point, outputs.each_ref().map(|output| output.0), target, eps);
        let Decoded { iou, loss: iou_loss, slopes } = decoded;
        let q = match (settings.quality, &level.quality) {
            (QualitySource::Given, quality) => {
                quality.as_ref().map_or(f64::NAN, |quality| quality[anchor].clamp(0.0, 1.0))
            }
            _ if !known => f64::NAN,
            _ => iou.clamp(0.0, 1.0),
        };
        let most = cls.iter().fold(f64::NEG_INFINITY, |most, &x| most.max(x));
        let v = match settings.box_weight {
            BoxWeight::Quality => q,
            BoxWeight::MaxScore if cls.iter().any(|x| x.is_nan()) => f64::NAN,
            BoxWeight::MaxScore => 1.0 / (1.0 + (-most).exp()),
            BoxWeight::Given => level.box_scores.as_ref().expect("weights of boxes")[anchor],
        };
        let m = level.box_weights.as_ref().map_or(1.0, |weights| weights[anchor]);
        let bins = settings.numbers.is_none();

        let last = (settings.bins - 1) as f64 - settings.target_eps;
        let targets = distances(point, target);
        let beyond = targets.iter().filter(|&&t| t < 0.0 || t > last).count();
        if beyond > 0 && bins && m != 0.0 {
            status.out_of_range_targets += beyond as u32;
            status.first_bad_row = status.first_bad_row.or(Some(row as u64));
        }
        let (mut dfl_loss, mut grads) = (0.0, Vec::new());
        for side in 0..4 {
            let z = &sides[side];
            if z.iter().any(|z| !z.is_finite()) {
                dfl_loss = if bins { f64::NAN } else { 0.0 };
                grads.extend(z.iter().map(|z| (!z.is_finite()).then_some([f64::NAN; 2])));
                continue;
            }
            let (loss, of_dfl) = if bins { dfl(z, targets[side].clamp(0.0, last)) } else { (0.0, vec![0.0]) };
            dfl_loss += loss;
            let slope = slopes[side];
            let both = outputs[side].1.iter().zip(&of_dfl).map(|(integral, dfl)| [slope * integral, *dfl]);
            grads.extend(both.map(|both| known.then_some(both)));
        }
        let iou_loss = if known { iou_loss } else { f64::NAN };
        Positive { image, position, class, q, v, m, iou_loss, dfl_loss, grads }
    }
}

/// What the scene must give.
pub fn expect(scene: &Scene) -> Expected {
    let settings = &scene.settings;
    let (mut status, mut row) = (Status::default(), 0);
    let mut positives: Vec<Vec<Positive>> = Vec::new();
    // The weight of each anchor in the classification loss; 0 if it gives nothing.
    let mut weights: Vec<Vec<f64>> = Vec::new();
    for level in &scene.levels {
        let (mut of_level, mut weights_of_level) = (Vec::new(), Vec::new());
        for anchor in 0..scene.batch * level.positions() {
            let weight = level.label_weights.as_ref().map_or(1.0, |weights| weights[anchor]);
            weights_of_level.push(match scene.anchor(level, anchor, row, &mut status) {
                Anchor::Nothing => 0.0,
                Anchor::Background => weight,
                Anchor::Positive(class) => {
                    of_level.push(scene.positive(level, anchor, class, row, &mut status));
                    weight
                }
            });
            row += 1;
        }
        positives.push(of_level);
        weights.push(weights_of_level);
    }

    let all = || positives.iter().flatten();
    let sum_v: f64 = all().map(|positive| positive.v).sum();
    let of_image = |image| all().filter(|positive| positive.image == image).count();
    let count = match settings.normaliser {
        Normaliser::Mmdetection => (0..scene.batch).map(|image| of_image(image).max(1)).sum(),
        _ => all().count(),
    };
    let normalisers = Normalisers { positives: count as f64, box_weights: sum_v };
    let by = scene.normalisers.unwrap_or(normalisers);
    let divisors = divisors(settings.normaliser, by);
    let factors = [0, 1, 2].map(|i| settings.weights[i] / divisors[i]);
    // With a weight that is NaN nothing is promised of what W divides.
    let known = !by.box_weights.is_nan();

    let (mut losses, mut grads) = (Vec::new(), Vec::new());
    for (i, ((level, positives), weights)) in scene.levels.iter().zip(&positives).zip(&weights).enumerate() {
        let [of_cls_loss, of_box_loss, of_dfl_loss] = scene.grad_scales(i);
        let positions = level.positions();
        let mut sum = Want::ZERO;
        let mut add = |loss: f64, weight: f64, factor: f64, cancels: bool| {
            sum.value += loss * weight * factor;
            sum.magnitude += (loss * weight * factor).abs();
            sum.scale = sum.scale.max((weight * factor).abs());
            sum.cancels |= cancels;
        };
        let mut of_cls = vec![None; scene.batch * scene.classes * positions];
        let mut of_boxes = vec![Some(Want::ZERO); scene.batch * scene.box_channels() * positions];
        let known_cls = known || settings.normaliser != Normaliser::Ultralytics;
        for (anchor, &weight) in weights.iter().enumerate() {
            let (image, position) = (anchor / positions, anchor % positions);
            let positive = positives.binary_search_by_key(&anchor, |p| p.image * positions + p.position).ok();
            let positive = positive.map(|at| &positives[at]);
            for (c, x) in scene.cls(level, image, position).into_iter().enumerate() {
                let want = &mut of_cls[(image * scene.classes + c) * positions + position];
                if weight == 0.0 {
                    *want = Some(Want::ZERO);
                    continue;
                }
                let weight = weight * scene.element_weight(level, anchor, c);
                let y = match scene.scores(level, anchor) {
                    Some(scores) => scores[c].clamp(0.0, 1.0),
                    None => {
                        positive.filter(|positive| positive.class == c).map_or(0.0, |positive| positive.q)
                    }
                };
                let alpha = |alpha| if y.is_nan() { 1.0 } else { y * alpha + (1.0 - y) * (1.0 - alpha) };
                let weight = weight * settings.alpha.map_or(1.0, alpha);
                if weight == 0.0 {
                    *want = Some(Want::ZERO);
                    continue;
                }
                let (loss, grad) = if y.is_nan() { (f64::NAN, f64::NAN) } else { qfl(x, y, settings.beta) };
                add(loss, weight, factors[0], y > 0.0);
                let promised = known_cls || grad.is_nan();
                *want = promised.then(|| Want::new(grad, weight * factors[0] * of_cls_loss, y > 0.0));
            }
        }
        losses.push((known_cls || sum.value.is_nan()).then_some(sum));
        let (mut iou, mut dfl) = (Want::ZERO, Want::ZERO);
        for positive in positives.iter().filter(|positive| positive.m != 0.0) {
            let weight = positive.v * positive.m;
            for (want, loss, factor) in
                [(&mut iou, positive.iou_loss, factors[1]), (&mut dfl, positive.dfl_loss, factors[2])]
            {
                let value = weight * loss * factor;
                want.value += value;
                want.magnitude += value.abs();
                want.scale = want.scale.max((weight * factor).abs());
                want.cancels = true;
            }
            for (channel, grad) in positive.grads.iter().enumerate() {
                let at = (positive.image * scene.box_channels() + channel) * positions + positive.position;
                of_boxes[at] = grad.map(|[of_iou, of_dfl]| {
                    let [of_box_loss, of_dfl_loss] = [of_box_loss * factors[1], of_dfl_loss * factors[2]];
                    let [iou, dfl] = [of_iou * of_box_loss * weight, of_dfl * of_dfl_loss * weight];
                    Want {
                        value: iou + dfl,
                        magnitude: iou.abs() + dfl.abs(),
                        // A distance is rounded as a coordinate is, to so much of the largest.
                        scale: (of_box_loss * weight).abs().max((of_dfl_loss * weight).abs()),
                        cancels: true,
                    }
                });
                if !known && of_boxes[at].is_some_and(|want| want.value.is_finite()) {
                    of_boxes[at] = None;
                }
            }
        }
        for want in [iou, dfl] {
            losses.push((known || want.value.is_nan()).then_some(want));
        }
        grads.push([of_cls, of_boxes]);
    }
    Expected { losses, grads, status, normalisers }
}
