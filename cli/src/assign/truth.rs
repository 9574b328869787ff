//! The ground truth of a file.

use crate::error::Result;
use crate::file::{Input, Tensors};
use crate::inputs::Labels;
use crate::words::count;

/// The boxes of all images.
pub struct Truth {
    /// `[G, 4]`.
    pub boxes: Vec<f32>,
    pub labels: Vec<i64>,
    pub images: Vec<i64>,
    /// `[G]`.
    pub weights: Option<Vec<f32>>,
    pub ignore: Option<Ignore>,
    /// `[B, 2]`, height and width in pixels.
    pub valid_hw: Option<Vec<i64>>,
}

/// Regions in which anchors take no part.
pub struct Ignore {
    /// `[I, 4]`.
    pub boxes: Vec<f32>,
    pub images: Vec<i64>,
}

impl Truth {
    /// `image`: the size of all images together, if it is known.
    pub fn read(
        input: &Input,
        tensors: &Tensors,
        ignores: bool,
        batch: usize,
        image: Option<[usize; 2]>,
    ) -> Result<Truth> {
        let reader = Reader { input, tensors };
        let (count, boxes) = reader.boxes("gt_boxes")?;
        let integers = |name: &str| reader.integers(name, "gt_boxes needs", &[count]);
        let (labels, images) = (integers("gt_labels")?, integers("gt_image")?);
        let weights =
            if tensors.has("gt_weights") { Some(reader.floats("gt_weights", &[count])?) } else { None };
        // What an option turns on is not read without it, which a note then tells.
        let ignore = if ignores {
            let (count, boxes) = reader.boxes("gt_ignore_boxes")?;
            Some(Ignore {
                boxes,
                images: reader.integers("gt_ignore_image", "gt_ignore_boxes needs", &[count])?,
            })
        } else {
            None
        };
        let valid_hw = if tensors.has("valid_hw") { Some(reader.valid_hw(batch, image)?) } else { None };
        Ok(Truth { boxes, labels, images, weights, ignore, valid_hw })
    }

    /// How many boxes there are.
    pub fn len(&self) -> usize {
        self.labels.len()
    }
}

struct Reader<'a> {
    input: &'a Input,
    tensors: &'a Tensors<'a>,
}

impl Reader<'_> {
    /// `[G, 4]`, and G.
    fn boxes(&self, name: &str) -> Result<(usize, Vec<f32>)> {
        match self.tensors.floats(name)? {
            (shape, boxes) if matches!(*shape, [_, 4]) => Ok((shape[0], boxes.into_f32())),
            (shape, _) => {
                Err(self.input.head(format!("{name} has the shape {shape:?}; it must be [boxes, 4]")))
            }
        }
    }

    /// `needs`: in words, what asks for that shape.
    fn integers(&self, name: &str, needs: &str, expected: &[usize]) -> Result<Vec<i64>> {
        let (shape, labels) = self.tensors.labels(name)?;
        self.check(name, needs, shape, expected)?;
        Ok(match labels {
            Labels::I64(labels) => labels,
            Labels::I32(labels) => labels.into_iter().map(i64::from).collect(),
        })
    }

    fn floats(&self, name: &str, expected: &[usize]) -> Result<Vec<f32>> {
        let (shape, numbers) = self.tensors.floats(name)?;
        self.check(name, "gt_boxes needs", shape, expected)?;
        Ok(numbers.into_f32())
    }

    fn valid_hw(&self, batch: usize, image: Option<[usize; 2]>) -> Result<Vec<i64>> {
        let sizes = self.integers("valid_hw", &count(batch, "image needs", "images need"), &[batch, 2])?;
        for (i, &[height, width]) in sizes.as_chunks::<2>().0.iter().enumerate() {
            if height < 0 || width < 0 {
                let reason = "it must be a height and a width in pixels";
                return Err(self.input.head(format!("valid_hw of image {i} is {height}x{width}; {reason}")));
            }
            if let Some([rows, columns]) = image
                && (height as u64 > rows as u64 || width as u64 > columns as u64)
            {
                return Err(self.input.head(format!(
                    "valid_hw of image {i} is {height}x{width} pixels, and the images have {rows}x{columns}"
                )));
            }
        }
        Ok(sizes)
    }

    fn check(&self, name: &str, needs: &str, found: Vec<usize>, expected: &[usize]) -> Result<()> {
        if found == expected {
            return Ok(());
        }
        Err(self.input.head(format!("{name} has the shape {found:?}; {needs} {expected:?}")))
    }
}
