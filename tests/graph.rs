//! Shows that calls can be captured in a CUDA graph and replayed with changed inputs, and that a
//! replay gives the bits of a direct call.
//!
//! In a binary of its own, as one test: a stream that is created while another one captures
//! breaks the capture.

use gfocal::{AvgPolicy, DistributionFocalLoss, QualityFocalLoss, Reduction, bf16, cuda, f16};
use support::case::Loss;
use support::cuda::{Buffers, Layout};
use support::gpu::OnDevice;
use support::in_types;
use support::random::Random;
use support::tolerance::check_same_bits;
use support::{Case, Gpu, Pass, check, gpu};

const ROWS: usize = 700;

/// The inputs of one step of a training: other logits, labels, targets, weights and factors each
/// time, and another number of positives.
fn step(kind: &str, columns: usize, number: u64) -> Case {
    let mut random = Random::new(number * 1000 + columns as u64);
    let logits = random.many(ROWS * columns, -6.0, 4.0);
    let positives = [0.1, 0.9, 0.0, 0.4][number as usize % 4];
    let quality = random.floats(ROWS, 0.0, 1.0);
    let shape = [ROWS, columns];
    let case = match kind {
        "sparse" | "weighted" => {
            let label = |random: &mut Random| {
                let label = if random.chance(positives) { random.index(columns) } else { columns };
                if random.chance(0.01) { 1 << 40 } else { label as i64 }
            };
            let labels: Vec<i64> = (0..ROWS).map(|_| label(&mut random)).collect();
            Case::sparse(shape, &logits, &labels, &quality)
        }
        "dense" => {
            let target: Vec<f32> = (0..ROWS * columns)
                .map(|_| if random.chance(positives) { random.unit() as f32 } else { 0.0 })
                .collect();
            Case::dense(shape, &logits, &target)
        }
        _ => Case::dfl(shape, &logits, &random.floats(ROWS, 0.0, columns as f64 - 0.9)),
    };
    let weights = |random: &mut Random, count| Some((0..count).map(|_| random.index(3) as f32).collect());
    case.with(|options| {
        if kind == "weighted" {
            options.elements.class_weights = weights(&mut random, columns);
            options.elements.element_weights = weights(&mut random, ROWS * columns);
        }
        options.weight = Some(quality.iter().map(|&q| if q < 0.2 { 0.0 } else { q }).collect());
        options.reduction = Reduction::MeanBy {
            avg_factor: (1.0 + positives * ROWS as f64).round(),
            policy: AvgPolicy::AtLeast(1.0),
        };
        options.grad_scale = 2f64.powi(number as i32);
    })
}

/// Writes the inputs of a step to where the captured call reads them.
fn refill<T: OnDevice>(gpu: &Gpu, buffers: &mut Buffers<T>, case: &Case) {
    buffers.logits.write(gpu, &case.logits_as::<T>());
    match &case.loss {
        Loss::Sparse { labels, quality, .. } => {
            buffers.labels.write(gpu, labels);
            buffers.quality.write(gpu, quality);
        }
        Loss::Dense { target, .. } | Loss::Dfl { target, .. } => buffers.target.write(gpu, target),
    }
    buffers.weight.as_mut().expect("a weight").write(gpu, case.options.weight.as_ref().expect("a weight"));
    let elements = &case.options.elements;
    for (buffer, weights) in [
        (&mut buffers.class_weights, &elements.class_weights),
        (&mut buffers.element_weights, &elements.element_weights),
    ] {
        if let (Some(buffer), Some(weights)) = (buffer, weights) {
            buffer.write(gpu, weights);
        }
    }
    let Reduction::MeanBy { avg_factor, .. } = case.options.reduction else { panic!("a mean") };
    buffers.avg_factor.as_mut().expect("on the device").write(gpu, &[avg_factor as f32]);
    buffers.grad_scale.as_mut().expect("on the device").write(gpu, &[case.options.grad_scale as f32]);
    let (losses, elements) = (case.losses(), case.logits.len());
    buffers.loss.write(gpu, &vec![f32::NAN; losses]);
    buffers.grad.write(gpu, &vec![T::from_f64(f64::NAN); elements]);
    buffers.found_inf.write(gpu, &[support::Outcome::<T>::FLAG_BEFORE]);
    buffers.status.reset(&gpu.stream).expect("a reset");
}

fn captured<T: OnDevice>(gpu: &Gpu, kind: &str, columns: usize, layout: &Layout) {
    let layout = Layout { device_avg_factor: true, device_grad_scale: true, ..*layout };
    let first = step(kind, columns, 0);
    let mut buffers = Buffers::<T>::new(gpu, &first, &layout);
    let units = match &first.loss {
        _ if kind == "weighted" => {
            QualityFocalLoss::default().units_with_weights(T::STORAGE, cuda::Pass::ForwardBackward)
        }
        Loss::Sparse { .. } | Loss::Dense { .. } => {
            QualityFocalLoss::default().units(T::STORAGE, cuda::Pass::ForwardBackward)
        }
        Loss::Dfl { .. } => DistributionFocalLoss::default().units(T::STORAGE, cuda::Pass::ForwardBackward),
    };
    gpu.handle.prepare(units).expect("they load");
    let before = buffers.grad.read(gpu);
    let (graph, result) = gpu.captured(|| buffers.call(gpu, &first, Pass::ForwardBackward));
    result.expect("a call can be captured");
    check_same_bits("a capture runs nothing", &buffers.grad.read(gpu), &before);

    for number in [1, 2, 3, 0, 1] {
        let what = format!("{kind} with {columns} columns in {}, step {number}", T::NAME);
        let case = step(kind, columns, number);
        let mut direct = Buffers::<T>::new(gpu, &case, &layout);
        direct.call(gpu, &case, Pass::ForwardBackward).expect("a legal call");
        let direct = direct.outcome(gpu, Pass::ForwardBackward);
        check(&what, &case, Pass::ForwardBackward, &direct);
        refill(gpu, &mut buffers, &case);
        for _ in 0..2 {
            graph.launch().expect("a replay");
        }
        let replayed = buffers.outcome(gpu, Pass::ForwardBackward);
        check_same_bits(&what, &replayed.loss, &direct.loss);
        check_same_bits(&what, &replayed.grad, &direct.grad);
        // Two replays have counted twice.
        assert_eq!(replayed.status.bad_labels, 2 * direct.status.bad_labels, "{what}");
        assert_eq!(replayed.status.out_of_range_targets, 2 * direct.status.out_of_range_targets, "{what}");
        assert_eq!(replayed.status.first_bad_row, direct.status.first_bad_row, "{what}");
    }
    assert!(
        kind == "dense" || !buffers.outcome(gpu, Pass::ForwardBackward).status.is_ok(),
        "something is counted"
    );
}

#[test]
fn calls_are_captured_and_replayed() {
    let Some(gpu) = gpu() else { return };
    // SAFETY: all work is on one stream, so that nothing needs to be ordered by events; no buffer
    // has been allocated yet.
    unsafe { gpu.context.disable_event_tracking() };
    for layout in [Layout::ALIGNED, Layout::MISALIGNED] {
        for (kind, columns) in [
            ("sparse", 80),
            ("sparse", 13),
            ("weighted", 16),
            ("dense", 20),
            ("dfl", 17),
            ("dfl", 16),
            ("dfl", 9),
        ] {
            in_types!(f32, f16, bf16: captured(&gpu, kind, columns, &layout));
        }
    }
}
