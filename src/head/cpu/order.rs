//! The elements of a tensor in the order of their places in memory.

use std::ops::Range;

use crate::head::Layout;

/// An axis of a `[images, channels, rows, columns]` tensor. Rows that follow each other are one row.
pub(super) const IMAGE: usize = 0;
pub(super) const CHANNEL: usize = 1;
pub(super) const ROW: usize = 2;
const COLUMN: usize = 3;

/// A `[batch, channels, positions]` tensor whose elements are numbered with the axis of the
/// smallest stride fastest. In a layout without overlaps, which gradients have, a larger number is
/// a later place: so consecutive numbers lie in a part of the buffer that is theirs alone.
#[derive(Clone, Copy)]
pub struct Order {
    offset: usize,
    extents: [usize; 4],
    strides: [usize; 4],
    /// The axes, slowest first.
    axes: [usize; 4],
    /// So many elements, from each multiple of it on, lie side by side.
    stretch: usize,
}

/// Elements along the fastest axis.
pub struct Run {
    /// Their numbers.
    pub elements: Range<usize>,
    /// Image, channel and position of the first.
    pub first: [usize; 3],
}

/// Elements at equal steps in the buffer.
struct Steps {
    elements: Range<usize>,
    place: usize,
    step: usize,
}

impl Order {
    /// `width`: that of rows which do not follow each other.
    pub fn new(layout: Layout, [images, channels, positions]: [usize; 3], width: Option<usize>) -> Order {
        let width = width.unwrap_or(positions);
        let rows = positions.checked_div(width).unwrap_or(1);
        let extents = [images, channels, rows, width];
        let mut order =
            Order { offset: 0, extents, strides: [0; 4], axes: [0, 1, 2, 3], stretch: 1 }.of(layout);
        // Axes of one element have no part in it, whatever their strides.
        order.axes.sort_by_key(|&axis| (extents[axis] > 1, std::cmp::Reverse(order.strides[axis])));
        order.of(layout)
    }

    /// The same elements with the same numbers in another layout.
    pub fn of(self, layout: Layout) -> Order {
        let Layout { offset, batch, channel, position, rows } = layout;
        let row = rows.map_or(self.extents[COLUMN].wrapping_mul(position), |rows| rows.step);
        let strides = [batch, channel, row, position];
        let mut stretch = 1;
        for axis in self.axes.into_iter().rev() {
            if self.extents[axis] > 1 && strides[axis] != stretch {
                break;
            }
            stretch *= self.extents[axis].max(1);
        }
        Order { offset, strides, stretch, ..self }
    }

    /// Images, channels, positions.
    pub fn extents(&self) -> [usize; 3] {
        let [images, channels, rows, columns] = self.extents;
        [images, channels, rows * columns]
    }

    pub fn elements(&self) -> usize {
        self.extents.iter().product()
    }

    fn fastest(&self) -> usize {
        self.axes[3]
    }

    /// How many positions, and how many channels, further the next element of a run is.
    pub fn step(&self) -> [usize; 2] {
        match self.fastest() {
            IMAGE => [self.extents()[2], 0],
            CHANNEL => [0, 1],
            ROW => [self.extents[COLUMN], 0],
            _ => [1, 0],
        }
    }

    /// Image, channel, row and column of an element.
    fn coordinates(&self, element: usize) -> [usize; 4] {
        let (mut coordinates, mut rest) = ([0; 4], element);
        for axis in self.axes.into_iter().rev() {
            coordinates[axis] = rest % self.extents[axis];
            rest /= self.extents[axis];
        }
        coordinates
    }

    /// The same of an image, a channel and a position.
    pub fn coordinates_of(&self, [image, channel, position]: [usize; 3]) -> [usize; 4] {
        let width = self.extents[COLUMN];
        [image, channel, position / width, position % width]
    }

    /// The number of an element.
    pub fn number(&self, coordinates: [usize; 4]) -> usize {
        self.axes.into_iter().fold(0, |number, axis| number * self.extents[axis] + coordinates[axis])
    }

    /// Where in the buffer an element is.
    fn place(&self, element: usize) -> usize {
        self.place_of(self.coordinates(element))
    }

    pub fn place_of(&self, coordinates: [usize; 4]) -> usize {
        self.offset + coordinates.iter().zip(self.strides).map(|(at, stride)| at * stride).sum::<usize>()
    }

    /// Elements cut into runs.
    pub fn runs(&self, elements: Range<usize>) -> impl Iterator<Item = Run> {
        pieces(elements, self.extents[self.fastest()]).map(|elements| {
            let [image, channel, row, column] = self.coordinates(elements.start);
            Run { first: [image, channel, row * self.extents[COLUMN] + column], elements }
        })
    }

    fn steps(&self, elements: Range<usize>) -> impl Iterator<Item = Steps> {
        let fastest = self.fastest();
        let (length, step) =
            if self.stretch > 1 { (self.stretch, 1) } else { (self.extents[fastest], self.strides[fastest]) };
        pieces(elements, length).map(move |elements| Steps {
            place: self.place(elements.start),
            elements,
            step,
        })
    }

    /// The first place of elements that lie side by side.
    pub fn contiguous(&self, elements: &Range<usize>) -> Option<usize> {
        let within = elements.start / self.stretch == (elements.end - 1) / self.stretch;
        within.then(|| self.place(elements.start))
    }

    /// Copies elements out of the buffer.
    pub fn gather<T: Copy>(&self, elements: Range<usize>, buffer: &[T], to: &mut [T]) {
        let first = elements.start;
        for Steps { elements, place, step } in self.steps(elements) {
            let to = &mut to[elements.start - first..elements.end - first];
            if step == 1 {
                to.copy_from_slice(&buffer[place..place + to.len()]);
            } else {
                for (i, to) in to.iter_mut().enumerate() {
                    *to = buffer[place + i * step];
                }
            }
        }
    }

    /// Copies elements into a part of the buffer that starts at `start`.
    pub fn scatter<T: Copy>(&self, elements: Range<usize>, from: &[T], buffer: &mut [T], start: usize) {
        let first = elements.start;
        for Steps { elements, place, step } in self.steps(elements) {
            let (from, place) = (&from[elements.start - first..elements.end - first], place - start);
            if step == 1 {
                buffer[place..place + from.len()].copy_from_slice(from);
            } else {
                for (i, from) in from.iter().enumerate() {
                    buffer[place + i * step] = *from;
                }
            }
        }
    }

    /// Sets elements in a part of the buffer that starts at `start`.
    pub fn fill<T: Copy>(&self, elements: Range<usize>, value: T, buffer: &mut [T], start: usize) {
        for Steps { elements, place, step } in self.steps(elements) {
            let place = place - start;
            if step == 1 {
                buffer[place..place + elements.len()].fill(value);
            } else {
                (0..elements.len()).for_each(|i| buffer[place + i * step] = value);
            }
        }
    }

    /// Positions among which are those of these rows and columns.
    pub fn positions(&self, bounds: &[Range<usize>; 4]) -> Range<usize> {
        let (width, rows, columns) = (self.extents[COLUMN], &bounds[ROW], &bounds[COLUMN]);
        rows.start * width + columns.start..(rows.end - 1) * width + columns.end
    }

    /// Images, channels, rows and columns among which those of the elements are.
    pub fn bounds(&self, elements: &Range<usize>) -> [Range<usize>; 4] {
        let (first, last) = (self.coordinates(elements.start), self.coordinates(elements.end - 1));
        let mut bounds = self.extents.map(|extent| 0..extent);
        for axis in self.axes {
            bounds[axis] = first[axis]..last[axis] + 1;
            if first[axis] != last[axis] {
                break;
            }
        }
        bounds
    }
}

/// A range cut at the multiples of `length`.
fn pieces(range: Range<usize>, length: usize) -> impl Iterator<Item = Range<usize>> {
    let mut start = range.start;
    std::iter::from_fn(move || {
        let end = range.end.min((start / length + 1).saturating_mul(length));
        let piece = start..end;
        start = end;
        (!piece.is_empty()).then_some(piece)
    })
}

/// Some of the elements of a tensor, and the part of a buffer that has them and no others of the
/// tensor.
pub(super) struct Block<'a, T> {
    pub elements: Range<usize>,
    /// Where the part starts in the buffer.
    pub start: usize,
    pub part: Option<&'a mut [T]>,
}

/// Cuts a tensor into blocks, and with it the buffer, if there is one. The sizes depend on the
/// shape alone.
pub(super) fn blocks<'a, T>(order: &Order, buffer: Option<&'a mut [T]>) -> Vec<Block<'a, T>> {
    let elements = order.elements();
    let length = (elements / 256).clamp(1 << 14, 1 << 17);
    let (mut rest, mut passed) = (buffer, 0);
    pieces(0..elements, length)
        .map(|elements| {
            let Some(buffer) = rest.take() else { return Block { elements, start: 0, part: None } };
            let (start, end) = (order.place(elements.start), order.place(elements.end - 1) + 1);
            let (part, after) = buffer[start - passed..].split_at_mut(end - start);
            (rest, passed) = (Some(after), end);
            Block { elements, start, part: Some(part) }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every layout of a few extents, dense and with gaps; then with rows apart.
    fn orders() -> Vec<Order> {
        let mut orders = Vec::new();
        for [images, channels, rows, width] in [[2, 3, 5, 4], [1, 2, 3, 7], [3, 1, 40, 300]] {
            for step in [0, 1, 5] {
                let extents = [images, channels, rows * width];
                let row = |position| width * position + step;
                let nchw = Layout {
                    offset: 3,
                    batch: channels * rows * row(1),
                    channel: rows * row(1),
                    position: 1,
                    rows: None,
                };
                let last = Layout { batch: rows * row(channels), channel: 1, position: channels, ..nchw };
                let columns_first = Layout {
                    batch: channels * (step + 1) * rows * width,
                    channel: (step + 1) * rows * width,
                    position: rows * (step + 1),
                    ..nchw
                };
                for layout in [
                    nchw.with_rows(width, row(1)),
                    last.with_rows(width, row(channels)),
                    columns_first.with_rows(width, step + 1),
                ] {
                    orders.push(Order::new(layout, extents, Some(width)));
                }
            }
        }
        for extents in [[2, 3, 5], [1, 3, 4], [2, 1, 7], [3, 2, 1], [1, 1, 1], [2, 300, 70]] {
            for [a, b, c] in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
                for gap in [0, 1] {
                    let mut strides = [0; 3];
                    strides[c] = 1 + gap;
                    strides[b] = strides[c] * extents[c] + gap;
                    strides[a] = strides[b] * extents[b] + gap;
                    let [batch, channel, position] = strides;
                    let layout = Layout { offset: 2, batch, channel, position, rows: None };
                    orders.push(Order::new(layout, extents, None));
                }
            }
        }
        orders
    }

    #[test]
    fn numbers_follow_places() {
        for order in orders() {
            let mut before = None;
            for element in 0..order.elements() {
                let place = order.place(element);
                assert!(before < Some(place));
                before = Some(place);
                assert_eq!(order.number(order.coordinates(element)), element);
            }
        }
    }

    #[test]
    fn what_is_scattered_is_gathered() {
        for order in orders() {
            let count = order.elements();
            let values: Vec<usize> = (100..100 + count).collect();
            let mut buffer = vec![0; order.place(count - 1) + 2];
            let blocks = blocks(&order, Some(&mut buffer));
            assert!(count < 1 << 14 || blocks.len() > 1, "several blocks");
            for Block { elements, start, part } in blocks {
                let part = part.expect("a part of the buffer");
                assert_eq!(order.place(elements.start), start);
                order.fill(elements.clone(), 1, part, start);
                order.scatter(elements.clone(), &values[elements], part, start);
            }
            assert_eq!(buffer.iter().filter(|&&value| value >= 100).count(), count);
            assert_eq!(buffer.iter().sum::<usize>(), values.iter().sum(), "nothing else was written");
            for range in [0..count, count / 3..count, 0..count / 2 + 1] {
                let mut got = vec![0; range.len()];
                order.gather(range.clone(), &buffer, &mut got);
                assert_eq!(got, values[range.clone()]);
                if let Some(place) = order.contiguous(&range) {
                    assert_eq!(buffer[place..place + range.len()], values[range.clone()]);
                }
                let bounds = order.bounds(&range);
                for run in order.runs(range) {
                    for element in run.elements {
                        let at = order.coordinates(element);
                        assert!((0..4).all(|axis| bounds[axis].contains(&at[axis])));
                    }
                }
            }
        }
    }
}
