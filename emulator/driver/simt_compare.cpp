// setp: of integers, and of floating point with an order (false where there is a NaN) or without
// one (true).
#include "simt_loops.h"

namespace emu {
namespace {

#define COMPARISON(name, T, ...)                                      \
    struct name {                                                     \
        typedef T A;                                                  \
        static inline bool f(A a, A b) { return __VA_ARGS__; }        \
    };
#define INTEGER(suffix, T)                                            \
    COMPARISON(eq_##suffix, T, a == b)                                \
    COMPARISON(ne_##suffix, T, a != b)                                \
    COMPARISON(lt_##suffix, T, a < b)                                 \
    COMPARISON(le_##suffix, T, a <= b)                                \
    COMPARISON(gt_##suffix, T, a > b)                                 \
    COMPARISON(ge_##suffix, T, a >= b)
#define FLOATING(suffix, T)                                           \
    INTEGER(suffix, T)                                                \
    COMPARISON(num_##suffix, T, a == a && b == b)                     \
    COMPARISON(nan_##suffix, T, a != a || b != b)                     \
    COMPARISON(equ_##suffix, T, !(a < b) && !(a > b))                 \
    COMPARISON(neu_##suffix, T, !(a == b))                            \
    COMPARISON(ltu_##suffix, T, !(a >= b))                            \
    COMPARISON(leu_##suffix, T, !(a > b))                             \
    COMPARISON(gtu_##suffix, T, !(a <= b))                            \
    COMPARISON(geu_##suffix, T, !(a < b))
INTEGER(u16, uint16_t)
INTEGER(s16, int16_t)
INTEGER(u32, uint32_t)
INTEGER(s32, int32_t)
INTEGER(u64, uint64_t)
INTEGER(s64, int64_t)
FLOATING(f32, float)
FLOATING(f64, double)
// The ordered "not equal" is false where there is a NaN, unlike C's.
COMPARISON(ordered_ne_f32, float, a < b || a > b)
COMPARISON(ordered_ne_f64, double, a < b || a > b)

#define ROW(comparison, suffix, letters) \
    {"setp." #comparison "." #suffix, letters, compare<comparison##_##suffix>}
#define EQUALITY(suffix, of, letters)                                 \
    {"setp.eq." #suffix, letters, compare<eq_##of>},                  \
    {"setp.ne." #suffix, letters, compare<ne_##of>}
#define ORDER(suffix, letters)                                        \
    ROW(lt, suffix, letters), ROW(le, suffix, letters),               \
    ROW(gt, suffix, letters), ROW(ge, suffix, letters)
#define UNORDERED(suffix, letters)                                    \
    ROW(num, suffix, letters), ROW(nan, suffix, letters),             \
    ROW(equ, suffix, letters), ROW(neu, suffix, letters),             \
    ROW(ltu, suffix, letters), ROW(leu, suffix, letters),             \
    ROW(gtu, suffix, letters), ROW(geu, suffix, letters),             \
    ROW(eq, suffix, letters), {"setp.ne." #suffix, letters, compare<ordered_ne_##suffix>}

const Row COMPARE_ROWS[] = {
    EQUALITY(b16, u16, "phh"), EQUALITY(u16, u16, "phh"), EQUALITY(s16, u16, "phh"),
    EQUALITY(b32, u32, "pww"), EQUALITY(u32, u32, "pww"), EQUALITY(s32, u32, "pww"),
    EQUALITY(b64, u64, "pdd"), EQUALITY(u64, u64, "pdd"), EQUALITY(s64, u64, "pdd"),
    ORDER(u16, "phh"), ORDER(s16, "phh"), ORDER(u32, "pww"), ORDER(s32, "pww"),
    ORDER(u64, "pdd"), ORDER(s64, "pdd"), ORDER(f32, "pff"), ORDER(f64, "pgg"),
    UNORDERED(f32, "pff"), UNORDERED(f64, "pgg"),
};

}  // namespace

Rows compare_rows() { return {COMPARE_ROWS, sizeof COMPARE_ROWS / sizeof *COMPARE_ROWS}; }

}  // namespace emu
