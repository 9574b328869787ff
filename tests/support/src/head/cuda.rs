//! Runs a scene on CUDA.

use gfocal::cuda::{Device, LabelBuffer, StatusBlock};
use gfocal::cudarc::driver::{CudaView, CudaViewMut, DevicePtr, DevicePtrMut};
use gfocal::head::{Gradients, HeadLoss, HeadWorkspace, Level, Logits, Normalisers, Points, Targets};
use gfocal::{Result, Status, decode};

use super::super::case::Pass;
use super::super::cpu::narrowed;
use super::super::gpu::{Buffer, Gpu, OnDevice};
use super::{BESIDE, POINTS, as_stored};
use super::{Buffers, FLAG_BEFORE, Form, GRAD_BEFORE, LevelScene, Mixed, Outcome, PointsAt, Scene};

/// What a call runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phases {
    Both,
    /// Phase one.
    Normalisers,
    /// Phase two, with what is in the workspace.
    Normalised,
}

/// The buffers of class and box tensor, or the one of both.
struct Pair<T, U>(Buffer<T>, Option<Buffer<U>>);

impl<T: OnDevice, U: OnDevice> Pair<T, U> {
    fn new(gpu: &Gpu, buffers: &Buffers<T, U>, offset: usize) -> Self {
        Pair(
            Buffer::new(gpu, &buffers.cls, offset),
            buffers.boxes.as_ref().map(|boxes| Buffer::new(gpu, boxes, offset)),
        )
    }

    fn write(&mut self, gpu: &Gpu, buffers: &Buffers<T, U>) {
        self.0.write(gpu, &buffers.cls);
        if let (Some(to), Some(from)) = (&mut self.1, &buffers.boxes) {
            to.write(gpu, from);
        }
    }
}

/// The tensors of a level on the device.
struct OfLevel<T, U> {
    placement: super::Placement,
    logits: Pair<T, U>,
    labels: Buffer<i64>,
    narrow: Buffer<i32>,
    beside: [Option<Buffer<f32>>; BESIDE],
}

/// A scene on the device, made once.
pub struct OnCuda<T, U = T> {
    form: Form,
    levels: Vec<OfLevel<T, U>>,
    grads: Vec<Pair<T, U>>,
    class_weights: Option<Buffer<f32>>,
    upstream: Option<Buffer<f32>>,
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

fn upload<T: OnDevice, U: OnDevice>(
    gpu: &Gpu,
    scene: &Scene,
    level: &LevelScene,
    form: Form,
    offset: usize,
) -> OfLevel<T, U> {
    let logits = Buffers::<T, U>::logits(scene, level, form);
    OfLevel {
        placement: logits.placement,
        logits: Pair::new(gpu, &logits, offset),
        labels: Buffer::new(gpu, &level.labels, offset),
        narrow: Buffer::new(gpu, &if scene.narrow { narrowed(&level.labels) } else { vec![] }, offset),
        beside: level.beside().map(|numbers| numbers.map(|numbers| Buffer::new(gpu, &numbers, offset))),
    }
}

/// The workspace that a scene needs.
pub fn workspace(gpu: &Gpu, scene: &Scene) -> HeadWorkspace {
    let anchors = scene.levels.iter().map(LevelScene::positions).sum();
    HeadWorkspace::new(&gpu.handle, scene.batch, anchors).expect("device memory")
}

/// Views of a level's tensors, which a call borrows.
struct Views<'a, T, U> {
    cls: CudaView<'a, T>,
    boxes: Option<CudaView<'a, U>>,
    labels: CudaView<'a, i64>,
    narrow: CudaView<'a, i32>,
    beside: [Option<CudaView<'a, f32>>; BESIDE],
}

impl<'a, T: OnDevice, U: OnDevice> Views<'a, T, U> {
    fn new(level: &'a OfLevel<T, U>) -> Self {
        let Pair(cls, boxes) = &level.logits;
        Views {
            cls: cls.view(),
            boxes: boxes.as_ref().map(Buffer::view),
            labels: level.labels.view(),
            narrow: level.narrow.view(),
            beside: level.beside.each_ref().map(|buffer| buffer.as_ref().map(Buffer::view)),
        }
    }

    fn level(&'a self, scene: &LevelScene, level: &OfLevel<T, U>, narrow: bool) -> Level<'a, Device, T, U> {
        let view = |i: usize| self.beside[i].as_ref().map(|view| view as &dyn DevicePtr<f32>);
        Level {
            height: scene.height,
            width: scene.width,
            stride: scene.stride,
            points: match (&scene.points, view(POINTS)) {
                (PointsAt::Explicit(_), Some(points)) => Points::Explicit(points),
                (PointsAt::Grid(offset), _) => Points::Grid { offset: *offset },
                (PointsAt::Explicit(_), None) => unreachable!("they were uploaded"),
            },
            logits: match &self.boxes {
                None => Logits::Joint(&self.cls as &dyn DevicePtr<T>),
                Some(boxes) => Logits::Separate { cls: &self.cls, boxes },
            },
            cls_layout: level.placement.cls,
            box_layout: level.placement.boxes,
            targets: Targets {
                label_weights: view(1),
                quality: view(2),
                box_weights: view(3),
                box_scores: view(4),
                scores: view(5),
                element_weights: view(6),
                ..Targets::<Device>::new(
                    if narrow { LabelBuffer::I32(&self.narrow) } else { LabelBuffer::I64(&self.labels) },
                    view(0).expect("box targets"),
                )
            },
        }
    }
}

type ViewsMut<'a, T, U> = (CudaViewMut<'a, T>, Option<CudaViewMut<'a, U>>);

fn gradients_of<'a, T: OnDevice, U: OnDevice>(
    (cls, boxes): &'a mut ViewsMut<'_, T, U>,
) -> Gradients<'a, Device, T, U> {
    match boxes {
        None => Gradients::Joint(cls as &mut dyn DevicePtrMut<T>),
        Some(boxes) => Gradients::Separate { cls, boxes },
    }
}

impl<T: OnDevice, U: OnDevice> OnCuda<T, U> {
    /// `offset`: how far the tensors are from where memory is aligned, in elements.
    pub fn new(gpu: &Gpu, scene: &Scene, form: Form, offset: usize) -> OnCuda<T, U> {
        let given = |numbers: &[f64]| Buffer::new(gpu, &as_stored(numbers), offset);
        OnCuda {
            form,
            levels: scene.levels.iter().map(|level| upload(gpu, scene, level, form, offset)).collect(),
            grads: (scene.levels.iter())
                .map(|level| {
                    Pair::new(gpu, &Buffers::filled(scene, level, scene.gradients(form), GRAD_BEFORE), offset)
                })
                .collect(),
            class_weights: scene.class_weights.as_deref().map(given),
            upstream: scene.upstream.as_deref().map(given),
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
            to.logits.write(gpu, &Buffers::logits(scene, level, self.form));
            to_grads.write(gpu, &Buffers::filled(scene, level, scene.gradients(self.form), GRAD_BEFORE));
            to.labels.write(gpu, &level.labels);
            if scene.narrow {
                to.narrow.write(gpu, &narrowed(&level.labels));
            }
            for (to, from) in to.beside.iter_mut().zip(level.beside()) {
                if let (Some(to), Some(from)) = (to, from) {
                    to.write(gpu, &from);
                }
            }
        }
        if let (Some(to), Some(from)) = (&mut self.class_weights, &scene.class_weights) {
            to.write(gpu, &as_stored(from));
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
        let views: Vec<Views<T, U>> = self.levels.iter().map(Views::new).collect();
        let class_weights = self.class_weights.as_ref().map(Buffer::view);
        let upstream = self.upstream.as_ref().map(Buffer::view);
        let layouts = scene.gradient_layouts();
        let levels: Vec<Level<Device, T, U>> = scene
            .levels
            .iter()
            .zip(&self.levels)
            .zip(&views)
            .map(|((level_scene, level), views)| views.level(level_scene, level, scene.narrow))
            .collect();
        let scale = self.grad_scale.view();
        let mut found_inf = self.found_inf.view_mut();
        let mut call = head.cuda(&gpu.handle, &mut self.workspace, scene.batch, scene.classes, &levels);
        if let Some(weights) = &class_weights {
            call = call.class_weights(weights);
        }
        if let Some(layouts) = &layouts {
            call = call.gradient_layouts(layouts);
        }
        if let Some(upstream) = &upstream {
            call = call.upstream(upstream);
        }
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
        let mut views: Vec<ViewsMut<T, U>> = (self.grads.iter_mut())
            .map(|Pair(cls, boxes)| (cls.view_mut(), boxes.as_mut().map(Buffer::view_mut)))
            .collect();
        let mut gradients: Vec<Gradients<Device, T, U>> = views.iter_mut().map(gradients_of).collect();
        match pass {
            Pass::Backward => call.backward(&mut gradients),
            _ => call.forward_backward(&mut losses, &mut gradients),
        }
    }

    /// What the call gave, once the stream has come to it.
    pub fn mixed_outcome(&self, gpu: &Gpu, scene: &Scene, pass: Pass) -> Mixed<T, U> {
        let read = |(level, Pair(cls, boxes)): (&LevelScene, &Pair<T, U>)| {
            let mut grads = Buffers::<T, U>::filled(scene, level, scene.gradients(self.form), GRAD_BEFORE);
            grads.cls = cls.read(gpu);
            grads.boxes = boxes.as_ref().map(|boxes| boxes.read(gpu));
            grads.read(GRAD_BEFORE)
        };
        let levels = scene.levels.iter().zip(&self.grads);
        let status: Status = self.status.read(&gpu.stream).expect("the stream's work ends well");
        Mixed {
            losses: if pass == Pass::Backward { vec![] } else { self.losses.read(gpu) },
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

impl<T: OnDevice> OnCuda<T> {
    /// Decodes the box logits, and takes the gradient of the boxes, both `[B, A, 4]`, to that of the logits.
    pub fn decode(
        &mut self,
        gpu: &Gpu,
        scene: &Scene,
        boxes: &mut Buffer<f32>,
        upstream: &Buffer<f32>,
    ) -> Result<()> {
        let views: Vec<Views<T, T>> = self.levels.iter().map(Views::new).collect();
        let levels = scene.levels.iter().zip(&self.levels).zip(&views);
        let levels: Vec<decode::Level<Device, T>> =
            levels.map(|((of, level), views)| (&views.level(of, level, false)).into()).collect();
        let (handle, coding, batch) = (&gpu.handle, scene.settings.coding(), scene.batch);
        decode::forward_cuda(handle, coding, batch, &levels, &mut boxes.view_mut())?;
        let mut grads: Vec<_> =
            self.grads.iter_mut().map(|Pair(cls, boxes)| boxes.as_mut().unwrap_or(cls).view_mut()).collect();
        let mut grads: Vec<_> = grads.iter_mut().map(|grad| grad as &mut dyn DevicePtrMut<T>).collect();
        let (upstream, mut flag) = (upstream.view(), self.found_inf.view_mut());
        decode::backward_cuda(handle, coding, batch, &levels, &upstream, &mut grads, Some(&mut flag))
    }

    pub fn outcome(&self, gpu: &Gpu, scene: &Scene, pass: Pass) -> Outcome<T> {
        self.mixed_outcome(gpu, scene, pass).into()
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
    run_mixed::<T, T>(gpu, scene, form, offset, pass).map(Outcome::from)
}

pub fn run_mixed<T: OnDevice, U: OnDevice>(
    gpu: &Gpu,
    scene: &Scene,
    form: Form,
    offset: usize,
    pass: Pass,
) -> Result<Mixed<T, U>> {
    let mut cuda = OnCuda::<T, U>::new(gpu, scene, form, offset);
    cuda.call(gpu, scene, pass, Phases::Both)?;
    Ok(cuda.mixed_outcome(gpu, scene, pass))
}
