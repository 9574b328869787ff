//! Both losses on CUDA, in one launch.

use cudarc::driver::DevicePtrMut;

use super::Gfl;
use super::launch::{GflArgs, gfl_units, launch_gfl};
use crate::cuda::{Device, Pass, Prepared, Storage, StorageElement, Units};
use crate::error::{Error, Result};
use crate::{dfl, qfl};

/// The kernels that calls of a [`Gfl`] need, for [`Handle::prepare`](crate::cuda::Handle::prepare).
pub fn units(storage: Storage, pass: Pass) -> Units {
    gfl_units(storage, pass)
}

impl<T: StorageElement> Gfl<'_, Device, T> {
    /// Enqueues the losses `[3]`: QFL, DFL, their sum.
    ///
    /// # Errors
    /// If one of the calls has an error, or [`Reduction::None`](crate::Reduction::None), or the two
    /// are on different handles.
    pub fn forward(self, losses: &mut impl DevicePtrMut<f32>) -> Result<()> {
        self.run(losses, None)
    }

    /// Enqueues the losses, and the gradients of their sum with respect to the logits of both.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn forward_backward(
        self,
        losses: &mut impl DevicePtrMut<f32>,
        grad_qfl: &mut impl DevicePtrMut<T>,
        grad_dfl: &mut impl DevicePtrMut<T>,
    ) -> Result<()> {
        self.run(losses, Some((grad_qfl, grad_dfl)))
    }

    fn run(mut self, losses: &mut dyn DevicePtrMut<f32>, grads: Option<Grads<'_, T>>) -> Result<()> {
        self.check(losses.len())?;
        let handle = self.qfl.backend;
        if !std::ptr::eq(handle, self.dfl.backend) {
            return Err(Error::GflHandles);
        }
        let pass = if grads.is_some() { Pass::ForwardBackward } else { Pass::Forward };
        let (grad_qfl, grad_dfl) = grads.unzip();
        let stream = handle.stream();
        let mut prepared = Prepared::on(handle)?;
        let losses = prepared.write("losses", Some(losses), stream)?;
        let qfl = qfl::cuda::prepare(&mut self.qfl, None, grad_qfl, &mut prepared)?;
        let dfl = dfl::cuda::prepare(&mut self.dfl, None, grad_dfl, &mut prepared)?;
        prepared.check_overlaps()?;
        let args = GflArgs { qfl, dfl, losses, scratch: qfl.scaling.scratch, ..GflArgs::default() };
        // SAFETY: the two `prepare` have compared every length with the shapes, `check` that of the
        // losses, and Prepared every context with the stream's and the places of the buffers; it keeps
        // them borrowed until the launch is enqueued, and cudarc orders what other streams do with them.
        unsafe { launch_gfl(handle.kernels(), T::STORAGE, pass, &args, stream.cu_stream().cast()) }
    }
}

/// Where the gradients of both go.
type Grads<'a, T> = (&'a mut dyn DevicePtrMut<T>, &'a mut dyn DevicePtrMut<T>);
