//! The options of `gfocal head`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use gfocal::boxes::IouKind;
use gfocal::head::HeadLoss;
use serde::Serialize;

use crate::floats::Dtype;
use crate::values::{DeviceChoice, beta, finite, not_negative};

const ABOUT: &str = "\
The file holds for each level i = 0, 1, ... of the pyramid, finest first:
  level{i}.cls_logits   [B, C, H, W], or [B, H*W, C] with --image-size or anchors
  level{i}.box_logits   [B, 4K, H, W], or [B, H*W, 4K]; channel side*K + bin, left, top, right, bottom
  level{i}.labels       [B, H*W], I64 or I32; C and negative ones are background
  level{i}.box_targets  [B, H*W, 4], x1, y1, x2, y2 in pixels, read for positives
and, if wanted, level{i}.label_weights [B, H*W], level{i}.quality [B, H*W] (the assigner's scores, for
--profile ultralytics, and nanodet if it has them) and level{i}.anchors [B, H*W, 4] (boxes, whose centres are the anchor points) or
level{i}.points [H*W, 2] (pixels). Without these two, anchor points are on a grid.

With --assign, labels and box targets come from gt_boxes [G, 4], gt_labels [G] and gt_image [G] (the
image of each box) instead, by ATSS.

Strides, weights and beta may stand in the metadata, under the key case, as a JSON object:
{\"strides\": [8, 16], \"beta\": 2.0, \"weights\": {\"qfl\": 1.0, \"giou\": 2.0, \"dfl\": 0.25}}. Options have the last word.

Examples:
  gfocal head step.safetensors
  gfocal head step.safetensors --assign --device cuda --dtype bf16 --output out.safetensors
  gfocal head yolo.safetensors --profile ultralytics --strides 8,16,32 --json";

#[derive(Debug, Args)]
#[command(after_help = ABOUT)]
pub struct HeadArgs {
    /// The .safetensors file that holds the head's outputs and targets
    pub file: PathBuf,

    /// Where to compute: auto, cpu, cuda (the same as cuda:0) or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: DeviceChoice,

    /// Type to round the logits to, which is also the gradients'; f64 is for the CPU only [default: the file's type]
    #[arg(long, value_name = "TYPE", value_enum)]
    pub dtype: Option<Dtype>,

    #[command(flatten)]
    pub scene: SceneArgs,

    /// What the gradients are multiplied by before they are rounded, as the loss scale of mixed precision
    #[arg(long, value_name = "S", value_parser = finite, allow_hyphen_values = true, default_value = "1")]
    pub grad_scale: f64,

    /// File to write: level{i}.loss_cls, .loss_bbox, .loss_dfl, .grad_cls_logits and .grad_box_logits, and with
    /// --assign level{i}.labels and .box_targets
    #[arg(long, value_name = "OUT.safetensors")]
    pub output: Option<PathBuf>,

    /// One JSON object on standard output instead of a table
    #[arg(long)]
    pub json: bool,
}

/// How a file is to be understood.
#[derive(Debug, Args)]
pub struct SceneArgs {
    /// Whose head it is: the constants, and where qualities, weights and normalisers come from
    #[arg(long, value_name = "WHOSE", value_enum)]
    pub profile: Option<Profile>,

    /// Find labels and box targets from the ground truth by ATSS; those in the file are not read
    #[arg(long)]
    pub assign: bool,

    /// Pixels between the positions of each level, with commas between [default: from the metadata]
    #[arg(long, value_name = "S", value_delimiter = ',', value_parser = stride)]
    pub strides: Vec<f64>,

    /// Largest distance in bins, to check against the file: K is R + 1, or R in --profile ultralytics
    #[arg(long, value_name = "R")]
    pub reg_max: Option<usize>,

    /// Height and width of the images in pixels, for channels-last outputs [default: from the metadata]
    #[arg(long, value_name = "HxW", value_parser = image_size)]
    pub image_size: Option<[usize; 2]>,

    /// Anchor points are at (x + OFFSET) * stride; takes the place of those in the file [default: those in the
    /// file, else 0, and 0.5 in --profile ultralytics]
    #[arg(long, value_name = "OFFSET", value_parser = finite, allow_hyphen_values = true)]
    pub offset: Option<f64>,

    /// Exponent of the modulating factor, from 0 (binary cross entropy) to 10^6
    #[arg(long, value_name = "BETA", value_parser = beta, allow_hyphen_values = true)]
    pub beta: Option<f64>,

    /// Weight of the classification loss
    #[arg(long, value_name = "W", value_parser = finite, allow_hyphen_values = true)]
    pub cls_weight: Option<f64>,

    /// Weight of the box loss
    #[arg(long, value_name = "W", value_parser = finite, allow_hyphen_values = true)]
    pub iou_weight: Option<f64>,

    /// Weight of the distribution loss
    #[arg(long, value_name = "W", value_parser = finite, allow_hyphen_values = true)]
    pub dfl_weight: Option<f64>,

    /// The box loss
    #[arg(long, value_name = "WHICH", value_enum)]
    pub iou: Option<IouChoice>,

    /// Distance targets are clamped to [0, K - 1 - E], in units of bins
    #[arg(long, value_name = "E", value_parser = not_negative, allow_hyphen_values = true)]
    pub target_eps: Option<f64>,

    /// ATSS: candidates of each level for a box [default: from the metadata, else 9]
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u32).range(1..=32))]
    pub topk: Option<u32>,

    /// ATSS: side of the square anchors, in strides [default: from the metadata, else 8]
    #[arg(long, value_name = "A", value_parser = stride)]
    pub anchor_scale: Option<f64>,
}

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

fn stride(text: &str) -> Result<f64, String> {
    let value = finite(text).ok().filter(|&value| value > 0.0);
    value.ok_or_else(|| "it must be a finite number above 0".to_owned())
}

fn image_size(text: &str) -> Result<[usize; 2], String> {
    let side = |text: &str| text.parse::<usize>().ok().filter(|&side| side > 0);
    let sides = text.split_once('x').and_then(|(height, width)| Some([side(height)?, side(width)?]));
    sides.ok_or_else(|| "it must be a height and a width in pixels, as 800x1333".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_strides() {
        assert_eq!(image_size("800x1333"), Ok([800, 1333]));
        for wrong in ["", "800", "800x", "x", "0x8", "8x-1", "8x8x8", "8.5x8"] {
            assert!(image_size(wrong).is_err(), "{wrong}");
        }
        assert_eq!(stride("8"), Ok(8.0));
        for wrong in ["", "0", "-8", "NaN", "inf", "8px"] {
            assert!(stride(wrong).is_err(), "{wrong}");
        }
    }
}
