// What the kernels compute, as one would first write it: a thread a row, in double, one number after the other.
//
// For reading. The heads of the fast kernels say what those do differently, and tests/naive.rs holds them to this on
// the emulator; it is no part of the library. The numbers are those of the equations in reference/src/lib.rs.
#include "../storage.cuh"

constexpr int BLOCK = 64;

DEVICE u64 this_row() { return (u64)blockIdx.x * BLOCK + threadIdx.x; }

// ---- Quality Focal Loss, (1) and (2)

struct Element {
    double loss, slope;
};

DEVICE Element qfl(double x, double y, double beta) {
    const double sigma = 1.0 / (1.0 + exp(-x)), d = sigma - y;
    const double ce = fmax(x, 0.0) + log1p(exp(-fabs(x))) - x * y;
    if (y == 0.0) return {pow(d, beta) * ce, pow(d, beta) * (d + beta * (1.0 - sigma) * ce)};
    if (d == 0.0) return {pow(0.0, beta) * ce, 0.0};
    const double power = copysign(pow(fabs(d), beta - 1.0), d);
    return {pow(fabs(d), beta) * ce, power * (d * d + beta * sigma * (1.0 - sigma) * ce)};
}

struct NaiveQfl {
    const Scalar* logits;     // [rows, classes]
    const long long* labels;  // [rows]; `classes` is background
    const float* quality;     // [rows]
    float* loss;              // [rows]
    Scalar* grad;             // [rows, classes]
    u64 rows;
    u32 classes;
    float beta;
};

KERNEL(naive_qfl, BLOCK, 1)(const NaiveQfl a) {
    const u64 row = this_row();
    if (row >= a.rows) return;
    double sum = 0.0;
    for (u32 c = 0; c < a.classes; ++c) {
        const u64 at = row * a.classes + c;
        const Element element = qfl(load(a.logits + at), c == a.labels[row] ? a.quality[row] : 0.0, a.beta);
        sum += element.loss;
        store(a.grad + at, (float)element.slope);
    }
    a.loss[row] = (float)sum;
}

// ---- Distribution Focal Loss and the integral, (4) and (5)

// The bins of a row, which may be apart from each other.
struct Bins {
    const Scalar* first;
    u64 step;
    u32 count;
    double peak, total;

    DEVICE Bins(const Scalar* at, u64 apart, u32 bins) : first(at), step(apart), count(bins), peak(logit(0)), total(0.0) {
        for (u32 k = 1; k < count; ++k) peak = fmax(peak, logit(k));
        for (u32 k = 0; k < count; ++k) total += exp(logit(k) - peak);
    }
    DEVICE double logit(u32 k) const { return load(first + k * step); }
    DEVICE double softmax(u32 k) const { return exp(logit(k) - peak) / total; }

    // The weight of a bin for a target between two of them.
    DEVICE double two_hot(double t, u32 k) const {
        const u32 left = min((u32)t, count - 2);
        return k == left ? 1.0 - (t - left) : k == left + 1 ? t - left : 0.0;
    }
    DEVICE double dfl(double t) const {
        double loss = peak + log(total);
        for (u32 k = 0; k < count; ++k) loss -= two_hot(t, k) * logit(k);
        return loss;
    }
    DEVICE double integral() const {
        double sum = 0.0;
        for (u32 k = 0; k < count; ++k) sum += k * softmax(k);
        return sum;
    }
};

struct NaiveBins {
    const Scalar* logits;  // [rows, bins]
    const float* target;   // [rows]
    float* result;         // [rows]: the losses, or the expectations
    Scalar* grad;          // [rows, bins]
    u64 rows;
    u32 bins;
    u32 unused;
};

KERNEL(naive_dfl, BLOCK, 1)(const NaiveBins a) {
    const u64 row = this_row();
    if (row >= a.rows) return;
    const Bins z(a.logits + row * a.bins, 1, a.bins);
    a.result[row] = (float)z.dfl(a.target[row]);
    for (u32 k = 0; k < a.bins; ++k)
        store(a.grad + row * a.bins + k, (float)(z.softmax(k) - z.two_hot(a.target[row], k)));
}

KERNEL(naive_integral, BLOCK, 1)(const NaiveBins a) {
    const u64 row = this_row();
    if (row >= a.rows) return;
    const Bins z(a.logits + row * a.bins, 1, a.bins);
    const double expectation = z.integral();
    a.result[row] = (float)expectation;
    for (u32 k = 0; k < a.bins; ++k)
        store(a.grad + row * a.bins + k, (float)(z.softmax(k) * (k - expectation)));
}

// ---- Boxes: 1 - GIoU, (7), and its gradient by numbers that carry a derivative along

struct Dual {
    double value, slope;
};
DEVICE Dual operator+(Dual a, Dual b) { return {a.value + b.value, a.slope + b.slope}; }
DEVICE Dual operator-(Dual a, Dual b) { return {a.value - b.value, a.slope - b.slope}; }
DEVICE Dual operator*(Dual a, Dual b) { return {a.value * b.value, a.slope * b.value + a.value * b.slope}; }
DEVICE Dual operator/(Dual a, Dual b) {
    return {a.value / b.value, (a.slope * b.value - a.value * b.slope) / (b.value * b.value)};
}
// Half of each where they are alike.
DEVICE Dual larger(Dual a, Dual b) {
    const double share = a.value > b.value ? 1.0 : a.value == b.value ? 0.5 : 0.0;
    return {fmax(a.value, b.value), share * a.slope + (1.0 - share) * b.slope};
}
DEVICE Dual smaller(Dual a, Dual b) { return a + b - larger(a, b); }
DEVICE Dual not_negative(Dual a) { return a.value > 0.0 ? a : Dual{0.0, 0.0}; }

struct DualIou {
    Dual iou, loss;
};

DEVICE DualIou giou_loss(const Dual* p, const double* target, double epsilon) {
    const Dual t[4] = {{target[0], 0.0}, {target[1], 0.0}, {target[2], 0.0}, {target[3], 0.0}};
    const Dual eps = {epsilon, 0.0}, one = {1.0, 0.0};
    const Dual overlap = not_negative(smaller(p[2], t[2]) - larger(p[0], t[0])) *
                         not_negative(smaller(p[3], t[3]) - larger(p[1], t[1]));
    const Dual all = larger((p[2] - p[0]) * (p[3] - p[1]) + (t[2] - t[0]) * (t[3] - t[1]) - overlap, eps);
    const Dual hull = larger(not_negative(larger(p[2], t[2]) - smaller(p[0], t[0])) *
                             not_negative(larger(p[3], t[3]) - smaller(p[1], t[1])), eps);
    const Dual iou = overlap / all;
    return {iou, one - (iou - (hull - all) / hull)};
}

struct NaiveBoxes {
    const float* pred;    // [boxes, 4]
    const float* target;  // [boxes, 4]
    float* loss;          // [boxes]
    float* grad;          // [boxes, 4]
    u64 boxes;
    double eps;
};

KERNEL(naive_boxes, BLOCK, 1)(const NaiveBoxes a) {
    const u64 box = this_row();
    if (box >= a.boxes) return;
    double target[4];
    for (int side = 0; side < 4; ++side) target[side] = a.target[4 * box + side];
    for (int by = 0; by < 4; ++by) {
        Dual pred[4];
        for (int side = 0; side < 4; ++side) pred[side] = {a.pred[4 * box + side], side == by ? 1.0 : 0.0};
        const Dual loss = giou_loss(pred, target, a.eps).loss;
        a.loss[box] = (float)loss.value;
        a.grad[4 * box + by] = (float)loss.slope;
    }
}

// ---- A level of the head, mmdetection's but for what it is divided by, (10) to (12)

struct NaiveHead {
    const Scalar* cls;        // [batch, classes, height, width]
    const Scalar* boxes;      // [batch, 4 * bins, height, width]
    const long long* labels;  // [anchors]; `classes` is background
    const float* targets;     // [anchors, 4], in pixels
    double* quality;          // [anchors of all levels]; of background, 0
    double* weight;           // [anchors of all levels]; of background, 0
    float* losses;            // [anchors, 3]
    Scalar* grad_cls;
    Scalar* grad_boxes;
    u64 anchors, all_anchors; // of this level, and of all
    u64 first;                // the first of this level among all
    double stride;
    u32 classes, bins, positions, width;
};

// Where an anchor's channels are, `positions` apart.
DEVICE u64 channels_of(const NaiveHead& a, u64 anchor, u32 channels) {
    return anchor / a.positions * channels * a.positions + anchor % a.positions;
}

DEVICE Bins side_of(const NaiveHead& a, u64 anchor, int side) {
    return Bins(a.boxes + channels_of(a, anchor, 4 * a.bins) + (u64)side * a.bins * a.positions, a.positions, a.bins);
}

// The IoU and the loss of the box that an anchor's distributions say; the derivative is by one of its distances.
DEVICE DualIou decoded(const NaiveHead& a, u64 anchor, const double* center, const double* target, int by) {
    Dual pred[4];
    for (int side = 0; side < 4; ++side) {
        const Dual distance = {side_of(a, anchor, side).integral(), side == by ? 1.0 : 0.0};
        const Dual at = {center[side % 2], 0.0};
        pred[side] = side < 2 ? at - distance : at + distance;
    }
    return giou_loss(pred, target, 1e-6);
}

DEVICE void place(const NaiveHead& a, u64 anchor, double* center, double* target) {
    center[0] = anchor % a.positions % a.width;
    center[1] = anchor % a.positions / a.width;
    for (int side = 0; side < 4; ++side) target[side] = a.targets[4 * anchor + side] / a.stride;
}

DEVICE bool is_positive(const NaiveHead& a, u64 anchor) {
    return 0 <= a.labels[anchor] && a.labels[anchor] < (long long)a.classes;
}

// Phase one: how good an anchor's box is, and how sure the head is of it.
KERNEL(naive_head_positives, BLOCK, 1)(const NaiveHead a) {
    const u64 anchor = this_row();
    if (anchor >= a.anchors) return;
    double quality = 0.0, weight = 0.0, center[2], target[4];
    if (is_positive(a, anchor)) {
        place(a, anchor, center, target);
        quality = decoded(a, anchor, center, target, 0).iou.value;
        const Bins scores(a.cls + channels_of(a, anchor, a.classes), a.positions, a.classes);
        weight = 1.0 / (1.0 + exp(-scores.peak));
    }
    a.quality[a.first + anchor] = quality;
    a.weight[a.first + anchor] = weight;
}

// Phase two: the losses and gradients. Every thread adds up all weights for itself.
KERNEL(naive_head_losses, BLOCK, 1)(const NaiveHead a) {
    const u64 anchor = this_row();
    if (anchor >= a.anchors) return;
    double positives = 0.0, weights = 0.0, losses[3] = {};
    for (u64 i = 0; i < a.all_anchors; ++i) {
        positives += a.weight[i] > 0.0;
        weights += a.weight[i];
    }
    positives = fmax(positives, 1.0);
    weights = fmax(weights, 1.0);
    const u64 cls = channels_of(a, anchor, a.classes), boxes = channels_of(a, anchor, 4 * a.bins);
    for (u32 c = 0; c < a.classes; ++c) {
        const u64 at = cls + (u64)c * a.positions;
        const Element element = qfl(load(a.cls + at), c == a.labels[anchor] ? a.quality[a.first + anchor] : 0.0, 2.0);
        losses[0] += element.loss / positives;
        store(a.grad_cls + at, (float)(element.slope / positives));
    }
    const double weight = a.weight[a.first + anchor];
    const double of_box = 2.0 * weight / weights, of_dfl = 0.25 * weight / (4.0 * weights);
    double center[2], target[4];
    place(a, anchor, center, target);
    for (int side = 0; side < 4; ++side) {
        Dual box = {0.0, 0.0};
        double t = 0.0, expectation = 0.0;
        const Bins z = side_of(a, anchor, side);
        if (weight > 0.0) {
            box = decoded(a, anchor, center, target, side).loss;
            t = fmin(fmax(side < 2 ? center[side] - target[side] : target[side] - center[side - 2], 0.0), a.bins - 1.1);
            expectation = z.integral();
            losses[1] = of_box * box.value;
            losses[2] += of_dfl * z.dfl(t);
        }
        for (u32 k = 0; k < a.bins; ++k) {
            const double by_box = z.softmax(k) * (k - expectation) * box.slope, by_dfl = z.softmax(k) - z.two_hot(t, k);
            store(a.grad_boxes + boxes + ((u64)side * a.bins + k) * a.positions, (float)(of_box * by_box + of_dfl * by_dfl));
        }
    }
    for (int kind = 0; kind < 3; ++kind) a.losses[3 * anchor + kind] = (float)losses[kind];
}
