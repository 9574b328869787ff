//! The losses in plain f64, from the paper's formulas and the library's table of semantics.
//!
//! Obviously right rather than fast; the only care taken is that nothing cancels. Shares no code
//! with the library.

use gfocal::{AvgPolicy, Background, Reduction, Status};

use super::case::{Case, Elements, Loss};
use super::tolerance::Want;

/// What a call must give. `None`: nothing is promised of this element.
pub struct Expected {
    pub loss: Vec<Option<Want>>,
    pub grad: Vec<Option<Want>>,
    pub status: Status,
}

/// A row before its weight and reductions.
struct Row {
    /// Of each element.
    losses: Vec<f64>,
    /// What the loss and the gradient of each element are multiplied by.
    factors: Vec<f64>,
    /// `None`: unspecified.
    grad: Vec<Option<f64>>,
    /// For each element, whether a target above 0 is subtracted from a probability.
    cancels: Vec<bool>,
}

/// What is wrong with a row.
enum Fault {
    Label,
    Quality,
    Range,
}

/// |y − σ(x)|^β · (softplus(x) − x·y) and its derivative.
pub fn qfl(x: f64, y: f64, beta: f64) -> (f64, f64) {
    if !x.is_finite() {
        return (f64::NAN, f64::NAN);
    }
    let e = (-x.abs()).exp();
    let (small, large) = (e / (1.0 + e), 1.0 / (1.0 + e));
    let (sigmoid, complement) = if x < 0.0 { (small, large) } else { (large, small) };
    // σ − y without 1 − σ; softplus(x) − x·y as a sum of terms that are not negative.
    let d = (1.0 - y) * sigmoid - y * complement;
    let bce = x.max(0.0) * (1.0 - y) + (-x).max(0.0) * y + e.ln_1p();
    let loss = d.abs().powf(beta) * bce;
    let grad = if d == 0.0 {
        0.0
    } else {
        // |d|^(β−1)·(d² + β·S·bce) with the powers apart, so that a tiny d does not overflow.
        d.signum() * (d.abs().powf(beta + 1.0) + beta * d.abs().powf(beta - 1.0) * sigmoid * complement * bce)
    };
    // For y = 0, d is σ: σ^β·(σ + β(1−σ)·sp), without a negative power.
    let grad = if y == 0.0 { d.powf(beta) * (d + beta * complement * bce) } else { grad };
    (loss, grad)
}

/// |y − p|^β · BCE(p, y) of a probability and its derivative, with the bounds of PyTorch's binary_cross_entropy.
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

/// lse(z) − w_l·z_i − w_r·z_(i+1) and its gradient.
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

/// Σ j·softmax(z)_j and its gradient p_j·(j − E).
pub fn integral(z: &[f64]) -> (f64, Vec<f64>) {
    let (p, _, _) = softmax(z);
    let expectation: f64 = p.iter().enumerate().map(|(j, p)| j as f64 * p).sum();
    // j − E as Σ_k (j − k)·p_k: for the bin that has nearly all of it, E is not subtracted from j.
    let distance = |j: usize| -> f64 { p.iter().enumerate().map(|(k, p)| (j as f64 - k as f64) * p).sum() };
    let grad = p.iter().enumerate().map(|(j, p)| p * distance(j)).collect();
    (expectation, grad)
}

/// The column of a label: `Ok(None)` is background.
fn column(label: i64, classes: usize, background: Background) -> Result<Option<usize>, Fault> {
    let classes = i128::try_from(classes).expect("a small number");
    let label = i128::from(label);
    match background {
        Background::Last if label < 0 || label == classes => Ok(None),
        Background::Last if label < classes => Ok(Some(label as usize)),
        Background::First if label == 0 => Ok(None),
        Background::First if (1..=classes).contains(&label) => Ok(Some(label as usize - 1)),
        _ => Err(Fault::Label),
    }
}

fn dfl_row(z: &[f64], t: f64) -> Row {
    let (losses, factors, cancels) = (vec![f64::NAN], vec![1.0; z.len()], vec![true; z.len()]);
    if z.iter().all(|z| z.is_finite()) {
        let (loss, grad) = dfl(z, t);
        return Row { losses: vec![loss], factors, grad: grad.into_iter().map(Some).collect(), cancels };
    }
    // The loss and the elements that are not finite themselves must not be; the rest of the row
    // is unspecified.
    let grad = z.iter().map(|z| (!z.is_finite()).then_some(f64::NAN)).collect();
    Row { losses, factors, grad, cancels }
}

fn clamped(y: f32) -> f64 {
    f64::from(y).clamp(0.0, 1.0)
}

impl Case {
    fn qfl_row(&self, n: usize, x: &[f64], y: &[f64], beta: f64) -> Row {
        let Elements { class_weights, element_weights, alpha, activated } = &self.options.elements;
        let (mut losses, mut factors, mut grad) = (Vec::new(), Vec::new(), Vec::new());
        for (column, (&x, &y)) in x.iter().zip(y).enumerate() {
            let of_class = class_weights.as_ref().map_or(1.0, |weights| weights[column].into());
            let of_element =
                element_weights.as_ref().map_or(1.0, |weights| weights[n * self.shape[1] + column].into());
            let of_target = alpha.map_or(1.0, |alpha| y * alpha + (1.0 - y) * (1.0 - alpha));
            let factor: f64 = of_class * of_element * of_target;
            let element = if *activated { qfl_of_probability(x, y, beta) } else { qfl(x, y, beta) };
            let element = if factor == 0.0 { (0.0, 0.0) } else { element };
            losses.push(element.0);
            factors.push(factor);
            grad.push(Some(element.1));
        }
        Row { losses, factors, grad, cancels: y.iter().map(|&y| y > 0.0).collect() }
    }

    /// `None`: the row gives nothing. With what is wrong with it, which may leave it usable.
    fn row(&self, n: usize) -> (Option<Row>, Option<Fault>) {
        let columns = self.shape[1];
        let x = &self.logits[n * columns..][..columns];
        if self.options.weight.as_ref().is_some_and(|weight| weight[n] == 0.0) {
            return (None, None);
        }
        match &self.loss {
            Loss::Sparse { beta, background, ignore_label, labels, quality, .. } => {
                if *ignore_label == Some(labels[n]) {
                    return (None, None);
                }
                let mut y = vec![0.0; columns];
                match column(labels[n], columns, *background) {
                    Err(fault) => return (None, Some(fault)),
                    Ok(Some(_)) if quality[n].is_nan() => return (None, Some(Fault::Quality)),
                    Ok(Some(class)) => y[class] = clamped(quality[n]),
                    Ok(None) => {}
                }
                (Some(self.qfl_row(n, x, &y, *beta)), None)
            }
            Loss::Dense { beta, target } => {
                let target = &target[n * columns..][..columns];
                if target.iter().any(|y| y.is_nan()) {
                    return (None, Some(Fault::Quality));
                }
                let y: Vec<f64> = target.iter().map(|&y| clamped(y)).collect();
                (Some(self.qfl_row(n, x, &y, *beta)), None)
            }
            Loss::Dfl { target_eps, target } => {
                // Targets are f32, so the end of the range is too.
                let (t, last) = (target[n], ((columns - 1) as f64 - target_eps) as f32);
                if t.is_nan() {
                    return (None, Some(Fault::Range));
                }
                let fault = (!(0.0..=last).contains(&t)).then_some(Fault::Range);
                (Some(dfl_row(x, t.clamp(0.0, last).into())), fault)
            }
        }
    }
}

/// What the sum of the losses, and each gradient, is divided by.
fn normaliser(reduction: &Reduction, rows: usize) -> f64 {
    match *reduction {
        Reduction::None | Reduction::Sum => 1.0,
        Reduction::Mean => rows as f64,
        Reduction::MeanBy { avg_factor, policy: AvgPolicy::Exact } => avg_factor,
        Reduction::MeanBy { avg_factor, policy: AvgPolicy::Eps } => avg_factor + 2f64.powi(-23),
        Reduction::MeanBy { avg_factor, policy: AvgPolicy::AtLeast(least) } => avg_factor.max(least),
    }
}

/// What the case must give.
pub fn expect(case: &Case) -> Expected {
    let ([rows, columns], options) = (case.shape, &case.options);
    let (mut loss, mut grad, mut status) = (Vec::new(), Vec::new(), Status::default());
    let divisor = normaliser(&options.reduction, rows);
    for n in 0..rows {
        let (row, fault) = case.row(n);
        if let Some(fault) = fault {
            match fault {
                Fault::Label => status.bad_labels += 1,
                Fault::Quality => status.bad_qualities += 1,
                Fault::Range => status.out_of_range_targets += 1,
            }
            status.first_bad_row = status.first_bad_row.or(Some(n as u64));
        }
        let Some(row) = row else {
            loss.push(Some(Want::ZERO));
            grad.extend(vec![Some(Want::ZERO); columns]);
            continue;
        };
        let weight = options.weight.as_ref().map_or(1.0, |weight| weight[n].into());
        let upstream = options.upstream.as_ref().map_or(1.0, |upstream| upstream[n].into());
        let factor = options.loss_weight * weight;
        let elements = row.losses.iter().zip(&row.factors).zip(&row.cancels);
        let parts: Vec<_> =
            elements.map(|((l, f), &cancels)| Some(Want::new(*l, f * factor, cancels))).collect();
        loss.push(Some(Want::sum(&parts, 1.0)));
        let factor = factor * upstream * options.grad_scale / divisor;
        let elements = row.grad.iter().zip(&row.factors).zip(row.cancels);
        // 0 masks, whatever it meets.
        let of = |g, f, cancels| if f == 0.0 { Want::ZERO } else { Want::new(g, f * factor, cancels) };
        grad.extend(elements.map(|((g, &f), cancels)| g.map(|g| of(g, f, cancels))));
    }
    if options.reduction != Reduction::None {
        loss = vec![Some(if rows == 0 { Want::ZERO } else { Want::sum(&loss, divisor) })];
    }
    Expected { loss, grad, status }
}
