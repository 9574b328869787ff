//! What the losses of rows have in common: reductions, scales, and where results go.

use gfocal::cuda::{Borrowed, Device as Cuda, Scalar, StatusBlock, StorageElement};
use gfocal::{AvgPolicy, Call, Element, Host, Operation, Reduction};
use pyo3::intern;
use pyo3::prelude::*;

use crate::cuda::{On, Stream};
use crate::error::{Failure, Outcome, shape, type_error, value};
use crate::pool::run;
use crate::status::{status_block, write_status};
use crate::tensor::{DType, Device, Item, Needs, Real, Tensor, check_overlaps};

/// A number, which may be on the device.
pub enum Number {
    Host(f64),
    Device(Tensor),
}

impl Number {
    /// A float, or a tensor with one element; one on the CPU is read now.
    pub fn of(name: &'static str, object: &Bound<'_, PyAny>) -> Outcome<Number> {
        // A tensor is not asked for its number: one on CUDA would be waited for.
        if !object.hasattr(intern!(object.py(), "__dlpack__"))? {
            return Ok(Number::Host(object.extract()?));
        }
        let tensor = Tensor::of(name, object)?;
        if tensor.len() != 1 {
            return Err(shape(format!("{name} has shape {:?}, it must have one element", tensor.shape())));
        }
        if tensor.device != Device::Cpu {
            tensor.expect_dtype(DType::F32, &"a number on CUDA")?;
            return Ok(Number::Device(tensor));
        }
        Ok(Number::Host(match tensor.dtype {
            DType::F64 => tensor.slice::<f64>()?[0],
            DType::F32 => tensor.slice::<f32>()?[0].into(),
            DType::F16 => tensor.slice::<gfocal::f16>()?[0].to_f64(),
            DType::Bf16 => tensor.slice::<gfocal::bf16>()?[0].to_f64(),
            DType::I64 => tensor.slice::<i64>()?[0] as f64,
            DType::I32 => tensor.slice::<i32>()?[0].into(),
            DType::U8 => return Err(type_error(format!("{name} is uint8, it must be a float or an int"))),
        }))
    }

    pub fn optional(name: &'static str, object: Option<&Bound<'_, PyAny>>) -> Outcome<Option<Number>> {
        object.map(|object| Number::of(name, object)).transpose()
    }

    /// One that is on the device.
    pub fn tensor(&self) -> Option<&Tensor> {
        match self {
            Number::Host(_) => None,
            Number::Device(tensor) => Some(tensor),
        }
    }

    /// For a call on the CPU.
    pub fn host(&self) -> Outcome<f64> {
        match self {
            Number::Host(number) => Ok(*number),
            Number::Device(tensor) => {
                let (name, on) = (tensor.name, tensor.device);
                Err(value(format!("{name} is on {on}, pred on the CPU; move it there, or give a number")))
            }
        }
    }

    /// For a call on CUDA: the number, or its buffer.
    pub fn on_device(&self, stream: &Stream) -> Outcome<Result<f64, Borrowed<f32>>> {
        match self {
            Number::Host(number) => Ok(Ok(*number)),
            Number::Device(tensor) => Ok(Err(tensor.borrowed(stream)?)),
        }
    }
}

fn scalar(number: &Result<f64, Borrowed<f32>>) -> Scalar<'_> {
    match number {
        Ok(number) => Scalar::Host(*number),
        Err(buffer) => Scalar::Device(buffer),
    }
}

/// How the losses of rows are reduced, by Python's words.
pub struct Reduce {
    kind: Kind,
    avg_factor: Option<Number>,
    policy: AvgPolicy,
}

enum Kind {
    None,
    Sum,
    Mean,
}

impl Reduce {
    pub fn new(
        reduction: &str,
        (name, avg_factor): (&'static str, Option<&Bound<'_, PyAny>>),
        policy: &str,
        minimum: f64,
    ) -> Outcome<Reduce> {
        let kind = match reduction {
            "none" => Kind::None,
            "sum" => Kind::Sum,
            "mean" => Kind::Mean,
            _ => {
                return Err(value(format!(
                    "reduction is {reduction:?}, it must be \"none\", \"sum\" or \"mean\""
                )));
            }
        };
        let policy = match policy {
            "eps" => AvgPolicy::Eps,
            "exact" => AvgPolicy::Exact,
            "at_least" => AvgPolicy::AtLeast(minimum),
            _ => {
                return Err(value(format!(
                    "policy is {policy:?}, it must be \"eps\", \"exact\" or \"at_least\""
                )));
            }
        };
        let avg_factor = Number::optional(name, avg_factor)?;
        if avg_factor.is_some() && matches!(kind, Kind::Sum) {
            return Err(value(format!("{name} can not be used with reduction=\"sum\"")));
        }
        Ok(Reduce { kind, avg_factor, policy })
    }

    fn per_row(&self) -> bool {
        matches!(self.kind, Kind::None)
    }

    /// `avg_factor` is read for a mean alone, as in mmdetection.
    fn with<S>(&self, avg_factor: impl FnOnce(&Number) -> Outcome<S>) -> Outcome<Reduction<S>> {
        Ok(match (&self.kind, &self.avg_factor) {
            (Kind::None, _) => Reduction::None,
            (Kind::Sum, _) => Reduction::Sum,
            (Kind::Mean, None) => Reduction::Mean,
            (Kind::Mean, Some(number)) => {
                Reduction::MeanBy { avg_factor: avg_factor(number)?, policy: self.policy }
            }
        })
    }
}

/// Where results go.
#[derive(Default)]
pub struct Outputs {
    pub loss: Option<Tensor>,
    pub grad: Option<Tensor>,
    pub found_inf: Option<Tensor>,
    pub status: Option<Tensor>,
}

/// A call of a loss of rows.
pub struct Rows {
    pub pred: Tensor,
    pub shape: [usize; 2],
    pub weight: Option<Tensor>,
    pub upstream: Option<Tensor>,
    pub grad_scale: Option<Number>,
    pub reduce: Reduce,
    pub out: Outputs,
}

impl Rows {
    /// Checks shapes and places against `pred`'s; `others` are what the operation alone has, one element a row
    /// or as many as `pred`.
    pub fn check(&self, others: &[&Tensor]) -> Outcome {
        let rows = self.shape[0];
        let because = Needs(self.pred.name, &self.shape);
        let device = self.pred.device;
        for tensor in [&self.weight, &self.upstream].into_iter().flatten() {
            tensor.expect(&[rows], &because)?;
        }
        if let Some(loss) = &self.out.loss {
            let expected: &[usize] = if self.reduce.per_row() { &[rows] } else { &[] };
            if loss.shape() != [1] || self.reduce.per_row() {
                loss.expect(expected, &because)?;
            }
        }
        if let Some(grad) = &self.out.grad {
            grad.expect(&self.shape, &because)?;
            grad.expect_dtype(self.pred.dtype, &because)?;
        }
        for tensor in self.read(others).chain(self.written()) {
            tensor.expect_device(device, self.pred.name)?;
        }
        check_overlaps(self.written(), self.read(others))
    }

    /// All that a call reads.
    pub fn read<'t>(&'t self, others: &'t [&'t Tensor]) -> impl Iterator<Item = &'t Tensor> {
        let numbers = [&self.grad_scale, &self.reduce.avg_factor].into_iter().flatten();
        let rows = [&self.weight, &self.upstream].into_iter().flatten();
        rows.chain(others.iter().copied()).chain(numbers.filter_map(Number::tensor)).chain([&self.pred])
    }

    /// All that a call writes.
    pub fn written(&self) -> impl Iterator<Item = &Tensor> {
        let Outputs { loss, grad, found_inf, status } = &self.out;
        [loss, grad, found_inf, status].into_iter().flatten()
    }

    pub fn elements(&self) -> usize {
        self.shape[0].saturating_mul(self.shape[1])
    }

    /// What `call` makes on the CPU, with all options, and where it writes.
    pub fn on_cpu<'a, Op: Operation + 'a, T: Real>(
        &'a mut self,
        call: impl FnOnce(&'a Tensor) -> Outcome<Call<'a, Op, Host, T>>,
    ) -> Outcome<OnCpu<'a, Op, T>> {
        let Rows { pred, weight, upstream, grad_scale, reduce, out, .. } = self;
        let Outputs { loss, grad, found_inf, status } = out;
        let scale = grad_scale.as_ref().map_or(Ok(1.0), Number::host)?;
        let reduction = reduce.with(Number::host)?;
        let mut call = call(pred)?.reduction(reduction);
        if scale.is_finite() {
            call = call.grad_scale(scale);
        }
        if let Some(weight) = weight {
            call = call.weight(weight.slice()?);
        }
        if let Some(upstream) = upstream {
            call = call.upstream(upstream.slice()?);
        }
        if let Some(found_inf) = found_inf {
            call = call.found_inf(found_inf.slice_mut()?);
        }
        Ok(OnCpu {
            call,
            loss: loss.as_mut().map(Tensor::slice_mut).transpose()?,
            grad: grad.as_mut().map(Tensor::slice_mut).transpose()?,
            scale,
            status: status.as_mut(),
        })
    }

    /// Runs what `call` makes on the CPU.
    pub fn run_cpu<'a, Op: Operation + Sync + 'a, T: Real>(
        py: Python<'_>,
        rows: &'a mut Rows,
        call: impl FnOnce(&'a Tensor) -> Outcome<Call<'a, Op, Host, T>> + Send,
    ) -> Outcome {
        run(py, rows.elements(), move || {
            let OnCpu { call, loss, grad, scale, status } = rows.on_cpu(call)?;
            let counted = match (loss, grad) {
                (Some(loss), None) => call.forward(loss)?,
                (None, None) => return Err(nowhere()),
                (loss, Some(grad)) => {
                    let counted = match loss {
                        Some(loss) => call.forward_backward(loss, grad)?,
                        None => call.backward(grad)?,
                    };
                    overflow(grad, scale)?;
                    counted
                }
            };
            status.map_or(Ok(()), |status| write_status(&counted, status))
        })
    }

    /// Its buffers on CUDA.
    pub fn buffers<T: StorageElement + Item>(&self, on: &On) -> Outcome<Buffers<T>> {
        let stream = &on.stream;
        let read = |tensor: &Option<Tensor>| tensor.as_ref().map(|t| t.borrowed(stream)).transpose();
        let write = |tensor: &Option<Tensor>| tensor.as_ref().map(|t| t.borrowed_mut(stream)).transpose();
        let status = self.out.status.as_ref().map(|status| status_block(status, stream)).transpose()?;
        Ok(Buffers {
            weight: read(&self.weight)?,
            upstream: read(&self.upstream)?,
            reduction: self.reduce.with(|number| number.on_device(stream))?,
            grad_scale: self.grad_scale.as_ref().map_or(Ok(Ok(1.0)), |number| number.on_device(stream))?,
            loss: write(&self.out.loss)?,
            grad: self.out.grad.as_ref().map(|grad| grad.borrowed_mut(stream)).transpose()?,
            found_inf: write(&self.out.found_inf)?,
            status,
        })
    }
}

fn nowhere() -> Failure {
    value("neither loss nor grad is given: there is nowhere to write to".to_owned())
}

/// What [`Rows`] holds, on the CPU.
pub struct OnCpu<'a, Op: Operation, T: Real> {
    pub call: Call<'a, Op, Host, T>,
    pub loss: Option<&'a mut [T::Loss]>,
    pub grad: Option<&'a mut [T]>,
    /// Of the gradient; one that is not finite is not in the call.
    pub scale: f64,
    pub status: Option<&'a mut Tensor>,
}

/// A scale that has overflowed must be seen in the gradient, as it is on CUDA.
pub fn overflow<T: Real>(grad: &mut [T], scale: f64) -> Outcome {
    if !scale.is_finite() {
        gfocal::scale(grad, T::Loss::from_f64(scale), None)?;
    }
    Ok(())
}

/// What [`Rows`] holds, on CUDA.
pub struct Buffers<T> {
    weight: Option<Borrowed<f32>>,
    upstream: Option<Borrowed<f32>>,
    reduction: Reduction<Result<f64, Borrowed<f32>>>,
    grad_scale: Result<f64, Borrowed<f32>>,
    loss: Option<Borrowed<f32>>,
    grad: Option<Borrowed<T>>,
    found_inf: Option<Borrowed<f32>>,
    status: Option<StatusBlock>,
}

impl<T: StorageElement + Item> Buffers<T> {
    /// A call with all options, and where it writes.
    pub fn on_cuda<'a, Op: Operation>(&'a mut self, mut call: Call<'a, Op, Cuda, T>) -> OnCuda<'a, Op, T> {
        let Buffers { weight, upstream, reduction, grad_scale, loss, grad, found_inf, status } = self;
        call = call.grad_scale(scalar(grad_scale)).reduction(match reduction {
            Reduction::None => Reduction::None,
            Reduction::Sum => Reduction::Sum,
            Reduction::Mean => Reduction::Mean,
            Reduction::MeanBy { avg_factor, policy } => {
                Reduction::MeanBy { avg_factor: scalar(avg_factor), policy: *policy }
            }
        });
        if let Some(weight) = weight {
            call = call.weight(weight);
        }
        if let Some(upstream) = upstream {
            call = call.upstream(upstream);
        }
        if let Some(found_inf) = found_inf {
            call = call.found_inf(found_inf);
        }
        if let Some(status) = status {
            call = call.status(status);
        }
        OnCuda { call, loss: loss.as_mut(), grad: grad.as_mut() }
    }

    /// Enqueues a call.
    pub fn enqueue<'a, Op: Operation>(&'a mut self, call: Call<'a, Op, Cuda, T>) -> Outcome {
        let OnCuda { call, loss, grad } = self.on_cuda(call);
        match (loss, grad) {
            (Some(loss), Some(grad)) => call.forward_backward(loss, grad)?,
            (Some(loss), None) => call.forward(loss)?,
            (None, Some(grad)) => call.backward(grad)?,
            (None, None) => return Err(nowhere()),
        }
        Ok(())
    }
}

/// What [`Buffers`] holds.
pub struct OnCuda<'a, Op: Operation, T: StorageElement> {
    pub call: Call<'a, Op, Cuda, T>,
    pub loss: Option<&'a mut Borrowed<f32>>,
    pub grad: Option<&'a mut Borrowed<T>>,
}
