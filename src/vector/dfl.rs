//! DFL, of 16 rows at a time: a lane for each.

use super::isa::dispatch;
use super::simd::{HALF, LANES, Lanes, Simd};
use super::storage::Storage;
use super::{LARGEST_EXPONENT, exp, log1p_positive};

/// [`LANES`] rows: a number for each.
#[derive(Clone, Copy, Default)]
pub(crate) struct DflRows {
    /// The targets, from 0 to the last bin.
    pub target: Lanes,
    /// What the gradient is multiplied by.
    pub scale: Lanes,
    /// The results. Not finite for a row with a logit that is not.
    pub loss: Lanes,
}

/// Bins at a time, which need not wait for each other.
pub(super) const WIDTH: usize = 4;

#[inline(always)]
fn dfl_rows_body<S: Simd, T: Storage>(
    s: S,
    x: &[T],
    z: &mut [Lanes],
    rows: &mut [DflRows],
    mut grad: Option<&mut [T]>,
) {
    let size = z.len() * LANES;
    for (i, rows) in rows.iter_mut().enumerate() {
        let inside = i * size..(i + 1) * size;
        let grad = grad.as_mut().map(|grad| &mut grad[inside.clone()]);
        lanes_body(s, &x[inside], z, rows, grad);
    }
}

/// The same for [`LANES`] rows.
#[inline(always)]
fn lanes_body<S: Simd, T: Storage>(
    s: S,
    x: &[T],
    z: &mut [Lanes],
    rows: &mut DflRows,
    grad: Option<&mut [T]>,
) {
    let (zero, one) = (s.splat(0.0), s.splat(1.0));
    let bins = z.len();
    assert!(bins >= 2 && x.len() == bins * LANES);
    columns(s, x, z);

    // The two bins that share the target.
    let target = s.load(&rows.target);
    let left_bin = s.min(s.floor(target), s.splat((bins - 2) as f32));
    let (left, right) = (s.pick(z, left_bin), s.pick(z, s.add(left_bin, one)));

    let (peak, bad) = peak(s, z);
    let total = exponentials(s, z, peak);
    // The total without one bin at the peak, whose exp is 1.
    let mut others = s.sub(total, one);
    let confident = s.le(total, s.splat(CONFIDENT));
    if s.any(confident) {
        // Where one bin has nearly all, the difference has lost what the others have.
        let mut exact = zero;
        for z in &*z {
            let e = s.load(z);
            exact = s.add(exact, s.select(s.le(one, e), zero, e));
        }
        others = s.select(confident, exact, others);
    }

    if let Some(grad) = grad {
        assert!(grad.len() == x.len());
        let scale = s.load(&rows.scale);
        let share_of_one = s.div(one, s.add(one, others));
        let mut past = target; // how far the target is past the bin
        for z in &mut *z {
            // The bin's share of the target is 1 - |past|, if that is above 0.
            let less = s.min(s.sub(s.abs(past), one), zero);
            let slope = s.fma(s.load(z), share_of_one, less);
            s.store(s.mul(slope, scale), z);
            past = s.sub(past, one);
        }
        from_columns(s, z, grad);
    }

    // Terms that are all positive, so that nothing cancels.
    let log_total = log1p_positive(s, others);
    let left = s.sub(log_total, s.sub(left, peak));
    let right = s.sub(log_total, s.sub(right, peak));
    let right_weight = s.sub(target, left_bin);
    let left = s.fma(s.sub(one, right_weight), left, bad);
    s.store(s.fma(right_weight, right, left), &mut rows.loss);
}

/// The largest logit of each row, and 0; or NaN where one is not finite.
#[inline(always)]
pub(super) fn peak<S: Simd>(s: S, z: &[Lanes]) -> (S::F, S::F) {
    let zero = s.splat(0.0);
    let (mut peaks, mut bad) = ([s.load(&z[0]); WIDTH], [zero; WIDTH]);
    let (groups, rest) = z.as_chunks::<WIDTH>();
    for group in groups {
        for i in 0..WIDTH {
            let z = s.load(&group[i]);
            (peaks[i], bad[i]) = (s.max(z, peaks[i]), s.fma(z, zero, bad[i]));
        }
    }
    for z in rest {
        let z = s.load(z);
        (peaks[0], bad[0]) = (s.max(z, peaks[0]), s.fma(z, zero, bad[0]));
    }
    let peak = s.max(s.max(peaks[0], peaks[1]), s.max(peaks[2], peaks[3]));
    (peak, s.add(s.add(bad[0], bad[1]), s.add(bad[2], bad[3])))
}

/// Replaces the logits by exp(z - peak), and gives the totals.
#[inline(always)]
pub(super) fn exponentials<S: Simd>(s: S, z: &mut [Lanes], peak: S::F) -> S::F {
    let (mut totals, least) = ([s.splat(0.0); WIDTH], s.splat(-LARGEST_EXPONENT));
    let (groups, rest) = z.as_chunks_mut::<WIDTH>();
    for group in groups {
        for i in 0..WIDTH {
            let e = exp(s, s.max(s.sub(s.load(&group[i]), peak), least));
            totals[i] = s.add(totals[i], e);
            s.store(e, &mut group[i]);
        }
    }
    for z in rest {
        let e = exp(s, s.max(s.sub(s.load(z), peak), least));
        totals[0] = s.add(totals[0], e);
        s.store(e, z);
    }
    s.add(s.add(totals[0], totals[1]), s.add(totals[2], totals[3]))
}

/// Below this total of exponentials one bin alone is at the peak. Twin of the constant in kernels/math.cuh.
const CONFIDENT: f32 = 1.25;

/// The columns of [`LANES`] rows.
#[inline(always)]
pub(super) fn columns<S: Simd, T: Storage>(s: S, rows: &[T], columns: &mut [Lanes]) {
    let bins = columns.len();
    let (low, high) = rows.split_at(bins * HALF);
    let (blocks, rest) = columns.as_chunks_mut::<HALF>();
    for (block, columns) in blocks.iter_mut().enumerate() {
        let mut vectors = [s.splat(0.0); HALF];
        for (i, vector) in vectors.iter_mut().enumerate() {
            let first = i * bins + block * HALF;
            *vector = T::load_halves(s, block_of(&low[first..]), block_of(&high[first..]));
        }
        vectors = s.transpose_halves(vectors);
        for i in 0..HALF {
            s.store(vectors[i], &mut columns[i]);
        }
    }
    let first = bins - rest.len();
    for (bin, column) in rest.iter_mut().enumerate() {
        let mut values = [T::NO_LOSS; LANES];
        for i in 0..LANES {
            values[i] = rows[i * bins + first + bin];
        }
        s.store(T::load(s, &values), column);
    }
}

/// [`LANES`] rows from their columns.
#[inline(always)]
pub(super) fn from_columns<S: Simd, T: Storage>(s: S, columns: &[Lanes], rows: &mut [T]) {
    let bins = columns.len();
    let (blocks, rest) = columns.as_chunks::<HALF>();
    let first = bins - rest.len();
    for (bin, column) in rest.iter().enumerate() {
        let mut values = [T::NO_LOSS; LANES];
        T::store(s, s.load(column), &mut values);
        for i in 0..LANES {
            rows[i * bins + first + bin] = values[i];
        }
    }
    let (low, high) = rows.split_at_mut(bins * HALF);
    for (block, columns) in blocks.iter().enumerate() {
        let mut vectors = [s.splat(0.0); HALF];
        for i in 0..HALF {
            vectors[i] = s.load(&columns[i]);
        }
        vectors = s.transpose_halves(vectors);
        for (i, vector) in vectors.into_iter().enumerate() {
            let first = i * bins + block * HALF;
            T::store_halves(s, vector, block_of_mut(&mut low[first..]), block_of_mut(&mut high[first..]));
        }
    }
}

#[inline(always)]
fn block_of<T>(row: &[T]) -> &[T; HALF] {
    row.first_chunk().expect("a block of bins")
}

#[inline(always)]
fn block_of_mut<T>(row: &mut [T]) -> &mut [T; HALF] {
    row.first_chunk_mut().expect("a block of bins")
}

dispatch! {
    /// DFL of [`LANES`] rows for each of `rows`. `z` is room for the bins, of which there are 2 or more; x and
    /// the gradient have as many in each row.
    dfl_rows<T: Storage> = dfl_rows_body(
        x: &[T], z: &mut [Lanes], rows: &mut [DflRows], grad: Option<&mut [T]>,
    ) -> ();
}
