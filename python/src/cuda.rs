//! CUDA as the tensors' library uses it: its primary contexts, its streams, its allocator.

use std::collections::HashMap;
use std::process;
use std::sync::{Arc, Mutex, PoisonError};

use gfocal::cuda::{self, Borrowed, Handle, Kernels, is_captured, raw};
use gfocal::cudarc::driver::{CudaContext, CudaStream};
use pyo3::prelude::*;

use crate::error::{Failure, Outcome, value};
use crate::tensor::{Device, Tensor};

/// A stream of a device, as its owner names it.
pub struct Stream {
    device: i32,
    stream: Arc<CudaStream>,
    kernels: Arc<Kernels>,
}

impl Stream {
    pub fn device(&self) -> Device {
        Device::Cuda(self.device)
    }

    pub fn ordinal(&self) -> i32 {
        self.device
    }

    pub fn of_driver(&self) -> &Arc<CudaStream> {
        &self.stream
    }
}

/// What a call on CUDA works with.
pub struct On {
    pub stream: Stream,
    pub handle: Arc<Handle>,
    /// Of a handle that is for this call alone; it goes with it, in the stream's order.
    _memory: Option<Memory>,
}

#[derive(Default)]
struct State {
    process: u32,
    devices: HashMap<i32, (Arc<CudaContext>, Arc<Kernels>)>,
    /// By device and stream, with the memory that each works in.
    handles: HashMap<(i32, usize), (Arc<Handle>, Option<Memory>)>,
    /// `(device, bytes) -> tensor of uint8`.
    allocator: Option<Py<PyAny>>,
}

static STATE: Mutex<Option<State>> = Mutex::new(None);

/// What gives device memory to work in, `(device, bytes) -> uint8 tensor`; without, the driver does.
#[pyfunction]
pub fn set_allocator(allocator: Option<Py<PyAny>>) {
    STATE.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_default().allocator = allocator;
}

/// Memory of the tensors' library, for one call: it is given back when this goes, in the stream's order.
pub struct Memory {
    tensor: Tensor,
    _object: Py<PyAny>,
}

impl Memory {
    /// `None`: there is no allocator.
    pub fn new(py: Python<'_>, device: i32, bytes: usize) -> Outcome<Option<Memory>> {
        let allocator = {
            let state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
            state.as_ref().and_then(|state| state.allocator.as_ref().map(|allocator| allocator.clone_ref(py)))
        };
        let Some(allocator) = allocator else { return Ok(None) };
        let object = allocator.call1(py, (device, bytes))?;
        let tensor = Tensor::of("memory to work in", object.bind(py))?;
        Ok(Some(Memory { tensor, _object: object }))
    }

    pub fn borrowed(&self, stream: &Stream) -> Outcome<Borrowed<u8>> {
        self.tensor.borrowed(stream)
    }
}

/// What a call on a tensor works with: on the stream that is given, or else its library's current one.
pub fn on_of(py: Python<'_>, tensor: &Tensor, stream: Option<usize>) -> Outcome<On> {
    let Device::Cuda(device) = tensor.device else {
        return Err(value(format!("{} is on the CPU", tensor.name)));
    };
    let stream = match stream {
        Some(stream) => stream,
        None => tensor.current_stream(py)?.unwrap_or(0),
    };
    on(py, device, stream)
}

/// The handle for a stream: that of earlier calls, or a new one.
fn on(py: Python<'_>, device: i32, stream: usize) -> Outcome<On> {
    let (context, kernels, known) = {
        let mut state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
        let state = state.get_or_insert_default();
        let process = process::id();
        if state.process != process && !state.devices.is_empty() {
            let reason = "CUDA was used before this process was forked, and cannot be used in it; start processes by \
                          the method \"spawn\"";
            return Err(Failure::State(reason.to_owned()));
        }
        state.process = process;
        let (context, kernels) = match state.devices.get(&device) {
            Some(known) => known.clone(),
            None => {
                let ordinal = usize::try_from(device)
                    .map_err(|_| value(format!("there is no CUDA device {device}")))?;
                let context = cuda::context(ordinal)?;
                // SAFETY: no memory is cudarc's own where calls of several streams could need its events:
                // tensors are ordered by their library, and handles are each of one stream.
                unsafe { context.disable_event_tracking() };
                let made = (context.clone(), Arc::new(Kernels::new(&context)?));
                state.devices.insert(device, made.clone());
                made
            }
        };
        let known = state.handles.get(&(device, stream)).map(|(handle, _)| handle.clone());
        (context, kernels, known)
    };
    // SAFETY: the tensors' library says that this is its stream on this device, whose primary context this is; what
    // is made for it is only used in calls with its tensors.
    let of_driver = unsafe { context.wrap_borrowed_stream(stream as *mut _) };
    let stream_of = Stream { device, stream: of_driver, kernels };
    if let Some(handle) = known {
        return Ok(On { stream: stream_of, handle, _memory: None });
    }
    let kernels = stream_of.kernels.clone();
    let memory = Memory::new(py, device, raw::scratch_bytes(&kernels))?;
    let handle = match &memory {
        Some(memory) => Handle::over(&stream_of.stream, kernels, memory.borrowed(&stream_of)?)?,
        None => Handle::with_kernels(&stream_of.stream, kernels)?,
    };
    let handle = Arc::new(handle);
    if is_captured(&stream_of.stream)? {
        // Its memory, and the zeros in it, are the graph's.
        return Ok(On { stream: stream_of, handle, _memory: memory });
    }
    let mut state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
    state.get_or_insert_default().handles.insert((device, stream), (handle.clone(), memory));
    Ok(On { stream: stream_of, handle, _memory: None })
}
