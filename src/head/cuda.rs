//! The head loss on CUDA: checks, addresses, launches.

use cudarc::driver::{DevicePtr, DevicePtrMut, DeviceSlice};

use super::launch::{
    HeadArgs, HeadLevel, MAX_ANCHORS, Strides, head_units, launch_head_losses, launch_head_positives,
};
use super::workspace::HeadWorkspace;
use super::{BoxWeight, Gradients, HeadCall, HeadLoss, HeadMemory, Layout, Layouts, Level, Logits, Points};
use crate::call::check_options;
use crate::cuda::args::DeviceAddress;
use crate::cuda::{
    Device, Handle, LabelBuffer, Pass, Prepared, Scalar, StatusBlock, Storage, StorageElement, Units,
};
use crate::error::{Error, Result};
use crate::reduction::Reduction;

impl HeadMemory for Device {
    type Workspace<'a> = &'a mut HeadWorkspace;
    type Normalisers = bool;
}

impl HeadLoss {
    /// A call on CUDA: as [`cpu`](Self::cpu), with device buffers. Losses and gradients take two
    /// launches: the first looks at labels and positives, the second at everything else. The number
    /// of positives never leaves the device.
    ///
    /// Fastest where 16 bytes at a time can be read and written: along positions if a level has a
    /// multiple of 4 of them (of 8 in f16 and bf16), or along channels if there are so many classes.
    /// In f16 and bf16 8 bytes at a time do nearly as well. Other levels, mostly small ones, go logit
    /// by logit, with as many on their way.
    ///
    /// Calls with α, class weights, element weights or scores take the kernels of any β, also at β 2. By
    /// position class weights cost next to nothing there; by channel, and with element weights or scores,
    /// logits go one by one.
    ///
    /// Boxes of positives are computed in f64, as on the CPU. GeForce GPUs do that at a 64th of their
    /// rate: by arithmetic, not measured, 20 to 40 us for a batch of 16.
    ///
    /// ```no_run
    /// use gfocal::HeadLoss;
    /// use gfocal::cuda::{self, Device, Handle, LabelBuffer};
    /// use gfocal::head::{Gradients, HeadWorkspace, Layout, Level, Logits, Points, Targets};
    ///
    /// let stream = cuda::context(0)?.default_stream();
    /// let (handle, head) = (Handle::new(&stream)?, HeadLoss::mmdetection());
    /// let (batch, classes, side) = (16, 80, 40); // one level of 40 x 40 positions, stride 16
    /// let (positions, box_channels) = (side * side, head.box_channels());
    /// let mut workspace = HeadWorkspace::new(&handle, batch, positions)?; // made once
    ///
    /// let cls = stream.alloc_zeros::<f32>(batch * classes * positions)?; // yours, from the network
    /// let boxes = stream.alloc_zeros::<f32>(batch * box_channels * positions)?;
    /// let labels = stream.alloc_zeros::<i64>(batch * positions)?; // yours, from the assigner
    /// let targets = stream.alloc_zeros::<f32>(batch * positions * 4)?;
    /// let mut losses = stream.alloc_zeros::<f32>(3)?;
    /// let mut grad_cls = stream.alloc_zeros::<f32>(batch * classes * positions)?;
    /// let mut grad_boxes = stream.alloc_zeros::<f32>(batch * box_channels * positions)?;
    ///
    /// let levels: [Level<Device, f32>; 1] = [Level {
    ///     height: side,
    ///     width: side,
    ///     stride: 16.0,
    ///     points: Points::Grid { offset: 0.0 },
    ///     logits: Logits::Separate { cls: &cls, boxes: &boxes },
    ///     cls_layout: Layout::nchw(classes, positions),
    ///     box_layout: Layout::nchw(box_channels, positions),
    ///     targets: Targets::<Device>::new(LabelBuffer::I64(&labels), &targets),
    /// }];
    /// let mut gradients: [Gradients<Device, f32>; 1] =
    ///     [Gradients::Separate { cls: &mut grad_cls, boxes: &mut grad_boxes }];
    /// head.cuda(&handle, &mut workspace, batch, classes, &levels)
    ///     .forward_backward(&mut losses, &mut gradients)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn cuda<'a, 'l, T: StorageElement, U: StorageElement>(
        &'a self,
        handle: &'a Handle,
        workspace: &'a mut HeadWorkspace,
        batch: usize,
        classes: usize,
        levels: &'a [Level<'l, Device, T, U>],
    ) -> HeadCall<'a, 'l, Device, T, U> {
        HeadCall::new(self, handle, workspace, batch, classes, levels)
    }

    /// The kernels that calls need, for [`Handle::prepare`]. `storage` is the type of the class logits; that
    /// of box logits makes no difference. Calls with weights of classes or elements, or scores, need
    /// [others](Self::units_with_weights).
    pub fn units(&self, storage: Storage, pass: Pass) -> Units {
        head_units(self.qfl.beta as f32, self.qfl.alpha.is_some(), storage, pass)
    }

    /// The kernels that calls with [`HeadCall::class_weights`], [`Targets::scores`](super::Targets::scores) or
    /// [`Targets::element_weights`](super::Targets::element_weights) need.
    pub fn units_with_weights(&self, storage: Storage, pass: Pass) -> Units {
        head_units(self.qfl.beta as f32, true, storage, pass)
    }
}

impl<'a, T: StorageElement, U: StorageElement> HeadCall<'a, '_, Device, T, U> {
    /// Weights of the classes in the classification loss, `[C]`; 0 masks a class, whatever its logits
    /// hold. The default is all ones.
    pub fn class_weights(mut self, weights: &'a impl DevicePtr<f32>) -> Self {
        self.class_weights = Some(weights);
        self
    }

    /// Gradients with respect to the losses, `[levels, 3]`, which multiply those of the logits, as
    /// [`grad_scale`](Self::grad_scale) does. The default is all ones: the gradient of the sum of
    /// all losses.
    pub fn upstream(mut self, upstream: &'a impl DevicePtr<f32>) -> Self {
        self.upstream = Some(upstream);
        self
    }

    /// A flag, `[1]`, that is set to 1 if a stored gradient is inf or NaN, and is otherwise left
    /// as it is.
    pub fn found_inf(mut self, found_inf: &'a mut impl DevicePtrMut<f32>) -> Self {
        self.found_inf = Some(found_inf);
        self
    }

    /// Where labels, qualities and targets that cannot be used are counted.
    pub fn status(mut self, status: &'a mut StatusBlock) -> Self {
        self.status = Some(status);
        self
    }

    /// Phase two alone: what to divide by is in the workspace already, where
    /// [`normalisers`](Self::normalisers) or [`forward`](Self::forward) of the same inputs has left
    /// it, and perhaps an all-reduce has averaged it since. The status is phase one's.
    pub fn normalised(mut self) -> Self {
        self.normalisers = true;
        self
    }

    /// Enqueues phase one alone, which leaves what to divide by in
    /// [`HeadWorkspace::normalisers`].
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn normalisers(self) -> Result<()> {
        self.run(false, None, None)
    }

    /// Enqueues the losses, `[levels, 3]`: classification, box and distribution loss of each
    /// level, whose sum is the loss.
    ///
    /// # Errors
    /// If a length does not fit a shape, a layout does not fit a buffer, the workspace is too
    /// small, a buffer is in another context, an option is outside its range, or the driver
    /// refuses a launch.
    pub fn forward(self, losses: &mut impl DevicePtrMut<f32>) -> Result<()> {
        self.run(true, Some(losses), None)
    }

    /// Enqueues the losses and the gradients of both outputs, with `gradients` in the order of the
    /// levels.
    ///
    /// # Errors
    /// As [`forward`](Self::forward), and if places in a gradient overlap.
    pub fn forward_backward(
        self,
        losses: &mut impl DevicePtrMut<f32>,
        gradients: &mut [Gradients<'_, Device, T, U>],
    ) -> Result<()> {
        self.run(true, Some(losses), Some(gradients))
    }

    /// Enqueues the gradients alone, those of [`forward_backward`](Self::forward_backward) to the bit.
    /// After a forward pass on the same inputs [`normalised`](Self::normalised) makes it one launch,
    /// which looks at no anchor twice: the workspace has kept what there is to know of them.
    ///
    /// ```no_run
    /// # #![allow(dead_code)]
    /// # use gfocal::{HeadLoss, cuda::{Device, Handle}, head::{Gradients, HeadWorkspace, Level}};
    /// # use gfocal::cudarc::driver::CudaSlice;
    /// # fn step(
    /// #     head: HeadLoss,
    /// #     handle: &Handle,
    /// #     workspace: &mut HeadWorkspace,
    /// #     levels: &[Level<Device, f32>],
    /// #     losses: &mut CudaSlice<f32>,
    /// #     upstream: &CudaSlice<f32>,
    /// #     gradients: &mut [Gradients<Device, f32>],
    /// # ) -> gfocal::Result<()> {
    /// head.cuda(handle, workspace, 16, 80, levels).forward(losses)?;
    /// // Later, when the gradients with respect to the losses have come:
    /// head.cuda(handle, workspace, 16, 80, levels).normalised().upstream(upstream).backward(gradients)?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`forward_backward`](Self::forward_backward).
    pub fn backward(self, gradients: &mut [Gradients<'_, Device, T, U>]) -> Result<()> {
        self.run(true, None, Some(gradients))
    }

    fn run(
        mut self,
        phase_two: bool,
        losses: Option<&mut dyn DevicePtrMut<f32>>,
        gradients: Option<&mut [Gradients<'_, Device, T, U>]>,
    ) -> Result<()> {
        self.check(losses.as_deref().map(DeviceSlice::len), gradients.as_deref())?;
        let anchors = self.levels.iter().map(|level| self.batch * level.positions()).sum();
        self.workspace.check(self.batch, anchors)?;

        let layouts: Vec<Layouts> = (0..self.levels.len()).map(|i| self.layouts_of_gradients(i)).collect();
        let (handle, normalised) = (self.backend, self.normalisers);
        let pass = gradients.as_ref().map_or(Pass::Forward, |_| Pass::ForwardBackward);
        let stream = handle.stream();
        let mut prepared = Prepared::on(handle)?;
        let mut args = self.args();
        let (status, found_inf) = (self.status.as_deref_mut(), self.found_inf.as_deref_mut());
        args.grad_scale = match &self.grad_scale {
            Scalar::Host(_) => 0,
            Scalar::Device(scale) => prepared.read("grad_scale", Some(*scale), stream)?,
        };
        args.found_inf = prepared.write("found_inf", found_inf, stream)?;
        let status = status.map(|status| status.buffer_mut() as &mut dyn DevicePtrMut<u64>);
        args.status = prepared.write("status", status, stream)?;
        args.losses = prepared.write("losses", losses, stream)?;
        args.upstream = prepared.read("upstream", self.upstream, stream)?;
        args.class_weights = prepared.read("class_weights", self.class_weights, stream)?;
        let HeadWorkspace { memory, normalisers, layout, .. } = self.workspace;
        let normalisers = prepared.write("workspace", Some(normalisers), stream)?;
        args.use_layout(layout, prepared.write("workspace", Some(memory), stream)?, normalisers);

        for (level, to) in self.levels.iter().zip(&mut args.levels) {
            let (cls, boxes) = match level.logits {
                Logits::Separate { cls, boxes } => (
                    prepared.read("cls_logits", Some(cls), stream)?,
                    prepared.read("box_logits", Some(boxes), stream)?,
                ),
                Logits::Joint(both) => {
                    let both = prepared.read("logits", Some(both), stream)?;
                    (both, both)
                }
            };
            (to.cls, to.boxes) =
                (at::<T>(cls, level.cls_layout.offset), at::<U>(boxes, level.box_layout.offset));
            let targets = &level.targets;
            let (labels, labels_are_i64) = prepared.read_labels(targets.labels, stream)?;
            (to.labels, to.labels_are_i64) = (labels, labels_are_i64.into());
            to.label_weights = prepared.read("label_weights", targets.label_weights, stream)?;
            to.targets = prepared.read("boxes", Some(targets.boxes), stream)?;
            if self.head.reads_quality(targets.scores.is_some()) {
                to.quality = prepared.read("quality", targets.quality, stream)?;
            }
            to.box_weights = prepared.read("box_weights", targets.box_weights, stream)?;
            if self.head.box_weight == BoxWeight::Given {
                to.box_scores = prepared.read("box_scores", targets.box_scores, stream)?;
            }
            to.scores = prepared.read("scores", targets.scores, stream)?;
            to.element_weights = prepared.read("element_weights", targets.element_weights, stream)?;
            if let Points::Explicit(points) = level.points {
                to.points = prepared.read("points", Some(points), stream)?;
                to.points_of_batch = (points.len() != 2 * level.positions()).into();
            }
        }
        let mut buffers = (0, 0);
        for (i, gradients) in gradients.into_iter().flatten().enumerate() {
            let (cls, boxes) = match gradients {
                Gradients::Shared => buffers,
                Gradients::Separate { cls, boxes } => (
                    prepared.write_of_level("cls_logits' gradient", &mut **cls, stream)?,
                    prepared.write_of_level("box_logits' gradient", &mut **boxes, stream)?,
                ),
                Gradients::Joint(both) => {
                    let both = prepared.write_of_level("the gradient", &mut **both, stream)?;
                    (both, both)
                }
            };
            buffers = (cls, boxes);
            let (level, to) = (&self.levels[i], &mut args.levels[i]);
            let of_gradients = layouts[i];
            to.grad_cls = at::<T>(cls, of_gradients.cls.offset);
            to.grad_boxes = at::<U>(boxes, of_gradients.boxes.offset);
            to.grad_cls_strides = strides(of_gradients.cls, level.positions());
            to.grad_box_strides = strides(of_gradients.boxes, level.positions());
        }
        prepared.check_overlaps()?;

        let raw = stream.cu_stream().cast();
        if !normalised {
            // SAFETY: HeadLoss::check has compared every length and every layout with the shapes,
            // HeadWorkspace::check the workspace, and Prepared every context with the stream's and
            // the places of the buffers; Prepared keeps the buffers borrowed until the launch is enqueued, and cudarc orders
            // what other streams do with them.
            unsafe { launch_head_positives(handle.kernels(), T::STORAGE, &args, raw)? };
        }
        if phase_two {
            // SAFETY: as above. What phase one leaves in the workspace are numbers that phase two
            // compares with sizes before it uses them.
            unsafe { launch_head_losses(handle.kernels(), T::STORAGE, pass, &args, raw)? };
        }
        Ok(())
    }

    /// The parameters that are numbers.
    fn args(&self) -> HeadArgs {
        let mut args = HeadArgs {
            host_grad_scale: match self.grad_scale {
                Scalar::Host(scale) => scale,
                Scalar::Device(_) => 1.0,
            },
            level_count: self.levels.len() as u32,
            batch: self.batch as u32,
            classes: self.classes as u32,
            box_storage: U::STORAGE as u32,
            ..HeadArgs::of(self.head)
        };
        for (level, to) in self.levels.iter().zip(&mut args.levels) {
            *to = level_args(level);
        }
        args.number_anchors();
        args
    }

    fn check(&self, losses: Option<usize>, gradients: Option<&[Gradients<Device, T, U>]>) -> Result<()> {
        let (host, device) = match self.grad_scale {
            Scalar::Host(scale) => (Some(scale), None),
            Scalar::Device(scale) => (None, Some(scale.len())),
        };
        check_options(&Reduction::<f64>::Sum, false, host)?;
        self.check_sizes(LabelBuffer::len, losses, gradients)?;
        if let Some(actual) = device.filter(|&len| len != 1) {
            return Err(Error::LevelTensors { tensor: "grad_scale", actual, expected: 1 });
        }
        // What the kernels count in 32 bits.
        for level in self.levels {
            if self.batch.saturating_mul(level.positions()) > MAX_ANCHORS {
                return Err(Error::ShapeOverflow { shape: [self.batch, level.positions()] });
            }
        }
        if self.batch > MAX_ANCHORS {
            return Err(Error::ShapeOverflow { shape: [self.batch, 0] });
        }
        Ok(())
    }
}

/// The address of an element of a buffer.
fn at<T>(base: DeviceAddress, offset: usize) -> DeviceAddress {
    base + (offset * size_of::<T>()) as u64
}

fn strides(layout: Layout, positions: usize) -> Strides {
    let Layout { batch, channel, position, .. } = layout;
    let [batch, channel, position] = [batch, channel, position].map(|step| step as u64);
    Strides { batch, channel, position, row_gap: layout.row_gap(positions) }
}

/// The parameters of a level that are not addresses.
fn level_args<T: StorageElement, U: StorageElement>(level: &Level<Device, T, U>) -> HeadLevel {
    let positions = level.positions();
    HeadLevel {
        cls_strides: strides(level.cls_layout, positions),
        box_strides: strides(level.box_layout, positions),
        stride: level.stride,
        inverse_stride: 1.0 / level.stride,
        grid_offset: match level.points {
            Points::Grid { offset } => offset,
            Points::Explicit(_) => 0.0,
        },
        positions: level.positions() as u32,
        width: level.width as u32,
        ..HeadLevel::default()
    }
}
