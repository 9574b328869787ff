//! Quality and Distribution Focal Loss together.

use gfocal::cuda::StorageElement;
use gfocal::{DistributionFocalLoss, Gfl as Both, QualityFocalLoss};
use pyo3::prelude::*;

use crate::cuda::{On, on_of};
use crate::dfl::Dfl;
use crate::error::{Outcome, value};
use crate::pool::{enqueue, run};
use crate::qfl::{Inputs, Qfl};
use crate::rows::{Number, OnCpu, Outputs, Reduce, Rows, overflow};
use crate::status::write_status;
use crate::tensor::{Device, Item, Needs, Real, Tensor, check_overlaps, for_cuda_floats, for_floats};

/// Both losses with their options.
#[pyclass(frozen, module = "gfocal._native")]
pub struct Gfl {
    qfl: QualityFocalLoss,
    dfl: DistributionFocalLoss,
}

/// What a call reads and writes.
struct Call {
    of_classes: Rows,
    inputs: Inputs,
    of_sides: Rows,
    label: Tensor,
    losses: Tensor,
}

impl Call {
    fn check(&self) -> Outcome {
        let Call { of_classes, inputs, of_sides, label, losses } = self;
        let device = of_classes.pred.device;
        inputs.check(of_classes)?;
        label.expect(&[of_sides.shape[0]], &Needs("sides", &of_sides.shape))?;
        of_sides.pred.expect_device(device, "pred")?;
        of_sides.pred.expect_dtype(of_classes.pred.dtype, &"pred beside it")?;
        of_sides.check(&[label])?;
        losses.expect(&[3], &"a call")?;
        losses.expect_device(device, "pred")?;
        let (inputs, label) = (inputs.tensors(), [label]);
        check_overlaps(
            of_classes.written().chain(of_sides.written()).chain([losses]),
            of_classes.read(&inputs).chain(of_sides.read(&label)),
        )
    }
}

impl Gfl {
    fn cpu<T: Real>(&self, py: Python<'_>, call: &mut Call) -> Outcome {
        let Call { of_classes, inputs, of_sides, label, losses } = call;
        let elements = of_classes.elements().saturating_add(of_sides.elements());
        run(py, elements, move || {
            let shapes = [of_classes.shape, of_sides.shape];
            let qfl: OnCpu<_, T> = of_classes.on_cpu(|pred| inputs.call(&self.qfl, pred, shapes[0]))?;
            let dfl: OnCpu<_, T> = of_sides.on_cpu(|sides| {
                Ok(self.dfl.cpu(sides.slice::<T>()?, shapes[1], label.slice::<T::Loss>()?))
            })?;
            let both = Both::new(qfl.call, dfl.call);
            let losses = losses.slice_mut::<T::Loss>()?;
            let counted = match (qfl.grad, dfl.grad) {
                (Some(of_classes), Some(of_sides)) => {
                    let counted = both.forward_backward(losses, of_classes, of_sides)?;
                    overflow(of_classes, qfl.scale)?;
                    overflow(of_sides, dfl.scale)?;
                    counted
                }
                _ => both.forward(losses)?,
            };
            for (counted, tensor) in [(counted.qfl, qfl.status), (counted.dfl, dfl.status)] {
                tensor.map_or(Ok(()), |tensor| write_status(&counted, tensor))?;
            }
            Ok(())
        })
    }

    fn cuda<T: StorageElement + Item>(&self, py: Python<'_>, on: &On, call: &Call) -> Outcome {
        let Call { of_classes, inputs, of_sides, label, losses } = call;
        let (stream, handle) = (&on.stream, &on.handle);
        let (pred, inputs) = (of_classes.pred.borrowed::<T>(stream)?, inputs.buffers(stream)?);
        let (sides, label) = (of_sides.pred.borrowed::<T>(stream)?, label.borrowed::<f32>(stream)?);
        let mut losses = losses.borrowed_mut::<f32>(stream)?;
        let (mut for_qfl, mut for_dfl) = (of_classes.buffers::<T>(on)?, of_sides.buffers::<T>(on)?);
        enqueue(py, || {
            let qfl = for_qfl.on_cuda(inputs.call(&self.qfl, handle, &pred, of_classes.shape));
            let dfl = for_dfl.on_cuda(self.dfl.cuda(handle, &sides, of_sides.shape, &label));
            let both = Both::new(qfl.call, dfl.call);
            match (qfl.grad, dfl.grad) {
                (Some(of_classes), Some(of_sides)) => {
                    both.forward_backward(&mut losses, of_classes, of_sides)?;
                }
                _ => both.forward(&mut losses)?,
            }
            Ok(())
        })
    }
}

#[pymethods]
impl Gfl {
    #[new]
    fn new(qfl: &Qfl, dfl: &Dfl) -> Gfl {
        Gfl { qfl: qfl.0, dfl: dfl.0 }
    }

    #[pyo3(signature = (
        pred, labels, target, sides, label, losses, weight=None, side_weight=None, class_weights=None,
        element_weights=None, reduction="mean", qfl_avg_factor=None, dfl_avg_factor=None, policy="eps",
        minimum=1.0, pred_scale=None, side_scale=None, grad=None, side_grad=None, status=None, side_status=None,
        stream=None,
    ))]
    #[allow(clippy::too_many_arguments, reason = "Python's, which have names")]
    fn run(
        &self,
        py: Python<'_>,
        pred: &Bound<'_, PyAny>,
        labels: Option<&Bound<'_, PyAny>>,
        target: &Bound<'_, PyAny>,
        sides: &Bound<'_, PyAny>,
        label: &Bound<'_, PyAny>,
        losses: &Bound<'_, PyAny>,
        weight: Option<&Bound<'_, PyAny>>,
        side_weight: Option<&Bound<'_, PyAny>>,
        class_weights: Option<&Bound<'_, PyAny>>,
        element_weights: Option<&Bound<'_, PyAny>>,
        reduction: &str,
        qfl_avg_factor: Option<&Bound<'_, PyAny>>,
        dfl_avg_factor: Option<&Bound<'_, PyAny>>,
        policy: &str,
        minimum: f64,
        pred_scale: Option<&Bound<'_, PyAny>>,
        side_scale: Option<&Bound<'_, PyAny>>,
        grad: Option<&Bound<'_, PyAny>>,
        side_grad: Option<&Bound<'_, PyAny>>,
        status: Option<&Bound<'_, PyAny>>,
        side_status: Option<&Bound<'_, PyAny>>,
        stream: Option<usize>,
    ) -> Outcome {
        if reduction == "none" {
            return Err(value(
                "reduction is \"none\", both losses together need \"sum\" or \"mean\"".to_owned(),
            ));
        }
        if grad.is_some() != side_grad.is_some() {
            return Err(value("grad and side_grad are given both, or neither".to_owned()));
        }
        let pred = Tensor::on_stream("pred", pred, stream)?;
        let sides = Tensor::on_stream("sides", sides, stream)?;
        let mut call = Call {
            inputs: Inputs::new(labels, target, class_weights, element_weights)?,
            of_classes: Rows {
                shape: pred.matrix("[N, classes]")?,
                pred,
                weight: Tensor::optional("weight", weight)?,
                upstream: None,
                grad_scale: Number::optional("pred_scale", pred_scale)?,
                reduce: Reduce::new(reduction, ("qfl_avg_factor", qfl_avg_factor), policy, minimum)?,
                out: Outputs {
                    grad: Tensor::optional("grad", grad)?,
                    status: Tensor::optional("status", status)?,
                    ..Outputs::default()
                },
            },
            label: Tensor::of("label", label)?,
            of_sides: Rows {
                shape: sides.matrix("[M, bins]")?,
                pred: sides,
                weight: Tensor::optional("side_weight", side_weight)?,
                upstream: None,
                grad_scale: Number::optional("side_scale", side_scale)?,
                reduce: Reduce::new(reduction, ("dfl_avg_factor", dfl_avg_factor), policy, minimum)?,
                out: Outputs {
                    grad: Tensor::optional("side_grad", side_grad)?,
                    status: Tensor::optional("side_status", side_status)?,
                    ..Outputs::default()
                },
            },
            losses: Tensor::of("losses", losses)?,
        };
        call.check()?;
        match call.of_classes.pred.device {
            Device::Cpu => for_floats!(call.of_classes.pred, T => self.cpu::<T>(py, &mut call)),
            Device::Cuda(_) => {
                let on = on_of(py, &call.of_classes.pred, stream)?;
                for_cuda_floats!(call.of_classes.pred, T => self.cuda::<T>(py, &on, &call))
            }
        }
    }
}
