//! Shows that a Gfl call gives what the two calls and their sum are, on the CPU and, in one launch,
//! on CUDA.

mod support;

use gfocal::cuda::StatusBlock;
use gfocal::{
    AvgPolicy, Background, DistributionFocalLoss, Element, Error, Gfl, QualityFocalLoss, Reduction,
};
use gfocal::{bf16, f16};
use support::case::Loss;
use support::gpu::OnDevice;
use support::random::Random;
use support::tolerance::{Stored, check_same_bits};
use support::{Buffer, Case, Gpu, check_elements, check_reduced, expect, gpu};

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
        let quality: Vec<f32> = (0..rows).map(|_| random.unit() as f32).collect();
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
            options.reduction = Reduction::MeanBy { avg_factor: 7.0, policy: AvgPolicy::AtLeast(1.0) };
            options.grad_scale = 64.0;
        }),
        dfl.with(|options| {
            options.weight = of_dfl;
            options.loss_weight = 0.25;
            options.reduction = Reduction::Mean;
            options.grad_scale = 64.0;
        }),
    ]
}

fn losses_of(qfl: &Case, dfl: &Case) -> (QualityFocalLoss, DistributionFocalLoss) {
    let beta = match qfl.loss {
        Loss::Sparse { beta, .. } | Loss::Dense { beta, .. } => beta,
        Loss::Dfl { .. } => panic!("the first is QFL"),
    };
    let of = |loss: gfocal::Result<QualityFocalLoss>| loss.expect("legal options");
    (
        of(of(QualityFocalLoss::new(beta)).with_loss_weight(qfl.options.loss_weight)),
        DistributionFocalLoss::default().with_loss_weight(dfl.options.loss_weight).expect("a legal weight"),
    )
}

/// Losses and both gradients.
type Outcome<T> = (Vec<<T as Element>::Loss>, Vec<T>, Vec<T>);

fn on_cpu<T: Stored>(qfl: &Case, dfl: &Case) -> Outcome<T> {
    let (loss, sides) = losses_of(qfl, dfl);
    let (logits, boxes) = (qfl.logits_as::<T>(), dfl.logits_as::<T>());
    let Loss::Dfl { target, .. } = &dfl.loss else { panic!("the second is DFL") };
    let call = match &qfl.loss {
        Loss::Sparse { labels, quality, .. } => loss.cpu(&logits, qfl.shape, labels, quality),
        Loss::Dense { target, .. } => loss.cpu_dense(&logits, qfl.shape, target),
        Loss::Dfl { .. } => panic!("the first is QFL"),
    };
    let call = call.weight(qfl.options.weight.as_ref().expect("a weight"));
    let call = call.reduction(qfl.options.reduction).grad_scale(qfl.options.grad_scale);
    let other = sides.cpu(&boxes, dfl.shape, target).weight(dfl.options.weight.as_ref().expect("a weight"));
    let other = other.reduction(dfl.options.reduction).grad_scale(dfl.options.grad_scale);
    let zero = T::from_f64(0.0);
    let mut losses = vec![T::Loss::from_f64(0.0); 3];
    let (mut grad, mut grad_boxes) = (vec![zero; logits.len()], vec![zero; boxes.len()]);
    let status = Gfl::new(call, other).forward_backward(&mut losses, &mut grad, &mut grad_boxes);
    assert!(status.expect("a legal call").qfl.is_ok());
    (losses, grad, grad_boxes)
}

/// The buffers of a step; a call on them may be repeated.
struct Buffers<T: OnDevice> {
    logits: Buffer<T>,
    boxes: Buffer<T>,
    labels: Buffer<i64>,
    quality: Buffer<f32>,
    dense: Buffer<f32>,
    target: Buffer<f32>,
    weights: [Buffer<f32>; 2],
    losses: Buffer<f32>,
    grads: [Buffer<T>; 2],
}

impl<T: OnDevice> Buffers<T> {
    fn new(gpu: &Gpu, qfl: &Case, dfl: &Case, offset: usize) -> Buffers<T> {
        let (labels, quality, dense) = match &qfl.loss {
            Loss::Sparse { labels, quality, .. } => (labels.clone(), quality.clone(), Vec::new()),
            Loss::Dense { target, .. } => (Vec::new(), Vec::new(), target.clone()),
            Loss::Dfl { .. } => panic!("the first is QFL"),
        };
        let Loss::Dfl { target, .. } = &dfl.loss else { panic!("the second is DFL") };
        let weights =
            [qfl, dfl].map(|case| Buffer::new(gpu, case.options.weight.as_ref().expect("a weight"), offset));
        Buffers {
            logits: Buffer::new(gpu, &qfl.logits_as::<T>(), offset),
            boxes: Buffer::new(gpu, &dfl.logits_as::<T>(), offset),
            labels: Buffer::new(gpu, &labels, offset),
            quality: Buffer::new(gpu, &quality, offset),
            dense: Buffer::new(gpu, &dense, offset),
            target: Buffer::new(gpu, target, offset),
            weights,
            losses: Buffer::poisoned(gpu, 3, offset),
            grads: [qfl, dfl].map(|case| Buffer::poisoned(gpu, case.logits.len(), offset)),
        }
    }

    fn call(&mut self, gpu: &Gpu, qfl: &Case, dfl: &Case, status: &mut StatusBlock, backward: bool) {
        let (loss, sides) = losses_of(qfl, dfl);
        let (logits, boxes) = (self.logits.view(), self.boxes.view());
        let (labels, quality, dense) = (self.labels.view(), self.quality.view(), self.dense.view());
        let target = self.target.view();
        let weights = self.weights.each_ref().map(Buffer::view);
        let call = if matches!(qfl.loss, Loss::Dense { .. }) {
            loss.cuda_dense(&gpu.handle, &logits, qfl.shape, &dense)
        } else {
            loss.cuda(&gpu.handle, &logits, qfl.shape, &labels, &quality)
        };
        let call = call.weight(&weights[0]).reduction(qfl.options.reduction.into());
        let call = call.grad_scale(qfl.options.grad_scale).status(status);
        let other = sides.cuda(&gpu.handle, &boxes, dfl.shape, &target).weight(&weights[1]);
        let other = other.reduction(dfl.options.reduction.into()).grad_scale(dfl.options.grad_scale);
        let both = Gfl::new(call, other);
        let [grad, grad_boxes] = &mut self.grads;
        let (mut losses, mut grad, mut grad_boxes) =
            (self.losses.view_mut(), grad.view_mut(), grad_boxes.view_mut());
        let done = if backward {
            both.forward_backward(&mut losses, &mut grad, &mut grad_boxes)
        } else {
            both.forward(&mut losses)
        };
        done.expect("a legal call");
    }
}

fn on_cuda<T: OnDevice>(gpu: &Gpu, qfl: &Case, dfl: &Case, offset: usize) -> (Vec<f32>, Vec<T>, Vec<T>) {
    let mut buffers = Buffers::<T>::new(gpu, qfl, dfl, offset);
    let mut status = StatusBlock::new(&gpu.stream).expect("device memory");
    let mut bits: Option<(Vec<f32>, Vec<T>, Vec<T>)> = None;
    for seed in 0..4 {
        let before = gpu.emulator.map(|emulator| {
            emulator.set_seed(seed);
            emulator.counters()
        });
        buffers.call(gpu, qfl, dfl, &mut status, true);
        if let (Some(emulator), Some(before)) = (gpu.emulator, before) {
            let spent = emulator.counters().since(&before);
            let counts = (spent.allocations, spent.frees, spent.waits, spent.copies_to_host, spent.launches);
            assert_eq!(counts, (0, 0, 0, 0, 1), "allocations, frees, waits, copies, launches");
        }
        let got = (buffers.losses.read(gpu), buffers.grads[0].read(gpu), buffers.grads[1].read(gpu));
        if let Some((losses, grad, grad_boxes)) = &bits {
            check_same_bits("losses", &got.0, losses);
            check_same_bits("gradient", &got.1, grad);
            check_same_bits("gradient of sides", &got.2, grad_boxes);
        }
        bits = Some(got);
    }
    let bits = bits.expect("it has run");
    buffers.call(gpu, qfl, dfl, &mut status, false);
    // Without gradients QFL is computed in another way.
    for (alone, with) in buffers.losses.read(gpu).into_iter().zip(&bits.0) {
        assert!((alone - with).abs() <= 4e-6 * with.abs(), "{alone} without gradients, {with} with them");
    }
    assert!(status.read(&gpu.stream).expect("a copy").is_ok());
    bits
}

/// Against the reference of each of the two.
fn check<T: Stored>(what: &str, [qfl, dfl]: [&Case; 2], (losses, grad, grad_boxes): &Outcome<T>) {
    let want = [qfl, dfl].map(|case| expect(&case.stored_as::<T>()));
    for (i, want) in want.iter().enumerate() {
        check_reduced(
            &format!("{what}, loss {i}"),
            losses[i],
            want.loss[0].as_ref().expect("a reduced loss"),
        );
    }
    let sum = losses[0].to_f64() + losses[1].to_f64();
    assert!((losses[2].to_f64() - sum).abs() <= 1e-6 * sum, "{what}: the sum");
    check_elements(&format!("{what}, gradient"), grad, &want[0].grad);
    check_elements(&format!("{what}, gradient of sides"), grad_boxes, &want[1].grad);
}

#[test]
fn both_and_their_sum() {
    let gpu = gpu();
    let mut random = Random::new(61);
    for (of_qfl, of_dfl) in [
        ([840, 80], [48, 17]),
        ([300, 20], [400, 16]),
        ([37, 3], [5, 2]),
        ([1, 1203], [1, 33]),
        ([0, 80], [12, 17]),
        ([64, 80], [0, 17]),
        ([5000, 4], [3000, 8]),
    ] {
        for (dense, beta) in [(false, 2.0), (true, 2.0), (false, 1.5), (true, 0.0)] {
            let [qfl, dfl] = step(&mut random, of_qfl, of_dfl, dense);
            let (qfl, what) =
                (qfl.with_beta(beta), format!("{of_qfl:?}, {of_dfl:?}, dense {dense}, beta {beta}"));
            check::<f64>(&what, [&qfl, &dfl], &on_cpu(&qfl, &dfl));
            check::<f32>(&what, [&qfl, &dfl], &on_cpu(&qfl, &dfl));
            check::<f16>(&what, [&qfl, &dfl], &on_cpu(&qfl, &dfl));
            let Some(gpu) = &gpu else { continue };
            let what = format!("{what}, on CUDA");
            check::<f32>(&what, [&qfl, &dfl], &on_cuda(gpu, &qfl, &dfl, 0));
            check::<f16>(&what, [&qfl, &dfl], &on_cuda(gpu, &qfl, &dfl, 1));
            check::<bf16>(&what, [&qfl, &dfl], &on_cuda(gpu, &qfl, &dfl, 0));
        }
    }
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
