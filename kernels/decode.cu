// Decoding: raw box logits of all levels to boxes in pixels, and the gradient of the boxes to that of the logits.
//
//  1. A block has a tile of 64 anchors of a level at a time, which are 256 sides. Where positions are contiguous, a
//     thread has a side and a warp one side of 32 anchors; where channels are, 8 lanes share a side. Bins are read
//     again in each pass, from the cache.
//  2. Boxes and their gradients go through shared memory, so that they are read and written in the order in which they
//     lie.
//  3. Rows that lie apart from each other cost a division more, where there are any.
//  4. The storage type is told at run time and chosen once, outside of all loops.
#include "any_storage.cuh"
#include "math.cuh"
#include "reduce.cuh"

constexpr int DECODE_BLOCK = 256;        // threads; twin in src/decode/launch.rs
constexpr u32 TILE = DECODE_BLOCK / 4;   // anchors; twin there
constexpr u32 DECODE_LEVELS = 8;         // the most; twin of MAX_LEVELS in src/head/mod.rs

// Field by field the same as `DecodeLevel` in src/decode/launch.rs.
struct DecodeLevel {
    const void* logits;    // its first element; channel = side * bins + bin
    void* grad;            // in the same strides; null without a gradient
    u64 batch, channel, position;  // strides, in elements
    u64 row_gap;           // what is between rows besides; wraps below 0
    const float* points;   // [positions, 2] or [batch, positions, 2] in pixels; null: a grid
    float stride;
    float grid_offset;     // in units of the stride
    u32 positions, width;
    u32 points_of_batch;   // 1: points differ between images
    u32 first;             // its first position among those of all levels
    u32 first_tile, lanes; // set by the launch
};

// Field by field the same as `DecodeArgs` in src/decode/launch.rs.
struct DecodeArgs {
    DecodeLevel levels[DECODE_LEVELS];
    float* boxes;           // [batch, all positions, 4]; null with a gradient
    const float* upstream;  // [batch, all positions, 4]: gradient with respect to the boxes
    float* found_inf;       // [1], or null
    u64 all_positions;
    u32 level_count, batch, bins;
    u32 coding;             // as below
    u32 storage;            // a StorageType
    u32 tiles;              // set by the launch
};

// What the logits of a side are: bins, or one number of which E is the exponential, or the positive part. Twins of
// `BoxCoding`.
constexpr u32 CODING_BINS = 0, CODING_EXP = 1;
constexpr u32 INFINITE = 0x7f800000;

// exp(x) to 4e-7, as exp_of_size, for both signs.
DEVICE float exp_of(float x) {
    const float t = LOG2_E * x, e = exp2_approx(t);
    return t < 128.0f ? fmaf(e, fmaf(t, -LN_2, x), e) : __uint_as_float(INFINITE);
}

// A side that `lanes` lanes share.
template <u32 TYPE>
struct SideLogits {
    const void* logits;
    u64 start, step;
    u32 bins, lane, lanes;

    // Calls body(j, z_j) for the bins of this lane. So many are on their way at a time: in the first pass from memory.
    template <int AT_ONCE, class Body>
    DEVICE void each(Body body) const {
#pragma unroll AT_ONCE
        for (u32 j = lane; j < bins; j += lanes) body(j, load_any(logits, start + j * step, TYPE));
    }
};

// E as the nearest integer and the rest: where one bin has nearly all, j - E is the small difference of large numbers
// otherwise. NaN if a logit is not finite.
struct Expectation {
    float peak, share;  // p_j = exp(z_j - peak) * share
    float nearest, rest;
};

// The sum alone, in `rest`, unless it is to be `exact`. All lanes of the warp must call it, those without a side with no
// bins.
template <u32 TYPE>
DEVICE Expectation expectation(const SideLogits<TYPE>& side, bool exact) {
    const int lanes = (int)side.lanes;
    float peak = -__uint_as_float(INFINITE), total = 0.0f, moment = 0.0f, nearest = 0.0f;
    side.template each<4>([&](u32, float z) {
        total = fmaf(z, 0.0f, total);  // poison
        peak = fmaxf(peak, z);
    });
    peak = lanes_max(peak, lanes);
    side.template each<2>([&](u32 j, float z) {
        const float e = exp_below(z, peak);
        total += e;
        moment = fmaf((float)j, e, moment);
    });
    const float share = rcp_approx(lanes_sum(total, lanes));
    float rest = lanes_sum(moment, lanes) * share;
    if (exact) {
        nearest = rintf(rest);
        moment = 0.0f;
        side.template each<2>([&](u32 j, float z) { moment = fmaf((float)j - nearest, exp_below(z, peak), moment); });
        rest = lanes_sum(moment, lanes) * share;
    }
    return {peak, share, nearest, rest};
}

// A coordinate of an anchor point, in pixels.
DEVICE float point_of(const DecodeLevel& level, u32 number, u32 position, u32 axis) {
    if (level.points) return level.points[2ull * (level.points_of_batch ? number : position) + axis];
    const u32 row = position / level.width;
    return ((float)(axis == 0 ? position - row * level.width : row) + level.grid_offset) * level.stride;
}

template <bool GRADIENT, u32 TYPE>
DEVICE void decode_as(const DecodeArgs& a) {
    SHARED(float, sides, DECODE_BLOCK);  // of a tile: boxes or their gradients, [anchors, 4]
    bool finite = true;
    for (u32 tile = blockIdx.x; tile < a.tiles; tile += gridDim.x) {
        u32 l = 0;
#pragma unroll 1
        for (u32 next = 1; next < a.level_count; ++next)
            if (a.levels[next].first_tile <= tile) l = next;
        const DecodeLevel& level = a.levels[l];
        const u32 base = (tile - level.first_tile) * TILE, count = min(TILE, a.batch * level.positions - base);

        // The coordinate that this thread reads or writes.
        const bool has_coordinate = threadIdx.x / 4 < count;
        const u32 owner = base + threadIdx.x / 4, image = owner / level.positions;
        const u64 box = image * a.all_positions + level.first + (owner - image * level.positions);
        const u64 coordinate = 4 * box + threadIdx.x % 4;
        if (GRADIENT) {
            if (has_coordinate) sides[threadIdx.x] = a.upstream[coordinate];
            __syncthreads();
        }
        const u32 lanes = level.lanes;
#pragma unroll 1
        for (u32 round = 0; round < lanes; ++round) {
            const u32 k = round * (DECODE_BLOCK / lanes) + threadIdx.x / lanes;
            // One side of many anchors, or all of a few.
            const u32 side = lanes == 1 ? k / TILE : k % 4, at = lanes == 1 ? k % TILE : k / 4;
            const bool valid = at < count;
            const u32 number = base + (valid ? at : 0), of = number / level.positions;
            const u32 position = number - of * level.positions;
            u64 start = of * level.batch + position * level.position + side * a.bins * level.channel;
            if (level.row_gap) {
                rare();
                start += position / level.width * level.row_gap;
            }
            const float way = side < 2 ? -level.stride : level.stride;
            float distance;
            if (a.coding == CODING_BINS) {
                const SideLogits<TYPE> logits = {level.logits, start, level.channel, valid ? a.bins : 0,
                                                 threadIdx.x % lanes, lanes};
                const Expectation e = expectation(logits, GRADIENT);
                distance = e.nearest + e.rest;
                if (GRADIENT && valid) {
                    const float scale = way * sides[4 * at + side] * e.share;
                    logits.template each<2>([&](u32 j, float z) {
                        const float slope = exp_below(z, e.peak) * scale * (((float)j - e.nearest) - e.rest);
                        finite &= store_any(level.grad, start + j * level.channel, TYPE, slope);
                    });
                }
            } else {
                const float z = valid ? load_any(level.logits, start, TYPE) : 0.0f;
                const bool is_exp = a.coding == CODING_EXP;
                distance = is_exp ? exp_of(z) : fmaxf(z, 0.0f);
                const float poison = z * 0.0f;
                distance += poison;
                if (GRADIENT && valid) {
                    const float scale = way * sides[4 * at + side];
                    const float slope = is_exp ? distance : (z > 0.0f ? 1.0f : 0.0f) + poison;
                    // An exponential without end, times 0, is 0.
                    const float value = scale == 0.0f ? poison : scale * slope;
                    finite &= store_any(level.grad, start, TYPE, value);
                }
            }
            if (!GRADIENT && valid && threadIdx.x % lanes == 0)
                sides[4 * at + side] = fmaf(way, distance, point_of(level, number, position, side & 1));
        }
        __syncthreads();
        if (!GRADIENT) {
            if (has_coordinate) a.boxes[coordinate] = sides[threadIdx.x];
            __syncthreads();
        }
    }
    if (!finite && a.found_inf) *a.found_inf = 1.0f;
}

template <bool GRADIENT>
DEVICE void decode(const DecodeArgs& a) {
    if (a.storage == F32) decode_as<GRADIENT, F32>(a);
    else if (a.storage == F16) decode_as<GRADIENT, F16>(a);
    else decode_as<GRADIENT, BF16>(a);
}

KERNEL(decode_forward, DECODE_BLOCK, 4)(const DecodeArgs a) { decode<false>(a); }
KERNEL(decode_backward, DECODE_BLOCK, 4)(const DecodeArgs a) { decode<true>(a); }
