// Phase two of the head loss: all class logits, all gradients, and the three losses of each level.
#pragma once
#include "head_boxes.cuh"
#include "head_classes.cuh"

template <bool GRADIENT, bool BETA_2>
DEVICE void head_losses(const HeadArgs& a) {
    const u32 l = level_of_block(a, [&](u32 i) { return a.levels[i].cls_block; });
    const HeadLevel& level = a.levels[l];
    ClassSums sums = {0.0, true};
    if (blockIdx.x < level.box_block) {
        head_classes<GRADIENT, BETA_2>(a, level, (float)head_factors(a, l).grad[0], sums);
    } else if (GRADIENT) {
        const u32 end = l + 1 < a.level_count ? a.levels[l + 1].cls_block : gridDim.x;
        head_boxes(a, level, end - level.box_block, head_factors(a, l), sums.finite);
    }
    if (GRADIENT && !sums.finite && a.found_inf) *a.found_inf = 1.0f;  // all who write it write the same
    if (GRADIENT && !a.losses) return;
    const double sum = block_sum<HEAD_BLOCK>(sums.loss);
    if (threadIdx.x == 0) a.partials[blockIdx.x] = sum;
    if (!is_last_block(&a.tickets[1])) return;
    const HeadFactors factors = head_factors(a, 0);  // once more: few registers are free in between
#pragma unroll 1
    for (u32 i = 0; i < a.level_count; ++i) {
        const double total = sum_of_blocks(a.partials, a.levels[i].cls_block, a.levels[i].box_block);
        if (threadIdx.x < 3) {
            const double share = threadIdx.x == 0 ? total : a.level_sums[3 * i + threadIdx.x];
            const double factor = threadIdx.x == 0 ? factors.loss[0] : threadIdx.x == 1 ? factors.loss[1] : factors.loss[2];
            a.losses[3 * i + threadIdx.x] = (float)(share * factor);
        }
    }
}
