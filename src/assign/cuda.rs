//! ATSS on CUDA: checks, addresses, launches.

use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DevicePtrMut};

use super::{Anchors, Atss, GroundTruth, Lengths, Level, LevelTargets, check};
use crate::cuda::raw::{AtssArgs, AtssLevel, atss_units, launch_atss};
use crate::cuda::{Device, Handle, Prepared, Units, check as check_driver};
use crate::element::Label;
use crate::error::{Error, Result};

/// The device memory that calls of [`Atss::cuda`] work in: 8 bytes for each anchor of each image.
/// It serves one call at a time.
#[derive(Debug)]
pub struct AtssWorkspace {
    keys: CudaSlice<u64>,
}

impl AtssWorkspace {
    /// Memory for calls with up to so many anchors, on all levels together, in so many images.
    ///
    /// # Errors
    /// If the driver has no memory left.
    pub fn new(stream: &Arc<CudaStream>, images: usize, anchors: usize) -> Result<AtssWorkspace> {
        let words = images.checked_mul(anchors).ok_or(Error::TooManyBoxes { boxes: anchors })?;
        // The driver refuses to allocate nothing.
        let keys = check_driver("cuMemAllocAsync", stream.alloc_zeros::<u64>(words.max(1)))?;
        Ok(AtssWorkspace { keys })
    }

    /// Zeroes it: needed only after a call that did not run to its end.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn reset(&mut self, stream: &Arc<CudaStream>) -> Result<()> {
        check_driver("cuMemsetD8Async", stream.memset_zeros(&mut self.keys))
    }
}

impl<'a> Anchors<'a, Device> {
    /// As [`Anchors::cpu`], on the device.
    pub fn cuda(boxes: &'a impl DevicePtr<f32>) -> Self {
        Anchors::<Device>::Boxes(boxes)
    }
}

impl<'a, L: Label> GroundTruth<'a, Device, L> {
    /// As [`GroundTruth::cpu`], on the device.
    pub fn cuda(
        boxes: &'a impl DevicePtr<f32>,
        labels: &'a impl DevicePtr<L>,
        image: &'a impl DevicePtr<L>,
    ) -> Self {
        GroundTruth { boxes, labels, image }
    }
}

impl<'a, L: Label> LevelTargets<'a, Device, L> {
    /// As [`LevelTargets::cpu`], on the device.
    pub fn cuda(labels: &'a mut impl DevicePtrMut<L>, box_targets: &'a mut impl DevicePtrMut<f32>) -> Self {
        LevelTargets { labels, box_targets }
    }
}

impl Atss {
    /// The kernels that calls need, for [`Handle::prepare`].
    pub fn units() -> Units {
        atss_units()
    }

    /// Enqueues the assignment of every anchor of every image, as two launches: levels of
    /// anchors, boxes, how many images and classes, where the targets of each level go, and the
    /// memory to work in. A captured call can be replayed with other boxes, and with fewer of
    /// them: the rest is padding.
    ///
    /// # Errors
    /// If a length does not fit, a number is outside its range, a buffer is in another context, or
    /// the driver refuses a launch.
    #[allow(clippy::too_many_arguments, reason = "the tensors of the CPU's call, and what it runs on")]
    pub fn cuda<L: Label>(
        &self,
        handle: &Handle,
        anchors: &[Anchors<'_, Device>],
        gt: GroundTruth<'_, Device, L>,
        images: usize,
        classes: usize,
        targets: &mut [LevelTargets<'_, Device, L>],
        workspace: &mut AtssWorkspace,
    ) -> Result<()> {
        let lengths = anchors.iter().zip(targets.iter()).map(|(anchors, targets)| {
            let (grid, boxes) = match anchors {
                Anchors::Grid(grid) => (Some(*grid), 0),
                Anchors::Boxes(boxes) => (None, boxes.len()),
            };
            let (labels, box_targets) = (targets.labels.len(), targets.box_targets.len());
            Lengths { grid, boxes, labels, box_targets }
        });
        let counts = [anchors.len(), targets.len()];
        let levels =
            check(lengths, counts, [gt.boxes.len(), gt.labels.len(), gt.image.len()], images, classes)?;
        let all = images * levels.iter().map(Level::anchors).sum::<usize>();
        if workspace.keys.len() < all {
            return Err(Error::SmallWorkspace { actual: workspace.keys.len(), expected: all });
        }
        let (stream, mut prepared) = (handle.stream(), Prepared::default());
        let mut args = AtssArgs {
            gt_boxes: prepared.read("gt boxes", Some(gt.boxes), stream)?,
            gt_labels: prepared.read("gt labels", Some(gt.labels), stream)?,
            gt_image: prepared.read("gt image", Some(gt.image), stream)?,
            keys: prepared.write("the workspace", Some(&mut workspace.keys), stream)?,
            anchors: all as u64,
            gts: gt.labels.len() as u32,
            images: images as u32,
            levels: levels.len() as u32,
            topk: self.topk as u32,
            classes: classes as u32,
            labels_are_i64: (size_of::<L>() == 8).into(),
            ..AtssArgs::default()
        };
        for (((to, level), anchors), targets) in args.level.iter_mut().zip(&levels).zip(anchors).zip(targets)
        {
            *to = AtssLevel {
                labels: prepared.write("labels", Some(&mut *targets.labels), stream)?,
                box_targets: prepared.write("box targets", Some(&mut *targets.box_targets), stream)?,
                first: (images * level.first) as u64,
                height: level.height as u32,
                width: level.width as u32,
                ..AtssLevel::default()
            };
            match anchors {
                Anchors::Grid(grid) => {
                    (to.stride, to.inverse) = (grid.stride, 1.0 / grid.stride);
                    (to.half, to.offset) = (grid.size * 0.5, grid.offset);
                }
                Anchors::Boxes(boxes) => to.anchors = prepared.read("anchors", Some(*boxes), stream)?,
            }
        }
        prepared.check_overlaps()?;
        // SAFETY: `check` has compared every length, and the workspace's was above; Prepared has
        // compared every context with the stream's and the places of the buffers, and keeps them
        // borrowed until the launches are enqueued.
        unsafe { launch_atss(handle.kernels(), &args, stream.cu_stream().cast()) }
    }
}
