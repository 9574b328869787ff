//! Shows what only the layer of raw addresses can ask for: expectations with their gradients, a flag of the
//! integral, gradients of boxes alone, losses of rows that are divided on the device, and both losses of a step with
//! upstream gradients.

use gfocal::boxes::BoxLoss;
use gfocal::cuda::raw::{self, BoxesArgs, DflArgs, GflArgs, IntegralArgs, Pass, QflArgs, Scaling};
use gfocal::cudarc::driver::DevicePtr;
use gfocal::{Reduction, bf16, f16};
use support::case::Loss;
use support::gpu::OnDevice;
use support::in_types;
use support::random::Random;
use support::tolerance::{check_elements, check_same_bits};
use support::{Buffer, Case, Gpu, check_alone, cuda, expect, gpu};

/// Where a buffer is; it must outlive the launch.
fn at<T: support::gpu::Poison>(gpu: &Gpu, buffer: &Buffer<T>) -> u64 {
    buffer.view().device_ptr(&gpu.stream).0
}

/// The gradients of the integral, and the flag. What `args` has must be of as many rows.
fn gradients<T: OnDevice>(
    gpu: &Gpu,
    logits: &[T],
    [rows, bins]: [usize; 2],
    args: IntegralArgs,
) -> (Vec<T>, f32) {
    let (logits, grad) = (Buffer::new(gpu, logits, 0), Buffer::<T>::poisoned(gpu, rows * bins, 0));
    let flag = Buffer::new(gpu, &[0.375f32], 0);
    let args = IntegralArgs {
        logits: at(gpu, &logits),
        grad: at(gpu, &grad),
        found_inf: at(gpu, &flag),
        rows: rows as u64,
        bins: bins as u32,
        ..args
    };
    let (kernels, stream) = (gpu.handle.kernels(), gpu.stream.cu_stream().cast());
    // SAFETY: the buffers hold as many elements as the fields say, and outlive the launch.
    unsafe { raw::launch_integral(kernels, T::STORAGE, Pass::ForwardBackward, &args, stream) }
        .expect("a launch");
    (grad.read(gpu), flag.read(gpu)[0])
}

fn integral<T: OnDevice>(gpu: &Gpu, spoilt: bool) {
    let (rows, bins) = (70, 17);
    let mut logits: Vec<T> =
        Random::new(121).many(rows * bins, -4.0, 4.0).into_iter().map(T::from_f64).collect();
    if spoilt {
        logits[rows * bins - 1] = T::from_f64(f64::NAN);
    }
    let layout = cuda::Layout::ALIGNED;
    let want = cuda::integral(gpu, &logits, [rows, bins], &vec![1.0; rows], &layout).expect("a legal call");
    let expectation = Buffer::poisoned(gpu, rows, 0);
    let args = IntegralArgs { expectation: at(gpu, &expectation), ..IntegralArgs::default() };
    let (grad, flag) = gradients(gpu, &logits, [rows, bins], args);
    check_same_bits("expectations", &expectation.read(gpu), &want.0);
    check_same_bits("gradients", &grad, &want.1);
    assert_eq!(flag, if spoilt { 1.0 } else { 0.375 }, "the flag");
}

#[test]
fn expectations_with_their_gradients_and_a_flag() {
    let Some(gpu) = gpu() else { return };
    for spoilt in [false, true] {
        in_types!(f32, f16, bf16: integral(&gpu, spoilt));
    }
}

/// One gradient of the integral that overflows, at each bin of rows of every alignment: of three bins with something
/// in them, two are as far from this one as from none of the others.
fn integral_overflows<T: OnDevice>(gpu: &Gpu) {
    let (rows, bins) = (8, 17);
    let most = if T::NAME == "f16" { 5e4 } else { 2.6e38 };
    for (row, bin) in (0..rows).flat_map(|row| (0..bins).map(move |bin| (row, bin))) {
        let mut logits = vec![0.0; rows * bins];
        let of_row = &mut logits[row * bins..][..bins];
        of_row.fill(-60.0);
        of_row[bin] = 0.0;
        for further in [7, 8] {
            let other = if bin + 8 < bins { bin + further } else { bin - further };
            of_row[other] = -std::f64::consts::LN_2;
        }
        let logits: Vec<T> = logits.into_iter().map(T::from_f64).collect();
        let mut upstream = vec![1.0; rows];
        upstream[row] = most;
        let upstream = Buffer::new(gpu, &upstream, 0);
        let args = IntegralArgs { upstream: at(gpu, &upstream), ..IntegralArgs::default() };
        let (grad, flag) = gradients(gpu, &logits, [rows, bins], args);
        check_alone("the integral", &grad, row * bins + bin, flag);
    }
}

#[test]
fn one_gradient_of_the_integral_that_overflows() {
    let Some(gpu) = gpu() else { return };
    in_types!(f32, f16, bf16: integral_overflows(&gpu));
}

#[test]
fn gradients_of_boxes_alone() {
    let Some(gpu) = gpu() else { return };
    // More than the emulator's 32 blocks have threads.
    let count = 5000;
    let mut random = Random::new(122);
    let mut boxes = || -> Vec<f32> {
        let corner = |i: usize, x: f64| (x + 30.0 * (i % 4 / 2) as f64) as f32;
        random.many(4 * count, 0.0, 50.0).into_iter().enumerate().map(|(i, x)| corner(i, x)).collect()
    };
    let (pred, target) = (boxes(), boxes());
    let (mut losses, mut want) = (vec![0.0; count], vec![0.0; 4 * count]);
    BoxLoss::default()
        .forward_backward(&pred, &target, count, None, &mut losses, &mut want)
        .expect("a legal call");
    let (pred, target) = (Buffer::new(&gpu, &pred, 0), Buffer::new(&gpu, &target, 0));
    let grad = Buffer::<f32>::poisoned(&gpu, 4 * count, 0);
    let args = BoxesArgs {
        pred: at(&gpu, &pred),
        target: at(&gpu, &target),
        grad: at(&gpu, &grad),
        boxes: count as u64,
        eps: 1e-6,
        kind: 1, // BoxLoss::default() is GIoU
        ..BoxesArgs::default()
    };
    let (kernels, stream) = (gpu.handle.kernels(), gpu.stream.cu_stream().cast());
    // SAFETY: as above.
    unsafe { raw::launch_boxes(kernels, Pass::ForwardBackward, &args, stream) }.expect("a launch");
    for (i, (got, want)) in grad.read(&gpu).into_iter().zip(want).enumerate() {
        assert!((got - want).abs() <= 1e-6 * want.abs() + 1e-9, "{i}: {got}, on the CPU {want}");
    }
}

/// Losses of rows, divided by what is on the device, once as it is and once by the least that is allowed. Both
/// are powers of 2, so that the quotients have the bits of the losses of a call.
fn divided<T: OnDevice>(gpu: &Gpu, case: &Case, layout: &cuda::Layout) {
    let case = &case.clone().reduced(Reduction::None);
    let [rows, columns] = case.shape;
    let mut buffers = cuda::Buffers::<T>::new(gpu, case, layout);
    for pass in [support::Pass::Forward, support::Pass::ForwardBackward] {
        buffers.call(gpu, case, pass).expect("a legal call");
        let want = buffers.loss.read(gpu);
        let loss = Buffer::<f32>::poisoned(gpu, rows, layout.loss);
        let pass = match pass {
            support::Pass::Forward => Pass::Forward,
            _ => Pass::ForwardBackward,
        };
        for (factor, divisor) in [(8.0f32, 8.0), (2.0, 4.0)] {
            let avg_factor = Buffer::new(gpu, &[factor], 0);
            let scaling = Scaling {
                avg_factor: at(gpu, &avg_factor),
                avg_minimum: 4.0,
                loss: at(gpu, &loss),
                loss_factor: 1.0,
                grad_factor: 1.0,
                per_row: 1,
                ..Scaling::default()
            };
            let (logits, grad, target) =
                (at(gpu, &buffers.logits), at(gpu, &buffers.grad), at(gpu, &buffers.target));
            let (kernels, stream) = (gpu.handle.kernels(), gpu.stream.cu_stream().cast());
            let rows = rows as u64;
            match &case.loss {
                Loss::Sparse { beta, .. } | Loss::Dense { beta, .. } => {
                    let dense = matches!(case.loss, Loss::Dense { .. });
                    let (beta, classes) = (*beta as f32, columns as u32);
                    let args = QflArgs { scaling, logits, grad, rows, classes, beta, ..QflArgs::default() };
                    let args = if dense {
                        QflArgs { target, ..args }
                    } else {
                        let (labels, quality) = (at(gpu, &buffers.labels), at(gpu, &buffers.quality));
                        QflArgs { labels, quality, labels_are_i64: 1, ..args }
                    };
                    // SAFETY: as above.
                    unsafe { raw::launch_qfl(kernels, T::STORAGE, pass, &args, stream) }
                }
                Loss::Dfl { .. } => {
                    let (bins, target_max) = (columns as u32, (columns - 1) as f32);
                    let args = DflArgs { scaling, logits, target, grad, rows, bins, target_max };
                    // SAFETY: as above.
                    unsafe { raw::launch_dfl(kernels, T::STORAGE, pass, &args, stream) }
                }
            }
            .expect("a launch");
            let want: Vec<f32> = want.iter().map(|loss| loss / divisor).collect();
            check_same_bits("divided losses of rows", &loss.read(gpu), &want);
        }
    }
}

#[test]
fn losses_of_rows_divided_on_the_device() {
    let Some(gpu) = gpu() else { return };
    let (rows, classes) = (40, 19);
    let mut random = Random::new(124);
    let logits = random.many(rows * classes, -5.0, 3.0);
    let labels: Vec<i64> = (0..rows).map(|row| (row % (classes + 3)) as i64).collect();
    let sparse = Case::sparse([rows, classes], &logits, &labels, &vec![0.5; rows]);
    let dense = Case::dense([rows, classes], &logits, &vec![0.25; rows * classes]);
    let mut cases = vec![];
    for beta in [2.0, 1.5] {
        cases.extend([sparse.clone().with_beta(beta), dense.clone().with_beta(beta)]);
    }
    for bins in [16, 17, 9] {
        // Also a target that is not between bins, which a tile's rows do by themselves.
        let target: Vec<f32> = (0..rows).map(|row| if row % 7 == 0 { 40.0 } else { 2.5 }).collect();
        cases.push(Case::dfl([rows, bins], &random.many(rows * bins, -4.0, 4.0), &target));
    }
    for case in &cases {
        for layout in
            [cuda::Layout::ALIGNED, cuda::Layout { device_avg_factor: false, ..cuda::Layout::MISALIGNED }]
        {
            in_types!(f32, f16, bf16: divided(&gpu, case, &layout));
        }
    }
}

/// The reference for sums multiplies their gradients, too.
fn both<T: OnDevice>(gpu: &Gpu, dense: bool, beta: f64) {
    let (rows, classes, bins) = (90, 19, 17);
    let mut random = Random::new(123);
    let logits = random.many(rows * classes, -5.0, 3.0);
    let labels: Vec<i64> = (0..rows).map(|row| (row % (classes + 9)) as i64).collect();
    let quality = random.floats(rows, 0.0, 1.0);
    let targets = random.floats(rows * classes, 0.0, 1.0);
    let sides = random.floats(rows, 0.0, 16.0);
    let upstream = random.floats(rows, 0.0, 2.0);
    let qfl = if dense {
        Case::dense([rows, classes], &logits, &targets)
    } else {
        Case::sparse([rows, classes], &logits, &labels, &quality)
    };
    let dfl = Case::dfl([rows, bins], &random.many(rows * bins, -4.0, 4.0), &sides);
    let [qfl, dfl] =
        [qfl.with_beta(beta), dfl].map(|case| case.with(|options| options.upstream = Some(upstream.clone())));
    let (x, z) = (Buffer::new(gpu, &qfl.logits_as::<T>(), 0), Buffer::new(gpu, &dfl.logits_as::<T>(), 0));
    let (labels, quality) = (Buffer::new(gpu, &labels, 0), Buffer::new(gpu, &quality, 0));
    let (targets, sides) = (Buffer::new(gpu, &targets, 0), Buffer::new(gpu, &sides, 0));
    let (upstream, losses) = (Buffer::new(gpu, &upstream, 0), Buffer::<f32>::poisoned(gpu, 3, 0));
    let grads = [&qfl, &dfl].map(|case| Buffer::<T>::poisoned(gpu, case.logits.len(), 0));
    let kernels = gpu.handle.kernels();
    let scratch = gpu.stream.alloc_zeros::<u8>(raw::scratch_bytes(kernels)).expect("device memory");
    let scratch = scratch.device_ptr(&gpu.stream).0;
    let scaling = Scaling {
        upstream: at(gpu, &upstream),
        scratch,
        loss_factor: 1.0,
        grad_factor: 1.0,
        ..Scaling::default()
    };
    let args = GflArgs {
        qfl: QflArgs {
            scaling,
            logits: at(gpu, &x),
            labels: if dense { 0 } else { at(gpu, &labels) },
            quality: if dense { 0 } else { at(gpu, &quality) },
            target: if dense { at(gpu, &targets) } else { 0 },
            grad: at(gpu, &grads[0]),
            rows: rows as u64,
            classes: classes as u32,
            beta: beta as f32,
            labels_are_i64: 1,
            ..QflArgs::default()
        },
        dfl: DflArgs {
            scaling,
            logits: at(gpu, &z),
            target: at(gpu, &sides),
            grad: at(gpu, &grads[1]),
            rows: rows as u64,
            bins: bins as u32,
            target_max: (bins - 1) as f32,
        },
        losses: at(gpu, &losses),
        scratch,
        ..GflArgs::default()
    };
    let stream = gpu.stream.cu_stream().cast();
    // SAFETY: as above.
    unsafe { raw::launch_gfl(kernels, T::STORAGE, Pass::ForwardBackward, &args, stream) }.expect("a launch");
    for (grad, case) in grads.iter().zip([&qfl, &dfl]) {
        check_elements("with upstream gradients", &grad.read(gpu), &expect(&case.stored_as::<T>()).grad);
    }
}

#[test]
fn both_losses_with_upstream_gradients() {
    let Some(gpu) = gpu() else { return };
    for (dense, beta) in [(false, 2.0), (true, 2.0), (false, 1.5), (true, 1.5)] {
        in_types!(f32, f16, bf16: both(&gpu, dense, beta));
    }
}
