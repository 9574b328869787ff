//! Shows that a call whose outputs lie over another of its buffers is refused, with the names of both, and that one
//! whose buffers touch is not. Slices of cudarc's are kept apart by their borrows; a framework's own tensors are not.

use gfocal::assign::{Anchors, AssignWorkspace, Atss, Fcos, GroundTruth, LevelTargets};
use gfocal::boxes::BoxLoss;
use gfocal::cuda::{self, Borrowed, Device, LabelBuffer};
use gfocal::cudarc::driver::DevicePtr;
use gfocal::cudarc::driver::sys::CUdeviceptr;
use gfocal::head::{
    BoxCoding, BoxWeight, Gradients, HeadLoss, HeadWorkspace, Layout, Level, Logits, Points, QualitySource,
    Targets,
};
use gfocal::{DistributionFocalLoss, Gfl, QualityFocalLoss, Reduction, Result, decode, f16, integral};
use support::{Gpu, gpu};

/// The buffers of a call, each at a place of its own.
struct At<'a> {
    gpu: &'a Gpu,
    addresses: Vec<CUdeviceptr>,
}

impl At<'_> {
    fn get<T>(&self, tensor: usize, len: usize) -> Borrowed<T> {
        // SAFETY: the buffer of the test has room for all tensors, and is used by one call.
        unsafe { Borrowed::new(&self.gpu.stream, self.addresses[tensor], len) }
    }
}

/// A kind of call: the names of its buffers with their sizes in bytes, the written ones first; how many these are.
struct Kind {
    tensors: &'static [(&'static str, usize)],
    written: usize,
    call: fn(&At) -> Result<()>,
}

const KINDS: [Kind; 13] = [
    Kind {
        tensors: &[
            ("loss", 4),
            ("grad", 48),
            ("found_inf", 4),
            ("logits", 48),
            ("labels", 32),
            ("quality", 16),
            ("weight", 16),
        ],
        written: 3,
        call: |at| {
            let (mut loss, mut grad, mut flag) = (at.get(0, 1), at.get::<f32>(1, 12), at.get(2, 1));
            let (logits, labels, quality, weight) =
                (at.get(3, 12), at.get::<i64>(4, 4), at.get(5, 4), at.get(6, 4));
            let qfl = QualityFocalLoss::default();
            let call = qfl.cuda(&at.gpu.handle, &logits, [4, 3], &labels, &quality).weight(&weight);
            call.found_inf(&mut flag).forward_backward(&mut loss, &mut grad)
        },
    },
    Kind {
        tensors: &[
            ("loss", 16),
            ("grad", 48),
            ("logits", 48),
            ("target", 48),
            ("upstream", 16),
            ("grad_scale", 4),
        ],
        written: 2,
        call: |at| {
            let (mut loss, mut grad) = (at.get(0, 4), at.get::<f32>(1, 12));
            let (logits, target, upstream, scale) =
                (at.get(2, 12), at.get(3, 12), at.get(4, 4), at.get(5, 1));
            let qfl = QualityFocalLoss::default();
            let call = qfl.cuda_dense(&at.gpu.handle, &logits, [4, 3], &target).reduction(Reduction::None);
            call.upstream(&upstream).grad_scale(&scale).forward_backward(&mut loss, &mut grad)
        },
    },
    Kind {
        tensors: &[
            ("loss", 4),
            ("grad", 48),
            ("logits", 48),
            ("target", 48),
            ("class_weights", 12),
            ("element_weights", 48),
        ],
        written: 2,
        call: |at| {
            let (mut loss, mut grad) = (at.get(0, 1), at.get::<f32>(1, 12));
            let (logits, target) = (at.get(2, 12), at.get(3, 12));
            let (of_classes, of_elements) = (at.get(4, 3), at.get(5, 12));
            let qfl = QualityFocalLoss::default();
            let call = qfl.cuda_dense(&at.gpu.handle, &logits, [4, 3], &target);
            call.class_weights(&of_classes)
                .element_weights(&of_elements)
                .forward_backward(&mut loss, &mut grad)
        },
    },
    Kind {
        tensors: &[("grad", 48), ("logits", 48), ("target", 16)],
        written: 1,
        call: |at| {
            let (mut grad, logits, target) = (at.get::<f32>(0, 12), at.get(1, 12), at.get(2, 4));
            DistributionFocalLoss::default()
                .cuda(&at.gpu.handle, &logits, [4, 3], &target)
                .backward(&mut grad)
        },
    },
    Kind {
        tensors: &[
            ("losses", 12),
            ("grad", 16),
            ("grad", 24),
            ("logits", 16),
            ("target", 16),
            ("logits", 24),
            ("target", 8),
        ],
        written: 3,
        call: |at| {
            let (mut losses, mut grad, mut sides) = (at.get(0, 3), at.get::<f32>(1, 4), at.get(2, 6));
            let (logits, dense, boxes, target) = (at.get(3, 4), at.get(4, 4), at.get(5, 6), at.get(6, 2));
            let (qfl, dfl) = (QualityFocalLoss::default(), DistributionFocalLoss::default());
            let call = qfl.cuda_dense(&at.gpu.handle, &logits, [2, 2], &dense);
            let both = Gfl::new(call, dfl.cuda(&at.gpu.handle, &boxes, [2, 3], &target));
            both.forward_backward(&mut losses, &mut grad, &mut sides)
        },
    },
    Kind {
        tensors: &[("the gradient", 24), ("found_inf", 4), ("scale", 4)],
        written: 2,
        call: |at| {
            let (mut grad, mut flag) = (at.get::<f32>(0, 6), at.get(1, 1));
            cuda::scale(&at.gpu.handle, &mut grad, &at.get(2, 1), Some(&mut flag))
        },
    },
    Kind {
        tensors: &[("grad", 24), ("logits", 24), ("upstream", 8)],
        written: 1,
        call: |at| {
            let (mut grad, logits, upstream) = (at.get::<f32>(0, 6), at.get(1, 6), at.get(2, 2));
            integral::backward_cuda(&at.gpu.handle, &logits, [2, 3], &upstream, &mut grad)
        },
    },
    Kind {
        tensors: &[("loss", 4), ("grad", 16), ("pred", 16), ("target", 16), ("upstream", 4)],
        written: 2,
        call: |at| {
            let (mut loss, mut grad) = (at.get(0, 1), at.get(1, 4));
            let (pred, target, upstream) = (at.get(2, 4), at.get(3, 4), at.get(4, 1));
            let (handle, upstream) = (&at.gpu.handle, Some(&upstream as &dyn DevicePtr<f32>));
            BoxLoss::default()
                .forward_backward_cuda(handle, &pred, &target, 1, upstream, &mut loss, &mut grad)
        },
    },
    Kind {
        tensors: &[
            ("labels", 16),
            ("box targets", 32),
            ("gt boxes", 16),
            ("gt labels", 8),
            ("gt image", 8),
            ("anchors", 32),
        ],
        written: 2,
        call: |at| {
            let (mut labels, mut boxes) = (at.get::<i64>(0, 2), at.get(1, 8));
            let (gt, gt_labels, image, anchors) =
                (at.get(2, 4), at.get::<i64>(3, 1), at.get(4, 1), at.get(5, 8));
            let mut workspace = AssignWorkspace::new(&at.gpu.stream, 1, 2, 1).expect("device memory");
            let mut targets = [LevelTargets::cuda(&mut labels, &mut boxes)];
            let (anchors, gt) = ([Anchors::cuda(&anchors)], GroundTruth::cuda(&gt, &gt_labels, &image));
            Atss::default().cuda(&at.gpu.handle, &anchors, gt, 1, 2, &mut targets, &mut workspace, None)
        },
    },
    Kind {
        tensors: &[
            ("labels", 16),
            ("box targets", 32),
            ("label weights", 8),
            ("box weights", 8),
            ("centerness", 8),
            ("gt boxes", 16),
            ("gt labels", 8),
            ("gt image", 8),
            ("gt weights", 4),
            ("ignore boxes", 16),
            ("ignore image", 8),
            ("valid_hw", 16),
            ("anchors", 32),
        ],
        written: 5,
        call: fcos,
    },
    Kind {
        tensors: &[
            ("losses", 12),
            ("cls_logits' gradient", 32),
            ("found_inf", 4),
            ("cls_logits", 32),
            ("box_logits", 128),
            ("labels", 32),
            ("label_weights", 16),
            ("boxes", 64),
            ("quality", 16),
            ("points", 32),
            ("grad_scale", 4),
        ],
        written: 3,
        call: head,
    },
    Kind {
        tensors: &[
            ("losses", 12),
            ("box_logits' gradient", 32),
            ("box_logits", 32),
            ("box_weights", 16),
            ("box_scores", 16),
            ("scores", 32),
            ("element_weights", 32),
            ("class_weights", 8),
        ],
        written: 2,
        call: head_with_options,
    },
    Kind {
        tensors: &[
            ("box_logits' gradient", 128),
            ("found_inf", 4),
            ("upstream", 64),
            ("box_logits", 128),
            ("points", 32),
        ],
        written: 2,
        call: |at| {
            let (mut grad, mut flag, upstream) = (at.get::<f32>(0, 32), at.get(1, 1), at.get(2, 16));
            let (logits, points) = (at.get::<f32>(3, 32), at.get::<f32>(4, 8));
            let level: decode::Level<Device, f32> = decode::Level {
                height: 2,
                width: 2,
                stride: 8.0,
                points: Points::Explicit(&points as &dyn DevicePtr<f32>),
                logits: &logits,
                layout: Layout::nchw(8, 4),
            };
            let (handle, coding, grads) = (&at.gpu.handle, BoxCoding::Bins(2), &mut [&mut grad as _]);
            decode::backward_cuda(handle, coding, 1, &[level], &upstream, grads, Some(&mut flag))
        },
    },
];

fn fcos(at: &At) -> Result<()> {
    let (mut labels, mut boxes) = (at.get::<i64>(0, 2), at.get(1, 8));
    let [mut label_weights, mut box_weights, mut centerness] = [2, 3, 4].map(|i| at.get::<f32>(i, 2));
    let (gt, gt_labels, image, weights) = (at.get(5, 4), at.get::<i64>(6, 1), at.get(7, 1), at.get(8, 1));
    let (ignore, ignore_image, valid_hw, anchors) =
        (at.get(9, 4), at.get(10, 1), at.get(11, 2), at.get(12, 8));
    let targets = LevelTargets::cuda(&mut labels, &mut boxes);
    let targets = targets.label_weights(&mut label_weights).box_weights(&mut box_weights);
    let gt = GroundTruth::cuda(&gt, &gt_labels, &image).weights(&weights);
    let gt = gt.ignore(&ignore, &ignore_image).valid_hw(&valid_hw);
    let (handle, anchors) = (&at.gpu.handle, [Anchors::cuda(&anchors)]);
    let mut workspace = AssignWorkspace::new(&at.gpu.stream, 1, 0, 1).expect("device memory");
    let targets = &mut [targets.centerness(&mut centerness)];
    let fcos = Fcos::new(&[[0.0, 64.0]])?.with_ignore_iof(0.5)?;
    fcos.cuda(handle, &anchors, gt, 1, 2, targets, &mut workspace, None)
}

fn head_with_options(at: &At) -> Result<()> {
    let (mut losses, mut grad_boxes, boxes) = (at.get(0, 3), at.get::<f16>(1, 16), at.get::<f16>(2, 16));
    let (box_weights, box_scores, scores) = (at.get(3, 4), at.get(4, 4), at.get(5, 8));
    let (element_weights, class_weights) = (at.get(6, 8), at.get(7, 2));
    let stream = &at.gpu.stream;
    let zeros = |len| stream.alloc_zeros::<f32>(len).expect("device memory");
    let (cls, mut grad_cls, targets) = (zeros(8), zeros(8), zeros(16));
    let labels = stream.alloc_zeros::<i64>(4).expect("device memory");
    let head = HeadLoss::mmdetection().with_box_weight(BoxWeight::Given).with_box_coding(BoxCoding::Exp)?;
    let mut workspace = HeadWorkspace::new(&at.gpu.handle, 1, 4)?;
    let levels: [Level<Device, f32, f16>; 1] = [Level {
        height: 2,
        width: 2,
        stride: 8.0,
        points: Points::Grid { offset: 0.5 },
        logits: Logits::Separate { cls: &cls, boxes: &boxes },
        cls_layout: Layout::nchw(2, 4),
        box_layout: Layout::nchw(4, 4),
        targets: Targets {
            box_weights: Some(&box_weights),
            box_scores: Some(&box_scores),
            scores: Some(&scores),
            element_weights: Some(&element_weights),
            ..Targets::<Device>::new(LabelBuffer::I64(&labels), &targets)
        },
    }];
    let mut gradients: [Gradients<Device, f32, f16>; 1] =
        [Gradients::Separate { cls: &mut grad_cls, boxes: &mut grad_boxes }];
    head.cuda(&at.gpu.handle, &mut workspace, 1, 2, &levels)
        .class_weights(&class_weights)
        .forward_backward(&mut losses, &mut gradients)
}

fn head(at: &At) -> Result<()> {
    let (mut losses, mut grad_cls, mut flag) = (at.get(0, 3), at.get::<f32>(1, 8), at.get(2, 1));
    let (cls, boxes, labels, weights) =
        (at.get(3, 8), at.get(4, 32), at.get::<i64>(5, 4), at.get::<f32>(6, 4));
    let (targets, quality, points, scale) =
        (at.get(7, 16), at.get::<f32>(8, 4), at.get::<f32>(9, 8), at.get(10, 1));
    let mut grad_boxes = at.gpu.stream.alloc_zeros::<f32>(32).expect("device memory");
    let head = HeadLoss::nanodet().with_quality(QualitySource::Given).with_bins(2)?;
    let mut workspace = HeadWorkspace::new(&at.gpu.handle, 1, 4)?;
    let levels: [Level<Device, f32>; 1] = [Level {
        height: 2,
        width: 2,
        stride: 8.0,
        points: Points::Explicit(&points as &dyn DevicePtr<f32>),
        logits: Logits::Separate { cls: &cls, boxes: &boxes },
        cls_layout: Layout::nchw(2, 4),
        box_layout: Layout::nchw(8, 4),
        targets: Targets {
            label_weights: Some(&weights),
            quality: Some(&quality),
            ..Targets::<Device>::new(LabelBuffer::I64(&labels), &targets)
        },
    }];
    let mut gradients: [Gradients<Device, f32>; 1] =
        [Gradients::Separate { cls: &mut grad_cls, boxes: &mut grad_boxes }];
    let call = head.cuda(&at.gpu.handle, &mut workspace, 1, 2, &levels).grad_scale(&scale);
    call.found_inf(&mut flag).forward_backward(&mut losses, &mut gradients)
}

#[test]
fn outputs_over_other_buffers_are_refused() {
    let Some(gpu) = gpu() else { return };
    let memory = gpu.stream.alloc_zeros::<u64>(1 << 10).expect("device memory");
    let base = memory.device_ptr(&gpu.stream).0;
    for Kind { tensors, written, call } in KINDS {
        let apart: Vec<CUdeviceptr> = (1..=tensors.len()).map(|i| base + 256 * i as u64).collect();
        let with = |tensor: usize, address: CUdeviceptr| {
            let mut addresses = apart.clone();
            addresses[tensor] = address;
            call(&At { gpu: &gpu, addresses })
        };
        assert_eq!(with(0, apart[0]), Ok(()), "{tensors:?}: all apart");
        for (i, (name, size)) in tensors.iter().enumerate().take(written) {
            for (j, (other, other_size)) in tensors.iter().enumerate().filter(|&(j, _)| i != j) {
                let (start, end) = (apart[j], apart[j] + *other_size as u64);
                // Of i64 an address is a multiple of 8, and so is where it ends.
                let common = if *name == "labels" { 8 } else { 4 };
                for address in [end - common, start + common - *size as u64] {
                    let text = with(i, address).expect_err("they overlap").to_string();
                    let known = [(name, other), (other, name)].map(|(a, b)| format!("{a} overlaps {b}"));
                    let known = &known[..if j < written { 2 } else { 1 }];
                    assert!(known.iter().any(|known| text.starts_with(known)), "{name} over {other}: {text}");
                }
                for address in [end.next_multiple_of(8), start - *size as u64] {
                    assert_eq!(with(i, address), Ok(()), "{name} beside {other}");
                }
            }
        }
    }
}
