//! Whether there is a driver, and its errors.
//!
//! cudarc panics when the driver's library is missing, even while it prints an error. So nothing
//! of cudarc is called before [`driver_version`] has opened the library itself. (cudarc's own
//! question, `is_culib_present`, does not exist with its `dynamic-linking` feature.)

use std::error::Error as _;
use std::ffi::{CStr, c_int};
use std::sync::Arc;

use cudarc::driver::sys::{CUdevice_attribute, CUstreamCaptureStatus};
use cudarc::driver::{CudaContext, CudaStream, DriverError, result};

use super::current::Current;
use crate::error::{Error, Result};

const OLDEST: i32 = 12_000;
const OLDEST_DEVICE: u32 = 75;
/// CUDA_ERROR_STUB_LIBRARY.
const STUB_LIBRARY: c_int = 34;

#[cfg(windows)]
const LIBRARIES: [&str; 1] = ["nvcuda.dll"];
#[cfg(not(windows))]
const LIBRARIES: [&str; 2] = ["libcuda.so", "libcuda.so.1"];

/// The CUDA version that the driver supports, as 1000 * major + 10 * minor.
///
/// # Errors
/// [`Error::NoDriver`], [`Error::StubDriver`] or [`Error::OldDriver`].
pub fn driver_version() -> Result<i32> {
    let mut reason = String::new();
    for name in LIBRARIES {
        // SAFETY: the driver's library has initialisers that are safe to run, and cudarc would
        // run them too.
        let library = match unsafe { libloading::Library::new(name) } {
            Ok(library) => library,
            Err(error) => {
                // The loader's own words are one level down.
                reason = error.source().map_or_else(|| error.to_string(), ToString::to_string);
                continue;
            }
        };
        // SAFETY: the type is the one of the driver API's documentation.
        let symbol =
            unsafe { library.get::<unsafe extern "C" fn(*mut c_int) -> c_int>(b"cuDriverGetVersion\0") };
        let get_version = match symbol {
            Ok(symbol) => symbol,
            Err(error) => {
                reason = error.to_string();
                continue;
            }
        };
        let mut version = 0;
        // SAFETY: the function may be called before cuInit, and writes one int.
        let code = unsafe { get_version(&raw mut version) };
        if code == STUB_LIBRARY {
            // cudarc takes the first that opens, and would get no further with it.
            return Err(Error::StubDriver { library: name });
        }
        if code != 0 {
            reason = format!("{name}: cuDriverGetVersion gave error {code}");
            continue;
        }
        return if version >= OLDEST { Ok(version) } else { Err(Error::OldDriver { version }) };
    }
    Err(Error::NoDriver { reason })
}

/// The primary context of a device: as [`CudaContext::new`], but without a driver it is an error
/// and not a panic. It becomes current on this thread if none is.
///
/// # Errors
/// If there is no driver, it is too old, or there is no such device.
pub fn context(ordinal: usize) -> Result<Arc<CudaContext>> {
    let count = device_count()?;
    if ordinal >= count {
        return Err(Error::NoDevice { ordinal, count });
    }
    let before = Current::keep();
    let context = check("cuDevicePrimaryCtxRetain", CudaContext::new(ordinal))?;
    before.unless_none();
    Ok(context)
}

fn device_count() -> Result<usize> {
    driver_version()?;
    match CudaContext::device_count() {
        Ok(count) => Ok(count.max(0) as usize),
        Err(error) if error.0 == cudarc::driver::sys::CUresult::CUDA_ERROR_NO_DEVICE => Ok(0),
        Err(error) => check("cuDeviceGetCount", Err(error)),
    }
}

/// What there is to know of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Its number.
    pub ordinal: usize,
    /// Its name.
    pub name: String,
    /// 10 * major + minor.
    pub compute_capability: u32,
    /// How many multiprocessors it has.
    pub multiprocessors: u32,
    /// Its memory in bytes.
    pub memory: usize,
}

impl DeviceInfo {
    /// Asks the driver about a context's device.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn of(context: &CudaContext) -> Result<DeviceInfo> {
        let _current = Current::keep();
        let (major, minor) = check("cuDeviceGetAttribute", context.compute_capability())?;
        let multiprocessors = context.attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
        Ok(DeviceInfo {
            ordinal: context.ordinal(),
            name: check("cuDeviceGetName", context.name())?,
            compute_capability: (10 * major + minor).unsigned_abs(),
            multiprocessors: check("cuDeviceGetAttribute", multiprocessors)?.unsigned_abs(),
            memory: check("cuDeviceTotalMem", context.total_mem())?,
        })
    }

    /// Whether the kernels run on it.
    ///
    /// # Errors
    /// [`Error::OldDevice`].
    pub fn usable(&self) -> Result<()> {
        let compute_capability = self.compute_capability;
        if compute_capability >= OLDEST_DEVICE {
            Ok(())
        } else {
            Err(Error::OldDevice { compute_capability })
        }
    }
}

/// The devices that the driver sees.
///
/// # Errors
/// If there is no driver, or it is too old.
pub fn devices() -> Result<Vec<DeviceInfo>> {
    let count = device_count()?;
    let _current = Current::keep();
    (0..count).map(|ordinal| DeviceInfo::of(&*context(ordinal)?)).collect()
}

/// Whether what is enqueued on a stream becomes a part of a graph, instead of running.
///
/// # Errors
/// If the driver refuses to tell, as when a capture has been broken.
pub fn is_captured(stream: &CudaStream) -> Result<bool> {
    let _current = Current::make(stream.context())?;
    // SAFETY: a stream of cudarc's lives as long as its value.
    let status = check("cuStreamIsCapturing", unsafe { result::stream::is_capturing(stream.cu_stream()) })?;
    Ok(status != CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE)
}

/// Turns an error of cudarc's into [`Error::Driver`], which names the `call` and carries the
/// driver's own words.
///
/// # Errors
/// The one that it is given.
pub fn check<T>(call: &'static str, result: Result<T, DriverError>) -> Result<T> {
    result.map_err(|error| {
        // Without a driver, cudarc would panic when asked what an error means.
        let words = |ask: fn(&DriverError) -> Result<&CStr, DriverError>| {
            let found = driver_version().ok().and_then(|_| ask(&error).ok());
            found.map_or_else(|| "unknown".to_owned(), |text| text.to_string_lossy().into_owned())
        };
        Error::Driver {
            call,
            code: error.0 as u32,
            name: words(DriverError::error_name),
            message: words(DriverError::error_string),
        }
    })
}
