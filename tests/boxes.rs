//! Shows that the box losses are mmdetection's and Ultralytics', with PyTorch's gradients also at ties (the file
//! tests/boxes/autograd.safetensors; autograd.py beside it made it); that gradients are the
//! derivatives of the losses; that boxes of any shape give finite numbers, and coordinates that
//! are not finite do not; and that boxes and distances are each other's inverse.

use gfocal::boxes::{BoxLoss, Coordinate, IouKind, box_to_distances, distances_to_box, iou};
use gfocal_reference::{Dual, box_loss};
use support::head::reference::box_loss as formula;
use support::random::Random;
use support::tolerance::{Number, Want, check_rounded_once, check_same_bits};
use support::vectors::Vectors;
use support::{Buffer, Gpu, check_elements, gpu};

fn name(kind: IouKind) -> String {
    format!("{kind:?}").to_lowercase()
}

fn run<T: Coordinate>(loss: &BoxLoss, pred: &[T], target: &[T]) -> (Vec<T>, Vec<T>) {
    let boxes = pred.len() / 4;
    let mut losses = vec![T::from_f64(f64::NAN); boxes];
    let mut grad = vec![T::from_f64(f64::NAN); pred.len()];
    loss.forward_backward(pred, target, boxes, None, &mut losses, &mut grad).expect("a legal call");
    (losses, grad)
}

/// What a loss or the gradient of one box may be away from the truth: relative, and because
/// intersection, union and hull cancel, relative to the largest of the box's numbers.
fn wants(values: &[f64], each: usize) -> Vec<Option<Want>> {
    let wants = values.chunks_exact(each).flat_map(|of_box| {
        let scale = of_box.iter().fold(1.0, |most: f64, value| most.max(value.abs()));
        of_box.iter().map(move |&value| Some(Want { value, magnitude: value.abs(), scale, cancels: true }))
    });
    wants.collect()
}

fn as_type<T: Coordinate>(values: &[f64]) -> Vec<T> {
    values.iter().map(|&value| T::from_f64(value)).collect()
}

fn compare_kind<T: Number>(vectors: &Vectors, kind: IouKind, losses: &[T], grad: &[T]) {
    let name = name(kind);
    check_elements(&name, losses, &wants(&vectors.f64s(&format!("{name}.loss")), 1));
    let want = wants(&vectors.f64s(&format!("{name}.grad")), 4);
    check_elements(&format!("gradient of {name}"), grad, &want);
}

fn compare<T: Coordinate + Number>(vectors: &Vectors) {
    let eps = vectors.case["eps"].as_f64().expect("an epsilon");
    let (pred, target) = (as_type::<T>(&vectors.f64s("pred")), as_type::<T>(&vectors.f64s("target")));
    let mut overlaps = vec![T::from_f64(f64::NAN); pred.len() / 4];
    iou(&pred, &target, overlaps.len(), eps, &mut overlaps).expect("a legal call");
    check_elements("IoU", &overlaps, &wants(&vectors.f64s("iou"), 1));
    for kind in IouKind::ALL {
        let loss = BoxLoss::new(kind).with_eps(eps).expect("an epsilon");
        let (losses, grad) = run(&loss, &pred, &target);
        compare_kind(vectors, kind, &losses, &grad);
        let mut forward = losses.clone();
        loss.forward(&pred, &target, losses.len(), &mut forward).expect("a legal call");
        check_same_bits(&name(kind), &forward, &losses);
    }
}

#[test]
fn as_autograd_has_them() {
    let vectors = Vectors::open("tests/boxes/autograd.safetensors");
    assert!(vectors.f64s("iou").len() > 60);
    compare::<f64>(&vectors);
    compare::<f32>(&vectors);
}

/// On CUDA, at some alignment, over a stream that neither waits nor allocates.
fn run_cuda(
    gpu: &Gpu,
    loss: &BoxLoss,
    pred: &[f32],
    target: &[f32],
    upstream: Option<&[f32]>,
    offset: usize,
) -> [Vec<f32>; 3] {
    let boxes = pred.len() / 4;
    let (pred, target) = (Buffer::new(gpu, pred, offset), Buffer::new(gpu, target, offset));
    let upstream = upstream.map(|upstream| Buffer::new(gpu, upstream, offset));
    let [mut losses, mut alone] = [0, 1].map(|_| Buffer::poisoned(gpu, boxes, offset));
    let mut grad = Buffer::poisoned(gpu, 4 * boxes, offset);
    let view = upstream.as_ref().map(Buffer::view);
    let view = view.as_ref().map(|view| view as _);
    let (p, t) = (pred.view(), target.view());
    let (to, slopes) = (&mut losses.view_mut(), &mut grad.view_mut());
    let calls = || {
        loss.forward_backward_cuda(&gpu.handle, &p, &t, boxes, view, to, slopes)?;
        loss.forward_cuda(&gpu.handle, &p, &t, boxes, &mut alone.view_mut())
    };
    gpu.enqueued(if boxes == 0 { 0 } else { 2 }, calls).expect("a legal call");
    [losses.read(gpu), grad.read(gpu), alone.read(gpu)]
}

#[test]
fn on_cuda_as_autograd_has_them() {
    let Some(gpu) = gpu() else { return };
    let vectors = Vectors::open("tests/boxes/autograd.safetensors");
    let (pred, target) = (as_type::<f32>(&vectors.f64s("pred")), as_type::<f32>(&vectors.f64s("target")));
    for kind in IouKind::ALL {
        for offset in [0, 1] {
            let [losses, grad, alone] = run_cuda(&gpu, &BoxLoss::new(kind), &pred, &target, None, offset);
            check_same_bits("forward alone", &alone, &losses);
            compare_kind(&vectors, kind, &losses, &grad);
        }
    }
}

/// More boxes than threads, CPU and CUDA side by side: the same maths in double, which CUDA rounds at the end.
#[test]
fn on_cuda_as_on_the_cpu() {
    let Some(gpu) = gpu() else { return };
    for (boxes, offset) in [(0, 0), (1, 0), (3001, 0), (777, 3)] {
        let mut random = Random::new(35);
        let [pred, target] = scene(&mut random, boxes);
        let upstream = random.many(boxes, -3.0, 3.0);
        // On a lattice, so that there are ties; and some close, for CIoU.
        let mut pred: Vec<f64> = pred.iter().map(|x| x.round()).collect();
        let target: Vec<f64> = target.iter().map(|x| x.round()).collect();
        for (row, pred) in pred.chunks_exact_mut(4).enumerate() {
            if row % 3 == 0 {
                pred.copy_from_slice(&target[4 * row..4 * row + 4]);
                pred[row / 3 % 4] += 0.25 * (row % 7) as f64;
            }
        }
        for kind in IouKind::ALL {
            let loss = BoxLoss::new(kind);
            let (losses, grad) = run(&loss, &pred, &target);
            let scaled: Vec<f64> =
                grad.iter().enumerate().map(|(i, grad)| f64::from(upstream[i / 4] as f32) * grad).collect();
            let single = |values: &[f64]| as_type::<f32>(values);
            let upstream = single(&upstream);
            let [got, got_grad, alone] =
                run_cuda(&gpu, &loss, &single(&pred), &single(&target), Some(&upstream), offset);
            check_same_bits("forward alone", &alone, &got);
            check_rounded_once(&name(kind), &got, &wants(&losses, 1));
            check_rounded_once(&format!("gradient of {}", name(kind)), &got_grad, &wants(&scaled, 4));
        }
    }
}

/// The same of boxes whose coordinates are out of a few: empty and inverted ones, of angles that differ by a right one.
#[test]
fn of_any_shape_on_cuda_as_on_the_cpu() {
    let Some(gpu) = gpu() else { return };
    let of_number = |i: usize| [0, 2, 4, 6].map(|shift| (i >> shift & 3) as f64 - 1.0);
    let (pred, target): (Vec<_>, Vec<_>) =
        (0..65536).step_by(7).map(|i| (of_number(i & 255), of_number(i >> 8))).unzip();
    let (pred, target) = (pred.as_flattened(), target.as_flattened());
    for (kind, eps) in IouKind::ALL.into_iter().flat_map(|kind| [1e-6, 1.0].map(|eps| (kind, eps))) {
        let loss = BoxLoss::new(kind).with_eps(eps).expect("an epsilon");
        let (losses, grad) = run(&loss, pred, target);
        let [got, got_grad, alone] = run_cuda(&gpu, &loss, &as_type(pred), &as_type(target), None, 0);
        let what = format!("{kind:?}, epsilon {eps}");
        check_same_bits("forward alone", &alone, &got);
        check_rounded_once(&what, &got, &wants(&losses, 1));
        check_rounded_once(&format!("gradient of {what}"), &got_grad, &wants(&grad, 4));
    }
}

/// Boxes of about the same place and size, whose coordinates are all different.
fn scene(random: &mut Random, boxes: usize) -> [Vec<f64>; 2] {
    [0, 1].map(|_| {
        let one = |random: &mut Random| {
            let (x, y) = (random.between(0.0, 10.0), random.between(0.0, 10.0));
            [x, y, x + random.between(1.0, 12.0), y + random.between(1.0, 12.0)]
        };
        (0..boxes).flat_map(|_| one(random)).collect()
    })
}

/// Losses and gradients against the formulas, on numbers that carry their derivatives along.
#[test]
fn gradients_are_derivatives() {
    let [pred, target] = scene(&mut Random::new(31), 400);
    let close = |got: f64, want: f64| (got - want).abs() <= 1e-10 * want.abs() + 1e-12;
    for kind in IouKind::ALL {
        let (losses, grad) = run(&BoxLoss::new(kind), &pred, &target);
        let rows = pred.as_chunks::<4>().0.iter().zip(target.as_chunks::<4>().0).zip(losses).enumerate();
        for (row, ((&pred, &target), loss)) in rows {
            for side in 0..4 {
                let moving: [Dual; 4] = std::array::from_fn(|i| Dual(pred[i], f64::from(i == side)));
                let [_, Dual(value, slope)] = box_loss(formula(kind), moving, target, 1e-6);
                let (what, grad) = (format!("{kind:?}, box {row}, side {side}"), grad[4 * row + side]);
                assert!(close(loss, value), "{what}: {loss:e}, the formula gives {value:e}");
                assert!(close(grad, slope), "{what}: {grad:e}, the derivative is {slope:e}");
            }
        }
    }
}

/// All boxes with coordinates out of a few, so that ties, empty and inverted boxes all occur,
/// from the smallest to the largest numbers of f32. In f64, because gradients may be beyond f32.
#[test]
fn every_box_gives_finite_numbers() {
    for scale in [1e-45f32, 1e-38, 1e-20, 1e-6, 1.0, 1e6, 1e18, 1e38] {
        let side = |i: usize, shift: usize| f64::from(scale * ((i >> shift & 3) as f32 - 1.0));
        let boxes: Vec<f64> = (0..256).flat_map(|i| [0, 2, 4, 6].map(|shift| side(i, shift))).collect();
        for target in boxes.chunks_exact(4) {
            let targets = target.repeat(256);
            for kind in IouKind::ALL {
                let (loss, grad) = run(&BoxLoss::new(kind), &boxes, &targets);
                if let Some(at) = (0..1024).find(|&at| !(loss[at / 4].is_finite() && grad[at].is_finite())) {
                    panic!(
                        "{kind:?}, {:?}, {target:?}: {}, {}",
                        &boxes[at / 4 * 4..][..4],
                        loss[at / 4],
                        grad[at]
                    );
                }
            }
        }
    }
}

/// Each kind with a coordinate that is not finite: of a prediction, and of a target.
fn with_bad_sides<T: Coordinate + Number>(run: impl Fn(&BoxLoss, &[T], &[T]) -> (Vec<T>, Vec<T>)) {
    let (good, usual) = (as_type(&[1.0, 2.0, 5.0, 6.0]), [2.0, 1.0, 6.0, 7.0]);
    for kind in IouKind::ALL {
        let loss = BoxLoss::new(kind);
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            for side in 0..4 {
                let mut spoilt = usual;
                spoilt[side] = bad;
                let spoilt = as_type(&spoilt);
                let (losses, grad) = run(&loss, &spoilt, &good);
                let what = format!("{kind:?}, {bad}, side {side}: {losses:?} {grad:?}");
                assert!(!bad.is_nan() || losses[0].to_f64().is_nan(), "{what}");
                assert!(losses.iter().chain(&grad).any(|x| !x.to_f64().is_finite()), "{what}");
                let (losses, _) = run(&loss, &good, &spoilt);
                let what = format!("{kind:?}, target {bad}, side {side}: {losses:?}");
                assert!(!bad.is_nan() || losses[0].to_f64().is_nan(), "{what}");
            }
        }
    }
}

#[test]
fn what_is_not_finite_shows() {
    with_bad_sides(run::<f64>);
    let Some(gpu) = gpu() else { return };
    with_bad_sides(|loss, pred, target| {
        let [losses, grad, _] = run_cuda(&gpu, loss, pred, target, None, 0);
        (losses, grad)
    });
}

#[test]
fn upstream_scales_and_threads_do_not_matter() {
    let [pred, target] = scene(&mut Random::new(32), 20_000);
    let upstream = Random::new(33).many(20_000, -3.0, 3.0);
    for kind in IouKind::ALL {
        let loss = BoxLoss::new(kind);
        let (losses, grad) = run(&loss, &pred, &target);
        let (mut again, mut scaled) = (losses.clone(), grad.clone());
        loss.forward_backward(&pred, &target, 20_000, Some(&upstream), &mut again, &mut scaled)
            .expect("a legal call");
        check_same_bits("loss", &again, &losses);
        let want: Vec<f64> = grad.iter().enumerate().map(|(i, grad)| upstream[i / 4] * grad).collect();
        check_same_bits("gradient", &scaled, &want);
        // One box alone.
        for row in [0, 4095, 4096, 19_999] {
            let at = 4 * row..4 * row + 4;
            let (alone, alone_grad) = run(&loss, &pred[at.clone()], &target[at.clone()]);
            check_same_bits("alone", &alone, &losses[row..=row]);
            check_same_bits("alone", &alone_grad, &grad[at]);
        }
    }
}

#[test]
fn distances_and_boxes_are_inverse() {
    let mut random = Random::new(34);
    let points = random.many(2 * 100, -50.0, 50.0);
    let distances = random.many(4 * 100, -2.0, 20.0);
    let (mut boxes, mut back) = (vec![f64::NAN; 400], vec![f64::NAN; 400]);
    distances_to_box(&points, &distances, 100, &mut boxes).expect("a legal call");
    for (row, b) in boxes.chunks_exact(4).enumerate() {
        let (point, d) = (&points[2 * row..], &distances[4 * row..]);
        assert_eq!(b, [point[0] - d[0], point[1] - d[1], point[0] + d[2], point[1] + d[3]]);
    }
    box_to_distances(&points, &boxes, 100, None, &mut back).expect("a legal call");
    assert!(back.iter().zip(&distances).all(|(back, d)| (back - d).abs() <= 1e-13));
    box_to_distances(&points, &boxes, 100, Some(15.9), &mut back).expect("a legal call");
    assert!(back.iter().zip(&distances).all(|(back, d)| (back - d.clamp(0.0, 15.9)).abs() <= 1e-13));
    assert!(back.contains(&0.0) && back.contains(&15.9));
}

#[test]
fn errors_on_cuda() {
    let Some(gpu) = gpu() else { return };
    let (four, three) = (Buffer::new(&gpu, &[0.0f32; 4], 0), Buffer::new(&gpu, &[0.0f32; 3], 0));
    let (mut one, mut out) = (Buffer::poisoned(&gpu, 1, 0), Buffer::poisoned(&gpu, 3, 0));
    let (four, three, loss) = (four.view(), three.view(), BoxLoss::default());
    let text = |result: gfocal::Result<()>| result.expect_err("a wrong call").to_string();
    let forward = loss.forward_cuda(&gpu.handle, &four, &three, 1, &mut one.view_mut());
    assert_eq!(text(forward), "target has 3 elements, 1 boxes need 4");
    let both = loss.forward_backward_cuda(
        &gpu.handle,
        &four,
        &four,
        1,
        None,
        &mut one.view_mut(),
        &mut out.view_mut(),
    );
    assert_eq!(text(both), "grad has 3 elements, 1 boxes need 4");
    assert!(one.read(&gpu).iter().chain(&out.read(&gpu)).all(|x| x.is_nan()), "nothing is written");
}

#[test]
fn errors() {
    let (four, mut one, mut out) = ([0.0f32; 4], [0.0f32], [0.0f32; 4]);
    let loss = BoxLoss::default();
    let text = |result: gfocal::Result<()>| result.expect_err("a wrong call").to_string();
    assert_eq!(text(loss.forward(&four, &four, 2, &mut one)), "pred has 4 elements, 2 boxes need 8");
    assert_eq!(text(loss.forward(&four, &four[1..], 1, &mut one)), "target has 3 elements, 1 boxes need 4");
    assert_eq!(text(loss.forward(&four, &four, 1, &mut [])), "loss has 0 elements, 1 boxes need 1");
    let both = |upstream: &[f32], one: &mut [f32], out: &mut [f32]| {
        text(loss.forward_backward(&four, &four, 1, Some(upstream), one, out))
    };
    assert_eq!(both(&[], &mut one, &mut out), "upstream has 0 elements, 1 boxes need 1");
    assert_eq!(both(&[1.0], &mut one, &mut out[..3]), "grad has 3 elements, 1 boxes need 4");
    let many = usize::MAX / 2;
    assert_eq!(
        text(loss.forward(&four, &four, many, &mut one)),
        format!("{many} boxes are more than memory can address")
    );
    for eps in [0.0, -1.0, 2.0, f64::NAN] {
        let text = loss.with_eps(eps).expect_err("a wrong epsilon").to_string();
        assert_eq!(text, format!("eps is {eps}, it must be from 1e-30 to 1"));
        assert!(iou(&four, &four, 1, eps, &mut one).is_err());
    }
    assert_eq!(text(distances_to_box(&four, &four, 1, &mut out)), "points has 4 elements, 1 boxes need 2");
    let encode = box_to_distances(&[0.0f32; 2], &four, 1, Some(-1.0), &mut out);
    assert_eq!(text(encode), "max is -1, it must be a finite number of 0 or more");
    assert!(box_to_distances(&[0.0f32; 2], &four, 1, Some(f64::NAN), &mut out).is_err());
}
