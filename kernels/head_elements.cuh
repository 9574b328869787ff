// Class logits one by one in phase two of the head loss: what a lane has of them, and what vectors leave to it.
#pragma once
#include "background.cuh"
#include "head.cuh"

constexpr u32 NEVER = 0x7fffffu;  // a step that there is not

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

// What a lane has one by one: of each of some anchors some channels, `step` apart. All channels of an anchor are next
// to each other, unless lanes share them. What is the same for all lanes is worked out from what is, so that the
// compiler sees it.
struct ClassPieces {
    u32 anchors, step, channels;  // the most of all lanes
    u32 own_anchors, own_channels;

    DEVICE ClassPieces(const HeadArgs& a, const HeadLevel& level, const ClassShare& share) {
        const u32 way = level.cls_way;
        const bool by_channel = level.cls_by_channel, single = way == CLS_SCALARS, shared = by_channel && single;
        anchors = single ? 1 : by_channel ? level.cls_span : way == CLS_POSITIONS ? VECTOR : VECTOR / 2;
        step = shared ? level.cls_units : 1;
        channels = shared ? (a.classes + step - 1) / step : by_channel ? VECTOR : level.cls_span;
        own_anchors = share.idle ? 0 : by_channel && !single ? share.count : anchors;
        own_channels = shared ? (a.classes + step - 1 - share.channel) / step : by_channel ? VECTOR : share.count;
    }

    // Which of these channels a code is the label of, or NEVER.
    DEVICE u32 label(u32 code, u32 channel) const {
        const u32 ahead = code - 1 - channel, number = ahead / step;
        const bool is_here = code != PLAIN && code != MASKED_ANCHOR && number * step == ahead && number < own_channels;
        return is_here ? number : NEVER;
    }
};

// An element on its own: its weighted loss. The gradient of a labelled one takes the place of the one that was stored
// for a masked logit.
template <bool GRADIENT, bool BETA_2>
DEVICE double single_element(const HeadArgs& a, const HeadLevel& level, const Anchor& anchor, u32 column, bool is_label,
                             float weight, float grad_factor, bool& finite) {
    Scalar* to = GRADIENT ? level.grad_cls + place(level, level.grad_cls_strides, anchor, column) : nullptr;
    float y = is_label ? a.qualities[record_of(level, anchor)] : 0.0f;
    if (!BETA_2) {
        const u64 element = (u64)anchor.number * a.classes + column;
        if (level.scores) y = fminf(fmaxf(level.scores[element], 0.0f), 1.0f);
        if (level.element_weights) weight *= level.element_weights[element];
        if (a.class_weights) weight *= a.class_weights[column];
        weight *= weight == 0.0f ? 0.0f : fmaf(y, a.alpha[1], (1.0f - y) * a.alpha[0]);
        if (weight == 0.0f) {
            if (GRADIENT) store(to, 0.0f);
            return 0.0;
        }
    }
    const LossGrad element = soft<BETA_2>(load(level.cls + place(level, level.cls_strides, anchor, column)), y, a.beta, grad_factor * weight);
    if (GRADIENT) {
        store(to, element.grad);
        finite &= is_finite(to);
    }
    return (double)element.loss * (double)weight;
}

// Of a piece of 16 bytes so many parts may be of different channels.
#ifdef STORAGE_F32
constexpr int PIECE_PARTS = 1;
#else
constexpr int PIECE_PARTS = 2;
#endif

// Adds the weighted loss of a vector of background logits at any beta, which their gradients replace: its parts have
// weights of their own. BCE: at beta 0.
template <bool GRADIENT, bool BCE>
DEVICE void add_weighted_vector(float& sum, Words& words, float beta, float scale, const float (&weights)[PIECE_PARTS]) {
    constexpr int EACH = VECTOR / PIECE_PARTS;
    float x[VECTOR];
    unpack(words, x);
#pragma unroll
    for (int part = 0; part < PIECE_PARTS; ++part) {
        const float own = scale * weights[part];
        float loss = 0.0f;
#pragma unroll
        for (int k = part * EACH; k < (part + 1) * EACH; ++k) {
            const LossGrad element = BCE ? bce_background(x[k], own) : qfl_background_any_beta(x[k], beta, own);
            loss = k == part * EACH ? element.loss : loss + element.loss;
            x[k] = element.grad;
        }
        sum = fmaf(weights[part], loss, sum);
    }
    if (GRADIENT) words = pack(x);
}

// A warp's share one by one: one anchor of the lane after the other.
template <bool GRADIENT, bool BETA_2>
DEVICE void class_anchors(const HeadArgs& a, const HeadLevel& level, u32 tile, float grad_factor, ClassSums& sums) {
    constexpr bool TWICE = BETA_2 && ALWAYS_TWICE;
    const ClassShare share(a, level, tile, thread_anew());
    const ClassPieces pieces(a, level, share);
    const u64 distance = pieces.step * level.cls_strides.channel;
    const u64 to_distance = pieces.step * level.grad_cls_strides.channel;
    float ones[PIECE_PARTS];
#pragma unroll
    for (float& one : ones) one = 1.0f;
    if (!BETA_2) grad_factor *= a.alpha[0];
    bool finite = true;
#pragma unroll 1
    for (u32 k = 0; k < pieces.anchors; ++k) {
        const bool idle = k >= pieces.own_anchors;
        const Anchor anchor = share.anchor(level, idle ? 0 : k);
        const u32 code = a.codes[record_of(level, anchor)];
        const float weight = code == MASKED_ANCHOR ? 0.0f : label_weight_of(level, anchor.number);
        const bool masked = weight == 0.0f;
        const float scale = masked ? 0.0f : grad_factor * weight;
        const u32 label = pieces.label(code, share.channel);
        const Scalar* from = level.cls + place(level, level.cls_strides, anchor, share.channel);
        Scalar* to = GRADIENT ? level.grad_cls + place(level, level.grad_cls_strides, anchor, share.channel) : nullptr;
#pragma unroll 1
        for (u32 i = 0; i < pieces.channels; i += VECTOR) {
            u32 x[VECTOR];
            const u32 left = pieces.own_channels > i ? pieces.own_channels - i : 0;
#pragma unroll
            for (u32 j = 0; j < VECTOR; ++j) {
                x[j] = masked_bits();
                if (j < left) x[j] = load_bits(from + distance * j);
            }
            Words words = masked ? masked_words() : joined(x);
            mask_out(words, label - i);
            float loss = 0.0f;
            if constexpr (BETA_2) loss = background_vector<GRADIENT, true, TWICE>(words, a.beta, scale);
            else add_weighted_vector<GRADIENT, false>(loss, words, a.beta, scale, ones);
            if (!idle) sums.loss = fma((double)loss * (!BETA_2 ? (double)a.alpha[0] : TWICE ? 0.5 : 1.0), (double)weight, sums.loss);
            if (GRADIENT) {
                if (a.found_inf) finite &= is_finite(words);
                taken_apart(words, x);
#pragma unroll
                for (u32 j = 0; j < VECTOR; ++j)
                    if (!idle && j < left) store_bits(to + to_distance * j, x[j]);
                to += to_distance * VECTOR;
            }
            from += distance * VECTOR;
        }
    }
    sums.finite &= finite;
}

// The labelled elements of a lane's share, or all of them: their gradients take the place of those that were stored
// for masked logits.
template <bool GRADIENT, bool BETA_2>
DEVICE void class_elements(const HeadArgs& a, const HeadLevel& level, u32 tile, float grad_factor, bool all,
                           ClassSums& sums) {
    const ClassShare share(a, level, tile, thread_anew());
    const ClassPieces pieces(a, level, share);
#pragma unroll 1
    for (u32 k = 0; k < pieces.own_anchors; ++k) {
        const Anchor anchor = share.anchor(level, k);
        const u32 code = a.codes[record_of(level, anchor)], label = pieces.label(code, share.channel);
        if (!all && label == NEVER) continue;
        const float weight = code == MASKED_ANCHOR ? 0.0f : label_weight_of(level, anchor.number);
        if (!all && weight == 0.0f) continue;
        const auto single = [&](u32 column, bool is_label) {
            sums.loss +=
                single_element<GRADIENT, BETA_2>(a, level, anchor, column, is_label, weight, grad_factor, sums.finite);
        };
        if constexpr (BETA_2) {
            single(code - 1, true);
        } else {
#pragma unroll 1
            for (u32 i = all ? 0 : label; i < (all ? pieces.own_channels : label + 1); ++i)
                single(share.channel + i * pieces.step, i == label);
        }
    }
}

// Whether elements are done one by one: they have targets or weights of their own, or weights of their classes that no
// vector has as one number; or alpha masks all but labels.
template <bool BETA_2>
DEVICE bool is_apart(const HeadArgs& a, const HeadLevel& level) {
    if (BETA_2) return false;
    const bool by_position = level.cls_way == CLS_POSITIONS || level.cls_way == CLS_HALF_VECTORS;
    return level.scores || level.element_weights || (a.class_weights && !by_position) || a.alpha[0] == 0.0f;
}
