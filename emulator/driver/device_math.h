// Vector types, casts and the mathematical functions of CUDA that kernels here use, and such as they
// are likely to, on top of compiler built-ins. A kernel that uses another one does not compile: add it.
// Declared rather than included: see emu.h.
#pragma once

#define EMU_MATH inline __attribute__((__always_inline__))

// ---- Vector types

#define EMU_VECTOR2(type, name)                                                    \
    struct __attribute__((aligned(2 * sizeof(type)))) name##2 { type x, y; };      \
    EMU_MATH name##2 make_##name##2(type x, type y) { return {x, y}; }
#define EMU_VECTOR4(type, name)                                                    \
    struct __attribute__((aligned(16))) name##4 { type x, y, z, w; };              \
    EMU_MATH name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }
EMU_VECTOR2(int, int)
EMU_VECTOR2(unsigned, uint)
EMU_VECTOR2(float, float)
EMU_VECTOR2(double, double)
EMU_VECTOR4(int, int)
EMU_VECTOR4(unsigned, uint)
EMU_VECTOR4(float, float)
#undef EMU_VECTOR2
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
EMU_FUNCTION1(atan)
EMU_FUNCTION1(ceil)
EMU_FUNCTION1(exp)
EMU_FUNCTION1(exp2)
EMU_FUNCTION1(fabs)
EMU_FUNCTION1(floor)
EMU_FUNCTION1(log)
EMU_FUNCTION1(log1p)
EMU_FUNCTION1(log2)
EMU_FUNCTION1(rint)
EMU_FUNCTION1(round)
EMU_FUNCTION1(sqrt)
EMU_FUNCTION1(trunc)
EMU_FUNCTION2(copysign)
EMU_FUNCTION2(fmax)
EMU_FUNCTION2(fmin)
EMU_FUNCTION2(pow)
#undef EMU_FUNCTION1
#undef EMU_FUNCTION2
extern "C" float fmaf(float, float, float);
extern "C" double fma(double, double, double);
EMU_MATH float fma(float x, float y, float z) { return __builtin_fmaf(x, y, z); }
EMU_MATH float abs(float x) { return __builtin_fabsf(x); }
EMU_MATH double abs(double x) { return __builtin_fabs(x); }
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

EMU_MATH float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }
EMU_MATH float __fadd_rn(float a, float b) { return a + b; }
EMU_MATH float __fmul_rn(float a, float b) { return a * b; }
EMU_MATH double __dmul_rn(double a, double b) { return a * b; }

// Like the device, and unlike C++, it saturates, and NaN becomes 0.
EMU_MATH unsigned __float2uint_rz(float x) {
    return x != x || x < 0.0f ? 0u : x >= 0x1p32f ? 0xffffffffu : (unsigned)x;
}

#undef EMU_MATH
