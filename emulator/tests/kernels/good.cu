// Kernels without a fault.
#include "reduce.cuh"
#include "storage.cuh"

constexpr int BLOCK = 128;

// total[0] = the sum of x[0..n], in a fixed order, whichever block finishes last.
struct SumArgs {
    const Scalar* x;
    Scratch* scratch;
    float* total;
    u32 n;
};
KERNEL(sum, BLOCK, 2)(const SumArgs a) {
    double part = 0;
    for (u32 i = blockIdx.x * BLOCK + threadIdx.x; i < a.n; i += gridDim.x * BLOCK)
        part += (double)load(a.x + i);
    double total;
    if (grid_sum<BLOCK>(part, a.scratch, total)) a.total[0] = (float)total;
}

// x[i] *= factor, 16 bytes at a time.
KERNEL(scale, BLOCK, 1)(Scalar* x, float factor, u32 vectors) {
    u32 i = blockIdx.x * BLOCK + threadIdx.x;
    if (i >= vectors) return;
    float values[VECTOR];
    unpack(load_words(x + i * VECTOR), values);
    for (int k = 0; k < VECTOR; ++k) values[k] *= factor;
    store_words(x + i * VECTOR, pack(values));
}

// One word for everything that the prelude has: what lane 5 of the second warp sees.
KERNEL(warp_functions, 64, 1)(u32* out) {
    u32 lane = threadIdx.x % 32, x = threadIdx.x * 3;
    u32 seen[12];
    seen[0] = __shfl_sync(ALL_LANES, x, 7);
    seen[1] = __shfl_sync(ALL_LANES, x, 2, 8);
    seen[2] = __shfl_xor_sync(ALL_LANES, x, 16);
    seen[3] = __shfl_up_sync(ALL_LANES, x, 2);
    seen[4] = __shfl_up_sync(ALL_LANES, x, 6, 8);
    seen[5] = __shfl_down_sync(ALL_LANES, x, 2);
    seen[6] = __shfl_down_sync(ALL_LANES, x, 4, 8);
    seen[7] = __ballot_sync(ALL_LANES, lane % 3 == 0);
    seen[8] = (u32)__any_sync(ALL_LANES, lane == 9) + 2 * (u32)__all_sync(ALL_LANES, lane < 31);
    seen[9] = (u32)__syncthreads_count(threadIdx.x % 5 == 0);
    seen[10] = (u32)__syncthreads_or(threadIdx.x == 63) + 2 * (u32)__syncthreads_and(threadIdx.x > 0);
    double wide = __shfl_xor_sync(ALL_LANES, (double)lane, 1);
    seen[11] = (u32)wide;
    if (threadIdx.x == 37)
        for (int i = 0; i < 12; ++i) out[i] = seen[i];
}

// Every thread counts itself; some leave before the barrier, which does not count them then.
KERNEL(count, 96, 1)(u32* out, u64* least) {
    atomicAdd(&out[0], 1u);
    atomicMax(&out[1], blockIdx.x * blockDim.x + threadIdx.x);
    atomicMin(least, (u64)threadIdx.x + 7);
    atomicInc(&out[2], 99u);
    if (threadIdx.x >= 64) return;
    __syncthreads();
    atomicAdd(&out[3], 1u);
    SHARED(u32, word, 3);
    if (threadIdx.x == 0) word[2] = 5;
    __syncthreads();
    if (threadIdx.x == 63) atomicCAS(&out[4], 0u, word[2]);
}

// Where the block is, for a grid of more than one dimension.
KERNEL(indices, 32, 1)(u32* out) {
    u32 block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    out[block * blockDim.x + threadIdx.x] = block * 1000 + threadIdx.x;
}
