//! The head loss: from a detector's raw outputs to its losses, and back to the gradients of both outputs.

mod call;
mod level;

use candle_core::{Result, Tensor};
use gfocal::HeadLoss;

use crate::record::record;
use crate::report::Report;
pub(crate) use call::Head;
pub use level::{HeadLevel, Targets};

/// Options of [`head_with`].
#[derive(Clone, Debug, Default)]
pub struct HeadOptions {
    /// Weights of the classes in the classification loss, `[C]`; 0 masks a class, whatever its logits hold. Not given:
    /// ones.
    pub class_weights: Option<Tensor>,
    /// Where the call says what it found.
    pub report: Report,
}

/// What [`head`] gives.
#[derive(Clone, Debug)]
pub struct HeadOutput {
    /// The sum of all losses, `()`.
    pub loss: Tensor,
    /// Classification, box and distribution loss of each level, `[L, 3]`. They have gradients, so that they can be
    /// weighted one by one, or some left out.
    pub losses: Tensor,
    /// Rows of its status are anchors, counted level after level, image after image.
    pub report: Report,
}

/// The losses of a detector's head, from the raw outputs of all levels, which are not permuted, concatenated or
/// gathered. For each level of the pyramid, with stride s and anchor points c (in units of s):
///
/// ```text
/// p     = softmax of the K bins of each box side;   E = Σ_j j·p_j          (the integral)
/// box   = (c_x − E_l, c_y − E_t, c_x + E_r, c_y + E_b)
/// q     = IoU(box, target box / s)                                        (the quality, detached)
/// v     = max over classes of σ(cls)                                      (the weight, detached)
///
/// loss_cls  = w_cls · Σ_anchors label_weight · Σ_classes QFL(cls, q at the label, else 0) / N
/// loss_bbox = w_box · Σ_positives v · (1 − GIoU(box, target box / s)) / W
/// loss_dfl  = w_dfl · Σ_positives v · Σ_sides DFL(side, target distance) / (4 W)
/// N = number of positives,   W = max(Σ_positives v, 1)                    (over all levels)
/// ```
///
/// See [`gfocal::head`] for other boxes than distributions, for where q, v, N and W come from in other heads, and for
/// what counts.
///
/// | tensor | shape | type |
/// | --- | --- | --- |
/// | [`HeadLevel::cls`] | `[B, C, H, W]` or `[B, C, A]`, any strides | f32, f16, bf16; f64 on the CPU |
/// | [`HeadLevel::boxes`] | `[B, 4·K, H, W]` or `[B, 4·K, A]`, any strides | the same, maybe another one |
/// | [`Targets`] | `[B, A]` and more, with A = H·W | integers, floats |
/// | [`HeadOutput::losses`] | `[L, 3]` | f32; f64 beside class logits of f64 |
///
/// One call computes the gradients of all levels, in the backward pass. Qualities, scores and box scores are constants
/// of the loss: they may be computed from predictions, and get no gradient.
///
/// ```
/// use candle_core::{Device, Tensor, Var};
/// use gfocal_candle::{HeadLevel, HeadLoss, Points, Targets, head};
///
/// // One image, one level of one position, one class; nothing learned yet. In units of the stride the point is (½, ½),
/// // all distances are ½, and so the box is (0, 0, 1, 1).
/// let cls = Var::zeros((1, 1, 1, 1), candle_core::DType::F32, &Device::Cpu)?;
/// let boxes = Var::zeros((1, 8, 1, 1), candle_core::DType::F32, &Device::Cpu)?;
/// let labels = Tensor::new(&[[0i64]], &Device::Cpu)?;
/// let target = Tensor::new(&[[[0f32, 0., 4., 4.]]], &Device::Cpu)?; // in units of the stride (0, 0, ½, ½): IoU is ¼
/// let level = HeadLevel {
///     cls: cls.as_tensor().clone(),
///     boxes: boxes.as_tensor().clone(),
///     stride: 8.0,
///     points: Points::Grid { offset: 0.5 },
///     targets: Targets::new(labels, target),
/// };
/// let loss = HeadLoss::mmdetection().with_bins(2).map_err(candle_core::Error::wrap)?;
/// let output = head(&loss, &[level])?;
///
/// let losses = output.losses.to_vec2::<f32>()?;
/// assert!((losses[0][0] - 0.0625 * 2f32.ln()).abs() < 1e-6); // |¼ − σ(0)|² times a cross entropy of ln 2
/// assert!((losses[0][1] - 2.0 * 0.5 * 0.75).abs() < 1e-6); // weights 2 and v = ½, 1 − GIoU
/// assert!((losses[0][2] - 0.25 * 0.5 * 2f32.ln()).abs() < 1e-6);
///
/// let grads = output.loss.backward()?;
/// let of_cls = grads.get(&cls).unwrap().flatten_all()?.to_vec1::<f32>()?;
/// assert!((of_cls[0] - 0.25 * (0.0625 + 0.5 * 2f32.ln())).abs() < 1e-6);
/// assert_eq!(output.report.found_inf(&Device::Cpu)?.to_vec1::<f32>()?, [0.0]);
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// If there are not 1 to 8 levels, shapes, types or devices do not go together, a tensor that is a constant of the loss
/// by no definition depends on a variable, an option is outside its range, or the driver refuses a launch.
pub fn head(loss: &HeadLoss, levels: &[HeadLevel]) -> Result<HeadOutput> {
    head_with(loss, levels, &HeadOptions::default())
}

/// [`head`] with weights of classes, or a report that is shared with other calls.
///
/// # Errors
/// As [`head`].
pub fn head_with(loss: &HeadLoss, levels: &[HeadLevel], options: &HeadOptions) -> Result<HeadOutput> {
    let tensors: Vec<_> = levels.iter().flat_map(|level| [&level.cls, &level.boxes]).collect();
    let losses = record(Head::new(loss, levels, options)?, &tensors)?;
    Ok(HeadOutput { loss: losses.sum_all()?, losses, report: options.report.clone() })
}
