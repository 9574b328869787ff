//! Memory that somebody else owns, and memory that a workspace has.

use std::fmt;
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::sync::Arc;

use cudarc::driver::sys::CUdeviceptr;
use cudarc::driver::{
    CudaSlice, CudaStream, DevicePtr, DevicePtrMut, DeviceRepr, DeviceSlice, SyncOnDrop, ValidAsZeroBits,
};

use super::args::DeviceAddress;
use super::current::Current;
use super::{check, is_captured};
use crate::error::{Error, Result};

/// Device memory that somebody else owns, as a framework's allocator does: a buffer for every call of
/// this crate, and what handles and workspaces can be made [over](super::Handle::over). It records no
/// events, waits for none, and frees nothing.
///
/// ```no_run
/// use gfocal::{QualityFocalLoss, cuda};
///
/// # let (their_stream, logits, labels, quality, loss) = (std::ptr::null_mut(), 0, 0, 0, 0);
/// let context = cuda::context(0)?; // the primary context, which frameworks use too
/// // SAFETY: the stream is of this device's primary context, and lives as long as the handle.
/// let stream = unsafe { context.wrap_borrowed_stream(their_stream) };
/// let handle = cuda::Handle::new(&stream)?;
///
/// let (rows, classes) = (33_600, 80);
/// // SAFETY: these are tensors of their types and sizes, which nobody else uses until the call has run.
/// let (logits, labels, quality, mut loss) = unsafe {
///     (
///         cuda::Borrowed::<f32>::new(&stream, logits, rows * classes),
///         cuda::Borrowed::<i64>::new(&stream, labels, rows),
///         cuda::Borrowed::<f32>::new(&stream, quality, rows),
///         cuda::Borrowed::<f32>::new(&stream, loss, 1),
///     )
/// };
/// QualityFocalLoss::default().cuda(&handle, &logits, [rows, classes], &labels, &quality).forward(&mut loss)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Borrowed<T> {
    address: DeviceAddress,
    len: usize,
    stream: Arc<CudaStream>,
    elements: PhantomData<T>,
}

impl<T> Borrowed<T> {
    /// So many elements from an address on. `stream` says in which context they are.
    ///
    /// # Safety
    /// As long as this value is used, and until what has been enqueued with it has run:
    ///
    /// - `address` is that of `len` elements of `T` in the device memory of the stream's context, and a
    ///   multiple of their size; with `len` 0 it may be anything;
    /// - what is read from it is initialised, and nothing writes it meanwhile; what is written to it is
    ///   used by nothing else. What the calls' own stream does not order, the caller does: by events, say.
    pub unsafe fn new(stream: &Arc<CudaStream>, address: DeviceAddress, len: usize) -> Borrowed<T> {
        Borrowed { address, len, stream: stream.clone(), elements: PhantomData }
    }

    /// Where it begins.
    pub fn address(&self) -> DeviceAddress {
        self.address
    }
}

impl Borrowed<u8> {
    /// A part of it, as something else. That it is inside, aligned, and in no other part that is
    /// written is the caller's to see to.
    fn part<U>(&self, offset: usize, len: usize) -> Borrowed<U> {
        let address = self.address + offset as DeviceAddress;
        Borrowed { address, len, stream: self.stream.clone(), elements: PhantomData }
    }
}

impl<T> DeviceSlice<T> for Borrowed<T> {
    fn len(&self) -> usize {
        self.len
    }

    fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }
}

impl<T> DevicePtr<T> for Borrowed<T> {
    fn device_ptr<'a>(&'a self, _stream: &'a CudaStream) -> (CUdeviceptr, SyncOnDrop<'a>) {
        (self.address, SyncOnDrop::Record(None))
    }
}

impl<T> DevicePtrMut<T> for Borrowed<T> {
    fn device_ptr_mut<'a>(&'a mut self, _stream: &'a CudaStream) -> (CUdeviceptr, SyncOnDrop<'a>) {
        (self.address, SyncOnDrop::Record(None))
    }
}

impl<T> fmt::Debug for Borrowed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Borrowed({} at {:#x})", self.len, self.address)
    }
}

/// What a handle or a workspace works in: its own, or the caller's.
pub struct Buffer<T>(Whose<T>);

enum Whose<T> {
    Own(ManuallyDrop<CudaSlice<T>>),
    Callers(Borrowed<T>),
}

impl<T: DeviceRepr + ValidAsZeroBits> Buffer<T> {
    /// Zeros, allocated now: not while the stream is captured, where memory would belong to the graph.
    pub(crate) fn zeros(what: &'static str, stream: &Arc<CudaStream>, len: usize) -> Result<Buffer<T>> {
        if is_captured(stream)? {
            return Err(Error::Capturing { what });
        }
        let _current = Current::make(stream.context())?;
        check("cuMemAllocAsync", stream.alloc_zeros(len))
            .map(|slice| Buffer(Whose::Own(ManuallyDrop::new(slice))))
    }

    /// The caller's memory, as it is.
    pub(crate) fn over(what: &'static str, memory: Borrowed<T>, stream: &CudaStream) -> Result<Buffer<T>> {
        super::prepared::check_context(what, &memory, stream).map(|()| Buffer(Whose::Callers(memory)))
    }

    /// Zeroes it, in the stream's order.
    pub(crate) fn zero(&mut self, stream: &Arc<CudaStream>) -> Result<()> {
        let _current = Current::make(stream.context())?;
        check("cuMemsetD8Async", stream.memset_zeros(self))
    }
}

/// Parts of the caller's memory, at multiples of 16 bytes.
pub(crate) struct Parts {
    memory: Borrowed<u8>,
    next: usize,
}

impl Parts {
    /// After the check that `needed` bytes are there, in the stream's context.
    pub fn of(what: &'static str, memory: Borrowed<u8>, needed: usize, stream: &CudaStream) -> Result<Parts> {
        let (address, actual) = (memory.address, memory.len);
        if actual < needed || !address.is_multiple_of(16) {
            return Err(Error::CallersMemory { what, actual, address, needed });
        }
        super::prepared::check_context(what, &memory, stream)?;
        Ok(Parts { memory, next: 0 })
    }

    /// The next so many, zeroed in the stream's order: a node of the graph, if it is captured.
    pub fn zeros<T: DeviceRepr + ValidAsZeroBits>(
        &mut self,
        len: usize,
        stream: &Arc<CudaStream>,
    ) -> Result<Buffer<T>> {
        let mut part = self.as_they_are(len);
        part.zero(stream).map(|()| part)
    }

    /// The next so many.
    pub fn as_they_are<T>(&mut self, len: usize) -> Buffer<T> {
        let part = Buffer(Whose::Callers(self.memory.part(self.next, len)));
        self.next += (len * size_of::<T>()).next_multiple_of(16);
        part
    }
}

impl<T> DeviceSlice<T> for Buffer<T> {
    fn len(&self) -> usize {
        match &self.0 {
            Whose::Own(slice) => slice.len(),
            Whose::Callers(memory) => memory.len,
        }
    }

    fn stream(&self) -> &Arc<CudaStream> {
        match &self.0 {
            Whose::Own(slice) => slice.stream(),
            Whose::Callers(memory) => &memory.stream,
        }
    }
}

impl<T> DevicePtr<T> for Buffer<T> {
    fn device_ptr<'a>(&'a self, stream: &'a CudaStream) -> (CUdeviceptr, SyncOnDrop<'a>) {
        match &self.0 {
            Whose::Own(slice) => slice.device_ptr(stream),
            Whose::Callers(memory) => memory.device_ptr(stream),
        }
    }
}

impl<T> DevicePtrMut<T> for Buffer<T> {
    fn device_ptr_mut<'a>(&'a mut self, stream: &'a CudaStream) -> (CUdeviceptr, SyncOnDrop<'a>) {
        match &mut self.0 {
            Whose::Own(slice) => slice.device_ptr_mut(stream),
            Whose::Callers(memory) => memory.device_ptr_mut(stream),
        }
    }
}

impl<T> Drop for Buffer<T> {
    fn drop(&mut self) {
        if let Whose::Own(slice) = &mut self.0 {
            let _current = Current::keep();
            // cudarc frees it in the context that is current, if there is one.
            let _ = slice.context().bind_to_thread();
            // SAFETY: nothing uses it after this.
            unsafe { ManuallyDrop::drop(slice) };
        }
    }
}

impl<T> fmt::Debug for Buffer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whose = if matches!(self.0, Whose::Own(_)) { "own" } else { "the caller's" };
        write!(f, "Buffer({}, {whose})", self.len())
    }
}
