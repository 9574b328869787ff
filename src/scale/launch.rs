//! The kernel that scales a gradient: parameters, entry point, launch.

use std::ffi::c_void;

use crate::cuda::args::DeviceAddress;
use crate::cuda::launch::{Grid, launch};
use crate::cuda::units::{Entry, Unit, Units, entry, unit};
use crate::cuda::{Kernels, Storage};
use crate::error::Result;

/// Twin of `ScaleArgs` in kernels/scale.cu.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct ScaleArgs {
    /// `[count]`, aligned to its element.
    pub grad: DeviceAddress,
    /// `[1]` f32.
    pub scale: DeviceAddress,
    /// `[1]` f32, or null; becomes 1 if a stored gradient is not finite.
    pub found_inf: DeviceAddress,
    /// How many elements.
    pub count: u64,
    /// Set by the launch.
    pub vectors: u64,
}

/// Twin of the constant in kernels/scale.cu.
const SCALE_BLOCK: u32 = 256;

/// What it comes in.
pub(crate) const UNITS: [Unit; 1] = [unit("scale", "cuda::scale_units", &["scale"])];

const SCALE: Entry = entry("scale");

/// The kernel that [`scale`](super::cuda::scale) needs, for [`Handle::prepare`](crate::cuda::Handle::prepare).
pub fn scale_units(storage: Storage) -> Units {
    Units::of(SCALE.unit, storage)
}

/// Enqueues the scaling of a gradient on `stream`, a CUstream.
///
/// # Errors
/// As [`launch_qfl`](crate::cuda::raw::launch_qfl).
///
/// # Safety
/// As [`launch_qfl`](crate::cuda::raw::launch_qfl).
pub unsafe fn launch_scale(
    kernels: &Kernels,
    storage: Storage,
    args: &ScaleArgs,
    stream: *mut c_void,
) -> Result<()> {
    if args.count == 0 {
        return Ok(());
    }
    let vector = storage.vector() as u64;
    let head = (args.grad.next_multiple_of(16) - args.grad) / (16 / vector);
    let args = ScaleArgs { vectors: args.count.saturating_sub(head) / vector, ..*args };
    let kernel = kernels.function(SCALE, storage, stream.cast())?;
    // A thread has a vector of its own first, then several.
    let each = u64::from(SCALE_BLOCK);
    let rows = args.vectors.max(1);
    let grid = Grid::new(SCALE_BLOCK, rows, each, kernels.multiprocessors(), kernel.resident);
    // SAFETY: the function takes one ScaleArgs; the rest is the caller's promise.
    unsafe { launch(kernel, grid, &args, stream.cast()) }
}
