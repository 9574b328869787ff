//! Distribution Focal Loss.

use candle_core::{Result, Tensor};
use gfocal::DistributionFocalLoss;

use crate::record::{Op, Output, constant, record};
use crate::rows::{DflOptions, Rows};
use crate::tensor::{Float, Held, Place, Tracked, for_floats, place};

/// Distribution Focal Loss of the logits z of box sides, with a target distance t for each, in units of bins:
///
/// ```text
/// i = min(⌊t⌋, K−2),   w_r = t − i,   w_l = 1 − w_r
/// DFL(z, t)  = −w_l·log p_i − w_r·log p_(i+1),   p = softmax(z)
/// dDFL/dz_j  = p_j − w_l·[j = i] − w_r·[j = i+1]
/// ```
///
/// | tensor | shape | type |
/// | --- | --- | --- |
/// | `logits` | `[.., bins]` | f32, f16, bf16; f64 on the CPU |
/// | `target` | `[..]`, from 0 to bins − 1; beyond, it is clamped and counted | floats; give f32: bf16 has no 15.99 |
/// | the loss | `()`, or `[..]` with [`Reduction::None`](gfocal::Reduction::None) | f32; f64 of f64 |
///
/// The gradient is that of the logits alone, made in the backward pass.
///
/// ```
/// use candle_core::{Device, Tensor, Var};
/// use gfocal_candle::{DflOptions, DistributionFocalLoss, dfl};
///
/// let logits = Var::from_slice(&[0f32; 4], (1, 4), &Device::Cpu)?; // one side, 4 bins, nothing learned yet
/// let target = Tensor::new(&[1.25f32], &Device::Cpu)?; // three quarters in bin 1, one quarter in bin 2
/// let loss = dfl(&DistributionFocalLoss::default(), &logits, &target, &DflOptions::default())?;
/// assert!((loss.to_scalar::<f32>()? - 4f32.ln()).abs() < 1e-6);
///
/// let grad = loss.backward()?.remove(&logits).unwrap();
/// assert_eq!(grad.to_vec2::<f32>()?, [[0.25, -0.5, 0.0, 0.25]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// If shapes, types or devices do not go together, `target` or a weight depends on a variable, an option is outside its
/// range, or the driver refuses a launch.
pub fn dfl(
    loss: &DistributionFocalLoss,
    logits: &Tensor,
    target: &Tensor,
    options: &DflOptions,
) -> Result<Tensor> {
    record(Dfl::new(loss, logits, target, options)?, &[logits])
}

pub(crate) struct Dfl {
    loss: DistributionFocalLoss,
    rows: Rows,
    target: Tensor,
}

impl Op for Dfl {
    const NAME: &'static str = "gfocal-dfl";

    fn forward(&self) -> Result<Output> {
        self.run(None)
    }

    fn backward(&self, upstream: &Tensor) -> Result<Vec<Tensor>> {
        Ok(vec![constant(self.run(Some(&self.rows.upstream(upstream)?))?)])
    }
}

impl Dfl {
    pub(crate) fn new(
        loss: &DistributionFocalLoss,
        logits: &Tensor,
        target: &Tensor,
        options: &DflOptions,
    ) -> Result<Self> {
        let rows = Rows::new(logits, options.weight.as_ref(), &options.reduction, &options.report)?;
        Ok(Dfl { loss: *loss, target: rows.per_row("target", target, Tracked::Refused)?, rows })
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
        let (rows, target) = (self.rows.hold(upstream)?, Held::new(&self.target)?);
        let mut found_inf = [0.0];
        let call = self.loss.cpu(rows.logits.host::<T>()?, self.rows.shape, target.host()?);
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
        let (rows, target) = (self.rows.hold(upstream)?, Held::new(&self.target)?);
        let (rows, target) = (rows.views::<T>()?, target.device::<f32>()?);
        self.rows.report.on_device(device, |report| {
            crate::cuda::with(device, |work| {
                let call = self.loss.cuda(&work.handle, &rows.logits, self.rows.shape, &target);
                rows.run(call, device, report)
            })
        })
    }
}
