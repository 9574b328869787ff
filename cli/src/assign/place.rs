//! Where the anchors of a level are.

use gfocal::assign::AnchorGrid;
use gfocal::head::Points;
use gfocal::{Element, Memory};

use crate::error::Result;
use crate::file::{Input, Tensors};
use crate::floats::{Dtype, numbers};

/// The positions of a level.
pub struct Place {
    pub height: usize,
    pub width: usize,
    /// Pixels from one to the next.
    pub stride: f64,
    pub points: PointSource,
}

/// Where the anchor points come from.
pub enum PointSource {
    /// The grid, with an offset in strides.
    Grid(f64),
    /// `[H*W, 2]` or `[B, H*W, 2]`, in pixels.
    Points(Vec<f64>),
    /// `[B, H*W, 4]`: boxes around the points.
    Anchors(Vec<f64>),
}

impl PointSource {
    /// The points or anchors of a level in the file, as they go with logits of a type, else the grid.
    pub fn read(
        input: &Input,
        tensors: &Tensors,
        level: usize,
        [batch, positions]: [usize; 2],
        offset: f64,
        logits: Dtype,
    ) -> Result<PointSource> {
        let [points, anchors] = ["points", "anchors"].map(|tensor| format!("level{level}.{tensor}"));
        let (name, axes) = if tensors.has(&points) {
            (points, 2)
        } else if tensors.has(&anchors) {
            (anchors, 4)
        } else {
            return Ok(PointSource::Grid(offset));
        };
        let (shape, numbers) = tensors.floats(&name)?;
        let (each, all) = ([positions, axes], [batch, positions, axes]);
        match (axes, &*shape) {
            (2, shape) if shape == each || shape == all => Ok(PointSource::Points(numbers.beside(logits))),
            (4, shape) if shape == all => Ok(PointSource::Anchors(numbers.beside(logits))),
            (4, shape) if shape == each => Ok(PointSource::Anchors(numbers.beside(logits).repeat(batch))),
            _ => Err(input.head(format!(
                "{name} has the shape {shape:?}; the positions of the level need {each:?} or {all:?}"
            ))),
        }
    }
}

impl Place {
    pub fn positions(&self) -> usize {
        self.height * self.width
    }

    /// Of anchor points on a grid, in strides.
    pub fn offset(&self) -> Option<f64> {
        if let PointSource::Grid(offset) = self.points { Some(offset) } else { None }
    }

    /// The anchors, if they are on a grid, be it that they were told one by one; `scale` strides wide, if their
    /// size counts.
    pub fn grid(&self, scale: Option<f64>) -> Option<AnchorGrid> {
        let stride = self.stride as f32;
        let (first, of_points) = (self.positions(), [self.height, self.width]);
        let points: Vec<f32> = numbers(&self.points());
        let (centres, _) = points.as_chunks::<2>();
        let ([height, width], offset) = match &self.points {
            PointSource::Grid(offset) => (of_points, *offset as f32),
            PointSource::Points(_) => lattice(centres.get(..first)?, of_points, stride)?,
            PointSource::Anchors(anchors) => {
                let anchors: Vec<f32> = numbers(anchors);
                let (anchors, centres) = (anchors.as_chunks::<4>().0.get(..first)?, &centres[..first]);
                let half = scale.map(|scale| scale as f32 * stride / 2.0);
                let is_square = |half| centres.iter().map(|&at| square(at, half)).eq(anchors.iter().copied());
                if half.is_some_and(|half| !is_square(half)) {
                    return None;
                }
                lattice(centres, of_points, stride)?
            }
        };
        let grid = AnchorGrid::new(height, width, stride).with_offset(offset);
        Some(scale.map_or(grid, |scale| grid.with_scale(scale as f32)))
    }

    /// The anchors, `[H*W, 4]`, those of the first image for all; none if they are on a grid.
    pub fn anchors(&self, scale: Option<f64>) -> Vec<f32> {
        let positions = self.positions();
        let half = (scale.unwrap_or(0.0) * self.stride / 2.0) as f32;
        match &self.points {
            PointSource::Grid(_) => Vec::new(),
            PointSource::Points(points) => {
                let points: Vec<f32> = numbers(points);
                points.as_chunks().0.iter().take(positions).flat_map(|&at| square(at, half)).collect()
            }
            PointSource::Anchors(anchors) => numbers(&anchors[..anchors.len().min(4 * positions)]),
        }
    }

    /// The anchor points, `[B, H*W, 2]` or `[H*W, 2]` in pixels; none if they are on a grid.
    pub fn points(&self) -> Vec<f64> {
        match &self.points {
            PointSource::Grid(_) => Vec::new(),
            PointSource::Points(points) => points.clone(),
            PointSource::Anchors(anchors) => {
                let (anchors, _) = anchors.as_chunks::<4>();
                anchors.iter().flat_map(centre).collect()
            }
        }
    }

    /// The anchor points for the library, of which explicit ones are [`points`](Self::points).
    pub fn points_in<'a, M: Memory, W: Element>(&self, explicit: M::Slice<'a, W>) -> Points<'a, M, W> {
        self.offset().map_or(Points::Explicit(explicit), |offset| Points::Grid { offset })
    }

    /// An anchor point in pixels.
    pub fn point(&self, image: usize, position: usize) -> [f64; 2] {
        let positions = self.positions();
        match &self.points {
            PointSource::Grid(offset) => {
                [position % self.width, position / self.width].map(|i| (i as f64 + offset) * self.stride)
            }
            PointSource::Points(points) => {
                let anchor =
                    if points.len() == 2 * positions { position } else { image * positions + position };
                [points[2 * anchor], points[2 * anchor + 1]]
            }
            PointSource::Anchors(anchors) => {
                let at = 4 * (image * positions + position);
                [0, 1].map(|i| anchors[at + i].midpoint(anchors[at + i + 2]))
            }
        }
    }

    /// Whether all images have the same anchors.
    pub fn same_for_all(&self, batch: usize) -> bool {
        let (each, all) = match &self.points {
            PointSource::Grid(_) => return true,
            PointSource::Points(points) => (2 * self.positions(), points),
            PointSource::Anchors(anchors) => (4 * self.positions(), anchors),
        };
        batch == 0 || each == 0 || all.chunks(each).all(|image| image == &all[..each])
    }
}

fn centre([x1, y1, x2, y2]: &[f64; 4]) -> [f64; 2] {
    [x1.midpoint(*x2), y1.midpoint(*y2)]
}

fn square([x, y]: [f32; 2], half: f32) -> [f32; 4] {
    [x - half, y - half, x + half, y + half]
}

/// Rows, columns and offset of the grid that points are on, row after row, if they are exactly that. A level
/// of which only the number of points is known has one row.
fn lattice(points: &[[f32; 2]], [height, width]: [usize; 2], stride: f32) -> Option<([usize; 2], f32)> {
    let [x, y] = *points.first()?;
    let columns = points.iter().take_while(|point| point[1] == y).count();
    let size = [points.len() / columns.max(1), columns];
    let offset = x / stride;
    let at = |i: usize| (i as f32 + offset) * stride;
    let is_there = |(i, point): (usize, &[f32; 2])| *point == [at(i % columns), at(i / columns)];
    let is_lattice = size[0] * columns == points.len()
        && (size == [height, width] || height == 1)
        && points.iter().enumerate().all(is_there);
    is_lattice.then_some((size, offset))
}

/// How many rows and columns of positions images of a height and width have: as convolutions with padding
/// leave, and so with a last one that is only partly inside.
pub fn positions_of(image: [usize; 2], stride: f64) -> [usize; 2] {
    image.map(|side| (side as f64 / stride).ceil() as usize)
}

/// Refuses positions that are not those of the images, if their size is known.
pub fn check_size(
    input: &Input,
    level: usize,
    size: [usize; 2],
    stride: f64,
    image: Option<[usize; 2]>,
) -> Result<()> {
    let Some(image) = image else { return Ok(()) };
    let expected = positions_of(image, stride);
    if size == expected {
        return Ok(());
    }
    let [[height, width], [rows, columns], [image_height, image_width]] = [size, expected, image];
    Err(input.head(format!(
        "level {level}: {height}x{width} positions at stride {stride} are not those of \
         {image_height}x{image_width} pixels, which are {rows}x{columns}"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(size: [usize; 2], points: PointSource) -> Place {
        Place { height: size[0], width: size[1], stride: 8.0, points }
    }

    /// Row after row of 2 x 3 points.
    fn points(offset: f64) -> Vec<f64> {
        (0..6).flat_map(|i| [i % 3, i / 3].map(f64::from).map(|at| (at + offset) * 8.0)).collect()
    }

    #[test]
    fn points_of_a_grid_are_one() {
        let grid = AnchorGrid::new(2, 3, 8.0).with_offset(0.5).with_scale(4.0);
        for size in [[2, 3], [1, 6]] {
            assert_eq!(place(size, PointSource::Points(points(0.5))).grid(Some(4.0)), Some(grid));
        }
        assert_eq!(place([3, 2], PointSource::Points(points(0.5))).grid(Some(4.0)), None);
        let mut moved = points(0.5);
        moved[7] += 1.0;
        assert_eq!(place([2, 3], PointSource::Points(moved)).grid(Some(4.0)), None);
        let far = points(0.5).iter().map(|at| 2.0 * at).collect();
        assert_eq!(place([2, 3], PointSource::Points(far)).grid(None), None);
    }

    #[test]
    fn anchors_of_a_grid_are_one_if_they_are_square() {
        let square = |at, half| square(at, half).map(f64::from);
        let points: Vec<f32> = numbers(&points(0.0));
        let anchors = |half: f32| points.as_chunks().0.iter().flat_map(|&at| square(at, half)).collect();
        let grid = AnchorGrid::new(2, 3, 8.0).with_scale(4.0);
        let place = |half| place([2, 3], PointSource::Anchors(anchors(half)));
        assert_eq!(place(16.0).grid(Some(4.0)), Some(grid));
        assert_eq!(place(8.0).grid(Some(4.0)), None);
        assert!(place(8.0).grid(None).is_some());
    }

    #[test]
    fn positions_cover_the_image() {
        assert_eq!(positions_of([800, 1333], 32.0), [25, 42]);
        assert_eq!(positions_of([64, 96], 16.0), [4, 6]);
    }
}
