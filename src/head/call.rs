//! A call of the head loss under construction.

use super::check::{BufferSizes, CallSizes, LevelSizes};
use super::{Gradients, HeadLoss, Level, Logits, Points, cpu};
use crate::call::check_options;
use crate::element::{Element, is_one_type};
use crate::error::{Result, check_option};
use crate::memory::{Host, Memory};
use crate::reduction::Reduction;
use crate::status::Status;

/// What calls of the head loss take besides, in each memory.
pub trait HeadMemory: Memory {
    /// Memory to work in.
    type Workspace<'a>;
    /// What is known beforehand of what to divide by.
    type Normalisers: Default;
}

impl HeadMemory for Host {
    type Workspace<'a> = ();
    type Normalisers = Option<Normalisers>;
}

/// The head loss, the levels of the pyramid and the options; `forward` or `forward_backward` run
/// it. Made by [`HeadLoss::cpu`] and `HeadLoss::cuda`.
#[must_use = "a call does nothing until forward or forward_backward"]
pub struct HeadCall<'a, 'l, M: HeadMemory, T: Element, U: Element = T> {
    pub(super) head: &'a HeadLoss,
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "a CPU call has none"))]
    pub(super) backend: M::Backend<'a>,
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "a CPU call has none"))]
    pub(super) workspace: M::Workspace<'a>,
    pub(super) batch: usize,
    pub(super) classes: usize,
    pub(super) levels: &'a [Level<'l, M, T, U>],
    pub(super) class_weights: Option<M::Slice<'a, f32>>,
    pub(super) normalisers: M::Normalisers,
    pub(super) grad_scale: M::Scalar<'a>,
    pub(super) found_inf: Option<M::SliceMut<'a, f32>>,
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "a CPU call returns it"))]
    pub(super) status: M::StatusOut<'a>,
}

/// What the sums of the losses are divided by, before a [`Normaliser`](super::Normaliser) makes
/// the best of it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Normalisers {
    /// The number of positives, as the policy counts them.
    pub positives: f64,
    /// The sum of their box weights, Σv.
    pub box_weights: f64,
}

impl<'a, 'l, M: HeadMemory, T: Element, U: Element> HeadCall<'a, 'l, M, T, U> {
    pub(super) fn new(
        head: &'a HeadLoss,
        backend: M::Backend<'a>,
        workspace: M::Workspace<'a>,
        batch: usize,
        classes: usize,
        levels: &'a [Level<'l, M, T, U>],
    ) -> Self {
        HeadCall {
            head,
            backend,
            workspace,
            batch,
            classes,
            levels,
            class_weights: None,
            normalisers: M::Normalisers::default(),
            grad_scale: M::Scalar::from(1.0),
            found_inf: None,
            status: M::StatusOut::default(),
        }
    }

    /// What the gradients are multiplied by, before they are rounded to the storage type: the
    /// upstream gradient of the sum of all losses, a loss scale, or their product. The default is 1.
    pub fn grad_scale(mut self, scale: impl Into<M::Scalar<'a>>) -> Self {
        self.grad_scale = scale.into();
        self
    }
}

impl HeadLoss {
    /// A call on the CPU.
    ///
    /// Rows of the status are anchors, counted level after level, image after image.
    pub fn cpu<'a, 'l, T: Element, U: Element>(
        &'a self,
        batch: usize,
        classes: usize,
        levels: &'a [Level<'l, Host, T, U>],
    ) -> HeadCall<'a, 'l, Host, T, U> {
        HeadCall::new(self, (), (), batch, classes, levels)
    }
}

impl<'a, T: Element, U: Element> HeadCall<'a, '_, Host, T, U> {
    /// Weights of the classes in the classification loss, `[C]`; 0 masks a class, whatever its logits
    /// hold. The default is all ones.
    pub fn class_weights(mut self, weights: &'a [f32]) -> Self {
        self.class_weights = Some(weights);
        self
    }

    /// A flag, `[1]`, that is set to 1 if a stored gradient is inf or NaN, and is otherwise left
    /// as it is.
    pub fn found_inf(mut self, found_inf: &'a mut [f32]) -> Self {
        self.found_inf = Some(found_inf);
        self
    }

    /// What to divide by, in place of what this process alone gives: the mean over all processes
    /// of their [`normalisers`](Self::normalisers).
    ///
    /// Both must be finite and 0 or more, except that a Σv that is NaN, as a NaN logit makes it, is
    /// let through.
    pub fn normalised_by(mut self, normalisers: Normalisers) -> Self {
        self.normalisers = Some(normalisers);
        self
    }

    /// Phase one alone: what the sums are divided by.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn normalisers(self) -> Result<Normalisers> {
        self.check(None, None)?;
        Ok(cpu::normalisers(&self))
    }

    /// The losses, `[levels, 3]`: classification, box and distribution loss of each level, whose
    /// sum is the loss.
    ///
    /// # Errors
    /// If a length does not fit a shape, a layout does not fit a buffer, or an option is outside
    /// its range.
    pub fn forward(self, losses: &mut [T::Loss]) -> Result<Status> {
        self.check(Some(losses), None)?;
        Ok(cpu::run(self, losses, None))
    }

    /// The losses and the gradients of both outputs, with `gradients` in the order of the levels.
    ///
    /// # Errors
    /// As [`forward`](Self::forward), and if places in a gradient overlap.
    pub fn forward_backward(
        self,
        losses: &mut [T::Loss],
        gradients: &mut [Gradients<'_, Host, T, U>],
    ) -> Result<Status> {
        self.check(Some(losses), Some(gradients))?;
        Ok(cpu::run(self, losses, Some(gradients)))
    }

    fn check(&self, losses: Option<&[T::Loss]>, gradients: Option<&[Gradients<Host, T, U>]>) -> Result<()> {
        let level_sizes = |(i, level)| level_sizes(level, gradients.and_then(|gradients| gradients.get(i)));
        let sizes: Vec<_> = self.levels.iter().enumerate().map(level_sizes).collect();
        if let Some(Normalisers { positives, box_weights }) = self.normalisers {
            let (rule, weights) =
                ("a finite number, 0 or more", if box_weights.is_nan() { 0.0 } else { box_weights });
            check_option("the number of positives", positives, rule, positives >= 0.0)?;
            check_option("the sum of box weights", weights, rule, weights >= 0.0)?;
        }
        check_options(&Reduction::<f64>::Sum, false, Some(self.grad_scale))?;
        let call = CallSizes {
            batch: self.batch,
            classes: self.classes,
            one_type: is_one_type::<T, U>(),
            class_weights: self.class_weights.map(<[_]>::len),
            losses: losses.map(<[_]>::len),
            gradients: gradients.map(<[_]>::len),
            found_inf: self.found_inf.as_deref().map_or(1, <[_]>::len),
        };
        self.head.check(&call, &sizes)
    }
}

fn level_sizes<T: Element, U: Element>(
    level: &Level<Host, T, U>,
    gradients: Option<&Gradients<Host, T, U>>,
) -> LevelSizes {
    let targets = &level.targets;
    LevelSizes {
        height: level.height,
        width: level.width,
        stride: level.stride,
        points: match level.points {
            Points::Grid { offset } => Ok(offset),
            Points::Explicit(points) => Err(points.len()),
        },
        logits: match level.logits {
            Logits::Separate { cls, boxes } => BufferSizes::Separate { cls: cls.len(), boxes: boxes.len() },
            Logits::Joint(both) => BufferSizes::Joint(both.len()),
        },
        cls_layout: level.cls_layout,
        box_layout: level.box_layout,
        labels: targets.labels.len(),
        label_weights: targets.label_weights.map(<[_]>::len),
        boxes: targets.boxes.len(),
        quality: targets.quality.map(<[_]>::len),
        box_weights: targets.box_weights.map(<[_]>::len),
        box_scores: targets.box_scores.map(<[_]>::len),
        scores: targets.scores.map(<[_]>::len),
        element_weights: targets.element_weights.map(<[_]>::len),
        gradients: gradients.map(|gradients| match gradients {
            Gradients::Separate { cls, boxes } => {
                BufferSizes::Separate { cls: cls.len(), boxes: boxes.len() }
            }
            Gradients::Joint(both) => BufferSizes::Joint(both.len()),
        }),
    }
}
