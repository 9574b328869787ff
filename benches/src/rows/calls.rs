//! The calls, on the CPU and on CUDA.

use std::sync::Arc;

use gfocal::Result;
use gfocal::cuda::{Device, Handle, check};
use gfocal::cudarc::driver::{CudaSlice, CudaStream};
use gfocal::{Call, DistributionFocalLoss, Host, Operation, QualityFocalLoss, Reduction, integral};

use super::data::Inputs;
use crate::op::{Pass, RowOp};
use crate::random::Stored;
use crate::workload::{Calls, Set};

/// What an operation on rows gives.
pub struct Outcome<T> {
    /// `[1]`, or the expectations `[rows]`.
    pub loss: Vec<f32>,
    pub grad: Vec<T>,
}

/// Inputs on the CPU, and where the results go.
pub struct RowCalls<'a, T> {
    inputs: &'a Inputs<T>,
    loss: Vec<f32>,
    grad: Vec<T>,
}

impl<'a, T: Stored> RowCalls<'a, T> {
    pub fn new(inputs: &'a Inputs<T>) -> Self {
        let grad = vec![T::from_f64(f64::NAN); inputs.logits.len()];
        RowCalls { inputs, loss: vec![f32::NAN; inputs.results()], grad }
    }
}

impl<T: Stored> Calls for RowCalls<'_, T> {
    type Outcome = Outcome<T>;

    fn outcome(&mut self, pass: Pass) -> Result<Outcome<T>> {
        self.loss.fill(f32::NAN);
        self.grad.fill(T::from_f64(f64::NAN));
        self.run(pass)?;
        Ok(Outcome { loss: self.loss.clone(), grad: self.grad.clone() })
    }

    fn run(&mut self, pass: Pass) -> Result<()> {
        let Inputs { shape, logits, labels, quality, target, weight, .. } = self.inputs;
        let (loss, grad) = (&mut self.loss, &mut self.grad);
        match self.inputs.op {
            RowOp::Qfl => {
                let qfl = QualityFocalLoss::default();
                run(qfl.cpu(logits, *shape, labels, quality).weight(weight), pass, loss, grad)?;
            }
            RowOp::Dfl => {
                let dfl = DistributionFocalLoss::default();
                run(dfl.cpu(logits, *shape, target).weight(weight), pass, loss, grad)?;
            }
            RowOp::Integral if pass == Pass::Forward => integral::forward(logits, *shape, loss)?,
            RowOp::Integral => integral::backward(logits, *shape, weight, grad)?,
        }
        Ok(())
    }
}

fn run<L: Operation, T: Stored>(
    call: Call<'_, L, Host, T>,
    pass: Pass,
    loss: &mut [f32],
    grad: &mut [T],
) -> Result<()> {
    let call = call.reduction(Reduction::Sum);
    match pass {
        Pass::Forward => call.forward(loss)?,
        Pass::ForwardBackward => call.forward_backward(loss, grad)?,
        Pass::Backward => call.backward(grad)?,
    };
    Ok(())
}

/// The tensors of a call on CUDA.
pub struct RowSet<T> {
    op: RowOp,
    shape: [usize; 2],
    logits: CudaSlice<T>,
    labels: CudaSlice<i64>,
    quality: CudaSlice<f32>,
    target: CudaSlice<f32>,
    weight: CudaSlice<f32>,
    grad: CudaSlice<T>,
    loss: CudaSlice<f32>,
}

impl<T: Stored> RowSet<T> {
    pub fn new(stream: &Arc<CudaStream>, inputs: &Inputs<T>) -> Result<RowSet<T>> {
        // The driver refuses to allocate nothing; what an operation does not take may be of any length.
        let floats = |numbers: &[f32]| {
            check(
                "cuMemcpyHtoDAsync",
                stream.clone_htod(if numbers.is_empty() { &[0.0][..] } else { numbers }),
            )
        };
        let labels = if inputs.labels.is_empty() { &[0] } else { &*inputs.labels };
        Ok(RowSet {
            op: inputs.op,
            shape: inputs.shape,
            logits: check("cuMemcpyHtoDAsync", stream.clone_htod(&inputs.logits))?,
            labels: check("cuMemcpyHtoDAsync", stream.clone_htod(labels))?,
            quality: floats(&inputs.quality)?,
            target: floats(&inputs.target)?,
            weight: floats(&inputs.weight)?,
            grad: check("cuMemAllocAsync", stream.alloc_zeros(inputs.logits.len()))?,
            loss: check("cuMemAllocAsync", stream.alloc_zeros(inputs.results()))?,
        })
    }
}

impl<T: Stored> Set for RowSet<T> {
    type Outcome = Outcome<T>;

    fn clear(&mut self, stream: &Arc<CudaStream>) -> Result<()> {
        let loss = vec![f32::NAN; self.loss.len()];
        check("cuMemcpyHtoDAsync", stream.memcpy_htod(&loss, &mut self.loss))?;
        let grad = vec![T::from_f64(f64::NAN); self.grad.len()];
        check("cuMemcpyHtoDAsync", stream.memcpy_htod(&grad, &mut self.grad))
    }

    fn outcome(&self, stream: &Arc<CudaStream>) -> Result<Outcome<T>> {
        let loss = check("cuMemcpyDtoHAsync", stream.clone_dtoh(&self.loss))?;
        let grad = check("cuMemcpyDtoHAsync", stream.clone_dtoh(&self.grad))?;
        check("cuStreamSynchronize", stream.synchronize())?;
        Ok(Outcome { loss, grad })
    }

    fn launch(&mut self, handle: &Handle, pass: Pass) -> Result<()> {
        let RowSet { op, shape, logits, labels, quality, target, weight, grad, loss } = self;
        let shape = *shape;
        match op {
            RowOp::Qfl => {
                let qfl = QualityFocalLoss::default();
                launch(qfl.cuda(handle, logits, shape, labels, quality).weight(weight), pass, loss, grad)
            }
            RowOp::Dfl => {
                let dfl = DistributionFocalLoss::default();
                launch(dfl.cuda(handle, logits, shape, target).weight(weight), pass, loss, grad)
            }
            RowOp::Integral if pass == Pass::Forward => integral::forward_cuda(handle, logits, shape, loss),
            RowOp::Integral => integral::backward_cuda(handle, logits, shape, weight, grad),
        }
    }
}

fn launch<L: Operation, T: Stored>(
    call: Call<'_, L, Device, T>,
    pass: Pass,
    loss: &mut CudaSlice<f32>,
    grad: &mut CudaSlice<T>,
) -> Result<()> {
    let call = call.reduction(Reduction::Sum);
    match pass {
        Pass::Forward => call.forward(loss),
        Pass::ForwardBackward => call.forward_backward(loss, grad),
        Pass::Backward => call.backward(grad),
    }
}
