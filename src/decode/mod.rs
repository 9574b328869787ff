//! Decoding: the boxes that raw box logits say.
//!
//! For an anchor point (X, Y) in pixels of a level with stride s, and the logits z of its four sides left, top, right,
//! bottom:
//!
//! ```text
//! x1 = X − s·E(z_left)     y1 = Y − s·E(z_top)
//! x2 = X + s·E(z_right)    y2 = Y + s·E(z_bottom)
//!
//! E(z) = Σ_j j·p_j, p = softmax(z)    with BoxCoding::Bins: see gfocal::integral
//! E(z) = exp(z)                       with BoxCoding::Exp
//! E(z) = max(z, 0)                    with BoxCoding::Relu, whose derivative at 0 is 0
//! ```
//!
//! The boxes of all levels come together, `[B, A, 4]` with A the positions of all levels: those of a level after those of
//! the level before. [`backward`] takes the gradient of the boxes to that of the logits, in the logits' layout.
//!
//! ```
//! use gfocal::decode::{self, Level};
//! use gfocal::head::{BoxCoding, Layout, Points};
//!
//! // One image, two positions side by side, 2 bins for each of the 4 sides: `[1, 8, 1, 2]`.
//! let logits = [0.0f32; 16];
//! let level = Level {
//!     height: 1,
//!     width: 2,
//!     stride: 8.0,
//!     points: Points::Grid { offset: 0.5 },
//!     logits: &logits[..],
//!     layout: Layout::nchw(8, 2),
//! };
//! let mut boxes = [0.0f32; 8];
//! decode::forward(BoxCoding::Bins(2), 1, &[level], &mut boxes)?;
//! assert_eq!(boxes, [0.0, 0.0, 8.0, 8.0, 8.0, 0.0, 16.0, 8.0]); // half a stride to each side
//!
//! let mut grad = [0.0f32; 16];
//! decode::backward(BoxCoding::Bins(2), 1, &[level], &[1.0; 8], &mut [&mut grad], None)?;
//! assert_eq!(grad[..4], [2.0, 2.0, -2.0, -2.0]); // the left side: −s·p·(j − E)
//! # Ok::<(), gfocal::Error>(())
//! ```
//!
//! A side with a logit that is not finite is NaN, and so are the gradients of all its logits. exp(z) that is too large
//! for the boxes' type is inf; times an upstream gradient of 0 it is 0.

pub(crate) mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(feature = "cuda")]
pub(crate) mod launch;

pub use cpu::{backward, forward};
#[cfg(feature = "cuda")]
pub use cuda::{backward_cuda, forward_cuda, units};

use crate::element::Element;
use crate::error::{Error, Result, check_option};
use crate::head::check::Shape;
use crate::head::{BoxCoding, HeadLoss, Layout, Logits, MAX_LEVELS, Points};
use crate::memory::Memory;

/// A level of the pyramid: its box logits where the network left them.
pub struct Level<'a, M: Memory, T: Element> {
    /// Rows of positions.
    pub height: usize,
    /// Positions in a row.
    pub width: usize,
    /// Pixels from one position to the next.
    pub stride: f64,
    /// The anchor points.
    pub points: Points<'a, M, T::Loss>,
    /// The buffer that the box logits are in, perhaps with others.
    pub logits: M::Slice<'a, T>,
    /// Where they are: channel side·K + bin, sides left, top, right, bottom. Without bins K is 1.
    pub layout: Layout,
}

impl<M: Memory, T: Element> Clone for Level<'_, M, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<M: Memory, T: Element> Copy for Level<'_, M, T> {}

/// The box logits of a level of the head loss.
impl<'a, M: Memory, T: Element> From<&crate::head::Level<'a, M, T>> for Level<'a, M, T> {
    fn from(level: &crate::head::Level<'a, M, T>) -> Self {
        let (Logits::Separate { boxes: logits, .. } | Logits::Joint(logits)) = level.logits;
        Level {
            height: level.height,
            width: level.width,
            stride: level.stride,
            points: level.points,
            logits,
            layout: level.box_layout,
        }
    }
}

impl<M: Memory, T: Element> Level<'_, M, T> {
    /// How many positions there are.
    pub fn positions(&self) -> usize {
        self.height * self.width
    }

    /// Whether each image has points of its own. Of a level that has been checked.
    fn has_points_of_batch(&self) -> bool {
        matches!(&self.points, Points::Explicit(points) if M::len(points) != 2 * self.positions())
    }
}

/// Checks a call, whatever memory it is in, and gives how many logits a side has. `boxes`: name and length of the boxes, or of
/// their gradient.
fn check<M: Memory, T: Element>(
    coding: BoxCoding,
    batch: usize,
    levels: &[Level<M, T>],
    boxes: (&'static str, usize),
    grads: Option<&[M::SliceMut<'_, T>]>,
) -> Result<usize> {
    let head = HeadLoss::default().with_box_coding(coding)?;
    if !(1..=MAX_LEVELS).contains(&levels.len()) {
        return Err(Error::LevelCount { actual: levels.len(), maximum: MAX_LEVELS });
    }
    grads.map_or(Ok(()), |grads| whole("gradients", grads.len(), levels.len()))?;
    let mut all = 0usize;
    for (index, level) in levels.iter().enumerate() {
        let grad = grads.map(|grads| M::len_mut(&grads[index]));
        let anchors = check_level(index, level, batch, head.box_channels(), grad)?;
        let overflow = Error::ShapeOverflow { shape: [level.height, level.width] };
        all = all.checked_add(anchors).filter(|&all| all <= isize::MAX as usize / 32).ok_or(overflow)?;
    }
    whole(boxes.0, boxes.1, 4 * all)?;
    Ok(head.bins())
}

/// Checks the length of `found_inf`, if it is given.
fn check_flag(found_inf: Option<usize>) -> Result<()> {
    found_inf.map_or(Ok(()), |len| whole("found_inf", len, 1))
}

fn whole(tensor: &'static str, actual: usize, expected: usize) -> Result<()> {
    if actual == expected { Ok(()) } else { Err(Error::LevelTensors { tensor, actual, expected }) }
}

/// How many anchors a level has, all images together.
fn check_level<M: Memory, T: Element>(
    index: usize,
    level: &Level<M, T>,
    batch: usize,
    channels: usize,
    grad: Option<usize>,
) -> Result<usize> {
    check_option("stride", level.stride, "a finite number above 0", level.stride > 0.0)?;
    let positions = level.height.checked_mul(level.width).filter(|&all| all <= i32::MAX as usize);
    let sizes = positions.and_then(|positions| {
        let elements = positions.checked_mul(batch)?.checked_mul(channels)?;
        (elements <= isize::MAX as usize).then_some((positions, batch * positions))
    });
    let Some((positions, anchors)) = sizes else {
        return Err(Error::ShapeOverflow { shape: [level.height, level.width] });
    };
    match &level.points {
        &Points::Grid { offset } => {
            check_option("the offset of the anchor points", offset, "a finite number", true)?;
        }
        Points::Explicit(points) => {
            let (actual, expected) = (M::len(points), 2 * anchors);
            if actual != 2 * positions && actual != expected {
                let tensor = "points";
                return Err(Error::LevelLength { level: index, tensor, actual, batch, positions, expected });
            }
        }
    }
    let (layout, width) = (level.layout, level.width);
    let shape = Shape { tensor: "box_logits", layout, batch, channels, width, positions };
    shape.check_reach(index, M::len(&level.logits))?;
    if let Some(grad) = grad {
        shape.check_reach(index, grad)?;
        if anchors > 0 {
            shape.check_distinct(index)?;
        }
    }
    Ok(anchors)
}
