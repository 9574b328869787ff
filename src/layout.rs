//! Where the elements of a tensor are.

/// Where the elements of a `[batch, channels, positions]` tensor are, in elements from the start
/// of its buffer: element (b, c, p) is at `offset + b·batch + c·channel + p·position`. Positions
/// are row after row of the level: p = y·width + x.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The first element.
    pub offset: usize,
    /// From one image to the next.
    pub batch: usize,
    /// From one channel to the next.
    pub channel: usize,
    /// From one position to the next.
    pub position: usize,
}

impl Layout {
    /// `[B, C, H, W]`, as convolutions give it.
    pub fn nchw(channels: usize, positions: usize) -> Self {
        Layout { offset: 0, batch: channels * positions, channel: positions, position: 1 }
    }

    /// `[B, H·W, C]`, channels last.
    pub fn channels_last(channels: usize, positions: usize) -> Self {
        Layout { offset: 0, batch: channels * positions, channel: 1, position: channels }
    }

    /// Where an element is. It may overflow for places that are in no buffer.
    pub fn index(&self, image: usize, channel: usize, position: usize) -> usize {
        self.offset + image * self.batch + channel * self.channel + position * self.position
    }

    /// The channels from `channel` on of this tensor, as those of a head that concatenates its
    /// outputs.
    #[must_use]
    pub fn from_channel(self, channel: usize) -> Self {
        Layout { offset: self.offset + channel * self.channel, ..self }
    }

    /// Where an element is.
    pub(crate) fn place(&self, image: usize, channel: usize, position: usize) -> usize {
        self.offset + image * self.batch + channel * self.channel + position * self.position
    }
}
