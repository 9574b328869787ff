// Distribution Focal Loss, forward and forward with backward, in one pass over the logits.
//
// Naively, for each row of K logits z and a target t: the cross entropies against bin
// i = floor(t) and against bin i + 1, weighted 1 - (t - i) and t - i; two log-softmax. Here:
//  1. One log-sum-exp serves both, and the gradient softmax(z) - two_hot(t).
//  2. `tile` is for 16 and 17 bins: one thread a row (two rows in 16-bit, so that K rows' words
//     come out even), the logits staged through shared memory with 16-byte accesses. 17 words a
//     thread are free of bank conflicts; 16 are with their 16-byte chunks swizzled.
//  3. The two target bins are computed once more from the logits, so that probability minus
//     weight is rounded to the storage type only once.
//  4. `rows` takes any number of bins: a group of lanes a row.
#include "call.cuh"
#include "math.cuh"
#include "softmax.cuh"

constexpr int BLOCK = 128;       // of `tile`; twin in src/cuda/raw.rs
constexpr int ROWS_BLOCK = 256;  // of `rows`; twin in src/cuda/raw.rs

// Field by field the same as `DflArgs` in src/cuda/raw.rs.
struct DflArgs {
    Scaling scaling;
    const Scalar* logits;  // [rows, bins]
    const float* target;   // [rows]
    Scalar* grad;          // [rows, bins]
    u64 rows;
    u32 bins;
    float target_max;      // bins - 1 - eps
};

struct Target {
    TwoHot bins;
    float weight;  // 0: no loss and no gradient, whatever the logits hold
};

// `reports`: this thread is the one of its row that writes to the status.
DEVICE Target read_target(const DflArgs& a, u64 row, bool reports) {
    Target target = {{0, 0.0f, 0.0f}, weight_of(a.scaling, row)};
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

// The words of a thread in its warp's tile: one row of f32, two rows of 16 bits.
template <int K>
struct Tile {
    static constexpr u32 WORDS = K * 32;                           // a warp's
    static constexpr u32 ROWS = 4 / sizeof(Scalar);                // a thread's
    static constexpr u32 SCALARS = WORDS * ROWS;
    u32* words;  // the warp's part of shared memory
    u32 lane;

    // Where word `w` of the tile lies. For K = 16 the four 16-byte chunks of each thread's words
    // change places from one pair of threads to the next: 8 threads then meet 8 groups of banks.
    DEVICE static u32 place(u32 w) { return K == 16 ? w ^ (w >> 5 & 3) << 2 : w; }

    DEVICE u32& word(u32 w) { return words[place(lane * K + w)]; }

    // Scalar `k` of this thread.
    DEVICE Scalar* scalar(u32 k) { return (Scalar*)&word(k / ROWS) + k % ROWS; }

    DEVICE void load_row(u32 r, float (&z)[K]) {
        if constexpr (K % VECTOR == 0) {
#pragma unroll
            for (u32 j = 0; j < K; j += VECTOR) {
                float chunk[VECTOR];
                unpack(load_words(scalar(r * K + j)), chunk);
#pragma unroll
                for (u32 k = 0; k < VECTOR; ++k) z[j + k] = chunk[k];
            }
        } else {
#pragma unroll
            for (u32 j = 0; j < K; ++j) z[j] = load(scalar(r * K + j));
        }
    }

    DEVICE void store_row(u32 r, const float (&z)[K]) {
        if constexpr (K % VECTOR == 0) {
#pragma unroll
            for (u32 j = 0; j < K; j += VECTOR) {
                float chunk[VECTOR];
#pragma unroll
                for (u32 k = 0; k < VECTOR; ++k) chunk[k] = z[j + k];
                store_words_shared(scalar(r * K + j), pack(chunk));
            }
        } else {
#pragma unroll
            for (u32 j = 0; j < K; ++j) store(scalar(r * K + j), z[j]);
        }
    }

    // All lanes: between memory and the tile. `count` scalars are there; vectors if `whole`.
    DEVICE void read(const Scalar* from, u32 count, bool whole) {
        if (whole) {
#pragma unroll
            for (u32 v = 0; v < WORDS / 4; v += 32)
                if (v + lane < WORDS / 4) store_words_shared(words + place((v + lane) * 4), load_words(from + (v + lane) * VECTOR));
        } else {
#pragma unroll 1
            for (u32 k = lane; k < count; k += 32) *((Scalar*)(words + place(k / ROWS)) + k % ROWS) = from[k];
        }
        __syncwarp();
    }

    DEVICE void write(Scalar* to, u32 count, bool whole) {
        __syncwarp();
        if (whole) {
#pragma unroll
            for (u32 v = 0; v < WORDS / 4; v += 32)
                if (v + lane < WORDS / 4) store_words(to + (v + lane) * VECTOR, load_words(words + place((v + lane) * 4)));
        } else {
#pragma unroll 1
            for (u32 k = lane; k < count; k += 32) to[k] = *((Scalar*)(words + place(k / ROWS)) + k % ROWS);
        }
        __syncwarp();
    }
};

template <bool GRADIENT, int K>
DEVICE void dfl_tile(const DflArgs& a) {
    SHARED(u32, shared, BLOCK * K);
    Tile<K> tile = {shared + threadIdx.x / 32 * Tile<K>::WORDS, threadIdx.x % 32};
    const Factors factor = factors(a.scaling);
    constexpr u32 TILE_ROWS = 32 * Tile<K>::ROWS, BLOCK_ROWS = BLOCK * Tile<K>::ROWS;
    const bool aligned = aligned16(a.logits) && aligned16(a.grad);
    Accumulator sum;
    bool finite = true;
    for (u64 block_base = (u64)blockIdx.x * BLOCK_ROWS; block_base < a.rows; block_base += (u64)gridDim.x * BLOCK_ROWS) {
        const u64 base = min(block_base + threadIdx.x / 32 * TILE_ROWS, a.rows);
        const u32 count = (u32)min((u64)TILE_ROWS, a.rows - base) * K;
        const bool whole = aligned && count == Tile<K>::SCALARS;
        tile.read(a.logits + base * K, count, whole);
#pragma unroll
        for (u32 r = 0; r < Tile<K>::ROWS; ++r) {
            const u64 row = base + tile.lane * Tile<K>::ROWS + r;
            Target target = {{0, 0.0f, 0.0f}, 0.0f};
            if (row < a.rows) target = read_target(a, row, true);
            float z[K], loss = 0.0f;
            if (target.weight != 0.0f) {
                tile.load_row(r, z);
                const float z_left = load(tile.scalar(r * K + target.bins.left));
                const float z_right = load(tile.scalar(r * K + target.bins.left + 1));
                const Softmax softmax = register_softmax(z);
                loss = target.weight * dfl(target.bins, softmax.peak, softmax.log_total, z_left, z_right);
                if (GRADIENT) {
                    const float scale = factor.grad * target.weight * upstream_of(a.scaling, row);
                    const float share = rcp_approx(softmax.total);
#pragma unroll
                    for (u32 j = 0; j < K; ++j) z[j] *= share * scale;
                    const float left = exp_below(z_left, softmax.peak) * share - target.bins.left_weight;
                    const float right = exp_below(z_right, softmax.peak) * share - target.bins.right_weight;
                    tile.store_row(r, z);
                    store(tile.scalar(r * K + target.bins.left), left * scale);
                    store(tile.scalar(r * K + target.bins.left + 1), right * scale);
                }
            } else if (GRADIENT) {
#pragma unroll
                for (u32 j = 0; j < K; ++j) z[j] = 0.0f;
                tile.store_row(r, z);
            }
            if (row < a.rows) {
                sum.add(loss);
                if (a.scaling.per_row && a.scaling.loss) a.scaling.loss[row] = loss * factor.loss;
            }
        }
        if (GRADIENT) {
            if (a.scaling.found_inf) {
#pragma unroll
                for (u32 w = 0; w < K; ++w) finite &= is_finite(tile.word(w));
            }
            tile.write(a.grad + base * K, count, whole);
        } else {
            __syncwarp();
        }
    }
    finish<BLOCK>(a.scaling, a.rows, sum.total(), finite);
}

// Any number of bins. `scaling.lanes` lanes share a row.
template <bool GRADIENT>
DEVICE void dfl_rows(const DflArgs& a) {
    const u32 lanes = a.scaling.lanes, lane = threadIdx.x % lanes, rows_per_block = ROWS_BLOCK / lanes;
    const Factors factor = factors(a.scaling);
    double sum = 0.0;
    bool finite = true;
    for (u64 base = (u64)blockIdx.x * rows_per_block; base < a.rows; base += (u64)gridDim.x * rows_per_block) {
        const u64 row = base + threadIdx.x / lanes, start = row * a.bins;
        const bool inside = row < a.rows;
        Target target = {{0, 0.0f, 0.0f}, 0.0f};
        if (inside) target = read_target(a, row, lane == 0);
        const u32 bins = target.weight == 0.0f ? 0 : a.bins;  // what there is to do
        const Softmax softmax = row_softmax(a.logits + start, bins, lane, lanes);
        float loss = 0.0f;
        if (bins) {
            const float z_left = load(a.logits + start + target.bins.left);
            const float z_right = load(a.logits + start + target.bins.left + 1);
            loss = target.weight * dfl(target.bins, softmax.peak, softmax.log_total, z_left, z_right);
        }
        if (GRADIENT && bins) {
            const float scale = factor.grad * target.weight * upstream_of(a.scaling, row);
            const float share = rcp_approx(softmax.total);
            finite &= for_row(a.logits + start, a.grad + start, bins, lane, lanes, [&](u32 i, auto& z) {
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
            if (a.scaling.per_row && a.scaling.loss) a.scaling.loss[row] = loss * factor.loss;
        }
    }
    finish<ROWS_BLOCK>(a.scaling, a.rows, sum, finite);
}

KERNEL(dfl_tile16_forward, BLOCK, 4)(const DflArgs a) { dfl_tile<false, 16>(a); }
KERNEL(dfl_tile16_forward_backward, BLOCK, 4)(const DflArgs a) { dfl_tile<true, 16>(a); }
KERNEL(dfl_tile17_forward, BLOCK, 4)(const DflArgs a) { dfl_tile<false, 17>(a); }
KERNEL(dfl_tile17_forward_backward, BLOCK, 4)(const DflArgs a) { dfl_tile<true, 17>(a); }
KERNEL(dfl_rows_forward, ROWS_BLOCK, 2)(const DflArgs a) { dfl_rows<false>(a); }
KERNEL(dfl_rows_forward_backward, ROWS_BLOCK, 2)(const DflArgs a) { dfl_rows<true>(a); }
