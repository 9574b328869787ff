//! The options of `gfocal head`.

use std::path::PathBuf;

use clap::Args;

use super::choices::{BoxWeightChoice, BoxesChoice, IouChoice, NormaliserChoice, Profile, QualityChoice};
use crate::assign::AssignerArgs;
use crate::floats::Dtype;
use crate::values::{BackgroundChoice, DeviceChoice, above_0, alpha, beta, finite, image_size, not_negative};

const ABOUT: &str = "\
The file holds for each level i = 0, 1, ... of the pyramid, finest first:
  level{i}.cls_logits       [B, C, H, W], or [B, H*W, C] with --image-size or anchors
  level{i}.box_logits       [B, 4K, H, W], or [B, H*W, 4K]; channel side*K + bin, sides left, top,
                            right, bottom; 4 channels with --boxes exp or relu
  level{i}.labels           [B, H*W], I64 or I32; C and negative ones are background
  level{i}.box_targets      [B, H*W, 4], x1, y1, x2, y2 in pixels, read for positives
and, if wanted,
  level{i}.label_weights    [B, H*W], of the classification loss
  level{i}.quality          [B, H*W], with --quality given, which --profile ultralytics has, and
                            nanodet if there are any and no --assign
  level{i}.scores           [B, H*W, C], classification targets, in place of the quality
  level{i}.element_weights  [B, H*W, C], of the elements of the classification loss
  level{i}.box_weights      [B, H*W], of the box losses of positives
  level{i}.box_scores       [B, H*W], with --box-weight given
  class_weights             [C], of the classes in the classification loss
  level{i}.points           [H*W, 2], anchor points in pixels, or level{i}.anchors [B, H*W, 4],
                            boxes around them; without these, anchor points are on a grid
Where the size of the images is told, the positions of a level must be ceil(height / stride) x
ceil(width / stride). Class and box logits may be of two types. What is beside them is used as F32, and
as F64 beside F64 class logits; ground truth for --assign as F32.

With --raw, both outputs are channels of one tensor, 4K of boxes first: raw [B, 4K + C, A], with
the positions of all levels one after another in the order of --strides, sizes from --image-size;
or level{i}.raw [B, 4K + C, H, W] or [B, 4K + C, H*W]. K is that of --reg-max, else what --classes
(or the metadata) leave, else the profile's. The gradients come back as grad_raw, or
level{i}.grad_raw, of the same shape.

With --assign, labels and box targets come from gt_boxes [G, 4], gt_labels [G] and gt_image [G]
(the image of each box, -1 for padding) instead; `gfocal assign --help` says what else is read.
Weights of the file multiply those of the assignment. A note names all tensors that are not read.

Strides, weights and beta may stand in the metadata, under the key case, as a JSON object:
{\"strides\": [8, 16], \"beta\": 2.0, \"weights\": {\"qfl\": 1.0, \"giou\": 2.0, \"dfl\": 0.25}}; so may
reg_max, num_classes, image_hw, offset and what assigners take. Options have the last word.

Examples:
  gfocal head step.safetensors
  gfocal head step.safetensors --assign --device cuda --dtype bf16 --output out.safetensors
  gfocal head yolo.safetensors --profile ultralytics --raw --strides 8,16,32 --image-size 640x640";

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

    /// File to write: level{i}.loss_cls, .loss_bbox, .loss_dfl, .grad_cls_logits and .grad_box_logits (or grad_raw),
    /// and with --assign level{i}.labels, .box_targets and .label_weights
    #[arg(long, value_name = "OUT.safetensors")]
    pub output: Option<PathBuf>,

    /// One JSON object on standard output instead of a table
    #[arg(long)]
    pub json: bool,
}

/// Where the levels of a head are in a file, and what they say of boxes.
#[derive(Debug, Args)]
pub struct LevelArgs {
    /// Whose head it is: how --reg-max counts and where the grid is, and of the losses the constants, and where
    /// qualities, weights and normalisers come from
    #[arg(long, value_name = "WHOSE", value_enum)]
    pub profile: Option<Profile>,

    /// Both outputs are channels of one tensor: raw, or level{i}.raw
    #[arg(long)]
    pub raw: bool,

    /// Pixels between the positions of each level, with commas between [default: from the metadata]
    #[arg(long, value_name = "S", value_delimiter = ',', value_parser = above_0)]
    pub strides: Vec<f64>,

    /// Largest distance in bins, to check against the file, and to read --raw: K is R + 1, or R in --profile
    /// ultralytics [default: from the metadata]
    #[arg(long, value_name = "R", value_parser = reg_max)]
    pub reg_max: Option<usize>,

    /// How many classes there are, to check against the file, and to read --raw [default: from the metadata]
    #[arg(long, value_name = "C")]
    pub classes: Option<usize>,

    /// Height and width of the images in pixels, which the positions must be those of [default: from the metadata]
    #[arg(long, value_name = "HxW", value_parser = image_size)]
    pub image_size: Option<[usize; 2]>,

    /// Anchor points are at (x + OFFSET) * stride; takes the place of those in the file [default: those in the
    /// file, else from the metadata, else 0, and 0.5 in --profile ultralytics and to assign by FCOS]
    #[arg(long, value_name = "OFFSET", value_parser = finite, allow_hyphen_values = true)]
    pub offset: Option<f64>,

    /// What box logits say of the distances to the sides [default: bins]
    #[arg(long, value_name = "WHAT", value_enum)]
    pub boxes: Option<BoxesChoice>,
}

impl LevelArgs {
    pub fn profile(&self) -> Profile {
        self.profile.unwrap_or(Profile::Mmdetection)
    }

    pub fn boxes(&self) -> BoxesChoice {
        self.boxes.unwrap_or_default()
    }
}

/// How a file is to be understood.
#[derive(Debug, Args)]
pub struct SceneArgs {
    #[command(flatten)]
    pub levels: LevelArgs,

    /// Find labels and box targets from the ground truth; those in the file are not read
    #[arg(long)]
    pub assign: bool,

    /// Which label means background
    #[arg(long, value_name = "WHICH", value_enum, default_value = "last")]
    pub background: BackgroundChoice,

    /// Anchors with this label give no loss and no gradient; any integer [default: there is no such label]
    #[arg(long, value_name = "L", allow_hyphen_values = true)]
    pub ignore_label: Option<i64>,

    /// Where the quality of a positive comes from, which is its target in the classification loss [default: given in
    /// --profile ultralytics, and in nanodet if there is level0.quality and no --assign; else iou]
    #[arg(long, value_name = "FROM", value_enum)]
    pub quality: Option<QualityChoice>,

    /// What the box losses of a positive are weighted by [default: quality in --profile ultralytics, else max-score]
    #[arg(long, value_name = "BY", value_enum)]
    pub box_weight: Option<BoxWeightChoice>,

    /// What the losses are divided by, and whose way [default: the profile's]
    #[arg(long, value_name = "WHOSE", value_enum)]
    pub normaliser: Option<NormaliserChoice>,

    /// Exponent of the modulating factor, from 0 (binary cross entropy) to 10^6
    #[arg(long, value_name = "BETA", value_parser = beta, allow_hyphen_values = true)]
    pub beta: Option<f64>,

    /// Elements of the classification loss with target y are weighted by y A + (1 - y)(1 - A), from 0 to 1, as focal
    /// loss is [default: they are not]
    #[arg(long, value_name = "A", value_parser = alpha, allow_hyphen_values = true)]
    pub alpha: Option<f64>,

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

    #[command(flatten)]
    pub assigner: AssignerArgs,
}

fn reg_max(text: &str) -> Result<usize, String> {
    let value = text.parse().ok().filter(|value| (1..=1024).contains(value));
    value.ok_or_else(|| "it must be an integer from 1 to 1024".to_owned())
}
