//! The CPU path gives the same bits on any number of threads.

use gfocal::{Reduction, bf16, f16};
use support::in_types;
use support::random::Random;
use support::tolerance::{Stored, check_same_bits};
use support::{Case, Outcome, Pass, check_cpu, check_elements, cpu, reference};

/// Large enough to be shared among threads, with odd ends.
fn cases() -> Vec<Case> {
    let mut random = Random::new(31);
    let mut cases = Vec::new();
    for (rows, classes) in [(4001, 80), (2503, 13), (77, 1203), (40_001, 1)] {
        let logits = random.many(rows * classes, -9.0, 4.0);
        let labels: Vec<i64> = (0..rows).map(|_| random.index(classes + 2) as i64).collect();
        cases.push(Case::sparse([rows, classes], &logits, &labels, &random.floats(rows, 0.0, 1.0)));
        cases.push(Case::dense([rows, classes], &logits, &random.floats(rows * classes, 0.0, 1.0)));
    }
    for (rows, bins) in [(5003, 17), (5003, 16), (999, 70), (3, 12_000)] {
        let target = random.floats(rows, -0.5, bins as f64);
        cases.push(Case::dfl([rows, bins], &random.many(rows * bins, -8.0, 8.0), &target));
    }
    cases
}

fn same_bits<T: Stored>(case: &Case) {
    let run = |threads: usize| -> Outcome<T> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
        pool.install(|| cpu::run(case, Pass::ForwardBackward)).expect("a legal call")
    };
    let first = run(1);
    for threads in [2, 3, 7] {
        let got = run(threads);
        check_same_bits("loss", &got.loss, &first.loss);
        check_same_bits("gradient", &got.grad, &first.grad);
        assert_eq!((got.status, got.found_inf), (first.status, first.found_inf), "{threads} threads");
    }
}

#[test]
fn the_same_bits_on_any_number_of_threads() {
    for case in cases() {
        for reduction in [Reduction::Sum, Reduction::None] {
            let case = case.clone().reduced(reduction);
            in_types!(f64, f32, f16, bf16: same_bits(&case));
        }
    }
}

/// Other tests have small shapes: these take many blocks.
#[test]
fn large_shapes_against_the_reference() {
    let mut random = Random::new(37);
    for case in cases() {
        let rows = case.shape[0];
        check_cpu::<f32>(&case.clone().reduced(Reduction::Mean));
        // Masked rows, and scales from those that f32 does not hold to those that underflow.
        let weight: Vec<f32> = (0..rows).map(|_| random.index(3) as f32).collect();
        let upstream: Vec<f32> = (0..rows).map(|row| 10f32.powi(row as i32 % 61 - 30)).collect();
        let case = case.reduced(Reduction::None).with(|options| {
            (options.weight, options.upstream) = (Some(weight), Some(upstream));
        });
        in_types!(f64, f32, f16, bf16: check_cpu(&case));
    }
}

/// The integral of so many rows that they are shared among threads, with ends of less than a vector.
fn integral<T: Stored>(shape: [usize; 2], logits: &[f64], upstream: &[f32]) {
    let logits: Vec<T> = logits.iter().map(|&x| T::from_f64(x)).collect();
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
        pool.install(|| cpu::integral(&logits, shape, upstream)).expect("a legal call")
    };
    let (expectations, grad) = run(1);
    for threads in [2, 5] {
        let got = run(threads);
        check_same_bits("expectations", &got.0, &expectations);
        check_same_bits("their gradient", &got.1, &grad);
    }
    let [want, want_grad] = reference::expectations(&logits, shape[1], upstream);
    check_elements("expectations", &expectations, &want);
    check_elements("their gradient", &grad, &want_grad);
}

#[test]
fn integrals_of_many_rows() {
    let mut random = Random::new(41);
    for shape in [[5003, 17], [2501, 16], [19, 2001], [999, 70]] {
        let [rows, bins] = shape;
        let logits = random.many(rows * bins, -8.0, 8.0);
        // As many as fit into f32, and whole vectors of others.
        let upstream: Vec<f32> = (0..rows)
            .map(|row| if row / 16 % 5 == 3 { 10f32.powi(row as i32 % 61 - 30) } else { 0.75 })
            .collect();
        in_types!(f64, f32, f16, bf16: integral(shape, &logits, &upstream));
    }
}
