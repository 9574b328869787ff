//! The scalar maths of the losses, in f64. Its twin is kernels/math.cuh: the same names in the
//! same order, there in f32. Logits that are not finite give a loss and a gradient that are not
//! finite.
//!
//! sigmoid and softplus share e = exp(-|x|), which lies in (0, 1], so nothing overflows:
//! sigma(x) = 1 / (1 + e) for x >= 0, else e / (1 + e); softplus(x) = max(x, 0) + log1p(e).

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct LossGrad {
    pub loss: f64,
    pub grad: f64,
}

/// What every formula needs of a logit.
struct Sigmoid {
    /// sigma(x), and 1 - sigma(x): both without cancellation.
    p: f64,
    q: f64,
    /// log1p(exp(-|x|)).
    log1p_e: f64,
}

fn sigmoid(x: f64) -> Sigmoid {
    let e = (-x.abs()).exp();
    let (large, small) = (1.0 / (1.0 + e), e / (1.0 + e));
    let (p, q) = if x >= 0.0 { (large, small) } else { (small, large) };
    Sigmoid { p, q, log1p_e: e.ln_1p() }
}

/// max(x, 0) + log1p_e, but not finite for x = -inf, where 0 would hide the overflow.
fn softplus(x: f64, log1p_e: f64) -> f64 {
    x.abs() * f64::from(u8::from(x >= 0.0)) + log1p_e
}

/// softplus(x) - x * y without cancellation.
fn cross_entropy(x: f64, y: f64, log1p_e: f64) -> f64 {
    x.abs() * if x >= 0.0 { 1.0 - y } else { y } + log1p_e
}

/// base^beta for base in [0, 1]; 0^0 is 1.
fn power(base: f64, beta: f64) -> f64 {
    match beta {
        2.0 => base * base,
        0.0 => 1.0,
        _ => base.powf(beta),
    }
}

/// QFL and its gradient at target 0:
/// loss = p^beta * softplus(x), grad = p^beta * (p + beta * q * softplus(x)).
pub(crate) fn qfl_background(x: f64, beta: f64) -> LossGrad {
    let s = sigmoid(x);
    let (softplus, power) = (softplus(x, s.log1p_e), power(s.p, beta));
    LossGrad { loss: power * softplus, grad: power * (s.p + beta * s.q * softplus) }
}

/// The same at any target y in [0, 1]: with d = p - y computed as p * (1 - y) - q * y and
/// m = |d|^beta, loss = m * ce, grad = m * (d + beta * p * q * ce / d), and 0 at d = 0.
pub(crate) fn qfl_soft(x: f64, y: f64, beta: f64) -> LossGrad {
    let s = sigmoid(x);
    let ce = cross_entropy(x, y, s.log1p_e);
    let d = s.p * (1.0 - y) - s.q * y;
    let m = power(d.abs(), beta);
    let grad = if d == 0.0 { 0.0 * ce } else { m * (d + beta * s.p * s.q * ce / d) };
    LossGrad { loss: m * ce, grad }
}

/// QFL of a probability p instead of a logit, and its gradient with respect to p, at any target y in [0, 1]: with
/// ce = -y * log(p) - (1 - y) * log(1 - p), whose logarithms are at least -100, d = p - y and m = |d|^beta,
/// loss = m * ce, grad = m * (d / max(p * (1 - p), 1e-12) + beta * ce / d), and 0 at d = 0. NaN outside [0, 1].
pub(crate) fn qfl_of_probability(p: f64, y: f64, beta: f64) -> LossGrad {
    if !(0.0..=1.0).contains(&p) {
        return LossGrad { loss: f64::NAN, grad: f64::NAN };
    }
    let ce = -y * p.ln().max(-100.0) - (1.0 - y) * (-p).ln_1p().max(-100.0);
    let d = p - y;
    let m = power(d.abs(), beta);
    let grad = if d == 0.0 { 0.0 } else { m * (d / (p * (1.0 - p)).max(1e-12) + beta * ce / d) };
    LossGrad { loss: m * ce, grad }
}

/// Where a DFL target lies: bin i = min(floor(t), bins - 2) and its right neighbour share it.
pub(crate) struct TwoHot {
    pub left: usize,
    pub left_weight: f64,
    pub right_weight: f64,
}

pub(crate) fn two_hot(target: f64, bins: usize) -> TwoHot {
    let left = (target as usize).min(bins - 2);
    let right_weight = target - left as f64;
    TwoHot { left, left_weight: 1.0 - right_weight, right_weight }
}

/// The softmax of a row. Logits that are not finite make `total` NaN.
pub(crate) struct Softmax {
    /// The largest logit.
    pub peak: f64,
    /// The total of exp(z - peak).
    pub total: f64,
    /// log-sum-exp = peak + log_total.
    pub log_total: f64,
}

pub(crate) fn softmax(logits: impl Iterator<Item = f64> + Clone) -> Softmax {
    let peak = logits.clone().fold(f64::NEG_INFINITY, f64::max);
    // `others` leaves out the first bin at the peak: what rounding would lose of the total when
    // one bin has it all.
    let (mut others, mut peaks) = (0.0, 0u32);
    for z in logits {
        if z == peak && z.is_finite() {
            peaks += 1;
        } else {
            others += exp_below(z, peak) + z * 0.0;
        }
    }
    others += f64::from(peaks.max(1) - 1);
    Softmax { peak, total: 1.0 + others, log_total: others.ln_1p() }
}

/// exp(z - peak), where peak is the largest logit of the row.
pub(crate) fn exp_below(z: f64, peak: f64) -> f64 {
    (z - peak).exp()
}

/// DFL = w_l * (lse - z_i) + w_r * (lse - z_(i+1)) with lse = peak + log_total: terms that are
/// all positive, so that nothing cancels.
pub(crate) fn dfl(t: &TwoHot, softmax: &Softmax, z_left: f64, z_right: f64) -> f64 {
    t.left_weight * ((softmax.peak - z_left) + softmax.log_total)
        + t.right_weight * ((softmax.peak - z_right) + softmax.log_total)
}
