//! The operations on rows: QFL, DFL and the integral.

mod calls;
mod data;

use gfocal::Result;
use gfocal::cuda::Handle;

pub use calls::{Outcome, RowCalls, RowSet};
pub use data::Inputs;

use crate::random::Stored;
use crate::workload::Workload;

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

    fn upload(&self, handle: &Handle) -> Result<RowSet<T>> {
        RowSet::new(handle.stream(), self)
    }

    fn losses(outcome: &Outcome<T>) -> &[f32] {
        &outcome.loss
    }
}
