//! Shows that random calls (shapes, storage types, labels of any value, options, alignments) give
//! what the plain f64 transcription of the formulas gives, on the CPU and on CUDA, and CUDA what
//! the CPU gives; and properties that hold of any correct loss.
//!
//! The cases are the same every time; PROPTEST_CASES and PROPTEST_RNG_SEED draw others.

use gfocal::{Reduction, bf16, f16};
use proptest::prelude::*;
use support::cuda::Layout;
use support::gpu::OnDevice;
use support::in_types;
use support::plan::{Kind, Logits, Plan, config, plan};
use support::random::Random;
use support::tolerance::{Want, check_same_bits};
use support::{
    Case, Options, Outcome, Pass, Stored, check_cpu, check_cuda, check_elements, check_reduced, cpu, cuda,
    expect, gpu, reference,
};

fn on_cuda<T: OnDevice>(plan: &Plan) {
    if let Some(gpu) = gpu() {
        check_cuda::<T>(&gpu, &plan.case(), &plan.layout);
    }
}

/// CUDA against the CPU: both are within the tolerance of the truth, and this says so of the
/// difference, where the storage type leaves room for one.
fn both<T: OnDevice>(plan: &Plan) {
    let case = plan.case();
    let want = expect(&case.stored_as::<T>());
    let Some(gpu) = gpu() else { return };
    let on_cuda = cuda::run::<T>(&gpu, &case, Pass::ForwardBackward, &plan.layout).expect("a legal call");
    let on_cpu = cpu::run::<T>(&case, Pass::ForwardBackward).expect("a legal call");
    let around = |cpu: f64, want: Option<Want>| want.map(|want| Want { value: cpu, ..want });
    let grads = on_cpu.grad.iter().zip(&want.grad).map(|(&cpu, &want)| around(cpu.to_f64(), want));
    check_elements("gradient on CUDA against the CPU", &on_cuda.grad, &grads.collect::<Vec<_>>());
    let losses = on_cpu.loss.iter().zip(&want.loss).map(|(&cpu, &want)| around(cpu.into(), want));
    let losses: Vec<_> = losses.collect();
    if case.options.reduction == Reduction::None {
        check_elements("loss on CUDA against the CPU", &on_cuda.loss, &losses);
    } else {
        check_reduced("loss on CUDA against the CPU", on_cuda.loss[0], &losses[0].expect("specified"));
    }
    assert_eq!(on_cuda.status, on_cpu.status);
}

proptest! {
    #![proptest_config(config(250))]

    #[test]
    fn cpu_gives_what_the_formula_gives(plan in plan()) {
        let case = plan.case();
        in_types!(f64, f32, f16, bf16: check_cpu(&case));
    }

    #[test]
    fn cuda_gives_what_the_formula_gives_in_f32(plan in plan()) {
        on_cuda::<f32>(&plan);
    }

    #[test]
    fn cuda_gives_what_the_formula_gives_in_f16(plan in plan()) {
        on_cuda::<f16>(&plan);
    }

    #[test]
    fn cuda_gives_what_the_formula_gives_in_bf16(plan in plan()) {
        on_cuda::<bf16>(&plan);
    }

    #[test]
    fn cuda_gives_what_the_cpu_gives(plan in plan()) {
        in_types!(f32, f16, bf16: both(&plan));
    }
}

/// Legal cases without values that are not finite.
fn tame() -> impl Strategy<Value = Plan> {
    plan().prop_map(|plan| Plan {
        logits: if plan.logits == Logits::NotFinite { Logits::Usual } else { plan.logits },
        ..plan
    })
}

/// The case in f32 on the CPU, and on CUDA.
fn on_both(case: &Case, pass: Pass, layout: &Layout) -> Vec<Outcome<f32>> {
    let mut outcomes = vec![cpu::run(case, pass).expect("a legal call")];
    outcomes.extend(gpu().map(|gpu| cuda::run(&gpu, case, pass, layout).expect("a legal call")));
    outcomes
}

/// Compares the sum over a batch with the sums over its parts.
fn check_parts(case: &Case, whole: &Outcome<f32>, parts: [&Outcome<f32>; 2]) {
    let want = expect(&case.stored_as::<f32>());
    let sum = parts.iter().map(|part| f64::from(part.loss[0])).sum();
    let loss = want.loss[0].expect("a reduced loss is specified");
    check_reduced("the sum of the parts", whole.loss[0], &Want { value: sum, ..loss });
    let grads = parts.iter().flat_map(|part| &part.grad).zip(&want.grad);
    let grads: Vec<_> = grads.map(|(&g, want)| want.map(|want| Want { value: g.into(), ..want })).collect();
    check_elements("the gradients of the parts", &whole.grad, &grads);
    let count = |of: fn(&Outcome<f32>) -> u32| assert_eq!(of(whole), parts.into_iter().map(of).sum::<u32>());
    count(|outcome| outcome.status.bad_labels);
    count(|outcome| outcome.status.bad_qualities);
    count(|outcome| outcome.status.out_of_range_targets);
}

/// Compares the integral of a type on both backends with the formula.
fn check_integral<T: OnDevice>(logits: &[f64], shape: [usize; 2], upstream: &[f32], layout: &Layout) {
    check_integral_cpu::<T>(logits, shape, upstream);
    let Some(gpu) = gpu() else { return };
    integral::<T>(logits, shape, upstream, |stored| cuda::integral(&gpu, stored, shape, upstream, layout));
}

fn check_integral_cpu<T: Stored>(logits: &[f64], shape: [usize; 2], upstream: &[f32]) {
    integral::<T>(logits, shape, upstream, |stored| cpu::integral(stored, shape, upstream));
}

fn integral<T: Stored>(
    logits: &[f64],
    [_, bins]: [usize; 2],
    upstream: &[f32],
    run: impl Fn(&[T]) -> gfocal::Result<(Vec<T::Loss>, Vec<T>)>,
) {
    let stored: Vec<T> = logits.iter().map(|&x| T::from_f64(x)).collect();
    let (expectation, grad) = run(&stored).expect("a legal call");
    let [want, want_grad] = reference::expectations(&stored, bins, upstream);
    check_elements("expectation", &expectation, &want);
    check_elements("gradient of the expectation", &grad, &want_grad);
}

fn bins() -> impl Strategy<Value = usize> {
    prop_oneof![Just(16usize), Just(17), 2usize..71]
}

proptest! {
    #![proptest_config(config(60))]

    /// The sum over a batch is the sum over its parts, and so are the counts.
    #[test]
    fn parts_add_up(plan in tame(), cut in 0.0f64..1.0) {
        let case = plan.case().reduced(Reduction::Sum).with(|options| options.upstream = None);
        let rows = case.shape[0];
        let cut = (cut * rows as f64) as usize;
        let run = |case: &Case| on_both(case, Pass::ForwardBackward, &plan.layout);
        let (whole, first, second) = (run(&case), run(&case.rows(0..cut)), run(&case.rows(cut..rows)));
        for (whole, parts) in whole.iter().zip(first.iter().zip(&second)) {
            check_parts(&case, whole, parts.into());
        }
    }

    /// A larger scale makes the gradient larger by exactly as much; and the loss does not depend
    /// on it. (Not over an average factor of 0: what f32 has no room for is computed in f64, and rounded once.)
    #[test]
    fn the_scale_is_linear(plan in tame()) {
        prop_assume!(!matches!(plan.reduction, Reduction::MeanBy { avg_factor: 0.0, .. }));
        let scaled = |scale: f64| plan.case().with(|options| options.grad_scale = scale);
        let run = |case: Case| on_both(&case, Pass::ForwardBackward, &plan.layout);
        for (one, many) in run(scaled(1.0)).iter().zip(run(scaled(4096.0))) {
            for (one, many) in one.grad.iter().zip(&many.grad) {
                // Below, digits are lost to underflow.
                if one.abs() > 1e-30 && many.is_finite() {
                    assert_eq!(one * 4096.0, *many);
                }
            }
            check_same_bits("loss", &one.loss, &many.loss);
        }
    }

    /// No loss is negative.
    #[test]
    fn losses_are_not_negative(plan in tame()) {
        let case = plan.case().reduced(Reduction::None).with(|options| {
            let elements = &mut options.elements;
            let weights = [&mut options.weight, &mut elements.class_weights, &mut elements.element_weights];
            for weight in weights.into_iter().flatten().flatten() {
                *weight = weight.abs();
            }
        });
        for got in on_both(&case, Pass::Forward, &plan.layout) {
            assert!(got.loss.iter().all(|&loss| loss >= 0.0), "{:?}", got.loss);
        }
    }

    /// The softmax does not change when all logits grow alike, so the gradient of a row sums to 0.
    #[test]
    fn the_gradient_of_a_dfl_row_sums_to_zero(plan in tame()) {
        let plan = Plan { kind: Kind::Dfl, columns: plan.columns.max(2), elements: [false; 4], ..plan };
        let case = Case { options: Options::default(), ..plan.case() };
        for got in on_both(&case, Pass::Backward, &plan.layout) {
            for row in got.grad.chunks(case.shape[1]) {
                let sum: f64 = row.iter().map(|&g| f64::from(g)).sum();
                // Each element cancels on its own.
                let want = Want { value: 0.0, magnitude: 0.0, scale: row.len() as f64, cancels: true };
                check_elements("the sum of a row", &[sum as f32], &[Some(want)]);
            }
        }
    }

    /// The integral and its gradient, in each type.
    #[test]
    fn the_integral_gives_what_the_formula_gives(
        rows in 0usize..71, bins in bins(), wide in any::<bool>(), seed in any::<u64>(),
    ) {
        let mut random = Random::new(seed);
        let range = if wide { 60.0 } else { 5.0 };
        let logits = random.many(rows * bins, -range, range);
        let upstream = random.floats(rows, -2.0, 2.0);
        let (at, grad) = (random.index(9), random.index(9));
        let layout = Layout { logits: at, grad, loss: 1, upstream: 2, ..Layout::ALIGNED };
        check_integral_cpu::<f64>(&logits, [rows, bins], &upstream);
        in_types!(f32, f16, bf16: check_integral(&logits, [rows, bins], &upstream, &layout));
    }
}
