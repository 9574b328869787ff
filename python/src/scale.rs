//! A gradient that is scaled where it is.

use gfocal::cuda;
use pyo3::prelude::*;

use crate::cuda::on_of;
use crate::error::{Outcome, value};
use crate::pool::{enqueue, run};
use crate::rows::Number;
use crate::tensor::{Device, Tensor, check_overlaps, for_cuda_floats, for_floats};

/// Multiplies a gradient by the upstream gradient, a tensor with one element or a number; 1 is seen where the gradient
/// is, and costs nothing.
#[pyfunction]
#[pyo3(signature = (grad, upstream, *, stream=None))]
pub fn scale(
    py: Python<'_>,
    grad: &Bound<'_, PyAny>,
    upstream: &Bound<'_, PyAny>,
    stream: Option<usize>,
) -> Outcome {
    let mut grad = Tensor::on_stream("grad", grad, stream)?;
    let upstream = Number::of("upstream", upstream)?;
    check_overlaps([&grad], upstream.tensor())?;
    match grad.device {
        Device::Cpu => {
            let factor = upstream.host()?;
            let len = grad.len();
            for_floats!(grad, T => run(py, len, || {
                let factor = <<T as gfocal::Element>::Loss as gfocal::Element>::from_f64(factor);
                Ok(gfocal::scale(grad.slice_mut::<T>()?, factor, None)?)
            }))
        }
        Device::Cuda(device) => {
            let on = on_of(py, &grad, stream)?;
            let Some(factor) = upstream.tensor() else {
                return Err(value(format!("upstream is on the CPU, grad on cuda:{device}; move it there")));
            };
            let factor = factor.borrowed(&on.stream)?;
            for_cuda_floats!(grad, T => {
                let mut grad = grad.borrowed_mut::<T>(&on.stream)?;
                enqueue(py, || Ok(cuda::scale(&on.handle, &mut grad, &factor, None)?))
            })
        }
    }
}
