//! The layer underneath: plain device addresses and a raw stream, for frameworks that have
//! buffers of their own.
//!
//! The structures are the kernels' own parameters. A null address is 0, and means "not given"
//! where the field's documentation allows it. Nothing here is checked, but also nothing is
//! allocated, waited for or read back, but for the first launch of a kernel that
//! [`Handle::prepare`](super::Handle::prepare) has not loaded: that loads it.

use std::ffi::c_void;

mod assign;
mod gfl;
mod head;

use super::launch::{Grid, lanes, launch};
use super::module::Function;
use super::units::{Entry, Units, entry};
use super::{Kernels, Storage};
use crate::error::Result;
pub(crate) use assign::assign_units;
pub use assign::{AssignArgs, AssignLevel, launch_atss, launch_fcos};
pub(crate) use gfl::gfl_units;
pub use gfl::{GflArgs, launch_gfl};
pub(crate) use head::head_units;
pub use head::{
    HeadArgs, HeadLevel, MAX_ANCHORS, Strides, head_partial_blocks, launch_head_losses, launch_head_positives,
};

/// An address in device memory.
pub type DeviceAddress = u64;

/// What a call computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// The loss.
    Forward,
    /// The gradient, and the loss unless its address is null.
    ForwardBackward,
}

impl Pass {
    /// Its place in pairs of entry points.
    fn index(self) -> usize {
        usize::from(self == Pass::ForwardBackward)
    }
}

/// How the loss is reduced and its gradient scaled. Twin of `Scaling` in kernels/call.cuh.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Scaling {
    /// `[rows]` f32, or null: ones.
    pub weight: DeviceAddress,
    /// `[rows]` f32, the gradient with respect to the loss of each row; or null: ones.
    pub upstream: DeviceAddress,
    /// `[1]` f32, or null: `loss_factor` and `grad_factor` are already divided.
    pub avg_factor: DeviceAddress,
    /// `[1]` f32, or null: `grad_factor` is already multiplied.
    pub grad_scale: DeviceAddress,
    /// `[1]` f32, or `[rows]` if `per_row`; null with [`Pass::ForwardBackward`]: only the gradient.
    pub loss: DeviceAddress,
    /// `[1]` f32, or null; becomes 1 if a stored gradient is not finite.
    pub found_inf: DeviceAddress,
    /// A [`StatusWords`], or null.
    pub status: DeviceAddress,
    /// [`scratch_bytes`] bytes, 8-byte aligned, zeroed once; not shared by launches that may run
    /// at the same time.
    pub scratch: DeviceAddress,
    /// What losses are multiplied by.
    pub loss_factor: f32,
    /// What gradients are multiplied by.
    pub grad_factor: f32,
    /// The normaliser is max(avg_factor + avg_epsilon, avg_minimum).
    pub avg_epsilon: f32,
    /// See `avg_epsilon`; negative infinity for no minimum.
    pub avg_minimum: f32,
    /// 1: no reduction.
    pub per_row: u32,
    /// Set by the launch.
    pub lanes: u32,
}

/// Twin of `QflArgs` in kernels/qfl.cuh.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct QflArgs {
    /// Reduction and scaling.
    pub scaling: Scaling,
    /// `[rows, classes]`, aligned to its element.
    pub logits: DeviceAddress,
    /// `[rows]` i64 or i32; null for dense targets.
    pub labels: DeviceAddress,
    /// `[rows]` f32; null for dense targets.
    pub quality: DeviceAddress,
    /// `[rows, classes]` f32 for dense targets, else null.
    pub target: DeviceAddress,
    /// `[classes]` f32, or null: ones.
    pub class_weights: DeviceAddress,
    /// `[rows, classes]` f32, or null: ones.
    pub element_weights: DeviceAddress,
    /// `[rows, classes]`, aligned to its element; not overlapping the logits.
    pub grad: DeviceAddress,
    /// How many rows.
    pub rows: u64,
    /// See `has_ignore_label`.
    pub ignore_label: i64,
    /// How many classes, 1 or more.
    pub classes: u32,
    /// From 0 to 10^6.
    pub beta: f32,
    /// 1: labels are i64, 0: i32.
    pub labels_are_i64: u32,
    /// 1: label 0 is background, and 1..=classes are the classes.
    pub background_first: u32,
    /// 1: rows with `ignore_label` give nothing.
    pub has_ignore_label: u32,
    /// 1: the logits are probabilities.
    pub activated: u32,
    /// 1: elements are multiplied by y * alpha + (1 - y) * (1 - alpha).
    pub has_alpha: u32,
    /// From 0 to 1.
    pub alpha: f32,
    /// Set by the launch, as all that follows.
    pub block_steps: u32,
    /// See `block_steps`.
    pub longer_blocks: u32,
    /// See `block_steps`.
    pub whole_steps: u32,
    /// See `block_steps`.
    pub general: u32,
}

impl QflArgs {
    /// Whether only kernels for any beta do, whatever beta is: elements have weights, or α, or are probabilities.
    fn is_general(&self) -> bool {
        self.class_weights | self.element_weights != 0 || self.activated | self.has_alpha != 0
    }
}

/// Twin of `DflArgs` in kernels/dfl.cuh.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct DflArgs {
    /// Reduction and scaling.
    pub scaling: Scaling,
    /// `[rows, bins]`, aligned to its element.
    pub logits: DeviceAddress,
    /// `[rows]` f32, in units of bins.
    pub target: DeviceAddress,
    /// `[rows, bins]`, aligned to its element; not overlapping the logits.
    pub grad: DeviceAddress,
    /// How many rows.
    pub rows: u64,
    /// How many bins, 2 or more.
    pub bins: u32,
    /// Targets above it are clamped; at most bins - 1.
    pub target_max: f32,
}

/// Twin of `IntegralArgs` in kernels/integral.cu.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct IntegralArgs {
    /// `[rows, bins]`, aligned to its element.
    pub logits: DeviceAddress,
    /// `[rows]` f32; or null with [`Pass::ForwardBackward`].
    pub expectation: DeviceAddress,
    /// `[rows]` f32, the gradient with respect to the expectations; or null: ones.
    pub upstream: DeviceAddress,
    /// `[rows, bins]`, aligned to its element; not overlapping the logits.
    pub grad: DeviceAddress,
    /// `[1]` f32, or null; becomes 1 if a stored gradient is not finite.
    pub found_inf: DeviceAddress,
    /// How many rows.
    pub rows: u64,
    /// How many bins, 2 or more.
    pub bins: u32,
    /// Set by the launch.
    pub lanes: u32,
}

/// Twin of `BoxesArgs` in kernels/boxes.cu.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct BoxesArgs {
    /// `[boxes, 4]` f32.
    pub pred: DeviceAddress,
    /// `[boxes, 4]` f32.
    pub target: DeviceAddress,
    /// `[boxes]` f32, the gradient with respect to the losses; or null: ones.
    pub upstream: DeviceAddress,
    /// `[boxes]` f32; or null with [`Pass::ForwardBackward`].
    pub loss: DeviceAddress,
    /// `[boxes, 4]` f32, not overlapping the predictions or the targets.
    pub grad: DeviceAddress,
    /// How many boxes.
    pub boxes: u64,
    /// More than 0.
    pub eps: f64,
    /// 0: IoU, 1: GIoU, 2: DIoU, 3: CIoU, 4: Ultralytics' CIoU.
    pub kind: u32,
    /// Padding.
    pub unused: u32,
}

/// What [`Scaling::status`] points to; zeros: nothing was wrong. Twin of `Status` in
/// kernels/call.cuh.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct StatusWords {
    /// See [`Status`](crate::Status).
    pub bad_labels: u32,
    /// See [`Status`](crate::Status).
    pub bad_qualities: u32,
    /// See [`Status`](crate::Status).
    pub out_of_range_targets: u32,
    /// Padding.
    pub unused: u32,
    /// The bitwise complement of the first bad row; 0: none.
    pub not_first_bad_row: u64,
    /// Of an assignment: bad boxes, bad labels, bad images, boxes without an anchor.
    pub assignment: [u32; 4],
    /// The bitwise complement of the first box of each kind; 0: none.
    pub not_first_boxes: [u64; 4],
}

/// Twins of the constants in kernels/qfl.cuh.
const QFL_BLOCK: u32 = 320;
const QFL_ROWS_BLOCK: u32 = 256;
/// Twins of the constants in kernels/dfl.cuh.
const DFL_BLOCK: u32 = 128;
const DFL_ROWS_BLOCK: u32 = 256;
/// Twin of the constant in kernels/integral.cu.
const INTEGRAL_BLOCK: u32 = 256;
/// Twin of the constant in kernels/boxes.cu.
const BOXES_BLOCK: u32 = 128;

/// The entry points: beta 2 and any other; rows of whole vectors, any rows, a target for every element; and
/// by pass.
const QFL: [[[Entry; 2]; 3]; 2] = [
    [
        [entry("qfl_linear_forward"), entry("qfl_linear_forward_backward")],
        [entry("qfl_rows_forward"), entry("qfl_rows_forward_backward")],
        [entry("qfl_dense_forward"), entry("qfl_dense_forward_backward")],
    ],
    [
        [entry("qfl_linear_forward_any_beta"), entry("qfl_linear_forward_backward_any_beta")],
        [entry("qfl_rows_forward_any_beta"), entry("qfl_rows_forward_backward_any_beta")],
        [entry("qfl_rows_forward_any_beta"), entry("qfl_rows_forward_backward_any_beta")],
    ],
];
/// 16 bins, 17 bins, any number of them; and by pass.
const DFL: [[Entry; 2]; 3] = [
    [entry("dfl_tile16_forward"), entry("dfl_tile16_forward_backward")],
    [entry("dfl_tile17_forward"), entry("dfl_tile17_forward_backward")],
    [entry("dfl_rows_forward"), entry("dfl_rows_forward_backward")],
];
/// By pass.
const INTEGRAL: [Entry; 2] = [entry("integral_forward"), entry("integral_forward_backward")];
const BOXES: [Entry; 2] = [entry("boxes_forward"), entry("boxes_forward_backward")];

/// What [`launch_qfl`] needs loaded. `general`: with weights of elements, α or probabilities.
pub(crate) fn qfl_units(beta: f32, general: bool, storage: Storage, pass: Pass) -> Units {
    Units::of(QFL[usize::from(general || beta != 2.0)][0][pass.index()].unit, storage)
}

/// What [`launch_dfl`] needs loaded.
pub(crate) fn dfl_units(storage: Storage, pass: Pass) -> Units {
    Units::of(DFL[0][pass.index()].unit, storage)
}

/// What [`launch_integral`] needs loaded.
pub(crate) fn integral_units(storage: Storage) -> Units {
    Units::of(INTEGRAL[0].unit, storage)
}

/// What [`launch_boxes`] needs loaded.
pub(crate) fn boxes_units() -> Units {
    Units::of(BOXES[0].unit, Storage::F32)
}

/// How many bytes [`Scaling::scratch`] needs: the same for all calls on a device.
pub fn scratch_bytes(kernels: &Kernels) -> usize {
    // A ticket and its padding, then one f64 for each block.
    8 + 8 * super::launch::max_blocks(kernels.multiprocessors()) as usize
}

/// Enqueues Quality Focal Loss on `stream`, a CUstream.
///
/// # Errors
/// If the kernels are not loaded and cannot be, as while `stream` is captured, or the driver refuses the
/// launch.
///
/// # Safety
/// Every address in `args` is null where that is allowed, or valid on the device of `kernels`
/// for the elements that the field says, until the launch has run; what is written is not used
/// by anything else meanwhile. `stream` belongs to the context of `kernels`. Numbers are in the
/// ranges that the fields say.
pub unsafe fn launch_qfl(
    kernels: &Kernels,
    storage: Storage,
    pass: Pass,
    args: &QflArgs,
    stream: *mut c_void,
) -> Result<()> {
    let mut args = *args;
    if args.rows == 0 && (args.scaling.per_row != 0 || args.scaling.loss == 0) {
        return Ok(());
    }
    let vector = storage.vector() as u32;
    let addresses = args.logits | if pass == Pass::ForwardBackward { args.grad } else { 0 };
    let dense = args.target != 0;
    let general = args.is_general();
    args.general = general.into();
    let linear = !dense
        && !general
        && args.scaling.per_row == 0
        && args.scaling.upstream == 0
        && args.classes.is_multiple_of(vector)
        && args.classes / vector <= QFL_BLOCK
        && addresses.is_multiple_of(16)
        && args.rows < 1 << 32; // the kernel counts steps in 32 bits
    let beta_is_2 = args.beta == 2.0 && !general;
    let shape = match (linear, dense) {
        (true, _) => 0,
        (false, false) => 1,
        (false, true) => 2,
    };
    let entry = QFL[usize::from(!beta_is_2)][shape][pass.index()];
    let multiprocessors = kernels.multiprocessors();
    let function = kernels.function(entry, storage, stream.cast())?;
    let grid = if linear {
        // A block has so many rows at once, and blocks share these steps evenly.
        let step = u64::from(QFL_BLOCK / (args.classes / vector));
        let grid = Grid::new(QFL_BLOCK, args.rows, step, multiprocessors, function.resident);
        let steps = args.rows.div_ceil(step) as u32;
        (args.block_steps, args.longer_blocks) = (steps / grid.blocks, steps % grid.blocks);
        args.whole_steps = (args.rows / step) as u32;
        grid
    } else {
        args.scaling.lanes = lanes(args.classes, storage.vector(), 5);
        rows_grid(QFL_ROWS_BLOCK, args.rows, args.scaling.lanes, kernels, &function)
    };
    // SAFETY: the function takes one QflArgs; the rest is the caller's promise.
    unsafe { launch(function, grid, &args, stream.cast()) }
}

/// Enqueues Distribution Focal Loss on `stream`, a CUstream.
///
/// # Errors
/// As [`launch_qfl`].
///
/// # Safety
/// As [`launch_qfl`].
pub unsafe fn launch_dfl(
    kernels: &Kernels,
    storage: Storage,
    pass: Pass,
    args: &DflArgs,
    stream: *mut c_void,
) -> Result<()> {
    let mut args = *args;
    if args.rows == 0 && (args.scaling.per_row != 0 || args.scaling.loss == 0) {
        return Ok(());
    }
    let rows_per_thread = if storage == Storage::F32 { 1 } else { 2 };
    // The tiles move 16 bytes at a time.
    let aligned = args.logits.is_multiple_of(16) && args.grad.is_multiple_of(16);
    let shape = match args.bins {
        16 if aligned => 0,
        17 if aligned => 1,
        _ => 2,
    };
    let function = kernels.function(DFL[shape][pass.index()], storage, stream.cast())?;
    let grid = if shape < 2 {
        let rows_per_block = u64::from(DFL_BLOCK * rows_per_thread);
        Grid::new(DFL_BLOCK, args.rows, rows_per_block, kernels.multiprocessors(), function.resident)
    } else {
        args.scaling.lanes = lanes(args.bins, storage.vector(), 2);
        rows_grid(DFL_ROWS_BLOCK, args.rows, args.scaling.lanes, kernels, &function)
    };
    // SAFETY: the function takes one DflArgs; the rest is the caller's promise.
    unsafe { launch(function, grid, &args, stream.cast()) }
}

/// Enqueues the integral, or its gradient, on `stream`, a CUstream.
///
/// # Errors
/// As [`launch_qfl`].
///
/// # Safety
/// As [`launch_qfl`].
pub unsafe fn launch_integral(
    kernels: &Kernels,
    storage: Storage,
    pass: Pass,
    args: &IntegralArgs,
    stream: *mut c_void,
) -> Result<()> {
    let mut args = *args;
    if args.rows == 0 {
        return Ok(());
    }
    args.lanes = lanes(args.bins, storage.vector(), 2);
    let function = kernels.function(INTEGRAL[pass.index()], storage, stream.cast())?;
    let grid = rows_grid(INTEGRAL_BLOCK, args.rows, args.lanes, kernels, &function);
    // SAFETY: the function takes one IntegralArgs; the rest is the caller's promise.
    unsafe { launch(function, grid, &args, stream.cast()) }
}

/// Enqueues a box loss on `stream`, a CUstream.
///
/// # Errors
/// As [`launch_qfl`].
///
/// # Safety
/// As [`launch_qfl`].
pub unsafe fn launch_boxes(
    kernels: &Kernels,
    pass: Pass,
    args: &BoxesArgs,
    stream: *mut c_void,
) -> Result<()> {
    if args.boxes == 0 {
        return Ok(());
    }
    let function = kernels.function(BOXES[pass.index()], Storage::F32, stream.cast())?;
    let (block, multiprocessors) = (u64::from(BOXES_BLOCK), kernels.multiprocessors());
    let grid = Grid::new(BOXES_BLOCK, args.boxes, block, multiprocessors, function.resident);
    // SAFETY: the function takes one BoxesArgs; the rest is the caller's promise.
    unsafe { launch(function, grid, args, stream.cast()) }
}

/// The blocks of kernels in which `lanes` lanes share a row.
fn rows_grid(threads: u32, rows: u64, lanes: u32, kernels: &Kernels, function: &Function) -> Grid {
    Grid::new(threads, rows, u64::from(threads / lanes), kernels.multiprocessors(), function.resident)
}
