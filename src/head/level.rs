//! A level of the pyramid: its logits where the network left them, its targets, its gradients.

use crate::element::Element;
use crate::layout::Layout;
use crate::memory::{Host, Memory};

/// Where a level's logits are: class logits of type `T`, box logits of type `U`.
pub enum Logits<'a, M: Memory, T: Element, U: Element = T> {
    /// Two tensors.
    Separate {
        /// Class logits, in [`Level::cls_layout`].
        cls: M::Slice<'a, T>,
        /// Box logits, in [`Level::box_layout`].
        boxes: M::Slice<'a, U>,
    },
    /// One tensor that holds both, as YOLO's heads have it. `U` is `T`.
    Joint(M::Slice<'a, T>),
}

impl<'a, T: Element> Logits<'a, Host, T> {
    /// [`Logits::Joint`] of a vector, or any slice. (In the variant itself, Rust takes slices alone.)
    ///
    /// ```
    /// use gfocal::head::{HeadLoss, Layout, Level, Logits, Points, Targets};
    ///
    /// let head = HeadLoss::ultralytics().with_bins(2)?;
    /// // `[B, 4K + C, A]`: 8 channels of box logits, then 2 classes, for one image and one position.
    /// let (both, labels, boxes) = (vec![0.0f32; 10], vec![2i64], vec![0.0f32; 4]);
    /// let layout = Layout::nchw(10, 1);
    /// let level = Level {
    ///     height: 1,
    ///     width: 1,
    ///     stride: 8.0,
    ///     points: Points::Grid { offset: 0.5 },
    ///     logits: Logits::joint(&both),
    ///     cls_layout: layout.from_channel(8),
    ///     box_layout: layout,
    ///     targets: Targets { quality: Some(&[0.0]), ..Targets::new(labels[..].into(), &boxes[..]) },
    /// };
    /// let mut losses = [0.0f32; 3];
    /// head.cpu(1, 2, &[level]).forward(&mut losses)?;
    /// assert!((losses[0] - 0.5 * 2.0 * 2f32.ln()).abs() < 1e-6); // two background logits of 0, weight ½
    /// # Ok::<(), gfocal::Error>(())
    /// ```
    pub fn joint(both: &'a [T]) -> Self {
        Logits::Joint(both)
    }
}

impl<M: Memory, T: Element, U: Element> Clone for Logits<'_, M, T, U> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<M: Memory, T: Element, U: Element> Copy for Logits<'_, M, T, U> {}

/// Where a level's gradients go: in the layouts of its logits, and joint if they are, unless
/// [`HeadCall::gradient_layouts`](super::HeadCall::gradient_layouts) says otherwise. All gradients
/// are written, those of negatives as zeros; other elements of the buffers are not.
pub enum Gradients<'a, M: Memory, T: Element, U: Element = T> {
    /// Two tensors.
    Separate {
        /// Of the class logits.
        cls: M::SliceMut<'a, T>,
        /// Of the box logits.
        boxes: M::SliceMut<'a, U>,
    },
    /// One tensor.
    Joint(M::SliceMut<'a, T>),
    /// In the buffers of the level before, in other places: of tensors that hold several levels, as
    /// `[B, Σ H·W, C]`, where those of one level lie between those of another.
    Shared,
}

/// Where both outputs of a level are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layouts {
    /// Of the classes.
    pub cls: Layout,
    /// Of the boxes.
    pub boxes: Layout,
}

/// Where the anchor points of a level are; `W` as in [`Targets`].
pub enum Points<'a, M: Memory, W: Element = f32> {
    /// On a grid: ((x + offset)·stride, (y + offset)·stride). 0 in mmdetection, 0.5 in Ultralytics.
    Grid {
        /// In units of the stride.
        offset: f64,
    },
    /// `[H·W, 2]` or `[B, H·W, 2]`: x and y in pixels.
    Explicit(M::Slice<'a, W>),
}

impl<M: Memory, W: Element> Clone for Points<'_, M, W> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<M: Memory, W: Element> Copy for Points<'_, M, W> {}

/// What a level's outputs are to become: [`Targets::new`], with other options by struct update.
///
/// Numbers are of the type `W` that losses come in, [`Element::Loss`] of the class logits: f64 for f64, on the
/// CPU, else f32. So are explicit [`Points`]. What an [assignment](crate::assign) has written, f32, is for f64
/// logits to be converted, number by number, which is exact.
///
/// ```
/// use gfocal::Host;
/// use gfocal::head::Targets;
///
/// let (labels, assigned) = ([0i64], [4.0f32, 4.0, 28.0, 28.0]);
/// let beside_f32 = Targets::<Host>::new(labels[..].into(), &assigned);
/// let boxes = assigned.map(f64::from);
/// let beside_f64 = Targets::<Host, f64> { quality: Some(&[1.0 / 3.0]), ..Targets::new(labels[..].into(), &boxes[..]) };
/// # let _ = (beside_f32, beside_f64);
/// ```
pub struct Targets<'a, M: Memory, W: Element = f32> {
    /// `[B, H·W]`, i64 or i32: a class, or background.
    pub labels: M::Labels<'a>,
    /// `[B, H·W]`, weights of the classification loss; 0 masks an anchor there. Not given: ones.
    pub label_weights: Option<M::Slice<'a, W>>,
    /// `[B, H·W, 4]`, x1, y1, x2, y2 in pixels; read for positives only.
    pub boxes: M::Slice<'a, W>,
    /// `[B, H·W]`, read for positives, and only with
    /// [`QualitySource::Given`](super::QualitySource::Given).
    pub quality: Option<M::Slice<'a, W>>,
    /// `[B, H·W]`, weights of the box losses of positives, as label weights are of the
    /// classification loss: they have no part in W and N, and 0 masks. Not given: ones.
    pub box_weights: Option<M::Slice<'a, W>>,
    /// `[B, H·W]`, v of positives, read with [`BoxWeight::Given`](super::BoxWeight::Given).
    pub box_scores: Option<M::Slice<'a, W>>,
    /// `[B, H·W, C]`, a target in the classification loss for each class of each anchor, clamped to
    /// [0, 1], in place of the quality at the label. Labels still say which anchors are positive, for
    /// the boxes, and which are ignored.
    pub scores: Option<M::Slice<'a, W>>,
    /// `[B, H·W, C]`, weights of the elements of the classification loss; 0 masks one, whatever its
    /// logit holds. Not given: ones.
    pub element_weights: Option<M::Slice<'a, W>>,
}

impl<'a, M: Memory, W: Element> Targets<'a, M, W> {
    /// Labels and boxes, and no options.
    pub fn new(labels: M::Labels<'a>, boxes: M::Slice<'a, W>) -> Self {
        Targets {
            labels,
            label_weights: None,
            boxes,
            quality: None,
            box_weights: None,
            box_scores: None,
            scores: None,
            element_weights: None,
        }
    }
}

impl<M: Memory, W: Element> Clone for Targets<'_, M, W> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<M: Memory, W: Element> Copy for Targets<'_, M, W> {}

/// A level of the pyramid: class logits of type `T`, box logits of type `U`.
pub struct Level<'a, M: Memory, T: Element, U: Element = T> {
    /// Rows of positions.
    pub height: usize,
    /// Positions in a row.
    pub width: usize,
    /// Pixels from one position to the next.
    pub stride: f64,
    /// The anchor points.
    pub points: Points<'a, M, T::Loss>,
    /// The raw outputs.
    pub logits: Logits<'a, M, T, U>,
    /// Where the class logits are: a channel for each class.
    pub cls_layout: Layout,
    /// Where the box logits are: channel side·K + bin, sides left, top, right, bottom. Without bins K
    /// is 1.
    pub box_layout: Layout,
    /// What they are to become.
    pub targets: Targets<'a, M, T::Loss>,
}

impl<M: Memory, T: Element, U: Element> Clone for Level<'_, M, T, U> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<M: Memory, T: Element, U: Element> Copy for Level<'_, M, T, U> {}

impl<M: Memory, T: Element, U: Element> Level<'_, M, T, U> {
    /// How many positions there are.
    pub fn positions(&self) -> usize {
        self.height * self.width
    }
}
