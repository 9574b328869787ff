//! QFL at target 0 for any beta, as long as f32 is enough; and at any target for beta 0.

use super::isa::Isa;
use super::rows::{Given, Loss, QflRow};
use super::simd::Simd;
use super::storage::Storage;
use super::{cross_entropy, exp_of_sum_or_0, losses_of_rows, sigmoid};

/// A beta that the functions below take, halved, in two f32.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Beta {
    whole: f32,
    half: f32,
    half_low: f32,
}

impl Beta {
    /// `None` where f32 is not enough: an error of log1p(e) comes out beta times as large, and without fused
    /// multiply-add that of beta * x is not known.
    pub(crate) fn new(isa: Isa, beta: f64) -> Option<Beta> {
        let (whole, half) = (beta as f32, (0.5 * beta) as f32);
        let half_low = (0.5 * beta - f64::from(half)) as f32;
        let is_enough = beta == 0.0 || (isa.is_fused() && beta <= 4.0);
        is_enough.then_some(Beta { whole, half, half_low })
    }

    /// Binary cross entropy, which needs no power.
    pub(crate) fn is_0(self) -> bool {
        self.whole == 0.0
    }
}

/// QFL and its gradient times `scale`, at target 0:
/// loss = p^beta * softplus(x), grad = p^beta * (p + beta * q * softplus(x)).
/// p^beta = exp(beta * log p), and an error of the exponent is a relative error of the result: so
/// log p = min(x, 0) - log1p_e is kept in its two parts. Half of the exponent, twice: a large `scale` saves
/// what the whole would lose below 2^-126.
#[inline(always)]
fn background_any_beta<S: Simd>(s: S, x: S::F, beta: Beta, scale: S::F) -> (S::F, S::F) {
    let zero = s.splat(0.0);
    let of_x = sigmoid(s, x);
    let softplus = s.fma(x, zero, s.add(s.max(x, zero), of_x.log1p_e)); // NaN for inf
    // Below -200 p is 0 itself.
    let log_p = s.max(s.min(x, zero), s.splat(-200.0));
    let (half, half_low) = (s.splat(beta.half), s.splat(beta.half_low));
    let exponent = s.mul(half, log_p);
    let rest = s.fma(half, log_p, s.sub(zero, exponent));
    let low = s.fma(half_low, log_p, s.sub(rest, s.mul(half, of_x.log1p_e)));
    let root = exp_of_sum_or_0(s, exponent, low);
    let slope = s.fma(s.mul(s.splat(beta.whole), of_x.q), softplus, of_x.p);
    (s.mul(root, s.mul(root, softplus)), s.mul(root, s.mul(root, s.mul(scale, slope))))
}

/// At target 0. Elements with a target above it give nothing.
#[derive(Clone, Copy)]
struct Background(Beta);
impl Loss for Background {
    const IS_FUSED: bool = true;
    #[inline(always)]
    fn of<S: Simd>(self, s: S, x: S::F, y: S::F, scale: S::F) -> (S::F, S::F) {
        let x = s.select(s.le(y, s.splat(0.0)), x, s.splat(f32::NO_LOSS));
        background_any_beta(s, x, self.0, scale)
    }
}

/// At target 0 and beta 0: loss = softplus(x), grad = p.
#[derive(Clone, Copy)]
struct Bce;
impl Loss for Bce {
    #[inline(always)]
    fn of<S: Simd>(self, s: S, x: S::F, _: S::F, scale: S::F) -> (S::F, S::F) {
        let (zero, of_x) = (s.splat(0.0), sigmoid(s, x));
        let softplus = s.fma(x, zero, s.add(s.max(x, zero), of_x.log1p_e)); // NaN for inf
        (softplus, s.mul(scale, of_x.p))
    }
}

/// At any target, which is clamped to [0, 1], and beta 0: loss = ce, grad = p - y.
#[derive(Clone, Copy)]
struct SoftBce;
impl Loss for SoftBce {
    #[inline(always)]
    fn of<S: Simd>(self, s: S, x: S::F, y: S::F, scale: S::F) -> (S::F, S::F) {
        let (zero, one) = (s.splat(0.0), s.splat(1.0));
        let (of_x, y) = (sigmoid(s, x), s.min(s.max(y, zero), one));
        let ce = s.fma(x, zero, cross_entropy(s, x, y, of_x.log1p_e)); // NaN for inf
        let d = s.fma(of_x.p, s.sub(one, y), s.sub(zero, s.mul(of_x.q, y)));
        (ce, s.mul(scale, d))
    }
}

/// [`qfl_rows`](super::qfl_rows) for another beta than 2.
pub(super) fn qfl_rows<T: Storage>(
    isa: Isa,
    beta: Beta,
    x: &[T],
    given: Given,
    rows: &mut [QflRow],
    grad: Option<&mut [T]>,
) {
    match (beta.is_0(), given.targets.is_empty()) {
        (true, true) => losses_of_rows(isa, Bce, x, given, rows, grad),
        (true, false) => losses_of_rows(isa, SoftBce, x, given, rows, grad),
        (false, _) => losses_of_rows(isa, Background(beta), x, given, rows, grad),
    }
}
