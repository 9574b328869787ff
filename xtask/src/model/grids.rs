//! Which blocks do what: the rules of src/*/launch.rs and src/head/launch/plan.rs once more, since this program
//! must not depend on the library, which does not build while its kernels change. A test compares the
//! constants, and those that only the kernels have.

use super::time::Share;

// Names and values as there.
pub const QFL_BLOCK: u32 = 320;
pub const QFL_UNROLL: u32 = 4;
pub const DFL_BLOCK: u32 = 128;
pub const INTEGRAL_BLOCK: u32 = 256;
pub const HEAD_BLOCK: u32 = 256;
pub const HEAD_UNROLL: u32 = 4;
pub const MOST_STEPS: u32 = 32;
pub const MOST_BLOCKS: u32 = 8;

/// How QFL's blocks share the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// In steps of as many rows as a block has vectors for.
    Steps,
    /// In whole tiles of [`QFL_UNROLL`] steps.
    Tiles,
}

/// Blocks of a launch at most, when so many fit a multiprocessor.
pub fn slots(multiprocessors: u32, resident: u32) -> u64 {
    u64::from(multiprocessors) * u64::from(resident.clamp(1, MOST_BLOCKS))
}

/// Units of `qfl_linear` are steps, or tiles; gives their rows too.
pub fn qfl(rows: u64, classes: u64, vector: u64, slots: u64, rule: Rule) -> (Share, u64) {
    let step = u64::from(QFL_BLOCK) / (classes / vector);
    let unit = if rule == Rule::Steps { step } else { step * u64::from(QFL_UNROLL) };
    (Share::of(rows.div_ceil(unit), slots), unit)
}

/// Units of `dfl_tile` are tiles of a block.
pub fn dfl(rows: u64, element: u64, slots: u64) -> Share {
    let rows_of_thread = if element == 4 { 1 } else { 2 };
    Share::of(rows.div_ceil(u64::from(DFL_BLOCK) * rows_of_thread), slots)
}

/// Units of `integral` are as many rows as a block has groups of lanes; gives the lanes of a group too.
pub fn integral(rows: u64, bins: u64, vector: u64, slots: u64) -> (Share, u64) {
    let lanes = bins.div_ceil(vector).div_ceil(2).clamp(1, 32).next_power_of_two();
    (Share::of(rows.div_ceil(u64::from(INTEGRAL_BLOCK) / lanes), slots), lanes)
}

/// Units of phase one are as many anchors as a block has threads; levels get blocks in proportion.
pub fn head_positives(images: u64, levels: &[u64], slots: u64) -> Share {
    let tiles: Vec<u64> = levels.iter().map(|level| (images * level).div_ceil(HEAD_BLOCK.into())).collect();
    let parts: Vec<_> = levels.iter().zip(&tiles).map(|(&level, &tiles)| (images * level, tiles)).collect();
    let shares = share_out(&parts, slots);
    let blocks = shares.iter().sum::<u64>();
    let most = tiles.iter().zip(&shares).map(|(tiles, blocks)| tiles.div_ceil(*blocks)).max();
    Share {
        blocks,
        slots,
        mean: tiles.iter().sum::<u64>() as f64 / blocks as f64,
        most: most.unwrap_or(1) as f64,
    }
}

/// Units of phase two are steps of a warp over class logits, by position; classes and boxes of the levels get blocks
/// in proportion to their elements. The share is that of the largest level's classes, for all blocks: what
/// is bound by memory shares that, too.
pub fn head_losses(
    images: u64,
    levels: &[u64],
    classes: u64,
    vector: u64,
    backward: bool,
    slots: u64,
) -> Share {
    let warps_of_block = u64::from(HEAD_BLOCK) / 32;
    let writes = if backward { 2 } else { 1 };
    let mut parts = Vec::new();
    for &positions in levels {
        let way = Way::of(positions, vector);
        let tiles = (images * (positions / way.width) * classes.div_ceil(way.steps)).div_ceil(32);
        parts.push((images * positions * classes * writes, tiles.div_ceil(warps_of_block)));
        let tiles = 4 * images * positions.div_ceil(4 * u64::from(HEAD_BLOCK));
        parts.push(if backward { (images * positions * 4 * 17, tiles) } else { (0, 0) });
    }
    let shares = share_out(&parts, slots);
    let way = Way::of(levels[0], vector);
    let (units, warps) = (images * (levels[0] / way.width), shares[0] * warps_of_block);
    let spans =
        (1..=MOST_STEPS.next_multiple_of(way.steps as u32) as u64 / way.steps).map(|times| times * way.steps);
    let spans = spans.filter(|&span| span == way.steps || span < classes + way.steps);
    let tiles = |span: u64| (units * classes.div_ceil(span)).div_ceil(32);
    let time = |span: &u64| tiles(*span).div_ceil(warps) * (4 * span / way.steps + 1);
    let span = spans.min_by_key(time).unwrap_or(way.steps);
    let mean = (units * classes) as f64 / (32 * warps) as f64;
    Share {
        blocks: shares.iter().sum(),
        slots,
        mean,
        most: ((tiles(span).div_ceil(warps) * span) as f64).max(mean),
    }
}

/// How a lane goes along the channels.
struct Way {
    /// Positions that it takes along.
    width: u64,
    /// Steps at once.
    steps: u64,
}

impl Way {
    fn of(positions: u64, vector: u64) -> Way {
        let unroll = u64::from(HEAD_UNROLL);
        if positions.is_multiple_of(vector) {
            Way { width: vector, steps: unroll }
        } else if vector == 8 && positions.is_multiple_of(4) {
            Way { width: 4, steps: 2 * unroll }
        } else {
            Way { width: 1, steps: 16 }
        }
    }
}

/// Steps at once along the largest level.
pub fn head_at_once(levels: &[u64], vector: u64) -> u64 {
    Way::of(levels[0], vector).steps
}

/// Blocks to each part as many as it has use for, or in proportion to its work. Parts are (work, tiles).
fn share_out(parts: &[(u64, u64)], most: u64) -> Vec<u64> {
    let work: u64 = parts.iter().map(|&(work, _)| work).sum();
    parts.iter().map(|&(part, tiles)| (part * most / work.max(1)).max(1).min(tiles)).collect()
}
