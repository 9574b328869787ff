//! What a call must give: the plain formulas of `reference/`, and the library's table of semantics. Shares no code
//! with the library.

use gfocal::{AvgPolicy, Background, Reduction, Status};

use super::case::{Case, Elements, Loss};
use super::tolerance::{Stored, Want};
pub use gfocal_reference::{dfl, integral, qfl, qfl_of_probability};

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
                // The end of the range is of the targets' type.
                let (t, last) = (f64::from(target[n]), (columns - 1) as f64 - target_eps);
                let last = if self.options.beside_f64 { last } else { f64::from(last as f32) };
                if t.is_nan() {
                    return (None, Some(Fault::Range));
                }
                let fault = (!(0.0..=last).contains(&t)).then_some(Fault::Range);
                (Some(dfl_row(x, t.clamp(0.0, last))), fault)
            }
        }
    }
}

/// What the integral of each row must give, and its gradients.
pub fn expectations<T: Stored>(logits: &[T], bins: usize, upstream: &[f32]) -> [Vec<Option<Want>>; 2] {
    let (mut values, mut grads) = (Vec::new(), Vec::new());
    for (row, &upstream) in logits.chunks(bins).zip(upstream) {
        let (value, grad) = integral(&row.iter().map(|x| x.to_f64()).collect::<Vec<_>>());
        values.push(Some(Want::new(value, 1.0, true)));
        grads.extend(grad.into_iter().map(|grad| Some(Want::new(grad, upstream.into(), true))));
    }
    [values, grads]
}

/// What the sum of the losses, and each gradient, is divided by.
fn normaliser(reduction: &Reduction, rows: usize) -> f64 {
    match *reduction {
        Reduction::None | Reduction::Sum => 1.0,
        Reduction::Mean => rows as f64,
        Reduction::MeanBy { avg_factor, policy: AvgPolicy::Exact } => avg_factor,
        Reduction::MeanBy { avg_factor, policy: AvgPolicy::Eps } => avg_factor + 2f64.powi(-23),
        Reduction::MeanBy { avg_factor, policy: AvgPolicy::AtLeast(least) } => {
            if avg_factor < least { least } else { avg_factor } // NaN stays
        }
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
