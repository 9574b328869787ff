//! Runs a scene on the CPU.

use gfocal::head::{Gradients, Level, Logits, Normalisers, Points, Targets};
use gfocal::{Element, Host, Result};

use super::super::case::Pass;
use super::super::cpu::narrowed;
use super::super::tolerance::Stored;
use super::{Buffers, FLAG_BEFORE, Form, GRAD_BEFORE, Outcome, PointsAt, Scene};

/// Lets `run` work on the levels of a scene.
pub fn with_levels<T: Stored, R>(scene: &Scene, form: Form, run: impl FnOnce(&[Level<Host, T>]) -> R) -> R {
    let logits: Vec<Buffers<T>> =
        scene.levels.iter().map(|level| Buffers::logits(scene, level, form)).collect();
    let narrow: Vec<Vec<i32>> = scene
        .levels
        .iter()
        .map(|level| if scene.narrow { narrowed(&level.labels) } else { vec![] })
        .collect();
    let parts = scene.levels.iter().zip(&logits).zip(&narrow);
    let levels: Vec<Level<Host, T>> = parts
        .map(|((level, logits), narrow)| -> Level<Host, T> {
            Level {
                height: level.height,
                width: level.width,
                stride: level.stride,
                points: match &level.points {
                    PointsAt::Grid(offset) => Points::Grid { offset: *offset },
                    PointsAt::Explicit(points) => Points::Explicit(&points[..]),
                },
                logits: match &logits.buffers[..] {
                    [both] => Logits::Joint(&both[..]),
                    [cls, boxes] => Logits::Separate { cls, boxes },
                    _ => unreachable!("one or two"),
                },
                cls_layout: logits.placement.cls,
                box_layout: logits.placement.boxes,
                targets: Targets {
                    label_weights: level.label_weights.as_deref(),
                    quality: level.quality.as_deref(),
                    ..Targets::new(
                        if scene.narrow { narrow[..].into() } else { level.labels[..].into() },
                        &level.box_targets[..],
                    )
                },
            }
        })
        .collect();
    run(&levels)
}

pub fn run<T: Stored>(scene: &Scene, form: Form, pass: Pass) -> Result<Outcome<T>> {
    let head = scene.settings.head()?;
    let mut losses = vec![T::Loss::from_f64(f64::NAN); 3 * scene.levels.len()];
    let mut grads: Vec<Buffers<T>> =
        scene.levels.iter().map(|level| Buffers::filled(scene, level, form, GRAD_BEFORE)).collect();
    let mut flag = [FLAG_BEFORE];
    let status = with_levels(scene, form, |levels| {
        let call = head.cpu(scene.batch, scene.classes, levels);
        let call = call.grad_scale(scene.grad_scale).found_inf(&mut flag);
        let call = match scene.normalisers {
            Some(normalisers) => call.normalised_by(normalisers),
            None => call,
        };
        if pass == Pass::Forward {
            return call.forward(&mut losses);
        }
        let mut gradients: Vec<_> = grads
            .iter_mut()
            .map(|grads| -> Gradients<Host, T> {
                match &mut grads.buffers[..] {
                    [both] => Gradients::Joint(&mut both[..]),
                    [cls, boxes] => Gradients::Separate { cls, boxes },
                    _ => unreachable!("one or two"),
                }
            })
            .collect();
        call.forward_backward(&mut losses, &mut gradients)
    })?;
    let grads = if pass == Pass::Forward { vec![] } else { grads };
    let grads = grads.iter().map(|grads| grads.read(GRAD_BEFORE)).collect();
    Ok(Outcome { losses, grads, status, found_inf: flag[0] })
}

/// Phase one.
pub fn normalisers<T: Stored>(scene: &Scene, form: Form) -> Result<Normalisers> {
    let head = scene.settings.head()?;
    with_levels::<T, _>(scene, form, |levels| head.cpu(scene.batch, scene.classes, levels).normalisers())
}
