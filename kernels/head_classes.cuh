// The class logits in phase two of the head loss: the sum of their losses, and their gradients.
#pragma once
#include "head_elements.cuh"

// What a lane has in flight: pieces of 16 bytes, or with another beta than 2, which takes more registers and
// instructions, so many elements. Twins in src/head/launch/plan.rs. Of those that go one by one it has VECTOR.
constexpr int HEAD_UNROLL = 4;
constexpr int HEAD_ELEMENTS_ANY_BETA = 16;

// The kernels of any beta are general in the rest, too: weights of classes and elements, targets of all elements, and
// alpha come there alone. By position class weights go with the vectors: a channel has one. What else differs from
// element to element is done one by one (see `is_apart`).

// What is to be masked of vectors of positions: a bit for each that is masked, and the next step at which one has
// its label. In one register.
struct Pending {
    u32 code;

    DEVICE Pending(u32 masked, u32 next) : code(next << 8 | masked) {}
    DEVICE u32 masked() const { return code & 0xff; }
    DEVICE u32 next() const { return code >> 8; }

    // The first step at which there is something to mask.
    DEVICE u32 first() const { return masked() ? 0 : next(); }
};

// From an address that is a multiple of 4 * N.
DEVICE void read_floats(const float* p, float (&x)[4]) {
    const float4 v = *(const float4*)p;
    x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
}
DEVICE void read_floats(const float* p, float (&x)[2]) {
    const float2 v = *(const float2*)p;
    x[0] = v.x, x[1] = v.y;
}

// From an address that is a multiple of 16.
DEVICE Words load_piece(const char* p) {
    const uint4 v = load_16_bytes(p);
    return {{v.x, v.y, v.z, v.w}};
}

// Two of the words, from an address that is a multiple of 8.
DEVICE void set_half(Words& words, u32 first, const char* p) {
    const uint2 half = load_8_bytes(p);
    words.w[first] = half.x, words.w[first + 1] = half.y;
}

// Which way vectors go: W positions on 4 * W bytes, or VECTOR channels. A piece is 16 bytes: of one channel of VECTOR
// positions, of two channels of half as many (`halves`), of one anchor (`by_channel`). A constant of the type, or not.
struct ByPosition {
    static constexpr bool by_channel = false, halves = false;
};
struct ByHalves {
    static constexpr bool by_channel = false, halves = true;
};
struct ByChannel {
    static constexpr bool by_channel = true, halves = false;
};
struct ByPositionOrHalves {
    static constexpr bool by_channel = false;
    bool halves;
};
#ifdef STORAGE_F32
struct ByAny {
    bool by_channel;
    static constexpr bool halves = false;

    DEVICE ByAny(u32 way) : by_channel(way == CLS_CHANNELS) {}
};
#else
struct ByAny {
    bool by_channel, halves;

    DEVICE ByAny(u32 way) : by_channel(way == CLS_CHANNELS), halves(way == CLS_HALF_VECTORS) {}
};
#endif

// The gradients of a lane whose anchors are all masked.
DEVICE void mask_vectors(const HeadLevel& level, const Anchor& anchor, const ClassShare& share, bool halves) {
    Scalar* to = level.grad_cls + place(level, level.grad_cls_strides, anchor, share.channel);
#pragma unroll 1
    for (u32 i = 0; i < share.count; ++i) {
        if (halves) store_8_bytes(to, 0, 0);
        else store_words(to, {{0, 0, 0, 0}});
        to += level.grad_cls_strides.channel;
    }
}

// A warp's share in vectors. By position a lane goes from channel to channel, by channel it goes from anchor to
// anchor. False: class_anchors must do all of it. `labels`: whether some anchors may have their labels here, whose
// elements are left out.
template <bool GRADIENT, bool BETA_2, class Way>
DEVICE bool class_vectors(const HeadArgs& a, const HeadLevel& level, u32 tile, float grad_factor, const Way way,
                          ClassSums& sums, bool& labels) {
    constexpr u32 UNROLL = BETA_2 ? HEAD_UNROLL : HEAD_ELEMENTS_ANY_BETA / VECTOR;
    // Losses come doubled. They might overflow, and the gradients with them: such a tile is done again.
    constexpr bool MAY_OVERFLOW = BETA_2 && !ALWAYS_TWICE;
    constexpr float LARGEST = 3.40282347e38f;
    const u32 parts = way.halves ? 2 : 1, width = VECTOR / parts;
    const u32 steps = UNROLL * parts;  // in one way round

    const ClassShare share(a, level, tile, thread_anew());
    const Anchor anchor = share.anchor(level, 0);
    const float* weights = a.weights + record_of(level, anchor);
    if (!BETA_2) grad_factor *= a.alpha[0];
    float weight = 0.0f, scale = 0.0f;
    Pending pending(0, NEVER);  // by position
    u32 calm = NEVER;           // so many steps come before the first of it
    if (!way.by_channel) {
        float w[4];
        bool plain = true;
#pragma unroll
        for (u32 k = 0; k < VECTOR; k += 4) {
            if (k >= width) break;
            read_floats(weights + k, w);
            if (k == 0) weight = w[0];
            plain &= w[0] == weight & w[1] == weight & w[2] == weight & w[3] == weight;  // NaN is not
        }
        scale = grad_factor * weight;
        if (__any_sync(ALL_LANES, !plain)) {
            rare();
            weight = 0.0f;
            bool uneven = false, first = true;
            u32 masked = 0, next = NEVER;
#pragma unroll 1
            for (u32 k = 0; k < width; ++k) {
                const u32 code = a.codes[record_of(level, anchor) + k];
                const float w = label_weight_of(level, anchor.number + k);
                if (code == MASKED_ANCHOR || w == 0.0f) {
                    masked |= 1u << k;
                    continue;
                }
                uneven |= first ? w != w : w != weight;
                weight = w;
                first = false;
                const u32 ahead = code - 1 - share.channel;
                if (code != PLAIN && ahead < share.count) next = min(next, ahead);
            }
            // What surrounds an image in its batch.
            if (__all_sync(ALL_LANES, share.idle || masked == (1u << width) - 1)) {
                if (GRADIENT && !share.idle) mask_vectors(level, anchor, share, way.halves);
                return true;
            }
            pending = Pending(masked, next);
            scale = weight == 0.0f ? 0.0f : grad_factor * weight;  // the factor may be inf
            if (__any_sync(ALL_LANES, uneven || (GRADIENT && masked != 0 && !(fabsf(scale) <= LARGEST)))) return false;
            calm = pending.first();
        }
        // 0 * inf is not 0
        if (!BETA_2 && a.class_weights && __any_sync(ALL_LANES, !(fabsf(scale) <= LARGEST))) return false;
    }
    // All lanes have so many steps: those of the last chunk may have fewer.
    const u32 last = (way.by_channel ? level.positions : a.classes) - (level.cls_chunks - 1) * level.cls_span;
    const u32 sure = __any_sync(ALL_LANES, share.count < level.cls_span) ? last : level.cls_span;
    calm = min(calm, sure);
    // The host sees to it that it fits. In a register: the compiler would work it out again in the loop.
    const u64 stride = way.by_channel ? level.cls_strides.position : level.cls_strides.channel;
    const u32 step = kept((u32)stride * (u32)sizeof(Scalar));
    u64 times[UNROLL + 1];  // how far the pieces are, and what comes after them
#pragma unroll
    for (u32 u = 0; u <= UNROLL; ++u) times[u] = u ? product_here(step, u * parts) : 0;
    const char* from = (const char*)(level.cls + place(level, level.cls_strides, anchor, share.channel));
    // In the same steps.
    char* to = GRADIENT ? (char*)(level.grad_cls + place(level, level.grad_cls_strides, anchor, share.channel)) : nullptr;
    const bool idle = share.idle;
    // Of the channels from the first on, by position; see the loop.
    const float* class_weights = BETA_2 ? nullptr : a.class_weights + share.channel;
    float piece_weights[UNROLL][PIECE_PARTS];  // at any beta
#pragma unroll
    for (u32 u = 0; u < UNROLL * PIECE_PARTS; ++u) piece_weights[u / PIECE_PARTS][u % PIECE_PARTS] = 1.0f;
    labels = pending.next() != NEVER;
    bool finite = true;
    float loss = 0.0f;
#pragma unroll 1
    for (u32 i = 0; i < level.cls_span; i += steps) {
        Words words[UNROLL];
        float w[UNROLL];
        int left = (int)steps;
        bool whole = i + steps <= calm;
        if (!way.by_channel) whole = !__any_sync(ALL_LANES, !whole);
        if (__builtin_expect(whole, 1)) {
            if (way.halves) {
#pragma unroll
                for (u32 u = 0; u < UNROLL; ++u) {
                    const char* p = from + times[u];
                    set_half(words[u], 0, p);
                    set_half(words[u], 2, p + step);
                }
            } else {
#pragma unroll
                for (u32 u = 0; u < UNROLL; ++u) words[u] = load_piece(from + times[u]);
            }
        } else {
            rare();
            const ClassShare here(a, level, tile, thread_anew());
            left = (int)(here.count - i);  // may be below 0
#pragma unroll
            for (u32 u = 0; u < UNROLL; ++u) {
                words[u] = masked_words();
                const char* p = from + times[u];
                const int behind = left - (int)(u * parts);
                if (way.halves) {
                    if (behind > 0) set_half(words[u], 0, p);
                    if (behind > 1) set_half(words[u], 2, p + step);
                } else if (behind > 0) {
                    words[u] = load_piece(p);
                }
            }
            if (!way.by_channel) {
                const u32 masked = pending.masked();
#pragma unroll
                for (u32 u = 0; u < UNROLL; ++u) mask_out_bits(words[u], way.halves ? masked | masked << width : masked);
                if (pending.next() < i + steps) {
                    const u64 record = record_of(level, here.anchor(level, 0));
                    u32 next = NEVER;
#pragma unroll 1
                    for (u32 k = 0; k < width; ++k) {
                        const u32 code = a.codes[record + k], ahead = code - 1 - here.channel;
                        if (masked >> k & 1 || code == PLAIN || ahead >= here.count || ahead < i) continue;
                        const u32 further = ahead - i, piece = further / parts, index = further % parts * width + k;
#pragma unroll
                        for (u32 u = 0; u < UNROLL; ++u) mask_out(words[u], piece == u ? index : NEVER);
                        if (further >= steps) next = min(next, ahead);
                    }
                    pending = Pending(masked, next);
                }
                calm = min(sure, pending.first());
            }
        }
        if (way.by_channel) {
            read_floats(weights, w);
            weights += UNROLL;
            bool special = !whole;  // there are no anchors behind the last ones, and no weights
#pragma unroll
            for (u32 u = 0; u < UNROLL; ++u) special |= w[u] != w[u];
            if (__builtin_expect(__any_sync(ALL_LANES, special), 0)) {
                rare();
                const ClassShare here(a, level, tile, thread_anew());
                const Anchor begin = here.anchor(level, i);
                const u64 record = record_of(level, begin);
                labels = true;
                bool any_masked = false;
#pragma unroll
                for (u32 u = 0; u < UNROLL; ++u) {
                    const bool inside = i + u < here.count;
                    const u32 code = inside ? a.codes[record + u] : MASKED_ANCHOR;
                    w[u] = inside ? label_weight_of(level, begin.number + u) : 0.0f;
                    if (code == MASKED_ANCHOR || w[u] == 0.0f) {
                        words[u] = masked_words();
                        w[u] = 0.0f;
                        any_masked = true;
                    }
                    mask_out(words[u], code - 1 - here.channel);
                }
                // 0 * inf is not 0
                if (__any_sync(ALL_LANES, GRADIENT && any_masked && !(fabsf(grad_factor) <= LARGEST))) return false;
            }
        }
        float sum = 0.0f;
        if constexpr (BETA_2) {
#pragma unroll
            for (u32 u = 0; u < UNROLL; ++u) {
                const float own_scale = way.by_channel ? grad_factor * w[u] : scale;
                const float vector = background_vector<GRADIENT, true, true>(words[u], a.beta, own_scale);
                if (way.by_channel) sum = u ? fmaf(w[u], vector, sum) : w[u] * vector;
                else sum = u ? sum + vector : vector;
            }
        } else {
            if (way.by_channel) {
#pragma unroll
                for (u32 u = 0; u < UNROLL * PIECE_PARTS; ++u)
                    piece_weights[u / PIECE_PARTS][u % PIECE_PARTS] = w[u / PIECE_PARTS];
            } else if (a.class_weights) {
                rare();
#pragma unroll
                for (u32 u = 0; u < UNROLL; ++u) {
#pragma unroll
                    for (u32 part = 0; part < PIECE_PARTS; ++part) {
                        const u32 further = u * parts + (way.halves ? part : 0);
                        const float own = (int)further < left ? class_weights[i + further] : 0.0f;
                        piece_weights[u][part] = own;
#pragma unroll
                        for (u32 k = part * 4 / PIECE_PARTS; k < (part + 1) * 4 / PIECE_PARTS; ++k)
                            words[u].w[k] = own == 0.0f ? MASKED : words[u].w[k];
                    }
                }
            }
            const float common = way.by_channel ? grad_factor : scale;
#pragma unroll
            for (u32 u = 0; u < UNROLL; ++u) {
                if (a.beta == 0.0f) add_weighted_vector<GRADIENT, true>(sum, words[u], 0.0f, common, piece_weights[u]);
                else add_weighted_vector<GRADIENT, false>(sum, words[u], a.beta, common, piece_weights[u]);
            }
        }
        loss += sum;
        if (GRADIENT) {
            if (__builtin_expect(whole, 1)) {
                if (way.halves) {
#pragma unroll
                    for (u32 u = 0; u < UNROLL; ++u)
                        if (!idle) {
                            char* p = to + times[u];
                            store_8_bytes(p, words[u].w[0], words[u].w[1]);
                            store_8_bytes(p + step, words[u].w[2], words[u].w[3]);
                        }
                } else {
#pragma unroll
                    for (u32 u = 0; u < UNROLL; ++u)
                        if (!idle) store_words(to + times[u], words[u]);
                }
            } else {
                rare();
#pragma unroll
                for (u32 u = 0; u < UNROLL; ++u) {
                    char* p = to + times[u];
                    const int behind = idle ? 0 : left - (int)(u * parts);
                    if (way.halves) {
                        if (behind > 0) store_8_bytes(p, words[u].w[0], words[u].w[1]);
                        if (behind > 1) store_8_bytes(p + step, words[u].w[2], words[u].w[3]);
                    } else if (behind > 0) {
                        store_words(p, words[u]);
                    }
                }
            }
            if (a.found_inf) {  // what idle lanes have is what others have
                rare();
#pragma unroll
                for (u32 u = 0; u < UNROLL; ++u) finite &= is_finite(words[u]);
            }
            to += times[UNROLL];
        }
        from += times[UNROLL];
    }
    if (MAY_OVERFLOW && __any_sync(ALL_LANES, !(loss <= LARGEST))) {
        rare();
        return false;
    }
    sums.finite &= finite;
    if (!idle)
        sums.loss = fma(way.by_channel ? (double)loss : (double)loss * (double)weight,
                        BETA_2 ? 0.5 : (double)a.alpha[0], sums.loss);
    return true;
}

// The tiles of a level that fall to this block.
template <bool GRADIENT, bool BETA_2>
DEVICE void head_classes(const HeadArgs& a, const HeadLevel& level, float grad_factor, ClassSums& sums) {
    const u32 way = level.cls_way;
    u32 tile = (blockIdx.x - level.cls_block) * HEAD_WARPS + threadIdx.x / 32;
    for (; whole_warp(tile < level.cls_tiles); tile += (level.box_block - level.cls_block) * HEAD_WARPS) {
        const bool apart = is_apart<BETA_2>(a, level);
        bool done = apart, labels = apart;
        const auto vectors = [&](auto which) {
            done = class_vectors<GRADIENT, BETA_2>(a, level, tile, grad_factor, which, sums, labels);
        };
        if (apart) {
        } else if constexpr (BETA_2) {
            // Loops of their own have the fewest instructions: where there is a gradient that counts.
            if (way == CLS_CHANNELS) vectors(ByChannel());
#ifdef STORAGE_F32
            else if (way == CLS_POSITIONS) vectors(ByPosition());
#else
            else if constexpr (GRADIENT) {
                if (way == CLS_POSITIONS) vectors(ByPosition());
                else if (way == CLS_HALF_VECTORS) vectors(ByHalves());
            } else if (way != CLS_SCALARS) {
                vectors(ByPositionOrHalves{way == CLS_HALF_VECTORS});
            }
#endif
        } else if (way != CLS_SCALARS) {
            vectors(ByAny(way));
        }
        const bool weighted = !BETA_2 && a.class_weights;  // vectors could not, as a factor is too large
        if (!whole_warp(done)) {
            if (!weighted) class_anchors<GRADIENT, BETA_2>(a, level, tile, grad_factor, sums);
            labels = true;
        }
        if (__any_sync(ALL_LANES, labels)) {
            rare();
            const bool all = apart || (weighted && !done);
            class_elements<GRADIENT, BETA_2>(a, level, tile, grad_factor, all, sums);
        }
    }
}
