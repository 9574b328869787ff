//! A small pyramid with its targets.

use candle_core::{DType, Result, Tensor};
use gfocal_candle::{AnchorGrid, Atss, GroundTruth, HeadLevel, Points, Targets, assign};

use super::Random;
use super::reference;

pub const BATCH: usize = 2;
pub const CLASSES: usize = 5;
pub const BINS: usize = 8;

/// Height, width and stride of each level.
pub const SIZES: [(usize, usize, f64); 2] = [(8, 10, 8.0), (4, 5, 16.0)];

pub struct Pyramid {
    /// Class and box logits of each level, f64, `[B, C, H, W]`.
    pub logits: Vec<[Tensor; 2]>,
    pub targets: Vec<Targets>,
}

impl Pyramid {
    pub fn new(seed: u64) -> Result<Self> {
        let mut random = Random::new(seed);
        let mut logits = |channels, low, high| {
            SIZES.map(|(height, width, _)| random.floats(&[BATCH, channels, height, width], low, high))
        };
        let (cls, boxes) = (logits(CLASSES, -4.0, 1.0), logits(4 * BINS, -2.0, 2.0));
        Ok(Pyramid {
            logits: cls.into_iter().zip(boxes).map(|(cls, boxes)| [cls, boxes]).collect(),
            targets: assigned()?,
        })
    }

    /// All logits, with a type for those of the classes and one for those of the boxes.
    pub fn leaves(&self, [cls, boxes]: [DType; 2]) -> Vec<(Tensor, DType)> {
        let both = |[of_cls, of_boxes]: &[Tensor; 2]| [(of_cls.clone(), cls), (of_boxes.clone(), boxes)];
        self.logits.iter().flat_map(both).collect()
    }

    /// Levels of such logits.
    pub fn levels(&self, logits: &[Tensor]) -> Vec<HeadLevel> {
        let level = |i: usize| HeadLevel {
            cls: logits[2 * i].clone(),
            boxes: logits[2 * i + 1].clone(),
            stride: SIZES[i].2,
            points: Points::Grid { offset: 0.5 },
            targets: self.targets[i].clone(),
        };
        (0..logits.len() / 2).map(level).collect()
    }

    /// The same for the plain formula.
    pub fn plain(&self, logits: &[Tensor]) -> Result<Vec<reference::Level>> {
        let level = |i: usize| {
            let (height, width, stride) = SIZES[i];
            Ok(reference::Level {
                cls: logits[2 * i].clone(),
                boxes: logits[2 * i + 1].clone(),
                stride,
                points: reference::grid(height, width, stride, 0.5)?,
                labels: self.targets[i].labels.clone(),
                targets: self.targets[i].boxes.to_dtype(DType::F64)?,
            })
        };
        (0..logits.len() / 2).map(level).collect()
    }
}

pub fn grids() -> Vec<AnchorGrid> {
    let grid = |(height, width, stride): (usize, usize, f64)| {
        AnchorGrid::new(height, width, stride as f32).with_scale(4.0).with_offset(0.5)
    };
    SIZES.map(grid).to_vec()
}

/// Four boxes in two images.
pub fn truth() -> Result<GroundTruth> {
    let device = &candle_core::Device::Cpu;
    let boxes = [[3f32, 5., 30., 34.], [28., 20., 60., 50.], [10., 8., 50., 40.], [4., 2., 78., 62.]];
    let (labels, image) = (Tensor::new(&[0i64, 3, 4, 1], device)?, Tensor::new(&[0i64, 0, 1, 1], device)?);
    Ok(GroundTruth::new(Tensor::new(&boxes, device)?, labels, image))
}

fn assigned() -> Result<Vec<Targets>> {
    Ok(assign(Atss::default(), &grids(), &truth()?, BATCH, CLASSES)?.levels)
}
