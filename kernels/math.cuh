// The scalar maths of the losses. Its twins are src/math.rs, in f64, and src/vector, in f32 for
// slices: the same names in the same order. Relative errors below hold for finite logits; inf and
// NaN logits give a loss and a gradient that are not finite.
//
// sigmoid and softplus share e = exp(-|x|), which lies in (0, 1], so nothing overflows:
//   sigma(x) = 1 / (1 + e) for x >= 0, else e / (1 + e)      softplus(x) = max(x, 0) + log1p(e)
// log1p is a polynomial. lg2.approx(1 + e) would be shorter, but loses all relative accuracy
// for the logits of easy negatives, where log1p(e) is close to e.
#pragma once
#include "ptx.cuh"

constexpr float LOG2_E = 1.44269504f;
constexpr float LN_2 = 0.693147181f;

struct LossGrad {
    float loss, grad;
};

// log1p(e) / e for e in [0, 1]: minimax, relative error 3e-7.
DEVICE float log1p_ratio(float e) {
    float p = -0.008539197966456413f;
    p = fmaf(p, e, 0.04408959299325943f);
    p = fmaf(p, e, -0.10768165439367294f);
    p = fmaf(p, e, 0.17745237052440643f);
    p = fmaf(p, e, -0.24495461583137512f);
    p = fmaf(p, e, 0.33275479078292847f);
    p = fmaf(p, e, -0.4999740421772003f);
    return fmaf(p, e, 0.9999998211860657f);
}

// log1p(x) for x >= 0.
DEVICE float log1p_positive(float x) {
    return x <= 1.0f ? x * log1p_ratio(x) : log2_approx(1.0f + x) * LN_2;
}

// What every formula needs of a logit.
struct Sigmoid {
    float p, q;    // sigma(x), 1 - sigma(x): both without cancellation
    float log1p_e; // log1p(exp(-|x|))
};

// From e = exp(-|x|).
DEVICE Sigmoid sigmoid(float x, float e) {
    float large = rcp_approx(1.0f + e), small = e * large;
    bool positive = x >= 0.0f;
    return {positive ? large : small, positive ? small : large, e * log1p_ratio(e)};
}

// max(x, 0) + log1p_e, but not finite for x = -inf, where 0 would hide the overflow.
DEVICE float softplus(float x, float log1p_e) {
    return fmaf(fabsf(x), x >= 0.0f ? 1.0f : 0.0f, log1p_e);
}

// softplus(x) - x * y without cancellation.
DEVICE float cross_entropy(float x, float y, float log1p_e) {
    return fmaf(fabsf(x), x >= 0.0f ? 1.0f - y : y, log1p_e);
}

// -log(1 - m) / m for m in [0, 1/2], times N: minimax, relative error 2.4e-7.
template <int N>
DEVICE float log_complement_ratio(float m) {
    constexpr float UNIT = 0.5f * N;
    float r = UNIT * 2.369866132736206f;
    r = fmaf(r, m, UNIT * -2.163086414337158f);
    r = fmaf(r, m, UNIT * 1.5708664655685425f);
    r = fmaf(r, m, UNIT * 0.07603449374437332f);
    r = fmaf(r, m, UNIT * 0.5445013642311096f);
    r = fmaf(r, m, UNIT * 0.6637251973152161f);
    r = fmaf(r, m, UNIT * 1.0000730752944946f);
    return fmaf(r, m, UNIT * 1.999999761581421f);
}

// QFL and its gradient times `scale`, at target 0 and beta = 2:
//   loss = p^2 * softplus(x),  grad = p^2 * (p + 2 * q * softplus(x)).
// `scale` meets p before p^2 does, so that a large one saves what would underflow. With m = min(p, q),
// softplus(x) = (|x| + x) / 2 - log(1 - m), without a select: |x| + x is 0, or 2 * x, or NaN for x = -inf
// and NaN, where an exponential would hide the overflow. Without GRADIENT q may be inaccurate where it is
// small: there softplus(x) is large. TWICE: the loss comes doubled, which takes fewer instructions, but
// logits from 2^127 on overflow.
template <bool GRADIENT, bool TWICE>
DEVICE LossGrad qfl_background(float x, float scale) {
    float t = -LOG2_E * x;
    if (GRADIENT) t = fminf(t, 126.0f);  // q = t * p stays finite
    t = exp2_approx(t);
    const float p = rcp_approx(1.0f + t), q = GRADIENT ? t * p : 1.0f - p, m = fminf(p, q);
    const float half = TWICE ? x : 0.5f * x, positive = half + fabsf(half);
    const float sp = fmaf(m, log_complement_ratio<TWICE ? 2 : 1>(m), positive), square = p * p;
    return {square * sp, square * (scale * fmaf(TWICE ? q : 2.0f * q, sp, p))};
}

// qfl_background for x <= -2, where p, q and softplus(x) are series in e = exp(x): with
// P = log1p_ratio / (1 + e)^2 and Q = (1 + 2 * log1p_ratio) / (1 + e)^3,
//   loss = e^3 * P(e),  grad = e^3 * Q(e).
// Both minimax: relative error 7e-7 of the loss; 2.3e-6 of the gradient, or 5e-5 where it is stored in 16 bits
// (HALF). The third power triples the rounding of x * log2(e), up to 2e-6 above -22. In f32 it is taken out of
// e. In 16 bits, where that would be too much work, it is
//  - halved for all but the least losses: x * log2(e) + 5 rounds less, and e * 2^5 costs nothing, since the
//    coefficients take it back;
//  - spread: what is added differs by a quarter of the last place from one `lane` of a vector to the next, so
//    that the errors of equal logits, which would add up, average out.
// -inf must not come here. This has no twin: it gives what qfl_background gives, with fewer instructions.
template <bool HALF, bool TWICE>
DEVICE LossGrad qfl_confident(float x, float scale, int lane) {
    constexpr float UNIT = TWICE ? 2.0f : 1.0f;
    float e, p, q;
    if (HALF) {
        e = exp2_approx(fmaf(LOG2_E, x, 5.0f + (float)(lane % 4 - 2) * 0x1p-21f));
        p = UNIT * 0x1p-35f * 5.744509696960449f;
        p = fmaf(p, e, UNIT * 0x1p-30f * -6.0922932624816895f);
        p = fmaf(p, e, UNIT * 0x1p-25f * 4.318049907684326f);
        p = fmaf(p, e, UNIT * 0x1p-20f * -2.4997425079345703f);
        p = fmaf(p, e, UNIT * 0x1p-15f * 0.9999997615814209f);
        q = 0x1p-30f * -25.970333099365234f;
        q = fmaf(q, e, 0x1p-25f * 20.743661880493164f);
        q = fmaf(q, e, 0x1p-20f * -9.979496955871582f);
        q = fmaf(q, e, 0x1p-15f * 3.0f);
    } else {
        const float t = LOG2_E * x;
        e = exp2_approx(t);
        e = fmaf(e, fmaf(t, -LN_2, x), e);
        p = UNIT * 5.744503021240234f;
        p = fmaf(p, e, UNIT * -6.092287063598633f);
        p = fmaf(p, e, UNIT * 4.3180460929870605f);
        p = fmaf(p, e, UNIT * -2.4997408390045166f);
        p = fmaf(p, e, UNIT * 0.9999992847442627f);
        q = fmaf(38.3471794128418f, e, -36.13427734375f);
        q = fmaf(q, e, 21.563072204589844f);
        q = fmaf(q, e, -9.998543739318848f);
        q = fmaf(q, e, 3.0f);
    }
    const float cube = e * e * e;
    return {cube * p, cube * (scale * q)};
}

// qfl_background at any target y in [0, 1]: with d = p - y computed as p * (1 - y) - q * y,
//   loss = d^2 * ce,  grad = d * (d^2 + 2 * p * q * ce).
DEVICE LossGrad qfl_soft(float x, float y, float scale) {
    Sigmoid s = sigmoid(x, exp2_approx(-LOG2_E * fabsf(x)));
    float ce = cross_entropy(x, y, s.log1p_e);
    float d = fmaf(s.p, 1.0f - y, -s.q * y), square = d * d;
    return {square * ce, d * (scale * fmaf(2.0f * s.p * s.q, ce, square))};
}

// QFL at target 0 for any beta >= 0:
//   loss = p^beta * softplus(x),  grad = p^beta * (p + beta * q * softplus(x)).
// p^beta = 2^(beta * log2 p), and an error of the exponent is a relative error of the result:
// so log2 p = -|x| * log2(e) [x < 0] - log1p_e * log2(e) is kept in two floats. What the second of
// them makes good is the rounding of products, which must not be contracted: hence __fmul_rn.
DEVICE LossGrad qfl_background_any_beta(float x, float beta, float scale) {
    float size = fminf(fabsf(x), 200.0f);  // e is 0 from 88 on, and the products stay finite
    float t = __fmul_rn(-LOG2_E, size), rest = fmaf(t, -LN_2, -size);
    float e = exp2_approx(t);
    e = fmaf(e, rest, e);
    Sigmoid s = sigmoid(x, e);
    float high = x < 0.0f ? t : 0.0f;
    float low = LOG2_E * ((x < 0.0f ? rest : 0.0f) - s.log1p_e);
    float exponent = __fmul_rn(beta, high);
    exponent = __fadd_rn(exponent, fmaf(beta, low, fmaf(beta, high, -exponent)));
    float power = exp2_approx(exponent), sp = softplus(x, s.log1p_e);
    return {power * sp, power * (scale * fmaf(beta * s.q, sp, s.p))};
}

// exp(-|x|), to 4e-7: the rounding of |x| * log2(e) is taken out. NaN where x is not finite.
DEVICE float exp_of_size(float x) {
    const float t = fmaxf(-LOG2_E * fabsf(x), -200.0f), e = exp2_approx(t);
    return fmaf(e, fmaf(t, -LN_2, -fabsf(x)), e);
}

// QFL at target 0 and beta = 0, which is binary cross entropy: loss = softplus(x), grad = p.
DEVICE LossGrad bce_background(float x, float scale) {
    const float e = exp_of_size(x), large = rcp_approx(1.0f + e);
    return {fmaf(e, log1p_ratio(e), fmaxf(x, 0.0f)), scale * ((x >= 0.0f ? 1.0f : e) * large)};
}

// The same at any target y in [0, 1]: loss = ce, grad = d = p - y. And at beta = 2, as qfl_soft, but as exact at target
// 0 as qfl_background.
DEVICE LossGrad bce_or_qfl_soft(float x, float y, bool beta_is_0, float scale) {
    const Sigmoid s = sigmoid(x, exp_of_size(x));
    const float ce = fmaf(-x, y, fmaxf(x, 0.0f)) + s.log1p_e;  // a product that fma does not round cancels nothing
    const float d = fmaf(s.p, 1.0f - y, -s.q * y), square = d * d;
    if (beta_is_0) return {ce, scale * d};
    return {square * ce, d * (scale * fmaf(2.0f * s.p * s.q, ce, square))};
}
DEVICE LossGrad bce_soft(float x, float y, float scale) { return bce_or_qfl_soft(x, y, true, scale); }

// ---- double precision, for soft targets with beta != 2: for beta < 2 the gradient is so steep
// around p = y that float cannot resolve it. Only labelled elements come here.

DEVICE double reciprocal(double x) {
    double r = rcp_approx(x);
    r = fma(r, fma(-x, r, 1.0), r);
    return fma(r, fma(-x, r, 1.0), r);
}

// exp(x) for x <= 0, to 1e-14; 0 below -700.
DEVICE double exp_negative(double x) {
    if (x < -700.0) return 0.0;
    constexpr double ROUND = 6755399441055744.0;  // adding it leaves an integer in the low bits
    double shifted = fma(x, 1.4426950408889634, ROUND), n = shifted - ROUND;
    double r = fma(n, -1.9082149292705877e-10, fma(n, -0.6931471803691238, x));
    double p = 2.505210838544172e-8;  // 1 / 11!
    p = fma(p, r, 2.755731922398589e-7);
    p = fma(p, r, 2.755731922398589e-6);
    p = fma(p, r, 2.48015873015873e-5);
    p = fma(p, r, 1.984126984126984e-4);
    p = fma(p, r, 1.388888888888889e-3);
    p = fma(p, r, 8.333333333333333e-3);
    p = fma(p, r, 4.1666666666666664e-2);
    p = fma(p, r, 0.16666666666666666);
    p = fma(p, r, 0.5);
    p = fma(p, r, 1.0);
    p = fma(p, r, 1.0);
    return __hiloint2double(__double2hiint(p) + (__double2loint(shifted) << 20), __double2loint(p));
}

// 2 * atanh(z) = log((1 + z) / (1 - z)) for |z| <= 1/3, to 1e-14.
DEVICE double log_ratio(double z) {
    double square = z * z, p = 1.0 / 27;
    p = fma(p, square, 1.0 / 25);
    p = fma(p, square, 1.0 / 23);
    p = fma(p, square, 1.0 / 21);
    p = fma(p, square, 1.0 / 19);
    p = fma(p, square, 1.0 / 17);
    p = fma(p, square, 1.0 / 15);
    p = fma(p, square, 1.0 / 13);
    p = fma(p, square, 1.0 / 11);
    p = fma(p, square, 1.0 / 9);
    p = fma(p, square, 1.0 / 7);
    p = fma(p, square, 1.0 / 5);
    p = fma(p, square, 1.0 / 3);
    p = fma(p, square, 1.0);
    return 2.0 * z * p;
}

// log(x) for a normal x > 0.
DEVICE double log_positive(double x) {
    int high = __double2hiint(x), exponent = (high >> 20) - 1023;
    double m = __hiloint2double((high & 0xfffff) | 0x3ff00000, __double2loint(x));
    if (m > 1.4142135623730951) m *= 0.5, exponent += 1;
    return fma((double)exponent, 0.6931471805599453, log_ratio((m - 1.0) * reciprocal(m + 1.0)));
}

// QFL at any target y in [0, 1] for any beta >= 0: with m = |d|^beta,
//   loss = m * ce,  grad = m * (d + beta * p * q * ce / d), and 0 at d = 0.
// Or (`activated`) of a probability p, and the gradient with respect to it: with logarithms of at least -100,
//   ce = -y * log(p) - (1 - y) * log(q),  grad = m * (d / max(p * q, 1e-12) + beta * ce / d), NaN outside [0, 1].
DEVICE LossGrad qfl_soft_any_beta(float input, float quality, float beta, float scale, bool activated = false) {
    const double x = input, y = quality, size = fabs(x), least = fmin(x, 1.0 - x);
    if (activated && !(least >= 0.0)) return {__uint_as_float(0x7fffffff), __uint_as_float(0x7fffffff)};
    const double e = activated ? -least : exp_negative(-size);
    double p = x, q = 1.0 - x;
    if (!activated) {
        const double large = reciprocal(1.0 + e), small = e * large;
        p = x >= 0.0 ? large : small, q = x >= 0.0 ? small : large;
    }
    const double log1p_e = log_ratio(e * reciprocal(2.0 + e));
    const double d = activated ? x - y : fma(p, 1.0 - y, -q * y), distance = fabs(d);
    double ce = fma(size, x >= 0.0 ? 1.0 - y : y, log1p_e), log = 0.0;
#pragma unroll 1
    for (int of_distance = activated ? 0 : 1; of_distance < 2; ++of_distance) {
        log = log_positive(of_distance ? distance : least);
        if (of_distance) break;
        const double share = x <= 0.5 ? y : 1.0 - y;
        ce = -fma(share, least > 0.0 ? fmax(log, -100.0) : -100.0, (1.0 - share) * log1p_e);
    }
    if (distance < 1e-300) return {beta == 0.0f ? (float)ce : 0.0f * (float)ce, 0.0f * (float)ce};
    const double m = exp_negative(beta * log), slope = activated ? 1.0 : p * q;
    const double of_ce = activated ? d * reciprocal(fmax(p * q, 1e-12)) : d;
    return {(float)(m * ce), (float)(scale * m * fma(beta * slope * ce, reciprocal(d), of_ce))};
}

// ---- distributions over bins

// Where a DFL target lies: bin i = min(floor(t), bins - 2) and its right neighbour share it.
struct TwoHot {
    u32 left;                        // i
    float left_weight, right_weight; // 1 - (t - i), t - i
};

DEVICE TwoHot two_hot(float target, u32 bins) {
    u32 left = min((u32)target, bins - 2);
    float right_weight = target - (float)left;
    return {left, 1.0f - right_weight, right_weight};
}

// exp(z - peak), where peak is the largest logit of the row.
DEVICE float exp_below(float z, float peak) { return exp2_approx((z - peak) * LOG2_E); }

// log(total) for the total of exp_below over a row, one of which is 1. `others` is the total
// without the bins at the peak: the part of `total` that rounding spares when one bin has it all.
constexpr float CONFIDENT = 1.25f;
DEVICE float log_total(float total, float others) {
    return log1p_positive(total < CONFIDENT ? others : total - 1.0f);
}

// DFL = w_l * (lse - z_i) + w_r * (lse - z_(i+1)) with lse = peak + log_total: terms that are
// all positive, so that nothing cancels.
DEVICE float dfl(const TwoHot& t, float peak, float log_total, float z_left, float z_right) {
    return fmaf(t.left_weight, (peak - z_left) + log_total, t.right_weight * ((peak - z_right) + log_total));
}
