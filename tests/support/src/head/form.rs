//! Where the tensors of a level lie in their buffers.

use gfocal::head::Layout;

/// How the tensors of a level lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Nchw,
    ChannelsLast,
    /// Channels of a larger `[B, C', H, W]` tensor, boxes before classes.
    Joint,
    /// Channels of a larger `[B, H, W, C']` tensor, classes before boxes.
    JointLast,
    /// Nothing is next to anything, and images are the fastest axis.
    Scattered,
    /// Rows of a larger `[B, C, H', W']` tensor, at multiples of 8.
    Crop,
    /// Rows of a larger `[B, H', W', C]` tensor.
    CropLast,
    /// Row by row down the columns of a `[B, C, W, H']` tensor.
    Columns,
}

impl Form {
    pub const ALL: [Form; 5] =
        [Form::Nchw, Form::ChannelsLast, Form::Joint, Form::JointLast, Form::Scattered];
    /// Those with rows that do not follow each other.
    pub const ROWS: [Form; 3] = [Form::Crop, Form::CropLast, Form::Columns];
}

/// Where the tensors of a level are.
#[derive(Clone, Copy, Debug)]
pub struct Placement {
    pub cls: Layout,
    pub boxes: Layout,
    /// The length of the buffer for both, or of one for each.
    pub lengths: Result<usize, [usize; 2]>,
}

impl Form {
    pub fn place(self, batch: usize, channels: [usize; 2], [height, width]: [usize; 2]) -> Placement {
        let ([classes, boxes], positions) = (channels, height * width);
        let all = classes + boxes + 5;
        match self {
            Form::Nchw | Form::ChannelsLast => {
                let layout = if self == Form::Nchw { Layout::nchw } else { Layout::channels_last };
                Placement {
                    cls: layout(classes, positions),
                    boxes: layout(boxes, positions),
                    lengths: Err(channels.map(|channels| batch * channels * positions)),
                }
            }
            Form::Joint => {
                let layout = Layout::nchw(all, positions);
                let (boxes, cls) = (layout.from_channel(2), layout.from_channel(boxes + 3));
                Placement { cls, boxes, lengths: Ok(batch * all * positions) }
            }
            Form::JointLast => {
                let layout = Layout { offset: 3, ..Layout::channels_last(all, positions) };
                let (cls, boxes) = (layout, layout.from_channel(classes + 1));
                Placement { cls, boxes, lengths: Ok(3 + batch * all * positions) }
            }
            Form::Scattered => {
                let layout = |channels| Layout {
                    offset: 1,
                    batch: 2,
                    channel: 2 * batch + 1,
                    position: channels * (2 * batch + 1),
                    rows: None,
                };
                let length = |channels| 2 + channels * (2 * batch + 1) * positions;
                Placement { cls: layout(classes), boxes: layout(boxes), lengths: Err(channels.map(length)) }
            }
            Form::Crop | Form::CropLast | Form::Columns => {
                let layout = |channels| match self {
                    Form::Crop => {
                        let pitch = width.next_multiple_of(8) + 8;
                        let whole = Layout::nchw(channels, (height + 1) * pitch);
                        Layout { offset: 8, ..whole }.with_rows(width, pitch)
                    }
                    Form::CropLast => {
                        let whole = Layout::channels_last(channels, (height + 1) * (width + 3));
                        Layout { offset: channels, ..whole }.with_rows(width, (width + 3) * channels)
                    }
                    _ => {
                        let whole = Layout::nchw(channels, (height + 1) * width);
                        Layout { position: height + 1, ..whole }.with_rows(width, 1)
                    }
                };
                let length = |channels| {
                    let Layout { offset, batch: image, .. } = layout(channels);
                    offset + batch * image
                };
                Placement { cls: layout(classes), boxes: layout(boxes), lengths: Err(channels.map(length)) }
            }
        }
    }
}

/// The places of a tensor's elements, in its order.
pub fn places(layout: &Layout, batch: usize, channels: usize, positions: usize) -> Vec<usize> {
    let mut places = Vec::with_capacity(batch * channels * positions);
    for image in 0..batch {
        for channel in 0..channels {
            let first = layout.offset + image * layout.batch + channel * layout.channel;
            places.extend((0..positions).map(|position| match layout.rows {
                Some(rows) => {
                    first + position / rows.width * rows.step + position % rows.width * layout.position
                }
                None => first + position * layout.position,
            }));
        }
    }
    places
}
