//! Losses between boxes.

use gfocal::boxes::{BoxLoss, Coordinate, IouKind, iou as of_boxes};
use pyo3::prelude::*;

use crate::cuda::{On, on_of};
use crate::error::{Outcome, value};
use crate::pool::{enqueue, run};
use crate::tensor::{DType, Device, Item, Needs, Tensor, check_overlaps};

/// The loss with its options, which are checked when it is made.
#[pyclass(frozen, module = "gfocal._native")]
pub struct Boxes(BoxLoss);

pub fn iou_kind(name: &str) -> Outcome<IouKind> {
    Ok(match name {
        "iou" => IouKind::Iou,
        "giou" => IouKind::Giou,
        "diou" => IouKind::Diou,
        "ciou" => IouKind::Ciou,
        "ciou_ultralytics" => IouKind::CiouUltralytics,
        _ => {
            let all = "\"iou\", \"giou\", \"diou\", \"ciou\" or \"ciou_ultralytics\"";
            return Err(value(format!("kind is {name:?}, it must be {all}")));
        }
    })
}

/// What a call reads and writes.
struct Tensors {
    pred: Tensor,
    target: Tensor,
    upstream: Option<Tensor>,
    loss: Tensor,
    grad: Option<Tensor>,
}

impl Tensors {
    fn boxes(&self) -> usize {
        self.loss.len()
    }

    fn check(&self) -> Outcome {
        let [boxes, four] = self.pred.matrix("[N, 4]")?;
        let shape = [boxes, four];
        let because = Needs("pred", &shape);
        self.pred.expect(&[boxes, 4], &"a box loss")?;
        let (four, one): (&[usize], &[usize]) = (&[boxes, 4], &[boxes]);
        let shapes = [
            (Some(&self.target), four),
            (self.upstream.as_ref(), one),
            (Some(&self.loss), one),
            (self.grad.as_ref(), four),
        ];
        for (tensor, expected) in shapes {
            let Some(tensor) = tensor else { continue };
            tensor.expect(expected, &because)?;
            tensor.expect_device(self.pred.device, "pred")?;
        }
        let written = [Some(&self.loss), self.grad.as_ref()].into_iter().flatten();
        let read = [Some(&self.pred), Some(&self.target), self.upstream.as_ref()].into_iter().flatten();
        check_overlaps(written, read)
    }

    fn cpu<T: Coordinate + Item>(&mut self, py: Python<'_>, kind: &BoxLoss) -> Outcome {
        let boxes = self.boxes();
        let Tensors { pred, target, upstream, loss, grad } = self;
        run(py, 64 * boxes, || {
            let (pred, target) = (pred.slice::<T>()?, target.slice::<T>()?);
            let (upstream, loss) = (upstream.as_ref().map(Tensor::slice).transpose()?, loss.slice_mut()?);
            match grad {
                None => kind.forward(pred, target, boxes, loss)?,
                Some(grad) => {
                    kind.forward_backward(pred, target, boxes, upstream, loss, grad.slice_mut()?)?;
                }
            }
            Ok(())
        })
    }

    fn cuda(&self, py: Python<'_>, on: &On, kind: &BoxLoss) -> Outcome {
        let (stream, handle, boxes) = (&on.stream, &on.handle, self.boxes());
        let (pred, target) = (self.pred.borrowed(stream)?, self.target.borrowed(stream)?);
        let mut loss = self.loss.borrowed_mut(stream)?;
        let Some(grad) = &self.grad else {
            return enqueue(py, || Ok(kind.forward_cuda(handle, &pred, &target, boxes, &mut loss)?));
        };
        let upstream = self.upstream.as_ref().map(|upstream| upstream.borrowed(stream)).transpose()?;
        let mut grad = grad.borrowed_mut(stream)?;
        enqueue(py, || {
            let upstream =
                upstream.as_ref().map(|upstream| upstream as &dyn gfocal::cudarc::driver::DevicePtr<f32>);
            Ok(kind.forward_backward_cuda(handle, &pred, &target, boxes, upstream, &mut loss, &mut grad)?)
        })
    }
}

#[pymethods]
impl Boxes {
    #[new]
    fn new(kind: &str, eps: f64) -> Outcome<Boxes> {
        Ok(Boxes(BoxLoss::new(iou_kind(kind)?).with_eps(eps)?))
    }

    #[pyo3(signature = (pred, target, loss, *, upstream=None, grad=None, stream=None))]
    #[allow(clippy::too_many_arguments, reason = "Python's, which have names")]
    fn run(
        &self,
        py: Python<'_>,
        pred: &Bound<'_, PyAny>,
        target: &Bound<'_, PyAny>,
        loss: &Bound<'_, PyAny>,
        upstream: Option<&Bound<'_, PyAny>>,
        grad: Option<&Bound<'_, PyAny>>,
        stream: Option<usize>,
    ) -> Outcome {
        let mut tensors = Tensors {
            pred: Tensor::on_stream("pred", pred, stream)?,
            target: Tensor::of("target", target)?,
            upstream: Tensor::optional("upstream", upstream)?,
            loss: Tensor::of("loss", loss)?,
            grad: Tensor::optional("grad", grad)?,
        };
        tensors.check()?;
        match (tensors.pred.device, tensors.pred.dtype) {
            (Device::Cpu, DType::F64) => tensors.cpu::<f64>(py, &self.0),
            (Device::Cpu, _) => tensors.cpu::<f32>(py, &self.0),
            (Device::Cuda(_), _) => {
                let on = on_of(py, &tensors.pred, stream)?;
                tensors.cuda(py, &on, &self.0)
            }
        }
    }
}

/// `iou [N]` of boxes `[N, 4]`, pair by pair, on the CPU. On CUDA it is what is left of 1 when the loss `"iou"` is
/// taken away.
#[pyfunction]
#[pyo3(signature = (a, b, iou, *, eps=1e-6))]
pub fn iou(
    py: Python<'_>,
    a: &Bound<'_, PyAny>,
    b: &Bound<'_, PyAny>,
    iou: &Bound<'_, PyAny>,
    eps: f64,
) -> Outcome {
    let (a, b, mut iou) = (Tensor::of("a", a)?, Tensor::of("b", b)?, Tensor::of("iou", iou)?);
    let [boxes, four] = a.matrix("[N, 4]")?;
    let shape = [boxes, four];
    a.expect(&[boxes, 4], &"an IoU")?;
    b.expect(&shape, &Needs("a", &shape))?;
    iou.expect(&[boxes], &Needs("a", &shape))?;
    check_overlaps([&iou], [&a, &b])?;
    run(py, 16 * boxes, || {
        match a.dtype {
            DType::F64 => of_boxes(a.slice::<f64>()?, b.slice()?, boxes, eps, iou.slice_mut()?)?,
            _ => of_boxes(a.slice::<f32>()?, b.slice()?, boxes, eps, iou.slice_mut()?)?,
        }
        Ok(())
    })
}
