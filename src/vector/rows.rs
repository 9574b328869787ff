//! Sums and softmaxes of rows.

use super::isa::{PORTABLE_FUSED, Set, dispatch};
use super::{exp, log1p_positive};

/// Rows that [`softmax_rows`] takes at a time.
pub(crate) const LANES: usize = 16;

/// A number for each of the rows.
pub(crate) type Lanes = [f32; LANES];

/// The sum, always in the same order; f32 for a few hundred values, f64 beyond.
#[inline(always)]
fn sum_body<const FUSED: bool>(values: &[f32], sum: &mut f64) {
    *sum = 0.0;
    for values in values.chunks(32 * LANES) {
        let (whole, rest) = values.as_chunks::<LANES>();
        let mut few: f32 = rest.iter().sum();
        if !whole.is_empty() {
            let mut lanes = [0.0; LANES];
            for values in whole {
                for i in 0..LANES {
                    lanes[i] += values[i];
                }
            }
            let mut width = LANES / 2;
            while width > 0 {
                for i in 0..width {
                    lanes[i] += lanes[i + width];
                }
                width /= 2;
            }
            few += lanes[0];
        }
        *sum += f64::from(few);
    }
}

/// Whether any is NaN.
#[inline(always)]
fn any_nan_body<const FUSED: bool>(values: &[f32], any: &mut bool) {
    *any = values.iter().fold(false, |any, value| any | value.is_nan());
}

/// The softmaxes of [`LANES`] rows. Logits that are not finite make `bad` NaN, which is 0
/// otherwise.
#[derive(Default)]
pub(crate) struct Softmax {
    pub peak: Lanes,
    /// The total of exp(z - peak).
    pub total: Lanes,
    /// log-sum-exp = peak + log_total.
    pub log_total: Lanes,
    pub bad: Lanes,
}

/// `z[bin][row]`: logits before, exp(z - peak) after.
#[inline(always)]
fn softmax_rows_body<const FUSED: bool>(z: &mut [Lanes], softmax: &mut Softmax) {
    let (mut peak, mut bad) = ([f32::NEG_INFINITY; LANES], [0.0; LANES]);
    for z in z.iter() {
        for i in 0..LANES {
            peak[i] = if z[i] > peak[i] { z[i] } else { peak[i] };
            bad[i] += z[i] * 0.0;
        }
    }
    for z in z.iter_mut() {
        for i in 0..LANES {
            z[i] -= peak[i];
        }
    }
    for z in z.as_flattened_mut() {
        *z = exp::<FUSED>(*z);
    }
    // `others` leaves out one bin at the peak, whose exp is 1: what rounding would lose of the
    // total when one bin has it all. Bins so close to the peak that theirs is 1 too count as such.
    let mut others = [-1.0f64; LANES];
    for z in z.chunks(256) {
        let (mut some, mut peaks) = ([0.0f32; LANES], [0.0f32; LANES]);
        for z in z {
            for i in 0..LANES {
                let at_peak = z[i] == 1.0;
                some[i] += if at_peak { 0.0 } else { z[i] };
                peaks[i] += if at_peak { 1.0 } else { 0.0 };
            }
        }
        for i in 0..LANES {
            others[i] += f64::from(peaks[i]);
            others[i] += f64::from(some[i]);
        }
    }
    softmax.total = others.map(|others| (1.0 + others) as f32);
    let others = others.map(|others| others as f32);
    for (log_total, others) in softmax.log_total.iter_mut().zip(others) {
        *log_total = log1p_positive::<FUSED>(others);
    }
    (softmax.peak, softmax.bad) = (peak, bad);
}

dispatch! {
    /// The sum, always in the same order; f32 for a few hundred values, f64 beyond.
    sum = sum_body(values: &[f32], sum: &mut f64);
    /// Whether any is NaN.
    any_nan = any_nan_body(values: &[f32], any: &mut bool);
    /// The softmaxes of rows, `z[bin][row]`: logits before, exp(z - peak) after.
    softmax_rows = softmax_rows_body(z: &mut [Lanes], softmax: &mut Softmax);
}
