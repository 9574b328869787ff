//! What gfocal is timed on, by `gfocal bench` and by `cargo bench`: random inputs, the same in every run, and the calls
//! on them, on the CPU and on CUDA.

#![allow(missing_docs, reason = "for two programs of this workspace")]

pub mod head;
mod op;
mod random;
mod replays;
pub mod rows;
mod workload;

pub use op::{Op, Pass, RowOp, Size};
pub use random::Stored;
pub use replays::Replays;
pub use workload::{Calls, Set, Workload};
