//! The integral of a distribution over bins.

use candle_core::{Result, Tensor};

use crate::record::{Op, Output, constant, record};
use crate::rows::{check_dtype, matrix};
use crate::tensor::{Float, Held, Place, beside, for_floats, host, place, stored, wrap, zeros};

/// The expectation of the distribution that logits z are, in units of bins:
///
/// ```text
/// E(z)     = Σ_j j·p_j,   p = softmax(z)
/// dE/dz_j  = p_j·(j − E)
/// ```
///
/// `logits` is `[.., bins]` in f32, f16, bf16, and f64 on the CPU; the expectation is `[..]` in f32, and f64 of f64.
/// For the boxes of a whole pyramid see [`decode`](crate::decode()).
///
/// ```
/// use candle_core::{Device, Var};
///
/// let logits = Var::from_slice(&[0f32; 4], (1, 4), &Device::Cpu)?;
/// let distance = gfocal_candle::integral(&logits)?;
/// assert_eq!(distance.to_vec1::<f32>()?, [1.5]);
/// let grad = distance.sum_all()?.backward()?.remove(&logits).unwrap();
/// assert_eq!(grad.to_vec2::<f32>()?, [[-0.375, -0.125, 0.125, 0.375]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// If there are not at least 2 bins, or the type or the device is none of these.
pub fn integral(logits: &Tensor) -> Result<Tensor> {
    record(Integral::new(logits)?, &[logits])
}

pub(crate) struct Integral {
    logits: Tensor,
    /// Rows and bins.
    shape: [usize; 2],
}

impl Op for Integral {
    const NAME: &'static str = "gfocal-integral";

    fn forward(&self) -> Result<Output> {
        self.run(None)
    }

    fn backward(&self, upstream: &Tensor) -> Result<Vec<Tensor>> {
        let upstream = upstream.to_dtype(beside(self.logits.dtype()))?.contiguous()?;
        Ok(vec![constant(self.run(Some(&upstream))?)])
    }
}

impl Integral {
    pub(crate) fn new(logits: &Tensor) -> Result<Self> {
        check_dtype("logits", logits)?;
        let (shape, _) = matrix("logits", logits)?;
        Ok(Integral { logits: logits.detach().contiguous()?, shape })
    }

    /// The expectations, or with an upstream gradient that of the logits.
    fn run(&self, upstream: Option<&Tensor>) -> Result<Output> {
        match place("logits", &self.logits)? {
            Place::Cpu => for_floats!("logits", self.logits, T => self.on_cpu::<T>(upstream)),
            #[cfg(feature = "cuda")]
            Place::Cuda(device) => {
                crate::cuda::for_floats!("logits", self.logits, T => self.on_cuda::<T>(upstream, device))
            }
        }
    }

    fn on_cpu<T: Float>(&self, upstream: Option<&Tensor>) -> Result<Output> {
        let (logits, upstream) = (Held::new(&self.logits)?, upstream.map(Held::new).transpose()?);
        let ([rows, bins], logits) = (self.shape, logits.host::<T>()?);
        if let Some(upstream) = host(&upstream)? {
            let mut grad = zeros(rows * bins);
            gfocal::integral::backward(logits, self.shape, upstream, &mut grad).map_err(wrap)?;
            return Ok((stored(grad), self.logits.shape().clone()));
        }
        let mut expectations = zeros::<T::Loss>(rows);
        gfocal::integral::forward(logits, self.shape, &mut expectations).map_err(wrap)?;
        Ok((stored(expectations), matrix("logits", &self.logits)?.1.into()))
    }

    #[cfg(feature = "cuda")]
    fn on_cuda<T: crate::cuda::CudaFloat>(
        &self,
        upstream: Option<&Tensor>,
        device: &candle_core::CudaDevice,
    ) -> Result<Output> {
        use crate::cuda::{alloc, output, view, with};

        let (logits, upstream) = (Held::new(&self.logits)?, upstream.map(Held::new).transpose()?);
        let ([rows, bins], logits, upstream) = (self.shape, logits.device::<T>()?, view(&upstream)?);
        with(device, |work| {
            let handle = &work.handle;
            if let Some(upstream) = &upstream {
                let mut grad = alloc::<T>(device, rows * bins)?;
                let mut to = grad.slice_mut(..rows * bins);
                gfocal::integral::backward_cuda(handle, &logits, self.shape, upstream, &mut to)
                    .map_err(wrap)?;
                return Ok(output(grad, self.logits.shape().clone(), device));
            }
            let mut expectations = alloc::<f32>(device, rows)?;
            let mut to = expectations.slice_mut(..rows);
            gfocal::integral::forward_cuda(handle, &logits, self.shape, &mut to).map_err(wrap)?;
            Ok(output(expectations, matrix("logits", &self.logits)?.1.into(), device))
        })
    }
}
