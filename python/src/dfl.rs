//! Distribution Focal Loss.

use gfocal::DistributionFocalLoss;
use gfocal::cuda::StorageElement;
use pyo3::prelude::*;

use crate::cuda::{On, on_of};
use crate::error::Outcome;
use crate::pool::enqueue;
use crate::rows::{Number, Outputs, Reduce, Rows};
use crate::tensor::{Device, Item, Needs, Real, Tensor, for_cuda_floats, for_floats};

/// The loss with its options, which are checked when it is made.
#[pyclass(frozen, module = "gfocal._native")]
pub struct Dfl(pub DistributionFocalLoss);

impl Dfl {
    fn cpu<T: Real>(&self, py: Python<'_>, rows: &mut Rows, target: &Tensor) -> Outcome {
        let shape = rows.shape;
        Rows::run_cpu::<_, T>(py, rows, |pred| {
            Ok(self.0.cpu(pred.slice::<T>()?, shape, target.slice::<T::Loss>()?))
        })
    }

    fn cuda<T: StorageElement + Item>(
        &self,
        py: Python<'_>,
        on: &On,
        rows: &Rows,
        target: &Tensor,
    ) -> Outcome {
        let mut buffers = rows.buffers::<T>(on)?;
        let (pred, target) = (rows.pred.borrowed::<T>(&on.stream)?, target.borrowed(&on.stream)?);
        enqueue(py, || buffers.enqueue(self.0.cuda(&on.handle, &pred, rows.shape, &target)))
    }
}

#[pymethods]
impl Dfl {
    #[new]
    fn new(loss_weight: f64, target_eps: f64) -> Outcome<Dfl> {
        Ok(Dfl(DistributionFocalLoss::new(target_eps)?.with_loss_weight(loss_weight)?))
    }

    #[pyo3(signature = (
        pred, label, weight=None, upstream=None, grad_scale=None, reduction="mean", avg_factor=None,
        policy="eps", minimum=1.0, loss=None, grad=None, found_inf=None, status=None, stream=None,
    ))]
    #[allow(clippy::too_many_arguments, reason = "Python's, which have names")]
    fn run(
        &self,
        py: Python<'_>,
        pred: &Bound<'_, PyAny>,
        label: &Bound<'_, PyAny>,
        weight: Option<&Bound<'_, PyAny>>,
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
        let label = Tensor::of("label", label)?;
        let mut rows = Rows {
            shape: pred.matrix("[N, bins]")?,
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
        label.expect(&[rows.shape[0]], &Needs("pred", &rows.shape))?;
        rows.check(&[&label])?;
        match rows.pred.device {
            Device::Cpu => for_floats!(rows.pred, T => self.cpu::<T>(py, &mut rows, &label)),
            Device::Cuda(_) => {
                let on = on_of(py, &rows.pred, stream)?;
                for_cuda_floats!(rows.pred, T => self.cuda::<T>(py, &on, &rows, &label))
            }
        }
    }
}
