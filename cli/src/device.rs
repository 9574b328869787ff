//! Which device to compute on.

use std::sync::Arc;

use gfocal::cuda::{self, DeviceInfo, Handle, Storage};
use gfocal::cudarc::driver::CudaStream;

use crate::error::{Error, Result};
use crate::floats::Dtype;
use crate::values::DeviceChoice;

/// What runs a loss.
pub enum Device {
    Cpu,
    Cuda(Cuda),
}

/// A GPU with the kernels loaded.
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

    /// The device for logits of some types, and if the choice was free, what to tell of it.
    pub fn open(choice: DeviceChoice, dtypes: &[Dtype]) -> Result<(Device, Option<String>)> {
        let storages: Option<Vec<Storage>> = dtypes.iter().map(|&dtype| storage(dtype)).collect();
        match (choice, storages) {
            (DeviceChoice::Cpu, _) => Ok((Device::Cpu, None)),
            (DeviceChoice::Auto, Some(storages)) => {
                let (device, why) = Device::auto(&storages);
                let chosen = format!("--device auto chose {}: {why}", device.name());
                Ok((device, Some(chosen)))
            }
            (DeviceChoice::Auto, None) => {
                let why = "--device auto chose cpu: logits are f64, for which there are no CUDA kernels";
                Ok((Device::Cpu, Some(why.to_owned())))
            }
            (DeviceChoice::Cuda(ordinal), Some(storages)) => {
                let cuda = Cuda::open(ordinal, &storages).map_err(Error::cuda(ordinal))?;
                Ok((Device::Cuda(cuda), None))
            }
            (DeviceChoice::Cuda(_), None) => Err(Error::F64OnCuda),
        }
    }

    /// The first GPU that can be used, else the CPU; and why.
    pub fn auto(storages: &[Storage]) -> (Device, String) {
        match first_usable(storages) {
            Ok((cuda, device)) => (Device::Cuda(cuda), describe(&device)),
            Err(error) => (Device::Cpu, error.to_string()),
        }
    }
}

impl Cuda {
    fn open(ordinal: usize, storages: &[Storage]) -> gfocal::Result<Cuda> {
        let stream = cuda::context(ordinal)?.default_stream();
        Ok(Cuda { ordinal, handle: Handle::with_storage(&stream, storages)? })
    }

    pub fn stream(&self) -> &Arc<CudaStream> {
        self.handle.stream()
    }
}

fn first_usable(storages: &[Storage]) -> gfocal::Result<(Cuda, DeviceInfo)> {
    let mut first_error = gfocal::Error::NoDevice { ordinal: 0, count: 0 };
    for (i, device) in cuda::devices()?.into_iter().enumerate() {
        match device.usable().and_then(|()| Cuda::open(device.ordinal, storages)) {
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
        "{}, compute capability {}.{}, {} multiprocessors, {:.1} GiB",
        device.name,
        device.compute_capability / 10,
        device.compute_capability % 10,
        device.multiprocessors,
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
