//! The integral on CUDA: checks, addresses, launch.

use cudarc::driver::{DevicePtr, DevicePtrMut};

use super::check;
use super::launch::{IntegralArgs, integral_units, launch_integral};
use crate::cuda::{Handle, Pass, Prepared, Storage, StorageElement, Units};
use crate::error::Result;

/// The kernels that both calls need, for [`Handle::prepare`].
pub fn units(storage: Storage) -> Units {
    integral_units(storage)
}

/// Enqueues the expectations `[rows]` of logits `[rows, bins]`, in units of bins.
///
/// # Errors
/// If a length does not fit the shape, a buffer is in another context, or the driver refuses the
/// launch.
pub fn forward_cuda<T: StorageElement>(
    handle: &Handle,
    logits: &impl DevicePtr<T>,
    shape: [usize; 2],
    expectation: &mut impl DevicePtrMut<f32>,
) -> Result<()> {
    check(shape, logits.len(), Some(expectation.len()), None, None)?;
    let (stream, mut prepared) = (handle.stream(), Prepared::on(handle)?);
    let args = IntegralArgs {
        logits: prepared.read("logits", Some(logits), stream)?,
        expectation: prepared.write("expectation", Some(expectation), stream)?,
        rows: shape[0] as u64,
        bins: shape[1] as u32,
        ..IntegralArgs::default()
    };
    prepared.check_overlaps()?;
    // SAFETY: `check` has compared every length with the shape, and Prepared every context with the
    // stream's and the places of the buffers; Prepared keeps them borrowed until the launch is enqueued.
    unsafe { launch_integral(handle.kernels(), T::STORAGE, Pass::Forward, &args, stream.cu_stream().cast()) }
}

/// Enqueues the gradient `[rows, bins]` of the expectations, given the gradient `upstream`
/// `[rows]` with respect to each of them.
///
/// # Errors
/// As [`forward_cuda`].
pub fn backward_cuda<T: StorageElement>(
    handle: &Handle,
    logits: &impl DevicePtr<T>,
    shape: [usize; 2],
    upstream: &impl DevicePtr<f32>,
    grad: &mut impl DevicePtrMut<T>,
) -> Result<()> {
    check(shape, logits.len(), None, Some(upstream.len()), Some(grad.len()))?;
    let (stream, mut prepared) = (handle.stream(), Prepared::on(handle)?);
    let args = IntegralArgs {
        logits: prepared.read("logits", Some(logits), stream)?,
        upstream: prepared.read("upstream", Some(upstream), stream)?,
        grad: prepared.write("grad", Some(grad), stream)?,
        rows: shape[0] as u64,
        bins: shape[1] as u32,
        ..IntegralArgs::default()
    };
    prepared.check_overlaps()?;
    // SAFETY: as in forward_cuda.
    unsafe {
        launch_integral(handle.kernels(), T::STORAGE, Pass::ForwardBackward, &args, stream.cu_stream().cast())
    }
}
