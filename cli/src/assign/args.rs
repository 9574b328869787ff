//! The options of assigners, and of `gfocal assign`.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, ValueEnum};

use crate::values::{BackgroundChoice, DeviceChoice, above_0, finite, image_size};

const ABOUT: &str = "\
The file holds
  gt_boxes   [G, 4], x1, y1, x2, y2 in pixels
  gt_labels  [G], I64 or I32: classes, 0..C, or 1..=C with --background first
  gt_image   [G], the image of each box; -1 for padding
and, if wanted,
  valid_hw                           [B, 2], height and width in pixels of each image of a padded
                                     batch: anchors beyond take no part, with label weight 0
  gt_ignore_boxes, gt_ignore_image   [I, 4] and [I], with --ignore-iof: regions in which anchors
                                     take no part
  gt_weights                         [G], weights of the boxes, for the anchors assigned to them
  level{i}.points, level{i}.anchors  [H*W, 2], anchor points in pixels, or [B, H*W, 4] or
                                     [H*W, 4], boxes; the same for all images
Without points and anchors, the positions are those of level{i}.cls_logits if they are there, else
of images of --image-size at --strides, and anchors are on a grid. All options that say so, and
--classes, have their defaults in the metadata, under the key case, as those of `gfocal head`:
strides, image_hw, num_classes, offset, atss_topk, anchor_scale, regress_ranges,
center_sampling and center_sample_radius.

Examples:
  gfocal assign step.safetensors --output targets.safetensors
  gfocal assign step.safetensors --assigner fcos --center-sampling 1.5
  gfocal assign step.safetensors --ignore-iof 0.5 --fallback 1 --json";

#[derive(Debug, Args)]
#[command(after_help = ABOUT)]
pub struct AssignArgs {
    /// The .safetensors file that holds the ground truth
    pub file: PathBuf,

    /// Where to compute: auto, cpu, cuda (the same as cuda:0) or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: DeviceChoice,

    /// Pixels between the positions of each level, with commas between [default: from the metadata]
    #[arg(long, value_name = "S", value_delimiter = ',', value_parser = above_0)]
    pub strides: Vec<f64>,

    /// Height and width of the images in pixels [default: from the metadata]
    #[arg(long, value_name = "HxW", value_parser = image_size)]
    pub image_size: Option<[usize; 2]>,

    /// How many images there are [default: as many as the tensors of the file have, else as gt_image names]
    #[arg(long, value_name = "B")]
    pub images: Option<usize>,

    /// How many classes there are [default: from the metadata, else from level0.cls_logits]
    #[arg(long, value_name = "C")]
    pub classes: Option<usize>,

    /// Anchor points are at (x + OFFSET) * stride; takes the place of those in the file [default: those in the
    /// file, else from the metadata, else 0, and 0.5 for fcos]
    #[arg(long, value_name = "OFFSET", value_parser = finite, allow_hyphen_values = true)]
    pub offset: Option<f64>,

    /// Which label means background
    #[arg(long, value_name = "WHICH", value_enum, default_value = "last")]
    pub background: BackgroundChoice,

    #[command(flatten)]
    pub assigner: AssignerArgs,

    /// File to write: level{i}.labels, .box_targets and .label_weights, with gt_weights .box_weights, and with fcos
    /// .centerness
    #[arg(long, value_name = "OUT.safetensors")]
    pub output: Option<PathBuf>,

    /// One JSON object on standard output instead of a table
    #[arg(long)]
    pub json: bool,
}

/// How targets are assigned.
#[derive(Debug, Args)]
pub struct AssignerArgs {
    /// How the anchors are found that a box is assigned to [default: atss]
    #[arg(long, value_name = "WHICH", value_enum)]
    pub assigner: Option<AssignerChoice>,

    /// ATSS: candidates of each level for a box [default: from the metadata, else 9]
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u32).range(1..=256))]
    pub topk: Option<u32>,

    /// ATSS: side of the square anchors, in strides [default: from the metadata, else 8]
    #[arg(long, value_name = "A", value_parser = above_0)]
    pub anchor_scale: Option<f64>,

    /// FCOS: the distances in pixels that each level is for, as -1:64,64:128,128:inf, of the side that is farthest
    /// from the anchor point [default: from the metadata, else those of FCOS for five levels]
    #[arg(long, value_name = "LOW:HIGH", value_delimiter = ',', allow_hyphen_values = true)]
    pub regress_ranges: Vec<Range>,

    /// FCOS: anchor points must be nearer to the centre of a box than RADIUS strides, or none for anywhere inside
    /// [default: from the metadata, else none]
    #[arg(long, value_name = "RADIUS", allow_hyphen_values = true)]
    pub center_sampling: Option<CenterSampling>,

    /// Anchors with more than this share of their area inside a box of gt_ignore_boxes take no part, above 0 and at most 1; an
    /// anchor point of FCOS has all of it or nothing inside [default: gt_ignore_boxes is not read]
    #[arg(long, value_name = "SHARE", value_parser = share, allow_hyphen_values = true)]
    pub ignore_iof: Option<f64>,

    /// How many of its nearest free anchors a box gets that none is assigned to
    #[arg(long, value_name = "N", default_value = "0")]
    pub fallback: u32,
}

/// What `--assigner` may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum AssignerChoice {
    /// The anchors near the centre of a box whose IoU with it is high among those
    #[default]
    Atss,
    /// The anchor points inside a box on the level that is for its size
    Fcos,
}

impl AssignerChoice {
    /// Of the anchor points on a grid, in strides, unless something else is told.
    pub fn offset(self) -> f64 {
        match self {
            AssignerChoice::Atss => 0.0,
            AssignerChoice::Fcos => 0.5,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            AssignerChoice::Atss => "atss",
            AssignerChoice::Fcos => "fcos",
        }
    }
}

/// One of `--regress-ranges`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Range(pub [f64; 2]);

impl FromStr for Range {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let ends = text.split_once(':').and_then(|(low, high)| Some([low.parse().ok()?, high.parse().ok()?]));
        ends.filter(|[low, high]: &[f64; 2]| low <= high)
            .map(Range)
            .ok_or("it must be a distance and a larger one, as 64:128")
    }
}

/// What `--center-sampling` may be: a radius in strides, if there is one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CenterSampling(pub Option<f64>);

impl FromStr for CenterSampling {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match (text, above_0(text)) {
            ("none", _) => Ok(CenterSampling(None)),
            (_, Ok(radius)) => Ok(CenterSampling(Some(radius))),
            (_, Err(_)) => Err("it must be a finite number above 0, or none"),
        }
    }
}

/// As the library takes it.
fn share(text: &str) -> Result<f64, String> {
    let value = above_0(text).ok().filter(|&value| value <= 1.0);
    value.ok_or_else(|| "it must be a number above 0, and at most 1".to_owned())
}

impl AssignerArgs {
    pub fn choice(&self) -> AssignerChoice {
        self.assigner.unwrap_or_default()
    }

    /// An option that is given, if there is one.
    pub fn given(&self) -> Option<&'static str> {
        let general = [
            ("--assigner", self.assigner.is_some()),
            ("--ignore-iof", self.ignore_iof.is_some()),
            ("--fallback", self.fallback > 0),
        ];
        let given =
            |options: &[(&'static str, bool)]| options.iter().find(|option| option.1).map(|option| option.0);
        given(&general).or_else(|| given(&self.of_atss())).or_else(|| given(&self.of_fcos()))
    }

    /// An option of the other assigner that is given, if there is one.
    pub fn of_the_other(&self) -> Option<&'static str> {
        let others = match self.choice() {
            AssignerChoice::Atss => self.of_fcos().to_vec(),
            AssignerChoice::Fcos => self.of_atss().to_vec(),
        };
        others.iter().find(|option| option.1).map(|option| option.0)
    }

    fn of_atss(&self) -> [(&'static str, bool); 2] {
        [("--topk", self.topk.is_some()), ("--anchor-scale", self.anchor_scale.is_some())]
    }

    fn of_fcos(&self) -> [(&'static str, bool); 2] {
        [
            ("--regress-ranges", !self.regress_ranges.is_empty()),
            ("--center-sampling", self.center_sampling.is_some()),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_and_radii() {
        assert_eq!("-1:64".parse(), Ok(Range([-1.0, 64.0])));
        assert_eq!("512:inf".parse(), Ok(Range([512.0, f64::INFINITY])));
        for wrong in ["", "64", "64:", ":64", "64:8", "NaN:8", "8:NaN", "a:b", "1:2:3"] {
            assert!(wrong.parse::<Range>().is_err(), "{wrong}");
        }
        assert_eq!("none".parse(), Ok(CenterSampling(None)));
        assert_eq!("1.5".parse(), Ok(CenterSampling(Some(1.5))));
        for wrong in ["", "0", "-1", "inf", "all"] {
            assert!(wrong.parse::<CenterSampling>().is_err(), "{wrong}");
        }
    }
}
