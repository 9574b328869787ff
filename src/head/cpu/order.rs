//! The elements of a tensor in the order of their places in memory.

use std::ops::Range;

use crate::head::Layout;

/// An axis of a `[batch, channels, positions]` tensor.
pub(super) const IMAGE: usize = 0;
pub(super) const CHANNEL: usize = 1;
pub(super) const POSITION: usize = 2;

/// A `[batch, channels, positions]` tensor whose elements are numbered with the axis of the
/// smallest stride fastest. In a layout without overlaps, which gradients have, a larger number is
/// a later place: so consecutive numbers lie in a part of the buffer that is theirs alone.
#[derive(Clone, Copy)]
pub struct Order {
    pub layout: Layout,
    pub extents: [usize; 3],
    strides: [usize; 3],
    /// The axes, slowest first.
    axes: [usize; 3],
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
    pub fn new(layout: Layout, extents: [usize; 3]) -> Order {
        let strides = [layout.batch, layout.channel, layout.position];
        let mut axes = [IMAGE, CHANNEL, POSITION];
        // Axes of one element have no part in it, whatever their strides.
        axes.sort_by_key(|&axis| (extents[axis] > 1, std::cmp::Reverse(strides[axis])));
        let mut stretch = 1;
        for axis in axes.into_iter().rev() {
            if extents[axis] > 1 && strides[axis] != stretch {
                break;
            }
            stretch *= extents[axis].max(1);
        }
        Order { layout, extents, strides, axes, stretch }
    }

    pub fn elements(&self) -> usize {
        self.extents.iter().product()
    }

    /// The axis that is fastest.
    pub fn fastest(&self) -> usize {
        self.axes[2]
    }

    /// Image, channel and position of an element.
    fn coordinates(&self, element: usize) -> [usize; 3] {
        let [slow, middle, fast] = self.axes;
        let rest = element / self.extents[fast];
        let mut coordinates = [0; 3];
        coordinates[fast] = element % self.extents[fast];
        coordinates[middle] = rest % self.extents[middle];
        coordinates[slow] = rest / self.extents[middle];
        coordinates
    }

    /// The number of an element.
    pub fn number(&self, coordinates: [usize; 3]) -> usize {
        let [slow, middle, fast] = self.axes;
        (coordinates[slow] * self.extents[middle] + coordinates[middle]) * self.extents[fast]
            + coordinates[fast]
    }

    /// Where in the buffer an element is.
    pub fn place(&self, element: usize) -> usize {
        let [image, channel, position] = self.coordinates(element);
        self.layout.place(image, channel, position)
    }

    /// Elements cut into runs.
    pub fn runs(&self, elements: Range<usize>) -> impl Iterator<Item = Run> {
        pieces(elements, self.extents[self.fastest()])
            .map(|elements| Run { first: self.coordinates(elements.start), elements })
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

    /// Images, channels and positions among which those of the elements are.
    pub fn bounds(&self, elements: &Range<usize>) -> [Range<usize>; 3] {
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

    /// Every layout of a few extents, dense and with gaps.
    fn orders() -> Vec<Order> {
        let mut orders = Vec::new();
        for extents in [[2, 3, 5], [1, 3, 4], [2, 1, 7], [3, 2, 1], [1, 1, 1], [2, 300, 70]] {
            for [a, b, c] in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
                for gap in [0, 1] {
                    let mut strides = [0; 3];
                    strides[c] = 1 + gap;
                    strides[b] = strides[c] * extents[c] + gap;
                    strides[a] = strides[b] * extents[b] + gap;
                    let [batch, channel, position] = strides;
                    orders.push(Order::new(Layout { offset: 2, batch, channel, position }, extents));
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
                        assert!((0..3).all(|axis| bounds[axis].contains(&at[axis])));
                    }
                }
            }
        }
    }
}
