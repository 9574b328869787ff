//! Decoding: the boxes that raw box logits say.

use gfocal::Host;
use gfocal::cuda::{Device as Cuda, StorageElement};
use gfocal::cudarc::driver::{DevicePtr, DevicePtrMut};
use gfocal::decode::{self, Level};
use gfocal::head::{BoxCoding, Layout, Points};
use pyo3::prelude::*;

use crate::cuda::{On, on_of};
use crate::error::{Outcome, shape, value};
use crate::head::coding;
use crate::head::inputs::{axes, each, layout};
use crate::pool::{enqueue, run};
use crate::tensor::{DType, Device, Item, Real, Tensor, check_overlaps, for_cuda_floats, for_floats};

/// What a call reads and writes.
struct Tensors {
    coding: BoxCoding,
    logits: Vec<Tensor>,
    strides: Vec<f64>,
    offset: f64,
    /// None, or one a level.
    points: Vec<Tensor>,
    /// Boxes, or in a backward pass their gradient.
    boxes: Tensor,
    /// In the strides of the logits.
    grads: Option<Vec<Tensor>>,
}

/// Where a level is.
#[derive(Clone, Copy)]
struct Place {
    height: usize,
    width: usize,
    stride: f64,
    layout: Layout,
}

impl Place {
    fn level<'a, M: gfocal::Memory, T: gfocal::Element>(
        self,
        logits: M::Slice<'a, T>,
        points: Points<'a, M, T::Loss>,
    ) -> Level<'a, M, T> {
        let Place { height, width, stride, layout } = self;
        Level { height, width, stride, points, logits, layout }
    }
}

impl Tensors {
    fn batch(&self) -> usize {
        self.logits[0].shape()[0]
    }

    fn check(&self) -> Outcome<Vec<Place>> {
        let levels = self.logits.len();
        if levels == 0 {
            return Err(shape("bbox_preds has no levels".to_owned()));
        }
        if self.strides.len() != levels {
            let actual = self.strides.len();
            return Err(shape(format!("there are {actual} strides, bbox_preds has {levels} levels")));
        }
        if !self.points.is_empty() && self.points.len() != levels {
            let actual = self.points.len();
            return Err(shape(format!("points has {actual} levels, bbox_preds {levels}")));
        }
        let sides = match self.coding {
            BoxCoding::Bins(bins) => bins,
            BoxCoding::Exp | BoxCoding::Relu => 1,
        };
        let beside = if self.logits[0].dtype == DType::F64 { DType::F64 } else { DType::F32 };
        let (batch, mut anchors, mut places) = (self.batch(), 0, Vec::new());
        for (level, logits) in self.logits.iter().enumerate() {
            let [_, _, height, width] = axes(logits)?;
            let mut expected = logits.shape().to_vec();
            (expected[0], expected[1]) = (batch, 4 * sides);
            logits.expect(&expected, &format_args!("{batch} images with {sides} logits a side"))?;
            logits.expect_dtype(self.logits[0].dtype, &self.logits[0].name)?;
            let positions = height * width;
            if let Some(points) = self.points.get(level) {
                points.expect_dtype(beside, &logits.name)?;
                if points.shape() != [positions, 2] {
                    points.expect(&[batch, positions, 2], &logits.name)?;
                }
            } else if logits.shape().len() == 3 {
                let (name, actual) = (logits.name, logits.shape());
                return Err(shape(format!("{name} has shape {actual:?}, without rows it needs points")));
            }
            if let Some(grads) = &self.grads {
                let Some(grad) = grads.get(level) else {
                    return Err(shape(format!("grads has {} levels, bbox_preds {levels}", grads.len())));
                };
                grad.expect(logits.shape(), &logits.name)?;
                grad.expect_dtype(logits.dtype, &logits.name)?;
                if grad.strides() != logits.strides() {
                    let (name, actual) = (grad.name, grad.strides());
                    let expected = logits.strides();
                    return Err(value(format!("{name} has strides {actual:?}, its logits {expected:?}")));
                }
            }
            anchors += positions;
            places.push(Place { height, width, stride: self.strides[level], layout: layout(logits) });
        }
        self.boxes.expect(&[batch, anchors, 4], &"bbox_preds")?;
        self.boxes.expect_dtype(beside, &"bbox_preds")?;
        let read = self.logits.iter().chain(&self.points);
        let of_levels = self.grads.iter().flatten();
        for tensor in read.clone().chain([&self.boxes]).chain(of_levels.clone()) {
            tensor.expect_device(self.logits[0].device, "bbox_preds[0]")?;
        }
        match self.grads {
            Some(_) => check_overlaps(of_levels, read.chain([&self.boxes]))?,
            None => check_overlaps([&self.boxes], read)?,
        }
        Ok(places)
    }

    fn cpu<T: Real>(&mut self, py: Python<'_>, places: &[Place]) -> Outcome {
        let (batch, coding, offset) = (self.batch(), self.coding, self.offset);
        let Tensors { logits, points, boxes, grads, .. } = self;
        let elements = logits.iter().map(Tensor::len).sum();
        run(py, elements, || {
            let mut levels: Vec<Level<Host, T>> = Vec::new();
            for (i, (place, logits)) in places.iter().zip(&*logits).enumerate() {
                let points = match points.get(i) {
                    Some(points) => Points::Explicit(points.slice::<T::Loss>()?),
                    None => Points::Grid { offset },
                };
                levels.push(place.level::<Host, T>(logits.whole()?, points));
            }
            let Some(grads) = grads else {
                return Ok(decode::forward(coding, batch, &levels, boxes.slice_mut()?)?);
            };
            let mut grads = grads.iter_mut().map(Tensor::whole_mut).collect::<Outcome<Vec<_>>>()?;
            Ok(decode::backward(coding, batch, &levels, boxes.slice()?, &mut grads, None)?)
        })
    }

    fn cuda<T: StorageElement + Item>(&self, py: Python<'_>, on: &On, places: &[Place]) -> Outcome {
        let (stream, handle, batch) = (&on.stream, &on.handle, self.batch());
        let all = |tensors: &[Tensor]| {
            tensors.iter().map(|tensor| tensor.whole_borrowed::<T>(stream)).collect::<Outcome<Vec<_>>>()
        };
        let logits = all(&self.logits)?;
        let points = self.points.iter().map(|points| points.borrowed(stream)).collect::<Outcome<Vec<_>>>()?;
        let levels = || -> Vec<Level<Cuda, T>> {
            let level = |(i, (place, logits)): (usize, (&Place, _))| {
                let points = match points.get(i) {
                    Some(points) => Points::Explicit(points as &dyn DevicePtr<f32>),
                    None => Points::Grid { offset: self.offset },
                };
                place.level::<Cuda, T>(logits, points)
            };
            places.iter().zip(logits.iter().map(|logits| logits as _)).enumerate().map(level).collect()
        };
        let (coding, mut boxes) = (self.coding, self.boxes.borrowed(stream)?);
        let Some(grads) = &self.grads else {
            return enqueue(py, || Ok(decode::forward_cuda(handle, coding, batch, &levels(), &mut boxes)?));
        };
        let mut grads = all(grads)?;
        enqueue(py, || {
            let mut grads: Vec<&mut dyn DevicePtrMut<T>> = grads.iter_mut().map(|grad| grad as _).collect();
            Ok(decode::backward_cuda(handle, coding, batch, &levels(), &boxes, &mut grads, None)?)
        })
    }
}

/// Writes boxes `[B, A, 4]` of logits; or, with `grads`, the gradients of the logits, given that of the boxes.
#[pyfunction(name = "decode")]
#[pyo3(signature = (
    bbox_preds, strides, boxes, *, coding="bins", bins=17, offset=0.0, points=vec![], grads=None, stream=None,
))]
#[allow(clippy::too_many_arguments, reason = "Python's, which have names")]
pub fn run_decode(
    py: Python<'_>,
    bbox_preds: Vec<Bound<'_, PyAny>>,
    strides: Vec<f64>,
    boxes: &Bound<'_, PyAny>,
    coding: &str,
    bins: usize,
    offset: f64,
    points: Vec<Bound<'_, PyAny>>,
    grads: Option<Vec<Bound<'_, PyAny>>>,
    stream: Option<usize>,
) -> Outcome {
    let mut tensors = Tensors {
        coding: self::coding(coding, bins)?,
        logits: each!("bbox_preds", bbox_preds, stream)?,
        strides,
        offset,
        points: each!("points", points, stream)?,
        boxes: Tensor::on_stream("boxes", boxes, stream)?,
        grads: grads.map(|grads| each!("grads", grads, stream)).transpose()?,
    };
    let places = tensors.check()?;
    let first = &tensors.logits[0];
    match first.device {
        Device::Cpu => for_floats!(first, T => tensors.cpu::<T>(py, &places)),
        Device::Cuda(_) => {
            let on = on_of(py, first, stream)?;
            for_cuda_floats!(first, T => tensors.cuda::<T>(py, &on, &places))
        }
    }
}
