//! One unit of kernels for one storage type, loaded.

use std::ffi::{CString, c_void};
use std::fmt::Write;
use std::path::Path;
use std::ptr;

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUfunction, CUfunction_attribute, CUjit_option, CUmodule, CUresult};

use super::images;
use super::launch::MOST_BLOCKS;
use super::units::Unit;
use super::{Storage, check};
use crate::error::{Error, Result};

/// What a device and its driver can take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target {
    /// As in 90.
    pub compute_capability: u32,
    /// As cuDriverGetVersion gives it.
    pub driver: i32,
    /// Bytes of shared memory that a multiprocessor has, and that each of its blocks costs besides
    /// the block's own.
    pub shared_memory: [u32; 2],
}

/// A loaded module.
pub(super) struct Module {
    handle: CUmodule,
    functions: Vec<Function>,
    /// Which image it is, in words, and which better ones the driver has refused.
    image: String,
}

/// A kernel that can be launched.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Function {
    pub handle: CUfunction,
    /// How many of its blocks a multiprocessor can have at once: at least 1, at most [`MOST_BLOCKS`].
    pub resident: u32,
}

// SAFETY: the driver's handles may be used from any thread, as long as their context is current;
// `Kernels` makes it so before each use, and keeps it alive.
unsafe impl Send for Module {}
// SAFETY: as above; nothing is changed after loading.
unsafe impl Sync for Module {}

/// Why a module could not be loaded.
pub(super) struct Refused {
    pub error: Error,
    /// Whether the driver may have meant that it could not just then: its compiler is missing, or
    /// has made nothing, which has been seen of loads at the same time.
    pub again: bool,
}

impl Module {
    /// Loads the best image that the device takes, before all others one of `folder`. With `patient`
    /// an image that the driver's compiler fails on is given up for the next one.
    pub fn load(
        unit: &Unit,
        storage: Storage,
        target: Target,
        folder: Option<&Path>,
        patient: bool,
    ) -> Result<Module, Refused> {
        let mut attempts = String::new();
        let mut attempt = |image: String, code: &[u8]| match Module::load_code(unit, storage, target, code) {
            Ok((handle, functions)) => {
                let image = if attempts.is_empty() {
                    image
                } else {
                    format!("{image} (refused: {})", attempts.trim_end_matches("; "))
                };
                Ok(Some(Module { handle, functions, image }))
            }
            Err((error, again)) => {
                let _ = write!(attempts, "{image}: {error}; ");
                if again && !patient { Err(Refused { error, again }) } else { Ok(None) }
            }
        };
        if let Some((path, code)) = folder.and_then(|folder| replacement(folder, unit, storage, target))
            && let Some(module) = attempt(path, &code)?
        {
            return Ok(module);
        }
        for image in images::candidates(unit.name, storage.name(), target.compute_capability, target.driver) {
            if let Some(module) = attempt(image.to_string(), &image.unpack())? {
                return Ok(module);
            }
        }
        if attempts.is_empty() {
            let Target { compute_capability, driver, .. } = target;
            attempts = format!(
                "none is for compute capability {}.{} and a driver for CUDA {}.{}",
                compute_capability / 10,
                compute_capability % 10,
                driver / 1000,
                driver % 1000 / 10
            );
        }
        let attempts = attempts.trim_end_matches("; ").to_owned();
        let error = Error::NoImage { unit: unit.name, storage: storage.name(), attempts };
        Err(Refused { error, again: false })
    }

    /// Which image it is, in words.
    pub fn image(&self) -> &str {
        &self.image
    }

    /// A kernel by its place among the unit's entry points.
    pub fn function(&self, index: usize) -> Function {
        self.functions[index]
    }

    /// Unloads it.
    ///
    /// # Safety
    /// Its context is current, none of its kernels runs or will, and it is not used again.
    pub unsafe fn unload(&self) -> Result<(), DriverError> {
        // SAFETY: the module was loaded into this context; the rest is the caller's promise.
        unsafe { result::module::unload(self.handle) }
    }

    /// The module of an image and its functions; or the error, and whether it may be worth another try.
    fn load_code(
        unit: &Unit,
        storage: Storage,
        target: Target,
        code: &[u8],
    ) -> Result<(CUmodule, Vec<Function>), (Error, bool)> {
        let handle = load_data(code)?;
        let functions = unit.entries.iter().map(|entry| {
            let name = CString::new(format!("{entry}_{}", storage.name())).expect("a name has no NUL");
            // SAFETY: the module has just been loaded.
            let function = unsafe { result::module::get_function(handle, name) };
            Function::new(check("cuModuleGetFunction", function)?, target)
        });
        match functions.collect() {
            Ok(functions) => Ok((handle, functions)),
            Err(error) => {
                // SAFETY: the module has just been loaded, and nothing else has it.
                let _ = unsafe { result::module::unload(handle) };
                Err((error, false))
            }
        }
    }
}

/// What a folder has for this unit: the PTX for the highest target up to the device's own.
fn replacement(folder: &Path, unit: &Unit, storage: Storage, target: Target) -> Option<(String, Vec<u8>)> {
    (75..=target.compute_capability).rev().find_map(|capability| {
        let path = folder.join(format!("{}.{}.sm_{capability}.ptx", unit.name, storage.name()));
        let mut code = std::fs::read(&path).ok()?;
        code.push(0);
        Some((path.display().to_string(), code))
    })
}

/// Loads PTX that ends with NUL, or a cubin. The driver's log joins the error.
fn load_data(code: &[u8]) -> Result<CUmodule, (Error, bool)> {
    assert!(
        code.starts_with(b"\x7fELF") || code.ends_with(&[0]),
        "an image is a cubin, or a text with an end"
    );
    let mut log = [0u8; 4096];
    let mut options =
        [CUjit_option::CU_JIT_ERROR_LOG_BUFFER, CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
    let mut values = [log.as_mut_ptr().cast::<c_void>(), ptr::without_provenance_mut(log.len())];
    let mut handle = ptr::null_mut();
    // SAFETY: the code is a cubin or ends with NUL, as was asserted above; the options are two, with
    // as many values, and the log has the length that they give.
    let loaded = unsafe {
        sys::cuModuleLoadDataEx(
            &raw mut handle,
            code.as_ptr().cast(),
            options.len() as u32,
            options.as_mut_ptr(),
            values.as_mut_ptr(),
        )
    };
    let again = matches!(
        loaded,
        CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU | CUresult::CUDA_ERROR_JIT_COMPILER_NOT_FOUND
    );
    check("cuModuleLoadDataEx", loaded.result())
        .map(|()| handle)
        .map_err(|error| (with_log(error, &log), again))
}

/// The driver's error with what its log says.
fn with_log(mut error: Error, log: &[u8]) -> Error {
    let log = log.split(|&byte| byte == 0).next().unwrap_or_default();
    let log = String::from_utf8_lossy(log);
    if let (Error::Driver { message, .. }, false) = (&mut error, log.trim().is_empty()) {
        let lines: Vec<&str> = log.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        let _ = write!(message, " ({})", lines.join(" / "));
    }
    error
}

impl Function {
    /// Asks the driver how many blocks fit a multiprocessor, and for as much shared memory as they
    /// need: both cost too much to be done at a launch.
    fn new(handle: CUfunction, target: Target) -> Result<Function> {
        let attribute = |attribute| {
            // SAFETY: the function belongs to a module that is loaded.
            let value = unsafe { result::function::get_function_attribute(handle, attribute) };
            check("cuFuncGetAttribute", value)
        };
        // Its launch bounds, which are the block that it is launched with.
        let threads = attribute(CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK)?;
        let shared = attribute(CUfunction_attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)?.unsigned_abs();
        // SAFETY: as above.
        let resident = unsafe { result::occupancy::max_active_block_per_multiprocessor(handle, threads, 0) };
        let resident = check("cuOccupancyMaxActiveBlocksPerMultiprocessor", resident)?;
        let resident = resident.unsigned_abs().clamp(1, MOST_BLOCKS);

        let [all, each] = target.shared_memory;
        let percent = (100 * resident * (shared + each)).div_ceil(all.max(1)).min(100);
        let carveout = CUfunction_attribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT;
        // SAFETY: as above.
        let set = unsafe { result::function::set_function_attribute(handle, carveout, percent as i32) };
        check("cuFuncSetAttribute", set)?;
        Ok(Function { handle, resident })
    }
}
