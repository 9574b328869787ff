// What the last launch of an assignment does besides: counting faults, and looking after the boxes that
// no anchor is given to.
#pragma once
#include "assign.cuh"

// Calls `run` for each anchor of each image, shared out to threads: its level, its number, and its number
// in the level.
template <class Run>
DEVICE void for_anchors(const AssignArgs& a, Run run) {
    const u64 stride = (u64)gridDim.x * BLOCK;
#pragma unroll 1
    for (u64 i = (u64)blockIdx.x * BLOCK + threadIdx.x; i < a.anchors; i += stride) {
        u32 l = 0;
#pragma unroll 1
        for (u32 next = 1; next < a.levels; ++next)
            if (i >= a.level[next].first) l = next;
        run(a.level[l], i, i - a.level[l].first);
    }
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
        const Corners box = load_corners((is_truth ? a.gt_boxes : a.ignore_boxes) + 4 * (u64)of);
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
template <bool POINTS>
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
            const u32 y = number / row_of(level), place = number - y * row_of(level);
            const u64 key = distance_key(By<POINTS>::point(level, y, place), middle, level.before + number);
            if (~key > complement &&
                is_free(a, level, image + number) &&
                takes_part<POINTS>(a, level, t.image, y, place))
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
template <bool POINTS>
DEVICE bool fall_back(const AssignArgs& a, u32 gt) {
    const Truth t = truth(a, gt);
    u32 got = 0;
#pragma unroll 1
    for (; got < a.fallback; ++got) {
        const u64 complement = nearest_free<POINTS>(a, t);
        if (!whole_warp(complement != 0)) break;
        if (threadIdx.x == 0) {
            const u32 number = near(~complement);
            u32 l = 0;
#pragma unroll 1
            for (u32 next = 1; next < a.levels; ++next)
                if (number >= a.level[next].before) l = next;
            const AssignLevel& level = a.level[l];
            give<POINTS>(a, level, place_of(level, (u64)t.image * size_of(level) + number - level.before), gt);
        }
        __syncthreads();  // the next search sees it
    }
    return got != 0;
}

// The end of an assignment, once this thread has given what it gives.
template <bool POINTS>
DEVICE void finish(const AssignArgs& a) {
    if (a.status) count_faults(a);
    if (a.gts == 0 || !(a.status || a.fallback) || !is_last_block(a.ticket)) return;
    if (a.fallback) {
        // Boxes choose in their order.
#pragma unroll 1
        for (u32 gt = 0; gt < a.gts; ++gt) {
            const bool has_none = load_shared_by_blocks(&a.held[gt]) == 0 && truth(a, gt).usable;
            if (whole_warp(has_none)) fall_back<POINTS>(a, gt);
        }
        __syncthreads();
    }
#pragma unroll 1
    for (u32 gt = threadIdx.x; gt < a.gts; gt += BLOCK) {
        if (load_shared_by_blocks(&a.held[gt])) a.held[gt] = 0;
        else if (a.status && truth(a, gt).usable) count(a, UNASSIGNED, gt);
    }
}
