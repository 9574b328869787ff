//! The head loss as an operation of candle's.

use candle_core::{Error, Result, Tensor};
use gfocal::head::{Gradients, HeadCall, LOSSES, Layouts, Level, Logits, Points as Of, Targets as OfLevel};
use gfocal::{Element, HeadLoss, Host};

use super::HeadOptions;
use super::level::{HeadLevel, HeldLevel};
use crate::pyramid::{axes, check_level, contiguous, layout};
use crate::record::{Op, Output, constant};
use crate::report::Report;
use crate::rows::check_dtype;
use crate::tensor::{
    Float, Held, Place, Tracked, beside, constant_like, for_floats, host, numbers, place, same_device,
    stored, wrap, zeros,
};

pub(crate) struct Head {
    loss: HeadLoss,
    levels: Vec<HeadLevel>,
    /// Images and classes.
    sizes: [usize; 2],
    class_weights: Option<Tensor>,
    report: Report,
    #[cfg(feature = "cuda")]
    number: u64,
}

impl Op for Head {
    const NAME: &'static str = "gfocal-head";

    fn forward(&self) -> Result<Output> {
        match place("levels[0].cls", &self.levels[0].cls)? {
            Place::Cpu => for_floats!("cls", self.levels[0].cls, T => {
                for_floats!("boxes", self.levels[0].boxes, U => self.on_cpu::<T, U>())
            }),
            #[cfg(feature = "cuda")]
            Place::Cuda(device) => crate::cuda::for_floats!("cls", self.levels[0].cls, T => {
                crate::cuda::for_floats!("boxes", self.levels[0].boxes, U => self.on_cuda::<T, U>(device))
            }),
        }
    }

    /// Those of the classes and of the boxes of each level.
    fn backward(&self, upstream: &Tensor) -> Result<Vec<Tensor>> {
        let upstream = upstream.contiguous()?;
        let layouts: Vec<_> = self.levels.iter().map(gradients_of).collect();
        let gradients = match place("cls", &upstream)? {
            Place::Cpu => for_floats!("cls", self.levels[0].cls, T => {
                for_floats!("boxes", self.levels[0].boxes, U => self.slopes_on_cpu::<T, U>(&upstream, &layouts))
            }),
            #[cfg(feature = "cuda")]
            Place::Cuda(device) => crate::cuda::for_floats!("cls", self.levels[0].cls, T => {
                crate::cuda::for_floats!("boxes", self.levels[0].boxes, U => {
                    self.slopes_on_cuda::<T, U>(&upstream, &layouts, device)
                })
            }),
        };
        Ok(gradients?.into_iter().map(constant).collect())
    }
}

/// Where the gradients of a level are: one after the other, in the order of the axes, wherever the logits are. candle
/// adds them to zeros that are so, which takes longer for any other order than gfocal does to write in this.
fn gradients_of(level: &HeadLevel) -> Layouts {
    Layouts { cls: contiguous(level.cls.dims()), boxes: contiguous(level.boxes.dims()) }
}

impl Head {
    pub fn new(loss: &HeadLoss, levels: &[HeadLevel], options: &HeadOptions) -> Result<Self> {
        let Some(first) = levels.first() else { return Err(Error::msg("there are no levels")) };
        check_dtype("levels[0].cls", &first.cls)?;
        check_dtype("levels[0].boxes", &first.boxes)?;
        let [batch, classes, ..] = axes("levels[0].cls", &first.cls, &first.points)?;
        let mut checked = Vec::with_capacity(levels.len());
        for (i, level) in levels.iter().enumerate() {
            let [name, cls, boxes] =
                [format!("levels[{i}]"), format!("levels[{i}].cls"), format!("levels[{i}].boxes")];
            let axes_of = axes(&cls, &level.cls, &level.points)?;
            check_level((&cls, &level.cls, classes), ("levels[0].cls", &first.cls))?;
            axes(&boxes, &level.boxes, &level.points)?;
            check_level((&boxes, &level.boxes, loss.box_channels()), ("levels[0].boxes", &first.boxes))?;
            let [of_cls, of_boxes] =
                [&level.cls, &level.boxes].map(|logits| [&logits.dims()[..1], &logits.dims()[2..]]);
            if of_cls != of_boxes {
                let (actual, expected) = (level.boxes.dims(), level.cls.dims());
                return Err(Error::msg(format!("{boxes} has shape {actual:?}, {cls} {expected:?}")));
            }
            same_device(&boxes, &level.boxes, (&cls, &level.cls))?;
            checked.push(level.checked(&name, axes_of)?);
        }
        let class_weights = options.class_weights.as_ref().map(|weights| {
            let like = ("levels[0].cls", &first.cls);
            let weights = constant_like("class_weights", weights, &[&[classes]], like, Tracked::Refused)?;
            numbers("class_weights", &weights, beside(first.cls.dtype()))
        });
        Ok(Head {
            loss: *loss,
            levels: checked,
            sizes: [batch, classes],
            class_weights: class_weights.transpose()?,
            report: options.report.clone(),
            #[cfg(feature = "cuda")]
            number: on_cuda::number(),
        })
    }

    fn hold(&self) -> Result<Vec<HeldLevel<'_>>> {
        self.levels.iter().map(HeadLevel::hold).collect()
    }

    fn levels_on_cpu<'h, T: Float, U: Float>(
        &self,
        held: &'h [HeldLevel<'_>],
    ) -> Result<Vec<Level<'h, Host, T, U>>> {
        self.levels.iter().zip(held).map(|(level, held)| on_cpu(level, held)).collect()
    }

    fn on_cpu<T: Float, U: Float>(&self) -> Result<Output> {
        let (held, class_weights) = (self.hold()?, Held::of(&self.class_weights)?);
        let levels = self.levels_on_cpu::<T, U>(&held)?;
        let call = self.call_on_cpu(&levels, &class_weights)?;
        let mut losses = zeros::<T::Loss>(LOSSES * levels.len());
        let status = call.forward(&mut losses).map_err(wrap)?;
        self.report.add(status, [0.0]);
        Ok((stored(losses), (levels.len(), LOSSES).into()))
    }

    fn call_on_cpu<'a, 'l, T: Float, U: Float>(
        &'a self,
        levels: &'a [Level<'l, Host, T, U>],
        class_weights: &'a Option<Held<'_>>,
    ) -> Result<HeadCall<'a, 'l, Host, T, U>> {
        let [batch, classes] = self.sizes;
        let call = self.loss.cpu(batch, classes, levels);
        Ok(match host(class_weights)? {
            Some(weights) => call.class_weights(weights),
            None => call,
        })
    }

    fn slopes_on_cpu<T: Float, U: Float>(
        &self,
        upstream: &Tensor,
        layouts: &[Layouts],
    ) -> Result<Vec<Output>> {
        let (held, class_weights) = (self.hold()?, Held::of(&self.class_weights)?);
        let (levels, upstream) = (self.levels_on_cpu::<T, U>(&held)?, Held::new(upstream)?);
        let count = |level: &HeadLevel| (level.cls.elem_count(), level.boxes.elem_count());
        let mut slopes: Vec<(Vec<T>, Vec<U>)> =
            self.levels.iter().map(count).map(|(cls, boxes)| (zeros(cls), zeros(boxes))).collect();
        let mut gradients: Vec<Gradients<Host, T, U>> = slopes
            .iter_mut()
            .map(|(cls, boxes)| Gradients::Separate { cls: &mut cls[..], boxes: &mut boxes[..] })
            .collect();
        let mut found_inf = [0.0];
        let call = self.call_on_cpu(&levels, &class_weights)?;
        call.upstream(upstream.host()?)
            .gradient_layouts(layouts)
            .found_inf(&mut found_inf)
            .backward(&mut gradients)
            .map_err(wrap)?;
        drop(gradients);
        self.report.add(Default::default(), found_inf);
        let stored = slopes.into_iter().zip(&self.levels).flat_map(|((cls, boxes), level)| {
            [(stored(cls), level.cls.shape().clone()), (stored(boxes), level.boxes.shape().clone())]
        });
        Ok(stored.collect())
    }
}

fn on_cpu<'h, T: Float, U: Float>(
    level: &HeadLevel,
    held: &'h HeldLevel<'_>,
) -> Result<Level<'h, Host, T, U>> {
    let [height, width] = level.extent();
    Ok(Level {
        height,
        width,
        stride: level.stride,
        points: match &held.points {
            Some(points) => Of::Explicit(points.host()?),
            None => Of::Grid { offset: level.points.offset() },
        },
        logits: Logits::Separate { cls: held.cls.host()?, boxes: held.boxes.host()? },
        cls_layout: layout(&level.cls),
        box_layout: layout(&level.boxes),
        targets: OfLevel::<Host, <T as Element>::Loss> {
            labels: held.labels.host::<i64>()?.into(),
            label_weights: host(&held.label_weights)?,
            boxes: held.target_boxes.host()?,
            quality: host(&held.quality)?,
            box_weights: host(&held.box_weights)?,
            box_scores: host(&held.box_scores)?,
            scores: host(&held.scores)?,
            element_weights: host(&held.element_weights)?,
        },
    })
}

#[cfg(feature = "cuda")]
mod on_cuda {
    use std::sync::atomic::{AtomicU64, Ordering};

    use candle_core::CudaDevice;
    use gfocal::cuda::{Device, LabelBuffer};
    use gfocal::cudarc::driver::{DevicePtr, DevicePtrMut};

    use super::*;
    use crate::cuda::{CudaFloat, View, alloc, output, view, with};

    /// Each head has its own.
    pub(super) fn number() -> u64 {
        static HEADS: AtomicU64 = AtomicU64::new(0);
        HEADS.fetch_add(1, Ordering::Relaxed)
    }

    struct Views<'h, T, U> {
        cls: View<'h, T>,
        boxes: View<'h, U>,
        points: Option<View<'h, f32>>,
        labels: View<'h, i64>,
        target_boxes: View<'h, f32>,
        label_weights: Option<View<'h, f32>>,
        box_weights: Option<View<'h, f32>>,
        quality: Option<View<'h, f32>>,
        box_scores: Option<View<'h, f32>>,
        scores: Option<View<'h, f32>>,
        element_weights: Option<View<'h, f32>>,
    }

    impl HeldLevel<'_> {
        fn views<T: CudaFloat, U: CudaFloat>(&self) -> Result<Views<'_, T, U>> {
            Ok(Views {
                cls: self.cls.device()?,
                boxes: self.boxes.device()?,
                points: view(&self.points)?,
                labels: self.labels.device()?,
                target_boxes: self.target_boxes.device()?,
                label_weights: view(&self.label_weights)?,
                box_weights: view(&self.box_weights)?,
                quality: view(&self.quality)?,
                box_scores: view(&self.box_scores)?,
                scores: view(&self.scores)?,
                element_weights: view(&self.element_weights)?,
            })
        }
    }

    fn given<'v>(view: &'v Option<View<'_, f32>>) -> Option<&'v dyn DevicePtr<f32>> {
        view.as_ref().map(|view| view as &dyn DevicePtr<f32>)
    }

    impl<T: CudaFloat, U: CudaFloat> Views<'_, T, U> {
        fn level(&self, level: &HeadLevel) -> Level<'_, Device, T, U> {
            let [height, width] = level.extent();
            Level {
                height,
                width,
                stride: level.stride,
                points: match &self.points {
                    Some(points) => Of::<Device>::Explicit(points as &dyn DevicePtr<f32>),
                    None => Of::Grid { offset: level.points.offset() },
                },
                logits: Logits::Separate { cls: &self.cls, boxes: &self.boxes },
                cls_layout: layout(&level.cls),
                box_layout: layout(&level.boxes),
                targets: OfLevel::<Device> {
                    labels: LabelBuffer::I64(&self.labels),
                    label_weights: given(&self.label_weights),
                    boxes: &self.target_boxes,
                    quality: given(&self.quality),
                    box_weights: given(&self.box_weights),
                    box_scores: given(&self.box_scores),
                    scores: given(&self.scores),
                    element_weights: given(&self.element_weights),
                },
            }
        }
    }

    impl Head {
        fn anchors(&self) -> usize {
            self.levels.iter().map(|level| level.extent().iter().product::<usize>()).sum()
        }

        pub(super) fn on_cuda<T: CudaFloat, U: CudaFloat>(&self, device: &CudaDevice) -> Result<Output> {
            let (held, class_weights) = (self.hold()?, Held::of(&self.class_weights)?);
            let views = held.iter().map(HeldLevel::views::<T, U>).collect::<Result<Vec<_>>>()?;
            let class_weights = view::<f32>(&class_weights)?;
            let levels: Vec<_> =
                views.iter().zip(&self.levels).map(|(views, level)| views.level(level)).collect();
            let mut losses = alloc::<f32>(device, LOSSES * levels.len())?;
            let [batch, classes] = self.sizes;
            self.report.on_device(device, |report| {
                with(device, |work| {
                    let (handle, workspace, _) = work.of_head(self.number, batch, self.anchors())?;
                    let mut call = self.loss.cuda(handle, workspace, batch, classes, &levels);
                    if let Some(weights) = &class_weights {
                        call = call.class_weights(weights);
                    }
                    call.status(&mut report.status).forward(&mut losses).map_err(wrap)
                })
            })?;
            Ok(output(losses, (levels.len(), LOSSES).into(), device))
        }

        pub(super) fn slopes_on_cuda<T: CudaFloat, U: CudaFloat>(
            &self,
            upstream: &Tensor,
            layouts: &[Layouts],
            device: &CudaDevice,
        ) -> Result<Vec<Output>> {
            let (held, class_weights) = (self.hold()?, Held::of(&self.class_weights)?);
            let views = held.iter().map(HeldLevel::views::<T, U>).collect::<Result<Vec<_>>>()?;
            let (class_weights, upstream) = (view::<f32>(&class_weights)?, Held::new(upstream)?);
            let upstream = upstream.device::<f32>()?;
            let levels: Vec<_> =
                views.iter().zip(&self.levels).map(|(views, level)| views.level(level)).collect();
            let mut slopes = Vec::with_capacity(levels.len());
            for level in &self.levels {
                let cls = alloc::<T>(device, level.cls.elem_count())?;
                slopes.push((cls, alloc::<U>(device, level.boxes.elem_count())?));
            }
            let mut gradients: Vec<Gradients<Device, T, U>> = Vec::with_capacity(levels.len());
            for (cls, boxes) in &mut slopes {
                gradients.push(Gradients::Separate {
                    cls: cls as &mut dyn DevicePtrMut<T>,
                    boxes: boxes as &mut dyn DevicePtrMut<U>,
                });
            }
            let [batch, classes] = self.sizes;
            self.report.on_device(device, |report| {
                with(device, |work| {
                    let (handle, workspace, resumed) = work.of_head(self.number, batch, self.anchors())?;
                    let mut call = self.loss.cuda(handle, workspace, batch, classes, &levels);
                    if let Some(weights) = &class_weights {
                        call = call.class_weights(weights);
                    }
                    if resumed {
                        call = call.normalised();
                    }
                    call.upstream(&upstream)
                        .gradient_layouts(layouts)
                        .found_inf(&mut report.found_inf)
                        .backward(&mut gradients)
                        .map_err(wrap)
                })
            })?;
            drop(gradients);
            let stored = slopes.into_iter().zip(&self.levels).flat_map(|((cls, boxes), level)| {
                let cls = output(cls, level.cls.shape().clone(), device);
                [cls, output(boxes, level.boxes.shape().clone(), device)]
            });
            Ok(stored.collect())
        }
    }
}
