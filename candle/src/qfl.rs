//! Quality Focal Loss.

use candle_core::{Result, Tensor};
use gfocal::QualityFocalLoss;

use crate::record::{Op, Output, constant, record};
use crate::rows::{QflOptions, Rows};
use crate::tensor::{Float, Held, Place, Tracked, for_floats, host, place};

/// Quality Focal Loss of logits, with a label and a quality for each row:
///
/// ```text
/// QFL(x, y)  = |y − σ(x)|^β · (softplus(x) − x·y)
/// dQFL/dx    = sign(d)·|d|^(β−1) · (d² + β·σ(1−σ)·(softplus(x) − x·y)),   d = σ(x) − y,   0 at d = 0
/// ```
///
/// where y is the quality of the row in the column of its label, and 0 in all others; the loss of a row is the sum over
/// its classes. See [`gfocal::qfl`] for what labels mean, α, and probabilities in place of logits.
///
/// | tensor | shape | type |
/// | --- | --- | --- |
/// | `logits` | `[.., classes]` | f32, f16, bf16; f64 on the CPU |
/// | `labels`, `quality` | `[..]` | integers; floats |
/// | the loss | `()`, or `[..]` with [`Reduction::None`](gfocal::Reduction::None) | f32; f64 of f64 |
///
/// The gradient is that of the logits alone, made in the backward pass. The quality is a constant of the loss: it may
/// be computed from predictions, and gets no gradient.
///
/// ```
/// use candle_core::{Device, Tensor, Var};
/// use gfocal_candle::{QflOptions, QualityFocalLoss, Reduction, qfl};
///
/// let logits = Var::from_slice(&[0f32, -2., 1., -1.], (2, 2), &Device::Cpu)?; // two rows, two classes
/// let labels = Tensor::new(&[0i64, 2], &Device::Cpu)?; // class 0, background
/// let quality = Tensor::new(&[0.75f32, 0.], &Device::Cpu)?;
///
/// let options = QflOptions { reduction: Reduction::Sum, ..QflOptions::default() };
/// let loss = qfl(&QualityFocalLoss::default(), &logits, &labels, &quality, &options)?;
/// assert!((loss.to_scalar::<f32>()? - 0.769653).abs() < 1e-5);
///
/// let grad = loss.backward()?.remove(&logits).unwrap().to_vec2::<f32>()?;
/// assert!((grad[0][0] - -0.25 * (0.0625 + 0.5 * 2f32.ln())).abs() < 1e-6); // σ(0) is 0.25 short of its quality
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// If shapes, types or devices do not go together, a weight depends on a variable, an option is outside its range, or
/// the driver refuses a launch.
pub fn qfl(
    loss: &QualityFocalLoss,
    logits: &Tensor,
    labels: &Tensor,
    quality: &Tensor,
    options: &QflOptions,
) -> Result<Tensor> {
    record(Qfl::sparse(loss, logits, labels, quality, options)?, &[logits])
}

/// Quality Focal Loss with a target for each logit, clamped to [0, 1]: a row may have any number of them above 0. The
/// formula is that of [`qfl`], with these y.
///
/// `target` has the shape of the logits, and is a constant of the loss as a quality is. A NaN in it makes its whole row
/// invalid: loss and gradient are 0, and the [report](crate::Report) counts it.
///
/// ```
/// use candle_core::{Device, Tensor, Var};
/// use gfocal_candle::{QflOptions, QualityFocalLoss, qfl_dense};
///
/// let logits = Var::from_slice(&[0f32, 0.], (1, 2), &Device::Cpu)?;
/// let target = Tensor::new(&[[0.75f32, 0.25]], &Device::Cpu)?;
/// let loss = qfl_dense(&QualityFocalLoss::default(), &logits, &target, &QflOptions::default())?;
/// assert!((loss.to_scalar::<f32>()? - 2. * 0.0625 * 2f32.ln()).abs() < 1e-6);
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// As [`qfl`].
pub fn qfl_dense(
    loss: &QualityFocalLoss,
    logits: &Tensor,
    target: &Tensor,
    options: &QflOptions,
) -> Result<Tensor> {
    record(Qfl::dense(loss, logits, target, options)?, &[logits])
}

/// Tensors, or what is held of them.
enum Targets<L, F = L> {
    Sparse { labels: L, quality: F },
    Dense(F),
}

pub(crate) struct Qfl {
    loss: QualityFocalLoss,
    rows: Rows,
    targets: Targets<Tensor>,
    class_weights: Option<Tensor>,
    element_weights: Option<Tensor>,
}

impl Op for Qfl {
    const NAME: &'static str = "gfocal-qfl";

    fn forward(&self) -> Result<Output> {
        self.run(None)
    }

    fn backward(&self, upstream: &Tensor) -> Result<Vec<Tensor>> {
        Ok(vec![constant(self.run(Some(&self.rows.upstream(upstream)?))?)])
    }
}

impl Qfl {
    pub(crate) fn sparse(
        loss: &QualityFocalLoss,
        logits: &Tensor,
        labels: &Tensor,
        quality: &Tensor,
        options: &QflOptions,
    ) -> Result<Self> {
        Qfl::new(loss, logits, options, |rows| {
            let labels = rows.labels("labels", labels)?;
            Ok(Targets::Sparse { labels, quality: rows.per_row("quality", quality, Tracked::Detached)? })
        })
    }

    pub(crate) fn dense(
        loss: &QualityFocalLoss,
        logits: &Tensor,
        target: &Tensor,
        options: &QflOptions,
    ) -> Result<Self> {
        Qfl::new(loss, logits, options, |rows| {
            Ok(Targets::Dense(rows.per_logit("target", target, Tracked::Detached)?))
        })
    }

    fn new(
        loss: &QualityFocalLoss,
        logits: &Tensor,
        options: &QflOptions,
        targets: impl FnOnce(&Rows) -> Result<Targets<Tensor>>,
    ) -> Result<Self> {
        let QflOptions { weight, class_weights, element_weights, reduction, report } = options;
        let rows = Rows::new(logits, weight.as_ref(), reduction, report)?;
        let of_class = |weights| rows.per_column("class_weights", weights);
        let of_element = |weights| rows.per_logit("element_weights", weights, Tracked::Refused);
        Ok(Qfl {
            loss: *loss,
            targets: targets(&rows)?,
            class_weights: class_weights.as_ref().map(of_class).transpose()?,
            element_weights: element_weights.as_ref().map(of_element).transpose()?,
            rows,
        })
    }

    /// The losses, or with an upstream gradient that of the logits.
    fn run(&self, upstream: Option<&Tensor>) -> Result<Output> {
        match place("logits", &self.rows.logits)? {
            Place::Cpu => for_floats!("logits", self.rows.logits, T => self.on_cpu::<T>(upstream)),
            #[cfg(feature = "cuda")]
            Place::Cuda(device) => {
                crate::cuda::for_floats!("logits", self.rows.logits, T => self.on_cuda::<T>(upstream, device))
            }
        }
    }

    fn on_cpu<T: Float>(&self, upstream: Option<&Tensor>) -> Result<Output> {
        let rows = self.rows.hold(upstream)?;
        let (class_weights, element_weights) =
            (Held::of(&self.class_weights)?, Held::of(&self.element_weights)?);
        let (logits, shape) = (rows.logits.host::<T>()?, self.rows.shape);
        let targets = self.targets.hold()?;
        let mut found_inf = [0.0];
        let mut call = match &targets {
            Targets::Sparse { labels, quality } => {
                self.loss.cpu(logits, shape, labels.host::<i64>()?, quality.host()?)
            }
            Targets::Dense(target) => self.loss.cpu_dense(logits, shape, target.host()?),
        };
        if let Some(weights) = host(&class_weights)? {
            call = call.class_weights(weights);
        }
        if let Some(weights) = host(&element_weights)? {
            call = call.element_weights(weights);
        }
        let (output, status) = rows.run(call, &mut found_inf)?;
        self.rows.report.add(if upstream.is_none() { status } else { Default::default() }, found_inf);
        Ok(output)
    }

    #[cfg(feature = "cuda")]
    fn on_cuda<T: crate::cuda::CudaFloat>(
        &self,
        upstream: Option<&Tensor>,
        device: &candle_core::CudaDevice,
    ) -> Result<Output> {
        let rows = self.rows.hold(upstream)?;
        let (class_weights, element_weights) =
            (Held::of(&self.class_weights)?, Held::of(&self.element_weights)?);
        let rows = rows.views::<T>()?;
        let (class_weights, element_weights) =
            (crate::cuda::view(&class_weights)?, crate::cuda::view(&element_weights)?);
        let (targets, shape) = (self.targets.hold()?, self.rows.shape);
        let targets = targets.views()?;
        self.rows.report.on_device(device, |report| {
            crate::cuda::with(device, |work| {
                let handle = &work.handle;
                let mut call = match &targets {
                    Targets::Sparse { labels, quality } => {
                        self.loss.cuda(handle, &rows.logits, shape, labels, quality)
                    }
                    Targets::Dense(target) => self.loss.cuda_dense(handle, &rows.logits, shape, target),
                };
                if let Some(weights) = &class_weights {
                    call = call.class_weights(weights);
                }
                if let Some(weights) = &element_weights {
                    call = call.element_weights(weights);
                }
                rows.run(call, device, report)
            })
        })
    }
}

impl Targets<Tensor> {
    fn hold(&self) -> Result<Targets<Held<'_>>> {
        Ok(match self {
            Targets::Sparse { labels, quality } => {
                Targets::Sparse { labels: Held::new(labels)?, quality: Held::new(quality)? }
            }
            Targets::Dense(target) => Targets::Dense(Held::new(target)?),
        })
    }
}

#[cfg(feature = "cuda")]
impl Targets<Held<'_>> {
    fn views(&self) -> Result<Targets<crate::cuda::View<'_, i64>, crate::cuda::View<'_, f32>>> {
        Ok(match self {
            Targets::Sparse { labels, quality } => {
                Targets::Sparse { labels: labels.device()?, quality: quality.device()? }
            }
            Targets::Dense(target) => Targets::Dense(target.device()?),
        })
    }
}
