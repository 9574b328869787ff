//! The kernels of Distribution Focal Loss: parameters, entry points, launch.

use std::ffi::c_void;

use crate::cuda::args::{DeviceAddress, Pass, Scaling};
use crate::cuda::launch::{Grid, lanes, launch, rows_grid};
use crate::cuda::units::{Entry, Unit, Units, entry, unit};
use crate::cuda::{Kernels, Storage};
use crate::error::Result;

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

/// Twins of the constants in kernels/dfl.cuh.
const DFL_BLOCK: u32 = 128;
const DFL_ROWS_BLOCK: u32 = 256;

/// What they come in.
pub(crate) const UNITS: [Unit; 2] = [
    unit(
        "dfl",
        "DistributionFocalLoss::units",
        &["dfl_tile16_forward_backward", "dfl_tile17_forward_backward", "dfl_rows_forward_backward"],
    ),
    unit(
        "dfl_forward",
        "DistributionFocalLoss::units",
        &["dfl_tile16_forward", "dfl_tile17_forward", "dfl_rows_forward"],
    ),
];

/// 16 bins, 17 bins, any number of them; and by pass.
const DFL: [[Entry; 2]; 3] = [
    [entry("dfl_tile16_forward"), entry("dfl_tile16_forward_backward")],
    [entry("dfl_tile17_forward"), entry("dfl_tile17_forward_backward")],
    [entry("dfl_rows_forward"), entry("dfl_rows_forward_backward")],
];

/// What [`launch_dfl`] needs loaded.
pub(crate) fn dfl_units(storage: Storage, pass: Pass) -> Units {
    Units::of(DFL[0][pass.index()].unit, storage)
}

/// Enqueues Distribution Focal Loss on `stream`, a CUstream.
///
/// # Errors
/// As [`launch_qfl`](crate::cuda::raw::launch_qfl).
///
/// # Safety
/// As [`launch_qfl`](crate::cuda::raw::launch_qfl).
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
