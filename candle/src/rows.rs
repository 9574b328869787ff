//! What the losses of rows have in common: shapes, weights, reductions, scales.

use candle_core::{DType, Error, Result, Shape, Tensor};
use gfocal::{Call, Element, Host, Operation, Reduction, Status};

use crate::record::Output;
use crate::report::Report;
use crate::tensor::{
    Float, Held, Tracked, beside, constant_like, host, not_a_float, numbers, stored, wrap, zeros,
};

/// A number, or a tensor with one element, as the number of positives: that may be on the device, where nothing waits
/// for it.
#[derive(Clone, Debug)]
pub enum Scalar {
    /// A number.
    Host(f64),
    /// A tensor with one element, on the device of the logits.
    Tensor(Tensor),
}

impl From<f64> for Scalar {
    fn from(number: f64) -> Self {
        Scalar::Host(number)
    }
}

impl From<Tensor> for Scalar {
    fn from(tensor: Tensor) -> Self {
        Scalar::Tensor(tensor)
    }
}

/// A call's logits as rows and columns, and what it has for each row.
pub(crate) struct Rows {
    pub logits: Tensor,
    /// Rows and columns.
    pub shape: [usize; 2],
    weight: Option<Tensor>,
    reduction: Reduction<Scalar>,
    pub report: Report,
}

impl Rows {
    pub fn new(
        logits: &Tensor,
        weight: Option<&Tensor>,
        reduction: &Reduction<Scalar>,
        report: &Report,
    ) -> Result<Self> {
        check_dtype("logits", logits)?;
        let (shape, of_rows) = matrix("logits", logits)?;
        let dtype = beside(logits.dtype());
        let weight = weight.map(|weight| {
            let weight = constant_like("weight", weight, &[of_rows], ("logits", logits), Tracked::Refused)?;
            numbers("weight", &weight, dtype)
        });
        Ok(Rows {
            logits: logits.detach().contiguous()?,
            shape,
            weight: weight.transpose()?,
            reduction: checked(reduction, logits)?,
            report: report.clone(),
        })
    }

    /// The label of each row.
    pub fn labels(&self, name: &str, tensor: &Tensor) -> Result<Tensor> {
        let (_, of_rows) = matrix("logits", &self.logits)?;
        let like = ("logits", &self.logits);
        crate::tensor::labels(name, &constant_like(name, tensor, &[of_rows], like, Tracked::Detached)?)
    }

    /// What has a number for each row.
    pub fn per_row(&self, name: &str, tensor: &Tensor, tracked: Tracked) -> Result<Tensor> {
        let (_, of_rows) = matrix("logits", &self.logits)?;
        self.like(name, tensor, of_rows, tracked)
    }

    /// What has a number for each column.
    pub fn per_column(&self, name: &str, tensor: &Tensor) -> Result<Tensor> {
        self.like(name, tensor, &self.shape[1..], Tracked::Refused)
    }

    /// What has a number for each logit.
    pub fn per_logit(&self, name: &str, tensor: &Tensor, tracked: Tracked) -> Result<Tensor> {
        self.like(name, tensor, self.logits.dims(), tracked)
    }

    fn like(&self, name: &str, tensor: &Tensor, shape: &[usize], tracked: Tracked) -> Result<Tensor> {
        let tensor = constant_like(name, tensor, &[shape], ("logits", &self.logits), tracked)?;
        numbers(name, &tensor, beside(self.logits.dtype()))
    }

    fn is_reduced(&self) -> bool {
        !matches!(self.reduction, Reduction::None)
    }

    /// How many losses there are, and their shape.
    fn losses(&self) -> (usize, Shape) {
        if self.is_reduced() {
            return (1, ().into());
        }
        let dims = self.logits.dims();
        (self.shape[0], dims[..dims.len() - 1].into())
    }

    /// The gradient of the losses, to be held.
    pub fn upstream(&self, upstream: &Tensor) -> Result<Tensor> {
        if self.is_reduced() { Ok(upstream.clone()) } else { upstream.contiguous() }
    }

    pub fn hold<'t>(&'t self, upstream: Option<&'t Tensor>) -> Result<HeldRows<'t>> {
        let held = |upstream| if self.is_reduced() { Ok(Held::first(upstream)) } else { Held::new(upstream) };
        Ok(HeldRows {
            rows: self,
            logits: Held::new(&self.logits)?,
            weight: Held::of(&self.weight)?,
            upstream: upstream.map(held).transpose()?,
            reduction: map(&self.reduction, |avg_factor| {
                Ok(match avg_factor {
                    Scalar::Host(number) => Number::Host(*number),
                    Scalar::Tensor(number) => Number::Device(Held::first(number)),
                })
            })?,
        })
    }
}

/// Rows and columns, and the shape of what has one element for each row.
pub(crate) fn matrix<'t>(name: &str, tensor: &'t Tensor) -> Result<([usize; 2], &'t [usize])> {
    let Some((&columns, rows)) = tensor.dims().split_last() else {
        return Err(Error::msg(format!("{name} has no dimension, the last must be that of a row")));
    };
    Ok(([rows.iter().product(), columns], rows))
}

/// With a number that is a tensor as calls take it.
fn checked(reduction: &Reduction<Scalar>, logits: &Tensor) -> Result<Reduction<Scalar>> {
    let Reduction::MeanBy { avg_factor: Scalar::Tensor(number), policy } = reduction else {
        return Ok(reduction.clone());
    };
    if number.elem_count() != 1 {
        let message = format!("avg_factor has shape {:?}, it must have one element", number.dims());
        return Err(Error::msg(message));
    }
    let number = constant_like("avg_factor", number, &[number.dims()], ("logits", logits), Tracked::Refused)?;
    let number = number.to_dtype(beside(logits.dtype()))?;
    Ok(Reduction::MeanBy { avg_factor: number.into(), policy: *policy })
}

/// What a call reads besides its targets.
pub(crate) struct HeldRows<'t> {
    pub rows: &'t Rows,
    pub logits: Held<'t>,
    pub weight: Option<Held<'t>>,
    pub upstream: Option<Held<'t>>,
    reduction: Reduction<Number<Held<'t>>>,
}

/// A number, or where it is.
enum Number<H> {
    Host(f64),
    Device(H),
}

/// The same reduction by another average factor.
fn map<'r, S, T>(
    reduction: &'r Reduction<S>,
    avg_factor: impl FnOnce(&'r S) -> Result<T>,
) -> Result<Reduction<T>> {
    Ok(match reduction {
        Reduction::None => Reduction::None,
        Reduction::Sum => Reduction::Sum,
        Reduction::Mean => Reduction::Mean,
        Reduction::MeanBy { avg_factor: by, policy } => {
            Reduction::MeanBy { avg_factor: avg_factor(by)?, policy: *policy }
        }
    })
}

impl HeldRows<'_> {
    /// The losses, or with an upstream gradient that of the logits.
    pub fn run<'c, L: Operation, T: Float>(
        &'c self,
        call: Call<'c, L, Host, T>,
        found_inf: &'c mut [f32],
    ) -> Result<(Output, Status)> {
        let mut call = call.reduction(map(&self.reduction, |avg_factor| match avg_factor {
            Number::Host(number) => Ok(*number),
            Number::Device(held) => Ok(Element::to_f64(held.host::<T::Loss>()?[0])),
        })?);
        if let Some(weight) = host(&self.weight)? {
            call = call.weight(weight);
        }
        let Some(upstream) = host::<T::Loss>(&self.upstream)? else {
            let (count, shape) = self.rows.losses();
            let mut losses = zeros(count);
            let status = call.forward(&mut losses).map_err(wrap)?;
            return Ok(((stored(losses), shape), status));
        };
        let [rows, columns] = self.rows.shape;
        let mut grad = zeros(rows * columns);
        let status = match upstream {
            // A scale of the host's must be finite, what comes from upstream need not.
            &[scale] if self.rows.is_reduced() && !Element::to_f64(scale).is_finite() => {
                let status = call.backward(&mut grad).map_err(wrap)?;
                gfocal::scale(&mut grad, scale, Some(found_inf)).map_err(wrap)?;
                status
            }
            &[scale] if self.rows.is_reduced() => call
                .grad_scale(Element::to_f64(scale))
                .found_inf(found_inf)
                .backward(&mut grad)
                .map_err(wrap)?,
            upstream => call.upstream(upstream).found_inf(found_inf).backward(&mut grad).map_err(wrap)?,
        };
        Ok(((stored(grad), self.rows.logits.shape().clone()), status))
    }
}

#[cfg(feature = "cuda")]
mod on_cuda {
    use candle_core::CudaDevice;
    use gfocal::cuda::{Device, Scalar as CudaScalar};

    use super::*;
    use crate::cuda::{CudaFloat, OnDevice, View, alloc, output, view};

    /// The same on CUDA.
    pub(crate) struct Views<'h, T> {
        rows: &'h Rows,
        pub logits: View<'h, T>,
        weight: Option<View<'h, f32>>,
        upstream: Option<View<'h, f32>>,
        reduction: Reduction<Number<View<'h, f32>>>,
    }

    impl HeldRows<'_> {
        pub fn views<T: CudaFloat>(&self) -> Result<Views<'_, T>> {
            Ok(Views {
                rows: self.rows,
                logits: self.logits.device()?,
                weight: view(&self.weight)?,
                upstream: view(&self.upstream)?,
                reduction: map(&self.reduction, |avg_factor| match avg_factor {
                    Number::Host(number) => Ok(Number::Host(*number)),
                    Number::Device(held) => Ok(Number::Device(held.device()?)),
                })?,
            })
        }
    }

    impl<T: CudaFloat> Views<'_, T> {
        /// As [`HeldRows::run`], with what it says in the report.
        pub fn run<'c, L: Operation>(
            &'c self,
            call: Call<'c, L, Device, T>,
            device: &CudaDevice,
            report: &'c mut OnDevice,
        ) -> Result<Output> {
            let mut call = call.reduction(map(&self.reduction, |avg_factor| {
                Ok(match avg_factor {
                    Number::Host(number) => CudaScalar::Host(*number),
                    Number::Device(view) => CudaScalar::Device(view),
                })
            })?);
            if let Some(weight) = &self.weight {
                call = call.weight(weight);
            }
            let Some(upstream) = &self.upstream else {
                let (count, shape) = self.rows.losses();
                let mut losses = alloc::<f32>(device, count)?;
                call.status(&mut report.status).forward(&mut losses.slice_mut(..count)).map_err(wrap)?;
                return Ok(output(losses, shape, device));
            };
            let [rows, columns] = self.rows.shape;
            let mut grad = alloc::<T>(device, rows * columns)?;
            let call =
                if self.rows.is_reduced() { call.grad_scale(upstream) } else { call.upstream(upstream) };
            call.found_inf(&mut report.found_inf)
                .backward(&mut grad.slice_mut(..rows * columns))
                .map_err(wrap)?;
            Ok(output(grad, self.rows.logits.shape().clone(), device))
        }
    }
}

/// Options of [`dfl`](crate::dfl()).
#[derive(Clone, Debug, Default)]
pub struct DflOptions {
    /// Of each row, of the shape of the targets. A weight of exactly 0 masks its row: loss 0 and gradient 0, whatever
    /// its logits hold. Not given: ones.
    pub weight: Option<Tensor>,
    /// How the losses of the rows are reduced; the mean if nothing is said.
    pub reduction: Reduction<Scalar>,
    /// Where the call says what it found.
    pub report: Report,
}

/// Options of [`qfl`](crate::qfl()) and [`qfl_dense`](crate::qfl_dense()).
#[derive(Clone, Debug, Default)]
pub struct QflOptions {
    /// Of each row, of the shape of the labels. A weight of exactly 0 masks its row: loss 0 and gradient 0, whatever
    /// its logits hold. Not given: ones.
    pub weight: Option<Tensor>,
    /// Of each class, `[classes]`; 0 masks it.
    pub class_weights: Option<Tensor>,
    /// Of each logit, or a mask of zeros and ones, of the shape of the logits.
    pub element_weights: Option<Tensor>,
    /// How the losses of the rows are reduced; the mean if nothing is said.
    pub reduction: Reduction<Scalar>,
    /// Where the call says what it found.
    pub report: Report,
}

/// The logits' type must be one that calls take.
pub(crate) fn check_dtype(name: &str, logits: &Tensor) -> Result<()> {
    match logits.dtype() {
        DType::F32 | DType::F16 | DType::BF16 => Ok(()),
        DType::F64 if logits.device().is_cpu() => Ok(()),
        DType::F64 => Err(not_a_float(name, DType::F64, "f32, f16 or bf16 but on the CPU")),
        other => Err(not_a_float(name, other, "f32, f16, bf16 or f64")),
    }
}
