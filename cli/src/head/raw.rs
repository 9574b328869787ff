//! Class and box logits of a level, or of all levels, as channels of one tensor: those of boxes first.

use std::ops::Range;

use super::args::LevelArgs;
use super::options;
use super::scene::Tensor;
use crate::assign::positions_of;
use crate::case::Case;
use crate::error::Result;
use crate::file::{Input, Output, Tensors};
use crate::floats::{Float, Floats, with_floats};
use crate::words::count;

/// The outputs of all levels, which were one after another in one tensor.
pub struct Outputs {
    levels: Vec<([usize; 2], Tensor)>,
}

impl Outputs {
    /// `None`: there is no such tensor.
    pub fn read(input: &Input, tensors: &Tensors, args: &LevelArgs, case: &Case) -> Result<Option<Outputs>> {
        if !tensors.has("raw") {
            return Ok(None);
        }
        let (shape, numbers) = tensors.floats("raw")?;
        let [batch, channels, positions] = *shape else {
            let reason = format!("raw has the shape {shape:?}; it must be [B, 4K + C, A]");
            return Err(input.head(reason));
        };
        let strides = case.strides(input, &args.strides, None)?;
        let Some(image @ [height, width]) = args.image_size.or(case.image_hw) else {
            let reason = "raw has the positions of all levels one after another, so give --image-size";
            return Err(input.head(reason));
        };
        let sizes: Vec<[usize; 2]> = strides.iter().map(|&stride| positions_of(image, stride)).collect();
        let needed = sizes
            .iter()
            .fold(0usize, |sum, [rows, columns]| sum.saturating_add(rows.saturating_mul(*columns)));
        if needed != positions {
            let of_levels: Vec<String> =
                sizes.iter().map(|[rows, columns]| format!("{rows}x{columns}")).collect();
            let strides: Vec<String> = strides.iter().map(f64::to_string).collect();
            return Err(input.head(format!(
                "raw has {}; images of {height}x{width} pixels have {} = {needed} at strides {}",
                count(positions, "position", "positions"),
                of_levels.join(" + "),
                strides.join(", ")
            )));
        }
        let (mut levels, mut first) = (Vec::new(), 0);
        for size @ [rows, columns] in sizes {
            let count = rows * columns;
            let numbers = with_floats!(&numbers, numbers => {
                Float::floats(part(numbers, positions, first..first + count))
            });
            levels.push((size, Tensor { shape: vec![batch, channels, count], numbers }));
            first += count;
        }
        Ok(Some(Outputs { levels }))
    }

    pub fn levels(&self) -> usize {
        self.levels.len()
    }

    /// Rows and columns of a level, and its part of the tensor.
    pub fn level(&self, level: usize) -> ([usize; 2], Tensor) {
        self.levels[level].clone()
    }
}

/// How many channels are those of boxes.
pub fn box_channels(
    input: &Input,
    name: &str,
    channels: usize,
    args: &LevelArgs,
    case: &Case,
) -> Result<usize> {
    let bins = options::bins_of(channels, args, case);
    match bins.checked_mul(4) {
        Some(of_boxes) if of_boxes < channels => Ok(of_boxes),
        _ => Err(input.head(format!(
            "{name} has {}, and 4 x {bins} of boxes leave none for classes; give --reg-max or --classes",
            count(channels, "channel", "channels")
        ))),
    }
}

/// Adds the gradients of levels, in a tensor for each as the outputs were, or in one for all.
pub fn add_gradients(output: &mut Output, levels: &[Tensor], whole: bool) {
    if whole {
        let Tensor { shape, numbers } = join(levels);
        return output.add("grad_raw".to_owned(), &shape, &numbers);
    }
    for (i, Tensor { shape, numbers }) in levels.iter().enumerate() {
        output.add(format!("level{i}.grad_raw"), shape, numbers);
    }
}

/// Levels one after another in one tensor again.
fn join(levels: &[Tensor]) -> Tensor {
    let [batch, channels] = [0, 1].map(|axis| levels[0].shape[axis]);
    let numbers = with_floats!(&levels[0].numbers, like => Float::floats(rows(like, levels)));
    let positions = levels.iter().map(|level| level.shape[2]).sum();
    Tensor { shape: vec![batch, channels, positions], numbers }
}

/// Some channels of every image.
pub fn channels(numbers: &Floats, batch: usize, channels: usize, range: Range<usize>) -> Floats {
    let positions = numbers.len() / (batch * channels).max(1);
    let range = range.start * positions..range.end * positions;
    with_floats!(numbers, numbers => Float::floats(part(numbers, channels * positions, range)))
}

/// Row after row, each with all levels; `_` tells the type.
fn rows<T: Float>(_: &[T], levels: &[Tensor]) -> Vec<T> {
    let [batch, channels] = [0, 1].map(|axis| levels[0].shape[axis]);
    let of_level = |row: usize, level| {
        let Tensor { shape, numbers }: &Tensor = level;
        T::of(numbers)[row * shape[2]..(row + 1) * shape[2]].to_vec()
    };
    (0..batch * channels).flat_map(|row| levels.iter().flat_map(move |level| of_level(row, level))).collect()
}

/// The same part of every row.
fn part<T: Float>(numbers: &[T], row: usize, range: Range<usize>) -> Vec<T> {
    numbers.chunks_exact(row.max(1)).flat_map(|row| &row[range.clone()]).copied().collect()
}
