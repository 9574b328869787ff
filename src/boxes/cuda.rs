//! Box losses on CUDA: checks, addresses, launch.

use cudarc::driver::{DevicePtr, DevicePtrMut};

use super::launch::{BoxesArgs, boxes_units, launch_boxes};
use super::{BoxLoss, IouKind, check};
use crate::cuda::{Handle, Pass, Prepared, Units};
use crate::error::Result;

impl BoxLoss {
    /// The kernels that calls need, for [`Handle::prepare`].
    pub fn units() -> Units {
        boxes_units()
    }

    /// Enqueues the losses `[boxes]` of predictions `[boxes, 4]` and targets `[boxes, 4]`.
    ///
    /// # Errors
    /// If a length does not fit the number of boxes, a buffer is in another context, or the driver
    /// refuses the launch.
    pub fn forward_cuda(
        &self,
        handle: &Handle,
        pred: &impl DevicePtr<f32>,
        target: &impl DevicePtr<f32>,
        boxes: usize,
        loss: &mut impl DevicePtrMut<f32>,
    ) -> Result<()> {
        let lengths =
            [("pred", Some(pred.len()), 4), ("target", Some(target.len()), 4), ("loss", Some(loss.len()), 1)];
        check(boxes, &lengths)?;
        let (stream, mut prepared) = (handle.stream(), Prepared::on(handle)?);
        let args = BoxesArgs {
            pred: prepared.read("pred", Some(pred), stream)?,
            target: prepared.read("target", Some(target), stream)?,
            loss: prepared.write("loss", Some(loss), stream)?,
            ..self.args(boxes)
        };
        prepared.check_overlaps()?;
        // SAFETY: `check` has compared every length with the number of boxes, and Prepared every
        // context with the stream's and the places of the buffers; Prepared keeps them borrowed until
        // the launch is enqueued.
        unsafe { launch_boxes(handle.kernels(), Pass::Forward, &args, stream.cu_stream().cast()) }
    }

    /// Enqueues the losses `[boxes]`, and the gradient `[boxes, 4]` with respect to the
    /// predictions, given the gradient `upstream` `[boxes]` with respect to each loss (default:
    /// all ones).
    ///
    /// # Errors
    /// As [`forward_cuda`](Self::forward_cuda).
    #[allow(clippy::too_many_arguments, reason = "the tensors of the CPU's call, and the handle")]
    pub fn forward_backward_cuda(
        &self,
        handle: &Handle,
        pred: &impl DevicePtr<f32>,
        target: &impl DevicePtr<f32>,
        boxes: usize,
        upstream: Option<&dyn DevicePtr<f32>>,
        loss: &mut impl DevicePtrMut<f32>,
        grad: &mut impl DevicePtrMut<f32>,
    ) -> Result<()> {
        let lengths = [
            ("pred", Some(pred.len()), 4),
            ("target", Some(target.len()), 4),
            ("upstream", upstream.map(|upstream| upstream.len()), 1),
            ("loss", Some(loss.len()), 1),
            ("grad", Some(grad.len()), 4),
        ];
        check(boxes, &lengths)?;
        let (stream, mut prepared) = (handle.stream(), Prepared::on(handle)?);
        let args = BoxesArgs {
            pred: prepared.read("pred", Some(pred), stream)?,
            target: prepared.read("target", Some(target), stream)?,
            upstream: prepared.read("upstream", upstream, stream)?,
            loss: prepared.write("loss", Some(loss), stream)?,
            grad: prepared.write("grad", Some(grad), stream)?,
            ..self.args(boxes)
        };
        prepared.check_overlaps()?;
        // SAFETY: as in forward_cuda.
        unsafe { launch_boxes(handle.kernels(), Pass::ForwardBackward, &args, stream.cu_stream().cast()) }
    }

    fn args(&self, boxes: usize) -> BoxesArgs {
        // Twin of `IouKind` in kernels/boxes.cuh.
        let kind = match self.kind {
            IouKind::Iou => 0,
            IouKind::Giou => 1,
            IouKind::Diou => 2,
            IouKind::Ciou => 3,
            IouKind::CiouUltralytics => 4,
        };
        BoxesArgs { boxes: boxes as u64, eps: self.eps, kind, ..BoxesArgs::default() }
    }
}
