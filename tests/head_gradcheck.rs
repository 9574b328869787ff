//! Shows, by central differences in f64, that the gradients of the head loss are the derivatives of
//! its losses with q, v, N and W held fixed, and that these are indeed taken as constants.

use gfocal::Error;
use gfocal::boxes::IouKind;
use gfocal::head::{BoxCoding, BoxWeight, Normaliser, QualitySource};
use support::Pass;
use support::head::scenes::{Options, Recipe};
use support::head::{BESIDE, Form, LevelScene, Outcome, PointsAt, Profile, Scene, Settings, cpu};
use support::random::Random;

const STEP: f64 = 1e-5;

fn run(scene: &Scene, pass: Pass) -> Outcome<f64> {
    cpu::run(scene, Form::Nchw, pass).expect("a legal call")
}

/// Derivatives of the sums over the levels of the three losses.
fn slopes(scene: &Scene, move_by: impl Fn(&mut Scene, f64)) -> [f64; 3] {
    slopes_over(STEP, scene, move_by)
}

fn slopes_over(step: f64, scene: &Scene, move_by: impl Fn(&mut Scene, f64)) -> [f64; 3] {
    let losses = |by: f64| {
        let mut scene = scene.clone();
        move_by(&mut scene, by);
        let losses = run(&scene, Pass::Forward).losses;
        [0, 1, 2].map(|which| losses.iter().skip(which).step_by(3).sum::<f64>())
    };
    let (above, below) = (losses(step), losses(-step));
    [0, 1, 2].map(|which| (above[which] - below[which]) / (2.0 * step))
}

/// The tolerance is the method's: its truncation error, h²/6 times a third derivative, which is of
/// the order of the losses here; and rounding, 2^-53 of a loss of order 10 over h.
#[track_caller]
fn close(what: &str, grad: f64, slope: f64) {
    let good = (grad - slope).abs() <= 1e-6 * slope.abs() + 3e-9;
    assert!(good, "{what}: gradient {grad:e}, difference quotient {slope:e}");
}

/// A scene with the normalisers held fixed, and no logit near a kink of QFL or of a box loss: boxes
/// that meet their targets, with all coordinates different.
fn scene(random: &mut Random, settings: Settings) -> Scene {
    scene_with(random, settings, Options::default())
}

fn scene_with(random: &mut Random, settings: Settings, options: Options) -> Scene {
    let recipe = Recipe {
        options,
        batch: 2,
        classes: 3,
        sizes: vec![(2, 3, 8.0), (1, 2, 16.0)],
        positives: 0.6,
        ..Recipe::new(settings)
    };
    let mut scene = recipe.scene(random);
    scene.grad_scale = 1.0;
    scene.normalisers = Some(cpu::normalisers::<f64>(&scene, Form::Nchw).expect("a legal call"));
    scene
}

fn settings() -> impl Iterator<Item = Settings> {
    let profiles = [Profile::Mmdetection, Profile::Nanodet, Profile::Ultralytics];
    profiles.into_iter().flat_map(|profile| {
        IouKind::ALL.into_iter().map(move |iou| Settings { iou, bins: 5, ..Settings::of(profile) })
    })
}

fn without_alpha(settings: &Settings) -> bool {
    !matches!(settings.iou, IouKind::Ciou | IouKind::CiouUltralytics)
}

/// With given qualities as weights, all constants are out of the way: the gradient is the
/// derivative of the total loss. But for CIoU, whose alpha is another constant.
#[test]
fn the_derivative_of_the_total_loss() {
    let mut random = Random::new(83);
    let frozen =
        |settings| Settings { quality: QualitySource::Given, box_weight: BoxWeight::Quality, ..settings };
    for settings in settings().map(frozen).filter(without_alpha) {
        all_slopes(&format!("{settings:?}"), &scene(&mut random, settings));
    }
}

/// The gradients are the derivatives of the total loss.
fn all_slopes(what: &str, scene: &Scene) {
    let got = run(scene, Pass::ForwardBackward);
    for level in 0..scene.levels.len() {
        for i in 0..scene.levels[level].cls.len() {
            let slope = slopes(scene, |scene, by| scene.levels[level].cls[i] += by);
            close(&format!("{what}, class logit {i}"), got.grads[level][0][i], slope.iter().sum());
        }
        for i in 0..scene.levels[level].boxes.len() {
            let slope = slopes(scene, |scene, by| scene.levels[level].boxes[i] += by);
            close(&format!("{what}, box logit {i}"), got.grads[level][1][i], slope.iter().sum());
        }
    }
}

/// The same with weights of classes, elements and boxes, box scores, dense scores, α, and boxes as four numbers.
#[test]
fn the_derivative_with_options() {
    let mut random = Random::new(85);
    let none = Options::default();
    let options = [
        none,
        Options { class_weights: true, ..none },
        Options { element_weights: true, ..none },
        Options { box_weights: true, ..none },
        Options { scores: true, ..none },
        Options { class_weights: true, element_weights: true, box_weights: true, scores: true },
    ];
    for (i, options) in options.into_iter().enumerate() {
        for numbers in [None, Some(BoxCoding::Exp), Some(BoxCoding::Relu)] {
            let settings = Settings {
                numbers,
                bins: 5,
                iou: [IouKind::Giou, IouKind::Iou, IouKind::Diou][i % 3],
                alpha: (i % 2 == 0).then_some(0.3),
                quality: QualitySource::Given,
                box_weight: BoxWeight::Given,
                ..Settings::of([Profile::Mmdetection, Profile::Ultralytics][i % 2])
            };
            let scene = scene_with(&mut random, settings, options);
            all_slopes(&format!("{options:?} of {settings:?}"), &scene);
        }
    }
}

/// q is a constant: box logits move the classification loss, but that is no part of their gradient.
/// So is v: class logits move the box losses.
#[test]
fn qualities_and_weights_are_constants() {
    let mut random = Random::new(89);
    let detached =
        |settings| Settings { quality: QualitySource::Iou, box_weight: BoxWeight::MaxScore, ..settings };
    for settings in settings().map(detached).filter(without_alpha) {
        let scene = scene(&mut random, settings);
        let got = run(&scene, Pass::ForwardBackward);
        let (mut by_quality, mut by_weight) = (0.0f64, 0.0f64);
        for level in 0..scene.levels.len() {
            for i in 0..scene.levels[level].cls.len() {
                let [cls, iou, dfl] = slopes(&scene, |scene, by| scene.levels[level].cls[i] += by);
                close(&format!("{settings:?}, class logit {i}"), got.grads[level][0][i], cls);
                by_weight = by_weight.max(iou.abs()).max(dfl.abs());
            }
            for i in 0..scene.levels[level].boxes.len() {
                let [cls, iou, dfl] = slopes(&scene, |scene, by| scene.levels[level].boxes[i] += by);
                close(&format!("{settings:?}, box logit {i}"), got.grads[level][1][i], iou + dfl);
                by_quality = by_quality.max(cls.abs());
            }
        }
        assert!(by_quality > 1e-4 && by_weight > 1e-4, "{settings:?}: nothing to be seen of q and v");
    }
}

/// N and W are constants: the gradient is the same with those of the scene given, though they move.
#[test]
fn normalisers_are_constants() {
    let mut random = Random::new(97);
    for normaliser in [Normaliser::Mmdetection, Normaliser::Nanodet, Normaliser::Ultralytics] {
        let settings = Settings {
            normaliser,
            quality: QualitySource::Iou,
            bins: 5,
            ..Settings::of(Profile::Mmdetection)
        };
        let given = scene(&mut random, settings);
        let own = Scene { normalisers: None, ..given.clone() };
        let w = given.normalisers.expect("given").box_weights;
        assert!(w > 1.0, "the minimum has no part in this");
        assert_eq!(run(&given, Pass::ForwardBackward).grads, run(&own, Pass::ForwardBackward).grads);
        // A class logit of a positive moves W, and so the box loss of other positives.
        let moves = (0..own.levels[0].cls.len()).any(|i| {
            let slope = |scene| slopes(scene, |scene, by| scene.levels[0].cls[i] += by);
            (slope(&own)[1] - slope(&given)[1]).abs() > 1e-4
        });
        assert!(moves, "{normaliser:?}: nothing to be seen of W");
    }
}

/// What is beside f64 logits is f64: losses follow steps of it that f32 would not see as they do others, and its lengths
/// are compared.
#[test]
fn what_is_beside_f64_logits_is_f64() {
    const NAMES: [&str; BESIDE + 1] = [
        "boxes",
        "label_weights",
        "quality",
        "box_weights",
        "box_scores",
        "scores",
        "element_weights",
        "points",
        "class_weights",
    ];
    let mut random = Random::new(101);
    let mut seen = [false; BESIDE + 1];
    for (scores, box_weight) in [(false, BoxWeight::Given), (true, BoxWeight::Quality)] {
        let settings =
            Settings { quality: QualitySource::Given, box_weight, bins: 5, ..Settings::of(Profile::Nanodet) };
        let options = Options { class_weights: true, element_weights: true, box_weights: true, scores };
        let is_whole = |scene: &Scene| {
            let explicit = |level: &LevelScene| matches!(level.points, PointsAt::Explicit(_));
            scene.levels.iter().all(|level| explicit(level) && level.label_weights.is_some())
        };
        let scene = (0..).map(|_| scene_with(&mut random, settings, options)).find(is_whole);
        let scene = scene.expect("such a scene");
        for (i, name) in NAMES.into_iter().enumerate() {
            fn of(scene: &mut Scene, i: usize) -> Vec<&mut Vec<f64>> {
                let Scene { levels, class_weights, .. } = scene;
                let of_levels =
                    levels.iter_mut().filter_map(|level| level.beside_mut().into_iter().nth(i)?);
                if i < BESIDE { of_levels.collect() } else { class_weights.iter_mut().collect() }
            }
            if of(&mut scene.clone(), i).is_empty() {
                continue;
            }
            seen[i] = true;
            let slope = |step: f64| -> f64 {
                let by = |scene: &mut Scene, by: f64| {
                    of(scene, i).into_iter().flatten().for_each(|number| *number *= 1.0 + by);
                };
                slopes_over(step, &scene, by).iter().sum()
            };
            // Rounding: 2^-53 of a loss of order 10 over the step.
            let (fine, coarse) = (slope(2f64.powi(-28)), slope(STEP));
            let good = (fine - coarse).abs() <= 1e-6 * coarse.abs() + 3e-7 && coarse.abs() > 1e-2;
            assert!(good, "{name}: {fine:e} by a step of 2^-28, {coarse:e} by one of {STEP}");

            let mut short = scene.clone();
            of(&mut short, i).remove(0).pop();
            let error = cpu::run::<f64>(&short, Form::Nchw, Pass::Forward).expect_err("one too few");
            assert!(
                matches!(error, Error::LevelLength { tensor, .. } | Error::LevelTensors { tensor, .. } if tensor == name),
                "{error}"
            );
        }
    }
    assert_eq!(seen, [true; BESIDE + 1], "of each of {NAMES:?}");
}
