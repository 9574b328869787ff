//! On the CPU.

use gfocal::head::{Gradients, LOSSES, Level, Logits, Points, Targets};
use gfocal::{Element, Host, Result};

use super::Outcome;
use super::scene::{LevelTargets, Scene};
use crate::floats::{Float, Floats};
use crate::inputs::Labels;

/// `_` tells the type of the logits.
pub fn run<T>(_: &[T], scene: &Scene, targets: Vec<LevelTargets>, grad_scale: f64) -> Result<Outcome>
where
    T: Float + Element<Loss: Float>,
{
    let points = scene.points();
    let levels: Vec<Level<Host, T>> = (scene.levels.iter().zip(&targets).zip(&points))
        .map(|((level, targets), points)| Level {
            height: level.height,
            width: level.width,
            stride: level.stride,
            points: match level.offset() {
                Some(offset) => Points::Grid { offset },
                None => Points::Explicit(points.as_slice()),
            },
            logits: Logits::Separate { cls: T::of(&level.cls.numbers), boxes: T::of(&level.boxes.numbers) },
            cls_layout: level.cls.layout,
            box_layout: level.boxes.layout,
            targets: Targets {
                label_weights: targets.label_weights.as_deref(),
                quality: targets.quality.as_deref(),
                ..Targets::new(
                    match &targets.labels {
                        Labels::I64(labels) => gfocal::Label::host(labels),
                        Labels::I32(labels) => gfocal::Label::host(labels),
                    },
                    targets.boxes.as_slice(),
                )
            },
        })
        .collect();
    let zeros = |numbers: &Floats| vec![T::from_f64(0.0); T::of(numbers).len()];
    let mut gradients: Vec<[Vec<T>; 2]> =
        (scene.levels.iter()).map(|level| [zeros(&level.cls.numbers), zeros(&level.boxes.numbers)]).collect();
    let mut losses = vec![T::Loss::from_f64(0.0); LOSSES * levels.len()];
    let call = || scene.head.cpu(scene.batch, scene.classes, &levels);
    let normalisers = call().normalisers()?;
    let mut into: Vec<_> = (gradients.iter_mut())
        .map(|[cls, boxes]| Gradients::Separate { cls: cls.as_mut_slice(), boxes: boxes.as_mut_slice() })
        .collect();
    let status =
        call().grad_scale(grad_scale).normalised_by(normalisers).forward_backward(&mut losses, &mut into)?;
    drop(into);
    let gradients = gradients.into_iter().map(|gradients| gradients.map(Float::floats)).collect();
    Ok(Outcome { losses: Float::floats(losses), gradients, normalisers, status, targets })
}
