// QFL and DFL of one step in one launch, for small problems, where launches cost more than bytes:
// the first blocks do DFL, whose rows take longer to arrive, the others QFL. Both go by rows, in any
// shape and at any address; the last block to finish adds up both sums and their total.
#pragma once
#include "dfl.cuh"
#include "qfl.cuh"

constexpr int GFL_BLOCK = 256;  // twin in src/cuda/raw.rs
static_assert(GFL_BLOCK == QFL_ROWS_BLOCK && GFL_BLOCK == DFL_ROWS_BLOCK, "the rows of both");

// Field by field the same as `GflArgs` in src/cuda/raw.rs.
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

template <bool GRADIENT>
DEVICE void gfl(const GflArgs& a) {
    SHARED(u32, is_last, 1);
    const u32 dfl_blocks = a.dfl_blocks, qfl_blocks = gridDim.x - dfl_blocks;
    double sum = 0.0;
    if (blockIdx.x < dfl_blocks) {
        dfl_rows<GRADIENT>(a.dfl, SomeBlocks{0, dfl_blocks, &sum});
    } else {
        const SomeBlocks blocks = {dfl_blocks, qfl_blocks, &sum};
        const bool beta_2 = a.qfl.beta == 2.0f;
        if (a.qfl.target) {
            if (beta_2) qfl_rows<GRADIENT, true, true>(a.qfl, blocks);
            else qfl_rows<GRADIENT, true, false>(a.qfl, blocks);
        } else {
            if (beta_2) qfl_rows<GRADIENT, false, true>(a.qfl, blocks);
            else qfl_rows<GRADIENT, false, false>(a.qfl, blocks);
        }
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
        qfl = a.qfl.rows == 0 ? 0.0 : qfl * (double)factors(a.qfl.scaling).loss;
        dfl = a.dfl.rows == 0 ? 0.0 : dfl * (double)factors(a.dfl.scaling).loss;
        a.losses[0] = (float)qfl;
        a.losses[1] = (float)dfl;
        a.losses[2] = (float)(qfl + dfl);
    }
}
