// Target assignment: which anchors are trained on which box. What ATSS and FCOS have in common: their
// parameters, the scalar maths, who takes part, and what an anchor is given.
#pragma once
#include "boxes.cuh"
#include "call.cuh"

constexpr int BLOCK = 256;      // twin in src/assign/launch.rs
constexpr int MAX_LEVELS = 8;   // a warp of the block for each; twin in src/assign/mod.rs
constexpr int MAX_TOPK = 256;   // twin in src/assign/atss/mod.rs
constexpr int MAX_SIZES = 16;   // twin in src/assign/anchors.rs

// Field by field the same as `AssignLevel` in src/assign/launch.rs.
struct AssignLevel {
    const float* anchors;  // [width, 4]; null: on a grid
    void* labels;          // [images, height * width * each], i64 or i32
    float* box_targets;    // [images, height * width * each, 4]
    float* label_weights;  // [images, height * width * each], or null, as all that follows
    float* box_weights;
    float* centerness;
    u64 first;             // how many anchors the levels before have, in all images
    u32 before;            // and in one
    u32 height, width;     // in positions
    u32 each;              // anchors at a position
    float stride, inverse; // of a grid; and 1 / stride
    float offset;          // where its first centre is, in strides
    float low, high;       // FCOS: of the distance to the furthest side
    float reach;           // FCOS: how far from the centre of a box its points are; infinite: anywhere inside
    float half[32];        // ATSS, on a grid: half the widths and heights of the anchors of a position
};

// Field by field the same as `AssignArgs` in src/assign/launch.rs.
struct AssignArgs {
    AssignLevel level[8];
    const float* gt_boxes;     // [gts, 4]
    const void* gt_labels;     // [gts], i64 or i32
    const void* gt_image;      // [gts], i64 or i32
    const float* gt_weights;   // [gts]; null: ones
    const float* ignore_boxes; // [ignores, 4]
    const void* ignore_image;  // [ignores], i64 or i32
    const void* valid_hw;      // [images, 2], i64 or i32; null: everything is valid
    u64* keys;                 // ATSS: [anchors], 0 before and after: the best claim to each anchor
    u32* held;                 // [gts], 0 before and after: whether an anchor is given to the box
    u32* ticket;               // [1], 0 before and after
    Status* status;            // or null
    u64 anchors;               // of all levels and images
    u32 gts, ignores, images;
    u32 levels, topk;
    u32 classes;
    float ignore_iof;          // how much of an anchor in a box to ignore is too much
    u32 fallback;              // how many anchors a box gets that has none otherwise
    u32 background_first;
    u32 labels_are_i64;
    u32 points;                // FCOS: anchors are points, and claim boxes themselves
};

enum Fault : u32 { BAD_BOX, BAD_LABEL, BAD_IMAGE, UNASSIGNED };

struct Point {
    float x, y;
};

DEVICE long long integer(const void* p, u64 i, u32 is_i64) {
    return is_i64 ? ((const long long*)p)[i] : ((const int*)p)[i];
}

DEVICE u32 row_of(const AssignLevel& level) { return level.width * level.each; }
DEVICE u32 size_of(const AssignLevel& level) { return level.height * row_of(level); }

// ---- The scalar maths, in float, one rounding at a time (products that must not be contracted
// are __fmul_rn and __dmul_rn). Its twin is src/assign/math.rs: the same names in the same order.

DEVICE bool is_number(float x) { return fabsf(x) <= 3.402823466e38f; }

// As load_corners, in few instructions.
DEVICE Corners load_box(const float* p) { return {{p[0], p[1], p[2], p[3]}}; }

// As load_corners, where the compiler has lost sight of where the pointer leads: it is one of several levels'.
DEVICE Corners load_anchor(const float* p) {
    if (!aligned16(p)) return {{load_float(p), load_float(p + 1), load_float(p + 2), load_float(p + 3)}};
    const uint4 v = load_16_bytes(p);
    return {{__uint_as_float(v.x), __uint_as_float(v.y), __uint_as_float(v.z), __uint_as_float(v.w)}};
}

// The position at a row and a column of a grid.
DEVICE Point grid_point(const AssignLevel& level, u32 y, u32 x) {
    return {__fmul_rn((float)x + level.offset, level.stride), __fmul_rn((float)y + level.offset, level.stride)};
}

// The anchor at a row, and a place in it: the anchors of a position follow each other.
DEVICE Corners anchor(const AssignLevel& level, u32 y, u32 place) {
    if (level.anchors) return load_anchor(level.anchors + 4 * (u64)place);
    const u32 x = level.each == 1 ? place : place / level.each, size = place - x * level.each;
    const Point p = grid_point(level, y, x);
    const float width = level.half[2 * size], height = level.half[2 * size + 1];
    return {{p.x - width, p.y - height, p.x + width, p.y + height}};
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

// How many positions of an axis are in a valid size.
DEVICE u32 valid_positions(long long pixels, float stride, u32 length) {
    u32 low = 0, high = length;
    while (low < high) {
        const u32 middle = low + (high - low) / 2;
        if (__dmul_rn((double)middle, (double)stride) < (double)pixels) low = middle + 1;
        else high = middle;
    }
    return low;
}

// Sorts anchors by squared distance, then by number, the highest first: more than 0. What is not
// finite comes last.
DEVICE u64 distance_key(Point a, Point b, u32 number) {
    const float x = a.x - b.x, y = a.y - b.y;
    const float distance = __fmul_rn(x, x) + __fmul_rn(y, y);
    return ((u64)(is_number(distance) ? __float_as_uint(distance) : 0x7f800000) << 32 | ~number) + 1;
}

// The anchor of a distance_key.
DEVICE u32 near(u64 key) { return ~(u32)(key - 1); }

DEVICE float area(const Corners& b) { return __fmul_rn(b.side[2] - b.side[0], b.side[3] - b.side[1]); }

// a / b, of positive numbers; 0 where b is beyond float. A quotient of two floats is so far from where f32
// rounds the other way that one through double is rounded correctly.
DEVICE float quotient(float a, float b) {
    return is_number(b) ? (float)((double)a * reciprocal((double)b)) : 0.0f;
}

// Width and height of the intersection, if they are above 0.
DEVICE Point both(const Corners& a, const Corners& b) {
    return {fminf(a.side[2], b.side[2]) - fmaxf(a.side[0], b.side[0]),
            fminf(a.side[3], b.side[3]) - fmaxf(a.side[1], b.side[1])};
}

// Intersection over union as mmdetection's `bbox_overlaps` has it in f32; 0 where an area is
// beyond f32.
DEVICE float iou(const Corners& a, const Corners& b) {
    const Point sides = both(a, b);
    const float intersection = __fmul_rn(sides.x, sides.y);
    const float all = fmaxf(area(a) + area(b) - intersection, 1e-6f);
    return sides.x > 0.0f && sides.y > 0.0f ? quotient(intersection, all) : 0.0f;
}

// Likewise intersection over the area of `a`.
DEVICE float iof(const Corners& a, const Corners& b) {
    const Point sides = both(a, b);
    return sides.x > 0.0f && sides.y > 0.0f ? quotient(__fmul_rn(sides.x, sides.y), fmaxf(area(a), 1e-6f)) : 0.0f;
}

// How far the sides of a box are from a point in it: left, top, right, bottom.
DEVICE Corners distances(Point p, const Corners& b) {
    return {{p.x - b.side[0], p.y - b.side[1], b.side[2] - p.x, b.side[3] - p.y}};
}

// Whether a point is more than so far inside a box.
DEVICE bool is_inside(Point p, const Corners& b, float by) {
    const Corners d = distances(p, b);
    return d.side[0] > by && d.side[1] > by && d.side[2] > by && d.side[3] > by;
}

struct Window {
    u32 first, count;
};

DEVICE u32 clamped(float at, u32 length) { return (u32)fminf(fmaxf(at, 0.0f), (float)length - 1.0f); }

// What is within `reach` of a position.
DEVICE Window around(u32 nearest, u32 reach, u32 length) {
    const u32 first = nearest > reach ? nearest - reach : 0;
    return {first, min(nearest + reach, length - 1) - first + 1};
}

// How far the furthest end of a part of an axis is.
DEVICE float furthest(float at, Window w) {
    return fmaxf(at - (float)w.first, (float)(w.first + w.count - 1) - at);
}

struct Windows {
    Window rows, columns;
};

// The part of the first rows and columns of a grid in which the `count` nearest positions to a point are.
//
// Two reasons keep it small. A position is among the nearest only if all that are between it and the
// nearest one along an axis are too. And if a square around that one has so many positions, none of
// the nearest is further away than the square's corners.
DEVICE Windows window(Point p, const AssignLevel& level, u32 rows, u32 columns, u32 count) {
    const float x = __fmul_rn(p.x, level.inverse) - level.offset, y = __fmul_rn(p.y, level.inverse) - level.offset;
    const u32 column = clamped(x, columns), row = clamped(y, rows);
    Window high = {row, 1}, wide = {column, 1};
#pragma unroll 1
    for (u32 reach = 1; (u64)high.count * wide.count < count && (high.count < rows || wide.count < columns); ++reach) {
        high = around(row, reach, rows);
        wide = around(column, reach, columns);
    }
    // No less than the distance to the furthest corner, and with room for rounding.
    const float dx = furthest(x, wide), dy = furthest(y, high);
    const float radius = fmaxf(dx, dy) + __fmul_rn(fminf(dx, dy), 0.5f) + 1.0f;
    const Window by_rows = around(row, count + 1, rows);  // one for rounding
    const Window by_columns = around(column, count + 1, columns);
    if (!(radius <= 65536.0f)) return {by_rows, by_columns};  // where rounding makes ties, they are as they were
    const u32 top = max(by_rows.first, clamped(y - radius, rows));
    const u32 left = max(by_columns.first, clamped(x - radius, columns));
    const u32 bottom = min(by_rows.first + by_rows.count - 1, clamped(y + radius, rows));
    const u32 right = min(by_columns.first + by_columns.count - 1, clamped(x + radius, columns));
    return {{top, bottom - top + 1}, {left, right - left + 1}};
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

// Likewise the smallest area, then the lower number.
DEVICE u64 area_key(float area, u32 gt) { return (u64)~__float_as_uint(area) << 32 | ~gt; }

// The box of a match_key or an area_key.
DEVICE u32 matched(u64 key) { return ~(u32)key; }

// The middle of a box: what is within `reach` of its centre along both axes, and not outside of it.
DEVICE Corners middle(const Corners& b, float reach) {
    const Point p = centre(b);
    return {{fmaxf(p.x - reach, b.side[0]), fmaxf(p.y - reach, b.side[1]), fminf(p.x + reach, b.side[2]),
             fminf(p.y + reach, b.side[3])}};
}

// The root of a number from 0 to 1, rounded to nearest, without a subroutine: to 2^-17, and twice to the
// square of what is left. No root of a float is nearer than 2^-51 to where f32 rounds the other way.
DEVICE float root(float x) {
    if (!(x > 0.0f)) return 0.0f;
    double y = exp2_approx(fmaf(0.5f, log2_approx(__fmul_rn(x, 0x1p64f)), -32.0f));
#pragma unroll
    for (int i = 0; i < 2; ++i) y = fma(fma(-y, y, (double)x), 0.5 * reciprocal(y), y);
    return (float)y;
}

// How near a point is to the centre of a box, from 0 to 1; 0 outside of it.
DEVICE float centerness(Point p, const Corners& b) {
    const Corners d = distances(p, b);
    const float x = fminf(d.side[0], d.side[2]), y = fminf(d.side[1], d.side[3]);
    if (!(x > 0.0f && y > 0.0f)) return 0.0f;
    return root(__fmul_rn(quotient(x, fmaxf(d.side[0], d.side[2])), quotient(y, fmaxf(d.side[1], d.side[3]))));
}

// ---- Who takes part

// What is wrong with a box, a bit for each kind of fault. One of padding has no image, and no fault.
DEVICE u32 faults_of(const AssignArgs& a, const Corners& box, long long image, long long label) {
    if (image == -1) return 0;
    const long long first = a.background_first ? 1 : 0;
    return (is_usable(box) ? 0u : 1u << BAD_BOX) |
           (label >= first && label < first + (long long)a.classes ? 0u : 1u << BAD_LABEL) |
           (image >= 0 && image < (long long)a.images ? 0u : 1u << BAD_IMAGE);
}

// A box that is to be found, if it is one of an image.
struct Truth {
    Corners box;
    u32 image;
    bool usable;
};

DEVICE Truth truth(const AssignArgs& a, u32 gt) {
    const long long image = integer(a.gt_image, gt, a.labels_are_i64);
    const Corners box = load_box(a.gt_boxes + 4 * (u64)gt);
    const long long label = integer(a.gt_labels, gt, a.labels_are_i64);
    return {box, (u32)image, image != -1 && faults_of(a, box, image, label) == 0};
}

// at / size, for both up to 2^52: 64-bit integers are divided by a subroutine.
DEVICE u32 image_of(u64 at, u32 size) {
    u32 image = (u32)__dmul_rn((double)at, reciprocal((double)size));
    if ((u64)image * size > at) --image;
    return image + (at - (u64)image * size >= size);
}

// An anchor of an image: a box, or for FCOS a point.
struct Anchor {
    u32 image, y, place;  // the row, and the place in it
    Corners sides;        // of a point its coordinates, twice
};

DEVICE Anchor anchor_of(const AssignArgs& a, const AssignLevel& level, u32 image, u32 number) {
    const u32 y = number / row_of(level), place = number - y * row_of(level);
    Corners sides = anchor(level, y, place);
    if (a.points) {
        const Point p = level.anchors ? centre(sides) : grid_point(level, y, place / level.each);
        sides = {{p.x, p.y, p.x, p.y}};
    }
    return {image, y, place, sides};
}

// Whether an anchor takes part: it is in the image, and not too far in a box to ignore. Anchors that are points
// are in it or not.
DEVICE bool takes_part(const AssignArgs& a, const AssignLevel& level, const Anchor& of, bool points) {
    const Point point = centre(of.sides);
    if (a.valid_hw) {
        const u64 at = 2 * (u64)of.image;
        const double height = (double)integer(a.valid_hw, at, a.labels_are_i64);
        const double width = (double)integer(a.valid_hw, at + 1, a.labels_are_i64);
        const bool listed = level.anchors != nullptr;
        const double y = listed ? (double)point.y : __dmul_rn((double)of.y, (double)level.stride);
        const double x = listed ? (double)point.x : __dmul_rn((double)(of.place / level.each), (double)level.stride);
        if (!(y < height && x < width)) return false;
    }
#pragma unroll 1
    for (u32 i = 0; i < a.ignores; ++i) {
        const Corners box = load_box(a.ignore_boxes + 4 * (u64)i);
        const float part = points ? (is_inside(point, box, 0.0f) ? 1.0f : 0.0f) : iof(of.sides, box);
        if (part > a.ignore_iof && integer(a.ignore_image, i, a.labels_are_i64) == (long long)of.image &&
            is_usable(box))
            return false;
    }
    return true;
}

// ---- What an anchor is given

constexpr u32 NOBODY = 0xffffffffu;

DEVICE long long background(const AssignArgs& a) { return a.background_first ? 0 : (long long)a.classes; }

// Gives an anchor, number `at` of the level in all images, to a box, or to nobody.
DEVICE void give(const AssignArgs& a, const AssignLevel& level, const Corners& sides, u64 at, u32 gt) {
    long long label = background(a);
    Corners box = {{0.0f, 0.0f, 0.0f, 0.0f}};
    float weight = 0.0f;
    if (gt != NOBODY) {
        label = integer(a.gt_labels, gt, a.labels_are_i64);
        box = load_box(a.gt_boxes + 4 * (u64)gt);
        weight = a.gt_weights ? a.gt_weights[gt] : 1.0f;
        if (a.status || a.fallback) a.held[gt] = 1;  // all who write it write the same
    }
    if (a.labels_are_i64) {
        ((long long*)level.labels)[at] = label;
    } else {
        ((int*)level.labels)[at] = (int)label;
    }
    store_corners(level.box_targets + 4 * at, box);
    if (level.box_weights) level.box_weights[at] = weight;
    if (level.centerness) level.centerness[at] = centerness(centre(sides), box);
}
