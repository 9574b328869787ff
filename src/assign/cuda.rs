//! What all assignments on CUDA do: memory to work in, and the parameters of the kernels.

use std::sync::Arc;

use cudarc::driver::{CudaStream, DevicePtr, DevicePtrMut};

use super::check::Level;
use super::launch::{AssignArgs, AssignLevel};
use super::{Anchors, GroundTruth, LevelTargets};
use crate::cuda::{Borrowed, Buffer, Device, Parts, Prepared, StatusBlock};
use crate::element::Label;
use crate::error::{Error, Result};

const WORKSPACE: &str = "the workspace of an assignment";

/// The device memory that calls of [`Atss::cuda`](super::Atss::cuda) and
/// [`Fcos::cuda`](super::Fcos::cuda) work in: 8 bytes for each anchor of each image, and 4 for each
/// box. It serves one call at a time.
#[derive(Debug)]
pub struct AssignWorkspace {
    /// What anchors are claimed by; a ticket; which boxes have an anchor, in halves.
    words: Buffer<u64>,
    anchors: usize,
    boxes: usize,
}

impl AssignWorkspace {
    /// Memory for calls with up to so many anchors, on all levels together, in so many images, and
    /// with up to so many ground-truth boxes in all images.
    ///
    /// # Errors
    /// If the stream is captured, or the driver has no memory left.
    pub fn new(
        stream: &Arc<CudaStream>,
        images: usize,
        anchors: usize,
        boxes: usize,
    ) -> Result<AssignWorkspace> {
        let words = Buffer::zeros(WORKSPACE, stream, Self::bytes(images, anchors, boxes)? / 8)?;
        Ok(AssignWorkspace { words, anchors: images * anchors, boxes })
    }

    /// How many bytes [`over`](Self::over) needs.
    ///
    /// # Errors
    /// If they are more than memory can address.
    pub fn bytes(images: usize, anchors: usize, boxes: usize) -> Result<usize> {
        let all = images.checked_mul(anchors).and_then(|all| all.checked_add(1 + boxes.div_ceil(2)));
        let bytes = all.and_then(|words| words.checked_mul(8)).filter(|&bytes| bytes <= isize::MAX as usize);
        bytes.ok_or(Error::TooManyBoxes { boxes: anchors })
    }

    /// As [`new`](Self::new), over the caller's memory: [`bytes`](Self::bytes) at a multiple of 16, which
    /// nothing else writes as long as this lives. They are zeroed in the stream's order. While it is
    /// captured that is a part of the graph, and the workspace is for calls of this capture alone.
    ///
    /// # Errors
    /// If the memory is of another context than the stream, or there is too little.
    pub fn over(
        stream: &Arc<CudaStream>,
        memory: Borrowed<u8>,
        images: usize,
        anchors: usize,
        boxes: usize,
    ) -> Result<AssignWorkspace> {
        let bytes = Self::bytes(images, anchors, boxes)?;
        let words = Parts::of(WORKSPACE, memory, bytes, stream)?.zeros(bytes / 8, stream)?;
        Ok(AssignWorkspace { words, anchors: images * anchors, boxes })
    }

    /// Zeroes it: needed only after a call that did not run to its end.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn reset(&mut self, stream: &Arc<CudaStream>) -> Result<()> {
        self.words.zero(stream)
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
    /// What the assignment says: no tensors, no levels.
    pub options: AssignArgs,
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
        let ignore = gt.ignore.filter(|_| options.ignore_iof > 0.0);
        let status = status.map(|status| status.buffer_mut() as &mut dyn DevicePtrMut<u64>);
        let room = workspace.anchors;
        let words = prepared.write("the workspace", Some(&mut workspace.words), stream)?;
        let mut args = AssignArgs {
            gt_boxes: prepared.read("gt boxes", Some(gt.boxes), stream)?,
            gt_labels: prepared.read("gt labels", Some(gt.labels), stream)?,
            gt_image: prepared.read("gt image", Some(gt.image), stream)?,
            gt_weights: prepared.read("gt weights", gt.weights, stream)?,
            ignore_boxes: prepared.read("ignore boxes", ignore.map(|(boxes, _)| boxes), stream)?,
            ignore_image: prepared.read("ignore image", ignore.map(|(_, image)| image), stream)?,
            valid_hw: prepared.read("valid_hw", gt.valid_hw, stream)?,
            status: prepared.write("status", status, stream)?,
            gts: gts as u32,
            ignores: ignore.map_or(0, |(_, image)| image.len()) as u32,
            images: images as u32,
            levels: levels.len() as u32,
            classes: self.classes as u32,
            labels_are_i64: (size_of::<L>() == 8).into(),
            ..self.options
        };
        args.set_workspace(words, room);
        for (((to, level), anchors), targets) in
            args.level.iter_mut().zip(levels).zip(self.anchors).zip(targets)
        {
            *to = match anchors {
                Anchors::Grid(grid) => AssignLevel::of(grid),
                Anchors::Boxes(boxes) => AssignLevel {
                    anchors: prepared.read("anchors", Some(*boxes), stream)?,
                    height: 1,
                    width: level.width as u32,
                    each: 1,
                    ..AssignLevel::default()
                },
            };
            to.labels = prepared.write("labels", Some(&mut *targets.labels), stream)?;
            to.box_targets = prepared.write("box targets", Some(&mut *targets.box_targets), stream)?;
            to.label_weights =
                prepared.write("label weights", targets.label_weights.as_deref_mut(), stream)?;
            to.box_weights = prepared.write("box weights", targets.box_weights.as_deref_mut(), stream)?;
            to.centerness = prepared.write("centerness", targets.centerness.as_deref_mut(), stream)?;
        }
        args.number_anchors();
        prepared.check_overlaps()?;
        Ok(args)
    }
}
