//! The scalar maths of boxes, in f64. Its twin is kernels/boxes.cuh: the same names in the same
//! order. Boxes are `[x1, y1, x2, y2]`. Coordinates that are not finite give results that are not
//! finite; any others give finite ones, whatever the order of a box's corners.
//!
//! At ties the gradient is the one of PyTorch's autograd (2.15): of max(a, b) and min(a, b) half
//! each at a = b, of clamp(x, min=0) nothing at x = 0.

use super::IouKind;

/// A box loss, and what comes with it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct IouLoss {
    /// As [`iou`] gives it.
    pub iou: f64,
    pub loss: f64,
    /// With respect to the predicted box.
    pub grad: [f64; 4],
}

/// A choice between two values, and the share that the first has in it.
#[derive(Clone, Copy)]
struct Choice {
    value: f64,
    share: f64,
}

/// max(a, b). NaN propagates.
fn larger(a: f64, b: f64) -> Choice {
    if a > b {
        Choice { value: a, share: 1.0 }
    } else if a < b {
        Choice { value: b, share: 0.0 }
    } else {
        Choice { value: 0.5 * a + 0.5 * b, share: 0.5 }
    }
}

/// min(a, b). NaN propagates.
fn smaller(a: f64, b: f64) -> Choice {
    let Choice { value, share } = larger(-a, -b);
    Choice { value: -value, share }
}

/// clamp(x, min=0). NaN propagates.
fn not_negative(x: f64) -> Choice {
    if x <= 0.0 { Choice { value: 0.0, share: 0.0 } } else { Choice { value: x, share: 1.0 } }
}

/// Two boxes along one axis. Derivatives are with respect to the two ends of the prediction.
#[derive(Clone, Copy)]
struct Axis {
    /// The lengths of prediction and target; negative where the ends are in the wrong order.
    size: f64,
    target_size: f64,
    /// The length of the intersection.
    inner: f64,
    d_inner: [f64; 2],
    /// The length of the hull.
    outer: f64,
    d_outer: [f64; 2],
    /// Twice the way from the centre of the prediction to that of the target.
    offset: f64,
}

fn axis(pred: [f64; 2], target: [f64; 2]) -> Axis {
    let (low, high) = (larger(pred[0], target[0]), smaller(pred[1], target[1]));
    let (first, last) = (smaller(pred[0], target[0]), larger(pred[1], target[1]));
    let inner = not_negative(high.value - low.value);
    let outer = not_negative(last.value - first.value);
    Axis {
        size: pred[1] - pred[0],
        target_size: target[1] - target[0],
        inner: inner.value,
        d_inner: [-inner.share * low.share, inner.share * high.share],
        outer: outer.value,
        d_outer: [-outer.share * first.share, outer.share * last.share],
        offset: (target[0] + target[1]) - (pred[0] + pred[1]),
    }
}

fn axes(pred: [f64; 4], target: [f64; 4]) -> [Axis; 2] {
    [0, 1].map(|a| axis([pred[a], pred[a + 2]], [target[a], target[a + 2]]))
}

fn intersection(axes: &[Axis; 2]) -> f64 {
    axes[0].inner * axes[1].inner
}

/// The areas of both boxes without what they share; negative only if a box's ends are in the
/// wrong order.
fn union(axes: &[Axis; 2], intersection: f64) -> f64 {
    axes[0].size * axes[1].size + axes[0].target_size * axes[1].target_size - intersection
}

/// Intersection over union, where the union is at least `eps`: mmdetection's `bbox_overlaps`.
pub(crate) fn iou(a: [f64; 4], b: [f64; 4], eps: f64) -> f64 {
    let axes = axes(a, b);
    let intersection = intersection(&axes);
    intersection / larger(union(&axes, intersection), eps).value
}

/// 1 - IoU and its variants, and the gradient with respect to `pred`; `eps` > 0. The formulas are
/// in the documentation of [`IouKind`].
pub(crate) fn iou_loss(kind: IouKind, pred: [f64; 4], target: [f64; 4], eps: f64) -> IouLoss {
    let mut axes = axes(pred, target);
    let intersection = intersection(&axes);
    // mmdetection takes the maximum with eps for IoU and GIoU, and adds eps for DIoU and CIoU.
    // There too the union is at least eps, except for boxes whose intersection, and its gradient,
    // is 0.
    let at_least = larger(union(&axes, intersection), eps);
    let added = matches!(kind, IouKind::Diou | IouKind::Ciou | IouKind::CiouUltralytics);
    if kind == IouKind::CiouUltralytics {
        axes[1].size += eps;
        axes[1].target_size += eps;
    }
    let [x, y] = axes;
    let disjoint = union(&axes, intersection);
    let (union, union_share) =
        if added { (larger(disjoint + eps, eps).value, 1.0) } else { (at_least.value, at_least.share) };
    let overlap = intersection / union;

    // The penalty, and its derivatives by the union, the two hull lengths and the two offsets.
    let (mut penalty, mut by_union) = (0.0, 0.0);
    let (mut by_outer, mut by_offset) = ([0.0; 2], [0.0; 2]);
    match kind {
        IouKind::Iou => {}
        IouKind::Giou => {
            let hull = larger(x.outer * y.outer, eps);
            penalty = (hull.value - union) / hull.value;
            by_union = -1.0 / hull.value;
            let by_hull = union / (hull.value * hull.value) * hull.share;
            by_outer = [by_hull * y.outer, by_hull * x.outer];
        }
        IouKind::Diou | IouKind::Ciou | IouKind::CiouUltralytics => {
            let diagonal = x.outer * x.outer + y.outer * y.outer + eps;
            penalty = (x.offset * x.offset + y.offset * y.offset) / 4.0 / diagonal;
            by_outer = [x.outer, y.outer].map(|outer| -2.0 * outer * penalty / diagonal);
            by_offset = [x.offset, y.offset].map(|offset| offset / 2.0 / diagonal);
        }
    }
    let mut by_size = [0.0; 2];
    let mut clamped = false; // to [-1, 1]
    if matches!(kind, IouKind::Ciou | IouKind::CiouUltralytics) {
        let aspect = aspect_penalty(kind, &axes, overlap, eps);
        penalty += aspect.penalty;
        by_size = aspect.by_size;
        clamped = kind == IouKind::Ciou && penalty.is_finite() && (overlap - penalty).abs() >= 1.0;
    }
    let mut grad = [0.0; 4];
    for (side, grad) in grad.iter_mut().enumerate() {
        let (a, end) = (side % 2, side / 2);
        let (this, other) = (&axes[a], &axes[1 - a]);
        let sign = if end == 0 { -1.0 } else { 1.0 };
        let d_intersection = this.d_inner[end] * other.inner;
        let d_union = union_share * (sign * other.size - d_intersection);
        let d_overlap = (d_intersection - overlap * d_union) / union;
        let d_penalty =
            by_union * d_union + by_outer[a] * this.d_outer[end] - by_offset[a] + sign * by_size[a];
        *grad = if clamped { 0.0 } else { d_penalty - d_overlap };
    }
    let loss = if !clamped {
        1.0 - overlap + penalty
    } else if overlap > penalty {
        0.0
    } else {
        2.0
    };
    IouLoss { iou: if added { intersection / at_least.value } else { overlap }, loss, grad }
}

/// What CIoU adds to DIoU.
struct Aspect {
    penalty: f64,
    /// Its derivatives by width and height of the prediction.
    by_size: [f64; 2],
}

/// alpha * v, where alpha counts as a constant. mmdetection's is 0 unless IoU > 0.5; Ultralytics'
/// never is, and there the heights have their eps already.
fn aspect_penalty(kind: IouKind, axes: &[Axis; 2], overlap: f64, eps: f64) -> Aspect {
    let mmdetection = kind == IouKind::Ciou;
    // An IoU above 0.5 means that both boxes have a width and a height above 0. Without one there
    // is nothing to compute, and nothing that could overflow.
    if mmdetection && (overlap <= 0.5 || overlap.is_nan()) {
        return Aspect { penalty: 0.0, by_size: [0.0; 2] };
    }
    let [x, y] = axes;
    let (to_height, to_rest) = if mmdetection { (eps, 0.0) } else { (0.0, eps) };
    let (w, h) = (x.size, y.size + to_height);
    let (target_w, target_h) = (x.target_size, y.target_size + to_height);
    // atan(target_w / target_h) - atan(w / h) without cancellation. Of an inverted box both sides
    // turn round, so that its height is not below 0.
    let sign = if (h < 0.0) == (target_h < 0.0) { 1.0 } else { -1.0 };
    let angle = angle_of(sign * (target_w * h - w * target_h), sign * (target_h * h + target_w * w));
    let v = FOUR_OVER_PI_SQUARED * angle * angle;
    let alpha = if v > 0.0 { v / (not_negative(1.0 - overlap).value + v + to_rest) } else { 0.0 };
    let square = w * w + h * h;
    let by_angle = if square == 0.0 { 0.0 } else { 2.0 * FOUR_OVER_PI_SQUARED * alpha * angle / square };
    Aspect { penalty: alpha * v, by_size: [-by_angle * h, by_angle * w] }
}

const FOUR_OVER_PI_SQUARED: f64 = 0.405_284_734_569_351_1;

/// The angle of the point (b, a), from -pi to pi: atan(a / b) for b > 0, and 0 at the origin.
fn angle_of(a: f64, b: f64) -> f64 {
    // Whatever the signs of the zeros.
    if a == 0.0 && b == 0.0 { 0.0 } else { (a + 0.0).atan2(b) }
}

/// The box whose sides have the distances left, top, right and bottom from a point:
/// mmdetection's `distance2bbox`.
pub(crate) fn distances_to_box(point: [f64; 2], distances: [f64; 4]) -> [f64; 4] {
    let [x, y] = point;
    let [left, top, right, bottom] = distances;
    [x - left, y - top, x + right, y + bottom]
}

/// The distances of a box's sides from a point, in [0, max]: mmdetection's `bbox2distance`.
pub(crate) fn box_to_distances(point: [f64; 2], corners: [f64; 4], max: Option<f64>) -> [f64; 4] {
    let [x, y] = point;
    let [x1, y1, x2, y2] = corners;
    let clamp = |distance: f64| max.map_or(distance, |max| distance.clamp(0.0, max));
    [x - x1, y - y1, x2 - x, y2 - y].map(clamp)
}
