// Distribution Focal Loss, forward and forward with backward, in one pass over the logits.
//
// Naively it is `naive_dfl` in naive/naive.cu; mmdetection has two cross entropies for it. Here:
//  1. One log-sum-exp serves both, and the gradient softmax(z) - two_hot(t).
//  2. `tile` is for 16 and 17 bins: one thread a row (two rows in 16-bit, so that K rows' words
//     come out even), the logits staged through shared memory with 16-byte accesses.
//  3. In `tile` the two target bins are taken out of the row before its loop, and the others are
//     summed relative to the larger of the two. So a loss near 0 is log2(1 + sum) of a small sum,
//     without cancellation and without a search for the peak; and the gradients of the target bins
//     are rounded to the storage type once. Rows for which this is no good (a target out of range,
//     logits that are not finite or far above the target bins) are rare and go the long way.
//  4. `rows` takes any number of bins: a group of lanes a row.
#pragma once
#include "call.cuh"
#include "math.cuh"
#include "softmax.cuh"

constexpr int DFL_BLOCK = 128;       // of `tile`; twin in src/dfl/launch.rs
constexpr int DFL_ROWS_BLOCK = 256;  // of `rows`; twin in src/dfl/launch.rs

// Field by field the same as `DflArgs` in src/dfl/launch.rs.
struct DflArgs {
    Scaling scaling;
    const Scalar* logits;  // [rows, bins]
    const float* target;   // [rows]
    Scalar* grad;          // [rows, bins]
    u64 rows;
    u32 bins;
    float target_max;      // bins - 1 - eps
};

struct DflTarget {
    TwoHot bins;
    float weight;  // 0: no loss and no gradient, whatever the logits hold
};

// `reports`: this thread is the one of its row that writes to the status.
DEVICE DflTarget read_dfl_target(const DflArgs& a, u64 row, bool reports) {
    DflTarget target = {{0, 0.0f, 0.0f}, weight_of(a.scaling, row)};
    if (target.weight == 0.0f) return target;
    float t = a.target[row];
    if (!(t >= 0.0f && t <= a.target_max)) {
        Status* status = a.scaling.status;
        if (reports && status) report(&status->out_of_range_targets, status, row);
        if (t != t) target.weight = 0.0f;
        t = fminf(fmaxf(t, 0.0f), a.target_max);
    }
    target.bins = two_hot(t, a.bins);
    return target;
}

// A warp's part of shared memory: 32 rows of f32, or 64 of 16 bits, K words for each thread. 17
// words from one thread's to the next's are free of bank conflicts; 16 get a gap of 4, so that the
// 16-byte accesses of 8 threads meet 8 groups of banks.
template <int K>
struct DflTile {
    static constexpr u32 ROWS = 4 / sizeof(Scalar);  // a thread's
    static constexpr u32 WARP_ROWS = ROWS * 32;
    static constexpr u32 SCALARS = WARP_ROWS * K, VECTORS = SCALARS / VECTOR;
    static constexpr u32 STRIDE = K == 16 ? 20 : K;  // words
    static constexpr u32 STEP = K % 4 ? 1 : 4;       // words that a thread reads and writes at once
    static constexpr u32 BYTES = STRIDE * 32 * 4;
    u32 lane;
    u32 first;             // of every 32 vectors, the one that this lane moves
    SharedAddress vector;  // where it lies
    SharedAddress own;     // this thread's rows

    DEVICE DflTile(SharedAddress tile) {
        lane = threadIdx.x % 32;
        // K = 16: in columns, for the same reason as the gap.
        first = K == 16 ? lane % 8 * 4 + lane / 8 : lane;
        vector = kept(tile + (K == 16 ? lane % 8 * STRIDE * 4 + lane / 8 * 16 : lane * 16));
        own = kept(tile + lane * STRIDE * 4);
    }

    DEVICE SharedAddress scalar(u32 k) const { return own + k * (u32)sizeof(Scalar); }

    // Where vector `i + first` lies; `i` is a multiple of 32.
    DEVICE SharedAddress place(u32 i) const { return vector + (K == 16 ? i / 4 * STRIDE * 4 : i * 16); }

    DEVICE void read(const Scalar* from) const {
        uint4 v[(VECTORS + 31) / 32];
#pragma unroll
        for (u32 i = 0; i < VECTORS; i += 32)
            if (i + 32 <= VECTORS || lane < VECTORS - i) v[i / 32] = load_16_bytes(from + i * VECTOR);
#pragma unroll
        for (u32 i = 0; i < VECTORS; i += 32)
            if (i + 32 <= VECTORS || lane < VECTORS - i) store_shared(place(i), v[i / 32]);
    }

    DEVICE void write(Scalar* to) const {
#pragma unroll
        for (u32 i = 0; i < VECTORS; i += 32)
            if (i + 32 <= VECTORS || lane < VECTORS - i) {
                const uint4 v = load_shared_vector(place(i));
                store_16_bytes(to + i * VECTOR, v.x, v.y, v.z, v.w);
            }
    }

    // Row `r` of this thread, to and from `z`, which holds all of them. A word that two rows share
    // is read with the first and written with the second.
    DEVICE void load_row(u32 r, float (&z)[ROWS * K]) const {
#pragma unroll
        for (u32 w = 0; w < K; w += STEP) {
            if (w < (r * K + ROWS - 1) / ROWS || w >= ((r + 1) * K + ROWS - 1) / ROWS) continue;
            if (STEP == 1) {
                unpack_word(load_shared_word(own + w * 4), z + w * ROWS);
            } else {
                const uint4 v = load_shared_vector(own + w * 4);
                unpack_word(v.x, z + w * ROWS);
                unpack_word(v.y, z + (w + 1) % K * ROWS);
                unpack_word(v.z, z + (w + 2) % K * ROWS);
                unpack_word(v.w, z + (w + 3) % K * ROWS);
            }
        }
    }

    DEVICE void store_row(u32 r, const float (&z)[ROWS * K]) const {
#pragma unroll
        for (u32 w = 0; w < K; w += STEP) {
            if (w < r * K / ROWS || w >= (r + 1) * K / ROWS) continue;
            if (STEP == 1)
                store_shared(own + w * 4, pack_word(z + w * ROWS));
            else
                store_shared(own + w * 4,
                             make_uint4(pack_word(z + w * ROWS), pack_word(z + (w + 1) % K * ROWS),
                                        pack_word(z + (w + 2) % K * ROWS), pack_word(z + (w + 3) % K * ROWS)));
        }
    }
};

// Stands for a logit that is to add nothing, in a row that takes the short way.
#if defined(STORAGE_F16)
constexpr u16 DFL_MASKED = 0xfbff;  // -65504
#elif defined(STORAGE_BF16)
constexpr u16 DFL_MASKED = 0xdd5e;  // -1e18
#else
constexpr u32 DFL_MASKED = 0xdd5e0b6b;
#endif

// How far the short way goes. Beyond a shift of 2^14 (the larger target bin's logit, in bits) it loses
// digits to rounding: times this number, such a shift is inf. Beyond this total (of the other bins over
// the larger target bin) the factor of the gradient could become so small that it loses digits.
constexpr float DFL_TO_INFINITY = 0x1p114f, DFL_MOST_TOTAL = 0x1p30f;

// Gradients whose scale is no larger than this are finite as floats, and when stored.
constexpr float DFL_MOST_SCALE = 3e38f;
#if defined(STORAGE_F16)
constexpr float DFL_FINITE_SCALE = 65000.0f;
#else
constexpr float DFL_FINITE_SCALE = 3e38f;
#endif

// Stands for the loss of a row that takes the long way; the loss of no other is NaN.
constexpr u32 DFL_ODD = 0x7fffffff;

// The weights of a thread's rows where there are none to read.
GLOBAL_CONSTANT float DFL_ONES[2] = {1.0f, 1.0f};

// log2(1 + x) for x >= 0. Up to 0.25 a polynomial (minimax, relative error 2.5e-7). Above, the
// error of log2_approx is at most 8e-7 of the result.
DEVICE float log2_1p(float x) {
    float p = 0.17880763113498688f;
    p = fmaf(p, x, -0.3392203748226166f);
    p = fmaf(p, x, 0.4790857136249542f);
    p = fmaf(p, x, -0.7212926149368286f);
    p = fmaf(p, x, 1.4426947832107544f);
    return x < 0.25f ? x * p : log2_approx(1.0f + x);
}

// A whole row the long way, by one thread: any logits. Its loss in bits, times its weight.
template <bool GRADIENT, int K>
DEVICE float dfl_any_row(const DflArgs& a, const DflTarget& target, float scale, u64 row) {
    const Scalar* logits = a.logits + row * K;
    Scalar* grad = a.grad + row * K;
    if (target.weight == 0.0f) {
#pragma unroll 1
        for (u32 j = 0; GRADIENT && j < K; ++j) store(grad + j, 0.0f);
        return 0.0f;
    }
    float z[K];
#pragma unroll
    for (u32 j = 0; j < K; ++j) z[j] = load(logits + j);
    const float z_left = load(logits + target.bins.left), z_right = load(logits + target.bins.left + 1);
    const Softmax softmax = register_softmax(z);
    if (GRADIENT) {
        const float share = rcp_approx(softmax.total);
        const float left = exp_below(z_left, softmax.peak) * share - target.bins.left_weight;
        const float right = exp_below(z_right, softmax.peak) * share - target.bins.right_weight;
#pragma unroll
        for (u32 j = 0; j < K; ++j) store(grad + j, z[j] * (share * scale));
        store(grad + target.bins.left, left * scale);
        store(grad + target.bins.left + 1, right * scale);
    }
    return target.weight * LOG2_E * dfl(target.bins, softmax.peak, softmax.log_total, z_left, z_right);
}

// What is done row by row: the long way (`odd`, or a target that is NaN), a report of the target, a
// loss of its own, a look at whether the gradient is finite. Returns the row's loss in bits.
template <bool GRADIENT, int K>
DEVICE float dfl_one_row(const DflArgs& a, float grad_factor, u64 row, bool odd, float loss) {
    const DflTarget target = read_dfl_target(a, row, true);
    const float scale = GRADIENT ? grad_factor * target.weight * upstream_of(a.scaling, row) : 0.0f;
    if (odd || target.weight == 0.0f) loss = dfl_any_row<GRADIENT, K>(a, target, scale, row);
    if (a.scaling.per_row && a.scaling.loss) a.scaling.loss[row] = loss * LN_2 * loss_factor_of(a.scaling);
    if (GRADIENT && a.scaling.found_inf && (odd || !(fabsf(scale) <= DFL_FINITE_SCALE))) {
#pragma unroll 1
        for (u32 j = 0; j < K; ++j)
            if (!is_finite(a.grad + row * K + j)) *a.scaling.found_inf = 1.0f;
    }
    return loss;
}

// An H200 needs 48 KiB in flight on a multiprocessor to keep its memory busy. With 8 blocks of 128 threads
// and 64 registers it is 64 KiB (16 bins: 4 vectors of 16 bytes a thread) or 80 KiB (17: 5).
template <bool GRADIENT, int K, int BLOCK>
DEVICE void dfl_tile(const DflArgs& a) {
    typedef DflTile<K> Tile;
    constexpr u32 ROWS = Tile::ROWS, WARPS = BLOCK / 32;
    SHARED(u32, shared, WARPS * Tile::BYTES / 4);
    const u32 warp = threadIdx.x / 32;
    const Tile tile(shared_address(shared + warp * (Tile::BYTES / 4)));
    const float grad_factor = grad_factor_of(a.scaling);
    // Whole tiles for all warps of a block: the same for all threads, which spares what shuffles
    // cost where a warp might be divided. 2^32 of them would be 32 TiB of logits.
    constexpr u32 BLOCK_ROWS = BLOCK * ROWS;
    // In a register: it would be worked out again in the loop.
    const u32 end = kept((u32)(a.rows / BLOCK_ROWS));
    const u32 first_row = threadIdx.x * ROWS;
    const Scalar* lane_logits = opaque(a.logits + warp * Tile::SCALARS + tile.first * VECTOR);
    Scalar* lane_grad = opaque(a.grad + warp * Tile::SCALARS + tile.first * VECTOR);
    const float* lane_target = opaque(a.target + first_row);
    // Where there are no weights, every row reads the same 1.
    const u32 weight_step = a.scaling.weight ? BLOCK_ROWS * (u32)sizeof(float) : 0;
    const u32 upstream_step = a.scaling.upstream ? BLOCK_ROWS * (u32)sizeof(float) : 0;
    const float* lane_weight = opaque(a.scaling.weight ? a.scaling.weight + first_row : DFL_ONES);
    const float* lane_upstream = opaque(a.scaling.upstream ? a.scaling.upstream + first_row : DFL_ONES);
    const float most_total = kept(a.scaling.per_row ? -1.0f : DFL_MOST_TOTAL);  // -1: all are rare
    const float most_scale = kept(a.scaling.found_inf ? DFL_FINITE_SCALE : DFL_MOST_SCALE);
    double sum = 0.0;  // of losses in bits
    for (u32 block = blockIdx.x;; block += gridDim.x) {
        __syncwarp();
        bool any_rare = false;
#pragma unroll 1
        for (; block < end; block += gridDim.x) {
            float z[ROWS * K], target[ROWS], weight[ROWS], upstream[ROWS], loss[ROWS];
            bool odd[ROWS];
#pragma unroll
            for (u32 r = 0; r < ROWS; ++r) {
                target[r] = load_float(lane_target + (u64)block * BLOCK_ROWS + r);
                weight[r] = load_float(advanced(lane_weight, block, weight_step) + r);
                if (GRADIENT) upstream[r] = load_float(advanced(lane_upstream, block, upstream_step) + r);
            }
            tile.read(lane_logits + (u64)block * (WARPS * Tile::SCALARS));
            __syncwarp();

            bool rare = false;
            float z_left[ROWS], z_right[ROWS], right_weight[ROWS];
            SharedAddress left[ROWS];
#pragma unroll
            for (u32 r = 0; r < ROWS; ++r) {
                const float t = fminf(fmaxf(target[r], 0.0f), a.target_max);
                rare |= t != target[r];  // to be reported
                const u32 bin = min(__float2uint_rz(t), K - 2);
                right_weight[r] = t - (float)bin;
                left[r] = tile.scalar(r * K + bin);
                z_left[r] = load_shared_scalar(left[r]);
                z_right[r] = load_shared_scalar(left[r] + (u32)sizeof(Scalar));
                store_shared(left[r], DFL_MASKED);
                store_shared(left[r] + (u32)sizeof(Scalar), DFL_MASKED);
            }
            float grad_left[ROWS], grad_right[ROWS];
#pragma unroll
            for (u32 r = 0; r < ROWS; ++r) {
                tile.load_row(r, z);
                float* e = z + r * K;
                const float larger = fmaxf(z_left[r], z_right[r]), distance = z_left[r] - z_right[r];
                const float shift = -LOG2_E * larger;
                const float correction = exp2_approx(-fmaf(larger, LOG2_E, shift));
                const float exponent = -LOG2_E * fabsf(distance), smaller = exp2_approx(exponent);
                const bool left_larger = distance >= 0.0f;
                float poison = fmaf(shift, DFL_TO_INFINITY, distance), others = 0.0f;
                // inf or NaN if a logit is not finite (or the shift too large), and so `x` is NaN.
#pragma unroll
                for (u32 j = 0; j < K; j += 2) poison = j + 1 < K ? fmaf(e[j], e[(j + 1) % K], poison) : poison + e[j];
#pragma unroll
                for (u32 j = 0; j < K; ++j) {
                    e[j] = exp2_approx(fmaf(e[j], LOG2_E, shift));
                    others = j == 0 ? e[j] : others + e[j];
                }
                const float x = fmaf(others, correction, fmaf(poison, 0.0f, smaller));
                const float left_weight = 1.0f - right_weight[r];
                loss[r] = weight[r] * fmaf(left_larger ? -right_weight[r] : -left_weight, exponent, log2_1p(x));
                odd[r] = !(x <= DFL_MOST_TOTAL);
                rare |= !(x <= most_total);
                if (GRADIENT) {
                    const float scale = grad_factor * weight[r] * upstream[r];
                    // Plus 0, so that the gradient of a masked row is not -0.
                    const float share = rcp_approx(1.0f + x), of_bin = fmaf(share * correction, scale, 0.0f);
#pragma unroll
                    for (u32 j = 0; j < K; ++j) e[j] *= of_bin;
                    tile.store_row(r, z);
                    grad_left[r] = fmaf(fmaf(left_larger ? 1.0f : smaller, share, -left_weight), scale, 0.0f);
                    grad_right[r] = fmaf(fmaf(left_larger ? smaller : 1.0f, share, -right_weight[r]), scale, 0.0f);
                    odd[r] |= !(fabsf(scale) <= DFL_MOST_SCALE);
                    rare |= !(fabsf(scale) <= most_scale);
                }
            }
            if (GRADIENT) {
#pragma unroll
                for (u32 r = 0; r < ROWS; ++r) {
                    store_shared_scalar(left[r], grad_left[r]);
                    store_shared_scalar(left[r] + (u32)sizeof(Scalar), grad_right[r]);
                }
                __syncwarp();
                tile.write(lane_grad + (u64)block * (WARPS * Tile::SCALARS));
            }
            __syncwarp();
            any_rare = __any_sync(ALL_LANES, rare);
            if (__builtin_expect(any_rare, 0)) {
#pragma unroll
                for (u32 r = 0; r < ROWS; ++r)
                    store_shared(tile.own + r * 4, odd[r] ? DFL_ODD : __float_as_uint(loss[r]));
                break;
            }
#pragma unroll
            for (u32 r = 0; r < ROWS; ++r) sum += (double)loss[r];
        }
        // One by one: the rows of a tile in which one is rare; at the end, those that do not fill a tile.
#pragma unroll 1
        for (u32 r = 0; r < ROWS; ++r) {
            const u32 thread = thread_anew(), further = (blockIdx.x + r * gridDim.x) * BLOCK + thread;
            const u64 row = (u64)(any_rare ? block : end) * BLOCK_ROWS + (any_rare ? thread * ROWS + r : further);
            if (row >= a.rows) break;
            const u32 loss = any_rare ? load_shared_word(tile.own + r * 4) : DFL_ODD;
            sum += (double)dfl_one_row<GRADIENT, K>(a, grad_factor, row, loss == DFL_ODD, __uint_as_float(loss));
        }
        if (!any_rare) break;
    }
    WholeGrid().finish<BLOCK>(a.scaling, a.rows, sum * 0.6931471805599453, true);
}

// Any number of bins. `scaling.lanes` lanes share a row.
template <bool GRADIENT, class Blocks = WholeGrid>
DEVICE void dfl_rows(const DflArgs& a, const Blocks& blocks = Blocks()) {
    const u32 lanes = a.scaling.lanes, lane = threadIdx.x % lanes, rows_per_block = DFL_ROWS_BLOCK / lanes;
    const float grad_factor = grad_factor_of(a.scaling);
    double sum = 0.0;
    bool finite = true;
    for (u64 base = (u64)blocks.index() * rows_per_block; base < a.rows; base += (u64)blocks.count() * rows_per_block) {
        const u64 row = base + threadIdx.x / lanes, start = row * a.bins;
        const bool inside = row < a.rows;
        DflTarget target = {{0, 0.0f, 0.0f}, 0.0f};
        if (inside) target = read_dfl_target(a, row, lane == 0);
        const u32 bins = target.weight == 0.0f ? 0 : a.bins;  // what there is to do
        const Softmax softmax = row_softmax(a.logits + start, bins, lane, lanes);
        float loss = 0.0f;
        if (bins) {
            const float z_left = load(a.logits + start + target.bins.left);
            const float z_right = load(a.logits + start + target.bins.left + 1);
            loss = target.weight * dfl(target.bins, softmax.peak, softmax.log_total, z_left, z_right);
        }
        if (GRADIENT && bins) {
            const float scale = grad_factor * target.weight * upstream_of(a.scaling, row);
            const float share = rcp_approx(softmax.total);
            finite &= for_row<true>(a.logits + start, a.grad + start, bins, lane, lanes, [&](u32 i, auto& z) {
                constexpr int COUNT = sizeof(z) / sizeof(float);
#pragma unroll
                for (int k = 0; k < COUNT; ++k) {
                    float p = exp_below(z[k], softmax.peak) * share;
                    p -= i + k == target.bins.left ? target.bins.left_weight : 0.0f;
                    p -= i + k == target.bins.left + 1 ? target.bins.right_weight : 0.0f;
                    z[k] = p * scale;
                }
            });
        } else if (GRADIENT && inside) {
            zero_row(a.logits + start, a.grad + start, a.bins, lane, lanes);
        }
        if (lane == 0 && inside) {
            sum += (double)loss;
            if (Blocks::MAY_BE_PER_ROW && a.scaling.per_row && a.scaling.loss)
                a.scaling.loss[row] = loss * loss_factor_of(a.scaling);
        }
    }
    blocks.template finish<DFL_ROWS_BLOCK>(a.scaling, a.rows, sum, finite);
}
