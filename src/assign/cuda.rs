//! What all assignments on CUDA do: memory to work in, and the parameters of the kernels.

use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DevicePtrMut};

use super::check::Level;
use super::launch::{AssignArgs, AssignLevel};
use super::{Anchors, GroundTruth, LevelTargets, Options};
use crate::cuda::{Device, Prepared, StatusBlock, check as check_driver};
use crate::element::Label;
use crate::error::{Error, Result};
use crate::qfl::Background;

/// The device memory that calls of [`Atss::cuda`](super::Atss::cuda) and
/// [`Fcos::cuda`](super::Fcos::cuda) work in: 8 bytes for each anchor of each image, and 4 for each
/// box. It serves one call at a time.
#[derive(Debug)]
pub struct AssignWorkspace {
    /// What anchors are claimed by; a ticket; which boxes have an anchor, in halves.
    words: CudaSlice<u64>,
    anchors: usize,
    boxes: usize,
}

impl AssignWorkspace {
    /// Memory for calls with up to so many anchors, on all levels together, in so many images, and
    /// with up to so many ground-truth boxes in all images.
    ///
    /// # Errors
    /// If the driver has no memory left.
    pub fn new(
        stream: &Arc<CudaStream>,
        images: usize,
        anchors: usize,
        boxes: usize,
    ) -> Result<AssignWorkspace> {
        let too_many = || Error::TooManyBoxes { boxes: anchors };
        let anchors = images.checked_mul(anchors).ok_or_else(too_many)?;
        let words = anchors.checked_add(1 + boxes.div_ceil(2)).ok_or_else(too_many)?;
        let words = check_driver("cuMemAllocAsync", stream.alloc_zeros::<u64>(words))?;
        Ok(AssignWorkspace { words, anchors, boxes })
    }

    /// Zeroes it: needed only after a call that did not run to its end.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn reset(&mut self, stream: &Arc<CudaStream>) -> Result<()> {
        check_driver("cuMemsetD8Async", stream.memset_zeros(&mut self.words))
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
        GroundTruth { boxes, labels, image, weights: None, ignore: None, valid_hw: None }
    }

    /// As the host's [`weights`](GroundTruth#method.weights).
    #[must_use]
    pub fn weights(self, weights: &'a impl DevicePtr<f32>) -> Self {
        GroundTruth { weights: Some(weights), ..self }
    }

    /// As the host's [`ignore`](GroundTruth#method.ignore).
    #[must_use]
    pub fn ignore(self, boxes: &'a impl DevicePtr<f32>, image: &'a impl DevicePtr<L>) -> Self {
        GroundTruth { ignore: Some((boxes, image)), ..self }
    }

    /// As the host's [`valid_hw`](GroundTruth#method.valid_hw).
    #[must_use]
    pub fn valid_hw(self, valid_hw: &'a impl DevicePtr<L>) -> Self {
        GroundTruth { valid_hw: Some(valid_hw), ..self }
    }
}

impl<'a, L: Label> LevelTargets<'a, Device, L> {
    /// As [`LevelTargets::cpu`], on the device.
    pub fn cuda(labels: &'a mut impl DevicePtrMut<L>, box_targets: &'a mut impl DevicePtrMut<f32>) -> Self {
        LevelTargets { labels, box_targets, label_weights: None, box_weights: None, centerness: None }
    }

    /// As the host's [`label_weights`](LevelTargets#method.label_weights).
    #[must_use]
    pub fn label_weights(self, label_weights: &'a mut impl DevicePtrMut<f32>) -> Self {
        LevelTargets { label_weights: Some(label_weights), ..self }
    }

    /// As the host's [`box_weights`](LevelTargets#method.box_weights).
    #[must_use]
    pub fn box_weights(self, box_weights: &'a mut impl DevicePtrMut<f32>) -> Self {
        LevelTargets { box_weights: Some(box_weights), ..self }
    }

    /// As the host's [`centerness`](LevelTargets#method.centerness).
    #[must_use]
    pub fn centerness(self, centerness: &'a mut impl DevicePtrMut<f32>) -> Self {
        LevelTargets { centerness: Some(centerness), ..self }
    }
}

/// A checked call: everything but what one kind of assignment knows alone.
pub(super) struct Call<'c, 'x, 'g, L: Label> {
    pub options: Options,
    pub anchors: &'c [Anchors<'x, Device>],
    pub levels: &'c [Level],
    pub gt: GroundTruth<'g, Device, L>,
    pub images: usize,
    pub classes: usize,
    /// Whether anchors are claimed in the workspace.
    pub claims: bool,
}

impl<'c, 'g, L: Label> Call<'c, '_, 'g, L> {
    /// The parameters of the kernels, after the check that the workspace is large enough and nothing
    /// that is written overlaps.
    pub fn args<'s>(
        self,
        targets: &'s mut [LevelTargets<'_, Device, L>],
        workspace: &'s mut AssignWorkspace,
        status: Option<&'s mut StatusBlock>,
        stream: &'s Arc<CudaStream>,
        prepared: &mut Prepared<'s>,
    ) -> Result<AssignArgs>
    where
        'c: 's,
        'g: 's,
    {
        let Call { options, levels, gt, images, .. } = self;
        let (all, gts) = (images * levels.iter().map(Level::anchors).sum::<usize>(), gt.labels.len());
        let claimed = if self.claims { all } else { 0 };
        for (axis, actual, expected) in
            [("anchors of all images", workspace.anchors, claimed), ("boxes", workspace.boxes, gts)]
        {
            if actual < expected {
                return Err(Error::SmallWorkspace { axis, actual, expected });
            }
        }
        let ignore = gt.ignore.filter(|_| options.ignores());
        let status = status.map(|status| status.buffer_mut() as &mut dyn DevicePtrMut<u64>);
        let room = workspace.anchors as u64;
        let keys = prepared.write("the workspace", Some(&mut workspace.words), stream)?;
        let mut args = AssignArgs {
            gt_boxes: prepared.read("gt boxes", Some(gt.boxes), stream)?,
            gt_labels: prepared.read("gt labels", Some(gt.labels), stream)?,
            gt_image: prepared.read("gt image", Some(gt.image), stream)?,
            gt_weights: prepared.read("gt weights", gt.weights, stream)?,
            ignore_boxes: prepared.read("ignore boxes", ignore.map(|(boxes, _)| boxes), stream)?,
            ignore_image: prepared.read("ignore image", ignore.map(|(_, image)| image), stream)?,
            valid_hw: prepared.read("valid_hw", gt.valid_hw, stream)?,
            keys,
            ticket: keys + 8 * room,
            held: keys + 8 * (room + 1),
            status: prepared.write("status", status, stream)?,
            anchors: all as u64,
            gts: gts as u32,
            ignores: ignore.map_or(0, |(_, image)| image.len()) as u32,
            images: images as u32,
            levels: levels.len() as u32,
            classes: self.classes as u32,
            ignore_iof: options.ignore_iof,
            fallback: options.fallback,
            background_first: (options.background == Background::First).into(),
            labels_are_i64: (size_of::<L>() == 8).into(),
            ..AssignArgs::default()
        };
        for (((to, level), anchors), targets) in
            args.level.iter_mut().zip(levels).zip(self.anchors).zip(targets)
        {
            *to = AssignLevel {
                labels: prepared.write("labels", Some(&mut *targets.labels), stream)?,
                box_targets: prepared.write("box targets", Some(&mut *targets.box_targets), stream)?,
                label_weights: prepared.write(
                    "label weights",
                    targets.label_weights.as_deref_mut(),
                    stream,
                )?,
                box_weights: prepared.write("box weights", targets.box_weights.as_deref_mut(), stream)?,
                centerness: prepared.write("centerness", targets.centerness.as_deref_mut(), stream)?,
                first: (images * level.first) as u64,
                before: level.first as u32,
                height: level.height as u32,
                width: level.width as u32,
                each: level.each as u32,
                ..AssignLevel::default()
            };
            match anchors {
                Anchors::Grid(grid) => {
                    (to.stride, to.inverse, to.offset) = (grid.stride, 1.0 / grid.stride, grid.offset);
                    for (half, side) in to.half.iter_mut().zip(grid.sizes().as_flattened()) {
                        *half = side * 0.5;
                    }
                }
                Anchors::Boxes(boxes) => to.anchors = prepared.read("anchors", Some(*boxes), stream)?,
            }
        }
        prepared.check_overlaps()?;
        Ok(args)
    }
}
