//! The head loss: from a detector's raw outputs to its three losses and the gradients of both
//! outputs, without permuting, concatenating or gathering them.
//!
//! For each level of the pyramid, with stride s and anchor points c (in units of s):
//!
//! ```text
//! p     = softmax of the K bins of each box side;   E = Σ_j j·p_j          (the integral)
//! box   = (c_x − E_l, c_y − E_t, c_x + E_r, c_y + E_b)
//! q     = IoU(box, target box / s)                                        (the quality, detached)
//! v     = max over classes of σ(cls)                                      (the weight, detached)
//!
//! loss_cls  = w_cls · Σ_anchors label_weight · Σ_classes QFL(cls, q at the label, else 0) / N
//! loss_bbox = w_box · Σ_positives v · (1 − GIoU(box, target box / s)) / W
//! loss_dfl  = w_dfl · Σ_positives v · Σ_sides DFL(side, target distance) / (4 W)
//! N = number of positives,   W = max(Σ_positives v, 1)                    (over all levels)
//! ```
//!
//! (*Generalized Focal Loss*, Li et al., NeurIPS 2020, equations 4 to 6; the composition is that of
//! `GFLHead.loss_by_feat` in mmdetection 3.3. Other heads differ in constants and in where q, v, N
//! and W come from: see the constructors of [`HeadLoss`] and [`Normaliser`].)
//!
//! The gradients are those of the sum of all losses, with q, v, N and W taken as constants.
//!
//! ```
//! use gfocal::Host;
//! use gfocal::head::{Gradients, HeadLoss, Layout, Level, Logits, Points, Targets};
//!
//! let head = HeadLoss::mmdetection().with_bins(2)?;
//! // One image, one level of one position, one class; nothing learned yet. In units of the stride
//! // the point is (½, ½), all distances are ½, and so the box is (0, 0, 1, 1).
//! let (cls, boxes) = ([0.0f32], [0.0f32; 8]);
//! let level: Level<Host, f32> = Level {
//!     height: 1,
//!     width: 1,
//!     stride: 8.0,
//!     points: Points::Grid { offset: 0.5 },
//!     logits: Logits::Separate { cls: &cls, boxes: &boxes },
//!     cls_layout: Layout::nchw(1, 1),
//!     box_layout: Layout::nchw(head.box_channels(), 1),
//!     // In units of the stride (0, 0, ½, ½): IoU and GIoU are ¼.
//!     targets: Targets::<Host>::new([0i64][..].into(), &[0.0, 0.0, 4.0, 4.0]),
//! };
//! let (mut losses, mut cls_grad, mut box_grad) = ([0.0f32; 3], [0.0f32], [0.0f32; 8]);
//! let gradients: Gradients<Host, f32> = Gradients::Separate { cls: &mut cls_grad, boxes: &mut box_grad };
//! let status = head.cpu(1, 1, &[level]).forward_backward(&mut losses, &mut [gradients])?;
//!
//! assert!(status.is_ok());
//! let is = |got: f32, want: f32| assert!((got - want).abs() < 1e-6, "{got} is not {want}");
//! let (v, ln_2) = (0.5, 2f32.ln()); // N and W are 1
//! is(losses[0], 0.25 * 0.25 * ln_2); // |¼ − σ(0)|² times a cross entropy of ln 2
//! is(losses[1], 2.0 * v * (1.0 - 0.25));
//! is(losses[2], 0.25 * v * 4.0 * ln_2 / 4.0); // whatever the targets ½, ½, 0, 0
//! is(cls_grad[0], 0.25 * (0.25 * 0.25 + 2.0 * 0.25 * ln_2));
//! // The right side: d(1 − GIoU)/dE = ¼, dE/dz = ±¼, and p − two-hot = ±½.
//! let right = 2.0 * v * 0.25 * 0.25 + 0.25 * v * 0.5 / 4.0;
//! is(box_grad[4], -right);
//! is(box_grad[5], right);
//! # Ok::<(), gfocal::Error>(())
//! ```
//!
//! # What counts
//!
//! - An anchor is a positive if its label is a class (see [`Class`](crate::qfl::Class)). A positive
//!   whose box target or anchor point is not finite, or whose given quality is NaN, gives nothing:
//!   zero losses and gradients, and no part in N and W. It is counted in
//!   [`Status::bad_qualities`](crate::Status::bad_qualities), once.
//! - The same holds for a label that is neither class nor background
//!   ([`Status::bad_labels`](crate::Status::bad_labels)), and, uncounted, for the ignore label.
//! - A label weight of 0 masks an anchor in the classification loss, whatever its class logits hold,
//!   and a bad label with it. The box losses of a positive do not depend on its label weight, nor do
//!   N and W.
//! - Target distances are clamped to [0, K − 1 − eps]; each side beyond counts once in
//!   [`Status::out_of_range_targets`](crate::Status::out_of_range_targets).
//! - The quality, given or computed, is clamped to [0, 1]. IoU and the box loss are computed in units
//!   of the stride, and so is their epsilon.
//! - Logits of a positive that are not finite make its losses and gradients not finite: box logits
//!   those of the box, and of its class with [`QualitySource::Iou`]; class logits their own, and with
//!   [`BoxWeight::MaxScore`] a NaN those of the box. A Σv that is NaN counts as less than 1. Box
//!   logits of other anchors are not read.
//! - Without positives the box losses are 0. So are all losses of an empty batch.
//!
//! # Options
//!
//! - Class and box logits may be of two storage types, as mixed precision leaves them. Losses and all that is beside the
//!   logits, targets, weights, points, upstream gradients, are f64 for class logits of f64, else f32.
//! - [`HeadCall::class_weights`], [`Targets::element_weights`] and label weights multiply losses and
//!   gradients of elements of the classification loss, and each other; 0 masks an element, whatever its
//!   logit holds. They have no part in N and W.
//! - [`Targets::scores`] gives the targets of all elements. A NaN among those of an anchor makes it give
//!   nothing, as a NaN quality does, unless its label weight is 0. The quality of a positive then counts
//!   only as its v, with [`BoxWeight::Quality`], and is else not looked at.
//! - [`Targets::box_weights`] multiplies the box losses of a positive and their gradients. 0 masks:
//!   neither its box logits nor sides beyond the bins count there.
//! - v from [`Targets::box_scores`] is taken as it is; if it is not finite, that counts as a bad quality.
//! - Box logits z without bins ([`BoxCoding`]) that are not finite, and an exp(z) that is not, make
//!   losses and gradients not finite; exp(z) counts as infinite above z = 300.

mod call;
pub(crate) mod check;
pub(crate) mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(feature = "cuda")]
pub(crate) mod launch;
mod level;
#[cfg(feature = "cuda")]
mod workspace;

pub use call::{HeadCall, HeadMemory, Normalisers};
pub use level::{Gradients, Layouts, Level, Logits, Points, Targets};
#[cfg(feature = "cuda")]
pub use workspace::HeadWorkspace;

pub use crate::layout::{Layout, Rows};

use crate::boxes::IouKind;
use crate::error::{Error, Result, check_option};
use crate::{DistributionFocalLoss, QualityFocalLoss};

/// The most levels that one call takes.
pub const MAX_LEVELS: usize = 8;

/// Losses of a level: classification, box, distribution.
pub const LOSSES: usize = 3;

/// Where the quality of a positive comes from, which is its target in the classification loss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum QualitySource {
    /// The IoU of the decoded box with its target box.
    #[default]
    Iou,
    /// The caller: [`Targets::quality`], as an assigner's target scores.
    Given,
}

/// What the box losses of a positive are weighted by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BoxWeight {
    /// The largest of its class scores, max σ(cls).
    #[default]
    MaxScore,
    /// Its quality, wherever that comes from.
    Quality,
    /// The caller: [`Targets::box_scores`].
    Given,
}

/// What the box logits of a side say of its distance E from the anchor point, in units of the stride.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BoxCoding {
    /// So many logits: E is the mean of the distribution over bins that they are.
    Bins(usize),
    /// One logit z: E = exp(z), as in FCOS. Without bins there is no distribution loss, which is 0.
    Exp,
    /// One logit z: E = max(z, 0), whose derivative at 0 is 0.
    Relu,
}

/// What the sums of the losses are divided by. n is the number of positives and Σv the sum of
/// their box weights, over all levels and, after an all-reduce, the mean over all processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Normaliser {
    /// mmdetection 3: N = ε + Σ over images of max(n of the image, 1), W = max(Σv, 1);
    /// the box loss is divided by (1 + ε)·W and the distribution loss by (4 + ε)·W, ε = 2^-23.
    #[default]
    Mmdetection,
    /// NanoDet: N = max(n, 1), W = max(Σv, 1).
    Nanodet,
    /// Ultralytics: N = W = max(Σv, 1).
    Ultralytics,
}

/// What the sums of the three losses are multiplied by, and how it comes from n and Σv.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NormaliserRule {
    /// An image counts as having one positive if it has none.
    pub image_has_one: bool,
    /// N is W.
    pub cls_by_weight: bool,
    /// N = max(n + epsilon, minimum).
    pub cls_epsilon: f64,
    /// See `cls_epsilon`.
    pub cls_minimum: f64,
    /// What 1 / W is multiplied by in the box loss.
    pub bbox_factor: f64,
    /// In the distribution loss.
    pub dfl_factor: f64,
}

impl Normaliser {
    /// What it comes to.
    pub fn rule(self) -> NormaliserRule {
        let exact = NormaliserRule {
            image_has_one: false,
            cls_by_weight: false,
            cls_epsilon: 0.0,
            cls_minimum: 1.0,
            bbox_factor: 1.0,
            dfl_factor: 0.25,
        };
        let epsilon = f64::from(f32::EPSILON);
        match self {
            Normaliser::Mmdetection => NormaliserRule {
                image_has_one: true,
                cls_epsilon: epsilon,
                cls_minimum: 0.0,
                bbox_factor: 1.0 / (1.0 + epsilon),
                dfl_factor: 1.0 / (4.0 + epsilon),
                ..exact
            },
            Normaliser::Nanodet => exact,
            Normaliser::Ultralytics => NormaliserRule { cls_by_weight: true, ..exact },
        }
    }
}

impl NormaliserRule {
    /// The factors of the three losses, given n and Σv.
    pub fn factors(&self, positives: f64, box_weights: f64) -> [f64; LOSSES] {
        let w = box_weights.max(1.0);
        let n = if self.cls_by_weight { w } else { (positives + self.cls_epsilon).max(self.cls_minimum) };
        [1.0 / n, self.bbox_factor / w, self.dfl_factor / w]
    }
}

/// The head loss with its options; see [the module](self) for the formula.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HeadLoss {
    pub(crate) qfl: QualityFocalLoss,
    pub(crate) dfl: DistributionFocalLoss,
    pub(crate) iou: IouKind,
    pub(crate) iou_weight: f64,
    pub(crate) iou_eps: f64,
    pub(crate) coding: BoxCoding,
    pub(crate) quality: QualitySource,
    pub(crate) box_weight: BoxWeight,
    pub(crate) normaliser: Normaliser,
}

impl Default for HeadLoss {
    /// [`HeadLoss::mmdetection`].
    fn default() -> Self {
        HeadLoss::mmdetection()
    }
}

impl HeadLoss {
    /// GFL's head in mmdetection 3 (`GFLHead`, configs/gfl):
    ///
    /// | | |
    /// | --- | --- |
    /// | classification | QFL, β 2, weight 1; quality = IoU, ε 1e-6 |
    /// | box | GIoU, ε 1e-6, weight 2 |
    /// | distribution | 17 bins (reg_max 16), targets up to 15.9, weight 0.25 |
    /// | box weight v | largest class score |
    /// | divided by | [`Normaliser::Mmdetection`] |
    /// | anchor points | [`Points::Grid`] with offset 0 |
    pub fn mmdetection() -> Self {
        HeadLoss {
            qfl: QualityFocalLoss::default(),
            dfl: DistributionFocalLoss { loss_weight: 0.25, target_eps: 0.1 },
            iou: IouKind::Giou,
            iou_weight: 2.0,
            iou_eps: 1e-6,
            coding: BoxCoding::Bins(17),
            quality: QualitySource::Iou,
            box_weight: BoxWeight::MaxScore,
            normaliser: Normaliser::Mmdetection,
        }
    }

    /// NanoDet-Plus (`NanoDetPlusHead`): as [`mmdetection`](Self::mmdetection), but for
    ///
    /// | | |
    /// | --- | --- |
    /// | quality | [`Targets::quality`]: the IoU that the assigner saw |
    /// | distribution | 8 bins (reg_max 7), targets up to 6.9 |
    /// | divided by | [`Normaliser::Nanodet`] |
    ///
    /// Its assigner sees the boxes of the auxiliary head while there is one. For that head, or
    /// without one, the quality is the IoU of the head's own boxes: [`QualitySource::Iou`] does the
    /// same. NanoDet computes boxes in pixels, which makes a difference only for areas below ε.
    pub fn nanodet() -> Self {
        HeadLoss {
            coding: BoxCoding::Bins(8),
            quality: QualitySource::Given,
            normaliser: Normaliser::Nanodet,
            ..HeadLoss::mmdetection()
        }
    }

    /// YOLOv8 to v12 in Ultralytics (`v8DetectionLoss`):
    ///
    /// | | |
    /// | --- | --- |
    /// | classification | binary cross entropy (QFL with β 0), weight 0.5 |
    /// | quality | [`Targets::quality`]: the assigner's target score |
    /// | box | [`IouKind::CiouUltralytics`], ε 1e-7, weight 7.5 |
    /// | distribution | 16 bins (reg_max 16), targets up to 14.99, weight 1.5 |
    /// | box weight v | the quality |
    /// | divided by | [`Normaliser::Ultralytics`] |
    /// | anchor points | [`Points::Grid`] with offset 0.5 |
    ///
    /// Ultralytics multiplies the losses by the batch size, which is left to the caller.
    pub fn ultralytics() -> Self {
        HeadLoss {
            qfl: QualityFocalLoss { beta: 0.0, loss_weight: 0.5, ..QualityFocalLoss::default() },
            dfl: DistributionFocalLoss { loss_weight: 1.5, target_eps: 0.01 },
            iou: IouKind::CiouUltralytics,
            iou_weight: 7.5,
            iou_eps: 1e-7,
            coding: BoxCoding::Bins(16),
            quality: QualitySource::Given,
            box_weight: BoxWeight::Quality,
            normaliser: Normaliser::Ultralytics,
        }
    }

    /// Another classification loss: β, its weight, and which labels mean what.
    #[must_use]
    pub fn with_qfl(self, qfl: QualityFocalLoss) -> Self {
        HeadLoss { qfl, ..self }
    }

    /// Another distribution loss: its weight, and where its targets are clamped.
    #[must_use]
    pub fn with_dfl(self, dfl: DistributionFocalLoss) -> Self {
        HeadLoss { dfl, ..self }
    }

    /// Another box loss, times a weight.
    ///
    /// # Errors
    /// The weight must be finite.
    pub fn with_iou(self, iou: IouKind, weight: f64) -> Result<Self> {
        check_option("iou_weight", weight, "a finite number", true)?;
        Ok(HeadLoss { iou, iou_weight: weight, ..self })
    }

    /// Another ε of the box loss and of the IoU, in squared units of the stride.
    ///
    /// # Errors
    /// It must be from 1e-30 to 1.
    pub fn with_iou_eps(self, eps: f64) -> Result<Self> {
        check_option("iou_eps", eps, "from 1e-30 to 1", (1e-30..=1.0).contains(&eps))?;
        Ok(HeadLoss { iou_eps: eps, ..self })
    }

    /// Another number of bins for each box side: reg_max + 1 in GFL's family, reg_max in
    /// Ultralytics'.
    ///
    /// # Errors
    /// There must be 2 to 1024 bins.
    pub fn with_bins(self, bins: usize) -> Result<Self> {
        self.with_box_coding(BoxCoding::Bins(bins))
    }

    /// What the box logits say.
    ///
    /// # Errors
    /// There must be 2 to 1024 bins.
    pub fn with_box_coding(self, coding: BoxCoding) -> Result<Self> {
        match coding {
            BoxCoding::Bins(bins) if !(2..=1024).contains(&bins) => {
                Err(Error::InvalidOption { option: "bins", value: bins as f64, rule: "from 2 to 1024" })
            }
            _ => Ok(HeadLoss { coding, ..self }),
        }
    }

    /// Where the quality of a positive comes from.
    #[must_use]
    pub fn with_quality(self, quality: QualitySource) -> Self {
        HeadLoss { quality, ..self }
    }

    /// What the box losses of a positive are weighted by.
    #[must_use]
    pub fn with_box_weight(self, box_weight: BoxWeight) -> Self {
        HeadLoss { box_weight, ..self }
    }

    /// What the sums are divided by.
    #[must_use]
    pub fn with_normaliser(self, normaliser: Normaliser) -> Self {
        HeadLoss { normaliser, ..self }
    }

    /// The classification loss and its weight.
    pub fn qfl(&self) -> QualityFocalLoss {
        self.qfl
    }

    /// The distribution loss and its weight.
    pub fn dfl(&self) -> DistributionFocalLoss {
        self.dfl
    }

    /// Where the quality of a positive comes from.
    pub fn quality(&self) -> QualitySource {
        self.quality
    }

    /// The box loss.
    pub fn iou(&self) -> IouKind {
        self.iou
    }

    /// What the box loss is multiplied by.
    pub fn iou_weight(&self) -> f64 {
        self.iou_weight
    }

    /// The ε of the box loss and of the IoU.
    pub fn iou_eps(&self) -> f64 {
        self.iou_eps
    }

    /// What the box logits say.
    pub fn box_coding(&self) -> BoxCoding {
        self.coding
    }

    /// How many logits a box side has: its bins, or 1 without.
    pub fn bins(&self) -> usize {
        match self.coding {
            BoxCoding::Bins(bins) => bins,
            BoxCoding::Exp | BoxCoding::Relu => 1,
        }
    }

    /// Channels of the box logits: four sides (left, top, right, bottom) of all bins.
    pub fn box_channels(&self) -> usize {
        4 * self.bins()
    }

    /// Whether qualities are read from [`Targets::quality`]: not if nothing depends on them.
    pub(crate) fn reads_quality(&self, has_scores: bool) -> bool {
        self.quality == QualitySource::Given && (!has_scores || self.box_weight == BoxWeight::Quality)
    }

    /// The largest target of a side that is not clamped. Without bins none is.
    pub(crate) fn target_max(&self) -> f64 {
        match self.coding {
            BoxCoding::Bins(bins) => (bins - 1) as f64 - self.dfl.target_eps,
            BoxCoding::Exp | BoxCoding::Relu => f64::INFINITY,
        }
    }
}
