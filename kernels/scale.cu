// A gradient times a number that is on the device: what a backward pass has left to do where the loss and
// its gradient came in one pass. Mostly the number is 1, and there is nothing to do.
#include "storage.cuh"

constexpr int BLOCK = 256;  // twin in src/scale/launch.rs
constexpr int UNROLL = 4;   // vectors that a thread has on their way

// Field by field the same as `ScaleArgs` in src/scale/launch.rs.
struct ScaleArgs {
    Scalar* grad;        // [count]
    const float* scale;  // [1]
    float* found_inf;    // [1], or null
    u64 count;
    u64 vectors;         // of 16 bytes, from the first multiple of 16 on
};

KERNEL(scale, BLOCK, 4)(const ScaleArgs a) {
    const float scale = *a.scale;
    if (scale == 1.0f) return;
    const u32 past = (u32)(u64)a.grad & 15, head = past == 0 ? 0 : (16 - past) / (u32)sizeof(Scalar);
    const u64 first = (u64)blockIdx.x * BLOCK + threadIdx.x, threads = (u64)gridDim.x * BLOCK;
    char* const body = (char*)a.grad + (16 - past) % 16;
    bool finite = true;
    for (u64 base = first; base < a.vectors; base += UNROLL * threads) {
        Words words[UNROLL];
#pragma unroll
        for (int i = 0; i < UNROLL; ++i)
            if (base + i * threads < a.vectors) words[i] = load_words(body + (base + i * threads) * 16);
#pragma unroll
        for (int i = 0; i < UNROLL; ++i) {
            if (base + i * threads >= a.vectors) break;
            float x[VECTOR];
            unpack(words[i], x);
            for (float& value : x) value *= scale;
            words[i] = pack(x);
            finite &= is_finite(words[i]);
            store_words(body + (base + i * threads) * 16, words[i]);
        }
    }
    // What is before and behind.
    for (u64 k = first; k < a.count - a.vectors * VECTOR; k += threads) {
        Scalar* p = a.grad + (k < head ? k : k + a.vectors * VECTOR);
        store(p, load(p) * scale);
        finite &= is_finite(p);
    }
    if (!finite && a.found_inf) *a.found_inf = 1.0f;
}
