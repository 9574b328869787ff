//! The head loss: two launches, and what of their parameters depends on the device.

use std::ffi::c_void;

mod layout;
mod plan;

use super::{BoxCoding, BoxWeight, HeadLoss, MAX_LEVELS};
use crate::boxes::IouKind;
use crate::cuda::args::{DeviceAddress, Pass};
use crate::cuda::launch::{Grid, launch, max_blocks};
use crate::cuda::units::{Entry, Unit, Units, entry, unit, without_logits};
use crate::cuda::{Kernels, Storage};
use crate::error::Result;
use crate::qfl::Background;
pub(crate) use layout::Layout;
use plan::HEAD_BLOCK;

/// Where the elements of a `[batch, channels, positions]` tensor are, in elements. Twin of
/// `Strides` in kernels/head.cuh.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Strides {
    /// From one image to the next.
    pub batch: u64,
    /// From one channel to the next.
    pub channel: u64,
    /// From one position to the next, in a row.
    pub position: u64,
    /// What is between rows besides: from one row to the next, less width · position; wraps below 0.
    pub row_gap: u64,
}

/// A level of the pyramid. Twin of `HeadLevel` in kernels/head.cuh.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct HeadLevel {
    /// The first element of the class logits, of the type that the launches are told.
    pub cls: DeviceAddress,
    /// The first element of the box logits, of the type [`HeadArgs::box_storage`]; channel = side * bins + bin.
    pub boxes: DeviceAddress,
    /// As `cls`, in strides of its own; null for [`Pass::Forward`]. Not overlapping the logits.
    pub grad_cls: DeviceAddress,
    /// As `boxes`, in strides of its own; null for [`Pass::Forward`]. Not overlapping the logits.
    pub grad_boxes: DeviceAddress,
    /// Of the class logits.
    pub cls_strides: Strides,
    /// Of the box logits.
    pub box_strides: Strides,
    /// Of the gradient of the class logits.
    pub grad_cls_strides: Strides,
    /// Of the gradient of the box logits.
    pub grad_box_strides: Strides,
    /// `[batch, positions]` i64 or i32.
    pub labels: DeviceAddress,
    /// `[batch, positions]` f32, or null: ones.
    pub label_weights: DeviceAddress,
    /// `[batch, positions, 4]` f32: x1, y1, x2, y2 in pixels.
    pub targets: DeviceAddress,
    /// `[batch, positions]` f32; null: the quality is the IoU.
    pub quality: DeviceAddress,
    /// `[batch, positions]` f32: weights of the box losses of positives; or null: ones.
    pub box_weights: DeviceAddress,
    /// `[batch, positions]` f32: v of positives; null: see [`HeadArgs::weight_is_quality`].
    pub box_scores: DeviceAddress,
    /// `[batch, positions, classes]` f32: targets of all elements; null: the quality at the label.
    pub scores: DeviceAddress,
    /// `[batch, positions, classes]` f32, or null: ones.
    pub element_weights: DeviceAddress,
    /// `[positions, 2]` or `[batch, positions, 2]` f32 in pixels; null: a grid.
    pub points: DeviceAddress,
    /// The number of its first anchor in the status.
    pub first_row: u64,
    /// The number of its first anchor in the workspace: a multiple of 8. Images follow each other, and
    /// begin at multiples of 8, too.
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
    pub cls_way: u32,
    /// See `positives_block`.
    pub cls_by_channel: u32,
    /// See `positives_block`.
    pub cls_units: u32,
    /// See `positives_block`.
    pub cls_span: u32,
    /// See `positives_block`.
    pub cls_chunks: u32,
    /// See `positives_block`.
    pub cls_tiles: u32,
    /// See `positives_block`.
    pub box_way: u32,
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
    /// `[records]` u32. Records are as many as anchors, and so many more that each image of each level
    /// has a multiple of 8 of them: see [`HeadLevel::first_record`].
    pub codes: DeviceAddress,
    /// `[records]` f32, 16-byte aligned.
    pub weights: DeviceAddress,
    /// `[records]` f32.
    pub qualities: DeviceAddress,
    /// `[records]` f32.
    pub box_weights: DeviceAddress,
    /// `[records, 4]` f32, 16-byte aligned.
    pub slopes: DeviceAddress,
    /// `[levels, 3]` f32, or null with [`Pass::ForwardBackward`]: the gradients alone.
    pub losses: DeviceAddress,
    /// `[levels, 3]` f32: gradients with respect to the losses; or null: ones.
    pub upstream: DeviceAddress,
    /// `[classes]` f32, or null: ones.
    pub class_weights: DeviceAddress,
    /// `[1]` f32, or null: `host_grad_scale` is it.
    pub grad_scale: DeviceAddress,
    /// `[1]` f32, or null; becomes 1 if a stored gradient is not finite.
    pub found_inf: DeviceAddress,
    /// A [`StatusWords`](crate::cuda::raw::StatusWords), or null.
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
    /// What an element of the classification loss is multiplied by at target 0, and at target 1: 1 - alpha and
    /// alpha of focal loss, or twice 1. 0 masks.
    pub alpha: [f32; 2],
    /// From 1 to 8.
    pub level_count: u32,
    /// Images.
    pub batch: u32,
    /// 1 or more.
    pub classes: u32,
    /// Of a box side, 2 or more; 1 without bins.
    pub bins: u32,
    /// 1: label 0 is background, and 1..=classes are the classes.
    pub background_first: u32,
    /// 1: anchors with `ignore_label` give nothing.
    pub has_ignore_label: u32,
    /// 0: IoU, 1: GIoU, 2: DIoU, 3: CIoU, 4: Ultralytics' CIoU.
    pub iou_kind: u32,
    /// 1: boxes are weighted by their quality, 0: by their largest score; unless a level has `box_scores`.
    pub weight_is_quality: u32,
    /// 1: an image without positives counts as having one.
    pub image_has_one: u32,
    /// 1: the classification loss is divided by W too.
    pub cls_by_weight: u32,
    /// [`head_partial_blocks`].
    pub partial_blocks: u32,
    /// 0: bins; else a side has one number, of which the distance is 1: exp, 2: the positive part.
    pub box_coding: u32,
    /// Set by the launch.
    pub cls_storage: u32,
    /// The type of the box logits and their gradients: a [`Storage`] as its number.
    pub box_storage: u32,
}

impl HeadArgs {
    /// What a head says: options, without levels, sizes and addresses.
    pub fn of(head: &HeadLoss) -> HeadArgs {
        let HeadLoss { qfl, dfl, .. } = head;
        let rule = head.normaliser.rule();
        HeadArgs {
            loss_weights: [qfl.loss_weight, head.iou_weight, dfl.loss_weight],
            host_grad_scale: 1.0,
            cls_epsilon: rule.cls_epsilon,
            cls_minimum: rule.cls_minimum,
            bbox_factor: rule.bbox_factor,
            dfl_factor: rule.dfl_factor,
            image_has_one: rule.image_has_one.into(),
            cls_by_weight: rule.cls_by_weight.into(),
            iou_eps: head.iou_eps,
            iou_kind: match head.iou {
                IouKind::Iou => 0,
                IouKind::Giou => 1,
                IouKind::Diou => 2,
                IouKind::Ciou => 3,
                IouKind::CiouUltralytics => 4,
            },
            target_max: head.target_max(),
            beta: qfl.beta as f32,
            alpha: qfl.alpha.map_or([1.0; 2], |alpha| [1.0 - alpha, alpha].map(|factor| factor as f32)),
            ignore_label: qfl.ignore_label.unwrap_or(0),
            has_ignore_label: qfl.ignore_label.is_some().into(),
            background_first: (qfl.background == Background::First).into(),
            bins: head.bins() as u32,
            box_coding: match head.coding {
                BoxCoding::Bins(_) => 0,
                BoxCoding::Exp => 1,
                BoxCoding::Relu => 2,
            },
            weight_is_quality: (head.box_weight == BoxWeight::Quality).into(),
            ..HeadArgs::default()
        }
    }

    /// Whether single elements have something of their own, for which there are kernels of any beta alone.
    fn is_general(&self) -> bool {
        let of_level = |level: &HeadLevel| level.scores | level.element_weights != 0;
        self.class_weights != 0 || self.alpha != [1.0; 2] || self.used().iter().any(of_level)
    }
}

/// What they come in.
pub(crate) const UNITS: [Unit; 4] = [
    without_logits("head_positives", "HeadLoss::units", &["head_positives"]),
    unit("head", "HeadLoss::units", &["head_losses_forward_backward"]),
    unit("head_forward", "HeadLoss::units", &["head_losses_forward"]),
    unit(
        "head_any_beta",
        "HeadLoss::units_with_weights",
        &["head_losses_forward_any_beta", "head_losses_forward_backward_any_beta"],
    ),
];

/// The entry point of phase one.
const POSITIVES: Entry = entry("head_positives");
/// Those of phase two: beta 2 by pass, then the general ones.
const LOSSES: [Entry; 4] = [
    entry("head_losses_forward"),
    entry("head_losses_forward_backward"),
    entry("head_losses_forward_any_beta"),
    entry("head_losses_forward_backward_any_beta"),
];

/// The place of an entry point of phase two.
fn kind(beta: f32, general: bool, pass: Pass) -> usize {
    usize::from(beta != 2.0 || general) * 2 + pass.index()
}

/// What [`launch_head_positives`] and [`launch_head_losses`] need loaded, for class logits of this type. `general`: with
/// weights of classes or elements, targets of all elements, or alpha.
pub(crate) fn head_units(beta: f32, general: bool, storage: Storage, pass: Pass) -> Units {
    Units::of(POSITIVES.unit, storage) | Units::of(LOSSES[kind(beta, general, pass)].unit, storage)
}

/// The most anchors of a level, all images together.
pub const MAX_ANCHORS: usize = i32::MAX as usize - 4096;

/// How many blocks [`HeadArgs::partials`] must have room for: the same for all calls on a device.
pub fn head_partial_blocks(kernels: &Kernels) -> usize {
    // Every part of every level may have one more than its share.
    max_blocks(kernels.multiprocessors()) as usize + 2 * MAX_LEVELS
}

/// The blocks of a launch, of which a multiprocessor holds so many.
fn most_blocks(kernels: &Kernels, resident: u32) -> u32 {
    max_blocks(kernels.multiprocessors()).min(kernels.multiprocessors().max(1) * resident)
}

/// Enqueues the first launch of the head loss on `stream`, a CUstream: what to divide by, and what
/// the second launch wants to know of the anchors. It does not use gradients and losses. `storage` is the type of
/// the class logits.
///
/// # Errors
/// As [`launch_qfl`](crate::cuda::raw::launch_qfl).
///
/// # Safety
/// As [`launch_qfl`](crate::cuda::raw::launch_qfl).
pub unsafe fn launch_head_positives(
    kernels: &Kernels,
    storage: Storage,
    args: &HeadArgs,
    stream: *mut c_void,
) -> Result<()> {
    let mut args = HeadArgs { cls_storage: storage as u32, ..*args };
    let function = kernels.function(POSITIVES, storage, stream.cast())?;
    let blocks = args.plan_positives(most_blocks(kernels, function.resident));
    // SAFETY: the function takes one HeadArgs; the rest is the caller's promise.
    unsafe { launch(function, Grid { blocks, threads: HEAD_BLOCK }, &args, stream.cast()) }
}

/// Enqueues the second launch of the head loss: the losses, and the gradients. The first one must
/// have run with the same arguments.
///
/// # Errors
/// As [`launch_qfl`](crate::cuda::raw::launch_qfl), and if a level has more than 2^31 shares of a lane.
///
/// # Safety
/// As [`launch_qfl`](crate::cuda::raw::launch_qfl).
pub unsafe fn launch_head_losses(
    kernels: &Kernels,
    storage: Storage,
    pass: Pass,
    args: &HeadArgs,
    stream: *mut c_void,
) -> Result<()> {
    let mut args = HeadArgs { cls_storage: storage as u32, ..*args };
    let kind = kind(args.beta, args.is_general(), pass);
    let function = kernels.function(LOSSES[kind], storage, stream.cast())?;
    let blocks = args.plan_losses(storage, pass, most_blocks(kernels, function.resident))?;
    // SAFETY: as above.
    unsafe { launch(function, Grid { blocks, threads: HEAD_BLOCK }, &args, stream.cast()) }
}
