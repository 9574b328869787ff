//! What a trained network makes of held-out scenes: detections, how good they are, and how sure it is of their sides.

use candle_core::{D, Result, Tensor};
use gfocal_candle::gfocal::head::BoxCoding;
use gfocal_candle::{BoxLevel, decode};
use serde::{Deserialize, Serialize};

use super::eval::{Ap, Detection, average_precision, correlation, iou, suppress};
use super::losses::{Losses, corners, point};
use super::model::{Model, STRIDES, width};
use super::scenes::{CLASSES, Object, SIZE, Scenes, Side};
use super::train::{Batch, Settings};

/// Held-out scenes have numbers that no training comes to.
pub fn held_out(number: usize) -> u64 {
    (1 << 63) + number as u64
}

const BATCH: usize = 16;

/// Detections before and after the branch of the quality, if there is one, has its say.
pub struct Detections {
    pub by_score: Vec<Vec<Detection>>,
    pub by_class_score: Vec<Vec<Detection>>,
}

/// Detections in the held-out scenes of some numbers.
pub fn detect(
    settings: &Settings,
    losses: &Losses,
    model: &Model,
    numbers: std::ops::Range<usize>,
) -> Result<Detections> {
    let mut all = Detections { by_score: Vec::new(), by_class_score: Vec::new() };
    for first in numbers.clone().step_by(BATCH) {
        let scenes = first..numbers.end.min(first + BATCH);
        let images = Batch::new(settings.scenes, scenes.clone().map(held_out))?.images;
        let outputs = model.forward(&images)?;
        let boxes_of = |(of, stride): (&super::model::Outputs, usize)| BoxLevel {
            boxes: of.boxes.detach(),
            stride: stride as f64,
            points: gfocal_candle::Points::Grid { offset: super::losses::OFFSET },
        };
        let levels: Vec<_> = outputs.iter().zip(STRIDES).map(boxes_of).collect();
        let boxes = decode(losses.head().box_coding(), &levels)?;
        // [B, A, C] and [B, A, 1]
        let rows = |of: &dyn Fn(&super::model::Outputs) -> Option<Tensor>| -> Result<Option<Tensor>> {
            let levels: Option<Vec<Tensor>> = outputs.iter().map(of).collect();
            let Some(levels) = levels else { return Ok(None) };
            let flat =
                levels.iter().map(|level| level.flatten_from(2)?.transpose(1, 2)?.detach().contiguous());
            Ok(Some(Tensor::cat(&flat.collect::<Result<Vec<_>>>()?, 1)?))
        };
        let cls = rows(&|of| Some(of.cls.clone()))?.expect("all levels have classes");
        let quality = rows(&|of| of.quality.clone())?;
        for image in 0..scenes.len() {
            let scores = sigmoid(&cls.get(image)?)?;
            let boxes = corners(&boxes.get(image)?)?;
            let factors = match &quality {
                Some(quality) => sigmoid(&quality.get(image)?)?,
                None => vec![1.0; boxes.len()],
            };
            let found = |with_factor: bool| {
                let above = scores.iter().enumerate().filter(|&(_, &score)| score > settings.least_score);
                let all = above.map(|(at, &score)| Detection {
                    class: at % CLASSES,
                    score: if with_factor { score * factors[at / CLASSES] } else { score },
                    corners: boxes[at / CLASSES].map(|at| at.clamp(0.0, SIZE as f32)),
                });
                suppress(all.collect(), settings.suppress_iou, settings.most_detections)
            };
            all.by_score.push(found(true));
            all.by_class_score.push(found(false));
        }
    }
    Ok(all)
}

fn sigmoid(logits: &Tensor) -> Result<Vec<f32>> {
    let logits: Vec<f32> = logits.flatten_all()?.to_vec1()?;
    Ok(logits.into_iter().map(|x| 1.0 / (1.0 + (-x).exp())).collect())
}

/// What is in the held-out scenes.
pub fn truth(scenes: Scenes, numbers: std::ops::Range<usize>) -> Vec<Vec<Object>> {
    numbers.map(|number| scenes.scene(held_out(number)).objects).collect()
}

/// How good a network is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Quality {
    pub ap: f64,
    pub ap50: f64,
    pub ap75: f64,
    pub ap90: f64,
    /// Control: by class scores alone, in arms that have a branch for the quality.
    pub ap_class_score: Option<f64>,
    /// Of the score of a detection and its IoU with the nearest object of its class.
    pub correlation: f64,
    /// What is said of sides, in arms with distributions.
    pub sides: Option<Sides>,
}

pub fn evaluate(settings: &Settings, losses: &Losses, model: &Model) -> Result<Quality> {
    let numbers = 0..settings.test_scenes;
    let (found, truth) = (detect(settings, losses, model, numbers.clone())?, truth(settings.scenes, numbers));
    let Ap { mean: ap, at_50: ap50, at_75: ap75, at_90: ap90 } = average_precision(&found.by_score, &truth);
    Ok(Quality {
        ap,
        ap50,
        ap75,
        ap90,
        ap_class_score: losses.has_branch().then(|| average_precision(&found.by_class_score, &truth).mean),
        correlation: correlation(&scores_and_ious(&found.by_score, &truth)),
        sides: Sides::of(settings, losses, model)?,
    })
}

/// Score and IoU of all detections of a class that is there.
pub fn scores_and_ious(found: &[Vec<Detection>], truth: &[Vec<Object>]) -> Vec<[f32; 2]> {
    let mut pairs = Vec::new();
    for (found, objects) in found.iter().zip(truth) {
        for of in found {
            let same = objects.iter().filter(|object| object.class == of.class);
            let best = same.map(|object| iou(object.corners, of.corners)).max_by(f32::total_cmp);
            pairs.extend(best.map(|iou| [of.score, iou]));
        }
    }
    pairs
}

/// A side of a box at a position that is trained on it.
#[derive(Clone)]
pub struct Said {
    pub scene: usize,
    pub side: usize,
    pub of: Object,
    /// Of the object's class, at this position.
    pub score: f32,
    /// Pixels.
    pub point: [f32; 2],
    pub stride: f32,
    /// In strides from the point.
    pub target: f32,
    /// The other place that is as true.
    pub alternative: Option<f32>,
    /// The distribution over the bins.
    pub probabilities: Vec<f32>,
}

/// What a network with distributions says of the sides of some held-out scenes.
pub fn said(
    kind: Scenes,
    losses: &Losses,
    model: &Model,
    numbers: std::ops::Range<usize>,
) -> Result<Option<Vec<Said>>> {
    let BoxCoding::Bins(bins) = losses.head().box_coding() else { return Ok(None) };
    let mut all = Vec::new();
    for first in numbers.clone().step_by(BATCH) {
        let scenes = first..numbers.end.min(first + BATCH);
        let (batch, truth) = (Batch::new(kind, scenes.clone().map(held_out))?, truth(kind, scenes.clone()));
        let targets = losses.assign(&batch.truth, scenes.len())?;
        for (level, (outputs, targets)) in model.forward(&batch.images)?.iter().zip(targets).enumerate() {
            // [B, 4K, H, W] to [B·H·W, 4, K]
            let logits = outputs.boxes.detach().permute((0, 2, 3, 1))?.reshape(((), 4, bins))?;
            let weights = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?)?.exp()?;
            let p =
                weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?.flatten_all()?.to_vec1::<f32>()?;
            let scores = sigmoid(&outputs.cls.detach().permute((0, 2, 3, 1))?)?;
            let (labels, boxes) = (targets.labels.flatten_all()?.to_vec1::<i64>()?, corners(&targets.boxes)?);
            let (count, stride) = (width(level) * width(level), STRIDES[level] as f32);
            for (row, &label) in labels.iter().enumerate() {
                let (image, point) = (row / count, point(level, row % count));
                let is = |object: &&Object| object.class as i64 == label && object.corners == boxes[row];
                let Some(&of) = truth[image].iter().find(is) else { continue };
                for side in 0..4 {
                    let distance =
                        |at: f32| (at - point[side % 2]) * if side < 2 { -1.0 } else { 1.0 } / stride;
                    all.push(Said {
                        scene: scenes.start + image,
                        side,
                        of,
                        score: scores[row * CLASSES + of.class],
                        point,
                        stride,
                        target: distance(of.corners[side]),
                        alternative: match of.sides[side] {
                            Side::Alternative(other) => Some(distance(other)),
                            _ => None,
                        },
                        probabilities: p[(4 * row + side) * bins..][..bins].to_vec(),
                    });
                }
            }
        }
    }
    Ok(Some(all))
}

impl Said {
    pub fn expectation(&self) -> f32 {
        self.probabilities.iter().enumerate().map(|(bin, p)| bin as f32 * p).sum()
    }

    /// In nats.
    pub fn entropy(&self) -> f32 {
        -self.probabilities.iter().map(|&p| if p > 0.0 { p * p.ln() } else { 0.0 }).sum::<f32>()
    }

    fn deviation(&self) -> f32 {
        let mean = self.expectation();
        let squares = self.probabilities.iter().enumerate().map(|(bin, p)| p * (bin as f32 - mean).powi(2));
        squares.sum::<f32>().sqrt()
    }

    /// Two bins above a tenth, and between them one below half of both.
    pub fn has_two_peaks(&self) -> bool {
        let p = &self.probabilities;
        let high: Vec<usize> = (0..p.len()).filter(|&bin| p[bin] > 0.1).collect();
        let valley = |a: usize, b: usize| p[a..=b].iter().copied().fold(1.0, f32::min);
        let apart = |&[a, b]: &[usize; 2]| valley(a, b) < 0.5 * p[a].min(p[b]);
        high.iter()
            .enumerate()
            .flat_map(|(i, &a)| high[i + 1..].iter().map(move |&b| [a, b]))
            .any(|pair| apart(&pair))
    }

    /// The other true place, if the point is inside of both and bins can tell them apart.
    pub fn open_question(&self) -> Option<f32> {
        self.alternative.filter(|&other| other > 0.5 && (other - self.target).abs() > 3.0)
    }

    /// Whether it says both places, if two are true.
    pub fn says_both(&self) -> Option<bool> {
        let other = self.open_question()?;
        Some([self.target, other].iter().all(|&place| self.mass_near(place, 1.5) >= 0.2))
    }

    /// How much of it is at most so many bins from a place.
    pub fn mass_near(&self, place: f32, within: f32) -> f32 {
        let near = |&(bin, _): &(usize, &f32)| (bin as f32 - place).abs() <= within;
        self.probabilities.iter().enumerate().filter(near).map(|(_, p)| p).sum()
    }
}

/// What a network says of the sides of held-out objects, by what the image says of them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sides {
    pub clear: SideFigures,
    pub soft: SideFigures,
    pub hidden: SideFigures,
    pub alternative: SideFigures,
}

/// Means over sides; bins are strides.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SideFigures {
    pub count: usize,
    /// Nats.
    pub entropy: f64,
    /// Bins.
    pub deviation: f64,
    /// Of the expectation, bins.
    pub error: f64,
    /// Part with two peaks.
    pub two_peaks: f64,
    /// Of those where two places are true, more than 3 bins apart, and the point is inside of both: part with at
    /// least a fifth within 1.5 bins of each.
    pub both_places: Option<f64>,
}

impl Sides {
    fn of(settings: &Settings, losses: &Losses, model: &Model) -> Result<Option<Sides>> {
        let Some(all) = said(settings.scenes, losses, model, 0..settings.test_scenes)? else {
            return Ok(None);
        };
        let of = |is: fn(Side) -> bool| {
            SideFigures::of(all.iter().filter(|said| is(said.of.sides[said.side])).collect())
        };
        Ok(Some(Sides {
            clear: of(|side| side == Side::Clear),
            soft: of(|side| side == Side::Soft),
            hidden: of(|side| side == Side::Hidden),
            alternative: of(|side| matches!(side, Side::Alternative(_))),
        }))
    }
}

impl SideFigures {
    fn of(all: Vec<&Said>) -> SideFigures {
        let mean = |of: &dyn Fn(&Said) -> f32| {
            all.iter().map(|said| f64::from(of(said))).sum::<f64>() / all.len().max(1) as f64
        };
        let part = |is: bool| f32::from(u8::from(is));
        let both: Vec<bool> = all.iter().filter_map(|said| said.says_both()).collect();
        SideFigures {
            count: all.len(),
            entropy: mean(&Said::entropy),
            deviation: mean(&Said::deviation),
            error: mean(&|said| (said.expectation() - said.target).abs()),
            two_peaks: mean(&|said| part(said.has_two_peaks())),
            both_places: (!both.is_empty())
                .then(|| both.iter().filter(|&&both| both).count() as f64 / both.len() as f64),
        }
    }
}
