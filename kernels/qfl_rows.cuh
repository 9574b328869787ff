// QFL of any rows: see qfl.cuh.
#pragma once
#include "qfl.cuh"
#include "rows.cuh"

// Any reduction, shape and address, with labels or (`dense`) a target for every element. `scaling.lanes` lanes share a
// row. What `a.general` says of elements, none of which goes through vectors then, is for any beta alone.
template <bool GRADIENT, bool BETA_2, class Blocks = WholeGrid>
DEVICE void qfl_rows(const QflArgs& a, const bool dense, const Blocks& blocks = Blocks()) {
    constexpr bool TWICE = BETA_2 && ALWAYS_TWICE;
    const u32 lanes = a.scaling.lanes, lane = threadIdx.x % lanes, rows_per_block = QFL_ROWS_BLOCK / lanes;
    const float grad_factor = grad_factor_of(a.scaling);
    const bool watched = a.scaling.found_inf != nullptr, general = !BETA_2 && a.general, bce = !BETA_2 && a.beta == 0.0f;
    double sum = 0.0;
    bool finite = true;
    for (u64 base = (u64)blocks.index() * rows_per_block; base < a.rows; base += (u64)blocks.count() * rows_per_block) {
        const u64 row = base + threadIdx.x / lanes, start = row * a.classes;
        const bool inside = row < a.rows;
        Scalar* grad = GRADIENT ? a.grad + start : nullptr;
        QflTarget target = {NO_COLUMN, 0.0f, 0.0f};
        if (inside && dense) target.weight = weight_of(a.scaling, row);
        if (inside && !dense) target = read_qfl_target(a, row, lane == 0);
        double loss = 0.0;
        bool row_finite = true, bad_target = false, masked = false;
        if (target.weight != 0.0f) {
            const float scale = grad_factor * target.weight * upstream_of(a.scaling, row);
            if (!general) {
                row_finite = for_row<GRADIENT>(a.logits + start, grad, a.classes, lane, lanes, [&](u32 i, auto& x) {
                    constexpr int COUNT = sizeof(x) / sizeof(float);
                    float y[COUNT], piece = 0.0f;
                    if (dense) load_floats(a.target + start + i, y);
                    if (!dense && __builtin_expect(target.column - i < COUNT, 0)) {
#pragma unroll
                        for (int k = 0; k < COUNT; ++k) x[k] = i + k == target.column ? MASKED_LOGIT : x[k];
                        masked = true;
                    }
                    if (COUNT > 1 && bce) {  // what comes one by one goes the way of any beta, for want of text
#pragma unroll
                        for (int k = 0; k < COUNT; ++k) {
                            if (dense) bad_target |= y[k] != y[k];
                            const LossGrad element = bce_soft(x[k], dense ? __saturatef(y[k]) : 0.0f, scale);
                            piece += element.loss;
                            x[k] = element.grad;
                        }
                        loss += (double)piece;
                        return;
                    }
#pragma unroll
                    for (int k = 0; k < COUNT; ++k) {
                        LossGrad element;
                        if (dense) bad_target |= y[k] != y[k];
                        if (dense && BETA_2) {
                            element = qfl_soft(x[k], __saturatef(y[k]), scale);
                        } else {
                            if (dense && y[k] > 0.0f) {
                                x[k] = MASKED_LOGIT;
                                masked = true;
                            }
                            element = background<GRADIENT, BETA_2, TWICE>(x[k], a.beta, scale);
                        }
                        piece += element.loss;
                        x[k] = element.grad;
                    }
                    loss += (double)piece;
                }, watched);
                if (!dense && TWICE) loss *= 0.5;
            }
            if (BETA_2 && masked) {
                loss += (double)labelled_loss<GRADIENT, BETA_2>(a, start + target.column, target.quality, scale, row_finite);
            } else if (general || masked) {
                for_columns(a.logits + start, a.classes, lane, lanes, !(dense && bce), general, [&](u32 i) {
                    const float y = dense ? a.target[start + i] : i == target.column ? target.quality : 0.0f;
                    bad_target |= y != y;
                    if (general || y > 0.0f || i == target.column)
                        loss += (double)general_loss<GRADIENT, false>(a, start, i, __saturatef(y), scale, row_finite);
                });
            }
        } else if (GRADIENT && inside) {
            zero_row(a.logits + start, grad, a.classes, lane, lanes);
        }
        if (general) __syncwarp();  // what is zeroed here other lanes have written
        if (dense && lanes_max((u32)bad_target, lanes)) {  // one NaN makes the row invalid
            if (GRADIENT) zero_row(a.logits + start, grad, a.classes, lane, lanes);
            if (lane == 0 && a.scaling.status)
                report(&a.scaling.status->bad_qualities, a.scaling.status, row);
            row_finite = true;
            target.weight = 0.0f;
        }
        finite &= row_finite;
        double row_loss = lanes_sum(loss, lanes);
        row_loss = target.weight == 0.0f ? 0.0 : row_loss * (double)target.weight;
        if (lane == 0 && inside) {
            sum += row_loss;
            if (Blocks::MAY_BE_PER_ROW && a.scaling.per_row && a.scaling.loss)
                a.scaling.loss[row] = (float)(row_loss * (double)loss_factor_of(a.scaling));
        }
    }
    blocks.template finish<QFL_ROWS_BLOCK>(a.scaling, a.rows, sum, finite);
}
