//! What calls say beside losses and gradients.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{Device, Result, Tensor};
use gfocal::Status;

#[cfg(feature = "cuda")]
use crate::cuda::OnDevice;

/// What calls say beside losses and gradients: whether a gradient is inf or NaN, and which labels, qualities,
/// targets and boxes could not be used. Calls add to it until it is [`reset`](Self::reset).
///
/// Clones share it: options that all have a clone of one report tell of a whole step. On CUDA it stays on the device,
/// and nothing waits for it but [`status`](Self::status).
///
/// ```
/// use candle_core::{Device, Tensor, Var};
/// use gfocal_candle::{DflOptions, DistributionFocalLoss, dfl};
///
/// let logits = Var::from_slice(&[0f32, f32::INFINITY], (1, 2), &Device::Cpu)?;
/// let target = Tensor::new(&[1.5f32], &Device::Cpu)?; // behind the last bin, which is 1
/// let options = DflOptions::default();
/// dfl(&DistributionFocalLoss::default(), &logits, &target, &options)?.backward()?;
///
/// assert_eq!(options.report.found_inf(&Device::Cpu)?.to_vec1::<f32>()?, [1.0]);
/// assert_eq!(options.report.status()?.out_of_range_targets, 1);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Report(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// Of calls on the CPU.
    found_inf: bool,
    status: Status,
    #[cfg(feature = "cuda")]
    devices: Vec<OnDevice>,
}

impl Report {
    /// One that says nothing yet.
    pub fn new() -> Self {
        Report::default()
    }

    /// `[1]` f32 on a device: 1 if a gradient that has been computed there is inf or NaN, else 0. This is what a
    /// gradient scaler looks at before it lets an optimizer step.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn found_inf(&self, device: &Device) -> Result<Tensor> {
        let state = self.state();
        match device {
            Device::Cpu => Tensor::new(&[f32::from(u8::from(state.found_inf))], device),
            #[cfg(feature = "cuda")]
            Device::Cuda(on) => match state.devices.iter().find(|other| other.is_on(on)) {
                Some(other) => other.found_inf(),
                None => Tensor::zeros(1, candle_core::DType::F32, device),
            },
            _ => Tensor::zeros(1, candle_core::DType::F32, device),
        }
    }

    /// What could not be used as it was, on all devices. On CUDA this waits.
    ///
    /// # Errors
    /// If the driver reports one, perhaps of an earlier launch.
    pub fn status(&self) -> Result<Status> {
        let state = self.state();
        #[cfg_attr(not(feature = "cuda"), expect(unused_mut, reason = "there is no other device"))]
        let mut status = state.status;
        #[cfg(feature = "cuda")]
        for device in &state.devices {
            status += device.status()?;
        }
        Ok(status)
    }

    /// Forgets everything.
    pub fn reset(&self) {
        *self.state() = State::default();
    }

    /// Takes what a call on the CPU says.
    pub(crate) fn add(&self, status: Status, found_inf: [f32; 1]) {
        let mut state = self.state();
        state.status += status;
        state.found_inf |= found_inf != [0.0];
    }

    /// Runs a call on CUDA that writes to it.
    #[cfg(feature = "cuda")]
    pub(crate) fn on_device<R>(
        &self,
        device: &candle_core::CudaDevice,
        run: impl FnOnce(&mut OnDevice) -> Result<R>,
    ) -> Result<R> {
        let mut state = self.state();
        let known = state.devices.iter().position(|other| other.is_on(device));
        let at = match known {
            Some(at) => at,
            None => {
                state.devices.push(OnDevice::new(device)?);
                state.devices.len() - 1
            }
        };
        run(&mut state.devices[at])
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
