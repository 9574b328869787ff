// Quality Focal Loss, forward and forward with backward, in one pass over the logits.
//
// Naively it is `naive_qfl` in naive/naive.cu. What the kernels do differently:
//  1. The label stays out of the loop. A vector that holds the labelled column is rare (one row
//     in a hundred is positive, and one of its columns): there the element is masked out of the
//     vector and computed on its own. So the sum never has to take back what it has added.
//  2. The gradient is scaled in float before it is rounded to the storage type.
//  3. `linear` gives each thread one column for good, so that its loop has no division; it
//     needs whole 16-byte vectors in a row. `rows` takes any shape and any address, and gives
//     row sums; it is also for a target for every element.
//  4. A warp whose logits are all at most -2 takes series that need one special function for an
//     element, not two, and fewer instructions. A detector's negatives begin at -4.6.
//  5. Binary cross entropy, which is beta 0, has a way of its own in the loops for any beta: no power, and fewer
//     instructions than beta 2.
//  6. Weights of classes and of elements, alpha and probabilities are for `rows` at any beta, one element after the
//     other: whatever is asked for, is asked of each.
#pragma once
#include "background.cuh"
#include "call.cuh"

constexpr int QFL_BLOCK = 320;         // 16 rows of 80 f32 or 32 of 80 f16; twin in src/qfl/launch.rs
constexpr int QFL_ROWS_BLOCK = 256;    // of `rows` and `dense`; twin in src/qfl/launch.rs
constexpr int QFL_UNROLL = 4;          // rows a thread of `linear` has in flight
constexpr int QFL_UNROLL_ANY_BETA = 2; // the same where beta is not 2

// Field by field the same as `QflArgs` in src/qfl/launch.rs.
struct QflArgs {
    Scaling scaling;
    const Scalar* logits;    // [rows, classes]
    const void* labels;      // [rows], i64 or i32; null for dense targets
    const float* quality;    // [rows]
    const float* target;     // [rows, classes] for dense targets
    const float* class_weights;    // [classes], or null
    const float* element_weights;  // [rows, classes], or null
    Scalar* grad;            // [rows, classes]
    u64 rows;
    long long ignore_label;
    u32 classes;
    float beta;
    u32 labels_are_i64;
    u32 background_first;    // 0 is background and 1..=classes are the classes
    u32 has_ignore_label;
    u32 activated;           // the logits are probabilities
    u32 has_alpha;           // elements are multiplied by y * alpha + (1 - y) * (1 - alpha)
    float alpha;
    // Of `linear`, whose blocks have so many rows at once (a step), how many steps a block has, and how many blocks,
    // the first ones, have one more.
    u32 block_steps, longer_blocks;
    u32 whole_steps;         // how many steps have all their rows
    u32 general;             // elements have weights, or alpha, or are probabilities
};

constexpr u32 NO_COLUMN = 0xffffffffu;

// What the inputs say of a row.
struct QflTarget {
    u32 column;     // the labelled one, or NO_COLUMN
    float quality;  // of that column, in [0, 1]
    float weight;   // 0: no loss and no gradient, whatever the logits hold
};

// `reports`: this thread is the one of its row that writes to the status. Weight and label are asked for
// together: whoever waits for a target waits for memory once.
DEVICE QflTarget read_qfl_target(const QflArgs& a, u64 row, bool reports) {
    const float weight = weight_of(a.scaling, row);
    const long long label = a.labels_are_i64 ? ((const long long*)a.labels)[row]
                                             : (long long)((const int*)a.labels)[row];
    QflTarget target = {NO_COLUMN, 0.0f, weight};
    const bool ignored = a.has_ignore_label && label == a.ignore_label;
    if (weight == 0.0f || ignored) {
        target.weight = 0.0f;
        return target;
    }
    u64 column = (u64)label - a.background_first;  // wraps for labels below 0
    Status* status = reports ? a.scaling.status : nullptr;
    if (column < a.classes) {
        float quality = a.quality[row];
        if (quality != quality) {
            target.weight = 0.0f;
            if (status) report(&status->bad_qualities, status, row);
        } else {
            target.column = (u32)column;
            target.quality = __saturatef(quality);
        }
    } else if (a.background_first ? label != 0 : label > (long long)a.classes) {
        target.weight = 0.0f;
        if (status) report(&status->bad_labels, status, row);
    }
    return target;
}

// The labelled element of a row, at `offset` from the first logit: its loss. Its gradient takes
// the place of the one that was stored for a masked logit.
template <bool GRADIENT, bool BETA_2>
DEVICE float labelled_loss(const QflArgs& a, u64 offset, float y, float scale, bool& finite) {
    LossGrad element = soft<BETA_2>(load(a.logits + offset), y, a.beta, scale);
    if (GRADIENT) {
        store(a.grad + offset, element.grad);
        finite &= is_finite(a.grad + offset);
    }
    return element.loss;
}

// An element at any target and any beta, with all that a call may ask for: its loss; its gradient is stored. ALL: where
// nothing goes through vectors, background at a beta that is neither 2 nor 0 is worth the text of float, too.
template <bool GRADIENT, bool ALL>
DEVICE float general_loss(const QflArgs& a, u64 row_start, u32 column, float y, float scale, bool& finite) {
    const u64 offset = row_start + column;
    float factor = 1.0f;
    if (a.class_weights) factor = a.class_weights[column];
    if (a.element_weights) factor *= a.element_weights[offset];
    if (a.has_alpha) factor *= fmaf(y, a.alpha, (1.0f - y) * (1.0f - a.alpha));
    LossGrad element = {0.0f, 0.0f};
    if (factor != 0.0f) {
        const float x = load(a.logits + offset);
        scale *= factor;
        if (!a.activated && (a.beta == 0.0f || a.beta == 2.0f))
            element = bce_or_qfl_soft(x, y, a.beta == 0.0f, scale);
        else if (ALL && !a.activated && y == 0.0f)
            element = qfl_background_any_beta(x, a.beta, scale);
        else
            element = qfl_soft_any_beta(x, y, a.beta, scale, a.activated);
    }
    if (GRADIENT) {
        store(a.grad + offset, element.grad);
        finite &= is_finite(a.grad + offset);
    }
    return element.loss * factor;
}

// The same for a background element.
template <bool GRADIENT, bool BETA_2>
DEVICE float background_loss(const QflArgs& a, u64 offset, float scale, bool& finite) {
    LossGrad element = background<GRADIENT, BETA_2, false>(load(a.logits + offset), a.beta, scale);
    if (GRADIENT) {
        store(a.grad + offset, element.grad);
        finite &= is_finite(a.grad + offset);
    }
    return element.loss;
}
