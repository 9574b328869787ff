//! Decoding on CUDA: checks, addresses, launch.

use cudarc::driver::{DevicePtr, DevicePtrMut, DeviceSlice};

use super::launch::{DecodeArgs, DecodeLevel, decode_units, launch_decode};
use super::{Level, check, check_flag};
use crate::cuda::{Device, Handle, Pass, Prepared, StorageElement, Units};
use crate::error::{Error, Result};
use crate::head::launch::MAX_ANCHORS;
use crate::head::{BoxCoding, Points};

/// The kernels that both calls need, for [`Handle::prepare`]: the same for all storage types.
pub fn units() -> Units {
    decode_units()
}

/// Enqueues the boxes `[B, A, 4]` of all levels: x1, y1, x2, y2 in pixels. One launch.
///
/// # Errors
/// As [`forward`](super::forward), and if a buffer is in another context, or the driver refuses the launch.
pub fn forward_cuda<T: StorageElement>(
    handle: &Handle,
    coding: BoxCoding,
    batch: usize,
    levels: &[Level<Device, T>],
    boxes: &mut impl DevicePtrMut<f32>,
) -> Result<()> {
    let bins = check(coding, batch, levels, ("boxes", boxes.len()), None)?;
    let (stream, mut prepared) = (handle.stream(), Prepared::on(handle)?);
    let mut args = args(coding, bins, batch, levels)?;
    args.boxes = prepared.write("boxes", Some(boxes), stream)?;
    read_levels(&mut args, levels, handle, &mut prepared)?;
    prepared.check_overlaps()?;
    // SAFETY: `check` has compared every length and every layout with the shapes, and Prepared every context with the
    // stream's and the places of the buffers; Prepared keeps them borrowed until the launch is enqueued.
    unsafe { launch_decode(handle.kernels(), T::STORAGE, Pass::Forward, &args, stream.cu_stream().cast()) }
}

/// Enqueues the gradients of the logits, a buffer for each level in the layout of its logits, given the gradient
/// `upstream` `[B, A, 4]` with respect to the boxes, and sets `found_inf` as [`backward`](super::backward) does. One launch.
///
/// # Errors
/// As [`backward`](super::backward), and if a buffer is in another context, or the driver refuses the launch.
pub fn backward_cuda<T: StorageElement>(
    handle: &Handle,
    coding: BoxCoding,
    batch: usize,
    levels: &[Level<Device, T>],
    upstream: &impl DevicePtr<f32>,
    grads: &mut [&mut dyn DevicePtrMut<T>],
    found_inf: Option<&mut dyn DevicePtrMut<f32>>,
) -> Result<()> {
    let bins = check(coding, batch, levels, ("upstream", upstream.len()), Some(grads))?;
    check_flag(found_inf.as_deref().map(DeviceSlice::len))?;
    let (stream, mut prepared) = (handle.stream(), Prepared::on(handle)?);
    let mut args = args(coding, bins, batch, levels)?;
    args.upstream = prepared.read("upstream", Some(upstream), stream)?;
    args.found_inf = prepared.write("found_inf", found_inf, stream)?;
    read_levels(&mut args, levels, handle, &mut prepared)?;
    for ((grad, level), to) in grads.iter_mut().zip(levels).zip(&mut args.levels) {
        let base = prepared.write_of_level("box_logits' gradient", &mut **grad, stream)?;
        to.grad = base + (level.layout.offset * size_of::<T>()) as u64;
    }
    prepared.check_overlaps()?;
    let pass = Pass::ForwardBackward;
    // SAFETY: as in forward_cuda.
    unsafe { launch_decode(handle.kernels(), T::STORAGE, pass, &args, stream.cu_stream().cast()) }
}

/// The parameters that are no addresses.
fn args<T: StorageElement>(
    coding: BoxCoding,
    bins: usize,
    batch: usize,
    levels: &[Level<Device, T>],
) -> Result<DecodeArgs> {
    let mut args = DecodeArgs {
        level_count: levels.len() as u32,
        batch: batch as u32,
        bins: bins as u32,
        coding: match coding {
            BoxCoding::Bins(_) => 0,
            BoxCoding::Exp => 1,
            BoxCoding::Relu => 2,
        },
        ..DecodeArgs::default()
    };
    let mut all = 0;
    for (level, to) in levels.iter().zip(&mut args.levels) {
        let positions = level.positions();
        // What the kernels count in 32 bits.
        if batch.max(all).max(batch.saturating_mul(positions)) > MAX_ANCHORS {
            return Err(Error::ShapeOverflow { shape: [batch, positions] });
        }
        *to = DecodeLevel {
            batch: level.layout.batch as u64,
            channel: level.layout.channel as u64,
            position: level.layout.position as u64,
            row_gap: level.layout.row_gap(positions),
            stride: level.stride as f32,
            grid_offset: match level.points {
                Points::Grid { offset } => offset as f32,
                Points::Explicit(_) => 0.0,
            },
            positions: positions as u32,
            width: level.width as u32,
            points_of_batch: level.has_points_of_batch().into(),
            first: all as u32,
            ..DecodeLevel::default()
        };
        all += positions;
    }
    args.all_positions = all as u64;
    Ok(args)
}

/// The addresses of what a level reads.
fn read_levels<'s, T: StorageElement>(
    args: &mut DecodeArgs,
    levels: &'s [Level<'_, Device, T>],
    handle: &'s Handle,
    prepared: &mut Prepared<'s>,
) -> Result<()> {
    let stream = handle.stream();
    for (level, to) in levels.iter().zip(&mut args.levels) {
        let base = prepared.read("box_logits", Some(level.logits), stream)?;
        to.logits = base + (level.layout.offset * size_of::<T>()) as u64;
        if let Points::Explicit(points) = level.points {
            to.points = prepared.read("points", Some(points), stream)?;
        }
    }
    Ok(())
}
