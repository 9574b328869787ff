//! Assignment: which anchors are trained on which box.

use candle_core::{DType, Error, Result, Tensor};
use gfocal::Host;
use gfocal::assign::{AnchorGrid, Anchors as Of, Atss, Fcos, GroundTruth as Truth, LevelTargets};

use crate::head::Targets;
use crate::record::constant;
use crate::report::Report;
use crate::tensor::{Held, Place, Tracked, constant_like, host, labels, numbers, place, stored, wrap, zeros};

/// A rule of assignment, with its options.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Assigner {
    /// Adaptive training sample selection.
    Atss(Atss),
    /// FCOS' rule.
    Fcos(Fcos),
}

impl From<Atss> for Assigner {
    fn from(atss: Atss) -> Self {
        Assigner::Atss(atss)
    }
}

impl From<Fcos> for Assigner {
    fn from(fcos: Fcos) -> Self {
        Assigner::Fcos(fcos)
    }
}

/// The anchors of one level, the same for all images.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "a handful of them, in slices")]
pub enum Anchors {
    /// On a grid.
    Grid(AnchorGrid),
    /// `[anchors, 4]` as `[x1, y1, x2, y2]` in pixels. FCOS takes their centres.
    Boxes(Tensor),
}

impl From<AnchorGrid> for Anchors {
    fn from(grid: AnchorGrid) -> Self {
        Anchors::Grid(grid)
    }
}

/// The boxes to be found in all images, and what is known of the images; see [`gfocal::assign::GroundTruth`]. Sizes,
/// labels and numbers of images are integers of any type, boxes and weights floats.
#[derive(Clone, Debug)]
pub struct GroundTruth {
    /// `[n, 4]` as `[x1, y1, x2, y2]` in pixels.
    pub boxes: Tensor,
    /// `[n]`, the class of each.
    pub labels: Tensor,
    /// `[n]`, the image that each is in; -1 for padding.
    pub image: Tensor,
    /// `[n]`, for the weights of its anchors' boxes. Not given: ones.
    pub weights: Option<Tensor>,
    /// Regions where anchors are neither one thing nor the other: boxes `[m, 4]`, and the image that each is in `[m]`.
    /// What lies in one is up to `with_ignore_iof` of the assigner, which ignores nothing by default.
    pub ignore: Option<(Tensor, Tensor)>,
    /// The size of each image in a padded batch, `[images, 2]`: height and width in pixels. Anchors beyond take no
    /// part.
    pub valid_hw: Option<Tensor>,
}

impl GroundTruth {
    /// Boxes, labels and images, and no options.
    pub fn new(boxes: Tensor, labels: Tensor, image: Tensor) -> Self {
        GroundTruth { boxes, labels, image, weights: None, ignore: None, valid_hw: None }
    }
}

/// What [`assign`] gives.
#[derive(Clone, Debug)]
pub struct Assigned {
    /// What the anchors of each level are to become, as [`head`](crate::head()) takes it. Label weights are there if
    /// the ground truth has valid sizes or regions to ignore, box weights if it has weights, and FCOS' centerness is
    /// the quality.
    pub levels: Vec<Targets>,
    /// Counts the boxes that could not be used, or got no anchor, in
    /// [`Status::assignment`](gfocal::Status::assignment).
    pub report: Report,
}

/// Gives each anchor of each image the box that it is to be trained on, or the background, by [ATSS](Atss) or
/// [FCOS' rule](Fcos). On CUDA nothing waits, and the targets never leave the device.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use gfocal_candle::{AnchorGrid, Atss, GroundTruth, assign};
///
/// // One image, one level of 4 × 4 anchors of 64 pixels, 8 pixels apart; one box of class 2.
/// let boxes = Tensor::new(&[[4f32, 4., 28., 28.]], &Device::Cpu)?;
/// let (labels, image) = (Tensor::new(&[2i64], &Device::Cpu)?, Tensor::new(&[0i64], &Device::Cpu)?);
/// let truth = GroundTruth::new(boxes, labels, image);
/// let assigned = assign(Atss::default(), &[AnchorGrid::new(4, 4, 8.0)], &truth, 1, 80)?;
///
/// let level = &assigned.levels[0];
/// assert_eq!(level.labels.to_vec2::<i64>()?, [[80, 80, 80, 80, 80, 2, 2, 2, 80, 2, 2, 2, 80, 2, 2, 2]]);
/// assert_eq!(level.boxes.to_vec3::<f32>()?[0][5], [4., 4., 28., 28.]);
/// assert!(assigned.report.status()?.is_ok());
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// If shapes, types or devices do not go together, a number is outside its range, or the driver refuses a launch.
pub fn assign<A: Into<Anchors> + Clone>(
    assigner: impl Into<Assigner>,
    anchors: &[A],
    truth: &GroundTruth,
    images: usize,
    classes: usize,
) -> Result<Assigned> {
    let assigner = assigner.into();
    let truth = truth.checked(images)?;
    let like = ("boxes", &truth.boxes);
    let checked = anchors.iter().enumerate().map(|(i, anchors)| match anchors.clone().into() {
        Anchors::Boxes(boxes) => {
            let name = format!("anchors[{i}]");
            let shape = [boxes.dims().first().copied().unwrap_or(0), 4];
            let boxes = constant_like(&name, &boxes, &[&shape], like, Tracked::Detached)?;
            Ok(Anchors::Boxes(numbers(&name, &boxes, DType::F32)?))
        }
        grid => Ok(grid),
    });
    let anchors = checked.collect::<Result<Vec<_>>>()?;
    let call = Call { assigner, anchors, truth, images, classes };
    match place("boxes", &call.truth.boxes)? {
        Place::Cpu => call.on_cpu(),
        #[cfg(feature = "cuda")]
        Place::Cuda(device) => call.on_cuda(device),
    }
}

impl GroundTruth {
    /// As calls take it.
    fn checked(&self, images: usize) -> Result<GroundTruth> {
        let &[count, 4] = self.boxes.dims() else {
            return Err(Error::msg(format!("boxes has shape {:?}, it must be [n, 4]", self.boxes.dims())));
        };
        let like = ("boxes", &self.boxes);
        let floats = |name: &str, tensor: &Tensor, shape: &[usize]| {
            numbers(name, &constant_like(name, tensor, &[shape], like, Tracked::Detached)?, DType::F32)
        };
        let integers = |name: &str, tensor: &Tensor, shape: &[usize]| {
            labels(name, &constant_like(name, tensor, &[shape], like, Tracked::Detached)?)
        };
        let ignore = self.ignore.as_ref().map(|(boxes, image)| {
            let count = image.dims().first().copied().unwrap_or(0);
            Result::Ok((floats("ignore.0", boxes, &[count, 4])?, integers("ignore.1", image, &[count])?))
        });
        let (weights, valid_hw) = (self.weights.as_ref(), self.valid_hw.as_ref());
        Ok(GroundTruth {
            boxes: floats("boxes", &self.boxes, &[count, 4])?,
            labels: integers("labels", &self.labels, &[count])?,
            image: integers("image", &self.image, &[count])?,
            weights: weights.map(|weights| floats("weights", weights, &[count])).transpose()?,
            ignore: ignore.transpose()?,
            valid_hw: valid_hw.map(|sizes| integers("valid_hw", sizes, &[images, 2])).transpose()?,
        })
    }

    fn hold(&self) -> Result<HeldTruth<'_>> {
        let (ignored, image_of_ignored) = self.ignore.as_ref().map(|(boxes, image)| (boxes, image)).unzip();
        Ok(HeldTruth {
            boxes: Held::new(&self.boxes)?,
            labels: Held::new(&self.labels)?,
            image: Held::new(&self.image)?,
            weights: Held::of(&self.weights)?,
            ignored: ignored.map(Held::new).transpose()?,
            image_of_ignored: image_of_ignored.map(Held::new).transpose()?,
            valid_hw: Held::of(&self.valid_hw)?,
        })
    }
}

struct HeldTruth<'t> {
    boxes: Held<'t>,
    labels: Held<'t>,
    image: Held<'t>,
    weights: Option<Held<'t>>,
    ignored: Option<Held<'t>>,
    image_of_ignored: Option<Held<'t>>,
    valid_hw: Option<Held<'t>>,
}

impl HeldTruth<'_> {
    fn on_cpu(&self) -> Result<Truth<'_, Host, i64>> {
        let mut truth = Truth::cpu(self.boxes.host()?, self.labels.host()?, self.image.host()?);
        if let Some(weights) = host(&self.weights)? {
            truth = truth.weights(weights);
        }
        if let (Some(boxes), Some(image)) = (host(&self.ignored)?, host(&self.image_of_ignored)?) {
            truth = truth.ignore(boxes, image);
        }
        if let Some(sizes) = host(&self.valid_hw)? {
            truth = truth.valid_hw(sizes);
        }
        Ok(truth)
    }
}

struct Call {
    assigner: Assigner,
    anchors: Vec<Anchors>,
    truth: GroundTruth,
    images: usize,
    classes: usize,
}

impl Call {
    /// How many anchors each level has.
    fn counts(&self) -> Vec<usize> {
        let count = |anchors: &Anchors| match anchors {
            Anchors::Grid(grid) => grid.anchors(),
            Anchors::Boxes(boxes) => boxes.dims()[0],
        };
        self.anchors.iter().map(count).collect()
    }

    fn has_label_weights(&self) -> bool {
        self.truth.ignore.is_some() || self.truth.valid_hw.is_some()
    }

    fn has_box_weights(&self) -> bool {
        self.truth.weights.is_some()
    }

    fn has_centerness(&self) -> bool {
        matches!(self.assigner, Assigner::Fcos(_))
    }

    fn on_cpu(&self) -> Result<Assigned> {
        /// Of a level.
        struct Results {
            labels: Vec<i64>,
            boxes: Vec<f32>,
            label_weights: Option<Vec<f32>>,
            box_weights: Option<Vec<f32>>,
            centerness: Option<Vec<f32>>,
        }

        let truth = self.truth.hold()?;
        let counts = self.counts();
        let too_many = || Error::msg(format!("there are too many anchors in {} images", self.images));
        let mut results = Vec::with_capacity(counts.len());
        for count in &counts {
            let all = count.checked_mul(self.images).filter(|&all| all <= isize::MAX as usize / 16);
            let all = all.ok_or_else(too_many)?;
            results.push(Results {
                labels: vec![0; all],
                boxes: zeros(4 * all),
                label_weights: self.has_label_weights().then(|| zeros(all)),
                box_weights: self.has_box_weights().then(|| zeros(all)),
                centerness: self.has_centerness().then(|| zeros(all)),
            });
        }
        let mut targets: Vec<LevelTargets<Host, i64>> = Vec::with_capacity(counts.len());
        for results in &mut results {
            let mut to = LevelTargets::<Host, i64>::cpu(&mut results.labels, &mut results.boxes);
            if let Some(weights) = &mut results.label_weights {
                to = to.label_weights(weights);
            }
            if let Some(weights) = &mut results.box_weights {
                to = to.box_weights(weights);
            }
            if let Some(centerness) = &mut results.centerness {
                to = to.centerness(centerness);
            }
            targets.push(to);
        }
        let held = self.anchors.iter().map(|anchors| match anchors {
            Anchors::Grid(_) => Ok(None),
            Anchors::Boxes(boxes) => Held::new(boxes).map(Some),
        });
        let held = held.collect::<Result<Vec<_>>>()?;
        let anchors = self.anchors.iter().zip(&held).map(|(anchors, held)| match (anchors, held) {
            (Anchors::Grid(grid), _) => Ok((*grid).into()),
            (Anchors::Boxes(_), Some(boxes)) => Ok(Of::cpu(boxes.host()?)),
            (Anchors::Boxes(_), None) => Ok(Of::cpu(&[])),
        });
        let anchors = anchors.collect::<Result<Vec<_>>>()?;
        let (images, classes) = (self.images, self.classes);
        let status = match &self.assigner {
            Assigner::Atss(atss) => atss.cpu(&anchors, truth.on_cpu()?, images, classes, &mut targets),
            Assigner::Fcos(fcos) => fcos.cpu(&anchors, truth.on_cpu()?, images, classes, &mut targets),
        };
        let report = Report::new();
        report.add(status.map_err(wrap)?, [0.0]);
        let levels = results.into_iter().zip(counts).map(|(results, count)| {
            let each = |numbers| constant((stored::<f32>(numbers), (images, count).into()));
            Targets {
                label_weights: results.label_weights.map(each),
                box_weights: results.box_weights.map(each),
                quality: results.centerness.map(each),
                ..Targets::new(
                    constant((stored(results.labels), (images, count).into())),
                    constant((stored(results.boxes), (images, count, 4).into())),
                )
            }
        });
        Ok(Assigned { levels: levels.collect(), report })
    }

    #[cfg(feature = "cuda")]
    fn on_cuda(&self, device: &candle_core::CudaDevice) -> Result<Assigned> {
        on_cuda::run(self, device)
    }
}

#[cfg(feature = "cuda")]
mod on_cuda {
    use candle_core::CudaDevice;
    use candle_core::cuda::cudarc::driver::CudaSlice;
    use gfocal::cuda::Device;

    use super::*;
    use crate::cuda::{View, alloc, output, view, with};

    /// Of a level.
    struct Results {
        labels: CudaSlice<i64>,
        boxes: CudaSlice<f32>,
        label_weights: Option<CudaSlice<f32>>,
        box_weights: Option<CudaSlice<f32>>,
        centerness: Option<CudaSlice<f32>>,
    }

    struct Views<'h> {
        boxes: View<'h, f32>,
        labels: View<'h, i64>,
        image: View<'h, i64>,
        weights: Option<View<'h, f32>>,
        ignored: Option<View<'h, f32>>,
        image_of_ignored: Option<View<'h, i64>>,
        valid_hw: Option<View<'h, i64>>,
    }

    impl HeldTruth<'_> {
        fn views(&self) -> Result<Views<'_>> {
            Ok(Views {
                boxes: self.boxes.device()?,
                labels: self.labels.device()?,
                image: self.image.device()?,
                weights: view(&self.weights)?,
                ignored: view(&self.ignored)?,
                image_of_ignored: view(&self.image_of_ignored)?,
                valid_hw: view(&self.valid_hw)?,
            })
        }
    }

    impl Views<'_> {
        fn truth(&self) -> Truth<'_, Device, i64> {
            let mut truth = Truth::<Device, i64>::cuda(&self.boxes, &self.labels, &self.image);
            if let Some(weights) = &self.weights {
                truth = truth.weights(weights);
            }
            if let (Some(boxes), Some(image)) = (&self.ignored, &self.image_of_ignored) {
                truth = truth.ignore(boxes, image);
            }
            if let Some(sizes) = &self.valid_hw {
                truth = truth.valid_hw(sizes);
            }
            truth
        }
    }

    pub(super) fn run(call: &Call, device: &CudaDevice) -> Result<Assigned> {
        let (truth, counts) = (call.truth.hold()?, call.counts());
        let (truth, images) = (truth.views()?, call.images);
        let mut results = Vec::with_capacity(counts.len());
        for &count in &counts {
            let all = count.saturating_mul(images);
            let optional = |given: bool| given.then(|| alloc::<f32>(device, all)).transpose();
            results.push(Results {
                labels: device.alloc_zeros(all.max(1))?,
                boxes: alloc(device, all.saturating_mul(4))?,
                label_weights: optional(call.has_label_weights())?,
                box_weights: optional(call.has_box_weights())?,
                centerness: optional(call.has_centerness())?,
            });
        }
        let mut targets: Vec<LevelTargets<Device, i64>> = Vec::with_capacity(counts.len());
        for results in &mut results {
            let mut to = LevelTargets::<Device, i64>::cuda(&mut results.labels, &mut results.boxes);
            if let Some(weights) = &mut results.label_weights {
                to = to.label_weights(weights);
            }
            if let Some(weights) = &mut results.box_weights {
                to = to.box_weights(weights);
            }
            if let Some(centerness) = &mut results.centerness {
                to = to.centerness(centerness);
            }
            targets.push(to);
        }
        let held = call.anchors.iter().map(|anchors| match anchors {
            Anchors::Grid(_) => Ok(None),
            Anchors::Boxes(boxes) => Held::new(boxes).map(Some),
        });
        let held = held.collect::<Result<Vec<_>>>()?;
        let views = held.iter().map(view::<f32>).collect::<Result<Vec<_>>>()?;
        let anchors: Vec<Of<Device>> = (call.anchors.iter().zip(&views))
            .filter_map(|(anchors, view)| match (anchors, view) {
                (Anchors::Grid(grid), _) => Some((*grid).into()),
                (Anchors::Boxes(_), view) => view.as_ref().map(Of::cuda),
            })
            .collect();
        // FCOS claims no anchors.
        let claimed = if call.has_centerness() { 0 } else { counts.iter().sum() };
        let boxes = call.truth.boxes.dims()[0];
        let report = Report::new();
        report.on_device(device, |report| {
            with(device, |work| {
                let (handle, workspace) = work.of_assignment(images, claimed, boxes)?;
                let (truth, status, to) = (truth.truth(), Some(&mut report.status), &mut targets[..]);
                match &call.assigner {
                    Assigner::Atss(atss) => {
                        atss.cuda(handle, &anchors, truth, images, call.classes, to, workspace, status)
                    }
                    Assigner::Fcos(fcos) => {
                        fcos.cuda(handle, &anchors, truth, images, call.classes, to, workspace, status)
                    }
                }
                .map_err(wrap)
            })
        })?;
        drop(targets);
        let levels = results.into_iter().zip(counts).map(|(results, count)| {
            let each = |numbers| constant(output(numbers, (images, count).into(), device));
            Targets {
                label_weights: results.label_weights.map(each),
                box_weights: results.box_weights.map(each),
                quality: results.centerness.map(each),
                ..Targets::new(
                    constant(output(results.labels, (images, count).into(), device)),
                    constant(output(results.boxes, (images, count, 4).into(), device)),
                )
            }
        });
        Ok(Assigned { levels: levels.collect(), report })
    }
}
