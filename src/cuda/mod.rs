//! The CUDA path, on the caller's buffers and stream.
//!
//! A [`Handle`] belongs to a stream: it holds the loaded kernels and the scratch memory of the
//! reductions. A call checks its sizes, enqueues one kernel and returns. It allocates nothing,
//! waits for nothing and reads nothing back, so it can be captured in a CUDA graph. The same call
//! on the same device gives the same bits every time.
//!
//! ```no_run
//! use gfocal::{AvgPolicy, QualityFocalLoss, Reduction, cuda};
//!
//! let stream = cuda::context(0)?.default_stream();
//! let handle = cuda::Handle::new(&stream)?;
//!
//! let (rows, classes) = (33_600, 80);
//! let logits = stream.alloc_zeros::<f32>(rows * classes)?; // yours, from the network
//! let labels = stream.alloc_zeros::<i64>(rows)?;
//! let quality = stream.alloc_zeros::<f32>(rows)?;
//! let positives = stream.alloc_zeros::<f32>(1)?; // the average factor stays on the device
//! let mut loss = stream.alloc_zeros::<f32>(1)?;
//! let mut grad = stream.alloc_zeros::<f32>(rows * classes)?;
//!
//! QualityFocalLoss::default()
//!     .cuda(&handle, &logits, [rows, classes], &labels, &quality)
//!     .reduction(Reduction::MeanBy { avg_factor: (&positives).into(), policy: AvgPolicy::AtLeast(1.0) })
//!     .forward_backward(&mut loss, &mut grad)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # CUDA graphs
//!
//! cudarc tracks the use of buffers by events, and a wait for an event from before the capture
//! breaks it: call [`CudaContext::disable_event_tracking`](cudarc::driver::CudaContext::disable_event_tracking)
//! before the buffers are allocated. Handle and buffers must live as long as the graph, and a
//! handle's scratch memory serves one launch at a time: do not replay a graph on one stream while
//! the handle is used on another.

mod call;
mod driver;
mod handle;
mod images;
mod launch;
pub mod raw;
mod status;

pub(crate) use call::Prepared;
pub use call::{Device, LabelBuffer, Scalar};
pub use driver::{DeviceInfo, check, context, devices, driver_version};
pub use handle::{Handle, Kernels};
pub use images::{Provenance, provenance};
pub use launch::{Storage, StorageElement};
pub use status::StatusBlock;
