//! ATSS on the CPU.

use rayon::prelude::*;

use super::math::{
    centre, distance_key, grid_box, iou, is_inside, is_usable, match_key, matched, near, reaches, threshold,
};
use super::{Anchors, Atss, GroundTruth, Lengths, Level, LevelTargets, check};
use crate::cpu::Host;
use crate::element::Label;
use crate::error::Result;

impl Atss {
    /// Assigns every anchor of every image: levels of anchors, boxes, how many images and
    /// classes, and where the targets of each level go.
    ///
    /// # Errors
    /// If a length does not fit, or a number is outside its range.
    pub fn cpu<L: Label>(
        &self,
        anchors: &[Anchors<'_>],
        gt: GroundTruth<'_, Host, L>,
        images: usize,
        classes: usize,
        targets: &mut [LevelTargets<'_, Host, L>],
    ) -> Result<()> {
        let lengths = anchors.iter().zip(targets.iter()).map(|(anchors, targets)| {
            let (grid, boxes) = match anchors {
                Anchors::Grid(grid) => (Some(*grid), 0),
                Anchors::Boxes(boxes) => (None, boxes.len()),
            };
            let (labels, box_targets) = (targets.labels.len(), targets.box_targets.len());
            Lengths { grid, boxes, labels, box_targets }
        });
        let counts = [anchors.len(), targets.len()];
        let levels =
            check(lengths, counts, [gt.boxes.len(), gt.labels.len(), gt.image.len()], images, classes)?;
        let per_image: usize = levels.iter().map(Level::anchors).sum();

        // What each box lays claim to, then what each anchor keeps: a maximum, and so the same
        // whatever the order.
        let boxes = gt.boxes.as_chunks::<4>().0;
        let claims: Vec<Vec<(usize, u64)>> = (boxes.par_iter().enumerate())
            .map(|(number, &b)| match usize::try_from(gt.image[number].to_i64()) {
                Ok(image) if image < images && is_usable(b) => self.claims(anchors, &levels, b, number),
                _ => Vec::new(),
            })
            .collect();
        let mut keys = vec![0; images * per_image];
        for (image, (place, key)) in claims.into_iter().enumerate().flat_map(|(g, claims)| {
            let image = gt.image[g].to_i64() as usize;
            claims.into_iter().map(move |claim| (image, claim))
        }) {
            let slot: &mut u64 = &mut keys[image * per_image + place];
            *slot = (*slot).max(key);
        }
        for (level, targets) in levels.iter().zip(targets) {
            let count = level.anchors();
            let (labels, box_targets) = (&mut *targets.labels, targets.box_targets.as_chunks_mut::<4>().0);
            for image in 0..images {
                let keys = &keys[image * per_image + level.first..][..count];
                let places = image * count..(image + 1) * count;
                for ((&key, label), target) in
                    keys.iter().zip(&mut labels[places.clone()]).zip(&mut box_targets[places])
                {
                    (*label, *target) = match key {
                        0 => (L::from_i64(classes as i64), [0.0; 4]),
                        key => (gt.labels[matched(key)], boxes[matched(key)]),
                    };
                }
            }
        }
        Ok(())
    }

    /// The anchors of an image that a box is positive for, counted over all levels, with its key.
    fn claims(
        &self,
        anchors: &[Anchors<'_>],
        levels: &[Level],
        b: [f32; 4],
        number: usize,
    ) -> Vec<(usize, u64)> {
        let middle = centre(b);
        // (place, IoU, inside)
        let mut candidates: Vec<(usize, f32, bool)> = Vec::new();
        let mut nearest = Vec::new();
        for (level, anchors) in levels.iter().zip(anchors) {
            if level.anchors() == 0 {
                continue;
            }
            let anchor = |place: usize| match anchors {
                Anchors::Grid(grid) => grid_box(grid, place / level.width, place % level.width),
                Anchors::Boxes(boxes) => boxes.as_chunks().0[place],
            };
            let [rows, columns] = level.window(middle, self.topk);
            nearest.clear();
            for y in rows[0]..=rows[1] {
                for x in columns[0]..=columns[1] {
                    let place = y * level.width + x;
                    nearest.push(distance_key(centre(anchor(place)), middle, place));
                }
            }
            let count = self.topk.min(nearest.len());
            nearest.select_nth_unstable(count - 1);
            nearest[..count].sort_unstable();
            candidates.extend(nearest[..count].iter().map(|key| {
                let place = near(*key);
                let anchor = anchor(place);
                (level.first + place, iou(anchor, b), is_inside(centre(anchor), b))
            }));
        }
        let threshold = threshold(candidates.iter().map(|&(_, iou, _)| iou));
        let positive = candidates.into_iter().filter(|&(_, iou, inside)| inside && reaches(iou, &threshold));
        positive.map(|(place, iou, _)| (place, match_key(iou, number))).collect()
    }
}
