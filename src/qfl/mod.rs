//! Quality Focal Loss.
//!
//! For a logit x with target y, where σ is the sigmoid:
//!
//! ```text
//! QFL(x, y)  = |y − σ(x)|^β · (softplus(x) − x·y)
//! dQFL/dx    = sign(d)·|d|^(β−1) · (d² + β·σ(1−σ)·(softplus(x) − x·y)),   d = σ(x) − y,   0 at d = 0
//! ```
//!
//! (*Generalized Focal Loss*, Li et al., NeurIPS 2020, equation 4; β = 2 there.) The target y is the
//! quality of the row (the IoU of its box) in the column of its label, and 0 in all others. The
//! loss of a row is the sum over its classes.
//!
//! ```
//! use gfocal::{QualityFocalLoss, Reduction};
//!
//! let qfl = QualityFocalLoss::default(); // beta 2, background last
//! let logits = [0.0f32, -2.0, 1.0, -1.0]; // two rows, two classes
//! let labels = [0i64, 2]; // class 0, background
//! let quality = [0.75f32, 0.0];
//!
//! let (mut loss, mut grad) = ([0.0f32], [0.0f32; 4]);
//! qfl.cpu(&logits, [2, 2], &labels, &quality)
//!     .reduction(Reduction::Sum)
//!     .forward_backward(&mut loss, &mut grad)?;
//!
//! // The labelled logit: σ(0) = 0.5 is 0.25 short of its quality, and its cross entropy is ln 2.
//! let (distance, ce) = (-0.25f32, 2f32.ln());
//! assert_eq!(grad[0], distance * (distance * distance + 2.0 * 0.25 * ce));
//! let others = 0.001804 + 0.701869 + 0.022658; // σ² · softplus of the other three
//! assert!((loss[0] - (distance * distance * ce + others)).abs() < 1e-5);
//! # Ok::<(), gfocal::Error>(())
//! ```
//!
//! # Weights of elements
//!
//! Loss and gradient of an element are multiplied by the weight of its row ([`Call::weight`]), of its class
//! ([`Call::class_weights`]) and its own ([`Call::element_weights`]), and with
//! [α](QualityFocalLoss::with_alpha) by y·α + (1−y)(1−α). None of them is in a mean's denominator. Any that is
//! exactly 0 masks: loss 0 and gradient 0, whatever the logit holds.
//!
//! ```
//! use gfocal::{QualityFocalLoss, Reduction};
//!
//! // α of focal loss and binary cross entropy: one positive and two negatives, of which one is masked.
//! let qfl = QualityFocalLoss::new(0.0)?.with_alpha(0.25)?;
//! let (logits, labels, quality) = ([0.0f32, 0.0, f32::NAN], [0i64], [1.0f32]);
//! let (mut loss, mut grad) = ([0.0f32], [0.0f32; 3]);
//! qfl.cpu(&logits, [1, 3], &labels, &quality)
//!     .class_weights(&[2.0, 1.0, 0.0])
//!     .reduction(Reduction::Sum)
//!     .forward_backward(&mut loss, &mut grad)?;
//! assert!((loss[0] - (2.0 * 0.25 + 0.75) * 2f32.ln()).abs() < 1e-6);
//! assert_eq!(grad, [-0.5 * 2.0 * 0.25, 0.5 * 0.75, 0.0]);
//! # Ok::<(), gfocal::Error>(())
//! ```
//!
//! # Probabilities
//!
//! With [`with_activated`](QualityFocalLoss::with_activated) the input is p = σ(x) itself, and the gradient is with
//! respect to p, as in mmdetection's `quality_focal_loss_with_prob`:
//!
//! ```text
//! ce         = −y·log p − (1−y)·log(1−p)              logarithms at least −100
//! QFL(p, y)  = |d|^β · ce                             d = p − y
//! dQFL/dp    = |d|^β · (d / max(p(1−p), 10^−12) + β·ce/d),   0 at d = 0
//! ```
//!
//! The two bounds are those of PyTorch's `binary_cross_entropy`, which refuses p outside [0, 1]; here such a p, or
//! NaN, makes its loss and its gradient NaN.
//!
//! ```
//! use gfocal::{QualityFocalLoss, Reduction};
//!
//! let qfl = QualityFocalLoss::default().with_activated(true);
//! let (probs, labels, quality) = ([0.5f32, 0.25], [0i64], [0.75f32]);
//! let (mut loss, mut grad) = ([0.0f32], [0.0f32; 2]);
//! qfl.cpu(&probs, [1, 2], &labels, &quality)
//!     .reduction(Reduction::Sum)
//!     .forward_backward(&mut loss, &mut grad)?;
//! let (labelled, other) = (2f32.ln(), -0.75f32.ln()); // cross entropies
//! assert!((loss[0] - (0.0625 * labelled + 0.0625 * other)).abs() < 1e-7);
//! assert!((grad[0] - (0.0625 * -0.25 / 0.25 - 2.0 * 0.25 * labelled)).abs() < 1e-6);
//! assert!((grad[1] - (0.0625 * 0.25 / 0.1875 + 2.0 * 0.25 * other)).abs() < 1e-6);
//! # Ok::<(), gfocal::Error>(())
//! ```

pub(crate) mod cpu;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
mod factors;
#[cfg(feature = "cuda")]
pub(crate) mod launch;

use crate::call::{Call, Lengths, Operation, check_lengths, check_options};
use crate::element::{Element, Label, Sealed};
use crate::error::{Result, check_option};
use crate::memory::{Host, Memory};
use crate::status::Status;

/// Which label means background.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Background {
    /// Classes are 0..C; C and every negative label are background (mmdetection 2 and newer).
    #[default]
    Last,
    /// 0 is background; the classes are 1..=C (the paper's code).
    First,
}

/// Quality Focal Loss with its options; see [the module](self) for the formula.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QualityFocalLoss {
    pub(crate) beta: f64,
    pub(crate) loss_weight: f64,
    pub(crate) background: Background,
    pub(crate) ignore_label: Option<i64>,
    pub(crate) alpha: Option<f64>,
    pub(crate) activated: bool,
}

impl Default for QualityFocalLoss {
    /// β = 2, loss weight 1, [`Background::Last`], no ignore label, no α, logits: mmdetection's defaults.
    fn default() -> Self {
        QualityFocalLoss {
            beta: 2.0,
            loss_weight: 1.0,
            background: Background::Last,
            ignore_label: None,
            alpha: None,
            activated: false,
        }
    }
}

impl QualityFocalLoss {
    /// The loss with another β, the exponent of the modulating factor. The fastest are 2, and 0, which is
    /// binary cross entropy.
    ///
    /// # Errors
    /// β must be from 0 to 10^6.
    pub fn new(beta: f64) -> Result<Self> {
        check_option("beta", beta, "from 0 to 10^6", (0.0..=1e6).contains(&beta))?;
        Ok(QualityFocalLoss { beta, ..QualityFocalLoss::default() })
    }

    /// What loss and gradient are multiplied by.
    ///
    /// # Errors
    /// The weight must be finite.
    pub fn with_loss_weight(self, loss_weight: f64) -> Result<Self> {
        check_option("loss_weight", loss_weight, "a finite number", true)?;
        Ok(QualityFocalLoss { loss_weight, ..self })
    }

    /// Which label means background.
    #[must_use]
    pub fn with_background(self, background: Background) -> Self {
        QualityFocalLoss { background, ..self }
    }

    /// Rows with this label give loss 0 and gradient 0.
    #[must_use]
    pub fn with_ignore_label(self, label: i64) -> Self {
        QualityFocalLoss { ignore_label: Some(label), ..self }
    }

    /// α of focal loss: an element with target y is multiplied by y·α + (1−y)(1−α), as YOLOv5's `QFocalLoss` has
    /// it. It is off by default, which is not the same as 0.5: that halves everything. A factor of 0 masks the
    /// element, whatever its logit.
    ///
    /// # Errors
    /// α must be from 0 to 1.
    pub fn with_alpha(self, alpha: f64) -> Result<Self> {
        check_option("alpha", alpha, "from 0 to 1", (0.0..=1.0).contains(&alpha))?;
        Ok(QualityFocalLoss { alpha: Some(alpha), ..self })
    }

    /// Whether the input holds probabilities instead of logits: see [the module](self#probabilities). The loss of
    /// logits is exact where a probability, above all a 16-bit one, has no digits left: prefer it.
    #[must_use]
    pub fn with_activated(self, activated: bool) -> Self {
        QualityFocalLoss { activated, ..self }
    }

    /// β.
    pub fn beta(&self) -> f64 {
        self.beta
    }

    /// What loss and gradient are multiplied by.
    pub fn loss_weight(&self) -> f64 {
        self.loss_weight
    }

    /// α, if there is one.
    pub fn alpha(&self) -> Option<f64> {
        self.alpha
    }

    /// Whether the input holds probabilities.
    pub fn activated(&self) -> bool {
        self.activated
    }

    /// The class of a label, of `classes`.
    pub fn class_of(&self, label: i64, classes: usize) -> Class {
        if self.ignore_label == Some(label) {
            return Class::Ignored;
        }
        let (first, background) = match self.background {
            Background::Last => (0, label < 0 || label as u64 == classes as u64),
            Background::First => (1, label == 0),
        };
        // Labels below the first class become larger than any number of classes.
        match label.wrapping_sub(first) as u64 {
            class if class < classes as u64 => Class::Foreground(class as usize),
            _ if background => Class::Background,
            _ => Class::Invalid,
        }
    }

    /// A call on the CPU with a label and a quality for each row.
    ///
    /// `logits` is `[rows, classes]`, row after row; `labels` (i64 or i32) and `quality` are
    /// `[rows]`. The quality is read for rows whose label is a class, and clamped to [0, 1].
    pub fn cpu<'a, T: Element, L: Label>(
        &'a self,
        logits: &'a [T],
        shape: [usize; 2],
        labels: &'a [L],
        quality: &'a [T::Loss],
    ) -> Call<'a, Self, Host, T> {
        let targets: Targets<Host, T> = Targets::Sparse { labels: L::host(labels), quality };
        Call::new(self, (), logits, shape, targets.into())
    }

    /// A call on the CPU with a target for each logit: `[rows, classes]`, clamped to [0, 1]. A
    /// row may have any number of positive targets. A NaN makes its whole row invalid.
    pub fn cpu_dense<'a, T: Element>(
        &'a self,
        logits: &'a [T],
        shape: [usize; 2],
        target: &'a [T::Loss],
    ) -> Call<'a, Self, Host, T> {
        let targets: Targets<Host, T> = Targets::Dense { target };
        Call::new(self, (), logits, shape, targets.into())
    }
}

/// What a label means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// A class, counted from 0.
    Foreground(usize),
    /// The background.
    Background,
    /// The ignore label: no loss.
    Ignored,
    /// None of these: no loss, and counted in the [`Status`].
    Invalid,
}

/// The targets of a call on logits of type `T`.
pub enum Targets<'a, M: Memory, T: Element = f32> {
    /// A label and a quality for each row.
    Sparse {
        /// `[rows]`.
        labels: M::Labels<'a>,
        /// `[rows]`.
        quality: M::Slice<'a, T::Loss>,
    },
    /// A target for each logit.
    Dense {
        /// `[rows, classes]`.
        target: M::Slice<'a, T::Loss>,
    },
}

impl<M: Memory, T: Element> Clone for Targets<'_, M, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<M: Memory, T: Element> Copy for Targets<'_, M, T> {}

/// What a call is given besides its logits: targets, and weights of elements.
pub struct Inputs<'a, M: Memory, T: Element> {
    pub(crate) targets: Targets<'a, M, T>,
    pub(crate) class_weights: Option<M::Slice<'a, T::Loss>>,
    pub(crate) element_weights: Option<M::Slice<'a, T::Loss>>,
}

impl<M: Memory, T: Element> Clone for Inputs<'_, M, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<M: Memory, T: Element> Copy for Inputs<'_, M, T> {}

impl<'a, M: Memory, T: Element> From<Targets<'a, M, T>> for Inputs<'a, M, T> {
    fn from(targets: Targets<'a, M, T>) -> Self {
        Inputs { targets, class_weights: None, element_weights: None }
    }
}

impl<'a, T: Element> Call<'a, QualityFocalLoss, Host, T> {
    /// Weights of the classes, `[classes]`: what the elements of a class are multiplied by, loss and gradient. A
    /// weight of exactly 0 masks its elements, whatever their logits.
    pub fn class_weights(mut self, weights: &'a [T::Loss]) -> Self {
        self.targets.class_weights = Some(weights);
        self
    }

    /// Weights of the elements, `[rows, classes]`, or a mask of zeros and ones: as
    /// [`class_weights`](Self::class_weights), with which they are multiplied if both are given.
    pub fn element_weights(mut self, weights: &'a [T::Loss]) -> Self {
        self.targets.element_weights = Some(weights);
        self
    }
}

impl Sealed for QualityFocalLoss {}
impl Operation for QualityFocalLoss {
    type Targets<'a, M: Memory, T: Element> = Inputs<'a, M, T>;

    fn run_cpu<T: Element>(
        call: &mut Call<'_, Self, Host, T>,
        loss: Option<&mut [T::Loss]>,
        grad: Option<&mut [T]>,
    ) -> Result<Status> {
        T::qfl(call, loss, grad)
    }

    #[cfg(feature = "cuda")]
    fn run_cuda<'s, T: crate::cuda::StorageElement>(
        call: &'s mut Call<'_, Self, crate::cuda::Device, T>,
        loss: Option<&'s mut dyn cudarc::driver::DevicePtrMut<f32>>,
        grad: Option<&'s mut dyn cudarc::driver::DevicePtrMut<T>>,
    ) -> Result<()> {
        cuda::run(call, loss, grad)
    }
}

/// Checks everything about a call but the values in its tensors. `targets` has the lengths of
/// labels and quality, or of the dense target.
fn check<S>(
    lengths: &Lengths,
    reduction: &crate::Reduction<S>,
    has_upstream: bool,
    grad_scale: Option<f64>,
) -> Result<()> {
    check_lengths(lengths, "classes", 1)?;
    check_options(reduction, has_upstream, grad_scale)
}
