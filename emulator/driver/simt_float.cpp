// Floating point. Where a GPU's result is not IEEE's: a NaN of 32 bits is always 0x7fffffff, and
// the approximate functions are as wrong as they may be, if a test asks for that.
#include <cmath>

#include "simt_loops.h"

namespace emu {
namespace {

typedef float f32;
typedef double f64;

inline float made(float x) { return x == x ? x : __builtin_nanf("0x3fffff"); }
inline double made(double x) { return x; }

#define ARITHMETIC(T)                                                 \
    OP2(add_##T, T, T, T, made(a + b))                                \
    OP2(sub_##T, T, T, T, made(a - b))                                \
    OP2(mul_##T, T, T, T, made(a * b))                                \
    OP2(div_##T, T, T, T, made(a / b))                                \
    OP1(rcp_##T, T, T, made(1 / a))                                   \
    OP1(sqrt_##T, T, T, made(std::sqrt(a)))
ARITHMETIC(f32)
ARITHMETIC(f64)
OP3(fma_f32, f32, f32, f32, f32, made(__builtin_fmaf(a, b, c)))
OP3(fma_f64, f64, f64, f64, f64, made(__builtin_fma(a, b, c)))
OP1(neg_f32, uint32_t, uint32_t, a ^ 0x80000000u)
OP1(neg_f64, uint64_t, uint64_t, a ^ 0x8000000000000000ull)
OP1(abs_f32, uint32_t, uint32_t, a & 0x7fffffffu)
OP1(abs_f64, uint64_t, uint64_t, a & 0x7fffffffffffffffull)
OP2(copysign_f32, uint32_t, uint32_t, uint32_t, (a & 0x80000000u) | (b & 0x7fffffffu))
OP2(copysign_f64, uint64_t, uint64_t, uint64_t,
    (a & 0x8000000000000000ull) | (b & 0x7fffffffffffffffull))

// A NaN loses against a number, and -0 is less than +0: of equal numbers, whose bits differ in the
// sign alone, the smaller one has it set if one of them has.
template <class T, class Bits>
inline T least(T a, T b) {
    T equal = bits<T>(bits<Bits>(a) | bits<Bits>(b));
    T x = a < b ? a : b < a ? b : equal;
    return made(b != b ? a : a != a ? b : x);
}
template <class T, class Bits>
inline T most(T a, T b) {
    T equal = bits<T>(bits<Bits>(a) & bits<Bits>(b));
    T x = a < b ? b : b < a ? a : equal;
    return made(b != b ? a : a != a ? b : x);
}
OP2(min_f32, f32, f32, f32, least<f32, uint32_t>(a, b))
OP2(max_f32, f32, f32, f32, most<f32, uint32_t>(a, b))
OP2(min_f64, f64, f64, f64, least<f64, uint64_t>(a, b))
OP2(max_f64, f64, f64, f64, most<f64, uint64_t>(a, b))

// ---- Approximate functions, as their twins in kernels/ptx.cuh have them

inline float flush(float x) {
    return (bits<uint32_t>(x) & 0x7f800000u) == 0 ? bits<float>(bits<uint32_t>(x) & 0x80000000u) : x;
}
inline float further(float x, int ulps) {
    uint32_t magnitude = bits<uint32_t>(x) & 0x7fffffffu;
    bool normal = magnitude >= 0x00800000u + 2 && magnitude < 0x7f800000u - 2;
    return normal ? bits<float>(bits<uint32_t>(x) + (uint32_t)ulps) : x;
}
OP1(ex2_f32, f32, f32,
    made(flush(further(__builtin_exp2f(flush(a)), 2 * special_errors.exp2))))
inline float log2_off(float x) {
    float y = __builtin_log2f(flush(x));
    return made(y + 0x1p-22f * (float)special_errors.log2 * __builtin_fmaxf(__builtin_fabsf(y), 1.0f));
}
OP1(lg2_f32, f32, f32, log2_off(a))
OP1(rcp_approx_f32, f32, f32, made(flush(further(1.0f / flush(a), special_errors.reciprocal))))
OP1(rcp_approx_f64, f64, f64, bits<double>(bits<uint64_t>(1.0 / a) & 0xffffffff00000000ull))
OP2(div_full_f32, f32, f32, f32, made(further(a / b, 2 * special_errors.reciprocal)))

const Row FLOAT_ROWS[] = {
    {"add.f32", "fff", binary<add_f32>},
    {"add.rn.f32", "fff", binary<add_f32>},
    {"sub.f32", "fff", binary<sub_f32>},
    {"sub.rn.f32", "fff", binary<sub_f32>},
    {"mul.f32", "fff", binary<mul_f32>},
    {"mul.rn.f32", "fff", binary<mul_f32>},
    {"fma.rn.f32", "ffff", ternary<fma_f32>},
    {"div.rn.f32", "fff", binary<div_f32>},
    {"rcp.rn.f32", "ff", unary<rcp_f32>},
    {"sqrt.rn.f32", "ff", unary<sqrt_f32>},
    {"neg.f32", "ff", unary<neg_f32>},
    {"abs.f32", "ff", unary<abs_f32>},
    {"copysign.f32", "fff", binary<copysign_f32>},
    {"min.f32", "fff", binary<min_f32>},
    {"max.f32", "fff", binary<max_f32>},
    {"add.f64", "ggg", binary<add_f64>},
    {"add.rn.f64", "ggg", binary<add_f64>},
    {"sub.f64", "ggg", binary<sub_f64>},
    {"sub.rn.f64", "ggg", binary<sub_f64>},
    {"mul.f64", "ggg", binary<mul_f64>},
    {"mul.rn.f64", "ggg", binary<mul_f64>},
    {"fma.rn.f64", "gggg", ternary<fma_f64>},
    {"div.rn.f64", "ggg", binary<div_f64>},
    {"rcp.rn.f64", "gg", unary<rcp_f64>},
    {"sqrt.rn.f64", "gg", unary<sqrt_f64>},
    {"neg.f64", "gg", unary<neg_f64>},
    {"abs.f64", "gg", unary<abs_f64>},
    {"copysign.f64", "ggg", binary<copysign_f64>},
    {"min.f64", "ggg", binary<min_f64>},
    {"max.f64", "ggg", binary<max_f64>},
    {"ex2.approx.ftz.f32", "ff", unary_by_lane<ex2_f32>},
    {"lg2.approx.ftz.f32", "ff", unary_by_lane<lg2_f32>},
    {"rcp.approx.ftz.f32", "ff", unary<rcp_approx_f32>},
    {"rcp.approx.ftz.f64", "gg", unary<rcp_approx_f64>},
    {"div.full.f32", "fff", binary<div_full_f32>},
};

}  // namespace

Rows float_rows() { return {FLOAT_ROWS, sizeof FLOAT_ROWS / sizeof *FLOAT_ROWS}; }

}  // namespace emu
