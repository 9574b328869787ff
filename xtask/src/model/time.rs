//! How long a launch takes: what binds it, and what does not overlap.

use super::machines::{ISSUED, LAUNCH, Machine, PORT, REDUCTION, SPECIAL};

/// How work is shared out among blocks in whole units.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Share {
    pub blocks: u64,
    /// Of which so many run at once.
    pub slots: u64,
    /// Units of a block: on average, and of the one that has most.
    pub mean: f64,
    pub most: f64,
}

impl Share {
    /// As evenly as whole units allow.
    pub fn of(units: u64, slots: u64) -> Share {
        let blocks = units.clamp(1, slots.max(1));
        Share { blocks, slots, mean: units as f64 / blocks as f64, most: units.div_ceil(blocks) as f64 }
    }

    /// What is left of the speed if the last round takes as long as the others.
    pub fn efficiency(&self) -> f64 {
        self.mean / self.most.max(self.mean)
    }

    /// The same, and what is lost where there are fewer blocks than could run.
    pub fn filled(&self) -> f64 {
        self.efficiency() * (self.blocks as f64 / self.slots as f64).min(1.0)
    }
}

/// A launch in figures.
#[derive(Clone, Debug)]
pub struct Launch {
    pub share: Share,
    /// Units that a block has asked for before it computes.
    pub at_once: f64,
    /// How many rounds of loads a block has under way: 2, if it asks for the next one before it computes.
    pub under_way: u32,
    /// That are read and written.
    pub bytes: f64,
    /// Of all threads.
    pub instructions: f64,
    pub mufu: f64,
    /// Whether the last block adds up what all have found.
    pub reduces: bool,
    /// Microseconds of what one warp does while nothing else goes on: at least, at most.
    pub alone: [f64; 2],
}

/// Microseconds, from the best to the worst that is expected.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Range {
    pub least: f64,
    pub most: f64,
}

impl Launch {
    /// Before and after the work.
    pub fn fixed(&self, machine: &Machine) -> f64 {
        LAUNCH + machine.latency + if self.reduces { REDUCTION } else { 0.0 }
    }

    /// How many multiprocessors have a block.
    fn active(&self, machine: &Machine) -> f64 {
        self.share.blocks.min(machine.multiprocessors.into()) as f64
    }

    /// Microseconds that the instructions take alone, and the special functions.
    pub fn arithmetic(&self, machine: &Machine) -> [f64; 2] {
        let cycles = self.active(machine) * machine.cycles();
        [self.instructions / (ISSUED * cycles), self.mufu / (SPECIAL * cycles)]
    }

    /// Microseconds that the bytes take alone.
    pub fn memory(&self, machine: &Machine) -> f64 {
        let by_ports = self.bytes / (self.active(machine) * PORT * machine.cycles());
        (self.bytes / machine.copy * 1e6).max(by_ports)
    }

    /// How many times a block asks, waits and computes, on average.
    fn rounds(&self) -> f64 {
        (self.share.mean / self.at_once).max(1.0)
    }

    pub fn time(&self, machine: &Machine) -> Range {
        let [issue, special] = self.arithmetic(machine);
        let (arithmetic, memory, latency) = (issue.max(special), self.memory(machine), machine.latency);
        // Of one round of one block, the multiprocessor being its own.
        let rounds_of_one = self.share.blocks as f64 * self.rounds() / self.active(machine);
        let (arithmetic_of_one, memory_of_one) = (arithmetic / rounds_of_one, memory / rounds_of_one);
        // At best everything overlaps, and a block only waits for itself.
        let of_block = (self.share.most / self.at_once).ceil() * (latency + arithmetic_of_one)
            / f64::from(self.under_way);
        let best = (memory + latency).max(arithmetic + latency).max(of_block);
        // At worst blocks queue for the memory and for the units, the last round takes as long as the others,
        // and what is computed of one round does not overlap with anything.
        let resident = (self.share.blocks as f64 / self.active(machine)).ceil() as u32;
        let rate = throughput(resident * self.under_way, latency, &[memory_of_one, arithmetic_of_one]);
        // What is all asked for at once has no last round.
        let efficiency = if self.share.most > self.at_once { self.share.efficiency() } else { 1.0 };
        let worst = latency + rounds_of_one / rate / efficiency + arithmetic / self.rounds();
        let fixed = self.fixed(machine) - latency;
        Range { least: fixed + self.alone[0] + best, most: fixed + self.alone[1] + worst.max(best) }
    }
}

/// Rounds in a microsecond of so many blocks, each of which waits and then queues for what others want too
/// (mean value analysis of a closed network: waiting times as if by chance).
pub fn throughput(blocks: u32, wait: f64, services: &[f64]) -> f64 {
    let (mut queues, mut rate) = (vec![0.0; services.len()], 0.0);
    for count in 1..=blocks.max(1) {
        let times: Vec<f64> =
            services.iter().zip(&queues).map(|(service, queue)| service * (1.0 + queue)).collect();
        rate = f64::from(count) / (wait + times.iter().sum::<f64>());
        queues = times.iter().map(|time| rate * time).collect();
    }
    rate
}
