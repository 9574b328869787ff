//! Where the elements of a tensor are.

use std::fmt;

/// Where the elements of a `[batch, channels, positions]` tensor are, in elements from the start
/// of its buffer: element (b, c, p) is at `offset + b·batch + c·channel + p·position`. Positions
/// are row after row of the level: p = y·width + x. With `rows` the element is at
/// `offset + b·batch + c·channel + y·rows.step + x·position`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// The first element.
    pub offset: usize,
    /// From one image to the next.
    pub batch: usize,
    /// From one channel to the next.
    pub channel: usize,
    /// From one position to the next, in a row.
    pub position: usize,
    /// Where rows begin, if they do not follow each other: see [`with_rows`](Self::with_rows).
    pub rows: Option<Rows>,
}

/// Rows of positions that do not follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rows {
    /// Positions in a row: the width of the level.
    pub width: usize,
    /// From one row to the next.
    pub step: usize,
}

impl Layout {
    /// `[B, C, H, W]`, as convolutions give it.
    pub fn nchw(channels: usize, positions: usize) -> Self {
        Layout { offset: 0, batch: channels * positions, channel: positions, position: 1, rows: None }
    }

    /// `[B, H·W, C]`, channels last.
    pub fn channels_last(channels: usize, positions: usize) -> Self {
        Layout { offset: 0, batch: channels * positions, channel: 1, position: channels, rows: None }
    }

    /// Rows of `width` positions, each `step` elements after the one before: those of a pitched
    /// tensor, or of a part of a larger one.
    ///
    /// ```
    /// use gfocal::head::Layout;
    ///
    /// // Of a [B, C, 6, 10] tensor the 4 by 7 positions from row 1, column 2 on.
    /// let whole = Layout::nchw(80, 60);
    /// let part = Layout { offset: 1 * 10 + 2, ..whole }.with_rows(7, 10);
    /// assert_eq!(part.index(0, 3, 7), 3 * 60 + 2 * 10 + 2);
    /// ```
    #[must_use]
    pub fn with_rows(self, width: usize, step: usize) -> Self {
        Layout { rows: Some(Rows { width, step }), ..self }
    }

    /// Where an element is. It may overflow for places that are in no buffer.
    pub fn index(&self, image: usize, channel: usize, position: usize) -> usize {
        let first = self.offset + image * self.batch + channel * self.channel;
        match self.rows {
            Some(Rows { width, step }) if position >= width => {
                let row = position.checked_div(width).unwrap_or(0);
                first + row * step + (position - row * width) * self.position
            }
            _ => first + position * self.position,
        }
    }

    /// The channels from `channel` on of this tensor, as those of a head that concatenates its
    /// outputs.
    #[must_use]
    pub fn from_channel(self, channel: usize) -> Self {
        Layout { offset: self.offset + channel * self.channel, ..self }
    }

    /// Where an element is.
    pub(crate) fn place(&self, image: usize, channel: usize, position: usize) -> usize {
        self.index(image, channel, position)
    }

    /// The rows, unless they follow each other, or there is just one.
    pub(crate) fn pitch(&self, positions: usize) -> Option<Rows> {
        let follow = |rows: &Rows| rows.width.checked_mul(self.position) == Some(rows.step);
        self.rows.filter(|rows| positions > rows.width && !follow(rows))
    }

    /// What is between rows besides, as kernels take it: 0 if they follow each other. Of rows that overlap, or go before
    /// each other, it is below 0, and wraps.
    #[cfg(feature = "cuda")]
    pub(crate) fn row_gap(&self, positions: usize) -> u64 {
        self.pitch(positions).map_or(0, |rows| rows.step.wrapping_sub(rows.width * self.position)) as u64
    }
}

/// As a struct without the rows that there are not.
impl fmt::Debug for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Layout { offset, batch, channel, position, rows } = self;
        let mut fields = f.debug_struct("Layout");
        fields.field("offset", offset).field("batch", batch).field("channel", channel);
        fields.field("position", position);
        if let Some(rows) = rows {
            fields.field("rows", rows);
        }
        fields.finish()
    }
}
