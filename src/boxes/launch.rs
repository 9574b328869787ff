//! The kernels of the box losses: parameters, entry points, launch.

use std::ffi::c_void;

use crate::cuda::args::{DeviceAddress, Pass};
use crate::cuda::launch::{Grid, launch};
use crate::cuda::units::{Entry, Unit, Units, entry, without_logits};
use crate::cuda::{Kernels, Storage};
use crate::error::Result;

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

/// Twin of the constant in kernels/boxes.cu.
const BOXES_BLOCK: u32 = 128;

/// What they come in.
pub(crate) const UNITS: [Unit; 1] =
    [without_logits("boxes", "BoxLoss::units", &["boxes_forward", "boxes_forward_backward"])];

/// The entry points, by pass.
const BOXES: [Entry; 2] = [entry("boxes_forward"), entry("boxes_forward_backward")];

/// What [`launch_boxes`] needs loaded.
pub(crate) fn boxes_units() -> Units {
    Units::of(BOXES[0].unit, Storage::F32)
}

/// Enqueues a box loss on `stream`, a CUstream.
///
/// # Errors
/// As [`launch_qfl`](crate::cuda::raw::launch_qfl).
///
/// # Safety
/// As [`launch_qfl`](crate::cuda::raw::launch_qfl).
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
