// Integers, bits and predicates.
#include "simt_loops.h"

namespace emu {
namespace {

// Sums and products wrap: they are of the unsigned type.
#define WRAPPING(T)                                                   \
    OP2(add_##T, T, T, T, (T)(a + b))                                 \
    OP2(sub_##T, T, T, T, (T)(a - b))                                 \
    OP2(mul_lo_##T, T, T, T, (T)((u64)a * b))                         \
    OP3(mad_lo_##T, T, T, T, T, (T)((u64)a * b + c))                  \
    OP2(and_##T, T, T, T, (T)(a & b))                                 \
    OP2(or_##T, T, T, T, (T)(a | b))                                  \
    OP2(xor_##T, T, T, T, (T)(a ^ b))                                 \
    OP1(not_##T, T, T, (T)~a)                                         \
    OP1(neg_##T, T, T, (T)(0 - a))                                    \
    OP2(shl_##T, T, T, u32, (T)(b < 8 * sizeof(T) ? (u64)a << (b & 63) : 0))
WRAPPING(u16)
WRAPPING(u32)
WRAPPING(u64)

// Shifted by too many bits, a signed number is its sign, and an unsigned one is 0.
template <class T>
inline T shifted_right(T a, u32 b) {
    const u32 bits = 8 * sizeof(T);
    if (T(-1) < T(0)) return (T)(a >> (b < bits ? b : bits - 1));
    return (T)(b < bits ? a >> (b & (bits - 1)) : 0);
}
#define ORDERED(T)                                                    \
    OP2(min_##T, T, T, T, b < a ? b : a)                              \
    OP2(max_##T, T, T, T, a < b ? b : a)                              \
    OP2(shr_##T, T, T, u32, shifted_right(a, b))
ORDERED(s16)
ORDERED(s32)
ORDERED(s64)
ORDERED(u16)
ORDERED(u32)
ORDERED(u64)

OP1(abs_s32, u32, s32, a < 0 ? 0u - (u32)a : (u32)a)
OP1(abs_s64, u64, s64, a < 0 ? 0ull - (u64)a : (u64)a)
OP2(mul_wide_u16, u32, u16, u16, (u32)a * b)
OP2(mul_wide_s16, s32, s16, s16, (s32)a * b)
OP2(mul_wide_u32, u64, u32, u32, (u64)a * b)
OP2(mul_wide_s32, s64, s32, s32, (s64)a * b)
OP2(mul_hi_u32, u32, u32, u32, (u32)((u64)a * b >> 32))
OP2(mul_hi_s32, s32, s32, s32, (s32)((s64)a * b >> 32))
OP2(mul_hi_u64, u64, u64, u64, (u64)((unsigned __int128)a * b >> 64))
OP2(mul_hi_s64, s64, s64, s64, (s64)((__int128)a * b >> 64))
OP3(mad_wide_u16, u32, u16, u16, u32, (u32)a * b + c)
OP3(mad_wide_u32, u64, u32, u32, u64, (u64)a * b + c)
OP3(mad_wide_s32, u64, s32, s32, u64, (u64)((s64)a * b) + c)
OP3(mad_hi_u32, u32, u32, u32, u32, (u32)((u64)a * b >> 32) + c)
OP1(popc_b32, u32, u32, (u32)__builtin_popcount(a))
OP1(popc_b64, u32, u64, (u32)__builtin_popcountll(a))
OP1(clz_b32, u32, u32, a ? (u32)__builtin_clz(a) : 32)
OP1(clz_b64, u32, u64, a ? (u32)__builtin_clzll(a) : 64)
OP3(bfe_u32, u32, u32, u32, u32,
    (b & 255) > 31 || !(c & 255) ? 0u
    : (c & 255) > 31             ? a >> (b & 31)
                                 : a >> (b & 31) & ((1u << (c & 31)) - 1))

u32 reversed(u32 a) {
    u32 b = 0;
    for (int k = 0; k < 32; ++k) b |= (a >> k & 1) << (31 - k);
    return b;
}
OP1(brev_b32, u32, u32, reversed(a))

// Bytes of two words, chosen by four digits; the highest bit of a digit asks for the byte's sign.
u32 permuted(u32 a, u32 b, u32 c) {
    u64 bytes = (u64)b << 32 | a;
    u32 out = 0;
    for (int k = 0; k < 4; ++k) {
        u32 digit = c >> 4 * k & 15, byte = (u32)(bytes >> 8 * (digit & 7)) & 255;
        out |= (digit & 8 ? (byte & 128 ? 255u : 0u) : byte) << 8 * k;
    }
    return out;
}
OP3(prmt_b32, u32, u32, u32, u32, permuted(a, b, c))
OP3(shf_l_wrap, u32, u32, u32, u32, (u32)(((u64)b << 32 | a) << (c & 31) >> 32))
OP3(shf_r_wrap, u32, u32, u32, u32, (u32)(((u64)b << 32 | a) >> (c & 31)))

// Quotients: a GPU says nothing about a divisor of 0; here it is a fault.
template <class T, bool REMAINDER>
void divide(SimtWarp& w, const Instruction& i, unsigned lanes) {
    const T *a = w.at<const T>(i.r[1]), *b = w.at<const T>(i.r[2]);
    T* out = w.at<T>(i.r[0]);
    for (unsigned left = lanes; left; left &= left - 1) {
        unsigned l = (unsigned)__builtin_ctz(left);
        if (b[l] == 0) {
            now = &w.lanes[l];
            abandon(LAUNCH_FAILED, "integer division by zero");
        }
        // The least number by -1 does not fit; it wraps.
        if (T(-1) < T(0) && b[l] == T(-1)) out[l] = REMAINDER ? T(0) : (T)(0 - (u64)a[l]);
        else out[l] = REMAINDER ? a[l] % b[l] : a[l] / b[l];
    }
}

// `count` bits of a, put into b from bit `start` on.
template <class T>
void bfi(SimtWarp& w, const Instruction& i, unsigned lanes) {
    const T *a = w.at<const T>(i.r[1]), *b = w.at<const T>(i.r[2]);
    const u32 *start = w.at<const u32>(i.r[3]), *count = w.at<const u32>(i.r[4]);
    const unsigned bits = 8 * sizeof(T);
    write_lanes<T>(w, i.r[0], lanes, [=](unsigned l) {
        unsigned s = start[l] & 255, n = count[l] & 255;
        if (s >= bits || n == 0) return b[l];
        T ones = n >= bits ? ~(T)0 : (T)(((T)1 << (n & (bits - 1))) - 1);
        T mask = (T)(ones << s);
        return (T)((b[l] & ~mask) | ((T)(a[l] << s) & mask));
    });
}

void lop3(SimtWarp& w, const Instruction& i, unsigned lanes) {
    const u32 *a = w.at<const u32>(i.r[1]), *b = w.at<const u32>(i.r[2]), *c = w.at<const u32>(i.r[3]);
    const u32 table = w.at<const u32>(i.r[4])[0];
    u32 m[8];
    for (unsigned k = 0; k < 8; ++k) m[k] = table >> k & 1 ? ~0u : 0u;
    write_lanes<u32>(w, i.r[0], lanes, [=](unsigned l) {
        u32 x = a[l], y = b[l], z = c[l];
        return (~x & ~y & ~z & m[0]) | (~x & ~y & z & m[1]) | (~x & y & ~z & m[2]) |
               (~x & y & z & m[3]) | (x & ~y & ~z & m[4]) | (x & ~y & z & m[5]) |
               (x & y & ~z & m[6]) | (x & y & z & m[7]);
    });
}

#define PREDICATE_OP(name, result)                                        \
    void predicate_##name(SimtWarp& w, const Instruction& i, unsigned lanes) { \
        write_predicate(w, i.r[0], lanes, result);                        \
    }
PREDICATE_OP(and, w.predicate(i.r[1]) & w.predicate(i.r[2]))
PREDICATE_OP(or, w.predicate(i.r[1]) | w.predicate(i.r[2]))
PREDICATE_OP(xor, w.predicate(i.r[1]) ^ w.predicate(i.r[2]))
PREDICATE_OP(not, ~w.predicate(i.r[1]))

#define SAME(bits, letters3, letters4, letters2, shift)               \
    {"mul.lo.u" #bits, letters3, binary<mul_lo_u##bits>},             \
    {"mul.lo.s" #bits, letters3, binary<mul_lo_u##bits>},             \
    {"mad.lo.u" #bits, letters4, ternary<mad_lo_u##bits>},            \
    {"mad.lo.s" #bits, letters4, ternary<mad_lo_u##bits>},            \
    {"add.u" #bits, letters3, binary<add_u##bits>},                   \
    {"add.s" #bits, letters3, binary<add_u##bits>},                   \
    {"sub.u" #bits, letters3, binary<sub_u##bits>},                   \
    {"sub.s" #bits, letters3, binary<sub_u##bits>},                   \
    {"and.b" #bits, letters3, binary<and_u##bits>},                   \
    {"or.b" #bits, letters3, binary<or_u##bits>},                     \
    {"xor.b" #bits, letters3, binary<xor_u##bits>},                   \
    {"not.b" #bits, letters2, unary<not_u##bits>},                    \
    {"neg.s" #bits, letters2, unary<neg_u##bits>},                    \
    {"shl.b" #bits, shift, binary<shl_u##bits>},                      \
    {"shr.b" #bits, shift, binary<shr_u##bits>},                      \
    {"shr.u" #bits, shift, binary<shr_u##bits>},                      \
    {"shr.s" #bits, shift, binary<shr_s##bits>},                      \
    {"min.u" #bits, letters3, binary<min_u##bits>},                   \
    {"min.s" #bits, letters3, binary<min_s##bits>},                   \
    {"max.u" #bits, letters3, binary<max_u##bits>},                   \
    {"max.s" #bits, letters3, binary<max_s##bits>}

const Row INTEGER_ROWS[] = {
    SAME(16, "hhh", "hhhh", "hh", "hhw"),
    SAME(32, "www", "wwww", "ww", "www"),
    SAME(64, "ddd", "dddd", "dd", "ddw"),
    {"abs.s32", "ww", unary<abs_s32>},
    {"abs.s64", "dd", unary<abs_s64>},
    {"mul.wide.u16", "whh", binary<mul_wide_u16>},
    {"mul.wide.s16", "whh", binary<mul_wide_s16>},
    {"mul.wide.u32", "dww", binary<mul_wide_u32>},
    {"mul.wide.s32", "dww", binary<mul_wide_s32>},
    {"mul.hi.u32", "www", binary<mul_hi_u32>},
    {"mul.hi.s32", "www", binary<mul_hi_s32>},
    {"mul.hi.u64", "ddd", binary<mul_hi_u64>},
    {"mul.hi.s64", "ddd", binary<mul_hi_s64>},
    {"mad.wide.u16", "whhw", ternary<mad_wide_u16>},
    {"mad.wide.u32", "dwwd", ternary<mad_wide_u32>},
    {"mad.wide.s32", "dwwd", ternary<mad_wide_s32>},
    {"mad.hi.u32", "wwww", ternary<mad_hi_u32>},
    {"div.u32", "www", divide<u32, false>},
    {"div.s32", "www", divide<s32, false>},
    {"div.u64", "ddd", divide<u64, false>},
    {"div.s64", "ddd", divide<s64, false>},
    {"rem.u32", "www", divide<u32, true>},
    {"rem.s32", "www", divide<s32, true>},
    {"rem.u64", "ddd", divide<u64, true>},
    {"rem.s64", "ddd", divide<s64, true>},
    {"popc.b32", "ww", unary<popc_b32>},
    {"popc.b64", "wd", unary<popc_b64>},
    {"clz.b32", "ww", unary<clz_b32>},
    {"clz.b64", "wd", unary<clz_b64>},
    {"brev.b32", "ww", unary<brev_b32>},
    {"bfe.u32", "wwww", ternary<bfe_u32>},
    {"bfi.b32", "wwwww", bfi<u32>},
    {"bfi.b64", "dddww", bfi<u64>},
    {"prmt.b32", "wwww", ternary<prmt_b32>},
    {"shf.l.wrap.b32", "wwww", ternary<shf_l_wrap>},
    {"shf.r.wrap.b32", "wwww", ternary<shf_r_wrap>},
    {"lop3.b32", "wwwwi", lop3},
    {"and.pred", "ppp", predicate_and},
    {"or.pred", "ppp", predicate_or},
    {"xor.pred", "ppp", predicate_xor},
    {"not.pred", "pp", predicate_not},
};

}  // namespace

Rows integer_rows() { return {INTEGER_ROWS, sizeof INTEGER_ROWS / sizeof *INTEGER_ROWS}; }

}  // namespace emu
