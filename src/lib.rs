#![doc = include_str!("../README.md")]
#![doc(test(attr(deny(warnings))))]

pub mod assign;
pub mod boxes;
mod call;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod decode;
pub mod dfl;
mod element;
mod error;
pub mod gfl;
pub mod head;
pub mod integral;
mod layout;
mod math;
mod memory;
pub mod qfl;
mod reduction;
mod scale;
mod status;
mod vector;

pub use call::{Call, Operation};
#[cfg(feature = "cuda")]
pub use cudarc;
pub use dfl::DistributionFocalLoss;
pub use element::{Element, Label, LabelSlice};
pub use error::{Error, ErrorKind, Result};
pub use gfl::Gfl;
pub use half::{bf16, f16};
pub use head::HeadLoss;
pub use memory::{Host, Memory};
pub use qfl::{Background, QualityFocalLoss};
pub use reduction::{AvgPolicy, Reduction};
pub use scale::scale;
pub use status::{AssignmentStatus, Counted, Status};
