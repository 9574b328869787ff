//! Shows that every option of the head loss gives what its documentation says, against a plain f64
//! transcription, on the CPU and on CUDA: class and box logits of different types, weights of classes,
//! elements and boxes, dense targets, box scores, α, boxes as four numbers; and mixtures of them.

use gfocal::boxes::IouKind;
use gfocal::head::{BoxCoding, BoxWeight, Normaliser, Normalisers, QualitySource};
use gfocal::{bf16, f16};
use support::gpu::OnDevice;
use support::head::cuda::{OnCuda, Phases};
use support::head::scenes::{Options, Recipe, report};
use support::head::{FLAG_BEFORE, Form, Mixed, Profile, Scene, Settings, check_mixed, cpu, cuda, expect};
use support::random::Random;
use support::tolerance::{check_golden_single, check_same_bits};
use support::{Gpu, Pass, Stored, gpu};

const PASSES: [Pass; 2] = [Pass::Forward, Pass::ForwardBackward];
/// Those that two types can have.
const SEPARATE: [Form; 3] = [Form::Nchw, Form::ChannelsLast, Form::Scattered];
const PROFILES: [Profile; 3] = [Profile::Mmdetection, Profile::Nanodet, Profile::Ultralytics];

fn on_cpu<T: Stored, U: Stored>(what: &str, scene: &Scene, form: Form) {
    let want = expect(&scene.stored_as_both::<T, U>());
    for pass in PASSES {
        let got = cpu::run_mixed::<T, U>(scene, form, pass).expect("a legal call");
        check_mixed(&format!("{what} in {form:?}"), pass, &got, &want);
    }
}

fn on_cuda<T: OnDevice, U: OnDevice>(gpu: &Gpu, what: &str, scene: &Scene, forms: &[Form]) {
    let want = expect(&scene.stored_as_both::<T, U>());
    for &form in forms {
        for offset in [0, 1] {
            for pass in PASSES {
                let got = cuda::run_mixed::<T, U>(gpu, scene, form, offset, pass).expect("a legal call");
                check_mixed(&format!("{what} in {form:?}, {offset} off"), pass, &got, &want);
            }
        }
    }
}

/// GFLHead under autocast: class logits are f16, box logits f32, and so are their gradients.
#[test]
fn the_report_of_mixed_types() {
    let report = report("mixed_types");
    let check = |what: &str, got: &Mixed<f16, f32>| {
        let sums = [0, 1, 2].map(|which| got.losses.iter().skip(which).step_by(3).sum::<f32>());
        check_golden_single(&format!("{what}, loss"), &[sums.iter().sum::<f32>()], &[report.loss]);
        check_golden_single(&format!("{what}, losses"), &got.losses, &report.losses);
        for ((cls, boxes), want) in got.grads.iter().zip(&report.grads) {
            check_golden_single(&format!("{what}, class gradients"), cls, &want[0]);
            check_golden_single(&format!("{what}, box gradients"), boxes, &want[1]);
        }
        assert_eq!((got.status.bad_labels, got.status.bad_qualities), (0, 0), "{what}");
        assert_eq!(got.found_inf, FLAG_BEFORE, "{what}");
    };
    for form in SEPARATE {
        let got = cpu::run_mixed(&report.scene, form, Pass::ForwardBackward).expect("a legal call");
        check(&format!("CPU in {form:?}"), &got);
    }
    let normalisers = cpu::normalisers::<f64>(&report.scene, Form::Nchw).expect("a legal call");
    assert_eq!(normalisers.positives, 11.0);
    let Some(gpu) = gpu() else { return };
    for form in SEPARATE {
        let got = cuda::run_mixed(&gpu, &report.scene, form, 0, Pass::ForwardBackward).expect("a legal call");
        check(&format!("CUDA in {form:?}"), &got);
    }
}

/// Settings and options of any kind.
fn any_recipe(random: &mut Random, classes: usize) -> Recipe {
    let mut settings = Settings::of(PROFILES[random.index(3)]);
    settings.beta = [2.0, 2.0, 0.0, 0.0, 1.5][random.index(5)];
    settings.alpha = [None, None, Some(0.25), Some(0.9), Some(1.0), Some(0.0)][random.index(6)];
    settings.iou = IouKind::ALL[random.index(IouKind::ALL.len())];
    settings.ignore_label = [None, Some(-7)][random.index(2)];
    settings.bins = 2 + random.index(17);
    settings.numbers = [None, Some(BoxCoding::Exp), Some(BoxCoding::Relu)][random.index(3)];
    settings.quality = [QualitySource::Iou, QualitySource::Given][random.index(2)];
    settings.box_weight = [BoxWeight::MaxScore, BoxWeight::Quality, BoxWeight::Given][random.index(3)];
    settings.normaliser =
        [Normaliser::Mmdetection, Normaliser::Nanodet, Normaliser::Ultralytics][random.index(3)];
    Recipe {
        batch: 1 + random.index(3),
        classes,
        positives: [0.1, 0.4, 1.0][random.index(3)],
        masks: random.chance(0.5),
        faults: random.chance(0.5),
        not_finite: random.chance(0.15),
        options: Options::any(random),
        ..Recipe::new(settings)
    }
}

#[test]
fn mixtures_on_the_cpu() {
    let mut random = Random::new(301);
    for number in 0..60 {
        let classes = [1, 3, 8, 20][random.index(4)];
        let recipe = Recipe { sizes: vec![(5, 7, 8.0), (2, 4, 20.0)], ..any_recipe(&mut random, classes) };
        let mut scene = recipe.scene(&mut random);
        if random.chance(0.2) {
            scene.normalisers = Some(Normalisers { positives: 3.5, box_weights: 2.25 });
        }
        let what = format!("mixture {number}: {recipe:?}");
        let form = SEPARATE[random.index(3)];
        on_cpu::<f64, f64>(&what, &scene, Form::ALL[random.index(5)]);
        on_cpu::<f32, f32>(&what, &scene, Form::ALL[random.index(5)]);
        on_cpu::<f16, f32>(&what, &scene, form);
        on_cpu::<f32, bf16>(&what, &scene, form);
        on_cpu::<bf16, f16>(&what, &scene, form);
        on_cpu::<f64, f32>(&what, &scene, form);
        on_cpu::<f16, f64>(&what, &scene, form);
    }
}

#[test]
fn mixtures_on_cuda() {
    let Some(gpu) = gpu() else { return };
    let mut random = Random::new(302);
    for number in 0..32 {
        let classes = [3, 8, 16, 24][number % 4];
        // With whole vectors of positions of 16 bits, of 32, and without.
        let sizes =
            [vec![(8, 8, 8.0), (2, 2, 16.0)], vec![(4, 7, 8.0), (3, 5, 16.0)]][number / 4 % 2].clone();
        let recipe = Recipe { sizes, ..any_recipe(&mut random, classes) };
        let scene = recipe.scene(&mut random);
        let what = format!("mixture {number}: {recipe:?}");
        let separate = &SEPARATE[number % 3..][..1];
        match number % 3 {
            0 => on_cuda::<f32, f16>(&gpu, &what, &scene, separate),
            1 => on_cuda::<f16, f32>(&gpu, &what, &scene, separate),
            _ => on_cuda::<bf16, f32>(&gpu, &what, &scene, separate),
        }
        on_cuda::<f32, f32>(&gpu, &what, &scene, &Form::ALL[number % 5..][..1]);
        on_cuda::<f16, f16>(&gpu, &what, &scene, &Form::ALL[(number + 1) % 5..][..1]);
        on_cuda::<bf16, bf16>(&gpu, &what, &scene, &Form::ALL[(number + 2) % 5..][..1]);
    }
}

/// All pairs of types, with bins and without.
#[test]
fn pairs_of_types_on_cuda() {
    let Some(gpu) = gpu() else { return };
    let mut random = Random::new(303);
    for (beta, numbers) in
        [(2.0, None), (0.0, None), (2.0, Some(BoxCoding::Relu)), (0.0, Some(BoxCoding::Exp))]
    {
        let settings = Settings { beta, numbers, ..Settings::of(Profile::Mmdetection) };
        let sizes = vec![(8, 8, 8.0), (3, 5, 16.0)];
        let recipe = Recipe { classes: 8, sizes, positives: 0.3, masks: true, ..Recipe::new(settings) };
        let scene = recipe.scene(&mut random);
        let what = format!("beta {beta}, {numbers:?}");
        let forms = if numbers.is_some() { &SEPARATE[..1] } else { &SEPARATE };
        on_cuda::<f32, f16>(&gpu, &what, &scene, forms);
        on_cuda::<f32, bf16>(&gpu, &what, &scene, forms);
        on_cuda::<f16, f32>(&gpu, &what, &scene, forms);
        on_cuda::<f16, bf16>(&gpu, &what, &scene, forms);
        on_cuda::<bf16, f32>(&gpu, &what, &scene, forms);
        on_cuda::<bf16, f16>(&gpu, &what, &scene, forms);
    }
}

/// Levels of which a thread has several anchors, and rows of classes of which a lane has several.
#[test]
fn large_levels_and_many_classes_on_cuda() {
    let Some(gpu) = gpu() else { return };
    let mut random = Random::new(309);
    for beta in [2.0, 1.5] {
        let settings = Settings { beta, ..Settings::of(Profile::Mmdetection) };
        let recipe = Recipe { batch: 1, sizes: vec![(32, 40, 8.0)], ..Recipe::new(settings) };
        // Vectors have class weights where no label weights are in their way.
        let large = Options { box_weights: true, class_weights: beta != 2.0, ..Options::default() };
        let scene = Recipe { options: large, ..recipe.clone() }.scene(&mut random);
        on_cuda::<f32, f32>(&gpu, "a large level", &scene, &[Form::Nchw]);
        on_cuda::<f16, f16>(&gpu, "a large level", &scene, &[Form::Nchw]);
        on_cuda::<bf16, bf16>(&gpu, "a large level", &scene, &[Form::Nchw]);
        // Shared by several lanes, the last of which have fewer.
        let plain = Recipe { classes: 150, sizes: vec![(8, 12, 8.0), (2, 6, 16.0)], ..recipe.clone() };
        let scene = plain.scene(&mut random);
        on_cuda::<f32, f32>(&gpu, "plain classes", &scene, &Form::ALL);
        on_cuda::<f16, f16>(&gpu, "plain classes", &scene, &Form::ALL);
        on_cuda::<bf16, bf16>(&gpu, "plain classes", &scene, &Form::ALL);
        let many = Options { scores: true, class_weights: true, ..Options::default() };
        let recipe = Recipe { classes: 150, sizes: vec![(3, 4, 8.0)], options: many, faults: true, ..recipe };
        on_cuda::<f32, f32>(&gpu, "many classes", &recipe.scene(&mut random), &[Form::Nchw]);
    }
}

/// One option at a time, at β 2 and without powers.
#[test]
fn each_option_on_cuda() {
    let Some(gpu) = gpu() else { return };
    let mut random = Random::new(304);
    let none = Options::default();
    let options = [
        Options { class_weights: true, ..none },
        Options { element_weights: true, ..none },
        Options { box_weights: true, ..none },
        Options { scores: true, ..none },
        none,
    ];
    for (i, options) in options.into_iter().enumerate() {
        for beta in [2.0, 0.0, 0.5] {
            let alpha = (i == 4).then_some(0.25);
            let settings = Settings { beta, alpha, ..Settings::of(PROFILES[i % 3]) };
            // Several chunks of channels, in whole steps and not.
            let classes = [16, 37][(i + usize::from(beta == 0.0)) % 2];
            let sizes = vec![(8, 12, 8.0), (2, 6, 16.0), (3, 3, 32.0)];
            let recipe =
                Recipe { classes, sizes, options, masks: true, faults: true, ..Recipe::new(settings) };
            let scene = recipe.scene(&mut random);
            let what = format!("{options:?}, beta {beta}, {classes} classes");
            // Weights of classes go another way for each order.
            let [f32s, f16s, bf16s]: [&[Form]; 3] = if options.class_weights {
                [&Form::ALL; 3]
            } else {
                [&SEPARATE, &[Form::Nchw, Form::JointLast], &[Form::Joint, Form::ChannelsLast]]
            };
            on_cuda::<f32, f32>(&gpu, &what, &scene, f32s);
            on_cuda::<f16, f16>(&gpu, &what, &scene, f16s);
            on_cuda::<bf16, bf16>(&gpu, &what, &scene, bf16s);
        }
    }
}

/// A scene with everything, of several blocks.
fn everything(random: &mut Random, beta: f64) -> Scene {
    let settings = Settings {
        beta,
        alpha: Some(0.4),
        numbers: Some(BoxCoding::Exp),
        quality: QualitySource::Given,
        box_weight: BoxWeight::Given,
        ignore_label: Some(-7),
        ..Settings::of(Profile::Mmdetection)
    };
    let recipe = Recipe {
        classes: 16,
        sizes: vec![(24, 24, 8.0), (5, 7, 16.0)],
        masks: true,
        faults: true,
        options: Options { class_weights: true, element_weights: true, box_weights: true, scores: true },
        ..Recipe::new(settings)
    };
    recipe.scene(random)
}

#[track_caller]
fn same<T: Stored, U: Stored>(what: &str, got: &Mixed<T, U>, want: &Mixed<T, U>) {
    check_same_bits(what, &got.losses, &want.losses);
    for (got, want) in got.grads.iter().zip(&want.grads) {
        check_same_bits(what, &got.0, &want.0);
        check_same_bits(what, &got.1, &want.1);
    }
    assert_eq!((got.status, got.found_inf), (want.status, want.found_inf), "{what}");
}

#[test]
fn the_same_bits_on_any_number_of_threads() {
    let scene = everything(&mut Random::new(305), 2.0);
    let on = |threads: usize| -> Mixed<f16, f32> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
        pool.install(|| cpu::run_mixed(&scene, Form::Nchw, Pass::ForwardBackward)).expect("a legal call")
    };
    let first = on(1);
    [2, 3, 7].into_iter().for_each(|threads| same(&format!("{threads} threads"), &on(threads), &first));
}

/// The same bits whatever the order of blocks and threads, in two launches, and in two phases.
#[test]
fn the_same_bits_over_orders_and_phases() {
    let Some(gpu) = gpu() else { return };
    for beta in [2.0, 0.0] {
        let scene = everything(&mut Random::new(306), beta);
        let want: Mixed<f16, f32> =
            cuda::run_mixed(&gpu, &scene, Form::Nchw, 0, Pass::ForwardBackward).expect("a legal call");
        for seed in 0..3 {
            if let Some(emulator) = gpu.emulator {
                emulator.set_seed(seed * 7919 + 1);
            }
            let mut cuda = OnCuda::<f16, f32>::new(&gpu, &scene, Form::Nchw, 0);
            let phases: &[Phases] =
                if seed == 2 { &[Phases::Normalisers, Phases::Normalised] } else { &[Phases::Both] };
            let mut call = |&phases| cuda.call(&gpu, &scene, Pass::ForwardBackward, phases);
            gpu.enqueued(2, || phases.iter().try_for_each(&mut call)).expect("a legal call");
            let got = cuda.mixed_outcome(&gpu, &scene, Pass::ForwardBackward);
            same(&format!("beta {beta}, seed {seed}"), &got, &want);
        }
    }
}

/// exp(z) that is infinite, and logits that are not finite: losses and gradients of that box are not.
#[test]
fn numbers_without_bound() {
    let gpu = gpu();
    for (numbers, z, bounded) in [
        (BoxCoding::Exp, 301.0, false),
        (BoxCoding::Exp, f64::NEG_INFINITY, false),
        (BoxCoding::Exp, -400.0, true),
        (BoxCoding::Exp, 80.0, true),
        (BoxCoding::Relu, f64::INFINITY, false),
        (BoxCoding::Relu, f64::NEG_INFINITY, false),
        (BoxCoding::Relu, f64::NAN, false),
        (BoxCoding::Relu, 1e6, true),
    ] {
        for iou in IouKind::ALL {
            let settings = Settings {
                numbers: Some(numbers),
                iou,
                quality: QualitySource::Given,
                box_weight: BoxWeight::Quality,
                ..Settings::of(Profile::Nanodet)
            };
            let recipe = Recipe { positives: 0.5, sizes: vec![(4, 4, 8.0)], ..Recipe::new(settings) };
            let mut scene = Scene { grad_scale: 1.0, ..recipe.scene(&mut Random::new(307)) };
            let level = &mut scene.levels[0];
            let positive = level.labels.iter().position(|&label| label < 3).expect("a positive");
            level.quality.as_mut().expect("given")[positive] = 0.5;
            let (image, position) = (positive / 16, positive % 16);
            let right = (image * 4 + 2) * 16 + position;
            level.boxes[right] = z;
            let look = |backend: &str, got: &Mixed<f32, f32>| {
                let what = format!("{backend}, {iou:?}, {numbers:?} of {z}");
                let [cls, iou, dfl] = got.losses[..] else { panic!("three losses") };
                assert!(cls.is_finite() && dfl == 0.0, "{what}");
                assert_eq!(
                    (iou.is_finite(), got.grads[0].1[right].is_finite()),
                    (bounded, bounded),
                    "{what}"
                );
                let rest =
                    got.grads[0].1.iter().enumerate().filter(|(i, _)| i / 64 != image || i % 16 != position);
                assert!(rest.into_iter().all(|(_, grad)| grad.is_finite()), "{what}: other boxes");
                assert_eq!(got.found_inf, if bounded { FLAG_BEFORE } else { 1.0 }, "{what}");
            };
            look("CPU", &cpu::run_mixed(&scene, Form::Nchw, Pass::ForwardBackward).expect("a legal call"));
            if let Some(gpu) = &gpu {
                let got = cuda::run_mixed(gpu, &scene, Form::Nchw, 0, Pass::ForwardBackward);
                look("CUDA", &got.expect("a legal call"));
            }
        }
    }
}

/// Weights that multiply to more than f32 holds, or less; a gradient's scale that is infinite beside masks.
#[test]
fn extreme_weights() {
    let mut random = Random::new(308);
    for beta in [2.0, 0.0] {
        let settings = Settings { beta, ..Settings::of(Profile::Mmdetection) };
        let options = Options { class_weights: true, element_weights: true, ..Options::default() };
        let recipe = Recipe { classes: 8, sizes: vec![(4, 4, 8.0)], options, ..Recipe::new(settings) };
        let mut scene = recipe.scene(&mut random);
        scene.class_weights = Some((0..8).map(|i| 10f64.powi(i * 6 - 22)).collect());
        on_cpu::<f32, f32>("extreme", &scene, Form::Nchw);
        on_cpu::<f64, f32>("extreme", &scene, Form::ChannelsLast);

        scene.class_weights = Some(vec![1.0, 0.0, 2.0, 0.0, 1.0, 0.5, 1.0, 0.0]);
        scene.grad_scale = 1e60;
        let element_weights = [None, scene.levels[0].element_weights.clone()];
        let Some(gpu) = gpu() else { continue };
        for (form, element_weights) in Form::ALL.into_iter().zip(element_weights.into_iter().cycle()) {
            scene.levels[0].element_weights = element_weights;
            scene.levels[0].label_weights = None;
            let got: Mixed<f16, f16> =
                cuda::run_mixed(&gpu, &scene, form, 0, Pass::ForwardBackward).expect("a legal call");
            let weights = scene.levels[0].element_weights.as_ref();
            for (i, grad) in got.grads[0].0.iter().enumerate() {
                let (image, class, position) = (i / 128, i / 16 % 8, i % 16);
                let own = weights.map_or(1.0, |weights| weights[(image * 16 + position) * 8 + class]);
                let masked = own * scene.class_weights.as_ref().expect("weights")[class] == 0.0;
                assert_eq!(
                    (grad.to_f32() == 0.0, grad.is_finite()),
                    (masked, masked),
                    "{form:?} [{i}] {grad}"
                );
            }
        }
    }
}
