//! Running a loss on a device.

mod cpu;
mod cuda;

use gfocal::{DistributionFocalLoss, QualityFocalLoss, Reduction, Status};

use crate::buffer;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::floats::{Floats, with_floats};
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
    pub status: Status,
}

pub fn qfl(
    device: &Device,
    loss: &QualityFocalLoss,
    inputs: &QflInputs,
    scaling: Scaling,
) -> Result<Outcome> {
    match device {
        Device::Cpu => Ok(with_floats!(&inputs.logits, logits => cpu::qfl(loss, logits, inputs, scaling))?),
        Device::Cuda(device) => {
            let outcome = match &inputs.logits {
                Floats::F64(_) => return Err(Error::F64OnCuda),
                Floats::F32(logits) => cuda::qfl(device, loss, logits, inputs, scaling),
                Floats::F16(logits) => cuda::qfl(device, loss, logits, inputs, scaling),
                Floats::Bf16(logits) => cuda::qfl(device, loss, logits, inputs, scaling),
            };
            outcome.map_err(buffer::error(device))
        }
    }
}

pub fn dfl(
    device: &Device,
    loss: &DistributionFocalLoss,
    inputs: &DflInputs,
    scaling: Scaling,
) -> Result<Outcome> {
    match device {
        Device::Cpu => Ok(with_floats!(&inputs.logits, logits => cpu::dfl(loss, logits, inputs, scaling))?),
        Device::Cuda(device) => {
            let outcome = match &inputs.logits {
                Floats::F64(_) => return Err(Error::F64OnCuda),
                Floats::F32(logits) => cuda::dfl(device, loss, logits, inputs, scaling),
                Floats::F16(logits) => cuda::dfl(device, loss, logits, inputs, scaling),
                Floats::Bf16(logits) => cuda::dfl(device, loss, logits, inputs, scaling),
            };
            outcome.map_err(buffer::error(device))
        }
    }
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
