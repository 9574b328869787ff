//! Tensors in memory of a GPU.

use std::sync::Arc;

use gfocal::cuda::{StorageElement, check};
use gfocal::cudarc::driver::sys::CUdeviceptr;
use gfocal::cudarc::driver::{
    CudaSlice, CudaStream, DevicePtr, DevicePtrMut, DeviceRepr, DeviceSlice, SyncOnDrop, ValidAsZeroBits,
};
use gfocal::{Error, Result};

use crate::device::Cuda;
use crate::floats::{Float, numbers};
use crate::words;

/// What the driver and this command both need of an element.
pub trait Stored: Float + StorageElement + DeviceRepr + ValidAsZeroBits {}
impl<T: Float + StorageElement + DeviceRepr + ValidAsZeroBits> Stored for T {}

/// Device memory of any length: the driver refuses to allocate none.
pub struct Buffer<T> {
    memory: CudaSlice<T>,
    len: usize,
}

impl<T: DeviceRepr + ValidAsZeroBits> Buffer<T> {
    pub fn zeros(stream: &Arc<CudaStream>, len: usize) -> Result<Self> {
        let memory = check("cuMemAllocAsync", stream.alloc_zeros(len.max(1)))?;
        Ok(Buffer { memory, len })
    }

    pub fn upload(stream: &Arc<CudaStream>, numbers: &[T]) -> Result<Self> {
        if numbers.is_empty() {
            return Buffer::zeros(stream, 0);
        }
        let memory = check("cuMemcpyHtoDAsync", stream.clone_htod(numbers))?;
        Ok(Buffer { memory, len: numbers.len() })
    }

    pub fn download(&self, stream: &Arc<CudaStream>) -> Result<Vec<T>> {
        if self.len == 0 {
            return Ok(Vec::new());
        }
        let numbers = check("cuMemcpyDtoHAsync", stream.clone_dtoh(self))?;
        check("cuStreamSynchronize", stream.synchronize())?;
        Ok(numbers)
    }
}

impl Buffer<f32> {
    /// Numbers that go with logits.
    pub fn beside(stream: &Arc<CudaStream>, given: &[f64]) -> Result<Self> {
        Buffer::upload(stream, &numbers(given))
    }
}

impl<T> DeviceSlice<T> for Buffer<T> {
    fn len(&self) -> usize {
        self.len
    }

    fn stream(&self) -> &Arc<CudaStream> {
        self.memory.stream()
    }
}

impl<T> DevicePtr<T> for Buffer<T> {
    fn device_ptr<'a>(&'a self, stream: &'a CudaStream) -> (CUdeviceptr, SyncOnDrop<'a>) {
        self.memory.device_ptr(stream)
    }
}

impl<T> DevicePtrMut<T> for Buffer<T> {
    fn device_ptr_mut<'a>(&'a mut self, stream: &'a CudaStream) -> (CUdeviceptr, SyncOnDrop<'a>) {
        self.memory.device_ptr_mut(stream)
    }
}

/// Tells mistakes in the input, which no other device would mend, from what is wrong with this one.
pub fn error(cuda: &Cuda) -> impl Fn(Error) -> crate::error::Error {
    let ordinal = cuda.ordinal;
    move |error| {
        if words::is_mistake(&error) { error.into() } else { crate::error::Error::cuda(ordinal)(error) }
    }
}
