// The box logits in phase two of the head loss: their gradients.
#pragma once
#include "head.cuh"

// Zeros, and then what the positives have, 8 lanes for each side. A block has a tile of anchors at a time: one side
// of many of an image where positions are contiguous, else all sides of a few.
DEVICE void head_boxes(const HeadArgs& a, const HeadLevel& level, u32 blocks, const HeadFactors& factors, bool& finite) {
    constexpr u32 MOST = 4 * HEAD_BLOCK;  // twin of BOX_POSITIONS_OF_TILE in src/head/launch/plan.rs
    SHARED(u16, queue, MOST);             // positives among the anchors of a tile, in any order
    SHARED(u32, queued, 1);
    const bool by_position = level.box_way == BOX_POSITIONS;
    const u32 anchors = a.batch * level.positions, sides = by_position ? 1 : 4;
    const u32 groups = by_position ? (level.positions + MOST - 1) / MOST : (anchors + HEAD_BLOCK - 1) / HEAD_BLOCK;
    const u32 tiles = by_position ? a.batch * groups * 4 : groups;
    const u32 lane = threadIdx.x % 32, sub = lane % SIDE_LANES;
    for (u32 tile = blockIdx.x - level.box_block; tile < tiles; tile += blocks) {
        const u32 side = by_position ? tile % 4 : 0, row = tile / 4, image = row / groups;
        const u32 position = (row - image * groups) * MOST;
        const u32 base = by_position ? image * level.positions + position : tile * HEAD_BLOCK;
        const u32 count = by_position ? min(MOST, level.positions - position) : min((u32)HEAD_BLOCK, anchors - base);
        if (threadIdx.x == 0) queued[0] = 0;
        __syncthreads();
        for (u32 k = threadIdx.x; k < count; k += HEAD_BLOCK) {
            const u32 code = a.codes[record_of(level, anchor_of(level, base + k))];
            if (code != PLAIN && code != MASKED_ANCHOR && box_weight_of(level, base + k) != 0.0f)
                queue[atomicAdd(&queued[0], 1u)] = (u16)k;
        }
        if (level.box_way == BOX_SCALARS) {
            if (threadIdx.x < count) {
                const u64 to = place(level, level.grad_box_strides, anchor_of(level, base + threadIdx.x), 0);
#pragma unroll 1
                for (u32 j = 0; j < 4 * a.bins; ++j)
                    store_any(level.grad_boxes, to + j * level.grad_box_strides.channel, a.box_storage, 0.0f);
            }
        } else {
            // A warp has a bin of many anchors at once, or 32 anchors if they follow each other; otherwise 8 lanes
            // have one anchor.
            const bool dense = level.box_way == BOX_ANCHORS;
            const u32 lanes = by_position || dense ? 32 : SIDE_LANES, rows = dense ? 32 : 1;
            const u64 first = place(level, level.grad_box_strides, anchor_of(level, base), side * a.bins);
            const u32 end = by_position ? a.bins : count;
#pragma unroll 1
            for (u32 r = threadIdx.x / lanes * rows; r < end; r += HEAD_BLOCK / lanes * rows) {
                const u64 start = by_position ? first + r * level.grad_box_strides.channel
                                              : place(level, level.grad_box_strides, anchor_of(level, base + r), 0);
                const u32 length = by_position ? count : min(rows, count - r) * 4 * a.bins;
                char* to = (char*)level.grad_boxes + start * size_of(a.box_storage);
                zero_scalars(to, length, a.box_storage, lane % lanes, lanes);
            }
        }
        __syncthreads();
        const u32 jobs = queued[0] * sides;
        for (u32 at = 0; at < jobs; at += HEAD_BLOCK / SIDE_LANES) {
            const u32 job = at + threadIdx.x / SIDE_LANES;
            const bool valid = job < jobs;
            const u32 picked = queue[valid ? job / sides : 0];
            const Anchor anchor = anchor_of(level, base + picked);
            const u32 s = by_position ? side : job % 4;
            const u64 start = place(level, level.box_strides, anchor, s * a.bins), step = level.box_strides.channel;
            const u64 to = place(level, level.grad_box_strides, anchor, s * a.bins);
            const u64 record = record_of(level, anchor);
            const double weight = a.box_weights[record];
            const double of_dfl = factors.grad[2] * weight, of_iou = factors.grad[1] * weight * (double)a.slopes[4 * record + s];
            if (whole_warp(a.box_coding != CODING_BINS)) {  // the slope is that of the logit
                if (valid && sub == 0) finite &= store_any(level.grad_boxes, to, a.box_storage, (float)of_iou);
                continue;
            }
            const Side distribution = side_of(a, level.boxes, start, step, sub);
            const TwoHotDouble target = two_hot_of(a, distance_of(level, anchor, s));
#pragma unroll 1
            for (u32 j = valid ? sub : a.bins; j < a.bins; j += SIDE_LANES) {
                const double z = load_any(level.boxes, start + j * step, a.box_storage);
                const double p = exp_negative(z - distribution.peak) * distribution.inverse_total;
                const double share = j == target.left ? target.left_weight : j == target.left + 1 ? target.right_weight : 0.0;
                const double grad = fma(of_dfl, p - share, of_iou * (p * ((double)j - distribution.distance)));
                finite &= store_any(level.grad_boxes, to + j * level.grad_box_strides.channel, a.box_storage, (float)grad);
            }
        }
        __syncthreads();
    }
}

