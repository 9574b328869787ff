//! Shows that gradients alone, for a backward pass that comes after the forward pass, are those of one call
//! for both, to the bit; that on CUDA they take one launch then; and that gradients with respect to the
//! losses multiply them, level by level and loss by loss.

use gfocal::head::BoxCoding;
use gfocal::{bf16, f16};
use support::gpu::OnDevice;
use support::head::cuda::{OnCuda, Phases};
use support::head::scenes::{Options, Recipe};
use support::head::{Form, Mixed, Profile, Scene, Settings, check_mixed, cpu, cuda, expect};
use support::random::Random;
use support::tolerance::check_same_bits;
use support::{Gpu, Pass, Stored, gpu};

const PROFILES: [Profile; 3] = [Profile::Mmdetection, Profile::Nanodet, Profile::Ultralytics];
const PASSES: [Pass; 2] = [Pass::ForwardBackward, Pass::Backward];

/// Scenes of the profiles, every other one with all options, each with upstream gradients.
fn scenes() -> impl Iterator<Item = (String, Scene)> {
    let mut random = Random::new(1201);
    (0..9).map(move |number| {
        let numbers = [None, None, Some(BoxCoding::Exp)][number % 3];
        let beta = [2.0, 2.0, 0.0, 1.5][number % 4];
        let settings = Settings { numbers, beta, ..Settings::of(PROFILES[number / 3]) };
        let all = number % 2 == 1;
        let options = Options { class_weights: all, element_weights: all, box_weights: all, scores: all };
        let recipe = Recipe {
            classes: [3, 8, 24][number % 3],
            sizes: vec![(8, 16, 8.0), (3, 5, 16.0), (4, 4, 32.0)],
            positives: 0.3,
            masks: number > 2,
            faults: number > 4,
            not_finite: number == 8,
            options,
            ..Recipe::new(settings)
        };
        let scene = recipe.scene(&mut random);
        (format!("scene {number}"), if number == 0 { scene } else { scene.with_upstream(&mut random) })
    })
}

#[track_caller]
fn same_gradients<T: Stored, U: Stored>(what: &str, got: &Mixed<T, U>, want: &Mixed<T, U>) {
    assert_eq!(got.grads.len(), want.grads.len(), "{what}");
    for (got, want) in got.grads.iter().zip(&want.grads) {
        check_same_bits(what, &got.0, &want.0);
        check_same_bits(what, &got.1, &want.1);
    }
    assert_eq!((got.status, got.found_inf), (want.status, want.found_inf), "{what}");
}

fn on_cpu<T: Stored, U: Stored>(what: &str, scene: &Scene, form: Form) {
    let want = expect(&scene.stored_as_both::<T, U>());
    let [both, alone] = PASSES.map(|pass| {
        let got = cpu::run_mixed::<T, U>(scene, form, pass).expect("a legal call");
        check_mixed(&format!("{what} in {form:?}"), pass, &got, &want);
        got
    });
    same_gradients(what, &alone, &both);
}

#[test]
fn gradients_alone_on_the_cpu() {
    for (number, (what, scene)) in scenes().enumerate() {
        let form = Form::ALL[number % 5];
        on_cpu::<f64, f64>(&what, &scene, form);
        on_cpu::<f32, f32>(&what, &scene, form);
        on_cpu::<f16, f16>(&what, &scene, form);
        on_cpu::<bf16, f32>(&what, &scene, Form::Nchw);
        // With what a forward pass was divided by.
        let normalisers = cpu::normalisers::<f32>(&scene, form).expect("a legal call");
        let kept = Scene { normalisers: Some(normalisers), ..scene.clone() };
        let [own, kept] = [&scene, &kept]
            .map(|scene| cpu::run_mixed::<f32, f32>(scene, form, Pass::Backward).expect("a legal call"));
        same_gradients(&what, &kept, &own);
    }
}

/// Gradients alone, in two launches and, after a forward pass, in one.
fn on_cuda<T: OnDevice, U: OnDevice>(gpu: &Gpu, what: &str, scene: &Scene, form: Form, offset: usize) {
    let want = expect(&scene.stored_as_both::<T, U>());
    let what = format!("{what} in {form:?}, {offset} off");
    let [both, alone] = PASSES.map(|pass| {
        let got = cuda::run_mixed::<T, U>(gpu, scene, form, offset, pass).expect("a legal call");
        check_mixed(&what, pass, &got, &want);
        got
    });
    same_gradients(&what, &alone, &both);

    let mut cuda = OnCuda::<T, U>::new(gpu, scene, form, offset);
    cuda.call(gpu, scene, Pass::Forward, Phases::Both).expect("a legal call");
    gpu.enqueued(1, || cuda.call(gpu, scene, Pass::Backward, Phases::Normalised)).expect("a legal call");
    let both_passes = cuda.mixed_outcome(gpu, scene, Pass::ForwardBackward);
    check_mixed(&what, Pass::ForwardBackward, &both_passes, &want);
    same_gradients(&what, &both_passes, &both);
}

#[test]
fn gradients_alone_on_cuda() {
    let Some(gpu) = gpu() else { return };
    for (number, (what, scene)) in scenes().enumerate() {
        let form = Form::ALL[number % 5];
        on_cuda::<f32, f32>(&gpu, &what, &scene, form, number % 2);
        on_cuda::<f16, f16>(&gpu, &what, &scene, Form::ALL[(number + 1) % 5], 0);
        on_cuda::<bf16, f32>(&gpu, &what, &scene, [Form::Nchw, Form::ChannelsLast][number % 2], 0);
    }
}

/// One number for each loss and level, in f32 on CUDA and in the type of the losses on the CPU.
#[test]
fn upstream_gradients_of_the_wrong_length() {
    let (_, mut scene) = scenes().nth(1).expect("a scene");
    scene.upstream = Some(vec![1.0; 8]);
    let says = "upstream has 8 elements, these levels need 9";
    let error = cpu::run_mixed::<f32, f32>(&scene, Form::Nchw, Pass::Backward).expect_err("one is missing");
    assert_eq!(error.to_string(), says);
    let Some(gpu) = gpu() else { return };
    let error = cuda::run_mixed::<f32, f32>(&gpu, &scene, Form::Nchw, 0, Pass::Backward);
    assert_eq!(error.expect_err("one is missing").to_string(), says);
}
