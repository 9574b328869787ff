//! The kernels of the integral: parameters, entry points, launch.

use std::ffi::c_void;

use crate::cuda::args::{DeviceAddress, Pass};
use crate::cuda::launch::{lanes, launch, rows_grid};
use crate::cuda::units::{Entry, Unit, Units, entry, unit};
use crate::cuda::{Kernels, Storage};
use crate::error::Result;

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

/// Twin of the constant in kernels/integral.cu.
const INTEGRAL_BLOCK: u32 = 256;

/// What they come in.
pub(crate) const UNITS: [Unit; 1] =
    [unit("integral", "integral::units", &["integral_forward", "integral_forward_backward"])];

/// The entry points, by pass.
const INTEGRAL: [Entry; 2] = [entry("integral_forward"), entry("integral_forward_backward")];

/// What [`launch_integral`] needs loaded.
pub(crate) fn integral_units(storage: Storage) -> Units {
    Units::of(INTEGRAL[0].unit, storage)
}

/// Enqueues the integral, or its gradient, on `stream`, a CUstream.
///
/// # Errors
/// As [`launch_qfl`](crate::cuda::raw::launch_qfl).
///
/// # Safety
/// As [`launch_qfl`](crate::cuda::raw::launch_qfl).
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
