//! The scaling of a gradient on CUDA: checks, addresses, a launch.

use cudarc::driver::{DevicePtr, DevicePtrMut, DeviceSlice};

use super::launch::{ScaleArgs, launch_scale};
use crate::call::check_length;
use crate::cuda::{Handle, Prepared, StorageElement};
use crate::error::Result;

/// Multiplies a gradient by a number on the device, `[1]`: the upstream gradient of a loss whose gradient
/// has been computed with it. If that is 1, the kernel ends at once, and nothing is read or written.
///
/// `found_inf`, `[1]`, is set to 1 if a gradient that is stored is inf or NaN, and is otherwise left as it is.
///
/// ```no_run
/// use gfocal::cuda::{self, Handle};
///
/// let stream = cuda::context(0)?.default_stream();
/// let handle = Handle::new(&stream)?;
/// let mut grad = stream.alloc_zeros::<f32>(33_600 * 80)?; // yours, of forward_backward
/// let upstream = stream.alloc_zeros::<f32>(1)?; // yours, of what follows the loss
/// let mut found_inf = stream.alloc_zeros::<f32>(1)?;
/// cuda::scale(&handle, &mut grad, &upstream, Some(&mut found_inf))?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// If `scale` or `found_inf` is not one element, buffers overlap, one is in another context, or the driver
/// refuses the launch.
pub fn scale<T: StorageElement>(
    handle: &Handle,
    grad: &mut impl DevicePtrMut<T>,
    scale: &impl DevicePtr<f32>,
    found_inf: Option<&mut dyn DevicePtrMut<f32>>,
) -> Result<()> {
    let count = grad.len();
    check_length("scale", scale.len(), [count, 1], 1)?;
    check_length("found_inf", found_inf.as_deref().map_or(1, DeviceSlice::len), [count, 1], 1)?;
    let (stream, mut prepared) = (handle.stream(), Prepared::on(handle)?);
    let args = ScaleArgs {
        grad: prepared.write("the gradient", Some(grad), stream)?,
        scale: prepared.read("scale", Some(scale), stream)?,
        found_inf: prepared.write("found_inf", found_inf, stream)?,
        count: count as u64,
        vectors: 0, // the launch sets it
    };
    prepared.check_overlaps()?;
    // SAFETY: the lengths are checked above, and Prepared has compared every context with the stream's and
    // the places of the buffers; it keeps them borrowed until the launch is enqueued.
    unsafe { launch_scale(handle.kernels(), T::STORAGE, &args, stream.cu_stream().cast()) }
}
