// The scalar maths of boxes, in double: few boxes come here, and their areas cancel. Its twin is
// src/boxes/math.rs: the same names in the same order. Boxes are {x1, y1, x2, y2}.
//
// At ties the gradient is the one of PyTorch's autograd (2.15): of max(a, b) and min(a, b) half
// each at a = b, of clamp(x, min=0) nothing at x = 0.
#pragma once
#include "math.cuh"
#include "storage.cuh"

// A box in memory, at any alignment.
struct Corners {
    float side[4];
};

DEVICE Corners load_corners(const float* p) {
    if (!aligned16(p)) return {{p[0], p[1], p[2], p[3]}};
    const Words words = load_words(p);
    Corners corners;
#pragma unroll
    for (int side = 0; side < 4; ++side) corners.side[side] = __uint_as_float(words.w[side]);
    return corners;
}

DEVICE void store_corners(float* p, const Corners& corners) {
    Words words;
#pragma unroll
    for (int side = 0; side < 4; ++side) words.w[side] = __float_as_uint(corners.side[side]);
    if (aligned16(p)) {
        store_words(p, words);
    } else {
#pragma unroll
        for (int side = 0; side < 4; ++side) p[side] = corners.side[side];
    }
}

// Twin of `IouKind`.
enum IouKind : u32 { IOU, GIOU, DIOU, CIOU, CIOU_ULTRALYTICS };

struct Box {
    double side[4];
};

DEVICE Box box_of(const Corners& c) { return {{c.side[0], c.side[1], c.side[2], c.side[3]}}; }

struct IouLoss {
    double iou, loss;
    double grad[4];  // with respect to the predicted box
};

// A choice between two values, and the share that the first has in it.
struct Choice {
    double value, share;
};

// max(a, b). NaN propagates.
DEVICE Choice larger(double a, double b) {
    const double tie = 0.5 * a + 0.5 * b;
    return {a > b ? a : a < b ? b : tie, a > b ? 1.0 : a < b ? 0.0 : 0.5};
}

// min(a, b). NaN propagates.
DEVICE Choice smaller(double a, double b) {
    const Choice choice = larger(-a, -b);
    return {-choice.value, choice.share};
}

// clamp(x, min=0). NaN propagates.
DEVICE Choice not_negative(double x) { return {x <= 0.0 ? 0.0 : x, x <= 0.0 ? 0.0 : 1.0}; }

// Two boxes along one axis. Derivatives are with respect to the two ends of the prediction.
struct Axis {
    double size, target_size;  // negative where the ends are in the wrong order
    double inner, d_inner[2];  // the length of the intersection
    double outer, d_outer[2];  // the length of the hull
    double offset;             // twice the way between the centres, to the target
};

DEVICE Axis axis(double pred_low, double pred_high, double target_low, double target_high) {
    const Choice low = larger(pred_low, target_low), high = smaller(pred_high, target_high);
    const Choice first = smaller(pred_low, target_low), last = larger(pred_high, target_high);
    const Choice inner = not_negative(high.value - low.value);
    const Choice outer = not_negative(last.value - first.value);
    return {pred_high - pred_low,
            target_high - target_low,
            inner.value,
            {-inner.share * low.share, inner.share * high.share},
            outer.value,
            {-outer.share * first.share, outer.share * last.share},
            (target_low + target_high) - (pred_low + pred_high)};
}

struct Axes {
    Axis of[2];
};

DEVICE Axes axes(const Box& pred, const Box& target) {
    return {{axis(pred.side[0], pred.side[2], target.side[0], target.side[2]),
             axis(pred.side[1], pred.side[3], target.side[1], target.side[3])}};
}

DEVICE double intersection(const Axes& axes) { return axes.of[0].inner * axes.of[1].inner; }

// The areas of both boxes without what they share; negative only if a box's ends are in the
// wrong order.
DEVICE double union_of(const Axes& axes, double intersection) {
    return axes.of[0].size * axes.of[1].size + axes.of[0].target_size * axes.of[1].target_size - intersection;
}

// Intersection over union, where the union is at least `eps`: mmdetection's `bbox_overlaps`.
DEVICE double iou(const Box& a, const Box& b, double eps) {
    const Axes both = axes(a, b);
    const double shared = intersection(both);
    return shared * reciprocal(larger(union_of(both, shared), eps).value);
}

// What CIoU adds to DIoU.
struct Aspect {
    double penalty;
    double by_size[2];  // its derivatives by width and height of the prediction
};

// The angle of the point (b, a), from -pi to pi, to 1e-15: atan(a / b) for b > 0, and 0 at the
// origin. Of the angle to the nearer half of the axis of b: beyond tan(pi / 8) it is turned by pi / 4, beyond its inverse
// by pi / 2; what is left is x = a / b times a polynomial in x^2, interpolated at Chebyshev's
// nodes, with a relative error of 1e-16 before rounding.
DEVICE double angle_of(double a, double b) {
    const double size = fabs(a), along = fabs(b);
    if (size == 0.0 && along == 0.0) return 0.0;
    double above = size, below = along, turn = 0.0;
    if (size > 2.414213562373095 * along) {
        above = -along, below = size, turn = 1.5707963267948966;
    } else if (size > 0.41421356237309503 * along) {
        above = size - along, below = size + along, turn = 0.7853981633974483;
    }
    const double x = above * reciprocal(below), square = x * x;
    double p = 0.021135373157693246;
    p = fma(p, square, -0.04348052215716462);
    p = fma(p, square, 0.056883492268090106);
    p = fma(p, square, -0.06640233930429408);
    p = fma(p, square, 0.07689953496306857);
    p = fma(p, square, -0.09090773074808414);
    p = fma(p, square, 0.11111106180455946);
    p = fma(p, square, -0.14285714180976467);
    p = fma(p, square, 0.1999999999885511);
    p = fma(p, square, -0.3333333333332844);
    p = fma(p, square, 1.0);
    const double nearer = fma(p, x, turn), angle = b < 0.0 ? 3.141592653589793 - nearer : nearer;
    return a < 0.0 ? -angle : angle;
}

constexpr double FOUR_OVER_PI_SQUARED = 0.4052847345693511;

// alpha * v, where alpha counts as a constant. mmdetection's is 0 unless IoU > 0.5; Ultralytics'
// never is, and there the heights have their eps already.
DEVICE Aspect aspect_penalty(u32 kind, const Axes& axes, double overlap, double eps) {
    const bool mmdetection = kind == CIOU;
    // An IoU above 0.5 means that both boxes have a width and a height above 0. Without one there
    // is nothing to compute, and nothing that could overflow.
    if (mmdetection && !(overlap > 0.5)) return {0.0, {0.0, 0.0}};
    const double to_height = mmdetection ? eps : 0.0, to_rest = mmdetection ? 0.0 : eps;
    const double w = axes.of[0].size, h = axes.of[1].size + to_height;
    const double target_w = axes.of[0].target_size, target_h = axes.of[1].target_size + to_height;
    // atan(target_w / target_h) - atan(w / h) without cancellation. Of an inverted box both sides
    // turn round, so that its height is not below 0.
    const double sign = (h < 0.0) == (target_h < 0.0) ? 1.0 : -1.0;
    const double angle =
        angle_of(sign * (target_w * h - w * target_h), sign * (target_h * h + target_w * w));
    const double v = FOUR_OVER_PI_SQUARED * angle * angle;
    // Below 1e-300, v has no reciprocal.
    const double alpha = v > 1e-300 ? v * reciprocal(not_negative(1.0 - overlap).value + v + to_rest) : 0.0;
    const double square = w * w + h * h;
    const double by_angle =
        square == 0.0 ? 0.0 : 2.0 * FOUR_OVER_PI_SQUARED * alpha * angle * reciprocal(square);
    return {alpha * v, {-by_angle * h, by_angle * w}};
}

// 1 - IoU and its variants, and the gradient with respect to `pred`; `eps` > 0. The formulas are
// in src/boxes/mod.rs.
DEVICE IouLoss iou_loss(u32 kind, const Box& pred, const Box& target, double eps) {
    Axes both = axes(pred, target);
    const double shared = intersection(both);
    // mmdetection takes the maximum with eps for IoU and GIoU, and adds eps for DIoU and CIoU.
    // There too the union is at least eps, except for boxes whose intersection, and its gradient,
    // is 0.
    const Choice at_least = larger(union_of(both, shared), eps);
    const bool added = kind == DIOU || kind == CIOU || kind == CIOU_ULTRALYTICS;
    if (kind == CIOU_ULTRALYTICS) both.of[1].size += eps, both.of[1].target_size += eps;
    const Axis& x = both.of[0];
    const Axis& y = both.of[1];
    const double disjoint = union_of(both, shared);
    const double joint = added ? larger(disjoint + eps, eps).value : at_least.value;
    const double joint_share = added ? 1.0 : at_least.share;
    const double by_joint = reciprocal(joint), overlap = shared * by_joint;

    // The penalty, and its derivatives by the union, the two hull lengths and the two offsets.
    double penalty = 0.0, by_union = 0.0;
    double by_outer[2] = {0.0, 0.0}, by_offset[2] = {0.0, 0.0}, by_size[2] = {0.0, 0.0};
    if (kind == GIOU) {
        const Choice hull = larger(x.outer * y.outer, eps);
        const double inverse = reciprocal(hull.value);
        penalty = (hull.value - joint) * inverse;
        by_union = -inverse;
        const double by_hull = joint * (inverse * inverse) * hull.share;
        by_outer[0] = by_hull * y.outer, by_outer[1] = by_hull * x.outer;
    } else if (added) {
        const double inverse = reciprocal(x.outer * x.outer + y.outer * y.outer + eps);
        penalty = (x.offset * x.offset + y.offset * y.offset) * 0.25 * inverse;
        by_outer[0] = -2.0 * x.outer * penalty * inverse, by_outer[1] = -2.0 * y.outer * penalty * inverse;
        by_offset[0] = x.offset * 0.5 * inverse, by_offset[1] = y.offset * 0.5 * inverse;
    }
    bool clamped = false;  // to [-1, 1]
    if (kind == CIOU || kind == CIOU_ULTRALYTICS) {
        const Aspect aspect = aspect_penalty(kind, both, overlap, eps);
        penalty += aspect.penalty;
        by_size[0] = aspect.by_size[0], by_size[1] = aspect.by_size[1];
        clamped = kind == CIOU && fabs(penalty) < __longlong_as_double(0x7ff0000000000000ll) &&
                  fabs(overlap - penalty) >= 1.0;
    }
    IouLoss result;
#pragma unroll
    for (int side = 0; side < 4; ++side) {
        const int a = side % 2, end = side / 2;
        const Axis &self = both.of[a], &other = both.of[1 - a];
        const double sign = end == 0 ? -1.0 : 1.0;
        const double d_intersection = self.d_inner[end] * other.inner;
        const double d_union = joint_share * (sign * other.size - d_intersection);
        const double d_overlap = (d_intersection - overlap * d_union) * by_joint;
        const double d_penalty =
            by_union * d_union + by_outer[a] * self.d_outer[end] - by_offset[a] + sign * by_size[a];
        result.grad[side] = clamped ? 0.0 : d_penalty - d_overlap;
    }
    result.loss = !clamped ? 1.0 - overlap + penalty : overlap > penalty ? 0.0 : 2.0;
    result.iou = added ? shared * reciprocal(at_least.value) : overlap;
    return result;
}

// The box whose sides have the distances left, top, right and bottom from a point:
// mmdetection's `distance2bbox`.
DEVICE Box distances_to_box(double x, double y, const double (&distances)[4]) {
    return {{x - distances[0], y - distances[1], x + distances[2], y + distances[3]}};
}

// The distances of a box's sides from a point, in [0, max]: mmdetection's `bbox2distance`.
// NaN propagates.
DEVICE Box box_to_distances(double x, double y, const Box& box, double max) {
    Box distances = {{x - box.side[0], y - box.side[1], box.side[2] - x, box.side[3] - y}};
#pragma unroll
    for (double& d : distances.side) d = d < 0.0 ? 0.0 : d > max ? max : d;
    return distances;
}
