// Everything that C++ cannot say: inline PTX, each piece with a plain C++ twin.
//
// NVRTC compiles the first half. The second half is what the emulator runs on a CPU, where
// the CUDA built-ins (threadIdx, __shfl_xor_sync, atomicInc, ...) come from its own prelude.
// No other file holds inline PTX, and none needs a header of the CUDA toolkit.
#pragma once

// What only a GPU can decide is behind macros that nothing defines but `cargo xtask ptx --variants`:
//   VARIANT_PREFETCH           qfl_linear asks for a tile before it computes the one before (sm_80 and up)
//   VARIANT_NO_PMEVENT         what is rare is not marked
//   VARIANT_LOAD_HINTS         vectors do not stay in the L1 cache, and come by 256 bytes
//   VARIANT_STREAMING_STORES   gradients are the first to leave the L2 cache

typedef unsigned int u32;
typedef unsigned long long u64;
typedef unsigned short u16;

#ifdef __CUDACC_RTC__

#define DEVICE __device__ __forceinline__
// Static shared memory, 16-byte aligned.
#define SHARED(type, name, count) __shared__ __align__(16) type name[count]

// Any function of three words, bit by bit: TABLE is what it gives for 0xf0, 0xcc and 0xaa.
template <u32 TABLE>
DEVICE u32 logic(u32 a, u32 b, u32 c) {
    u32 y;
    asm("lop3.b32 %0, %1, %2, %3, %4;" : "=r"(y) : "r"(a), "r"(b), "r"(c), "n"(TABLE));
    return y;
}

// A place in shared memory, worked out once: the compiler would do it again for each access.
typedef u32 SharedAddress;
DEVICE SharedAddress shared_address(const void* p) {
    u64 address;
    asm("cvta.to.shared.u64 %0, %1;" : "=l"(address) : "l"(p));
    return (SharedAddress)address;
}

// 16 bytes, and the 8 that follow.
DEVICE void load_shared(SharedAddress p, float (&x)[4], u32 (&y)[2]) {
    asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(x[0]), "=f"(x[1]), "=f"(x[2]), "=f"(x[3]) : "r"(p) : "memory");
    asm volatile("ld.shared.v2.u32 {%0, %1}, [%2 + 16];" : "=r"(y[0]), "=r"(y[1]) : "r"(p) : "memory");
}

// The same number, but in a register: each lane shuffles with itself, and so the compiler cannot work the
// number out again wherever it is used. All lanes of the warp must call it.
template <class T>
DEVICE T kept(T x) {
    static_assert(sizeof(T) == sizeof(u32), "a register");
    asm volatile("shfl.sync.bfly.b32 %0, %0, 0, 31, 0xffffffff;" : "+r"((u32&)x));
    return x;
}

// threadIdx.x, for what is rare: nothing that follows from it takes a register anywhere else.
DEVICE u32 thread_anew() {
    u32 x;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(x));
    return x;
}

// Stands first in what is seldom done. It does nothing, but says so to whoever reads the machine code
// (PMTRIG), as `cargo xtask sass` does, and to a profiler that counts events.
#ifdef VARIANT_NO_PMEVENT
DEVICE void rare() {}
#else
DEVICE void rare() { asm volatile("pmevent 0;"); }
#endif

// 2^x: 2 ulp over the full range; results below 2^-126 are 0.
DEVICE float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// log2(x): relative error 2^-22 outside (0.5, 2), absolute error 2^-22 inside.
DEVICE float log2_approx(float x) {
    float y;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// 1 / x: 1 ulp over the full range.
DEVICE float rcp_approx(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// 1 / x to about 20 bits, the seed of a Newton iteration.
DEVICE double rcp_approx(double x) {
    double y;
    asm("rcp.approx.ftz.f64 %0, %1;" : "=d"(y) : "d"(x));
    return y;
}

// a / b: 2 ulp over the full range, without the subroutine that `a / b` calls.
DEVICE float divide(float a, float b) {
    float y;
    asm("div.full.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
    return y;
}

DEVICE float f16_to_f32(u16 h) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(h));
    return x;
}

// Round to nearest even; too large becomes inf.
DEVICE u16 f32_to_f16(float x) {
    u16 h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(x));
    return h;
}

// Two f16 in one word, `low` in the low half. From sm_80 on ptxas makes one conversion of it.
DEVICE u32 f32_to_f16x2(float low, float high) {
    u32 w;
    asm("mov.b32 %0, {%1, %2};" : "=r"(w) : "h"(f32_to_f16(low)), "h"(f32_to_f16(high)));
    return w;
}

#if __CUDA_ARCH__ >= 800
DEVICE u32 f32_to_bf16x2(float low, float high) {
    u32 w;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(w) : "f"(high), "f"(low));
    return w;
}
#endif

// Takes a number from a counter that goes back to 0 after `last`. Release: what this thread
// wrote before is visible to whoever takes a later number. Acquire: and the other way round.
DEVICE u32 take_ticket(u32* counter, u32 last) {
    u32 ticket;
    asm volatile("atom.acq_rel.gpu.global.inc.u32 %0, [%1], %2;"
                 : "=r"(ticket) : "l"(counter), "r"(last) : "memory");
    return ticket;
}

#ifdef VARIANT_LOAD_HINTS
#define LOAD_VECTOR "ld.global.L1::no_allocate.L2::256B.v4.b32"
#else
#define LOAD_VECTOR "ld.global.v4.b32"
#endif
#ifdef VARIANT_STREAMING_STORES
#define STORE "st.global.cs"
#else
#define STORE "st.global"
#endif

// 16 bytes to global memory, 16-byte aligned. As plain C++ the compiler may take it apart.
DEVICE void store_16_bytes(void* p, u32 a, u32 b, u32 c, u32 d) {
    asm volatile(STORE ".v4.b32 [%0], {%1, %2, %3, %4};"
                 : : "l"(p), "r"(a), "r"(b), "r"(c), "r"(d) : "memory");
}

// Likewise 8 bytes.
DEVICE void store_8_bytes(void* p, u32 a, u32 b) {
    asm volatile(STORE ".v2.b32 [%0], {%1, %2};" : : "l"(p), "r"(a), "r"(b) : "memory");
}

// *p += 1, *p = max(*p, x): atomic, without a result.
DEVICE void count_up(u32* p) { asm volatile("red.global.add.u32 [%0], 1;" : : "l"(p) : "memory"); }
DEVICE void raise_to(u64* p, u64 x) {
    asm volatile("red.global.max.u64 [%0], %1;" : : "l"(p), "l"(x) : "memory");
}

// A load that does not look into the L1 cache, for what other blocks have written.
DEVICE double load_shared_by_blocks(const double* p) {
    double x;
    asm volatile("ld.global.cg.f64 %0, [%1];" : "=d"(x) : "l"(p) : "memory");
    return x;
}

DEVICE u32 load_shared_by_blocks(const u32* p) {
    u32 x;
    asm volatile("ld.global.cg.u32 %0, [%1];" : "=r"(x) : "l"(p) : "memory");
    return x;
}
DEVICE u64 load_shared_by_blocks(const u64* p) {
    u64 x;
    asm volatile("ld.global.cg.u64 %0, [%1];" : "=l"(x) : "l"(p) : "memory");
    return x;
}

// Hides from the compiler where a pointer comes from, so that it adds once, not at each use.
template <class T>
DEVICE T* opaque(T* p) {
    asm volatile("" : "+l"(p));
    return p;
}

// p + index * step, of which `step` is in bytes, in one instruction.
template <class T>
DEVICE T* advanced(T* p, u32 index, u32 step) {
    T* q;
    asm("mad.wide.u32 %0, %1, %2, %3;" : "=l"(q) : "r"(index), "r"(step), "l"(p));
    return q;
}

// a * b, of which the compiler knows no more than that it is made here, before a loop. An assembler takes it into the
// loop all the same, where one instruction (IMAD.WIDE) then adds it to a pointer; of a product that stands in the loop
// it makes one addition of each half.
DEVICE u64 product_here(u32 a, u32 b) {
    u64 y;
    asm volatile("mul.wide.u32 %0, %1, %2;" : "=l"(y) : "r"(a), "r"(b));
    return y;
}

// From global memory, for pointers of which the compiler does not know it.
DEVICE uint4 load_16_bytes(const void* p) {
    uint4 v;
    asm volatile(LOAD_VECTOR " {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
    return v;
}
DEVICE uint2 load_8_bytes(const void* p) {
    uint2 v;
    asm volatile("ld.global.v2.b32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p));
    return v;
}
DEVICE float load_float(const float* p) {
    float x;
    asm volatile("ld.global.f32 %0, [%1];" : "=f"(x) : "l"(p));
    return x;
}

#ifdef VARIANT_PREFETCH
// Asks for 16 bytes, which will lie in shared memory once `prefetched` has returned to this thread.
DEVICE void prefetch_16_bytes(SharedAddress to, const void* from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" : : "r"(to), "l"(from) : "memory");
}
DEVICE void prefetched() { asm volatile("cp.async.wait_all;" : : : "memory"); }
#endif

DEVICE u32 load_shared_word(SharedAddress p) {
    u32 x;
    asm volatile("ld.shared.b32 %0, [%1];" : "=r"(x) : "r"(p) : "memory");
    return x;
}
DEVICE u16 load_shared_half(SharedAddress p) {
    u16 x;
    asm volatile("ld.shared.b16 %0, [%1];" : "=h"(x) : "r"(p) : "memory");
    return x;
}
DEVICE uint4 load_shared_vector(SharedAddress p) {
    uint4 v;
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(p) : "memory");
    return v;
}
DEVICE void store_shared(SharedAddress p, u32 x) {
    asm volatile("st.shared.b32 [%0], %1;" : : "r"(p), "r"(x) : "memory");
}
DEVICE void store_shared(SharedAddress p, u16 x) {
    asm volatile("st.shared.b16 [%0], %1;" : : "r"(p), "h"(x) : "memory");
}
DEVICE void store_shared(SharedAddress p, uint4 v) {
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};"
                 : : "r"(p), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}

// A constant in global memory.
#define GLOBAL_CONSTANT static __device__ const

#else  // the C++ twins

#define DEVICE inline __attribute__((always_inline))
// SHARED comes from the emulator: one array per block, so that blocks can interleave.

namespace twin {
template <class To, class From>
inline To bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "same size");
    To to;
    __builtin_memcpy(&to, &from, sizeof(To));
    return to;
}
// What `.ftz` does to inputs and results.
inline float flush(float x) {
    return (bits<u32>(x) & 0x7f800000u) == 0 ? bits<float>(bits<u32>(x) & 0x80000000u) : x;
}
// Some units in the last place further, unless there is none.
inline float further(float x, int ulps) {
    u32 magnitude = bits<u32>(x) & 0x7fffffffu;
    bool normal = magnitude >= 0x00800000u + 2 && magnitude < 0x7f800000u - 2;
    return normal ? bits<float>(bits<u32>(x) + (u32)ulps) : x;
}
}  // namespace twin

template <u32 TABLE>
DEVICE u32 logic(u32 a, u32 b, u32 c) {
    u32 y = 0;
    for (u32 i = 0; i < 8; ++i)
        if (TABLE >> i & 1) y |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
    return y;
}

template <class T>
DEVICE T kept(T x) { return x; }
DEVICE u32 thread_anew() { return threadIdx.x; }
DEVICE void rare() {}

typedef u64 SharedAddress;
DEVICE SharedAddress shared_address(const void* p) { return (SharedAddress)p; }
DEVICE void load_shared(SharedAddress p, float (&x)[4], u32 (&y)[2]) {
    __builtin_memcpy(x, (const void*)p, sizeof x);
    __builtin_memcpy(y, (const void*)(p + sizeof x), sizeof y);
}

// The emulator can make these as wrong as they may be on a GPU.
DEVICE float exp2_approx(float x) {
    return twin::flush(twin::further(__builtin_exp2f(twin::flush(x)), 2 * emu::special_errors.exp2));
}
DEVICE float log2_approx(float x) {
    float y = __builtin_log2f(twin::flush(x));
    return y + 0x1p-22f * emu::special_errors.log2 * __builtin_fmaxf(__builtin_fabsf(y), 1.0f);
}
DEVICE float rcp_approx(float x) {
    return twin::flush(twin::further(1.0f / twin::flush(x), emu::special_errors.reciprocal));
}
DEVICE double rcp_approx(double x) {
    return twin::bits<double>(twin::bits<u64>(1.0 / x) & 0xffffffff00000000ull);
}
DEVICE float divide(float a, float b) { return twin::further(a / b, 2 * emu::special_errors.reciprocal); }

DEVICE float f16_to_f32(u16 h) {
    u32 sign = (u32)(h & 0x8000) << 16, magnitude = h & 0x7fff;
    if (magnitude >= 0x7c00) return twin::bits<float>(sign | 0x7f800000 | magnitude << 13);
    float x = twin::bits<float>(magnitude << 13) * 0x1p112f;  // moves the exponent's bias
    return twin::bits<float>(sign | twin::bits<u32>(x));
}

DEVICE u16 f32_to_f16(float x) {
    u32 sign = twin::bits<u32>(x) >> 16 & 0x8000, magnitude = twin::bits<u32>(x) & 0x7fffffff;
    if (magnitude > 0x7f800000) return 0x7fff;               // the NaN that the hardware makes
    if (magnitude >= 0x477ff000) return sign | 0x7c00;       // 65520 and more round to inf
    if (magnitude < 0x38800000)                              // below 2^-14: units of 2^-24
        return sign | (u16)__builtin_nearbyintf(twin::bits<float>(magnitude) * 0x1p24f);
    return sign | (u16)((magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13);
}

DEVICE u32 f32_to_f16x2(float low, float high) {
    return f32_to_f16(low) | (u32)f32_to_f16(high) << 16;
}

DEVICE u32 take_ticket(u32* counter, u32 last) {
    __threadfence();
    u32 ticket = atomicInc(counter, last);
    __threadfence();
    return ticket;
}

DEVICE void store_16_bytes(void* p, u32 a, u32 b, u32 c, u32 d) { *(uint4*)p = make_uint4(a, b, c, d); }

DEVICE void store_8_bytes(void* p, u32 a, u32 b) { *(uint2*)p = make_uint2(a, b); }

DEVICE void count_up(u32* p) { atomicAdd(p, 1u); }
DEVICE void raise_to(u64* p, u64 x) { atomicMax(p, x); }

DEVICE double load_shared_by_blocks(const double* p) { return *(const volatile double*)p; }
DEVICE u32 load_shared_by_blocks(const u32* p) { return *(const volatile u32*)p; }
DEVICE u64 load_shared_by_blocks(const u64* p) { return *(const volatile u64*)p; }

template <class T>
DEVICE T* opaque(T* p) { return p; }
template <class T>
DEVICE T* advanced(T* p, u32 index, u32 step) { return (T*)((char*)p + (u64)index * step); }
DEVICE u64 product_here(u32 a, u32 b) { return (u64)a * b; }
DEVICE uint4 load_16_bytes(const void* p) { return *(const uint4*)p; }
DEVICE uint2 load_8_bytes(const void* p) { return *(const uint2*)p; }
DEVICE float load_float(const float* p) { return *p; }

#ifdef VARIANT_PREFETCH
DEVICE void prefetch_16_bytes(SharedAddress to, const void* from) { *(uint4*)to = *(const uint4*)from; }
DEVICE void prefetched() {}
#endif

DEVICE u32 load_shared_word(SharedAddress p) { return *(const u32*)p; }
DEVICE u16 load_shared_half(SharedAddress p) { return *(const u16*)p; }
DEVICE uint4 load_shared_vector(SharedAddress p) { return *(const uint4*)p; }
DEVICE void store_shared(SharedAddress p, u32 x) { *(u32*)p = x; }
DEVICE void store_shared(SharedAddress p, u16 x) { *(u16*)p = x; }
DEVICE void store_shared(SharedAddress p, uint4 v) { *(uint4*)p = v; }

#define GLOBAL_CONSTANT static const

#endif
