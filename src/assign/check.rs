//! The one place where a call is checked, whatever memory it is in.

use super::math::grid_point;
use super::{AnchorGrid, Anchors, GroundTruth, LevelTargets, MAX_LEVELS};
use crate::element::Label;
use crate::error::{Error, Result, check_option};
use crate::memory::Memory;

/// A level, whatever memory it is in.
#[derive(Clone, Copy)]
pub(super) struct Level {
    /// `None`: explicit boxes, in one row.
    pub grid: Option<AnchorGrid>,
    pub height: usize,
    /// In positions.
    pub width: usize,
    /// Anchors at a position.
    pub each: usize,
    /// How many anchors all levels before have together, in one image.
    pub first: usize,
}

impl Level {
    pub fn anchors(&self) -> usize {
        self.height * self.width * self.each
    }

    /// The row, and the place in it.
    pub fn place(&self, number: usize) -> [usize; 2] {
        let row = self.width * self.each;
        [number / row, number % row]
    }

    /// The point of an anchor on a grid.
    pub fn point(&self, grid: &AnchorGrid, number: usize) -> [f32; 2] {
        let [y, x] = self.place(number);
        grid_point(grid, y, x / self.each)
    }
}

const NUMBER: &str = "at most 2147483647";

fn boxes(tensor: &'static str, actual: usize, boxes: usize, each: usize) -> Result<()> {
    let expected = boxes.checked_mul(each).ok_or(Error::TooManyBoxes { boxes })?;
    if actual == expected { Ok(()) } else { Err(Error::BoxLength { tensor, actual, boxes, expected }) }
}

fn at_most_i32(option: &'static str, count: usize) -> Result<()> {
    check_option(option, count as f64, NUMBER, count <= i32::MAX as usize)
}

/// The levels of a call, of which everything fits.
pub(super) fn check<M: Memory, L: Label>(
    anchors: &[Anchors<'_, M>],
    gt: &GroundTruth<'_, M, L>,
    images: usize,
    classes: usize,
    targets: &[LevelTargets<'_, M, L>],
) -> Result<Vec<Level>> {
    let count = anchors.len();
    check_option("the number of levels", count as f64, "from 1 to 8", (1..=MAX_LEVELS).contains(&count))?;
    if targets.len() != count {
        return Err(Error::Levels { anchors: count, targets: targets.len() });
    }
    truth(gt, images)?;
    at_most_i32("the number of images", images)?;
    at_most_i32("the number of classes", classes)?;
    let (mut checked, mut first) = (Vec::with_capacity(count), 0usize);
    for (anchors, targets) in anchors.iter().zip(targets) {
        let level = level(anchors, first)?;
        let number = level.height.saturating_mul(level.width).saturating_mul(level.each);
        let all = images.saturating_mul(number);
        boxes("labels", M::len_mut(&targets.labels), all, 1)?;
        boxes("box targets", M::len_mut(&targets.box_targets), all, 4)?;
        for (tensor, optional) in [
            ("label weights", &targets.label_weights),
            ("box weights", &targets.box_weights),
            ("centerness", &targets.centerness),
        ] {
            optional.as_ref().map_or(Ok(()), |to| boxes(tensor, M::len_mut(to), all, 1))?;
        }
        checked.push(level);
        first = first.saturating_add(number);
        at_most_i32("the number of anchors", first)?;
    }
    Ok(checked)
}

fn truth<M: Memory, L: Label>(gt: &GroundTruth<'_, M, L>, images: usize) -> Result<()> {
    let count = M::len(&gt.labels);
    boxes("gt boxes", M::len(&gt.boxes), count, 4)?;
    boxes("gt image", M::len(&gt.image), count, 1)?;
    if let Some(weights) = &gt.weights {
        boxes("gt weights", M::len(weights), count, 1)?;
    }
    let mut ignored = 0;
    if let Some((corners, image)) = &gt.ignore {
        ignored = M::len(image);
        boxes("ignore boxes", M::len(corners), ignored, 4)?;
    }
    at_most_i32("the number of boxes", count.saturating_add(ignored))?;
    if let Some(valid_hw) = &gt.valid_hw {
        let (actual, expected) = (M::len(valid_hw), images.saturating_mul(2));
        if actual != expected {
            return Err(Error::ImageLength { tensor: "valid_hw", actual, images, expected });
        }
    }
    Ok(())
}

fn level<M: Memory>(anchors: &Anchors<'_, M>, first: usize) -> Result<Level> {
    match anchors {
        Anchors::Grid(grid) => {
            let positive = "a number above 0";
            check_option("stride", grid.stride.into(), positive, grid.stride > 0.0)?;
            for &side in grid.sizes().as_flattened() {
                check_option("the anchors' size", side.into(), positive, side > 0.0)?;
            }
            check_option("offset", grid.offset.into(), "a finite number", true)?;
            let (height, width) = (grid.height, grid.width);
            Ok(Level { grid: Some(*grid), height, width, each: grid.count, first })
        }
        Anchors::Boxes(corners) => {
            let length = M::len(corners);
            boxes("anchors", length, length / 4, 4)?;
            Ok(Level { grid: None, height: 1, width: length / 4, each: 1, first })
        }
    }
}
