//! A call of the head loss under construction.

use super::check::{CallSizes, LevelSizes};
use super::{Gradients, HeadLoss, Layouts, Level, cpu};
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

/// The head loss, the levels of the pyramid and the options; `forward`, `forward_backward` or
/// `backward` run it. Made by [`HeadLoss::cpu`] and `HeadLoss::cuda`.
#[must_use = "a call does nothing until forward, forward_backward or backward"]
pub struct HeadCall<'a, 'l, M: HeadMemory, T: Element, U: Element = T> {
    pub(super) head: &'a HeadLoss,
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "a CPU call has none"))]
    pub(super) backend: M::Backend<'a>,
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "a CPU call has none"))]
    pub(super) workspace: M::Workspace<'a>,
    pub(super) batch: usize,
    pub(super) classes: usize,
    pub(super) levels: &'a [Level<'l, M, T, U>],
    pub(super) class_weights: Option<M::Slice<'a, T::Loss>>,
    pub(super) normalisers: M::Normalisers,
    pub(super) gradient_layouts: Option<&'a [Layouts]>,
    pub(super) upstream: Option<M::Slice<'a, T::Loss>>,
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
            gradient_layouts: None,
            upstream: None,
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

    /// Layouts of the gradients, level by level, in place of those of the logits: contiguous gradients
    /// of logits that are a part of something larger, say. They may be joint then where the logits are
    /// not, and the other way round.
    pub fn gradient_layouts(mut self, layouts: &'a [Layouts]) -> Self {
        self.gradient_layouts = Some(layouts);
        self
    }

    /// Where the gradients of a level are.
    pub(super) fn layouts_of_gradients(&self, level: usize) -> Layouts {
        let of_logits = Layouts { cls: self.levels[level].cls_layout, boxes: self.levels[level].box_layout };
        self.gradient_layouts.map_or(of_logits, |layouts| layouts[level])
    }

    /// Compares what is of a size. `labels`: how many a level has.
    pub(super) fn check_sizes(
        &self,
        labels: impl Fn(&M::Labels<'l>) -> usize,
        losses: Option<usize>,
        gradients: Option<&[Gradients<'_, M, T, U>]>,
    ) -> Result<()> {
        let of_level = |(i, level): (usize, &Level<'l, M, T, U>)| {
            LevelSizes::new(i, level, labels(&level.targets.labels), gradients, self.gradient_layouts)
        };
        let sizes = self.levels.iter().enumerate().map(of_level).collect::<Result<Vec<_>>>()?;
        let call = CallSizes {
            batch: self.batch,
            classes: self.classes,
            one_type: is_one_type::<T, U>(),
            class_weights: self.class_weights.as_ref().map(M::len),
            losses,
            upstream: self.upstream.as_ref().map(M::len),
            gradients: gradients.map(<[_]>::len),
            gradient_layouts: self.gradient_layouts.map(<[_]>::len),
            found_inf: self.found_inf.as_ref().map_or(1, M::len_mut),
        };
        self.head.check(&call, &sizes)
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
    pub fn class_weights(mut self, weights: &'a [T::Loss]) -> Self {
        self.class_weights = Some(weights);
        self
    }

    /// Gradients with respect to the losses, `[levels, 3]`, which multiply those of the logits, as
    /// [`grad_scale`](Self::grad_scale) does. The default is all ones: the gradient of the sum of
    /// all losses.
    pub fn upstream(mut self, upstream: &'a [T::Loss]) -> Self {
        self.upstream = Some(upstream);
        self
    }

    /// A flag, `[1]`, that is set to 1 if a stored gradient is inf or NaN, and is otherwise left
    /// as it is.
    pub fn found_inf(mut self, found_inf: &'a mut [f32]) -> Self {
        self.found_inf = Some(found_inf);
        self
    }

    /// What to divide by, in place of what this process alone gives: the mean over all processes
    /// of their [`normalisers`](Self::normalisers), or what [`forward`](Self::forward) was given.
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
        Ok(cpu::run(self, Some(losses), None))
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
        Ok(cpu::run(self, Some(losses), Some(gradients)))
    }

    /// The gradients alone, those of [`forward_backward`](Self::forward_backward) to the bit: for the
    /// backward pass of a framework, which knows the [`upstream`](Self::upstream) gradients by then.
    /// The status is that of the forward pass once more.
    ///
    /// ```
    /// # use gfocal::Host;
    /// # use gfocal::head::{Gradients, HeadLoss, Layout, Level, Logits, Points, Targets};
    /// # let head = HeadLoss::mmdetection().with_bins(2)?;
    /// # let (cls, boxes) = ([0.0f32], [0.0f32; 8]);
    /// # let levels: [Level<Host, f32>; 1] = [Level {
    /// #     height: 1,
    /// #     width: 1,
    /// #     stride: 8.0,
    /// #     points: Points::Grid { offset: 0.5 },
    /// #     logits: Logits::Separate { cls: &cls, boxes: &boxes },
    /// #     cls_layout: Layout::nchw(1, 1),
    /// #     box_layout: Layout::nchw(head.box_channels(), 1),
    /// #     targets: Targets::<Host>::new([0i64][..].into(), &[0.0, 0.0, 4.0, 4.0]),
    /// # }];
    /// # let (mut losses, mut cls_grad, mut box_grad) = ([0.0f32; 3], [0.0f32], [0.0f32; 8]);
    /// # let gradients: Gradients<Host, f32> = Gradients::Separate { cls: &mut cls_grad, boxes: &mut box_grad };
    /// # let mut gradients = [gradients];
    /// let normalisers = head.cpu(1, 1, &levels).normalisers()?; // to be kept; an all-reduce may average them
    /// head.cpu(1, 1, &levels).normalised_by(normalisers).forward(&mut losses)?;
    /// // Later, when the gradients with respect to the losses have come: the box loss of this level counts twice.
    /// let upstream = [1.0, 2.0, 1.0];
    /// head.cpu(1, 1, &levels).normalised_by(normalisers).upstream(&upstream).backward(&mut gradients)?;
    /// # Ok::<(), gfocal::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`forward_backward`](Self::forward_backward).
    pub fn backward(self, gradients: &mut [Gradients<'_, Host, T, U>]) -> Result<Status> {
        self.check(None, Some(gradients))?;
        Ok(cpu::run(self, None, Some(gradients)))
    }

    fn check(&self, losses: Option<&[T::Loss]>, gradients: Option<&[Gradients<Host, T, U>]>) -> Result<()> {
        if let Some(Normalisers { positives, box_weights }) = self.normalisers {
            let (rule, weights) =
                ("a finite number, 0 or more", if box_weights.is_nan() { 0.0 } else { box_weights });
            check_option("the number of positives", positives, rule, positives >= 0.0)?;
            check_option("the sum of box weights", weights, rule, weights >= 0.0)?;
        }
        check_options(&Reduction::<f64>::Sum, false, Some(self.grad_scale))?;
        self.check_sizes(|labels| labels.len(), losses.map(<[_]>::len), gradients)
    }
}
