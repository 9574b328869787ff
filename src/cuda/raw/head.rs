//! The head loss: two launches, and what of their parameters depends on the device.

use std::ffi::c_void;

use super::{DeviceAddress, Pass};
use crate::cuda::Storage;
use crate::cuda::handle::Kernels;
use crate::cuda::launch::{Grid, lanes, launch};
use crate::error::{Error, Result};
use crate::head::MAX_LEVELS;

/// Where the elements of a `[batch, channels, positions]` tensor are, in elements. Twin of
/// `Strides` in kernels/head.cuh.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Strides {
    /// From one image to the next.
    pub batch: u64,
    /// From one channel to the next.
    pub channel: u64,
    /// From one position to the next.
    pub position: u64,
}

/// A level of the pyramid. Twin of `HeadLevel` in kernels/head.cuh.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct HeadLevel {
    /// The first element of the class logits.
    pub cls: DeviceAddress,
    /// The first element of the box logits; channel = side * bins + bin.
    pub boxes: DeviceAddress,
    /// As `cls`, in the same strides; null for [`Pass::Forward`]. Not overlapping the logits.
    pub grad_cls: DeviceAddress,
    /// As `boxes`, in the same strides; null for [`Pass::Forward`]. Not overlapping the logits.
    pub grad_boxes: DeviceAddress,
    /// Of the class logits and their gradient.
    pub cls_strides: Strides,
    /// Of the box logits and their gradient.
    pub box_strides: Strides,
    /// `[batch, positions]` i64 or i32.
    pub labels: DeviceAddress,
    /// `[batch, positions]` f32, or null: ones.
    pub label_weights: DeviceAddress,
    /// `[batch, positions, 4]` f32: x1, y1, x2, y2 in pixels.
    pub targets: DeviceAddress,
    /// `[batch, positions]` f32; null: the quality is the IoU.
    pub quality: DeviceAddress,
    /// `[positions, 2]` or `[batch, positions, 2]` f32 in pixels; null: a grid.
    pub points: DeviceAddress,
    /// The number of its first anchor in the status.
    pub first_row: u64,
    /// The number of its first anchor in the workspace: a multiple of 8.
    pub first_record: u64,
    /// Pixels from one position to the next.
    pub stride: f64,
    /// 1 / stride.
    pub inverse_stride: f64,
    /// The offset of a grid of points, in units of the stride.
    pub grid_offset: f64,
    /// Positions; times the batch, at most [`MAX_ANCHORS`].
    pub positions: u32,
    /// Positions in a row.
    pub width: u32,
    /// 1: labels are i64, 0: i32.
    pub labels_are_i64: u32,
    /// 1: the points are `[batch, positions, 2]`.
    pub points_of_batch: u32,
    /// Set by the launch, as all that follows.
    pub positives_block: u32,
    /// See `positives_block`.
    pub cls_block: u32,
    /// See `positives_block`.
    pub box_block: u32,
    /// See `positives_block`.
    pub cls_by_channel: u32,
    /// See `positives_block`.
    pub cls_vectors: u32,
    /// See `positives_block`.
    pub cls_lanes: u32,
    /// See `positives_block`.
    pub cls_channels: u32,
    /// See `positives_block`.
    pub cls_chunks: u32,
    /// See `positives_block`.
    pub box_by_channel: u32,
    /// See `positives_block`.
    pub box_vectors: u32,
    /// Padding.
    pub unused: u32,
}

/// Both launches of the head loss. Twin of `HeadArgs` in kernels/head.cuh.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct HeadArgs {
    /// The first `level_count` of them.
    pub levels: [HeadLevel; MAX_LEVELS],
    /// `[2]` f32: the number of positives and the sum of their box weights; written by the first
    /// launch, read by the second.
    pub normalisers: DeviceAddress,
    /// `[2]` u32, zeroed once.
    pub tickets: DeviceAddress,
    /// `[batch]` u32, zeroed once.
    pub image_positives: DeviceAddress,
    /// `[levels, 3]` f64, from the first launch to the second, as all that follows but the partials.
    pub level_sums: DeviceAddress,
    /// `[3, partial_blocks]` f64.
    pub partials: DeviceAddress,
    /// `[records]` u32, 16-byte aligned. Records are as many as anchors, and up to 7 more for each
    /// level: see [`HeadLevel::first_record`].
    pub codes: DeviceAddress,
    /// `[records]` f32.
    pub qualities: DeviceAddress,
    /// `[records]` f32.
    pub box_weights: DeviceAddress,
    /// `[records, 4]` f32, 16-byte aligned.
    pub slopes: DeviceAddress,
    /// `[levels, 3]` f32.
    pub losses: DeviceAddress,
    /// `[1]` f32, or null: `host_grad_scale` is it.
    pub grad_scale: DeviceAddress,
    /// `[1]` f32, or null; becomes 1 if a stored gradient is not finite.
    pub found_inf: DeviceAddress,
    /// A [`StatusWords`](super::StatusWords), or null.
    pub status: DeviceAddress,
    /// See `has_ignore_label`.
    pub ignore_label: i64,
    /// Weights of the classification, box and distribution loss.
    pub loss_weights: [f64; 3],
    /// What gradients are multiplied by.
    pub host_grad_scale: f64,
    /// The classification loss is divided by max(positives + cls_epsilon, cls_minimum).
    pub cls_epsilon: f64,
    /// See `cls_epsilon`.
    pub cls_minimum: f64,
    /// The box loss is multiplied by it, and divided by W = max(sum of box weights, 1).
    pub bbox_factor: f64,
    /// The distribution loss is multiplied by it, and divided by W.
    pub dfl_factor: f64,
    /// The least area that a box loss divides by.
    pub iou_eps: f64,
    /// Targets of sides above it are clamped; at most bins - 1.
    pub target_max: f64,
    /// From 0 to 10^6.
    pub beta: f32,
    /// From 1 to 8.
    pub level_count: u32,
    /// Images.
    pub batch: u32,
    /// 1 or more.
    pub classes: u32,
    /// Of a box side, 2 or more.
    pub bins: u32,
    /// 1: label 0 is background, and 1..=classes are the classes.
    pub background_first: u32,
    /// 1: anchors with `ignore_label` give nothing.
    pub has_ignore_label: u32,
    /// 0: IoU, 1: GIoU, 2: DIoU, 3: CIoU, 4: Ultralytics' CIoU.
    pub iou_kind: u32,
    /// 1: boxes are weighted by their quality, 0: by their largest score.
    pub weight_is_quality: u32,
    /// 1: an image without positives counts as having one.
    pub image_has_one: u32,
    /// 1: the classification loss is divided by W too.
    pub cls_by_weight: u32,
    /// [`head_partial_blocks`].
    pub partial_blocks: u32,
}

/// The most anchors of a level, all images together.
pub const MAX_ANCHORS: usize = i32::MAX as usize - 4096;

/// Twin of the constant in kernels/head.cuh.
const HEAD_BLOCK: u32 = 256;
const WARPS: u64 = HEAD_BLOCK as u64 / 32;
const BLOCKS_PER_MULTIPROCESSOR: u32 = 2;

/// Channels of a tile, if lanes go along positions: about this many.
const TILE_CHANNELS: u32 = 20;

/// How many blocks [`HeadArgs::partials`] must have room for: the same for all calls on a device.
pub fn head_partial_blocks(kernels: &Kernels) -> usize {
    // Every part of every level may have one more than its share.
    most_blocks(kernels) as usize + 2 * MAX_LEVELS
}

fn most_blocks(kernels: &Kernels) -> u32 {
    kernels.multiprocessors().max(1) * BLOCKS_PER_MULTIPROCESSOR
}

/// Shares out blocks: to each part as many as it has use for, or in proportion to its work.
/// Parts are (work, the most blocks that find something to do).
fn share_out(parts: &[(u64, u64)], most: u32) -> Vec<u32> {
    let work: u128 = parts.iter().map(|&(work, _)| u128::from(work)).sum();
    let share = |&(part, tiles): &(u64, u64)| {
        let share = (u128::from(part) * u128::from(most)).checked_div(work).unwrap_or(0);
        (share as u64).max(1).min(tiles) as u32
    };
    parts.iter().map(share).collect()
}

impl HeadArgs {
    fn used(&self) -> &[HeadLevel] {
        &self.levels[..self.level_count as usize]
    }

    /// The blocks of phase one.
    fn plan_positives(&mut self, most: u32) -> u32 {
        let batch = u64::from(self.batch);
        let parts: Vec<_> = (self.used().iter())
            .map(|level| {
                let anchors = batch * u64::from(level.positions);
                (anchors, anchors.div_ceil(HEAD_BLOCK.into()))
            })
            .collect();
        let mut next = 0;
        for (level, blocks) in self.levels.iter_mut().zip(share_out(&parts, most)) {
            level.positives_block = next;
            next += blocks;
        }
        next.max(1)
    }

    /// The blocks of phase two, and which accesses they make.
    fn plan_losses(&mut self, storage: Storage, pass: Pass, most: u32) -> Result<u32> {
        let (batch, classes, bins) = (self.batch, self.classes, self.bins);
        let backward = pass == Pass::ForwardBackward;
        let mut parts = Vec::new();
        for level in &mut self.levels[..self.level_count as usize] {
            let anchors = u64::from(batch) * u64::from(level.positions);
            let cls = Access {
                storage,
                strides: level.cls_strides,
                addresses: level.cls | if backward { level.grad_cls } else { 0 },
                extents: [batch, classes, level.positions],
            };
            level.cls_by_channel = cls.by_channel().into();
            level.cls_vectors = cls.vectors().into();
            let vector = if cls.vectors() { storage.vector() } else { 1 };
            let anchors_of_tile = if cls.by_channel() {
                (level.cls_lanes, level.cls_channels, level.cls_chunks) =
                    (lanes(classes, vector, 5), classes, 1);
                u64::from(32 / level.cls_lanes)
            } else {
                let chunks = classes.div_ceil(TILE_CHANNELS);
                level.cls_lanes = 1;
                level.cls_channels = classes.div_ceil(chunks).next_multiple_of(4);
                level.cls_chunks = classes.div_ceil(level.cls_channels);
                32 * vector as u64
            };
            let tiles = anchors.div_ceil(anchors_of_tile) * u64::from(level.cls_chunks);
            if tiles > MAX_ANCHORS as u64 {
                return Err(Error::ShapeOverflow { shape: [anchors as usize, classes as usize] });
            }
            parts.push((anchors * u64::from(classes) * if backward { 2 } else { 1 }, tiles.div_ceil(WARPS)));

            let boxes = Access {
                storage,
                strides: level.box_strides,
                addresses: level.grad_boxes,
                extents: [batch, 4 * bins, level.positions],
            };
            level.box_by_channel = match (boxes.by_channel(), boxes.is_dense()) {
                (false, _) => 0,
                (true, false) => 1,
                (true, true) => 2,
            };
            level.box_vectors = (!boxes.by_channel() && boxes.vectors()).into();
            let per_thread = if level.box_vectors == 1 { storage.vector() as u64 } else { 1 };
            let groups = anchors.div_ceil(u64::from(HEAD_BLOCK) * per_thread);
            let tiles = if boxes.by_channel() { groups } else { 4 * groups };
            parts.push(if backward { (anchors * u64::from(4 * bins), tiles) } else { (0, 0) });
        }
        let mut next = 0;
        for (level, blocks) in self.levels.iter_mut().zip(share_out(&parts, most).chunks_exact(2)) {
            level.cls_block = next;
            level.box_block = next + blocks[0];
            next += blocks[0] + blocks[1];
        }
        Ok(next.max(1))
    }
}

/// How the elements of a tensor can be reached.
struct Access {
    storage: Storage,
    strides: Strides,
    /// All that must be aligned, joined by or.
    addresses: DeviceAddress,
    /// Images, channels, positions.
    extents: [u32; 3],
}

impl Access {
    /// Lanes go along the channels of an anchor.
    fn by_channel(&self) -> bool {
        self.strides.channel == 1 && (self.strides.position != 1 || self.extents[2] == 1)
    }

    /// Whole vectors, on 16-byte boundaries.
    fn vectors(&self) -> bool {
        let vector = self.storage.vector() as u64;
        let [images, channels, positions] = self.extents;
        let Strides { batch, channel, position } = self.strides;
        let steps = |extent: u32, stride: u64| extent <= 1 || stride.is_multiple_of(vector);
        let inner = if self.by_channel() {
            u64::from(channels).is_multiple_of(vector) && steps(positions, position)
        } else {
            position == 1 && u64::from(positions).is_multiple_of(vector) && steps(channels, channel)
        };
        inner && steps(images, batch) && self.addresses.is_multiple_of(16)
    }

    /// By channel, nothing is between two anchors.
    fn is_dense(&self) -> bool {
        let [images, channels, positions] = self.extents.map(u64::from);
        (positions <= 1 || self.strides.position == channels)
            && (images <= 1 || self.strides.batch == channels * positions)
    }
}

/// Enqueues the first launch of the head loss on `stream`, a CUstream: what to divide by, and what
/// the second launch wants to know of the anchors. It does not use gradients and losses.
///
/// # Errors
/// As [`launch_qfl`](super::launch_qfl).
///
/// # Safety
/// As [`launch_qfl`](super::launch_qfl).
pub unsafe fn launch_head_positives(
    kernels: &Kernels,
    storage: Storage,
    args: &HeadArgs,
    stream: *mut c_void,
) -> Result<()> {
    let mut args = *args;
    let blocks = args.plan_positives(most_blocks(kernels));
    let function = kernels.function("head", storage, 0)?;
    kernels.bind()?;
    // SAFETY: the function takes one HeadArgs; the rest is the caller's promise.
    unsafe { launch(function, Grid { blocks, threads: HEAD_BLOCK }, &args, stream.cast()) }
}

/// Enqueues the second launch of the head loss: the losses, and the gradients. The first one must
/// have run with the same arguments.
///
/// # Errors
/// As [`launch_qfl`](super::launch_qfl), and if a level has more than 2^31 tiles.
///
/// # Safety
/// As [`launch_qfl`](super::launch_qfl).
pub unsafe fn launch_head_losses(
    kernels: &Kernels,
    storage: Storage,
    pass: Pass,
    args: &HeadArgs,
    stream: *mut c_void,
) -> Result<()> {
    let mut args = *args;
    let blocks = args.plan_losses(storage, pass, most_blocks(kernels))?;
    let function = kernels.function("head", storage, 1 + usize::from(pass == Pass::ForwardBackward))?;
    kernels.bind()?;
    // SAFETY: as above.
    unsafe { launch(function, Grid { blocks, threads: HEAD_BLOCK }, &args, stream.cast()) }
}
