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
    ($case:ident, $beside:ident, $flag:ident, $call:expr) => {{
        let options = &$case.options;
        let call = $call.reduction(options.reduction).grad_scale(options.grad_scale);
        let mut call = call.found_inf($flag);
        if let Some(weight) = &$beside.weight {
            call = call.weight(weight);
        }
        if let Some(upstream) = &$beside.upstream {
            call = call.upstream(upstream);
        }
        call
    }};
}

/// What a case has beside its logits, as calls in `T` take it.
pub struct Beside<T: Stored> {
    /// The labels as i32, if the case wants them.
    narrow: Vec<i32>,
    /// Qualities or targets.
    target: Vec<T::Loss>,
    weight: Option<Vec<T::Loss>>,
    upstream: Option<Vec<T::Loss>>,
    class_weights: Option<Vec<T::Loss>>,
    element_weights: Option<Vec<T::Loss>>,
}

/// The same numbers in another type.
fn as_losses<T: Stored>(numbers: &[f32]) -> Vec<T::Loss> {
    numbers.iter().map(|&number| T::Loss::from_f64(number.into())).collect()
}

impl<T: Stored> Beside<T> {
    pub fn of(case: &Case) -> Self {
        let (narrow, target) = match &case.loss {
            Loss::Sparse { labels, narrow: true, quality, .. } => (narrowed(labels), quality),
            Loss::Sparse { quality: target, .. } | Loss::Dense { target, .. } | Loss::Dfl { target, .. } => {
                (Vec::new(), target)
            }
        };
        let (options, elements) = (&case.options, &case.options.elements);
        let optional = |numbers: &Option<Vec<f32>>| numbers.as_deref().map(as_losses::<T>);
        Beside {
            narrow,
            target: as_losses::<T>(target),
            weight: optional(&options.weight),
            upstream: optional(&options.upstream),
            class_weights: optional(&elements.class_weights),
            element_weights: optional(&elements.element_weights),
        }
    }
}

pub fn qfl_call<'a, T: Stored>(
    qfl: &'a QualityFocalLoss,
    case: &'a Case,
    logits: &'a [T],
    beside: &'a Beside<T>,
    flag: &'a mut [f32],
) -> Call<'a, QualityFocalLoss, Host, T> {
    let call = match &case.loss {
        Loss::Sparse { labels, narrow: false, .. } => qfl.cpu(logits, case.shape, labels, &beside.target),
        Loss::Sparse { narrow: true, .. } => qfl.cpu(logits, case.shape, &beside.narrow, &beside.target),
        Loss::Dense { .. } => qfl.cpu_dense(logits, case.shape, &beside.target),
        Loss::Dfl { .. } => panic!("not QFL"),
    };
    let mut call = with_options!(case, beside, flag, call);
    if let Some(weights) = &beside.class_weights {
        call = call.class_weights(weights);
    }
    if let Some(weights) = &beside.element_weights {
        call = call.element_weights(weights);
    }
    call
}

pub fn dfl_call<'a, T: Stored>(
    dfl: &'a DistributionFocalLoss,
    case: &'a Case,
    logits: &'a [T],
    beside: &'a Beside<T>,
    flag: &'a mut [f32],
) -> Call<'a, DistributionFocalLoss, Host, T> {
    with_options!(case, beside, flag, dfl.cpu(logits, case.shape, &beside.target))
}

pub fn run<T: Stored>(case: &Case, pass: Pass) -> Result<Outcome<T>> {
    let (logits, beside) = (case.logits_as::<T>(), Beside::of(case));
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
        Loss::Dfl { .. } => run!(dfl_call(&dfl_of(case)?, case, &logits, &beside, &mut flag)),
        _ => run!(qfl_call(&qfl_of(case)?, case, &logits, &beside, &mut flag)),
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
    integral::backward(logits, shape, &as_losses::<T>(upstream), &mut grad)?;
    Ok((expectation, grad))
}
