//! From outputs and truth to a loss: gfocal's assignment and losses, put together as each arm of the comparison asks.

use candle_core::{DType, Device, Result, Tensor};
use gfocal_candle::gfocal::assign::{AnchorGrid, Atss, Fcos};
use gfocal_candle::gfocal::head::{BoxCoding, BoxWeight, Normaliser, QualitySource};
use gfocal_candle::gfocal::{AvgPolicy, HeadLoss, QualityFocalLoss, Reduction};
use gfocal_candle::{
    Assigner, BoxLevel, GroundTruth, HeadLevel, HeadOptions, Points, QflOptions, Report, Targets, assign,
    decode, head_with, qfl,
};

use super::eval::iou;
use super::model::{Outputs, STRIDES, width};
use super::scenes::CLASSES;
use super::train::{Arm, Assignment, Settings};

/// Where points are in their cells.
pub const OFFSET: f64 = 0.5;
/// For rows that the branch of the quality does not train on.
const IGNORED: i64 = -1;

/// What the branch beside the class says, in heads that have one.
#[derive(Clone, Copy, PartialEq)]
enum Branch {
    /// How near the point is to the middle of the box.
    Centerness,
    /// The IoU of the box.
    Iou,
}

pub struct Losses {
    head: HeadLoss,
    branch: Option<Branch>,
    assigner: Assigner,
    anchors: Vec<AnchorGrid>,
    dtype: DType,
}

fn wrap<T>(result: gfocal_candle::gfocal::Result<T>) -> Result<T> {
    result.map_err(candle_core::Error::wrap)
}

impl Losses {
    pub fn new(settings: &Settings) -> Result<Losses> {
        let bins = BoxCoding::Bins(settings.bins);
        let (given, joint) = (QualitySource::Given, QualitySource::Iou);
        // With a given quality of 1, QFL is focal loss (γ 2, no α), and a box weight of the quality is an even one.
        let (coding, quality, weight, branch) = match settings.arm {
            Arm::Base => (BoxCoding::Exp, given, BoxWeight::Quality, Some(Branch::Centerness)),
            Arm::BaseWeighted => (BoxCoding::Exp, given, BoxWeight::MaxScore, Some(Branch::Centerness)),
            Arm::BaseIou => (BoxCoding::Exp, given, BoxWeight::Quality, Some(Branch::Iou)),
            Arm::Dfl => (bins, given, BoxWeight::Quality, Some(Branch::Centerness)),
            Arm::Qfl => (BoxCoding::Exp, joint, BoxWeight::MaxScore, None),
            Arm::Both => (bins, joint, BoxWeight::MaxScore, None),
        };
        let head = HeadLoss::mmdetection().with_normaliser(Normaliser::Nanodet);
        let head = wrap(head.with_box_coding(coding))?.with_quality(quality).with_box_weight(weight);
        let assigner = match settings.assigner {
            Assignment::Atss => wrap(Atss::default().with_fallback(settings.fallback))?.into(),
            Assignment::Fcos => {
                // As far as ATSS' anchors are wide.
                let ends = STRIDES.map(|stride| settings.anchor_scale * stride as f32);
                let ranges = [[-1.0, ends[0]], [ends[0], ends[1]], [ends[1], f32::INFINITY]];
                let fcos = wrap(wrap(Fcos::new(&ranges))?.with_center_sampling(settings.centre_radius))?;
                wrap(fcos.with_fallback(settings.fallback))?.into()
            }
        };
        let grid = |level: usize| {
            AnchorGrid::new(width(level), width(level), STRIDES[level] as f32)
                .with_scale(settings.anchor_scale)
                .with_offset(OFFSET as f32)
        };
        let anchors = (0..STRIDES.len()).map(grid).collect();
        Ok(Losses { head, branch, assigner, anchors, dtype: settings.dtype.into() })
    }

    pub fn head(&self) -> &HeadLoss {
        &self.head
    }

    pub fn has_branch(&self) -> bool {
        self.branch.is_some()
    }

    /// What each position is to say.
    pub fn assign(&self, truth: &GroundTruth, images: usize) -> Result<Vec<Targets>> {
        let mut levels = assign(self.assigner, &self.anchors, truth, images, CLASSES)?.levels;
        if self.head.quality() == QualitySource::Given {
            for level in &mut levels {
                level.quality = Some(Tensor::ones(level.labels.shape(), DType::F32, &Device::Cpu)?);
            }
        }
        Ok(levels)
    }

    /// Outputs and targets as a head takes them, in the storage type of the settings.
    pub fn levels(&self, outputs: &[Outputs], targets: Vec<Targets>) -> Result<Vec<HeadLevel>> {
        let levels = outputs.iter().zip(targets).zip(STRIDES);
        let level = |((of, targets), stride): ((&Outputs, Targets), usize)| {
            Ok(HeadLevel {
                cls: of.cls.to_dtype(self.dtype)?,
                boxes: of.boxes.to_dtype(self.dtype)?,
                stride: stride as f64,
                points: Points::Grid { offset: OFFSET },
                targets,
            })
        };
        levels.map(level).collect()
    }

    /// The sum of all losses, with gradient.
    pub fn forward(&self, outputs: &[Outputs], targets: Vec<Targets>, report: &Report) -> Result<Tensor> {
        let levels = self.levels(outputs, targets)?;
        let options = HeadOptions { report: report.clone(), ..HeadOptions::default() };
        let head = head_with(&self.head, &levels, &options)?;
        match self.branch {
            Some(branch) => head.loss + self.branch_loss(branch, outputs, &levels, report)?,
            None => Ok(head.loss),
        }
    }

    /// Binary cross entropy, which is QFL with β = 0, of the positives alone.
    fn branch_loss(
        &self,
        branch: Branch,
        outputs: &[Outputs],
        levels: &[HeadLevel],
        report: &Report,
    ) -> Result<Tensor> {
        let bce = wrap(QualityFocalLoss::new(0.0))?.with_ignore_label(IGNORED);
        let predicted = match branch {
            Branch::Iou => {
                let levels: Vec<BoxLevel> = levels.iter().map(BoxLevel::from).collect();
                Some(decode(self.head.box_coding(), &levels)?.detach())
            }
            Branch::Centerness => None,
        };
        let (mut rows, mut first, mut positives) = (Vec::new(), 0, 0usize);
        for (level, of) in levels.iter().enumerate() {
            let labels = of.targets.labels.flatten_all()?.to_vec1::<i64>()?;
            let boxes = corners(&of.targets.boxes)?;
            let count = width(level) * width(level);
            let predicted = match &predicted {
                Some(boxes) => corners(&boxes.narrow(1, first, count)?)?,
                None => Vec::new(),
            };
            first += count;
            let is_positive = |label: i64| (0..CLASSES as i64).contains(&label);
            positives += labels.iter().filter(|&&label| is_positive(label)).count();
            let quality = |(anchor, &label): (usize, &i64)| match branch {
                _ if !is_positive(label) => 0.0,
                Branch::Iou => iou(predicted[anchor], boxes[anchor]),
                Branch::Centerness => centerness(point(level, anchor % count), boxes[anchor]),
            };
            let quality: Vec<f32> = labels.iter().enumerate().map(quality).collect();
            let labels: Vec<i64> =
                labels.iter().map(|&label| if is_positive(label) { 0 } else { IGNORED }).collect();
            rows.push((labels, quality));
        }
        let options = QflOptions {
            reduction: Reduction::MeanBy {
                avg_factor: (positives as f64).into(),
                policy: AvgPolicy::AtLeast(1.0),
            },
            report: report.clone(),
            ..QflOptions::default()
        };
        let mut sum = Tensor::zeros((), DType::F32, &Device::Cpu)?;
        for (of, (labels, quality)) in outputs.iter().zip(rows) {
            let count = labels.len();
            let Some(logits) = &of.quality else { candle_core::bail!("the network has no branch") };
            let logits = logits.permute((0, 2, 3, 1))?.reshape((count, 1))?.to_dtype(self.dtype)?;
            let labels = Tensor::from_vec(labels, count, &Device::Cpu)?;
            let quality = Tensor::from_vec(quality, count, &Device::Cpu)?;
            sum = (sum + qfl(&bce, &logits, &labels, &quality, &options)?)?;
        }
        Ok(sum)
    }
}

/// The point of a position, pixels.
pub fn point(level: usize, position: usize) -> [f32; 2] {
    let (width, stride) = (width(level), STRIDES[level] as f32);
    [position % width, position / width].map(|at| (at as f32 + OFFSET as f32) * stride)
}

/// `[.., 4]` as boxes.
pub fn corners(boxes: &Tensor) -> Result<Vec<[f32; 4]>> {
    let all = boxes.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    Ok(all.as_chunks().0.to_vec())
}

fn centerness([x, y]: [f32; 2], [x1, y1, x2, y2]: [f32; 4]) -> f32 {
    let ratio = |a: f32, b: f32| a.min(b).max(0.0) / a.max(b);
    (ratio(x - x1, x2 - x) * ratio(y - y1, y2 - y)).sqrt()
}
