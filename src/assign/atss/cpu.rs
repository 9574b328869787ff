//! ATSS on the CPU.

use super::Atss;
use crate::assign::check::Level;
use crate::assign::math::{
    centre, distance_key, iou, is_inside, match_key, near, reaches, threshold, window,
};
use crate::assign::scene::{By, Scene};
use crate::assign::{Anchors, GroundTruth, LevelTargets};
use crate::cpu::map;
use crate::element::{Label, compiled};
use crate::error::{Error, Result};
use crate::memory::Host;
use crate::status::Status;

/// What a box costs, in elements.
const BOX: usize = 1 << 12;

compiled! {
    /// ATSS on the CPU.
    AtssOnCpu: Label for [i64, i32] {
        fn atss(
            atss: &Atss,
            anchors: &[Anchors<'_>],
            gt: GroundTruth<'_, Host, Self>,
            sizes: [usize; 2],
            targets: &mut [LevelTargets<'_, Host, Self>],
        ) -> Result<Status> = Atss::assign;
    }
}

impl Atss {
    /// Assigns every anchor of every image: levels of anchors, boxes, how many images and
    /// classes, and where the targets of each level go.
    ///
    /// # Errors
    /// If a length does not fit, a number is outside its range, or there is somewhere for the
    /// centerness to go.
    pub fn cpu<L: Label>(
        &self,
        anchors: &[Anchors<'_>],
        gt: GroundTruth<'_, Host, L>,
        images: usize,
        classes: usize,
        targets: &mut [LevelTargets<'_, Host, L>],
    ) -> Result<Status> {
        L::atss(self, anchors, gt, [images, classes], targets)
    }

    fn assign<L: Label>(
        &self,
        anchors: &[Anchors<'_>],
        gt: GroundTruth<'_, Host, L>,
        sizes: [usize; 2],
        targets: &mut [LevelTargets<'_, Host, L>],
    ) -> Result<Status> {
        let scene = Scene::new(By::Boxes, self.options, anchors, gt, sizes, targets)?;
        no_centerness(targets)?;
        // What each box lays claim to, then what each anchor keeps: a maximum, and so the same
        // whatever the order.
        let claims = map(BOX * scene.image.len(), scene.image.iter().enumerate(), |(number, image)| {
            image.map_or_else(Vec::new, |image| self.claims(&scene, image, number))
        });
        let mut keys = vec![0; scene.images * scene.per_image];
        for (&image, claims) in scene.image.iter().zip(&claims) {
            let Some(image) = image else { continue };
            for &(place, key) in claims {
                let slot: &mut u64 = &mut keys[image * scene.per_image + place];
                *slot = (*slot).max(key);
            }
        }
        Ok(Status { assignment: scene.finish(keys, targets), ..Status::default() })
    }

    /// The anchors of an image that a box is positive for, counted over all levels, with its key.
    fn claims<L: Label>(&self, scene: &Scene<'_, L>, image: usize, number: usize) -> Vec<(usize, u64)> {
        let b = scene.boxes[number];
        // (place, IoU, inside)
        let mut candidates: Vec<(usize, f32, bool)> = Vec::new();
        let mut nearest = Vec::new();
        for (l, level) in scene.levels.iter().enumerate() {
            nearest.clear();
            self.nearest(scene, image, l, centre(b), &mut nearest);
            candidates.extend(nearest.iter().map(|&key| {
                let anchor = scene.anchor(l, near(key));
                (level.first + near(key), iou(anchor, b), is_inside(centre(anchor), b))
            }));
        }
        let threshold = threshold(candidates.iter().map(|&(_, iou, _)| iou));
        let positive = candidates.into_iter().filter(|&(_, iou, inside)| inside && reaches(iou, &threshold));
        positive.map(|(place, iou, _)| (place, match_key(iou, number))).collect()
    }

    /// The keys of the nearest anchors of a level, in order.
    fn nearest<L: Label>(
        &self,
        scene: &Scene<'_, L>,
        image: usize,
        l: usize,
        middle: [f32; 2],
        nearest: &mut Vec<u64>,
    ) {
        let level = &scene.levels[l];
        let valid = scene.valid(level, image);
        if valid.contains(&0) {
            return;
        }
        // Among the nearest may be some that take no part: so many more have to be looked at.
        let mut others = 0;
        loop {
            nearest.clear();
            let [rows, columns] = level.window(middle, valid, self.topk + others);
            let mut left_out = 0;
            for y in rows[0]..=rows[1] {
                for x in columns[0] * level.each..(columns[1] + 1) * level.each {
                    let place = y * level.width * level.each + x;
                    if scene.takes_part(image, level, place) {
                        nearest.push(distance_key(scene.point(l, place), middle, place));
                    } else {
                        left_out += 1;
                    }
                }
            }
            if left_out <= others || level.grid.is_none() {
                break;
            }
            others = left_out;
        }
        let count = self.topk.min(nearest.len());
        if count > 0 {
            nearest.select_nth_unstable(count - 1);
        }
        nearest.truncate(count);
        nearest.sort_unstable();
    }
}

impl Level {
    /// The rows and columns in which the nearest anchors to a point are: first and last each.
    fn window(&self, point: [f32; 2], valid: [usize; 2], anchors: usize) -> [[usize; 2]; 2] {
        match &self.grid {
            Some(grid) => window(point, grid, valid, anchors.div_ceil(self.each)),
            None => [[0, 0], [0, self.width - 1]],
        }
    }
}

/// ATSS has no centerness.
pub(super) fn no_centerness<M: crate::Memory, L: Label>(targets: &[LevelTargets<'_, M, L>]) -> Result<()> {
    match targets.iter().position(|targets| targets.centerness.is_some()) {
        Some(level) => Err(Error::NoCenterness { level }),
        None => Ok(()),
    }
}
