//! Every set of instructions that this machine has, against f64 and against each other.

use super::isa::{PORTABLE_FUSED, Set};
use super::*;
use crate::math;

fn logits() -> Vec<f32> {
    (-110_000..=50_000).map(|i| i as f32 * 1e-3).collect()
}

/// Losses and gradients at target 0, or at target y.
fn qfl(isa: Isa, x: &[f32], y: Option<f32>) -> [Vec<f32>; 2] {
    let [mut loss, mut grad] = [(); 2].map(|()| vec![0.0; x.len()]);
    let (scale, out) = (vec![1.0; x.len()], Out { loss: &mut loss, grad: Some(&mut grad) });
    match y {
        Some(y) => qfl_soft(isa, x, &vec![y; x.len()], &scale, out),
        None => qfl_background(isa, x, &scale, out),
    }
    [loss, grad]
}

fn softmaxes(isa: Isa, x: &[f32]) -> (Vec<Lanes>, Softmax) {
    let mut z: Vec<Lanes> = x.chunks_exact(LANES).map(|z| z.try_into().expect("as long")).collect();
    let mut softmax = Softmax::default();
    softmax_rows(isa, &mut z, &mut softmax);
    (z, softmax)
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn exact_to_1e_6() {
    let x = logits();
    for isa in Isa::all() {
        let [loss, grad] = qfl(isa, &x, None);
        for ((&x, loss), grad) in x.iter().zip(loss).zip(grad) {
            let want = math::qfl_background(x.into(), 2.0);
            for (got, want) in [(loss, want.loss), (grad, want.grad)] {
                let error = (f64::from(got) - want).abs();
                assert!(error <= 1e-6 * want + 1e-37, "{isa:?} at {x}: {got:e}, not {want:e}");
            }
        }
    }
}

/// All sets with fused multiply-add give the same bits.
#[test]
fn the_same_bits_on_all_instructions() {
    let fused: Vec<Isa> = Isa::all().filter(|isa| PORTABLE_FUSED || isa.0 != Set::Portable).collect();
    let x = logits();
    for isa in fused.iter().skip(1) {
        for y in [None, Some(0.7)] {
            let (got, want) = (qfl(*isa, &x, y), qfl(fused[0], &x, y));
            assert_eq!(got.map(|v| bits(&v)), want.map(|v| bits(&v)), "{isa:?}");
        }
        let x = &x[100_000..][..17 * LANES];
        let ((got, got_sums), (want, want_sums)) = (softmaxes(*isa, x), softmaxes(fused[0], x));
        assert_eq!(bits(got.as_flattened()), bits(want.as_flattened()), "{isa:?}");
        assert_eq!(bits(&got_sums.log_total), bits(&want_sums.log_total), "{isa:?}");
        let sums = [*isa, fused[0]].map(|isa| {
            let mut total = 0.0;
            sum(isa, x, &mut total);
            total.to_bits()
        });
        assert_eq!(sums[0], sums[1], "{isa:?}");
    }
}

#[test]
fn not_finite_shows() {
    for isa in Isa::all() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = vec![0.5; 3 * LANES];
            x[LANES + 3] = bad;
            for y in [None, Some(0.25)] {
                assert!(!qfl(isa, &x, y)[0][LANES + 3].is_finite(), "{isa:?}");
            }
            let bad = softmaxes(isa, &x).1.bad;
            assert!(bad[3].is_nan() && bad[2] == 0.0, "{isa:?}");
        }
    }
}

#[test]
fn bf16_to_nearest_even() {
    for isa in Isa::all() {
        let values: Vec<f32> = (0..=u16::MAX)
            .flat_map(|high| [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff].map(|low| (high, low)))
            .map(|(high, low): (u16, u32)| f32::from_bits(u32::from(high) << 16 | low))
            .collect();
        let mut narrow = vec![bf16::ZERO; values.len()];
        narrow_bf16(isa, &values, &mut narrow);
        for (value, got) in values.iter().zip(narrow) {
            let want = bf16::from_f32(*value);
            assert!(got == want || (got.is_nan() && want.is_nan()), "{isa:?}: {value:e} to {got:e}");
        }
    }
}
