//! Counts of unusable values, on the device.

use std::fmt;
use std::sync::Arc;

use cudarc::driver::CudaStream;

use super::args::StatusWords;
use super::buffer::{Borrowed, Buffer, Parts};
use super::check;
use super::current::Current;
use crate::error::Result;
use crate::status::Status;

const STATUS: &str = "a status block";
const WORDS: usize = Status::WORDS;
const _: () = assert!(size_of::<StatusWords>() == 8 * WORDS);

/// A [`Status`] in device memory, for [`Call::status`](crate::Call::status), for a head and for the
/// assignment of its targets. Calls add to it, and
/// replays of a graph too, until it is [`reset`](StatusBlock::reset).
pub struct StatusBlock {
    words: Buffer<u64>,
}

impl StatusBlock {
    /// How much memory it needs.
    pub const BYTES: usize = size_of::<StatusWords>();

    /// A clear block.
    ///
    /// # Errors
    /// If the stream is captured, or the driver has no memory left.
    pub fn new(stream: &Arc<CudaStream>) -> Result<StatusBlock> {
        Ok(StatusBlock { words: Buffer::zeros(STATUS, stream, WORDS)? })
    }

    /// One over the caller's memory, [`BYTES`](Self::BYTES) at a multiple of 16, which is cleared in the
    /// stream's order: if that is captured, at each replay.
    ///
    /// # Errors
    /// If the memory is of another context than the stream, or there is too little.
    pub fn over(stream: &Arc<CudaStream>, memory: Borrowed<u8>) -> Result<StatusBlock> {
        let words = Parts::of(STATUS, memory, Self::BYTES, stream)?.zeros(WORDS, stream)?;
        Ok(StatusBlock { words })
    }

    /// Clears it, in the stream's order.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn reset(&mut self, stream: &Arc<CudaStream>) -> Result<()> {
        self.words.zero(stream)
    }

    /// What it holds after everything enqueued on the stream: this waits for it.
    ///
    /// # Errors
    /// If the driver reports one, perhaps of an earlier launch.
    pub fn read(&self, stream: &Arc<CudaStream>) -> Result<Status> {
        let _current = Current::keep();
        let words = check("cuMemcpyDtoHAsync", stream.clone_dtoh(&self.words))?;
        // CUDA is little-endian.
        Ok(Status::from_words(words.try_into().expect("a block has as many words")))
    }

    pub(crate) fn buffer_mut(&mut self) -> &mut Buffer<u64> {
        &mut self.words
    }
}

impl fmt::Debug for StatusBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StatusBlock").finish_non_exhaustive()
    }
}
