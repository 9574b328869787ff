// cvt.
#include <cmath>
#include <limits>

#include "simt_loops.h"

namespace emu {
namespace {

template <class To, class From>
struct Cast {
    typedef To R;
    typedef From A;
    static inline R f(A a) { return (To)a; }
};

enum Rounding { NEAREST, ZERO, DOWN, UP };
template <Rounding MODE, class T>
inline T integral(T x) {
    return MODE == NEAREST ? std::nearbyint(x)
           : MODE == ZERO  ? std::trunc(x)
           : MODE == DOWN  ? std::floor(x)
                           : std::ceil(x);
}

// Out of range is the nearest that there is. Of NaN the manual says: 0, but where either side has
// 64 bits, only the highest bit set.
template <class To, class From, Rounding MODE>
struct ToInteger {
    typedef To R;
    typedef From A;
    static inline R f(A a) {
        typedef std::numeric_limits<To> Limits;
        if (a != a)
            return sizeof(To) == 8 || sizeof(From) == 8 ? (To)((u64)1 << (8 * sizeof(To) - 1)) : To(0);
        a = integral<MODE>(a);
        const From end = (From)(1ull << (Limits::digits - 1)) * 2;  // one more than the most
        return a >= end ? Limits::max() : a < (From)Limits::min() ? Limits::min() : (To)a;
    }
};

template <class T, Rounding MODE>
struct ToIntegral {
    typedef T R;
    typedef T A;
    static inline R f(A a) { return a == a ? integral<MODE>(a) : a; }
};

// Into [0, 1]; a NaN becomes 0, and so does -0.
template <class T>
struct Saturate {
    typedef T R;
    typedef T A;
    static inline R f(A a) { return a > 0 ? (a < 1 ? a : T(1)) : T(0); }
};

inline u32 from_half(u32 h) {
    u32 sign = (h & 0x8000) << 16, magnitude = h & 0x7fff;
    u32 number = bits<u32>(bits<f32>(magnitude << 13) * 0x1p112f);  // moves the exponent's bias
    u32 special = 0x7f800000u | magnitude << 13;
    return magnitude > 0x7c00 ? 0x7fffffffu : sign | (magnitude == 0x7c00 ? special : number);
}
inline u32 to_half(u32 x) {
    u32 sign = x >> 16 & 0x8000, magnitude = x & 0x7fffffff;
    // Below 2^-14 in units of 2^-24: adding 1/2 makes the sum's last bit one of those.
    u32 small = bits<u32>(bits<f32>(magnitude) + 0.5f) - 0x3f000000u;
    u32 normal = (magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13;
    u32 h = magnitude >= 0x477ff000 ? 0x7c00 : magnitude < 0x38800000 ? small : normal;
    return magnitude > 0x7f800000 ? 0x7fffu : sign | h;
}
// Towards 0.
inline u32 cut_to_half(u32 x) {
    u32 sign = x >> 16 & 0x8000, magnitude = x & 0x7fffffff;
    u32 small = (u32)(bits<f32>(magnitude < 0x38800000 ? magnitude : 0) * 0x1p24f);
    u32 h = magnitude >= 0x47800000   ? (magnitude == 0x7f800000 ? 0x7c00 : 0x7bff)
            : magnitude < 0x38800000 ? small
                                     : (magnitude - 0x38000000) >> 13;
    return magnitude > 0x7f800000 ? 0x7fffu : sign | h;
}
inline u32 cut_to_bfloat(u32 x) { return (x & 0x7fffffff) > 0x7f800000 ? 0x7fffu : x >> 16; }
inline u32 to_bfloat(u32 x) {
    u32 rounded = (x + 0x7fff + (x >> 16 & 1)) >> 16;
    return (x & 0x7fffffff) > 0x7f800000 ? 0x7fffu : rounded;
}

OP1(HalfToFloat, u32, u16, from_half(a))
OP1(BfloatToFloat, u32, u16, (u32)a << 16)
OP1(FloatToHalf, u16, u32, (u16)to_half(a))
OP1(FloatToBfloat, u16, u32, (u16)to_bfloat(a))
OP1(CutToHalf, u16, u32, (u16)cut_to_half(a))
OP1(CutToBfloat, u16, u32, (u16)cut_to_bfloat(a))
// The first operand goes into the high half.
OP2(FloatsToHalves, u32, u32, u32, to_half(a) << 16 | to_half(b))
OP2(FloatsToBfloats, u32, u32, u32, to_bfloat(a) << 16 | to_bfloat(b))
OP2(CutToHalves, u32, u32, u32, cut_to_half(a) << 16 | cut_to_half(b))
OP2(CutToBfloats, u32, u32, u32, cut_to_bfloat(a) << 16 | cut_to_bfloat(b))
OP1(Narrow, u32, f64, a == a ? bits<u32>((f32)a) : 0x7fffffffu)

// Letters: h is also the register of 8 bits. W: a register may be wider than the type.
#define CAST(to, from, to_letter, from_letter) \
    {"cvt." #to "." #from, to_letter from_letter, unary<Cast<to, from>>}
#define FROM(to, from, to_letter, from_letter) \
    {"cvt.rn." #to "." #from, to_letter from_letter, unary<Cast<to, from>>}
#define WIDTHS(to, letter)                                                              \
    CAST(to, u8, letter, "H"), CAST(to, s8, letter, "H"), CAST(to, u16, letter, "H"),   \
    CAST(to, s16, letter, "H"), CAST(to, u32, letter, "w"), CAST(to, s32, letter, "w"), \
    CAST(to, u64, letter, "d"), CAST(to, s64, letter, "d")
#define FROM_INTEGER(to, letter)                                                        \
    FROM(to, u16, letter, "H"), FROM(to, s16, letter, "H"), FROM(to, u32, letter, "w"), \
    FROM(to, s32, letter, "w"), FROM(to, u64, letter, "d"), FROM(to, s64, letter, "d")
#define TO_INTEGER(to, letter, mode, rounding)                                          \
    {"cvt." #mode "." #to ".f32", letter "f", unary_by_lane<ToInteger<to, f32, rounding>>}, \
    {"cvt." #mode "." #to ".f64", letter "g", unary_by_lane<ToInteger<to, f64, rounding>>}
#define TO_INTEGERS(to, letter)                                                         \
    TO_INTEGER(to, letter, rni, NEAREST), TO_INTEGER(to, letter, rzi, ZERO),            \
    TO_INTEGER(to, letter, rmi, DOWN), TO_INTEGER(to, letter, rpi, UP)
#define TO_INTEGRAL(mode, rounding)                                                     \
    {"cvt." #mode ".f32.f32", "ff", unary<ToIntegral<f32, rounding>>},                  \
    {"cvt." #mode ".f64.f64", "gg", unary<ToIntegral<f64, rounding>>}

const Row CONVERT_ROWS[] = {
    WIDTHS(u8, "H"), WIDTHS(s8, "H"), WIDTHS(u16, "H"), WIDTHS(s16, "H"),
    WIDTHS(u32, "w"), WIDTHS(s32, "w"), WIDTHS(u64, "d"), WIDTHS(s64, "d"),
    FROM_INTEGER(f32, "f"), FROM_INTEGER(f64, "g"),
    TO_INTEGERS(u32, "w"), TO_INTEGERS(s32, "w"), TO_INTEGERS(u64, "d"), TO_INTEGERS(s64, "d"),
    TO_INTEGRAL(rni, NEAREST), TO_INTEGRAL(rzi, ZERO), TO_INTEGRAL(rmi, DOWN), TO_INTEGRAL(rpi, UP),
    {"cvt.sat.f32.f32", "ff", unary<Saturate<f32>>},
    {"cvt.sat.f64.f64", "gg", unary<Saturate<f64>>},
    {"cvt.f64.f32", "gf", unary<Cast<f64, f32>>},
    {"cvt.rn.f32.f64", "fg", unary<Narrow>},
    {"cvt.f32.f16", "fh", unary<HalfToFloat>},
    {"cvt.f32.bf16", "fh", unary<BfloatToFloat>},
    {"cvt.rn.f16.f32", "hf", unary<FloatToHalf>},
    {"cvt.rn.bf16.f32", "hf", unary<FloatToBfloat>},
    {"cvt.rn.f16x2.f32", "wff", binary<FloatsToHalves>},
    {"cvt.rn.bf16x2.f32", "wff", binary<FloatsToBfloats>},
    {"cvt.rz.f16.f32", "hf", unary<CutToHalf>},
    {"cvt.rz.bf16.f32", "hf", unary<CutToBfloat>},
    {"cvt.rz.f16x2.f32", "wff", binary<CutToHalves>},
    {"cvt.rz.bf16x2.f32", "wff", binary<CutToBfloats>},
};

}  // namespace

Rows convert_rows() { return {CONVERT_ROWS, sizeof CONVERT_ROWS / sizeof *CONVERT_ROWS}; }

}  // namespace emu
