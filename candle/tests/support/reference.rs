//! The formulas in candle's operations, for f64: what they say, in the order that they say it.

use candle_core::{D, DType, Result, Tensor};

/// log(1 + e^x).
fn softplus(x: &Tensor) -> Result<Tensor> {
    x.relu()? + (x.abs()?.neg()?.exp()? + 1.0)?.log()?
}

/// Of each element; `y`: its target.
pub fn qfl(x: &Tensor, y: &Tensor, beta: f64) -> Result<Tensor> {
    let sigmoid = (x.neg()?.exp()? + 1.0)?.recip()?;
    let distance = (y - sigmoid)?.abs()?;
    let cross_entropy = (softplus(x)? - (x * y)?)?;
    if beta == 0.0 { Ok(cross_entropy) } else { distance.powf(beta)? * cross_entropy }
}

/// Of each element, of probabilities.
pub fn qfl_of_probability(p: &Tensor, y: &Tensor, beta: f64) -> Result<Tensor> {
    let (of_y, of_rest) = ((y * p.log()?)?, ((1.0 - y)? * (1.0 - p)?.log()?)?);
    (y - p)?.abs()?.powf(beta)? * (of_y + of_rest)?.neg()?
}

/// Targets `[.., classes]`: the quality at the label, 0 elsewhere, and for other labels.
pub fn targets(labels: &Tensor, quality: &Tensor, classes: usize) -> Result<Tensor> {
    let columns = Tensor::arange(0, classes as i64, labels.device())?;
    let is_label = labels.unsqueeze(D::Minus1)?.broadcast_eq(&columns)?.to_dtype(DType::F64)?;
    is_label.broadcast_mul(&quality.unsqueeze(D::Minus1)?)
}

fn log_softmax(z: &Tensor) -> Result<Tensor> {
    let z = z.broadcast_sub(&z.detach().max_keepdim(D::Minus1)?)?;
    z.broadcast_sub(&z.exp()?.sum_keepdim(D::Minus1)?.log()?)
}

/// Of each row.
pub fn dfl(z: &Tensor, target: &Tensor, target_eps: f64) -> Result<Tensor> {
    let bins = z.dim(D::Minus1)?;
    let target = target.clamp(0.0, (bins - 1) as f64 - target_eps)?;
    let left = target.floor()?.clamp(0.0, (bins - 2) as f64)?;
    let of_right = (&target - &left)?;
    let bin = |side: &Tensor| side.to_dtype(DType::U32)?.unsqueeze(D::Minus1);
    let log_p = log_softmax(z)?.contiguous()?;
    let of = |side: &Tensor| log_p.gather(&bin(side)?, D::Minus1)?.squeeze(D::Minus1);
    let (log_left, log_right) = (of(&left)?, of(&(&left + 1.0)?)?);
    ((1.0 - &of_right)? * log_left)?.neg()? - (of_right * log_right)?
}

/// Of each row.
pub fn integral(z: &Tensor) -> Result<Tensor> {
    let bins = Tensor::arange(0u32, z.dim(D::Minus1)? as u32, z.device())?.to_dtype(DType::F64)?;
    log_softmax(z)?.exp()?.broadcast_mul(&bins)?.sum(D::Minus1)
}

/// x1, y1, x2, y2.
fn corners(boxes: &Tensor) -> Result<[Tensor; 4]> {
    let corner = |i| boxes.narrow(D::Minus1, i, 1)?.squeeze(D::Minus1);
    Ok([corner(0)?, corner(1)?, corner(2)?, corner(3)?])
}

/// The sides of the box whose corners these are; a box that is turned around has none.
fn area(x1: &Tensor, y1: &Tensor, x2: &Tensor, y2: &Tensor) -> Result<Tensor> {
    (x2 - x1)?.relu()? * (y2 - y1)?.relu()?
}

/// IoU and GIoU of boxes with a width and a height.
pub fn iou(pred: &Tensor, target: &Tensor) -> Result<[Tensor; 2]> {
    let ([px1, py1, px2, py2], [tx1, ty1, tx2, ty2]) = (corners(pred)?, corners(target)?);
    let intersection =
        area(&px1.maximum(&tx1)?, &py1.maximum(&ty1)?, &px2.minimum(&tx2)?, &py2.minimum(&ty2)?)?;
    let hull = area(&px1.minimum(&tx1)?, &py1.minimum(&ty1)?, &px2.maximum(&tx2)?, &py2.maximum(&ty2)?)?;
    let union = ((area(&px1, &py1, &px2, &py2)? + area(&tx1, &ty1, &tx2, &ty2)?)? - &intersection)?;
    let iou = (intersection / &union)?;
    let giou = (&iou - ((&hull - union)? / hull)?)?;
    Ok([iou, giou])
}

/// DIoU, as mmdetection has it with epsilon.
pub fn diou(pred: &Tensor, target: &Tensor, eps: f64) -> Result<Tensor> {
    let ([px1, py1, px2, py2], [tx1, ty1, tx2, ty2]) = (corners(pred)?, corners(target)?);
    let intersection =
        area(&px1.maximum(&tx1)?, &py1.maximum(&ty1)?, &px2.minimum(&tx2)?, &py2.minimum(&ty2)?)?;
    let union = ((area(&px1, &py1, &px2, &py2)? + area(&tx1, &ty1, &tx2, &ty2)?)? - &intersection)?;
    let iou = (intersection / (union + eps)?)?;
    let width = (px2.maximum(&tx2)? - px1.minimum(&tx1)?)?;
    let height = (py2.maximum(&ty2)? - py1.minimum(&ty1)?)?;
    let diagonal = ((width.sqr()? + height.sqr()?)? + eps)?;
    let across = (((tx1 + tx2)? - (px1 + px2)?)?.sqr()? * 0.25)?;
    let down = (((ty1 + ty2)? - (py1 + py2)?)?.sqr()? * 0.25)?;
    iou - ((across + down)? / diagonal)?
}

/// `[B, C, H, W]` or `[B, C, A]` as `[B, A, C]`.
pub fn anchors(logits: &Tensor) -> Result<Tensor> {
    logits.flatten_from(2)?.transpose(1, 2)?.contiguous()
}

/// Points of a grid `[A, 2]`, in pixels.
pub fn grid(height: usize, width: usize, stride: f64, offset: f64) -> Result<Tensor> {
    let xy: Vec<f64> = (0..height)
        .flat_map(|y| (0..width).flat_map(move |x| [x, y]))
        .map(|at| (at as f64 + offset) * stride)
        .collect();
    Tensor::from_vec(xy, (height * width, 2), &candle_core::Device::Cpu)
}

/// The boxes of raw logits of a level `[B, A, 4]`, `each` of them for a side, at points in pixels.
pub fn decode(logits: &Tensor, each: usize, points: &Tensor, stride: f64) -> Result<Tensor> {
    let logits = anchors(logits)?;
    let (batch, count, _) = logits.dims3()?;
    let distances = (integral(&logits.reshape((batch, count, 4, each))?)? * stride)?;
    let [left, right] = [distances.narrow(2, 0, 2)?, distances.narrow(2, 2, 2)?];
    Tensor::cat(&[points.broadcast_sub(&left)?, points.broadcast_add(&right)?], 2)
}

/// A level of [`head`].
pub struct Level {
    pub cls: Tensor,
    pub boxes: Tensor,
    pub stride: f64,
    /// In pixels.
    pub points: Tensor,
    pub labels: Tensor,
    pub targets: Tensor,
}

/// The losses `[levels, 3]` of mmdetection's head with bins, divided as NanoDet does.
pub fn head(levels: &[Level], bins: usize) -> Result<Tensor> {
    let (mut positives, mut weights, mut sums) = (0.0, 0.0, Vec::new());
    for level in levels {
        let cls = anchors(&level.cls)?;
        let (batch, count, classes) = cls.dims3()?;
        let is_positive = level.labels.lt(classes as i64)?.to_dtype(DType::F64)?;
        let sides = anchors(&level.boxes)?.reshape((batch, count, 4, bins))?;
        let points = (level.points.broadcast_as((batch, count, 2))? / level.stride)?;
        let distances = integral(&sides)?;
        let corners = |of: &Tensor, sign: f64| &points + (of * sign)?;
        let boxes = Tensor::cat(
            &[corners(&distances.narrow(2, 0, 2)?, -1.0)?, corners(&distances.narrow(2, 2, 2)?, 1.0)?],
            2,
        )?;
        // Any box with a width will do where there is no positive.
        let targets = (&level.targets / level.stride)?;
        let counts = is_positive.unsqueeze(2)?.broadcast_as(boxes.shape())?.ne(0.0)?;
        let targets = counts.where_cond(&targets, &boxes.detach())?;
        let [iou, giou] = iou(&boxes, &targets)?;
        let quality = iou.detach().clamp(0.0, 1.0)?;
        let score = (cls.neg()?.exp()? + 1.0)?.recip()?.max(2)?.detach();
        let weight = (score * &is_positive)?;
        let y = self::targets(&level.labels, &quality, classes)?;
        let of_sides = [(points.clone() - targets.narrow(2, 0, 2)?)?, (targets.narrow(2, 2, 2)? - &points)?];
        let of_sides = dfl(&sides, &Tensor::cat(&of_sides, 2)?, 0.1)?.sum(2)?;
        positives += is_positive.sum_all()?.to_scalar::<f64>()?;
        weights += weight.sum_all()?.to_scalar::<f64>()?;
        sums.push([
            qfl(&cls, &y, 2.0)?.sum_all()?,
            ((1.0 - giou)? * &weight)?.sum_all()?,
            (of_sides * &weight)?.sum_all()?,
        ]);
    }
    let [n, w]: [f64; 2] = [positives, weights].map(|sum| sum.max(1.0));
    let losses = sums.iter().map(|[cls, bbox, dfl]| {
        Tensor::stack(&[(cls / n)?, (bbox * (2.0 / w))?, (dfl * (0.25 / (4.0 * w)))?], 0)
    });
    Tensor::stack(&losses.collect::<Result<Vec<_>>>()?, 0)
}
