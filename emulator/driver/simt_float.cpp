// Floating point. Where a GPU's result is not IEEE's: a NaN of 32 bits is always 0x7fffffff, and
// the approximate functions are as wrong as they may be, if a test asks for that.
#include <cmath>

#include "simt_loops.h"

namespace emu {
namespace {

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

#define ROW2(name, T, letter, op) {name "." #T, letter letter letter, binary<op##_##T>}
#define ROW1(name, T, letter, op) {name "." #T, letter letter, unary<op##_##T>}
#define SAME(T, letter)                                                             \
    ROW2("add", T, letter, add), ROW2("add.rn", T, letter, add),                    \
    ROW2("sub", T, letter, sub), ROW2("sub.rn", T, letter, sub),                    \
    ROW2("mul", T, letter, mul), ROW2("mul.rn", T, letter, mul),                    \
    {"fma.rn." #T, letter letter letter letter, ternary<fma_##T>},                  \
    ROW2("div.rn", T, letter, div), ROW1("rcp.rn", T, letter, rcp),                 \
    ROW1("sqrt.rn", T, letter, sqrt), ROW1("neg", T, letter, neg),                  \
    ROW1("abs", T, letter, abs), ROW2("copysign", T, letter, copysign),             \
    ROW2("min", T, letter, min), ROW2("max", T, letter, max)

const Row FLOAT_ROWS[] = {
    SAME(f32, "f"), SAME(f64, "g"),
    {"ex2.approx.ftz.f32", "ff", unary_by_lane<ex2_f32>},
    {"lg2.approx.ftz.f32", "ff", unary_by_lane<lg2_f32>},
    {"rcp.approx.ftz.f32", "ff", unary<rcp_approx_f32>},
    {"rcp.approx.ftz.f64", "gg", unary<rcp_approx_f64>},
    {"div.full.f32", "fff", binary<div_full_f32>},
};

}  // namespace

Rows float_rows() { return {FLOAT_ROWS, sizeof FLOAT_ROWS / sizeof *FLOAT_ROWS}; }

}  // namespace emu
