//! Target assignment: ATSS and FCOS.

use std::ffi::c_void;

use super::{AnchorGrid, MAX_LEVELS, MAX_SIZES, Options};
use crate::cuda::args::DeviceAddress;
use crate::cuda::launch::{Grid, launch};
use crate::cuda::units::{Entry, Unit, Units, entry, without_logits};
use crate::cuda::{Kernels, Storage};
use crate::error::Result;
use crate::qfl::Background;

/// A level of anchors. Twin of `AssignLevel` in kernels/assign.cuh.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct AssignLevel {
    /// `[width, 4]` f32; or null: on a grid. With addresses, height and `each` are 1.
    pub anchors: DeviceAddress,
    /// `[images, height * width * each]` i64 or i32.
    pub labels: DeviceAddress,
    /// `[images, height * width * each, 4]` f32.
    pub box_targets: DeviceAddress,
    /// `[images, height * width * each]` f32, or null.
    pub label_weights: DeviceAddress,
    /// `[images, height * width * each]` f32, or null.
    pub box_weights: DeviceAddress,
    /// `[images, height * width * each]` f32, or null.
    pub centerness: DeviceAddress,
    /// How many anchors the levels before have, in all images.
    pub first: u64,
    /// How many they have in one image.
    pub before: u32,
    /// Rows of the grid.
    pub height: u32,
    /// Columns of the grid.
    pub width: u32,
    /// How many anchors a position has, 1 to 16.
    pub each: u32,
    /// Of the grid.
    pub stride: f32,
    /// 1 / `stride`.
    pub inverse: f32,
    /// Where the grid's first centre is, in strides.
    pub offset: f32,
    /// FCOS: the least distance to the furthest side of a box.
    pub low: f32,
    /// FCOS: the greatest.
    pub high: f32,
    /// FCOS: how far from the centre of a box its points are, in pixels; infinite: all that are inside.
    pub reach: f32,
    /// ATSS on a grid: half the widths and heights of the anchors of a position, in pairs.
    pub half: [f32; 32],
}

/// Twin of `AssignArgs` in kernels/assign.cuh.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct AssignArgs {
    /// The first `levels` count.
    pub level: [AssignLevel; MAX_LEVELS],
    /// `[gts, 4]` f32.
    pub gt_boxes: DeviceAddress,
    /// `[gts]` i64 or i32.
    pub gt_labels: DeviceAddress,
    /// `[gts]` i64 or i32; -1 is padding.
    pub gt_image: DeviceAddress,
    /// `[gts]` f32, or null: ones.
    pub gt_weights: DeviceAddress,
    /// `[ignores, 4]` f32.
    pub ignore_boxes: DeviceAddress,
    /// `[ignores]` i64 or i32; -1 is padding.
    pub ignore_image: DeviceAddress,
    /// `[images, 2]` i64 or i32, height and width in pixels; or null: all anchors are valid.
    pub valid_hw: DeviceAddress,
    /// ATSS: `[anchors]` u64, zeroed once; not shared by launches that may run at the same time.
    pub keys: DeviceAddress,
    /// `[gts]` u32, zeroed once, likewise; null only without `status` and `fallback`.
    pub held: DeviceAddress,
    /// `[1]` u32, likewise.
    pub ticket: DeviceAddress,
    /// A [`StatusWords`](crate::cuda::raw::StatusWords), or null.
    pub status: DeviceAddress,
    /// How many anchors there are, on all levels and in all images.
    pub anchors: u64,
    /// How many ground-truth boxes, below 2^31 with the boxes to ignore.
    pub gts: u32,
    /// How many boxes to ignore; 0 if nothing is ignored.
    pub ignores: u32,
    /// How many images.
    pub images: u32,
    /// How many levels, 1 to 8.
    pub levels: u32,
    /// ATSS: how many candidates a level gives, 1 to 256.
    pub topk: u32,
    /// How many classes.
    pub classes: u32,
    /// What part of an anchor in a box to ignore is too much, above 0.
    pub ignore_iof: f32,
    /// How many anchors a box gets that has none otherwise.
    pub fallback: u32,
    /// 1: label 0 is background, and 1..=classes are the classes.
    pub background_first: u32,
    /// 1: labels, images and sizes are i64, 0: i32.
    pub labels_are_i64: u32,
    /// Set by the launch.
    pub points: u32,
}

impl AssignLevel {
    /// Anchors on a grid, without addresses.
    pub fn of(grid: &AnchorGrid) -> AssignLevel {
        let mut half = [0.0; 2 * MAX_SIZES];
        for (half, side) in half.iter_mut().zip(grid.sizes().as_flattened()) {
            *half = side * 0.5;
        }
        AssignLevel {
            height: grid.height as u32,
            width: grid.width as u32,
            each: grid.sizes().len() as u32,
            stride: grid.stride,
            inverse: 1.0 / grid.stride,
            offset: grid.offset,
            half,
            ..AssignLevel::default()
        }
    }
}

impl AssignArgs {
    pub(super) fn of(options: &Options) -> AssignArgs {
        AssignArgs {
            ignore_iof: options.ignore_iof,
            fallback: options.fallback,
            background_first: (options.background == Background::First).into(),
            ..AssignArgs::default()
        }
    }

    /// Sets what leads to a workspace: [`AssignWorkspace::bytes`](crate::assign::AssignWorkspace::bytes), zeroed
    /// once, not shared by launches that may run at the same time. `anchors` are those of all images
    /// that it has room for.
    pub fn set_workspace(&mut self, memory: DeviceAddress, anchors: usize) {
        self.keys = memory;
        self.ticket = memory + 8 * anchors as DeviceAddress;
        self.held = self.ticket + 8;
    }

    /// Numbers the anchors of the levels, whose sizes are set, and the images, and counts them.
    pub fn number_anchors(&mut self) {
        let (images, mut before) = (u64::from(self.images), 0);
        for level in &mut self.level[..self.levels as usize] {
            (level.before, level.first) = (before, images * u64::from(before));
            before += level.height * level.width * level.each;
        }
        self.anchors = images * u64::from(before);
    }
}

/// Twin of the constant in kernels/assign.cuh.
const ASSIGN_BLOCK: u32 = 256;

/// What they come in.
pub(crate) const UNITS: [Unit; 1] =
    [without_logits("assign", "Atss::units or Fcos::units", &["atss_candidates", "assign_targets"])];

/// ATSS' first, and the one that writes what both give.
const CANDIDATES: Entry = entry("atss_candidates");
const TARGETS: Entry = entry("assign_targets");

const _: () = assert!(MAX_SIZES * 2 == 32);

/// What [`launch_atss`] and [`launch_fcos`] need loaded.
pub(crate) fn assign_units() -> Units {
    Units::of(TARGETS.unit, Storage::F32)
}

/// Enqueues ATSS on `stream`, a CUstream: two launches.
///
/// # Errors
/// As [`launch_qfl`](crate::cuda::raw::launch_qfl).
///
/// # Safety
/// As [`launch_qfl`](crate::cuda::raw::launch_qfl).
pub unsafe fn launch_atss(kernels: &Kernels, args: &AssignArgs, stream: *mut c_void) -> Result<()> {
    let args = AssignArgs { points: 0, ..*args };
    if args.gts > 0 && args.anchors > 0 {
        let candidates = kernels.function(CANDIDATES, Storage::F32, stream.cast())?;
        let multiprocessors = kernels.multiprocessors();
        let grid = Grid::new(ASSIGN_BLOCK, args.gts.into(), 1, multiprocessors, candidates.resident);
        // SAFETY: the function takes one AssignArgs; the rest is the caller's promise.
        unsafe { launch(candidates, grid, &args, stream.cast()) }?;
    }
    // SAFETY: the caller's promise.
    unsafe { launch_targets(kernels, &args, stream) }
}

/// Enqueues FCOS' assignment on `stream`, a CUstream: one launch.
///
/// # Errors
/// As [`launch_qfl`](crate::cuda::raw::launch_qfl).
///
/// # Safety
/// As [`launch_qfl`](crate::cuda::raw::launch_qfl).
pub unsafe fn launch_fcos(kernels: &Kernels, args: &AssignArgs, stream: *mut c_void) -> Result<()> {
    // SAFETY: the caller's promise.
    unsafe { launch_targets(kernels, &AssignArgs { points: 1, ..*args }, stream) }
}

/// Enqueues what writes the targets, and counts.
///
/// # Safety
/// As [`launch_qfl`](crate::cuda::raw::launch_qfl).
unsafe fn launch_targets(kernels: &Kernels, args: &AssignArgs, stream: *mut c_void) -> Result<()> {
    let counted = if args.status == 0 { 0 } else { u64::from(args.gts) + u64::from(args.ignores) };
    if args.anchors == 0 && counted == 0 {
        return Ok(());
    }
    let function = kernels.function(TARGETS, Storage::F32, stream.cast())?;
    let block = u64::from(ASSIGN_BLOCK);
    let grid = Grid::new(ASSIGN_BLOCK, args.anchors, block, kernels.multiprocessors(), function.resident);
    // SAFETY: the function takes one AssignArgs; the rest is the caller's promise.
    unsafe { launch(function, grid, args, stream.cast()) }
}
