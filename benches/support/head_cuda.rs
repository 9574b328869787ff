//! The head loss on a GPU.

use gfocal::cuda::{Device, Handle, LabelBuffer, StorageElement, check};
use gfocal::cudarc::driver::{CudaSlice, DeviceRepr, ValidAsZeroBits};
use gfocal::head::{Gradients, HeadWorkspace, LOSSES, Level, Logits, Targets};
use gfocal::{HeadLoss, Result};

use super::CLASSES;
use super::cuda::Set;
use super::head::{Inputs, anchors, level};

/// The tensors of a step.
pub struct HeadSet<T> {
    images: usize,
    levels: Vec<LevelSet<T>>,
    losses: CudaSlice<f32>,
    grads: Vec<[CudaSlice<T>; 2]>,
    workspace: HeadWorkspace,
}

struct LevelSet<T> {
    cls: CudaSlice<T>,
    boxes: CudaSlice<T>,
    labels: CudaSlice<i64>,
    targets: CudaSlice<f32>,
}

impl<T: StorageElement + DeviceRepr + ValidAsZeroBits> HeadSet<T> {
    pub fn new(handle: &Handle, inputs: &Inputs<T>) -> Result<HeadSet<T>> {
        let (stream, images) = (handle.stream(), inputs.images);
        let upload = |numbers: &[T]| check("cuMemcpyHtoDAsync", stream.clone_htod(numbers));
        let zeros = |tensor: &[T]| check("cuMemAllocAsync", stream.alloc_zeros(tensor.len()));
        let levels = inputs.levels.iter().map(|level| {
            Ok(LevelSet {
                cls: upload(&level.cls)?,
                boxes: upload(&level.boxes)?,
                labels: check("cuMemcpyHtoDAsync", stream.clone_htod(&level.labels))?,
                targets: check("cuMemcpyHtoDAsync", stream.clone_htod(&level.targets))?,
            })
        });
        let grads = inputs.levels.iter().map(|level| Ok([zeros(&level.cls)?, zeros(&level.boxes)?]));
        Ok(HeadSet {
            images,
            levels: levels.collect::<Result<_>>()?,
            losses: check("cuMemAllocAsync", stream.alloc_zeros(LOSSES * inputs.levels.len()))?,
            grads: grads.collect::<Result<_>>()?,
            workspace: HeadWorkspace::new(handle, images, anchors(1))?,
        })
    }
}

impl<T: StorageElement> LevelSet<T> {
    fn on_device(&self, at: usize) -> Level<'_, Device, T> {
        let logits: Logits<Device, T> = Logits::Separate { cls: &self.cls, boxes: &self.boxes };
        let labels = LabelBuffer::I64(&self.labels);
        level(at, logits, Targets::<Device>::new(labels, &self.targets))
    }
}

impl<T: StorageElement> Set for HeadSet<T> {
    fn launch(&mut self, handle: &Handle, with_grad: bool) -> Result<()> {
        let HeadSet { images, levels, losses, grads, workspace } = self;
        let levels: Vec<_> = levels.iter().enumerate().map(|(at, level)| level.on_device(at)).collect();
        let head = HeadLoss::mmdetection();
        let call = head.cuda(handle, workspace, *images, CLASSES, &levels);
        if !with_grad {
            return call.forward(losses);
        }
        let gradients = grads.iter_mut();
        let mut gradients: Vec<_> = gradients
            .map(|[cls, boxes]| -> Gradients<Device, T> { Gradients::Separate { cls, boxes } })
            .collect();
        call.forward_backward(losses, &mut gradients)
    }

    fn losses(&self) -> &CudaSlice<f32> {
        &self.losses
    }
}
