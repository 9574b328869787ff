//! What was wrong with the values of the inputs, as opposed to their sizes.

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
}

impl Status {
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
    }

    /// Rows come in order, so that the first stays.
    fn bad_row(&mut self, row: usize) {
        self.first_bad_row.get_or_insert(row as u64);
    }
}
