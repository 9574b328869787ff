//! The loss of a detector's head, with mmdetection's options: a training step from the raw outputs of all levels.

mod calls;
mod data;
pub mod pyramid;
mod truth;
mod verify;

use gfocal::cuda::Handle;

use super::case::Case;
use super::op::Pass;
use super::random::Stored;
use super::workload::Workload;
use crate::error::Result;
use calls::{HeadCalls, HeadSet, Outcome};
pub use data::Inputs;

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

    fn upload(&self, handle: &Handle) -> gfocal::Result<HeadSet<T>> {
        HeadSet::new(handle, self)
    }

    fn check(&self, case: &Case, run: impl FnMut(Pass) -> Result<Outcome<T>>) -> Result<()> {
        verify::check(case, self, run)
    }
}
