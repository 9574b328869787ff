//! Target assignment: which anchors are trained on which box. [ATSS](Atss), adaptive training sample
//! selection, and [FCOS](Fcos)' rule.
//!
//! Both read the [`GroundTruth`] of a batch and write [`LevelTargets`] for each level: what each
//! anchor of each image is to be trained on. Both can be told of images that are smaller than the
//! batch, of regions to ignore, and of weights; what they cannot use they count in a
//! [`Status`](crate::Status), and so the boxes that no anchor is assigned to. CPU and CUDA give the
//! same bits.
//!
//! ```
//! use gfocal::assign::{AnchorGrid, Atss, GroundTruth, LevelTargets};
//!
//! // One image, one level of 4 × 4 anchors of 64 pixels, 8 pixels apart; one box of class 2.
//! let level = AnchorGrid::new(4, 4, 8.0);
//! let gt = GroundTruth::cpu(&[4.0, 4.0, 28.0, 28.0], &[2i64], &[0]);
//! let (mut labels, mut box_targets) = ([-1i64; 16], [f32::NAN; 64]);
//! let targets = LevelTargets::cpu(&mut labels, &mut box_targets);
//! let status = Atss::default().cpu(&[level.into()], gt, 1, 80, &mut [targets])?;
//! // The 9 anchors around the centre have the same IoU; the others are background.
//! assert_eq!(labels, [80, 80, 80, 80, 80, 2, 2, 2, 80, 2, 2, 2, 80, 2, 2, 2]);
//! assert_eq!(box_targets[20..24], [4.0, 4.0, 28.0, 28.0]);
//! assert!(status.is_ok());
//! # Ok::<(), gfocal::Error>(())
//! ```
//!
//! # Real batches
//!
//! ```
//! use gfocal::assign::{AnchorGrid, Atss, GroundTruth, LevelTargets};
//!
//! let level = AnchorGrid::new(4, 4, 8.0).with_scale(2.0);
//! // Two images; the second is 16 pixels high and 24 wide, and the rest of it is padding. Of the
//! // boxes one is broken, and one is only there to fill the tensor.
//! let boxes = [4.0, 4.0, 28.0, 28.0, f32::NAN, 4.0, 28.0, 28.0, 0.0, 0.0, 14.0, 14.0, 0.0, 0.0, 0.0, 0.0];
//! let gt = GroundTruth::cpu(&boxes, &[2i64, 2, 1, 0], &[0, 0, 1, -1])
//!     .weights(&[1.0, 1.0, 0.5, 0.0])
//!     .valid_hw(&[32, 32, 16, 24])
//!     .ignore(&[-8.0, 20.0, 40.0, 40.0], &[0]); // a crowd at the bottom of the first
//! let (mut labels, mut box_targets) = ([-1i64; 32], [f32::NAN; 128]);
//! let (mut label_weights, mut box_weights) = ([f32::NAN; 32], [f32::NAN; 32]);
//! let targets = LevelTargets::cpu(&mut labels, &mut box_targets)
//!     .label_weights(&mut label_weights)
//!     .box_weights(&mut box_weights);
//! let atss = Atss::default().with_ignore_iof(0.5)?;
//! let status = atss.cpu(&[level.into()], gt, 2, 80, &mut [targets])?.assignment;
//!
//! assert_eq!((status.bad_boxes.count, status.bad_boxes.first), (1, Some(1)));
//! assert_eq!(label_weights[12..16], [0.0; 4]); // in the crowd
//! assert_eq!(label_weights[16..20], [1.0, 1.0, 1.0, 0.0]); // three columns of the second image,
//! assert_eq!(label_weights[24..28], [0.0; 4]); // and two rows
//! assert!(labels[..12].contains(&2) && labels[16..].contains(&1));
//! assert!(box_weights[16..].contains(&0.5));
//! # Ok::<(), gfocal::Error>(())
//! ```

mod anchors;
pub(crate) mod atss;
mod check;
#[cfg(feature = "cuda")]
mod cuda;
pub(crate) mod fcos;
#[cfg(feature = "cuda")]
pub(crate) mod launch;
mod math;
mod options;
mod scene;
mod tensors;

pub use anchors::{AnchorGrid, Anchors, MAX_SIZES};
pub use atss::{Atss, MAX_TOPK};
#[cfg(feature = "cuda")]
pub use cuda::AssignWorkspace;
pub use fcos::Fcos;
use options::{Options, options};
pub use tensors::{GroundTruth, LevelTargets};

/// How many levels a call takes at most. Twin of the constant in kernels/assign.cuh.
pub const MAX_LEVELS: usize = 8;
