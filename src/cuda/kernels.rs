//! The kernels in a context, loaded when they are needed.

use std::fmt;
use std::num::NonZero;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;

use cudarc::driver::CudaContext;
use cudarc::driver::result;
use cudarc::driver::sys::{self, CUdevice_attribute, CUstream, CUstreamCaptureMode, CUstreamCaptureStatus};

use super::current::Current;
use super::module::{Function, Module, Refused, Target};
use super::units::{Entry, UNITS, Units};
use super::{DeviceInfo, Storage, check, driver_version, images};
use crate::error::{Error, Result};

/// The kernels in a CUDA context. They come in units, each for one storage type, which are loaded when
/// a call first needs them, or by [`Handle::prepare`](super::Handle::prepare).
///
/// When it goes, it waits for the context's work and then unloads them; while a stream is being
/// captured that cannot be, and they stay loaded as long as the context.
pub struct Kernels {
    context: Arc<CudaContext>,
    multiprocessors: u32,
    target: Target,
    folder: Option<PathBuf>,
    /// By [`Units::place`].
    modules: Vec<OnceLock<Module>>,
    /// Held while modules are loaded.
    loading: Mutex<()>,
}

impl Kernels {
    /// None loaded yet.
    ///
    /// # Errors
    /// If the device is too old.
    pub fn new(context: &Arc<CudaContext>) -> Result<Kernels> {
        let _current = Current::make(context)?;
        let device = DeviceInfo::of(context)?;
        device.usable()?;
        let attribute =
            |attribute| check("cuDeviceGetAttribute", context.attribute(attribute)).map(i32::unsigned_abs);
        let target = Target {
            compute_capability: device.compute_capability,
            driver: driver_version()?,
            shared_memory: [
                attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR)?,
                attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_RESERVED_SHARED_MEMORY_PER_BLOCK)?,
            ],
        };
        Ok(Kernels {
            context: context.clone(),
            multiprocessors: device.multiprocessors,
            target,
            folder: None,
            modules: (0..Units::PLACES).map(|_| OnceLock::new()).collect(),
            loading: Mutex::new(()),
        })
    }

    /// None loaded yet; where `folder` has PTX of the name of an embedded one, as in
    /// `qfl.bf16.sm_80.ptx`, that will be taken. For those who change kernels and compare.
    ///
    /// # Errors
    /// As [`Kernels::new`].
    ///
    /// # Safety
    /// The entry points in that PTX take the parameters that this release's kernels take, and do with
    /// them what those do: nothing checks it.
    pub unsafe fn with_folder(context: &Arc<CudaContext>, folder: &Path) -> Result<Kernels> {
        let mut kernels = Kernels::new(context)?;
        kernels.folder = Some(folder.to_owned());
        Ok(kernels)
    }

    /// The context that they are for.
    pub fn context(&self) -> &Arc<CudaContext> {
        &self.context
    }

    /// Loads what is not loaded yet of some units, on as many threads as there are cores. The driver
    /// assembles PTX for the device, and mostly keeps what it made for the next time.
    ///
    /// # Errors
    /// If the driver takes none of the embedded images of a unit.
    pub fn prepare(&self, units: Units) -> Result<()> {
        // A panic while it was held has left every module either loaded or not.
        let _loading = self.loading.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted: Vec<usize> =
            units.places().filter(|&place| self.modules[place].get().is_none()).collect();
        let threads = thread::available_parallelism().map_or(1, NonZero::get).min(wanted.len());
        let next = AtomicUsize::new(0);
        let failed = Mutex::new(Vec::new());
        let load = || {
            while let Some(&place) = wanted.get(next.fetch_add(1, Ordering::Relaxed)) {
                if let Err(refused) = self.load(place, false) {
                    failed.lock().unwrap_or_else(PoisonError::into_inner).push((place, refused));
                }
            }
        };
        if threads > 1 {
            thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(load))));
        } else {
            load();
        }
        let mut failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
        failed.sort_unstable_by_key(|(place, _)| *place);
        for (place, Refused { error, again }) in failed {
            if again {
                self.load(place, true).map_err(|refused| refused.error)?;
            } else {
                return Err(error);
            }
        }
        Ok(())
    }

    fn load(&self, place: usize, patient: bool) -> Result<(), Refused> {
        let definite = |error| Refused { error, again: false };
        let _current = Current::make(&self.context).map_err(definite)?;
        let _others = OthersMayCapture::new().map_err(definite)?;
        let (unit, storage) = Units::at(place);
        let module = Module::load(unit, storage, self.target, self.folder.as_deref(), patient)?;
        // `loading` is held, and so nobody else has set it.
        let _ = self.modules[place].set(module);
        Ok(())
    }

    /// Which images are loaded, one line each.
    pub fn images(&self) -> Vec<String> {
        let loaded =
            self.modules.iter().enumerate().filter_map(|(place, module)| Some((place, module.get()?)));
        let line = |(place, module): (usize, &Module)| {
            let (unit, storage) = Units::at(place);
            format!("{} {}: {}", unit.name, storage.name(), module.image())
        };
        loaded.map(line).collect()
    }

    pub(crate) fn multiprocessors(&self) -> u32 {
        self.multiprocessors
    }

    /// A kernel that is to be launched on `stream`, of this context.
    pub(crate) fn function(&self, entry: Entry, storage: Storage, stream: CUstream) -> Result<Kernel> {
        let current = Current::make(&self.context)?;
        let place = Units::place(entry.unit, storage);
        if self.modules[place].get().is_none() {
            // SAFETY: the stream belongs to this context, by the promise of every launch.
            let status = unsafe { result::stream::is_capturing(stream) };
            let status = check("cuStreamIsCapturing", status)?;
            let units = Units::of(entry.unit, storage);
            if status != CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE {
                return Err(Error::NotPrepared { units: units.to_string(), call: UNITS[entry.unit].units });
            }
            self.prepare(units)?;
        }
        let module = self.modules[place].get().expect("it was there, or has been loaded");
        Ok(Kernel { function: module.function(entry.index), _current: current })
    }
}

/// A kernel to launch. Until it goes its context is current.
pub(crate) struct Kernel {
    function: Function,
    _current: Current,
}

impl Deref for Kernel {
    type Target = Function;

    fn deref(&self) -> &Function {
        &self.function
    }
}

impl Drop for Kernels {
    fn drop(&mut self) {
        let loaded: Vec<&Module> = self.modules.iter().filter_map(OnceLock::get).collect();
        let _current = Current::keep();
        // Calls return before their kernels have run.
        if loaded.is_empty() || self.context.synchronize().is_err() {
            return;
        }
        for module in loaded {
            // SAFETY: the context is current, and all its work has ended; what could launch more has
            // borrowed what goes here. A failure leaves nothing to be done about it.
            let _ = unsafe { module.unload() };
        }
    }
}

impl fmt::Debug for Kernels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kernels")
            .field("device", &self.context.ordinal())
            .field("images", &self.images())
            .finish()
    }
}

/// While it lives, this thread does not mind that other threads capture streams, and does not break
/// their captures by what these forbid in general, such as loading.
struct OthersMayCapture {
    before: CUstreamCaptureMode,
}

impl OthersMayCapture {
    fn new() -> Result<OthersMayCapture> {
        Ok(OthersMayCapture { before: exchange(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)? })
    }
}

impl Drop for OthersMayCapture {
    fn drop(&mut self) {
        // What it was before is a mode that the driver takes.
        let _ = exchange(self.before);
    }
}

/// Sets this thread's mode; the result is what it was.
fn exchange(mut mode: CUstreamCaptureMode) -> Result<CUstreamCaptureMode> {
    // SAFETY: the pointer is to a live mode.
    let exchanged = unsafe { sys::cuThreadExchangeStreamCaptureMode(&raw mut mode) };
    check("cuThreadExchangeStreamCaptureMode", exchanged.result()).map(|()| mode)
}

/// What a device would take of the images that are built in, best first and each kind once.
///
/// # Errors
/// If there is no driver.
pub fn images_for(device: &DeviceInfo) -> Result<Vec<String>> {
    let driver = driver_version()?;
    let mut kinds: Vec<String> = Vec::new();
    for place in 0..Units::PLACES {
        let (unit, storage) = Units::at(place);
        let best = images::candidates(unit.name, storage.name(), device.compute_capability, driver);
        if let Some(image) = best.first().map(|image| image.to_string())
            && !kinds.contains(&image)
        {
            kinds.push(image);
        }
    }
    Ok(kinds)
}
