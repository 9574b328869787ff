//! The integral of a distribution over bins: its expectation.
//!
//! For the K logits z of one box side, in units of bins:
//!
//! ```text
//! E(z)     = Σ_j j·p_j,   p = softmax(z)
//! dE/dz_j  = p_j·(j − E)
//! ```
//!
//! (*Generalized Focal Loss*, Li et al., NeurIPS 2020, equation 5; `Integral` in mmdetection.)
//!
//! ```
//! let logits = [0.0f32, 0.0, 0.0, 0.0];
//! let mut expectation = [0.0f32];
//! gfocal::integral::forward(&logits, [1, 4], &mut expectation)?;
//! assert_eq!(expectation, [1.5]);
//!
//! let mut grad = [0.0f32; 4];
//! gfocal::integral::backward(&logits, [1, 4], &[1.0], &mut grad)?;
//! assert_eq!(grad, [-0.375, -0.125, 0.125, 0.375]);
//! # Ok::<(), gfocal::Error>(())
//! ```

pub(crate) mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(feature = "cuda")]
pub(crate) mod launch;

pub use cpu::{backward, forward};
pub(crate) use cpu::{expectation_of, is_single, slopes};
#[cfg(feature = "cuda")]
pub use cuda::{backward_cuda, forward_cuda, units};

use crate::call::{Lengths, check_lengths};
use crate::error::Result;

/// Checks the lengths of a call; `None`: not part of it.
fn check(
    shape: [usize; 2],
    logits: usize,
    expectation: Option<usize>,
    upstream: Option<usize>,
    grad: Option<usize>,
) -> Result<()> {
    let lengths = Lengths {
        shape,
        logits,
        per_row: &[("expectation", expectation), ("upstream", upstream)],
        per_column: &[],
        like_logits: &[("grad", grad)],
        loss: None,
        scalars: &[],
    };
    check_lengths(&lengths, "bins", 2)
}
