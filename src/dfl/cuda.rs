//! Distribution Focal Loss on CUDA: checks, addresses, launch.

use cudarc::driver::{DevicePtr, DevicePtrMut, DeviceSlice};

use super::{DistributionFocalLoss, Target};
use crate::call::{Call, Lengths};
use crate::cuda::raw::{DflArgs, Pass, launch_dfl};
use crate::cuda::{Device, Handle, StorageElement};
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
}

impl<T: StorageElement> Call<'_, DistributionFocalLoss, Device, T> {
    /// Enqueues the loss alone: `[1]`, or `[rows]` for [`Reduction::None`](crate::Reduction::None).
    ///
    /// # Errors
    /// If a length does not fit the shape, a buffer is in another context, an option is outside
    /// its range, or the driver refuses the launch.
    pub fn forward(mut self, loss: &mut impl DevicePtrMut<f32>) -> Result<()> {
        self.run(Some(loss), None)
    }

    /// Enqueues the loss and its gradient `[rows, bins]`, in one pass.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn forward_backward(
        mut self,
        loss: &mut impl DevicePtrMut<f32>,
        grad: &mut impl DevicePtrMut<T>,
    ) -> Result<()> {
        self.run(Some(loss), Some(grad))
    }

    /// Enqueues the gradient alone.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn backward(mut self, grad: &mut impl DevicePtrMut<T>) -> Result<()> {
        self.run(None, Some(grad))
    }

    fn run<'s>(
        &'s mut self,
        loss: Option<&'s mut dyn DevicePtrMut<f32>>,
        grad: Option<&'s mut dyn DevicePtrMut<T>>,
    ) -> Result<()> {
        let (dfl, handle, logits, Target { target }, [rows, bins]) =
            (self.operation, self.backend, self.logits, self.targets, self.shape);
        let ([weight, upstream], scalars) = self.option_lengths();
        let lengths = Lengths {
            shape: self.shape,
            logits: logits.len(),
            per_row: &[("target", Some(target.len())), weight, upstream],
            like_logits: &[("grad", grad.as_deref().map(DeviceSlice::len))],
            loss: loss.as_deref().map(|loss| (loss.len(), self.reduction.losses(rows))),
            scalars: &scalars,
        };
        dfl.check(lengths, &self.reduction, self.upstream.is_some(), self.host_grad_scale())?;

        let stream = handle.stream();
        let mut prepared = self.prepare(dfl.loss_weight, loss)?;
        let pass = if grad.is_some() { Pass::ForwardBackward } else { Pass::Forward };
        let args = DflArgs {
            scaling: prepared.scaling,
            logits: prepared.read("logits", Some(logits), stream)?,
            target: prepared.read("target", Some(target), stream)?,
            grad: prepared.write("grad", grad, stream)?,
            rows: rows as u64,
            bins: bins as u32,
            target_max: dfl.target_max(bins),
        };
        // SAFETY: DistributionFocalLoss::check has compared every length with the shape, and
        // Prepared every context with the stream's; Prepared keeps the buffers borrowed until the
        // launch is enqueued, and cudarc orders what other streams do with them.
        unsafe { launch_dfl(handle.kernels(), T::STORAGE, pass, &args, stream.cu_stream().cast()) }
    }
}
