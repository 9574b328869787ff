//! The kernels of Quality Focal Loss: parameters, entry points, launch.

use std::ffi::c_void;

use crate::cuda::args::{DeviceAddress, Pass, Scaling};
use crate::cuda::launch::{Grid, lanes, launch, rows_grid};
use crate::cuda::units::{Entry, Unit, Units, entry, unit};
use crate::cuda::{Kernels, Storage};
use crate::error::Result;

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
    pub(crate) fn is_general(&self) -> bool {
        self.class_weights | self.element_weights != 0 || self.activated | self.has_alpha != 0
    }
}

/// Twins of the constants in kernels/qfl.cuh.
const QFL_BLOCK: u32 = 320;
const QFL_ROWS_BLOCK: u32 = 256;

/// What they come in.
pub(crate) const UNITS: [Unit; 3] = [
    unit(
        "qfl",
        "QualityFocalLoss::units",
        &["qfl_linear_forward_backward", "qfl_rows_forward_backward", "qfl_dense_forward_backward"],
    ),
    unit(
        "qfl_forward",
        "QualityFocalLoss::units",
        &["qfl_linear_forward", "qfl_rows_forward", "qfl_dense_forward"],
    ),
    unit(
        "qfl_any_beta",
        "QualityFocalLoss::units, or units_with_weights for weights of classes or elements,",
        &[
            "qfl_linear_forward_any_beta",
            "qfl_linear_forward_backward_any_beta",
            "qfl_rows_forward_any_beta",
            "qfl_rows_forward_backward_any_beta",
        ],
    ),
];

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

/// What [`launch_qfl`] needs loaded. `general`: with weights of elements, α or probabilities.
pub(crate) fn qfl_units(beta: f32, general: bool, storage: Storage, pass: Pass) -> Units {
    Units::of(QFL[usize::from(general || beta != 2.0)][0][pass.index()].unit, storage)
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
