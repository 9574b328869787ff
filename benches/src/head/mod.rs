//! The loss of a detector's head, with mmdetection's options: a training step from the raw outputs of all levels.

mod calls;
mod data;
pub mod pyramid;

use gfocal::Result;
use gfocal::cuda::Handle;

pub use calls::{HeadCalls, HeadSet, Outcome};
pub use data::{Inputs, LevelInputs};

use crate::random::Stored;
use crate::workload::Workload;

impl<T: Stored> Workload for Inputs<T> {
    type Outcome = Outcome<T>;
    type Calls<'a>
        = HeadCalls<'a, T>
    where
        Self: 'a;
    type Set = HeadSet<T>;

    fn on_cpu(&self) -> HeadCalls<'_, T> {
        HeadCalls::new(self)
    }

    fn upload(&self, handle: &Handle) -> Result<HeadSet<T>> {
        HeadSet::new(handle, self)
    }

    fn losses(outcome: &Outcome<T>) -> &[f32] {
        &outcome.losses
    }
}
