//! The layer underneath: plain device addresses and a raw stream, for frameworks that have
//! buffers of their own.
//!
//! The structures are the kernels' own parameters. A null address is 0, and means "not given"
//! where the field's documentation allows it. Nothing here is checked, but also nothing is
//! allocated, waited for or read back, but for the first launch of a kernel that
//! [`Handle::prepare`](super::Handle::prepare) or [`Kernels::prepare`](super::Kernels::prepare) has not
//! loaded: that loads it. The thread's current context is what it was after each launch.
//!
//! | memory that a launch works in | its bytes | who points to it |
//! | --- | --- | --- |
//! | scratch of QFL, DFL and GFL | [`scratch_bytes`] | [`Scaling::scratch`], [`GflArgs::scratch`] |
//! | a head's workspace | [`HeadWorkspace::bytes`](crate::head::HeadWorkspace::bytes) | [`HeadArgs::set_workspace`] |
//! | an assignment's workspace | [`AssignWorkspace::bytes`](crate::assign::AssignWorkspace::bytes) | [`AssignArgs::set_workspace`] |
//! | counts of what was wrong | [`StatusBlock::BYTES`](super::StatusBlock::BYTES) | the fields `status` |
//!
//! All of it begins at a multiple of 16, is zeroed once, and belongs to one launch at a time; launches
//! leave it ready for the next. What a failed launch may have left behind is undone by zeroing it again.
//!
//! Options are taken over by [`HeadArgs::of`], [`Atss::raw_args`](crate::assign::Atss::raw_args) and
//! [`Fcos::raw_args`](crate::assign::Fcos::raw_args); those of other operations are fields.
//!
//! Who has buffers of his own and yet wants the checks takes the safe API with [`Borrowed`](super::Borrowed).
//!
//! # A step of training
//!
//! Assignment, head and scaling, over memory of an allocator's. It is a part of this crate's tests, which hold
//! what it writes against the safe API's results, bit by bit.
//!
//! ```no_run
//! # #![allow(dead_code)]
#![doc = include_str!("raw/example.rs")]
//! ```

pub use super::args::{DeviceAddress, Pass, Scaling, StatusWords, scratch_bytes};
pub use crate::assign::launch::{AssignArgs, AssignLevel, launch_atss, launch_fcos};
pub use crate::boxes::launch::{BoxesArgs, launch_boxes};
pub use crate::decode::launch::{DecodeArgs, DecodeLevel, launch_decode};
pub use crate::dfl::launch::{DflArgs, launch_dfl};
pub use crate::gfl::launch::{GflArgs, launch_gfl};
pub use crate::head::launch::{
    HeadArgs, HeadLevel, MAX_ANCHORS, Strides, head_partial_blocks, launch_head_losses, launch_head_positives,
};
pub use crate::integral::launch::{IntegralArgs, launch_integral};
pub use crate::qfl::launch::{QflArgs, launch_qfl};
pub use crate::scale::launch::{ScaleArgs, launch_scale};
