//! Quality Focal Loss.

use gfocal::cuda::{Borrowed, Device as Cuda, Handle, StorageElement};
use gfocal::{Background, Call, Host, QualityFocalLoss};
use pyo3::prelude::*;

use crate::cuda::{On, Stream, on_of};
use crate::error::{Outcome, value};
use crate::pool::enqueue;
use crate::rows::{Number, Outputs, Reduce, Rows};
use crate::tensor::{DType, Device, Item, Needs, Real, Tensor, for_cuda_floats, for_floats};

/// The loss with its options, which are checked when it is made.
#[pyclass(frozen, module = "gfocal._native")]
pub struct Qfl(pub QualityFocalLoss);

pub fn background(name: &str) -> Outcome<Background> {
    match name {
        "last" => Ok(Background::Last),
        "first" => Ok(Background::First),
        _ => Err(value(format!("background is {name:?}, it must be \"last\" or \"first\""))),
    }
}

/// What a call has besides its rows.
pub struct Inputs {
    /// Without, `target` is dense.
    labels: Option<Tensor>,
    target: Tensor,
    class_weights: Option<Tensor>,
    element_weights: Option<Tensor>,
}

type Argument<'a, 'py> = Option<&'a Bound<'py, PyAny>>;

impl Inputs {
    pub fn new<'py>(
        labels: Argument<'_, 'py>,
        target: &Bound<'py, PyAny>,
        class_weights: Argument<'_, 'py>,
        element_weights: Argument<'_, 'py>,
    ) -> Outcome<Inputs> {
        Ok(Inputs {
            labels: Tensor::optional("labels", labels)?,
            target: Tensor::of(if labels.is_some() { "score" } else { "target" }, target)?,
            class_weights: Tensor::optional("class_weights", class_weights)?,
            element_weights: Tensor::optional("element_weights", element_weights)?,
        })
    }

    /// All of them.
    pub fn tensors(&self) -> Vec<&Tensor> {
        let optional = [&self.labels, &self.class_weights, &self.element_weights].into_iter().flatten();
        optional.chain([&self.target]).collect()
    }

    pub fn check(&self, rows: &Rows) -> Outcome {
        let [count, classes] = rows.shape;
        let because = Needs("pred", &rows.shape);
        match &self.labels {
            Some(labels) => {
                labels.expect(&[count], &because)?;
                self.target.expect(&[count], &because)?;
            }
            None => self.target.expect(&rows.shape, &because)?,
        }
        if let Some(weights) = &self.class_weights {
            weights.expect(&[classes], &because)?;
        }
        if let Some(weights) = &self.element_weights {
            weights.expect(&rows.shape, &because)?;
        }
        rows.check(&self.tensors())
    }

    /// A call on the CPU.
    pub fn call<'a, T: Real>(
        &'a self,
        qfl: &'a QualityFocalLoss,
        pred: &'a Tensor,
        shape: [usize; 2],
    ) -> Outcome<Call<'a, QualityFocalLoss, Host, T>> {
        let (pred, target) = (pred.slice::<T>()?, self.target.slice::<T::Loss>()?);
        let mut call = match &self.labels {
            Some(labels) if labels.dtype == DType::I32 => {
                qfl.cpu(pred, shape, labels.slice::<i32>()?, target)
            }
            Some(labels) => qfl.cpu(pred, shape, labels.slice::<i64>()?, target),
            None => qfl.cpu_dense(pred, shape, target),
        };
        if let Some(weights) = &self.class_weights {
            call = call.class_weights(weights.slice()?);
        }
        if let Some(weights) = &self.element_weights {
            call = call.element_weights(weights.slice()?);
        }
        Ok(call)
    }

    /// Their buffers on CUDA.
    pub fn buffers(&self, stream: &Stream) -> Outcome<Buffers> {
        let read = |tensor: &Option<Tensor>| tensor.as_ref().map(|t| t.borrowed(stream)).transpose();
        Ok(Buffers {
            labels: match &self.labels {
                Some(labels) if labels.dtype == DType::I32 => Some(Labels::I32(labels.borrowed(stream)?)),
                Some(labels) => Some(Labels::I64(labels.borrowed(stream)?)),
                None => None,
            },
            target: self.target.borrowed(stream)?,
            class_weights: read(&self.class_weights)?,
            element_weights: read(&self.element_weights)?,
        })
    }
}

enum Labels {
    I64(Borrowed<i64>),
    I32(Borrowed<i32>),
}

/// What [`Inputs`] holds, on CUDA.
pub struct Buffers {
    labels: Option<Labels>,
    target: Borrowed<f32>,
    class_weights: Option<Borrowed<f32>>,
    element_weights: Option<Borrowed<f32>>,
}

impl Buffers {
    pub fn call<'a, T: StorageElement>(
        &'a self,
        qfl: &'a QualityFocalLoss,
        handle: &'a Handle,
        pred: &'a Borrowed<T>,
        shape: [usize; 2],
    ) -> Call<'a, QualityFocalLoss, Cuda, T> {
        let target = &self.target;
        let mut call = match &self.labels {
            Some(Labels::I64(labels)) => qfl.cuda(handle, pred, shape, labels, target),
            Some(Labels::I32(labels)) => qfl.cuda(handle, pred, shape, labels, target),
            None => qfl.cuda_dense(handle, pred, shape, target),
        };
        if let Some(weights) = &self.class_weights {
            call = call.class_weights(weights);
        }
        if let Some(weights) = &self.element_weights {
            call = call.element_weights(weights);
        }
        call
    }
}

impl Qfl {
    fn cpu<T: Real>(&self, py: Python<'_>, rows: &mut Rows, inputs: &Inputs) -> Outcome {
        let shape = rows.shape;
        Rows::run_cpu::<_, T>(py, rows, |pred| inputs.call(&self.0, pred, shape))
    }

    fn cuda<T: StorageElement + Item>(
        &self,
        py: Python<'_>,
        on: &On,
        rows: &Rows,
        inputs: &Inputs,
    ) -> Outcome {
        let mut buffers = rows.buffers::<T>(on)?;
        let (pred, inputs) = (rows.pred.borrowed::<T>(&on.stream)?, inputs.buffers(&on.stream)?);
        enqueue(py, || buffers.enqueue(inputs.call(&self.0, &on.handle, &pred, rows.shape)))
    }
}

#[pymethods]
impl Qfl {
    #[new]
    #[pyo3(signature = (beta, loss_weight, alpha, activated, background, ignore_label))]
    fn new(
        beta: f64,
        loss_weight: f64,
        alpha: Option<f64>,
        activated: bool,
        background: &str,
        ignore_label: Option<i64>,
    ) -> Outcome<Qfl> {
        let mut qfl = QualityFocalLoss::new(beta)?.with_loss_weight(loss_weight)?.with_activated(activated);
        qfl = qfl.with_background(self::background(background)?);
        if let Some(alpha) = alpha {
            qfl = qfl.with_alpha(alpha)?;
        }
        Ok(Qfl(ignore_label.map_or(qfl, |label| qfl.with_ignore_label(label))))
    }

    #[pyo3(signature = (
        pred, labels, target, weight=None, class_weights=None, element_weights=None, upstream=None,
        grad_scale=None, reduction="mean", avg_factor=None, policy="eps", minimum=1.0, loss=None, grad=None,
        found_inf=None, status=None, stream=None,
    ))]
    #[allow(clippy::too_many_arguments, reason = "Python's, which have names")]
    fn run(
        &self,
        py: Python<'_>,
        pred: &Bound<'_, PyAny>,
        labels: Option<&Bound<'_, PyAny>>,
        target: &Bound<'_, PyAny>,
        weight: Option<&Bound<'_, PyAny>>,
        class_weights: Option<&Bound<'_, PyAny>>,
        element_weights: Option<&Bound<'_, PyAny>>,
        upstream: Option<&Bound<'_, PyAny>>,
        grad_scale: Option<&Bound<'_, PyAny>>,
        reduction: &str,
        avg_factor: Option<&Bound<'_, PyAny>>,
        policy: &str,
        minimum: f64,
        loss: Option<&Bound<'_, PyAny>>,
        grad: Option<&Bound<'_, PyAny>>,
        found_inf: Option<&Bound<'_, PyAny>>,
        status: Option<&Bound<'_, PyAny>>,
        stream: Option<usize>,
    ) -> Outcome {
        let pred = Tensor::on_stream("pred", pred, stream)?;
        let inputs = Inputs::new(labels, target, class_weights, element_weights)?;
        let mut rows = Rows {
            shape: pred.matrix("[N, classes]")?,
            pred,
            weight: Tensor::optional("weight", weight)?,
            upstream: Tensor::optional("upstream", upstream)?,
            grad_scale: Number::optional("grad_scale", grad_scale)?,
            reduce: Reduce::new(reduction, ("avg_factor", avg_factor), policy, minimum)?,
            out: Outputs {
                loss: Tensor::optional("loss", loss)?,
                grad: Tensor::optional("grad", grad)?,
                found_inf: Tensor::optional("found_inf", found_inf)?,
                status: Tensor::optional("status", status)?,
            },
        };
        inputs.check(&rows)?;
        match rows.pred.device {
            Device::Cpu => for_floats!(rows.pred, T => self.cpu::<T>(py, &mut rows, &inputs)),
            Device::Cuda(_) => {
                let on = on_of(py, &rows.pred, stream)?;
                for_cuda_floats!(rows.pred, T => self.cuda::<T>(py, &on, &rows, &inputs))
            }
        }
    }
}
