// Vector types, casts, integer intrinsics and the mathematical functions of CUDA, on top of
// compiler built-ins. Declared rather than included: see emu.h.
#pragma once

#define EMU_MATH inline __attribute__((__always_inline__))

// ---- Vector types

#define EMU_VECTOR2(type, name, bytes)                                     \
    struct __attribute__((aligned(bytes))) name##2 { type x, y; };         \
    EMU_MATH name##2 make_##name##2(type x, type y) { return {x, y}; }
#define EMU_VECTOR4(type, name, bytes)                                     \
    struct __attribute__((aligned(bytes))) name##4 { type x, y, z, w; };   \
    EMU_MATH name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }
#define EMU_VECTOR3(type, name)                                            \
    struct name##3 { type x, y, z; };                                      \
    EMU_MATH name##3 make_##name##3(type x, type y, type z) { return {x, y, z}; }
EMU_VECTOR2(signed char, char, 2)
EMU_VECTOR2(unsigned char, uchar, 2)
EMU_VECTOR2(short, short, 4)
EMU_VECTOR2(unsigned short, ushort, 4)
EMU_VECTOR2(int, int, 8)
EMU_VECTOR2(unsigned, uint, 8)
EMU_VECTOR2(float, float, 8)
EMU_VECTOR2(long long, longlong, 16)
EMU_VECTOR2(unsigned long long, ulonglong, 16)
EMU_VECTOR2(double, double, 16)
EMU_VECTOR4(signed char, char, 4)
EMU_VECTOR4(unsigned char, uchar, 4)
EMU_VECTOR4(short, short, 8)
EMU_VECTOR4(unsigned short, ushort, 8)
EMU_VECTOR4(int, int, 16)
EMU_VECTOR4(unsigned, uint, 16)
EMU_VECTOR4(float, float, 16)
EMU_VECTOR3(int, int)
EMU_VECTOR3(unsigned, uint)
EMU_VECTOR3(float, float)
#undef EMU_VECTOR2
#undef EMU_VECTOR3
#undef EMU_VECTOR4

// ---- Casts of bits

namespace emu {
template <class To, class From>
EMU_MATH To bit_cast(From from) {
    static_assert(sizeof(To) == sizeof(From), "same size");
    To to;
    __builtin_memcpy(&to, &from, sizeof to);
    return to;
}
}  // namespace emu

EMU_MATH unsigned __float_as_uint(float x) { return emu::bit_cast<unsigned>(x); }
EMU_MATH int __float_as_int(float x) { return emu::bit_cast<int>(x); }
EMU_MATH float __uint_as_float(unsigned x) { return emu::bit_cast<float>(x); }
EMU_MATH float __int_as_float(int x) { return emu::bit_cast<float>(x); }
EMU_MATH long long __double_as_longlong(double x) { return emu::bit_cast<long long>(x); }
EMU_MATH double __longlong_as_double(long long x) { return emu::bit_cast<double>(x); }
EMU_MATH int __double2hiint(double x) { return (int)(__double_as_longlong(x) >> 32); }
EMU_MATH int __double2loint(double x) { return (int)__double_as_longlong(x); }
EMU_MATH double __hiloint2double(int high, int low) {
    return emu::bit_cast<double>((unsigned long long)(unsigned)high << 32 | (unsigned)low);
}

// ---- Integers

EMU_MATH int __mulhi(int a, int b) { return (int)((long long)a * b >> 32); }
EMU_MATH unsigned __umulhi(unsigned a, unsigned b) {
    return (unsigned)((unsigned long long)a * b >> 32);
}
EMU_MATH unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}
EMU_MATH long long __mul64hi(long long a, long long b) {
    return (long long)((__int128)a * b >> 64);
}
EMU_MATH int __clz(int x) { return x == 0 ? 32 : __builtin_clz((unsigned)x); }
EMU_MATH int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll((unsigned long long)x); }
EMU_MATH int __ffs(int x) { return __builtin_ffs(x); }
EMU_MATH int __ffsll(long long x) { return __builtin_ffsll(x); }
EMU_MATH int __popc(unsigned x) { return __builtin_popcount(x); }
EMU_MATH int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
EMU_MATH unsigned __brev(unsigned x) {
    unsigned y = 0;
    for (int i = 0; i < 32; ++i) y |= (x >> i & 1) << (31 - i);
    return y;
}
EMU_MATH unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
    unsigned long long bytes = (unsigned long long)high << 32 | low;
    unsigned out = 0;
    for (int i = 0; i < 4; ++i) {
        unsigned s = selector >> 4 * i & 15, byte = (unsigned)(bytes >> 8 * (s & 7)) & 0xff;
        out |= (s & 8 ? (byte & 0x80 ? 0xffu : 0u) : byte) << 8 * i;
    }
    return out;
}
EMU_MATH unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
    return (unsigned)(((unsigned long long)high << 32 | low) << (shift & 31) >> 32);
}
EMU_MATH unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
    return (unsigned)(((unsigned long long)high << 32 | low) >> (shift & 31));
}

#define EMU_MIN_MAX(type)                                                \
    EMU_MATH type min(type a, type b) { return b < a ? b : a; }          \
    EMU_MATH type max(type a, type b) { return a < b ? b : a; }
EMU_MIN_MAX(int)
EMU_MIN_MAX(unsigned)
EMU_MIN_MAX(long)
EMU_MIN_MAX(unsigned long)
EMU_MIN_MAX(long long)
EMU_MIN_MAX(unsigned long long)
#undef EMU_MIN_MAX
EMU_MATH unsigned min(int a, unsigned b) { return min((unsigned)a, b); }
EMU_MATH unsigned min(unsigned a, int b) { return min(a, (unsigned)b); }
EMU_MATH unsigned max(int a, unsigned b) { return max((unsigned)a, b); }
EMU_MATH unsigned max(unsigned a, int b) { return max(a, (unsigned)b); }

// ---- Floating point: the C functions, and overloads without the `f` for float

#define EMU_FUNCTION1(name)                                              \
    extern "C" float name##f(float);                                     \
    extern "C" double name(double);                                      \
    EMU_MATH float name(float x) { return __builtin_##name##f(x); }
#define EMU_FUNCTION2(name)                                              \
    extern "C" float name##f(float, float);                              \
    extern "C" double name(double, double);                              \
    EMU_MATH float name(float x, float y) { return __builtin_##name##f(x, y); }
EMU_FUNCTION1(acos)
EMU_FUNCTION1(asin)
EMU_FUNCTION1(atan)
EMU_FUNCTION1(cbrt)
EMU_FUNCTION1(ceil)
EMU_FUNCTION1(cos)
EMU_FUNCTION1(cosh)
EMU_FUNCTION1(erf)
EMU_FUNCTION1(erfc)
EMU_FUNCTION1(exp)
EMU_FUNCTION1(exp2)
EMU_FUNCTION1(expm1)
EMU_FUNCTION1(fabs)
EMU_FUNCTION1(floor)
EMU_FUNCTION1(log)
EMU_FUNCTION1(log10)
EMU_FUNCTION1(log1p)
EMU_FUNCTION1(log2)
EMU_FUNCTION1(nearbyint)
EMU_FUNCTION1(rint)
EMU_FUNCTION1(round)
EMU_FUNCTION1(sin)
EMU_FUNCTION1(sinh)
EMU_FUNCTION1(sqrt)
EMU_FUNCTION1(tan)
EMU_FUNCTION1(tanh)
EMU_FUNCTION1(trunc)
EMU_FUNCTION2(atan2)
EMU_FUNCTION2(copysign)
EMU_FUNCTION2(fdim)
EMU_FUNCTION2(fmax)
EMU_FUNCTION2(fmin)
EMU_FUNCTION2(fmod)
EMU_FUNCTION2(hypot)
EMU_FUNCTION2(nextafter)
EMU_FUNCTION2(pow)
EMU_FUNCTION2(remainder)
#undef EMU_FUNCTION1
#undef EMU_FUNCTION2
extern "C" float fmaf(float, float, float);
extern "C" double fma(double, double, double);
extern "C" float ldexpf(float, int);
extern "C" double ldexp(double, int);
extern "C" float frexpf(float, int*);
extern "C" double frexp(double, int*);
extern "C" long lrintf(float);
extern "C" long lrint(double);
extern "C" int abs(int) noexcept(true);
EMU_MATH float fma(float x, float y, float z) { return __builtin_fmaf(x, y, z); }
EMU_MATH float abs(float x) { return __builtin_fabsf(x); }
EMU_MATH double abs(double x) { return __builtin_fabs(x); }
EMU_MATH long long abs(long long x) { return x < 0 ? -x : x; }
// As on the device, a NaN loses against a number.
EMU_MATH float min(float a, float b) { return __builtin_fminf(a, b); }
EMU_MATH float max(float a, float b) { return __builtin_fmaxf(a, b); }
EMU_MATH double min(double a, double b) { return __builtin_fmin(a, b); }
EMU_MATH double max(double a, double b) { return __builtin_fmax(a, b); }
EMU_MATH double min(float a, double b) { return __builtin_fmin(a, b); }
EMU_MATH double min(double a, float b) { return __builtin_fmin(a, b); }
EMU_MATH double max(float a, double b) { return __builtin_fmax(a, b); }
EMU_MATH double max(double a, float b) { return __builtin_fmax(a, b); }

#define EMU_CLASS(name)                                                  \
    EMU_MATH bool name(float x) { return __builtin_##name(x); }          \
    EMU_MATH bool name(double x) { return __builtin_##name(x); }
EMU_CLASS(isfinite)
EMU_CLASS(isinf)
EMU_CLASS(isnan)
EMU_CLASS(signbit)
#undef EMU_CLASS

EMU_MATH float rsqrtf(float x) { return 1.0f / __builtin_sqrtf(x); }
EMU_MATH double rsqrt(double x) { return 1.0 / __builtin_sqrt(x); }
EMU_MATH float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }
EMU_MATH float __fadd_rn(float a, float b) { return a + b; }
EMU_MATH float __fsub_rn(float a, float b) { return a - b; }
EMU_MATH float __fmul_rn(float a, float b) { return a * b; }
EMU_MATH float __fdiv_rn(float a, float b) { return a / b; }
EMU_MATH float __fmaf_rn(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
EMU_MATH float __frcp_rn(float x) { return 1.0f / x; }
EMU_MATH float __fsqrt_rn(float x) { return __builtin_sqrtf(x); }
EMU_MATH double __dadd_rn(double a, double b) { return a + b; }
EMU_MATH double __dsub_rn(double a, double b) { return a - b; }
EMU_MATH double __dmul_rn(double a, double b) { return a * b; }
EMU_MATH double __ddiv_rn(double a, double b) { return a / b; }
EMU_MATH double __fma_rn(double a, double b, double c) { return __builtin_fma(a, b, c); }
EMU_MATH double __dsqrt_rn(double x) { return __builtin_sqrt(x); }
EMU_MATH float __fdividef(float a, float b) { return a / b; }
EMU_MATH float __expf(float x) { return __builtin_expf(x); }
EMU_MATH float __exp10f(float x) { return __builtin_powf(10.0f, x); }
EMU_MATH float __logf(float x) { return __builtin_logf(x); }
EMU_MATH float __log2f(float x) { return __builtin_log2f(x); }
EMU_MATH float __powf(float x, float y) { return __builtin_powf(x, y); }

// Conversions. Like the device, and unlike C++, they saturate, and NaN becomes 0.
namespace emu {
template <class To, class From>
EMU_MATH To saturate(From x, From low, From high, To least, To most) {
    return x != x ? To(0) : x < low ? least : x >= high ? most : (To)x;
}
}  // namespace emu
EMU_MATH int __float2int_rz(float x) {
    return emu::saturate<int>(x, -0x1p31f, 0x1p31f, -0x7fffffff - 1, 0x7fffffff);
}
EMU_MATH int __float2int_rn(float x) { return __float2int_rz(__builtin_rintf(x)); }
EMU_MATH int __float2int_rd(float x) { return __float2int_rz(__builtin_floorf(x)); }
EMU_MATH int __float2int_ru(float x) { return __float2int_rz(__builtin_ceilf(x)); }
EMU_MATH unsigned __float2uint_rz(float x) {
    return emu::saturate<unsigned>(x, 0.0f, 0x1p32f, 0u, 0xffffffffu);
}
EMU_MATH unsigned __float2uint_rn(float x) { return __float2uint_rz(__builtin_rintf(x)); }
EMU_MATH unsigned __float2uint_rd(float x) { return __float2uint_rz(__builtin_floorf(x)); }
EMU_MATH long long __float2ll_rz(float x) {
    return emu::saturate<long long>(x, -0x1p63f, 0x1p63f, -0x7fffffffffffffffll - 1,
                                    0x7fffffffffffffffll);
}
EMU_MATH long long __double2ll_rz(double x) {
    return emu::saturate<long long>(x, -0x1p63, 0x1p63, -0x7fffffffffffffffll - 1,
                                    0x7fffffffffffffffll);
}
EMU_MATH long long __double2ll_rn(double x) { return __double2ll_rz(__builtin_rint(x)); }
EMU_MATH float __int2float_rn(int x) { return (float)x; }
EMU_MATH float __uint2float_rn(unsigned x) { return (float)x; }
EMU_MATH float __ll2float_rn(long long x) { return (float)x; }
EMU_MATH float __ull2float_rn(unsigned long long x) { return (float)x; }
EMU_MATH float __double2float_rn(double x) { return (float)x; }


#undef EMU_MATH
