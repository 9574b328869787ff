//! Parameters that kernels of several operations have in common.

use super::Kernels;
use super::launch::max_blocks;

/// An address in device memory.
pub type DeviceAddress = u64;

/// What a call computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// The loss.
    Forward,
    /// The gradient, and the loss unless its address is null.
    ForwardBackward,
}

impl Pass {
    /// Its place in pairs of entry points.
    pub(crate) fn index(self) -> usize {
        usize::from(self == Pass::ForwardBackward)
    }
}

/// How the loss is reduced and its gradient scaled. Twin of `Scaling` in kernels/call.cuh.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Scaling {
    /// `[rows]` f32, or null: ones.
    pub weight: DeviceAddress,
    /// `[rows]` f32, the gradient with respect to the loss of each row; or null: ones.
    pub upstream: DeviceAddress,
    /// `[1]` f32, or null: `loss_factor` and `grad_factor` are already divided.
    pub avg_factor: DeviceAddress,
    /// `[1]` f32, or null: `grad_factor` is already multiplied.
    pub grad_scale: DeviceAddress,
    /// `[1]` f32, or `[rows]` if `per_row`; null with [`Pass::ForwardBackward`]: only the gradient.
    pub loss: DeviceAddress,
    /// `[1]` f32, or null; becomes 1 if a stored gradient is not finite.
    pub found_inf: DeviceAddress,
    /// A [`StatusWords`], or null.
    pub status: DeviceAddress,
    /// [`scratch_bytes`] bytes, 8-byte aligned, zeroed once; not shared by launches that may run
    /// at the same time.
    pub scratch: DeviceAddress,
    /// What losses are multiplied by.
    pub loss_factor: f32,
    /// What gradients are multiplied by.
    pub grad_factor: f32,
    /// The normaliser is max(avg_factor + avg_epsilon, avg_minimum).
    pub avg_epsilon: f32,
    /// See `avg_epsilon`; negative infinity for no minimum.
    pub avg_minimum: f32,
    /// 1: no reduction.
    pub per_row: u32,
    /// Set by the launch.
    pub lanes: u32,
}

/// What [`Scaling::status`] points to; zeros: nothing was wrong. Twin of `Status` in
/// kernels/call.cuh.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct StatusWords {
    /// See [`Status`](crate::Status).
    pub bad_labels: u32,
    /// See [`Status`](crate::Status).
    pub bad_qualities: u32,
    /// See [`Status`](crate::Status).
    pub out_of_range_targets: u32,
    /// Padding.
    pub unused: u32,
    /// The bitwise complement of the first bad row; 0: none.
    pub not_first_bad_row: u64,
    /// Of an assignment: bad boxes, bad labels, bad images, boxes without an anchor.
    pub assignment: [u32; 4],
    /// The bitwise complement of the first box of each kind; 0: none.
    pub not_first_boxes: [u64; 4],
}

/// How many bytes [`Scaling::scratch`] needs: the same for all calls on a device.
pub fn scratch_bytes(kernels: &Kernels) -> usize {
    // A ticket and its padding, then one f64 for each block.
    8 + 8 * max_blocks(kernels.multiprocessors()) as usize
}
