// What an assignment does besides ATSS: FCOS' rule, counting faults, and looking after the boxes that no
// anchor is given to.
#pragma once
#include "assign.cuh"

// FCOS: the key of the box that a point is given to; 0 without one.
DEVICE u64 best_of(const AssignArgs& a, const AssignLevel& level, const Anchor& of) {
    const Point point = centre(of.sides);
    u64 best = 0;
#pragma unroll 1
    for (u32 gt = 0; gt < a.gts; ++gt) {
        const Truth t = truth(a, gt);
        const Corners d = distances(point, t.box);
        const float furthest = fmaxf(fmaxf(d.side[0], d.side[1]), fmaxf(d.side[2], d.side[3]));
        if (t.usable && t.image == of.image && furthest >= level.low && furthest <= level.high &&
            is_inside(point, middle(t.box, level.reach), 0.0f)) {
            const u64 key = area_key(area(t.box), gt);
            best = key > best ? key : best;
        }
    }
    return best;
}

DEVICE void count(const AssignArgs& a, u32 fault, u64 number) {
    count_up(&a.status->assignment[fault]);
    raise_to(&a.status->not_first_boxes[fault], ~number);
}

// Counts what is wrong with the boxes, shared out to threads. Those to ignore have a label for the sake of it.
DEVICE void count_faults(const AssignArgs& a) {
    const u32 stride = gridDim.x * BLOCK;
#pragma unroll 1
    for (u32 i = blockIdx.x * BLOCK + threadIdx.x; i < a.gts + a.ignores; i += stride) {
        const bool is_truth = i < a.gts;
        const u32 of = is_truth ? i : i - a.gts;
        const long long image = integer(is_truth ? a.gt_image : a.ignore_image, of, a.labels_are_i64);
        const Corners box = load_box((is_truth ? a.gt_boxes : a.ignore_boxes) + 4 * (u64)of);
        const u32 faults = is_truth ? faults_of(a, box, image, integer(a.gt_labels, of, a.labels_are_i64))
                                    : faults_of(a, box, image, a.background_first) & ~(1u << BAD_LABEL);
#pragma unroll 1
        for (u32 fault = BAD_BOX; fault <= BAD_IMAGE; ++fault)
            if (faults >> fault & 1) count(a, fault, i);
    }
}

// Whether an anchor of a level is background, by its label: what it has been given by other blocks, too.
DEVICE bool is_free(const AssignArgs& a, const AssignLevel& level, u64 at) {
    const long long label = a.labels_are_i64 ? (long long)load_shared_by_blocks((const u64*)level.labels + at)
                                             : (int)load_shared_by_blocks((const u32*)level.labels + at);
    return label == background(a);
}

// The nearest anchor that is free, of all levels: in every thread the largest complement of a distance_key
// of numbers that count over all levels; 0 if there is none.
DEVICE u64 nearest_free(const AssignArgs& a, const Truth& t) {
    SHARED(u64, best, BLOCK / 32);
    const Point middle = centre(t.box);
    u64 complement = 0;
#pragma unroll 1
    for (u32 l = 0; l < a.levels; ++l) {
        const AssignLevel& level = a.level[l];
        const u64 image = (u64)t.image * size_of(level);
#pragma unroll 1
        for (u32 number = threadIdx.x; number < size_of(level); number += BLOCK) {
            const Anchor of = anchor_of(a, level, t.image, number);
            const u64 key = distance_key(centre(of.sides), middle, level.before + number);
            if (~key > complement && is_free(a, level, image + number) && takes_part(a, level, of))
                complement = ~key;
        }
    }
    complement = lanes_max(complement, 32);
    if (threadIdx.x % 32 == 0) best[threadIdx.x / 32] = complement;
    __syncthreads();
    complement = lanes_max(best[threadIdx.x % (BLOCK / 32)], 32);
    __syncthreads();  // `best` may be used again
    return complement;
}

// Gives a box the nearest anchors that are free, as many as are wanted. Called by all threads of a block;
// whether it has got any.
DEVICE bool fall_back(const AssignArgs& a, const Truth& t, u32 gt) {
    u32 got = 0;
#pragma unroll 1
    for (; got < a.fallback; ++got) {
        const u64 complement = nearest_free(a, t);
        if (!whole_warp(complement != 0)) break;
        if (threadIdx.x == 0) {
            const u32 number = near(~complement);
            u32 l = 0;
#pragma unroll 1
            for (u32 next = 1; next < a.levels; ++next)
                if (number >= a.level[next].before) l = next;
            const AssignLevel& level = a.level[l];
            const Anchor of = anchor_of(a, level, t.image, number - level.before);
            give(a, level, of.sides, (u64)t.image * size_of(level) + number - level.before, gt);
        }
        __syncthreads();  // the next search sees it
    }
    return got != 0;
}

// The end of an assignment, once this thread has given what it gives. The last block goes through the boxes:
// where they choose anchors, all of it one after the other.
DEVICE void finish(const AssignArgs& a) {
    if (a.status) count_faults(a);
    if (a.gts == 0 || !(a.status || a.fallback) || !is_last_block(a.ticket)) return;
    const bool together = a.fallback != 0;
#pragma unroll 1
    for (u32 gt = together ? 0 : threadIdx.x; gt < a.gts; gt += together ? 1 : BLOCK) {
        if (load_shared_by_blocks(&a.held[gt])) continue;
        const Truth t = truth(a, gt);
        if (!t.usable || (together && fall_back(a, t, gt))) continue;
        if (a.status && !(together && threadIdx.x != 0)) count(a, UNASSIGNED, gt);
    }
    __syncthreads();  // all have looked
#pragma unroll 1
    for (u32 gt = threadIdx.x; gt < a.gts; gt += BLOCK) a.held[gt] = 0;
}
