use std::ffi::c_void;

use gfocal::HeadLoss;
use gfocal::assign::{AnchorGrid, Atss};
use gfocal::cuda::raw::{
    AssignArgs, AssignLevel, DeviceAddress, HeadArgs, HeadLevel, Pass, ScaleArgs, Strides, launch_atss,
    launch_head_losses, launch_head_positives, launch_scale,
};
use gfocal::cuda::{Kernels, Storage};

/// A level, `side` x `side`, in memory of your allocator's. Logits and gradients are f32, [batch, channels, H, W].
pub struct StepLevel {
    pub side: u32,
    pub stride: f32,
    pub cls: DeviceAddress,
    pub boxes: DeviceAddress,
    pub grad_cls: DeviceAddress,
    pub grad_boxes: DeviceAddress,
    pub labels: DeviceAddress,        // [batch, H * W] i64
    pub box_targets: DeviceAddress,   // [batch, H * W, 4] f32
    pub label_weights: DeviceAddress, // [batch, H * W] f32
}

/// A step of training: which anchor is trained on which box, the losses and their gradients, and these times
/// the gradient of what follows.
pub struct Step<'a> {
    pub batch: u32,
    pub classes: u32,
    pub levels: &'a [StepLevel],
    pub gts: u32,
    pub gt_boxes: DeviceAddress,  // [gts, 4] f32
    pub gt_labels: DeviceAddress, // [gts] i64
    pub gt_image: DeviceAddress,  // [gts] i64
    pub losses: DeviceAddress,    // [levels, 3] f32
    pub upstream: DeviceAddress,  // [1] f32
    pub found_inf: DeviceAddress, // [1] f32
    pub status: DeviceAddress,    // StatusBlock::BYTES
    /// AssignWorkspace::bytes(batch, anchors, gts), and HeadWorkspace::bytes(kernels, batch, anchors): zeroed
    /// once, and then left alone from step to step.
    pub for_assignment: DeviceAddress,
    pub for_head: DeviceAddress,
}

impl Step<'_> {
    /// Enqueues it: nothing is allocated, waited for or read back.
    ///
    /// # Safety
    /// The addresses are of this device, and of what their comments say; `stream` is a CUstream of the
    /// kernels' context.
    pub unsafe fn enqueue(&self, kernels: &Kernels, stream: *mut c_void) -> gfocal::Result<()> {
        let (atss, head) = (Atss::default(), HeadLoss::mmdetection());
        let (count, storage) = (self.levels.len() as u32, Storage::F32);
        let anchors: u32 = self.levels.iter().map(|level| level.side * level.side).sum();

        let mut assign = AssignArgs {
            gt_boxes: self.gt_boxes,
            gt_labels: self.gt_labels,
            gt_image: self.gt_image,
            gts: self.gts,
            images: self.batch,
            levels: count,
            classes: self.classes,
            labels_are_i64: 1,
            status: self.status,
            ..atss.raw_args()
        };
        for (to, from) in assign.level.iter_mut().zip(self.levels) {
            *to = AssignLevel {
                labels: from.labels,
                box_targets: from.box_targets,
                label_weights: from.label_weights,
                ..AssignLevel::of(&AnchorGrid::new(from.side as usize, from.side as usize, from.stride))
            };
        }
        assign.number_anchors();
        assign.set_workspace(self.for_assignment, assign.anchors as usize);
        // SAFETY: the caller's promise.
        unsafe { launch_atss(kernels, &assign, stream)? };

        let mut args = HeadArgs {
            losses: self.losses,
            found_inf: self.found_inf,
            status: self.status,
            batch: self.batch,
            classes: self.classes,
            level_count: count,
            box_storage: storage as u32,
            ..HeadArgs::of(&head)
        };
        let box_channels = head.box_channels() as u64;
        for (to, from) in args.levels.iter_mut().zip(self.levels) {
            let positions = u64::from(from.side * from.side);
            let nchw = |channels| Strides {
                batch: channels * positions,
                channel: positions,
                position: 1,
                row_gap: 0,
            };
            let (cls_strides, box_strides) = (nchw(self.classes.into()), nchw(box_channels));
            *to = HeadLevel {
                cls: from.cls,
                boxes: from.boxes,
                grad_cls: from.grad_cls,
                grad_boxes: from.grad_boxes,
                cls_strides,
                box_strides,
                grad_cls_strides: cls_strides,
                grad_box_strides: box_strides,
                labels: from.labels,
                labels_are_i64: 1,
                label_weights: from.label_weights,
                targets: from.box_targets,
                stride: from.stride.into(),
                inverse_stride: 1.0 / f64::from(from.stride),
                positions: positions as u32,
                width: from.side,
                ..HeadLevel::default()
            };
        }
        args.number_anchors();
        args.set_workspace(kernels, self.for_head, self.batch as usize, anchors as usize)?;
        // SAFETY: the caller's promise; the second launch has the first one's arguments.
        unsafe {
            launch_head_positives(kernels, storage, &args, stream)?;
            launch_head_losses(kernels, storage, Pass::ForwardBackward, &args, stream)?;
        }

        for level in self.levels {
            let anchors = u64::from(self.batch * level.side * level.side);
            for (grad, channels) in [(level.grad_cls, self.classes.into()), (level.grad_boxes, box_channels)]
            {
                let args = ScaleArgs {
                    grad,
                    scale: self.upstream,
                    found_inf: self.found_inf,
                    count: anchors * channels,
                    ..ScaleArgs::default()
                };
                // SAFETY: the caller's promise.
                unsafe { launch_scale(kernels, storage, &args, stream)? };
            }
        }
        Ok(())
    }
}
