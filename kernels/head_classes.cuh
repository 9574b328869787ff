// The class logits in phase two of the head loss: the sum of their losses, and their gradients.
#pragma once
#include "background.cuh"
#include "head.cuh"

// What a lane has in flight: pieces of 16 bytes, or with another beta than 2, which takes more registers and
// instructions, so many elements; and how many that go one by one. Twins in src/cuda/raw/head/plan.rs.
constexpr int HEAD_UNROLL = 4;
constexpr int HEAD_ELEMENTS_ANY_BETA = 16;
constexpr int HEAD_SCALARS = 16;
constexpr int HEAD_SCALARS_ANY_BETA = 8;

constexpr u32 NEVER = 0x7fffffu;  // a step that there is not

// What is to be masked of vectors of positions: a bit for each that is masked, and the next step at which one has
// its label. In one register, of which one comparison says whether anything of it is before a step.
struct Pending {
    u32 code;

    DEVICE Pending(u32 masked, u32 next) : code((masked ? 0 : 1u << 31) | next << 8 | masked) {}
    DEVICE u32 masked() const { return code & 0xff; }
    DEVICE u32 next() const { return code >> 8 & NEVER; }
    DEVICE bool before(u32 step) const { return code < (1u << 31 | step << 8); }
};

// What is the same for all tiles of a thread.
struct ClassSums {
    double loss;
    bool finite;
};

// What a lane has of a tile: a place, from which it goes `count` steps along one of the axes. Idle lanes have what
// a lane with something to do has, and neither write nor count.
struct ClassShare {
    bool idle;
    u32 image, position, channel, count;

    // Lanes that follow each other are next to each other in memory.
    DEVICE ClassShare(const HeadArgs& a, const HeadLevel& level, u32 tile, u32 thread) {
        const u32 width = level.cls_way == CLS_SCALARS ? 1 : level.cls_way == CLS_HALF_VECTORS ? VECTOR / 2 : VECTOR;
        u32 item = tile * 32 + thread % 32;
        idle = item >= a.batch * level.cls_units * level.cls_chunks;
        if (idle) item = 0;
        const u32 row = item / level.cls_units, across = (item - row * level.cls_units) * width;
        image = row / level.cls_chunks;
        const u32 along = (row - image * level.cls_chunks) * level.cls_span;
        position = level.cls_by_channel ? along : across;
        channel = level.cls_by_channel ? across : along;
        count = min(level.cls_span, (level.cls_by_channel ? level.positions : a.classes) - along);
    }

    DEVICE Anchor anchor(const HeadLevel& level, u32 further) const {
        return {image * level.positions + position + further, image, position + further};
    }
};

// The labelled element of an anchor: its weighted loss. Its gradient takes the place of the one that was stored for
// a masked logit.
template <bool GRADIENT, bool BETA_2>
DEVICE double labelled(const HeadArgs& a, const HeadLevel& level, const Anchor& anchor, u32 column, float weight,
                       float grad_factor, bool& finite) {
    const u64 at = place(level.cls_strides, anchor, column);
    const LossGrad element =
        soft<BETA_2>(load(level.cls + at), a.qualities[record_of(level, anchor)], a.beta, grad_factor * weight);
    if (GRADIENT) {
        store(level.grad_cls + at, element.grad);
        finite &= is_finite(level.grad_cls + at);
    }
    return (double)element.loss * (double)weight;
}

// From an address that is a multiple of 4 * N.
DEVICE void read_floats(const float* p, float (&x)[4]) {
    const float4 v = *(const float4*)p;
    x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
}
DEVICE void read_floats(const float* p, float (&x)[2]) {
    const float2 v = *(const float2*)p;
    x[0] = v.x, x[1] = v.y;
}

// 16 bytes from one place, or 8 each from two.
template <bool HALVES>
DEVICE Words read_piece(const char* p, u32 step) {
    if (!HALVES) return load_words(p);
    const uint2 low = *(const uint2*)p, high = *(const uint2*)(p + step);
    return {{low.x, low.y, high.x, high.y}};
}

template <bool HALVES>
DEVICE void write_piece(char* p, u32 step, const Words& words) {
    if (!HALVES) return store_words(p, words);
    store_8_bytes(p, words.w[0], words.w[1]);
    store_8_bytes(p + step, words.w[2], words.w[3]);
}

// The gradients of a lane whose anchors are all masked.
template <bool HALVES>
DEVICE void mask_vectors(const HeadLevel& level, const Anchor& anchor, const ClassShare& share) {
    Scalar* to = level.grad_cls + place(level.cls_strides, anchor, share.channel);
#pragma unroll 4
    for (u32 i = 0; i < share.count; ++i) {
        if (HALVES) store_8_bytes(to, 0, 0);
        else store_words(to, {{0, 0, 0, 0}});
        to += level.cls_strides.channel;
    }
}

// A warp's share in vectors. By position (W of them, on 4 * W bytes) a lane goes from channel to channel; a piece
// is one channel of VECTOR positions, or two of half as many. By channel (W = 0) it goes from anchor to anchor, and
// a piece is VECTOR channels. False: class_anchors must do all of it.
template <bool GRADIENT, bool BETA_2, u32 W>
DEVICE bool class_vectors(const HeadArgs& a, const HeadLevel& level, u32 tile, float grad_factor, ClassSums& sums) {
    constexpr u32 UNROLL = BETA_2 ? HEAD_UNROLL : HEAD_ELEMENTS_ANY_BETA / VECTOR, PARTS = W ? VECTOR / W : 1;
    constexpr u32 STEPS = UNROLL * PARTS;  // in one way round
    constexpr bool HALVES = PARTS == 2, BY_CHANNEL = W == 0;
    // Losses come doubled. They might overflow, and the gradients with them: such a tile is done again.
    constexpr bool MAY_OVERFLOW = BETA_2 && !ALWAYS_TWICE;
    constexpr float LARGEST = 3.40282347e38f;

    const ClassShare share(a, level, tile, thread_anew());
    const Anchor anchor = share.anchor(level, 0);
    const float* weights = a.weights + record_of(level, anchor);
    float weight = 0.0f, scale = 0.0f;
    Pending pending(0, NEVER);  // by position
    if constexpr (!BY_CHANNEL) {
        float w[4];
        bool plain = true;
#pragma unroll
        for (u32 k = 0; k < W; k += 4) {
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
            for (u32 k = 0; k < W; ++k) {
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
            if (__all_sync(ALL_LANES, share.idle || masked == (1u << W) - 1)) {
                if (GRADIENT && !share.idle) mask_vectors<HALVES>(level, anchor, share);
                return true;
            }
            pending = Pending(masked, next);
            scale = weight == 0.0f ? 0.0f : grad_factor * weight;  // the factor may be inf
            if (__any_sync(ALL_LANES, uneven || (masked != 0 && !is_finite(__float_as_uint(scale))))) return false;
        }
    }
    // All lanes have so many steps: those of the last chunk may have fewer.
    const u32 last = (BY_CHANNEL ? level.positions : a.classes) - (level.cls_chunks - 1) * level.cls_span;
    const u32 sure = __any_sync(ALL_LANES, share.count < level.cls_span) ? last : level.cls_span;
    // The host sees to it that it fits. In a register: the compiler would work it out again in the loop.
    const u64 stride = BY_CHANNEL ? level.cls_strides.position : level.cls_strides.channel;
    const u32 step = kept((u32)stride * (u32)sizeof(Scalar));
    const u64 start = place(level.cls_strides, anchor, share.channel);
    const char* from = (const char*)(level.cls + start);
    char* to = GRADIENT ? (char*)(level.grad_cls + start) : nullptr;
    const bool idle = share.idle;
    bool any_special = pending.next() != NEVER;
    bool finite = true;
    float loss = 0.0f;
#pragma unroll 1
    for (u32 i = 0; i < level.cls_span; i += STEPS) {
        Words words[UNROLL];
        float w[UNROLL];
        const bool whole = i + STEPS <= sure;
        if (__builtin_expect(whole, 1)) {
#pragma unroll
            for (u32 u = 0; u < UNROLL; ++u) words[u] = read_piece<HALVES>(from + (u64)step * (u * PARTS), step);
        } else {
            rare();
            const u32 left = ClassShare(a, level, tile, thread_anew()).count - i;
#pragma unroll
            for (u32 u = 0; u < UNROLL; ++u) {
                words[u] = masked_words();
                // `left` may be below 0
                if ((int)(u * PARTS + PARTS - 1) < (int)left) {
                    words[u] = read_piece<HALVES>(from + (u64)step * (u * PARTS), step);
                } else if (HALVES && (int)(u * PARTS) < (int)left) {
                    const uint2 low = *(const uint2*)(from + (u64)step * (u * PARTS));
                    words[u].w[0] = low.x;
                    words[u].w[1] = low.y;
                }
            }
        }
        bool special = pending.before(i + STEPS);
        if constexpr (BY_CHANNEL) {
            read_floats(weights + i, w);
            special = !whole;  // there are no anchors behind the last ones, and no weights
#pragma unroll
            for (u32 u = 0; u < UNROLL; ++u) special |= w[u] != w[u];
        }
        special = __any_sync(ALL_LANES, special);
        if (__builtin_expect(special, 0)) {
            rare();
            const ClassShare here(a, level, tile, thread_anew());
            const Anchor begin = here.anchor(level, BY_CHANNEL ? i : 0);
            const u64 record = record_of(level, begin);
            if constexpr (BY_CHANNEL) {
                any_special = true;
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
                if (__any_sync(ALL_LANES, any_masked && !is_finite(__float_as_uint(grad_factor)))) return false;
            } else {
                const u32 masked = pending.masked();
#pragma unroll
                for (u32 u = 0; u < UNROLL; ++u) mask_out_bits(words[u], HALVES ? masked | masked << W : masked);
                if (pending.next() < i + STEPS) {
                    u32 next = NEVER;
#pragma unroll 1
                    for (u32 k = 0; k < W; ++k) {
                        const u32 code = a.codes[record + k], ahead = code - 1 - here.channel;
                        if (masked >> k & 1 || code == PLAIN || ahead >= here.count || ahead < i) continue;
#pragma unroll
                        for (u32 u = 0; u < UNROLL; ++u) {
#pragma unroll
                            for (u32 part = 0; part < PARTS; ++part)
                                mask_out(words[u], ahead == i + u * PARTS + part ? part * W + k : NEVER);
                        }
                        if (ahead - i >= STEPS) next = min(next, ahead);
                    }
                    pending = Pending(masked, next);
                }
            }
        }
        float sum = 0.0f;
#pragma unroll
        for (u32 u = 0; u < UNROLL; ++u) {
            if (BY_CHANNEL) scale = grad_factor * w[u];
            const float vector = background_vector<GRADIENT, BETA_2, BETA_2>(words[u], a.beta, scale);
            if (BY_CHANNEL) sum = u ? fmaf(w[u], vector, sum) : w[u] * vector;
            else sum = u ? sum + vector : vector;
        }
        loss += sum;
        if (GRADIENT) {
            if (__builtin_expect(whole, 1)) {
#pragma unroll
                for (u32 u = 0; u < UNROLL; ++u)
                    if (!idle) write_piece<HALVES>(to + (u64)step * (u * PARTS), step, words[u]);
            } else {
                rare();
                const ClassShare here(a, level, tile, thread_anew());
#pragma unroll
                for (u32 u = 0; u < UNROLL; ++u) {
                    char* out = to + (u64)step * (u * PARTS);
                    if (!idle && i + u * PARTS + PARTS - 1 < here.count)
                        write_piece<HALVES>(out, step, words[u]);
                    else if (HALVES && !idle && i + u * PARTS < here.count)
                        store_8_bytes(out, words[u].w[0], words[u].w[1]);
                }
            }
            if (a.found_inf) {  // what idle lanes have is what others have
                rare();
#pragma unroll
                for (u32 u = 0; u < UNROLL; ++u) finite &= is_finite(words[u]);
            }
            to += (u64)step * STEPS;
        }
        from += (u64)step * STEPS;
    }
    if (MAY_OVERFLOW && __any_sync(ALL_LANES, !(loss <= LARGEST))) {
        rare();
        return false;
    }
    sums.finite &= finite;
    if (!idle) sums.loss = fma(BY_CHANNEL ? (double)loss : (double)loss * (double)weight, BETA_2 ? 0.5 : 1.0, sums.loss);
    if (__any_sync(ALL_LANES, any_special)) {
        rare();
        const ClassShare here(a, level, tile, thread_anew());
        const u64 record = record_of(level, here.image, here.position);
        const u32 anchors = idle ? 0 : BY_CHANNEL ? here.count : W;
#pragma unroll 1
        for (u32 k = 0; k < anchors; ++k) {
            const u32 code = a.codes[record + k], ahead = code - 1 - here.channel;
            if (code == PLAIN || code == MASKED_ANCHOR || ahead >= (BY_CHANNEL ? VECTOR : here.count)) continue;
            const Anchor one = here.anchor(level, k);
            const float own = label_weight_of(level, one.number);
            if (own != 0.0f)
                sums.loss += labelled<GRADIENT, BETA_2>(a, level, one, code - 1, own, grad_factor, sums.finite);
        }
    }
    return true;
}

// `count` logits of an anchor, from `channel` on and `step` channels apart, one by one; no lane of the warp has more
// than `most`.
template <bool GRADIENT, bool BETA_2>
DEVICE void class_scalars(const HeadArgs& a, const HeadLevel& level, bool idle, const Anchor& anchor, u32 channel,
                          u32 step, u32 count, u32 most, float grad_factor, ClassSums& sums) {
    constexpr u32 SCALARS = BETA_2 ? HEAD_SCALARS : HEAD_SCALARS_ANY_BETA, PIECES = SCALARS / VECTOR;
    constexpr bool TWICE = BETA_2 && ALWAYS_TWICE;
    const u64 record = record_of(level, anchor);
    const u32 code = a.codes[record];
    float weight = label_weight_of(level, anchor.number);
    if (code == MASKED_ANCHOR) weight = 0.0f;
    const bool masked = weight == 0.0f;
    const float scale = masked ? 0.0f : grad_factor * weight;
    const u32 ahead = code - 1 - channel;
    const bool has_label = !masked && code != PLAIN && ahead % step == 0 && ahead / step < count;
    const u32 label = has_label ? ahead / step : NEVER;
    const u64 start = place(level.cls_strides, anchor, channel), distance = step * level.cls_strides.channel;
    const Scalar* from = level.cls + start;
    Scalar* to = GRADIENT ? level.grad_cls + start : nullptr;
    bool finite = true;
#pragma unroll 1
    for (u32 i = 0; i < most; i += SCALARS) {
        u32 x[SCALARS];
        Words words[PIECES];
        const u32 left = count > i ? count - i : 0;
        const bool whole = __all_sync(ALL_LANES, left >= SCALARS);
        if (whole) {
#pragma unroll
            for (u32 j = 0; j < SCALARS; ++j) x[j] = load_bits(from + distance * j);
        } else {
#pragma unroll
            for (u32 j = 0; j < SCALARS; ++j) {
                x[j] = masked_bits();
                if (j < left) x[j] = load_bits(from + distance * j);
            }
        }
#pragma unroll
        for (u32 p = 0; p < PIECES; ++p) words[p] = joined(x + p * VECTOR);
        if (__any_sync(ALL_LANES, masked || label - i < SCALARS)) {
            rare();
#pragma unroll
            for (u32 p = 0; p < PIECES; ++p) {
                if (masked) words[p] = masked_words();
                mask_out(words[p], label - i - p * VECTOR);
            }
        }
#pragma unroll
        for (u32 p = 0; p < PIECES; ++p) {
            const float loss = background_vector<GRADIENT, BETA_2, TWICE>(words[p], a.beta, scale);
            if (!idle) sums.loss = fma((double)loss * (TWICE ? 0.5 : 1.0), (double)weight, sums.loss);
        }
        if (GRADIENT) {
#pragma unroll
            for (u32 p = 0; p < PIECES; ++p) {
                if (a.found_inf) finite &= is_finite(words[p]);
                taken_apart(words[p], x + p * VECTOR);
            }
            if (whole) {
#pragma unroll
                for (u32 j = 0; j < SCALARS; ++j)
                    if (!idle) store_bits(to + distance * j, x[j]);
            } else {
#pragma unroll
                for (u32 j = 0; j < SCALARS; ++j)
                    if (!idle && j < left) store_bits(to + distance * j, x[j]);
            }
            to += distance * SCALARS;
        }
        from += distance * SCALARS;
    }
    sums.finite &= finite;
    if (has_label && !idle) {
        rare();
        sums.loss += labelled<GRADIENT, BETA_2>(a, level, anchor, code - 1, weight, grad_factor, sums.finite);
    }
}

// A warp's share one by one: one anchor of the lane after the other. All channels of an anchor are next to each other
// here, unless lanes share them.
template <bool GRADIENT, bool BETA_2>
DEVICE void class_anchors(const HeadArgs& a, const HeadLevel& level, u32 tile, float grad_factor, ClassSums& sums) {
    const ClassShare share(a, level, tile, thread_anew());
    const u32 way = level.cls_way;
    const bool by_channel = level.cls_by_channel, shared = by_channel && way == CLS_SCALARS;
    const u32 anchors = way == CLS_SCALARS ? 1 : by_channel ? level.cls_span : way == CLS_POSITIONS ? VECTOR : VECTOR / 2;
    const u32 step = shared ? level.cls_units : 1;
    u32 count = by_channel ? VECTOR : share.count;
    if (shared) count = (a.classes + step - 1 - share.channel) / step;
    const u32 most = shared ? (a.classes + step - 1) / step : by_channel ? VECTOR : level.cls_span;
#pragma unroll 1
    for (u32 k = 0; k < anchors; ++k) {
        const bool idle = share.idle || (by_channel && k >= share.count);
        const Anchor anchor = share.anchor(level, idle ? 0 : k);
        class_scalars<GRADIENT, BETA_2>(a, level, idle, anchor, share.channel, step, count, most, grad_factor, sums);
    }
}

// The tiles of a level that fall to this block.
template <bool GRADIENT, bool BETA_2>
DEVICE void head_classes(const HeadArgs& a, const HeadLevel& level, float grad_factor, ClassSums& sums) {
    const u32 way = level.cls_way;
    u32 tile = (blockIdx.x - level.cls_block) * HEAD_WARPS + threadIdx.x / 32;
    for (; whole_warp(tile < level.cls_tiles); tile += (level.box_block - level.cls_block) * HEAD_WARPS) {
        bool done = false;
        if (way == CLS_POSITIONS) done = class_vectors<GRADIENT, BETA_2, VECTOR>(a, level, tile, grad_factor, sums);
        else if (way == CLS_CHANNELS) done = class_vectors<GRADIENT, BETA_2, 0>(a, level, tile, grad_factor, sums);
#ifndef STORAGE_F32
        else if (way == CLS_HALF_VECTORS)
            done = class_vectors<GRADIENT, BETA_2, VECTOR / 2>(a, level, tile, grad_factor, sums);
#endif
        if (!whole_warp(done)) class_anchors<GRADIENT, BETA_2>(a, level, tile, grad_factor, sums);
    }
}
