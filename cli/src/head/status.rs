//! What a head could not use, by kind.

use gfocal::Status;
use gfocal::head::QualitySource;
use gfocal::qfl::Class;

use super::scene::Scene;
use super::targets::LevelTargets;
use crate::report::{First, StatusReport, Trouble};

/// What may be wrong with an anchor, other than its label.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    Box,
    Point,
    Quality,
    BoxScore,
    Scores,
}

/// Each with its words: what it is, of one, of many.
const FAULTS: [(Fault, &str, &str, &str); 5] = [
    (
        Fault::Box,
        "a target box",
        "target box of a positive that is not finite (no loss)",
        "target boxes of positives that are not finite (no loss)",
    ),
    (
        Fault::Point,
        "an anchor point",
        "anchor point of a positive that is not finite (no loss)",
        "anchor points of positives that are not finite (no loss)",
    ),
    (
        Fault::Quality,
        "a quality",
        "quality of a positive that is NaN (no loss)",
        "qualities of positives that are NaN (no loss)",
    ),
    (
        Fault::BoxScore,
        "a box score",
        "box score of a positive that is not finite (no loss)",
        "box scores of positives that are not finite (no loss)",
    ),
    (
        Fault::Scores,
        "a row of scores",
        "row of scores that holds a NaN (no loss)",
        "rows of scores that hold a NaN (no loss)",
    ),
];

/// The anchors of a head, as it looks at them.
pub struct Anchors<'a> {
    scene: &'a Scene,
    targets: &'a [LevelTargets],
}

impl Anchors<'_> {
    pub fn new<'a>(scene: &'a Scene, targets: &'a [LevelTargets]) -> Anchors<'a> {
        Anchors { scene, targets }
    }

    /// What could not be used, in words.
    pub fn status(&self, status: Status) -> StatusReport {
        let mut counts = [0; FAULTS.len()];
        for (level, anchor) in self.all() {
            if let Some(fault) = self.fault(level, anchor) {
                counts[FAULTS.iter().position(|(of, ..)| *of == fault).unwrap_or(0)] += 1;
            }
        }
        let mut troubles = vec![Trouble {
            count: status.bad_labels as usize,
            one: "label that is neither a class nor background (no loss)",
            many: "labels that are neither a class nor background (no loss)",
        }];
        troubles.extend(FAULTS.iter().zip(counts).map(|(&(_, _, one, many), count)| Trouble {
            count,
            one,
            many,
        }));
        troubles.push(Trouble {
            count: status.out_of_range_targets as usize,
            one: "distance to a side of a target box that is beyond the bins (clamped)",
            many: "distances to sides of target boxes that are beyond the bins (clamped)",
        });
        StatusReport::new(status, &troubles, status.first_bad_row.and_then(|row| self.first(row)))
    }

    /// How many images have no positive that can be used.
    pub fn images_without(&self) -> usize {
        let mut with = vec![false; self.scene.batch];
        for (level, anchor) in self.all() {
            if self.is_positive(level, anchor) && self.fault(level, anchor).is_none() {
                with[anchor / self.scene.places[level].positions()] = true;
            }
        }
        with.iter().filter(|with| !**with).count()
    }

    /// A level and the number of an anchor in it, for all anchors.
    fn all(&self) -> impl Iterator<Item = (usize, usize)> {
        let levels = self.targets.iter().enumerate();
        levels.flat_map(|(level, targets)| (0..targets.labels.len()).map(move |anchor| (level, anchor)))
    }

    fn is_positive(&self, level: usize, anchor: usize) -> bool {
        self.targets[level].is_positive(anchor, &self.scene.head.qfl(), self.scene.classes)
    }

    fn class_of(&self, level: usize, anchor: usize) -> Class {
        let label = self.targets[level].labels.get(anchor);
        self.scene.head.qfl().class_of(label, self.scene.classes)
    }

    fn fault(&self, level: usize, anchor: usize) -> Option<Fault> {
        let (targets, scene) = (&self.targets[level], self.scene);
        let of = |numbers: &Option<Vec<f64>>| numbers.as_ref().map(|numbers| numbers[anchor]);
        let has_weight = of(&targets.options.label_weights) != Some(0.0);
        let has_class = !matches!(self.class_of(level, anchor), Class::Invalid | Class::Ignored);
        let holds_nan = |scores: &Vec<f64>| {
            let classes = scene.classes;
            scores[anchor * classes..(anchor + 1) * classes].iter().any(|score| score.is_nan())
        };
        if self.is_positive(level, anchor) {
            let place = &scene.places[level];
            let point = place.point(anchor / place.positions(), anchor % place.positions());
            if targets.target_box(anchor).iter().any(|corner| !corner.is_finite()) {
                return Some(Fault::Box);
            }
            if point.iter().any(|at| !at.is_finite()) {
                return Some(Fault::Point);
            }
            if scene.head.quality() == QualitySource::Given
                && of(&targets.options.quality).is_some_and(f64::is_nan)
            {
                return Some(Fault::Quality);
            }
            if of(&targets.options.box_scores).is_some_and(|score| !score.is_finite()) {
                return Some(Fault::BoxScore);
            }
        }
        let scored = targets.options.scores.as_ref().is_some_and(holds_nan);
        (scored && has_weight && has_class).then_some(Fault::Scores)
    }

    /// What is wrong in a row of the status, which are anchors, level after level, image after image.
    fn first(&self, row: u64) -> Option<First> {
        let mut anchor = usize::try_from(row).ok()?;
        for (level, place) in self.scene.places.iter().enumerate() {
            let anchors = self.scene.batch * place.positions();
            if anchor >= anchors {
                anchor -= anchors;
                continue;
            }
            let what = match (self.class_of(level, anchor), self.fault(level, anchor)) {
                (Class::Invalid, _) => "a label",
                (_, Some(fault)) => FAULTS.iter().find(|(of, ..)| *of == fault).map_or("", |words| words.1),
                (_, None) => "a distance",
            };
            let (image, position) = (anchor / place.positions(), anchor % place.positions());
            let place = format!("level {level}, image {image}, position {position}");
            return Some(First { what, place });
        }
        None
    }
}
