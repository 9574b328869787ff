//! A training step of a detector's head: ground truth is assigned to anchors, and the raw outputs of all levels become
//! losses and gradients. Nothing is permuted, gathered or copied, and the host learns nothing on the way.
//!
//! ```text
//! cargo run --example 03_head
//! ```

use std::error::Error;
use std::sync::Arc;

use gfocal::assign::{AnchorGrid, AssignWorkspace, Atss, GroundTruth, LevelTargets};
use gfocal::cuda::{self, Device, Handle, LabelBuffer, StatusBlock};
use gfocal::cudarc::driver::{CudaSlice, CudaStream, DriverError};
use gfocal::head::{Gradients, HeadLoss, HeadWorkspace, LOSSES, Layout, Level, Logits, Points, Targets};

const BATCH: usize = 2;
const CLASSES: usize = 80;
/// Positions in a row and in a column of each level, and pixels between them.
const LEVELS: [(usize, f64); 3] = [(20, 8.0), (10, 16.0), (5, 32.0)];

/// What the network gave for a level (NCHW), its targets, and its gradients.
struct Tensors {
    logits: [CudaSlice<f32>; 2],
    labels: CudaSlice<i64>,
    boxes: CudaSlice<f32>,
    grads: [CudaSlice<f32>; 2],
}

impl Tensors {
    fn new(stream: &Arc<CudaStream>, anchors: usize, box_channels: usize) -> Result<Tensors, DriverError> {
        let [cls, sides] = [CLASSES, box_channels].map(|channels| anchors * channels);
        Ok(Tensors {
            logits: [stream.clone_htod(&vec![-4.6; cls])?, stream.alloc_zeros(sides)?],
            labels: stream.alloc_zeros(anchors)?,
            boxes: stream.alloc_zeros(4 * anchors)?,
            grads: [stream.alloc_zeros(cls)?, stream.alloc_zeros(sides)?],
        })
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let stream = cuda::context(0)?.default_stream();
    let handle = Handle::new(&stream)?;
    let head = HeadLoss::mmdetection();
    let anchors = LEVELS.iter().map(|(size, _)| size * size).sum();
    let tensors = LEVELS.map(|(size, _)| Tensors::new(&stream, BATCH * size * size, head.box_channels()));
    let mut tensors = tensors.into_iter().collect::<Result<Vec<_>, _>>()?;
    let mut losses = stream.alloc_zeros::<f32>(LOSSES * LEVELS.len())?;
    // Two boxes in the first image, one in the second.
    let boxes = [[10.0f32, 20.0, 60.0, 90.0], [80.0, 30.0, 150.0, 140.0], [40.0, 40.0, 56.0, 60.0]];
    let boxes = stream.clone_htod(boxes.as_flattened())?;
    let (classes, images) = (stream.clone_htod(&[3i64, 17, 3])?, stream.clone_htod(&[0i64, 0, 1])?);
    // Made once, for the largest batch that there will be.
    let mut assign_workspace = AssignWorkspace::new(&stream, BATCH, anchors, 100)?;
    let mut workspace = HeadWorkspace::new(&handle, BATCH, anchors)?;
    let mut status = StatusBlock::new(&stream)?;

    // Which anchors are to become which box.
    let grids = LEVELS.map(|(size, stride)| AnchorGrid::new(size, size, stride as f32).into());
    let gt = GroundTruth::cuda(&boxes, &classes, &images);
    let mut targets: Vec<_> =
        (tensors.iter_mut()).map(|level| LevelTargets::cuda(&mut level.labels, &mut level.boxes)).collect();
    let (room, status_block) = (&mut assign_workspace, Some(&mut status));
    Atss::default().cuda(&handle, &grids, gt, BATCH, CLASSES, &mut targets, room, status_block)?;

    // Losses and gradients.
    let mut levels: Vec<Level<Device, f32>> = Vec::new();
    let mut gradients: Vec<Gradients<Device, f32>> = Vec::new();
    for (level, (size, stride)) in tensors.iter_mut().zip(LEVELS) {
        let ([cls, boxes], [grad_cls, grad_boxes]) = (&level.logits, &mut level.grads);
        levels.push(Level {
            height: size,
            width: size,
            stride,
            points: Points::Grid { offset: 0.0 },
            logits: Logits::Separate { cls, boxes },
            cls_layout: Layout::nchw(CLASSES, size * size),
            box_layout: Layout::nchw(head.box_channels(), size * size),
            targets: Targets::<Device>::new(LabelBuffer::I64(&level.labels), &level.boxes),
        });
        gradients.push(Gradients::Separate { cls: grad_cls, boxes: grad_boxes });
    }
    head.cuda(&handle, &mut workspace, BATCH, CLASSES, &levels)
        .grad_scale(1024.0)
        .status(&mut status)
        .forward_backward(&mut losses, &mut gradients)?;

    // Only reading waits.
    let [positives, weights] = stream.clone_dtoh(workspace.normalisers())?[..] else { unreachable!("two") };
    println!("{positives} positives, whose box weights are {weights:.4} in all");
    let losses = stream.clone_dtoh(&losses)?;
    for ((_, stride), [cls, boxes, sides]) in LEVELS.iter().zip(losses.as_chunks().0) {
        println!("stride {stride:2}: classification {cls:.6}, boxes {boxes:.6}, distributions {sides:.6}");
    }
    assert!(status.read(&stream)?.is_ok() && positives > 3.0 && losses.iter().all(|loss| loss.is_finite()));
    Ok(())
}
