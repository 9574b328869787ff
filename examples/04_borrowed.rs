//! A framework's memory: all tensors and all that gfocal works in are pieces of one allocation that somebody else owns,
//! on a stream that somebody else made.
//!
//! ```text
//! cargo run --example 04_borrowed
//! ```

use std::error::Error;
use std::sync::Arc;

use gfocal::cuda::{self, Borrowed, Handle, Kernels, StatusBlock, raw};
use gfocal::cudarc::driver::{CudaSlice, CudaStream, DevicePtr};
use gfocal::{QualityFocalLoss, Reduction};

const ROWS: usize = 1000;
const CLASSES: usize = 16;

/// Stands for an allocator, as PyTorch's: it gives away addresses, and never the same twice.
struct Pool {
    memory: CudaSlice<u8>,
    used: u64,
}

impl Pool {
    fn take<T>(&mut self, stream: &Arc<CudaStream>, len: usize) -> Borrowed<T> {
        let address = self.memory.device_ptr(stream).0 + self.used;
        self.used += (len * size_of::<T>()).next_multiple_of(256) as u64;
        assert!(self.used <= self.memory.num_bytes() as u64, "the pool is empty");
        // SAFETY: so many bytes of the pool are nobody else's. It was zeroed, and outlives what is made of it here.
        unsafe { Borrowed::new(stream, address, len) }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let context = cuda::context(0)?; // the primary context, which frameworks use, too
    let theirs = context.new_stream()?;
    let mut pool = Pool { memory: theirs.alloc_zeros(1 << 20)?, used: 0 };
    // SAFETY: the stream is of this context, and outlives what is made for it.
    let stream = unsafe { context.wrap_borrowed_stream(theirs.cu_stream()) };

    // Kernels are made once for a context. How much memory a handle needs, they tell.
    let kernels = Arc::new(Kernels::new(&context)?);
    let scratch = pool.take(&stream, raw::scratch_bytes(&kernels));
    let handle = Handle::over(&stream, kernels, scratch)?;
    let mut status = StatusBlock::over(&stream, pool.take(&stream, StatusBlock::BYTES))?;

    let (logits, labels) = (pool.take::<f32>(&stream, ROWS * CLASSES), pool.take::<i64>(&stream, ROWS));
    let quality = pool.take::<f32>(&stream, ROWS);
    let (mut loss, mut grad) = (pool.take::<f32>(&stream, 1), pool.take::<f32>(&stream, ROWS * CLASSES));
    QualityFocalLoss::default()
        .cuda(&handle, &logits, [ROWS, CLASSES], &labels, &quality)
        .reduction(Reduction::Mean)
        .status(&mut status)
        .forward_backward(&mut loss, &mut grad)?;

    let loss = stream.clone_dtoh(&loss)?[0];
    println!("loss {loss:.6} of {} bytes that are not ours", pool.used);
    // All logits and qualities are 0: each of the 16 elements gives (1/2)² · ln 2.
    assert!(status.read(&stream)?.is_ok() && (loss - 4.0 * 2f32.ln()).abs() < 1e-5);
    Ok(())
}
