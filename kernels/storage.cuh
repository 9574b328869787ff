// The storage type of logits and gradients. One of STORAGE_F32, STORAGE_F16 and STORAGE_BF16 is
// defined from outside; every kernel is compiled once for each. Arithmetic is always float.
#pragma once
#include "ptx.cuh"

// An entry point, named after the storage type: KERNEL(qfl_forward, 320, 3)(args) { ... } is
// `qfl_forward_f16`, of at most 320 threads a block and built so that 3 blocks fit one
// multiprocessor.
#define KERNEL_NAMED(name, threads, blocks) \
    extern "C" __global__ void __launch_bounds__(threads, blocks) name

// A float's bits, rounded to nearest even in the upper 16, as bf16 has them. Without care a NaN could carry into
// the sign, so it becomes the NaN that the hardware makes.
DEVICE u32 rounded(float x) {
    u32 b = __float_as_uint(x);
    return x != x ? 0x7fff0000u : b + 0x7fff + (b >> 16 & 1);
}

#if defined(STORAGE_F32)

typedef float Scalar;
#define KERNEL(name, threads, blocks) KERNEL_NAMED(name##_f32, threads, blocks)

DEVICE float load(const Scalar* p) { return *p; }
DEVICE void store(Scalar* p, float x) { *p = x; }
DEVICE float load_shared_scalar(SharedAddress p) { return __uint_as_float(load_shared_word(p)); }
DEVICE void store_shared_scalar(SharedAddress p, float x) { store_shared(p, __float_as_uint(x)); }

#elif defined(STORAGE_F16)

typedef u16 Scalar;
#define KERNEL(name, threads, blocks) KERNEL_NAMED(name##_f16, threads, blocks)

DEVICE float load(const Scalar* p) { return f16_to_f32(*p); }
DEVICE void store(Scalar* p, float x) { *p = f32_to_f16(x); }
DEVICE float load_shared_scalar(SharedAddress p) { return f16_to_f32(load_shared_half(p)); }
DEVICE void store_shared_scalar(SharedAddress p, float x) { store_shared(p, f32_to_f16(x)); }
DEVICE float low_half(u32 w) { return f16_to_f32((u16)w); }
DEVICE float high_half(u32 w) { return f16_to_f32((u16)(w >> 16)); }
DEVICE u32 both_halves(float low, float high) { return f32_to_f16x2(low, high); }

#elif defined(STORAGE_BF16)

typedef u16 Scalar;
#define KERNEL(name, threads, blocks) KERNEL_NAMED(name##_bf16, threads, blocks)

DEVICE float load(const Scalar* p) { return __uint_as_float((u32)*p << 16); }
DEVICE void store(Scalar* p, float x) { *p = (u16)(rounded(x) >> 16); }
DEVICE float load_shared_scalar(SharedAddress p) { return __uint_as_float((u32)load_shared_half(p) << 16); }
DEVICE float low_half(u32 w) { return __uint_as_float(w << 16); }
DEVICE float high_half(u32 w) { return __uint_as_float(w & 0xffff0000u); }
DEVICE u32 both_halves(float low, float high) {
#if defined(__CUDACC_RTC__) && __CUDA_ARCH__ >= 800
    return f32_to_bf16x2(low, high);
#else
    return rounded(low) >> 16 | (rounded(high) & 0xffff0000u);
#endif
}
DEVICE void store_shared_scalar(SharedAddress p, float x) { store_shared(p, (u16)both_halves(x, 0.0f)); }

#else
#error "define STORAGE_F32, STORAGE_F16 or STORAGE_BF16"
#endif

constexpr int VECTOR = 16 / sizeof(Scalar);  // scalars in 16 bytes

struct Words {
    u32 w[4];
};

// Whether 16-byte accesses are allowed there.
DEVICE bool aligned16(const void* p) { return ((u64)p & 15) == 0; }

DEVICE Words load_words(const void* p) {
#ifdef VARIANT_LOAD_HINTS
    uint4 v = load_16_bytes(p);
#else
    uint4 v = *(const uint4*)p;
#endif
    return {{v.x, v.y, v.z, v.w}};
}

// To global memory.
DEVICE void store_words(void* p, const Words& words) {
    store_16_bytes(p, words.w[0], words.w[1], words.w[2], words.w[3]);
}

DEVICE void store_words_shared(void* p, const Words& words) {
    *(uint4*)p = make_uint4(words.w[0], words.w[1], words.w[2], words.w[3]);
}

// The scalars of one word: 4 / sizeof(Scalar) of them.
DEVICE void unpack_word(u32 word, float* x) {
#ifdef STORAGE_F32
    x[0] = __uint_as_float(word);
#else
    x[0] = low_half(word);
    x[1] = high_half(word);
#endif
}

DEVICE u32 pack_word(const float* x) {
#ifdef STORAGE_F32
    return __float_as_uint(x[0]);
#else
    return both_halves(x[0], x[1]);
#endif
}

DEVICE void unpack(const Words& words, float (&x)[VECTOR]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) unpack_word(words.w[i], x + i * VECTOR / 4);
}

DEVICE Words pack(const float (&x)[VECTOR]) {
    Words words;
#pragma unroll
    for (int i = 0; i < 4; ++i) words.w[i] = pack_word(x + i * VECTOR / 4);
    return words;
}

// The bits of a scalar's exponent: all of them set means inf or NaN.
#if defined(STORAGE_F16)
constexpr u32 EXPONENT = 0x7c00;
#elif defined(STORAGE_BF16)
constexpr u32 EXPONENT = 0x7f80;
#else
constexpr u32 EXPONENT = 0x7f800000;
#endif

// Whether the scalars in a word are finite.
DEVICE bool is_finite(u32 word) {
#ifdef STORAGE_F32
    return (word & EXPONENT) != EXPONENT;
#else
    return (word & EXPONENT) != EXPONENT && (word >> 16 & EXPONENT) != EXPONENT;
#endif
}

DEVICE bool is_finite(const Words& words) {
    return is_finite(words.w[0]) && is_finite(words.w[1]) && is_finite(words.w[2]) && is_finite(words.w[3]);
}

// Whether a stored scalar is finite.
DEVICE bool is_finite(const Scalar* p) {
#ifdef STORAGE_F32
    return is_finite(__float_as_uint(*p));
#else
    return is_finite((u32)*p);
#endif
}

// A scalar's bits, without a conversion.
DEVICE u32 load_bits(const Scalar* p) {
#ifdef STORAGE_F32
    return __float_as_uint(*p);
#else
    return *p;
#endif
}

DEVICE void store_bits(Scalar* p, u32 bits) {
#ifdef STORAGE_F32
    *p = __uint_as_float(bits);
#else
    *p = (u16)bits;
#endif
}

// The bits of VECTOR scalars, as a vector and one by one.
DEVICE Words joined(const u32* bits) {
    Words words;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#ifdef STORAGE_F32
        words.w[i] = bits[i];
#else
        words.w[i] = bits[2 * i] | bits[2 * i + 1] << 16;
#endif
    }
    return words;
}

DEVICE void taken_apart(const Words& words, u32* bits) {
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) {
#ifdef STORAGE_F32
        bits[i] = words.w[i];
#else
        bits[i] = words.w[i / 2] >> i % 2 * 16;  // the upper half is of no account
#endif
    }
}
