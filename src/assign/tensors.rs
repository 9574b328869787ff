//! What an assignment reads and what it writes.

use crate::element::Label;
use crate::memory::{Host, Memory};

/// The boxes to be found in all images. Labels are i64 or i32, and so are images and sizes.
///
/// A box of image -1 is padding. One that is not finite or has no width or height, one whose label
/// is not a class, and one whose image is neither padding nor one of the batch takes no part, and is
/// counted in the [`AssignmentStatus`](crate::AssignmentStatus).
#[derive(Clone, Copy)]
pub struct GroundTruth<'a, M: Memory, L: Label> {
    pub(super) boxes: M::Slice<'a, f32>,
    pub(super) labels: M::Slice<'a, L>,
    pub(super) image: M::Slice<'a, L>,
    pub(super) weights: Option<M::Slice<'a, f32>>,
    /// Boxes, and the image of each.
    pub(super) ignore: Option<(M::Slice<'a, f32>, M::Slice<'a, L>)>,
    pub(super) valid_hw: Option<M::Slice<'a, L>>,
}

impl<'a, L: Label> GroundTruth<'a, Host, L> {
    /// Boxes `[n, 4]` as `[x1, y1, x2, y2]` in pixels, their labels `[n]`, and the image that each
    /// is in `[n]`.
    pub fn cpu(boxes: &'a [f32], labels: &'a [L], image: &'a [L]) -> Self {
        GroundTruth { boxes, labels, image, weights: None, ignore: None, valid_hw: None }
    }

    /// A weight for each box, `[n]`, for [`LevelTargets::box_weights`] of its anchors. The default is
    /// ones.
    #[must_use]
    pub fn weights(self, weights: &'a [f32]) -> Self {
        GroundTruth { weights: Some(weights), ..self }
    }

    /// Regions where anchors are neither one thing nor the other, such as crowds: boxes `[m, 4]`, and
    /// the image that each is in `[m]`, -1 for padding. What lies in one is up to the
    /// [`Atss::with_ignore_iof`](super::Atss::with_ignore_iof) of the assignment, which ignores
    /// nothing by default.
    #[must_use]
    pub fn ignore(self, boxes: &'a [f32], image: &'a [L]) -> Self {
        GroundTruth { ignore: Some((boxes, image)), ..self }
    }

    /// The size of each image in a padded batch, `[images, 2]`: height and width in pixels. Anchors
    /// beyond it take no part: those of a grid whose position (x, y) is not below
    /// (⌈width / stride⌉, ⌈height / stride⌉), as mmdetection's `valid_flags`, and explicit ones whose
    /// centre is not below (width, height).
    #[must_use]
    pub fn valid_hw(self, valid_hw: &'a [L]) -> Self {
        GroundTruth { valid_hw: Some(valid_hw), ..self }
    }
}

/// Where the result for one level goes. A head takes it as it is, or in f64: see [`Targets`](crate::head::Targets).
pub struct LevelTargets<'a, M: Memory, L: Label> {
    pub(super) labels: M::SliceMut<'a, L>,
    pub(super) box_targets: M::SliceMut<'a, f32>,
    pub(super) label_weights: Option<M::SliceMut<'a, f32>>,
    pub(super) box_weights: Option<M::SliceMut<'a, f32>>,
    pub(super) centerness: Option<M::SliceMut<'a, f32>>,
}

impl<'a, L: Label> LevelTargets<'a, Host, L> {
    /// Labels `[images, anchors]`: of the box that the anchor is given to, or the background's. Box
    /// targets `[images, anchors, 4]`: that box in pixels, zeros for background.
    pub fn cpu(labels: &'a mut [L], box_targets: &'a mut [f32]) -> Self {
        LevelTargets { labels, box_targets, label_weights: None, box_weights: None, centerness: None }
    }

    /// Also the weights of the labels, `[images, anchors]`: 1, or 0 for anchors that take no part
    /// (beyond the valid size, or ignored), whose labels are the background's. They are what the head
    /// takes.
    #[must_use]
    pub fn label_weights(self, label_weights: &'a mut [f32]) -> Self {
        LevelTargets { label_weights: Some(label_weights), ..self }
    }

    /// Also the weights of the boxes, `[images, anchors]`: that of the box that the anchor is given
    /// to, 0 for background.
    #[must_use]
    pub fn box_weights(self, box_weights: &'a mut [f32]) -> Self {
        LevelTargets { box_weights: Some(box_weights), ..self }
    }

    /// Also the centerness, `[images, anchors]`, which [`Fcos`](super::Fcos) alone has; 0 for
    /// background.
    #[must_use]
    pub fn centerness(self, centerness: &'a mut [f32]) -> Self {
        LevelTargets { centerness: Some(centerness), ..self }
    }
}
