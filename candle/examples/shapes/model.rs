//! A small detector in the manner of the paper's: backbone, pyramid, one tower for all levels, and its outputs.

use std::collections::HashMap;

use candle_core::{DType, Device, Result, Tensor, Var, bail};

use super::nn::{conv, norm_relu, upsample};
use super::rng::Rng;
use super::scenes::{CLASSES, SIZE};

/// Pixels from one position to the next, level by level.
pub const STRIDES: [usize; 3] = [4, 8, 16];
/// Channels of the pyramid.
const PYRAMID: usize = 32;
const TOWER: usize = 64;
/// Every score is 0.01 at first.
const SCORE_BIAS: f32 = -4.6;

/// Positions of a side of a level.
pub fn width(level: usize) -> usize {
    SIZE / STRIDES[level]
}

/// What the network says on a level, `[B, C, H, W]` each, in memory channels last.
pub struct Outputs {
    pub cls: Tensor,
    pub boxes: Tensor,
    /// How well the box fits, in heads that say it apart from the class.
    pub quality: Option<Tensor>,
}

impl Outputs {
    /// The same numbers where a network ends and no gradient goes on, in the same places in memory.
    pub fn leaves(&self) -> Result<Outputs> {
        let leaf = |of: &Tensor| Var::from_tensor(&of.permute((0, 2, 3, 1))?.detach())?.permute((0, 3, 1, 2));
        let quality = self.quality.as_ref().map(leaf).transpose()?;
        Ok(Outputs { cls: leaf(&self.cls)?, boxes: leaf(&self.boxes)?, quality })
    }
}

/// A convolution with group norm and ReLU.
struct Block {
    weight: Var,
    scale: Var,
    shift: Var,
    size: usize,
    stride: usize,
}

impl Block {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        norm_relu(&conv(x, &self.weight, self.size, self.stride)?, &self.scale, &self.shift)
    }
}

/// A 1 × 1 convolution with a bias.
struct Output {
    weight: Var,
    bias: Var,
}

impl Output {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        conv(x, &self.weight, 1, 1)?.broadcast_add(&self.bias)?.permute((0, 3, 1, 2))
    }
}

pub struct Model {
    /// In the order in which they were made.
    vars: Vec<(String, Var)>,
    stem: Vec<Block>,
    /// To strides 8 and 16.
    deeper: [Vec<Block>; 2],
    lateral: Vec<Block>,
    tower: Vec<Block>,
    cls: Output,
    boxes: Output,
    quality: Option<Output>,
}

/// Makes variables from a stream of random numbers.
struct Maker {
    rng: Rng,
    vars: Vec<(String, Var)>,
}

impl Maker {
    fn var(&mut self, name: String, data: Vec<f32>, shape: &[usize]) -> Result<Var> {
        let var = Var::from_vec(data, shape, &Device::Cpu)?;
        self.vars.push((name, var.clone()));
        Ok(var)
    }

    fn weight(&mut self, name: &str, rows: usize, columns: usize, deviation: f32) -> Result<Var> {
        let data = (0..rows * columns).map(|_| deviation * self.rng.normal()).collect();
        self.var(format!("{name}.weight"), data, &[rows, columns])
    }

    fn block(&mut self, name: &str, size: usize, from: usize, to: usize, stride: usize) -> Result<Block> {
        let inputs = size * size * from;
        Ok(Block {
            weight: self.weight(name, inputs, to, (2.0 / inputs as f32).sqrt())?,
            scale: self.var(format!("{name}.scale"), vec![1.0; to], &[to])?,
            shift: self.var(format!("{name}.shift"), vec![0.0; to], &[to])?,
            size,
            stride,
        })
    }

    /// Blocks of 3 × 3: channels of the result, and stride.
    fn chain(&mut self, name: &str, mut from: usize, blocks: &[(usize, usize)]) -> Result<Vec<Block>> {
        let mut chain = Vec::new();
        for (number, &(to, stride)) in blocks.iter().enumerate() {
            chain.push(self.block(&format!("{name}.{number}"), 3, from, to, stride)?);
            from = to;
        }
        Ok(chain)
    }

    fn output(&mut self, name: &str, to: usize, bias: f32) -> Result<Output> {
        let weight = self.weight(name, TOWER, to, 0.01)?;
        Ok(Output { weight, bias: self.var(format!("{name}.bias"), vec![bias; to], &[to])? })
    }
}

fn through(blocks: &[Block], x: &Tensor) -> Result<Tensor> {
    blocks.iter().try_fold(x.clone(), |x, block| block.forward(&x))
}

impl Model {
    /// A network that has learnt nothing. Those of a seed are alike, up to their outputs.
    pub fn new(seed: u64, box_channels: usize, has_quality: bool) -> Result<Model> {
        let mut make = Maker { rng: Rng::new(seed), vars: Vec::new() };
        let stem = make.chain("stem", 3, &[(16, 2), (32, 2), (32, 1)])?;
        let deeper = [
            make.chain("deeper.0", 32, &[(48, 2), (48, 1)])?,
            make.chain("deeper.1", 48, &[(64, 2), (64, 1)])?,
        ];
        let mut lateral = Vec::new();
        for (level, channels) in [32, 48, 64].into_iter().enumerate() {
            lateral.push(make.block(&format!("lateral.{level}"), 1, channels, PYRAMID, 1)?);
        }
        let tower = make.chain("tower", PYRAMID, &[(PYRAMID, 1), (TOWER, 1)])?;
        let cls = make.output("cls", CLASSES, SCORE_BIAS)?;
        let boxes = make.output("boxes", box_channels, 0.0)?;
        let quality = if has_quality { Some(make.output("quality", 1, 0.0)?) } else { None };
        Ok(Model { vars: make.vars, stem, deeper, lateral, tower, cls, boxes, quality })
    }

    /// Of images `[B, SIZE, SIZE, 3]`.
    pub fn forward(&self, images: &Tensor) -> Result<Vec<Outputs>> {
        let fine = through(&self.stem, images)?;
        let middle = through(&self.deeper[0], &fine)?;
        let coarse = through(&self.deeper[1], &middle)?;
        let coarse = self.lateral[2].forward(&coarse)?;
        let middle = (self.lateral[1].forward(&middle)? + upsample(&coarse)?)?;
        let fine = (self.lateral[0].forward(&fine)? + upsample(&middle)?)?;
        let of_level = |x| {
            let x = through(&self.tower, &x)?;
            let quality = self.quality.as_ref().map(|output| output.forward(&x)).transpose()?;
            Ok(Outputs { cls: self.cls.forward(&x)?, boxes: self.boxes.forward(&x)?, quality })
        };
        [fine, middle, coarse].into_iter().map(of_level).collect()
    }

    /// Those that decay, which are matrices, and those that do not.
    pub fn parameters(&self) -> [Vec<Var>; 2] {
        let of_rank = |matrices: bool| {
            let of = self.vars.iter().filter(|(_, var)| (var.rank() > 1) == matrices);
            of.map(|(_, var)| var.clone()).collect()
        };
        [of_rank(true), of_rank(false)]
    }

    pub fn tensors(&self) -> HashMap<String, Tensor> {
        self.vars.iter().map(|(name, var)| (name.clone(), var.as_tensor().clone())).collect()
    }

    /// Takes what [`tensors`](Self::tensors) gave.
    pub fn load(&self, tensors: &HashMap<String, Tensor>) -> Result<()> {
        for (name, var) in &self.vars {
            match tensors.get(name) {
                Some(tensor) if tensor.shape() == var.shape() && tensor.dtype() == DType::F32 => {
                    var.set(tensor)?
                }
                Some(tensor) => bail!(
                    "{name} is {:?} of {:?}, where the network has {:?} of F32",
                    tensor.shape(),
                    tensor.dtype(),
                    var.shape()
                ),
                None => bail!("there is no {name}"),
            }
        }
        Ok(())
    }
}
