//! What machines run and check, whatever the operation.

use std::sync::Arc;

use gfocal::cuda::Handle;
use gfocal::cudarc::driver::CudaStream;

use super::case::Case;
use super::op::Pass;
use super::timing::{Samples, wall_clock};
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

/// Inputs, and where the results go.
pub trait Calls {
    /// What a pass gives.
    type Outcome;

    fn run(&mut self, pass: Pass) -> Result<()>;

    /// Runs a pass, in memory that held NaN before.
    fn outcome(&mut self, pass: Pass) -> Result<Self::Outcome>;

    fn time(&mut self, pass: Pass, seconds: f64) -> Result<Samples> {
        Samples::take(seconds, || wall_clock(|| self.run(pass)))
    }
}

/// The tensors of a call.
pub trait Set {
    /// What a pass gives.
    type Outcome;

    /// Enqueues a pass.
    fn launch(&mut self, handle: &Handle, pass: Pass) -> gfocal::Result<()>;

    /// Fills with NaN what a pass writes.
    fn clear(&mut self, stream: &Arc<CudaStream>) -> gfocal::Result<()>;

    /// Reads what a pass has written.
    fn outcome(&self, stream: &Arc<CudaStream>) -> gfocal::Result<Self::Outcome>;
}
