//! Decoding on a device.

use gfocal::cuda::Device as OnDevice;
use gfocal::cudarc::driver::{DevicePtr, DevicePtrMut};
use gfocal::decode::{self, Level};
use gfocal::{Element, Host, Memory, Result};

use super::Pyramid;
use crate::assign::Place;
use crate::buffer::{self, Buffer, Stored};
use crate::device::{Cuda, Device};
use crate::floats::{Dtype, Float, Floats, numbers, with_cuda_floats, with_floats};
use crate::head::BoxLevel;

/// What comes out.
pub struct Outcome {
    /// `[B, A, 4]`.
    pub boxes: Floats,
    /// Of each level's tensor; none without an upstream gradient.
    pub gradients: Vec<Floats>,
}

pub fn on(device: &Device, pyramid: &Pyramid) -> crate::error::Result<Outcome> {
    match device {
        Device::Cpu => {
            let logits: Vec<&Floats> = pyramid.levels.iter().map(|level| &level.logits.numbers).collect();
            Ok(with_floats!(logits[0], like => cpu(like, pyramid, &logits))?)
        }
        Device::Cuda(device) => {
            let logits = &pyramid.levels[0].logits.numbers;
            with_cuda_floats!(logits, like => cuda(like, device, pyramid)).map_err(buffer::error(device))
        }
    }
}

/// The gradients in f64, which tell of those that are too small to be stored; none if f64 is stored.
pub fn exactly(pyramid: &Pyramid) -> crate::error::Result<Option<Vec<Floats>>> {
    if pyramid.upstream.is_none() || pyramid.dtype() == Dtype::F64 {
        return Ok(None);
    }
    let to_f64 = |level: &BoxLevel| level.logits.numbers.clone().to(Dtype::F64);
    let logits: Vec<Floats> = pyramid.levels.iter().map(to_f64).collect();
    let like: &[f64] = &[];
    Ok(Some(cpu(like, pyramid, &logits.iter().collect::<Vec<_>>())?.gradients))
}

impl Pyramid {
    /// The levels, with buffers of logits and of explicit points.
    fn in_memory<'a, M: Memory, T: Element>(
        &self,
        buffers: impl Iterator<Item = (M::Slice<'a, T>, M::Slice<'a, T::Loss>)>,
    ) -> Vec<Level<'a, M, T>> {
        let levels = self.places.iter().zip(&self.levels).zip(buffers);
        let level = |((place, level), (logits, points)): ((&Place, &BoxLevel), _)| Level {
            height: place.height,
            width: place.width,
            stride: place.stride,
            points: place.points_in(points),
            logits,
            layout: level.layout,
        };
        levels.map(level).collect()
    }
}

/// `_` tells the type.
fn cpu<T>(_: &[T], pyramid: &Pyramid, logits: &[&Floats]) -> Result<Outcome>
where
    T: Float + Element<Loss: Float>,
{
    let points: Vec<Vec<T::Loss>> = pyramid.places.iter().map(|place| numbers(&place.points())).collect();
    let logits: Vec<&[T]> = logits.iter().map(|logits| T::of(logits)).collect();
    let buffers = logits.iter().copied().zip(points.iter().map(Vec::as_slice));
    let levels: Vec<Level<Host, T>> = pyramid.in_memory(buffers);
    let (coding, batch) = (pyramid.coding(), pyramid.batch);
    let mut boxes = vec![T::Loss::from_f64(0.0); 4 * batch * pyramid.positions()];
    decode::forward(coding, batch, &levels, &mut boxes)?;
    let mut gradients = Vec::new();
    if let Some(upstream) = &pyramid.upstream {
        let upstream: Vec<T::Loss> = numbers(upstream);
        gradients = logits.iter().map(|logits| vec![T::from_f64(0.0); logits.len()]).collect();
        let mut into: Vec<&mut [T]> = gradients.iter_mut().map(Vec::as_mut_slice).collect();
        decode::backward(coding, batch, &levels, &upstream, &mut into, None)?;
    }
    let gradients = gradients.into_iter().map(Float::floats).collect();
    Ok(Outcome { boxes: Float::floats(boxes), gradients })
}

fn cuda<T: Stored>(_: &[T], cuda: &Cuda, pyramid: &Pyramid) -> Result<Outcome> {
    let (handle, stream) = (&cuda.handle, cuda.stream());
    let (mut points, mut logits) = (Vec::new(), Vec::new());
    for (place, level) in pyramid.places.iter().zip(&pyramid.levels) {
        points.push(Buffer::beside(stream, &place.points())?);
        logits.push(Buffer::upload(stream, T::of(&level.logits.numbers))?);
    }
    let buffers = logits.iter().zip(&points);
    let buffers =
        buffers.map(|(logits, points)| (logits as &dyn DevicePtr<T>, points as &dyn DevicePtr<f32>));
    let levels: Vec<Level<OnDevice, T>> = pyramid.in_memory(buffers);
    let (coding, batch) = (pyramid.coding(), pyramid.batch);
    let mut boxes = Buffer::<f32>::zeros(stream, 4 * batch * pyramid.positions())?;
    decode::forward_cuda(handle, coding, batch, &levels, &mut boxes)?;
    let mut gradients = Vec::new();
    if let Some(upstream) = &pyramid.upstream {
        let upstream = Buffer::beside(stream, upstream)?;
        let zeros = |level: &BoxLevel| Buffer::<T>::zeros(stream, level.logits.numbers.len());
        gradients = pyramid.levels.iter().map(zeros).collect::<Result<_>>()?;
        let into = gradients.iter_mut().map(|gradient| gradient as &mut dyn DevicePtrMut<T>);
        let mut into: Vec<_> = into.collect();
        decode::backward_cuda(handle, coding, batch, &levels, &upstream, &mut into, None)?;
    }
    let download = |gradient: &Buffer<T>| Ok(Float::floats(gradient.download(stream)?));
    let gradients = gradients.iter().map(download).collect::<Result<_>>()?;
    Ok(Outcome { boxes: Float::floats(boxes.download(stream)?), gradients })
}
