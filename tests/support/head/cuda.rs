//! Runs a scene on CUDA.

use gfocal::cuda::{Device, LabelBuffer, StatusBlock};
use gfocal::cudarc::driver::{CudaView, CudaViewMut, DevicePtr, DevicePtrMut};
use gfocal::head::{Gradients, HeadLoss, HeadWorkspace, Level, Logits, Normalisers, Points, Targets};
use gfocal::{Result, Status};

use super::super::case::Pass;
use super::super::cpu::narrowed;
use super::super::gpu::{Buffer, Gpu, OnDevice};
use super::{Buffers, FLAG_BEFORE, Form, GRAD_BEFORE, LevelScene, Outcome, PointsAt, Scene};

/// What a call runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phases {
    Both,
    /// Phase one.
    Normalisers,
    /// Phase two, with what is in the workspace.
    Normalised,
}

/// The tensors of a level on the device.
struct OfLevel<T> {
    placement: super::Placement,
    logits: Vec<Buffer<T>>,
    labels: Buffer<i64>,
    narrow: Buffer<i32>,
    label_weights: Option<Buffer<f32>>,
    targets: Buffer<f32>,
    quality: Option<Buffer<f32>>,
    points: Option<Buffer<f32>>,
}

/// A scene on the device, made once.
pub struct OnCuda<T> {
    form: Form,
    levels: Vec<OfLevel<T>>,
    grads: Vec<Vec<Buffer<T>>>,
    losses: Buffer<f32>,
    found_inf: Buffer<f32>,
    grad_scale: Buffer<f32>,
    /// Give the gradient's scale by the device.
    device_scale: bool,
    status: StatusBlock,
    /// Do without `found_inf` and `status`.
    pub bare: bool,
    pub workspace: HeadWorkspace,
}

fn all<T: OnDevice>(gpu: &Gpu, buffers: &Buffers<T>, offset: usize) -> Vec<Buffer<T>> {
    buffers.buffers.iter().map(|buffer| Buffer::new(gpu, buffer, offset)).collect()
}

fn upload<T: OnDevice>(
    gpu: &Gpu,
    scene: &Scene,
    level: &LevelScene,
    form: Form,
    offset: usize,
) -> OfLevel<T> {
    let logits = Buffers::<T>::logits(scene, level, form);
    let floats = |values: &[f32]| Buffer::new(gpu, values, offset);
    OfLevel {
        placement: logits.placement,
        logits: all(gpu, &logits, offset),
        labels: Buffer::new(gpu, &level.labels, offset),
        narrow: Buffer::new(gpu, &if scene.narrow { narrowed(&level.labels) } else { vec![] }, offset),
        label_weights: level.label_weights.as_deref().map(floats),
        targets: floats(&level.box_targets),
        quality: level.quality.as_deref().map(floats),
        points: match &level.points {
            PointsAt::Grid(_) => None,
            PointsAt::Explicit(points) => Some(floats(points)),
        },
    }
}

/// The workspace that a scene needs.
pub fn workspace(gpu: &Gpu, scene: &Scene) -> HeadWorkspace {
    let anchors = scene.levels.iter().map(LevelScene::positions).sum();
    HeadWorkspace::new(&gpu.handle, scene.batch, anchors).expect("device memory")
}

/// Views of a level's tensors, which a call borrows.
struct Views<'a, T> {
    logits: Vec<CudaView<'a, T>>,
    labels: CudaView<'a, i64>,
    narrow: CudaView<'a, i32>,
    label_weights: Option<CudaView<'a, f32>>,
    targets: CudaView<'a, f32>,
    quality: Option<CudaView<'a, f32>>,
    points: Option<CudaView<'a, f32>>,
}

impl<'a, T: OnDevice> Views<'a, T> {
    fn new(level: &'a OfLevel<T>) -> Self {
        Views {
            logits: level.logits.iter().map(Buffer::view).collect(),
            labels: level.labels.view(),
            narrow: level.narrow.view(),
            label_weights: level.label_weights.as_ref().map(Buffer::view),
            targets: level.targets.view(),
            quality: level.quality.as_ref().map(Buffer::view),
            points: level.points.as_ref().map(Buffer::view),
        }
    }

    fn level(&'a self, scene: &LevelScene, level: &OfLevel<T>, narrow: bool) -> Level<'a, Device, T> {
        fn view<'a>(buffer: &'a Option<CudaView<'a, f32>>) -> Option<&'a dyn DevicePtr<f32>> {
            buffer.as_ref().map(|view| view as &dyn DevicePtr<f32>)
        }
        Level {
            height: scene.height,
            width: scene.width,
            stride: scene.stride,
            points: match (&scene.points, &self.points) {
                (PointsAt::Explicit(_), Some(points)) => Points::Explicit(points as &dyn DevicePtr<f32>),
                (PointsAt::Grid(offset), _) => Points::Grid { offset: *offset },
                (PointsAt::Explicit(_), None) => unreachable!("they were uploaded"),
            },
            logits: match &self.logits[..] {
                [both] => Logits::Joint(both as &dyn DevicePtr<T>),
                [cls, boxes] => Logits::Separate { cls, boxes },
                _ => unreachable!("one or two"),
            },
            cls_layout: level.placement.cls,
            box_layout: level.placement.boxes,
            targets: Targets {
                label_weights: view(&self.label_weights),
                quality: view(&self.quality),
                ..Targets::new(
                    if narrow { LabelBuffer::I32(&self.narrow) } else { LabelBuffer::I64(&self.labels) },
                    &self.targets as &dyn DevicePtr<f32>,
                )
            },
        }
    }
}

fn gradients_of<'a, T: OnDevice>(views: &'a mut [CudaViewMut<'_, T>]) -> Gradients<'a, Device, T> {
    match views {
        [both] => Gradients::Joint(both as &mut dyn DevicePtrMut<T>),
        [cls, boxes] => Gradients::Separate { cls, boxes },
        _ => unreachable!("one or two"),
    }
}

impl<T: OnDevice> OnCuda<T> {
    /// `offset`: how far the tensors are from where memory is aligned, in elements.
    pub fn new(gpu: &Gpu, scene: &Scene, form: Form, offset: usize) -> OnCuda<T> {
        OnCuda {
            form,
            levels: scene.levels.iter().map(|level| upload(gpu, scene, level, form, offset)).collect(),
            grads: (scene.levels.iter())
                .map(|level| all(gpu, &Buffers::filled(scene, level, form, GRAD_BEFORE), offset))
                .collect(),
            losses: Buffer::poisoned(gpu, 3 * scene.levels.len(), offset),
            found_inf: Buffer::new(gpu, &[FLAG_BEFORE], 0),
            grad_scale: Buffer::new(gpu, &[scene.grad_scale as f32], 0),
            device_scale: offset % 2 == 1,
            status: StatusBlock::new(&gpu.stream).expect("device memory"),
            bare: false,
            workspace: workspace(gpu, scene),
        }
    }

    /// Takes the gradient's scale from the device.
    pub fn with_device_scale(self) -> Self {
        OnCuda { device_scale: true, ..self }
    }

    /// Writes another scene of the same sizes to the same addresses, and resets all outputs.
    pub fn refill(&mut self, gpu: &Gpu, scene: &Scene) {
        for ((level, to), to_grads) in scene.levels.iter().zip(&mut self.levels).zip(&mut self.grads) {
            let logits = Buffers::<T>::logits(scene, level, self.form);
            let grads = Buffers::<T>::filled(scene, level, self.form, GRAD_BEFORE);
            let pairs =
                to.logits.iter_mut().zip(&logits.buffers).chain(to_grads.iter_mut().zip(&grads.buffers));
            pairs.for_each(|(to, from)| to.write(gpu, from));
            to.labels.write(gpu, &level.labels);
            if scene.narrow {
                to.narrow.write(gpu, &narrowed(&level.labels));
            }
            to.targets.write(gpu, &level.box_targets);
            for (to, from) in
                [(&mut to.label_weights, &level.label_weights), (&mut to.quality, &level.quality)]
            {
                if let (Some(to), Some(from)) = (to, from) {
                    to.write(gpu, from);
                }
            }
            if let (Some(to), PointsAt::Explicit(from)) = (&mut to.points, &level.points) {
                to.write(gpu, from);
            }
        }
        self.losses.write(gpu, &vec![f32::NAN; 3 * scene.levels.len()]);
        self.found_inf.write(gpu, &[FLAG_BEFORE]);
        self.grad_scale.write(gpu, &[scene.grad_scale as f32]);
        self.status.reset(&gpu.stream).expect("a reset");
    }

    pub fn call(&mut self, gpu: &Gpu, scene: &Scene, pass: Pass, phases: Phases) -> Result<()> {
        let head = scene.settings.head()?;
        self.call_with(gpu, &head, scene, pass, phases)
    }

    pub fn call_with(
        &mut self,
        gpu: &Gpu,
        head: &HeadLoss,
        scene: &Scene,
        pass: Pass,
        phases: Phases,
    ) -> Result<()> {
        let views: Vec<Views<T>> = self.levels.iter().map(Views::new).collect();
        let levels: Vec<Level<Device, T>> = scene
            .levels
            .iter()
            .zip(&self.levels)
            .zip(&views)
            .map(|((level_scene, level), views)| views.level(level_scene, level, scene.narrow))
            .collect();
        let scale = self.grad_scale.view();
        let mut found_inf = self.found_inf.view_mut();
        let mut call = head.cuda(&gpu.handle, &mut self.workspace, scene.batch, scene.classes, &levels);
        if !self.bare {
            call = call.status(&mut self.status).found_inf(&mut found_inf);
        }
        let call =
            if self.device_scale { call.grad_scale(&scale) } else { call.grad_scale(scene.grad_scale) };
        let call = match phases {
            Phases::Both => call,
            Phases::Normalisers => return call.normalisers(),
            Phases::Normalised => call.normalised(),
        };
        let mut losses = self.losses.view_mut();
        if pass == Pass::Forward {
            return call.forward(&mut losses);
        }
        let mut views: Vec<Vec<CudaViewMut<T>>> =
            self.grads.iter_mut().map(|grads| grads.iter_mut().map(Buffer::view_mut).collect()).collect();
        let mut gradients: Vec<Gradients<Device, T>> =
            views.iter_mut().map(|views| gradients_of(views)).collect();
        call.forward_backward(&mut losses, &mut gradients)
    }

    /// What the call gave, once the stream has come to it.
    pub fn outcome(&self, gpu: &Gpu, scene: &Scene, pass: Pass) -> Outcome<T> {
        let read = |(level, from): (&LevelScene, &Vec<Buffer<T>>)| {
            let mut grads = Buffers::<T>::filled(scene, level, self.form, GRAD_BEFORE);
            for (to, from) in grads.buffers.iter_mut().zip(from) {
                *to = from.read(gpu);
            }
            grads.read(GRAD_BEFORE)
        };
        let levels = scene.levels.iter().zip(&self.grads);
        let status: Status = self.status.read(&gpu.stream).expect("the stream's work ends well");
        Outcome {
            losses: self.losses.read(gpu),
            grads: if pass == Pass::Forward { vec![] } else { levels.map(read).collect() },
            status,
            found_inf: self.found_inf.read(gpu)[0],
        }
    }

    /// What is in the workspace.
    pub fn normalisers(&self, gpu: &Gpu) -> Normalisers {
        let both = gpu.stream.clone_dtoh(self.workspace.normalisers()).expect("the stream's work ends well");
        Normalisers { positives: both[0].into(), box_weights: both[1].into() }
    }
}

/// A call of one kind on new buffers.
pub fn run<T: OnDevice>(
    gpu: &Gpu,
    scene: &Scene,
    form: Form,
    offset: usize,
    pass: Pass,
) -> Result<Outcome<T>> {
    let mut cuda = OnCuda::<T>::new(gpu, scene, form, offset);
    cuda.call(gpu, scene, pass, Phases::Both)?;
    Ok(cuda.outcome(gpu, scene, pass))
}
