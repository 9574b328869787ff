//! The layer underneath: plain device addresses and a raw stream, for frameworks that have
//! buffers of their own.
//!
//! The structures are the kernels' own parameters. A null address is 0, and means "not given"
//! where the field's documentation allows it. Nothing here is checked, but also nothing is
//! allocated, waited for or read back, but for the first launch of a kernel that
//! [`Handle::prepare`](super::Handle::prepare) has not loaded: that loads it.

pub use super::args::{DeviceAddress, Pass, Scaling, StatusWords, scratch_bytes};
pub use crate::assign::launch::{AssignArgs, AssignLevel, launch_atss, launch_fcos};
pub use crate::boxes::launch::{BoxesArgs, launch_boxes};
pub use crate::dfl::launch::{DflArgs, launch_dfl};
pub use crate::gfl::launch::{GflArgs, launch_gfl};
pub use crate::head::launch::{
    HeadArgs, HeadLevel, MAX_ANCHORS, Strides, head_partial_blocks, launch_head_losses, launch_head_positives,
};
pub use crate::integral::launch::{IntegralArgs, launch_integral};
pub use crate::qfl::launch::{QflArgs, launch_qfl};
