//! The loss of arm `both` by candle's own operations: the same formulas, one operation at a time. What gfocal is
//! measured against, in time and in numbers.

use candle_core::{D, DType, Device, Result, Tensor};
use gfocal_candle::HeadLevel;

use super::losses::{corners, point};
use super::model::STRIDES;
use super::scenes::CLASSES;

/// The sum of the three losses of all levels, as `HeadLoss::mmdetection()` with NanoDet's normaliser has them.
pub fn head(levels: &[HeadLevel], bins: usize) -> Result<Tensor> {
    let mut sums = vec![Tensor::zeros((), DType::F32, &Device::Cpu)?; 3];
    let (mut positives, mut weights) = (0, Tensor::zeros((), DType::F32, &Device::Cpu)?);
    for (number, level) in levels.iter().enumerate() {
        // [B, C, H, W] to [B·H·W, C]
        let rows = |logits: &Tensor, columns: usize| {
            logits.permute((0, 2, 3, 1))?.contiguous()?.reshape(((), columns))?.to_dtype(DType::F32)
        };
        let (cls, boxes) = (rows(&level.cls, CLASSES)?, rows(&level.boxes, 4 * bins)?);
        let labels = level.targets.labels.flatten_all()?.to_vec1::<i64>()?;
        let of_class = |&row: &usize| (0..CLASSES as i64).contains(&labels[row]);
        let at: Vec<usize> = (0..labels.len()).filter(of_class).collect();
        let mut target = Tensor::zeros(cls.shape(), DType::F32, &Device::Cpu)?;
        if !at.is_empty() {
            positives += at.len();
            let index = Tensor::from_iter(at.iter().map(|&row| row as u32), &Device::Cpu)?;
            let wanted = corners(&level.targets.boxes)?;
            let (stride, count) =
                (STRIDES[number] as f32, level.cls.elem_count() / level.cls.dim(0)? / CLASSES);
            let distances: Vec<f32> = (at.iter())
                .flat_map(|&row| {
                    let ([x, y], [x1, y1, x2, y2]) = (point(number, row % count), wanted[row]);
                    [x - x1, y - y1, x2 - x, y2 - y].map(|distance| distance / stride)
                })
                .collect();
            let distances = Tensor::from_vec(distances, (at.len(), 4), &Device::Cpu)?;
            let weight = sigmoid(&cls.detach().index_select(&index, 0)?.max(D::Minus1)?)?;
            let sides = boxes.index_select(&index, 0)?.reshape((at.len(), 4, bins))?;
            let (iou, box_loss) = giou(&expectation(&sides)?, &distances)?;
            let hot: Vec<f32> = (at.iter())
                .flat_map(|&row| (0..CLASSES as i64).map(move |class| (row, class)))
                .map(|(row, class)| f32::from(u8::from(labels[row] == class)))
                .collect();
            let hot = Tensor::from_vec(hot, (at.len(), CLASSES), &Device::Cpu)?;
            let quality = iou.detach().clamp(0f32, 1f32)?.unsqueeze(1)?;
            target = target.index_add(&index, &hot.broadcast_mul(&quality)?, 0)?;
            let of_sides = distribution_loss(&sides, &distances.clamp(0f32, bins as f32 - 1.1)?)?.sum(1)?;
            sums[1] = (&sums[1] + (&weight * box_loss)?.sum_all()?)?;
            sums[2] = (&sums[2] + (&weight * of_sides)?.sum_all()?)?;
            weights = (weights + weight.sum_all()?)?;
        }
        sums[0] = (&sums[0] + quality_focal_loss(&cls, &target)?.sum_all()?)?;
    }
    let (n, w) = (f64::from(positives.max(1) as u32), f64::from(weights.to_scalar::<f32>()?.max(1.0)));
    (&sums[0] * (1.0 / n))? + ((&sums[1] * (2.0 / w))? + (&sums[2] * (0.25 * 0.25 / w))?)?
}

fn sigmoid(x: &Tensor) -> Result<Tensor> {
    (x.neg()?.exp()? + 1.0)?.recip()
}

fn quality_focal_loss(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    let softplus = (x.relu()? + (x.abs()?.neg()?.exp()? + 1.0)?.log()?)?;
    (y - sigmoid(x)?)?.sqr()? * (softplus - (x * y)?)?
}

/// `[P, 4, K]` to `[P, 4]`.
fn expectation(sides: &Tensor) -> Result<Tensor> {
    let weights = sides.broadcast_sub(&sides.max_keepdim(D::Minus1)?.detach())?.exp()?;
    let places = Tensor::arange(0f32, sides.dim(D::Minus1)? as f32, &Device::Cpu)?;
    weights.broadcast_mul(&places)?.sum(D::Minus1)? / weights.sum(D::Minus1)?
}

/// `[P, 4, K]` and targets `[P, 4]` to `[P, 4]`.
fn distribution_loss(sides: &Tensor, target: &Tensor) -> Result<Tensor> {
    let shifted = sides.broadcast_sub(&sides.max_keepdim(D::Minus1)?.detach())?;
    let log = shifted.broadcast_sub(&shifted.exp()?.sum_keepdim(D::Minus1)?.log()?)?;
    let lower = target.floor()?;
    let right = (target - &lower)?;
    let of = |bin: &Tensor| log.gather(&bin.to_dtype(DType::U32)?.unsqueeze(2)?, 2)?.squeeze(2);
    let (below, above) = (of(&lower)?, of(&(&lower + 1.0)?)?);
    ((right.affine(-1.0, 1.0)? * below)? + (right * above)?)?.neg()
}

/// IoU, and 1 - GIoU, of boxes around one point, given their distances `[P, 4]` to its sides.
fn giou(a: &Tensor, b: &Tensor) -> Result<(Tensor, Tensor)> {
    // [P, 2]: left + right, top + bottom.
    let extent = |sides: &Tensor| sides.narrow(1, 0, 2)? + sides.narrow(1, 2, 2)?;
    let area = |sides: &Tensor| {
        let extent = extent(sides)?.relu()?;
        extent.narrow(1, 0, 1)?.squeeze(1)? * extent.narrow(1, 1, 1)?.squeeze(1)?
    };
    let both = area(&a.minimum(b)?)?;
    let union = ((area(a)? + area(b)?)? - &both)?.maximum(1e-6)?;
    let hull = area(&a.maximum(b)?)?.maximum(1e-6)?;
    let iou = (both / &union)?;
    let loss = ((&iou - ((&hull - &union)? / &hull)?)?.affine(-1.0, 1.0))?;
    Ok((iou, loss))
}
