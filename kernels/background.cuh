// Vectors of class logits whose target is 0, which nearly all are: what QFL on its own and the head loss do alike.
#pragma once
#include "math.cuh"
#include "reduce.cuh"
#include "storage.cuh"

// Whether losses may come doubled (see qfl_background) whatever the logits: not where those reach 2^127.
#ifdef STORAGE_F16
constexpr bool ALWAYS_TWICE = true;
#else
constexpr bool ALWAYS_TWICE = false;
#endif

template <bool GRADIENT, bool BETA_2, bool TWICE>
DEVICE LossGrad background(float x, float beta, float scale) {
    return BETA_2 ? qfl_background<GRADIENT, TWICE>(x, scale) : qfl_background_any_beta(x, beta, scale);
}

template <bool BETA_2>
DEVICE LossGrad soft(float x, float y, float beta, float scale) {
    if (BETA_2) return qfl_soft(x, y, scale);
    return y > 0.0f ? qfl_soft_any_beta(x, y, beta, scale) : qfl_background_any_beta(x, beta, scale);
}

// A logit so low that its loss and its gradient are 0: it stands for the labelled one while the
// rest of its vector is computed, and for those of rows that give nothing.
constexpr float MASKED_LOGIT = -100.0f;
#if defined(STORAGE_F16)
constexpr u32 MASKED = 0xd640d640;
#elif defined(STORAGE_BF16)
constexpr u32 MASKED = 0xc2c8c2c8;
#else
constexpr u32 MASKED = 0xc2c80000;
#endif

DEVICE Words masked_words() { return {{MASKED, MASKED, MASKED, MASKED}}; }
DEVICE u32 masked_bits() { return sizeof(Scalar) == 2 ? MASKED & 0xffff : MASKED; }  // of one

// No branch and no index that is not constant, which would put the words into local memory.
DEVICE void mask_out(Words& words, u32 index) {
#pragma unroll
    for (u32 k = 0; k < 4; ++k) {
#ifdef STORAGE_F32
        words.w[k] = k == index ? MASKED : words.w[k];
#else
        u32 half = k == index / 2 ? 0xffffu << index % 2 * 16 : 0;
        words.w[k] = (words.w[k] & ~half) | (MASKED & half);
#endif
    }
}

// The same for several: a bit for each.
DEVICE void mask_out_bits(Words& words, u32 bits) {
#pragma unroll
    for (u32 k = 0; k < 4; ++k) {
#ifdef STORAGE_F32
        const u32 out = bits >> k & 1 ? 0xffffffffu : 0;
#else
        const u32 out = (bits >> 2 * k & 1 ? 0xffffu : 0) | (bits >> 2 * k & 2 ? 0xffff0000u : 0);
#endif
        words.w[k] = (words.w[k] & ~out) | (MASKED & out);
    }
}

// Whether all logits of a vector are at most -2, and none is so low as to be -inf: the sign and
// the highest bit of the exponent are set, the next one is not.
DEVICE bool confident(const Words& words) {
#ifdef STORAGE_F32
    constexpr u32 SET = 0xe0000000, NOT_SET = 0x20000000;
#else
    constexpr u32 SET = 0xe000e000, NOT_SET = 0x20002000;
#endif
    // ~((x ^ not_set) & (y ^ not_set)), and (low | high) & set
    constexpr u32 EITHER = 0xff & ~((0xf0 ^ 0xaa) & (0xcc ^ 0xaa)), ANY = (0xf0 | 0xcc) & 0xaa;
    const u32 low = logic<EITHER>(words.w[0], words.w[1], NOT_SET);
    const u32 high = logic<EITHER>(words.w[2], words.w[3], NOT_SET);
    return logic<ANY>(low, high, SET) == 0;
}

// The loss of a vector of background logits (TWICE: doubled), which their gradients replace. All lanes of a
// warp call it together: most negatives of a detector are confident, and then all take the short way. Another beta
// comes with the call, and so does the way of beta 0.
template <bool GRADIENT, bool BETA_2, bool TWICE>
DEVICE float background_vector(Words& words, float beta, float scale) {
    float x[VECTOR], loss = 0.0f;
    unpack(words, x);
    if (BETA_2 && __all_sync(ALL_LANES, confident(words))) {
#pragma unroll
        for (int k = 0; k < VECTOR; ++k) {
            LossGrad element = qfl_confident<sizeof(Scalar) == 2, TWICE>(x[k], scale, k);
            loss += element.loss;
            x[k] = element.grad;
        }
    } else if (!BETA_2 && beta == 0.0f) {
#pragma unroll
        for (int k = 0; k < VECTOR; ++k) {
            LossGrad element = bce_background(x[k], scale);
            loss += element.loss;
            x[k] = element.grad;
        }
    } else {
#pragma unroll
        for (int k = 0; k < VECTOR; ++k) {
            LossGrad element = background<GRADIENT, BETA_2, TWICE>(x[k], beta, scale);
            loss += element.loss;
            x[k] = element.grad;
        }
    }
    if (GRADIENT) words = pack(x);
    return loss;
}
