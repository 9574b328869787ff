//! Shows that nothing is loaded inside a capture, and that other threads may load meanwhile.
//!
//! In a binary of its own, as one test: a stream that is created while another one captures
//! breaks the capture.

use gfocal::boxes::BoxLoss;
use gfocal::cuda::{Handle, Pass, Storage};
use gfocal::{Error, QualityFocalLoss};

use support::gpu::{Buffer, gpu};

#[test]
fn nothing_is_loaded_inside_a_capture() {
    let Some(gpu) = gpu() else { return };
    // SAFETY: everything is on one stream, and no buffer has been allocated yet.
    unsafe { gpu.context.disable_event_tracking() };
    // Not the kernels that the tests of a process share.
    let handle = Handle::new(&gpu.stream).expect("a handle");
    let other = handle.on(&gpu.context.new_stream().expect("a stream")).expect("a handle");
    let (logits, labels, quality) =
        (Buffer::new(&gpu, &[0.0f32, 0.0], 0), Buffer::new(&gpu, &[2i64], 0), Buffer::new(&gpu, &[0.0], 0));
    let (mut loss, mut grad) = (Buffer::poisoned(&gpu, 1, 0), Buffer::poisoned(&gpu, 2, 0));
    let weights = Buffer::new(&gpu, &[1.0f32, 2.0], 0);
    let mut grad_of_weighted = Buffer::<f32>::poisoned(&gpu, 2, 0);
    let qfl = QualityFocalLoss::default();
    let mut call = || {
        qfl.cuda(&handle, &logits.view(), [1, 2], &labels.view(), &quality.view())
            .forward_backward(&mut loss.view_mut(), &mut grad.view_mut())
    };
    // What a call's own options need.
    let mut weighted = || {
        qfl.cuda(&handle, &logits.view(), [1, 2], &labels.view(), &quality.view())
            .class_weights(&weights.view())
            .backward(&mut grad_of_weighted.view_mut())
    };

    let (_, [error, of_weighted]) =
        gpu.captured(|| [call(), weighted()].map(|result| result.expect_err("it is not loaded")));
    assert!(matches!(error, Error::NotPrepared { .. }), "{error:?}");
    assert_eq!(
        error.to_string(),
        "the kernels qfl in f32 are not loaded, and cannot be while the stream is captured: give what \
         QualityFocalLoss::units says to Handle::prepare before the capture"
    );
    assert_eq!(
        of_weighted.to_string(),
        "the kernels qfl_any_beta in f32 are not loaded, and cannot be while the stream is captured: give what \
         QualityFocalLoss::units, or units_with_weights for weights of classes or elements, says to \
         Handle::prepare before the capture"
    );

    handle.prepare(qfl.units_with_weights(Storage::F32, Pass::ForwardBackward)).expect("they load");
    let (graph, result) = gpu.captured(weighted);
    result.expect("it is loaded");
    graph.launch().expect("a replay");
    // 0.5^2 * (0.5 + ln 2) at a score of 0.5, times the weight.
    let slope = 0.25 * (0.5 + 2f32.ln());
    let want = [slope, 2.0 * slope];
    assert!(grad_of_weighted.read(&gpu).iter().zip(want).all(|(got, want)| (got - want).abs() < 1e-6));

    handle.prepare(qfl.units(Storage::F32, Pass::ForwardBackward)).expect("they load");
    let (graph, ()) = gpu.captured(|| {
        call().expect("it is loaded");
        // For a stream that nobody captures.
        std::thread::scope(|scope| {
            let load = || other.prepare(BoxLoss::units());
            scope.spawn(load).join().expect("no panic").expect("they load");
        });
    });
    graph.launch().expect("a replay");
    // -log(0.5) * 0.5^2 for each of two classes.
    assert!((loss.read(&gpu)[0] - 2.0 * 0.25 * 2f32.ln()).abs() < 1e-6);
}
