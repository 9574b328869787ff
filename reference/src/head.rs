//! Equations (10) to (13): from the logits of four sides to the loss of a box, and what sums are divided by.

use std::ops::{Add, Sub};

use crate::{BoxLoss, Dual, box_loss, integral};

/// What the logits of a side say of its distance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BoxCoding {
    /// A distribution over bins, of which it is the expectation.
    Bins,
    /// One number, of which it is the exponential.
    Exp,
    /// One number, which it is if that is above 0, else 0.
    Relu,
}

/// (10): E of a side and its derivatives by the logits. NaN if a logit is not finite.
pub fn distance(coding: BoxCoding, z: &[f64]) -> (f64, Vec<f64>) {
    match coding {
        _ if !z.iter().all(|z| z.is_finite()) => (f64::NAN, vec![f64::NAN; z.len()]),
        BoxCoding::Bins => integral(z),
        BoxCoding::Exp => (z[0].exp(), vec![z[0].exp()]),
        BoxCoding::Relu => (z[0].max(0.0), vec![if z[0] > 0.0 { 1.0 } else { 0.0 }]),
    }
}

/// (10): the box that has these distances to a point.
pub fn box_around<T>([x, y]: [T; 2], [left, top, right, bottom]: [T; 4]) -> [T; 4]
where
    T: Copy + Add<Output = T> + Sub<Output = T>,
{
    [x - left, y - top, x + right, y + bottom]
}

/// What the distances of a positive come to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Decoded {
    /// With the target box.
    pub iou: f64,
    /// Of the box.
    pub loss: f64,
    /// Its derivatives by left, top, right and bottom.
    pub slopes: [f64; 4],
}

/// (10), (12): the loss of the box that has these distances to a point, against a target box.
pub fn decoded_loss(
    kind: BoxLoss,
    [x, y]: [f64; 2],
    distances: [f64; 4],
    target: [f64; 4],
    eps: f64,
) -> Decoded {
    let by = |side: usize| {
        let e = |other: usize| Dual(distances[other], if other == side { 1.0 } else { 0.0 });
        let pred = box_around([x, y].map(Dual::constant), [0, 1, 2, 3].map(e));
        box_loss(kind, pred, target, eps)
    };
    let losses = [0, 1, 2, 3].map(by);
    let [iou, loss] = losses[0].map(|dual| dual.0);
    Decoded { iou, loss, slopes: losses.map(|[_, loss]| loss.1) }
}

/// (10) the other way: the distances of a point to the sides of a box, negative outside.
pub fn distances([x, y]: [f64; 2], [x1, y1, x2, y2]: [f64; 4]) -> [f64; 4] {
    [x - x1, y - y1, x2 - x, y2 - y]
}

/// Whose rule says what the sums of a head are divided by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Normaliser {
    /// mmdetection's `GFLHead`.
    Mmdetection,
    /// NanoDet's `NanoDetPlusHead`.
    Nanodet,
    /// Ultralytics' `v8DetectionLoss`.
    Ultralytics,
}

impl Normaliser {
    /// (13): D of the classification, the box and the distribution loss, from how many positives there are and the
    /// sum of their box weights.
    pub fn divisors(self, positives: f64, box_weights: f64) -> [f64; 3] {
        let (w, eps) = (box_weights.max(1.0), 2f64.powi(-23));
        match self {
            Normaliser::Mmdetection => [positives + eps, w * (1.0 + eps), w * (4.0 + eps)],
            Normaliser::Nanodet => [positives.max(1.0), w, 4.0 * w],
            Normaliser::Ultralytics => [w, w, 4.0 * w],
        }
    }
}
