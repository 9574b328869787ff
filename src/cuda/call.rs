//! Calls on device buffers.

use std::fmt;

use cudarc::driver::{DevicePtr, DevicePtrMut, DeviceSlice};

use super::args::Scaling;
use super::{Handle, Prepared, StatusBlock, StorageElement};
use crate::call::{Call, Operation};
use crate::element::Sealed;
use crate::error::Result;
use crate::memory::Memory;
use crate::reduction::Reduction;

/// Memory of a CUDA device; the call is enqueued on the stream of a [`Handle`].
#[derive(Clone, Copy, Debug)]
pub enum Device {}

impl Sealed for Device {}
impl Memory for Device {
    type Slice<'a, T: 'static> = &'a dyn DevicePtr<T>;
    type SliceMut<'a, T: 'static> = &'a mut dyn DevicePtrMut<T>;
    type Labels<'a> = LabelBuffer<'a>;
    type Scalar<'a> = Scalar<'a>;
    type Backend<'a> = &'a Handle;
    type StatusOut<'a> = Option<&'a mut StatusBlock>;

    fn len<T: 'static>(tensor: &&dyn DevicePtr<T>) -> usize {
        tensor.len()
    }

    fn len_mut<T: 'static>(tensor: &&mut dyn DevicePtrMut<T>) -> usize {
        tensor.len()
    }
}

/// A number that the host knows, or one that is in device memory, `[1]` f32.
#[derive(Clone, Copy)]
pub enum Scalar<'a> {
    /// A number of the host. In a captured graph it stays what it was.
    Host(f64),
    /// A number on the device, read when the kernel runs.
    Device(&'a dyn DevicePtr<f32>),
}

impl fmt::Debug for Scalar<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Scalar::Host(value) => write!(f, "Host({value})"),
            Scalar::Device(_) => write!(f, "Device(..)"),
        }
    }
}

impl From<f64> for Scalar<'_> {
    fn from(value: f64) -> Self {
        Scalar::Host(value)
    }
}

impl From<f32> for Scalar<'_> {
    fn from(value: f32) -> Self {
        Scalar::Host(value.into())
    }
}

impl<'a, B: DevicePtr<f32>> From<&'a B> for Scalar<'a> {
    fn from(buffer: &'a B) -> Self {
        Scalar::Device(buffer)
    }
}

impl From<Reduction<f64>> for Reduction<Scalar<'_>> {
    fn from(reduction: Reduction<f64>) -> Self {
        match reduction {
            Reduction::None => Reduction::None,
            Reduction::Sum => Reduction::Sum,
            Reduction::Mean => Reduction::Mean,
            Reduction::MeanBy { avg_factor, policy } => {
                Reduction::MeanBy { avg_factor: avg_factor.into(), policy }
            }
        }
    }
}

impl<'a> Scalar<'a> {
    fn host(self) -> Option<f64> {
        match self {
            Scalar::Host(value) => Some(value),
            Scalar::Device(_) => None,
        }
    }

    fn device(self) -> Option<&'a dyn DevicePtr<f32>> {
        match self {
            Scalar::Host(_) => None,
            Scalar::Device(buffer) => Some(buffer),
        }
    }
}

/// Labels of either type on the device.
#[derive(Clone, Copy)]
pub enum LabelBuffer<'a> {
    /// 64-bit labels.
    I64(&'a dyn DevicePtr<i64>),
    /// 32-bit labels.
    I32(&'a dyn DevicePtr<i32>),
}

impl LabelBuffer<'_> {
    pub(crate) fn len(&self) -> usize {
        match self {
            LabelBuffer::I64(labels) => labels.len(),
            LabelBuffer::I32(labels) => labels.len(),
        }
    }
}

impl<'a, Op: Operation, T: StorageElement> Call<'a, Op, Device, T> {
    /// Weights of the rows, `[rows]`. A weight of exactly 0 masks its row: loss 0 and gradient 0,
    /// whatever the logits hold.
    pub fn weight(mut self, weight: &'a impl DevicePtr<f32>) -> Self {
        self.weight = Some(weight);
        self
    }

    /// The gradient with respect to each row's loss, `[rows]`; for [`Reduction::None`]. The
    /// default is all ones.
    pub fn upstream(mut self, upstream: &'a impl DevicePtr<f32>) -> Self {
        self.upstream = Some(upstream);
        self
    }

    /// A flag, `[1]`, that is set to 1 if a stored gradient is inf or NaN, and is otherwise left
    /// as it is: what a gradient scaler calls found_inf.
    pub fn found_inf(mut self, found_inf: &'a mut impl DevicePtrMut<f32>) -> Self {
        self.found_inf = Some(found_inf);
        self
    }

    /// Where labels, qualities and targets that cannot be used are counted.
    pub fn status(mut self, status: &'a mut StatusBlock) -> Self {
        self.status = Some(status);
        self
    }

    /// Enqueues the loss alone: `[1]`, or `[rows]` for [`Reduction::None`].
    ///
    /// # Errors
    /// If a length does not fit the shape, a buffer is in another context, an option is outside
    /// its range, or the driver refuses the launch.
    pub fn forward(mut self, loss: &mut impl DevicePtrMut<f32>) -> Result<()> {
        Op::run_cuda(&mut self, Some(loss), None)
    }

    /// Enqueues the loss and its gradient, of the logits' shape, in one pass.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn forward_backward(
        mut self,
        loss: &mut impl DevicePtrMut<f32>,
        grad: &mut impl DevicePtrMut<T>,
    ) -> Result<()> {
        Op::run_cuda(&mut self, Some(loss), Some(grad))
    }

    /// Enqueues the gradient alone, of the logits' shape.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn backward(mut self, grad: &mut impl DevicePtrMut<T>) -> Result<()> {
        Op::run_cuda(&mut self, None, Some(grad))
    }

    /// The lengths of the options: those with one element a row, and those with one element.
    pub(crate) fn option_lengths(&self) -> (Lengths2, Lengths3) {
        let avg_factor = match self.reduction {
            Reduction::MeanBy { avg_factor, .. } => avg_factor.device(),
            _ => None,
        };
        (
            [
                ("weight", self.weight.map(DeviceSlice::len)),
                ("upstream", self.upstream.map(DeviceSlice::len)),
            ],
            [
                ("found_inf", self.found_inf.as_deref().map(DeviceSlice::len)),
                ("avg_factor", avg_factor.map(DeviceSlice::len)),
                ("grad_scale", self.grad_scale.device().map(DeviceSlice::len)),
            ],
        )
    }

    pub(crate) fn host_grad_scale(&self) -> Option<f64> {
        self.grad_scale.host()
    }

    /// The kernel's parameters that all operations have in common, whose buffers join `prepared`.
    pub(crate) fn prepare<'s, 'b: 's>(
        &'s mut self,
        loss_weight: f64,
        loss: Option<&'s mut (dyn DevicePtrMut<f32> + 'b)>,
        prepared: &mut Prepared<'s>,
    ) -> Result<Scaling> {
        let (stream, rows) = (self.backend.stream(), self.shape[0]);
        let (factor, avg_factor, (epsilon, minimum)) = match self.reduction {
            Reduction::MeanBy { avg_factor: Scalar::Device(buffer), policy } => {
                policy.check()?;
                (1.0, prepared.read("avg_factor", Some(buffer), stream)?, policy.epsilon_and_minimum())
            }
            Reduction::MeanBy { avg_factor: Scalar::Host(avg_factor), policy } => {
                (Reduction::MeanBy { avg_factor, policy }.factor(rows)?, 0, (0.0, 0.0))
            }
            Reduction::Mean => (Reduction::Mean.factor(rows)?, 0, (0.0, 0.0)),
            Reduction::None | Reduction::Sum => (1.0, 0, (0.0, 0.0)),
        };
        let loss_factor = loss_weight * factor;
        let status =
            self.status.as_deref_mut().map(|status| status.buffer_mut() as &mut dyn DevicePtrMut<u64>);
        Ok(Scaling {
            weight: prepared.read("weight", self.weight, stream)?,
            upstream: prepared.read("upstream", self.upstream, stream)?,
            avg_factor,
            grad_scale: prepared.read("grad_scale", self.grad_scale.device(), stream)?,
            loss: prepared.write("loss", loss, stream)?,
            found_inf: prepared.write("found_inf", self.found_inf.as_deref_mut(), stream)?,
            status: prepared.write("status", status, stream)?,
            scratch: self.backend.scratch(),
            loss_factor: loss_factor as f32,
            grad_factor: (loss_factor * self.grad_scale.host().unwrap_or(1.0)) as f32,
            avg_epsilon: epsilon as f32,
            avg_minimum: minimum as f32,
            per_row: self.reduction.is_none().into(),
            lanes: 0, // the launch sets it
        })
    }
}

type Lengths2 = [(&'static str, Option<usize>); 2];
type Lengths3 = [(&'static str, Option<usize>); 3];
