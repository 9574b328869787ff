//! Which blocks of the two launches do what, and with which accesses.

use super::{HeadArgs, HeadLevel, MAX_ANCHORS, Strides};
use crate::cuda::Storage;
use crate::cuda::args::{DeviceAddress, Pass};
use crate::error::{Error, Result};

/// Twin of the constant in kernels/head.cuh.
pub(super) const HEAD_BLOCK: u32 = 256;
const WARPS: u64 = HEAD_BLOCK as u64 / 32;
/// Twins of the constants in kernels/head_classes.cuh: what a lane has in flight.
const HEAD_UNROLL: u32 = 4;
const HEAD_ELEMENTS_ANY_BETA: u32 = 16;
/// Twin of MOST in kernels/head_boxes.cuh.
const BOX_POSITIONS_OF_TILE: u64 = 4 * HEAD_BLOCK as u64;

/// How far a lane goes at most without adding to its sum in double.
const MOST_STEPS: u32 = 32;

/// What a lane has of the class logits. Twin of the constants in kernels/head.cuh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ClassWay {
    Scalars = 0,
    Positions = 1,
    HalfVectors = 2,
    Channels = 3,
}

/// What is contiguous of the box logits. Twin of the constants in kernels/head.cuh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BoxWay {
    Scalars = 0,
    Channels = 1,
    Anchors = 2,
    Positions = 3,
}

/// Shares out blocks: to each part as many as it has use for, or in proportion to its work.
/// Parts are (work, the most blocks that find something to do).
fn share_out(parts: &[(u64, u64)], most: u32) -> Vec<u32> {
    let work: u128 = parts.iter().map(|&(work, _)| u128::from(work)).sum();
    let share = |&(part, tiles): &(u64, u64)| {
        let share = (u128::from(part) * u128::from(most)).checked_div(work).unwrap_or(0);
        (share as u64).max(1).min(tiles) as u32
    };
    parts.iter().map(share).collect()
}

impl HeadArgs {
    pub(super) fn used(&self) -> &[HeadLevel] {
        &self.levels[..self.level_count as usize]
    }

    /// The blocks of phase one.
    pub(super) fn plan_positives(&mut self, most: u32) -> u32 {
        let batch = u64::from(self.batch);
        let parts: Vec<_> = (self.used().iter())
            .map(|level| {
                let anchors = batch * u64::from(level.positions);
                (anchors, anchors.div_ceil(HEAD_BLOCK.into()))
            })
            .collect();
        let mut next = 0;
        for (level, blocks) in self.levels.iter_mut().zip(share_out(&parts, most)) {
            level.positives_block = next;
            next += blocks;
        }
        next.max(1)
    }

    /// The blocks of phase two, and which accesses they make.
    pub(super) fn plan_losses(&mut self, storage: Storage, pass: Pass, most: u32) -> Result<u32> {
        let (batch, classes, bins) = (self.batch, self.classes, self.bins);
        let backward = pass == Pass::ForwardBackward;
        let beta_is_2 = self.beta == 2.0 && !self.is_general();
        let mut parts = Vec::new();
        let mut paces = Vec::new();
        for level in &mut self.levels[..self.level_count as usize] {
            let anchors = u64::from(batch) * u64::from(level.positions);
            let cls = Access {
                storage,
                strides: [
                    level.cls_strides,
                    if backward { level.grad_cls_strides } else { level.cls_strides },
                ],
                addresses: level.cls | if backward { level.grad_cls } else { 0 },
                extents: [batch, classes, level.positions],
                width: level.width,
            };
            let pace = level.plan_classes(&cls, beta_is_2);
            paces.push(pace);
            let most_useful = level.class_tiles(batch, pace.length.div_ceil(pace.steps)).div_ceil(WARPS);
            parts.push((anchors * u64::from(classes) * if backward { 2 } else { 1 }, most_useful));

            let boxes = Access {
                storage,
                strides: [level.grad_box_strides; 2],
                addresses: 0,
                extents: [batch, 4 * bins, level.positions],
                width: level.width,
            };
            let way = boxes.box_way();
            level.box_way = way as u32;
            let tiles = match way {
                BoxWay::Positions => {
                    4 * u64::from(batch) * u64::from(level.positions).div_ceil(BOX_POSITIONS_OF_TILE)
                }
                _ => anchors.div_ceil(HEAD_BLOCK.into()),
            };
            parts.push(if backward { (anchors * u64::from(4 * bins), tiles) } else { (0, 0) });
        }
        let mut next = 0;
        let shares = share_out(&parts, most);
        for ((level, blocks), pace) in self.levels.iter_mut().zip(shares.chunks_exact(2)).zip(paces) {
            level.cls_block = next;
            level.box_block = next + blocks[0];
            next += blocks[0] + blocks[1];
            level.choose_span(batch, pace, u64::from(blocks[0]) * WARPS);
            // What the kernel counts in 32 bits.
            let chunks = u64::from(level.cls_chunks);
            let items = u64::from(batch) * u64::from(level.cls_units) * chunks;
            if items.max(parts.iter().map(|&(_, tiles)| tiles).max().unwrap_or(0)) > MAX_ANCHORS as u64 {
                let anchors = batch as usize * level.positions as usize;
                return Err(Error::ShapeOverflow { shape: [anchors, classes as usize] });
            }
        }
        Ok(next.max(1))
    }
}

/// How a lane goes along its axis of the class logits.
#[derive(Clone, Copy, Debug)]
struct Pace {
    /// Of the axis.
    length: u32,
    /// At once.
    steps: u32,
    /// The farthest, a multiple of `steps`.
    most: u32,
}

impl HeadLevel {
    /// Which accesses the class logits are read with.
    fn plan_classes(&mut self, cls: &Access, beta_is_2: bool) -> Pace {
        let [_, classes, positions] = cls.extents;
        let vector = cls.storage.vector() as u32;
        let unroll = if beta_is_2 { HEAD_UNROLL } else { HEAD_ELEMENTS_ANY_BETA / vector };
        let (way, by_channel) = (cls.class_way(), cls.by_channel());
        (self.cls_way, self.cls_by_channel) = (way as u32, by_channel.into());
        let steps;
        (self.cls_units, steps) = match way {
            ClassWay::Positions => (positions / vector, unroll),
            ClassWay::HalfVectors => (positions / (vector / 2), 2 * unroll),
            ClassWay::Channels => (classes / vector, unroll),
            // Lanes share the channels of an anchor, one anchor each.
            ClassWay::Scalars if by_channel => (classes.div_ceil(vector), 1),
            ClassWay::Scalars => (positions, vector),
        };
        let most = match way {
            ClassWay::Scalars if by_channel => 1,
            _ => MOST_STEPS.next_multiple_of(steps),
        };
        Pace { length: if by_channel { positions } else { classes }, steps, most }
    }

    /// How many times 32 lanes, if so many have an axis between them.
    fn class_tiles(&self, batch: u32, chunks: u32) -> u64 {
        (u64::from(batch) * u64::from(self.cls_units) * u64::from(chunks)).div_ceil(32)
    }

    /// Chooses how far a lane goes, so that these warps are done soonest: each has some tiles, one
    /// more or one less.
    fn choose_span(&mut self, batch: u32, pace: Pace, warps: u64) {
        let spans = (1..=pace.most / pace.steps).map(|times| times * pace.steps);
        let spans = spans.take_while(|&span| span == pace.steps || span < pace.length + pace.steps);
        let time = |span: &u32| {
            let tiles = self.class_tiles(batch, pace.length.div_ceil(*span));
            // To begin a tile takes about as long as a quarter of what is done at once.
            tiles.div_ceil(warps.max(1)) * u64::from(4 * span / pace.steps + 1)
        };
        self.cls_span = spans.min_by_key(time).unwrap_or(pace.steps);
        self.cls_chunks = pace.length.div_ceil(self.cls_span);
        self.cls_tiles = self.class_tiles(batch, self.cls_chunks) as u32;
    }
}

/// How the elements of a tensor can be reached.
struct Access {
    storage: Storage,
    /// Of what is read, and of what is written.
    strides: [Strides; 2],
    /// All that must be aligned, joined by or.
    addresses: DeviceAddress,
    /// Images, channels, positions.
    extents: [u32; 3],
    /// Of a row of positions.
    width: u32,
}

impl Access {
    /// Lanes go along the channels of an anchor.
    fn by_channel(&self) -> bool {
        let Strides { channel, position, .. } = self.strides[0];
        channel == 1 && (position != 1 || self.extents[2] == 1)
    }

    /// A lane goes as far in what is written as in what is read.
    fn in_step(&self) -> bool {
        let step = |strides: &Strides| if self.by_channel() { strides.position } else { strides.channel };
        let [read, written] = &self.strides;
        self.extents[if self.by_channel() { 2 } else { 1 }] <= 1 || step(read) == step(written)
    }

    /// Accesses of so many scalars are aligned, and none reaches beyond an image or an anchor. The
    /// kernels count a step in bytes in 32 bits.
    fn whole(&self, scalars: usize) -> bool {
        let size = 16 / self.storage.vector() as u64;
        let [images, channels, positions] = self.extents;
        let multiple = |number: u64| number.is_multiple_of(scalars as u64);
        let steps = |extent: u32, stride: u64| extent <= 1 || multiple(stride);
        let short = |extent: u32, stride: u64| extent <= 1 || stride <= u64::from(u32::MAX) / size;
        let is_whole = |strides: &Strides| {
            let &Strides { batch, channel, position, row_gap } = strides;
            let inner = if self.by_channel() {
                channel == 1
                    && row_gap == 0
                    && multiple(channels.into())
                    && steps(positions, position)
                    && short(positions, position)
            } else {
                position == 1
                    && multiple(positions.into())
                    && (row_gap == 0 || (multiple(self.width.into()) && multiple(row_gap)))
                    && steps(channels, channel)
                    && short(channels, channel)
            };
            inner && steps(images, batch)
        };
        self.in_step()
            && self.strides.iter().all(is_whole)
            && self.addresses.is_multiple_of(scalars as u64 * size)
    }

    fn class_way(&self) -> ClassWay {
        let vector = self.storage.vector();
        match self.by_channel() {
            true if self.whole(vector) => ClassWay::Channels,
            false if self.whole(vector) => ClassWay::Positions,
            false if vector == 8 && self.whole(4) => ClassWay::HalfVectors,
            _ => ClassWay::Scalars,
        }
    }

    fn box_way(&self) -> BoxWay {
        match self.by_channel() {
            true if self.is_dense() => BoxWay::Anchors,
            true => BoxWay::Channels,
            false if self.extents[2] == 1 || self.is_row() => BoxWay::Positions,
            false => BoxWay::Scalars,
        }
    }

    /// Nothing is between two positions.
    fn is_row(&self) -> bool {
        let Strides { position, row_gap, .. } = self.strides[0];
        position == 1 && row_gap == 0
    }

    /// By channel, nothing is between two anchors.
    fn is_dense(&self) -> bool {
        let [images, channels, positions] = self.extents.map(u64::from);
        let Strides { batch, position, row_gap, .. } = self.strides[0];
        row_gap == 0
            && (positions <= 1 || position == channels)
            && (images <= 1 || batch == channels * positions)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::head::MAX_LEVELS;

    const STORAGES: [Storage; 3] = Storage::ALL;

    /// Levels of contiguous tensors, by position or by channel.
    fn args(batch: u32, classes: u32, positions: &[u32], by_channel: bool, beta: f32) -> HeadArgs {
        let strides = |channels: u32, positions: u32| {
            let (channel, position) = if by_channel { (1, channels.into()) } else { (positions.into(), 1) };
            Strides { batch: u64::from(channels) * u64::from(positions), channel, position, row_gap: 0 }
        };
        let mut levels = [HeadLevel::default(); MAX_LEVELS];
        for (level, &positions) in levels.iter_mut().zip(positions) {
            *level = HeadLevel {
                cls: 1 << 20,
                grad_cls: 1 << 40,
                cls_strides: strides(classes, positions),
                grad_cls_strides: strides(classes, positions),
                box_strides: strides(4 * 17, positions),
                grad_box_strides: strides(4 * 17, positions),
                positions,
                ..HeadLevel::default()
            };
        }
        let level_count = positions.len() as u32;
        let alpha = [1.0; 2];
        HeadArgs { levels, level_count, batch, classes, bins: 17, beta, alpha, ..HeadArgs::default() }
    }

    /// Of an image of 800 x 1333.
    const COCO: [u32; 5] = [16700, 4200, 1050, 273, 77];

    #[test]
    fn accesses_are_as_wide_as_a_level_allows() {
        let ways = |storage, args: &HeadArgs| -> Vec<u32> {
            let mut args = *args;
            args.plan_losses(storage, Pass::ForwardBackward, 396).expect("a small problem");
            args.used().iter().map(|level| level.cls_way).collect()
        };
        let [scalars, positions, halves, channels] =
            [ClassWay::Scalars, ClassWay::Positions, ClassWay::HalfVectors, ClassWay::Channels]
                .map(|way| way as u32);
        let nchw = args(2, 80, &COCO, false, 2.0);
        assert_eq!(ways(Storage::F32, &nchw), [positions, positions, scalars, scalars, scalars]);
        assert_eq!(ways(Storage::F16, &nchw), [halves, positions, scalars, scalars, scalars]);
        assert_eq!(ways(Storage::Bf16, &args(2, 80, &COCO, true, 2.0)), [channels; 5]);
        // 20 classes are no whole vectors of 8; and all must be aligned.
        assert_eq!(ways(Storage::F16, &args(2, 20, &COCO, true, 2.0)), [scalars; 5]);
        // Vectors go from channel to channel alike; rows apart must be whole vectors, and begin with one.
        let with = |change: fn(&mut HeadLevel)| {
            let mut args = nchw;
            args.levels.iter_mut().for_each(change);
            ways(Storage::F32, &args)[..2].to_vec()
        };
        assert_eq!(with(|level| level.grad_cls_strides.batch += 64), [positions; 2]);
        assert_eq!(with(|level| level.grad_cls_strides.batch += 1), [scalars; 2]);
        assert_eq!(with(|level| level.grad_cls_strides.channel += 4), [scalars; 2]);
        assert_eq!(with(|level| (level.width, level.cls_strides.row_gap) = (100, 28)), [positions; 2]);
        assert_eq!(with(|level| (level.width, level.cls_strides.row_gap) = (100, 30)), [scalars; 2]);
        assert_eq!(with(|level| (level.width, level.cls_strides.row_gap) = (50, 28)), [scalars; 2]);
        let mut moved = nchw;
        moved.levels.iter_mut().for_each(|level| level.grad_cls += 8);
        assert_eq!(ways(Storage::F16, &moved)[..2], [halves, halves]);
        assert_eq!(ways(Storage::F32, &moved)[..2], [scalars, scalars]);
    }

    #[test]
    fn shares_cover_all_logits_and_blocks_are_few() {
        for storage in STORAGES {
            for (batch, classes) in [(1, 1), (1, 80), (16, 80), (3, 7), (2, 1203)] {
                for by_channel in [false, true] {
                    for beta in [2.0, 1.5] {
                        let mut args = args(batch, classes, &COCO, by_channel, beta);
                        let blocks = args.plan_losses(storage, Pass::ForwardBackward, 396).expect("small");
                        assert!((1..=396 + 10).contains(&blocks), "{blocks}");
                        for level in args.used() {
                            let length = if level.cls_by_channel == 1 { level.positions } else { classes };
                            let whole = level.cls_span * level.cls_chunks;
                            assert!((length..length + level.cls_span).contains(&whole), "{level:?}");
                            let items = batch * level.cls_units * level.cls_chunks;
                            assert_eq!(level.cls_tiles, items.div_ceil(32), "{level:?}");
                            assert!(level.cls_block < level.box_block, "{level:?}");
                        }
                    }
                }
            }
        }
    }

    /// All warps have about as much to do: at most an eighth of the time is lost by the last round.
    #[test]
    fn tiles_fit_the_warps() {
        for storage in STORAGES {
            for by_channel in [false, true] {
                let mut args = args(16, 80, &COCO, by_channel, 2.0);
                args.plan_losses(storage, Pass::ForwardBackward, 396).expect("a small problem");
                let level = &args.levels[0];
                let warps = (level.box_block - level.cls_block) * HEAD_BLOCK / 32;
                let steps = level.cls_tiles.div_ceil(warps) * level.cls_span;
                let length = if by_channel { level.positions } else { args.classes };
                let ideal = f64::from(args.batch * level.cls_units * length) / f64::from(32 * warps);
                assert!(f64::from(steps) <= 1.125 * ideal.max(8.0), "{steps} steps of {ideal:.1}: {level:?}");
            }
        }
    }
}
