//! The loss of a detector's head, with mmdetection's options: a training step from the raw outputs of all levels.

mod calls;
mod data;
mod formula;
mod pyramid;
mod verify;

use gfocal::cuda::Handle;

pub use calls::{HeadCalls, HeadSet};
pub use data::Inputs;
pub use pyramid::COCO_ANCHORS;

use super::args::Size;
use super::case::{Case, Pass};
use super::data::Stored;
use super::workload::Workload;
use crate::error::Result;
use pyramid::Pyramid;

/// Sides of a box, each a distribution over bins.
const SIDES: usize = 4;
const BINS: usize = 17;

/// What a pass gives.
pub struct Outcome<T> {
    /// `[levels, 3]`: classification, box and distribution loss.
    pub losses: Vec<f32>,
    /// Of the class logits and of the box logits of each level.
    pub grads: Vec<[Vec<T>; 2]>,
}

impl<T: Stored> Workload for Inputs<T> {
    type Outcome = Outcome<T>;
    type Calls<'a>
        = HeadCalls<'a, T>
    where
        Self: 'a;
    type Set = HeadSet<T>;

    fn on_cpu(&self) -> HeadCalls<'_, T> {
        HeadCalls::new(self)
    }

    fn upload(&self, handle: &Handle) -> gfocal::Result<HeadSet<T>> {
        HeadSet::new(handle, self)
    }

    fn check(&self, case: &Case, run: impl FnMut(Pass) -> Result<Outcome<T>>) -> Result<()> {
        verify::check(case, self, run)
    }
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
