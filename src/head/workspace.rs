//! The device memory of the head loss.

use std::fmt;

use cudarc::driver::DeviceSlice;

use super::launch::Layout;
use crate::cuda::{Borrowed, Buffer, Handle, Kernels, Parts};
use crate::error::{Error, Result};

const WORKSPACE: &str = "the workspace of a head loss";

/// The device memory that a head loss works in, made once for the largest problem that there will
/// be. One call at a time may use it.
///
/// Its size is about 32 bytes for each anchor, and 2 KiB for each image.
pub struct HeadWorkspace {
    pub(super) memory: Buffer<u64>,
    pub(super) normalisers: Buffer<f32>,
    batch: usize,
    /// Of all images.
    anchors: usize,
    pub(super) layout: Layout,
}

impl HeadWorkspace {
    /// Memory for `batch` images with `anchors` anchors each, those of all levels together. Smaller
    /// problems may use it too.
    ///
    /// # Errors
    /// If the stream is captured, or the driver has no memory left.
    pub fn new(handle: &Handle, batch: usize, anchors: usize) -> Result<HeadWorkspace> {
        let (stream, layout) = (handle.stream(), Layout::new(handle.kernels(), batch, anchors)?);
        let memory = Buffer::zeros(WORKSPACE, stream, layout.normalisers / 8)?;
        let normalisers = Buffer::zeros(WORKSPACE, stream, 2)?;
        Ok(HeadWorkspace { memory, normalisers, batch, anchors: batch * anchors, layout })
    }

    /// How many bytes [`over`](Self::over) needs.
    ///
    /// # Errors
    /// If they are more than memory can address.
    pub fn bytes(kernels: &Kernels, batch: usize, anchors: usize) -> Result<usize> {
        Layout::new(kernels, batch, anchors).map(|layout| layout.end)
    }

    /// As [`new`](Self::new), over the caller's memory: [`bytes`](Self::bytes) at a multiple of 16, which
    /// nothing else writes as long as this lives. They are zeroed in the stream's order. While it is
    /// captured that is a part of the graph, and the workspace is for calls of this capture alone.
    ///
    /// # Errors
    /// If the memory is of another context than the handle's stream, or there is too little.
    pub fn over(
        handle: &Handle,
        memory: Borrowed<u8>,
        batch: usize,
        anchors: usize,
    ) -> Result<HeadWorkspace> {
        let (stream, layout) = (handle.stream(), Layout::new(handle.kernels(), batch, anchors)?);
        let mut parts = Parts::of(WORKSPACE, memory, layout.end, stream)?;
        let memory = parts.zeros(layout.normalisers / 8, stream)?;
        let normalisers = parts.zeros(2, stream)?;
        Ok(HeadWorkspace { memory, normalisers, batch, anchors: batch * anchors, layout })
    }

    /// As [`over`](Self::over), over memory as a workspace of the same numbers has left it, for
    /// [`HeadCall::normalised`](super::HeadCall::normalised): what it found out in the forward pass of a
    /// framework is there in the backward pass.
    ///
    /// # Errors
    /// As [`over`](Self::over).
    pub fn resumed(
        handle: &Handle,
        memory: Borrowed<u8>,
        batch: usize,
        anchors: usize,
    ) -> Result<HeadWorkspace> {
        let (stream, layout) = (handle.stream(), Layout::new(handle.kernels(), batch, anchors)?);
        let mut parts = Parts::of(WORKSPACE, memory, layout.end, stream)?;
        let memory = parts.as_they_are(layout.normalisers / 8);
        let normalisers = parts.as_they_are(2);
        Ok(HeadWorkspace { memory, normalisers, batch, anchors: batch * anchors, layout })
    }

    /// With the [`normalisers`](Self::normalisers) elsewhere: in two numbers of the caller's.
    ///
    /// # Errors
    /// If there are not two, or they are of another context than the handle's stream.
    pub fn with_normalisers(self, handle: &Handle, normalisers: Borrowed<f32>) -> Result<HeadWorkspace> {
        let (tensor, actual) = ("normalisers", normalisers.len());
        if actual != 2 {
            return Err(Error::LevelTensors { tensor, actual, expected: 2 });
        }
        let normalisers = Buffer::over(tensor, normalisers, handle.stream())?;
        Ok(HeadWorkspace { normalisers, ..self })
    }

    /// `[2]` f32: the number of positives, as the [`Normaliser`](super::Normaliser) counts them,
    /// and the sum of their box weights. Phase one
    /// ([`HeadCall::normalisers`](super::HeadCall::normalisers)) writes them, phase two
    /// ([`HeadCall::normalised`](super::HeadCall::normalised)) reads them; in between they may be
    /// averaged over processes.
    pub fn normalisers(&self) -> &Buffer<f32> {
        &self.normalisers
    }

    /// The same, to be written to.
    pub fn normalisers_mut(&mut self) -> &mut Buffer<f32> {
        &mut self.normalisers
    }

    /// Zeroes it: needed only after a launch that did not run to its end.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn reset(&mut self, handle: &Handle) -> Result<()> {
        self.memory.zero(handle.stream())
    }

    pub(super) fn check(&self, batch: usize, anchors: usize) -> Result<()> {
        for (axis, actual, capacity) in [("images", batch, self.batch), ("anchors", anchors, self.anchors)] {
            if actual > capacity {
                return Err(Error::HeadWorkspace { axis, actual, capacity });
            }
        }
        Ok(())
    }
}

impl fmt::Debug for HeadWorkspace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let HeadWorkspace { batch, anchors, .. } = self;
        f.debug_struct("HeadWorkspace")
            .field("batch", batch)
            .field("anchors", anchors)
            .finish_non_exhaustive()
    }
}
