// The softmax of a row of logits: of one thread's registers, or of a row in memory.
#pragma once
#include "math.cuh"
#include "rows.cuh"

struct Softmax {
    float peak;       // the largest logit
    float total;      // of exp(z - peak)
    float log_total;  // so that log-sum-exp = peak + log_total
};

// Replaces the logits by exp(z - peak). Logits that are not finite make `total` NaN: inf does by
// itself, and -inf by the product with 0, without which it would go unseen.
template <int K>
DEVICE Softmax register_softmax(float (&z)[K]) {
    float peak = z[0], poison = 0.0f;
#pragma unroll
    for (int j = 0; j < K; ++j) {
        poison = fmaf(z[j], 0.0f, poison);
        peak = fmaxf(peak, z[j]);
    }
    float partial[4] = {poison, 0.0f, 0.0f, 0.0f};
#pragma unroll
    for (int j = 0; j < K; ++j) {
        z[j] = exp_below(z[j], peak);
        partial[j % 4] += z[j];
    }
    const float total = (partial[0] + partial[1]) + (partial[2] + partial[3]);
    float others = 0.0f;
    if (total < CONFIDENT) {
        const float at_peak = exp_below(peak, peak);  // 1, but for the error of exp2_approx
#pragma unroll
        for (int j = 0; j < K; ++j) others += z[j] < at_peak ? z[j] : 0.0f;
    }
    return {peak, total, log_total(total, others)};
}

// The same for a row in memory that `lanes` lanes share, in two passes. All lanes of the warp
// must call it, those without a row with length 0.
DEVICE Softmax row_softmax(const Scalar* row, u32 length, u32 lane, u32 lanes) {
    float peak = -__uint_as_float(0x7f800000);
    for_row<false>(row, nullptr, length, lane, lanes, [&](u32, auto& z) {
        for (float value : z) peak = fmaxf(peak, value);
    });
    peak = lanes_max(peak, lanes);
    float total = 0.0f, others = 0.0f;
    for_row<false>(row, nullptr, length, lane, lanes, [&](u32, auto& z) {
        for (float value : z) {
            float e = fmaf(value, 0.0f, exp_below(value, peak));
            total += e;
            others += value < peak ? e : 0.0f;
        }
    });
    total = lanes_sum(total, lanes);
    others = lanes_sum(others, lanes);
    return {peak, total, log_total(total, others)};
}
