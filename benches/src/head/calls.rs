//! The calls, on the CPU and on CUDA.

use std::sync::Arc;

use gfocal::Result;
use gfocal::cuda::{Device, Handle, LabelBuffer, check};
use gfocal::cudarc::driver::{CudaSlice, CudaStream};
use gfocal::head::{Gradients, HeadWorkspace, LOSSES, Layout, Level, Logits, Points, Targets};
use gfocal::{HeadLoss, Host, Memory};

use super::data::{Inputs, LevelInputs};
use super::pyramid::{BINS, LevelSize, SIDES};
use crate::op::Pass;
use crate::random::Stored;
use crate::workload::{Calls, Set};

/// What a pass gives.
pub struct Outcome<T> {
    /// `[levels, 3]`: classification, box and distribution loss.
    pub losses: Vec<f32>,
    /// Of the class logits and of the box logits of each level.
    pub grads: Vec<[Vec<T>; 2]>,
}

/// Inputs on the CPU, and where the results go.
pub struct HeadCalls<'a, T> {
    inputs: &'a Inputs<T>,
    losses: Vec<f32>,
    grads: Vec<[Vec<T>; 2]>,
}

impl<'a, T: Stored> HeadCalls<'a, T> {
    pub fn new(inputs: &'a Inputs<T>) -> Self {
        let nans = |tensor: &Vec<T>| vec![T::from_f64(f64::NAN); tensor.len()];
        let grads = inputs.levels.iter().map(|level| [&level.cls, &level.boxes].map(nans)).collect();
        HeadCalls { inputs, losses: vec![f32::NAN; LOSSES * inputs.levels.len()], grads }
    }
}

impl<T: Stored> LevelInputs<T> {
    fn on_host(&self, classes: usize) -> Level<'_, Host, T> {
        let logits = Logits::Separate { cls: &self.cls[..], boxes: &self.boxes[..] };
        let targets = Targets {
            label_weights: Some(&self.label_weights[..]),
            ..Targets::new(self.labels[..].into(), &self.targets[..])
        };
        level(self.size, classes, logits, targets)
    }
}

impl<T: Stored> Calls for HeadCalls<'_, T> {
    type Outcome = Outcome<T>;

    fn run(&mut self, pass: Pass) -> Result<()> {
        let Inputs { images, classes, grad_scale, levels } = self.inputs;
        let levels: Vec<Level<Host, T>> = levels.iter().map(|level| level.on_host(*classes)).collect();
        let head = HeadLoss::mmdetection();
        let call = head.cpu(*images, *classes, &levels).grad_scale(*grad_scale);
        match pass {
            Pass::Forward => call.forward(&mut self.losses)?,
            Pass::ForwardBackward | Pass::Backward => {
                let mut gradients: Vec<_> = self
                    .grads
                    .iter_mut()
                    .map(|[cls, boxes]| -> Gradients<Host, T> { Gradients::Separate { cls, boxes } })
                    .collect();
                call.forward_backward(&mut self.losses, &mut gradients)?
            }
        };
        Ok(())
    }

    fn outcome(&mut self, pass: Pass) -> Result<Outcome<T>> {
        self.losses.fill(f32::NAN);
        self.grads.iter_mut().flatten().for_each(|grad| grad.fill(T::from_f64(f64::NAN)));
        self.run(pass)?;
        Ok(Outcome { losses: self.losses.clone(), grads: self.grads.clone() })
    }
}

/// The tensors of a call on CUDA.
pub struct HeadSet<T> {
    images: usize,
    classes: usize,
    grad_scale: f64,
    levels: Vec<LevelSet<T>>,
    losses: CudaSlice<f32>,
    grads: Vec<[CudaSlice<T>; 2]>,
    /// Each set has its own, since one is as cold as the rest of a step's memory.
    workspace: HeadWorkspace,
}

struct LevelSet<T> {
    size: LevelSize,
    cls: CudaSlice<T>,
    boxes: CudaSlice<T>,
    labels: CudaSlice<i64>,
    label_weights: CudaSlice<f32>,
    targets: CudaSlice<f32>,
}

impl<T: Stored> HeadSet<T> {
    pub fn new(handle: &Handle, inputs: &Inputs<T>) -> Result<HeadSet<T>> {
        let stream = handle.stream();
        let anchors = inputs.levels.iter().map(|level| level.size.positions()).sum();
        let levels = inputs.levels.iter().map(|level| LevelSet::new(stream, level));
        let zeros = |tensor: &[T]| check("cuMemAllocAsync", stream.alloc_zeros(tensor.len()));
        let grads = inputs.levels.iter().map(|level| Ok([zeros(&level.cls)?, zeros(&level.boxes)?]));
        Ok(HeadSet {
            images: inputs.images,
            classes: inputs.classes,
            grad_scale: inputs.grad_scale,
            levels: levels.collect::<Result<_>>()?,
            losses: check("cuMemAllocAsync", stream.alloc_zeros(LOSSES * inputs.levels.len()))?,
            grads: grads.collect::<Result<_>>()?,
            workspace: HeadWorkspace::new(handle, inputs.images, anchors)?,
        })
    }
}

impl<T: Stored> LevelSet<T> {
    fn new(stream: &Arc<CudaStream>, inputs: &LevelInputs<T>) -> Result<LevelSet<T>> {
        let floats = |numbers: &[f32]| check("cuMemcpyHtoDAsync", stream.clone_htod(numbers));
        let stored = |numbers: &[T]| check("cuMemcpyHtoDAsync", stream.clone_htod(numbers));
        Ok(LevelSet {
            size: inputs.size,
            cls: stored(&inputs.cls)?,
            boxes: stored(&inputs.boxes)?,
            labels: check("cuMemcpyHtoDAsync", stream.clone_htod(&inputs.labels))?,
            label_weights: floats(&inputs.label_weights)?,
            targets: floats(&inputs.targets)?,
        })
    }

    fn on_device(&self, classes: usize) -> Level<'_, Device, T> {
        let logits: Logits<Device, T> = Logits::Separate { cls: &self.cls, boxes: &self.boxes };
        let targets = Targets::<Device> {
            label_weights: Some(&self.label_weights),
            ..Targets::<Device>::new(LabelBuffer::I64(&self.labels), &self.targets)
        };
        level(self.size, classes, logits, targets)
    }
}

impl<T: Stored> Set for HeadSet<T> {
    type Outcome = Outcome<T>;

    fn launch(&mut self, handle: &Handle, pass: Pass) -> Result<()> {
        let HeadSet { images, classes, grad_scale, levels, losses, grads, workspace } = self;
        let levels: Vec<Level<Device, T>> = levels.iter().map(|level| level.on_device(*classes)).collect();
        let head = HeadLoss::mmdetection();
        let call = head.cuda(handle, workspace, *images, *classes, &levels).grad_scale(*grad_scale);
        match pass {
            Pass::Forward => call.forward(losses),
            Pass::ForwardBackward | Pass::Backward => {
                let mut gradients: Vec<_> = grads
                    .iter_mut()
                    .map(|[cls, boxes]| -> Gradients<Device, T> { Gradients::Separate { cls, boxes } })
                    .collect();
                call.forward_backward(losses, &mut gradients)
            }
        }
    }

    fn clear(&mut self, stream: &Arc<CudaStream>) -> Result<()> {
        let losses = vec![f32::NAN; self.losses.len()];
        check("cuMemcpyHtoDAsync", stream.memcpy_htod(&losses, &mut self.losses))?;
        self.grads.iter_mut().flatten().try_for_each(|grad| {
            let nans = vec![T::from_f64(f64::NAN); grad.len()];
            check("cuMemcpyHtoDAsync", stream.memcpy_htod(&nans, grad))
        })
    }

    fn outcome(&self, stream: &Arc<CudaStream>) -> Result<Outcome<T>> {
        let download = |grad: &CudaSlice<T>| check("cuMemcpyDtoHAsync", stream.clone_dtoh(grad));
        let losses = check("cuMemcpyDtoHAsync", stream.clone_dtoh(&self.losses))?;
        let grads = self
            .grads
            .iter()
            .map(|[cls, boxes]| Ok([download(cls)?, download(boxes)?]))
            .collect::<Result<_>>()?;
        check("cuStreamSynchronize", stream.synchronize())?;
        Ok(Outcome { losses, grads })
    }
}

/// Outputs as convolutions give them, for anchor points where mmdetection has them.
fn level<'a, M: Memory, T: Stored>(
    LevelSize { height, width, stride }: LevelSize,
    classes: usize,
    logits: Logits<'a, M, T>,
    targets: Targets<'a, M>,
) -> Level<'a, M, T> {
    let positions = height * width;
    Level {
        height,
        width,
        stride,
        points: Points::Grid { offset: 0.0 },
        logits,
        cls_layout: Layout::nchw(classes, positions),
        box_layout: Layout::nchw(SIDES * BINS, positions),
        targets,
    }
}
