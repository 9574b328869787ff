//! NVRTC, the compiler from CUDA C++ to PTX and machine code, behind a safe face.
//!
//! NVRTC is an ordinary shared library: it needs no GPU, no driver and no CUDA toolkit. It is
//! opened by path, so that a copy out of a Python wheel serves as well as an installed one.

use std::error::Error;
use std::ffi::{CStr, CString, c_char, c_int};
use std::path::{Path, PathBuf};
use std::ptr;

use libloading::Library;

/// The oldest release that is used: older ones write PTX that says nothing about newer GPUs, and
/// default to an older C++.
pub const OLDEST: (u32, u32) = (12, 0);

const SUCCESS: Status = 0;

type Status = c_int;
type Strings = *const *const c_char;

/// What NVRTC calls `nvrtcProgram`: a pointer to something that only NVRTC looks into.
#[repr(C)]
struct Opaque {
    _private: [u8; 0],
}
type Program = *mut Opaque;

type Version = unsafe extern "C" fn(*mut c_int, *mut c_int) -> Status;
type FillInt = unsafe extern "C" fn(*mut c_int) -> Status;
type ErrorString = unsafe extern "C" fn(Status) -> *const c_char;
type Create =
    unsafe extern "C" fn(*mut Program, *const c_char, *const c_char, c_int, Strings, Strings) -> Status;
type Compile = unsafe extern "C" fn(Program, c_int, Strings) -> Status;
type Size = unsafe extern "C" fn(Program, *mut usize) -> Status;
type Fill = unsafe extern "C" fn(Program, *mut c_char) -> Status;
type Destroy = unsafe extern "C" fn(*mut Program) -> Status;

/// An opened NVRTC.
pub struct Nvrtc {
    path: PathBuf,
    version: (u32, u32),
    compute_capabilities: Vec<u32>,
    error_string: ErrorString,
    create: Create,
    compile: Compile,
    ptx_size: Size,
    ptx: Fill,
    cubin_size: Size,
    cubin: Fill,
    log_size: Size,
    log: Fill,
    destroy: Destroy,
    /// Keeps the functions above where they are.
    _library: Library,
}

/// What a source is compiled to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// Text, which the driver assembles for the device that it finds.
    Ptx,
    /// Machine code of one architecture: a cubin, ready to run.
    Machine,
}

/// What a source compiles to.
pub struct Compiled {
    /// PTX, or a cubin.
    pub code: Vec<u8>,
    /// What NVRTC has to say nevertheless, line by line; mostly nothing.
    pub warnings: String,
}

/// A source that does not compile, or a compiler that cannot work.
#[derive(Debug)]
pub struct CompileError {
    /// What NVRTC has to say, line by line.
    pub log: String,
}

impl Nvrtc {
    /// Opens a libnvrtc by its path, or by a name for the loader to look up. The error says what
    /// is wrong with it.
    pub fn open(path: &Path) -> Result<Nvrtc, String> {
        // SAFETY: the callers hand over nothing but files and names of the form of libnvrtc's
        // (`search::libraries_in`) or what the user named as NVRTC. NVRTC's initialisers have no
        // requirements of the process they run in.
        let library = unsafe { Library::new(path) }.map_err(|error| {
            // The error proper only says "dlopen failed"; its source is the loader's sentence.
            let reason = error.source().map_or(error.to_string(), ToString::to_string);
            format!("{} cannot be loaded: {reason}", path.display())
        })?;

        /// Looks a function up; its type comes from the field it is meant for.
        fn function<T: Copy>(library: &Library, path: &Path, name: &str) -> Result<T, String> {
            // SAFETY: every call names a function of nvrtc.h and assigns it to a field of the
            // type that nvrtc.h declares; these declarations have not changed since CUDA 11.2.
            let symbol = unsafe { library.get::<T>(name.as_bytes()) };
            match symbol {
                Ok(symbol) => Ok(*symbol),
                Err(_) => Err(format!("{} has no {name}", path.display())),
            }
        }

        let version: Version = function(&library, path, "nvrtcVersion")?;
        let (mut major, mut minor) = (0, 0);
        // SAFETY: both pointers are to live integers.
        let status = unsafe { version(&mut major, &mut minor) };
        if status != SUCCESS {
            return Err(format!("{} does not tell its version (error {status})", path.display()));
        }
        let version = (major.unsigned_abs(), minor.unsigned_abs());
        if version < OLDEST {
            return Err(format!(
                "{} is NVRTC {}.{}, older than {}.{}",
                path.display(),
                version.0,
                version.1,
                OLDEST.0,
                OLDEST.1
            ));
        }

        let count: FillInt = function(&library, path, "nvrtcGetNumSupportedArchs")?;
        let fill: FillInt = function(&library, path, "nvrtcGetSupportedArchs")?;
        let mut number = 0;
        // SAFETY: the pointer is to a live integer.
        let status = unsafe { count(&mut number) };
        let mut architectures = vec![0; usize::try_from(number).unwrap_or(0)];
        // SAFETY: the buffer has room for as many integers as NVRTC has just said it writes.
        if status != SUCCESS || unsafe { fill(architectures.as_mut_ptr()) } != SUCCESS {
            return Err(format!("{} does not tell its compute capabilities", path.display()));
        }

        Ok(Nvrtc {
            path: loaded_from(path),
            version,
            compute_capabilities: architectures.into_iter().map(c_int::unsigned_abs).collect(),
            error_string: function(&library, path, "nvrtcGetErrorString")?,
            create: function(&library, path, "nvrtcCreateProgram")?,
            compile: function(&library, path, "nvrtcCompileProgram")?,
            ptx_size: function(&library, path, "nvrtcGetPTXSize")?,
            ptx: function(&library, path, "nvrtcGetPTX")?,
            cubin_size: function(&library, path, "nvrtcGetCUBINSize")?,
            cubin: function(&library, path, "nvrtcGetCUBIN")?,
            log_size: function(&library, path, "nvrtcGetProgramLogSize")?,
            log: function(&library, path, "nvrtcGetProgramLog")?,
            destroy: function(&library, path, "nvrtcDestroyProgram")?,
            _library: library,
        })
    }

    /// Where it was loaded from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its release, as in 12.9.
    pub fn version(&self) -> (u32, u32) {
        self.version
    }

    /// What it compiles for, written as in 75.
    pub fn compute_capabilities(&self) -> &[u32] {
        &self.compute_capabilities
    }

    /// Whether it compiles for a compute capability, written as in 75.
    pub fn supports(&self, compute_capability: u32) -> bool {
        self.compute_capabilities.contains(&compute_capability)
    }

    /// Compiles a source to `code`, for which the options name the architecture. `name` stands in
    /// the messages; `headers` are names, as an `#include` spells them, and texts. Nothing is read
    /// from the disk.
    pub fn compile(
        &self,
        source: &str,
        name: &str,
        headers: &[(String, String)],
        options: &[String],
        code: Code,
    ) -> Result<Compiled, CompileError> {
        let source = c_string(source)?;
        let name = c_string(name)?;
        let (header_names, header_texts): (Vec<_>, Vec<_>) =
            headers.iter().map(|(name, text)| (name, text)).unzip();
        let header_names = CStrings::new(&header_names)?;
        let header_texts = CStrings::new(&header_texts)?;
        let options = CStrings::new(options)?;

        let mut program = ptr::null_mut();
        // SAFETY: the strings end in NUL and the arrays have `header_names.len()` entries, both
        // by the construction of `CStrings`; all of them outlive the program, destroyed below.
        let status = unsafe {
            (self.create)(
                &mut program,
                source.as_ptr(),
                name.as_ptr(),
                header_names.len(),
                header_texts.as_ptr(),
                header_names.as_ptr(),
            )
        };
        if status != SUCCESS {
            return Err(self.error("NVRTC cannot create a program", status));
        }
        let program = OwnedProgram { handle: program, nvrtc: self };

        // SAFETY: the program was created (status checked above) and lives until the end of this
        // function; the options' array has `options.len()` entries.
        let status = unsafe { (self.compile)(program.handle, options.len(), options.as_ptr()) };
        let log = program.bytes(self.log_size, self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(until_nul(&log)).trim().to_owned();
        if status != SUCCESS {
            return Err(if log.is_empty() {
                self.error("NVRTC gives up", status)
            } else {
                CompileError { log }
            });
        }
        let made = match code {
            Code::Ptx => program.bytes(self.ptx_size, self.ptx).map(|bytes| until_nul(&bytes).to_vec()),
            Code::Machine => program.bytes(self.cubin_size, self.cubin),
        };
        match made {
            Ok(code) => Ok(Compiled { code, warnings: log }),
            Err(status) => Err(self.error("NVRTC does not hand over what it compiled", status)),
        }
    }

    fn error(&self, what: &str, status: Status) -> CompileError {
        // SAFETY: NVRTC takes any number here and returns a string that is never freed.
        let text = unsafe { (self.error_string)(status) };
        let text = if text.is_null() {
            "unknown error".into()
        } else {
            // SAFETY: not null, by the check above, and NUL-terminated by NVRTC's contract.
            unsafe { CStr::from_ptr(text) }.to_string_lossy()
        };
        CompileError { log: format!("{what}: {text} ({status})") }
    }
}

/// A program that is destroyed however the compilation ends.
struct OwnedProgram<'a> {
    handle: Program,
    nvrtc: &'a Nvrtc,
}

impl OwnedProgram<'_> {
    /// What NVRTC gives in two steps: its size, then its bytes.
    fn bytes(&self, size: Size, fill: Fill) -> Result<Vec<u8>, Status> {
        let mut bytes_needed = 0;
        // SAFETY: the handle is that of a created program, by construction.
        let status = unsafe { size(self.handle, &mut bytes_needed) };
        if status != SUCCESS {
            return Err(status);
        }
        let mut bytes = vec![0_u8; bytes_needed];
        // SAFETY: as above, and the buffer is as large as NVRTC has just asked for.
        let status = unsafe { fill(self.handle, bytes.as_mut_ptr().cast()) };
        if status != SUCCESS {
            return Err(status);
        }
        Ok(bytes)
    }
}

/// A text of C without its end.
fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|&byte| byte == 0).next().unwrap_or_default()
}

impl Drop for OwnedProgram<'_> {
    fn drop(&mut self) {
        // SAFETY: the handle is that of a created program, by construction, and this is the only
        // place that destroys one. The library is still open: `nvrtc` is borrowed.
        unsafe { (self.nvrtc.destroy)(&mut self.handle) };
    }
}

/// Strings for C: the array of pointers, and what they point to.
struct CStrings {
    pointers: Vec<*const c_char>,
    _strings: Vec<CString>,
}

impl CStrings {
    fn new<S: AsRef<str>>(strings: &[S]) -> Result<CStrings, CompileError> {
        let strings: Vec<CString> =
            strings.iter().map(|string| c_string(string.as_ref())).collect::<Result<_, _>>()?;
        Ok(CStrings {
            // A CString's bytes are on the heap: they stay where they are when it moves.
            pointers: strings.iter().map(|string| string.as_ptr()).collect(),
            _strings: strings,
        })
    }

    fn len(&self) -> c_int {
        c_int::try_from(self.pointers.len()).expect("a handful of strings")
    }

    fn as_ptr(&self) -> Strings {
        self.pointers.as_ptr()
    }
}

fn c_string(text: &str) -> Result<CString, CompileError> {
    CString::new(text).map_err(|error| CompileError {
        log: format!("a source or an option has a NUL byte at {}", error.nul_position()),
    })
}

/// The file behind a name that the loader looked up, where the system tells (Linux).
fn loaded_from(path: &Path) -> PathBuf {
    if path.is_absolute() {
        return path.to_owned();
    }
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let file = maps
        .lines()
        .filter_map(|line| line.find('/').map(|start| Path::new(&line[start..])))
        .find(|file| file.file_name().is_some_and(|name| name.to_string_lossy().starts_with("libnvrtc.so")));
    file.unwrap_or(path).to_owned()
}
