//! What there is to know of a build, and of the machine.

use gfocal::cuda;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

/// The version, the kernels, the driver and the devices; `cuda_error` says why there are none.
#[pyfunction]
pub fn info(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let found = PyDict::new(py);
    found.set_item("version", env!("CARGO_PKG_VERSION"))?;
    found.set_item("kernels", cuda::provenance().to_string())?;
    let devices = PyList::empty(py);
    let (driver, error) = match cuda::driver_version().and_then(|driver| Ok((driver, cuda::devices()?))) {
        Ok((driver, all)) => {
            for device in all {
                let of_device = PyDict::new(py);
                of_device.set_item("name", &device.name)?;
                let (major, minor) = (device.compute_capability / 10, device.compute_capability % 10);
                of_device.set_item("compute_capability", (major, minor))?;
                of_device.set_item("memory", device.memory)?;
                of_device.set_item("multiprocessors", device.multiprocessors)?;
                of_device.set_item("usable", device.usable().is_ok())?;
                of_device.set_item("images", cuda::images_for(&device).unwrap_or_default())?;
                devices.append(of_device)?;
            }
            (Some((driver / 1000, driver % 1000 / 10)), None)
        }
        Err(error) => (None, Some(error.to_string())),
    };
    found.set_item("cuda_driver", driver)?;
    found.set_item("cuda_error", error)?;
    found.set_item("devices", devices)?;
    Ok(found)
}
