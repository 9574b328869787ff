// What the calls of all operations have in common. The Rust twins, field by field, are in
// src/cuda/args.rs.
#pragma once
#include "reduce.cuh"

// What was wrong with the inputs. Owned by the caller, who zeroes it.
struct Status {
    u32 bad_labels, bad_qualities, out_of_range_targets, unused;
    u64 not_first_bad_row;  // its complement, so that 0 means none
    u32 assignment[4];      // of an assignment: bad boxes, bad labels, bad images, boxes without an anchor
    u64 not_first_boxes[4]; // the first of each, likewise
};

DEVICE void report(u32* counter, Status* status, u64 row) {
    count_up(counter);
    raise_to(&status->not_first_bad_row, ~row);
}

// How the loss is reduced and its gradient scaled. Every pointer may be null.
struct Scaling {
    const float* weight;      // [rows]
    const float* upstream;    // [rows]: gradient with respect to loss[row]; null: ones
    const float* avg_factor;  // device scalar; null: the host has divided loss_factor
    const float* grad_scale;  // device scalar; null: the host has multiplied grad_factor
    float* loss;              // [1], or [rows] if per_row
    float* found_inf;         // [1]: becomes 1 if a stored gradient is not finite
    Status* status;
    Scratch* scratch;
    float loss_factor;        // of the loss: its weight, over the normaliser
    float grad_factor;        // of the gradient: the same, times the gradient's scale
    float avg_epsilon;        // normaliser = max(avg_factor + avg_epsilon, avg_minimum)
    float avg_minimum;
    u32 per_row;              // reduction `none`
    u32 lanes;                // lanes of a warp that share a row: 1, 2, 4, ... 32
};

DEVICE float normalised(const Scaling& s, float factor) {
    float normaliser = 1.0f;
    if (s.avg_factor) {
        normaliser = *s.avg_factor + s.avg_epsilon;
        normaliser = normaliser < s.avg_minimum ? s.avg_minimum : normaliser;
    }
    const float quotient = divide(factor, normaliser);
    return s.avg_factor ? quotient : factor;
}

// What the loss and the gradient are multiplied by. Apart, for the first is wanted at the end, and in no register
// before.
DEVICE float loss_factor_of(const Scaling& s) { return normalised(s, s.loss_factor); }
DEVICE float grad_factor_of(const Scaling& s) {
    const float factor = normalised(s, s.grad_factor);
    return s.grad_scale ? factor * *s.grad_scale : factor;
}

DEVICE float weight_of(const Scaling& s, u64 row) { return s.weight ? s.weight[row] : 1.0f; }
DEVICE float upstream_of(const Scaling& s, u64 row) { return s.upstream ? s.upstream[row] : 1.0f; }

// The blocks that a loss has for itself: all of the grid. Those of a kernel that does two things have
// a type of their own, with the same members.
struct WholeGrid {
    static constexpr bool MAY_BE_PER_ROW = true;  // whether losses may go unreduced

    DEVICE u32 index() const { return blockIdx.x; }
    DEVICE u32 count() const { return gridDim.x; }

    // The end of a loss, called by every thread with its share of the sum of weighted losses (not yet
    // times the factor), and with whether the gradients it stored were finite.
    template <int BLOCK>
    DEVICE void finish(const Scaling& s, u64 rows, double sum, bool finite) const {
        if (!finite && s.found_inf) *s.found_inf = 1.0f;  // all who write it write the same
        double total;
        if (s.loss && !s.per_row && grid_sum<BLOCK>(sum, s.scratch, total))
            *s.loss = rows == 0 ? 0.0f : (float)(total * (double)loss_factor_of(s));
    }
};
