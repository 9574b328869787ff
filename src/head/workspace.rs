//! The device memory of the head loss.

use std::fmt;

use cudarc::driver::CudaSlice;

use super::MAX_LEVELS;
use super::launch::head_partial_blocks;
use crate::cuda::{Handle, check};
use crate::error::{Error, Result};

/// The device memory that a head loss works in, made once for the largest problem that there will
/// be. One call at a time may use it.
///
/// Its size is about 32 bytes for each anchor, and 2 KiB for each image.
pub struct HeadWorkspace {
    pub(super) memory: CudaSlice<u64>,
    pub(super) normalisers: CudaSlice<f32>,
    pub(super) batch: usize,
    pub(super) anchors: usize,
    pub(super) partial_blocks: usize,
}

/// Where the parts of the workspace are, in bytes from its start.
pub(super) struct Parts {
    pub tickets: usize,
    pub level_sums: usize,
    pub partials: usize,
    pub image_positives: usize,
    pub codes: usize,
    pub weights: usize,
    pub qualities: usize,
    pub box_weights: usize,
    pub slopes: usize,
    pub end: usize,
}

/// The records of an image of a level begin at a multiple of this, so that vectors of them are aligned.
pub(super) const ALIGNMENT: usize = 8;

impl HeadWorkspace {
    /// Memory for `batch` images with `anchors` anchors each, those of all levels together. Smaller
    /// problems may use it too.
    ///
    /// # Errors
    /// If the driver has no memory left.
    pub fn new(handle: &Handle, batch: usize, anchors: usize) -> Result<HeadWorkspace> {
        let overflow = Error::ShapeOverflow { shape: [batch, anchors] };
        let fits =
            |&all: &usize| all.max(batch.saturating_mul(MAX_LEVELS * ALIGNMENT)) <= isize::MAX as usize / 64;
        let anchors = batch.checked_mul(anchors).filter(fits).ok_or(overflow)?;
        let partial_blocks = head_partial_blocks(handle.kernels());
        let bytes = Parts::new(batch, anchors, partial_blocks).end;
        let stream = handle.stream();
        let memory = check("cuMemAllocAsync", stream.alloc_zeros(bytes.div_ceil(8)))?;
        let normalisers = check("cuMemAllocAsync", stream.alloc_zeros(2))?;
        Ok(HeadWorkspace { memory, normalisers, batch, anchors, partial_blocks })
    }

    /// `[2]` f32: the number of positives, as the [`Normaliser`](super::Normaliser) counts them,
    /// and the sum of their box weights. Phase one
    /// ([`HeadCall::normalisers`](super::HeadCall::normalisers)) writes them, phase two
    /// ([`HeadCall::normalised`](super::HeadCall::normalised)) reads them; in between they may be
    /// averaged over processes.
    pub fn normalisers(&self) -> &CudaSlice<f32> {
        &self.normalisers
    }

    /// The same, to be written to.
    pub fn normalisers_mut(&mut self) -> &mut CudaSlice<f32> {
        &mut self.normalisers
    }

    /// Zeroes it: needed only after a launch that did not run to its end.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn reset(&mut self, handle: &Handle) -> Result<()> {
        check("cuMemsetD8Async", handle.stream().memset_zeros(&mut self.memory))
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

impl Parts {
    pub fn new(batch: usize, anchors: usize, partial_blocks: usize) -> Parts {
        let records = anchors + batch * MAX_LEVELS * (ALIGNMENT - 1);
        let mut end = 0;
        let mut part = |bytes: usize| {
            let start = end;
            end += bytes.next_multiple_of(16);
            start
        };
        Parts {
            tickets: part(2 * 4),
            level_sums: part(3 * MAX_LEVELS * 8),
            partials: part(3 * partial_blocks * 8),
            image_positives: part(batch * 4),
            codes: part(records * 4),
            weights: part(records * 4),
            qualities: part(records * 4),
            box_weights: part(records * 4),
            slopes: part(records * 16),
            end,
        }
    }
}
