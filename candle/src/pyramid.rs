//! Levels of a pyramid: where their positions and their logits are.

use candle_core::{Error, Result, Shape, Tensor};
use gfocal::head::Layout;

use crate::tensor::{Tracked, beside, constant_like, numbers, same_device};

/// Where the anchor points of a level are.
#[derive(Clone, Debug)]
pub enum Points {
    /// On a grid: ((x + offset)·stride, (y + offset)·stride). 0 in mmdetection, 0.5 in Ultralytics.
    Grid {
        /// In units of the stride.
        offset: f64,
    },
    /// `[H·W, 2]` or `[B, H·W, 2]`: x and y in pixels.
    Explicit(Tensor),
}

/// Batch, channels, height and width of logits; `[B, C, A]` is one row.
pub(crate) fn axes(name: &str, logits: &Tensor, points: &Points) -> Result<[usize; 4]> {
    match *logits.dims() {
        [batch, channels, height, width] => Ok([batch, channels, height, width]),
        [batch, channels, anchors] if matches!(points, Points::Explicit(_)) => {
            Ok([batch, channels, 1, anchors])
        }
        [_, _, _] => {
            Err(Error::msg(format!("{name} has shape {:?}, without rows it needs points", logits.dims())))
        }
        ref actual => {
            Err(Error::msg(format!("{name} has shape {actual:?}, it must be [B, C, H, W] or [B, C, A]")))
        }
    }
}

/// Where the elements of logits are in their storage: any strides.
pub(crate) fn layout(logits: &Tensor) -> Layout {
    let of = logits.layout();
    let (dims, steps) = (of.dims(), of.stride());
    strided(dims, steps, of.start_offset())
}

/// Where those of a tensor of its own are.
pub(crate) fn contiguous(dims: &[usize]) -> Layout {
    strided(dims, candle_core::Layout::contiguous(dims).stride(), 0)
}

fn strided(dims: &[usize], steps: &[usize], offset: usize) -> Layout {
    let columns = dims.len() - 1;
    let row = if columns == 3 { steps[2] } else { 0 };
    Layout { offset, batch: steps[0], channel: steps[1], position: steps[columns], rows: None }
        .with_rows(dims[columns], row)
}

/// The order of elements without gaps in memory: that of a tensor's steps.
pub(crate) struct Dense {
    /// With a tensor's axes.
    pub layout: Layout,
    steps: Vec<usize>,
    /// The axes, those with the longest steps first, and their extents.
    order: Vec<usize>,
    extents: Vec<usize>,
}

impl Dense {
    pub fn like(logits: &Tensor) -> Self {
        let (dims, of_logits) = (logits.dims(), logits.stride());
        let mut order: Vec<usize> = (0..dims.len()).collect();
        order.sort_by_key(|&axis| std::cmp::Reverse(of_logits[axis]));
        let (mut steps, mut step) = (vec![0; dims.len()], 1);
        for &axis in order.iter().rev() {
            steps[axis] = step;
            step *= dims[axis];
        }
        let extents = order.iter().map(|&axis| dims[axis]).collect();
        Dense { layout: strided(dims, &steps, 0), steps, order, extents }
    }

    /// Logits without gaps: a copy of those that have some.
    pub fn of(logits: &Tensor) -> Result<(Tensor, Self)> {
        let dense = Dense::like(logits);
        let mut axes = logits.dims().iter().zip(logits.stride()).zip(&dense.steps);
        if axes.all(|((&extent, step), dense)| extent <= 1 || step == dense) {
            return Ok((logits.clone(), dense));
        }
        let logits = logits.contiguous()?;
        let dense = Dense::like(&logits);
        Ok((logits, dense))
    }

    /// In memory.
    pub fn shape(&self) -> Shape {
        self.extents.clone().into()
    }

    /// What has been written in this order, with the axes of the logits.
    pub fn like_logits(&self, gradient: Tensor) -> Result<Tensor> {
        let mut back = vec![0; self.order.len()];
        for (at, &axis) in self.order.iter().enumerate() {
            back[axis] = at;
        }
        gradient.permute(back)
    }
}

/// Whether a level's logits are of the channels that they must be of, and of the type, the device and the images that
/// the first level's are of.
pub(crate) fn check_level(
    (name, logits, channels): (&str, &Tensor, usize),
    (of_first, first): (&str, &Tensor),
) -> Result<()> {
    let (batch, actual) = (logits.dims()[0], logits.dims()[1]);
    if actual != channels {
        return Err(Error::msg(format!("{name} has {actual} channels, it must have {channels}")));
    }
    if batch != first.dims()[0] {
        let expected = first.dims()[0];
        return Err(Error::msg(format!("{name} has {batch} images, {of_first} {expected}")));
    }
    if logits.dtype() != first.dtype() {
        let (actual, expected) = (logits.dtype().as_str(), first.dtype().as_str());
        return Err(Error::msg(format!("{name} is {actual}, {of_first} {expected}")));
    }
    same_device(name, logits, (of_first, first))
}

impl Points {
    /// As calls take them, beside these logits of so many positions. `level`: whose they are.
    pub(crate) fn checked(
        &self,
        level: &str,
        (name, logits): (&str, &Tensor),
        [batch, _, height, width]: [usize; 4],
    ) -> Result<Points> {
        let Points::Explicit(points) = self else { return Ok(self.clone()) };
        let (name_of_points, positions) = (format!("{level}.points"), height * width);
        let shapes: [&[usize]; 2] = [&[positions, 2], &[batch, positions, 2]];
        let points = constant_like(&name_of_points, points, &shapes, (name, logits), Tracked::Refused)?;
        Ok(Points::Explicit(numbers(&name_of_points, &points, beside(logits.dtype()))?))
    }

    /// Those that have tensors.
    pub(crate) fn explicit(&self) -> Option<&Tensor> {
        match self {
            Points::Grid { .. } => None,
            Points::Explicit(points) => Some(points),
        }
    }

    pub(crate) fn offset(&self) -> f64 {
        match self {
            Points::Grid { offset } => *offset,
            Points::Explicit(_) => 0.0,
        }
    }
}
