//! A call on the CPU, checked, and what all assignments do in it.

use super::check::{Level, check};
use super::math::{
    centerness, centre, distance_key, distances, grid_box, iof, is_usable, is_valid, match_key, matched,
    near, valid_positions,
};
use super::{Anchors, GroundTruth, LevelTargets, Options};
use crate::cpu::map;
use crate::element::Label;
use crate::error::Result;
use crate::memory::Host;
use crate::status::AssignmentStatus;

/// What an assignment goes by: boxes, or points.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum By {
    Boxes,
    Points,
}

pub(super) struct Scene<'a, L: Label> {
    pub levels: Vec<Level>,
    /// Of each level, unless it is a grid.
    explicit: Vec<&'a [[f32; 4]]>,
    pub boxes: &'a [[f32; 4]],
    labels: &'a [L],
    weights: Option<&'a [f32]>,
    valid_hw: Option<&'a [L]>,
    /// The image of each box that takes part.
    pub image: Vec<Option<usize>>,
    pub images: usize,
    /// How many anchors an image has.
    pub per_image: usize,
    /// `[images, per_image]`: whether an anchor takes part. `None`: all do.
    takes_part: Option<Vec<bool>>,
    pub status: AssignmentStatus,
    by: By,
    classes: usize,
    options: Options,
}

impl<'a, L: Label> Scene<'a, L> {
    pub fn new<'g: 'a>(
        by: By,
        options: Options,
        anchors: &'a [Anchors<'_>],
        gt: GroundTruth<'g, Host, L>,
        [images, classes]: [usize; 2],
        targets: &[LevelTargets<'_, Host, L>],
    ) -> Result<Self> {
        let levels = check(anchors, &gt, images, classes, targets)?;
        let mut status = AssignmentStatus::default();
        let boxes = gt.boxes.as_chunks::<4>().0;
        let mut image_of = |number: usize, b: [f32; 4], image: L, label: Option<L>| {
            let image = image.to_i64();
            if image == -1 {
                return None;
            }
            let fine = [
                (is_usable(b), &mut status.bad_boxes),
                (label.is_none_or(|label| options.is_class(label.to_i64(), classes)), &mut status.bad_labels),
                ((0..images as i64).contains(&image), &mut status.bad_images),
            ];
            let mut usable = true;
            for (fine, counted) in fine {
                if !fine {
                    counted.add(number);
                    usable = false;
                }
            }
            usable.then_some(image as usize)
        };
        let image = (boxes.iter().enumerate())
            .map(|(number, &b)| image_of(number, b, gt.image[number], Some(gt.labels[number])))
            .collect();
        let mut ignored = vec![Vec::new(); images];
        if let Some((ignore, image)) = gt.ignore.filter(|_| options.ignores()) {
            for (i, (&b, &image)) in ignore.as_chunks::<4>().0.iter().zip(image).enumerate() {
                if let Some(image) = image_of(boxes.len() + i, b, image, None) {
                    ignored[image].push(b);
                }
            }
        }
        let explicit = (anchors.iter())
            .map(|anchors| match anchors {
                Anchors::Grid(_) => [].as_slice(),
                Anchors::Boxes(boxes) => boxes.as_chunks().0,
            })
            .collect();
        let per_image = levels.iter().map(Level::anchors).sum();
        let mut scene = Scene {
            levels,
            explicit,
            boxes,
            labels: gt.labels,
            weights: gt.weights,
            valid_hw: gt.valid_hw,
            image,
            images,
            per_image,
            takes_part: None,
            status,
            by,
            classes,
            options,
        };
        if gt.valid_hw.is_some() || ignored.iter().any(|boxes| !boxes.is_empty()) {
            scene.takes_part = Some(scene.find_out(&ignored));
        }
        Ok(scene)
    }

    /// Which anchors of which images take part, given the boxes to ignore of each image.
    fn find_out(&self, ignored: &[Vec<[f32; 4]>]) -> Vec<bool> {
        let mut takes_part = vec![true; self.images * self.per_image];
        let per_image = self.per_image.max(1);
        let work = takes_part.len();
        let of_images = takes_part.chunks_mut(per_image).zip(ignored).enumerate();
        map(work, of_images, |(image, (takes_part, boxes))| {
            for (l, level) in self.levels.iter().enumerate() {
                let [rows, columns] = self.valid(level, image);
                let of_points = self.size(image).filter(|_| level.grid.is_none());
                for number in 0..level.anchors() {
                    let [y, x] = level.place(number);
                    let valid = match of_points {
                        Some(size) => is_valid(self.point(l, number), size),
                        None => y < rows && x / level.each < columns,
                    };
                    takes_part[level.first + number] =
                        valid && !boxes.iter().any(|&b| self.is_ignored(l, number, b));
                }
            }
        });
        takes_part
    }

    fn is_ignored(&self, level: usize, number: usize, b: [f32; 4]) -> bool {
        let part = match self.by {
            By::Boxes => iof(self.anchor(level, number), b),
            By::Points => {
                f32::from(u8::from(distances(self.point(level, number), b).iter().all(|&side| side > 0.0)))
            }
        };
        part > self.options.ignore_iof
    }

    /// The valid height and width of an image.
    fn size(&self, image: usize) -> Option<[i64; 2]> {
        let sizes = self.valid_hw?;
        Some([sizes[2 * image].to_i64(), sizes[2 * image + 1].to_i64()])
    }

    /// The rows and columns of a level that an image has; of explicit anchors all.
    pub fn valid(&self, level: &Level, image: usize) -> [usize; 2] {
        match (&level.grid, self.size(image)) {
            (Some(grid), Some([height, width])) => [
                valid_positions(height, grid.stride, level.height),
                valid_positions(width, grid.stride, level.width),
            ],
            _ => [level.height, level.width],
        }
    }

    /// Whether an anchor takes part: it is in the image, and not ignored.
    pub fn takes_part(&self, image: usize, level: &Level, number: usize) -> bool {
        let at = image * self.per_image + level.first + number;
        self.takes_part.as_ref().is_none_or(|takes_part| takes_part[at])
    }

    pub fn anchor(&self, level: usize, number: usize) -> [f32; 4] {
        match &self.levels[level].grid {
            Some(grid) => {
                let [y, x] = self.levels[level].place(number);
                grid_box(grid, y, x)
            }
            None => self.explicit[level][number],
        }
    }

    /// What an anchor's distance is measured from.
    pub fn point(&self, level: usize, number: usize) -> [f32; 2] {
        match (&self.levels[level].grid, self.by) {
            (Some(grid), By::Points) => self.levels[level].point(grid, number),
            _ => centre(self.anchor(level, number)),
        }
    }

    /// Given the best claim to each anchor, `[images, per_image]`: looks after the boxes that have
    /// none, and writes all targets.
    pub fn finish(
        mut self,
        mut keys: Vec<u64>,
        targets: &mut [LevelTargets<'_, Host, L>],
    ) -> AssignmentStatus {
        let mut has_anchor = vec![false; self.boxes.len()];
        keys.iter().filter(|&&key| key != 0).for_each(|&key| has_anchor[matched(key)] = true);
        let lacking: Vec<(usize, usize)> = (self.image.iter().zip(&has_anchor).enumerate())
            .filter_map(|(number, (image, has_anchor))| Some((number, image.filter(|_| !has_anchor)?)))
            .collect();
        for (number, image) in lacking {
            if !self.fall_back(number, image, &mut keys) {
                self.status.unassigned.add(number);
            }
        }
        for (l, targets) in targets.iter_mut().enumerate() {
            self.write(l, targets, &keys);
        }
        self.status
    }

    /// Gives a box the nearest anchors that are free, if that is asked for. Whether it has got any.
    fn fall_back(&self, number: usize, image: usize, keys: &mut [u64]) -> bool {
        let wanted = self.options.fallback as usize;
        if wanted == 0 {
            return false;
        }
        let (middle, keys) =
            (centre(self.boxes[number]), &mut keys[image * self.per_image..][..self.per_image]);
        let mut free = Vec::new();
        for (l, level) in self.levels.iter().enumerate() {
            for place in 0..level.anchors() {
                if keys[level.first + place] == 0 && self.takes_part(image, level, place) {
                    free.push(distance_key(self.point(l, place), middle, level.first + place));
                }
            }
        }
        let count = wanted.min(free.len());
        if count == 0 {
            return false;
        }
        free.select_nth_unstable(count - 1);
        free[..count].iter().for_each(|&key| keys[near(key)] = match_key(0.0, number));
        true
    }

    fn write(&self, l: usize, targets: &mut LevelTargets<'_, Host, L>, keys: &[u64]) {
        let level = &self.levels[l];
        let background = self.options.background_label(self.classes);
        let rows = Rows { count: level.anchors(), first: level.first, per_image: self.per_image, keys };
        rows.write(targets.labels, |_, _, key| key.map_or(L::from_i64(background), |gt| self.labels[gt]));
        rows.write(targets.box_targets.as_chunks_mut().0, |_, _, key| {
            key.map_or([0.0; 4], |gt| self.boxes[gt])
        });
        if let Some(to) = &mut targets.label_weights {
            rows.write(to, |image, place, _| f32::from(u8::from(self.takes_part(image, level, place))));
        }
        if let Some(to) = &mut targets.box_weights {
            let weight = |gt: usize| self.weights.map_or(1.0, |weights| weights[gt]);
            rows.write(to, |_, _, key| key.map_or(0.0, weight));
        }
        if let Some(to) = &mut targets.centerness {
            rows.write(to, |_, place, key| {
                key.map_or(0.0, |gt| centerness(self.point(l, place), self.boxes[gt]))
            });
        }
    }
}

/// The anchors of a level, in all images.
struct Rows<'a> {
    count: usize,
    first: usize,
    per_image: usize,
    keys: &'a [u64],
}

impl Rows<'_> {
    /// Writes what `of` makes of an image, an anchor, and the box that it is given to.
    fn write<T: Send>(&self, to: &mut [T], of: impl Fn(usize, usize, Option<usize>) -> T + Sync) {
        map(to.len(), to.chunks_mut(self.count.max(1)).enumerate(), |(image, to)| {
            let keys = &self.keys[image * self.per_image + self.first..][..self.count];
            for (place, (to, &key)) in to.iter_mut().zip(keys).enumerate() {
                *to = of(image, place, (key != 0).then(|| matched(key)));
            }
        });
    }
}
