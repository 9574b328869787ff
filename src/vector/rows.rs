//! Rows of losses of single elements, and their sums.

use std::ops::Range;

use super::simd::{LANES, Lanes, Simd};
use super::storage::Storage;

/// Vectors whose losses are added up in f32; the sums are added up in f64.
const PART: usize = 16;

/// A loss of single elements. (Not a closure: that would not always be inlined, and then be compiled
/// for the wrong instructions.)
pub trait Loss: Copy {
    /// Whether there is none of it without fused multiply-add: so no code either.
    const IS_FUSED: bool = false;

    /// (Loss, gradient times `scale`) for logits `x` and targets `y`.
    fn of<S: Simd>(self, s: S, x: S::F, y: S::F, scale: S::F) -> (S::F, S::F);
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

/// What is given for elements besides their logits.
#[derive(Clone, Copy, Default)]
pub(crate) struct Given<'a> {
    /// The targets: as many as logits, or none for zeros.
    pub targets: &'a [f32],
    /// What losses and gradients are multiplied by: as many as logits, or those of one row for all rows, or none for
    /// ones. 0 masks, whatever the logit.
    pub weights: &'a [f32],
}

impl<'a> Given<'a> {
    /// What is given for some of the elements, which are whole rows.
    #[inline(always)]
    fn of(self, elements: Range<usize>, columns: usize) -> Given<'a> {
        let of = |values: &'a [f32]| if values.is_empty() { values } else { &values[elements.clone()] };
        let weights = if self.weights.len() == columns { self.weights } else { of(self.weights) };
        Given { targets: of(self.targets), weights }
    }
}

/// The sums of the losses of rows of x, which all have as many elements. `WEIGHTED`: there are weights.
#[inline(always)]
pub(super) fn each_row<S: Simd, T: Storage, const WEIGHTED: bool>(
    s: S,
    losses: impl Loss,
    x: &[T],
    given: Given,
    rows: &mut [QflRow],
    grad: Option<&mut [T]>,
) {
    match grad {
        Some(grad) => each_row_with::<_, _, _, true, WEIGHTED>(s, losses, x, given, rows, grad),
        None => each_row_with::<_, _, _, false, WEIGHTED>(s, losses, x, given, rows, &mut []),
    }
}

/// `grad` is as long as x if `GRAD`, and not looked at otherwise.
#[inline(always)]
fn each_row_with<S: Simd, L: Loss, T: Storage, const GRAD: bool, const WEIGHTED: bool>(
    s: S,
    losses: L,
    x: &[T],
    given: Given,
    rows: &mut [QflRow],
    grad: &mut [T],
) {
    if L::IS_FUSED && !S::FUSED {
        return;
    }
    let columns = x.len() / rows.len().max(1);
    if columns == 0 {
        return rows.iter_mut().for_each(|row| row.loss = 0.0);
    }
    let of = |first: usize, count: usize| first * columns..(first + count) * columns;
    let at_once = if columns < LANES { LANES } else { 1 };
    for (i, rows) in rows.chunks_mut(at_once).enumerate() {
        let inside = of(i * at_once, rows.len());
        let given = given.of(inside.clone(), columns);
        let grad = &mut grad[if GRAD { inside.clone() } else { 0..0 }];
        match rows {
            [row] if columns >= LANES => {
                let x = &x[inside];
                row.loss = row_in_parts::<S, L, T, GRAD, WEIGHTED>(s, losses, x, given, row, grad);
            }
            rows => short_rows::<S, L, T, GRAD, WEIGHTED>(s, losses, &x[inside], given, rows, grad),
        }
    }
}

/// A vector of elements: their losses and gradients.
#[inline(always)]
fn weighted<S: Simd, L: Loss, const WEIGHTED: bool>(
    s: S,
    losses: L,
    x: S::F,
    y: S::F,
    weight: S::F,
    scale: S::F,
) -> (S::F, S::F) {
    if !WEIGHTED {
        return s.losses(losses, x, y, scale);
    }
    let masked = s.le(s.abs(weight), s.splat(0.0));
    let x = s.select(masked, s.splat(f32::NO_LOSS), x);
    let (loss, slope) = s.losses(losses, x, y, s.mul(weight, scale));
    (s.mul(weight, loss), slope)
}

/// Up to [`LANES`] rows of fewer elements than that: together they are whole vectors.
#[inline(always)]
fn short_rows<S: Simd, L: Loss, T: Storage, const GRAD: bool, const WEIGHTED: bool>(
    s: S,
    losses: L,
    x: &[T],
    given: Given,
    rows: &mut [QflRow],
    grad: &mut [T],
) {
    let columns = x.len() / rows.len();
    let (mut logits, mut targets) = ([[T::NO_LOSS; LANES]; LANES], [[0.0; LANES]; LANES]);
    let (mut scales, mut results) = ([[0.0; LANES]; LANES], [[0.0; LANES]; LANES]);
    let mut weights = [[1.0; LANES]; LANES];
    logits.as_flattened_mut()[..x.len()].copy_from_slice(x);
    targets.as_flattened_mut()[..given.targets.len()].copy_from_slice(given.targets);
    if WEIGHTED {
        let mut rest = &mut weights.as_flattened_mut()[..x.len()];
        while !rest.is_empty() {
            let (to, others) = rest.split_at_mut(given.weights.len());
            to.copy_from_slice(given.weights);
            rest = others;
        }
    }
    for (i, row) in rows.iter().enumerate() {
        let first = i * columns;
        scales.as_flattened_mut()[first..first + columns].fill(row.scale);
        if row.left_out < columns {
            logits.as_flattened_mut()[first + row.left_out] = T::NO_LOSS;
        }
    }
    for i in 0..x.len().div_ceil(LANES) {
        let (logit, target) = (T::load(s, &logits[i]), s.load(&targets[i]));
        let (weight, scale) = (s.load(&weights[i]), s.load(&scales[i]));
        let (loss, slope) = weighted::<S, L, WEIGHTED>(s, losses, logit, target, weight, scale);
        s.store(loss, &mut results[i]);
        if GRAD {
            T::store(s, slope, &mut logits[i]);
        }
    }
    for (row, results) in rows.iter_mut().zip(results.as_flattened().chunks_exact(columns)) {
        row.loss = results.iter().map(|&loss| f64::from(loss)).sum();
    }
    if GRAD {
        grad.copy_from_slice(&logits.as_flattened()[..x.len()]);
    }
}

/// A row of [`LANES`] elements or more. If they are not whole vectors, the last one has some elements that
/// the one before it has, too.
#[inline(always)]
fn row_in_parts<S: Simd, L: Loss, T: Storage, const GRAD: bool, const WEIGHTED: bool>(
    s: S,
    losses: L,
    x: &[T],
    given: Given,
    row: &QflRow,
    grad: &mut [T],
) -> f64 {
    let Given { targets: y, weights: w } = given;
    assert!((y.is_empty() || y.len() == x.len()) && (!GRAD || grad.len() == x.len()));
    assert!(!WEIGHTED || w.len() == x.len());
    let (scale, left_out) = (s.splat(row.scale), row.left_out);
    let (rest, last) = (x.len() % LANES, x.len() - LANES);
    let (vectors, targets, weights) = (x.as_chunks().0, y.as_chunks().0, w.as_chunks().0);
    let mut total = 0.0;
    let mut first = 0;
    loop {
        let end = vectors.len().min(first + PART);
        let mut sum = s.splat(0.0);
        for at in first..end {
            let mut logits = T::load(s, &vectors[at]);
            if at == left_out / LANES {
                logits = without(s, logits, left_out % LANES);
            }
            let y = if y.is_empty() { s.splat(0.0) } else { s.load(&targets[at]) };
            let weight = if WEIGHTED { s.load(&weights[at]) } else { s.splat(1.0) };
            let (loss, slope) = weighted::<S, L, WEIGHTED>(s, losses, logits, y, weight, scale);
            sum = s.add(sum, loss);
            if GRAD {
                T::store(s, slope, &mut grad.as_chunks_mut().0[at]);
            }
        }
        first = end;
        let is_last = first == vectors.len();
        if is_last && rest > 0 {
            let mut logits = T::load(s, x[last..].first_chunk().expect("a vector"));
            if (last..x.len()).contains(&left_out) {
                logits = without(s, logits, left_out - last);
            }
            let of_last = |values: &[f32]| s.load(values[last..].first_chunk().expect("a vector"));
            let y = if y.is_empty() { s.splat(0.0) } else { of_last(y) };
            let weight = if WEIGHTED { of_last(w) } else { s.splat(1.0) };
            let (loss, slope) = weighted::<S, L, WEIGHTED>(s, losses, logits, y, weight, scale);
            let is_new = s.le(s.splat((LANES - rest) as f32), s.load(&LANE));
            sum = s.add(sum, s.select(is_new, loss, s.splat(0.0)));
            if GRAD {
                T::store(s, slope, grad[last..].first_chunk_mut().expect("a vector"));
            }
        }
        total += f64::from(s.sum(sum));
        if is_last {
            return total;
        }
    }
}

/// The number of each lane.
const LANE: Lanes = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0];

/// The logits, but for one lane that gives nothing.
#[inline(always)]
fn without<S: Simd>(s: S, logits: S::F, lane: usize) -> S::F {
    let mut lanes: Lanes = [0.0; LANES];
    s.store(logits, &mut lanes);
    lanes[lane] = f32::NO_LOSS;
    s.load(&lanes)
}
