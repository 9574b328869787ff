//! Loaded kernels, and the handle that calls run on.

use std::ffi::{CString, c_void};
use std::fmt;
use std::sync::Arc;
use std::thread;

use cudarc::driver::sys::{CUfunction, CUmodule};
use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DevicePtr, result};

use super::images::{self, Image, Origin};
use super::raw::{DeviceAddress, UNITS, not_loaded, scratch_bytes};
use super::{DeviceInfo, Storage, check, driver_version};
use crate::error::{Error, Result};

/// The kernels, loaded into a CUDA context.
pub struct Kernels {
    context: Arc<CudaContext>,
    multiprocessors: u32,
    modules: Vec<Module>,
}

/// One unit of kernels for one storage type.
struct Module {
    unit: &'static str,
    storage: Storage,
    module: CUmodule,
    functions: Vec<CUfunction>,
    image: &'static Image,
}

// SAFETY: the driver's handles may be used from any thread, as long as their context is current;
// `Kernels` makes it so before each use, and keeps it alive.
unsafe impl Send for Module {}
// SAFETY: as above; nothing is changed after loading.
unsafe impl Sync for Module {}

impl Kernels {
    /// Loads the kernels for some storage types of logits. The driver compiles them for the device; it
    /// keeps what it made for the next time.
    ///
    /// # Errors
    /// If the device is too old, or the driver takes none of the embedded images.
    pub fn load(context: &Arc<CudaContext>, storages: &[Storage]) -> Result<Kernels> {
        let device = DeviceInfo::of(context)?;
        device.usable()?;
        let driver = driver_version()?;
        let mut wanted = Vec::new();
        for unit in UNITS {
            let storages = if unit.only_f32 { &[Storage::F32] } else { storages };
            wanted.extend(storages.iter().map(|&storage| (unit.name, unit.entries, storage)));
        }
        // What was loaded before an error is unloaded with this.
        let mut kernels = Kernels {
            context: context.clone(),
            multiprocessors: device.multiprocessors,
            modules: Vec::new(),
        };
        let loaded: Vec<Result<Module>> = thread::scope(|scope| {
            let load = |(unit, entries, storage)| {
                check("cuCtxSetCurrent", context.bind_to_thread())?;
                Module::load(unit, entries, storage, device.compute_capability, driver)
            };
            let threads: Vec<_> =
                wanted.into_iter().map(|module| scope.spawn(move || load(module))).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect()
        });
        let mut error = None;
        for module in loaded {
            match module {
                Ok(module) => kernels.modules.push(module),
                Err(first) => error = error.or(Some(first)),
            }
        }
        error.map_or(Ok(kernels), Err)
    }

    /// The context that they are loaded into.
    pub fn context(&self) -> &Arc<CudaContext> {
        &self.context
    }

    /// Which images were loaded, one line each.
    pub fn images(&self) -> Vec<String> {
        let line = |module: &Module| {
            format!("{} {}: {}", module.unit, module.storage.name(), describe(module.image))
        };
        self.modules.iter().map(line).collect()
    }

    pub(super) fn multiprocessors(&self) -> u32 {
        self.multiprocessors
    }

    pub(super) fn function(&self, unit: &str, storage: Storage, index: usize) -> Result<CUfunction> {
        let found = self.modules.iter().find(|module| module.unit == unit && module.storage == storage);
        found.map(|module| module.functions[index]).ok_or_else(|| not_loaded(storage))
    }

    pub(super) fn bind(&self) -> Result<()> {
        check("cuCtxSetCurrent", self.context.bind_to_thread())
    }
}

impl Drop for Kernels {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_err() {
            return;
        }
        for module in &self.modules {
            // SAFETY: the module was loaded into this context, and is unloaded only here. A
            // failure leaves nothing to be done about it.
            let _ = unsafe { result::module::unload(module.module) };
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

impl Module {
    fn load(
        unit: &'static str,
        entries: &[&str],
        storage: Storage,
        compute_capability: u32,
        driver: i32,
    ) -> Result<Module> {
        let mut attempts = String::new();
        for image in images::candidates(unit, storage.name(), compute_capability, driver) {
            match Module::load_image(unit, entries, storage, image) {
                Ok(module) => return Ok(module),
                Err(error) => attempts += &format!("{}: {error}; ", describe(image)),
            }
        }
        if attempts.is_empty() {
            attempts = format!(
                "none is for compute capability {}.{} and a driver for CUDA {}.{}",
                compute_capability / 10,
                compute_capability % 10,
                driver / 1000,
                driver % 1000 / 10
            );
        }
        Err(Error::NoImage {
            unit,
            storage: storage.name(),
            attempts: attempts.trim_end_matches("; ").to_owned(),
        })
    }

    fn load_image(
        unit: &'static str,
        entries: &[&str],
        storage: Storage,
        image: &'static Image,
    ) -> Result<Module> {
        debug_assert!(image.ptx.ends_with('\0'));
        // SAFETY: the image is a text that ends with NUL; images.rs makes it so.
        let module = check("cuModuleLoadData", unsafe {
            result::module::load_data(image.ptx.as_ptr().cast::<c_void>())
        })?;
        let functions = entries.iter().map(|entry| {
            let name = CString::new(format!("{entry}_{}", storage.name())).expect("a name has no NUL");
            // SAFETY: the module has just been loaded.
            check("cuModuleGetFunction", unsafe { result::module::get_function(module, name) })
        });
        match functions.collect() {
            Ok(functions) => Ok(Module { unit, storage, module, functions, image }),
            Err(error) => {
                // SAFETY: the module has just been loaded, and nothing else has it.
                let _ = unsafe { result::module::unload(module) };
                Err(error)
            }
        }
    }
}

fn describe(image: &Image) -> String {
    let ((major, minor), capability) = (image.ptx_version, image.compute_capability);
    let origin = match image.origin {
        Origin::BuildScript => "compiled by the build script",
        Origin::Committed => "committed",
    };
    format!("PTX {major}.{minor} for compute capability {}.{}, {origin}", capability / 10, capability % 10)
}

/// What calls run on: a stream, the loaded kernels, and scratch memory for the reductions.
///
/// One stream's calls run one after the other, and so may share a handle, also from several
/// threads. Make another for another stream ([`Handle::on`] shares the kernels).
pub struct Handle {
    kernels: Arc<Kernels>,
    stream: Arc<CudaStream>,
    scratch: CudaSlice<u64>,
    scratch_address: DeviceAddress,
}

impl Handle {
    /// A handle with the kernels for f32, f16 and bf16.
    ///
    /// # Errors
    /// If the device is too old, the driver takes none of the embedded kernels, or has no memory
    /// left.
    pub fn new(stream: &Arc<CudaStream>) -> Result<Handle> {
        Handle::with_storage(stream, &Storage::ALL)
    }

    /// A handle with the kernels for some storage types, which loads faster.
    ///
    /// # Errors
    /// As [`Handle::new`].
    pub fn with_storage(stream: &Arc<CudaStream>, storages: &[Storage]) -> Result<Handle> {
        Handle::with_kernels(stream, Arc::new(Kernels::load(stream.context(), storages)?))
    }

    /// A handle for another stream of the same context, with the same kernels.
    ///
    /// # Errors
    /// If the stream is of another context, or the driver has no memory left.
    pub fn on(&self, stream: &Arc<CudaStream>) -> Result<Handle> {
        Handle::with_kernels(stream, self.kernels.clone())
    }

    fn with_kernels(stream: &Arc<CudaStream>, kernels: Arc<Kernels>) -> Result<Handle> {
        if stream.context() != kernels.context() {
            return Err(Error::OtherContext {
                tensor: "the stream",
                actual: stream.context().ordinal(),
                expected: kernels.context().ordinal(),
            });
        }
        let scratch =
            check("cuMemAllocAsync", stream.alloc_zeros::<u64>(scratch_bytes(&kernels).div_ceil(8)))?;
        let scratch_address = scratch.device_ptr(stream).0;
        Ok(Handle { kernels, stream: stream.clone(), scratch, scratch_address })
    }

    /// The stream that calls are enqueued on.
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// The loaded kernels, for [`raw`](super::raw).
    pub fn kernels(&self) -> &Arc<Kernels> {
        &self.kernels
    }

    /// Zeroes the scratch memory: needed only after a launch that did not run to its end.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn reset(&mut self) -> Result<()> {
        check("cuMemsetD8Async", self.stream.memset_zeros(&mut self.scratch))
    }

    pub(super) fn scratch(&self) -> DeviceAddress {
        self.scratch_address
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").field("kernels", &self.kernels).finish_non_exhaustive()
    }
}
