// What CUDA has built in, as far as kernels here use it, for kernels that a C++ compiler turns into
// host code. It is force-included before every kernel file. Like NVRTC it brings no header along.
#pragma once
#include "emu.h"
#include "device_math.h"

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline __attribute__((__always_inline__))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))
// Bare __shared__ stays undefined: an array of a block must be a SHARED, which the emulator can
// give to every resident block anew, fill with what shows, and guard.

#define threadIdx (emu::now->thread)
#define blockIdx (emu::now->block)
#define blockDim (emu::block_dim)
#define gridDim (emu::grid_dim)
#define warpSize 32

// The array is the same for all threads of a block. `name` is a reference to an array, so that
// an index beyond its end is seen at once.
#define SHARED(type, name, count)                                                             \
    static emu::SharedSite name##_site = {#name, __FILE__, __LINE__, 0};                      \
    type(&name)[count] = *(type(*)[count])emu::shared(name##_site, sizeof(type) * (count))

#define EMU_INLINE inline __attribute__((__always_inline__))
// The place in the source of whoever calls the function that has these as default arguments.
#define EMU_HERE int line = __builtin_LINE(), const char* file = __builtin_FILE()

#define assert(condition) \
    ((condition) ? (void)0 : emu::trap("assertion failed: " #condition, __LINE__, __FILE__))

typedef decltype(sizeof 0) size_t;
extern "C" int printf(const char*, ...);

// ---- Barriers, fences

EMU_INLINE void __syncthreads(EMU_HERE) {
    unsigned threads;
    emu::barrier(emu::SYNC_THREADS, false, threads, line, file);
}
EMU_INLINE int __syncthreads_or(int vote, EMU_HERE) {
    unsigned threads;
    return emu::barrier(emu::SYNC_THREADS_OR, vote, threads, line, file) != 0;
}
EMU_INLINE int __syncthreads_and(int vote, EMU_HERE) {
    unsigned threads;
    return emu::barrier(emu::SYNC_THREADS_AND, vote, threads, line, file) == threads;
}
EMU_INLINE int __syncthreads_count(int vote, EMU_HERE) {
    unsigned threads;
    return (int)emu::barrier(emu::SYNC_THREADS_COUNT, vote, threads, line, file);
}
EMU_INLINE void __threadfence() { emu::preempt(true); }
EMU_INLINE void __threadfence_block() { emu::preempt(true); }
EMU_INLINE void __trap(EMU_HERE) { emu::trap("__trap()", line, file); }

// ---- Warps

EMU_INLINE void __syncwarp(unsigned mask = 0xffffffffu, EMU_HERE) {
    emu::exchange(emu::SYNC_WARP, mask, 0, line, file);
}
EMU_INLINE int __any_sync(unsigned mask, int vote, EMU_HERE) {
    const emu::Word* all = emu::exchange(emu::VOTE_ANY, mask, vote != 0, line, file);
    for (int i = 0; i < 32; ++i)
        if (all[i]) return 1;
    return 0;
}
EMU_INLINE int __all_sync(unsigned mask, int vote, EMU_HERE) {
    const emu::Word* all = emu::exchange(emu::VOTE_ALL, mask, vote != 0, line, file);
    for (int i = 0; i < 32; ++i)
        if (!all[i]) return 0;
    return 1;
}
EMU_INLINE unsigned __ballot_sync(unsigned mask, int vote, EMU_HERE) {
    const emu::Word* all = emu::exchange(emu::BALLOT, mask, vote != 0, line, file);
    unsigned votes = 0;
    for (int i = 0; i < 32; ++i) votes |= (unsigned)all[i] << i;
    return votes;
}
EMU_INLINE unsigned __activemask() { return emu::active_lanes(); }

namespace emu {
template <class T>
EMU_INLINE T take(const Word* all, int lane) {
    T value;
    __builtin_memcpy(&value, &all[lane], sizeof value);
    return value;
}
template <class T>
EMU_INLINE const Word* give(Together what, unsigned mask, T value, int line, const char* file) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles move 4 or 8 bytes");
    Word word = 0;
    __builtin_memcpy(&word, &value, sizeof value);
    return exchange(what, mask, word, line, file);
}
}  // namespace emu

// A lane whose source lies outside its segment of `width` lanes keeps its own value.
template <class T>
EMU_INLINE T __shfl_sync(unsigned mask, T value, int source, int width = 32, EMU_HERE) {
    const emu::Word* all = emu::give(emu::SHUFFLE, mask, value, line, file);
    int lane = (int)emu::now->lane;
    return emu::take<T>(all, (lane & ~(width - 1)) | (source & (width - 1)));
}
template <class T>
EMU_INLINE T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, EMU_HERE) {
    const emu::Word* all = emu::give(emu::SHUFFLE_XOR, mask, value, line, file);
    int lane = (int)emu::now->lane, source = (lane ^ bits) & 31;
    return emu::take<T>(all, source > (lane | (width - 1)) ? lane : source);
}
template <class T>
EMU_INLINE T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, EMU_HERE) {
    const emu::Word* all = emu::give(emu::SHUFFLE_UP, mask, value, line, file);
    int lane = (int)emu::now->lane, source = lane - (int)delta;
    return emu::take<T>(all, source < (lane & ~(width - 1)) ? lane : source);
}
template <class T>
EMU_INLINE T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, EMU_HERE) {
    const emu::Word* all = emu::give(emu::SHUFFLE_DOWN, mask, value, line, file);
    int lane = (int)emu::now->lane, source = lane + (int)delta;
    return emu::take<T>(all, source > (lane | (width - 1)) ? lane : source);
}

// ---- Atomics. Other blocks may come in before and after.

namespace emu {
template <class T>
struct Same {
    typedef T type;  // keeps a parameter out of template argument deduction
};
template <class T, class F>
EMU_INLINE T atomic(T* address, F change) {
    preempt(false);
    volatile T* cell = address;
    T old = *cell;
    *cell = change(old);
    preempt(true);
    return old;
}
}  // namespace emu

#define EMU_ATOMIC(name, result)                                                \
    template <class T>                                                          \
    EMU_INLINE T name(T* address, typename emu::Same<T>::type value) {          \
        return emu::atomic(address, [=](T old) -> T { return (T)(result); });   \
    }
EMU_ATOMIC(atomicAdd, old + value)
EMU_ATOMIC(atomicExch, (old, value))
EMU_ATOMIC(atomicMin, old < value ? old : value)
EMU_ATOMIC(atomicMax, old > value ? old : value)
EMU_ATOMIC(atomicAnd, old & value)
EMU_ATOMIC(atomicOr, old | value)
EMU_ATOMIC(atomicInc, old >= value ? 0 : old + 1)
#undef EMU_ATOMIC
template <class T>
EMU_INLINE T atomicCAS(T* address, typename emu::Same<T>::type expected,
                       typename emu::Same<T>::type value) {
    return emu::atomic(address, [=](T old) { return old == expected ? value : old; });
}

// Kernels inline everything, for the GPU. Here that would make the compiler work three times as
// long for little, so from here on the attribute is empty; what is above spells it differently.
#define always_inline
