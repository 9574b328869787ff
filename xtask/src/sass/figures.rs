//! What a kernel costs: its figures for each element of its main loop.

use super::device;
use super::flow::{Flow, Region, Way};
use super::listing::{Instruction, Kernel};
use super::resources::Resources;

/// A kernel as it is on one architecture.
pub struct Assembled {
    pub kernel: Kernel,
    pub flow: Flow,
    pub architecture: u32,
    /// Of a block, at most.
    pub threads: u32,
    pub resources: Resources,
}

/// Which loop the elements go through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MainLoop {
    /// The one with the most instructions, with those inside; without a loop, the whole kernel.
    #[default]
    Largest,
    /// The innermost ones that load vectors, one pass over a row each: their costs are added.
    Vectors,
    /// The one without a loop inside that has so many loads of 64 bits and more, cold code apart: for
    /// kernels that have several main loops, each with a budget of its own.
    #[serde(skip)]
    Loads(usize),
}

/// What one element costs.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    pub instructions: f64,
    /// Of the slow unit for special functions, `ex2` and the like.
    pub mufu: f64,
}

/// What a budget has bounds for.
#[derive(Debug, Default, PartialEq)]
pub struct Figures {
    /// By the shortest way round.
    pub fast: Cost,
    /// By the longest way round.
    pub general: Cost,
    /// Wide loads that stand before the first MUFU; in the loop that has the fewest.
    pub loads_before_mufu: usize,
    /// The bytes of these.
    pub bytes_of_thread: u32,
    /// Loads from global memory that are not wide.
    pub narrow_loads: usize,
    /// Stores to global memory that are not wide.
    pub narrow_stores: usize,
    /// KiB that one multiprocessor has asked for and not got yet, when all its threads stand before
    /// their first MUFU: blocks that it holds * threads * bytes of wide loads before the first MUFU.
    pub kib_in_flight: f64,
}

pub fn is_wide_load(instruction: &Instruction) -> bool {
    is_load_of(instruction, 128)
}

fn is_load_of(instruction: &Instruction, bits: u32) -> bool {
    instruction.base() == "LDG" && instruction.width() >= bits
}

impl Assembled {
    pub fn name(&self) -> &str {
        &self.kernel.name
    }

    /// The instructions of some blocks.
    pub fn code<'a>(&'a self, blocks: &'a [usize]) -> impl Iterator<Item = &'a Instruction> + Clone {
        blocks.iter().flat_map(|&block| &self.kernel.code[self.flow.blocks[block].clone()])
    }

    /// The blocks of a way once round a loop: the fewest or most instructions, then MUFU.
    pub fn round(&self, region: &Region, way: Way) -> Vec<usize> {
        region.round(way, |block| {
            let mufu = self.code(&[block]).filter(|i| i.base() == "MUFU").count();
            Length { instructions: self.flow.blocks[block].len(), mufu }
        })
    }

    /// The loops that elements go through.
    pub fn main_loops(&self, which: MainLoop) -> Vec<&Region> {
        let size = |region: &&Region| self.code(&region.hot()).count();
        let loops = self.flow.loops.iter().filter(|region| !self.flow.is_cold(region.header));
        match which {
            // The first of the largest: max_by_key would take the last.
            MainLoop::Largest => vec![loops.rev().max_by_key(size).unwrap_or(&self.flow.body)],
            MainLoop::Vectors => loops
                .filter(|region| region.innermost && self.code(&region.hot()).any(is_wide_load))
                .collect(),
            MainLoop::Loads(count) => self.hot_loops().filter(|region| self.loads(region) == count).collect(),
        }
    }

    /// The loops that are not cold and have none inside, cold ones apart.
    pub fn hot_loops(&self) -> impl Iterator<Item = &Region> {
        let is_hot = |region: &&Region| !self.flow.is_cold(region.header);
        let has_none = move |region: &&Region| {
            let mut others = self.flow.loops.iter().filter(is_hot);
            others.all(|other| other.depth <= region.depth || !region.contains(other.header))
        };
        self.flow.loops.iter().filter(is_hot).filter(has_none)
    }

    /// The loads of 64 bits and more in a loop, cold code apart.
    pub fn loads(&self, region: &Region) -> usize {
        self.code(&region.hot()).filter(|instruction| is_load_of(instruction, 64)).count()
    }

    /// `elements` go through the main loop in one way round. `blocks_launched`: so many for each
    /// multiprocessor, even if more fit. Accesses are wide from so many `bits` on.
    pub fn figures(&self, which: MainLoop, bits: u32, elements: u32, blocks_launched: u32) -> Figures {
        let loops = self.main_loops(which);
        let cost = |way| {
            let blocks: Vec<usize> = loops.iter().flat_map(|region| self.round(region, way)).collect();
            let per_element = |count: usize| count as f64 / f64::from(elements);
            let mufu = self.code(&blocks).filter(|i| i.base() == "MUFU").count();
            Cost { instructions: per_element(self.code(&blocks).count()), mufu: per_element(mufu) }
        };
        let early_loads = |region: &&Region| {
            let hot = region.hot();
            let early = self.code(&hot).take_while(|i| i.base() != "MUFU").filter(|i| is_load_of(i, bits));
            let widths: Vec<u32> = early.map(Instruction::width).collect();
            (widths.len(), widths.iter().sum::<u32>() / 8)
        };
        let hot: Vec<usize> = loops.iter().flat_map(|region| region.hot()).collect();
        let narrow = |base| self.code(&hot).filter(|i| i.base() == base && i.width() < bits).count();
        let (loads_before_mufu, bytes_of_thread) = loops.iter().map(early_loads).min().unwrap_or((0, 0));
        let resident = device::resident_blocks(self.architecture, self.threads, &self.resources);
        let resident = resident.unwrap_or(0).min(blocks_launched);
        let bytes = resident * self.threads * bytes_of_thread;
        Figures {
            fast: cost(Way::Shortest),
            general: cost(Way::Longest),
            loads_before_mufu,
            bytes_of_thread,
            narrow_loads: narrow("LDG"),
            narrow_stores: narrow("STG"),
            kib_in_flight: f64::from(bytes) / 1024.0,
        }
    }
}

/// How long a way is.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Length {
    instructions: usize,
    mufu: usize,
}

impl std::ops::Add for Length {
    type Output = Length;

    fn add(self, other: Length) -> Length {
        Length { instructions: self.instructions + other.instructions, mufu: self.mufu + other.mufu }
    }
}
