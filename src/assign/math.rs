//! The scalar maths of the assignments, in f32, one rounding at a time: so CUDA gives the same
//! bits. Its twin is in kernels/assign.cuh: the same names in the same order.

use super::AnchorGrid;

/// The position at a row and a column of a grid.
pub(super) fn grid_point(grid: &AnchorGrid, y: usize, x: usize) -> [f32; 2] {
    [(x as f32 + grid.offset) * grid.stride, (y as f32 + grid.offset) * grid.stride]
}

/// The anchor at a row of a grid, and a place in it: the anchors of a position follow each other.
pub(super) fn grid_box(grid: &AnchorGrid, y: usize, place: usize) -> [f32; 4] {
    let [x, y] = grid_point(grid, y, place / grid.count);
    let [width, height] = grid.sizes[place % grid.count].map(|side| side * 0.5);
    [x - width, y - height, x + width, y + height]
}

pub(super) fn centre(b: [f32; 4]) -> [f32; 2] {
    [(b[0] + b[2]) * 0.5, (b[1] + b[3]) * 0.5]
}

/// Whether a box can be a target at all.
pub(super) fn is_usable(b: [f32; 4]) -> bool {
    b.iter().all(|side| side.is_finite()) && b[0] < b[2] && b[1] < b[3]
}

/// How many positions of an axis are in a valid size, ⌈pixels / stride⌉ if there are so many.
pub(super) fn valid_positions(pixels: i64, stride: f32, length: usize) -> usize {
    let (mut low, mut high) = (0, length);
    while low < high {
        let middle = low + (high - low) / 2;
        if middle as f64 * f64::from(stride) < pixels as f64 {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low
}

/// Whether a point is in a valid size.
pub(super) fn is_valid(point: [f32; 2], [height, width]: [i64; 2]) -> bool {
    f64::from(point[0]) < width as f64 && f64::from(point[1]) < height as f64
}

/// Sorts anchors by squared distance, then by number, the highest first: more than 0. What is not
/// finite comes last.
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

pub(super) fn area(b: [f32; 4]) -> f32 {
    (b[2] - b[0]) * (b[3] - b[1])
}

/// Width and height of the intersection, if they are above 0.
fn both(a: [f32; 4], b: [f32; 4]) -> [f32; 2] {
    [a[2].min(b[2]) - a[0].max(b[0]), a[3].min(b[3]) - a[1].max(b[1])]
}

/// Intersection over union as mmdetection's `bbox_overlaps` has it in f32; 0 where an area is
/// beyond f32.
pub(super) fn iou(a: [f32; 4], b: [f32; 4]) -> f32 {
    let [w, h] = both(a, b);
    let intersection = w * h;
    let union = (area(a) + area(b) - intersection).max(1e-6);
    if w > 0.0 && h > 0.0 && union <= f32::MAX { intersection / union } else { 0.0 }
}

/// Likewise intersection over the area of `a`.
pub(super) fn iof(a: [f32; 4], b: [f32; 4]) -> f32 {
    let [w, h] = both(a, b);
    let of = area(a).max(1e-6);
    if w > 0.0 && h > 0.0 && of <= f32::MAX { w * h / of } else { 0.0 }
}

/// Whether a point is more than 0.01 inside a box.
pub(super) fn is_inside(point: [f32; 2], b: [f32; 4]) -> bool {
    distances(point, b).iter().all(|&side| side > 0.01)
}

/// How far the sides of a box are from a point in it: left, top, right, bottom.
pub(super) fn distances([x, y]: [f32; 2], b: [f32; 4]) -> [f32; 4] {
    [x - b[0], y - b[1], b[2] - x, b[3] - y]
}

/// A position on an axis of a grid, in strides; and the nearest whole one of `length`, or its
/// neighbour.
fn position(at: f32, grid: &AnchorGrid, length: usize) -> (f32, usize) {
    let at = at * (1.0 / grid.stride) - grid.offset;
    (at, clamped(at, length))
}

fn clamped(at: f32, length: usize) -> usize {
    at.max(0.0).min(length as f32 - 1.0) as usize
}

/// The part of the first rows and columns of a grid in which the `count` nearest positions to a
/// point are: the first and the last of each.
///
/// Two reasons keep it small. A position is among the nearest only if all that are between it and
/// the nearest one along an axis are too. And if a square around that one has so many positions,
/// none of the nearest is further away than the square's corners.
pub(super) fn window(
    point: [f32; 2],
    grid: &AnchorGrid,
    [rows, columns]: [usize; 2],
    count: usize,
) -> [[usize; 2]; 2] {
    let (x, column) = position(point[0], grid, columns);
    let (y, row) = position(point[1], grid, rows);
    let around = |nearest: usize, reach: usize, length: usize| {
        [nearest.saturating_sub(reach), (nearest + reach).min(length - 1)]
    };
    let mut reach = 0;
    let [high, wide] = loop {
        let square = [around(row, reach, rows), around(column, reach, columns)];
        let [high, wide] = square.map(|[first, last]| last - first + 1);
        if high * wide >= count || (high == rows && wide == columns) {
            break square;
        }
        reach += 1;
    };
    // No less than the distance to the furthest corner, and with room for rounding.
    let furthest = |at: f32, [first, last]: [usize; 2]| (at - first as f32).max(last as f32 - at);
    let (dx, dy) = (furthest(x, wide), furthest(y, high));
    let radius = dx.max(dy) + dx.min(dy) * 0.5 + 1.0;
    let axis = |at: f32, nearest: usize, length: usize| {
        let [first, last] = around(nearest, count + 1, length); // one for rounding
        if radius <= 65536.0 {
            [first.max(clamped(at - radius, length)), last.min(clamped(at + radius, length))]
        } else {
            [first, last] // where rounding makes ties, they are as they were
        }
    };
    [axis(y, row, rows), axis(x, column, columns)]
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

/// Likewise the smallest area, then the lower number.
pub(super) fn area_key(area: f32, gt: usize) -> u64 {
    u64::from(!area.to_bits()) << 32 | u64::from(!(gt as u32))
}

/// The box of a [`match_key`] or an [`area_key`].
pub(super) fn matched(key: u64) -> usize {
    !(key as u32) as usize
}

/// The middle of a box: what is within `reach` of its centre along both axes, and not outside of it.
pub(super) fn middle(b: [f32; 4], reach: f32) -> [f32; 4] {
    let [x, y] = centre(b);
    [(x - reach).max(b[0]), (y - reach).max(b[1]), (x + reach).min(b[2]), (y + reach).min(b[3])]
}

/// How near a point is to the centre of a box, from 0 to 1; 0 outside of it.
pub(super) fn centerness(point: [f32; 2], b: [f32; 4]) -> f32 {
    let [left, top, right, bottom] = distances(point, b);
    let (x, y) = (left.min(right), top.min(bottom));
    if x > 0.0 && y > 0.0 { (x / left.max(right) * (y / top.max(bottom))).sqrt() } else { 0.0 }
}
