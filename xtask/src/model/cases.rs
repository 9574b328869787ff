//! What is foretold: the operations, types and sizes of `gfocal bench` and of the GPU kit, as launches.

use std::fmt;

use super::grids::{self, Rule};
use super::machines::Machine;
use super::time::{Launch, Range};
use crate::sass::{Cost, Measured};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Qfl,
    Dfl,
    Integral,
    Head,
}

/// As `gfocal bench` has them. The gradient of the integral comes without the integral.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Case {
    pub op: Op,
    pub backward: bool,
    pub dtype: &'static str,
    pub rows: u64,
    pub columns: u64,
}

/// Positions of the levels of an image of COCO.
const COCO: [u64; 5] = [16_700, 4_200, 1_050, 273, 77];
const COCO_ANCHORS: u64 = 22_300;
const BINS: u64 = 17;

/// The logits of the bench are N(-4.6, 1): as many of a hundred are at most -2, where the short series hold.
const CONFIDENT: f64 = 0.995_339;
/// What kernels/budgets.toml does not count, for an element: targets are read (QFL), and 1 % (head: 0.5 %) of the rows
/// are labelled.
const RARE_OF_QFL: f64 = 2.4;
const RARE_OF_HEAD: f64 = 0.6;
/// Cycles from one instruction of a warp to the next, as it is alone: at least, at most.
const DEPENDENT: [f64; 2] = [3.0, 6.0];

impl Case {
    /// All of them.
    pub fn all() -> Vec<Case> {
        let sizes: [(Op, &[u64], u64); 4] = [
            (Op::Qfl, &[8_400, 33_600, 134_400, 672_000], 80),
            (Op::Dfl, &[4_096, 33_600, 262_144, 2_949_120], BINS),
            (Op::Integral, &[4_096, 33_600, 262_144], BINS),
            (Op::Head, &[22_300, 89_200, 356_800], 80),
        ];
        let mut cases = Vec::new();
        for (op, all_rows, columns) in sizes {
            for backward in [false, true] {
                for dtype in ["f32", "f16", "bf16"] {
                    cases.extend(all_rows.iter().map(|&rows| Case { op, backward, dtype, rows, columns }));
                }
            }
        }
        cases
    }

    /// As `gfocal bench` calls it.
    pub fn pass(&self) -> &'static str {
        match (self.backward, self.op) {
            (false, _) => "forward",
            (true, Op::Integral) => "backward",
            (true, _) => "forward_backward",
        }
    }

    fn element(&self) -> u64 {
        if self.dtype == "f32" { 4 } else { 2 }
    }

    fn vector(&self) -> u64 {
        16 / self.element()
    }

    fn images(&self) -> u64 {
        self.rows / COCO_ANCHORS
    }

    fn positives(&self) -> u64 {
        COCO.iter().map(|level| ((level * self.images() + 100) / 200).max(1)).sum()
    }

    /// The bytes that `gfocal bench` counts: those that must move.
    pub fn bytes(&self) -> u64 {
        let tensor = self.rows * self.columns * self.element();
        let (of_row, boxes) = match self.op {
            Op::Qfl => (8 + 4, 0),
            Op::Dfl => (4 + 4, 0),
            Op::Integral => (4, 0),
            Op::Head => (8 + 4, 4 * BINS * self.element()),
        };
        let read = if boxes > 0 { self.positives() * (boxes + 16) } else { 0 };
        let written = if self.backward { tensor + self.rows * boxes } else { 0 };
        tensor + self.rows * of_row + read + written
    }

    /// The kernels that it launches, in order, with the loop that most goes through.
    pub fn kernels(&self) -> Vec<(String, Option<&'static str>)> {
        let (dtype, way) = (self.dtype, if self.backward { "forward_backward" } else { "forward" });
        match self.op {
            Op::Qfl => vec![(format!("qfl_linear_{way}_{dtype}"), None)],
            Op::Dfl => vec![(format!("dfl_tile17_{way}_{dtype}"), None)],
            Op::Integral => vec![(format!("integral_{way}_{dtype}"), None)],
            Op::Head => {
                // The largest level has a multiple of 4 positions, and not of 8; the losses alone have one loop
                // for both, whose loads of both ways count.
                let of_loop = if self.vector() == 8 && self.backward { "half vectors" } else { "positions" };
                vec![
                    ("head_positives_f32".to_owned(), None),
                    (format!("head_losses_{way}_{dtype}"), Some(of_loop)),
                ]
            }
        }
    }

    /// Its launches, `figures` being those of its kernels.
    pub fn launches(&self, machine: &Machine, figures: &[&Measured], rule: Rule) -> Vec<Launch> {
        let Case { rows, columns, .. } = *self;
        let (vector, element, elements) = (self.vector(), self.element(), (rows * columns) as f64);
        let figure = figures[figures.len() - 1];
        let slots = grids::slots(machine.multiprocessors, figure.resident);
        // A warp takes the short way if all its logits let it.
        let all_confident = CONFIDENT.powi(32 * vector as i32);
        let launch = |share, at_once, elements: f64, rare, bytes: u64| {
            let Cost { instructions, mufu } = mixed(figure, all_confident);
            Launch {
                share,
                at_once,
                under_way: 1,
                bytes: bytes as f64,
                instructions: elements * (instructions + rare),
                mufu: elements * mufu,
                reduces: true,
                alone: [0.0; 2],
            }
        };
        match self.op {
            Op::Qfl => {
                let (share, unit) = grids::qfl(rows, columns, vector, slots, rule);
                // A block asks for four steps, of which a tile has as many.
                let steps = (u64::from(grids::QFL_UNROLL)
                    * (u64::from(grids::QFL_BLOCK) / (columns / vector)))
                    / unit;
                let at_once = (steps as f64).min(share.most);
                vec![launch(share, at_once, elements, RARE_OF_QFL, self.bytes())]
            }
            Op::Dfl => vec![launch(grids::dfl(rows, element, slots), 1.0, elements, 0.0, self.bytes())],
            Op::Integral => {
                let (share, lanes) = grids::integral(rows, columns, vector, slots);
                // Lanes without a vector go along with the others.
                let done = columns.div_ceil(vector * lanes) * vector * lanes;
                let launch = launch(share, 1.0, (rows * done) as f64, 0.0, self.bytes());
                // Each pass over a row waits for the one before, and for the L1 cache.
                vec![Launch { reduces: false, ..launch }]
            }
            Op::Head => {
                let (images, positives) = (self.images(), self.positives());
                let cycles = machine.cycles();
                let positives_slots = grids::slots(machine.multiprocessors, figures[0].resident);
                let share = grids::head_positives(images, &COCO, positives_slots);
                // Up to nine positives are neighbours, whose anchors a block of eight warps has: some warp has one
                // at least, and two in each other round at most.
                let in_turn = [1.0, 2.0 * (share.most / 2.0).max(1.0)];
                let alone = [0, 1].map(|at| {
                    in_turn[at] * (figures[0].general.instructions * DEPENDENT[at] / cycles + machine.latency)
                });
                let first = Launch {
                    share,
                    at_once: 1.0,
                    under_way: 1,
                    bytes: (rows * (8 + 4 + 8) + positives * ((columns + 4 * BINS) * element + 16)) as f64,
                    instructions: 0.0,
                    mufu: 0.0,
                    reduces: true,
                    alone,
                };
                // As benches/peers/head_bytes.py counts.
                let writes = if self.backward { rows * (columns + 4 * BINS) * element } else { 0 };
                let chunks = columns.div_ceil(grids::MOST_STEPS.into());
                let bytes = rows * (columns * element + 4 * 4 + 4 * chunks) + writes;
                let share = grids::head_losses(images, &COCO, columns, vector, self.backward, slots);
                let at_once = grids::head_at_once(&COCO, vector) as f64;
                vec![first, launch(share, at_once, elements, RARE_OF_HEAD, bytes)]
            }
        }
    }
}

fn mixed(figure: &Measured, fast: f64) -> Cost {
    let general = figure.general;
    let Some(short) = figure.fast else { return general };
    let mix = |short: f64, long: f64| fast * short + (1.0 - fast) * long;
    Cost { instructions: mix(short.instructions, general.instructions), mufu: mix(short.mufu, general.mufu) }
}

/// The time of some launches, one after the other.
pub fn time(launches: &[Launch], machine: &Machine) -> Range {
    let times = launches.iter().map(|launch| launch.time(machine));
    times.fold(Range { least: 0.0, most: 0.0 }, |sum, time| Range {
        least: sum.least + time.least,
        most: sum.most + time.most,
    })
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Op::Qfl => "qfl",
            Op::Dfl => "dfl",
            Op::Integral => "integral",
            Op::Head => "head",
        })
    }
}
