//! Equations (1) to (5): the operations on rows of logits.

/// (1), (2): the loss of a logit `x` with the target `y`, and its derivative.
pub fn qfl(x: f64, y: f64, beta: f64) -> (f64, f64) {
    if !x.is_finite() {
        return (f64::NAN, f64::NAN);
    }
    let e = (-x.abs()).exp();
    let (small, large) = (e / (1.0 + e), 1.0 / (1.0 + e));
    let (sigmoid, complement) = if x < 0.0 { (small, large) } else { (large, small) };
    // σ − y without 1 − σ; softplus(x) − x·y as a sum of terms that are not negative.
    let d = (1.0 - y) * sigmoid - y * complement;
    let ce = x.max(0.0) * (1.0 - y) + (-x).max(0.0) * y + e.ln_1p();
    let power = d.abs().powf(beta);
    let slope = if y == 0.0 {
        power * (d + beta * complement * ce)
    } else if d == 0.0 {
        0.0
    } else {
        // The powers apart, so that a tiny d does not overflow.
        d.signum() * (d.abs().powf(beta + 1.0) + beta * d.abs().powf(beta - 1.0) * sigmoid * complement * ce)
    };
    (power * ce, slope)
}

/// (1), (2): the loss of a row of logits whose target is `y` in the column `label`, if there is one, and 0 elsewhere;
/// and its gradient.
pub fn qfl_row(x: &[f64], label: i64, y: f64, beta: f64) -> (f64, Vec<f64>) {
    let element = |(column, &x): (usize, &f64)| qfl(x, if column as i64 == label { y } else { 0.0 }, beta);
    let (losses, grad): (Vec<f64>, _) = x.iter().enumerate().map(element).unzip();
    (losses.iter().sum(), grad)
}

/// (3): of a probability, and the derivative by it, with the bounds of PyTorch's `binary_cross_entropy`.
pub fn qfl_of_probability(p: f64, y: f64, beta: f64) -> (f64, f64) {
    if !(0.0..=1.0).contains(&p) {
        return (f64::NAN, f64::NAN);
    }
    let log = |value: f64| value.max(-100.0);
    let bce = -(y * log(p.ln()) + (1.0 - y) * log((-p).ln_1p()));
    let d = p - y;
    let loss = d.abs().powf(beta) * bce;
    if d == 0.0 {
        return (loss, 0.0);
    }
    let of_bce = d.abs().powf(beta) * d / (p * (1.0 - p)).max(1e-12);
    (loss, of_bce + beta * d.abs().powf(beta - 1.0) * d.signum() * bce)
}

/// The softmax of a row, the index of its maximum, and ln Σ exp(z − max).
fn softmax(z: &[f64]) -> (Vec<f64>, usize, f64) {
    let top = (0..z.len()).fold(0, |best, j| if z[j] > z[best] { j } else { best });
    let e: Vec<f64> = z.iter().map(|&x| (x - z[top]).exp()).collect();
    let others: f64 = (0..z.len()).filter(|&j| j != top).map(|j| e[j]).sum();
    (e.iter().map(|&e| e / (1.0 + others)).collect(), top, others.ln_1p())
}

/// (4): the loss of a row of two bins or more with the target `t`, and its gradient.
pub fn dfl(z: &[f64], t: f64) -> (f64, Vec<f64>) {
    let i = (t.floor() as usize).min(z.len() - 2);
    let right = t - i as f64;
    let left = 1.0 - right;
    let (mut p, top, log_sum) = softmax(z);
    let loss = log_sum + left * (z[top] - z[i]) + right * (z[top] - z[i + 1]);
    p[i] -= left;
    p[i + 1] -= right;
    (loss, p)
}

/// (5): the expectation of a row of bins, and its gradient.
pub fn integral(z: &[f64]) -> (f64, Vec<f64>) {
    let (p, _, _) = softmax(z);
    let expectation: f64 = p.iter().enumerate().map(|(j, p)| j as f64 * p).sum();
    // j − E as Σ_k (j − k)·p_k: for the bin that has nearly all of it, E is not subtracted from j.
    let distance = |j: usize| -> f64 { p.iter().enumerate().map(|(k, p)| (j as f64 - k as f64) * p).sum() };
    let grad = p.iter().enumerate().map(|(j, p)| p * distance(j)).collect();
    (expectation, grad)
}
