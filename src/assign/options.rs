//! What all assignments can be told.

use crate::error::{Result, check_option};
use crate::qfl::Background;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Options {
    pub background: Background,
    /// At most 0: nothing is ignored.
    pub ignore_iof: f32,
    /// How many anchors a box gets that has none otherwise.
    pub fallback: u32,
}

impl Default for Options {
    fn default() -> Self {
        Options { background: Background::Last, ignore_iof: -1.0, fallback: 0 }
    }
}

impl Options {
    pub fn with_ignore_iof(self, threshold: f32) -> Result<Self> {
        let allowed = threshold == -1.0 || (threshold > 0.0 && threshold <= 1.0);
        check_option("ignore_iof", threshold.into(), "above 0 and at most 1, or -1 for none", allowed)?;
        Ok(Options { ignore_iof: threshold, ..self })
    }

    pub fn with_fallback(self, anchors: usize) -> Result<Self> {
        check_option("fallback", anchors as f64, "at most 2147483647", anchors <= i32::MAX as usize)?;
        Ok(Options { fallback: anchors as u32, ..self })
    }

    pub fn ignores(&self) -> bool {
        self.ignore_iof > 0.0
    }

    /// The label of background.
    pub fn background_label(&self, classes: usize) -> i64 {
        match self.background {
            Background::Last => classes as i64,
            Background::First => 0,
        }
    }

    /// Whether a label is one of the classes.
    pub fn is_class(&self, label: i64, classes: usize) -> bool {
        let first = i64::from(self.background == Background::First);
        (first..first + classes as i64).contains(&label)
    }
}

/// The same options for each assignment, in its own words.
macro_rules! options {
    ($assigner:ty) => {
        impl $assigner {
            /// Which labels are classes, and which is the background's, for
            /// [`GroundTruth`](super::GroundTruth) and [`LevelTargets`](super::LevelTargets). What
            /// trains on them must agree: see
            /// [`QualityFocalLoss::with_background`](crate::QualityFocalLoss::with_background).
            #[must_use]
            pub fn with_background(mut self, background: crate::Background) -> Self {
                self.options.background = background;
                self
            }

            /// Anchors of which more than this part lies in one of
            /// [`GroundTruth::ignore`](super::GroundTruth::ignore)'s boxes take no part: their
            /// intersection over the anchor's area is above it (mmdetection's `ignore_iof_thr`).
            /// A point, which has no area, is in a box (1) or not (0). The default is -1: none.
            ///
            /// # Errors
            /// It must be above 0 and at most 1, or -1.
            pub fn with_ignore_iof(mut self, threshold: f32) -> crate::Result<Self> {
                self.options = self.options.with_ignore_iof(threshold)?;
                Ok(self)
            }

            /// A box that no anchor is assigned to is given so many: of those that take part and are
            /// still background, in its image and on all levels, the ones whose centres are nearest.
            /// Such boxes choose in their order. The default is 0: it gets none, and is counted.
            ///
            /// # Errors
            /// It must be below 2^31.
            pub fn with_fallback(mut self, anchors: usize) -> crate::Result<Self> {
                self.options = self.options.with_fallback(anchors)?;
                Ok(self)
            }
        }
    };
}
pub(super) use options;
