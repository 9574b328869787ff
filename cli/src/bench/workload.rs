//! What machines run and check, whatever the operation.

use gfocal::cuda::Handle;

use super::case::{Case, Pass};
use super::cpu::{Calls, RowCalls};
use super::data::{Inputs, Stored};
use super::gpu::{RowSet, Set};
use super::verify;
use crate::error::Result;

/// The inputs of a case, how they are run, and what that must give.
pub trait Workload {
    /// What a pass gives.
    type Outcome;
    type Calls<'a>: Calls<Outcome = Self::Outcome>
    where
        Self: 'a;
    type Set: Set<Outcome = Self::Outcome>;

    fn on_cpu(&self) -> Self::Calls<'_>;

    /// A set of buffers on the handle's device.
    fn upload(&self, handle: &Handle) -> gfocal::Result<Self::Set>;

    /// Runs every pass, and compares with the plain formula.
    fn check(&self, case: &Case, run: impl FnMut(Pass) -> Result<Self::Outcome>) -> Result<()>;
}

/// What an operation on rows gives.
pub struct Outcome<T> {
    /// `[1]`, or the expectations `[rows]`.
    pub loss: Vec<f32>,
    pub grad: Vec<T>,
}

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
