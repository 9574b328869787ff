//! Runs a scene on the CPU.

use gfocal::head::{Gradients, HeadCall, HeadLoss, Level, Logits, Normalisers, Points, Targets};
use gfocal::{Element, Host, Result};

use super::super::case::Pass;
use super::super::cpu::narrowed;
use super::super::tolerance::Stored;
use super::{BESIDE, POINTS, as_stored};
use super::{Buffers, FLAG_BEFORE, Form, GRAD_BEFORE, LevelScene, Mixed, Outcome, PointsAt, Scene};

/// Lets `run` work on the levels of a scene.
pub fn with_levels<T: Stored, U: Stored, R>(
    scene: &Scene,
    form: Form,
    run: impl FnOnce(&[Level<Host, T, U>]) -> R,
) -> R {
    let logits: Vec<Buffers<T, U>> =
        scene.levels.iter().map(|level| Buffers::logits(scene, level, form)).collect();
    let narrow: Vec<Vec<i32>> = scene
        .levels
        .iter()
        .map(|level| if scene.narrow { narrowed(&level.labels) } else { vec![] })
        .collect();
    let beside: Vec<_> = scene.levels.iter().map(LevelScene::beside).collect();
    let parts = scene.levels.iter().zip(&logits).zip(narrow.iter().zip(&beside));
    let levels: Vec<Level<Host, T, U>> = parts
        .map(|((level, logits), (narrow, beside))| -> Level<Host, T, U> {
            Level {
                height: level.height,
                width: level.width,
                stride: level.stride,
                points: match (&level.points, &beside[POINTS]) {
                    (PointsAt::Grid(offset), _) => Points::Grid { offset: *offset },
                    (_, points) => Points::Explicit(points.as_deref().expect("points")),
                },
                logits: match &logits.boxes {
                    None => Logits::Joint(&logits.cls[..]),
                    Some(boxes) => Logits::Separate { cls: &logits.cls, boxes },
                },
                cls_layout: logits.placement.cls,
                box_layout: logits.placement.boxes,
                targets: targets(level, beside, scene.narrow.then_some(narrow)),
            }
        })
        .collect();
    run(&levels)
}

fn call<'a, 'l, T: Stored, U: Stored>(
    head: &'a HeadLoss,
    scene: &'a Scene,
    class_weights: &'a Option<Vec<T::Loss>>,
    levels: &'a [Level<'l, Host, T, U>],
) -> HeadCall<'a, 'l, Host, T, U> {
    let call = head.cpu(scene.batch, scene.classes, levels);
    match class_weights {
        Some(weights) => call.class_weights(weights),
        None => call,
    }
}

fn targets<'a, W: Element>(
    level: &'a LevelScene,
    beside: &'a [Option<Vec<W>>; BESIDE],
    narrow: Option<&'a Vec<i32>>,
) -> Targets<'a, Host, W> {
    let [boxes, label_weights, quality, box_weights, box_scores, scores, element_weights, _] =
        beside.each_ref().map(|numbers| numbers.as_deref());
    let labels = narrow.map_or(level.labels[..].into(), |narrow| narrow[..].into());
    Targets {
        label_weights,
        quality,
        box_weights,
        box_scores,
        scores,
        element_weights,
        ..Targets::new(labels, boxes.expect("box targets"))
    }
}

pub fn run<T: Stored>(scene: &Scene, form: Form, pass: Pass) -> Result<Outcome<T>> {
    run_mixed::<T, T>(scene, form, pass).map(Outcome::from)
}

pub fn run_mixed<T: Stored, U: Stored>(scene: &Scene, form: Form, pass: Pass) -> Result<Mixed<T, U>> {
    let head = scene.settings.head()?;
    let losses = if pass == Pass::Backward { 0 } else { 3 * scene.levels.len() };
    let mut losses = vec![T::Loss::from_f64(f64::NAN); losses];
    let [upstream, class_weights] =
        [&scene.upstream, &scene.class_weights].map(|numbers| numbers.as_deref().map(as_stored));
    let mut grads: Vec<Buffers<T, U>> = scene
        .levels
        .iter()
        .map(|level| Buffers::filled(scene, level, scene.gradients(form), GRAD_BEFORE))
        .collect();
    let layouts = scene.gradient_layouts();
    let mut flag = [FLAG_BEFORE];
    let status = with_levels(scene, form, |levels| {
        let call =
            call(&head, scene, &class_weights, levels).grad_scale(scene.grad_scale).found_inf(&mut flag);
        let call = match &layouts {
            Some(layouts) => call.gradient_layouts(layouts),
            None => call,
        };
        let call = match &upstream {
            Some(upstream) => call.upstream(upstream),
            None => call,
        };
        let call = match scene.normalisers {
            Some(normalisers) => call.normalised_by(normalisers),
            None => call,
        };
        if pass == Pass::Forward {
            return call.forward(&mut losses);
        }
        let mut gradients: Vec<_> = grads
            .iter_mut()
            .map(|Buffers { cls, boxes, .. }| -> Gradients<Host, T, U> {
                match boxes {
                    None => Gradients::Joint(&mut cls[..]),
                    Some(boxes) => Gradients::Separate { cls, boxes },
                }
            })
            .collect();
        match pass {
            Pass::Backward => call.backward(&mut gradients),
            _ => call.forward_backward(&mut losses, &mut gradients),
        }
    })?;
    let grads = if pass == Pass::Forward { vec![] } else { grads };
    let grads = grads.iter().map(|grads| grads.read(GRAD_BEFORE)).collect();
    Ok(Mixed { losses, grads, status, found_inf: flag[0] })
}

/// Phase one.
pub fn normalisers<T: Stored>(scene: &Scene, form: Form) -> Result<Normalisers> {
    let head = scene.settings.head()?;
    let class_weights = scene.class_weights.as_deref().map(as_stored);
    with_levels::<T, T, _>(scene, form, |levels| call(&head, scene, &class_weights, levels).normalisers())
}
