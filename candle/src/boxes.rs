//! Box losses, and the ways between boxes and distances.

use candle_core::{D, DType, Error, Result, Shape, Tensor};
use gfocal::boxes::{BoxLoss, Coordinate};

use crate::record::{Op, Output, constant, record};
use crate::rows::matrix;
use crate::tensor::{
    Float, Held, Place, Tracked, beside, constant_like, host, numbers, place, same_device, stored, wrap,
    zeros,
};

/// 1 − IoU, or one of its variants, of each pair of boxes `[x1, y1, x2, y2]`:
///
/// ```text
/// IoU  = I / U                       I: area of the intersection, U: of the union
/// GIoU = IoU − (H − U) / H           H: of the smallest box around both
/// DIoU = IoU − ρ²/c²                 ρ: distance of the centres, c: diagonal of that box
/// CIoU = DIoU − α·v                  v: how the aspects differ; see gfocal::boxes
/// ```
///
/// `pred` and `target` are `[.., 4]`, `weight` and the losses `[..]`; pairs with a weight of exactly 0 give loss 0 and
/// gradient 0, whatever they hold. Losses are f32, and f64 of f64 on the CPU; 16-bit predictions are converted to f32
/// first. The gradient is that of `pred`. The IoU is 1 minus the loss of [`IouKind::Iou`](gfocal::boxes::IouKind::Iou).
///
/// ```
/// use candle_core::{Device, Tensor, Var};
/// use gfocal_candle::{BoxLoss, box_loss};
///
/// let pred = Var::from_slice(&[0f32, 0., 4., 4.], (1, 4), &Device::Cpu)?;
/// let target = Tensor::new(&[[2f32, 0., 6., 4.]], &Device::Cpu)?;
/// let loss = box_loss(&BoxLoss::default(), &pred, &target, None)?; // GIoU: I = 8, U = H = 24
/// assert_eq!(loss.to_vec1::<f32>()?, [2.0 / 3.0]);
/// let grad = loss.sum_all()?.backward()?.remove(&pred).unwrap().to_vec2::<f32>()?;
/// assert!((grad[0][2] + 4.0 / 24.0).abs() < 1e-6); // moving the right side by 1 adds 4 to I
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// If shapes, types or devices do not go together, `target` or `weight` depends on a variable, or the driver refuses a
/// launch.
pub fn box_loss(loss: &BoxLoss, pred: &Tensor, target: &Tensor, weight: Option<&Tensor>) -> Result<Tensor> {
    let (dtype, of_boxes) = (beside(pred.dtype()), boxes("pred", pred, 4)?);
    let pred = numbers("pred", pred, dtype)?;
    let like = ("pred", &pred);
    let target = constant_like("target", target, &[pred.dims()], like, Tracked::Refused)?;
    let target = numbers("target", &target, dtype)?;
    let Some(weight) = weight else { return pairs(loss, &pred, &target) };
    let weight = constant_like("weight", weight, &[of_boxes], like, Tracked::Refused)?;
    let weight = numbers("weight", &weight, dtype)?;
    // Masked boxes are chosen away, before and after: 0 times what they hold may be NaN.
    let counts = weight.ne(0.0)?;
    let both = counts.unsqueeze(D::Minus1)?.broadcast_as(pred.shape())?;
    let losses = pairs(loss, &both.where_cond(&pred, &target)?, &target)?;
    counts.where_cond(&losses.mul(&weight)?, &weight.zeros_like()?)
}

/// The losses of all pairs.
fn pairs(loss: &BoxLoss, pred: &Tensor, target: &Tensor) -> Result<Tensor> {
    record(Boxes { loss: *loss, pred: pred.detach(), target: target.clone() }, &[pred])
}

/// Boxes `[x1, y1, x2, y2]` whose sides have the distances left, top, right, bottom from points:
///
/// ```text
/// x1 = x − left     y1 = y − top     x2 = x + right     y2 = y + bottom
/// ```
///
/// `points` is `[.., 2]`, `distances` and the boxes `[.., 4]`, all of one float type. Made of candle's operations, so
/// that both have their gradients.
///
/// ```
/// use candle_core::{Device, Tensor};
///
/// let points = Tensor::new(&[[10f32, 20.]], &Device::Cpu)?;
/// let distances = Tensor::new(&[[1f32, 2., 3., 4.]], &Device::Cpu)?;
/// let boxes = gfocal_candle::distances_to_box(&points, &distances)?;
/// assert_eq!(boxes.to_vec2::<f32>()?, [[9., 18., 13., 24.]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// If shapes, types or devices do not go together.
pub fn distances_to_box(points: &Tensor, distances: &Tensor) -> Result<Tensor> {
    check_points(points, ("distances", distances))?;
    let corners = |sign: f64, first: usize| points + (distances.narrow(D::Minus1, first, 2)? * sign)?;
    Tensor::cat(&[corners(-1.0, 0)?, corners(1.0, 2)?], D::Minus1)
}

/// The distances left, top, right, bottom of the sides of boxes from points, the other way round than
/// [`distances_to_box`]; with `max`, clamped to [0, max]: what DFL's targets are made of.
///
/// ```
/// use candle_core::{Device, Tensor};
///
/// let points = Tensor::new(&[[10f32, 20.]], &Device::Cpu)?;
/// let boxes = Tensor::new(&[[9f32, 21., 13., 44.]], &Device::Cpu)?;
/// let distances = gfocal_candle::box_to_distances(&points, &boxes, Some(16.))?;
/// assert_eq!(distances.to_vec2::<f32>()?, [[1., 0., 3., 16.]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// If shapes, types or devices do not go together, or `max` is negative or not finite.
pub fn box_to_distances(points: &Tensor, boxes: &Tensor, max: Option<f64>) -> Result<Tensor> {
    check_points(points, ("boxes", boxes))?;
    let first = (points - boxes.narrow(D::Minus1, 0, 2)?)?;
    let second = (boxes.narrow(D::Minus1, 2, 2)? - points)?;
    let distances = Tensor::cat(&[first, second], D::Minus1)?;
    match max {
        None => Ok(distances),
        Some(max) if (0.0..f64::INFINITY).contains(&max) => distances.clamp(0.0, max),
        Some(max) => Err(Error::msg(format!("max is {max}, it must be a finite number of 0 or more"))),
    }
}

/// The shape of boxes, of which each has so many numbers.
fn boxes<'t>(name: &str, tensor: &'t Tensor, each: usize) -> Result<&'t [usize]> {
    match matrix(name, tensor)? {
        ([_, columns], of_boxes) if columns == each => Ok(of_boxes),
        _ => Err(Error::msg(format!("{name} has shape {:?}, it must be [.., {each}]", tensor.dims()))),
    }
}

fn check_points(points: &Tensor, (name, sides): (&str, &Tensor)) -> Result<()> {
    let (of_points, of_sides) = (boxes("points", points, 2)?, boxes(name, sides, 4)?);
    if of_points != of_sides {
        let (points, sides) = (points.dims(), sides.dims());
        return Err(Error::msg(format!("points has shape {points:?}, {name} {sides:?}")));
    }
    same_device("points", points, (name, sides))
}

pub(crate) struct Boxes {
    pub loss: BoxLoss,
    pub pred: Tensor,
    pub target: Tensor,
}

impl Op for Boxes {
    const NAME: &'static str = "gfocal-boxes";

    fn forward(&self) -> Result<Output> {
        self.run(None)
    }

    fn backward(&self, upstream: &Tensor) -> Result<Vec<Tensor>> {
        Ok(vec![constant(self.run(Some(&upstream.contiguous()?))?)])
    }
}

impl Boxes {
    /// The losses, or with an upstream gradient that of the predictions.
    fn run(&self, upstream: Option<&Tensor>) -> Result<Output> {
        match place("pred", &self.pred)? {
            Place::Cpu if self.pred.dtype() == DType::F64 => self.on_cpu::<f64>(upstream),
            Place::Cpu => self.on_cpu::<f32>(upstream),
            #[cfg(feature = "cuda")]
            Place::Cuda(device) => self.on_cuda(upstream, device),
        }
    }

    fn shape(&self) -> Result<(usize, Shape)> {
        let ([count, _], of_boxes) = matrix("pred", &self.pred)?;
        Ok((count, of_boxes.into()))
    }

    fn on_cpu<T: Float + Coordinate>(&self, upstream: Option<&Tensor>) -> Result<Output> {
        let (pred, target) = (Held::new(&self.pred)?, Held::new(&self.target)?);
        let (pred, target) = (pred.host::<T>()?, target.host::<T>()?);
        let (count, of_boxes) = self.shape()?;
        let mut losses = zeros::<T>(count);
        let upstream = upstream.map(Held::new).transpose()?;
        let Some(upstream) = host::<T>(&upstream)? else {
            self.loss.forward(pred, target, count, &mut losses).map_err(wrap)?;
            return Ok((stored(losses), of_boxes));
        };
        let mut grad = zeros::<T>(4 * count);
        self.loss
            .forward_backward(pred, target, count, Some(upstream), &mut losses, &mut grad)
            .map_err(wrap)?;
        Ok((stored(grad), self.pred.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn on_cuda(&self, upstream: Option<&Tensor>, device: &candle_core::CudaDevice) -> Result<Output> {
        use crate::cuda::{alloc, output, view, with};

        if self.pred.dtype() == DType::F64 {
            return Err(Error::msg("pred is f64, which only the CPU takes"));
        }
        let (pred, target) = (Held::new(&self.pred)?, Held::new(&self.target)?);
        let (pred, target) = (pred.device::<f32>()?, target.device::<f32>()?);
        let (count, of_boxes) = self.shape()?;
        let upstream = upstream.map(Held::new).transpose()?;
        let upstream = view(&upstream)?;
        let mut losses = alloc::<f32>(device, count)?;
        with(device, |work| {
            let handle = &work.handle;
            let Some(upstream) = &upstream else {
                let mut to = losses.slice_mut(..count);
                self.loss.forward_cuda(handle, &pred, &target, count, &mut to).map_err(wrap)?;
                return Ok(output(losses, of_boxes, device));
            };
            let mut grad = alloc::<f32>(device, 4 * count)?;
            let (mut to, mut grad_to) = (losses.slice_mut(..count), grad.slice_mut(..4 * count));
            self.loss
                .forward_backward_cuda(handle, &pred, &target, count, Some(upstream), &mut to, &mut grad_to)
                .map_err(wrap)?;
            Ok(output(grad, self.pred.shape().clone(), device))
        })
    }
}
