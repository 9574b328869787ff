//! QFL and DFL in one launch.

use std::ffi::c_void;

use crate::cuda::args::{DeviceAddress, Pass};
use crate::cuda::launch::{Grid, lanes, launch};
use crate::cuda::units::{Entry, Unit, Units, entry, unit};
use crate::cuda::{Kernels, Storage};
use crate::dfl::launch::DflArgs;
use crate::error::Result;
use crate::qfl::launch::QflArgs;

/// Twin of `GflArgs` in kernels/gfl.cuh.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct GflArgs {
    /// QFL; its `loss` is null, and its `per_row` 0.
    pub qfl: QflArgs,
    /// DFL; likewise.
    pub dfl: DflArgs,
    /// `[3]` f32: QFL, DFL, their sum.
    pub losses: DeviceAddress,
    /// As [`Scaling::scratch`](crate::cuda::raw::Scaling::scratch), for both.
    pub scratch: DeviceAddress,
    /// Set by the launch.
    pub dfl_blocks: u32,
    /// Padding.
    pub unused: u32,
}

/// Twin of the constant in kernels/gfl.cuh.
const GFL_BLOCK: u32 = 256;

/// What they come in.
pub(crate) const UNITS: [Unit; 2] = [
    unit("gfl", "gfl::units", &["gfl_forward_backward"]),
    unit("gfl_forward", "gfl::units", &["gfl_forward"]),
];

/// The entry points, by pass.
const GFL: [Entry; 2] = [entry("gfl_forward"), entry("gfl_forward_backward")];

/// What [`launch_gfl`] needs loaded.
pub(crate) fn gfl_units(storage: Storage, pass: Pass) -> Units {
    Units::of(GFL[pass.index()].unit, storage)
}

/// Enqueues both losses on `stream`, a CUstream, as one launch.
///
/// # Errors
/// As [`launch_qfl`](crate::cuda::raw::launch_qfl).
///
/// # Safety
/// As [`launch_qfl`](crate::cuda::raw::launch_qfl).
pub unsafe fn launch_gfl(
    kernels: &Kernels,
    storage: Storage,
    pass: Pass,
    args: &GflArgs,
    stream: *mut c_void,
) -> Result<()> {
    let mut args = *args;
    let multiprocessors = kernels.multiprocessors();
    let function = kernels.function(GFL[pass.index()], storage, stream.cast())?;
    // Half of what a multiprocessor holds for each of the two losses.
    let each = (function.resident / 2).max(1);
    let blocks = |rows: u64, lanes: u32| {
        Grid::new(GFL_BLOCK, rows, u64::from(GFL_BLOCK / lanes), multiprocessors, each).blocks
    };
    args.qfl.general = args.qfl.is_general().into();
    args.qfl.scaling.lanes = lanes(args.qfl.classes, storage.vector(), 5);
    args.dfl.scaling.lanes = lanes(args.dfl.bins, storage.vector(), 2);
    args.dfl_blocks = blocks(args.dfl.rows, args.dfl.scaling.lanes);
    let all = args.dfl_blocks + blocks(args.qfl.rows, args.qfl.scaling.lanes);
    // SAFETY: the function takes one GflArgs; the rest is the caller's promise.
    unsafe { launch(function, Grid { blocks: all, threads: GFL_BLOCK }, &args, stream.cast()) }
}
