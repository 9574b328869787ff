//! Shows that both phases of the head loss can be captured in a CUDA graph and replayed with other
//! inputs and another number of positives, with the bits of a direct call.
//!
//! In a binary of its own, as one test: a stream that is created while another one captures
//! breaks the capture.

use gfocal::cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use gfocal::head::{BoxCoding, BoxWeight};
use gfocal::{bf16, cuda, f16};
use support::gpu::OnDevice;
use support::head::cuda::{OnCuda, Phases};
use support::head::scenes::{Options, Recipe};
use support::head::{Form, PointsAt, Profile, Scene, Settings, check_mixed, expect};
use support::random::Random;
use support::tolerance::check_same_bits;
use support::{Gpu, Pass, gpu};

/// The inputs of one step of a training, all of them of the same sizes.
fn step(settings: Settings, options: Options, number: usize) -> Scene {
    let recipe = Recipe {
        options,
        classes: 8,
        sizes: vec![(16, 24, 8.0), (5, 5, 16.0)],
        positives: [0.02, 0.6, 0.0, 0.2][number % 4],
        faults: true,
        masks: true,
        ..Recipe::new(settings)
    };
    let mut random = Random::new(1000 + number as u64);
    let mut scene = recipe.scene(&mut random);
    scene.narrow = false;
    for level in &mut scene.levels {
        let anchors = level.labels.len();
        level.points = PointsAt::Grid(0.5);
        level.quality = Some((0..anchors).map(|_| random.unit()).collect());
    }
    scene
}

fn captured<T: OnDevice>(gpu: &Gpu, profile: Profile, form: Form) {
    let settings = Settings::of(profile);
    let units = settings.head().expect("legal settings").units(T::STORAGE, cuda::Pass::ForwardBackward);
    gpu.handle.prepare(units).expect("they load");
    replayed::<T, T>(gpu, settings, Options::default(), form);
}

/// All options, which have kernels of their own.
fn captured_with_options<T: OnDevice, U: OnDevice>(gpu: &Gpu, numbers: Option<BoxCoding>, form: Form) {
    let settings = Settings { numbers, box_weight: BoxWeight::Given, ..Settings::of(Profile::Mmdetection) };
    let options = Options { class_weights: true, element_weights: true, box_weights: true, scores: true };
    let head = settings.head().expect("legal settings");
    let pass = cuda::Pass::ForwardBackward;
    gpu.handle.prepare(head.units(T::STORAGE, pass)).expect("they load");
    let scene = step(settings, options, 0);
    let mut buffers = OnCuda::<T, U>::new(gpu, &scene, form, 0);
    gpu.stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_GLOBAL).expect("a capture begins");
    let error = buffers.call(gpu, &scene, Pass::ForwardBackward, Phases::Both).expect_err("not loaded");
    let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    gpu.stream.end_capture(flags).expect("a capture ends");
    let text = format!(
        "the kernels head_any_beta in {} are not loaded, and cannot be while the stream is captured: give what \
         HeadLoss::units_with_weights says to Handle::prepare before the capture",
        T::NAME
    );
    assert_eq!(error.to_string(), text);
    gpu.handle.prepare(head.units_with_weights(T::STORAGE, pass)).expect("they load");
    replayed::<T, U>(gpu, settings, options, form);
}

fn replayed<T: OnDevice, U: OnDevice>(gpu: &Gpu, settings: Settings, options: Options, form: Form) {
    let first = step(settings, options, 0);
    let mut buffers = OnCuda::<T, U>::new(gpu, &first, form, 0).with_device_scale();
    gpu.stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_GLOBAL).expect("a capture begins");
    let result = buffers.call(gpu, &first, Pass::ForwardBackward, Phases::Both);
    let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = gpu.stream.end_capture(flags).expect("a capture ends").expect("a graph");
    result.expect("a call can be captured");

    for number in [1, 2, 3, 0, 1] {
        let what = format!("{settings:?} {form:?} in {} and {}, step {number}", T::NAME, U::NAME);
        let scene = step(settings, options, number);
        let mut direct = OnCuda::<T, U>::new(gpu, &scene, form, 0).with_device_scale();
        direct.call(gpu, &scene, Pass::ForwardBackward, Phases::Both).expect("a legal call");
        let direct = direct.mixed_outcome(gpu, &scene, Pass::ForwardBackward);
        check_mixed(&what, Pass::ForwardBackward, &direct, &expect(&scene.stored_as_both::<T, U>()));
        buffers.refill(gpu, &scene);
        for _ in 0..2 {
            graph.launch().expect("a replay");
        }
        let replayed = buffers.mixed_outcome(gpu, &scene, Pass::ForwardBackward);
        check_same_bits(&what, &replayed.losses, &direct.losses);
        for (replayed, direct) in replayed.grads.iter().zip(&direct.grads) {
            check_same_bits(&what, &replayed.0, &direct.0);
            check_same_bits(&what, &replayed.1, &direct.1);
        }
        // Two replays have counted twice.
        assert_eq!(replayed.status.out_of_range_targets, 2 * direct.status.out_of_range_targets, "{what}");
        assert_eq!(replayed.status.bad_qualities, 2 * direct.status.bad_qualities, "{what}");
        assert_eq!(replayed.status.first_bad_row, direct.status.first_bad_row, "{what}");
    }
}

#[test]
fn both_phases_are_captured_and_replayed() {
    let Some(gpu) = gpu() else { return };
    // SAFETY: all work is on one stream, so that nothing needs to be ordered by events; no buffer
    // has been allocated yet.
    unsafe { gpu.context.disable_event_tracking() };
    captured_with_options::<f16, f32>(&gpu, Some(BoxCoding::Exp), Form::Nchw);
    captured_with_options::<f32, bf16>(&gpu, None, Form::ChannelsLast);
    for form in [Form::Nchw, Form::ChannelsLast] {
        captured::<f32>(&gpu, Profile::Mmdetection, form);
        captured::<f16>(&gpu, Profile::Nanodet, form);
        captured::<bf16>(&gpu, Profile::Ultralytics, form);
    }
}
