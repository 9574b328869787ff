//! The values of the options of `gfocal head`.

use clap::ValueEnum;
use gfocal::boxes::IouKind;
use gfocal::head::{BoxCoding, BoxWeight, HeadLoss, Normaliser, QualitySource};
use serde::Serialize;

/// What `--profile` may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// GFL's head in mmdetection 3
    Mmdetection,
    /// NanoDet-Plus
    Nanodet,
    /// YOLOv8 and its successors in Ultralytics
    Ultralytics,
}

impl Profile {
    pub fn name(self) -> &'static str {
        match self {
            Profile::Mmdetection => "mmdetection",
            Profile::Nanodet => "nanodet",
            Profile::Ultralytics => "ultralytics",
        }
    }

    pub fn head(self) -> HeadLoss {
        match self {
            Profile::Mmdetection => HeadLoss::mmdetection(),
            Profile::Nanodet => HeadLoss::nanodet(),
            Profile::Ultralytics => HeadLoss::ultralytics(),
        }
    }

    /// The largest distance in bins, as this family counts it.
    pub fn reg_max(self, bins: usize) -> usize {
        match self {
            Profile::Mmdetection | Profile::Nanodet => bins - 1,
            Profile::Ultralytics => bins,
        }
    }

    /// How many bins a side has with that largest distance.
    pub fn bins(self, reg_max: usize) -> usize {
        match self {
            Profile::Mmdetection | Profile::Nanodet => reg_max.saturating_add(1),
            Profile::Ultralytics => reg_max,
        }
    }

    /// Of the anchor points, in strides.
    pub fn offset(self) -> f64 {
        match self {
            Profile::Mmdetection | Profile::Nanodet => 0.0,
            Profile::Ultralytics => 0.5,
        }
    }
}

/// What `--iou` may be.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum IouChoice {
    /// 1 - IoU
    Iou,
    /// Generalized IoU
    Giou,
    /// Distance IoU
    Diou,
    /// Complete IoU, as mmdetection has it
    Ciou,
    /// Complete IoU, as Ultralytics has it
    CiouUltralytics,
}

impl From<IouChoice> for IouKind {
    fn from(choice: IouChoice) -> Self {
        match choice {
            IouChoice::Iou => IouKind::Iou,
            IouChoice::Giou => IouKind::Giou,
            IouChoice::Diou => IouKind::Diou,
            IouChoice::Ciou => IouKind::Ciou,
            IouChoice::CiouUltralytics => IouKind::CiouUltralytics,
        }
    }
}

/// What `--normaliser` may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum NormaliserChoice {
    /// The classification loss by the positives, of which an image without any counts as one; the others by the box weights
    Mmdetection,
    /// The classification loss by the positives, the others by the box weights
    Nanodet,
    /// All by the box weights
    Ultralytics,
}

impl From<NormaliserChoice> for Normaliser {
    fn from(choice: NormaliserChoice) -> Self {
        match choice {
            NormaliserChoice::Mmdetection => Normaliser::Mmdetection,
            NormaliserChoice::Nanodet => Normaliser::Nanodet,
            NormaliserChoice::Ultralytics => Normaliser::Ultralytics,
        }
    }
}

/// What `--quality` may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum QualityChoice {
    /// The IoU of a positive's box with its target box
    Iou,
    /// level{i}.quality
    Given,
}

impl From<QualityChoice> for QualitySource {
    fn from(choice: QualityChoice) -> Self {
        match choice {
            QualityChoice::Iou => QualitySource::Iou,
            QualityChoice::Given => QualitySource::Given,
        }
    }
}

/// What `--box-weight` may be.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum BoxWeightChoice {
    /// The largest class score of the positive
    MaxScore,
    /// Its quality
    Quality,
    /// level{i}.box_scores
    Given,
}

impl From<BoxWeightChoice> for BoxWeight {
    fn from(choice: BoxWeightChoice) -> Self {
        match choice {
            BoxWeightChoice::MaxScore => BoxWeight::MaxScore,
            BoxWeightChoice::Quality => BoxWeight::Quality,
            BoxWeightChoice::Given => BoxWeight::Given,
        }
    }
}

/// What `--boxes` may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum BoxesChoice {
    /// A distance is the mean of a distribution over K bins
    #[default]
    Bins,
    /// A distance is exp of one number, times the stride
    Exp,
    /// A distance is one number if it is above 0, else 0, times the stride
    Relu,
}

impl BoxesChoice {
    pub fn name(self) -> &'static str {
        match self {
            BoxesChoice::Bins => "bins",
            BoxesChoice::Exp => "exp",
            BoxesChoice::Relu => "relu",
        }
    }

    pub fn coding(self, bins: usize) -> BoxCoding {
        match self {
            BoxesChoice::Bins => BoxCoding::Bins(bins),
            BoxesChoice::Exp => BoxCoding::Exp,
            BoxesChoice::Relu => BoxCoding::Relu,
        }
    }
}
