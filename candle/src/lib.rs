#![doc = include_str!("../README.md")]
#![doc(test(attr(deny(warnings))))]

mod assign;
mod boxes;
#[cfg(feature = "cuda")]
mod cuda;
mod decode;
mod dfl;
mod head;
mod integral;
mod pyramid;
mod qfl;
mod record;
mod report;
mod rows;
mod tensor;

#[doc = include_str!("../BURN.md")]
pub mod burn {}

pub use assign::{Anchors, Assigned, Assigner, GroundTruth, assign};
pub use boxes::{box_loss, box_to_distances, distances_to_box};
pub use decode::{BoxLevel, decode};
pub use dfl::dfl;
pub use gfocal;
pub use gfocal::assign::{AnchorGrid, Atss, Fcos};
pub use gfocal::boxes::{BoxLoss, IouKind};
pub use gfocal::head::{BoxCoding, BoxWeight, Normaliser, QualitySource};
pub use gfocal::{
    AvgPolicy, Background, DistributionFocalLoss, HeadLoss, QualityFocalLoss, Reduction, Status,
};
pub use head::{HeadLevel, HeadOptions, HeadOutput, Targets, head, head_with};
pub use integral::integral;
pub use pyramid::Points;
pub use qfl::{qfl, qfl_dense};
pub use report::Report;
pub use rows::{DflOptions, QflOptions, Scalar};
