//! Shows that what is assigned is what the head loss takes: labels, box targets and label weights without a copy,
//! in both conventions of the background; and that reported batches (tests/reports) have the right losses and
//! gradients then, mmdetection's in f64, in every storage type, f64 too, and on both backends.

use gfocal::{Background, bf16, f16};
use support::assign::{Rules, on_cpu, report};
use support::gpu::{Gpu, OnDevice, gpu};
use support::head::scenes::Recipe;
use support::head::{self, Form, PointsAt, Profile, Scene, Settings};
use support::random::Random;
use support::vectors::Vectors;
use support::{Pass, Stored};

/// A report's step of the head, with the targets that an assignment finds.
fn step(name: &str, scale: f32, rules: &Rules) -> (Scene, Vectors) {
    let (levels, mut truth, vectors) = report(name, scale);
    if rules.background == Background::First {
        truth.labels.iter_mut().for_each(|label| *label += 1);
    }
    let assigned = on_cpu::<i64>(rules, &levels, &truth).expect("a legal call");
    let shape = |i: usize| vectors.shape(&format!("level{i}.cls_logits"));
    let bins = vectors.shape("level0.box_logits")[1] / 4;
    let settings = Settings { bins, background: rules.background, ..Settings::of(Profile::Mmdetection) };
    let sizes =
        (0..levels.len()).map(|i| (shape(i)[2], shape(i)[3], f64::from(levels[i].stride()))).collect();
    let recipe = Recipe { batch: truth.images, classes: truth.classes, sizes, ..Recipe::new(settings) };
    let mut scene = recipe.scene(&mut Random::new(1));
    (scene.narrow, scene.grad_scale) = (false, 1.0);
    for (i, (level, assigned)) in scene.levels.iter_mut().zip(assigned.levels).enumerate() {
        let f64s = |numbers: Vec<f32>| -> Vec<f64> { numbers.into_iter().map(f64::from).collect() };
        let logits = |kind: &str| f64s(vectors.f32s(&format!("level{i}.{kind}")));
        (level.cls, level.boxes) = (logits("cls_logits"), logits("box_logits"));
        (level.labels, level.box_targets) = (assigned.labels, f64s(assigned.box_targets));
        (level.label_weights, level.quality) = (Some(f64s(assigned.label_weights)), None);
        level.points = PointsAt::Grid(0.0);
    }
    (scene, vectors)
}

/// On both backends, against the reference for the logits as they are stored.
fn check<T: OnDevice + Stored>(what: &str, gpu: &Option<Gpu>, scene: &Scene) -> head::Outcome<T> {
    let (pass, want) = (Pass::ForwardBackward, head::expect(&scene.stored_as::<T>()));
    let got = head::cpu::run::<T>(scene, Form::Nchw, pass).expect("a legal call");
    head::check(what, pass, &got, &want);
    if let Some(gpu) = gpu {
        let got = head::cuda::run::<T>(gpu, scene, Form::Nchw, 0, pass).expect("a legal call");
        head::check(what, pass, &got, &want);
    }
    got
}

#[test]
fn reported_batches_in_both_conventions() {
    let gpu = gpu();
    for (name, scale, ignore_iof) in [("padded_batch", 8.0, -1.0), ("ignore_boxes", 4.0, 0.5)] {
        let mut gradients = Vec::new();
        for background in [Background::Last, Background::First] {
            let rules = Rules::atss(9).ignoring(ignore_iof).background(background);
            let (scene, vectors) = step(name, scale, &rules);
            let what = format!("{name}, {background:?}");
            check::<f16>(&what, &gpu, &scene);
            check::<bf16>(&what, &gpu, &scene);
            let got = check::<f32>(&what, &gpu, &scene);
            let in_f64 =
                head::cpu::run::<f64>(&scene, Form::Nchw, Pass::ForwardBackward).expect("a legal call");
            head::check(&what, Pass::ForwardBackward, &in_f64, &head::expect(&scene));

            let number = |value: &serde_json::Value| value.as_f64().expect("a number");
            let near = |got: f32, want: f64| (f64::from(got) - want).abs() <= 1e-5 * want.abs() + 2e-7;
            for (i, losses) in got.losses.as_chunks::<3>().0.iter().enumerate() {
                for (kind, &loss) in ["loss_cls", "loss_bbox", "loss_dfl"].into_iter().zip(losses) {
                    assert!(near(loss, number(&vectors.expect[kind][i])), "{what}, level {i}: {kind} {loss}");
                }
                for (kind, grads) in ["cls", "box"].into_iter().zip(&got.grads[i]) {
                    let want = vectors.f64s(&format!("want.level{i}.grad_{kind}_logits"));
                    assert_eq!(grads.len(), want.len(), "{what}");
                    let wrong = grads.iter().zip(&want).position(|(&got, &want)| !near(got, want));
                    assert_eq!(wrong, None, "{what}, level {i}: gradient of {kind}");
                }
            }
            let total: f64 = got.losses.iter().map(|&loss| f64::from(loss)).sum();
            assert!((total - number(&vectors.expect["loss"])).abs() <= 1e-5 * total, "{what}: {total}");
            gradients.push(got.grads);
        }
        assert!(gradients[0] == gradients[1], "{name}: both conventions are the same step");
    }
}
