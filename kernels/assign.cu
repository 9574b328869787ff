// ATSS: which anchors are trained on which box. Two launches: the first finds the candidates of
// each ground-truth box and lays claim to the positive ones, the second writes what each anchor
// is given to. Nothing here has the logits' storage type, so this is compiled for f32 alone.
#include "boxes.cuh"
#include "reduce.cuh"

constexpr int BLOCK = 256;      // twin in src/cuda/raw.rs
constexpr int MAX_LEVELS = 8;   // a warp of the block for each; twin in src/assign/mod.rs
constexpr int MAX_TOPK = 32;    // a lane of the warp for each; twin in src/assign/mod.rs

// Field by field the same as `AtssLevel` in src/cuda/raw.rs.
struct AtssLevel {
    const float* anchors;  // [height * width, 4]; null: on a grid
    void* labels;          // [images, height * width], i64 or i32
    float* box_targets;    // [images, height * width, 4]
    u64 first;             // how many anchors the levels before have, in all images
    u32 height, width;
    float stride, inverse; // of a grid; and 1 / stride
    float half, offset;    // half the size of its anchors; where the first centre is, in strides
};

// Field by field the same as `AtssArgs` in src/cuda/raw.rs.
struct AtssArgs {
    AtssLevel level[MAX_LEVELS];
    const float* gt_boxes; // [gts, 4]
    const void* gt_labels; // [gts], i64 or i32
    const void* gt_image;  // [gts], i64 or i32
    u64* keys;             // [anchors], 0 before and after: the best claim to each anchor
    u64 anchors;           // of all levels and images
    u32 gts, images;
    u32 levels, topk;
    u32 classes;           // the label of background
    u32 labels_are_i64;
};

struct Point {
    float x, y;
};

DEVICE long long integer(const void* p, u64 i, u32 is_i64) {
    return is_i64 ? ((const long long*)p)[i] : ((const int*)p)[i];
}

// A level by its number. The parameters of a kernel have no address that may be computed.
DEVICE AtssLevel level_of(const AtssArgs& a, u32 number) {
    AtssLevel level = a.level[0];
#pragma unroll
    for (u32 i = 1; i < MAX_LEVELS; ++i)
        if (i == number) level = a.level[i];
    return level;
}

// ---- The scalar maths, in float, one rounding at a time (products that must not be contracted
// are __fmul_rn and __dmul_rn). Its twin is src/assign/math.rs: the same names in the same order.

DEVICE bool is_number(float x) { return fabsf(x) <= 3.402823466e38f; }

// As load_corners, where the compiler has lost sight of where the pointer leads: it is one of several levels'.
DEVICE Corners load_anchor(const float* p) {
    if (!aligned16(p)) return {{load_float(p), load_float(p + 1), load_float(p + 2), load_float(p + 3)}};
    const uint4 v = load_16_bytes(p);
    return {{__uint_as_float(v.x), __uint_as_float(v.y), __uint_as_float(v.z), __uint_as_float(v.w)}};
}

// The anchor at a row and a column.
DEVICE Corners anchor(const AtssLevel& level, u32 y, u32 x) {
    if (level.anchors) return load_anchor(level.anchors + 4 * (u64)x);
    const float middle_x = __fmul_rn((float)x + level.offset, level.stride);
    const float middle_y = __fmul_rn((float)y + level.offset, level.stride);
    return {{middle_x - level.half, middle_y - level.half, middle_x + level.half, middle_y + level.half}};
}

DEVICE Point centre(const Corners& b) {
    return {__fmul_rn(b.side[0] + b.side[2], 0.5f), __fmul_rn(b.side[1] + b.side[3], 0.5f)};
}

// Whether a box can be a target at all.
DEVICE bool is_usable(const Corners& b) {
    bool usable = b.side[0] < b.side[2] && b.side[1] < b.side[3];
#pragma unroll
    for (int i = 0; i < 4; ++i) usable &= is_number(b.side[i]);
    return usable;
}

// Sorts anchors of a level by squared distance, then by number, the highest first: more than 0. What
// is not finite comes last.
DEVICE u64 distance_key(Point a, Point b, u32 number) {
    const float x = a.x - b.x, y = a.y - b.y;
    const float distance = __fmul_rn(x, x) + __fmul_rn(y, y);
    return ((u64)(is_number(distance) ? __float_as_uint(distance) : 0x7f800000) << 32 | ~number) + 1;
}

// The anchor of a distance_key.
DEVICE u32 near(u64 key) { return ~(u32)(key - 1); }

// Intersection over union as mmdetection's `bbox_overlaps` has it in f32; 0 where an area is
// beyond f32. A quotient of two floats is so far from where f32 rounds the other way that one
// through double is rounded correctly.
DEVICE float iou(const Corners& a, const Corners& b) {
    const float w = fminf(a.side[2], b.side[2]) - fmaxf(a.side[0], b.side[0]);
    const float h = fminf(a.side[3], b.side[3]) - fmaxf(a.side[1], b.side[1]);
    const float both = __fmul_rn(w, h);
    const float areas = __fmul_rn(a.side[2] - a.side[0], a.side[3] - a.side[1]) +
                        __fmul_rn(b.side[2] - b.side[0], b.side[3] - b.side[1]);
    const float all = fmaxf(areas - both, 1e-6f);
    if (!(w > 0.0f && h > 0.0f && is_number(all))) return 0.0f;
    return (float)((double)both * reciprocal((double)all));
}

// Whether a point is more than 0.01 inside a box.
DEVICE bool is_inside(Point p, const Corners& b) {
    return p.x - b.side[0] > 0.01f && p.y - b.side[1] > 0.01f && b.side[2] - p.x > 0.01f &&
           b.side[3] - p.y > 0.01f;
}

struct Window {
    u32 first, count;
};

// The part of an axis of a grid with the `topk` nearest positions: an anchor is among the k
// nearest only if all that are between it and the nearest are too.
DEVICE Window window(float at, const AtssLevel& level, u32 length, u32 topk) {
    if (level.anchors) return {0, length};
    const float position = __fmul_rn(at, level.inverse) - level.offset;
    const u32 nearest = (u32)fminf(fmaxf(position, 0.0f), (float)length - 1.0f);
    const u32 reach = topk + 1;  // one for rounding
    const u32 first = nearest > reach ? nearest - reach : 0;
    return {first, min(nearest + reach, length - 1) - first + 1};
}

// Whether an IoU is at least mean + standard deviation of all candidates': with n of them, their
// sum s, and d = n * IoU - s, it is d >= 0 and d^2 * (n - 1) >= sum of d^2. One alone has no
// deviation.
struct Threshold {
    double count, sum, squares;
};

// Of `levels` groups of candidates, MAX_TOPK apart.
DEVICE Threshold threshold(const float* ious, const u32* counts, u32 levels) {
    Threshold t = {0.0, 0.0, 0.0};
    for (u32 level = 0; level < levels; ++level) {
        for (u32 i = 0; i < counts[level]; ++i) t.sum += (double)ious[level * MAX_TOPK + i];
        t.count += (double)counts[level];
    }
    for (u32 level = 0; level < levels; ++level) {
        for (u32 i = 0; i < counts[level]; ++i) {
            const double d = __dmul_rn(t.count, (double)ious[level * MAX_TOPK + i]) - t.sum;
            t.squares += __dmul_rn(d, d);
        }
    }
    return t;
}

DEVICE bool reaches(float iou, const Threshold& t) {
    const double d = __dmul_rn(t.count, (double)iou) - t.sum;
    return d >= 0.0 && __dmul_rn(__dmul_rn(d, d), t.count - 1.0) >= t.squares && t.count > 1.0;
}

// What an anchor keeps the largest of: the IoU, then the lower number of the box. 0: background.
DEVICE u64 match_key(float iou, u32 gt) { return (u64)__float_as_uint(iou) << 32 | ~gt; }

// The box of a match_key.
DEVICE u32 matched(u64 key) { return ~(u32)key; }

// One block a box at a time, one warp a level.
KERNEL(atss_candidates, BLOCK, 2)(const AtssArgs a) {
    SHARED(float, ious, MAX_LEVELS * MAX_TOPK);
    SHARED(u32, counts, MAX_LEVELS);
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const AtssLevel level = level_of(a, warp);
    const u64 size = (u64)level.height * level.width;
    const u32 count = warp < a.levels ? (u32)(size < a.topk ? size : a.topk) : 0;
    for (u32 gt = blockIdx.x; gt < a.gts; gt += gridDim.x) {
        const long long image = integer(a.gt_image, gt, a.labels_are_i64);
        const Corners box = load_corners(a.gt_boxes + 4 * (u64)gt);
        const bool usable = image >= 0 && image < (long long)a.images && is_usable(box);
        const Point middle = centre(box);
        Window rows = {0, 0}, columns = {0, 1};
        if (usable && count) {
            rows = window(middle.y, level, level.height, a.topk);
            columns = window(middle.x, level, level.width, a.topk);
        }
        // The nearest of what is left, `topk` times; lane i keeps number i. Every warp does it for
        // every box, also where there is nothing to find: see block_sum about shuffles in a branch.
        u64 last = 0, mine = 0;
        for (u32 round = 0; round < a.topk; ++round) {
            u64 complement = 0;  // of the smallest key above `last`
            for (u32 i = lane; i < rows.count * columns.count; i += 32) {
                const u32 y = rows.first + i / columns.count, x = columns.first + i % columns.count;
                const u64 key = distance_key(centre(anchor(level, y, x)), middle, y * level.width + x);
                if (key > last && ~key > complement) complement = ~key;
            }
            last = ~lanes_max(complement, 32);
            if (lane == round) mine = last;
        }
        const bool found = usable && lane < count;
        const u32 number = near(mine);
        float overlap = 0.0f;
        bool inside = false;
        if (found) {
            const Corners sides = anchor(level, number / level.width, number % level.width);
            overlap = iou(sides, box);
            inside = is_inside(centre(sides), box);
            ious[threadIdx.x] = overlap;
        }
        if (lane == 0) counts[warp] = count;
        __syncthreads();
        if (inside && reaches(overlap, threshold(ious, counts, a.levels)))
            raise_to(&a.keys[level.first + (u64)image * size + number], match_key(overlap, gt));
        __syncthreads();  // the next box uses the same memory
    }
}

// One thread an anchor of an image. Leaves all keys 0, for the next call.
KERNEL(atss_targets, BLOCK, 4)(const AtssArgs a) {
    const u64 stride = (u64)gridDim.x * BLOCK;
    for (u64 i = (u64)blockIdx.x * BLOCK + threadIdx.x; i < a.anchors; i += stride) {
        u64 first = 0;
        void* labels = a.level[0].labels;
        float* box_targets = a.level[0].box_targets;
#pragma unroll
        for (u32 number = 1; number < MAX_LEVELS; ++number) {
            if (number < a.levels && i >= a.level[number].first) {
                first = a.level[number].first;
                labels = a.level[number].labels;
                box_targets = a.level[number].box_targets;
            }
        }
        const u64 key = a.keys[i], at = i - first;
        long long label = a.classes;
        Corners box = {{0.0f, 0.0f, 0.0f, 0.0f}};
        if (key) {
            a.keys[i] = 0;
            label = integer(a.gt_labels, matched(key), a.labels_are_i64);
            box = load_corners(a.gt_boxes + 4 * (u64)matched(key));
        }
        if (a.labels_are_i64) {
            ((long long*)labels)[at] = label;
        } else {
            ((int*)labels)[at] = (int)label;
        }
        store_corners(box_targets + 4 * at, box);
    }
}
