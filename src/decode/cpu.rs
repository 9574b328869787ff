//! Decoding on the CPU: tiles of positions on all threads. Bins in f32 and halves go through vectors of f32, 16
//! positions at a time; f64, sides of one logit, and what f32 has no room for, through f64.

use std::iter;
use std::marker::PhantomData;
use std::ops::Range;

use half::{bf16, f16};

use super::{Level, check, check_flag};
use crate::cpu::{fits_single, map, split_off};
use crate::element::{Element, compiled};
use crate::error::Result;
use crate::head::{BoxCoding, Points};
use crate::integral::{expectation_of, is_single, slopes};
use crate::memory::Host;
use crate::vector::{Isa, LANES, Lanes, integral_columns};

compiled! {
    /// Decoding on the CPU.
    DecodeOnCpu: Element for [f64, f32, f16, bf16] {
        fn decode(
            coding: (BoxCoding, usize),
            batch: usize,
            levels: &[Level<'_, Host, Self>],
            boxes: &mut [<Self as Element>::Loss],
        ) = decode;
        fn decode_slopes(
            coding: (BoxCoding, usize),
            batch: usize,
            levels: &[Level<'_, Host, Self>],
            upstream: &[<Self as Element>::Loss],
            grads: &mut [&mut [Self]],
            found_inf: Option<&mut [f32]>,
        ) = decode_slopes;
    }
}

/// The boxes `[B, A, 4]` of all levels: x1, y1, x2, y2 in pixels.
///
/// # Errors
/// If there are not 1 to [`MAX_LEVELS`](crate::head::MAX_LEVELS) levels, a length does not fit the shapes, a layout
/// leads out of its buffer, or an option is outside its range.
pub fn forward<T: Element>(
    coding: BoxCoding,
    batch: usize,
    levels: &[Level<Host, T>],
    boxes: &mut [T::Loss],
) -> Result<()> {
    let bins = check(coding, batch, levels, ("boxes", boxes.len()), None)?;
    T::decode((coding, bins), batch, levels, boxes);
    Ok(())
}

fn decode<T: Element>(
    (coding, bins): (BoxCoding, usize),
    batch: usize,
    levels: &[Level<Host, T>],
    boxes: &mut [T::Loss],
) {
    let mut rest = boxes;
    let tiles = tiles(coding, bins, batch, levels, |_, count| split_off(&mut rest, count));
    run(tiles, |tile, boxes| tile.decode(boxes));
}

/// The gradients of the logits, a buffer for each level in the layout of its logits, given the gradient `upstream`
/// `[B, A, 4]` with respect to the boxes. All of the box logits' places are written, others are not.
///
/// `found_inf`, `[1]`, is set to 1 if a gradient that is stored is inf or NaN, and is otherwise left as it is.
///
/// # Errors
/// As [`forward`], and if a layout has two elements in one place, or `found_inf` is not one element.
pub fn backward<T: Element>(
    coding: BoxCoding,
    batch: usize,
    levels: &[Level<Host, T>],
    upstream: &[T::Loss],
    grads: &mut [&mut [T]],
    found_inf: Option<&mut [f32]>,
) -> Result<()> {
    let bins = check(coding, batch, levels, ("upstream", upstream.len()), Some(grads))?;
    check_flag(found_inf.as_deref().map(<[_]>::len))?;
    T::decode_slopes((coding, bins), batch, levels, upstream, grads, found_inf);
    Ok(())
}

/// After [`check`] and [`check_flag`].
fn decode_slopes<T: Element>(
    (coding, bins): (BoxCoding, usize),
    batch: usize,
    levels: &[Level<Host, T>],
    upstream: &[T::Loss],
    grads: &mut [&mut [T]],
    found_inf: Option<&mut [f32]>,
) {
    let look_for_inf = found_inf.is_some();
    let grads: Vec<_> = grads.iter_mut().map(|grad| Places::new(grad)).collect();
    let mut rest = upstream;
    let tiles = tiles(coding, bins, batch, levels, |level, count| {
        let upstream;
        (upstream, rest) = rest.split_at(count);
        (upstream, &grads[level])
    });
    // SAFETY: `check` has seen that the elements of a layout are in different places, and each tile has positions that
    // no other has.
    let finite = run(tiles, |tile, (upstream, grad)| unsafe { tile.slopes(upstream, grad, look_for_inf) });
    if let Some([found_inf]) = found_inf.filter(|_| finite.contains(&false)) {
        *found_inf = 1.0;
    }
}

/// Positions of an image of a level.
struct Tile<'l, 'a, T: Element> {
    coding: BoxCoding,
    bins: usize,
    level: &'l Level<'a, Host, T>,
    image: usize,
    positions: Range<usize>,
}

/// Positions of a tile, at most: so many that handing it out costs nothing. A multiple of [`LANES`].
const TILE: usize = 256;

/// The tiles of all levels in the order of their boxes, and what `part` gives for a level and so many coordinates.
fn tiles<'l, 'a, T: Element, P>(
    coding: BoxCoding,
    bins: usize,
    batch: usize,
    levels: &'l [Level<'a, Host, T>],
    mut part: impl FnMut(usize, usize) -> P,
) -> Vec<(Tile<'l, 'a, T>, P)> {
    let mut tiles = Vec::new();
    for image in 0..batch {
        for (index, level) in levels.iter().enumerate() {
            let all = level.positions();
            for start in (0..all).step_by(TILE) {
                let positions = start..all.min(start + TILE);
                let part = part(index, 4 * positions.len());
                tiles.push((Tile { coding, bins, level, image, positions }, part));
            }
        }
    }
    tiles
}

fn run<'l, 'a: 'l, T: Element, P: Send, R: Send>(
    tiles: Vec<(Tile<'l, 'a, T>, P)>,
    run: impl Fn(&Tile<'l, 'a, T>, P) -> R + Sync,
) -> Vec<R> {
    let logits: usize = tiles.iter().map(|(tile, _)| 4 * tile.bins * tile.positions.len()).sum();
    map(logits, tiles.into_iter(), |(tile, part)| run(&tile, part))
}

/// Room for a side of [`LANES`] positions.
struct Room<T> {
    z: Vec<Lanes>,
    /// `[bins, LANES]`
    logits: Vec<T>,
    grad: Vec<T>,
    /// `[bins]`, of one position
    row: Vec<T>,
    row_grad: Vec<T>,
}

impl<T: Element> Room<T> {
    fn new(bins: usize) -> Self {
        let of = |len| vec![T::NO_LOSS; len];
        let (lanes, row) = (bins * LANES, bins);
        Room {
            z: vec![Lanes::default(); bins],
            logits: of(lanes),
            grad: of(lanes),
            row: of(row),
            row_grad: of(row),
        }
    }
}

/// Left and top are on the lower side of the point.
fn sign(side: usize) -> f64 {
    if side < 2 { -1.0 } else { 1.0 }
}

impl<T: Element> Tile<'_, '_, T> {
    /// Whether sides are distributions for vectors of f32.
    fn single(&self) -> bool {
        self.bins > 1 && is_single::<T>(self.bins)
    }

    /// [`LANES`] positions, or those that are left, here or in a row that lies apart from the next.
    fn groups(&self) -> impl Iterator<Item = Range<usize>> + use<T> {
        let Range { start: mut next, end } = self.positions;
        let width = self.level.layout.pitch(self.level.positions()).map_or(usize::MAX, |rows| rows.width);
        iter::from_fn(move || {
            let start = next;
            next = end.min(start + LANES).min((start / width + 1) * width);
            (start < end).then_some(start..next)
        })
    }

    /// Writes the boxes.
    fn decode(&self, mut boxes: &mut [T::Loss]) {
        let (isa, mut room) = (Isa::detect(), Room::new(self.bins));
        for group in self.groups() {
            let boxes = split_off(&mut boxes, 4 * group.len());
            for side in 0..4 {
                let mut distances = [0.0; LANES];
                if self.single() {
                    let mut lanes = Lanes::default();
                    let Room { z, logits, .. } = &mut room;
                    let (x, step) = self.lanes(side, &group, logits);
                    integral_columns(isa, x, step, z, &mut lanes, None);
                    distances = lanes.map(f64::from);
                } else {
                    for (distance, position) in distances.iter_mut().zip(group.clone()) {
                        self.gather(side, position, &mut room.row);
                        *distance = match self.coding {
                            BoxCoding::Bins(_) => expectation_of(&room.row),
                            coding => number(coding, room.row[0].to_f64()).0,
                        };
                    }
                }
                for ((position, of_box), distance) in
                    group.clone().zip(boxes.chunks_exact_mut(4)).zip(distances)
                {
                    let from = self.point(position, side % 2);
                    of_box[side] = T::Loss::from_f64(from + sign(side) * self.level.stride * distance);
                }
            }
        }
    }

    /// Writes the gradients of the logits, and says whether they are finite, if one looks.
    ///
    /// # Safety
    /// As [`Places::write`], for all elements of these positions.
    unsafe fn slopes(&self, mut upstream: &[T::Loss], grad: &Places<T>, look_for_inf: bool) -> bool {
        let (isa, mut room) = (Isa::detect(), Room::new(self.bins));
        let layout = self.level.layout;
        let mut finite = true;
        let mut write = |place, step, values: &[T]| {
            finite &= !look_for_inf || values.iter().all(|value| value.to_f64().is_finite());
            // SAFETY: the caller's promise.
            unsafe { grad.write(place, step, values) };
        };
        for group in self.groups() {
            let of_group;
            (of_group, upstream) = upstream.split_at(4 * group.len());
            for side in 0..4 {
                let mut scales = [0.0; LANES];
                for (scale, of_box) in scales.iter_mut().zip(of_group.chunks_exact(4)) {
                    *scale = sign(side) * self.level.stride * of_box[side].to_f64();
                }
                if self.single() && scales.iter().all(|&scale| fits_single(scale)) {
                    let (mut lanes, scales) = (Lanes::default(), scales.map(|scale| scale as f32));
                    let Room { z, logits, grad: to, .. } = &mut room;
                    let (x, step) = self.lanes(side, &group, logits);
                    integral_columns(isa, x, step, z, &mut lanes, Some((&scales, to)));
                    for (bin, values) in to.chunks_exact(LANES).enumerate() {
                        write(self.place(side, bin, group.start), layout.position, &values[..group.len()]);
                    }
                    continue;
                }
                for (position, scale) in group.clone().zip(scales) {
                    let Room { row, row_grad, .. } = &mut room;
                    self.gather(side, position, row);
                    match self.coding {
                        BoxCoding::Bins(_) => slopes(row, scale, row_grad),
                        // An exponential without end, times 0, is 0.
                        _ if scale == 0.0 && row[0].to_f64().is_finite() => row_grad[0] = T::from_f64(0.0),
                        coding => row_grad[0] = T::from_f64(scale * number(coding, row[0].to_f64()).1),
                    }
                    write(self.place(side, 0, position), layout.channel, row_grad);
                }
            }
        }
        finite
    }

    fn place(&self, side: usize, bin: usize, position: usize) -> usize {
        self.level.layout.place(self.image, side * self.bins + bin, position)
    }

    /// The logits of a side of [`LANES`] positions, and how far it is from one bin to the next: where they are, or
    /// gathered.
    fn lanes<'r>(&'r self, side: usize, group: &Range<usize>, room: &'r mut [T]) -> (&'r [T], usize) {
        let layout = &self.level.layout;
        if layout.position == 1 && group.len() == LANES {
            return (&self.level.logits[self.place(side, 0, group.start)..], layout.channel);
        }
        for (lane, position) in group.clone().enumerate() {
            let first = self.place(side, 0, position);
            for bin in 0..self.bins {
                room[bin * LANES + lane] = self.level.logits[first + bin * layout.channel];
            }
        }
        (room, LANES)
    }

    /// The logits of a side of a position.
    fn gather(&self, side: usize, position: usize, row: &mut [T]) {
        let first = self.place(side, 0, position);
        for (bin, to) in row.iter_mut().enumerate() {
            *to = self.level.logits[first + bin * self.level.layout.channel];
        }
    }

    /// A coordinate of an anchor point, in pixels.
    fn point(&self, position: usize, axis: usize) -> f64 {
        let level = self.level;
        match level.points {
            Points::Grid { offset } => {
                let at = if axis == 0 { position % level.width } else { position / level.width };
                (at as f64 + offset) * level.stride
            }
            Points::Explicit(points) => {
                let image = if level.has_points_of_batch() { self.image } else { 0 };
                points[2 * (image * level.positions() + position) + axis].to_f64()
            }
        }
    }
}

/// E and its derivative, for one logit.
fn number(coding: BoxCoding, z: f64) -> (f64, f64) {
    if !z.is_finite() {
        return (f64::NAN, f64::NAN);
    }
    match coding {
        BoxCoding::Relu => (z.max(0.0), f64::from(u8::from(z > 0.0))),
        _ => (z.exp(), z.exp()),
    }
}

/// A buffer of which several threads write elements, each others.
struct Places<'a, T> {
    start: *mut T,
    len: usize,
    buffer: PhantomData<&'a mut [T]>,
}

// SAFETY: it is a borrow of a slice; `write` leaves it to the caller that no two threads write to one place.
unsafe impl<T: Send> Sync for Places<'_, T> {}

impl<'a, T: Copy> Places<'a, T> {
    fn new(buffer: &'a mut [T]) -> Self {
        Places { start: buffer.as_mut_ptr(), len: buffer.len(), buffer: PhantomData }
    }

    /// Writes values from `place` on, at every `step`th.
    ///
    /// # Safety
    /// No other thread writes to these places while the buffer is borrowed here.
    unsafe fn write(&self, place: usize, step: usize, values: &[T]) {
        let Some(last) = values.len().checked_sub(1) else { return };
        assert!(place + last * step < self.len, "inside the buffer");
        for (i, &value) in values.iter().enumerate() {
            // SAFETY: inside the buffer, as asserted; the caller's promise.
            unsafe { self.start.add(place + i * step).write(value) };
        }
    }
}
