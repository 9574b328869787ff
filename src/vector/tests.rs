//! Every set of instructions that this machine has, against f64 and against each other.

use half::{bf16, f16};

use super::isa::Set;
use super::simd::Portable;
use super::*;
use crate::element::Element;
use crate::math;

fn logits() -> Vec<f32> {
    (-15_700..=7_100).map(|i| i as f32 * 7e-3).chain([1e10, 1e37, 1e38]).collect()
}

/// The loss of a row at target 0, or at target y, of each element of it, and the gradients.
fn qfl_row(isa: Isa, x: &[f32], y: Option<f32>) -> (f64, Vec<f32>, Vec<f32>) {
    let mut grad = vec![0.0; x.len()];
    let run = |x: &[f32], grad: Option<&mut [f32]>| match y {
        Some(y) => {
            let mut row = [QflRow { left_out: NONE, scale: 1.0, loss: 0.0 }];
            let given = Given { targets: &vec![y; x.len()], weights: &[] };
            qfl_rows(isa, None, x, given, &mut row, grad);
            row[0].loss
        }
        None => qfl_background(isa, None, x, &[], 1.0, grad),
    };
    let each = x.iter().map(|&x| run(&[x], None) as f32).collect();
    (run(x, Some(&mut grad)), each, grad)
}

/// Losses and gradients at target 0, or at target y.
fn qfl(isa: Isa, x: &[f32], y: Option<f32>) -> [Vec<f32>; 2] {
    let (_, losses, grad) = qfl_row(isa, x, y);
    [losses, grad]
}

/// Losses and gradients of DFL. The targets go up to the last bin.
fn dfl(isa: Isa, x: &[f32]) -> (DflRows, Vec<f32>) {
    let bins = x.len() / LANES;
    let mut rows = DflRows { scale: [1.0; LANES], ..DflRows::default() };
    for (lane, target) in rows.target.iter_mut().enumerate() {
        *target = lane as f32 * (bins - 1) as f32 / (LANES - 1) as f32;
    }
    let mut grad = vec![0.0; x.len()];
    dfl_rows(isa, x, &mut vec![[0.0; LANES]; bins], std::slice::from_mut(&mut rows), Some(&mut grad));
    (rows, grad)
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Asserts that two numbers are near each other: `assert_near!(got, want, tolerance, "where {}", place)`.
macro_rules! assert_near {
    ($got:expr, $want:expr, $tolerance:expr, $($at:tt)+) => {
        let (got, want) = (f64::from($got), $want);
        assert!((got - want).abs() <= $tolerance, "{}: {got:e}, not {want:e}", format_args!($($at)+));
    };
}

#[test]
fn exact_to_1e_6() {
    let x = logits();
    for isa in Isa::all() {
        let [loss, grad] = qfl(isa, &x, None);
        for ((&x, loss), grad) in x.iter().zip(loss).zip(grad) {
            let want = math::qfl_background(x.into(), 2.0);
            for (got, want) in [(loss, want.loss), (grad, want.grad)] {
                assert_near!(got, want, 1e-6 * want + 1e-37, "{isa:?} at {x}");
            }
        }
    }
}

/// An error of the exponent is one of the result, so small losses may be off by more.
#[test]
fn any_beta_is_exact_to_2e_6() {
    let x = logits();
    for isa in Isa::all() {
        for beta in [0.0, 0.5, 1.0, 1.1, 1.5, 2.5, 3.0, 4.0] {
            let Some(of_vectors) = Beta::new(isa, beta) else {
                assert!(!isa.is_fused(), "{isa:?}, {beta}");
                continue;
            };
            let mut grad = vec![0.0; x.len()];
            let mut row = [QflRow { left_out: NONE, scale: 1.0, loss: 0.0 }];
            qfl_rows(isa, Some(of_vectors), &x, Given::default(), &mut row, Some(&mut grad));
            for (&x, grad) in x.iter().zip(grad) {
                let loss = qfl_background(isa, Some(of_vectors), &[x], &[0.5], 1.0, None);
                let want = math::qfl_background(x.into(), beta);
                for (got, want) in [(loss, 0.5 * want.loss), (grad.into(), want.grad)] {
                    assert_near!(got, want, 2e-6 * want + 1e-37, "{isa:?}, beta {beta} at {x}");
                }
            }
        }
        assert!(Beta::new(isa, 4.1).is_none());
    }
}

#[test]
fn bce_is_exact_at_any_target() {
    let x = logits();
    for isa in Isa::all() {
        let beta = Beta::new(isa, 0.0).expect("beta 0 needs nothing");
        for y in [0.0, 0.3, 1.0, 7.0] {
            let targets = vec![y; x.len()];
            let weights: Vec<f32> = (0..x.len()).map(|i| (i % 3) as f32 * 0.5).collect();
            let mut grad = vec![0.0; x.len()];
            let mut row = [QflRow { left_out: NONE, scale: 2.0, loss: 0.0 }];
            let given = Given { targets: &targets, weights: &weights };
            qfl_rows(isa, Some(beta), &x, given, &mut row, Some(&mut grad));
            let mut sum = 0.0;
            for ((&x, &weight), &got) in x.iter().zip(&weights).zip(&grad) {
                let (want, weight) =
                    (math::qfl_soft(x.into(), f64::from(y).min(1.0), 0.0), f64::from(weight));
                sum += weight * want.loss;
                let want = 2.0 * weight * want.grad;
                let tolerance = 1e-6 * want.abs() + if y > 0.0 { 2e-7 } else { 1e-37 };
                assert_near!(got, want, tolerance, "{isa:?}, y {y} at {x}");
            }
            assert_near!(row[0].loss, sum, 1e-6 * sum, "{isa:?}, y {y}");
        }
    }
}

/// Rows that are flat, spread out, and with one bin that has nearly all. The difference to the
/// largest logit is rounded too, and its absolute error is a relative one of its exponential.
#[test]
fn dfl_is_exact_to_1e_6() {
    for isa in Isa::all() {
        for (bins, spread) in [(2, 1.0), (16, 0.0), (17, 1.0), (17, 8.0), (17, 90.0), (256, 3.0)] {
            let x: Vec<f32> =
                (0..bins * LANES).map(|i| spread * (i as f32 * 12.9898).sin() + i as f32 * 1e-3).collect();
            let (rows, grad) = dfl(isa, &x);
            for (lane, (x, grad)) in x.chunks_exact(bins).zip(grad.chunks_exact(bins)).enumerate() {
                let softmax = math::softmax(x.iter().map(|&z| z.into()));
                let least = x.iter().fold(f64::INFINITY, |least, &z| least.min(z.into()));
                let relative = 1e-6 + (softmax.peak - least) * f64::from(f32::EPSILON) / 2.0;
                let t = math::two_hot(rows.target[lane].into(), bins);
                let want = math::dfl(&t, &softmax, x[t.left].into(), x[t.left + 1].into());
                let at = format!("{isa:?}, {bins} bins, {spread}, row {lane}");
                assert_near!(rows.loss[lane], want, relative * want, "{at}");
                for (bin, (&z, &got)) in x.iter().zip(grad).enumerate() {
                    let share = [(0, t.left_weight), (1, t.right_weight)];
                    let share: f64 =
                        share.iter().filter(|(by, _)| t.left + by == bin).map(|(_, share)| share).sum();
                    let want = math::exp_below(z.into(), softmax.peak) / softmax.total - share;
                    let tolerance = relative * want.abs() + if share > 0.0 { 1.5e-7 } else { 1e-37 };
                    assert_near!(got, want, tolerance, "{at}");
                }
            }
        }
    }
}

/// Rows of whole vectors and of parts, of logits of one range and of both.
#[test]
fn a_row_is_the_sum_of_its_elements() {
    for isa in Isa::all() {
        for (len, first) in
            [1, 7, 16, 17, 33, 80, 1203, 5000].into_iter().zip([11_400, 14_800, 16_400].into_iter().cycle())
        {
            let x = &logits()[first..][..len];
            for y in [None, Some(0.3)] {
                let (sum, each, grad) = qfl_row(isa, x, y);
                let want: f64 = each.iter().map(|&loss| f64::from(loss)).sum();
                assert_near!(sum, want, 1e-6 * want, "{isa:?}, {len}");
                let want = x.iter().map(|&x| match y {
                    Some(y) => math::qfl_soft(x.into(), y.into(), 2.0).grad,
                    None => math::qfl_background(x.into(), 2.0).grad,
                });
                for (&got, want) in grad.iter().zip(want) {
                    assert_near!(got, want, 1e-6 * want.abs() + 2e-7, "{isa:?}, {len}");
                }
            }
        }
    }
}

/// Confident groups, others, and a part of one.
#[test]
fn weights_multiply_losses_and_gradients() {
    for isa in Isa::all() {
        let x = &logits()[15_300..][..203];
        let weight: Vec<f32> = (0..x.len()).map(|i| (i % 5) as f32 * 0.75).collect();
        let mut grad = vec![0.0; x.len()];
        let sum = qfl_background(isa, None, x, &weight, -3.0, Some(&mut grad));
        let forward = qfl_background(isa, None, x, &weight, -3.0, None);
        assert_eq!(sum.to_bits(), forward.to_bits(), "{isa:?}");
        let mut want_sum = 0.0;
        for ((&x, &weight), &got) in x.iter().zip(&weight).zip(&grad) {
            let (want, weight) = (math::qfl_background(x.into(), 2.0), f64::from(weight));
            want_sum += want.loss * weight;
            let want = want.grad * weight * -3.0;
            assert_near!(got, want, 1e-6 * want.abs(), "{isa:?} at {x}");
        }
        assert_near!(sum, want_sum, 1e-6 * want_sum, "{isa:?}");
    }
}

/// All sets with fused multiply-add give the same bits.
#[test]
fn the_same_bits_on_all_instructions() {
    let fused: Vec<Isa> =
        Isa::all().filter(|isa| Portable::FUSED || !matches!(isa.0, Set::Portable)).collect();
    let x = logits();
    for isa in fused.iter().skip(1) {
        for y in [None, Some(0.7)] {
            let (got, want) = (qfl(*isa, &x, y), qfl(fused[0], &x, y));
            assert_eq!(got.map(|v| bits(&v)), want.map(|v| bits(&v)), "{isa:?}");
        }
        let x = &x[14_300..][..17 * LANES];
        let ((got, got_grad), (want, want_grad)) = (dfl(*isa, x), dfl(fused[0], x));
        assert_eq!(bits(&got.loss), bits(&want.loss), "{isa:?}");
        assert_eq!(bits(&got_grad), bits(&want_grad), "{isa:?}");
        let sums = [*isa, fused[0]].map(|isa| qfl_row(isa, &x[..131], None).0.to_bits());
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
            let loss = dfl(isa, &x).0.loss;
            let row = (LANES + 3) / 3;
            assert!(!loss[row].is_finite() && loss[row - 1].is_finite(), "{isa:?}");
        }
    }
}

/// Rows that share a vector, that are whole vectors, and whose vectors overlap; with one element left out, or none.
#[test]
fn rows_of_any_length() {
    for isa in Isa::all() {
        for columns in [1, 3, 15, 16, 17, 33] {
            let x = &logits()[15_300..][..37 * columns];
            let left_out = |row: usize| if row.is_multiple_of(3) { row % columns } else { NONE };
            let mut rows: Vec<QflRow> = (0..37)
                .map(|row| QflRow { left_out: left_out(row), scale: 1.0 + row as f32, loss: f64::NAN })
                .collect();
            let mut grad = vec![f32::NAN; x.len()];
            qfl_rows(isa, None, x, Given::default(), &mut rows, Some(&mut grad));
            for (row, (x, grad)) in x.chunks(columns).zip(grad.chunks(columns)).enumerate() {
                let at = format!("{isa:?}, {columns}, {row}");
                let mut sum = 0.0;
                for (column, (&x, &grad)) in x.iter().zip(grad).enumerate() {
                    let want = math::qfl_background(x.into(), 2.0);
                    let want = if column == left_out(row) { (0.0, 0.0) } else { (want.loss, want.grad) };
                    sum += want.0;
                    let want = want.1 * f64::from(rows[row].scale);
                    assert_near!(grad, want, 1e-6 * want + 1e-36, "{at}");
                }
                assert_near!(rows[row].loss, sum, 1e-6 * sum, "{at}");
            }
            let mut forward = rows.clone();
            qfl_rows(isa, None, x, Given::default(), &mut forward, None);
            assert!(rows.iter().zip(&forward).all(|(a, b)| a.loss.to_bits() == b.loss.to_bits()), "{isa:?}");
        }
        assert_eq!(qfl_background::<f32>(isa, None, &[], &[], 1.0, None), 0.0);
    }
}

/// An element that is left out gives nothing, and changes nothing of the others.
#[test]
fn one_is_left_out() {
    for isa in Isa::all() {
        for len in [1, 5, 16, 80, 91, 300] {
            let x = &logits()[15_300..][..len];
            let mut all = vec![0.0; len];
            let whole = qfl_background(isa, None, x, &[], 2.0, Some(&mut all));
            for left_out in [0, len / 2, len - 1] {
                let mut grad = vec![f32::NAN; len];
                let mut row = [QflRow { left_out, scale: 2.0, loss: 0.0 }];
                qfl_rows(isa, None, x, Given::default(), &mut row, Some(&mut grad));
                let sum = row[0].loss;
                let gone = math::qfl_background(x[left_out].into(), 2.0).loss;
                assert_near!(sum, whole - gone, 1e-6 * whole, "{isa:?}, {left_out} of {len}");
                let mut want = all.clone();
                want[left_out] = 0.0;
                assert!(grad[left_out].abs() < 1e-37, "{isa:?}, {left_out} of {len}: {:e}", grad[left_out]);
                grad[left_out] = 0.0;
                assert_eq!(bits(&grad), bits(&want), "{isa:?}, {left_out} of {len}");
            }
        }
    }
}

/// Stores all kinds of f32, and loads every value there is.
fn is_to_nearest<T: Element>(nearest: fn(f32) -> T, all: impl Fn(u16) -> T) {
    let floats: Vec<f32> = (0..=u16::MAX)
        .flat_map(|high| {
            [0, 1, 0x0fff, 0x1000, 0x1001, 0x7fff, 0x8000, 0x8001, 0xffff].map(|low| (high, low))
        })
        .map(|(high, low): (u16, u32)| f32::from_bits(u32::from(high) << 16 | low))
        .collect();
    let values: Vec<T> = (0..=u16::MAX).map(all).collect();
    for isa in Isa::all() {
        let mut narrow = vec![T::NO_LOSS; floats.len()];
        store(isa, &floats, &mut narrow);
        for (float, got) in floats.iter().zip(narrow) {
            let (got, want) = (got.to_f64(), nearest(*float).to_f64());
            assert!(got == want || (got.is_nan() && want.is_nan()), "{isa:?}: {float:e} to {got:e}");
        }
        let mut wide = vec![0.0; values.len()];
        load(isa, &values, &mut wide);
        for (value, got) in values.iter().zip(wide) {
            let want = value.to_f64();
            let got = f64::from(got);
            assert!(got == want || (got.is_nan() && want.is_nan()), "{isa:?}: {want:e} as {got:e}");
        }
    }
}

#[inline(always)]
fn store_body<S: Simd, T: Storage>(s: S, from: &[f32], to: &mut [T]) {
    for (from, to) in from.as_chunks().0.iter().zip(to.as_chunks_mut().0) {
        T::store(s, s.load(from), to);
    }
}

#[inline(always)]
fn load_body<S: Simd, T: Storage>(s: S, from: &[T], to: &mut [f32]) {
    for (from, to) in from.as_chunks().0.iter().zip(to.as_chunks_mut().0) {
        s.store(T::load(s, from), to);
    }
}

dispatch! {
    store<T: Storage> = store_body(from: &[f32], to: &mut [T]) -> ();
    load<T: Storage> = load_body(from: &[T], to: &mut [f32]) -> ();
}

#[test]
fn storage_is_exact_and_to_nearest_even() {
    is_to_nearest(f16::from_f32, f16::from_bits);
    is_to_nearest(bf16::from_f32, bf16::from_bits);
}
