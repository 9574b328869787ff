// Phase one of the head loss: what the labels and the positives say. It leaves the sums, what to divide by, and a
// record of each anchor.
#pragma once
#include "head.cuh"

// What the warps find of a positive for the thread that owns it.
struct Found {
    double distance[4];
    double dfl;   // of the four sides
    double top;   // the largest class logit
};

// Whether this lane's anchor, of 32 from `first` on, has a score that is NaN. All lanes of the warp must call it.
DEVICE bool has_bad_scores(const HeadArgs& a, const HeadLevel& level, u64 first, u64 anchors, u32 lane) {
    bool bad = false;
#pragma unroll 1
    for (u32 k = 0; k < 32 && whole_warp(first + k < anchors); ++k) {
        const float* scores = level.scores + (first + k) * a.classes;
        bool here = false;
#pragma unroll 4
        for (u32 c = lane; c < a.classes; c += 32) {
            const float score = scores[c];
            here |= score != score;
        }
        here = __any_sync(ALL_LANES, here);
        if (k == lane) bad = here;
    }
    return bad;
}

// The code of an anchor. A positive whose targets are no numbers is masked, and so is an anchor with bad scores, unless
// its label weight says that nobody looks at them.
DEVICE u32 code_of(const HeadArgs& a, const HeadLevel& level, const Anchor& anchor, bool bad_scores) {
    const u32 n = anchor.number;
    const long long label = level.labels_are_i64 ? ((const long long*)level.labels)[n]
                                                 : (long long)((const int*)level.labels)[n];
    if (a.has_ignore_label && label == a.ignore_label) return MASKED_ANCHOR;
    const u64 column = (u64)label - a.background_first;  // wraps for labels below 0
    const bool known = column < a.classes || (a.background_first ? label == 0 : label <= (long long)a.classes);
    if (bad_scores && known && label_weight_of(level, n) != 0.0f) {
        if (a.status) report(&a.status->bad_qualities, a.status, level.first_row + n);
        return MASKED_ANCHOR;
    }
    if (column < a.classes) {
        float sum = level.quality ? level.quality[n] : 0.0f;
        bool usable = sum == sum;
        sum = level.box_scores ? level.box_scores[n] * 0.0f : 0.0f;
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
    if (known) return PLAIN;
    if (a.status && label_weight_of(level, n) != 0.0f)
        report(&a.status->bad_labels, a.status, level.first_row + n);
    return MASKED_ANCHOR;
}

// E of a logit without bins. Above 300 exp counts as infinite, so that areas never are.
DEVICE double number_of(u32 coding, double z) {
    constexpr u64 INFINITE = 0x7ff0000000000000ull;
    if (!(fabs(z) < __longlong_as_double(INFINITE))) return z - z;
    if (coding == CODING_RELU) return z > 0.0 ? z : 0.0;
    const double e = exp_negative(-fabs(z));
    return z <= 0.0 ? e : z > 300.0 ? __longlong_as_double(INFINITE) : reciprocal(e);
}

// A warp looks at a positive.
DEVICE void find(const HeadArgs& a, const HeadLevel& level, const Anchor& anchor, u32 lane, Found& found) {
    float top = -__uint_as_float(0x7f800000);
    if (!a.weight_is_quality && !level.box_scores) {
        const u64 first = place(level, level.cls_strides, anchor, 0);
#pragma unroll 4
        for (u32 c = lane; c < a.classes; c += 32) {
            const float x = load_any(level.cls, first + c * level.cls_strides.channel, a.cls_storage);
            top = x > top || x != x ? x : top;
        }
    }
    const u32 side = lane / SIDE_LANES, sub = lane % SIDE_LANES;
    const u64 z = place(level, level.box_strides, anchor, side * a.bins), step = level.box_strides.channel;
    double e, dfl = 0.0;
    if (whole_warp(a.box_coding == CODING_BINS)) {
        const Side s = side_of(a, level.boxes, z, step, sub);
        const double distance = distance_of(level, anchor, side);
        if (sub == 0 && a.status && box_weight_of(level, anchor.number) != 0.0f &&
            !(distance >= 0.0 && distance <= a.target_max))
            report(&a.status->out_of_range_targets, a.status, level.first_row + anchor.number);
        const TwoHotDouble target = two_hot_of(a, distance);
        const double z_left = load_any(level.boxes, z + target.left * step, a.box_storage);
        const double z_right = load_any(level.boxes, z + (target.left + 1) * step, a.box_storage);
        dfl = dfl_of(s, target, z_left, z_right);
        dfl += __shfl_xor_sync(ALL_LANES, dfl, 8);
        dfl += __shfl_xor_sync(ALL_LANES, dfl, 16);
        e = s.distance;
    } else {
        e = number_of(a.box_coding, load_any(level.boxes, z, a.box_storage));
    }
    const double most = lanes_max_nan(top, 32);
    if (sub == 0) found.distance[side] = e;
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
    IouLoss box = iou_loss(a.iou_kind, pred, corners, a.iou_eps);
    float slopes[4];
    double poison = 0.0;
#pragma unroll
    for (u32 side = 0; side < 4; ++side) {
        // By the logit, if there are no bins.
        const double e = found.distance[side], by_e = side < 2 ? -box.grad[side] : box.grad[side];
        const double by_logit = a.box_coding == CODING_EXP ? e : a.box_coding == CODING_BINS || e > 0.0 ? 1.0 : 0.0;
        slopes[side] = (float)(by_e * by_logit);
        poison = fma(e, 0.0, poison);
    }
    // A box without end has an IoU, but no loss to learn from.
    box.iou += poison, box.loss += poison;
    double quality = level.quality ? (double)level.quality[anchor.number] : box.iou;
    quality = quality < 0.0 ? 0.0 : quality > 1.0 ? 1.0 : quality;
    const double weight = level.box_scores    ? (double)level.box_scores[anchor.number]
                          : a.weight_is_quality ? quality
                                                : sigmoid_of(found.top);
    const double own = box_weight_of(level, anchor.number), factor = weight * own;
    sums[0] += weight;
    if (own != 0.0) {
        sums[1] = fma(factor, box.loss, sums[1]);
        sums[2] = fma(factor, found.dfl, sums[2]);
    }
    const u64 record = record_of(level, anchor);
    a.qualities[record] = (float)quality;
    a.box_weights[record] = (float)factor;
    const float bad = (float)poison;
    ((float4*)a.slopes)[record] =
        make_float4(slopes[0] + bad, slopes[1] + bad, slopes[2] + bad, slopes[3] + bad);
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
        const bool bad_scores =
            level.scores && has_bad_scores(a, level, base + threadIdx.x / 32 * 32, anchors, lane);
        u32 code = MASKED_ANCHOR;
        Anchor anchor = {0, 0, 0};
        if (number < anchors) {
            anchor = anchor_of(level, (u32)number);
            code = code_of(a, level, anchor, bad_scores);
            const float weight = label_weight_of(level, (u32)number);
            const u64 record = record_of(level, anchor);
            a.codes[record] = code;
            a.weights[record] = code == PLAIN && weight != 0.0f ? weight : __uint_as_float(0x7fffffff);
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
#pragma unroll 1
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
