//! Running a loss on a device.

mod cpu;
mod cuda;

use gfocal::{DistributionFocalLoss, QualityFocalLoss, Reduction, Status};

use crate::buffer;
use crate::device::Device;
use crate::error::Result;
use crate::floats::{Dtype, Floats, with_cuda_floats, with_floats};
use crate::inputs::{DflInputs, Inputs, QflInputs};

/// What is done to the losses of the rows and to the gradient.
#[derive(Clone, Copy, Debug)]
pub struct Scaling {
    pub reduction: Reduction,
    pub grad_scale: f64,
}

/// What comes out.
#[derive(Debug)]
pub struct Outcome {
    pub loss: Floats,
    pub grad: Floats,
    /// What the gradient is in f64, if that may tell of zeros in it.
    pub exact_grad: Option<Floats>,
    pub status: Status,
}

/// Runs a loss, `cpu::$op` or `cuda::$op`, on the vector of logits in whichever type it is.
macro_rules! run {
    ($op:ident, $device:expr, $loss:expr, $inputs:expr, $scaling:expr) => {{
        let outcome = match $device {
            Device::Cpu => with_floats!(&$inputs.logits, logits => cpu::$op($loss, logits, $inputs, $scaling))?,
            Device::Cuda(device) => {
                let outcome = with_cuda_floats!(&$inputs.logits, logits => {
                    cuda::$op(device, $loss, logits, $inputs, $scaling)
                });
                outcome.map_err(buffer::error(device))?
            }
        };
        exactly(outcome, &$inputs.logits, |logits| cpu::$op($loss, logits, $inputs, $scaling))
    }};
}

pub fn qfl(
    device: &Device,
    loss: &QualityFocalLoss,
    inputs: &QflInputs,
    scaling: Scaling,
) -> Result<Outcome> {
    run!(qfl, device, loss, inputs, scaling)
}

pub fn dfl(
    device: &Device,
    loss: &DistributionFocalLoss,
    inputs: &DflInputs,
    scaling: Scaling,
) -> Result<Outcome> {
    run!(dfl, device, loss, inputs, scaling)
}

/// With the gradient in f64, if some of the stored ones are 0: they may be too small to be stored.
fn exactly(
    outcome: Outcome,
    logits: &Floats,
    run: impl FnOnce(&[f64]) -> gfocal::Result<Outcome>,
) -> Result<Outcome> {
    if logits.dtype() == Dtype::F64 || outcome.grad.iter().all(|grad| grad != 0.0) {
        return Ok(outcome);
    }
    let logits: Vec<f64> = logits.iter().collect();
    Ok(Outcome { exact_grad: Some(run(&logits)?.grad), ..outcome })
}

/// How many losses come out.
fn losses<T, E>(inputs: &Inputs<T>, logits: &[E], scaling: Scaling) -> usize {
    match scaling.reduction {
        // Rows without columns are refused by the library, and take no space in the file: there may
        // be more of them than memory.
        Reduction::None => inputs.shape[0].min(logits.len()),
        _ => 1,
    }
}
