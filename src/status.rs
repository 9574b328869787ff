//! What was wrong with the values of the inputs, as opposed to their sizes.

use std::ops::AddAssign;

/// Counts of rows whose labels or targets could not be used as they were.
///
/// Such values never stop a computation: see the table of semantics in the crate's
/// documentation for what becomes of each. Rows that are masked by a weight of 0 or by the
/// ignore label are not looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Labels that are neither a class nor the background. Such a row gives no loss.
    pub bad_labels: u32,
    /// Qualities that are NaN, and rows of dense targets that hold a NaN. Such a row gives no
    /// loss.
    pub bad_qualities: u32,
    /// DFL targets outside the bins (clamped), or NaN (no loss).
    pub out_of_range_targets: u32,
    /// The first of all these rows.
    pub first_bad_row: Option<u64>,
    /// What was wrong with the ground truth of an assignment.
    pub assignment: AssignmentStatus,
}

/// Counts of ground-truth boxes that an assignment could not use, or found no anchor for. One may
/// count in several; padding, which has image -1, counts in none.
///
/// Boxes to ignore that cannot be used count, too, where there is anything to ignore by; their
/// numbers go on behind those of the boxes to be found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AssignmentStatus {
    /// Not finite, or without width or height.
    pub bad_boxes: Counted,
    /// Whose label is not a class.
    pub bad_labels: Counted,
    /// In an image that is neither in the batch nor -1.
    pub bad_images: Counted,
    /// Which could be used, but have no anchor in the end: none fits, or others have all that do.
    pub unassigned: Counted,
}

/// How many, and the number of the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// How many.
    pub count: u32,
    /// The number of the first.
    pub first: Option<u64>,
}

impl Counted {
    /// Numbers come in order, so that the first stays.
    pub(crate) fn add(&mut self, number: usize) {
        self.count += 1;
        self.first.get_or_insert(number as u64);
    }

    fn append(&mut self, later: &Counted) {
        self.count += later.count;
        self.first = self.first.or(later.first);
    }
}

impl AssignmentStatus {
    /// Whether nothing was wrong.
    pub fn is_ok(&self) -> bool {
        *self == AssignmentStatus::default()
    }

    fn append(&mut self, later: &AssignmentStatus) {
        self.bad_boxes.append(&later.bad_boxes);
        self.bad_labels.append(&later.bad_labels);
        self.bad_images.append(&later.bad_images);
        self.unassigned.append(&later.unassigned);
    }
}

/// Counts of another call's: with the first of both.
///
/// ```
/// use gfocal::Status;
///
/// let mut all = Status { bad_labels: 2, first_bad_row: Some(7), ..Status::default() };
/// all += Status { bad_labels: 1, first_bad_row: Some(3), ..Status::default() };
/// assert_eq!((all.bad_labels, all.first_bad_row), (3, Some(3)));
/// ```
impl AddAssign for Status {
    fn add_assign(&mut self, other: Status) {
        self.bad_labels = self.bad_labels.saturating_add(other.bad_labels);
        self.bad_qualities = self.bad_qualities.saturating_add(other.bad_qualities);
        self.out_of_range_targets = self.out_of_range_targets.saturating_add(other.out_of_range_targets);
        self.first_bad_row = first(self.first_bad_row, other.first_bad_row);
        let (to, from) = (&mut self.assignment, &other.assignment);
        for (to, from) in [
            (&mut to.bad_boxes, &from.bad_boxes),
            (&mut to.bad_labels, &from.bad_labels),
            (&mut to.bad_images, &from.bad_images),
            (&mut to.unassigned, &from.unassigned),
        ] {
            to.count = to.count.saturating_add(from.count);
            to.first = first(to.first, from.first);
        }
    }
}

fn first(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    one.into_iter().chain(other).min()
}

impl Status {
    /// How many words [`to_words`](Self::to_words) gives.
    pub const WORDS: usize = 9;

    /// The words that a status on a device is made of, zeros if nothing was wrong: for bindings to other languages,
    /// which have room for words alone.
    ///
    /// ```
    /// use gfocal::Status;
    ///
    /// let status = Status { bad_labels: 2, first_bad_row: Some(7), ..Status::default() };
    /// assert_eq!(status.to_words()[0], 2);
    /// assert_eq!(Status::from_words(status.to_words()), status);
    /// ```
    pub fn to_words(&self) -> [u64; Self::WORDS] {
        let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        let not = |first: Option<u64>| first.map_or(0, |first| !first);
        let AssignmentStatus { bad_boxes, bad_labels, bad_images, unassigned } = self.assignment;
        [
            pair(self.bad_labels, self.bad_qualities),
            pair(self.out_of_range_targets, 0),
            not(self.first_bad_row),
            pair(bad_boxes.count, bad_labels.count),
            pair(bad_images.count, unassigned.count),
            not(bad_boxes.first),
            not(bad_labels.first),
            not(bad_images.first),
            not(unassigned.first),
        ]
    }

    /// What such words say.
    pub fn from_words(words: [u64; Self::WORDS]) -> Status {
        let count = |i: usize| (words[i / 2] >> (32 * (i % 2))) as u32;
        let first = |i: usize| (words[i] != 0).then_some(!words[i]);
        let counted = |i: usize| Counted { count: count(6 + i), first: first(5 + i) };
        Status {
            bad_labels: count(0),
            bad_qualities: count(1),
            out_of_range_targets: count(2),
            first_bad_row: first(2),
            assignment: AssignmentStatus {
                bad_boxes: counted(0),
                bad_labels: counted(1),
                bad_images: counted(2),
                unassigned: counted(3),
            },
        }
    }

    /// Whether nothing was wrong.
    pub fn is_ok(&self) -> bool {
        *self == Status::default()
    }

    pub(crate) fn bad_label(&mut self, row: usize) {
        self.bad_labels += 1;
        self.bad_row(row);
    }

    pub(crate) fn bad_quality(&mut self, row: usize) {
        self.bad_qualities += 1;
        self.bad_row(row);
    }

    pub(crate) fn out_of_range_target(&mut self, row: usize) {
        self.out_of_range_targets += 1;
        self.bad_row(row);
    }

    /// Adds the counts of rows that come after all of these.
    pub(crate) fn append(&mut self, later: &Status) {
        self.bad_labels += later.bad_labels;
        self.bad_qualities += later.bad_qualities;
        self.out_of_range_targets += later.out_of_range_targets;
        self.first_bad_row = self.first_bad_row.or(later.first_bad_row);
        self.assignment.append(&later.assignment);
    }

    /// Rows come in order, so that the first stays.
    fn bad_row(&mut self, row: usize) {
        self.first_bad_row.get_or_insert(row as u64);
    }
}
