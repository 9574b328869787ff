//! Box losses: 1 - IoU and its variants, between predicted and target boxes `[x1, y1, x2, y2]`.
//!
//! With I the area of the intersection, U that of the union, H that of the hull (the smallest box
//! around both), c the hull's diagonal, ρ the distance of the centres, w and h the boxes' sizes:
//!
//! ```text
//! IoU  = I / U
//! GIoU = IoU − (H − U) / H
//! DIoU = IoU − ρ²/c²
//! CIoU = IoU − ρ²/c² − α·v,   v = 4/π²·(atan(w_t/h_t) − atan(w/h))²,   α = [IoU > 0.5]·v/(1 − IoU + v)
//!                                                             or, Ultralytics', α = v/(1 − IoU + v + ε)
//! loss = 1 − IoU, 1 − GIoU, 1 − DIoU or 1 − CIoU
//! ```
//!
//! (`bbox_overlaps`, `giou_loss`, `diou_loss` and `ciou_loss` of mmdetection 3, with the same
//! epsilons, and `bbox_iou` of Ultralytics 8 with its: there ε is also added to both heights, in v and
//! in U. *Generalized Intersection over Union*, Rezatofighi et al., CVPR 2019; *Distance-IoU
//! Loss*, Zheng et al., AAAI 2020.) The gradient with respect to the prediction is exact, with two
//! conventions: α counts as a constant, and at ties it is PyTorch's (2.15): half each for the
//! maximum of two equal numbers, nothing for a clamp at its limit, as for boxes that touch; earlier
//! versions of PyTorch gave all of it there. NaN propagates, and infinite coordinates give
//! results that are not finite; all others, also of empty and inverted boxes, give finite ones.
//!
//! ```
//! use gfocal::boxes::{BoxLoss, IouKind};
//!
//! let pred = [0.0f32, 0.0, 4.0, 4.0];
//! let target = [2.0f32, 0.0, 6.0, 4.0];
//! let (mut loss, mut grad) = ([0.0f32], [0.0f32; 4]);
//! // I = 8, U = H = 24: so GIoU = IoU = 1/3.
//! BoxLoss::new(IouKind::Giou).forward_backward(&pred, &target, 1, None, &mut loss, &mut grad)?;
//! assert_eq!(loss, [2.0 / 3.0]);
//! // Moving the right side by 1 adds 4 to I.
//! assert!((grad[2] + 4.0 / 24.0).abs() < 1e-6);
//! # Ok::<(), gfocal::Error>(())
//! ```

pub(crate) mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(feature = "cuda")]
pub(crate) mod launch;
pub(crate) mod math;

use cpu::BoxesOnCpu;
pub use cpu::{box_to_distances, distances_to_box, iou};

use crate::element::{Element, Sealed};
use crate::error::{Error, Result, check_option};

/// Which variant of IoU a [`BoxLoss`] takes. The formulas are in the [module](self).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum IouKind {
    /// Intersection over union. No gradient between boxes that do not meet.
    Iou,
    /// Generalized IoU.
    #[default]
    Giou,
    /// Distance IoU.
    Diou,
    /// Complete IoU. α is that of mmdetection 3 and of the authors: 0 where IoU ≤ 0.5.
    Ciou,
    /// Complete IoU as Ultralytics has it, with α above 0 whatever the IoU.
    CiouUltralytics,
}

impl IouKind {
    /// All of them.
    pub const ALL: [IouKind; 5] =
        [IouKind::Iou, IouKind::Giou, IouKind::Diou, IouKind::Ciou, IouKind::CiouUltralytics];
}

/// A type of coordinates: f32, and on the CPU f64.
pub trait Coordinate: Element<Loss = Self> + Sealed + BoxesOnCpu {}

impl Coordinate for f32 {}
impl Coordinate for f64 {}

/// 1 - IoU or one of its variants; see the [module](self).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BoxLoss {
    kind: IouKind,
    eps: f64,
}

impl Default for BoxLoss {
    /// GIoU.
    fn default() -> Self {
        BoxLoss::new(IouKind::default())
    }
}

impl BoxLoss {
    /// The loss with mmdetection's epsilon, 1e-6.
    pub fn new(kind: IouKind) -> Self {
        BoxLoss { kind, eps: 1e-6 }
    }

    /// With another epsilon, from 1e-30 to 1, in squared units of the coordinates: the least area
    /// of union and hull for IoU and GIoU, and what is added to the union's area and to the
    /// squared diagonal for DIoU and CIoU (Ultralytics: 1e-7).
    ///
    /// # Errors
    /// If it is outside that range.
    pub fn with_eps(self, eps: f64) -> Result<Self> {
        check_eps(eps)?;
        Ok(BoxLoss { eps, ..self })
    }

    /// The variant.
    pub fn kind(&self) -> IouKind {
        self.kind
    }

    /// The epsilon.
    pub fn eps(&self) -> f64 {
        self.eps
    }
}

fn check_eps(eps: f64) -> Result<()> {
    check_option("eps", eps, "from 1e-30 to 1", (1e-30..=1.0).contains(&eps))
}

/// Checks the lengths of a call on `boxes` boxes: name, length, and how many elements a box has.
fn check(boxes: usize, tensors: &[(&'static str, Option<usize>, usize)]) -> Result<()> {
    for &(tensor, actual, each) in tensors {
        let expected = boxes.checked_mul(each).ok_or(Error::TooManyBoxes { boxes })?;
        match actual {
            Some(actual) if actual != expected => {
                return Err(Error::BoxLength { tensor, actual, boxes, expected });
            }
            _ => {}
        }
    }
    Ok(())
}
