//! The integral, of 16 rows at a time: a lane for each.

use super::dfl::{WIDTH, columns, exponentials, from_columns, peak};
use super::isa::dispatch;
use super::simd::{LANES, Lanes, Simd};
use super::storage::Storage;

/// With more bins j - E, of which the sum is in f32, is too coarse where it is small.
pub(crate) const MOST_BINS: usize = 128;

/// The expectations of [`LANES`] rows, whose logits are the columns `z`. With `scale` z becomes the gradient, times it.
/// A row with a logit that is not finite gets NaN.
#[inline(always)]
fn lanes_body<S: Simd>(s: S, z: &mut [Lanes], scale: Option<&Lanes>, expectation: &mut Lanes) {
    let one = s.splat(1.0);
    let (peak, bad) = peak(s, z);
    let share = s.div(one, exponentials(s, z, peak));
    let about_0 = s.mul(moment(s, z, s.splat(0.0)), share);
    // Around the nearest integer: where one bin has nearly all, j - E is the small difference of large numbers
    // otherwise.
    let nearest = s.floor(s.add(about_0, s.splat(0.5)));
    let rest = s.fma(moment(s, z, nearest), share, bad);
    s.store(s.add(nearest, rest), expectation);
    let Some(scale) = scale else { return };
    let scale = s.mul(share, s.load(scale));
    let mut bin = s.sub(s.splat(0.0), nearest);
    for z in z {
        s.store(s.mul(s.mul(s.load(z), scale), s.sub(bin, rest)), z);
        bin = s.add(bin, one);
    }
}

/// Σ (j - origin)·e_j.
#[inline(always)]
fn moment<S: Simd>(s: S, e: &[Lanes], origin: S::F) -> S::F {
    let one = s.splat(1.0);
    let (mut sums, mut bin) = ([s.splat(0.0); WIDTH], s.sub(s.splat(0.0), origin));
    let (groups, rest) = e.as_chunks::<WIDTH>();
    for group in groups {
        for i in 0..WIDTH {
            sums[i] = s.fma(bin, s.load(&group[i]), sums[i]);
            bin = s.add(bin, one);
        }
    }
    for e in rest {
        sums[0] = s.fma(bin, s.load(e), sums[0]);
        bin = s.add(bin, one);
    }
    s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3]))
}

#[inline(always)]
fn rows_body<S: Simd, T: Storage>(
    s: S,
    x: &[T],
    z: &mut [Lanes],
    expectation: &mut Lanes,
    grad: Option<(&Lanes, &mut [T])>,
) {
    assert!(z.len() >= 2 && x.len() == z.len() * LANES);
    columns(s, x, z);
    lanes_body(s, z, grad.as_ref().map(|(scale, _)| *scale), expectation);
    if let Some((_, grad)) = grad {
        assert!(grad.len() == x.len());
        from_columns(s, z, grad);
    }
}

#[inline(always)]
fn columns_body<S: Simd, T: Storage>(
    s: S,
    x: &[T],
    step: usize,
    z: &mut [Lanes],
    expectation: &mut Lanes,
    grad: Option<(&Lanes, &mut [T])>,
) {
    assert!(z.len() >= 2);
    for (bin, z) in z.iter_mut().enumerate() {
        s.store(T::load(s, x[bin * step..].first_chunk().expect("all lanes of a bin")), z);
    }
    lanes_body(s, z, grad.as_ref().map(|(scale, _)| *scale), expectation);
    if let Some((_, grad)) = grad {
        for (z, grad) in z.iter().zip(grad.as_chunks_mut().0) {
            T::store(s, s.load(z), grad);
        }
    }
}

dispatch! {
    /// The expectations of [`LANES`] rows of two bins or more that follow each other; and with the scales of the rows
    /// the gradient. `z` is room for the bins.
    integral_rows<T: Storage> = rows_body(
        x: &[T], z: &mut [Lanes], expectation: &mut Lanes, grad: Option<(&Lanes, &mut [T])>,
    ) -> ();
    /// The same of rows that lie side by side: bin j of all is at x[j·step]. The gradient has [`LANES`] in place of the
    /// step.
    integral_columns<T: Storage> = columns_body(
        x: &[T], step: usize, z: &mut [Lanes], expectation: &mut Lanes, grad: Option<(&Lanes, &mut [T])>,
    ) -> ();
}
