//! The buffers of a call: their addresses, and what must hold of them.

use std::sync::Arc;

use cudarc::driver::{CudaStream, DevicePtr, DevicePtrMut, DeviceSlice, SyncOnDrop};

use super::args::DeviceAddress;
use super::current::Current;
use super::{Handle, LabelBuffer};
use crate::error::{Error, Result};

/// The buffers that a call has named so far, and what orders their use on other streams: that must
/// live until the launch is enqueued.
pub(crate) struct Prepared<'s> {
    guards: Vec<SyncOnDrop<'s>>,
    read: Vec<Range>,
    written: Vec<Range>,
    /// Last, since what orders other streams makes a context current when it goes.
    _current: Current,
}

/// The memory of a buffer: `end` is the first address behind it.
struct Range {
    tensor: &'static str,
    start: DeviceAddress,
    end: DeviceAddress,
    /// Whether other outputs may have the places in between.
    interleaves: bool,
}

impl Range {
    fn overlaps(&self, other: &Range) -> bool {
        self.start.max(other.start) < self.end.min(other.end)
    }
}

impl<'s> Prepared<'s> {
    /// None yet, for a call on this handle: its context is current until this goes.
    pub fn on(handle: &Handle) -> Result<Self> {
        handle.check_thread()?;
        let current = Current::make(handle.stream().context())?;
        Ok(Prepared { guards: Vec::new(), read: Vec::new(), written: Vec::new(), _current: current })
    }

    /// The address of a buffer to read, 0 without one, after the check that it is in the stream's
    /// context.
    pub fn read<T>(
        &mut self,
        tensor: &'static str,
        buffer: Option<&'s dyn DevicePtr<T>>,
        stream: &'s Arc<CudaStream>,
    ) -> Result<DeviceAddress> {
        let Some(buffer) = buffer else { return Ok(0) };
        check_context(tensor, buffer, stream)?;
        let bytes = buffer.num_bytes();
        let (start, guard) = buffer.device_ptr(stream);
        self.guards.push(guard);
        self.read.push(Range { tensor, start, end: start + bytes as u64, interleaves: false });
        Ok(start)
    }

    /// The address of a buffer to write, 0 without one, after the same check.
    pub fn write<'b: 's, T>(
        &mut self,
        tensor: &'static str,
        buffer: Option<&'s mut (dyn DevicePtrMut<T> + 'b)>,
        stream: &'s Arc<CudaStream>,
    ) -> Result<DeviceAddress> {
        let Some(buffer) = buffer else { return Ok(0) };
        self.write_range(tensor, buffer, stream, false)
    }

    /// The same for a gradient of a level: several may be parts of one tensor.
    pub fn write_of_level<'b: 's, T>(
        &mut self,
        tensor: &'static str,
        buffer: &'s mut (dyn DevicePtrMut<T> + 'b),
        stream: &'s Arc<CudaStream>,
    ) -> Result<DeviceAddress> {
        self.write_range(tensor, buffer, stream, true)
    }

    fn write_range<'b: 's, T>(
        &mut self,
        tensor: &'static str,
        buffer: &'s mut (dyn DevicePtrMut<T> + 'b),
        stream: &'s Arc<CudaStream>,
        interleaves: bool,
    ) -> Result<DeviceAddress> {
        check_context(tensor, buffer, stream)?;
        let bytes = buffer.num_bytes();
        let (start, guard) = buffer.device_ptr_mut(stream);
        self.guards.push(guard);
        self.written.push(Range { tensor, start, end: start + bytes as u64, interleaves });
        Ok(start)
    }

    /// The address of labels, and whether they are i64.
    pub fn read_labels(
        &mut self,
        labels: LabelBuffer<'s>,
        stream: &'s Arc<CudaStream>,
    ) -> Result<(DeviceAddress, bool)> {
        match labels {
            LabelBuffer::I64(labels) => Ok((self.read("labels", Some(labels), stream)?, true)),
            LabelBuffer::I32(labels) => Ok((self.read("labels", Some(labels), stream)?, false)),
        }
    }

    /// Nothing that is written may lie over anything else: kernels read logits again after the
    /// first gradients are stored. Borrows see to that for slices and views of cudarc's, but not
    /// for a caller's own types.
    pub fn check_overlaps(&self) -> Result<()> {
        for (i, written) in self.written.iter().enumerate() {
            let rest =
                self.written[i + 1..].iter().filter(|other| !(other.interleaves && written.interleaves));
            if let Some(other) = self.read.iter().chain(rest).find(|other| other.overlaps(written)) {
                let bytes = other.end.min(written.end) - other.start.max(written.start);
                return Err(Error::Overlap { tensor: written.tensor, other: other.tensor, bytes });
            }
        }
        Ok(())
    }
}

pub(super) fn check_context<T, B: DeviceSlice<T> + ?Sized>(
    tensor: &'static str,
    buffer: &B,
    stream: &CudaStream,
) -> Result<()> {
    let (buffer, stream) = (buffer.stream().context(), stream.context());
    if buffer == stream {
        Ok(())
    } else {
        Err(Error::OtherContext { tensor, actual: buffer.ordinal(), expected: stream.ordinal() })
    }
}
