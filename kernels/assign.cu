// ATSS and FCOS. ATSS is two launches: the first finds the candidates of each ground-truth box and lays
// claim to the positive ones, the second writes what each anchor is given to. FCOS has the second alone:
// a point finds that out by itself. The last block looks after the boxes without an anchor.
// Nothing here has the logits' storage type, so this is compiled for f32 alone.
#include "assign.cuh"
#include "assign_rest.cuh"

constexpr u32 INSIDE = 0x80000000u;  // of a number: the centre is inside the box

// Where to look for the nearest anchors, `others` more than are wanted.
DEVICE Windows windows_of(const AssignArgs& a, const AssignLevel& level, Point p, u32 rows, u32 columns, u32 others) {
    if (level.anchors) return {{0, 1}, {0, columns}};
    Windows w = window(p, level, rows, columns, (a.topk + others + level.each - 1) / level.each);
    w.columns = {w.columns.first * level.each, w.columns.count * level.each};
    return w;
}

// One block a box at a time, one warp a level.
KERNEL(atss_candidates, BLOCK, 2)(const AssignArgs a) {
    SHARED(u32, numbers, MAX_LEVELS * MAX_TOPK);  // lane i of a level has numbers i, i + 32, ...
    SHARED(float, ious, MAX_LEVELS * MAX_TOPK);
    SHARED(u32, counts, MAX_LEVELS);
    SHARED(Threshold, least, 1);
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const AssignLevel& level = a.level[warp];
    const bool is_level = warp < a.levels && size_of(level) > 0;
    for (u32 gt = blockIdx.x; gt < a.gts; gt += gridDim.x) {
        const Truth t = truth(a, gt);
        const Point middle = centre(t.box);
        u32 rows = level.height, columns = level.width;
        bool searches = is_level && t.usable;
        if (searches && a.valid_hw && !level.anchors) {
            rare();
            const u64 of = 2 * (u64)t.image;
            rows = valid_positions(integer(a.valid_hw, of, a.labels_are_i64), level.stride, rows);
            columns = valid_positions(integer(a.valid_hw, of + 1, a.labels_are_i64), level.stride, columns);
            searches = rows > 0 && columns > 0;
        }
        // The nearest of what is left, `topk` times. Among the nearest may be some that are ignored, and so
        // many more have to be looked at: the first search counts them. Every warp does it for every box, also
        // where there is nothing to find: see block_sum about shuffles in a branch.
        const bool by_one = a.ignores != 0 || (a.valid_hw && level.anchors);
        bool counts_others = a.ignores != 0 && !level.anchors;
        Windows w = {{0, 0}, {0, 1}};
        u32 others = 0, found = 0;
        u64 last = 0;
        if (searches) w = windows_of(a, level, middle, rows, columns, 0);
#pragma unroll 1
        while (found < a.topk) {
            u64 complement = 0;  // of the smallest key above `last`
            u32 left_out = 0;
            for (u32 i = lane; i < w.rows.count * w.columns.count; i += 32) {
                const u32 y = w.rows.first + i / w.columns.count, x = w.columns.first + i % w.columns.count;
                const Corners sides = anchor(level, y, x);
                const u64 key = distance_key(centre(sides), middle, y * row_of(level) + x);
                const bool is_nearer = key > last && ~key > complement;
                if (!is_nearer && !counts_others) continue;
                bool part = true;
                if (by_one) {
                    rare();
                    part = takes_part(a, level, {t.image, y, x, sides}, false);
                    left_out += !part;
                }
                if (part && is_nearer) complement = ~key;
            }
            if (whole_warp(counts_others)) {
                rare();
                left_out = lanes_sum(left_out, 32);
                counts_others = left_out > others;
                others = left_out;
                if (whole_warp(counts_others)) {
                    w = windows_of(a, level, middle, rows, columns, others);
                    continue;
                }
            }
            complement = lanes_max(complement, 32);
            if (!whole_warp(complement != 0)) break;
            last = ~complement;
            if (lane == found % 32) numbers[warp * MAX_TOPK + found] = near(last);
            ++found;
        }
        for (u32 i = warp * MAX_TOPK + lane; i < warp * MAX_TOPK + found; i += 32) {
            const u32 number = numbers[i];
            const Corners sides = anchor(level, number / row_of(level), number % row_of(level));
            ious[i] = iou(sides, t.box);
            if (is_inside(centre(sides), t.box, 0.01f)) numbers[i] = number | INSIDE;
        }
        if (lane == 0) counts[warp] = found;
        __syncthreads();
        if (threadIdx.x == 0) least[0] = threshold(ious, counts, a.levels);
        __syncthreads();
        u64* keys = a.keys + level.first + (u64)t.image * size_of(level);
        for (u32 i = warp * MAX_TOPK + lane; i < warp * MAX_TOPK + found; i += 32)
            if (numbers[i] & INSIDE && reaches(ious[i], least[0]))
                raise_to(&keys[numbers[i] & ~INSIDE], match_key(ious[i], gt));
    }
}

// One thread an anchor of an image: finds what it is given to, and says so. Leaves all keys 0, for the next call.
KERNEL(assign_targets, BLOCK, 4)(const AssignArgs a) {
    const u64 stride = (u64)gridDim.x * BLOCK;
#pragma unroll 1
    for (u64 i = (u64)blockIdx.x * BLOCK + threadIdx.x; i < a.anchors; i += stride) {
        u32 l = 0;
#pragma unroll 1
        for (u32 next = 1; next < a.levels; ++next)
            if (i >= a.level[next].first) l = next;
        const AssignLevel& level = a.level[l];
        const u64 at = i - level.first;
        Anchor of = {0, 0, 0, {{0.0f, 0.0f, 0.0f, 0.0f}}};
        bool part = true;
        if (a.points || (level.label_weights && (a.valid_hw || a.ignores))) {
            rare();
            const u32 image = image_of(at, size_of(level));
            of = anchor_of(a, level, image, (u32)(at - (u64)image * size_of(level)));
            part = takes_part(a, level, of, a.points);
        }
        u64 key = 0;
        if (a.points) {
            rare();
            if (part) key = best_of(a, level, of);
        } else {
            key = a.keys[i];
            if (key) a.keys[i] = 0;
        }
        give(a, level, of.sides, at, key ? matched(key) : NOBODY);
        if (level.label_weights) level.label_weights[at] = part ? 1.0f : 0.0f;
    }
    finish(a);
}
