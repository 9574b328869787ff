//! The maths of the losses in f32, over slices. Twin of kernels/math.cuh: the same names in the
//! same order. src/math.rs has the same in f64, for what comes one at a time.
//!
//! All of it is over vectors of 16 lanes, for each set of instructions ([`simd`]): no calls in the
//! loops, and branches for whole vectors alone. What is left over of a row goes through the same
//! code. All sets with fused multiply-add (AVX-512, AVX2 with FMA, NEON) do the same operations in
//! the same order on each element, and so give the same bits; the fallback without it rounds the
//! products too, and gives others within the same tolerances.
//!
//! Relative errors hold for finite logits. Where a logit is inf or NaN, the loss is not finite.

mod any_beta;
mod dfl;
mod integral;
mod isa;
mod rows;
mod simd;
mod storage;
#[cfg(test)]
mod tests;

pub(crate) use any_beta::Beta;
pub(crate) use dfl::{DflRows, dfl_rows};
pub(crate) use integral::{MOST_BINS, integral_columns, integral_rows};
pub use isa::Isa;
use isa::dispatch;
pub(crate) use rows::{Given, QflRow};
use rows::{Loss, each_row};
use simd::Simd;
pub(crate) use simd::{LANES, Lanes};
pub use storage::Storage;

/// The polynomial of x with these coefficients, an even number of them, the highest first: of pairs in x^2,
/// for which a processor waits half as long.
#[inline(always)]
fn polynomial<S: Simd, const N: usize>(s: S, x: S::F, coefficients: [f32; N]) -> S::F {
    const { assert!(N.is_multiple_of(2)) };
    let square = s.mul(x, x);
    let mut p = s.fma(s.splat(coefficients[0]), x, s.splat(coefficients[1]));
    for i in 1..N / 2 {
        let pair = s.fma(s.splat(coefficients[2 * i]), x, s.splat(coefficients[2 * i + 1]));
        p = s.fma(p, square, pair);
    }
    p
}

/// From -87 to 87, e^x is a normal number.
const LARGEST_EXPONENT: f32 = 87.0;

/// e^x for |x| <= 87: relative error 2e-7, and 4e-7 at the ends. A NaN does not always stay one.
#[inline(always)]
fn exp<S: Simd>(s: S, x: S::F) -> S::F {
    let shifted = s.fma(x, s.splat(std::f32::consts::LOG2_E), s.splat(ROUND));
    let n = s.sub(shifted, s.splat(ROUND));
    let r = if S::FUSED {
        s.fma(n, s.splat(-std::f32::consts::LN_2), x)
    } else {
        // ln 2 in two parts; the first has so few digits that its product with n is exact.
        s.sub(s.sub(x, s.mul(n, s.splat(0.693_359_4))), s.mul(n, s.splat(-2.121_944_4e-4)))
    };
    exp_of_rest(s, r, shifted)
}

/// e^(x + low) for sums down to -87, and 0 below, with fused multiply-add: relative error 2e-7.
#[inline(always)]
fn exp_of_sum_or_0<S: Simd>(s: S, x: S::F, low: S::F) -> S::F {
    let (sum, least) = (s.add(x, low), s.splat(-LARGEST_EXPONENT));
    let shifted = s.fma(s.max(sum, least), s.splat(std::f32::consts::LOG2_E), s.splat(ROUND));
    let n = s.sub(shifted, s.splat(ROUND));
    let r = s.fma(n, s.splat(-std::f32::consts::LN_2), x);
    let e = exp_of_rest(s, s.add(r, s.fma(n, s.splat(1.904_654_3e-9), low)), shifted);
    s.select(s.le(least, sum), e, s.splat(0.0))
}

/// Adding it leaves an integer in the low bits.
const ROUND: f32 = 12_582_912.0;

/// e^r * 2^n for a small r and the n in the low bits of `shifted`.
#[inline(always)]
fn exp_of_rest<S: Simd>(s: S, r: S::F, shifted: S::F) -> S::F {
    let e = polynomial(s, r, [0.008_312_521, 0.041_890_156, 0.166_671_14, 0.499_992_3, 1.0, 1.0]);
    s.add_exponent(e, shifted)
}

/// e^x for x <= 87, and 0 below -87: what is 0 stays 0 times a logit of 1e38.
#[inline(always)]
fn exp_or_0<S: Simd>(s: S, x: S::F) -> S::F {
    let least = s.splat(-LARGEST_EXPONENT);
    let e = exp(s, s.max(x, least));
    s.select(s.le(least, x), e, s.splat(0.0))
}

/// log1p(e) / e for e in [0, 1]: minimax, relative error 3e-7.
#[inline(always)]
fn log1p_ratio<S: Simd>(s: S, e: S::F) -> S::F {
    let coefficients = [
        -0.008_539_198,
        0.044_089_593,
        -0.107_681_654,
        0.177_452_37,
        -0.244_954_62,
        0.332_754_8,
        -0.499_974_04,
        0.999_999_8,
    ];
    polynomial(s, e, coefficients)
}

/// log1p(x) for x >= 0: with 1 + x = 2^k * (1 + m), k * ln 2 + log1p(m).
#[inline(always)]
fn log1p_positive<S: Simd>(s: S, x: S::F) -> S::F {
    let one = s.splat(1.0);
    let (k, mantissa) = s.split(s.add(one, x));
    let large = s.le(one, x);
    let k = s.select(large, k, s.splat(0.0));
    let m = s.select(large, s.sub(mantissa, one), x);
    s.fma(k, s.splat(std::f32::consts::LN_2), s.mul(m, log1p_ratio(s, m)))
}

/// What every formula needs of a logit.
struct Sigmoid<F> {
    /// sigma(x), and 1 - sigma(x): both without cancellation.
    p: F,
    q: F,
    /// log1p(exp(-|x|)).
    log1p_e: F,
}

#[inline(always)]
fn sigmoid<S: Simd>(s: S, x: S::F) -> Sigmoid<S::F> {
    let (zero, one) = (s.splat(0.0), s.splat(1.0));
    let e = exp_or_0(s, s.sub(zero, s.abs(x)));
    let large = s.div(one, s.add(one, e));
    let small = s.mul(e, large);
    let positive = s.le(zero, x);
    let (p, q) = (s.select(positive, large, small), s.select(positive, small, large));
    Sigmoid { p, q, log1p_e: s.mul(e, log1p_ratio(s, e)) }
}

/// softplus(x) - x * y without cancellation.
#[inline(always)]
fn cross_entropy<S: Simd>(s: S, x: S::F, y: S::F, log1p_e: S::F) -> S::F {
    let share = s.select(s.le(s.splat(0.0), x), s.sub(s.splat(1.0), y), y);
    s.fma(s.abs(x), share, log1p_e)
}

/// -2 log(1 - m) / m for m in [0, 0.5]: minimax, relative error 2e-7.
#[inline(always)]
fn log_complement_ratio<S: Simd>(s: S, m: S::F) -> S::F {
    let coefficients = [
        2.369_862,
        -2.163_079_3,
        1.570_861_3,
        0.076_036_304,
        0.544_501_07,
        0.663_725_26,
        1.000_073_1,
        1.999_999_8,
    ];
    polynomial(s, m, coefficients)
}

/// QFL and its gradient times `scale`, at target 0 and beta = 2:
/// loss = p^2 * softplus(x), grad = p^2 * (p + 2 * q * softplus(x)).
/// 2 * softplus(x) = x + |x| - 2 * log(1 - min(p, q)) needs no choice by the sign of x, and is not
/// finite where x is not. `scale` meets p before p^2 does, so that a large one saves what would
/// underflow.
#[inline(always)]
fn background<S: Simd>(s: S, x: S::F, scale: S::F) -> (S::F, S::F) {
    let one = s.splat(1.0);
    let t = exp_or_0(s, s.min(s.sub(s.splat(0.0), x), s.splat(LARGEST_EXPONENT)));
    let p = s.div(one, s.add(one, t));
    let q = s.mul(t, p);
    let m = s.min(p, q);
    let twice_softplus = s.fma(m, log_complement_ratio(s, m), s.add(x, s.abs(x)));
    let square = s.mul(p, p);
    let loss = s.mul(s.mul(s.splat(0.5), square), twice_softplus);
    (loss, s.mul(square, s.mul(scale, s.fma(q, twice_softplus, p))))
}

/// `background` for x from -87 to -2, where p, q and softplus(x) are series in e = exp(x): with
/// P = log1p_ratio / (1 + e)^2 and Q = (1 + 2 * log1p_ratio) / (1 + e)^3, both minimax with relative
/// error 1e-7, loss = e^3 * P(e), grad = e^3 * Q(e).
#[inline(always)]
fn confident<S: Simd>(s: S, x: S::F, scale: S::F) -> (S::F, S::F) {
    let e = exp(s, x);
    let p = polynomial(s, e, [-6.908_323, 8.109_856, -6.376_722_3, 4.332_08, -2.499_985_5, 1.0]);
    let q = polynomial(s, e, [-52.019_855, 55.764_236, -38.152_405, 21.655_714, -9.999_871, 2.999_999_8]);
    let cube = s.mul(s.mul(e, e), e);
    (s.mul(cube, p), s.mul(cube, s.mul(scale, q)))
}

/// Whether all are where `confident` holds. No NaN is.
#[inline(always)]
fn are_confident<S: Simd>(s: S, x: S::F) -> bool {
    s.all_within(s.splat(-LARGEST_EXPONENT), x, s.splat(-2.0))
}

/// The same at any target y in [0, 1]: with d = p - y computed as p * (1 - y) - q * y,
/// loss = d^2 * ce, grad = d * (d^2 + 2 * p * q * ce).
#[inline(always)]
fn soft<S: Simd>(s: S, x: S::F, y: S::F, scale: S::F) -> (S::F, S::F) {
    let Sigmoid { p, q, log1p_e } = sigmoid(s, x);
    let ce = cross_entropy(s, x, y, log1p_e);
    let d = s.fma(p, s.sub(s.splat(1.0), y), s.sub(s.splat(0.0), s.mul(q, y)));
    let square = s.mul(d, d);
    let slope = s.fma(s.mul(s.add(p, p), q), ce, square);
    (s.mul(square, ce), s.mul(d, s.mul(scale, slope)))
}

/// QFL at target 0.
#[derive(Clone, Copy)]
struct Background;
impl Loss for Background {
    #[inline(always)]
    fn of<S: Simd>(self, s: S, x: S::F, _: S::F, scale: S::F) -> (S::F, S::F) {
        if are_confident(s, x) { confident(s, x, scale) } else { background(s, x, scale) }
    }
}

/// QFL at targets that are clamped to [0, 1].
#[derive(Clone, Copy)]
struct Soft;
impl Loss for Soft {
    #[inline(always)]
    fn of<S: Simd>(self, s: S, x: S::F, y: S::F, scale: S::F) -> (S::F, S::F) {
        soft(s, x, s.min(s.max(y, s.splat(0.0)), s.splat(1.0)), scale)
    }
}

/// The losses of rows of equally many logits, and their gradients, if asked for, as many as logits. `beta`: if it is
/// not 2. At one that is neither 2 nor 0, elements with a target above 0 give nothing.
pub(crate) fn qfl_rows<T: Storage>(
    isa: Isa,
    beta: Option<Beta>,
    x: &[T],
    given: Given,
    rows: &mut [QflRow],
    grad: Option<&mut [T]>,
) {
    assert!(T::SINGLE, "f32 is enough"); // and so nothing here is compiled for f64
    match beta {
        None if given.targets.is_empty() => losses_of_rows(isa, Background, x, given, rows, grad),
        None => losses_of_rows(isa, Soft, x, given, rows, grad),
        Some(beta) => any_beta::qfl_rows(isa, beta, x, given, rows, grad),
    }
}

/// As [`each_row`], with weights where there are some.
fn losses_of_rows<T: Storage>(
    isa: Isa,
    losses: impl Loss,
    x: &[T],
    given: Given,
    rows: &mut [QflRow],
    grad: Option<&mut [T]>,
) {
    if given.weights.is_empty() {
        each_row_on::<T, false>(isa, losses, x, given, rows, grad);
    } else {
        each_row_on::<T, true>(isa, losses, x, given, rows, grad);
    }
}

/// The loss of logits with target 0, at any beta: as [`qfl_rows`]. Gradients are multiplied by `scale`. There are as
/// many weights as logits, or none.
pub(crate) fn qfl_background<T: Storage>(
    isa: Isa,
    beta: Option<Beta>,
    x: &[T],
    weights: &[f32],
    scale: f32,
    grad: Option<&mut [T]>,
) -> f64 {
    let mut rows = [QflRow { left_out: NONE, scale, loss: 0.0 }];
    qfl_rows(isa, beta, x, Given { targets: &[], weights }, &mut rows, grad);
    rows[0].loss
}

/// The number of no element.
pub(crate) const NONE: usize = usize::MAX;

/// Whether any is NaN.
#[inline(always)]
fn any_nan_body<S: Simd>(_: S, values: &[f32]) -> bool {
    let mut any = false;
    for value in values {
        any |= value.is_nan();
    }
    any
}

/// The least and the largest size of those that are not 0, as bits are ordered.
#[inline(always)]
fn sizes_body<S: Simd>(_: S, values: &[f32]) -> [f32; 2] {
    let (mut least, mut most) = (u32::MAX, 0);
    for value in values {
        let size = value.to_bits() & 0x7fff_ffff;
        least = least.min(size.wrapping_sub(1)); // 0 becomes the largest
        most = most.max(size);
    }
    if most == 0 { [0.0; 2] } else { [f32::from_bits(least + 1), f32::from_bits(most)] }
}

dispatch! {
    each_row_on<T: Storage, const WEIGHTED: bool> = each_row(
        losses: impl Loss, x: &[T], given: Given<'_>, rows: &mut [QflRow], grad: Option<&mut [T]>,
    ) -> ();
    /// Whether any is NaN.
    any_nan = any_nan_body(values: &[f32]) -> bool;
    /// The least and the largest size of those that are not 0; zeros without any.
    sizes = sizes_body(values: &[f32]) -> [f32; 2];
}
