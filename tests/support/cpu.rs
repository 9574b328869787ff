//! Runs a case on the CPU.

use gfocal::{Call, DistributionFocalLoss, Element as _, Host, QualityFocalLoss, Result, integral};

use super::case::{Case, Loss, Outcome, Pass};
use super::tolerance::Stored;

pub fn qfl_of(case: &Case) -> Result<QualityFocalLoss> {
    let (loss_weight, elements) = (case.options.loss_weight, &case.options.elements);
    let qfl = match case.loss {
        Loss::Sparse { beta, background, ignore_label, .. } => {
            let qfl = QualityFocalLoss::new(beta)?.with_background(background);
            ignore_label.map_or(qfl, |label| qfl.with_ignore_label(label))
        }
        Loss::Dense { beta, .. } => QualityFocalLoss::new(beta)?,
        Loss::Dfl { .. } => panic!("not QFL"),
    };
    let qfl = qfl.with_loss_weight(loss_weight)?.with_activated(elements.activated);
    elements.alpha.map_or(Ok(qfl), |alpha| qfl.with_alpha(alpha))
}

pub fn dfl_of(case: &Case) -> Result<DistributionFocalLoss> {
    let Loss::Dfl { target_eps, .. } = case.loss else { panic!("not DFL") };
    DistributionFocalLoss::new(target_eps)?.with_loss_weight(case.options.loss_weight)
}

/// Labels as i32, for cases that say that theirs fit.
pub fn narrowed(labels: &[i64]) -> Vec<i32> {
    labels.iter().map(|&label| i32::try_from(label).expect("a narrow case has narrow labels")).collect()
}

/// A call with all options of a case.
macro_rules! with_options {
    ($case:ident, $flag:ident, $call:expr) => {{
        let options = &$case.options;
        let call = $call.reduction(options.reduction).grad_scale(options.grad_scale);
        let mut call = call.found_inf($flag);
        if let Some(weight) = &options.weight {
            call = call.weight(weight);
        }
        if let Some(upstream) = &options.upstream {
            call = call.upstream(upstream);
        }
        call
    }};
}

/// `narrow`: the labels as i32, if the case wants them.
pub fn qfl_call<'a, T: Stored>(
    qfl: &'a QualityFocalLoss,
    case: &'a Case,
    logits: &'a [T],
    narrow: &'a [i32],
    flag: &'a mut [f32],
) -> Call<'a, QualityFocalLoss, Host, T> {
    let call = match &case.loss {
        Loss::Sparse { labels, narrow: false, quality, .. } => qfl.cpu(logits, case.shape, labels, quality),
        Loss::Sparse { narrow: true, quality, .. } => qfl.cpu(logits, case.shape, narrow, quality),
        Loss::Dense { target, .. } => qfl.cpu_dense(logits, case.shape, target),
        Loss::Dfl { .. } => panic!("not QFL"),
    };
    let mut call = with_options!(case, flag, call);
    if let Some(weights) = &case.options.elements.class_weights {
        call = call.class_weights(weights);
    }
    if let Some(weights) = &case.options.elements.element_weights {
        call = call.element_weights(weights);
    }
    call
}

pub fn dfl_call<'a, T: Stored>(
    dfl: &'a DistributionFocalLoss,
    case: &'a Case,
    logits: &'a [T],
    flag: &'a mut [f32],
) -> Call<'a, DistributionFocalLoss, Host, T> {
    let Loss::Dfl { target, .. } = &case.loss else { panic!("not DFL") };
    with_options!(case, flag, dfl.cpu(logits, case.shape, target))
}

/// The labels that [`qfl_call`] wants.
pub fn narrow_of(case: &Case) -> Vec<i32> {
    match &case.loss {
        Loss::Sparse { labels, narrow: true, .. } => narrowed(labels),
        _ => Vec::new(),
    }
}

pub fn run<T: Stored>(case: &Case, pass: Pass) -> Result<Outcome<T>> {
    let (logits, narrow) = (case.logits_as::<T>(), narrow_of(case));
    let nan = T::from_f64(f64::NAN);
    let mut loss = vec![T::Loss::from_f64(f64::NAN); if pass == Pass::Backward { 0 } else { case.losses() }];
    let mut grad = vec![nan; if pass == Pass::Forward { 0 } else { logits.len() }];
    let mut flag = [Outcome::<T>::FLAG_BEFORE];
    macro_rules! run {
        ($call:expr) => {
            match pass {
                Pass::Forward => $call.forward(&mut loss),
                Pass::ForwardBackward => $call.forward_backward(&mut loss, &mut grad),
                Pass::Backward => $call.backward(&mut grad),
            }
        };
    }
    let status = match case.loss {
        Loss::Dfl { .. } => run!(dfl_call(&dfl_of(case)?, case, &logits, &mut flag)),
        _ => run!(qfl_call(&qfl_of(case)?, case, &logits, &narrow, &mut flag)),
    }?;
    Ok(Outcome { loss, grad, status, found_inf: flag[0] })
}

/// Expectations, and their gradients.
pub fn integral<T: Stored>(
    logits: &[T],
    shape: [usize; 2],
    upstream: &[f32],
) -> Result<(Vec<T::Loss>, Vec<T>)> {
    let mut expectation = vec![T::Loss::from_f64(f64::NAN); shape[0]];
    let mut grad = vec![T::from_f64(f64::NAN); logits.len()];
    integral::forward(logits, shape, &mut expectation)?;
    integral::backward(logits, shape, upstream, &mut grad)?;
    Ok((expectation, grad))
}
