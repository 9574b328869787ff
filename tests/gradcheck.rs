//! Shows that the gradients of the CPU path in f64 are the derivatives of its losses, by central
//! differences; and what they are defined to be where there is no derivative, at σ(x) = y.

use gfocal::Reduction;
use support::random::Random;
use support::{Case, Pass, check_elements, cpu, cuda, expect, gpu};

const BETAS: [f64; 6] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0];
const STEP: f64 = 1e-5;

/// The loss of each row, in f64.
fn losses(case: &Case) -> Vec<f64> {
    cpu::run::<f64>(&case.clone().reduced(Reduction::None), Pass::Forward).expect("a legal call").loss
}

/// Compares the gradient with central differences. A row's loss depends on its own logits only,
/// so that one column of all rows moves at once.
///
/// The tolerance is the method's: its truncation error of h²/6 times the third derivative, which
/// is below 1e-6 of the gradient for the logits here; and rounding, 2^-53 of the loss over h.
#[track_caller]
fn check_gradient(what: &str, case: &Case) {
    let [rows, columns] = case.shape;
    let got =
        cpu::run::<f64>(&case.clone().reduced(Reduction::Sum), Pass::Backward).expect("a legal call").grad;
    let at = losses(case);
    for column in 0..columns {
        let moved = |by: f64| {
            let mut case = case.clone();
            (0..rows).for_each(|row| case.logits[row * columns + column] += by);
            losses(&case)
        };
        let (above, below) = (moved(STEP), moved(-STEP));
        for row in 0..rows {
            let difference = (above[row] - below[row]) / (2.0 * STEP);
            let grad = got[row * columns + column];
            let tolerance = 1e-6 * difference.abs() + 5e-10 * at[row];
            let error = (grad - difference).abs();
            // Written so that NaN fails.
            let good = error <= tolerance;
            assert!(
                good,
                "{what}, row {row}, column {column}: gradient {grad:e}, difference quotient {difference:e}"
            );
        }
    }
}

/// Logits over [-30, 30], each in a row of its own, but for those near σ(x) = y: there, for
/// β < 2, higher derivatives have poles.
fn logits_for(y: f64, beta: f64) -> Vec<f64> {
    let sigma = |x: f64| 1.0 / (1.0 + (-x).exp());
    let all = (0..=600).map(|i| -30.0 + 0.1 * f64::from(i) + 0.0137);
    all.filter(|&x| beta >= 2.0 || y == 0.0 || y == 1.0 || (sigma(x) - y).abs() > 0.03).collect()
}

#[test]
fn qfl_sparse() {
    for beta in BETAS {
        for y in [0.0f32, 1e-3, 0.25, 0.5, 0.7, 0.999, 1.0] {
            let logits = logits_for(y.into(), beta);
            let rows = logits.len();
            let positives = Case::sparse([rows, 1], &logits, &vec![0; rows], &vec![y; rows]).with_beta(beta);
            check_gradient(&format!("beta {beta}, y {y}"), &positives);
        }
        let logits = logits_for(0.0, beta);
        let rows = logits.len();
        let background =
            Case::sparse([rows, 1], &logits, &vec![1; rows], &vec![f32::NAN; rows]).with_beta(beta);
        check_gradient(&format!("beta {beta}, background"), &background);
    }
}

#[test]
fn qfl_sparse_with_several_classes_and_weights() {
    let mut random = Random::new(11);
    for beta in BETAS {
        // Positive logits are below and their targets above, so that σ stays away from y.
        let (rows, classes) = (40, 5);
        let logits = random.many(rows * classes, -4.0, 0.5);
        let labels: Vec<i64> = (0..rows).map(|_| random.index(classes + 1) as i64).collect();
        let quality: Vec<f32> = (0..rows).map(|_| random.between(0.7, 1.0) as f32).collect();
        let weight: Vec<f32> = (0..rows).map(|_| random.between(0.5, 2.0) as f32).collect();
        let case = Case::sparse([rows, classes], &logits, &labels, &quality).with_beta(beta);
        check_gradient(&format!("beta {beta}"), &case.with(|options| options.weight = Some(weight)));
    }
}

/// With weights of classes and elements, some of them 0, and α.
#[test]
fn qfl_with_weights_of_elements() {
    let mut random = Random::new(13);
    for beta in BETAS {
        let (rows, classes) = (40, 5);
        let logits = random.many(rows * classes, -4.0, 0.5);
        let labels: Vec<i64> = (0..rows).map(|_| random.index(classes + 1) as i64).collect();
        let quality: Vec<f32> = (0..rows).map(|_| random.between(0.7, 1.0) as f32).collect();
        let target: Vec<f32> = (0..rows * classes).map(|_| random.between(0.7, 1.0) as f32).collect();
        let mut weights = |count: usize| -> Vec<f32> {
            let mut one = || if random.chance(0.2) { 0.0 } else { random.between(0.5, 2.0) as f32 };
            (0..count).map(|_| one()).collect()
        };
        let (of_classes, of_elements) = (weights(classes), weights(rows * classes));
        let sparse = Case::sparse([rows, classes], &logits, &labels, &quality);
        for case in [sparse, Case::dense([rows, classes], &logits, &target)] {
            let case = case.with_beta(beta).with_elements(|elements| {
                elements.class_weights = Some(of_classes.clone());
                elements.element_weights = Some(of_elements.clone());
                elements.alpha = Some(0.25);
            });
            check_gradient(&format!("weights of elements, beta {beta}"), &case);
        }
    }
}

/// Probabilities away from their target, where for β < 2 higher derivatives have poles, and from 0 and 1, where those
/// of the logarithms do.
#[test]
fn qfl_of_probabilities() {
    for beta in BETAS {
        for y in [0.0f32, 0.25, 0.7, 1.0] {
            let probabilities = (0..=80).map(|i| 0.1 + 0.01 * f64::from(i) + 1.37e-3);
            let logits: Vec<f64> = probabilities.filter(|p| (p - f64::from(y)).abs() > 0.05).collect();
            let rows = logits.len();
            let sparse = Case::sparse([rows, 1], &logits, &vec![0; rows], &vec![y; rows]);
            for case in [sparse, Case::dense([rows, 1], &logits, &vec![y; rows])] {
                let case = case.with_beta(beta).with_elements(|elements| elements.activated = true);
                check_gradient(&format!("probabilities, beta {beta}, y {y}"), &case);
            }
        }
    }
}

#[test]
fn qfl_dense() {
    for beta in BETAS {
        for y in [0.0f32, 0.3, 0.8, 1.0] {
            let logits = logits_for(y.into(), beta);
            let rows = logits.len();
            let case = Case::dense([rows, 1], &logits, &vec![y; rows]).with_beta(beta);
            check_gradient(&format!("dense, beta {beta}, y {y}"), &case);
        }
        // Many positives in a row.
        let mut random = Random::new(12);
        let target: Vec<f32> = (0..40 * 3).map(|_| random.between(0.7, 1.0) as f32).collect();
        let logits = random.many(40 * 3, -3.0, 0.5);
        check_gradient(
            &format!("dense rows, beta {beta}"),
            &Case::dense([40, 3], &logits, &target).with_beta(beta),
        );
    }
}

#[test]
fn dfl() {
    let mut random = Random::new(13);
    for bins in [2usize, 3, 16, 17, 40] {
        // Every integer, 0 and the last bin included, and as many between them.
        let mut target: Vec<f32> = (0..bins).map(|t| t as f32).collect();
        target.extend((1..2 * bins).map(|_| random.between(0.0, bins as f64 - 1.0) as f32));
        for range in [0.0, 3.0, 15.0] {
            let logits = random.many(target.len() * bins, -range, range);
            check_gradient(
                &format!("{bins} bins, logits to {range}"),
                &Case::dfl([target.len(), bins], &logits, &target),
            );
        }
    }
}

#[test]
fn integral() {
    let mut random = Random::new(14);
    for bins in [2usize, 16, 17, 40] {
        let shape = [20, bins];
        let upstream = vec![1.0; shape[0]];
        let logits = random.many(shape[0] * bins, -6.0, 6.0);
        let (at, grad) = cpu::integral(&logits, shape, &upstream).expect("a legal call");
        for column in 0..bins {
            let moved = |by: f64| {
                let mut logits = logits.clone();
                (0..shape[0]).for_each(|row| logits[row * bins + column] += by);
                cpu::integral(&logits, shape, &upstream).expect("a legal call").0
            };
            let (above, below) = (moved(STEP), moved(-STEP));
            for row in 0..shape[0] {
                let difference = (above[row] - below[row]) / (2.0 * STEP);
                let error = (grad[row * bins + column] - difference).abs();
                let good = error <= 1e-6 * difference.abs() + 5e-10 * at[row];
                assert!(
                    good,
                    "{bins} bins, row {row}, column {column}: off by {error:e} from {difference:e}"
                );
            }
        }
    }
}

/// At σ(x) = y, the gradient is 0 for every β. The loss is 0, and ln 2 for β = 0.
#[test]
fn the_defined_values_where_sigma_is_y() {
    let gpu = gpu();
    for beta in BETAS {
        let want = if beta == 0.0 { 2f64.ln() } else { 0.0 };
        let sparse = Case::sparse([1, 1], &[0.0], &[0], &[0.5]).with_beta(beta);
        let dense = Case::dense([1, 1], &[0.0], &[0.5]).with_beta(beta);
        for case in [sparse, dense] {
            let got = cpu::run::<f64>(&case, Pass::ForwardBackward).expect("a legal call");
            assert_eq!(got.grad, [0.0], "beta {beta}");
            assert!((got.loss[0] - want).abs() <= 1e-15, "beta {beta}: {}", got.loss[0]);
            let got = cpu::run::<f32>(&case, Pass::ForwardBackward).expect("a legal call");
            assert_eq!(got.grad, [0.0], "beta {beta} in f32");
            check_elements("loss in f32", &got.loss, &expect(&case).loss);
            let Some(gpu) = &gpu else { continue };
            let got = cuda::run::<f32>(gpu, &case, Pass::ForwardBackward, &cuda::Layout::ALIGNED)
                .expect("a legal call");
            assert_eq!(got.grad, [0.0], "beta {beta} on CUDA");
            check_elements("loss", &got.loss, &expect(&case).loss);
        }
    }
}

/// What is beside f64 logits is f64: the derivatives by numbers that f32 does not hold, to 1e-9.
#[test]
fn what_is_beside_f64_logits_is_f64() {
    let third = 1.0 / 3.0;
    let (logits, rows) = ([-1.3, 0.4, 2.1, -0.7, 0.2, 1.1, -0.1, 0.9], 2);
    let (quality, weight, upstream) = ([0.1 + third, 0.7 * third], [third, 2.0 * third], [0.1, 1.7 * third]);
    let (by_class, by_element) = ([third, 0.1, 0.7, 1.1], [0.9 * third; 8]);
    assert!(
        [third, 0.1, 1.7 * third].iter().all(|x| (f64::from(*x as f32) - x).abs() > 1e-9 * x),
        "f32 would do"
    );
    let near = |what: &str, got: f64, want: f64| {
        let error = (got - want).abs();
        assert!(error <= 1e-9 * want.abs(), "{what}: {got:e} is not {want:e}");
    };

    let softplus = |x: f64| x.max(0.0) + (-x.abs()).exp().ln_1p();
    let sigma = |x: f64| 1.0 / (1.0 + (-x).exp());
    let qfl_of = |x: f64, y: f64| {
        let (d, ce) = (sigma(x) - y, softplus(x) - x * y);
        d * (d * d + 2.0 * sigma(x) * (1.0 - sigma(x)) * ce)
    };
    let (qfl, labels) = (gfocal::QualityFocalLoss::default(), [1i64, 3]);
    let (mut sparse, mut dense, mut losses) = ([0.0f64; 8], [0.0f64; 8], [0.0f64; 2]);
    let call = qfl.cpu(&logits, [rows, 4], &labels, &quality).reduction(Reduction::None);
    let call = call.weight(&weight).upstream(&upstream).class_weights(&by_class).element_weights(&by_element);
    call.forward_backward(&mut losses, &mut sparse).expect("a legal call");
    let target: Vec<f64> = (0..8).map(|i| third * sigma(f64::from(i))).collect();
    let call = qfl.cpu_dense(&logits, [rows, 4], &target).reduction(Reduction::Sum);
    call.backward(&mut dense).expect("a legal call");
    for (i, &x) in logits.iter().enumerate() {
        let (row, class) = (i / 4, i % 4);
        let y = if labels[row] == class as i64 { quality[row] } else { 0.0 };
        let by = weight[row] * upstream[row] * by_class[class] * by_element[i];
        near("labelled", sparse[i], by * qfl_of(x, y));
        near("dense", dense[i], qfl_of(x, target[i]));
    }

    let total = |row: usize| logits[4 * row..][..4].iter().map(|z| z.exp()).sum::<f64>();
    let distance = [1.0 + third, 3.0 - 0.1 * third];
    let (mut sides, mut slopes) = ([0.0f64; 8], [0.0f64; 8]);
    let dfl = gfocal::DistributionFocalLoss::new(0.2 * third).expect("an eps");
    let call = dfl.cpu(&logits, [rows, 4], &distance).reduction(Reduction::None);
    let call = call.weight(&weight).upstream(&upstream);
    call.forward_backward(&mut losses, &mut sides).expect("a legal call");
    gfocal::integral::backward(&logits, [rows, 4], &upstream, &mut slopes).expect("a legal call");
    for (i, &z) in logits.iter().enumerate() {
        let (row, bin) = (i / 4, i % 4);
        let p = z.exp() / total(row);
        let t = distance[row].min(3.0 - 0.2 * third); // the second is clamped
        let share = (1.0 - (t - bin as f64).abs()).max(0.0);
        near("DFL", sides[i], weight[row] * upstream[row] * (p - share));
        let of_row = logits[4 * row..][..4].iter().enumerate();
        let expectation = of_row.map(|(j, z)| j as f64 * z.exp()).sum::<f64>() / total(row);
        near("the integral", slopes[i], upstream[row] * p * (bin as f64 - expectation));
    }
}
