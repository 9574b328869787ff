//! Decoding: the boxes that raw box logits say.

use candle_core::{Error, Result, Tensor};
use gfocal::decode::Level;
use gfocal::head::{BoxCoding, Points as Of};
use gfocal::{HeadLoss, Host};

use crate::head::HeadLevel;
use crate::pyramid::{Dense, Points, axes, check_level};
use crate::record::{Op, Output, constant, record};
use crate::rows::check_dtype;
use crate::tensor::{Float, Held, Place, for_floats, place, stored, wrap, zeros};

/// The box logits of a level of the pyramid.
#[derive(Clone, Debug)]
pub struct BoxLevel {
    /// `[B, 4·K, H, W]` with any strides, as convolutions or channels-last ones give them; channel side·K + bin, sides
    /// left, top, right, bottom, K the number of bins, or 1 without. Or `[B, 4·K, A]`, with explicit points.
    pub boxes: Tensor,
    /// Pixels from one position to the next.
    pub stride: f64,
    /// The anchor points.
    pub points: Points,
}

impl From<&HeadLevel> for BoxLevel {
    fn from(level: &HeadLevel) -> Self {
        let HeadLevel { boxes, stride, points, .. } = level.clone();
        BoxLevel { boxes, stride, points }
    }
}

/// The boxes that the raw box logits z of a pyramid say, around anchor points (X, Y), at stride s:
///
/// ```text
/// x1 = X − s·E(z_left)     y1 = Y − s·E(z_top)
/// x2 = X + s·E(z_right)    y2 = Y + s·E(z_bottom)
///
/// E(z) = Σ_j j·softmax(z)_j    with BoxCoding::Bins
/// E(z) = exp(z), max(z, 0)     with BoxCoding::Exp, BoxCoding::Relu
/// ```
///
/// Of levels in f32, f16, bf16 (f64 on the CPU), all of one type, they are `[B, A, 4]` in f32 (f64 of f64) and in
/// pixels, with A the positions of all levels: those of a level after those of the level before. Nothing is permuted or
/// concatenated; logits with gaps between them, as those of a crop, are copied first. Each level has its gradient.
///
/// ```
/// use candle_core::{Device, Var};
/// use gfocal_candle::{BoxCoding, BoxLevel, Points, decode};
///
/// let logits = Var::zeros((1, 8, 1, 2), candle_core::DType::F32, &Device::Cpu)?; // 2 bins, 2 positions side by side
/// let level = BoxLevel { boxes: logits.as_tensor().clone(), stride: 8.0, points: Points::Grid { offset: 0.5 } };
/// let boxes = decode(BoxCoding::Bins(2), &[level])?;
/// assert_eq!(boxes.to_vec3::<f32>()?, [[[0., 0., 8., 8.], [8., 0., 16., 8.]]]); // half a stride to each side
///
/// let grad = boxes.sum_all()?.backward()?.remove(&logits).unwrap().flatten_all()?.to_vec1::<f32>()?;
/// assert_eq!(grad[..4], [2., 2., -2., -2.]); // of the left sides: −s·p·(j − E)
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// If there are not 1 to 8 levels, shapes, types or devices do not go together, points depend on a variable, an option
/// is outside its range, or the driver refuses a launch.
pub fn decode(coding: BoxCoding, levels: &[BoxLevel]) -> Result<Tensor> {
    let tensors: Vec<_> = levels.iter().map(|level| &level.boxes).collect();
    record(Decode::new(coding, levels)?, &tensors)
}

/// A level whose logits have no gaps.
struct Checked {
    boxes: Tensor,
    dense: Dense,
    /// Height and width.
    extent: [usize; 2],
    stride: f64,
    points: Points,
}

pub(crate) struct Decode {
    coding: BoxCoding,
    batch: usize,
    /// Of all levels.
    positions: usize,
    levels: Vec<Checked>,
}

impl Op for Decode {
    const NAME: &'static str = "gfocal-decode";

    fn forward(&self) -> Result<Output> {
        match place("levels[0].boxes", &self.levels[0].boxes)? {
            Place::Cpu => for_floats!("boxes", self.levels[0].boxes, T => self.on_cpu::<T>()),
            #[cfg(feature = "cuda")]
            Place::Cuda(device) => {
                crate::cuda::for_floats!("boxes", self.levels[0].boxes, T => self.on_cuda::<T>(device))
            }
        }
    }

    fn backward(&self, upstream: &Tensor) -> Result<Vec<Tensor>> {
        let upstream = upstream.contiguous()?;
        let gradients = match place("boxes", &upstream)? {
            Place::Cpu => for_floats!("boxes", self.levels[0].boxes, T => self.slopes_on_cpu::<T>(&upstream)),
            #[cfg(feature = "cuda")]
            Place::Cuda(device) => crate::cuda::for_floats!("boxes", self.levels[0].boxes, T => {
                self.slopes_on_cuda::<T>(&upstream, device)
            }),
        };
        let of_levels = gradients?.into_iter().zip(&self.levels);
        of_levels.map(|(gradient, level)| level.dense.like_logits(constant(gradient))).collect()
    }
}

/// What is held of a level: logits, and points.
type HeldLevel<'t> = (Held<'t>, Option<Held<'t>>);

impl Decode {
    pub(crate) fn new(coding: BoxCoding, levels: &[BoxLevel]) -> Result<Self> {
        let channels = HeadLoss::default().with_box_coding(coding).map_err(wrap)?.box_channels();
        let Some(first) = levels.first() else { return Err(Error::msg("there are no levels")) };
        check_dtype("levels[0].boxes", &first.boxes)?;
        let [batch, ..] = axes("levels[0].boxes", &first.boxes, &first.points)?;
        let mut op = Decode { coding, batch, positions: 0, levels: Vec::new() };
        for (i, level) in levels.iter().enumerate() {
            let name = format!("levels[{i}].boxes");
            let axes = axes(&name, &level.boxes, &level.points)?;
            check_level((&name, &level.boxes, channels), ("levels[0].boxes", &first.boxes))?;
            let points = level.points.checked(&format!("levels[{i}]"), (&name, &level.boxes), axes)?;
            let (boxes, dense) = Dense::of(&level.boxes.detach())?;
            op.positions += axes[2] * axes[3];
            op.levels.push(Checked {
                boxes,
                dense,
                extent: [axes[2], axes[3]],
                stride: level.stride,
                points,
            });
        }
        Ok(op)
    }

    fn hold(&self) -> Result<Vec<HeldLevel<'_>>> {
        self.levels.iter().map(Checked::hold).collect()
    }

    fn on_cpu<T: Float>(&self) -> Result<Output> {
        let held = self.hold()?;
        let levels = self.levels.iter().zip(&held).map(|(level, held)| level.on_cpu::<T>(held));
        let levels = levels.collect::<Result<Vec<_>>>()?;
        let mut boxes = zeros::<T::Loss>(4 * self.batch * self.positions);
        gfocal::decode::forward(self.coding, self.batch, &levels, &mut boxes).map_err(wrap)?;
        Ok((stored(boxes), (self.batch, self.positions, 4).into()))
    }

    fn slopes_on_cpu<T: Float>(&self, upstream: &Tensor) -> Result<Vec<Output>> {
        let (held, upstream) = (self.hold()?, Held::new(upstream)?);
        let levels = self.levels.iter().zip(&held).map(|(level, held)| level.on_cpu::<T>(held));
        let levels = levels.collect::<Result<Vec<_>>>()?;
        let mut grads: Vec<Vec<T>> =
            self.levels.iter().map(|level| zeros(level.boxes.elem_count())).collect();
        let mut to: Vec<&mut [T]> = grads.iter_mut().map(Vec::as_mut_slice).collect();
        gfocal::decode::backward(self.coding, self.batch, &levels, upstream.host()?, &mut to, None)
            .map_err(wrap)?;
        let of_levels = grads.into_iter().zip(&self.levels);
        Ok(of_levels.map(|(grad, level)| (stored(grad), level.dense.shape())).collect())
    }
}

impl Checked {
    fn hold(&self) -> Result<HeldLevel<'_>> {
        Ok((Held::dense(&self.boxes), self.points.explicit().map(Held::new).transpose()?))
    }

    fn on_cpu<'h, T: Float>(&self, (boxes, points): &'h HeldLevel<'_>) -> Result<Level<'h, Host, T>> {
        Ok(Level {
            height: self.extent[0],
            width: self.extent[1],
            stride: self.stride,
            points: match points {
                Some(points) => Of::Explicit(points.host()?),
                None => Of::Grid { offset: self.points.offset() },
            },
            logits: boxes.host()?,
            layout: self.dense.layout,
        })
    }
}

#[cfg(feature = "cuda")]
mod on_cuda {
    use candle_core::CudaDevice;
    use gfocal::cuda::Device;
    use gfocal::cudarc::driver::{DevicePtr, DevicePtrMut};

    use super::*;
    use crate::cuda::{CudaFloat, View, alloc, output, view, with};

    /// Logits and points of a level.
    type Views<'h, T> = (View<'h, T>, Option<View<'h, f32>>);

    fn views<'h, T: CudaFloat>(held: &'h [HeldLevel<'_>]) -> Result<Vec<Views<'h, T>>> {
        held.iter().map(|(boxes, points)| Ok((boxes.device()?, view(points)?))).collect()
    }

    impl Checked {
        fn on_cuda<'v, T: CudaFloat>(&self, (boxes, points): &'v Views<'_, T>) -> Level<'v, Device, T> {
            Level {
                height: self.extent[0],
                width: self.extent[1],
                stride: self.stride,
                points: match points {
                    Some(points) => Of::<Device, f32>::Explicit(points as &dyn DevicePtr<f32>),
                    None => Of::Grid { offset: self.points.offset() },
                },
                logits: boxes,
                layout: self.dense.layout,
            }
        }
    }

    impl Decode {
        pub(super) fn on_cuda<T: CudaFloat>(&self, device: &CudaDevice) -> Result<Output> {
            let held = self.hold()?;
            let views = views::<T>(&held)?;
            let levels: Vec<_> =
                self.levels.iter().zip(&views).map(|(level, views)| level.on_cuda(views)).collect();
            let count = 4 * self.batch * self.positions;
            let mut boxes = alloc::<f32>(device, count)?;
            with(device, |work| {
                let mut to = boxes.slice_mut(..count);
                gfocal::decode::forward_cuda(&work.handle, self.coding, self.batch, &levels, &mut to)
                    .map_err(wrap)
            })?;
            Ok(output(boxes, (self.batch, self.positions, 4).into(), device))
        }

        pub(super) fn slopes_on_cuda<T: CudaFloat>(
            &self,
            upstream: &Tensor,
            device: &CudaDevice,
        ) -> Result<Vec<Output>> {
            let (held, upstream) = (self.hold()?, Held::new(upstream)?);
            let (views, upstream) = (views::<T>(&held)?, upstream.device::<f32>()?);
            let levels: Vec<_> =
                self.levels.iter().zip(&views).map(|(level, views)| level.on_cuda(views)).collect();
            let counts = self.levels.iter().map(|level| level.boxes.elem_count());
            let mut grads = counts.map(|count| alloc::<T>(device, count)).collect::<Result<Vec<_>>>()?;
            let mut to: Vec<&mut dyn DevicePtrMut<T>> = Vec::with_capacity(grads.len());
            to.extend(grads.iter_mut().map(|grad| grad as &mut dyn DevicePtrMut<T>));
            with(device, |work| {
                let handle = &work.handle;
                let (coding, batch) = (self.coding, self.batch);
                gfocal::decode::backward_cuda(handle, coding, batch, &levels, &upstream, &mut to, None)
                    .map_err(wrap)
            })?;
            drop(to);
            let of_levels = grads.into_iter().zip(&self.levels);
            Ok(of_levels.map(|(grad, level)| output(grad, level.dense.shape(), device)).collect())
        }
    }
}
