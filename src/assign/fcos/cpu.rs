//! FCOS' assignment on the CPU.

use rayon::prelude::*;

use super::Fcos;
use crate::assign::check::Level;
use crate::assign::math::{area, area_key, distances, middle};
use crate::assign::scene::{By, Scene};
use crate::assign::{Anchors, GroundTruth, LevelTargets};
use crate::cpu::Host;
use crate::element::Label;
use crate::error::{Error, Result};
use crate::status::Status;

impl Fcos {
    /// Assigns every point of every image: levels of anchors, boxes, how many images and classes,
    /// and where the targets of each level go.
    ///
    /// # Errors
    /// If a length does not fit, a number is outside its range, there are not as many ranges as
    /// levels, or centre sampling finds a level without a stride.
    pub fn cpu<L: Label>(
        &self,
        anchors: &[Anchors<'_>],
        gt: GroundTruth<'_, Host, L>,
        images: usize,
        classes: usize,
        targets: &mut [LevelTargets<'_, Host, L>],
    ) -> Result<Status> {
        let scene = Scene::new(By::Points, self.options, anchors, gt, [images, classes], targets)?;
        self.check(&scene.levels)?;
        let mut boxes = vec![Vec::new(); images];
        for (number, image) in scene.image.iter().enumerate() {
            if let Some(image) = image {
                boxes[*image].push(number);
            }
        }
        let mut keys = vec![0; images * scene.per_image];
        keys.par_chunks_mut(scene.per_image.max(1)).zip(&boxes).enumerate().for_each(
            |(image, (keys, boxes))| {
                for (l, level) in scene.levels.iter().enumerate() {
                    let keys = &mut keys[level.first..][..level.anchors()];
                    for (place, key) in keys.iter_mut().enumerate() {
                        if scene.takes_part(image, level, place) {
                            *key = self.best(&scene, l, scene.point(l, place), boxes);
                        }
                    }
                }
            },
        );
        Ok(Status { assignment: scene.finish(keys, targets), ..Status::default() })
    }

    /// Whether these levels can be assigned to.
    pub(super) fn check(&self, levels: &[Level]) -> Result<()> {
        if levels.len() != self.levels {
            return Err(Error::RegressRanges { anchors: levels.len(), ranges: self.levels });
        }
        match levels.iter().position(|level| level.grid.is_none()) {
            Some(level) if self.radius.is_some() => Err(Error::NoStride { level }),
            _ => Ok(()),
        }
    }

    /// The key of the box that a point of a level is given to.
    fn best<L: Label>(&self, scene: &Scene<'_, L>, l: usize, point: [f32; 2], boxes: &[usize]) -> u64 {
        let [low, high] = self.ranges[l];
        let reach = self.radius.zip(scene.levels[l].grid).map(|(radius, grid)| grid.stride * radius);
        let mut best = 0;
        for &number in boxes {
            let b = scene.boxes[number];
            let sides = distances(point, b);
            let furthest = sides[0].max(sides[1]).max(sides[2].max(sides[3]));
            let inner = reach.map_or(sides, |reach| distances(point, middle(b, reach)));
            if inner.iter().all(|&side| side > 0.0) && low <= furthest && furthest <= high {
                best = best.max(area_key(area(b), number));
            }
        }
        best
    }
}
