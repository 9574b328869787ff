//! ATSS.

pub(crate) mod cpu;
#[cfg(feature = "cuda")]
mod cuda;

use super::{Options, options};
use crate::error::{Result, check_option};

/// How many candidates a level gives at most. Twin of the constant in kernels/assign.cuh.
pub const MAX_TOPK: usize = 256;

/// ATSS, adaptive training sample selection. For a ground-truth box g of an image, with the anchors
/// of every level that take part:
///
/// ```text
/// candidates(g) = of each level, the k anchors whose centres are nearest to the centre of g
/// t(g)          = mean + standard deviation (over n − 1) of IoU(a, g) over all candidates a
/// positive(a,g) : a is a candidate, IoU(a, g) ≥ t(g), and the centre of a is more than 0.01
///                 inside g on all sides
/// ```
///
/// An anchor that is positive for several boxes is given to the one with the highest IoU. All
/// others are background. (*Bridging the Gap Between Anchor-based and Anchor-free Detection*,
/// Zhang et al., CVPR 2020; `ATSSAssigner` of mmdetection 3, with its default IoU and without the
/// cost variant of DDOD.) k counts anchors: where a position has several, it is so many positions
/// fewer, as in mmdetection.
///
/// Distances and IoUs are f32 as in mmdetection; the comparison with the threshold is f64 and
/// takes no root, so that equal IoUs count as equal. What mmdetection leaves open is fixed:
///
/// | tie | |
/// | --- | --- |
/// | equally near anchors of a level | the one with the higher number is nearer (`torch.topk` takes either; mmdetection's results that are tested against have the higher) |
/// | boxes with the same IoU | the one with the lower number has the anchor |
/// | equally near anchors for [`with_fallback`](Atss::with_fallback) | the one of the later level, then the one with the higher number is nearer |
///
/// Anchors that are ignored leave the candidates for the next nearest. In mmdetection they stay
/// where a level has no k others, with an infinite IoU, and the threshold with them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Atss {
    topk: usize,
    options: Options,
}

impl Default for Atss {
    /// Nine candidates a level, as everywhere.
    fn default() -> Self {
        Atss { topk: 9, options: Options::default() }
    }
}

impl Atss {
    /// With another number of candidates a level, from 1 to [`MAX_TOPK`].
    ///
    /// # Errors
    /// If it is outside that range.
    pub fn new(topk: usize) -> Result<Self> {
        check_option("topk", topk as f64, "from 1 to 256", (1..=MAX_TOPK).contains(&topk))?;
        Ok(Atss { topk, ..Atss::default() })
    }
}

options!(Atss);
