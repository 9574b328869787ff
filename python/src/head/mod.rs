//! The head loss.

mod cpu;
mod cuda;
pub mod inputs;

use gfocal::boxes::IouKind;
use gfocal::head::{BoxCoding, BoxWeight, Normaliser, QualitySource};
use gfocal::{DistributionFocalLoss, HeadLoss, QualityFocalLoss};
use pyo3::prelude::*;

use crate::error::{Outcome, value};
use crate::head::inputs::{Gradients, Inputs, each};
use crate::qfl::background;
use crate::tensor::{Device, Tensor, check_overlaps, for_cuda_floats, for_floats};

/// The loss with its options, which are checked when it is made.
#[pyclass(frozen, module = "gfocal._native")]
pub struct Head(HeadLoss);

/// Where results go.
struct Outputs {
    /// What to divide by; if nothing else is written, phase one alone is run.
    counted: Option<Tensor>,
    losses: Option<Tensor>,
    gradients: Option<Gradients>,
    found_inf: Option<Tensor>,
    status: Option<Tensor>,
    /// Of CUDA.
    workspace: Option<Tensor>,
    /// It is as phase one has left it.
    resume: bool,
}

impl Outputs {
    fn check(&self, inputs: &Inputs) -> Outcome {
        let levels = inputs.cls.len();
        let dtype = inputs.beside();
        if let Some(losses) = &self.losses {
            losses.expect(&[levels, 3], &format_args!("{levels} levels"))?;
            losses.expect_dtype(dtype, &"a loss")?;
        }
        if let Some(counted) = &self.counted {
            inputs.check_normalisers(counted)?;
        }
        if let Some(gradients) = &self.gradients {
            gradients.check(inputs)?;
        }
        if self.losses.is_none() && self.gradients.is_none() && self.counted.is_none() {
            return Err(value(
                "there is nowhere to write to: no losses, no gradients, no normalisers".to_owned(),
            ));
        }
        let of_levels = self.gradients.iter().flat_map(Gradients::tensors);
        let others = [&self.counted, &self.losses, &self.found_inf, &self.status, &self.workspace];
        let written: Vec<_> = others.into_iter().flatten().chain(of_levels).collect();
        for tensor in written.iter().copied().chain(inputs.tensors()) {
            tensor.expect_device(inputs.device(), inputs.cls[0].name)?;
        }
        check_overlaps(written, inputs.tensors())
    }
}

pub fn coding(name: &str, bins: usize) -> Outcome<BoxCoding> {
    match name {
        "bins" => Ok(BoxCoding::Bins(bins)),
        "exp" => Ok(BoxCoding::Exp),
        "relu" => Ok(BoxCoding::Relu),
        _ => Err(one_of("coding", name, &["bins", "exp", "relu"])),
    }
}

#[pymethods]
impl Head {
    /// What is `None` is the profile's.
    #[new]
    #[pyo3(signature = (
        profile, coding, bins, beta, alpha, cls_weight, background, ignore_label, iou, box_weight, iou_eps, dfl_weight,
        target_eps, quality_source, box_weighting, normaliser,
    ))]
    #[allow(clippy::too_many_arguments, reason = "Python's, which have names")]
    fn new(
        profile: &str,
        coding: &str,
        bins: Option<usize>,
        beta: Option<f64>,
        alpha: Option<f64>,
        cls_weight: Option<f64>,
        background: &str,
        ignore_label: Option<i64>,
        iou: Option<&str>,
        box_weight: Option<f64>,
        iou_eps: Option<f64>,
        dfl_weight: Option<f64>,
        target_eps: Option<f64>,
        quality_source: Option<&str>,
        box_weighting: Option<&str>,
        normaliser: Option<&str>,
    ) -> Outcome<Head> {
        let head = match profile {
            "mmdetection" => HeadLoss::mmdetection(),
            "nanodet" => HeadLoss::nanodet(),
            "ultralytics" => HeadLoss::ultralytics(),
            _ => return Err(one_of("profile", profile, &["mmdetection", "nanodet", "ultralytics"])),
        };
        let (qfl, dfl) = (head.qfl(), head.dfl());
        let mut qfl = QualityFocalLoss::new(beta.unwrap_or(qfl.beta()))?
            .with_loss_weight(cls_weight.unwrap_or(qfl.loss_weight()))?
            .with_background(self::background(background)?);
        if let Some(alpha) = alpha {
            qfl = qfl.with_alpha(alpha)?;
        }
        if let Some(label) = ignore_label {
            qfl = qfl.with_ignore_label(label);
        }
        let dfl = DistributionFocalLoss::new(target_eps.unwrap_or(dfl.target_eps()))?
            .with_loss_weight(dfl_weight.unwrap_or(dfl.loss_weight()))?;
        let coding = self::coding(coding, bins.unwrap_or(head.bins()))?;
        let iou = match iou {
            None => head.iou(),
            Some("iou") => IouKind::Iou,
            Some("giou") => IouKind::Giou,
            Some("diou") => IouKind::Diou,
            Some("ciou") => IouKind::Ciou,
            Some("ciou_ultralytics") => IouKind::CiouUltralytics,
            Some(other) => {
                return Err(one_of("iou", other, &["iou", "giou", "diou", "ciou", "ciou_ultralytics"]));
            }
        };
        let mut head = head.with_qfl(qfl).with_dfl(dfl).with_box_coding(coding)?;
        head = head.with_iou(iou, box_weight.unwrap_or(head.iou_weight()))?;
        if let Some(eps) = iou_eps {
            head = head.with_iou_eps(eps)?;
        }
        head = match quality_source {
            None => head,
            Some("iou") => head.with_quality(QualitySource::Iou),
            Some("given") => head.with_quality(QualitySource::Given),
            Some(other) => return Err(one_of("quality_source", other, &["iou", "given"])),
        };
        head = match box_weighting {
            None => head,
            Some("max_score") => head.with_box_weight(BoxWeight::MaxScore),
            Some("quality") => head.with_box_weight(BoxWeight::Quality),
            Some("given") => head.with_box_weight(BoxWeight::Given),
            Some(other) => return Err(one_of("box_weighting", other, &["max_score", "quality", "given"])),
        };
        Ok(Head(match normaliser {
            None => head,
            Some("mmdetection") => head.with_normaliser(Normaliser::Mmdetection),
            Some("nanodet") => head.with_normaliser(Normaliser::Nanodet),
            Some("ultralytics") => head.with_normaliser(Normaliser::Ultralytics),
            Some(other) => {
                return Err(one_of("normaliser", other, &["mmdetection", "nanodet", "ultralytics"]));
            }
        }))
    }

    /// Lists have a tensor for each level, or none. With `counted` alone, phase one; with `workspace` and `resume`,
    /// phase two.
    #[pyo3(signature = (
        cls, boxes, labels, targets, strides, *, offset=0.0, label_weights=vec![], quality=vec![], box_weights=vec![],
        box_scores=vec![], scores=vec![], element_weights=vec![], points=vec![], class_weights=None, normalisers=None,
        upstream=None, counted=None, losses=None, cls_grads=None, box_grads=None, found_inf=None, status=None,
        workspace=None, resume=false, stream=None,
    ))]
    #[allow(clippy::too_many_arguments, reason = "Python's, which have names")]
    fn run(
        &self,
        py: Python<'_>,
        cls: Vec<Bound<'_, PyAny>>,
        boxes: Vec<Bound<'_, PyAny>>,
        labels: Vec<Bound<'_, PyAny>>,
        targets: Vec<Bound<'_, PyAny>>,
        strides: Vec<f64>,
        offset: f64,
        label_weights: Vec<Bound<'_, PyAny>>,
        quality: Vec<Bound<'_, PyAny>>,
        box_weights: Vec<Bound<'_, PyAny>>,
        box_scores: Vec<Bound<'_, PyAny>>,
        scores: Vec<Bound<'_, PyAny>>,
        element_weights: Vec<Bound<'_, PyAny>>,
        points: Vec<Bound<'_, PyAny>>,
        class_weights: Option<&Bound<'_, PyAny>>,
        normalisers: Option<&Bound<'_, PyAny>>,
        upstream: Option<&Bound<'_, PyAny>>,
        counted: Option<&Bound<'_, PyAny>>,
        losses: Option<&Bound<'_, PyAny>>,
        cls_grads: Option<Vec<Bound<'_, PyAny>>>,
        box_grads: Option<Vec<Bound<'_, PyAny>>>,
        found_inf: Option<&Bound<'_, PyAny>>,
        status: Option<&Bound<'_, PyAny>>,
        workspace: Option<&Bound<'_, PyAny>>,
        resume: bool,
        stream: Option<usize>,
    ) -> Outcome {
        let optional = |name, object: Option<&Bound<'_, PyAny>>| {
            object.map(|object| Tensor::on_stream(name, object, stream)).transpose()
        };
        let inputs = Inputs {
            cls: each!("cls_scores", cls, stream)?,
            boxes: each!("bbox_preds", boxes, stream)?,
            labels: each!("labels", labels, stream)?,
            targets: each!("box_targets", targets, stream)?,
            label_weights: each!("label_weights", label_weights, stream)?,
            quality: each!("quality", quality, stream)?,
            box_weights: each!("box_weights", box_weights, stream)?,
            box_scores: each!("box_scores", box_scores, stream)?,
            scores: each!("scores", scores, stream)?,
            element_weights: each!("element_weights", element_weights, stream)?,
            points: each!("points", points, stream)?,
            class_weights: optional("class_weights", class_weights)?,
            normalisers: optional("normalisers", normalisers)?,
            upstream: optional("upstream", upstream)?,
            strides,
            offset,
        };
        inputs.check(&self.0)?;
        let gradients = match (cls_grads, box_grads) {
            (Some(cls), Some(boxes)) => Some(Gradients {
                cls: each!("cls_scores' gradient", cls, stream)?,
                boxes: each!("bbox_preds' gradient", boxes, stream)?,
            }),
            (None, None) => None,
            _ => return Err(value("cls_grads and box_grads are given both, or neither".to_owned())),
        };
        let mut out = Outputs {
            counted: optional("counted", counted)?,
            losses: optional("losses", losses)?,
            gradients,
            found_inf: optional("found_inf", found_inf)?,
            status: optional("status", status)?,
            workspace: optional("workspace", workspace)?,
            resume,
        };
        out.check(&inputs)?;
        match inputs.device() {
            Device::Cpu => for_floats!(inputs.cls[0], T => {
                for_floats!(inputs.boxes[0], U => cpu::run::<T, U>(&self.0, py, &inputs, &mut out))
            }),
            Device::Cuda(_) => {
                let on = crate::cuda::on_of(py, &inputs.cls[0], stream)?;
                for_cuda_floats!(inputs.cls[0], T => {
                    for_cuda_floats!(inputs.boxes[0], U => cuda::run::<T, U>(&self.0, py, &on, &inputs, &out))
                })
            }
        }
    }
}

fn one_of(option: &str, actual: &str, words: &[&str]) -> crate::error::Failure {
    let words: Vec<_> = words.iter().map(|word| format!("{word:?}")).collect();
    value(format!("{option} is {actual:?}, it must be one of {}", words.join(", ")))
}
