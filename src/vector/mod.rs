//! The maths of the losses in f32, over slices. Twin of kernels/math.cuh: the same names in the
//! same order. src/math.rs has the same in f64, for what comes one at a time.
//!
//! The functions of one element are written so that the compiler makes vectors of loops over
//! them: no branches, no calls. [`dispatch!`](isa) compiles the loops for each set of
//! instructions. All sets with fused multiply-add (AVX2 with FMA, NEON) do the same
//! operations in the same order on each element, and so give the same bits; the fallback without
//! it rounds the products too, and gives others within the same tolerances.
//!
//! Relative errors hold for finite logits. Where a logit is inf or NaN, the loss is not finite.

mod isa;
mod rows;
#[cfg(test)]
mod tests;

use half::bf16;
pub use isa::Isa;
use isa::{PORTABLE_FUSED, Set, dispatch};
pub(crate) use rows::{LANES, Lanes, Softmax, any_nan, softmax_rows, sum};

/// a * b + c, rounded once if `FUSED`.
#[inline(always)]
fn fma<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}

const LOG2_E: f32 = std::f32::consts::LOG2_E;
/// ln 2 in two parts; the first has so few digits that its product with an exponent is exact.
const LN_2_HIGH: f32 = 0.693_359_4;
const LN_2_LOW: f32 = -2.121_944_4e-4;
/// Below, e^x is not a normal number, and 0 here.
const LEAST_EXPONENT: f32 = -87.0;

/// e^x for x <= 0: relative error 1e-7.
#[inline(always)]
fn exp<const FUSED: bool>(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // adding it leaves an integer in the low bits
    let shifted = fma::<FUSED>(x, LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = fma::<FUSED>(n, -LN_2_LOW, fma::<FUSED>(n, -LN_2_HIGH, x));
    let mut p = 0.001_381_446_7;
    p = fma::<FUSED>(p, r, 0.008_368_781);
    p = fma::<FUSED>(p, r, 0.041_668_393);
    p = fma::<FUSED>(p, r, 0.166_665_2);
    p = fma::<FUSED>(p, r, 0.499_999_94);
    p = fma::<FUSED>(p, r * r, r) + 1.0;
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3f80_0000));
    // A NaN is not below, and stays.
    if x < LEAST_EXPONENT { 0.0 } else { p * power }
}

/// log1p(e) / e for e in [0, 1]: minimax, relative error 3e-7.
#[inline(always)]
fn log1p_ratio<const FUSED: bool>(e: f32) -> f32 {
    let mut p = -0.008_539_198;
    p = fma::<FUSED>(p, e, 0.044_089_593);
    p = fma::<FUSED>(p, e, -0.107_681_654);
    p = fma::<FUSED>(p, e, 0.177_452_37);
    p = fma::<FUSED>(p, e, -0.244_954_62);
    p = fma::<FUSED>(p, e, 0.332_754_8);
    p = fma::<FUSED>(p, e, -0.499_974_04);
    fma::<FUSED>(p, e, 0.999_999_8)
}

/// log1p(x) for x >= 0: with 1 + x = 2^k * (1 + m), k * ln 2 + log1p(m).
#[inline(always)]
fn log1p_positive<const FUSED: bool>(x: f32) -> f32 {
    let bits = (1.0 + x).to_bits();
    let k = (bits >> 23) as i32 - 127;
    let mantissa = f32::from_bits((bits & 0x007f_ffff) | 0x3f80_0000);
    let (k, m) = if x < 1.0 { (0.0, x) } else { (k as f32, mantissa - 1.0) };
    fma::<FUSED>(k, std::f32::consts::LN_2, m * log1p_ratio::<FUSED>(m))
}

/// What every formula needs of a logit.
struct Sigmoid {
    /// sigma(x), and 1 - sigma(x): both without cancellation.
    p: f32,
    q: f32,
    /// log1p(exp(-|x|)).
    log1p_e: f32,
}

#[inline(always)]
fn sigmoid<const FUSED: bool>(x: f32) -> Sigmoid {
    let e = exp::<FUSED>(-x.abs());
    let large = 1.0 / (1.0 + e);
    let small = e * large;
    let positive = x >= 0.0;
    let (p, q) = (if positive { large } else { small }, if positive { small } else { large });
    Sigmoid { p, q, log1p_e: e * log1p_ratio::<FUSED>(e) }
}

/// max(x, 0) + log1p_e, but not finite for x = -inf, where 0 would hide the overflow.
#[inline(always)]
fn softplus<const FUSED: bool>(x: f32, log1p_e: f32) -> f32 {
    fma::<FUSED>(x.abs(), if x >= 0.0 { 1.0 } else { 0.0 }, log1p_e)
}

/// softplus(x) - x * y without cancellation.
#[inline(always)]
fn cross_entropy<const FUSED: bool>(x: f32, y: f32, log1p_e: f32) -> f32 {
    fma::<FUSED>(x.abs(), if x >= 0.0 { 1.0 - y } else { y }, log1p_e)
}

/// Where the results for elements go. The gradients are as many as the losses, or none.
pub(crate) struct Out<'a> {
    pub loss: &'a mut [f32],
    pub grad: Option<&'a mut [f32]>,
}

/// QFL and its gradient times `scale`, at target 0 and beta = 2:
/// loss = p^2 * softplus(x), grad = p^2 * (p + 2 * q * softplus(x)).
/// `scale` meets p before p^2 does, so that a large one saves what would underflow.
#[inline(always)]
fn background<const FUSED: bool>(x: f32, scale: f32) -> (f32, f32) {
    let s = sigmoid::<FUSED>(x);
    let (sp, square) = (softplus::<FUSED>(x, s.log1p_e), s.p * s.p);
    (square * sp, square * (scale * fma::<FUSED>(2.0 * s.q, sp, s.p)))
}

/// The same at any target y in [0, 1]: with d = p - y computed as p * (1 - y) - q * y,
/// loss = d^2 * ce, grad = d * (d^2 + 2 * p * q * ce).
#[inline(always)]
fn soft<const FUSED: bool>(x: f32, y: f32, scale: f32) -> (f32, f32) {
    let s = sigmoid::<FUSED>(x);
    let ce = cross_entropy::<FUSED>(x, y, s.log1p_e);
    let d = fma::<FUSED>(s.p, 1.0 - y, -s.q * y);
    let square = d * d;
    (square * ce, d * (scale * fma::<FUSED>(2.0 * s.p * s.q, ce, square)))
}

#[inline(always)]
fn qfl_background_body<const FUSED: bool>(x: &[f32], scale: &[f32], out: Out) {
    let n = x.len();
    let loss = &mut out.loss[..n];
    if let Some(grad) = out.grad {
        let (scale, grad) = (&scale[..n], &mut grad[..n]);
        for i in 0..n {
            (loss[i], grad[i]) = background::<FUSED>(x[i], scale[i]);
        }
    } else {
        for i in 0..n {
            loss[i] = background::<FUSED>(x[i], 0.0).0;
        }
    }
}

#[inline(always)]
fn qfl_soft_body<const FUSED: bool>(x: &[f32], y: &[f32], scale: &[f32], out: Out) {
    // Not f32::clamp, whose check of the bounds hinders; NaN has been looked for.
    let clamp = |y: f32| {
        let y = if y > 0.0 { y } else { 0.0 };
        if y < 1.0 { y } else { 1.0 }
    };
    let n = x.len();
    let (y, loss) = (&y[..n], &mut out.loss[..n]);
    if let Some(grad) = out.grad {
        let (scale, grad) = (&scale[..n], &mut grad[..n]);
        for i in 0..n {
            (loss[i], grad[i]) = soft::<FUSED>(x[i], clamp(y[i]), scale[i]);
        }
    } else {
        for i in 0..n {
            loss[i] = soft::<FUSED>(x[i], clamp(y[i]), 0.0).0;
        }
    }
}

#[inline(always)]
fn widen_bf16_body<const FUSED: bool>(from: &[bf16], to: &mut [f32]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = f32::from_bits(u32::from(from.to_bits()) << 16);
    }
}

/// To the nearest, ties to even; NaN stays NaN.
#[inline(always)]
fn narrow_bf16_body<const FUSED: bool>(from: &[f32], to: &mut [bf16]) {
    for (to, from) in to.iter_mut().zip(from) {
        let bits = from.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
        let bits = if bits & 0x7fff_ffff > 0x7f80_0000 { 0x7fc0_0000 } else { rounded };
        *to = bf16::from_bits((bits >> 16) as u16);
    }
}

dispatch! {
    /// QFL of elements with target 0, at beta = 2. The gradients are multiplied by `scale`.
    qfl_background = qfl_background_body(x: &[f32], scale: &[f32], out: Out);
    /// QFL of elements with targets `y`, which are clamped to [0, 1], at beta = 2.
    qfl_soft = qfl_soft_body(x: &[f32], y: &[f32], scale: &[f32], out: Out);
    /// The values of bf16, exactly.
    widen_bf16 = widen_bf16_body(from: &[bf16], to: &mut [f32]);
    /// The nearest values in bf16.
    narrow_bf16 = narrow_bf16_body(from: &[f32], to: &mut [bf16]);
}
