//! FCOS' assignment on the CPU.

use super::Fcos;
use crate::assign::check::Level;
use crate::assign::math::{area, area_key, distances, middle};
use crate::assign::scene::{By, Scene};
use crate::assign::{Anchors, GroundTruth, LevelTargets};
use crate::cpu::map;
use crate::element::{Label, compiled};
use crate::error::{Error, Result};
use crate::memory::Host;
use crate::status::Status;

compiled! {
    /// FCOS' rule on the CPU.
    FcosOnCpu: Label for [i64, i32] {
        fn fcos(
            fcos: &Fcos,
            anchors: &[Anchors<'_>],
            gt: GroundTruth<'_, Host, Self>,
            sizes: [usize; 2],
            targets: &mut [LevelTargets<'_, Host, Self>],
        ) -> Result<Status> = Fcos::assign;
    }
}

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
        L::fcos(self, anchors, gt, [images, classes], targets)
    }

    fn assign<L: Label>(
        &self,
        anchors: &[Anchors<'_>],
        gt: GroundTruth<'_, Host, L>,
        sizes: [usize; 2],
        targets: &mut [LevelTargets<'_, Host, L>],
    ) -> Result<Status> {
        let scene = Scene::new(By::Points, self.options, anchors, gt, sizes, targets)?;
        self.check(&scene.levels)?;
        let mut boxes = vec![Vec::new(); scene.images];
        for (number, (image, &b)) in scene.image.iter().zip(scene.boxes).enumerate() {
            if let Some(image) = image {
                boxes[*image].push((number, b));
            }
        }
        let mut keys = vec![0; scene.images * scene.per_image];
        let work = keys.len().saturating_mul(1 + scene.boxes.len() / scene.images.max(1));
        let of_images = keys.chunks_mut(scene.per_image.max(1)).zip(&boxes).enumerate();
        map(work, of_images, |(image, (keys, boxes))| {
            for (l, level) in scene.levels.iter().enumerate() {
                let (range, reach) = (self.ranges[l], self.reach(level));
                let keys = &mut keys[level.first..][..level.anchors()];
                for (place, key) in keys.iter_mut().enumerate() {
                    if scene.takes_part(image, level, place) {
                        *key = best(scene.point(l, place), range, reach, boxes);
                    }
                }
            }
        });
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

    /// How far from the centre of a box its points are on a level, in pixels.
    pub(super) fn reach(&self, level: &Level) -> f32 {
        match (self.radius, &level.grid) {
            (Some(radius), Some(grid)) => grid.stride * radius,
            _ => f32::INFINITY,
        }
    }
}

/// The key of the box that a point is given to, of these with their numbers.
fn best(point: [f32; 2], [low, high]: [f32; 2], reach: f32, boxes: &[(usize, [f32; 4])]) -> u64 {
    let mut best = 0;
    for &(number, b) in boxes {
        let sides = distances(point, b);
        let furthest = sides[0].max(sides[1]).max(sides[2].max(sides[3]));
        let inside = distances(point, middle(b, reach)).iter().all(|&side| side > 0.0);
        if inside && low <= furthest && furthest <= high {
            best = best.max(area_key(area(b), number));
        }
    }
    best
}
