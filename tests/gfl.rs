//! Shows that a Gfl call gives what the two calls and their sum are, on the CPU and, in one launch,
//! on CUDA.

use gfocal::{
    AvgPolicy, Background, DistributionFocalLoss, Element, Error, Gfl, QualityFocalLoss, Reduction,
};
use gfocal::{bf16, f16};
use proptest::prelude::*;
use support::cpu::{dfl_of, qfl_of};
use support::cuda::{Buffers, Layout};
use support::gpu::{OnDevice, Poison as _};
use support::plan::{Kind, Plan, config, plan};
use support::random::Random;
use support::tolerance::{Stored, check_same_bits};
use support::{Buffer, Case, Gpu, LOUD, Outcome, Pass, QUIET, check_alone, cpu, gpu, nearly_most};

/// The two cases of a step.
fn step(
    random: &mut Random,
    [rows, classes]: [usize; 2],
    [sides, bins]: [usize; 2],
    dense: bool,
) -> [Case; 2] {
    let logits = random.many(rows * classes, -8.0, 4.0);
    let qfl = if dense {
        let target: Vec<f32> = (0..rows * classes)
            .map(|_| if random.chance(0.2) { random.unit() as f32 } else { 0.0 })
            .collect();
        Case::dense([rows, classes], &logits, &target)
    } else {
        let labels: Vec<i64> = (0..rows)
            .map(|_| if random.chance(0.3) { random.index(classes) } else { classes } as i64)
            .collect();
        // Of nothing, of more than all, and of some.
        let of_some = |random: &mut Random| random.unit() as f32;
        let quality: Vec<f32> =
            (0..rows).map(|row| [0.0, 1.5, of_some(random), of_some(random)][row % 4]).collect();
        Case::sparse([rows, classes], &logits, &labels, &quality)
    };
    let target: Vec<f32> = (0..sides).map(|_| random.between(0.0, bins as f64 - 1.0) as f32).collect();
    let dfl = Case::dfl([sides, bins], &random.many(sides * bins, -4.0, 4.0), &target);
    let weights = |random: &mut Random, rows: usize| {
        Some((0..rows).map(|_| if random.chance(0.2) { 0.0 } else { random.unit() as f32 }).collect())
    };
    let (of_qfl, of_dfl) = (weights(random, rows), weights(random, sides));
    [
        qfl.with(|options| {
            options.weight = of_qfl;
            options.grad_scale = 64.0;
        }),
        dfl.with(|options| {
            options.weight = of_dfl;
            options.loss_weight = 0.25;
            options.grad_scale = 64.0;
        }),
    ]
}

/// What each of the two gave, and the sum of their losses.
type Both<T> = ([Outcome<T>; 2], <T as Element>::Loss);

fn on_cpu<T: Stored>(qfl: &Case, dfl: &Case, pass: Pass) -> Both<T> {
    let (logits, boxes) = (qfl.logits_as::<T>(), dfl.logits_as::<T>());
    let (of_logits, of_boxes) = (cpu::Beside::of(qfl), cpu::Beside::of(dfl));
    let (loss, sides) = (qfl_of(qfl).expect("legal options"), dfl_of(dfl).expect("legal options"));
    let mut flags = [[Outcome::<T>::FLAG_BEFORE]; 2];
    let [flag, other_flag] = &mut flags;
    let call = cpu::qfl_call(&loss, qfl, &logits, &of_logits, flag);
    let both = Gfl::new(call, cpu::dfl_call(&sides, dfl, &boxes, &of_boxes, other_flag));
    let mut losses = [T::Loss::from_f64(f64::NAN); 3];
    let grad = |elements| vec![T::from_f64(f64::NAN); if pass == Pass::Forward { 0 } else { elements }];
    let mut grads = [grad(logits.len()), grad(boxes.len())];
    let [grad, grad_boxes] = &mut grads;
    let status = if pass == Pass::Forward {
        both.forward(&mut losses)
    } else {
        both.forward_backward(&mut losses, grad, grad_boxes)
    };
    let status = status.expect("a legal call");
    let [grad, grad_boxes] = grads;
    let outcome =
        |i: usize, grad, status| Outcome { loss: vec![losses[i]], grad, status, found_inf: flags[i][0] };
    ([outcome(0, grad, status.qfl), outcome(1, grad_boxes, status.dfl)], losses[2])
}

/// In two orders, the second without status and flag: the same bits, of one launch that neither allocates nor
/// waits.
fn on_cuda<T: OnDevice>(gpu: &Gpu, [qfl, dfl]: [&Case; 2], layouts: [&Layout; 2], pass: Pass) -> Both<T> {
    let mut first: Option<Both<T>> = None;
    let (loss, sides) = (qfl_of(qfl).expect("legal options"), dfl_of(dfl).expect("legal options"));
    for seed in 0..2 {
        let mut of_qfl = Buffers::<T>::new(gpu, qfl, layouts[0]);
        let mut of_dfl = Buffers::<T>::new(gpu, dfl, layouts[1]);
        (of_qfl.bare, of_dfl.bare) = (seed == 1, seed == 1);
        let mut losses = Buffer::poisoned(gpu, 3, layouts[0].loss);
        if let Some(emulator) = gpu.emulator {
            emulator.set_seed(seed);
        }
        let ((mut views, _, mut grad), (mut other, _, mut grad_boxes)) = (of_qfl.views(), of_dfl.views());
        let both = Gfl::new(views.qfl(gpu, qfl, &loss), other.dfl(gpu, dfl, &sides));
        let done = gpu.enqueued(1, || match pass {
            Pass::Forward => both.forward(&mut losses.view_mut()),
            _ => both.forward_backward(&mut losses.view_mut(), &mut grad, &mut grad_boxes),
        });
        done.expect("a legal call");
        let losses = losses.read(gpu);
        let mut outcomes = [of_qfl.outcome(gpu, pass), of_dfl.outcome(gpu, pass)];
        for (outcome, &loss) in outcomes.iter_mut().zip(&losses) {
            assert!(outcome.loss.iter().all(|loss| loss.is_poison()), "a loss of its own was written");
            outcome.loss = vec![loss];
        }
        let (outcomes, sum) = first.get_or_insert((outcomes.clone(), losses[2])).clone();
        check_same_bits("losses", &[outcomes[0].loss[0], outcomes[1].loss[0], sum], &losses);
        for (got, want) in outcomes.iter().zip(&first.as_ref().expect("it is there").0) {
            check_same_bits("gradient", &got.grad, &want.grad);
        }
    }
    first.expect("it has run")
}

/// Against the reference of each of the two.
#[track_caller]
fn check<T: Stored>(what: &str, cases: [&Case; 2], pass: Pass, (outcomes, sum): &Both<T>) {
    for (i, (case, outcome)) in cases.into_iter().zip(outcomes).enumerate() {
        support::check(&format!("{what}, loss {i}"), case, pass, outcome);
    }
    let want: f64 = outcomes.iter().map(|outcome| outcome.loss[0].to_f64()).sum();
    let close =
        (sum.to_f64() - want).abs() <= 1e-6 * outcomes.iter().map(|o| o.loss[0].to_f64().abs()).sum::<f64>();
    assert!(close || !want.is_finite() && !sum.to_f64().is_finite(), "{what}: the sum {sum:?}, not {want}");
}

const PASSES: [Pass; 2] = [Pass::Forward, Pass::ForwardBackward];

fn check_cpu<T: Stored>(what: &str, cases: [&Case; 2]) {
    for pass in PASSES {
        check::<T>(what, cases, pass, &on_cpu(cases[0], cases[1], pass));
    }
}

fn check_cuda<T: OnDevice>(gpu: &Gpu, what: &str, cases: [&Case; 2], layouts: [&Layout; 2]) {
    for pass in PASSES {
        check::<T>(&format!("{what}, on CUDA"), cases, pass, &on_cuda(gpu, cases, layouts, pass));
    }
}

/// On CUDA, in every storage type.
fn check_types(gpu: &Gpu, what: &str, cases: [&Case; 2], layouts: [&Layout; 2]) {
    check_cuda::<f32>(gpu, what, cases, layouts);
    check_cuda::<f16>(gpu, what, cases, layouts);
    check_cuda::<bf16>(gpu, what, cases, layouts);
}

/// Each has a way of its own.
const BETAS: [f64; 3] = [2.0, 0.0, 1.5];
const KINDS: [(bool, f64); 4] = [(false, 2.0), (true, 2.0), (false, 1.5), (true, 0.0)];

#[test]
fn both_and_their_sum() {
    let gpu = gpu();
    let mut random = Random::new(61);
    let by = |avg_factor, policy| Reduction::MeanBy { avg_factor, policy };
    // What a policy makes of a divisor, on the host and on the device.
    let mut reductions = [
        (by(7.0, AvgPolicy::AtLeast(1.0)), Reduction::Mean),
        (by(0.25, AvgPolicy::AtLeast(0.75)), by(0.0, AvgPolicy::Eps)),
        (by(0.0, AvgPolicy::Eps), by(0.25, AvgPolicy::Exact)),
    ]
    .into_iter()
    .cycle();
    for (of_qfl, of_dfl) in [
        ([840, 80], [48, 17]),
        ([300, 20], [400, 16]),
        ([37, 3], [5, 2]),
        ([1, 1203], [1, 33]),
        // So wide that every lane goes round its loops several times.
        ([2, 2568], [2, 1100]),
        ([0, 80], [12, 17]),
        ([64, 80], [0, 17]),
        ([5000, 4], [3000, 8]),
    ] {
        for (dense, beta) in KINDS {
            let [qfl, dfl] = step(&mut random, of_qfl, of_dfl, dense);
            let (of_this, of_that) = reductions.next().expect("a cycle");
            let (qfl, dfl) = (qfl.with_beta(beta).reduced(of_this), dfl.reduced(of_that));
            let what = format!("{of_qfl:?} {of_this:?}, {of_dfl:?} {of_that:?}, dense {dense}, beta {beta}");
            check_cpu::<f64>(&what, [&qfl, &dfl]);
            check_cpu::<f32>(&what, [&qfl, &dfl]);
            check_cpu::<f16>(&what, [&qfl, &dfl]);
            let Some(gpu) = &gpu else { continue };
            let (of_qfl, of_dfl) = (Layout::ALIGNED, Layout::MISALIGNED);
            check_cuda::<f32>(gpu, &what, [&qfl, &dfl], [&of_qfl, &of_dfl]);
            check_cuda::<f16>(gpu, &what, [&qfl, &dfl], [&of_dfl, &of_qfl]);
            check_cuda::<bf16>(gpu, &what, [&qfl, &dfl], [&of_qfl, &of_dfl]);
        }
    }
}

/// Divisors on the device, below their least or NaN; rows of whole vectors and others, masked or with a target that is
/// NaN.
#[test]
fn least_divisors_and_bad_rows() {
    let Some(gpu) = gpu() else { return };
    let mut random = Random::new(62);
    let below = Reduction::MeanBy { avg_factor: 0.25, policy: AvgPolicy::AtLeast(0.75) };
    let nan = Reduction::MeanBy { avg_factor: f64::NAN, policy: AvgPolicy::Exact };
    for (classes, by) in [(16, below), (19, below), (16, nan), (19, nan)] {
        for (dense, beta) in KINDS {
            let [mut qfl, dfl] = step(&mut random, [40, classes], [24, 17], dense);
            match &mut qfl.loss {
                support::Loss::Dense { target, .. } => target[3 * classes + 1] = f32::NAN,
                support::Loss::Sparse { labels, quality, .. } => (labels[3], quality[3]) = (1, f32::NAN),
                support::Loss::Dfl { .. } => unreachable!("the first is QFL"),
            }
            let weights = qfl.options.weight.as_mut().expect("a step has them");
            (weights[2], weights[3]) = (0.0, 1.0);
            let (qfl, dfl) = (qfl.with_beta(beta).reduced(by), dfl.reduced(by));
            let what = format!("{classes} classes, dense {dense}, beta {beta}");
            let on_device = Layout { device_avg_factor: true, ..Layout::ALIGNED };
            for layouts in [[&on_device, &Layout::MISALIGNED], [&Layout::MISALIGNED, &on_device]] {
                check_types(&gpu, &what, [&qfl, &dfl], layouts);
            }
        }
    }
}

/// So many blocks that the last one needs several warps for their sums.
#[test]
fn sums_of_many_blocks() {
    let Some(gpu) = gpu() else { return };
    let mut random = Random::new(63);
    for (dense, beta) in [(false, 2.0), (true, 1.5)] {
        let [qfl, dfl] = step(&mut random, [20_000, 2], [20_000, 2], dense);
        let qfl = qfl.with_beta(beta);
        check_types(&gpu, "many blocks", [&qfl, &dfl], [&Layout::ALIGNED, &Layout::ALIGNED]);
    }
}

/// A plan for one of the two, which has to be reduced.
fn reduced(plan: Plan, kind: Kind, least: usize) -> Plan {
    let reduction = if plan.reduction == Reduction::None { Reduction::Sum } else { plan.reduction };
    Plan { kind, reduction, columns: plan.columns.max(least), ..plan }
}

proptest! {
    #![proptest_config(config(60))]

    /// Whatever the two may be on their own: labels, qualities and targets of any value, logits that are
    /// not finite, divisors and scales on the host and on the device, buffers anywhere.
    #[test]
    fn random_steps(of_qfl in plan(), of_dfl in plan()) {
        let Some(gpu) = gpu() else { return Ok(()) };
        let kind = if of_qfl.kind == Kind::Dense { Kind::Dense } else { Kind::Sparse };
        let (of_qfl, of_dfl) = (reduced(of_qfl, kind, 1), reduced(of_dfl, Kind::Dfl, 2));
        let (qfl, dfl) = (of_qfl.case(), of_dfl.case());
        check_types(&gpu, "random", [&qfl, &dfl], [&of_qfl.layout, &of_dfl.layout]);
    }
}

/// Ranges so narrow that a wrong digit of any formula is one of the sum, too: from easy negatives to logits
/// that are far above; from flat rows to those with everything in one bin. All background, all labelled, or with
/// targets in all places: together the losses of targets would be nearly everything.
#[test]
fn sums_over_narrow_ranges() {
    let Some(gpu) = gpu() else { return };
    let mut random = Random::new(67);
    let ranges = [(-88.0, -20.0), (-4.0, -2.0), (-0.01, 0.01), (1.0, 20.0), (20.0, 88.0), (705.0, 6e4)];
    let spreads = [1.0, 0.1, 10.0, 40.0, 3.0, 2.0];
    for ((low, high), spread) in ranges.into_iter().zip(spreads) {
        for (targets, beta) in
            ["none", "labels", "all"].into_iter().flat_map(|of| BETAS.map(|beta| (of, beta)))
        {
            let logits = random.many(24 * 16, low, high);
            let target: Vec<f32> = (0..24 * 16).map(|_| random.between(0.05, 1.0) as f32).collect();
            let qfl = match targets {
                "none" => Case::sparse([24, 16], &logits, &[16; 24], &[0.0; 24]),
                "labels" => Case::sparse([24 * 16, 1], &logits, &[0; 24 * 16], &target),
                _ => Case::dense([24, 16], &logits, &target),
            };
            let target: Vec<f32> = (0..96).map(|_| random.between(0.0, 16.0) as f32).collect();
            let dfl = Case::dfl([96, 17], &random.many(96 * 17, -spread, spread), &target);
            let (qfl, what) =
                (qfl.with_beta(beta), format!("{low} to {high}, targets: {targets}, beta {beta}"));
            check_types(&gpu, &what, [&qfl, &dfl], [&Layout::ALIGNED, &Layout::MISALIGNED]);
        }
    }
}

/// One gradient that overflows sets the flag of its loss and not that of the other, wherever it is: at an end of a
/// row, or in a vector, in either half of each word.
fn overflows<T: OnDevice>() {
    let Some(gpu) = gpu() else { return };
    let (shape, layouts) = ([8, 19], [&Layout::ALIGNED, &Layout::MISALIGNED]);
    for at in 0..8 * 19 {
        let mut logits = vec![QUIET; 8 * 19];
        logits[at] = LOUD;
        let (mut bins, mut target) = (vec![0.0; 8 * 19], [3.5; 8]);
        (bins[at], target[at / 19]) = (-9.0, (at % 19) as f32);
        let dfl = Case::dfl(shape, &bins, &target);
        for (dense, beta) in [(false, 2.0), (true, 2.0), (false, 1.5)] {
            let qfl = if dense {
                Case::dense(shape, &logits, &[0.0; 8 * 19])
            } else {
                Case::sparse(shape, &logits, &[19; 8], &[0.0; 8])
            };
            let qfl = qfl.with_beta(beta).with(|options| options.grad_scale = nearly_most::<T>());
            let (got, _) = on_cuda::<T>(&gpu, [&qfl, &dfl], layouts, Pass::ForwardBackward);
            check_alone(&format!("QFL, dense {dense}, beta {beta}"), &got[0].grad, at, got[0].found_inf);
            assert_eq!(got[1].found_inf, Outcome::<T>::FLAG_BEFORE);
        }
        // What DFL's gradients are multiplied by is the most there is of them: beyond f16 and bf16, not beyond f32.
        if T::NAME != "f32" {
            let scale = if T::NAME == "f16" { 66000.0 } else { 3.402e38 };
            let weight = (0..8).map(|row| if row == at / 19 { 1.0 } else { 0.5 }).collect();
            let dfl = dfl.with(|options| (options.grad_scale, options.weight) = (scale, Some(weight)));
            let qfl = Case::sparse(shape, &logits, &[19; 8], &[0.0; 8]);
            let (got, _) = on_cuda::<T>(&gpu, [&qfl, &dfl], layouts, Pass::ForwardBackward);
            check_alone("DFL", &got[1].grad, at, got[1].found_inf);
            assert_eq!(got[0].found_inf, Outcome::<T>::FLAG_BEFORE);
        }
    }
}

#[test]
fn one_gradient_that_overflows_anywhere() {
    overflows::<f32>();
    overflows::<f16>();
    overflows::<bf16>();
}

#[test]
fn errors() {
    let (qfl, dfl) =
        (QualityFocalLoss::default().with_background(Background::Last), DistributionFocalLoss::default());
    let (logits, sides) = ([0.0f32; 2], [0.0f32; 4]);
    let call = || qfl.cpu(&logits, [1, 2], &[0i64], &[0.5]);
    let other = || dfl.cpu(&sides, [1, 4], &[1.5]);
    let mut losses = [0.0f32; 3];
    let none = Gfl::new(call(), other().reduction(Reduction::None)).forward(&mut losses);
    assert_eq!(none, Err(Error::GflReduction { loss: "DFL" }));
    let none = Gfl::new(call().reduction(Reduction::None), other()).forward(&mut losses);
    assert_eq!(none, Err(Error::GflReduction { loss: "QFL" }));
    let short = Gfl::new(call(), other()).forward(&mut losses[..2]);
    assert_eq!(short, Err(Error::GflLosses { actual: 2 }));
    let mut grads = ([0.0f32; 2], [0.0f32; 3]);
    let short = Gfl::new(call(), other()).forward_backward(&mut losses, &mut grads.0, &mut grads.1);
    assert!(matches!(short, Err(Error::Length { tensor: "grad", actual: 3, expected: 4, .. })), "{short:?}");

    let Some(gpu) = gpu() else { return };
    let other_handle = gpu.handle.on(&gpu.stream).expect("a handle");
    let (logits, sides) = (Buffer::new(&gpu, &logits, 0), Buffer::new(&gpu, &sides, 0));
    let (labels, numbers) = (Buffer::new(&gpu, &[0i64], 0), Buffer::new(&gpu, &[0.5f32], 0));
    let (logits, sides, labels, numbers) = (logits.view(), sides.view(), labels.view(), numbers.view());
    let mut losses = Buffer::poisoned(&gpu, 3, 0);
    let call = qfl.cuda::<f32, i64>(&gpu.handle, &logits, [1, 2], &labels, &numbers);
    let other = dfl.cuda::<f32>(&other_handle, &sides, [1, 4], &numbers);
    assert_eq!(Gfl::new(call, other).forward(&mut losses.view_mut()), Err(Error::GflHandles));
}
