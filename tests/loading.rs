//! Kernels are loaded when they are needed.

use gfocal::QualityFocalLoss;
use gfocal::boxes::BoxLoss;
use gfocal::cuda::{Handle, Pass, Storage, Units};

use support::gpu::{Buffer, Gpu, gpu};

/// Quality Focal Loss of one row of f32: what a call needs is `qfl` or `qfl_forward`.
struct Row {
    logits: Buffer<f32>,
    labels: Buffer<i64>,
    quality: Buffer<f32>,
    loss: Buffer<f32>,
    grad: Buffer<f32>,
}

impl Row {
    fn new(gpu: &Gpu) -> Row {
        Row {
            logits: Buffer::new(gpu, &[0.0, 0.0], 0),
            labels: Buffer::new(gpu, &[2], 0),
            quality: Buffer::new(gpu, &[0.0], 0),
            loss: Buffer::poisoned(gpu, 1, 0),
            grad: Buffer::poisoned(gpu, 2, 0),
        }
    }

    fn call(&mut self, handle: &Handle, pass: Pass) -> gfocal::Result<()> {
        let Row { logits, labels, quality, loss, grad } = self;
        let (logits, labels, quality) = (logits.view(), labels.view(), quality.view());
        let qfl = QualityFocalLoss::default();
        let call = qfl.cuda(handle, &logits, [1, 2], &labels, &quality);
        match pass {
            Pass::Forward => call.forward(&mut loss.view_mut()),
            Pass::ForwardBackward => call.forward_backward(&mut loss.view_mut(), &mut grad.view_mut()),
        }
    }
}

/// The first words of the lines of [`gfocal::cuda::Kernels::images`].
fn loaded(handle: &Handle) -> Vec<String> {
    let name = |line: String| line.split_once(':').map(|(name, _)| name.to_owned());
    handle.kernels().images().into_iter().filter_map(name).collect()
}

#[test]
fn a_call_loads_what_it_needs_and_no_more() {
    let Some(gpu) = gpu() else { return };
    let handle = Handle::new(&gpu.stream).expect("a handle");
    assert!(loaded(&handle).is_empty());
    let mut row = Row::new(&gpu);
    row.call(&handle, Pass::Forward).expect("a legal call");
    assert_eq!(loaded(&handle), ["qfl_forward f32"]);
    row.call(&handle, Pass::ForwardBackward).expect("a legal call");
    assert_eq!(loaded(&handle), ["qfl f32", "qfl_forward f32"]);
    // -log(0.5) * 0.5^2 for each of two classes.
    assert!((row.loss.read(&gpu)[0] - 2.0 * 0.25 * 2f32.ln()).abs() < 1e-6);
    // A handle for another stream has the same kernels.
    let other = handle.on(&gpu.context.new_stream().expect("a stream")).expect("a handle");
    assert_eq!(loaded(&other), loaded(&handle));
}

#[test]
fn what_is_prepared_is_loaded_once() {
    let Some(gpu) = gpu() else { return };
    let handle = Handle::new(&gpu.stream).expect("a handle");
    let qfl = QualityFocalLoss::new(1.5).expect("a legal beta");
    let units = qfl.units(Storage::Bf16, Pass::Forward) | BoxLoss::units();
    assert_eq!(units.to_string(), "qfl_any_beta in bf16, boxes");
    for _ in 0..2 {
        handle.prepare(units).expect("they load");
        assert_eq!(loaded(&handle), ["qfl_any_beta bf16", "boxes f32"]);
    }
    handle.prepare(Units::all(&[Storage::F16])).expect("they load");
    assert_eq!(loaded(&handle).len(), 13 + 1 + 3);
}
