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
        if (integer(a.gt_image, gt, a.labels_are_i64) != (long long)of.image) continue;
        const Truth t = truth(a, gt);
        const Corners d = distances(point, t.box);
        const float furthest = fmaxf(fmaxf(d.side[0], d.side[1]), fmaxf(d.side[2], d.side[3]));
        if (t.usable && furthest >= level.low && furthest <= level.high &&
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
    rare();
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
DEVICE u64 nearest_free(const AssignArgs& a, Point middle, u32 image) {
    SHARED(u64, best, BLOCK);
    u64 complement = 0;
#pragma unroll 1
    for (u32 l = 0; l < a.levels; ++l) {
        const AssignLevel& level = a.level[l];
        const u64 first = (u64)image * size_of(level);
#pragma unroll 1
        for (u32 number = threadIdx.x; number < size_of(level); number += BLOCK) {
            const Anchor of = anchor_of(a, level, image, number);
            const u64 key = distance_key(centre(of.sides), middle, level.before + number);
            if (~key > complement && is_free(a, level, first + number) && takes_part(a, level, of, a.points))
                complement = ~key;
        }
    }
    // In memory, and without votes: in so deep a branch shuffles and votes take a subroutine.
    best[threadIdx.x] = complement;
#pragma unroll 1
    for (u32 half = BLOCK / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half && best[threadIdx.x + half] > best[threadIdx.x])
            best[threadIdx.x] = best[threadIdx.x + half];
    }
    __syncthreads();
    complement = best[0];
    __syncthreads();  // `best` may be used again
    return complement;
}

// Gives a box the nearest anchors that are free, as many as are wanted. Called by all threads of a block;
// whether it has got any.
DEVICE bool fall_back(const AssignArgs& a, u32 gt) {
    const u32 image = (u32)integer(a.gt_image, gt, a.labels_are_i64);
    const Point middle = centre(load_box(a.gt_boxes + 4 * (u64)gt));
    u32 got = 0;
#pragma unroll 1
    for (; got < a.fallback; ++got) {
        const u64 complement = nearest_free(a, middle, image);
        if (complement == 0) break;
        if (threadIdx.x == 0) {
            const u32 number = near(~complement);
            u32 l = 0;
#pragma unroll 1
            for (u32 next = 1; next < a.levels; ++next)
                if (number >= a.level[next].before) l = next;
            const AssignLevel& level = a.level[l];
            const Anchor of = anchor_of(a, level, image, number - level.before);
            give(a, level, of.sides, (u64)image * size_of(level) + number - level.before, gt);
        }
        __syncthreads();  // the next search sees it
    }
    return got != 0;
}

// The end of an assignment, once this thread has given what it gives. The last block goes through the boxes:
// its threads share out who looks after which, and where they choose anchors, they do so in their order.
DEVICE void finish(const AssignArgs& a) {
    SHARED(u32, lacking, BLOCK);
    if (a.status) count_faults(a);
    if (a.gts == 0 || !(a.status || a.fallback) || !is_last_block(a.ticket)) return;
    rare();
#pragma unroll 1
    for (u32 first = 0; first < a.gts; first += BLOCK) {
        const u32 gt = first + threadIdx.x;
        bool lacks = gt < a.gts && !load_shared_by_blocks(&a.held[gt]) && truth(a, gt).usable;
        if (a.fallback) {
            lacking[threadIdx.x] = lacks;
            __syncthreads();
#pragma unroll 1
            for (u32 i = 0; i < BLOCK; ++i) {
                if (!lacking[i]) continue;
                const bool served = fall_back(a, first + i);
                if (threadIdx.x == i) lacks = !served;
            }
            __syncthreads();
        }
        if (lacks && a.status) count(a, UNASSIGNED, gt);
        if (gt < a.gts) a.held[gt] = 0;
    }
}
