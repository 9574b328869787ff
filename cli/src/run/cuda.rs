//! On a GPU: tensors up, one launch, results down.

use gfocal::cuda::{Device, StatusBlock, StorageElement};
use gfocal::cudarc::driver::{CudaView, CudaViewMut, DeviceRepr, ValidAsZeroBits};
use gfocal::{Call, DistributionFocalLoss, Label, Operation, QualityFocalLoss, Result};

use super::{Outcome, Scaling, losses};
use crate::buffer::{Buffer, Stored};
use crate::device::Cuda;
use crate::floats::Float;
use crate::inputs::{DflInputs, Inputs, Labels, QflInputs, QflTargets};

pub fn qfl<T: Stored>(
    cuda: &Cuda,
    loss: &QualityFocalLoss,
    logits: &[T],
    inputs: &QflInputs,
    scaling: Scaling,
) -> Result<Outcome> {
    match &inputs.targets {
        QflTargets::Sparse { labels: Labels::I64(labels), quality } => {
            qfl_sparse(cuda, loss, logits, labels, quality, inputs, scaling)
        }
        QflTargets::Sparse { labels: Labels::I32(labels), quality } => {
            qfl_sparse(cuda, loss, logits, labels, quality, inputs, scaling)
        }
        QflTargets::Dense { target } => {
            let target = Buffer::upload(cuda.stream(), target)?;
            run(cuda, logits, inputs, scaling, |logits, options, loss_out, grad, status| {
                let target = target.view();
                let call = loss.cuda_dense(&cuda.handle, logits, inputs.shape, &target);
                options.on(call).status(status).forward_backward(loss_out, grad)
            })
        }
    }
}

fn qfl_sparse<T: Stored, L: Label + DeviceRepr + ValidAsZeroBits>(
    cuda: &Cuda,
    loss: &QualityFocalLoss,
    logits: &[T],
    labels: &[L],
    quality: &[f32],
    inputs: &QflInputs,
    scaling: Scaling,
) -> Result<Outcome> {
    let (labels, quality) = (Buffer::upload(cuda.stream(), labels)?, Buffer::upload(cuda.stream(), quality)?);
    run(cuda, logits, inputs, scaling, |logits, options, loss_out, grad, status| {
        let (labels, quality) = (labels.view(), quality.view());
        let call = loss.cuda(&cuda.handle, logits, inputs.shape, &labels, &quality);
        options.on(call).status(status).forward_backward(loss_out, grad)
    })
}

pub fn dfl<T: Stored>(
    cuda: &Cuda,
    loss: &DistributionFocalLoss,
    logits: &[T],
    inputs: &DflInputs,
    scaling: Scaling,
) -> Result<Outcome> {
    let target = Buffer::upload(cuda.stream(), &inputs.targets)?;
    run(cuda, logits, inputs, scaling, |logits, options, loss_out, grad, status| {
        let target = target.view();
        let call = loss.cuda(&cuda.handle, logits, inputs.shape, &target);
        options.on(call).status(status).forward_backward(loss_out, grad)
    })
}

/// What all calls have besides their targets.
struct Options<'a> {
    weight: Option<CudaView<'a, f32>>,
    scaling: Scaling,
}

impl<'a> Options<'a> {
    fn on<'c, Op: Operation, T: StorageElement>(
        &'c self,
        call: Call<'c, Op, Device, T>,
    ) -> Call<'c, Op, Device, T>
    where
        'a: 'c,
    {
        let call = call.reduction(self.scaling.reduction.into()).grad_scale(self.scaling.grad_scale);
        match &self.weight {
            Some(weight) => call.weight(weight),
            None => call,
        }
    }
}

fn run<T: Stored, G>(
    cuda: &Cuda,
    logits: &[T],
    inputs: &Inputs<G>,
    scaling: Scaling,
    call: impl FnOnce(
        &CudaView<'_, T>,
        &Options,
        &mut CudaViewMut<'_, f32>,
        &mut CudaViewMut<'_, T>,
        &mut StatusBlock,
    ) -> Result<()>,
) -> Result<Outcome> {
    let stream = cuda.stream();
    let mut loss = Buffer::<f32>::zeros(stream, losses(inputs, logits, scaling))?;
    let mut grad = Buffer::<T>::zeros(stream, logits.len())?;
    let logits = Buffer::upload(stream, logits)?;
    let weight = inputs.weight.as_deref().map(|weight| Buffer::upload(stream, weight)).transpose()?;
    let mut status = StatusBlock::new(stream)?;

    let options = Options { weight: weight.as_ref().map(Buffer::view), scaling };
    call(&logits.view(), &options, &mut loss.view_mut(), &mut grad.view_mut(), &mut status)?;
    Ok(Outcome {
        loss: Float::floats(loss.download(stream)?),
        grad: Float::floats(grad.download(stream)?),
        status: status.read(stream)?,
    })
}
