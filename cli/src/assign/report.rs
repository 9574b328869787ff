//! What is told of an assignment, in JSON and in a table.

use gfocal::{AssignmentStatus, Counted, Status};
use serde::Serialize;

use super::{AssignedLevel, Problem, Truth};
use crate::device::Device;
use crate::table::{number, sentences, table};
use crate::values::BackgroundChoice;
use crate::words::count;

/// An assignment alone.
#[derive(Debug, Serialize)]
pub struct AssignReport {
    op: &'static str,
    device: String,
    assigner: &'static str,
    background: &'static str,
    batch: usize,
    classes: usize,
    boxes: usize,
    positives: usize,
    levels: Vec<LevelReport>,
    #[serde(flatten)]
    assignment: AssignmentReport,
}

#[derive(Debug, Serialize)]
struct LevelReport {
    stride: f64,
    height: usize,
    width: usize,
    positives: usize,
    /// Anchors that take no part.
    left_out: usize,
}

/// What became of the boxes of the ground truth.
#[derive(Clone, Debug, Serialize)]
pub struct AssignmentReport {
    assignment: Counts<u32>,
    /// The first box of each kind. Numbers of boxes to be ignored go on behind those of the others.
    assignment_first: Counts<Option<u64>>,
    /// How many of the others there are.
    #[serde(skip)]
    boxes: u64,
    /// Whether there are boxes to be ignored.
    #[serde(skip)]
    ignores: bool,
    /// How many images there are.
    #[serde(skip)]
    batch: usize,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct Counts<T> {
    bad_boxes: T,
    bad_labels: T,
    bad_images: T,
    unassigned: T,
}

impl AssignmentReport {
    pub fn new(status: AssignmentStatus, truth: &Truth, batch: usize) -> AssignmentReport {
        let AssignmentStatus { bad_boxes, bad_labels, bad_images, unassigned } = status;
        fn counts<T>(of: [Counted; 4], what: impl Fn(Counted) -> T) -> Counts<T> {
            let [bad_boxes, bad_labels, bad_images, unassigned] = of.map(what);
            Counts { bad_boxes, bad_labels, bad_images, unassigned }
        }
        let of = [bad_boxes, bad_labels, bad_images, unassigned];
        AssignmentReport {
            assignment: counts(of, |counted| counted.count),
            assignment_first: counts(of, |counted| counted.first),
            boxes: truth.len() as u64,
            ignores: truth.ignore.is_some(),
            batch,
        }
    }

    /// A sentence for each kind.
    pub fn sentences(&self) -> Vec<String> {
        let (counts, first) = (&self.assignment, &self.assignment_first);
        let of = |tensor: &str| match self.ignores {
            true => format!("of gt_{tensor} or gt_ignore_{tensor}"),
            false => format!("of gt_{tensor}"),
        };
        let (boxes, images) = (of("boxes"), of("image"));
        let batch = count(self.batch, "image", "images");
        let kinds = [
            (
                counts.bad_boxes,
                first.bad_boxes,
                format!("box {boxes} is not finite, or has no width or height"),
                format!("boxes {boxes} are not finite, or have no width or height"),
            ),
            (
                counts.bad_labels,
                first.bad_labels,
                "label of gt_labels is not a class".to_owned(),
                "labels of gt_labels are not classes".to_owned(),
            ),
            (
                counts.bad_images,
                first.bad_images,
                format!("number {images} is outside the batch of {batch}"),
                format!("numbers {images} are outside the batch of {batch}"),
            ),
            (
                counts.unassigned,
                first.unassigned,
                "box has no anchor assigned to it".to_owned(),
                "boxes have no anchor assigned to them".to_owned(),
            ),
        ];
        let sentence = |(count, first, one, many): (u32, Option<u64>, String, String)| match (count, first) {
            (1, Some(first)) => format!("1 {one}: {}.", self.place(first)),
            (_, Some(first)) => format!("{count} {many}, first {}.", self.place(first)),
            (_, None) => format!("{count} {many}."),
        };
        let mut sentences: Vec<String> = kinds.into_iter().filter(|kind| kind.0 > 0).map(sentence).collect();
        if !sentences.is_empty() {
            sentences.push("boxes are counted from 0.".to_owned());
        }
        sentences
    }

    fn place(&self, number: u64) -> String {
        match number.checked_sub(self.boxes) {
            None => format!("box {number}"),
            Some(ignored) => format!("box {ignored} of gt_ignore_boxes"),
        }
    }
}

impl AssignReport {
    pub fn new(
        problem: &Problem,
        device: &Device,
        background: BackgroundChoice,
        levels: &[AssignedLevel],
        status: Status,
    ) -> AssignReport {
        let none = match background {
            BackgroundChoice::Last => problem.classes as i64,
            BackgroundChoice::First => 0,
        };
        let levels: Vec<LevelReport> = (problem.places.iter().zip(levels))
            .map(|(place, level)| LevelReport {
                stride: place.stride,
                height: place.height,
                width: place.width,
                positives: level.labels.iter().filter(|&&label| label != none).count(),
                left_out: level.label_weights.iter().filter(|&&weight| weight == 0.0).count(),
            })
            .collect();
        AssignReport {
            op: "assign",
            device: device.name(),
            assigner: problem.assigner.choice().name(),
            background: background.name(),
            batch: problem.batch,
            classes: problem.classes,
            boxes: problem.truth.len(),
            positives: levels.iter().map(|level| level.positives).sum(),
            levels,
            assignment: AssignmentReport::new(status.assignment, problem.truth, problem.batch),
        }
    }

    pub fn table(&self) -> String {
        let mut rows = vec![["stride", "positions", "positives", "left out"].map(str::to_owned)];
        for level in &self.levels {
            rows.push([
                number(level.stride),
                format!("{}x{}", level.height, level.width),
                level.positives.to_string(),
                level.left_out.to_string(),
            ]);
        }
        let left_out: usize = self.levels.iter().map(|level| level.left_out).sum();
        rows.push(["sum".to_owned(), String::new(), self.positives.to_string(), left_out.to_string()]);
        let mut text = format!(
            "{} on {}: {}, {}, {}\n\n",
            self.assigner.to_uppercase(),
            self.device,
            count(self.batch, "image", "images"),
            count(self.boxes, "box", "boxes"),
            count(self.classes, "class", "classes")
        );
        text += &table(&rows);
        text + &sentences("", &self.assignment.sentences())
    }
}

#[cfg(test)]
mod tests {
    use super::super::truth::Ignore;
    use super::*;

    /// Of four boxes in two images.
    fn told(status: AssignmentStatus, ignores: bool) -> Vec<String> {
        let (boxes, labels, images) = (vec![0.0; 16], vec![0; 4], vec![0; 4]);
        let ignore = ignores.then(|| Ignore { boxes: vec![0.0; 8], images: vec![0; 2] });
        let truth = Truth { boxes, labels, images, weights: None, ignore, valid_hw: None };
        AssignmentReport::new(status, &truth, 2).sentences()
    }

    #[test]
    fn every_kind_is_told_with_its_first() {
        let counted = |count, first| Counted { count, first: Some(first) };
        let status = AssignmentStatus {
            bad_boxes: counted(1, 3),
            bad_labels: counted(2, 0),
            bad_images: Counted::default(),
            unassigned: counted(3, 1),
        };
        assert_eq!(
            told(status, false),
            [
                "1 box of gt_boxes is not finite, or has no width or height: box 3.",
                "2 labels of gt_labels are not classes, first box 0.",
                "3 boxes have no anchor assigned to them, first box 1.",
                "boxes are counted from 0.",
            ]
        );
        assert!(told(AssignmentStatus::default(), false).is_empty());
        let status = AssignmentStatus { bad_images: counted(1, 5), ..AssignmentStatus::default() };
        assert_eq!(
            told(status, true)[0],
            "1 number of gt_image or gt_ignore_image is outside the batch of 2 images: box 1 of gt_ignore_boxes."
        );
    }
}
