//! Which device to compute on.

use std::sync::Arc;

use gfocal::boxes::BoxLoss;
use gfocal::cuda::{self, DeviceInfo, Handle, Storage, Units};
use gfocal::cudarc::driver::CudaStream;

use crate::error::{Error, Result};
use crate::floats::Dtype;
use crate::values::DeviceChoice;
use crate::words::count;

/// What runs a loss.
pub enum Device {
    Cpu,
    Cuda(Cuda),
}

/// A GPU.
pub struct Cuda {
    pub ordinal: usize,
    pub handle: Handle,
}

impl Device {
    /// As `--device` takes it.
    pub fn name(&self) -> String {
        match self {
            Device::Cpu => "cpu".to_owned(),
            Device::Cuda(cuda) => format!("cuda:{}", cuda.ordinal),
        }
    }

    /// The device for logits of some types, with the kernels that `units` says loaded; and if the choice
    /// was free, what to tell of it.
    pub fn open(
        choice: DeviceChoice,
        dtypes: &[Dtype],
        units: impl Fn(Storage) -> Units,
    ) -> Result<(Device, Option<String>)> {
        let storages: Option<Vec<Storage>> = dtypes.iter().map(|&dtype| storage(dtype)).collect();
        let join = |all: Units, &storage: &Storage| all | units(storage);
        let units = storages.map(|storages| storages.iter().fold(Units::default(), join));
        match (choice, units) {
            (DeviceChoice::Cpu, _) => Ok((Device::Cpu, None)),
            (DeviceChoice::Auto, Some(units)) => {
                let (device, why) = Device::auto(units);
                let chosen = format!("--device auto chose {}: {why}", device.name());
                Ok((device, Some(chosen)))
            }
            (DeviceChoice::Auto, None) => {
                let why = "--device auto chose cpu: logits are f64, for which there are no CUDA kernels";
                Ok((Device::Cpu, Some(why.to_owned())))
            }
            (DeviceChoice::Cuda(ordinal), Some(units)) => {
                let cuda = Cuda::open(ordinal, units).map_err(Error::cuda(ordinal))?;
                Ok((Device::Cuda(cuda), None))
            }
            (DeviceChoice::Cuda(_), None) => Err(Error::F64OnCuda),
        }
    }

    /// The first GPU that can be used, which is one that loads these kernels, else the CPU; and why.
    pub fn auto(units: Units) -> (Device, String) {
        match first_usable(units) {
            Ok((cuda, device)) => (Device::Cuda(cuda), describe(&device)),
            Err(error) => (Device::Cpu, error.to_string()),
        }
    }
}

impl Cuda {
    fn open(ordinal: usize, units: Units) -> gfocal::Result<Cuda> {
        let handle = Handle::new(&cuda::context(ordinal)?.default_stream())?;
        handle.prepare(units)?;
        Ok(Cuda { ordinal, handle })
    }

    pub fn stream(&self) -> &Arc<CudaStream> {
        self.handle.stream()
    }
}

/// The smallest kernels, to see whether a device loads any.
pub fn smallest() -> Units {
    BoxLoss::units()
}

fn first_usable(units: Units) -> gfocal::Result<(Cuda, DeviceInfo)> {
    let mut first_error = gfocal::Error::NoDevice { ordinal: 0, count: 0 };
    for (i, device) in cuda::devices()?.into_iter().enumerate() {
        match device.usable().and_then(|()| Cuda::open(device.ordinal, units)) {
            Ok(cuda) => return Ok((cuda, device)),
            Err(error) if i == 0 => first_error = error,
            Err(_) => {}
        }
    }
    Err(first_error)
}

/// A device in words.
pub fn describe(device: &DeviceInfo) -> String {
    format!(
        "{}, compute capability {}.{}, {}, {:.1} GiB",
        device.name,
        device.compute_capability / 10,
        device.compute_capability % 10,
        count(device.multiprocessors as usize, "multiprocessor", "multiprocessors"),
        device.memory as f64 / f64::from(1 << 30)
    )
}

fn storage(dtype: Dtype) -> Option<Storage> {
    match dtype {
        Dtype::F64 => None,
        Dtype::F32 => Some(Storage::F32),
        Dtype::F16 => Some(Storage::F16),
        Dtype::Bf16 => Some(Storage::Bf16),
    }
}
