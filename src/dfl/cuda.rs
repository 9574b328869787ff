//! Distribution Focal Loss on CUDA: checks, addresses, launch.

use cudarc::driver::{DevicePtr, DevicePtrMut, DeviceSlice};

use super::launch::{DflArgs, dfl_units, launch_dfl};
use super::{DistributionFocalLoss, Target};
use crate::call::{Call, Lengths};
use crate::cuda::{Device, Handle, Pass, Prepared, Storage, StorageElement, Units};
use crate::error::Result;

impl DistributionFocalLoss {
    /// A call on CUDA: as [`cpu`](Self::cpu), with device buffers (slices, views, or your own
    /// types that implement cudarc's traits).
    pub fn cuda<'a, T: StorageElement>(
        &'a self,
        handle: &'a Handle,
        logits: &'a impl DevicePtr<T>,
        shape: [usize; 2],
        target: &'a impl DevicePtr<f32>,
    ) -> Call<'a, Self, Device, T> {
        let (logits, target): (&dyn DevicePtr<T>, &dyn DevicePtr<f32>) = (logits, target);
        Call::new(self, handle, logits, shape, Target { target })
    }

    /// The kernels that calls need, for [`Handle::prepare`].
    pub fn units(&self, storage: Storage, pass: Pass) -> Units {
        dfl_units(storage, pass)
    }
}

pub(super) fn run<'s, T: StorageElement>(
    call: &'s mut Call<'_, DistributionFocalLoss, Device, T>,
    loss: Option<&'s mut dyn DevicePtrMut<f32>>,
    grad: Option<&'s mut dyn DevicePtrMut<T>>,
) -> Result<()> {
    let handle = call.backend;
    let pass = if grad.is_some() { Pass::ForwardBackward } else { Pass::Forward };
    let mut prepared = Prepared::on(handle)?;
    let args = prepare(call, loss, grad, &mut prepared)?;
    prepared.check_overlaps()?;
    // SAFETY: `prepare` has compared every length with the shape, and Prepared every context with the
    // stream's and the places of the buffers; it keeps them borrowed until the launch is enqueued, and
    // cudarc orders what other streams do with them.
    unsafe { launch_dfl(handle.kernels(), T::STORAGE, pass, &args, handle.stream().cu_stream().cast()) }
}

/// The kernel's parameters, after the checks of lengths and options; the buffers join `prepared`.
pub(crate) fn prepare<'s, 'b: 's, T: StorageElement>(
    call: &'s mut Call<'_, DistributionFocalLoss, Device, T>,
    loss: Option<&'s mut (dyn DevicePtrMut<f32> + 'b)>,
    grad: Option<&'s mut (dyn DevicePtrMut<T> + 'b)>,
    prepared: &mut Prepared<'s>,
) -> Result<DflArgs> {
    let (dfl, handle, logits, Target { target }, [rows, bins]) =
        (call.operation, call.backend, call.logits, call.targets, call.shape);
    let ([weight, upstream], scalars) = call.option_lengths();
    let lengths = Lengths {
        shape: call.shape,
        logits: logits.len(),
        per_row: &[("target", Some(target.len())), weight, upstream],
        per_column: &[],
        like_logits: &[("grad", grad.as_deref().map(DeviceSlice::len))],
        loss: loss.as_deref().map(|loss| (loss.len(), call.reduction.losses(rows))),
        scalars: &scalars,
    };
    dfl.check(&lengths, &call.reduction, call.upstream.is_some(), call.host_grad_scale())?;

    let stream = handle.stream();
    Ok(DflArgs {
        scaling: call.prepare(dfl.loss_weight, loss, prepared)?,
        logits: prepared.read("logits", Some(logits), stream)?,
        target: prepared.read("target", Some(target), stream)?,
        grad: prepared.write("grad", grad, stream)?,
        rows: rows as u64,
        bins: bins as u32,
        target_max: dfl.target_max(bins),
    })
}
