//! Target assignment: which anchors are trained on which box. ATSS, adaptive training sample
//! selection.
//!
//! For a ground-truth box g of an image, with the anchors of every level:
//!
//! ```text
//! candidates(g) = of each level, the k anchors whose centres are nearest to the centre of g
//! t(g)          = mean + standard deviation (over n − 1) of IoU(a, g) over all candidates a
//! positive(a,g) : a is a candidate, IoU(a, g) ≥ t(g), and the centre of a is more than 0.01
//!                 inside g on all sides
//! ```
//!
//! An anchor that is positive for several boxes is given to the one with the highest IoU. All
//! others are background. (*Bridging the Gap Between Anchor-based and Anchor-free Detection*,
//! Zhang et al., CVPR 2020; `ATSSAssigner` of mmdetection 3, with its default IoU and without the
//! cost variant of DDOD.)
//!
//! Distances and IoUs are f32 as in mmdetection; the comparison with the threshold is f64 and
//! takes no root, so that equal IoUs count as equal. What mmdetection leaves open is fixed: of
//! equally near anchors the one with the higher index is nearer (`torch.topk` leaves it open, and takes
//! either; mmdetection's results that are tested against have the higher), and of boxes with the same IoU the first has the anchor. CPU and CUDA give the same bits.
//!
//! ```
//! use gfocal::assign::{AnchorGrid, Atss, GroundTruth, LevelTargets};
//!
//! // One image, one level of 4 × 4 anchors of 64 pixels, 8 pixels apart; one box of class 2.
//! let level = AnchorGrid::new(4, 4, 8.0);
//! let gt = GroundTruth::cpu(&[4.0, 4.0, 28.0, 28.0], &[2i64], &[0]);
//! let (mut labels, mut box_targets) = ([-1i64; 16], [f32::NAN; 64]);
//! let targets = LevelTargets::cpu(&mut labels, &mut box_targets);
//! Atss::default().cpu(&[level.into()], gt, 1, 80, &mut [targets])?;
//! // The 9 anchors around the centre have the same IoU; the others are background.
//! assert_eq!(labels, [80, 80, 80, 80, 80, 2, 2, 2, 80, 2, 2, 2, 80, 2, 2, 2]);
//! assert_eq!(box_targets[20..24], [4.0, 4.0, 28.0, 28.0]);
//! # Ok::<(), gfocal::Error>(())
//! ```

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod math;

#[cfg(feature = "cuda")]
pub use cuda::AtssWorkspace;

use crate::call::Memory;
use crate::cpu::Host;
use crate::element::Label;
use crate::error::{Error, Result, check_option};

/// How many levels a call takes at most. Twin of the constant in kernels/assign.cu.
pub const MAX_LEVELS: usize = 8;

/// How many candidates a level gives at most. Twin of the constant in kernels/assign.cu.
pub const MAX_TOPK: usize = 32;

/// Square anchors on a grid, one at each position: the anchor at row y and column x, number
/// `y * width + x`, has its centre at ((x + offset) · stride, (y + offset) · stride).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AnchorGrid {
    height: usize,
    width: usize,
    stride: f32,
    size: f32,
    offset: f32,
}

impl AnchorGrid {
    /// The anchors of GFL and ATSS: 8 strides wide, centred at whole multiples of the stride.
    pub fn new(height: usize, width: usize, stride: f32) -> Self {
        AnchorGrid { height, width, stride, size: 8.0 * stride, offset: 0.0 }
    }

    /// With anchors `scale` strides wide.
    pub fn with_scale(self, scale: f32) -> Self {
        AnchorGrid { size: scale * self.stride, ..self }
    }

    /// With another offset of the centres, in strides: 0 in mmdetection's GFL, 0.5 elsewhere.
    pub fn with_offset(self, offset: f32) -> Self {
        AnchorGrid { offset, ..self }
    }
}

/// The anchors of one level, the same for all images.
#[derive(Clone, Copy)]
pub enum Anchors<'a, M: Memory = Host> {
    /// On a grid.
    Grid(AnchorGrid),
    /// `[anchors, 4]` as `[x1, y1, x2, y2]` in pixels. All of them are looked at for each box, where
    /// a grid is looked at only near it.
    Boxes(M::Slice<'a, f32>),
}

impl<'a> Anchors<'a, Host> {
    /// Explicit anchors, `[anchors, 4]`.
    pub fn cpu(boxes: &'a [f32]) -> Self {
        Anchors::Boxes(boxes)
    }
}

impl<M: Memory> From<AnchorGrid> for Anchors<'_, M> {
    fn from(grid: AnchorGrid) -> Self {
        Anchors::Grid(grid)
    }
}

/// The boxes to be found in all images. Labels are i64 or i32.
///
/// A box whose image is outside 0..images, for instance -1, is padding. One that is not finite,
/// or has no width or height, is nobody's target.
#[derive(Clone, Copy)]
pub struct GroundTruth<'a, M: Memory, L: Label> {
    /// `[boxes, 4]` as `[x1, y1, x2, y2]` in pixels.
    boxes: M::Slice<'a, f32>,
    /// `[boxes]`: what becomes of the labels of positive anchors.
    labels: M::Slice<'a, L>,
    /// `[boxes]`: the image that each is in.
    image: M::Slice<'a, L>,
}

impl<'a, L: Label> GroundTruth<'a, Host, L> {
    /// Boxes `[n, 4]` as `[x1, y1, x2, y2]` in pixels, their labels `[n]`, and the image that each
    /// is in `[n]`.
    pub fn cpu(boxes: &'a [f32], labels: &'a [L], image: &'a [L]) -> Self {
        GroundTruth { boxes, labels, image }
    }
}

/// Where the result for one level goes.
pub struct LevelTargets<'a, M: Memory, L: Label> {
    /// `[images, anchors]`: the label of the box that the anchor is given to, or the number of
    /// classes, which is background.
    labels: M::SliceMut<'a, L>,
    /// `[images, anchors, 4]`: that box, in pixels; zeros for background.
    box_targets: M::SliceMut<'a, f32>,
}

impl<'a, L: Label> LevelTargets<'a, Host, L> {
    /// Labels `[images, anchors]` and box targets `[images, anchors, 4]`.
    pub fn cpu(labels: &'a mut [L], box_targets: &'a mut [f32]) -> Self {
        LevelTargets { labels, box_targets }
    }
}

/// ATSS; see the [module](self).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Atss {
    topk: usize,
}

impl Default for Atss {
    /// Nine candidates a level, as everywhere.
    fn default() -> Self {
        Atss { topk: 9 }
    }
}

impl Atss {
    /// With another number of candidates a level, from 1 to [`MAX_TOPK`].
    ///
    /// # Errors
    /// If it is outside that range.
    pub fn new(topk: usize) -> Result<Self> {
        check_option("topk", topk as f64, "from 1 to 32", (1..=MAX_TOPK).contains(&topk))?;
        Ok(Atss { topk })
    }
}

/// A level, whatever memory it is in.
#[derive(Clone, Copy)]
struct Level {
    /// `None`: explicit boxes, in one row.
    grid: Option<AnchorGrid>,
    height: usize,
    width: usize,
    /// How many anchors all levels before have together.
    first: usize,
}

impl Level {
    fn anchors(&self) -> usize {
        self.height * self.width
    }
}

/// The lengths of one level: of its explicit anchors, its labels and its box targets.
struct Lengths {
    grid: Option<AnchorGrid>,
    boxes: usize,
    labels: usize,
    box_targets: usize,
}

/// The one place where a call is checked, for both backends.
fn check(
    levels: impl Iterator<Item = Lengths>,
    [count, targets]: [usize; 2],
    gt: [usize; 3],
    images: usize,
    classes: usize,
) -> Result<Vec<Level>> {
    check_option("the number of levels", count as f64, "from 1 to 8", (1..=MAX_LEVELS).contains(&count))?;
    if targets != count {
        return Err(Error::Levels { anchors: count, targets });
    }
    let length = |tensor, actual, boxes: usize, each: usize| {
        let expected = boxes.checked_mul(each).ok_or(Error::TooManyBoxes { boxes })?;
        if actual == expected { Ok(()) } else { Err(Error::BoxLength { tensor, actual, boxes, expected }) }
    };
    let [boxes, labels, image] = gt;
    length("gt boxes", boxes, labels, 4)?;
    length("gt image", image, labels, 1)?;
    let maximum = i32::MAX as usize;
    let number = "at most 2147483647";
    check_option("the number of boxes", labels as f64, number, labels <= maximum)?;
    check_option("the number of images", images as f64, number, images <= maximum)?;
    check_option("the number of classes", classes as f64, number, classes <= maximum)?;
    let (mut checked, mut first) = (Vec::with_capacity(count), 0usize);
    for lengths in levels {
        let (height, width) = match lengths.grid {
            Some(grid) => (grid.height, grid.width),
            None => {
                length("anchors", lengths.boxes, lengths.boxes / 4, 4)?;
                (1, lengths.boxes / 4)
            }
        };
        if let Some(AnchorGrid { stride, size, offset, .. }) = lengths.grid {
            let positive = "a number above 0";
            check_option("stride", stride.into(), positive, stride > 0.0)?;
            check_option("the anchors' size", size.into(), positive, size > 0.0)?;
            check_option("offset", offset.into(), "a finite number", true)?;
        }
        let anchors = height.saturating_mul(width);
        let all = images.saturating_mul(anchors);
        length("labels", lengths.labels, all, 1)?;
        length("box targets", lengths.box_targets, all, 4)?;
        checked.push(Level { grid: lengths.grid, height, width, first });
        first = first.saturating_add(anchors);
        check_option("the number of anchors", first as f64, number, first <= maximum)?;
    }
    Ok(checked)
}
