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

mod call;
mod check;
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod level;

pub use call::{HeadCall, Normalisers};
pub use level::{Gradients, Layout, Level, Logits, Points, Targets};

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
pub(crate) struct NormaliserRule {
    /// An image counts as having one positive if it has none.
    pub image_has_one: bool,
    /// N is W.
    pub cls_by_weight: bool,
    /// N = max(n + epsilon, minimum).
    pub cls_epsilon: f64,
    pub cls_minimum: f64,
    /// What 1 / W is multiplied by.
    pub bbox_factor: f64,
    pub dfl_factor: f64,
}

impl Normaliser {
    pub(crate) fn rule(self) -> NormaliserRule {
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
    pub(crate) bins: usize,
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
    /// GFL's head in mmdetection 3 (`GFLHead`, configs/gfl): β 2, 17 bins (reg_max 16), GIoU with
    /// ε 1e-6, weights 1, 2 and 0.25, DFL targets up to reg_max − 0.1.
    pub fn mmdetection() -> Self {
        HeadLoss {
            qfl: QualityFocalLoss::default(),
            dfl: DistributionFocalLoss { loss_weight: 0.25, target_eps: 0.1 },
            iou: IouKind::Giou,
            iou_weight: 2.0,
            iou_eps: 1e-6,
            bins: 17,
            quality: QualitySource::Iou,
            box_weight: BoxWeight::MaxScore,
            normaliser: Normaliser::Mmdetection,
        }
    }

    /// NanoDet-Plus (`NanoDetPlusHead`): as mmdetection, but 8 bins (reg_max 7) and its own
    /// [`Normaliser::Nanodet`].
    pub fn nanodet() -> Self {
        HeadLoss { bins: 8, normaliser: Normaliser::Nanodet, ..HeadLoss::mmdetection() }
    }

    /// YOLOv8 to v12 in Ultralytics (`v8DetectionLoss`): binary cross entropy on the assigner's
    /// target scores, which also weight the boxes (give them as [`Targets::quality`]); CIoU with
    /// ε 1e-7; 16 bins, targets up to 15 − 0.01, mean over the four sides; weights 0.5, 7.5 and 1.5.
    /// What Ultralytics multiplies by the batch size at the end is left to the caller.
    pub fn ultralytics() -> Self {
        HeadLoss {
            qfl: QualityFocalLoss { beta: 0.0, loss_weight: 0.5, ..QualityFocalLoss::default() },
            dfl: DistributionFocalLoss { loss_weight: 1.5, target_eps: 0.01 },
            iou: IouKind::Ciou,
            iou_weight: 7.5,
            iou_eps: 1e-7,
            bins: 16,
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

    /// Another number of bins for each box side: reg_max + 1 in GFL's family, reg_max in
    /// Ultralytics'.
    ///
    /// # Errors
    /// There must be 2 to 1024 bins.
    pub fn with_bins(self, bins: usize) -> Result<Self> {
        if !(2..=1024).contains(&bins) {
            return Err(Error::InvalidOption { option: "bins", value: bins as f64, rule: "from 2 to 1024" });
        }
        Ok(HeadLoss { bins, ..self })
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

    /// How many bins a box side has.
    pub fn bins(&self) -> usize {
        self.bins
    }

    /// Channels of the box logits: four sides (left, top, right, bottom) of all bins.
    pub fn box_channels(&self) -> usize {
        4 * self.bins
    }
}
