//! What is run, whatever the operation.

use std::sync::Arc;

use gfocal::Result;
use gfocal::cuda::Handle;
use gfocal::cudarc::driver::CudaStream;

use crate::op::Pass;

/// The inputs of a case, and how they are run.
pub trait Workload {
    /// What a pass gives.
    type Outcome;
    /// Calls on the CPU.
    type Calls<'a>: Calls<Outcome = Self::Outcome>
    where
        Self: 'a;
    /// Buffers of a call on CUDA.
    type Set: Set<Outcome = Self::Outcome>;

    /// Calls on the CPU, on these inputs.
    fn on_cpu(&self) -> Self::Calls<'_>;

    /// A set of buffers on the handle's device.
    fn upload(&self, handle: &Handle) -> Result<Self::Set>;

    /// The losses of a pass.
    fn losses(outcome: &Self::Outcome) -> &[f32];
}

/// Inputs, and where the results go.
pub trait Calls {
    /// What a pass gives.
    type Outcome;

    /// Runs a pass.
    fn run(&mut self, pass: Pass) -> Result<()>;

    /// Runs a pass, in memory that held NaN before.
    fn outcome(&mut self, pass: Pass) -> Result<Self::Outcome>;
}

/// The tensors of a call.
pub trait Set {
    /// What a pass gives.
    type Outcome;

    /// Enqueues a pass.
    fn launch(&mut self, handle: &Handle, pass: Pass) -> Result<()>;

    /// Fills with NaN what a pass writes.
    fn clear(&mut self, stream: &Arc<CudaStream>) -> Result<()>;

    /// Reads what a pass has written.
    fn outcome(&self, stream: &Arc<CudaStream>) -> Result<Self::Outcome>;
}
