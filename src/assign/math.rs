//! The scalar maths of the assignment, in f32, one rounding at a time: so CUDA gives the same
//! bits. Its twin is in kernels/assign.cu: the same names in the same order.

use super::{AnchorGrid, Level};

/// The anchor at a row and a column of a grid.
pub(super) fn grid_box(grid: &AnchorGrid, y: usize, x: usize) -> [f32; 4] {
    let half = grid.size * 0.5;
    let (x, y) = ((x as f32 + grid.offset) * grid.stride, (y as f32 + grid.offset) * grid.stride);
    [x - half, y - half, x + half, y + half]
}

pub(super) fn centre(b: [f32; 4]) -> [f32; 2] {
    [(b[0] + b[2]) * 0.5, (b[1] + b[3]) * 0.5]
}

/// Whether a box can be a target at all.
pub(super) fn is_usable(b: [f32; 4]) -> bool {
    b.iter().all(|side| side.is_finite()) && b[0] < b[2] && b[1] < b[3]
}

/// Sorts anchors of a level by squared distance, then by number, the highest first: more than 0. What
/// is not finite comes last.
pub(super) fn distance_key(a: [f32; 2], b: [f32; 2], anchor: usize) -> u64 {
    let (x, y) = (a[0] - b[0], a[1] - b[1]);
    let distance = x * x + y * y;
    let bits = if distance <= f32::MAX { distance.to_bits() } else { f32::INFINITY.to_bits() };
    (u64::from(bits) << 32 | u64::from(!(anchor as u32))) + 1
}

/// The anchor of a [`distance_key`].
pub(super) fn near(key: u64) -> usize {
    !((key - 1) as u32) as usize
}

/// Intersection over union as mmdetection's `bbox_overlaps` has it in f32; 0 where an area is
/// beyond f32.
pub(super) fn iou(a: [f32; 4], b: [f32; 4]) -> f32 {
    let (w, h) = (a[2].min(b[2]) - a[0].max(b[0]), a[3].min(b[3]) - a[1].max(b[1]));
    let intersection = w * h;
    let areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]);
    let union = (areas - intersection).max(1e-6);
    if w > 0.0 && h > 0.0 && union <= f32::MAX { intersection / union } else { 0.0 }
}

/// Whether a point is more than 0.01 inside a box.
pub(super) fn is_inside(point: [f32; 2], b: [f32; 4]) -> bool {
    let (x, y) = (point[0], point[1]);
    x - b[0] > 0.01 && y - b[1] > 0.01 && b[2] - x > 0.01 && b[3] - y > 0.01
}

/// The part of an axis of a grid with the `topk` nearest positions: an anchor is among the k
/// nearest only if all that are between it and the nearest are too.
pub(super) fn window(at: f32, grid: &AnchorGrid, length: usize, topk: usize) -> [usize; 2] {
    let nearest = (at * (1.0 / grid.stride) - grid.offset).max(0.0).min(length as f32 - 1.0) as usize;
    let reach = topk + 1; // one for rounding
    [nearest.saturating_sub(reach), (nearest + reach).min(length - 1)]
}

/// Whether an IoU is at least mean + standard deviation of all candidates': with n of them, their
/// sum s, and d = n·IoU − s, it is d ≥ 0 and d²·(n − 1) ≥ Σ d². One alone has no deviation.
pub(super) struct Threshold {
    count: f64,
    sum: f64,
    squares: f64,
}

pub(super) fn threshold(ious: impl Iterator<Item = f32> + Clone) -> Threshold {
    let (mut count, mut sum) = (0.0, 0.0);
    for iou in ious.clone() {
        count += 1.0;
        sum += f64::from(iou);
    }
    let mut squares = 0.0;
    for iou in ious {
        let d = count * f64::from(iou) - sum;
        squares += d * d;
    }
    Threshold { count, sum, squares }
}

pub(super) fn reaches(iou: f32, t: &Threshold) -> bool {
    let d = t.count * f64::from(iou) - t.sum;
    d >= 0.0 && d * d * (t.count - 1.0) >= t.squares && t.count > 1.0
}

/// What an anchor keeps the largest of: the IoU, then the lower number of the box. 0: background.
pub(super) fn match_key(iou: f32, gt: usize) -> u64 {
    u64::from(iou.to_bits()) << 32 | u64::from(!(gt as u32))
}

/// The box of a [`match_key`].
pub(super) fn matched(key: u64) -> usize {
    !(key as u32) as usize
}

impl Level {
    /// The rows and columns in which the nearest anchors to a point are: first and last each.
    pub(super) fn window(&self, point: [f32; 2], topk: usize) -> [[usize; 2]; 2] {
        match &self.grid {
            Some(grid) => {
                [window(point[1], grid, self.height, topk), window(point[0], grid, self.width, topk)]
            }
            None => [[0, self.height - 1], [0, self.width - 1]],
        }
    }
}
