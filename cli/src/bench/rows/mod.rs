//! The operations on rows: QFL, DFL and the integral.

mod calls;
mod data;
mod verify;

use gfocal::cuda::Handle;

use super::case::Case;
use super::op::Pass;
use super::random::Stored;
use super::workload::Workload;
use crate::error::Result;
use calls::{Outcome, RowCalls, RowSet};
pub use data::Inputs;

impl<T: Stored> Workload for Inputs<T> {
    type Outcome = Outcome<T>;
    type Calls<'a>
        = RowCalls<'a, T>
    where
        Self: 'a;
    type Set = RowSet<T>;

    fn on_cpu(&self) -> RowCalls<'_, T> {
        RowCalls::new(self)
    }

    fn upload(&self, handle: &Handle) -> gfocal::Result<RowSet<T>> {
        RowSet::new(handle.stream(), self)
    }

    fn check(&self, case: &Case, run: impl FnMut(Pass) -> Result<Outcome<T>>) -> Result<()> {
        verify::check(case, self, run)
    }
}
