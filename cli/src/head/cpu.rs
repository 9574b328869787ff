//! On the CPU.

use gfocal::head::{Gradients, LOSSES, Level, Logits, Targets};
use gfocal::{Element, Host, Result};

use super::Outcome;
use super::scene::{Pair, Scene, Tensor};
use super::targets::{LevelTargets, TargetOptions};
use crate::floats::{Float, Floats, numbers};
use crate::inputs::Labels;

/// `_` tells the types of class and box logits.
pub fn run<T, U>(
    _: (&[T], &[U]),
    scene: &Scene,
    logits: &[&Pair<Tensor>],
    targets: Vec<LevelTargets>,
    grad_scale: f64,
) -> Result<Outcome>
where
    T: Float + Element<Loss: Float>,
    U: Float,
{
    let points: Vec<Vec<T::Loss>> = scene.places.iter().map(|place| numbers(&place.points())).collect();
    let beside: Vec<Beside<T::Loss>> = targets.iter().map(Beside::of).collect();
    let mut levels: Vec<Level<Host, T, U>> = Vec::new();
    for (i, (place, level)) in scene.places.iter().zip(&scene.levels).enumerate() {
        levels.push(Level {
            height: place.height,
            width: place.width,
            stride: place.stride,
            points: place.points_in(points[i].as_slice()),
            logits: match logits[i] {
                Pair::Separate([cls, boxes]) => {
                    Logits::Separate { cls: T::of(&cls.numbers), boxes: U::of(&boxes.numbers) }
                }
                Pair::Joint(both) => Logits::Joint(T::of(&both.numbers)),
            },
            cls_layout: level.cls_layout,
            box_layout: level.box_layout,
            targets: beside[i].targets(),
        });
    }
    let mut gradients: Vec<Buffers<T, U>> = logits.iter().map(|&logits| Buffers::of(logits)).collect();
    let mut losses = vec![T::Loss::from_f64(0.0); LOSSES * levels.len()];
    let class_weights: Option<Vec<T::Loss>> = scene.class_weights.as_deref().map(numbers);
    let call = || {
        let call = scene.head.cpu(scene.batch, scene.classes, &levels);
        match &class_weights {
            Some(weights) => call.class_weights(weights),
            None => call,
        }
    };
    let normalisers = call().normalisers()?;
    let mut into: Vec<_> = gradients.iter_mut().map(Buffers::gradients).collect();
    let status =
        call().grad_scale(grad_scale).normalised_by(normalisers).forward_backward(&mut losses, &mut into)?;
    drop(into);
    let gradients = gradients.into_iter().map(Buffers::floats).collect();
    Ok(Outcome { losses: Float::floats(losses), gradients, normalisers, status, targets })
}

/// Gradients of a level.
enum Buffers<T, U> {
    Separate(Vec<T>, Vec<U>),
    Joint(Vec<T>),
}

impl<T: Float, U: Float> Buffers<T, U> {
    fn of(logits: &Pair<Tensor>) -> Self {
        fn zeros<T: Float>(numbers: &Floats) -> Vec<T> {
            vec![T::from_f64(0.0); T::of(numbers).len()]
        }
        match logits {
            Pair::Separate([cls, boxes]) => Buffers::Separate(zeros(&cls.numbers), zeros(&boxes.numbers)),
            Pair::Joint(both) => Buffers::Joint(zeros(&both.numbers)),
        }
    }

    fn gradients(&mut self) -> Gradients<'_, Host, T, U> {
        match self {
            Buffers::Separate(cls, boxes) => Gradients::Separate { cls, boxes },
            Buffers::Joint(both) => Gradients::Joint(both.as_mut_slice()),
        }
    }

    fn floats(self) -> Pair<Floats> {
        match self {
            Buffers::Separate(cls, boxes) => Pair::Separate([Float::floats(cls), Float::floats(boxes)]),
            Buffers::Joint(both) => Pair::Joint(Float::floats(both)),
        }
    }
}

/// The targets of a level in the type that the library takes.
struct Beside<'a, W> {
    labels: &'a Labels,
    boxes: Vec<W>,
    options: TargetOptions<Vec<W>>,
}

impl<'a, W: Element> Beside<'a, W> {
    fn of(targets: &'a LevelTargets) -> Self {
        let options = targets.options.map(|option| numbers(option));
        Beside { labels: &targets.labels, boxes: numbers(&targets.boxes), options }
    }

    fn targets(&self) -> Targets<'_, Host, W> {
        let labels = match self.labels {
            Labels::I64(labels) => gfocal::Label::host(labels),
            Labels::I32(labels) => gfocal::Label::host(labels),
        };
        let options = self.options.map(Vec::as_slice);
        let TargetOptions { label_weights, quality, box_weights, box_scores, scores, element_weights } =
            options;
        Targets {
            label_weights,
            quality,
            box_weights,
            box_scores,
            scores,
            element_weights,
            ..Targets::new(labels, self.boxes.as_slice())
        }
    }
}
