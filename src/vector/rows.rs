//! Rows of losses of single elements, and their sums.

use super::simd::{LANES, Lanes, Simd};
use super::storage::Storage;

/// Vectors whose losses are added up in f32; the sums are added up in f64.
const PART: usize = 16;

/// A loss of single elements. (Not a closure: that would not always be inlined, and then be compiled
/// for the wrong instructions.)
pub(super) trait Loss<S: Simd>: Copy {
    /// (Loss, gradient times `scale`) for logits `x` and targets `y`, in place of which there may be
    /// weights.
    fn of(self, s: S, x: S::F, y: S::F, scale: S::F) -> (S::F, S::F);
}

/// A row of logits.
#[derive(Clone, Copy, Default)]
pub(crate) struct QflRow {
    /// The number of an element that gives nothing, or [`NONE`](super::NONE).
    pub left_out: usize,
    /// What gradients are multiplied by.
    pub scale: f32,
    /// The result: the sum of the losses.
    pub loss: f64,
}

/// The sums of the losses of rows of x, which all have as many elements. `y` is as long as x, or empty: zeros.
#[inline(always)]
pub(super) fn each_row<S: Simd, L: Loss<S>, T: Storage>(
    s: S,
    losses: L,
    x: &[T],
    y: &[f32],
    rows: &mut [QflRow],
    grad: Option<&mut [T]>,
) {
    match grad {
        Some(grad) => each_row_with::<S, L, T, true>(s, losses, x, y, rows, grad),
        None => each_row_with::<S, L, T, false>(s, losses, x, y, rows, &mut []),
    }
}

/// `grad` is as long as x if `GRAD`, and not looked at otherwise.
#[inline(always)]
fn each_row_with<S: Simd, L: Loss<S>, T: Storage, const GRAD: bool>(
    s: S,
    losses: L,
    x: &[T],
    y: &[f32],
    rows: &mut [QflRow],
    grad: &mut [T],
) {
    let columns = x.len() / rows.len().max(1);
    for (i, row) in rows.iter_mut().enumerate() {
        let inside = i * columns..(i + 1) * columns;
        let y = if y.is_empty() { y } else { &y[inside.clone()] };
        let grad = if GRAD { &mut grad[inside.clone()] } else { &mut *grad };
        row.loss = row_in_parts::<S, L, T, GRAD>(s, losses, &x[inside], y, row, grad);
    }
}

#[inline(always)]
fn row_in_parts<S: Simd, L: Loss<S>, T: Storage, const GRAD: bool>(
    s: S,
    losses: L,
    x: &[T],
    y: &[f32],
    row: &QflRow,
    grad: &mut [T],
) -> f64 {
    assert!((y.is_empty() || y.len() == x.len()) && (!GRAD || grad.len() == x.len()));
    let (scale, left_out) = (s.splat(row.scale), row.left_out);
    let (x, x_rest) = x.as_chunks::<LANES>();
    let (y, y_rest) = y.as_chunks::<LANES>();
    let (grad, grad_rest) = grad.as_chunks_mut::<LANES>();
    let mut total = 0.0;
    let mut first = 0;
    loop {
        let end = x.len().min(first + PART);
        let mut sum = s.splat(0.0);
        for at in first..end {
            let mut logits = T::load(s, &x[at]);
            if at == left_out / LANES {
                logits = without(s, logits, left_out % LANES);
            }
            let y = if y.is_empty() { s.splat(0.0) } else { s.load(&y[at]) };
            let (loss, slope) = losses.of(s, logits, y, scale);
            sum = s.add(sum, loss);
            if GRAD {
                T::store(s, slope, &mut grad[at]);
            }
        }
        first = end;
        let is_last = first == x.len();
        if is_last && !x_rest.is_empty() {
            let mut logits = T::load(s, &padded(x_rest, T::NO_LOSS));
            if x.len() == left_out / LANES {
                logits = without(s, logits, left_out % LANES);
            }
            let (loss, slope) = losses.of(s, logits, s.load(&padded(y_rest, 0.0)), scale);
            sum = s.add(sum, loss);
            if GRAD {
                let mut slopes = [T::NO_LOSS; LANES];
                T::store(s, slope, &mut slopes);
                grad_rest.copy_from_slice(&slopes[..grad_rest.len()]);
            }
        }
        total += f64::from(s.sum(sum));
        if is_last {
            return total;
        }
    }
}

/// The logits, but for one lane that gives nothing.
#[inline(always)]
fn without<S: Simd>(s: S, logits: S::F, lane: usize) -> S::F {
    let mut lanes: Lanes = [0.0; LANES];
    s.store(logits, &mut lanes);
    lanes[lane] = f32::NO_LOSS;
    s.load(&lanes)
}

#[inline(always)]
fn padded<T: Copy>(values: &[T], padding: T) -> [T; LANES] {
    let mut lanes = [padding; LANES];
    lanes[..values.len()].copy_from_slice(values);
    lanes
}
