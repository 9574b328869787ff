//! Shows what becomes of unusual rows and values, on both backends: masked rows, ignored and
//! invalid labels, qualities and targets outside their range, logits that are not finite, 16-bit
//! overflow, no rows at all. A test for each line of the table of semantics.

use gfocal::{AvgPolicy, Background, Reduction, Status, bf16, f16};
use support::cuda::Layout;
use support::gpu::OnDevice;
use support::random::Random;
use support::{Case, Gpu, Outcome, Pass, check_cpu, check_cuda, check_with, cpu, cuda, expect, gpu};

/// The case on both backends, forward and backward.
fn on_both<T: OnDevice>(gpu: &Option<Gpu>, case: &Case) -> Vec<Outcome<T>> {
    let mut outcomes = vec![cpu::run(case, Pass::ForwardBackward).expect("a legal call")];
    for layout in [Layout::ALIGNED, Layout::MISALIGNED] {
        let run = |gpu| cuda::run(gpu, case, Pass::ForwardBackward, &layout).expect("a legal call");
        outcomes.extend(gpu.as_ref().map(run));
    }
    outcomes
}

/// The case in every type on both backends against the reference.
#[track_caller]
fn check_everywhere(gpu: &Option<Gpu>, case: &Case) {
    check_cpu::<f64>(case);
    check_cpu::<f32>(case);
    check_cpu::<f16>(case);
    check_cpu::<bf16>(case);
    let Some(gpu) = gpu else { return };
    for layout in [Layout::ALIGNED, Layout::MISALIGNED] {
        check_cuda::<f32>(gpu, case, &layout);
        check_cuda::<f16>(gpu, case, &layout);
        check_cuda::<bf16>(gpu, case, &layout);
    }
}

fn none(case: Case) -> Case {
    case.reduced(Reduction::None)
}

const NAN: f64 = f64::NAN;
const INF: f64 = f64::INFINITY;

#[test]
fn a_weight_of_zero_masks_whatever_the_row_holds() {
    let gpu = gpu();
    let logits = [NAN, INF, 1.0, -INF, 0.5, 0.25];
    // The masked rows have everything wrong with them, and are not looked at.
    let weight = |options: &mut support::Options| options.weight = Some(vec![0.0, -0.0, 1.0]);
    let sparse = Case::sparse([3, 2], &logits, &[99, 0, 0], &[NAN as f32, NAN as f32, 0.5]);
    let dense = Case::dense([3, 2], &logits, &[NAN as f32, 0.0, NAN as f32, 0.0, 0.5, 0.0]);
    let dfl = Case::dfl([3, 2], &logits, &[NAN as f32, 99.0, 0.5]);
    for case in [sparse, dense, dfl].map(|case| case.with(weight)) {
        check_everywhere(&gpu, &case);
        for got in on_both::<f16>(&gpu, &none(case)) {
            assert_eq!(got.loss[..2], [0.0; 2]);
            assert_eq!(got.grad[..4], [f16::ZERO; 4]);
            assert!(got.loss[2] > 0.0 && got.grad[4] != f16::ZERO);
            assert_eq!(got.status, Status::default());
        }
    }
}

#[test]
fn a_factor_of_zero_masks_its_element_whatever_the_logit() {
    let gpu = gpu();
    let logits = [NAN, 0.5, INF, -0.25, -INF, 1.0, NAN, 2.0];
    let keep = [0.0f32, 1.0, -0.0, 2.0, 0.0, 1.0, 0.0, -0.5];
    let sparse = Case::sparse([2, 4], &logits, &[0, 1], &[0.5, 0.75]);
    let dense = Case::dense([2, 4], &logits, &[0.5, 0.0, 0.25, 0.0, 0.0, 0.75, 1.0, 0.0]);
    for beta in [2.0, 0.0, 1.5] {
        for case in [sparse.clone(), dense.clone()].map(|case| case.with_beta(beta)) {
            let of_elements = case.clone().with_elements(|e| e.element_weights = Some(keep.to_vec()));
            let of_classes = case.clone().with_elements(|e| e.class_weights = Some(keep[..4].to_vec()));
            let twice = [&keep[..4], &keep[..4]].concat();
            for (case, weights) in [(of_elements, &keep[..]), (of_classes, &twice)] {
                check_everywhere(&gpu, &case);
                for got in on_both::<f32>(&gpu, &none(case)) {
                    let masked = got.grad.iter().map(|&grad| grad == 0.0);
                    assert!(masked.eq(weights.iter().map(|&weight| weight == 0.0)), "{:?}", got.grad);
                    assert!(got.loss.iter().all(|loss| loss.is_finite()));
                    assert_eq!(got.status, Status::default());
                }
            }
        }
    }
    // α of 1 leaves nothing of background, and α of 0 nothing of targets of 1.
    let with_alpha = |alpha| {
        let case = Case::sparse([1, 2], &[0.0, NAN], &[0], &[1.0]);
        case.with_beta(0.0).with_elements(|elements| elements.alpha = Some(alpha))
    };
    check_everywhere(&gpu, &with_alpha(1.0));
    for got in on_both::<f32>(&gpu, &with_alpha(1.0)) {
        assert_eq!((got.grad[0], got.grad[1]), (-0.5, 0.0));
    }
    let reverse = Case { logits: vec![NAN, 0.0], ..with_alpha(0.0) };
    check_everywhere(&gpu, &reverse);
}

#[test]
fn probabilities_have_the_bounds_of_pytorch_and_nan_outside() {
    let gpu = gpu();
    let activated = |p: &[f64], y: &[f32], beta| {
        Case::dense([p.len(), 1], p, y).with_beta(beta).with_elements(|elements| elements.activated = true)
    };
    for beta in [2.0, 0.0, 0.5, 3.0] {
        // Sure of the wrong and of the right answer; right on target; next to nothing.
        let case = activated(&[0.0, 1.0, 0.0, 1.0, 0.5, 1e-20], &[1.0, 0.0, 0.0, 1.0, 0.5, 0.0], beta);
        check_everywhere(&gpu, &case);
        for got in on_both::<f32>(&gpu, &none(case)) {
            assert_eq!(got.loss[..4], [100.0, 100.0, 0.0, 0.0]);
            assert!((got.grad[0] / -1e12 - 1.0).abs() < 1e-5 && (got.grad[1] / 1e12 - 1.0).abs() < 1e-5);
            assert_eq!(got.grad[2..5], [0.0; 3]);
        }
        let outside = activated(&[-1e-3, 1.5, NAN, INF, 0.5], &[0.0, 1.0, 0.5, 1.0, 0.0], beta);
        check_everywhere(&gpu, &outside);
        for got in on_both::<f32>(&gpu, &none(outside)) {
            assert!(got.grad[..4].iter().chain(&got.loss[..4]).all(|x| x.is_nan()), "{:?}", got.grad);
            assert_eq!(got.found_inf, 1.0);
        }
    }
}

#[test]
fn the_ignore_label_wins_over_every_other_meaning() {
    let gpu = gpu();
    // -1 and 2 are background otherwise, 0 a class, 255 and i64::MIN nothing.
    for label in [-1, 2, 0, 255, i64::MIN] {
        let logits = [NAN, 1.0, 0.5, -0.5];
        let case = Case::sparse([2, 2], &logits, &[label, 1], &[NAN as f32, 0.75]).with_ignore_label(label);
        check_everywhere(&gpu, &case);
        for got in on_both::<f32>(&gpu, &none(case)) {
            assert_eq!((got.loss[0], &got.grad[..2]), (0.0, &[0.0, 0.0][..]), "label {label}");
            assert!(got.loss[1] > 0.0);
            assert!(got.status.is_ok());
        }
    }
}

#[test]
fn invalid_labels_are_counted_with_the_first_row() {
    let gpu = gpu();
    // The low halves of the last three are classes.
    let labels = [0, 3, 1, -1, i64::MAX, 1 << 32, (1 << 40) + 1, i64::MIN];
    let logits = Random::new(1).many(16, -3.0, 3.0);
    let case = Case::sparse([8, 2], &logits, &labels, &[0.5; 8]);
    check_everywhere(&gpu, &case);
    for got in on_both::<bf16>(&gpu, &none(case)) {
        let want = Status { bad_labels: 4, first_bad_row: Some(1), ..Status::default() };
        assert_eq!(got.status, want);
        assert_eq!([1, 4, 5, 6].map(|row| got.loss[row]), [0.0; 4]);
        assert!([0, 2, 3, 7].iter().all(|&row| got.loss[row] > 0.0), "{:?}", got.loss);
    }
}

#[test]
fn background_first_counts_classes_from_1() {
    let gpu = gpu();
    let logits = Random::new(2).many(12, -3.0, 3.0);
    let case = Case::sparse([6, 2], &logits, &[0, 1, 2, 3, -1, i64::MIN], &[0.75; 6])
        .with_background(Background::First);
    check_everywhere(&gpu, &case);
    for got in on_both::<f32>(&gpu, &case) {
        assert_eq!(got.status, Status { bad_labels: 3, first_bad_row: Some(3), ..Status::default() });
    }
    // The same rows in the other convention: 2 is background, and the classes one lower.
    let last = Case::sparse([3, 2], &logits[..6], &[2, 0, 1], &[0.75; 3]);
    let first = case.rows(0..3);
    for (a, b) in on_both::<f32>(&gpu, &first).iter().zip(on_both::<f32>(&gpu, &last)) {
        assert_eq!((&a.loss, &a.grad), (&b.loss, &b.grad));
    }
}

#[test]
fn quality_is_clamped_and_nan_is_invalid_for_positives_only() {
    let gpu = gpu();
    let logits = Random::new(3).many(12, -3.0, 3.0);
    let quality = [-0.5, 1.5, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, f32::NAN];
    let case = Case::sparse([6, 2], &logits, &[0, 1, 0, 1, 0, 2], &quality);
    check_everywhere(&gpu, &case);
    let clamped = Case::sparse([4, 2], &logits[..8], &[0, 1, 0, 1], &[0.0, 1.0, 1.0, 0.0]);
    for (got, clamped) in on_both::<f32>(&gpu, &none(case)).iter().zip(on_both::<f32>(&gpu, &none(clamped))) {
        assert_eq!(got.status, Status { bad_qualities: 1, first_bad_row: Some(4), ..Status::default() });
        assert_eq!((&got.loss[..4], &got.grad[..8]), (&clamped.loss[..], &clamped.grad[..]));
        assert_eq!((got.loss[4], got.grad[8], got.grad[9]), (0.0, 0.0, 0.0));
        assert!(got.loss[5] > 0.0, "the quality of a background row is not read");
    }
}

#[test]
fn a_nan_in_a_dense_row_makes_the_row_invalid() {
    let gpu = gpu();
    for (classes, beta) in [(1usize, 2.0), (3, 2.0), (80, 2.0), (131, 2.0), (1, 1.5), (3, 0.0), (80, 1.5)] {
        let logits = Random::new(4).many(4 * classes, -3.0, 3.0);
        let mut target = vec![0.25; 4 * classes];
        target[classes] = f32::NAN;
        target[4 * classes - 1] = f32::NAN;
        let case = Case::dense([4, classes], &logits, &target).with_beta(beta);
        check_everywhere(&gpu, &case);
        for got in on_both::<f32>(&gpu, &none(case)) {
            assert_eq!(got.status, Status { bad_qualities: 2, first_bad_row: Some(1), ..Status::default() });
            assert_eq!((got.loss[1], got.loss[3]), (0.0, 0.0));
            assert!(got.grad[classes..2 * classes].iter().chain(&got.grad[3 * classes..]).all(|&g| g == 0.0));
            assert!(got.loss[0] > 0.0 && got.loss[2] > 0.0);
        }
    }
}

#[test]
fn overflow_becomes_inf_and_sets_the_flag() {
    let gpu = gpu();
    let case = Case::sparse([1, 2], &[8.0, -8.0], &[1], &[1.0]);
    let scaled = |scale| case.clone().with(|options| options.grad_scale = scale);
    for got in on_both::<f16>(&gpu, &scaled(1e6)) {
        assert_eq!((got.grad[0], got.grad[1], got.found_inf), (f16::INFINITY, f16::NEG_INFINITY, 1.0));
    }
    for got in on_both::<bf16>(&gpu, &scaled(1e6)) {
        assert!(got.grad.iter().all(|g| g.is_finite()));
        assert_eq!(got.found_inf, Outcome::<bf16>::FLAG_BEFORE, "left as it was");
    }
    for got in on_both::<f16>(&gpu, &scaled(1.0)) {
        assert_eq!(got.found_inf, Outcome::<f16>::FLAG_BEFORE, "left as it was");
    }
    let dfl = Case::dfl([1, 17], &[0.0; 17], &[3.0]).with(|options| options.grad_scale = 1e6);
    for got in on_both::<f16>(&gpu, &dfl) {
        assert_eq!((got.grad[3], got.found_inf), (f16::NEG_INFINITY, 1.0));
    }
}

#[test]
fn the_scale_is_applied_before_rounding() {
    let gpu = gpu();
    // The gradient is below the least f16, but 65536 times it is not.
    let case = Case::sparse([1, 8], &[-9.0; 8], &[8], &[0.0]);
    for got in on_both::<f16>(&gpu, &case) {
        assert_eq!(got.grad, [f16::ZERO; 8]);
    }
    let scaled = case.with(|options| options.grad_scale = 65536.0);
    check_everywhere(&gpu, &scaled);
    for got in on_both::<f16>(&gpu, &scaled) {
        assert!(got.grad.iter().all(|g| g.to_f64() > 1e-8), "{:?}", got.grad);
    }
}

#[test]
fn dfl_targets_are_clamped_and_counted() {
    let gpu = gpu();
    for bins in [2usize, 16, 17, 33] {
        let last = (bins - 1) as f32;
        let target = [-1.0, last, last + 0.5, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0];
        let logits = Random::new(5).many(8 * bins, -3.0, 3.0);
        let case = Case::dfl([8, bins], &logits, &target);
        check_everywhere(&gpu, &case);
        check_everywhere(&gpu, &none(case.clone().with_target_eps(0.1)));
        let clamped = Case::dfl([8, bins], &logits, &[0.0, last, last, 0.0, last, 0.0, 0.0, 0.0]);
        for (got, clamped) in
            on_both::<f32>(&gpu, &none(case)).iter().zip(on_both::<f32>(&gpu, &none(clamped)))
        {
            assert_eq!(
                got.status,
                Status { out_of_range_targets: 5, first_bad_row: Some(0), ..Status::default() }
            );
            assert_eq!((got.loss[3], &got.grad[3 * bins..4 * bins]), (0.0, &vec![0.0; bins][..]), "NaN");
            for row in [0, 1, 2, 4, 5, 6, 7] {
                let elements = row * bins..(row + 1) * bins;
                assert_eq!(
                    (got.loss[row], &got.grad[elements.clone()]),
                    (clamped.loss[row], &clamped.grad[elements])
                );
            }
        }
    }
}

#[test]
fn no_rows_give_no_loss() {
    let gpu = gpu();
    let reductions = [
        Reduction::None,
        Reduction::Sum,
        Reduction::Mean,
        Reduction::MeanBy { avg_factor: 0.0, policy: AvgPolicy::Exact },
        Reduction::MeanBy { avg_factor: 0.0, policy: AvgPolicy::Eps },
    ];
    for reduction in reductions {
        for case in [
            Case::sparse([0, 80], &[], &[], &[]),
            Case::dense([0, 3], &[], &[]),
            Case::dfl([0, 17], &[], &[]),
        ] {
            let case = case.reduced(reduction);
            check_everywhere(&gpu, &case);
            for got in on_both::<f32>(&gpu, &case) {
                assert_eq!(got.loss, vec![0.0; case.losses()], "{reduction:?}");
            }
        }
    }
}

#[test]
fn logits_that_are_not_finite_show_in_loss_and_gradient() {
    let gpu = gpu();
    for bad in [NAN, INF, -INF] {
        for columns in [2usize, 16, 17, 80, 33] {
            for at in [0, columns / 2, columns - 1] {
                let mut logits = Random::new(6).many(3 * columns, -3.0, 3.0);
                logits[columns + at] = bad;
                let quality = [0.25, 1.0, 0.0];
                let mut cases = vec![Case::dfl([3, columns], &logits, &[0.0, 0.5, 1.0])];
                // The bad logit as background, as the positive, and as a negative of a positive row.
                for label in [columns, at, (at + 1) % columns] {
                    cases.push(Case::sparse([3, columns], &logits, &[0, label as i64, 1], &quality));
                }
                cases.push(Case::dense([3, columns], &logits, &vec![0.5; 3 * columns]).with_beta(1.5));
                for case in cases {
                    check_everywhere(&gpu, &case);
                    for got in on_both::<f16>(&gpu, &none(case)) {
                        assert!(
                            !got.loss[1].is_finite() && !got.grad[columns + at].is_finite(),
                            "{bad} at {at}"
                        );
                        assert!(got.loss[0].is_finite() && got.loss[2].is_finite());
                        assert_eq!(got.found_inf, 1.0);
                    }
                }
            }
        }
    }
}

/// The largest f32 and bf16 logits have a loss that is as large, which overflows if anything on
/// the way to it is larger.
#[test]
fn the_largest_logits_give_finite_losses_and_gradients() {
    let gpu = gpu();
    for (columns, at) in [(16usize, 5), (16, 7), (80, 79), (7, 5)] {
        for large in [3.0e38, -3.0e38] {
            let mut logits = Random::new(8).many(3 * columns, -3.0, 3.0);
            logits[columns + at] = large;
            // As background alone, as a negative of a positive row, as the positive.
            for label in [columns, 3, at] {
                let case = Case::sparse([3, columns], &logits, &[0, label as i64, 1], &[0.25, 0.5, 0.0]);
                for reduction in [Reduction::Sum, Reduction::None] {
                    let case = case.clone().reduced(reduction);
                    check_cpu::<f32>(&case);
                    check_cpu::<bf16>(&case);
                    let Some(gpu) = &gpu else { continue };
                    check_cuda::<f32>(gpu, &case, &Layout::ALIGNED);
                    check_cuda::<bf16>(gpu, &case, &Layout::ALIGNED);
                }
            }
        }
    }
}

/// x ≪ 0 with y = 0: σ^β·softplus(x) is tiny, and right in all of its digits.
#[test]
fn easy_negatives_keep_relative_accuracy() {
    let gpu = gpu();
    let logits: Vec<f64> = (0..=2300).map(|i| -28.0 + 0.01 * f64::from(i)).collect();
    for beta in [0.0, 0.5, 1.0, 1.5, 2.0] {
        for (rows, columns) in [(logits.len(), 1), (logits.len() / 13, 13), (logits.len() / 8, 8)] {
            let logits = &logits[..rows * columns];
            let case = none(
                Case::sparse([rows, columns], logits, &vec![-1; rows], &vec![0.0; rows]).with_beta(beta),
            );
            let want = expect(&case.stored_as::<f32>());
            // Nothing but the relative part of the tolerance matters: all is far above underflow.
            assert!(want.grad.iter().flatten().all(|want| !want.cancels));
            assert!(beta > 1.0 || want.grad.iter().flatten().all(|want| want.value > 1e-30));
            for got in on_both::<f32>(&gpu, &case) {
                check_with("easy negatives", &case, Pass::ForwardBackward, &got, &want);
            }
            check_everywhere(&gpu, &case);
        }
    }
    // A number from another source: σ(-20)²·log1p(e^-20), by hand.
    let case = Case::sparse([1, 1], &[-20.0], &[1], &[0.0]);
    for got in on_both::<f32>(&gpu, &case) {
        let want = (-60f64).exp();
        assert!((f64::from(got.loss[0]) / want - 1.0).abs() <= 1e-5, "{:e}", got.loss[0]);
    }
}

/// A warp whose logits are all at most -2 takes a short way. Rows of 256, one warp's in 16 bits and two warps' in
/// f32, in which one logit is none of that, or two: each at every place in a vector, and every pair of places.
#[test]
fn one_logit_among_confident_ones_that_is_not() {
    let Some(gpu) = gpu() else { return };
    let mut random = Random::new(9);
    let mut check = |odd: &[f64], places: &[(usize, usize)]| {
        let mut logits = Vec::new();
        for (&odd, &(a, b)) in odd.iter().flat_map(|odd| places.iter().map(move |places| (odd, places))) {
            let mut row = random.many(256, -9.0, -2.5);
            let vector = 8 * random.index(32);
            (row[vector + a], row[vector + b]) = (odd, odd);
            logits.extend(row);
        }
        let rows = logits.len() / 256;
        let case = Case::sparse([rows, 256], &logits, &vec![256; rows], &vec![0.0; rows]);
        check_cuda::<f32>(&gpu, &case, &Layout::ALIGNED);
        check_cuda::<f16>(&gpu, &case, &Layout::ALIGNED);
        check_cuda::<bf16>(&gpu, &case, &Layout::ALIGNED);
    };
    let places: Vec<(usize, usize)> = (0..8).flat_map(|a| (0..=a).map(move |b| (a, b))).collect();
    check(&support::NOT_CONFIDENT, &places);
    // Alone, as one is enough to spoil the sum.
    for places in places {
        check(&[-INF], &[places]);
    }
}

/// Close to σ(x) = y, where |σ − y|^β changes fastest.
#[test]
fn near_sigma_equal_to_y() {
    let gpu = gpu();
    for y in [0.5f32, 0.3, 0.7, 0.95, 1e-3] {
        let logit = (f64::from(y) / (1.0 - f64::from(y))).ln();
        let distance = |i: i32| f64::from(i.signum()) * 10f64.powf(-7.0 + 0.125 * f64::from(i.abs()));
        let logits: Vec<f64> = (-56..=56).map(|i| logit + distance(i)).collect();
        let rows = logits.len();
        for beta in [0.0, 0.5, 1.0, 1.5, 2.0, 3.0] {
            let case = Case::sparse([rows, 1], &logits, &vec![0; rows], &vec![y; rows]).with_beta(beta);
            check_everywhere(&gpu, &none(case));
        }
    }
}
