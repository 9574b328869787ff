// The integral of a distribution over bins: its expectation E = sum_j j * softmax(z)_j, and the
// gradient p_j * (j - E) * upstream. Naively it is `naive_integral` in naive/naive.cu.
//
// E is computed around the integer nearest to it: where one bin has nearly all, j - E is the
// small difference of large numbers otherwise.
#include "reduce.cuh"
#include "softmax.cuh"

constexpr int BLOCK = 256;  // twin in src/integral/launch.rs

// Field by field the same as `IntegralArgs` in src/integral/launch.rs.
struct IntegralArgs {
    const Scalar* logits;   // [rows, bins]
    float* expectation;     // [rows], or null
    const float* upstream;  // [rows]: gradient with respect to the expectations; null: ones
    Scalar* grad;           // [rows, bins]
    float* found_inf;       // [1], or null
    u64 rows;
    u32 bins;
    u32 lanes;              // lanes of a warp that share a row: 1, 2, 4, ... 32
};

template <bool GRADIENT>
DEVICE void integral(const IntegralArgs& a) {
    const u32 lane = threadIdx.x % a.lanes, rows_per_block = BLOCK / a.lanes;
    bool finite = true;
    for (u64 base = (u64)blockIdx.x * rows_per_block; base < a.rows; base += (u64)gridDim.x * rows_per_block) {
        const u64 row = base + threadIdx.x / a.lanes, start = row * a.bins;
        const u32 bins = row < a.rows ? a.bins : 0;
        const Softmax softmax = row_softmax(a.logits + start, bins, lane, a.lanes);
        const float share = rcp_approx(softmax.total);
        // The sum of (j - origin) * p_j.
        auto moment = [&](float origin) {
            float sum = 0.0f;
            for_row<false>(a.logits + start, nullptr, bins, lane, a.lanes, [&](u32 i, auto& z) {
                float bin = (float)i - origin;
                for (float value : z) {
                    sum = fmaf(bin, exp_below(value, softmax.peak), sum);
                    bin += 1.0f;
                }
            });
            return lanes_sum(sum, (int)a.lanes) * share;
        };
        const float nearest = rintf(moment(0.0f)), rest = moment(nearest);
        if (lane == 0 && bins && a.expectation) a.expectation[row] = nearest + rest;
        if (GRADIENT && bins) {
            const float scale = share * (a.upstream ? a.upstream[row] : 1.0f);
            finite &= for_row<true>(a.logits + start, a.grad + start, bins, lane, a.lanes, [&](u32 i, auto& z) {
                float bin = (float)i - nearest;
                for (float& value : z) {
                    value = exp_below(value, softmax.peak) * scale * (bin - rest);
                    bin += 1.0f;
                }
            });
        }
    }
    if (!finite && a.found_inf) *a.found_inf = 1.0f;
}

KERNEL(integral_forward, BLOCK, 2)(const IntegralArgs a) { integral<false>(a); }
KERNEL(integral_forward_backward, BLOCK, 2)(const IntegralArgs a) { integral<true>(a); }
