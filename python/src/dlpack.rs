//! DLPack 1.3: how arrays of other libraries say where their elements are. The only file that reads foreign memory
//! layouts.

use std::ffi::{CStr, c_int, c_void};
use std::ptr::{self, NonNull};

use pyo3::exceptions::{PyBufferError, PyTypeError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyCapsule, PyDict};

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Version {
    major: u32,
    minor: u32,
}

#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Device {
    pub kind: i32,
    pub id: i32,
}

pub const CPU: i32 = 1;
pub const CUDA: i32 = 2;
pub const CUDA_HOST: i32 = 3;
pub const CUDA_MANAGED: i32 = 13;

#[repr(C)]
#[derive(Clone, Copy)]
pub struct DataType {
    pub code: u8,
    pub bits: u8,
    pub lanes: u16,
}

pub const INT: u8 = 0;
pub const UINT: u8 = 1;
pub const FLOAT: u8 = 2;
pub const BFLOAT: u8 = 4;
pub const BOOL: u8 = 6;

/// `DLTensor`.
#[repr(C)]
pub struct View {
    pub data: *mut c_void,
    pub device: Device,
    pub dims: i32,
    pub dtype: DataType,
    /// `[dims]`.
    pub shape: *const i64,
    /// `[dims]`, or null: row after row.
    pub strides: *const i64,
    pub byte_offset: u64,
}

#[repr(C)]
struct Managed {
    view: View,
    context: *mut c_void,
    delete: Option<unsafe extern "C" fn(*mut Managed)>,
}

#[repr(C)]
struct ManagedVersioned {
    version: Version,
    context: *mut c_void,
    delete: Option<unsafe extern "C" fn(*mut ManagedVersioned)>,
    flags: u64,
    view: View,
}

const READ_ONLY: u64 = 1;

#[repr(C)]
struct ExchangeApi {
    version: Version,
    older: *const ExchangeApi,
    allocate: *const c_void,
    managed_from_object: *const c_void,
    object_from_managed: *const c_void,
    view_of_object: Option<unsafe extern "C" fn(*mut c_void, *mut View) -> c_int>,
    current_stream: Option<unsafe extern "C" fn(i32, i32, *mut *mut c_void) -> c_int>,
}

/// What a library's tensors answer to without a Python call: the table in their type's
/// `__dlpack_c_exchange_api__`.
#[derive(Clone, Copy)]
pub struct Exchange(NonNull<ExchangeApi>);

// SAFETY: the protocol has the table live, unchanged, as long as the process.
unsafe impl Send for Exchange {}
// SAFETY: as above.
unsafe impl Sync for Exchange {}

impl Exchange {
    /// Of an object's type, if it has one of a version that is known here.
    pub fn of(object: &Bound<'_, PyAny>) -> Option<Exchange> {
        static LAST: PyOnceLock<(Py<PyAny>, Option<Exchange>)> = PyOnceLock::new();
        let (py, kind) = (object.py(), object.get_type());
        if let Some((of, exchange)) = LAST.get(py)
            && of.is(&kind)
        {
            return *exchange;
        }
        let exchange = Self::look_up(&kind);
        if exchange.is_some() {
            let _ = LAST.set(py, (kind.into_any().unbind(), exchange));
        }
        exchange
    }

    fn look_up(kind: &Bound<'_, PyAny>) -> Option<Exchange> {
        let capsule = kind.getattr(intern!(kind.py(), "__dlpack_c_exchange_api__")).ok()?;
        let capsule = capsule.cast_into::<PyCapsule>().ok()?;
        let mut table: *const ExchangeApi =
            capsule.pointer_checked(Some(c"dlpack_exchange_api")).ok()?.as_ptr().cast_const().cast();
        // SAFETY: a capsule of this name holds such a table, whose first two members are the same in all
        // versions, and those it points to likewise.
        while let Some(api) = unsafe { table.as_ref() } {
            if api.version.major == 1 {
                return NonNull::new(table.cast_mut()).map(Exchange);
            }
            table = api.older;
        }
        None
    }

    /// Where an object's elements are, for `with`, or `None` if the table cannot tell.
    pub fn view<R>(self, object: &Bound<'_, PyAny>, with: impl FnOnce(&View) -> R) -> PyResult<Option<R>> {
        // SAFETY: the table is of version 1.
        let Some(view_of_object) = (unsafe { self.0.as_ref() }).view_of_object else { return Ok(None) };
        let mut view = View {
            data: ptr::null_mut(),
            device: Device { kind: 0, id: 0 },
            dims: 0,
            dtype: DataType { code: 0, bits: 0, lanes: 0 },
            shape: ptr::null(),
            strides: ptr::null(),
            byte_offset: 0,
        };
        // SAFETY: the object is of the table's type, and this thread is attached.
        if unsafe { view_of_object(object.as_ptr().cast(), &mut view) } != 0 {
            return Err(error(object.py()));
        }
        Ok(Some(with(&view)))
    }

    /// The stream that the library works on now.
    pub fn current_stream(self, py: Python<'_>, device: Device) -> PyResult<Option<usize>> {
        // SAFETY: the table is of version 1.
        let Some(current_stream) = (unsafe { self.0.as_ref() }).current_stream else { return Ok(None) };
        let mut stream = ptr::null_mut();
        // SAFETY: of a device that one of its tensors is on.
        if unsafe { current_stream(device.kind, device.id, &mut stream) } != 0 {
            return Err(error(py));
        }
        Ok(Some(stream as usize))
    }
}

fn error(py: Python<'_>) -> PyErr {
    PyErr::take(py).unwrap_or_else(|| PyBufferError::new_err("the tensor's library gave no reason"))
}

/// An array's capsule, which keeps its memory.
pub struct Exported<'py>(Bound<'py, PyCapsule>, *const View, bool);

impl<'py> Exported<'py> {
    /// By `__dlpack__`, without waiting: what the array's stream does not order, `stream` does.
    pub fn of(object: &Bound<'py, PyAny>, stream: Option<usize>) -> PyResult<Exported<'py>> {
        let py = object.py();
        let method = object.getattr(intern!(py, "__dlpack__"))?;
        let options = PyDict::new(py);
        if let Some(stream) = stream {
            // The protocol's name of the null stream of CUDA is 1.
            options.set_item(intern!(py, "stream"), stream.max(1))?;
        }
        options.set_item(intern!(py, "max_version"), (1, 3))?;
        let capsule = method.call((), Some(&options)).or_else(|error| {
            if !error.is_instance_of::<PyTypeError>(py) {
                return Err(error);
            }
            options.del_item(intern!(py, "max_version"))?; // older than DLPack 1
            method.call((), Some(&options))
        })?;
        let capsule = capsule.cast_into::<PyCapsule>()?;
        let pointer = |name: &'static CStr| capsule.pointer_checked(Some(name)).ok();
        let (view, writable) = if let Some(managed) = pointer(c"dltensor_versioned") {
            // SAFETY: a capsule of this name holds such a struct.
            let managed = unsafe { managed.cast::<ManagedVersioned>().as_ref() };
            if managed.version.major != 1 {
                let Version { major, minor } = managed.version;
                return Err(PyBufferError::new_err(format!("DLPack {major}.{minor} is not known here")));
            }
            (&raw const managed.view, managed.flags & READ_ONLY == 0)
        } else if let Some(managed) = pointer(c"dltensor") {
            // SAFETY: as above.
            let managed = unsafe { managed.cast::<Managed>().as_ref() };
            (&raw const managed.view, true)
        } else {
            return Err(PyBufferError::new_err("__dlpack__ gave something else than DLPack's capsule"));
        };
        Ok(Exported(capsule, view, writable))
    }

    /// Where the elements are, and whether they may be written.
    pub fn view(&self) -> (&View, bool) {
        // SAFETY: inside what the capsule holds.
        (unsafe { &*self.1 }, self.2)
    }

    /// What keeps the memory: a capsule that is not consumed frees it.
    pub fn keep(self) -> Py<PyCapsule> {
        self.0.unbind()
    }
}
