//! What `gfocal head` takes from a file, with every shape checked.

use gfocal::assign::{self, AnchorGrid, Anchors, Atss, GroundTruth};
use gfocal::head::{HeadLoss, Layout, QualitySource};
use gfocal::qfl::Class;
use gfocal::{DistributionFocalLoss, QualityFocalLoss};
use serde::Deserialize;

use super::args::{Profile, SceneArgs};
use crate::error::{Error, Result};
use crate::file::{Input, Tensors};
use crate::floats::{Dtype, Floats};
use crate::inputs::Labels;

/// A head's outputs, and what they are to become.
pub struct Scene {
    pub profile: Profile,
    pub head: HeadLoss,
    pub dtype: Dtype,
    pub batch: usize,
    pub classes: usize,
    pub levels: Vec<SceneLevel>,
    /// If targets are to be assigned.
    pub truth: Option<Truth>,
    pub topk: usize,
    pub anchor_scale: f64,
}

/// One level.
pub struct SceneLevel {
    pub height: usize,
    pub width: usize,
    pub stride: f64,
    pub points: PointSource,
    pub cls: Tensor,
    pub boxes: Tensor,
    /// `None` if they are to be assigned.
    pub targets: Option<LevelTargets>,
}

/// Where the anchor points come from.
pub enum PointSource {
    /// The grid, with an offset in strides.
    Grid(f64),
    /// `[H*W, 2]` or `[B, H*W, 2]`, in pixels.
    Points(Vec<f32>),
    /// `[B, H*W, 4]`: boxes around the points.
    Anchors(Vec<f32>),
}

/// Logits as they are in the file.
pub struct Tensor {
    pub shape: Vec<usize>,
    pub numbers: Floats,
    pub layout: Layout,
}

/// What a level is to become.
#[derive(Clone)]
pub struct LevelTargets {
    pub labels: Labels,
    pub boxes: Vec<f32>,
    pub label_weights: Option<Vec<f32>>,
    pub quality: Option<Vec<f32>>,
}

/// The boxes of all images.
pub struct Truth {
    /// `[G, 4]`.
    pub boxes: Vec<f32>,
    pub labels: Vec<i64>,
    pub images: Vec<i64>,
}

/// The metadata's key `case`; what is not there is `None`.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Case {
    strides: Option<Vec<f64>>,
    reg_max: Option<usize>,
    image_hw: Option<[usize; 2]>,
    beta: Option<f64>,
    weights: Weights,
    atss_topk: Option<u32>,
    anchor_scale: Option<f64>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Weights {
    qfl: Option<f64>,
    giou: Option<f64>,
    dfl: Option<f64>,
}

impl Scene {
    pub fn read(input: &Input, args: &SceneArgs, dtype: Option<Dtype>) -> Result<Scene> {
        let tensors = input.tensors()?;
        let case = Case::read(input)?;
        let profile = args.profile.unwrap_or(Profile::Mmdetection);
        let count = (0..).take_while(|i| tensors.has(&format!("level{i}.cls_logits"))).count();
        if count == 0 {
            return Err(tensors.missing("level0.cls_logits"));
        }
        let strides = if args.strides.is_empty() {
            case.strides.clone().ok_or_else(|| input.head("it does not tell the strides; give --strides"))?
        } else {
            args.strides.clone()
        };
        if strides.len() != count {
            let reason = format!("it has {count} levels, and there are {} strides", strides.len());
            return Err(input.head(reason));
        }

        let mut levels = Vec::new();
        let mut batch_classes_bins = None;
        for (i, &stride) in strides.iter().enumerate() {
            let reader = LevelReader { input, tensors: &tensors, args, case: &case, level: i, stride };
            let (level, sizes) = reader.read(dtype, profile)?;
            let first = *batch_classes_bins.get_or_insert(sizes);
            if sizes != first {
                let reason = format!(
                    "level {i} has batch, classes and bins {sizes:?}, level 0 has {first:?}; they must be the same"
                );
                return Err(input.head(reason));
            }
            if level.cls.numbers.dtype() != level.boxes.numbers.dtype() {
                return Err(input.head(format!(
                    "level{i}.cls_logits is {} and level{i}.box_logits {}; make them the same with --dtype",
                    level.cls.numbers.dtype().name(),
                    level.boxes.numbers.dtype().name()
                )));
            }
            levels.push(level);
        }
        let [batch, classes, bins] = batch_classes_bins.unwrap_or_default();
        let dtype = levels[0].cls.numbers.dtype();
        if let Some(i) = levels.iter().position(|level| level.cls.numbers.dtype() != dtype) {
            let reason =
                format!("level 0 is {}, level {i} is not; make them the same with --dtype", dtype.name());
            return Err(input.head(reason));
        }
        if let Some(reg_max) = args.reg_max.or(case.reg_max)
            && bins != reg_max + 1
            && bins != reg_max
        {
            let reason = format!(
                "box_logits have 4 x {bins} channels, which goes with reg_max {}, and not with {reg_max}",
                bins - 1
            );
            return Err(input.head(reason));
        }
        let truth = if args.assign { Some(Truth::read(input, &tensors)?) } else { None };
        if let (true, Some(i)) = (args.assign, levels.iter().position(|level| !level.same_anchors(batch))) {
            let reason =
                format!("the anchors of level {i} differ between images; --assign needs the same for all");
            return Err(input.head(reason));
        }
        Ok(Scene {
            profile,
            head: head(profile, bins, tensors.has("level0.quality"), args, &case)?,
            dtype,
            batch,
            classes,
            levels,
            truth,
            topk: args.topk.or(case.atss_topk).unwrap_or(9) as usize,
            anchor_scale: args.anchor_scale.or(case.anchor_scale).unwrap_or(8.0),
        })
    }
}

impl Scene {
    /// What the levels are to become: as the file says, or assigned on the CPU.
    pub fn targets(&self) -> Result<Vec<LevelTargets>> {
        match &self.truth {
            Some(truth) => self.assigned(truth),
            None => Ok(self.levels.iter().filter_map(|level| level.targets.clone()).collect()),
        }
    }

    fn assigned(&self, truth: &Truth) -> Result<Vec<LevelTargets>> {
        let boxes = self.anchors();
        let anchors: Vec<Anchors> = (self.levels.iter().zip(&boxes))
            .map(|(level, boxes)| match self.grid(level) {
                Some(grid) => Anchors::Grid(grid),
                None => Anchors::cpu(boxes),
            })
            .collect();
        let mut targets: Vec<(Vec<i64>, Vec<f32>)> = (self.levels.iter())
            .map(|level| {
                (vec![0; self.batch * level.positions()], vec![0.0; 4 * self.batch * level.positions()])
            })
            .collect();
        let mut into: Vec<_> =
            targets.iter_mut().map(|(labels, boxes)| assign::LevelTargets::cpu(labels, boxes)).collect();
        let truth = GroundTruth::cpu(&truth.boxes, &truth.labels, &truth.images);
        Atss::new(self.topk)?.cpu(&anchors, truth, self.batch, self.classes, &mut into)?;
        drop(into);
        Ok(targets.into_iter().map(|(labels, boxes)| LevelTargets::assigned(labels, boxes)).collect())
    }

    /// The anchors of a level, if they are on a grid.
    pub fn grid(&self, level: &SceneLevel) -> Option<AnchorGrid> {
        let PointSource::Grid(offset) = level.points else { return None };
        let grid = AnchorGrid::new(level.height, level.width, level.stride as f32);
        Some(grid.with_scale(self.anchor_scale as f32).with_offset(offset as f32))
    }

    /// The anchors of each level, `[H*W, 4]`, those of the first image for all; none if they are on
    /// a grid.
    pub fn anchors(&self) -> Vec<Vec<f32>> {
        let of = |level: &SceneLevel| {
            let (size, positions) = ((self.anchor_scale * level.stride / 2.0) as f32, level.positions());
            match &level.points {
                PointSource::Grid(_) => Vec::new(),
                PointSource::Points(points) => {
                    let (points, _) = points.as_chunks::<2>();
                    let square = |&[x, y]: &[f32; 2]| [x - size, y - size, x + size, y + size];
                    points.iter().take(positions).flat_map(square).collect()
                }
                PointSource::Anchors(anchors) => anchors.iter().copied().take(4 * positions).collect(),
            }
        };
        self.levels.iter().map(of).collect()
    }

    /// The anchor points of each level, `[B, H*W, 2]` or `[H*W, 2]` in pixels; none if they are on
    /// a grid.
    pub fn points(&self) -> Vec<Vec<f32>> {
        let of = |level: &SceneLevel| match &level.points {
            PointSource::Grid(_) => Vec::new(),
            PointSource::Points(points) => points.clone(),
            PointSource::Anchors(anchors) => {
                let (anchors, _) = anchors.as_chunks::<4>();
                anchors.iter().flat_map(|[x1, y1, x2, y2]| [x1.midpoint(*x2), y1.midpoint(*y2)]).collect()
            }
        };
        self.levels.iter().map(of).collect()
    }

    /// An anchor point in pixels.
    pub fn point(&self, level: usize, image: usize, position: usize) -> [f64; 2] {
        let level = &self.levels[level];
        let positions = level.positions();
        match &level.points {
            PointSource::Grid(offset) => {
                [position % level.width, position / level.width].map(|i| (i as f64 + offset) * level.stride)
            }
            PointSource::Points(points) => {
                let anchor =
                    if points.len() == 2 * positions { position } else { image * positions + position };
                [points[2 * anchor], points[2 * anchor + 1]].map(f64::from)
            }
            PointSource::Anchors(anchors) => {
                let at = 4 * (image * positions + position);
                [0, 1].map(|i| f64::from(anchors[at + i].midpoint(anchors[at + i + 2])))
            }
        }
    }
}

impl SceneLevel {
    /// Of anchor points on a grid, in strides.
    pub fn offset(&self) -> Option<f64> {
        if let PointSource::Grid(offset) = self.points { Some(offset) } else { None }
    }

    pub fn positions(&self) -> usize {
        self.height * self.width
    }
}

impl SceneLevel {
    /// Whether all images have the same anchors.
    fn same_anchors(&self, batch: usize) -> bool {
        let (each, all) = match &self.points {
            PointSource::Grid(_) => return true,
            PointSource::Points(points) => (2 * self.positions(), points),
            PointSource::Anchors(anchors) => (4 * self.positions(), anchors),
        };
        batch == 0 || each == 0 || all.chunks(each).all(|image| image == &all[..each])
    }
}

impl LevelTargets {
    pub fn assigned(labels: Vec<i64>, boxes: Vec<f32>) -> LevelTargets {
        LevelTargets { labels: Labels::I64(labels), boxes, label_weights: None, quality: None }
    }

    /// Anchors whose label is a class.
    pub fn positives(&self, qfl: &QualityFocalLoss, classes: usize) -> usize {
        let labels = (0..self.labels.len()).map(|anchor| self.labels.get(anchor));
        labels.filter(|&label| matches!(qfl.class_of(label, classes), Class::Foreground(_))).count()
    }
}

/// An option, else what the metadata say unless a profile was asked for, else the profile's.
/// `given`: there are qualities.
fn head(profile: Profile, bins: usize, given: bool, args: &SceneArgs, case: &Case) -> Result<HeadLoss> {
    let head = profile.head().with_bins(bins)?;
    let told = |value: Option<f64>| if args.profile.is_some() { None } else { value };
    let (qfl, dfl) = (head.qfl(), head.dfl());
    let beta = args.beta.or(told(case.beta)).unwrap_or(qfl.beta());
    let cls_weight = args.cls_weight.or(told(case.weights.qfl)).unwrap_or(qfl.loss_weight());
    let dfl_weight = args.dfl_weight.or(told(case.weights.dfl)).unwrap_or(dfl.loss_weight());
    let iou_weight = args.iou_weight.or(told(case.weights.giou)).unwrap_or(head.iou_weight());
    let eps = args.target_eps.unwrap_or(dfl.target_eps());
    // NanoDet-Plus takes the quality from an assigner that sees an auxiliary head, NanoDet from the boxes.
    let quality = match profile {
        Profile::Nanodet if !given => QualitySource::Iou,
        _ => head.quality(),
    };
    Ok(head
        .with_quality(quality)
        .with_qfl(QualityFocalLoss::new(beta)?.with_loss_weight(cls_weight)?)
        .with_dfl(DistributionFocalLoss::new(eps)?.with_loss_weight(dfl_weight)?)
        .with_iou(args.iou.map_or(head.iou(), Into::into), iou_weight)?)
}

impl Case {
    fn read(input: &Input) -> Result<Case> {
        let Some(text) = input.metadata("case")? else { return Ok(Case::default()) };
        serde_json::from_str(&text)
            .map_err(|error| input.head(format!("the metadata's key case is not what it must be: {error}")))
    }
}

/// Reads the tensors of a level.
struct LevelReader<'a> {
    input: &'a Input,
    tensors: &'a Tensors<'a>,
    args: &'a SceneArgs,
    case: &'a Case,
    level: usize,
    stride: f64,
}

impl LevelReader<'_> {
    fn name(&self, tensor: &str) -> String {
        format!("level{}.{tensor}", self.level)
    }

    /// The level, and batch, classes and bins.
    fn read(&self, dtype: Option<Dtype>, profile: Profile) -> Result<(SceneLevel, [usize; 3])> {
        let (cls_shape, cls) = self.tensors.floats(&self.name("cls_logits"))?;
        let (box_shape, boxes) = self.tensors.floats(&self.name("box_logits"))?;
        let to = |floats: Floats| match dtype {
            Some(dtype) => floats.to(dtype),
            None => floats,
        };
        let ([batch, classes, height, width], cls_layout) = self.shape("cls_logits", &cls_shape)?;
        let ([box_batch, channels, box_height, box_width], box_layout) =
            self.shape("box_logits", &box_shape)?;
        if (batch, height, width) != (box_batch, box_height, box_width) {
            return Err(self.input.head(format!(
                "{} has the shape {cls_shape:?} and {} {box_shape:?}; batch and positions must be the same",
                self.name("cls_logits"),
                self.name("box_logits")
            )));
        }
        if channels % 4 != 0 || channels < 8 {
            return Err(self.input.head(format!(
                "{} has {channels} channels; there must be 4 K of them, for K >= 2 bins a side",
                self.name("box_logits")
            )));
        }
        let positions = height * width;
        let points = self.points(batch, positions, profile)?;
        let targets = if self.args.assign { None } else { Some(self.targets(batch, positions)?) };
        let level = SceneLevel {
            height,
            width,
            stride: self.stride,
            points,
            cls: Tensor { shape: cls_shape, numbers: to(cls), layout: cls_layout },
            boxes: Tensor { shape: box_shape, numbers: to(boxes), layout: box_layout },
            targets,
        };
        Ok((level, [batch, classes, channels / 4]))
    }

    /// Batch, channels, height and width of logits, and where they are.
    fn shape(&self, tensor: &str, shape: &[usize]) -> Result<([usize; 4], Layout)> {
        match *shape {
            [batch, channels, height, width] => {
                Ok(([batch, channels, height, width], Layout::nchw(channels, height * width)))
            }
            [batch, positions, channels] => {
                let [height, width] = self.channels_last_size(tensor, positions)?;
                Ok(([batch, channels, height, width], Layout::channels_last(channels, positions)))
            }
            _ => Err(self.input.head(format!(
                "{} has the shape {shape:?}; it must be [B, channels, H, W] or [B, H*W, channels]",
                self.name(tensor)
            ))),
        }
    }

    /// Height and width of a level of which only their product is told.
    fn channels_last_size(&self, tensor: &str, positions: usize) -> Result<[usize; 2]> {
        if let Some(image) = self.args.image_size.or(self.case.image_hw) {
            let size = image.map(|side| (side as f64 / self.stride).ceil() as usize);
            if size[0] * size[1] == positions {
                return Ok(size);
            }
            return Err(self.input.head(format!(
                "{} has {positions} positions; an image of {}x{} pixels has {}x{} at stride {}",
                self.name(tensor),
                image[0],
                image[1],
                size[0],
                size[1],
                self.stride
            )));
        }
        if self.tensors.has(&self.name("anchors")) || self.tensors.has(&self.name("points")) {
            return Ok([1, positions]); // the points say where they are
        }
        let reason = format!("{} has channels last, so give --image-size", self.name(tensor));
        Err(self.input.head(reason))
    }

    fn points(&self, batch: usize, positions: usize, profile: Profile) -> Result<PointSource> {
        let (anchors, points) = (self.name("anchors"), self.name("points"));
        if let Some(offset) = self.args.offset {
            Ok(PointSource::Grid(offset))
        } else if self.tensors.has(&points) {
            let (shape, numbers) = self.tensors.floats(&points)?;
            if shape == [positions, 2] || shape == [batch, positions, 2] {
                Ok(PointSource::Points(numbers.into_f32()))
            } else {
                Err(self.wrong_shape(points, shape, vec![positions, 2]))
            }
        } else if self.tensors.has(&anchors) {
            Ok(PointSource::Anchors(self.floats("anchors", &[batch, positions, 4])?))
        } else {
            Ok(PointSource::Grid(profile.offset()))
        }
    }

    fn targets(&self, batch: usize, positions: usize) -> Result<LevelTargets> {
        let name = self.name("labels");
        if !self.tensors.has(&name) && self.tensors.has("gt_boxes") {
            return Err(self.tensors.missing(format!("{name} (with --assign, none is needed)")));
        }
        let (shape, labels) = self.tensors.labels(&name)?;
        if shape != [batch, positions] {
            return Err(self.wrong_shape(name, shape, vec![batch, positions]));
        }
        Ok(LevelTargets {
            labels,
            boxes: self.floats("box_targets", &[batch, positions, 4])?,
            label_weights: self.optional("label_weights", &[batch, positions])?,
            quality: self.optional("quality", &[batch, positions])?,
        })
    }

    fn optional(&self, tensor: &str, expected: &[usize]) -> Result<Option<Vec<f32>>> {
        if self.tensors.has(&self.name(tensor)) { self.floats(tensor, expected).map(Some) } else { Ok(None) }
    }

    fn floats(&self, tensor: &str, expected: &[usize]) -> Result<Vec<f32>> {
        let name = self.name(tensor);
        let (shape, numbers) = self.tensors.floats(&name)?;
        if shape == expected {
            Ok(numbers.into_f32())
        } else {
            Err(self.wrong_shape(name, shape, expected.to_vec()))
        }
    }

    fn wrong_shape(&self, tensor: String, found: Vec<usize>, expected: Vec<usize>) -> Error {
        self.input.head(format!("{tensor} has the shape {found:?}; the level's logits need {expected:?}"))
    }
}

impl Truth {
    fn read(input: &Input, tensors: &Tensors) -> Result<Truth> {
        let (shape, boxes) = tensors.floats("gt_boxes")?;
        let [count, 4] = *shape else {
            return Err(input.head(format!("gt_boxes has the shape {shape:?}; it must be [G, 4]")));
        };
        let integers = |name: &str| {
            let (shape, labels) = tensors.labels(name)?;
            if shape != [count] {
                let reason = format!("{name} has the shape {shape:?}; gt_boxes needs {:?}", [count]);
                return Err(input.head(reason));
            }
            Ok(match labels {
                Labels::I64(labels) => labels,
                Labels::I32(labels) => labels.into_iter().map(i64::from).collect(),
            })
        };
        Ok(Truth { boxes: boxes.into_f32(), labels: integers("gt_labels")?, images: integers("gt_image")? })
    }
}
