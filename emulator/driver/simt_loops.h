// The loops over a register's lanes. An instruction is one of them, which the compiler turns into
// a few vector instructions; where not all lanes take part, the result is blended in.
#pragma once
#include "simt_state.h"

#ifdef __AVX2__
#include <immintrin.h>
#endif

namespace emu {

// As PTX calls them.
typedef uint8_t u8;
typedef int8_t s8;
typedef uint16_t u16;
typedef int16_t s16;
typedef uint32_t u32;
typedef int32_t s32;
typedef uint64_t u64;
typedef int64_t s64;
typedef float f32;
typedef double f64;

template <class To, class From>
inline To bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "same size");
    To to;
    __builtin_memcpy(&to, &from, sizeof to);
    return to;
}

// How a value of a type lies in a register: one of fewer than 32 bits in the low bits of 32, with
// anything above.
template <class T>
struct Stored {
    typedef T type;
};
template <> struct Stored<uint8_t> { typedef uint32_t type; };
template <> struct Stored<int8_t> { typedef uint32_t type; };
template <> struct Stored<uint16_t> { typedef uint32_t type; };
template <> struct Stored<int16_t> { typedef uint32_t type; };

template <class T>
inline typename Stored<T>::type put(T value) {
    if constexpr (sizeof(T) < 4) return (uint32_t)(int32_t)value;
    else return value;
}
template <class T>
inline T get(typename Stored<T>::type value) { return (T)value; }

template <class T>
inline void merge(T* to, const T* values, unsigned lanes) {
#pragma GCC ivdep
    for (unsigned l = 0; l < LANES; ++l) to[l] = lanes >> l & 1 ? values[l] : to[l];
}

template <class R, class F>
inline void write_lanes(SimtWarp& warp, int32_t to, unsigned lanes, F value) {
    typedef typename Stored<R>::type S;
    S* out = warp.at<S>(to);
    if (__builtin_expect(lanes == FULL, 1)) {
#pragma GCC ivdep
        for (unsigned l = 0; l < LANES; ++l) out[l] = put<R>(value(l));
    } else {
        S values[LANES];
        for (unsigned l = 0; l < LANES; ++l) values[l] = put<R>(value(l));
        merge(out, values, lanes);
    }
}

// `Op` has the types R, A, B, C of its result and operands, and f.
template <class Op>
void unary(SimtWarp& w, const Instruction& i, unsigned lanes) {
    typedef typename Op::A A;
    auto* a = w.at<const typename Stored<A>::type>(i.r[1]);
    write_lanes<typename Op::R>(w, i.r[0], lanes, [=](unsigned l) { return Op::f(get<A>(a[l])); });
}
template <class Op>
void binary(SimtWarp& w, const Instruction& i, unsigned lanes) {
    typedef typename Op::A A;
    typedef typename Op::B B;
    auto* a = w.at<const typename Stored<A>::type>(i.r[1]);
    auto* b = w.at<const typename Stored<B>::type>(i.r[2]);
    write_lanes<typename Op::R>(w, i.r[0], lanes,
                                [=](unsigned l) { return Op::f(get<A>(a[l]), get<B>(b[l])); });
}
template <class Op>
void ternary(SimtWarp& w, const Instruction& i, unsigned lanes) {
    typedef typename Op::A A;
    typedef typename Op::B B;
    typedef typename Op::C C;
    auto* a = w.at<const typename Stored<A>::type>(i.r[1]);
    auto* b = w.at<const typename Stored<B>::type>(i.r[2]);
    auto* c = w.at<const typename Stored<C>::type>(i.r[3]);
    write_lanes<typename Op::R>(w, i.r[0], lanes, [=](unsigned l) {
        return Op::f(get<A>(a[l]), get<B>(b[l]), get<C>(c[l]));
    });
}

// Only of the lanes that take part: for what is costly or may trap.
template <class Op>
void unary_by_lane(SimtWarp& w, const Instruction& i, unsigned lanes) {
    typedef typename Op::A A;
    auto* a = w.at<const typename Stored<A>::type>(i.r[1]);
    auto* out = w.at<typename Stored<typename Op::R>::type>(i.r[0]);
    for (unsigned left = lanes; left; left &= left - 1) {
        unsigned l = (unsigned)__builtin_ctz(left);
        out[l] = put<typename Op::R>(Op::f(get<A>(a[l])));
    }
}

// The lanes in which all bits are set, of words that are 0 or ~0.
inline unsigned mask_of(const int32_t* words) {
#ifdef __AVX2__
    unsigned mask = 0;
    for (unsigned k = 0; k < 4; ++k)
        mask |= (unsigned)_mm256_movemask_ps(_mm256_loadu_ps((const float*)words + 8 * k)) << 8 * k;
    return mask;
#else
    unsigned mask = 0;
    for (unsigned l = 0; l < LANES; ++l) mask |= (unsigned)(words[l] & 1) << l;
    return mask;
#endif
}

inline void write_predicate(SimtWarp& w, int32_t p, unsigned lanes, unsigned value) {
    unsigned& to = w.predicates[p >> 1];
    to = (to & ~lanes) | (value & lanes);
}

template <class Op>
void compare(SimtWarp& w, const Instruction& i, unsigned lanes) {
    typedef typename Op::A A;
    auto* a = w.at<const typename Stored<A>::type>(i.r[1]);
    auto* b = w.at<const typename Stored<A>::type>(i.r[2]);
    alignas(32) int32_t words[LANES];
#pragma GCC ivdep
    for (unsigned l = 0; l < LANES; ++l) words[l] = Op::f(get<A>(a[l]), get<A>(b[l])) ? -1 : 0;
    write_predicate(w, i.r[0], lanes, mask_of(words));
}

#define OP1(name, R_, A_, ...)                      \
    struct name {                                   \
        typedef R_ R;                               \
        typedef A_ A;                               \
        static inline R f(A a) { return __VA_ARGS__; } \
    };
#define OP2(name, R_, A_, B_, ...)                  \
    struct name {                                   \
        typedef R_ R;                               \
        typedef A_ A;                               \
        typedef B_ B;                               \
        static inline R f(A a, B b) { return __VA_ARGS__; } \
    };
#define OP3(name, R_, A_, B_, C_, ...)              \
    struct name {                                   \
        typedef R_ R;                               \
        typedef A_ A;                               \
        typedef B_ B;                               \
        typedef C_ C;                               \
        static inline R f(A a, B b, C c) { return __VA_ARGS__; } \
    };

}  // namespace emu
