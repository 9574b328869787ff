//! The kernels of decoding: parameters, entry points, launch.

use std::ffi::c_void;

use crate::cuda::args::{DeviceAddress, Pass};
use crate::cuda::launch::{Grid, launch};
use crate::cuda::units::{Entry, Unit, Units, entry, without_logits};
use crate::cuda::{Kernels, Storage};
use crate::error::Result;
use crate::head::MAX_LEVELS;

/// A level of the pyramid. Twin of `DecodeLevel` in kernels/decode.cu.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct DecodeLevel {
    /// The first element of the box logits; channel = side * bins + bin.
    pub logits: DeviceAddress,
    /// As `logits`, in the same strides; null for [`Pass::Forward`]. Not overlapping the logits.
    pub grad: DeviceAddress,
    /// From one image to the next, in elements.
    pub batch: u64,
    /// From one channel to the next.
    pub channel: u64,
    /// From one position to the next.
    pub position: u64,
    /// What is between rows besides; wraps below 0.
    pub row_gap: u64,
    /// `[positions, 2]` or `[batch, positions, 2]` f32 in pixels; null: a grid.
    pub points: DeviceAddress,
    /// Pixels from one position to the next.
    pub stride: f32,
    /// The offset of a grid of points, in units of the stride.
    pub grid_offset: f32,
    /// Positions; times the batch, at most [`MAX_ANCHORS`](crate::cuda::raw::MAX_ANCHORS).
    pub positions: u32,
    /// Positions in a row.
    pub width: u32,
    /// 1: the points are `[batch, positions, 2]`.
    pub points_of_batch: u32,
    /// Positions of all levels before.
    pub first: u32,
    /// Set by the launch.
    pub first_tile: u32,
    /// Set by the launch.
    pub lanes: u32,
}

/// Twin of `DecodeArgs` in kernels/decode.cu.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct DecodeArgs {
    /// The first `level_count` of them.
    pub levels: [DecodeLevel; MAX_LEVELS],
    /// `[batch, all_positions, 4]` f32; null with [`Pass::ForwardBackward`].
    pub boxes: DeviceAddress,
    /// `[batch, all_positions, 4]` f32, the gradient with respect to the boxes; null for [`Pass::Forward`].
    pub upstream: DeviceAddress,
    /// `[1]` f32, or null; becomes 1 if a stored gradient is not finite.
    pub found_inf: DeviceAddress,
    /// Positions of all levels.
    pub all_positions: u64,
    /// From 1 to 8.
    pub level_count: u32,
    /// Images.
    pub batch: u32,
    /// Of a box side, 2 or more; 1 without bins.
    pub bins: u32,
    /// 0: bins; else a side has one number, of which the distance is 1: exp, 2: the positive part.
    pub coding: u32,
    /// Set by the launch.
    pub storage: u32,
    /// Set by the launch.
    pub tiles: u32,
}

/// Twin of the constant in kernels/decode.cu.
const DECODE_BLOCK: u32 = 256;
/// Anchors of a tile. Twin of the constant there.
const TILE: u32 = DECODE_BLOCK / 4;
/// Lanes that share a side whose channels are contiguous.
const SIDE_LANES: u32 = 8;

/// What they come in: for every storage type of logits.
pub(crate) const UNITS: [Unit; 1] =
    [without_logits("decode", "decode::units", &["decode_forward", "decode_backward"])];

/// The entry points, by pass.
const DECODE: [Entry; 2] = [entry("decode_forward"), entry("decode_backward")];

/// What [`launch_decode`] needs loaded.
pub(crate) fn decode_units() -> Units {
    Units::of(DECODE[0].unit, Storage::F32)
}

impl DecodeArgs {
    /// Gives each level its tiles, and says how its threads go along it.
    fn plan(&mut self) {
        self.tiles = 0;
        for level in &mut self.levels[..self.level_count as usize] {
            level.first_tile = self.tiles;
            let by_channel = self.bins > 1 && level.channel < level.position;
            level.lanes = if by_channel { SIDE_LANES } else { 1 };
            self.tiles += (self.batch * level.positions).div_ceil(TILE);
        }
    }
}

/// Enqueues the boxes, or with [`Pass::ForwardBackward`] the gradients of the logits alone, on `stream`, a CUstream.
/// `storage` is the type of the logits and their gradients.
///
/// # Errors
/// As [`launch_qfl`](crate::cuda::raw::launch_qfl).
///
/// # Safety
/// As [`launch_qfl`](crate::cuda::raw::launch_qfl).
pub unsafe fn launch_decode(
    kernels: &Kernels,
    storage: Storage,
    pass: Pass,
    args: &DecodeArgs,
    stream: *mut c_void,
) -> Result<()> {
    let mut args = DecodeArgs { storage: storage as u32, ..*args };
    args.plan();
    if args.tiles == 0 {
        return Ok(());
    }
    let function = kernels.function(DECODE[pass.index()], Storage::F32, stream.cast())?;
    let multiprocessors = kernels.multiprocessors();
    let grid = Grid::new(DECODE_BLOCK, args.tiles.into(), 1, multiprocessors, function.resident);
    // SAFETY: the function takes one DecodeArgs; the rest is the caller's promise.
    unsafe { launch(function, grid, &args, stream.cast()) }
}
