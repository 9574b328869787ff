//! An argument that is an array: PyTorch's tensors, NumPy's arrays, and whatever else has `__dlpack__`.

use std::slice;

use gfocal::cuda::Borrowed;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyCapsule;

use crate::cuda::Stream;
use crate::dlpack::{self, Exchange, Exported};
pub use crate::dtype::{DType, Item, Real};
pub(crate) use crate::dtype::{for_cuda_floats, for_floats};
use crate::error::{Failure, Outcome, shape, type_error, value};
use crate::pool::loaded;

/// The most dimensions that a tensor here has: `[B, C, H, W]`.
pub const DIMS: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    Cpu,
    Cuda(i32),
}

impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Device::Cpu => write!(f, "cpu"),
            Device::Cuda(id) => write!(f, "cuda:{id}"),
        }
    }
}

/// The shape of the argument that others are checked against, put into words where one does not fit.
pub struct Needs<'a>(pub &'static str, pub &'a [usize]);

impl std::fmt::Display for Needs<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {:?}", self.0, self.1)
    }
}

/// An array, as it was when the call began. Whoever changes its size in another thread meanwhile breaks the call, as
/// with any operation.
pub struct Tensor {
    /// The argument's.
    pub name: &'static str,
    pub dtype: DType,
    pub device: Device,
    data: *mut u8,
    dims: usize,
    shape: [usize; DIMS],
    strides: [i64; DIMS],
    writable: bool,
    exchange: Option<Exchange>,
    /// That its library works on, if the table does not tell.
    stream: Option<usize>,
    _memory: Option<Py<PyCapsule>>,
}

// SAFETY: its memory is kept by the caller's reference to the array, or by `_memory`, which no other thread touches.
unsafe impl Send for Tensor {}
// SAFETY: as above.
unsafe impl Sync for Tensor {}

impl Tensor {
    pub fn of(name: &'static str, object: &Bound<'_, PyAny>) -> Outcome<Tensor> {
        Self::on_stream(name, object, None)
    }

    pub fn optional(name: &'static str, object: Option<&Bound<'_, PyAny>>) -> Outcome<Option<Tensor>> {
        object.map(|object| Tensor::of(name, object)).transpose()
    }

    /// Of an array that another stream than the library's own orders.
    pub fn on_stream(
        name: &'static str,
        object: &Bound<'_, PyAny>,
        stream: Option<usize>,
    ) -> Outcome<Tensor> {
        if let Some(exchange) = Exchange::of(object) {
            let tensor = exchange.view(object, |view| Tensor::new(name, view, true, Some(exchange)))?;
            if let Some(tensor) = tensor {
                return tensor;
            }
        }
        if !object.hasattr(intern!(object.py(), "__dlpack__"))? {
            let kind = object.get_type();
            return Err(type_error(format!("{name} must be a tensor or an array, not {}", kind.name()?)));
        }
        let device = object.call_method0(intern!(object.py(), "__dlpack_device__"))?;
        let (kind, device) = device.extract::<(i32, i32)>()?;
        let of_torch = object.getattr_opt(intern!(object.py(), "requires_grad"))?;
        let stream = match stream {
            _ if kind != dlpack::CUDA => None,
            None if of_torch.is_some() => torchs_stream(object.py(), device)?,
            stream => stream,
        };
        let to_order = (kind == dlpack::CUDA).then(|| stream.unwrap_or(0));
        // One of an older PyTorch, which has no table, and does not give away what requires a gradient.
        let requires_grad = of_torch.is_some_and(|requires| requires.is_truthy().unwrap_or(false));
        let detached =
            if requires_grad { Some(object.call_method0(intern!(object.py(), "detach"))?) } else { None };
        let exported = Exported::of(detached.as_ref().unwrap_or(object), to_order)?;
        let (view, writable) = exported.view();
        let mut tensor = Tensor::new(name, view, writable, None)?;
        (tensor.stream, tensor._memory) = (stream, Some(exported.keep()));
        Ok(tensor)
    }

    fn new(
        name: &'static str,
        view: &dlpack::View,
        writable: bool,
        exchange: Option<Exchange>,
    ) -> Outcome<Tensor> {
        let device = match view.device.kind {
            dlpack::CPU | dlpack::CUDA_HOST => Device::Cpu,
            dlpack::CUDA | dlpack::CUDA_MANAGED => Device::Cuda(view.device.id),
            kind => {
                let others = ["", "", "", "", "OpenCL", "", "", "Vulkan", "Metal", "VPI", "ROCm"];
                let other = others.get(kind as usize).filter(|name| !name.is_empty()).copied();
                let other = other.map_or_else(|| format!("device type {kind} of DLPack"), str::to_owned);
                return Err(value(format!("{name} is on {other}; gfocal runs on CPUs and NVIDIA GPUs")));
            }
        };
        let Some(dtype) = DType::of(view.dtype) else {
            let (code, bits) = (view.dtype.code, view.dtype.bits);
            let words = ["int", "uint", "float", "opaque", "bfloat", "complex"];
            let kind = match words.get(usize::from(code)) {
                Some(word) => format!("{word}{bits}"),
                None if code == dlpack::BOOL => "bool".to_owned(),
                None => format!("a type of {bits} bits (DLPack's code {code})"),
            };
            return Err(type_error(format!("{name} is {kind}, which gfocal does not take")));
        };
        let dims = usize::try_from(view.dims).unwrap_or(0);
        if dims > DIMS {
            return Err(shape(format!("{name} has {dims} dimensions, at most {DIMS} make sense")));
        }
        let mut tensor = Tensor {
            name,
            dtype,
            device,
            data: view.data.cast::<u8>().wrapping_add(view.byte_offset as usize),
            dims,
            shape: [1; DIMS],
            strides: [0; DIMS],
            writable,
            exchange,
            stream: None,
            _memory: None,
        };
        let mut step = 1i64;
        for i in (0..dims).rev() {
            // SAFETY: the protocol has `dims` of them, and strides may be null.
            let (length, stride) = unsafe {
                (*view.shape.add(i), if view.strides.is_null() { step } else { *view.strides.add(i) })
            };
            tensor.shape[i] = usize::try_from(length).unwrap_or(0);
            tensor.strides[i] = stride;
            step = step.saturating_mul(length);
        }
        if view.data.is_null() && tensor.len() > 0 {
            return Err(value(format!(
                "{name} has no memory; a fake or meta tensor has no elements to read"
            )));
        }
        Ok(tensor)
    }

    pub fn shape(&self) -> &[usize] {
        &self.shape[..self.dims]
    }

    pub fn strides(&self) -> &[i64] {
        &self.strides[..self.dims]
    }

    /// How many elements.
    pub fn len(&self) -> usize {
        self.shape().iter().product()
    }

    /// After the check that it has this shape, which `because` explains.
    pub fn expect(&self, expected: &[usize], because: &dyn std::fmt::Display) -> Outcome {
        if self.shape() == expected {
            return Ok(());
        }
        let (name, actual) = (self.name, self.shape());
        Err(shape(format!("{name} has shape {actual:?}, {because} needs {expected:?}")))
    }

    /// `[rows, columns]`, and what they are called.
    pub fn matrix(&self, words: &str) -> Outcome<[usize; 2]> {
        match *self.shape() {
            [rows, columns] => Ok([rows, columns]),
            ref actual => Err(shape(format!("{} has shape {actual:?}, it must be {words}", self.name))),
        }
    }

    pub fn expect_dtype(&self, dtype: DType, because: &dyn std::fmt::Display) -> Outcome {
        if self.dtype == dtype {
            return Ok(());
        }
        let (name, actual, expected) = (self.name, self.dtype.name(), dtype.name());
        Err(type_error(format!("{name} is {actual}, {because} needs {expected}")))
    }

    pub fn expect_device(&self, device: Device, of: &str) -> Outcome {
        if self.device == device {
            return Ok(());
        }
        let (name, actual) = (self.name, self.device);
        Err(value(format!("{name} is on {actual}, {of} on {device}; move it there: {name}.to(\"{device}\")")))
    }

    pub fn no_float(&self) -> Failure {
        let (name, actual) = (self.name, self.dtype.name());
        type_error(format!(
            "{name} is {actual}, it must be float32, float16, bfloat16, or on the CPU float64"
        ))
    }

    pub fn no_cuda_float(&self) -> Failure {
        let (name, actual) = (self.name, self.dtype.name());
        type_error(format!("{name} is {actual}, on CUDA it must be float32, float16 or bfloat16"))
    }

    /// Whether elements follow each other, row after row.
    fn is_contiguous(&self) -> bool {
        let mut step = 1i64;
        for (&length, &stride) in self.shape().iter().zip(self.strides()).rev() {
            if length != 1 && stride != step {
                return self.len() == 0;
            }
            step = step.saturating_mul(length as i64);
        }
        true
    }

    /// The checks before elements of a type are looked at.
    fn check<T: Item>(&self) -> Outcome {
        if self.dtype != T::DTYPE {
            let (name, actual, expected) = (self.name, self.dtype.name(), T::DTYPE.name());
            return Err(type_error(format!("{name} is {actual}, it must be {expected} here")));
        }
        if !self.is_contiguous() {
            let (name, shape, strides) = (self.name, self.shape(), self.strides());
            let reason =
                format!("{name} is not contiguous (shape {shape:?}, strides {strides:?}); make it so first");
            return Err(value(reason));
        }
        self.check_aligned::<T>()
    }

    fn check_aligned<T>(&self) -> Outcome {
        let (name, address) = (self.name, self.data as usize);
        if self.len() == 0 || address.is_multiple_of(align_of::<T>()) {
            return Ok(());
        }
        Err(value(format!("{name} begins at address {address:#x}, which is no place for its type; copy it")))
    }

    /// The elements, on the CPU.
    pub fn slice<T: Item>(&self) -> Outcome<&[T]> {
        self.check::<T>()?;
        self.expect_device(Device::Cpu, "the call")?;
        if self.len() == 0 {
            return Ok(&[]);
        }
        // SAFETY: so many elements of this type, by the checks of type, device, order and alignment; they
        // are kept as long as `self`.
        Ok(unsafe { slice::from_raw_parts(self.data.cast(), self.len()) })
    }

    /// The elements, to be written. That no other argument has them is for [`check_overlaps`] to see.
    pub fn slice_mut<T: Item>(&mut self) -> Outcome<&mut [T]> {
        self.check::<T>()?;
        self.check_writable()?;
        self.expect_device(Device::Cpu, "the call")?;
        if self.len() == 0 {
            return Ok(&mut []);
        }
        // SAFETY: as in `slice`; they may be written, and this call alone has them.
        Ok(unsafe { slice::from_raw_parts_mut(self.data.cast(), self.len()) })
    }

    fn check_writable(&self) -> Outcome {
        if self.writable { Ok(()) } else { Err(value(format!("{} is read-only", self.name))) }
    }

    /// The elements, on CUDA.
    pub fn borrowed<T: Item>(&self, stream: &Stream) -> Outcome<Borrowed<T>> {
        self.check::<T>()?;
        self.expect_device(stream.device(), "the call")?;
        // SAFETY: so many elements of this type, by the checks of type, device, order and alignment; the
        // library that has them orders what it does with them by this stream.
        Ok(unsafe { Borrowed::new(stream.of_driver(), self.data as u64, self.len()) })
    }

    /// The elements as bytes, to be written on CUDA.
    pub fn borrowed_bytes(&self, stream: &Stream) -> Outcome<Borrowed<u8>> {
        let elements = self.borrowed_mut::<i64>(stream)?;
        // SAFETY: the same memory, of which a multiple of 8 bytes is a multiple of 1.
        Ok(unsafe { Borrowed::new(stream.of_driver(), elements.address(), 8 * self.len()) })
    }

    /// The elements, to be written on CUDA.
    pub fn borrowed_mut<T: Item>(&self, stream: &Stream) -> Outcome<Borrowed<T>> {
        self.check_writable()?;
        self.borrowed(stream)
    }

    /// The stream that the tensor's library works on now.
    pub fn current_stream(&self, py: Python<'_>) -> PyResult<Option<usize>> {
        match (self.device, self.exchange) {
            (Device::Cuda(id), Some(exchange)) => {
                exchange.current_stream(py, dlpack::Device { kind: dlpack::CUDA, id })
            }
            _ => Ok(self.stream),
        }
    }

    /// How many bytes an element has.
    fn size(&self) -> usize {
        match self.dtype {
            DType::F64 | DType::I64 => 8,
            DType::F32 | DType::I32 => 4,
            DType::F16 | DType::Bf16 => 2,
            DType::U8 => 1,
        }
    }

    /// The addresses of its elements: the first, and the first behind the last. Strides below 0, which no
    /// call takes, count as 0.
    fn reach(&self) -> (usize, usize) {
        if self.len() == 0 {
            return (0, 0);
        }
        let furthest = |(&length, &stride): (&usize, &i64)| (length - 1) * stride.max(0) as usize;
        let last: usize = self.shape().iter().zip(self.strides()).map(furthest).sum();
        (self.data as usize, self.data as usize + (last + 1) * self.size())
    }

    /// On the CPU, all that the strides lead over: from the first element to the last.
    pub fn whole<T: Item>(&self) -> Outcome<&[T]> {
        self.check_strided::<T>()?;
        self.expect_device(Device::Cpu, "the call")?;
        let (start, end) = self.reach();
        if start == end {
            return Ok(&[]);
        }
        // SAFETY: the strides, none below 0, lead from the first to the last of these elements, which are in one
        // allocation, of this type and aligned by the checks; it is kept as long as `self`, and nobody writes it.
        Ok(unsafe { slice::from_raw_parts(self.data.cast(), (end - start) / size_of::<T>()) })
    }

    /// The same, to be written. That no other argument has any of it is for [`check_overlaps`] to see.
    pub fn whole_mut<T: Item>(&mut self) -> Outcome<&mut [T]> {
        self.check_strided::<T>()?;
        self.check_writable()?;
        self.expect_device(Device::Cpu, "the call")?;
        let (start, end) = self.reach();
        if start == end {
            return Ok(&mut []);
        }
        // SAFETY: as in `whole`; they may be written, and this call alone has them.
        Ok(unsafe { slice::from_raw_parts_mut(self.data.cast(), (end - start) / size_of::<T>()) })
    }

    /// As `whole`, on CUDA.
    pub fn whole_borrowed<T: Item>(&self, stream: &Stream) -> Outcome<Borrowed<T>> {
        self.check_strided::<T>()?;
        self.expect_device(stream.device(), "the call")?;
        let (start, end) = self.reach();
        // SAFETY: as in `whole` and `borrowed`.
        Ok(unsafe { Borrowed::new(stream.of_driver(), start as u64, (end - start) / size_of::<T>()) })
    }

    /// As `whole_mut`, on CUDA.
    pub fn whole_borrowed_mut<T: Item>(&self, stream: &Stream) -> Outcome<Borrowed<T>> {
        self.check_writable()?;
        self.whole_borrowed(stream)
    }

    /// The elements on CUDA in parts of so many, one after the other, to be written.
    pub fn borrowed_parts<T: Item>(&self, stream: &Stream, parts: &[usize]) -> Outcome<Vec<Borrowed<T>>> {
        self.check_writable()?;
        self.check::<T>()?;
        self.expect_device(stream.device(), "the call")?;
        let needed: usize = parts.iter().sum();
        if needed > self.len() {
            return Err(shape(format!("{} has {} elements, its parts need {needed}", self.name, self.len())));
        }
        let mut next = self.data as u64;
        let part = |&len: &usize| {
            // SAFETY: as in `borrowed`: the parts are no more than there is, and none is in another.
            let part = unsafe { Borrowed::new(stream.of_driver(), next, len) };
            next += (len * size_of::<T>()) as u64;
            part
        };
        Ok(parts.iter().map(part).collect())
    }

    fn check_strided<T: Item>(&self) -> Outcome {
        if self.dtype != T::DTYPE {
            let (name, actual, expected) = (self.name, self.dtype.name(), T::DTYPE.name());
            return Err(type_error(format!("{name} is {actual}, it must be {expected} here")));
        }
        if self.strides().iter().any(|&stride| stride < 0) {
            return Err(value(format!("{} has strides below 0: {:?}", self.name, self.strides())));
        }
        self.check_aligned::<T>()
    }
}

/// The stream that PyTorch works on now.
fn torchs_stream(py: Python<'_>, device: i32) -> PyResult<Option<usize>> {
    let Some(torch) = loaded(py, "torch")? else { return Ok(None) };
    let current =
        torch.getattr(intern!(py, "cuda"))?.call_method1(intern!(py, "current_stream"), (device,))?;
    current.getattr(intern!(py, "cuda_stream"))?.extract().map(Some)
}

/// What a call writes must be nobody else's.
pub fn check_overlaps<'t>(
    written: impl IntoIterator<Item = &'t Tensor>,
    read: impl IntoIterator<Item = &'t Tensor>,
) -> Outcome {
    let reach = |tensor: &'t Tensor| (tensor, tensor.reach());
    let written: Vec<_> = written.into_iter().map(reach).collect();
    let read: Vec<_> = read.into_iter().map(reach).collect();
    for (i, (tensor, (start, end))) in written.iter().enumerate() {
        for (other, (other_start, other_end)) in written[i + 1..].iter().chain(&read) {
            let bytes = end.min(other_end).saturating_sub(*start.max(other_start));
            if bytes > 0 && tensor.device == other.device {
                let (tensor, other) = (tensor.name, other.name);
                let reason = format!("{tensor} overlaps {other} by {bytes} bytes; give it memory of its own");
                return Err(value(reason));
            }
        }
    }
    Ok(())
}
