// The head loss: three losses of all levels of a pyramid, and the gradients of both outputs, in two launches.
//
// Phase one (`head_positives`) looks at every label, and at the logits of the positives: where a box is, how
// good it is, what its two losses are. It leaves the sums, what to divide by, and a record of each anchor.
// Phase two (`head_losses`) passes over all class logits, and writes all gradients. In between the normalisers
// may be averaged over processes: the host never sees them.
//
// What the kernels do differently from the formulas:
//  1. Nothing is permuted, gathered or concatenated: every level has strides of its own, and its own blocks.
//  2. Positives are few and cluster, so a block collects those of its anchors and shares them out: a warp for
//     each in phase one, 8 lanes for each side in phase two. Their arithmetic is in double.
//  3. Class logits go through 16-byte vectors along whatever is contiguous: the positions of a channel, where
//     a thread goes from channel to channel; or the channels of a position. The labelled element is masked out
//     of its vector and computed on its own, as in qfl.cuh.
//  4. All that is rare stands apart: vectors with a label, without a weight, with several weights.
#pragma once
#include "boxes.cuh"
#include "call.cuh"
#include "math.cuh"
#include "rows.cuh"

// Threads; twin in src/cuda/raw/head.rs. Two blocks on a multiprocessor leave 128 registers for a thread, and
// have 32 KiB of loads under way.
constexpr int HEAD_BLOCK = 256;
constexpr u32 HEAD_WARPS = HEAD_BLOCK / 32;
constexpr u32 HEAD_LEVELS = 8;   // the most; twin of MAX_LEVELS in src/head/mod.rs

// Where the elements of a [batch, channels, positions] tensor are, in elements.
struct Strides {
    u64 batch;
    u64 channel;
    u64 position;
};

// A level of the pyramid. Field by field the same as `HeadLevel` in src/cuda/raw/head.rs.
struct HeadLevel {
    const Scalar* cls;        // its first element
    const Scalar* boxes;      // its first element; channel = side * bins + bin
    Scalar* grad_cls;         // in the same strides; null without a gradient
    Scalar* grad_boxes;
    Strides cls_strides, box_strides;
    const void* labels;       // [batch, positions], i64 or i32
    const float* label_weights;  // [batch, positions], or null: ones
    const float* targets;     // [batch, positions, 4], x1, y1, x2, y2 in pixels
    const float* quality;     // [batch, positions]; null: the IoU
    const float* points;      // [positions, 2] or [batch, positions, 2] in pixels; null: a grid
    u64 first_row;            // its first anchor in the status
    u64 first_record;         // its first anchor in the workspace, a multiple of 8
    double stride, inverse_stride;
    double grid_offset;       // in units of the stride
    u32 positions, width;
    u32 labels_are_i64;
    u32 points_of_batch;      // 1: points differ between images
    // The rest is set by the launch: which blocks do what, and how.
    u32 positives_block, cls_block, box_block;  // the first blocks of phase one, of the two parts of phase two
    u32 cls_by_channel;       // lanes go along the channels of an anchor, not along positions
    u32 cls_vectors;          // accesses are vectors of 16 bytes
    u32 cls_lanes;            // that share an anchor: 1, 2, 4, ... 32 by channel, 1 by position
    u32 cls_channels;         // of a tile, by position
    u32 cls_chunks;           // tiles that share an anchor
    u32 box_by_channel;       // 1: likewise; 2: and the anchors follow each other without a gap
    u32 box_vectors;
    u32 unused;
};

// Field by field the same as `HeadArgs` in src/cuda/raw/head.rs.
struct HeadArgs {
    HeadLevel levels[HEAD_LEVELS];
    float* normalisers;       // [2]: number of positives, sum of their box weights
    u32* tickets;             // [2]
    u32* image_positives;     // [batch]: a count, 0 between launches
    double* level_sums;       // [levels, 3]: of v, v * box loss, v * distribution losses
    double* partials;         // [3, partial_blocks]
    u32* codes;               // [records]: PLAIN, MASKED, or the labelled column + 1
    float* qualities;         // [records], of positives
    float* box_weights;       // [records], of positives: v
    float* slopes;            // [records, 4], of positives: of the box loss with respect to the distances
    float* losses;            // [levels, 3]
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
    u32 level_count, batch, classes, bins;
    u32 background_first, has_ignore_label;
    u32 iou_kind;             // as in `IouKind`
    u32 weight_is_quality;    // v is the quality, not the largest score
    u32 image_has_one;        // an image without positives counts as having one
    u32 cls_by_weight;        // N = W
    u32 partial_blocks;
};

constexpr u32 PLAIN = 0, MASKED_ANCHOR = 0xffffffffu;

// The last level whose blocks begin at this one or before.
template <class First>
DEVICE u32 level_of_block(const HeadArgs& a, First first) {
    u32 level = 0;
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

DEVICE u64 place(const Strides& s, const Anchor& anchor, u32 channel) {
    return anchor.image * s.batch + anchor.position * s.position + channel * s.channel;
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

// As two_hot, of a target that is in range.
struct TwoHotDouble {
    u32 left;
    double left_weight, right_weight;
};

DEVICE TwoHotDouble two_hot_of(const HeadArgs& a, double distance) {
    distance = distance < 0.0 ? 0.0 : distance > a.target_max ? a.target_max : distance;
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

DEVICE double lanes_max_nan(double x, int width) {
    for (int step = width / 2; step > 0; step /= 2) {
        double other = __shfl_xor_sync(ALL_LANES, x, step);
        x = other > x || other != other ? other : x;
    }
    return x;
}

// Logits that are not finite make all but the peak NaN. All lanes of the warp must call it.
DEVICE Side side_of(const HeadArgs& a, const Scalar* z, u64 channel, u32 lane) {
    float top = -__uint_as_float(0x7f800000), poison = 0.0f;
#pragma unroll 4
    for (u32 j = lane; j < a.bins; j += SIDE_LANES) {
        const float x = load(z + j * channel);
        poison = fmaf(x, 0.0f, poison);
        top = fmaxf(top, x);
    }
    top = lanes_max(top, SIDE_LANES);
    const double peak = top;
    double below = poison, moment = 0.0, peaks = 0.0;
#pragma unroll 1
    for (u32 j = lane; j < a.bins; j += SIDE_LANES) {
        const double x = load(z + j * channel);
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

// ---- phase one

// What the warps find of a positive for the thread that owns it.
struct Found {
    double distance[4];
    double dfl;   // of the four sides
    double top;   // the largest class logit
};

// The code of an anchor. A positive whose targets are no numbers is masked.
DEVICE u32 code_of(const HeadArgs& a, const HeadLevel& level, const Anchor& anchor) {
    const u32 n = anchor.number;
    const long long label = level.labels_are_i64 ? ((const long long*)level.labels)[n]
                                                 : (long long)((const int*)level.labels)[n];
    if (a.has_ignore_label && label == a.ignore_label) return MASKED_ANCHOR;
    const u64 column = (u64)label - a.background_first;  // wraps for labels below 0
    if (column < a.classes) {
        float sum = level.quality ? level.quality[n] : 0.0f;
        bool usable = sum == sum;
        sum = 0.0f;
        const Corners corners = load_corners(level.targets + 4ull * n);
#pragma unroll
        for (u32 side = 0; side < 4; ++side) sum = fmaf(corners.side[side], 0.0f, sum);
        if (level.points) {
            const u64 at = level.points_of_batch ? n : anchor.position;
            sum = fmaf(level.points[2 * at], 0.0f, fmaf(level.points[2 * at + 1], 0.0f, sum));
        }
        usable &= sum == 0.0f;
        if (usable) return (u32)column + 1;
        if (a.status) report(&a.status->bad_qualities, a.status, level.first_row + n);
        return MASKED_ANCHOR;
    }
    if (a.background_first ? label == 0 : label <= (long long)a.classes) return PLAIN;
    if (a.status && !(level.label_weights && level.label_weights[n] == 0.0f))
        report(&a.status->bad_labels, a.status, level.first_row + n);
    return MASKED_ANCHOR;
}

// A warp looks at a positive.
DEVICE void find(const HeadArgs& a, const HeadLevel& level, const Anchor& anchor, u32 lane, Found& found) {
    float top = -__uint_as_float(0x7f800000);
    if (!a.weight_is_quality) {
        const Scalar* cls = level.cls + place(level.cls_strides, anchor, 0);
#pragma unroll 4
        for (u32 c = lane; c < a.classes; c += 32) {
            const float x = load(cls + c * level.cls_strides.channel);
            top = x > top || x != x ? x : top;
        }
    }
    const u32 side = lane / SIDE_LANES, sub = lane % SIDE_LANES;
    const Scalar* z = level.boxes + place(level.box_strides, anchor, side * a.bins);
    const Side s = side_of(a, z, level.box_strides.channel, sub);
    const double distance = distance_of(level, anchor, side);
    if (sub == 0 && a.status && !(distance >= 0.0 && distance <= a.target_max))
        report(&a.status->out_of_range_targets, a.status, level.first_row + anchor.number);
    const TwoHotDouble target = two_hot_of(a, distance);
    const double z_left = load(z + target.left * level.box_strides.channel);
    const double z_right = load(z + (target.left + 1) * level.box_strides.channel);
    double dfl = dfl_of(s, target, z_left, z_right);
    dfl += __shfl_xor_sync(ALL_LANES, dfl, 8);
    dfl += __shfl_xor_sync(ALL_LANES, dfl, 16);
    const double most = lanes_max_nan(top, 32);
    if (sub == 0) found.distance[side] = s.distance;
    if (lane == 0) found.dfl = dfl, found.top = most;
}

// NaN stays NaN.
DEVICE double sigmoid_of(double x) {
    if (x != x) return x;
    const double e = exp_negative(-fabs(x)), large = reciprocal(1.0 + e);
    return x >= 0.0 ? large : e * large;
}

// The end of a positive, by its thread: its record, and what it adds to the sums.
DEVICE void conclude(const HeadArgs& a, const HeadLevel& level, const Anchor& anchor, const Found& found,
                     double (&sums)[3]) {
    const Box pred = distances_to_box(point_of(level, anchor, 0), point_of(level, anchor, 1), found.distance);
    const Corners pixels = load_corners(level.targets + 4ull * anchor.number);
    Box corners;
#pragma unroll
    for (u32 side = 0; side < 4; ++side)
        corners.side[side] = divided(pixels.side[side], level.stride, level.inverse_stride);
    const IouLoss box = iou_loss(a.iou_kind, pred, corners, a.iou_eps);
    double quality = level.quality ? (double)level.quality[anchor.number] : box.iou;
    quality = quality < 0.0 ? 0.0 : quality > 1.0 ? 1.0 : quality;
    const double weight = a.weight_is_quality ? quality : sigmoid_of(found.top);
    sums[0] += weight;
    sums[1] = fma(weight, box.loss, sums[1]);
    sums[2] = fma(weight, found.dfl, sums[2]);
    const u64 record = level.first_record + anchor.number;
    a.qualities[record] = (float)quality;
    a.box_weights[record] = (float)weight;
    ((float4*)a.slopes)[record] = make_float4((float)-box.grad[0], (float)-box.grad[1], (float)box.grad[2], (float)box.grad[3]);
}

// Whether a condition that is the same in all lanes holds. The compiler sees that a branch on it does not divide
// the warp, so that shuffles and votes behind it need no provision for that.
DEVICE bool whole_warp(bool condition) { return __any_sync(ALL_LANES, condition); }

// True in all threads of the block that takes the last ticket, which sees what all others have stored.
DEVICE bool is_last_block(u32* ticket) {
    SHARED(u32, last, 1);
    __syncthreads();
    if (threadIdx.x == 0) last[0] = take_ticket(ticket, gridDim.x - 1) == gridDim.x - 1;
    __syncthreads();
    return whole_warp(last[0] != 0);
}

// The sum of what the blocks from `first` to `end` have stored, in the order of their numbers.
DEVICE double sum_of_blocks(const double* partials, u32 first, u32 end) {
    double x = 0.0;
    for (u32 base = first; base < end; base += HEAD_BLOCK) {
        const u32 i = base + threadIdx.x;
        if (i < end) x += load_shared_by_blocks(&partials[i]);
    }
    return block_sum<HEAD_BLOCK>(x);
}

DEVICE void head_positives(const HeadArgs& a) {
    SHARED(Found, found, HEAD_BLOCK);
    SHARED(u32, queue, HEAD_BLOCK);  // threads whose anchor is positive, in any order
    SHARED(u32, queued, 1);
    const u32 l = level_of_block(a, [&](u32 i) { return a.levels[i].positives_block; });
    const HeadLevel& level = a.levels[l];
    const u32 first = level.positives_block;
    const u32 end = l + 1 < a.level_count ? a.levels[l + 1].positives_block : gridDim.x;
    const u32 anchors = a.batch * level.positions, lane = threadIdx.x % 32;
    double sums[3] = {0.0, 0.0, 0.0};
    for (u64 base = (u64)(blockIdx.x - first) * HEAD_BLOCK; base < anchors; base += (u64)(end - first) * HEAD_BLOCK) {
        if (threadIdx.x == 0) queued[0] = 0;
        __syncthreads();
        const u64 number = base + threadIdx.x;
        u32 code = MASKED_ANCHOR;
        Anchor anchor = {0, 0, 0};
        if (number < anchors) {
            anchor = anchor_of(level, (u32)number);
            code = code_of(a, level, anchor);
            a.codes[level.first_record + number] = code;
        }
        const bool positive = code != PLAIN && code != MASKED_ANCHOR;
        if (positive) {
            queue[atomicAdd(&queued[0], 1u)] = threadIdx.x;
            count_up(&a.image_positives[anchor.image]);
        }
        __syncthreads();
        const u32 count = queued[0];
        for (u32 i = threadIdx.x / 32; whole_warp(i < count); i += HEAD_WARPS) {
            const u32 owner = queue[i];
            find(a, level, anchor_of(level, (u32)base + owner), lane, found[owner]);
        }
        __syncthreads();
        if (positive) conclude(a, level, anchor, found[threadIdx.x], sums);
    }
#pragma unroll
    for (u32 k = 0; k < 3; ++k) {
        const double sum = block_sum<HEAD_BLOCK>(sums[k]);
        if (threadIdx.x == 0) a.partials[k * a.partial_blocks + blockIdx.x] = sum;
    }
    if (!is_last_block(&a.tickets[0])) return;
    double weights = 0.0;
    for (u32 i = 0; i < a.level_count; ++i) {
        const u32 from = a.levels[i].positives_block;
        const u32 to = i + 1 < a.level_count ? a.levels[i + 1].positives_block : gridDim.x;
        for (u32 k = 0; k < 3; ++k) {
            const double sum = sum_of_blocks(a.partials + k * a.partial_blocks, from, to);
            if (k == 0) weights += sum;
            if (threadIdx.x == 0) a.level_sums[3 * i + k] = sum;
        }
    }
    double positives = 0.0;
    for (u32 base = 0; base < a.batch; base += HEAD_BLOCK) {
        const u32 i = base + threadIdx.x;
        if (i >= a.batch) continue;
        const u32 count = atomicExch(&a.image_positives[i], 0u);  // ready for the next launch
        positives += (double)(a.image_has_one && count == 0 ? 1 : count);
    }
    positives = block_sum<HEAD_BLOCK>(positives);
    if (threadIdx.x == 0) {
        a.normalisers[0] = (float)positives;
        a.normalisers[1] = (float)weights;
    }
}

// ---- phase two

// What the sums of the three losses, and their gradients, are multiplied by.
struct HeadFactors {
    double loss[3], grad[3];
};

DEVICE HeadFactors head_factors(const HeadArgs& a) {
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
    return f;
}

// A logit so low that its loss and its gradient are 0: it stands for one that is not to count while the rest
// of its vector is computed.
constexpr float HEAD_MASKED_LOGIT = -100.0f;
#if defined(STORAGE_F16)
constexpr u32 HEAD_MASKED = 0xd640d640;
#elif defined(STORAGE_BF16)
constexpr u32 HEAD_MASKED = 0xc2c8c2c8;
#else
constexpr u32 HEAD_MASKED = 0xc2c80000;
#endif

// Whether a float is finite once it is stored.
DEVICE bool stored_finite(float x) {
#ifdef STORAGE_F32
    return is_finite(__float_as_uint(x));
#else
    return is_finite(both_halves(x, 0.0f));
#endif
}

// Some consecutive scalars: as many as 16 bytes hold, or one.
template <int W>
struct Piece {
    Words words;

    DEVICE static Piece masked() { return {{{HEAD_MASKED, HEAD_MASKED, HEAD_MASKED, HEAD_MASKED}}}; }
    DEVICE static Piece read(const Scalar* p) { return {load_words(p)}; }
    DEVICE void write(Scalar* p) const { store_words(p, words); }
    DEVICE bool finite() const { return is_finite(words); }

    // Whether all are at most -2 and none is so low as to be -inf: sign and highest bit of the exponent are
    // set, the next one is not.
    DEVICE bool confident() const {
#ifdef STORAGE_F32
        constexpr u32 SET = 0xe0000000, NOT_SET = 0x20000000;
#else
        constexpr u32 SET = 0xe000e000, NOT_SET = 0x20002000;
#endif
        const u32 all = (words.w[0] ^ NOT_SET) & (words.w[1] ^ NOT_SET) & (words.w[2] ^ NOT_SET) & (words.w[3] ^ NOT_SET);
        return (all & SET) == SET;
    }

    // No index that is not constant, which would put the words into local memory.
    DEVICE void mask(u32 which) {  // bits
#pragma unroll
        for (u32 k = 0; k < 4; ++k) {
#ifdef STORAGE_F32
            const u32 keep = which >> k & 1 ? 0 : 0xffffffffu;
#else
            const u32 keep = (which >> 2 * k & 1 ? 0 : 0xffffu) | (which >> 2 * k & 2 ? 0 : 0xffff0000u);
#endif
            words.w[k] = (words.w[k] & keep) | (HEAD_MASKED & ~keep);
        }
    }
};

template <>
struct Piece<1> {
    float x;

    DEVICE static Piece masked() { return {HEAD_MASKED_LOGIT}; }
    DEVICE static Piece read(const Scalar* p) { return {load(p)}; }
    DEVICE void write(Scalar* p) const { store(p, x); }
    DEVICE bool finite() const { return stored_finite(x); }
    DEVICE void mask(u32 which) { x = which & 1 ? HEAD_MASKED_LOGIT : x; }
};

// The loss of background logits, which their gradients replace. All lanes of a warp call it together.
template <bool GRADIENT>
DEVICE float background_piece(const HeadArgs& a, Piece<VECTOR>& piece, float scale) {
    float x[VECTOR], loss = 0.0f;
    unpack(piece.words, x);
    if (a.beta == 2.0f) {
        if (__all_sync(ALL_LANES, piece.confident())) {
#pragma unroll
            for (int k = 0; k < VECTOR; ++k) {
                LossGrad element = qfl_confident<sizeof(Scalar) == 2, false>(x[k], scale, k);
                loss += element.loss;
                x[k] = element.grad;
            }
        } else {
#pragma unroll
            for (int k = 0; k < VECTOR; ++k) {
                LossGrad element = qfl_background<GRADIENT, false>(x[k], scale);
                loss += element.loss;
                x[k] = element.grad;
            }
        }
    } else {
#pragma unroll
        for (int k = 0; k < VECTOR; ++k) {
            LossGrad element = qfl_background_any_beta(x[k], a.beta, scale);
            loss += element.loss;
            x[k] = element.grad;
        }
    }
    if (GRADIENT) piece.words = pack(x);
    return loss;
}

template <bool GRADIENT>
DEVICE float background_piece(const HeadArgs& a, Piece<1>& piece, float scale) {
    LossGrad element = a.beta == 2.0f ? qfl_background<GRADIENT, false>(piece.x, scale)
                                      : qfl_background_any_beta(piece.x, a.beta, scale);
    if (GRADIENT) piece.x = element.grad;
    return element.loss;
}

// The labelled element of an anchor, in double: its weighted loss.
template <bool GRADIENT>
DEVICE double labelled(const HeadArgs& a, const HeadLevel& level, const Anchor& anchor, u32 column, float weight,
                       float grad_factor, bool& finite) {
    const u64 at = place(level.cls_strides, anchor, column);
    const float quality = a.qualities[level.first_record + anchor.number];
    const LossGrad element = qfl_soft_any_beta(load(level.cls + at), quality, a.beta, grad_factor * weight);
    if (GRADIENT) {
        store(level.grad_cls + at, element.grad);
        finite &= is_finite(level.grad_cls + at);
    }
    return (double)element.loss * (double)weight;
}

constexpr u32 HEAD_UNROLL = 4;  // pieces that a thread has in flight

// What is the same for all tiles of a thread.
struct ClassSums {
    double loss;
    bool finite;
};

// A warp's share of the class logits: some anchors, and some channels of them. By position a lane has W
// anchors and goes from channel to channel; by channel `lanes` lanes have an anchor and share its channels.
// `group`, `chunk`: which anchors, which channels.
template <bool GRADIENT, int W>
DEVICE bool class_tile(const HeadArgs& a, const HeadLevel& level, u32 group, u32 chunk, float grad_factor,
                       ClassSums& sums) {
    const bool by_channel = level.cls_by_channel;
    const u32 lane = threadIdx.x % 32, lanes = by_channel ? level.cls_lanes : 1, sub = lane & (lanes - 1);
    const u32 anchors = a.batch * level.positions, each = by_channel ? 1 : W;  // anchors of a lane
    const u32 item = group * (32 / lanes) + lane / lanes;
    const bool active = (u64)item * each < anchors;
    const Anchor anchor = anchor_of(level, active ? item * each : 0);
    const u64 record = level.first_record + anchor.number;

    // The pieces of this lane: `count` of them, `step` apart, the first at channel `first`; `trips` is the
    // largest count in the warp.
    const u32 first = by_channel ? sub * W : chunk * level.cls_channels;
    const u64 step = level.cls_strides.channel * (by_channel ? lanes * W : 1);
    const u32 wide = a.classes / W, channels = min(level.cls_channels, a.classes - chunk * level.cls_channels);
    const u32 trips = by_channel ? (wide + lanes - 1) / lanes : level.cls_channels;
    const u32 count = by_channel ? (wide + lanes - 1 - sub) / lanes : channels;

    // What the anchors say: a bit for each that is masked, one weight for all others, the next piece with a label.
    float weight = 0.0f;
    u32 masked = 0, next = 0xffffffffu;
    bool uneven = false, first_weight = true;
#pragma unroll
    for (u32 k = 0; k < W; ++k) {
        if (k >= each) break;
        const u32 code = a.codes[record + k];
        const float w = level.label_weights ? level.label_weights[anchor.number + k] : 1.0f;
        if (code == MASKED_ANCHOR || w == 0.0f) {
            masked |= by_channel ? 0xffu : 1u << k;
            continue;
        }
        uneven |= !first_weight && w != weight;
        weight = first_weight ? w : weight;
        first_weight = false;
        const u32 ahead = code - 1 - first;  // of a labelled column; huge without
        if (code == PLAIN) continue;
        if (!by_channel) next = ahead < count ? min(next, ahead) : next;
        else if ((code - 1) / W % lanes == sub) next = (code - 1) / W / lanes;
    }
    // Of an anchor without a weight it stays unused, whatever the factor.
    const float scale = weight == 0.0f ? 0.0f : grad_factor * weight;
    if (W > 1 && __any_sync(ALL_LANES, !by_channel && (uneven || !is_finite(__float_as_uint(scale))))) return false;
    const bool any_masked = W == 1 || __any_sync(ALL_LANES, masked != 0);
    const bool has_label = next != 0xffffffffu;

    const Scalar* from = level.cls + place(level.cls_strides, anchor, first);
    Scalar* to = GRADIENT ? level.grad_cls + place(level.cls_strides, anchor, first) : nullptr;
    float sum = 0.0f;
    bool finite = true;
#pragma unroll 1
    for (u32 i = 0; i < trips; i += HEAD_UNROLL) {
        Piece<W> pieces[HEAD_UNROLL];
        const bool whole = i + HEAD_UNROLL <= count;
        if (__builtin_expect(whole, 1)) {
#pragma unroll
            for (u32 u = 0; u < HEAD_UNROLL; ++u) pieces[u] = Piece<W>::read(from + u * step);
        } else {
#pragma unroll
            for (u32 u = 0; u < HEAD_UNROLL; ++u) {
                pieces[u] = Piece<W>::masked();
                if (i + u < count) pieces[u] = Piece<W>::read(from + u * step);
            }
        }
        if (any_masked) {
#pragma unroll
            for (u32 u = 0; u < HEAD_UNROLL; ++u) pieces[u].mask(masked);
        }
        if (next - i < HEAD_UNROLL) {  // rare
            u32 later = 0xffffffffu;
#pragma unroll 1
            for (u32 k = 0; k < each; ++k) {
                const u32 code = a.codes[record + k];
                if (code == PLAIN || code == MASKED_ANCHOR) continue;
                const u32 ahead = by_channel ? (code - 1) / W / lanes : code - 1 - first;
                const u32 bit = 1u << (by_channel ? (code - 1) % W : k);
#pragma unroll
                for (u32 u = 0; u < HEAD_UNROLL; ++u) pieces[u].mask(ahead == i + u ? bit : 0);
                if (ahead - i >= HEAD_UNROLL && ahead > i && ahead < count) later = min(later, ahead);
            }
            next = later;
        }
#pragma unroll
        for (u32 u = 0; u < HEAD_UNROLL; ++u) {
            const float loss = background_piece<GRADIENT>(a, pieces[u], scale);
            sum = fmaf(weight, loss, sum);
        }
        if (GRADIENT) {
            if (a.found_inf) {  // what idle lanes have is what others have
#pragma unroll
                for (u32 u = 0; u < HEAD_UNROLL; ++u) finite &= pieces[u].finite();
            }
            if (__builtin_expect(whole && active, 1)) {
#pragma unroll
                for (u32 u = 0; u < HEAD_UNROLL; ++u) pieces[u].write(to + u * step);
            } else if (active) {
#pragma unroll
                for (u32 u = 0; u < HEAD_UNROLL; ++u)
                    if (i + u < count) pieces[u].write(to + u * step);
            }
            to += HEAD_UNROLL * step;
        }
        from += HEAD_UNROLL * step;
    }
    if (!active) return true;
    sums.loss += (double)sum;
    sums.finite &= finite;
    if (has_label) {
#pragma unroll 1
        for (u32 k = 0; k < each; ++k) {
            const u32 code = a.codes[record + k];
            if (code == PLAIN || masked >> k & 1 || (!by_channel && code - 1 - first >= count)) continue;
            const Anchor one = {anchor.number + k, anchor.image, anchor.position + k};
            sums.loss += labelled<GRADIENT>(a, level, one, code - 1, weight, grad_factor, sums.finite);
        }
    }
    return true;
}

// The tiles of a level that fall to this block.
template <bool GRADIENT>
DEVICE void head_classes(const HeadArgs& a, const HeadLevel& level, float grad_factor, ClassSums& sums) {
    const u32 blocks = level.box_block - level.cls_block, anchors = a.batch * level.positions;
    const u32 of_warp = level.cls_by_channel ? 32 / level.cls_lanes : level.cls_vectors ? 32 * VECTOR : 32;
    const u32 tiles = (anchors + of_warp - 1) / of_warp * level.cls_chunks;
    for (u32 base = (blockIdx.x - level.cls_block) * HEAD_WARPS; base < tiles; base += blocks * HEAD_WARPS) {
        const u32 tile = base + threadIdx.x / 32;
        if (!whole_warp(tile < tiles)) break;
        const u32 group = tile / level.cls_chunks, chunk = tile - group * level.cls_chunks;
        u32 first = group, count = 1;
        if (level.cls_vectors) {
            if (class_tile<GRADIENT, VECTOR>(a, level, group, chunk, grad_factor, sums)) continue;
            first = group * VECTOR, count = VECTOR;  // several weights in one vector
        }
#pragma unroll 1
        for (u32 k = 0; k < count; ++k) class_tile<GRADIENT, 1>(a, level, first + k, chunk, grad_factor, sums);
    }
}

// The gradients of the box logits: zeros, and then those of the positives, 8 lanes for each side.
DEVICE void head_boxes(const HeadArgs& a, const HeadLevel& level, u32 blocks, const HeadFactors& factors, bool& finite) {
    constexpr u32 MOST = HEAD_BLOCK * VECTOR;
    SHARED(u16, queue, MOST);  // positives among the anchors of a tile, in any order
    SHARED(u32, queued, 1);
    const bool by_channel = level.box_by_channel;
    const u32 each = level.box_vectors && !by_channel ? VECTOR : 1, of_block = each * HEAD_BLOCK;
    const u32 anchors = a.batch * level.positions, sides = by_channel ? 4 : 1;
    const u32 groups = by_channel ? (anchors + HEAD_BLOCK - 1) / HEAD_BLOCK
                       : each == 1 ? (anchors + HEAD_BLOCK - 1) / HEAD_BLOCK : (anchors + MOST - 1) / MOST;
    const u32 tiles = by_channel ? groups : groups * 4;
    const u32 lane = threadIdx.x % 32, sub = lane % SIDE_LANES;
    for (u32 tile = blockIdx.x - level.box_block; tile < tiles; tile += blocks) {
        const u32 group = by_channel ? tile : tile / 4, side = by_channel ? 0 : tile % 4;
        const u32 base = group * of_block, mine = base + threadIdx.x * each;
        if (threadIdx.x == 0) queued[0] = 0;
        __syncthreads();
        if (mine < anchors) {
            const Anchor anchor = anchor_of(level, mine);
            if (!by_channel) {
                Scalar* to = level.grad_boxes + place(level.box_strides, anchor, side * a.bins);
#pragma unroll 4
                for (u32 j = 0; j < a.bins; ++j) {
                    if (each == VECTOR) store_words(to, {{0, 0, 0, 0}});
                    else store(to, 0.0f);
                    to += level.box_strides.channel;
                }
            }
            for (u32 k = 0; k < each; ++k) {
                const u32 code = a.codes[level.first_record + mine + k];
                if (code != PLAIN && code != MASKED_ANCHOR) queue[atomicAdd(&queued[0], 1u)] = (u16)(threadIdx.x * each + k);
            }
        }
        if (by_channel) {
            // A warp has 32 anchors at once if they follow each other, otherwise 8 lanes have one.
            const bool dense = level.box_by_channel == 2;
            const u32 lanes = dense ? 32 : SIDE_LANES, rows = dense ? 32 : 1, end = min(base + HEAD_BLOCK, anchors);
#pragma unroll 1
            for (u32 r = base + threadIdx.x / lanes * rows; r < end; r += HEAD_BLOCK / lanes * rows) {
                Scalar* row = level.grad_boxes + place(level.box_strides, anchor_of(level, r), 0);
                zero_row(row, row, min(rows, end - r) * 4 * a.bins, lane % lanes, lanes);
            }
        }
        __syncthreads();
        const u32 jobs = queued[0] * sides;
        for (u32 at = 0; at < jobs; at += HEAD_BLOCK / SIDE_LANES) {
            const u32 job = at + threadIdx.x / SIDE_LANES;
            const bool valid = job < jobs;
            const u32 picked = queue[valid ? job / sides : 0];
            const Anchor anchor = anchor_of(level, base + picked);
            const u32 s = by_channel ? job % 4 : side;
            const u64 start = place(level.box_strides, anchor, s * a.bins), step = level.box_strides.channel;
            const Side distribution = side_of(a, level.boxes + start, step, sub);
            const TwoHotDouble target = two_hot_of(a, distance_of(level, anchor, s));
            const u64 record = level.first_record + anchor.number;
            const double weight = a.box_weights[record];
            const double of_dfl = factors.grad[2] * weight, of_iou = factors.grad[1] * weight * (double)a.slopes[4 * record + s];
#pragma unroll 1
            for (u32 j = valid ? sub : a.bins; j < a.bins; j += SIDE_LANES) {
                const u64 element = start + j * step;
                const double z = load(level.boxes + element);
                const double p = exp_negative(z - distribution.peak) * distribution.inverse_total;
                const double share = j == target.left ? target.left_weight : j == target.left + 1 ? target.right_weight : 0.0;
                const double grad = fma(of_dfl, p - share, of_iou * (p * ((double)j - distribution.distance)));
                store(level.grad_boxes + element, (float)grad);
                finite &= is_finite(level.grad_boxes + element);
            }
        }
        __syncthreads();
    }
}

template <bool GRADIENT>
DEVICE void head_losses(const HeadArgs& a) {
    const u32 l = level_of_block(a, [&](u32 i) { return a.levels[i].cls_block; });
    const HeadLevel& level = a.levels[l];
    ClassSums sums = {0.0, true};
    if (blockIdx.x < level.box_block) {
        head_classes<GRADIENT>(a, level, (float)head_factors(a).grad[0], sums);
    } else if (GRADIENT) {
        const u32 end = l + 1 < a.level_count ? a.levels[l + 1].cls_block : gridDim.x;
        head_boxes(a, level, end - level.box_block, head_factors(a), sums.finite);
    }
    if (GRADIENT && !sums.finite && a.found_inf) *a.found_inf = 1.0f;  // all who write it write the same
    const double sum = block_sum<HEAD_BLOCK>(sums.loss);
    if (threadIdx.x == 0) a.partials[blockIdx.x] = sum;
    if (!is_last_block(&a.tickets[1])) return;
    const HeadFactors factors = head_factors(a);  // once more: few registers are free in between
    for (u32 i = 0; i < a.level_count; ++i) {
        const double total = sum_of_blocks(a.partials, a.levels[i].cls_block, a.levels[i].box_block);
        if (threadIdx.x < 3) {
            const double share = threadIdx.x == 0 ? total : a.level_sums[3 * i + threadIdx.x];
            const double factor = threadIdx.x == 0 ? factors.loss[0] : threadIdx.x == 1 ? factors.loss[1] : factors.loss[2];
            a.losses[3 * i + threadIdx.x] = (float)(share * factor);
        }
    }
}
