//! Shows that the head loss is what its documentation says, against a plain f64 transcription of the
//! formulas: random scenes with every option, in every storage type and form of memory; and what
//! its two phases, its masks, its threads and its empty cases give.

use gfocal::boxes::IouKind;
use gfocal::head::{BoxCoding, BoxWeight, Normaliser, Normalisers, QualitySource};
use gfocal::{Background, Status, bf16, f16};
use support::head::scenes::{Options, Recipe};
use support::head::{Form, Outcome, Profile, Scene, Settings, check, cpu, expect};
use support::random::Random;
use support::tolerance::check_same_bits;
use support::{Pass, Stored};

const PROFILES: [Profile; 3] = [Profile::Mmdetection, Profile::Nanodet, Profile::Ultralytics];

fn in_type<T: Stored>(what: &str, scene: &Scene, forms: &[Form]) {
    let want = expect(&scene.stored_as::<T>());
    for &form in forms {
        for pass in [Pass::Forward, Pass::ForwardBackward] {
            let got = cpu::run::<T>(scene, form, pass).expect("a legal call");
            check(&format!("{what} in {form:?}"), pass, &got, &want);
        }
    }
}

fn in_all_types(what: &str, scene: &Scene, forms: &[Form]) {
    in_type::<f64>(what, scene, forms);
    in_type::<f32>(what, scene, forms);
    in_type::<f16>(what, scene, forms);
    in_type::<bf16>(what, scene, forms);
}

fn run<T: Stored>(scene: &Scene) -> Outcome<T> {
    cpu::run(scene, Form::Nchw, Pass::ForwardBackward).expect("a legal call")
}

#[test]
fn profiles_are_what_they_promise() {
    for profile in PROFILES {
        let settings = Settings::of(profile);
        assert_eq!(settings.head().expect("legal options"), settings.profile(), "{profile:?}");
    }
}

#[test]
fn every_profile_and_box_loss() {
    let mut random = Random::new(41);
    for profile in PROFILES {
        for iou in IouKind::ALL {
            let settings = Settings { iou, ..Settings::of(profile) };
            let scene = Recipe::new(settings).scene(&mut random);
            in_all_types(&format!("{profile:?} with {iou:?}"), &scene, &Form::ALL);
        }
    }
}

#[test]
fn numbers_of_classes_and_bins() {
    let mut random = Random::new(43);
    for (i, classes) in [1, 2, 3, 7, 80, 1203].into_iter().enumerate() {
        for bins in [2, 3, 17, 33] {
            let settings = Settings { bins, ..Settings::of(PROFILES[i % 3]) };
            let sizes = vec![(3, 5, 8.0), (2, 1, 12.5)];
            let scene = Recipe { classes, sizes, ..Recipe::new(settings) }.scene(&mut random);
            let form = Form::ALL[random.index(5)];
            in_all_types(&format!("{classes} classes, {bins} bins"), &scene, &[form]);
        }
    }
}

/// Settings of any kind.
fn any_settings(random: &mut Random, classes: usize) -> Settings {
    let mut settings = Settings::of(PROFILES[random.index(3)]);
    settings.beta = [2.0, 2.0, 2.0, 0.0, 0.5, 1.0, 1.5, 3.0][random.index(8)];
    settings.alpha = [None, None, None, Some(0.25), Some(0.75), Some(1.0)][random.index(6)];
    settings.background = [Background::Last, Background::First][random.index(2)];
    settings.ignore_label = [None, Some(-7), Some(255), Some(random.index(classes) as i64)][random.index(4)];
    settings.target_eps = [0.0, 0.1, 0.01][random.index(3)];
    settings.iou = IouKind::ALL[random.index(IouKind::ALL.len())];
    settings.weights = [1.0, 0.3, 2.0].map(|weight| weight * random.between(0.5, 2.0));
    settings.bins = 2 + random.index(32);
    settings.quality = [QualitySource::Iou, QualitySource::Given][random.index(2)];
    settings.box_weight = [BoxWeight::MaxScore, BoxWeight::Quality, BoxWeight::Given][random.index(3)];
    settings.numbers = [None, None, Some(BoxCoding::Exp), Some(BoxCoding::Relu)][random.index(4)];
    settings.normaliser =
        [Normaliser::Mmdetection, Normaliser::Nanodet, Normaliser::Ultralytics][random.index(3)];
    settings
}

#[test]
fn any_options() {
    let mut random = Random::new(47);
    let (mut faulty, mut not_finite) = (0, 0);
    for number in 0..200 {
        let classes = [1, 3, 4, 13, 80][random.index(5)];
        let recipe = Recipe {
            batch: 1 + random.index(3),
            classes,
            sizes: (0..1 + random.index(3))
                .map(|i| (1 + random.index(7), 1 + random.index(6), [8.0, 16.0, 20.0][i]))
                .collect(),
            positives: [0.0, 0.1, 0.3, 1.0][random.index(4)],
            masks: random.chance(0.5),
            faults: random.chance(0.5),
            not_finite: random.chance(0.2),
            options: Options::any(&mut random),
            ..Recipe::new(any_settings(&mut random, classes))
        };
        let mut scene = recipe.scene(&mut random);
        if random.chance(0.2) {
            let [positives, box_weights] = [0.5, 7.25].map(|x| x * random.unit());
            scene.normalisers = Some(Normalisers { positives, box_weights });
        }
        faulty += u32::from(!expect(&scene).status.is_ok());
        not_finite += u32::from(expect(&scene).losses.iter().any(|w| w.is_none_or(|w| w.value.is_nan())));
        in_all_types(&format!("scene {number}"), &scene, &[Form::ALL[random.index(5)]]);
    }
    assert!(faulty > 50 && not_finite > 20, "{faulty} scenes with faults, {not_finite} not finite");
}

/// Blocks, chunks and tiles all come into it.
fn large(random: &mut Random, masks: bool) -> Scene {
    let recipe = Recipe {
        classes: 11,
        sizes: vec![(67, 71, 8.0), (33, 31, 16.0)],
        positives: 0.02,
        masks,
        faults: masks,
        ..Recipe::new(Settings { ignore_label: Some(-1), ..Settings::of(Profile::Mmdetection) })
    };
    recipe.scene(random)
}

#[test]
fn large_scenes() {
    let mut random = Random::new(53);
    for masks in [false, true] {
        let scene = large(&mut random, masks);
        in_type::<f64>("large", &scene, &[Form::Nchw]);
        in_type::<f32>("large", &scene, &Form::ALL);
        in_type::<bf16>("large", &scene, &[Form::Joint, Form::JointLast]);
    }
}

fn same_on_threads<T: Stored>(scene: &Scene, form: Form) {
    let on = |threads: usize| -> Outcome<T> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
        pool.install(|| cpu::run(scene, form, Pass::ForwardBackward)).expect("a legal call")
    };
    let first = on(1);
    for threads in [2, 3, 7] {
        let got = on(threads);
        check_same_bits("losses", &got.losses, &first.losses);
        for (got, first) in got.grads.iter().flatten().zip(first.grads.iter().flatten()) {
            check_same_bits("gradients", got, first);
        }
        assert_eq!((got.status, got.found_inf), (first.status, first.found_inf), "{threads} threads");
    }
}

#[test]
fn the_same_bits_on_any_number_of_threads() {
    let mut random = Random::new(59);
    let scene = large(&mut random, true);
    for form in [Form::Nchw, Form::JointLast] {
        same_on_threads::<f64>(&scene, form);
        same_on_threads::<f32>(&scene, form);
        same_on_threads::<f16>(&scene, form);
    }
}

/// Scales that f32 has no room for.
#[test]
fn extreme_scales() {
    let mut random = Random::new(61);
    let mut scene = Recipe::new(Settings::of(Profile::Mmdetection)).scene(&mut random);
    for level in &mut scene.levels {
        let weights = (0..level.labels.len()).map(|i| 10f64.powi(i as i32 % 41 - 20));
        level.label_weights = Some(weights.collect());
    }
    for grad_scale in [1e-25, 1.0, 1e25] {
        let scene = Scene { grad_scale, ..scene.clone() };
        in_type::<f64>("extreme", &scene, &[Form::Nchw]);
        in_type::<f32>("extreme", &scene, &[Form::Nchw, Form::ChannelsLast]);
    }
}

#[test]
fn two_phases_are_one() {
    let mut random = Random::new(67);
    for profile in PROFILES {
        let mut scene = Recipe { masks: true, ..Recipe::new(Settings::of(profile)) }.scene(&mut random);
        let whole = run::<f32>(&scene);
        let normalisers = cpu::normalisers::<f32>(&scene, Form::Nchw).expect("a legal call");
        let want = expect(&scene.stored_as::<f32>()).normalisers;
        assert_eq!(normalisers.positives, want.positives, "{profile:?}");
        assert!((normalisers.box_weights - want.box_weights).abs() < 1e-9, "{profile:?}");
        scene.normalisers = Some(normalisers);
        let phases = run::<f32>(&scene);
        check_same_bits("losses", &phases.losses, &whole.losses);
        for (phases, whole) in phases.grads.iter().flatten().zip(whole.grads.iter().flatten()) {
            check_same_bits("gradients", phases, whole);
        }
    }
}

/// Two processes with half of the batch each, which average their normalisers, and then, as
/// data-parallel training does, their gradients: the same as one process with all of it.
#[test]
fn two_processes_are_one() {
    let mut random = Random::new(71);
    for profile in PROFILES {
        let mut scene = Recipe { batch: 4, ..Recipe::new(Settings::of(profile)) }.scene(&mut random);
        scene.grad_scale = 1.0;
        let halves = [scene.images(0..2), scene.images(2..4)];
        let [a, b] = [0, 1].map(|i| cpu::normalisers::<f64>(&halves[i], Form::Nchw).expect("a legal call"));
        let mean = Normalisers {
            positives: (a.positives + b.positives) / 2.0,
            box_weights: (a.box_weights + b.box_weights) / 2.0,
        };
        assert!(mean.positives > 2.0 && mean.box_weights > 1.0, "the minima have no part in this");
        let halves = halves.map(|half| Scene { normalisers: Some(mean), ..half });
        for half in &halves {
            in_type::<f64>("half of a batch", half, &[Form::Nchw]);
        }
        let (whole, [a, b]) = (run::<f64>(&scene), halves.map(|half| run::<f64>(&half)));
        // The epsilon of mmdetection meets N / 2 instead of N.
        let close = |got: f64, want: f64| {
            let good = (got - want).abs() <= 1.3e-7 * want.abs() + 1e-13;
            assert!(good, "{profile:?}: {got:e}, not {want:e}");
        };
        for (i, &loss) in whole.losses.iter().enumerate() {
            close((a.losses[i] + b.losses[i]) / 2.0, loss);
        }
        for (level, grads) in whole.grads.iter().enumerate() {
            for tensor in [0, 1] {
                let halves = a.grads[level][tensor].iter().chain(&b.grads[level][tensor]);
                assert!(halves.clone().count() == grads[tensor].len() && !grads[tensor].is_empty());
                halves.zip(&grads[tensor]).for_each(|(half, &whole)| close(half / 2.0, whole));
            }
        }
    }
}

#[test]
fn nothing_to_learn_from() {
    let mut random = Random::new(73);
    for profile in PROFILES {
        // No positives: box losses and gradients of 0, whatever the box logits hold.
        let mut scene = Recipe { positives: 0.0, ..Recipe::new(Settings::of(profile)) }.scene(&mut random);
        scene.levels.iter_mut().for_each(|level| level.boxes.fill(f64::NAN));
        let got = run::<f32>(&scene);
        assert!(got.losses.chunks_exact(3).all(|losses| losses[0] > 0.0 && losses[1..] == [0.0, 0.0]));
        assert!(got.grads.iter().all(|[_, boxes]| boxes.iter().all(|&grad| grad == 0.0)));
        assert_eq!((got.found_inf, got.status), (support::head::FLAG_BEFORE, Status::default()));

        // No images, and levels without positions.
        let empty = Recipe { batch: 0, ..Recipe::new(Settings::of(profile)) };
        let sizes = vec![(0, 7, 8.0), (3, 3, 16.0), (2, 0, 32.0)];
        let gaps = Recipe { sizes, ..Recipe::new(Settings::of(profile)) };
        for recipe in [empty, gaps] {
            let scene = recipe.scene(&mut random);
            in_all_types("nothing", &scene, &Form::ALL);
            assert!(run::<f32>(&scene).losses.iter().all(|loss| loss.is_finite()));
        }
    }
}

/// The first bad row counts anchors level after level, image after image.
#[test]
fn rows_of_the_status() {
    let mut random = Random::new(79);
    let recipe = Recipe {
        positives: 1.0,
        sizes: vec![(2, 2, 8.0), (1, 3, 16.0)],
        ..Recipe::new(Settings::of(Profile::Mmdetection))
    };
    let mut scene = recipe.scene(&mut random);
    let bad = &mut scene.levels[1];
    bad.labels[4] = 99;
    bad.box_targets[4 * 5] = f64::NEG_INFINITY;
    let got = run::<f32>(&scene);
    let want = Status { bad_labels: 1, bad_qualities: 1, first_bad_row: Some(8 + 4), ..Status::default() };
    assert_eq!(got.status, want);
    for anchor in [4, 5] {
        let [cls, boxes] = &got.grads[1];
        let of_anchor = |grads: &[f32], channels: usize| -> Vec<f32> {
            (0..channels).map(|c| grads[(channels + c) * 3 + anchor - 3]).collect()
        };
        assert!(of_anchor(cls, 3).iter().chain(&of_anchor(boxes, 68)).all(|&grad| grad == 0.0));
    }
}
