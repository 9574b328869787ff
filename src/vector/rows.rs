//! Rows of losses of single elements, and their sums.

use super::LARGEST_EXPONENT;
use super::simd::{LANES, Lanes, Simd};

/// Vectors that are computed at a time, and need not wait for each other.
pub(super) const GROUP: usize = 2;

/// Groups whose losses are added up in f32; the sums are added up in f64.
const PART: usize = 16;

/// A logit whose loss and gradient are 0 at target 0.
pub(crate) const NO_LOSS: f32 = -LARGEST_EXPONENT;

/// A loss of single elements. (Not a closure: that would not always be inlined, and then be compiled
/// for the wrong instructions.)
pub(super) trait Loss<S: Simd> {
    /// (Loss, gradient times `scale`) for logits `x` and targets `y`, in place of which there may be
    /// weights.
    fn group(s: S, x: [S::F; GROUP], y: [S::F; GROUP], scale: S::F) -> [(S::F, S::F); GROUP];
}

/// The sum of the losses of a row. `y` and `grad` are as long as x.
#[inline(always)]
pub(super) fn row<S: Simd, L: Loss<S>>(
    s: S,
    x: &[f32],
    y: &[f32],
    scale: f32,
    grad: Option<&mut [f32]>,
) -> f64 {
    match grad {
        Some(grad) => row_in_parts::<S, L, true>(s, x, y, scale, grad),
        None => row_in_parts::<S, L, false>(s, x, y, scale, &mut []),
    }
}

/// `grad` is as long as x if `GRAD`, and not looked at otherwise.
#[inline(always)]
fn row_in_parts<S: Simd, L: Loss<S>, const GRAD: bool>(
    s: S,
    x: &[f32],
    y: &[f32],
    scale: f32,
    grad: &mut [f32],
) -> f64 {
    assert!(y.len() == x.len() && (!GRAD || grad.len() == x.len()));
    let scale = s.splat(scale);
    let (x, x_rest) = groups(x);
    let (y, y_rest) = groups(y);
    let (grad, grad_rest) = groups_mut(grad);
    let mut total = 0.0;
    let mut first = 0;
    loop {
        let end = x.len().min(first + PART);
        let mut sums = [s.splat(0.0); GROUP];
        for at in first..end {
            let out = L::group(s, load(s, &x[at]), load(s, &y[at]), scale);
            for i in 0..GROUP {
                sums[i] = s.add(sums[i], out[i].0);
            }
            if GRAD {
                store(s, out, &mut grad[at]);
            }
        }
        first = end;
        let is_last = first == x.len();
        if is_last && !x_rest.is_empty() {
            let out = L::group(s, load(s, &padded(x_rest, NO_LOSS)), load(s, &padded(y_rest, 0.0)), scale);
            for i in 0..GROUP {
                sums[i] = s.add(sums[i], out[i].0);
            }
            if GRAD {
                let mut slopes = [[0.0; LANES]; GROUP];
                store(s, out, &mut slopes);
                grad_rest.copy_from_slice(&slopes.as_flattened()[..grad_rest.len()]);
            }
        }
        total += f64::from(s.sum(s.add(sums[0], sums[1])));
        if is_last {
            return total;
        }
    }
}

#[inline(always)]
fn groups(values: &[f32]) -> (&[[Lanes; GROUP]], &[f32]) {
    let (lanes, _) = values.as_chunks();
    let (groups, _) = lanes.as_chunks();
    (groups, &values[groups.len() * GROUP * LANES..])
}

#[inline(always)]
fn groups_mut(values: &mut [f32]) -> (&mut [[Lanes; GROUP]], &mut [f32]) {
    let whole = values.len() - values.len() % (GROUP * LANES);
    let (values, rest) = values.split_at_mut(whole);
    let (lanes, _) = values.as_chunks_mut();
    (lanes.as_chunks_mut().0, rest)
}

#[inline(always)]
fn load<S: Simd>(s: S, from: &[Lanes; GROUP]) -> [S::F; GROUP] {
    [s.load(&from[0]), s.load(&from[1])]
}

#[inline(always)]
fn store<S: Simd>(s: S, out: [(S::F, S::F); GROUP], to: &mut [Lanes; GROUP]) {
    for i in 0..GROUP {
        s.store(out[i].1, &mut to[i]);
    }
}

#[inline(always)]
fn padded(values: &[f32], padding: f32) -> [Lanes; GROUP] {
    let mut group = [[padding; LANES]; GROUP];
    group.as_flattened_mut()[..values.len()].copy_from_slice(values);
    group
}
