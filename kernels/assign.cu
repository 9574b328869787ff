// ATSS and FCOS. ATSS is two launches: the first finds the candidates of each ground-truth box and lays
// claim to the positive ones, the second writes what each anchor is given to. FCOS has the second alone:
// a point knows what it is given to. Its last block looks after the boxes without an anchor.
// Nothing here has the logits' storage type, so this is compiled for f32 alone.
#include "assign.cuh"
#include "assign_rest.cuh"

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
            const u64 of = 2 * (u64)t.image;
            rows = valid_positions(integer(a.valid_hw, of, a.labels_are_i64), level.stride, rows);
            columns = valid_positions(integer(a.valid_hw, of + 1, a.labels_are_i64), level.stride, columns);
            searches = rows > 0 && columns > 0;
        }
        // Among the nearest may be some that take no part: so many more have to be looked at.
        Windows w = {{0, 0}, {0, 1}};
        u32 others = 0;
#pragma unroll 1
        for (;;) {
            if (searches) {
                if (level.anchors) {
                    w.columns.count = columns;
                    w.rows.count = 1;
                } else {
                    w = window(middle, level, rows, columns, (a.topk + others + level.each - 1) / level.each);
                    w.columns = {w.columns.first * level.each, w.columns.count * level.each};
                }
            }
            if (a.ignores == 0) break;
            u32 left_out = 0;
            if (!level.anchors) {
                for (u32 i = lane; i < w.rows.count * w.columns.count; i += 32) {
                    const u32 y = w.rows.first + i / w.columns.count, x = w.columns.first + i % w.columns.count;
                    left_out += is_ignored<false>(a, level, t.image, y, x);
                }
            }
            left_out = lanes_sum(left_out, 32);
            if (!whole_warp(left_out > others)) break;
            others = left_out;
        }
        // The nearest of what is left, `topk` times. Every warp does it for every box, also where there is
        // nothing to find: see block_sum about shuffles in a branch.
        const bool by_one = a.ignores != 0 || (a.valid_hw && level.anchors);
        u64 last = 0;
        u32 found = 0;
#pragma unroll 1
        for (; found < a.topk; ++found) {
            u64 complement = 0;  // of the smallest key above `last`
            for (u32 i = lane; i < w.rows.count * w.columns.count; i += 32) {
                const u32 y = w.rows.first + i / w.columns.count, x = w.columns.first + i % w.columns.count;
                const u64 key = distance_key(centre(anchor(level, y, x)), middle, y * row_of(level) + x);
                if (key > last && ~key > complement && (!by_one || takes_part<false>(a, level, t.image, y, x)))
                    complement = ~key;
            }
            complement = lanes_max(complement, 32);
            if (!whole_warp(complement != 0)) break;
            last = ~complement;
            if (lane == found % 32) numbers[warp * MAX_TOPK + found] = near(last);
        }
        for (u32 i = lane; i < found; i += 32) {
            const u32 number = numbers[warp * MAX_TOPK + i];
            ious[warp * MAX_TOPK + i] = iou(anchor(level, number / row_of(level), number % row_of(level)), t.box);
        }
        if (lane == 0) counts[warp] = found;
        __syncthreads();
        if (threadIdx.x == 0) least[0] = threshold(ious, counts, a.levels);
        __syncthreads();
        for (u32 i = lane; i < found; i += 32) {
            const u32 number = numbers[warp * MAX_TOPK + i];
            const float overlap = ious[warp * MAX_TOPK + i];
            const Corners sides = anchor(level, number / row_of(level), number % row_of(level));
            if (is_inside(centre(sides), t.box, 0.01f) && reaches(overlap, least[0]))
                raise_to(&a.keys[level.first + (u64)t.image * size_of(level) + number], match_key(overlap, gt));
        }
    }
}

// One thread an anchor of an image. Leaves all keys 0, for the next call.
KERNEL(atss_targets, BLOCK, 4)(const AssignArgs a) {
    for_anchors(a, [&](const AssignLevel& level, u64 i, u64 at) {
        const u64 key = a.keys[i];
        if (key) a.keys[i] = 0;
        give<false>(a, level, place_of(level, at), key ? matched(key) : NOBODY);
    });
    finish<false>(a);
}

// One thread a point of an image.
KERNEL(fcos_targets, BLOCK, 4)(const AssignArgs a) {
    for_anchors(a, [&](const AssignLevel& level, u64, u64 at) {
        const Place p = place_of(level, at);
        const Point point = By<true>::point(level, p.y, p.place);
        u64 best = 0;
        if (takes_part<true>(a, level, p.image, p.y, p.place)) {
#pragma unroll 1
            for (u32 gt = 0; gt < a.gts; ++gt) {
                if (integer(a.gt_image, gt, a.labels_are_i64) != (long long)p.image) continue;
                const Truth t = truth(a, gt);
                const Corners d = distances(point, t.box);
                const float furthest = fmaxf(fmaxf(d.side[0], d.side[1]), fmaxf(d.side[2], d.side[3]));
                if (t.usable && furthest >= level.low && furthest <= level.high &&
                    is_inside(point, middle(t.box, level.reach), 0.0f)) {
                    const u64 key = area_key(area(t.box), gt);
                    best = key > best ? key : best;
                }
            }
        }
        give<true>(a, level, p, best ? matched(best) : NOBODY);
    });
    finish<true>(a);
}
