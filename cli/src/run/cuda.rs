//! On a GPU: tensors up, one launch, results down.

use gfocal::cuda::{Device, StatusBlock, StorageElement};
use gfocal::cudarc::driver::{DeviceRepr, ValidAsZeroBits};
use gfocal::{Call, DistributionFocalLoss, Label, Operation, QualityFocalLoss, Result};

use super::{Outcome, Scaling, losses};
use crate::buffer::{Buffer, Stored};
use crate::device::Cuda;
use crate::floats::Float;
use crate::inputs::{DflInputs, Inputs, Labels, QflInputs, QflRows};

pub fn qfl<T: Stored>(
    cuda: &Cuda,
    loss: &QualityFocalLoss,
    logits: &[T],
    inputs: &QflInputs,
    scaling: Scaling,
) -> Result<Outcome> {
    match &inputs.targets.rows {
        QflRows::Sparse { labels: Labels::I64(labels), quality } => {
            qfl_sparse(cuda, loss, logits, labels, quality, inputs, scaling)
        }
        QflRows::Sparse { labels: Labels::I32(labels), quality } => {
            qfl_sparse(cuda, loss, logits, labels, quality, inputs, scaling)
        }
        QflRows::Dense { target } => {
            let target = Buffer::beside(cuda.stream(), target)?;
            let weights = Weights::upload(cuda, inputs)?;
            run(cuda, logits, inputs, scaling, |logits, options, loss_out, grad, status| {
                let call = loss.cuda_dense(&cuda.handle, logits, inputs.shape, &target);
                options.on(weights.on(call)).status(status).forward_backward(loss_out, grad)
            })
        }
    }
}

fn qfl_sparse<T: Stored, L: Label + DeviceRepr + ValidAsZeroBits>(
    cuda: &Cuda,
    loss: &QualityFocalLoss,
    logits: &[T],
    labels: &[L],
    quality: &[f64],
    inputs: &QflInputs,
    scaling: Scaling,
) -> Result<Outcome> {
    let labels = Buffer::upload(cuda.stream(), labels)?;
    let quality = Buffer::beside(cuda.stream(), quality)?;
    let weights = Weights::upload(cuda, inputs)?;
    run(cuda, logits, inputs, scaling, |logits, options, loss_out, grad, status| {
        let call = loss.cuda(&cuda.handle, logits, inputs.shape, &labels, &quality);
        options.on(weights.on(call)).status(status).forward_backward(loss_out, grad)
    })
}

/// The weights that QFL alone has: of classes, and of elements.
struct Weights([Option<Buffer<f32>>; 2]);

impl Weights {
    fn upload(cuda: &Cuda, inputs: &QflInputs) -> Result<Self> {
        let upload = |weights: &Option<Vec<f64>>| {
            weights.as_deref().map(|weights| Buffer::beside(cuda.stream(), weights)).transpose()
        };
        Ok(Weights([upload(&inputs.targets.class_weights)?, upload(&inputs.targets.element_weights)?]))
    }

    fn on<'c, T: StorageElement>(
        &'c self,
        mut call: Call<'c, QualityFocalLoss, Device, T>,
    ) -> Call<'c, QualityFocalLoss, Device, T> {
        if let [Some(weights), _] = &self.0 {
            call = call.class_weights(weights);
        }
        if let [_, Some(weights)] = &self.0 {
            call = call.element_weights(weights);
        }
        call
    }
}

pub fn dfl<T: Stored>(
    cuda: &Cuda,
    loss: &DistributionFocalLoss,
    logits: &[T],
    inputs: &DflInputs,
    scaling: Scaling,
) -> Result<Outcome> {
    let target = Buffer::beside(cuda.stream(), &inputs.targets)?;
    run(cuda, logits, inputs, scaling, |logits, options, loss_out, grad, status| {
        let call = loss.cuda(&cuda.handle, logits, inputs.shape, &target);
        options.on(call).status(status).forward_backward(loss_out, grad)
    })
}

/// What all calls have besides their targets.
struct Options {
    weight: Option<Buffer<f32>>,
    scaling: Scaling,
}

impl Options {
    fn on<'c, Op: Operation, T: StorageElement>(
        &'c self,
        call: Call<'c, Op, Device, T>,
    ) -> Call<'c, Op, Device, T> {
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
    call: impl FnOnce(&Buffer<T>, &Options, &mut Buffer<f32>, &mut Buffer<T>, &mut StatusBlock) -> Result<()>,
) -> Result<Outcome> {
    let stream = cuda.stream();
    let mut loss = Buffer::<f32>::zeros(stream, losses(inputs, logits, scaling))?;
    let mut grad = Buffer::<T>::zeros(stream, logits.len())?;
    let logits = Buffer::upload(stream, logits)?;
    let weight = inputs.weight.as_deref().map(|weight| Buffer::beside(stream, weight)).transpose()?;
    let mut status = StatusBlock::new(stream)?;

    call(&logits, &Options { weight, scaling }, &mut loss, &mut grad, &mut status)?;
    Ok(Outcome {
        loss: Float::floats(loss.download(stream)?),
        grad: Float::floats(grad.download(stream)?),
        exact_grad: None,
        status: status.read(stream)?,
    })
}
