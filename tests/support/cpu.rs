//! Runs a case on the CPU.

use gfocal::{DistributionFocalLoss, QualityFocalLoss, Result, integral};

use super::case::{Case, Loss, Outcome, Pass};
use super::tolerance::Stored;

pub fn qfl_of(case: &Case) -> Result<QualityFocalLoss> {
    let loss_weight = case.options.loss_weight;
    match case.loss {
        Loss::Sparse { beta, background, ignore_label, .. } => {
            let qfl =
                QualityFocalLoss::new(beta)?.with_background(background).with_loss_weight(loss_weight)?;
            Ok(ignore_label.map_or(qfl, |label| qfl.with_ignore_label(label)))
        }
        Loss::Dense { beta, .. } => QualityFocalLoss::new(beta)?.with_loss_weight(loss_weight),
        Loss::Dfl { .. } => panic!("not QFL"),
    }
}

pub fn dfl_of(case: &Case) -> Result<DistributionFocalLoss> {
    let Loss::Dfl { target_eps, .. } = case.loss else { panic!("not DFL") };
    DistributionFocalLoss::new(target_eps)?.with_loss_weight(case.options.loss_weight)
}

/// Labels as i32, for cases that say that theirs fit.
pub fn narrowed(labels: &[i64]) -> Vec<i32> {
    labels.iter().map(|&label| i32::try_from(label).expect("a narrow case has narrow labels")).collect()
}

pub fn run<T: Stored>(case: &Case, pass: Pass) -> Result<Outcome<T>> {
    let logits = case.logits_as::<T>();
    let nan = T::from_f64(f64::NAN);
    let mut loss = vec![T::Loss::from_f64(f64::NAN); if pass == Pass::Backward { 0 } else { case.losses() }];
    let mut grad = vec![nan; if pass == Pass::Forward { 0 } else { logits.len() }];
    let mut flag = [Outcome::<T>::FLAG_BEFORE];
    use gfocal::Element;

    macro_rules! finish {
        ($operation:expr, $method:ident($($argument:expr),*)) => {{
            let operation = $operation;
            let call = operation.$method($($argument),*);
            let options = &case.options;
            let mut call = call.reduction(options.reduction).grad_scale(options.grad_scale).found_inf(&mut flag);
            if let Some(weight) = &options.weight {
                call = call.weight(weight);
            }
            if let Some(upstream) = &options.upstream {
                call = call.upstream(upstream);
            }
            match pass {
                Pass::Forward => call.forward(&mut loss),
                Pass::ForwardBackward => call.forward_backward(&mut loss, &mut grad),
                Pass::Backward => call.backward(&mut grad),
            }?
        }};
    }
    let status = match &case.loss {
        Loss::Sparse { labels, narrow: false, quality, .. } => {
            finish!(qfl_of(case)?, cpu(&logits, case.shape, labels, quality))
        }
        Loss::Sparse { labels, narrow: true, quality, .. } => {
            let narrow = narrowed(labels);
            finish!(qfl_of(case)?, cpu(&logits, case.shape, &narrow, quality))
        }
        Loss::Dense { target, .. } => finish!(qfl_of(case)?, cpu_dense(&logits, case.shape, target)),
        Loss::Dfl { target, .. } => finish!(dfl_of(case)?, cpu(&logits, case.shape, target)),
    };
    Ok(Outcome { loss, grad, status, found_inf: flag[0] })
}

/// Expectations, and their gradients.
pub fn integral<T: Stored>(
    logits: &[T],
    shape: [usize; 2],
    upstream: &[f32],
) -> Result<(Vec<T::Loss>, Vec<T>)> {
    use gfocal::Element;
    let mut expectation = vec![T::Loss::from_f64(f64::NAN); shape[0]];
    let mut grad = vec![T::from_f64(f64::NAN); logits.len()];
    integral::forward(logits, shape, &mut expectation)?;
    integral::backward(logits, shape, upstream, &mut grad)?;
    Ok((expectation, grad))
}
