// Kernels with one fault each.
#include "reduce.cuh"
#include "storage.cuh"

constexpr int BLOCK = 128;

// ---- Order

// The sum of the blocks' indices + 1, but a block that comes last may not see all partials: they
// are stored after the ticket is taken.
KERNEL(late_partial, BLOCK, 1)(Scratch* scratch, double* total) {
    SHARED(u32, is_last, 1);
    if (threadIdx.x == 0) {
        is_last[0] = take_ticket(&scratch->ticket, gridDim.x - 1) == gridDim.x - 1;
        scratch->partials[blockIdx.x] = blockIdx.x + 1;
    }
    __syncthreads();
    if (!is_last[0]) return;
    double x = 0;
    for (u32 i = threadIdx.x; i < gridDim.x; i += BLOCK)
        x += load_shared_by_blocks(&scratch->partials[i]);
    x = block_sum<BLOCK>(x);
    if (threadIdx.x == 0) *total = x;
}

// No barrier between the writing and the reading of the warps' sums.
KERNEL(no_barrier, BLOCK, 1)(double* total) {
    SHARED(double, warp_sums, BLOCK / 32);
    double x = lanes_sum(1.0, 32);
    if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = x;
    if (threadIdx.x == 0) total[blockIdx.x] = warp_sums[0] + warp_sums[1] + warp_sums[2] + warp_sums[3];
}

// No barrier before the words are used again.
KERNEL(no_second_barrier, BLOCK, 1)(u32* wrong) {
    SHARED(u32, word, 1);
    for (u32 round = 0; round < 4; ++round) {
        if (threadIdx.x == 0) word[0] = round;
        __syncthreads();
        if (word[0] != round) atomicAdd(wrong, 1u);
    }
}

// A lane reads what its neighbour writes, without __syncwarp.
KERNEL(no_warp_barrier, 32, 1)(u32* wrong) {
    SHARED(u32, words, 32);
    words[threadIdx.x] = threadIdx.x;
    u32 other = threadIdx.x ^ 1;
    if (words[other] != other) atomicAdd(wrong, 1u);
}

// ---- Memory

KERNEL(write_at, 32, 1)(float* x, long long index) {
    if (threadIdx.x == 17) x[index] = 1.0f;
}
KERNEL(read_at, 32, 1)(const float* x, long long index, float* out) {
    if (threadIdx.x == 17) out[0] = x[index];
}
KERNEL(vector_at, 32, 1)(const float* x, long long index, float* out) {
    if (threadIdx.x == 3) out[0] = (*(const float4*)(x + index)).y;
}
KERNEL(shared_index, 32, 1)(u32 index, u32* out) {
    SHARED(u32, words, 32);
    words[threadIdx.x] = 1;
    __syncwarp();
    out[threadIdx.x] = words[threadIdx.x + index];
}
KERNEL(shared_pointer, 32, 1)(u32 index) {
    SHARED(u32, words, 32);
    u32* p = words;
    p[threadIdx.x + index] = 1;
}
KERNEL(uninitialised, 32, 1)(double* out) {
    SHARED(double, words, 32);
    out[threadIdx.x] = words[threadIdx.x];
}

// ---- Control

KERNEL(half_barrier, 64, 1)(u32 lanes) {
    if (threadIdx.x % 32 < lanes) __syncthreads();
    else __syncwarp();
}
KERNEL(two_barriers, 64, 1)() {
    if (threadIdx.x < 32) {
        __syncthreads();
    } else {
        __syncthreads();
    }
}
KERNEL(divergent_shuffle, 32, 1)(u32* out) {
    u32 x = threadIdx.x;
    if (threadIdx.x < 16) x = __shfl_xor_sync(ALL_LANES, x, 1);
    else x = __shfl_xor_sync(ALL_LANES, x, 2);
    out[threadIdx.x] = x;
}
KERNEL(exited_lanes, 32, 1)(u32* out) {
    if (threadIdx.x >= 20) return;
    out[threadIdx.x] = __shfl_xor_sync(ALL_LANES, threadIdx.x, 1);
}
KERNEL(small_mask, 32, 1)(u32* out) {
    out[threadIdx.x] = __shfl_xor_sync(0xffffu, threadIdx.x, 1);
}
KERNEL(divide_by_zero, 32, 1)(int* x) { x[threadIdx.x] = 7 / x[threadIdx.x]; }
KERNEL(asserts, 32, 1)(u32 most) { assert(threadIdx.x < most); }

DEVICE u32 deep(volatile u32* x, u32 n) {
    volatile u32 local[64];
    local[n % 64] = *x;
    return n == 0 ? local[0] : deep(x, n - 1) + local[n % 64];
}
KERNEL(recursion, 32, 1)(u32* x, u32 depth) { x[threadIdx.x] = deep(x, depth); }
