//! QFL at target 0 for any beta, as long as f32 is enough.

use super::isa::{Isa, dispatch};
use super::rows::{Loss, QflRow, each_row};
use super::simd::Simd;
use super::storage::Storage;
use super::{NONE, exp_of_sum_or_0, sigmoid};

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
        (isa.is_fused() && beta <= 4.0).then_some(Beta { whole, half, half_low })
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
impl<S: Simd> Loss<S> for Background {
    #[inline(always)]
    fn of(self, s: S, x: S::F, y: S::F, scale: S::F) -> (S::F, S::F) {
        let x = s.select(s.le(y, s.splat(0.0)), x, s.splat(f32::NO_LOSS));
        background_any_beta(s, x, self.0, scale)
    }
}

/// At target 0, times weights that take the place of the targets.
#[derive(Clone, Copy)]
struct Weighted(Beta);
impl<S: Simd> Loss<S> for Weighted {
    #[inline(always)]
    fn of(self, s: S, x: S::F, weight: S::F, scale: S::F) -> (S::F, S::F) {
        let (loss, slope) = background_any_beta(s, x, self.0, s.mul(weight, scale));
        (s.mul(weight, loss), slope)
    }
}

#[inline(always)]
fn rows_body<S: Simd, T: Storage>(
    s: S,
    x: &[T],
    y: &[f32],
    beta: Beta,
    rows: &mut [QflRow],
    grad: Option<&mut [T]>,
) {
    each_row(s, Background(beta), x, y, rows, grad);
}

#[inline(always)]
fn weighted_body<S: Simd, T: Storage>(
    s: S,
    x: &[T],
    weight: &[f32],
    beta: Beta,
    scale: f32,
    grad: Option<&mut [T]>,
) -> f64 {
    let mut rows = [QflRow { left_out: NONE, scale, loss: 0.0 }];
    each_row(s, Weighted(beta), x, weight, &mut rows, grad);
    rows[0].loss
}

dispatch! {
    /// [`qfl_background_rows`](super::qfl_background_rows) for another beta. Where there are targets `y`,
    /// elements with one above 0 give nothing.
    qfl_any_beta_rows<T: Storage> = rows_body(
        x: &[T], y: &[f32], beta: Beta, rows: &mut [QflRow], grad: Option<&mut [T]>,
    ) -> ();
    /// [`qfl_weighted_background`](super::qfl_weighted_background) for another beta.
    qfl_weighted_any_beta<T: Storage> = weighted_body(
        x: &[T], weight: &[f32], beta: Beta, scale: f32, grad: Option<&mut [T]>,
    ) -> f64;
}
