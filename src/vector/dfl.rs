//! DFL, of 8 rows at a time: a lane for each.

use super::isa::dispatch;
use super::simd::{LANES, Lanes, Simd};
use super::{LARGEST_EXPONENT, exp, log1p_positive};

/// [`LANES`] rows: a number for each.
#[derive(Default)]
pub(crate) struct DflRows {
    /// The targets, from 0 to the last bin.
    pub target: Lanes,
    /// What the gradient is multiplied by.
    pub scale: Lanes,
    /// The results. Not finite for a row with a logit that is not.
    pub loss: Lanes,
}

/// `z` is room for the bins, of which there are 2 or more; x and the gradient are [`LANES`] rows of
/// as many.
#[inline(always)]
fn dfl_rows_body<S: Simd>(s: S, x: &[f32], z: &mut [Lanes], rows: &mut DflRows, grad: Option<&mut [f32]>) {
    let (zero, one) = (s.splat(0.0), s.splat(1.0));
    let bins = z.len();
    assert!(bins >= 2 && x.len() == bins * LANES);
    columns(s, x, z);

    let (mut peak, mut bad) = (s.load(&z[0]), zero);
    for z in &*z {
        let z = s.load(z);
        peak = s.max(z, peak);
        bad = s.fma(z, zero, bad);
    }
    // `others` leaves out one bin at the peak, whose exp is 1: what rounding would lose of the
    // total when one bin has it all. Bins so close to the peak that theirs is 1 too count as such.
    let (mut others, mut peaks, least) = (zero, zero, s.splat(-LARGEST_EXPONENT));
    for z in &mut *z {
        let [e] = exp(s, [s.max(s.sub(s.load(z), peak), least)]);
        let at_peak = s.le(one, e);
        others = s.add(others, s.select(at_peak, zero, e));
        peaks = s.add(peaks, s.select(at_peak, one, zero));
        s.store(e, z);
    }
    let others = s.add(others, s.sub(peaks, one));

    // The two bins that share the target.
    let [mut left, mut right, mut right_weight] = [[0.0; LANES]; 3];
    for i in 0..LANES {
        let bin = (rows.target[i] as usize).min(bins - 2);
        (left[i], right[i]) = (x[i * bins + bin], x[i * bins + bin + 1]);
        right_weight[i] = rows.target[i] - bin as f32;
    }
    // Terms that are all positive, so that nothing cancels.
    let log_total = log1p_positive(s, others);
    let left = s.sub(log_total, s.sub(s.load(&left), peak));
    let right = s.sub(log_total, s.sub(s.load(&right), peak));
    let right_weight = s.load(&right_weight);
    let left = s.fma(s.sub(one, right_weight), left, bad);
    s.store(s.fma(right_weight, right, left), &mut rows.loss);

    let Some(grad) = grad else { return };
    assert!(grad.len() == x.len());
    let (scale, target) = (s.load(&rows.scale), s.load(&rows.target));
    let share_of_one = s.div(one, s.add(one, others));
    let mut bin = zero;
    for z in &mut *z {
        // 1 - (target - left) on the left, target - left on the right, otherwise below 0.
        let share = s.max(s.sub(one, s.abs(s.sub(target, bin))), zero);
        let p = s.mul(s.load(z), share_of_one);
        s.store(s.mul(s.sub(p, share), scale), z);
        bin = s.add(bin, one);
    }
    from_columns(s, z, grad);
}

/// The columns of [`LANES`] rows.
#[inline(always)]
fn columns<S: Simd>(s: S, rows: &[f32], columns: &mut [Lanes]) {
    let bins = columns.len();
    let (blocks, rest) = columns.as_chunks_mut::<LANES>();
    for (block, columns) in blocks.iter_mut().enumerate() {
        let mut vectors = [s.splat(0.0); LANES];
        for i in 0..LANES {
            vectors[i] = s.load(rows[i * bins + block * LANES..].first_chunk().expect("a block of bins"));
        }
        vectors = s.transpose(vectors);
        for i in 0..LANES {
            s.store(vectors[i], &mut columns[i]);
        }
    }
    let first = bins - rest.len();
    for (bin, column) in rest.iter_mut().enumerate() {
        for i in 0..LANES {
            column[i] = rows[i * bins + first + bin];
        }
    }
}

/// [`LANES`] rows from their columns.
#[inline(always)]
fn from_columns<S: Simd>(s: S, columns: &[Lanes], rows: &mut [f32]) {
    let bins = columns.len();
    let (blocks, rest) = columns.as_chunks::<LANES>();
    for (block, columns) in blocks.iter().enumerate() {
        let mut vectors = [s.splat(0.0); LANES];
        for i in 0..LANES {
            vectors[i] = s.load(&columns[i]);
        }
        vectors = s.transpose(vectors);
        for i in 0..LANES {
            let row = &mut rows[i * bins + block * LANES..];
            s.store(vectors[i], row.first_chunk_mut().expect("a block of bins"));
        }
    }
    let first = bins - rest.len();
    for (bin, column) in rest.iter().enumerate() {
        for i in 0..LANES {
            rows[i * bins + first + bin] = column[i];
        }
    }
}

dispatch! {
    /// DFL of [`LANES`] rows.
    dfl_rows = dfl_rows_body(
        x: &[f32], z: &mut [Lanes], rows: &mut DflRows, grad: Option<&mut [f32]>,
    ) -> ();
}
