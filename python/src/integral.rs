//! The expectation of a distribution over bins.

use gfocal::cuda::StorageElement;
use gfocal::integral;
use pyo3::prelude::*;

use crate::cuda::{On, on_of};
use crate::error::Outcome;
use crate::pool::{enqueue, run};
use crate::tensor::{Device, Item, Needs, Real, Tensor, check_overlaps, for_cuda_floats, for_floats};

/// What a call reads and writes.
struct Tensors {
    logits: Tensor,
    shape: [usize; 2],
    beside: Tensor,
    grad: Option<Tensor>,
}

impl Tensors {
    fn cpu<T: Real>(&mut self, py: Python<'_>) -> Outcome {
        let Tensors { logits, shape, beside, grad } = self;
        run(py, logits.len(), || {
            let logits = logits.slice::<T>()?;
            match grad {
                None => integral::forward(logits, *shape, beside.slice_mut::<T::Loss>()?)?,
                Some(grad) => {
                    integral::backward(logits, *shape, beside.slice::<T::Loss>()?, grad.slice_mut()?)?;
                }
            }
            Ok(())
        })
    }

    fn cuda<T: StorageElement + Item>(&self, py: Python<'_>, on: &On) -> Outcome {
        let (stream, handle) = (&on.stream, &on.handle);
        let logits = self.logits.borrowed::<T>(stream)?;
        match &self.grad {
            None => {
                let mut out = self.beside.borrowed_mut(stream)?;
                enqueue(py, || Ok(integral::forward_cuda(handle, &logits, self.shape, &mut out)?))
            }
            Some(grad) => {
                let (upstream, mut grad) = (self.beside.borrowed(stream)?, grad.borrowed_mut(stream)?);
                enqueue(py, || {
                    Ok(integral::backward_cuda(handle, &logits, self.shape, &upstream, &mut grad)?)
                })
            }
        }
    }
}

fn call(mut tensors: Tensors, py: Python<'_>, stream: Option<usize>) -> Outcome {
    let device = tensors.logits.device;
    tensors.beside.expect(&[tensors.shape[0]], &Needs("logits", &tensors.shape))?;
    tensors.beside.expect_device(device, "logits")?;
    if let Some(grad) = &tensors.grad {
        grad.expect(&tensors.shape, &Needs("logits", &tensors.shape))?;
        grad.expect_dtype(tensors.logits.dtype, &"the gradient of logits of this type")?;
        grad.expect_device(device, "logits")?;
        check_overlaps([grad], [&tensors.logits, &tensors.beside])?;
    } else {
        check_overlaps([&tensors.beside], [&tensors.logits])?;
    }
    match device {
        Device::Cpu => for_floats!(tensors.logits, T => tensors.cpu::<T>(py)),
        Device::Cuda(_) => {
            let on = on_of(py, &tensors.logits, stream)?;
            for_cuda_floats!(tensors.logits, T => tensors.cuda::<T>(py, &on))
        }
    }
}

/// `expectation [N]` of logits `[N, bins]`.
#[pyfunction(name = "integral")]
#[pyo3(signature = (logits, expectation, *, stream=None))]
pub fn forward(
    py: Python<'_>,
    logits: &Bound<'_, PyAny>,
    expectation: &Bound<'_, PyAny>,
    stream: Option<usize>,
) -> Outcome {
    let logits = Tensor::on_stream("logits", logits, stream)?;
    let shape = logits.matrix("[N, bins]")?;
    let beside = Tensor::of("expectation", expectation)?;
    call(Tensors { logits, shape, beside, grad: None }, py, stream)
}

/// The gradient of `integral`, given that of the expectations.
#[pyfunction(name = "integral_backward")]
#[pyo3(signature = (logits, upstream, grad, *, stream=None))]
pub fn backward(
    py: Python<'_>,
    logits: &Bound<'_, PyAny>,
    upstream: &Bound<'_, PyAny>,
    grad: &Bound<'_, PyAny>,
    stream: Option<usize>,
) -> Outcome {
    let logits = Tensor::on_stream("logits", logits, stream)?;
    let shape = logits.matrix("[N, bins]")?;
    let beside = Tensor::of("upstream", upstream)?;
    let grad = Some(Tensor::of("grad", grad)?);
    call(Tensors { logits, shape, beside, grad }, py, stream)
}
