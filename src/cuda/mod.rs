//! The CUDA path, on the caller's buffers and stream.
//!
//! A [`Handle`] belongs to a stream: it holds the kernels and the scratch memory of the
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
//! # The first call
//!
//! Kernels come in units, an operation's most used ones for a storage type, and are loaded when a
//! call first needs them. The driver assembles PTX then: a tenth of a second to two seconds, once on
//! a machine if the driver's cache can be written. [`Handle::prepare`] does it beforehand.
//!
//! # CUDA graphs
//!
//! Nothing can be loaded inside a capture: what the captured calls need is loaded by
//! [`Handle::prepare`] before, or by a call outside; else they return
//! [`Error::NotPrepared`](crate::Error::NotPrepared), and the capture stays whole.
//!
//! cudarc tracks the use of buffers by events, and a wait for an event from before the capture
//! breaks it: call [`CudaContext::disable_event_tracking`](cudarc::driver::CudaContext::disable_event_tracking)
//! before the buffers are allocated. Handle and buffers must live as long as the graph, and a
//! handle's scratch memory serves one launch at a time: do not replay a graph on one stream while
//! the handle is used on another. The last handle with its kernels must not be dropped while a
//! stream of the context is captured: it waits for the context before it unloads them, and that
//! breaks the capture.
//!
//! # Memory of your own
//!
//! [`Borrowed`] makes a buffer of an address, a length and a stream. Handles, workspaces and status blocks have a size
//! to ask for and a constructor `over` such memory, which works inside a capture, too; theirs of their own is refused
//! there ([`Error::Capturing`](crate::Error::Capturing)), since it would be the graph's. The thread's current
//! context is after every call what it was before.
//!
//! # Small batches
//!
//! cudarc's tracking costs more than a small call. As soon as a context has a second stream, each
//! buffer of each call is a wait for an event and a record of another: some 7 pairs for QFL, some 40
//! for a head of 5 levels, in the host's time and as packets of the stream. Where all work is on one
//! stream, or ordered by the caller, turn it off as for graphs; [`raw`] never has it.

pub(crate) mod args;
mod buffer;
mod call;
pub(crate) mod current;
mod driver;
mod handle;
mod images;
mod kernels;
pub(crate) mod launch;
mod module;
mod prepared;
mod provenance;
pub mod raw;
mod status;
pub(crate) mod units;

pub use crate::scale::cuda::scale;
pub use crate::scale::launch::scale_units;
pub use args::Pass;
pub(crate) use buffer::Parts;
pub use buffer::{Borrowed, Buffer};
pub use call::{Device, LabelBuffer, Scalar};
pub use driver::{DeviceInfo, check, context, devices, driver_version, is_captured};
pub use handle::Handle;
pub use kernels::{Kernels, images_for};
pub use launch::{Storage, StorageElement};
pub(crate) use prepared::Prepared;
pub use provenance::{Provenance, provenance};
pub use status::StatusBlock;
pub use units::Units;
