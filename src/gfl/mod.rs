//! Both losses of a step at once: QFL, DFL, and their sum, each with its own weight and reduction.
//!
//! ```text
//! GFL = w_q · QFL / n_q + w_d · DFL / n_d
//! ```
//!
//! (*Generalized Focal Loss*, Li et al., NeurIPS 2020, equation 6 without the box loss; the weights are
//! those of [`QualityFocalLoss`] and [`DistributionFocalLoss`], the normalisers those of the two
//! calls' reductions.)
//!
//! On CUDA this is one launch. It is meant for small problems, up to about ten thousand rows, where
//! launches cost more than bytes; for large ones two calls are faster. For a detector's raw outputs
//! see [`head`](crate::head).
//!
//! ```
//! use gfocal::{DistributionFocalLoss, Gfl, QualityFocalLoss, Reduction};
//!
//! let qfl = QualityFocalLoss::default();
//! let dfl = DistributionFocalLoss::default().with_loss_weight(0.25)?;
//! let (logits, labels, quality) = ([0.0f32, 0.0], [0i64], [0.5f32]); // one row, two classes
//! let (sides, target) = ([0.0f32; 4], [1.5f32]); // one side, four bins
//!
//! let (mut losses, mut grad_logits, mut grad_sides) = ([0.0f32; 3], [0.0f32; 2], [0.0f32; 4]);
//! Gfl::new(
//!     qfl.cpu(&logits, [1, 2], &labels, &quality).reduction(Reduction::Sum),
//!     dfl.cpu(&sides, [1, 4], &target).reduction(Reduction::Sum),
//! )
//! .forward_backward(&mut losses, &mut grad_logits, &mut grad_sides)?;
//!
//! let ln_2 = 2f32.ln();
//! assert!((losses[0] - 0.25 * ln_2).abs() < 1e-6); // the score is the quality in class 0
//! assert!((losses[1] - 0.25 * 2.0 * ln_2).abs() < 1e-6);
//! assert!((losses[2] - 0.75 * ln_2).abs() < 1e-6);
//! # Ok::<(), gfocal::Error>(())
//! ```

#[cfg(feature = "cuda")]
mod cuda;
#[cfg(feature = "cuda")]
pub(crate) mod launch;

#[cfg(feature = "cuda")]
pub use cuda::units;

use crate::call::Call;
use crate::element::Element;
use crate::error::{Error, Result};
use crate::memory::{Host, Memory};
use crate::reduction::Reduction;
use crate::status::Status;
use crate::{DistributionFocalLoss, QualityFocalLoss};

/// A call of both losses; see [the module](self).
#[must_use = "a call does nothing until forward or forward_backward"]
pub struct Gfl<'a, M: Memory, T: Element> {
    qfl: Call<'a, QualityFocalLoss, M, T>,
    dfl: Call<'a, DistributionFocalLoss, M, T>,
}

impl<'a, M: Memory, T: Element> Gfl<'a, M, T> {
    /// The two calls together, each with its own options. Neither may have [`Reduction::None`].
    pub fn new(qfl: Call<'a, QualityFocalLoss, M, T>, dfl: Call<'a, DistributionFocalLoss, M, T>) -> Self {
        Gfl { qfl, dfl }
    }

    fn check(&self, losses: usize) -> Result<()> {
        for (loss, reduction) in [("QFL", &self.qfl.reduction), ("DFL", &self.dfl.reduction)] {
            if matches!(reduction, Reduction::None) {
                return Err(Error::GflReduction { loss });
            }
        }
        if losses == 3 { Ok(()) } else { Err(Error::GflLosses { actual: losses }) }
    }
}

/// What was wrong with the values of each of the two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GflStatus {
    /// Labels and qualities.
    pub qfl: Status,
    /// Targets.
    pub dfl: Status,
}

impl<T: Element> Gfl<'_, Host, T> {
    /// The losses `[3]`: QFL, DFL, their sum.
    ///
    /// # Errors
    /// If one of the calls has an error, or [`Reduction::None`].
    pub fn forward(self, losses: &mut [T::Loss]) -> Result<GflStatus> {
        self.run(losses, None)
    }

    /// The losses, and the gradients of their sum with respect to the logits of both.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn forward_backward(
        self,
        losses: &mut [T::Loss],
        grad_qfl: &mut [T],
        grad_dfl: &mut [T],
    ) -> Result<GflStatus> {
        self.run(losses, Some([grad_qfl, grad_dfl]))
    }

    fn run(self, losses: &mut [T::Loss], grads: Option<[&mut [T]; 2]>) -> Result<GflStatus> {
        self.check(losses.len())?;
        let (first, rest) = losses.split_at_mut(1);
        let (second, sum) = rest.split_at_mut(1);
        let (qfl, dfl) = match grads {
            Some([grad_qfl, grad_dfl]) => {
                (self.qfl.forward_backward(first, grad_qfl)?, self.dfl.forward_backward(second, grad_dfl)?)
            }
            None => (self.qfl.forward(first)?, self.dfl.forward(second)?),
        };
        sum[0] = T::Loss::from_f64(first[0].to_f64() + second[0].to_f64());
        Ok(GflStatus { qfl, dfl })
    }
}
