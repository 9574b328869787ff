//! The integral on the CPU: f32 and halves in vectors of f32, of 16 rows each; f64, many bins, and what f32 has no room for,
//! in f64.

use half::{bf16, f16};

use super::check;
use crate::cpu::{fits_single, map, rows_of_block};
use crate::element::{Element, compiled, singles};
use crate::error::Result;
use crate::math::{exp_below, softmax};
use crate::vector::{Isa, LANES, Lanes, MOST_BINS, integral_rows};

compiled! {
    /// The integral on the CPU.
    IntegralOnCpu: Element for [f64, f32, f16, bf16] {
        fn expectations(logits: &[Self], shape: [usize; 2], to: &mut [<Self as Element>::Loss]) = expectations;
        fn integral_slopes(
            logits: &[Self],
            shape: [usize; 2],
            upstream: &[<Self as Element>::Loss],
            grad: &mut [Self],
        ) = integral_slopes;
    }
}

/// The expectations `[rows]` of logits `[rows, bins]`, in units of bins.
///
/// # Errors
/// If a length does not fit the shape.
pub fn forward<T: Element>(logits: &[T], shape: [usize; 2], expectation: &mut [T::Loss]) -> Result<()> {
    check(shape, logits.len(), Some(expectation.len()), None, None)?;
    T::expectations(logits, shape, expectation);
    Ok(())
}

fn expectations<T: Element>(logits: &[T], [rows, bins]: [usize; 2], expectation: &mut [T::Loss]) {
    let block = rows_of_block(rows, bins);
    let blocks = logits.chunks(block * bins).zip(expectation.chunks_mut(block));
    map(rows * bins, blocks, |(logits, expectation)| forward_block(logits, bins, expectation));
}

/// The gradient `[rows, bins]` of the expectations, given the gradient `upstream` `[rows]` with
/// respect to each of them.
///
/// # Errors
/// If a length does not fit the shape.
pub fn backward<T: Element>(
    logits: &[T],
    shape: [usize; 2],
    upstream: &[T::Loss],
    grad: &mut [T],
) -> Result<()> {
    check(shape, logits.len(), None, Some(upstream.len()), Some(grad.len()))?;
    T::integral_slopes(logits, shape, upstream, grad);
    Ok(())
}

fn integral_slopes<T: Element>(logits: &[T], [rows, bins]: [usize; 2], upstream: &[T::Loss], grad: &mut [T]) {
    let block = rows_of_block(rows, bins);
    let inputs = logits.chunks(block * bins).zip(upstream.chunks(block));
    map(rows * bins, inputs.zip(grad.chunks_mut(block * bins)), |((logits, upstream), grad)| {
        backward_block(logits, bins, upstream, grad);
    });
}

fn forward_block<T: Element>(logits: &[T], bins: usize, expectation: &mut [T::Loss]) {
    if !is_single::<T>(bins) {
        for (logits, expectation) in logits.chunks_exact(bins).zip(expectation) {
            *expectation = T::Loss::from_f64(expectation_of(logits));
        }
        return;
    }
    let (isa, mut z, mut padded) = (Isa::detect(), vec![Lanes::default(); bins], Vec::new());
    let mut of_lanes = Lanes::default();
    for (logits, expectation) in logits.chunks(LANES * bins).zip(expectation.chunks_mut(LANES)) {
        integral_rows(isa, whole(logits, bins, &mut padded), &mut z, &mut of_lanes, None);
        for (to, from) in expectation.iter_mut().zip(of_lanes) {
            *to = T::Loss::from_f64(from.into());
        }
    }
}

fn backward_block<T: Element>(logits: &[T], bins: usize, upstream: &[T::Loss], grad: &mut [T]) {
    let (isa, mut z, mut padded) = (Isa::detect(), vec![Lanes::default(); bins], Vec::new());
    let (mut of_lanes, mut room) = (Lanes::default(), vec![T::NO_LOSS; LANES * bins]);
    let size = LANES * bins;
    for ((logits, upstream), grad) in
        logits.chunks(size).zip(upstream.chunks(LANES)).zip(grad.chunks_mut(size))
    {
        if is_single::<T>(bins) && upstream.iter().all(|&scale| fits_single(scale.to_f64())) {
            let mut scales = Lanes::default();
            scales[..upstream.len()].copy_from_slice(singles(upstream));
            let x = whole(logits, bins, &mut padded);
            let to = if grad.len() == size { &mut *grad } else { &mut room[..] };
            integral_rows(isa, x, &mut z, &mut of_lanes, Some((&scales, to)));
            if grad.len() < size {
                grad.copy_from_slice(&room[..grad.len()]);
            }
            continue;
        }
        for ((logits, &upstream), grad) in
            logits.chunks_exact(bins).zip(upstream).zip(grad.chunks_exact_mut(bins))
        {
            slopes(logits, upstream.to_f64(), grad);
        }
    }
}

/// Whether vectors of f32 are exact enough.
pub(crate) fn is_single<T: Element>(bins: usize) -> bool {
    T::SINGLE && bins <= MOST_BINS
}

/// [`LANES`] rows: these, or a copy with more behind them.
fn whole<'a, T: Element>(rows: &'a [T], bins: usize, padded: &'a mut Vec<T>) -> &'a [T] {
    if rows.len() == LANES * bins {
        return rows;
    }
    padded.clear();
    padded.extend_from_slice(rows);
    padded.resize(LANES * bins, T::NO_LOSS);
    padded
}

/// The expectation of a row.
pub(crate) fn expectation_of<T: Element>(logits: &[T]) -> f64 {
    let (_, nearest, rest) = probabilities(logits);
    nearest + rest
}

/// Its gradient, times `scale`.
pub(crate) fn slopes<T: Element>(logits: &[T], scale: f64, grad: &mut [T]) {
    let (p, nearest, rest) = probabilities(logits);
    for (bin, (grad, p)) in grad.iter_mut().zip(p).enumerate() {
        *grad = T::from_f64(p * scale * ((bin as f64 - nearest) - rest));
    }
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
