// QFL and DFL of one step in one launch, for small problems, where launches cost more than bytes:
// the first blocks do DFL, whose rows take longer to arrive, the others QFL. Both go by rows, in any
// shape and at any address; the last block to finish adds up both sums and their total.
#pragma once
#include "dfl.cuh"
#include "qfl_rows.cuh"

constexpr int GFL_BLOCK = 256;  // twin in src/gfl/launch.rs
static_assert(GFL_BLOCK == QFL_ROWS_BLOCK && GFL_BLOCK == DFL_ROWS_BLOCK, "the rows of both");

// Field by field the same as `GflArgs` in src/gfl/launch.rs.
struct GflArgs {
    QflArgs qfl;     // their `loss` and `scratch` are not used
    DflArgs dfl;
    float* losses;   // [3]: QFL, DFL, their sum
    Scratch* scratch;
    u32 dfl_blocks;  // the first ones
    u32 unused;
};

// Some blocks of a grid, and what they leave of a loss.
struct SomeBlocks {
    static constexpr bool MAY_BE_PER_ROW = false;
    u32 first, total;
    double* sum;

    DEVICE u32 index() const { return blockIdx.x - first; }
    DEVICE u32 count() const { return total; }

    template <int BLOCK>
    DEVICE void finish(const Scaling& s, u64, double x, bool finite) const {
        if (!finite && s.found_inf) *s.found_inf = 1.0f;
        *sum = x;
    }
};

// QFL at any beta, with labels or a target for every element and weights of elements, one element after the other: it
// is seldom asked for, and never of many rows here.
template <bool GRADIENT>
DEVICE void qfl_elements(const QflArgs& a, const SomeBlocks& blocks) {
    const u32 lanes = a.scaling.lanes, lane = threadIdx.x % lanes, rows_per_block = GFL_BLOCK / lanes;
    const float grad_factor = grad_factor_of(a.scaling);
    const bool dense = a.target != nullptr;
    double sum = 0.0;
    bool finite = true;
    for (u64 base = (u64)blocks.index() * rows_per_block; base < a.rows; base += (u64)blocks.count() * rows_per_block) {
        const u64 row = base + threadIdx.x / lanes, start = row * a.classes;
        const u32 classes = row < a.rows ? a.classes : 0;
        QflTarget target = {NO_COLUMN, 0.0f, 0.0f};
        if (dense) {
            bool bad = false;  // one NaN makes the row invalid
            if (classes) target.weight = weight_of(a.scaling, row);
#pragma unroll 1
            for (u32 i = target.weight == 0.0f ? classes : lane; i < classes; i += lanes) {
                const float y = a.target[start + i];
                bad |= y != y;
            }
            if (lanes_max((u32)bad, lanes)) {
                if (lane == 0 && a.scaling.status) report(&a.scaling.status->bad_qualities, a.scaling.status, row);
                target.weight = 0.0f;
            }
        } else if (classes) {
            target = read_qfl_target(a, row, lane == 0);
        }
        const bool masked = target.weight == 0.0f;
        const float scale = masked ? 0.0f : grad_factor * target.weight * upstream_of(a.scaling, row);
        double loss = 0.0;
#pragma unroll 1
        for (u32 i = lane; i < classes; i += lanes) {
            if (!masked) {
                const float y = dense ? __saturatef(a.target[start + i]) : i == target.column ? target.quality : 0.0f;
                loss += (double)general_loss<GRADIENT, true>(a, start, i, y, scale, finite);
            } else if (GRADIENT) {
                store(a.grad + start + i, 0.0f);
            }
        }
        if (!masked) sum = fma(loss, (double)target.weight, sum);
    }
    blocks.finish<GFL_BLOCK>(a.scaling, a.rows, sum, finite);
}

template <bool GRADIENT>
DEVICE void gfl(const GflArgs& a) {
    SHARED(u32, is_last, 1);
    const u32 dfl_blocks = a.dfl_blocks, qfl_blocks = gridDim.x - dfl_blocks;
    double sum = 0.0;
    if (blockIdx.x < dfl_blocks) {
        dfl_rows<GRADIENT>(a.dfl, SomeBlocks{0, dfl_blocks, &sum});
    } else {
        const SomeBlocks blocks = {dfl_blocks, qfl_blocks, &sum};
        if (a.qfl.beta != 2.0f || a.qfl.general) qfl_elements<GRADIENT>(a.qfl, blocks);
        else if (a.qfl.target) qfl_rows<GRADIENT, true>(a.qfl, true, blocks);
        else qfl_rows<GRADIENT, true>(a.qfl, false, blocks);
    }
    sum = block_sum<GFL_BLOCK>(sum);
    if (threadIdx.x == 0) {
        a.scratch->partials[blockIdx.x] = sum;
        is_last[0] = take_ticket(&a.scratch->ticket, gridDim.x - 1) == gridDim.x - 1;
    }
    __syncthreads();
    // All blocks go on, for the reason that grid_sum has; what the others find is not used.
    const bool last = is_last[0] != 0;
    double qfl = 0.0, dfl = 0.0;
    for (u32 base = 0; base < gridDim.x; base += GFL_BLOCK) {
        const u32 i = base + threadIdx.x;
        const double partial = last && i < gridDim.x ? load_shared_by_blocks(&a.scratch->partials[i]) : 0.0;
        (i < dfl_blocks ? dfl : qfl) += partial;
    }
    qfl = block_sum<GFL_BLOCK>(qfl);
    dfl = block_sum<GFL_BLOCK>(dfl);
    if (last && threadIdx.x == 0) {
        qfl = a.qfl.rows == 0 ? 0.0 : qfl * (double)loss_factor_of(a.qfl.scaling);
        dfl = a.dfl.rows == 0 ? 0.0 : dfl * (double)loss_factor_of(a.dfl.scaling);
        a.losses[0] = (float)qfl;
        a.losses[1] = (float)dfl;
        a.losses[2] = (float)(qfl + dfl);
    }
}
