// The head loss: three losses of all levels of a pyramid, and the gradients of both outputs, in two launches.
//
// Phase one (`head_positives`) looks at every label, and at the logits of the positives: where a box is, how
// good it is, what its two losses are. It leaves the sums, what to divide by, and a record of each anchor.
// Phase two (`head_losses`) passes over all class logits, and writes all gradients. In between the normalisers
// may be averaged over processes: the host never sees them.
//
// Naively they are `naive_head_positives` and `naive_head_losses` in naive/naive.cu. What the kernels do differently:
//  1. Nothing is permuted, gathered or concatenated: every level has strides of its own, and its own blocks.
//  2. Positives are few and cluster, so a block collects those of its anchors and shares them out: a warp for
//     each in phase one, 8 lanes for each side in phase two. Their arithmetic is in double.
//  3. Class logits go through vectors of 16 or 8 bytes along whatever is contiguous, and a lane goes along the
//     other axis: from channel to channel with its positions, or from anchor to anchor with its channels. So a
//     step is the addition of a stride. The labelled element is masked out of its vector and computed on its
//     own, as in qfl.cuh.
//  4. All that is rare stands apart: vectors with a label, without a weight, with several weights. What a vector
//     has to know of its anchors is a weight, or NaN for: look closer.
#pragma once
#include "any_storage.cuh"
#include "boxes.cuh"
#include "call.cuh"
#include "math.cuh"

constexpr int HEAD_BLOCK = 256;  // threads; twin in src/head/launch/plan.rs
constexpr u32 HEAD_WARPS = HEAD_BLOCK / 32;
constexpr u32 HEAD_LEVELS = 8;   // the most; twin of MAX_LEVELS in src/head/mod.rs

// Where the elements of a [batch, channels, positions] tensor are, in elements.
struct Strides {
    u64 batch;
    u64 channel;
    u64 position;
    u64 row_gap;              // what is between rows besides; wraps below 0
};

// A level of the pyramid. Field by field the same as `HeadLevel` in src/head/launch.rs.
struct HeadLevel {
    const Scalar* cls;        // its first element; in phase one of the type that HeadArgs tells
    const void* boxes;        // its first element; channel = side * bins + bin
    Scalar* grad_cls;         // in strides of its own; null without a gradient
    void* grad_boxes;
    Strides cls_strides, box_strides;
    Strides grad_cls_strides, grad_box_strides;
    const void* labels;       // [batch, positions], i64 or i32
    const float* label_weights;  // [batch, positions], or null: ones
    const float* targets;     // [batch, positions, 4], x1, y1, x2, y2 in pixels
    const float* quality;     // [batch, positions]; null: the IoU
    const float* box_weights; // [batch, positions], or null: ones
    const float* box_scores;  // [batch, positions]: v; or null
    const float* scores;      // [batch, positions, classes]: targets of all elements; or null
    const float* element_weights;  // [batch, positions, classes], or null: ones
    const float* points;      // [positions, 2] or [batch, positions, 2] in pixels; null: a grid
    u64 first_row;            // its first anchor in the status
    u64 first_record;         // its first anchor in the workspace, a multiple of 8; see record_of
    double stride, inverse_stride;
    double grid_offset;       // in units of the stride
    u32 positions, width;
    u32 labels_are_i64;
    u32 points_of_batch;      // 1: points differ between images
    // The rest is set by the launch: which blocks do what, and how.
    u32 positives_block, cls_block, box_block;  // the first blocks of phase one, of the two parts of phase two
    u32 cls_way;              // as below
    u32 cls_by_channel;       // lanes go along the channels of an anchor, not along positions
    u32 cls_units;            // how many lanes have all of that axis between them, in one image
    u32 cls_span;             // how far a lane goes along the other axis,
    u32 cls_chunks;           // and how many lanes go all the way
    u32 cls_tiles;            // 32 lanes each, all images together
    u32 box_way;              // as below
};

// Field by field the same as `HeadArgs` in src/head/launch.rs.
struct HeadArgs {
    HeadLevel levels[HEAD_LEVELS];
    float* normalisers;       // [2]: number of positives, sum of their box weights
    u32* tickets;             // [2]
    u32* image_positives;     // [batch]: a count, 0 between launches
    double* level_sums;       // [levels, 3]: of v, v * box loss, v * distribution losses
    double* partials;         // [3, partial_blocks]
    u32* codes;               // [records]: PLAIN, MASKED, or the labelled column + 1
    float* weights;           // [records]: of PLAIN ones, unless it is 0; else NaN
    float* qualities;         // [records], of positives
    float* box_weights;       // [records], of positives: v
    float* slopes;            // [records, 4], of positives: of the box loss with respect to the distances
    float* losses;            // [levels, 3], or null: the gradients alone
    const float* upstream;    // [levels, 3]: gradients with respect to the losses; or null: ones
    const float* class_weights;  // [classes], or null: ones
    const float* grad_scale;  // device scalar; null: the host has multiplied the weights of the gradient
    float* found_inf;         // [1], or null: becomes 1 if a stored gradient is not finite
    Status* status;           // or null
    long long ignore_label;
    double loss_weights[3];   // of the class loss, the box loss, the distribution loss
    double host_grad_scale;
    double cls_epsilon, cls_minimum;   // N = max(n + epsilon, minimum)
    double bbox_factor, dfl_factor;    // what 1 / W is multiplied by
    double iou_eps;
    double target_max;        // bins - 1 - eps
    float beta;
    float alpha[2];           // what an element is multiplied by at target 0, and at target 1
    u32 level_count, batch, classes, bins;
    u32 background_first, has_ignore_label;
    u32 iou_kind;             // as in `IouKind`
    u32 weight_is_quality;    // v is the quality, not the largest score (unless there are box_scores)
    u32 image_has_one;        // an image without positives counts as having one
    u32 cls_by_weight;        // N = W
    u32 partial_blocks;
    u32 box_coding;           // as below
    u32 cls_storage, box_storage;  // a StorageType; set by the launch
};

constexpr u32 PLAIN = 0, MASKED_ANCHOR = 0xffffffffu;

// What a lane has of the class logits: single ones, VECTOR positions, half as many, VECTOR channels. Twins of these
// and the next in src/head/launch/plan.rs.
constexpr u32 CLS_SCALARS = 0, CLS_POSITIONS = 1, CLS_HALF_VECTORS = 2, CLS_CHANNELS = 3;
// Of the box logits: nothing is contiguous, channels are, so are anchors, positions are.
constexpr u32 BOX_SCALARS = 0, BOX_CHANNELS = 1, BOX_ANCHORS = 2, BOX_POSITIONS = 3;

// What the box logits of a side are: bins, or one number of which E is the exponential, or the positive part. Twins of
// `BoxCoding`.
constexpr u32 CODING_BINS = 0, CODING_EXP = 1, CODING_RELU = 2;

// The last level whose blocks begin at this one or before.
template <class First>
DEVICE u32 level_of_block(const HeadArgs& a, First first) {
    u32 level = 0;
#pragma unroll 1
    for (u32 l = 1; l < a.level_count; ++l)
        if (first(l) <= blockIdx.x) level = l;
    return level;
}

// An anchor of a level: its number there, its image, its position.
struct Anchor {
    u32 number, image, position;
};

DEVICE Anchor anchor_of(const HeadLevel& level, u32 number) {
    const u32 image = number / level.positions;
    return {number, image, number - image * level.positions};
}

// Its number in the workspace: images begin at multiples of 8, so that vectors of records are aligned.
DEVICE u64 record_of(const HeadLevel& level, u32 image, u32 position) {
    return level.first_record + (u64)image * ((level.positions + 7) & ~7u) + position;
}
DEVICE u64 record_of(const HeadLevel& level, const Anchor& anchor) {
    return record_of(level, anchor.image, anchor.position);
}

DEVICE float label_weight_of(const HeadLevel& level, u32 number) {
    return level.label_weights ? level.label_weights[number] : 1.0f;
}

DEVICE float box_weight_of(const HeadLevel& level, u32 number) {
    return level.box_weights ? level.box_weights[number] : 1.0f;
}

DEVICE u64 place(const HeadLevel& level, const Strides& s, const Anchor& anchor, u32 channel) {
    u64 at = anchor.image * s.batch + anchor.position * s.position + channel * s.channel;
    if (s.row_gap) at += anchor.position / level.width * s.row_gap;
    return at;
}

// a / b, given 1 / b.
DEVICE double divided(double a, double b, double inverse) {
    const double q = a * inverse;
    return fma(fma(-q, b, a), inverse, q);
}

// ---- what the targets say of an anchor, in units of the stride

DEVICE double point_of(const HeadLevel& level, const Anchor& anchor, u32 axis) {
    if (!level.points) {
        const u32 row = anchor.position / level.width;
        return (double)(axis == 0 ? anchor.position - row * level.width : row) + level.grid_offset;
    }
    const u64 at = level.points_of_batch ? anchor.number : anchor.position;
    return divided(level.points[2 * at + axis], level.stride, level.inverse_stride);
}

DEVICE double corner_of(const HeadLevel& level, const Anchor& anchor, u32 side) {
    return divided(level.targets[4ull * anchor.number + side], level.stride, level.inverse_stride);
}

// How far the side of the target is from the point, not clamped. Sides: left, top, right, bottom.
DEVICE double distance_of(const HeadLevel& level, const Anchor& anchor, u32 side) {
    const double way = corner_of(level, anchor, side) - point_of(level, anchor, side & 1);
    return side < 2 ? -way : way;
}

// As two_hot, of a distance. NaN counts as 0: what a conversion to an integer makes of it is not the same everywhere.
struct TwoHotDouble {
    u32 left;
    double left_weight, right_weight;
};

DEVICE TwoHotDouble two_hot_of(const HeadArgs& a, double distance) {
    distance = distance >= 0.0 ? distance <= a.target_max ? distance : a.target_max : 0.0;
    const u32 left = min((u32)distance, a.bins - 2);
    const double right = distance - (double)left;
    return {left, 1.0 - right, right};
}

// ---- the distribution of a side, in double, by 8 lanes

constexpr u32 SIDE_LANES = 8;

struct Side {
    double peak, inverse_total;
    double others;    // the total of exp(z - peak), less 1
    double distance;  // E
};

// Unrolled: as a loop NVRTC writes this kernel in one of two orders, by chance.
DEVICE double lanes_max_nan(double x, int width) {
    for (int step = width / 2; step > 0; step /= 2) {
        double other = __shfl_xor_sync(ALL_LANES, x, step);
        x = other > x || other != other ? other : x;
    }
    return x;
}

// Logits that are not finite make all but the peak NaN. All lanes of the warp must call it.
DEVICE Side side_of(const HeadArgs& a, const void* z, u64 first, u64 channel, u32 lane) {
    float top = -__uint_as_float(0x7f800000), poison = 0.0f;
#pragma unroll 1
    for (u32 j = lane; j < a.bins; j += SIDE_LANES) {
        const float x = load_any(z, first + j * channel, a.box_storage);
        poison = fmaf(x, 0.0f, poison);
        top = fmaxf(top, x);
    }
    top = lanes_max(top, SIDE_LANES);
    const double peak = top;
    double below = poison, moment = 0.0, peaks = 0.0;
#pragma unroll 1
    for (u32 j = lane; j < a.bins; j += SIDE_LANES) {
        const double x = load_any(z, first + j * channel, a.box_storage);
        const double e = exp_negative(x - peak);
        if (x == peak) peaks += 1.0;
        else below += e;
        moment = fma((double)j, e, moment);
    }
    below = lanes_sum(below, SIDE_LANES);
    peaks = lanes_sum(peaks, SIDE_LANES);
    moment = lanes_sum(moment, SIDE_LANES);
    const double others = below + (peaks - 1.0), inverse = reciprocal(1.0 + others);
    return {peak, inverse, others, moment * inverse};
}

// log(1 + x) for x >= 0.
DEVICE double log1p_positive_double(double x) {
    return x <= 1.0 ? log_ratio(x * reciprocal(2.0 + x)) : log_positive(1.0 + x);
}

// As dfl.
DEVICE double dfl_of(const Side& side, const TwoHotDouble& t, double z_left, double z_right) {
    const double log_total = log1p_positive_double(side.others) + 0.0 * side.others;
    return fma(t.left_weight, (side.peak - z_left) + log_total, t.right_weight * ((side.peak - z_right) + log_total));
}

// ---- blocks

// The sum of what the blocks from `first` to `end` have stored, in the order of their numbers.
DEVICE double sum_of_blocks(const double* partials, u32 first, u32 end) {
    double x = 0.0;
#pragma unroll 1
    for (u32 base = first; base < end; base += HEAD_BLOCK) {
        const u32 i = base + threadIdx.x;
        if (i < end) x += load_shared_by_blocks(&partials[i]);
    }
    return block_sum<HEAD_BLOCK>(x);
}

// What the sums of the three losses of a level, and their gradients, are multiplied by.
struct HeadFactors {
    double loss[3], grad[3];
};

DEVICE HeadFactors head_factors(const HeadArgs& a, u32 level) {
    const double n = a.normalisers[0], sum = a.normalisers[1];
    const double w = sum > 1.0 ? sum : 1.0;  // 1 for NaN
    const double shifted = n + a.cls_epsilon;
    const double by = a.cls_by_weight ? w : shifted > a.cls_minimum ? shifted : a.cls_minimum;
    const double inverse = reciprocal(w);
    HeadFactors f = {{a.loss_weights[0] * reciprocal(by), a.loss_weights[1] * (a.bbox_factor * inverse),
                      a.loss_weights[2] * (a.dfl_factor * inverse)}, {0.0, 0.0, 0.0}};
    const double scale = a.grad_scale ? (double)*a.grad_scale : a.host_grad_scale;
#pragma unroll
    for (u32 i = 0; i < 3; ++i) f.grad[i] = f.loss[i] * scale;
    if (a.upstream) {
#pragma unroll
        for (u32 i = 0; i < 3; ++i) f.grad[i] *= (double)a.upstream[3 * level + i];
    }
    return f;
}
