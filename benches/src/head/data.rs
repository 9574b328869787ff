//! Random outputs of a head and what they are to become, the same in every run.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::pyramid::{BINS, LevelSize, Pyramid, SIDES, positives};
use crate::op::Size;
use crate::random::{PRIOR, SEED, Stored, normals};

/// In strides: how far the sides of an object are from its centre.
const EXTENT: std::ops::Range<f64> = 2.0..8.0;

/// The tensors of a case.
pub struct Inputs<T> {
    pub images: usize,
    pub classes: usize,
    pub levels: Vec<LevelInputs<T>>,
    /// So large that 16-bit gradients do not underflow, as the loss scale of mixed precision is.
    pub grad_scale: f64,
}

/// Those of a level, each `[images, ...]`.
pub struct LevelInputs<T> {
    pub size: LevelSize,
    pub cls: Vec<T>,
    pub boxes: Vec<T>,
    pub labels: Vec<i64>,
    pub label_weights: Vec<f32>,
    /// In pixels.
    pub targets: Vec<f32>,
}

impl<T: Stored> Inputs<T> {
    pub fn random(Size { rows, columns: classes }: Size) -> Inputs<T> {
        let pyramid = Pyramid::of(rows);
        let mut rng = StdRng::seed_from_u64(SEED);
        let level = |&size| LevelInputs::random(&mut rng, size, pyramid.images, classes);
        Inputs {
            images: pyramid.images,
            classes,
            levels: pyramid.levels.iter().map(level).collect(),
            grad_scale: 1024.0 * pyramid.positives().next_power_of_two() as f64,
        }
    }
}

impl<T: Stored> LevelInputs<T> {
    fn random(rng: &mut StdRng, size: LevelSize, images: usize, classes: usize) -> LevelInputs<T> {
        let anchors = images * size.positions();
        let cls = normals(rng, PRIOR, anchors * classes);
        let boxes = normals(rng, 0.0, anchors * SIDES * BINS);
        let label_weights = vec![1.0; anchors];
        let background = classes as i64;
        let (mut labels, mut targets) = (vec![background; anchors], vec![0.0; 4 * anchors]);
        let mut left = positives(anchors);
        while left > 0 {
            // Positives stand together: those at most a step from an object's centre are its own.
            let (image, class) = (rng.random_range(0..images), rng.random_range(0..classes) as i64);
            let (y, x) = (rng.random_range(0..size.height), rng.random_range(0..size.width));
            let [left_side, top, right, bottom] = [(); 4].map(|()| rng.random_range(EXTENT));
            let (cy, cx) = (y as f64, x as f64);
            let object = [cx - left_side, cy - top, cx + right, cy + bottom];
            for y in y.saturating_sub(1)..(y + 2).min(size.height) {
                for x in x.saturating_sub(1)..(x + 2).min(size.width) {
                    let anchor = (image * size.height + y) * size.width + x;
                    if left > 0 && labels[anchor] == background {
                        labels[anchor] = class;
                        targets[4 * anchor..4 * anchor + 4]
                            .copy_from_slice(&object.map(|side| (side * size.stride) as f32));
                        left -= 1;
                    }
                }
            }
        }
        LevelInputs { size, cls, boxes, labels, label_weights, targets }
    }

    /// The logits of an anchor, of which `tensor` has so many channels.
    pub fn channels(&self, tensor: &[T], anchor: usize, channels: usize) -> Vec<f64> {
        let positions = self.size.positions();
        let (image, position) = (anchor / positions, anchor % positions);
        (0..channels)
            .map(|channel| tensor[(image * channels + channel) * positions + position].to_f64())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positives_are_few_and_stand_together() {
        let size = Size { rows: 44_600, columns: 3 };
        let inputs = Inputs::<f32>::random(size);
        assert_eq!(inputs.images, 2);
        for level in &inputs.levels {
            let found: Vec<usize> = (0..level.labels.len()).filter(|&i| level.labels[i] != 3).collect();
            assert_eq!(found.len(), positives(level.labels.len()));
            let beside = found.windows(2).filter(|pair| pair[1] - pair[0] == 1).count();
            assert!(2 * beside >= found.len() / 2, "{beside} of {found:?}");
        }
        let cls: Vec<f32> = inputs.levels.iter().flat_map(|level| level.cls.clone()).collect();
        let mean = cls.iter().sum::<f32>() / cls.len() as f32;
        assert!((mean + 4.6).abs() < 0.02, "{mean}");
        assert_eq!(inputs.levels[4].targets, Inputs::<f32>::random(size).levels[4].targets);
    }
}
