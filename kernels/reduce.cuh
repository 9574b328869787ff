// Sums in a fixed order: the same launch gives the same bits every time.
#pragma once
#include "ptx.cuh"

constexpr u32 ALL_LANES = 0xffffffffu;

// The sum over groups of `width` neighbouring lanes (a power of two), in every lane of the
// group. All 32 lanes must call it. A loop that stays one: shuffles of double take nine lines of PTX
// each, and most kernels have four such sums.
template <class T>
DEVICE T lanes_sum(T x, int width) {
#pragma unroll 1
    for (int step = width / 2; step > 0; step /= 2) x += __shfl_xor_sync(ALL_LANES, x, step);
    return x;
}

template <class T>
DEVICE T lanes_max(T x, int width) {
#pragma unroll 1
    for (int step = width / 2; step > 0; step /= 2) {
        T other = __shfl_xor_sync(ALL_LANES, x, step);
        x = other > x ? other : x;
    }
    return x;
}

// The sum over a block, in every thread. Every thread of the block must call it; it costs
// 8 * BLOCK / 32 bytes of shared memory. BLOCK is a multiple of 32, at most 1024. All warps do
// the second step, although one would do: a warp that has not branched needs no provision for
// shuffles among the rest of a divided one.
template <int BLOCK>
DEVICE double block_sum(double x) {
    SHARED(double, warp_sums, BLOCK / 32);
    const u32 lane = threadIdx.x % 32;
    x = lanes_sum(x, 32);
    if (lane == 0) warp_sums[threadIdx.x / 32] = x;
    __syncthreads();
    x = lane < BLOCK / 32 ? warp_sums[lane] : 0.0;
    __syncthreads();  // warp_sums may be used again
    return lanes_sum(x, 32);
}

// Whether a condition that is the same in all lanes holds. The compiler sees that a branch on it does not divide
// the warp, so that shuffles and votes behind it need no provision for that.
DEVICE bool whole_warp(bool condition) { return __any_sync(ALL_LANES, condition); }

// True in all threads of the block that takes the last ticket, which sees what all others have stored.
DEVICE bool is_last_block(u32* ticket) {
    SHARED(u32, last, 1);
    __syncthreads();
    if (threadIdx.x == 0) last[0] = take_ticket(ticket, gridDim.x - 1) == gridDim.x - 1;
    __syncthreads();
    return whole_warp(last[0] != 0);
}

// What a grid needs to add up its blocks: owned by the caller, zeroed once. `ticket` goes back
// to 0 at the end of each launch. One launch at a time may use it.
struct Scratch {
    u32 ticket;
    u32 unused;
    double partials[1];  // one per block
};

// The sum over the grid. True in thread 0 of the block that finishes last, and there alone
// `total` is set. Every thread of every block must call it. The order of the sum is the order
// of the blocks' indices, whichever block finishes last.
template <int BLOCK>
DEVICE bool grid_sum(double x, Scratch* scratch, double& total) {
    SHARED(u32, is_last, 1);
    x = block_sum<BLOCK>(x);
    if (threadIdx.x == 0) {
        scratch->partials[blockIdx.x] = x;
        is_last[0] = take_ticket(&scratch->ticket, gridDim.x - 1) == gridDim.x - 1;
    }
    __syncthreads();
    x = 0;
    const u32 count = is_last[0] ? gridDim.x : 0;
    for (u32 base = 0; base < gridDim.x; base += BLOCK) {  // all blocks, for the reason above
        const u32 i = base + threadIdx.x;
        if (i < count) x += load_shared_by_blocks(&scratch->partials[i]);
    }
    total = block_sum<BLOCK>(x);
    return count != 0 && threadIdx.x == 0;
}
