//! Where anchors are.

use crate::error::{Result, check_option};
use crate::memory::{Host, Memory};

/// How many anchors a position of a grid has at most. Twin of the constant in kernels/assign.cuh.
pub const MAX_SIZES: usize = 16;

/// Anchors on a grid, square and one at each position unless [`with_sizes`](Self::with_sizes) says
/// otherwise: the anchor at row y and column x, number `y * width + x`, has its centre at
/// ((x + offset) · stride, (y + offset) · stride).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AnchorGrid {
    pub(super) height: usize,
    pub(super) width: usize,
    pub(super) stride: f32,
    pub(super) offset: f32,
    /// Width and height; the first `count` are.
    pub(super) sizes: [[f32; 2]; MAX_SIZES],
    pub(super) count: usize,
}

impl AnchorGrid {
    /// The anchors of GFL and ATSS: 8 strides wide, centred at whole multiples of the stride.
    pub fn new(height: usize, width: usize, stride: f32) -> Self {
        let grid = AnchorGrid { height, width, stride, offset: 0.0, sizes: [[0.0; 2]; MAX_SIZES], count: 1 };
        grid.with_scale(8.0)
    }

    /// With square anchors `scale` strides wide.
    pub fn with_scale(mut self, scale: f32) -> Self {
        (self.sizes[0], self.count) = ([scale * self.stride; 2], 1);
        self
    }

    /// With several anchors at each position: their widths and heights in pixels. The anchor of size
    /// s at row y and column x has number `(y * width + x) * sizes + s`, as in mmdetection.
    ///
    /// ```
    /// use gfocal::assign::AnchorGrid;
    ///
    /// // Three shapes of the same area, for a level of 100 × 152 positions 8 pixels apart.
    /// let (wide, high) = (64.0 * 2f32.sqrt(), 64.0 / 2f32.sqrt());
    /// let level = AnchorGrid::new(100, 152, 8.0).with_sizes(&[[wide, high], [64.0, 64.0], [high, wide]])?;
    /// assert_eq!(level.anchors(), 3 * 100 * 152);
    /// # Ok::<(), gfocal::Error>(())
    /// ```
    ///
    /// # Errors
    /// There must be 1 to [`MAX_SIZES`] of them.
    pub fn with_sizes(mut self, sizes: &[[f32; 2]]) -> Result<Self> {
        let count = sizes.len();
        let option = "the number of anchors at a position";
        check_option(option, count as f64, "from 1 to 16", (1..=MAX_SIZES).contains(&count))?;
        self.sizes[..count].copy_from_slice(sizes);
        self.count = count;
        Ok(self)
    }

    /// With another offset of the centres, in strides: 0 in mmdetection's GFL, 0.5 elsewhere.
    pub fn with_offset(self, offset: f32) -> Self {
        AnchorGrid { offset, ..self }
    }

    /// How many anchors it has.
    pub fn anchors(&self) -> usize {
        self.height.saturating_mul(self.width).saturating_mul(self.count)
    }

    pub(super) fn sizes(&self) -> &[[f32; 2]] {
        &self.sizes[..self.count]
    }
}

/// The anchors of one level, the same for all images.
#[derive(Clone, Copy)]
#[allow(clippy::large_enum_variant, reason = "a handful of them, in slices")]
pub enum Anchors<'a, M: Memory = Host> {
    /// On a grid.
    Grid(AnchorGrid),
    /// `[anchors, 4]` as `[x1, y1, x2, y2]` in pixels. ATSS looks at all of them for each box, where
    /// a grid is looked at only near it. FCOS takes their centres.
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
