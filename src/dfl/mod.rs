//! Distribution Focal Loss.
//!
//! For the K logits z of one box side and its target distance t in [0, K−1], in units of bins:
//!
//! ```text
//! i = min(⌊t⌋, K−2),   w_r = t − i,   w_l = 1 − w_r
//! DFL(z, t)  = −w_l·log p_i − w_r·log p_(i+1),   p = softmax(z)
//! dDFL/dz_j  = p_j − w_l·[j = i] − w_r·[j = i+1]
//! ```
//!
//! (*Generalized Focal Loss*, Li et al., NeurIPS 2020, equation 6.) K is reg_max + 1 in mmdetection
//! (17), reg_max in Ultralytics (16). Its least value is not 0 but the entropy of (w_l, w_r).
//!
//! ```
//! use gfocal::{DistributionFocalLoss, Reduction};
//!
//! let dfl = DistributionFocalLoss::default();
//! let logits = [0.0f32, 0.0, 0.0, 0.0]; // one side, 4 bins, nothing learned yet
//! let target = [1.25f32]; // three quarters in bin 1, one quarter in bin 2
//!
//! let (mut loss, mut grad) = ([0.0f32], [0.0f32; 4]);
//! dfl.cpu(&logits, [1, 4], &target)
//!     .reduction(Reduction::Sum)
//!     .forward_backward(&mut loss, &mut grad)?;
//!
//! assert!((loss[0] - 4f32.ln()).abs() < 1e-6);
//! assert_eq!(grad, [0.25, -0.5, 0.0, 0.25]);
//! # Ok::<(), gfocal::Error>(())
//! ```

pub(crate) mod cpu;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
#[cfg(feature = "cuda")]
pub(crate) mod launch;

use crate::call::{Call, Lengths, Operation, check_lengths, check_options};
use crate::element::{Element, Sealed};
use crate::error::{Error, Result, check_option};
use crate::memory::{Host, Memory};
use crate::status::Status;

/// Distribution Focal Loss with its options; see [the module](self) for the formula.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DistributionFocalLoss {
    pub(crate) loss_weight: f64,
    pub(crate) target_eps: f64,
}

impl Default for DistributionFocalLoss {
    /// Loss weight 1, targets up to and with the last bin.
    fn default() -> Self {
        DistributionFocalLoss { loss_weight: 1.0, target_eps: 0.0 }
    }
}

impl DistributionFocalLoss {
    /// The loss with targets clamped to [0, K − 1 − eps]: 0.1 is what mmdetection's heads do,
    /// 0.01 Ultralytics. 0 is best: the last bin is legal here.
    ///
    /// # Errors
    /// eps must be finite and 0 or more. A call also refuses an eps above K − 1.
    pub fn new(target_eps: f64) -> Result<Self> {
        check_option("target_eps", target_eps, "a finite number, 0 or more", target_eps >= 0.0)?;
        Ok(DistributionFocalLoss { target_eps, ..DistributionFocalLoss::default() })
    }

    /// What loss and gradient are multiplied by (0.25 in the paper's head).
    ///
    /// # Errors
    /// The weight must be finite.
    pub fn with_loss_weight(self, loss_weight: f64) -> Result<Self> {
        check_option("loss_weight", loss_weight, "a finite number", true)?;
        Ok(DistributionFocalLoss { loss_weight, ..self })
    }

    /// What loss and gradient are multiplied by.
    pub fn loss_weight(&self) -> f64 {
        self.loss_weight
    }

    /// How far below the last bin targets are clamped.
    pub fn target_eps(&self) -> f64 {
        self.target_eps
    }

    /// A call on the CPU.
    ///
    /// `logits` is `[rows, bins]`, row after row, a row for each box side; `target` is `[rows]`,
    /// in units of bins. It is f32 beside 16-bit logits, too: bf16 would round 15.99 to 16.
    pub fn cpu<'a, T: Element>(
        &'a self,
        logits: &'a [T],
        shape: [usize; 2],
        target: &'a [T::Loss],
    ) -> Call<'a, Self, Host, T> {
        Call::new(self, (), logits, shape, Target { target })
    }

    /// The largest target for a number of bins, in the type of the targets.
    pub(crate) fn target_max(&self, bins: usize) -> f32 {
        self.target_end(bins) as f32
    }

    /// The same, not rounded.
    fn target_end(&self, bins: usize) -> f64 {
        (bins - 1) as f64 - self.target_eps
    }

    /// Checks everything about a call but the values in its tensors.
    fn check<S>(
        &self,
        lengths: &Lengths,
        reduction: &crate::Reduction<S>,
        has_upstream: bool,
        grad_scale: Option<f64>,
    ) -> Result<()> {
        check_lengths(lengths, "bins", 2)?;
        if self.target_max(lengths.shape[1]) < 0.0 {
            return Err(Error::InvalidOption {
                option: "target_eps",
                value: self.target_eps,
                rule: "at most the number of bins less one",
            });
        }
        check_options(reduction, has_upstream, grad_scale)
    }
}

/// The target distances of a call on logits of type `T`.
pub struct Target<'a, M: Memory, T: Element = f32> {
    /// `[rows]`.
    pub target: M::Slice<'a, T::Loss>,
}

impl<M: Memory, T: Element> Clone for Target<'_, M, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<M: Memory, T: Element> Copy for Target<'_, M, T> {}

impl Sealed for DistributionFocalLoss {}
impl Operation for DistributionFocalLoss {
    type Targets<'a, M: Memory, T: Element> = Target<'a, M, T>;

    fn run_cpu<T: Element>(
        call: &mut Call<'_, Self, Host, T>,
        loss: Option<&mut [T::Loss]>,
        grad: Option<&mut [T]>,
    ) -> Result<Status> {
        T::dfl(call, loss, grad)
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
