//! What a GPU can do, as far as the model wants to know.

/// A GPU, and what launches cost there. Times are in microseconds.
pub struct Machine {
    /// As on the command line, and as files are called.
    pub key: &'static str,
    pub name: &'static str,
    /// As in sm_90.
    pub architecture: u32,
    pub multiprocessors: u32,
    /// Under load.
    pub ghz: f64,
    /// That a copy from device to device moves, read and written, in a second.
    pub copy: f64,
    /// From asking for a vector to having it, while the memory is busy.
    pub latency: f64,
    /// Where these figures are from.
    pub sources: &'static str,
}

/// Instructions of a thread that a multiprocessor can issue in a cycle, and those of the unit for special
/// functions.
pub const ISSUED: f64 = 128.0;
pub const SPECIAL: f64 = 16.0;
/// Bytes that a multiprocessor takes from the L2 cache in a cycle at most.
pub const PORT: f64 = 64.0;
/// To launch: a copy takes that, too.
pub const LAUNCH: f64 = 2.0;
/// The fence, the ticket and the sum of the partials by the last block.
pub const REDUCTION: f64 = 1.7;

pub const MACHINES: [Machine; 3] = [
    Machine {
        key: "h200",
        name: "H200",
        architecture: 90,
        multiprocessors: 132,
        ghz: 1.98,
        copy: 4.3e12,
        latency: 0.8,
        sources: "clock and copy as others have measured them, 4.8 TB/s by the data sheet; latency by estimate",
    },
    Machine {
        key: "a100",
        name: "A100, 80 GB, SXM",
        architecture: 80,
        multiprocessors: 108,
        ghz: 1.41,
        copy: 1.75e12,
        latency: 0.7,
        sources: "boost clock; copy 86 % of the data sheet's 2.04 TB/s and latency by estimate; it has half as many \
                  units for f32 as it issues instructions, which is not in the model",
    },
    Machine {
        key: "rtx4090",
        name: "GeForce RTX 4090",
        architecture: 89,
        multiprocessors: 128,
        ghz: 2.52,
        copy: 0.92e12,
        latency: 0.7,
        sources: "boost clock; copy 91 % of the data sheet's 1.01 TB/s and latency by estimate; doubles, of which it \
                  computes 1/64, are not in the model but for head_positives",
    },
];

impl Machine {
    /// Microseconds of a copy that moves so many bytes.
    pub fn copy_us(&self, bytes: f64) -> f64 {
        LAUNCH + self.latency + bytes / self.copy * 1e6
    }

    /// Cycles in a microsecond.
    pub fn cycles(&self) -> f64 {
        self.ghz * 1e3
    }
}
