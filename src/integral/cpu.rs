//! The integral on the CPU: arithmetic in f64.

use super::check;
use crate::element::Element;
use crate::error::Result;
use crate::math::{exp_below, softmax};

/// The expectations `[rows]` of logits `[rows, bins]`, in units of bins.
///
/// # Errors
/// If a length does not fit the shape.
pub fn forward<T: Element>(logits: &[T], shape: [usize; 2], expectation: &mut [T::Loss]) -> Result<()> {
    check(shape, logits.len(), Some(expectation.len()), None, None)?;
    for (logits, expectation) in logits.chunks_exact(shape[1]).zip(expectation) {
        let (_, nearest, rest) = probabilities(logits);
        *expectation = T::Loss::from_f64(nearest + rest);
    }
    Ok(())
}

/// The gradient `[rows, bins]` of the expectations, given the gradient `upstream` `[rows]` with
/// respect to each of them.
///
/// # Errors
/// If a length does not fit the shape.
pub fn backward<T: Element>(logits: &[T], shape: [usize; 2], upstream: &[f32], grad: &mut [T]) -> Result<()> {
    check(shape, logits.len(), None, Some(upstream.len()), Some(grad.len()))?;
    let bins = shape[1];
    for ((logits, &upstream), grad) in
        logits.chunks_exact(bins).zip(upstream).zip(grad.chunks_exact_mut(bins))
    {
        let (p, nearest, rest) = probabilities(logits);
        for (bin, (grad, p)) in grad.iter_mut().zip(p).enumerate() {
            *grad = T::from_f64(p * f64::from(upstream) * ((bin as f64 - nearest) - rest));
        }
    }
    Ok(())
}

/// The softmax of a row, and its expectation as the nearest integer and the rest: where one bin
/// has nearly all, j - E is the small difference of large numbers otherwise.
fn probabilities<T: Element>(logits: &[T]) -> (impl Iterator<Item = f64> + Clone, f64, f64) {
    let softmax = softmax(logits.iter().map(|z| z.to_f64()));
    let p = logits.iter().map(move |z| exp_below(z.to_f64(), softmax.peak) / softmax.total);
    let moment =
        |origin: f64| -> f64 { p.clone().enumerate().map(|(bin, p)| (bin as f64 - origin) * p).sum() };
    let nearest = moment(0.0).round();
    let rest = moment(nearest);
    (p, nearest, rest)
}
