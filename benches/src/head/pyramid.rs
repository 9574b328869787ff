//! The levels of the pyramid that a number of anchors makes, and the bytes of a step on them.

use crate::op::{Pass, Size};

/// Sides of a box, each a distribution over bins.
pub const SIDES: usize = 4;
pub const BINS: usize = 17;

/// Anchors of an image of COCO, of 800x1333 pixels.
pub const COCO_ANCHORS: usize = 22_300;
/// Height and width of its levels.
const COCO: [[usize; 2]; LEVELS] = [[100, 167], [50, 84], [25, 42], [13, 21], [7, 11]];
const LEVELS: usize = 5;
/// Pixels from one position of a level to the next.
const STRIDES: [f64; LEVELS] = [8.0, 16.0, 32.0, 64.0, 128.0];
/// Of this many anchors, the coarser levels have 64, 16, 4 and 1.
const SHARES: usize = 341;

/// Images, and the sizes of their levels. Its twin is `pyramid` in benches/peers/head.py.
#[derive(Clone, Debug, PartialEq)]
pub struct Pyramid {
    pub images: usize,
    pub levels: Vec<LevelSize>,
}

/// A level of each image.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LevelSize {
    pub height: usize,
    pub width: usize,
    pub stride: f64,
}

impl Pyramid {
    /// As many images of COCO as have so many anchors in all; where no whole number of them has, one image
    /// with a quarter as many anchors in each level as in the one before.
    pub fn of(anchors: usize) -> Pyramid {
        if anchors.is_multiple_of(COCO_ANCHORS) {
            let level = |([height, width], stride): ([usize; 2], f64)| LevelSize { height, width, stride };
            let levels = COCO.into_iter().zip(STRIDES).map(level).collect();
            return Pyramid { images: anchors / COCO_ANCHORS, levels };
        }
        let share = |parts| anchors / SHARES * parts + anchors % SHARES * parts / SHARES;
        let coarser = [64, 16, 4, 1].map(share);
        let finest = anchors - coarser.iter().sum::<usize>();
        let sizes = std::iter::once(finest).chain(coarser).zip(STRIDES);
        let levels = sizes.filter(|&(positions, _)| positions > 0);
        Pyramid { images: 1, levels: levels.map(|(positions, stride)| compact(positions, stride)).collect() }
    }

    /// Anchors that are to become an object, in each level of all images.
    pub fn positives(&self) -> usize {
        self.levels.iter().map(|level| positives(self.images * level.positions())).sum()
    }
}

impl LevelSize {
    pub fn positions(&self) -> usize {
        self.height * self.width
    }
}

/// Of so many anchors of a level: every 200th, and one at least.
pub fn positives(anchors: usize) -> usize {
    ((anchors + 100) / 200).max(1)
}

/// So many positions, as near to a square as whole numbers allow.
fn compact(positions: usize, stride: f64) -> LevelSize {
    let divides = |height: &usize| positions.is_multiple_of(*height);
    let height = (1..=positions.isqrt()).rev().find(divides).unwrap_or(1);
    LevelSize { height, width: positions / height, stride }
}

/// The bytes that a pass must move: class logits, 8 of label and 4 of weight of each anchor, box logits and
/// target box of each positive; and both gradients. Its twin is `least_bytes` in benches/peers/head.py.
pub fn bytes(Size { rows, columns }: Size, element: usize, pass: Pass) -> usize {
    let sides = SIDES * BINS * element;
    let read = rows * (columns * element + 8 + 4) + Pyramid::of(rows).positives() * (sides + 16);
    let written = if pass == Pass::Forward { 0 } else { rows * (columns * element + sides) };
    read + written
}

/// What the largest pass takes for an anchor: both tensors and their gradients, labels, weights and targets,
/// and the workspace.
pub fn memory_of_anchor(columns: usize, element: usize) -> u128 {
    (columns as u128 + (SIDES * BINS) as u128) * 2 * element as u128 + (8 + 4 + 16) + 32
}

#[cfg(test)]
mod tests {
    use gfocal::HeadLoss;

    use super::*;

    fn anchors(pyramid: &Pyramid) -> usize {
        pyramid.images * pyramid.levels.iter().map(LevelSize::positions).sum::<usize>()
    }

    #[test]
    fn every_number_of_anchors_has_its_pyramid() {
        for rows in (1..2000).chain([8_525, 22_299, 22_300, 22_301, 356_800, 1_000_003]) {
            let pyramid = Pyramid::of(rows);
            assert_eq!(anchors(&pyramid), rows);
            assert!(pyramid.levels.iter().all(|level| level.positions() > 0), "{pyramid:?}");
            assert!((pyramid.levels.len()..=rows).contains(&pyramid.positives()), "{pyramid:?}");
        }
    }

    #[test]
    fn images_of_coco_and_of_640x640() {
        let coco = Pyramid::of(4 * COCO_ANCHORS);
        assert_eq!((coco.images, coco.levels.len()), (4, 5));
        // ceil(800 / stride) x ceil(1333 / stride), or as convolutions of stride 2 round it.
        for (level, stride) in coco.levels.iter().zip(STRIDES) {
            assert_eq!(level.height, (800.0 / stride).ceil() as usize);
            assert_eq!(level.width, (1333.0 / stride).ceil() as usize);
        }
        let square = Pyramid::of(8_525);
        let sizes: Vec<_> = square.levels.iter().map(|level| [level.height, level.width]).collect();
        assert_eq!(sizes, [80, 40, 20, 10, 5].map(|side| [side, side]));
    }

    /// As head_bytes.py counts them for 16 images: "least possible".
    #[test]
    fn bytes_of_a_step_on_coco() {
        assert_eq!(HeadLoss::mmdetection().box_channels(), SIDES * BINS);
        let size = Size { rows: 16 * COCO_ANCHORS, columns: 80 };
        assert_eq!(bytes(size, 4, Pass::ForwardBackward), 330_196_992);
        let written = 16 * COCO_ANCHORS * (80 + 68) * 4;
        assert_eq!(bytes(size, 4, Pass::Forward), 330_196_992 - written);
        let all = 16 * COCO_ANCHORS as u128 * memory_of_anchor(80, 4);
        assert!(
            all > bytes(size, 4, Pass::ForwardBackward) as u128 + written as u128 / 3,
            "box logits are there"
        );
    }
}
