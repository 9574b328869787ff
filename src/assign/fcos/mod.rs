//! FCOS' rule.

pub(crate) mod cpu;
#[cfg(feature = "cuda")]
mod cuda;

use super::{MAX_LEVELS, Options, options};
use crate::error::{Error, Result, check_option};

/// FCOS' assignment. Anchors are points here: the positions of a grid, or the centres of explicit
/// boxes. With l, t, r, b the distances of a point to the sides of a box of its image:
///
/// ```text
/// inside     : min(l, t, r, b) > 0; with centre sampling of radius ρ the same of the box's middle,
///              which is what lies within ρ · stride of its centre along both axes, and in the box
/// in range   : low ≤ max(l, t, r, b) ≤ high, by the level's range of regression [low, high]
/// target     = of the boxes that the point is inside of, and that are in range, the one of the
///              least area; without one it is background
/// centerness = √(min(l, r) / max(l, r) · min(t, b) / max(t, b))
/// ```
///
/// (*FCOS: Fully Convolutional One-Stage Object Detection*, Tian et al., ICCV 2019; `FCOSHead` of
/// mmdetection 3, which also takes boxes of 10^8 square pixels and more for none.) Of boxes with the
/// same area the one with the lower number has the point. Centerness is one more target: of a third
/// output in FCOS, and here it may serve as the quality. Given by
/// [`with_fallback`](Fcos::with_fallback) to a point outside of the box, it is 0; of equally near
/// points that takes the one of the later level, then the one with the higher number.
///
/// ```
/// use gfocal::assign::{AnchorGrid, Fcos, GroundTruth, LevelTargets};
///
/// // FCOS' points are in the middle of their cells; boxes up to 64 pixels belong to the first level.
/// let levels = [AnchorGrid::new(4, 4, 8.0).with_offset(0.5), AnchorGrid::new(2, 2, 16.0).with_offset(0.5)];
/// let fcos = Fcos::new(&[[-1.0, 64.0], [64.0, f32::INFINITY]])?.with_center_sampling(1.5)?;
/// let gt = GroundTruth::cpu(&[0.0, 0.0, 24.0, 32.0], &[2i64], &[0]);
/// let (mut labels, mut boxes, mut centerness) = ([-1i64; 16], [f32::NAN; 64], [f32::NAN; 16]);
/// let (mut labels_of_second, mut boxes_of_second) = ([-1i64; 4], [f32::NAN; 16]);
/// let mut targets = [
///     LevelTargets::cpu(&mut labels, &mut boxes).centerness(&mut centerness),
///     LevelTargets::cpu(&mut labels_of_second, &mut boxes_of_second),
/// ];
/// let status = fcos.cpu(&levels.map(Into::into), gt, 1, 80, &mut targets)?;
/// // What is within 12 pixels of (12, 16).
/// assert_eq!(labels, [80, 80, 80, 80, 2, 2, 2, 80, 2, 2, 2, 80, 80, 80, 80, 80]);
/// assert_eq!(labels_of_second, [80; 4]);
/// assert_eq!(centerness[5], (12.0f32 / 20.0).sqrt()); // of (12, 12)
/// assert!(status.is_ok());
/// # Ok::<(), gfocal::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fcos {
    /// The first `levels` count.
    ranges: [[f32; 2]; MAX_LEVELS],
    levels: usize,
    /// In strides. `None`: all of a box is its middle.
    radius: Option<f32>,
    options: Options,
}

impl Default for Fcos {
    /// Five levels, as in the paper: up to 64, 128, 256 and 512 pixels, and all above; no centre
    /// sampling.
    fn default() -> Self {
        let mut ranges = [[0.0; 2]; MAX_LEVELS];
        let five = [[-1.0, 64.0], [64.0, 128.0], [128.0, 256.0], [256.0, 512.0], [512.0, f32::INFINITY]];
        ranges[..5].copy_from_slice(&five);
        Fcos { ranges, levels: 5, radius: None, options: Options::default() }
    }
}

impl Fcos {
    /// With the range of regression of each level: the least and the greatest distance to the
    /// furthest side, in pixels, both included.
    ///
    /// # Errors
    /// There must be 1 to 8 ranges, none of them NaN, and none that ends before it begins.
    pub fn new(regress_ranges: &[[f32; 2]]) -> Result<Self> {
        let levels = regress_ranges.len();
        let allowed = (1..=MAX_LEVELS).contains(&levels);
        check_option("the number of regress ranges", levels as f64, "from 1 to 8", allowed)?;
        let mut ranges = [[0.0; 2]; MAX_LEVELS];
        for (to, &[low, high]) in ranges.iter_mut().zip(regress_ranges) {
            if low.is_nan() {
                let rule = "a number";
                return Err(Error::InvalidOption {
                    option: "a regress range's start",
                    value: low.into(),
                    rule,
                });
            }
            if high.is_nan() || high < low {
                let rule = "no less than its start";
                return Err(Error::InvalidOption {
                    option: "a regress range's end",
                    value: high.into(),
                    rule,
                });
            }
            *to = [low, high];
        }
        Ok(Fcos { ranges, levels, ..Fcos::default() })
    }

    /// Only points in the middle of a box are its own: within so many strides of its centre, 1.5 in
    /// FCOS' later versions.
    ///
    /// # Errors
    /// The radius must be finite and above 0.
    pub fn with_center_sampling(self, radius: f32) -> Result<Self> {
        check_option("the radius", radius.into(), "a finite number above 0", radius > 0.0)?;
        Ok(Fcos { radius: Some(radius), ..self })
    }
}

options!(Fcos);
