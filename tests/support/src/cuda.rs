//! Runs a case on CUDA.

use gfocal::cuda::{Device, Scalar, StatusBlock};
use gfocal::cudarc::driver::{CudaView, CudaViewMut};
use gfocal::{Call, DistributionFocalLoss, QualityFocalLoss, Reduction, Result, integral};

use super::case::{Case, Loss, Outcome, Pass};
use super::cpu::{dfl_of, narrowed, qfl_of};
use super::gpu::{Buffer, Gpu, OnDevice, Poison};

/// Where the buffers lie, in elements from the start of an allocation, and which numbers are on
/// the device.
#[derive(Clone, Copy, Debug, Default)]
pub struct Layout {
    pub logits: usize,
    pub grad: usize,
    pub loss: usize,
    /// Labels, or the targets of a loss that has none.
    pub targets: usize,
    pub quality: usize,
    pub weight: usize,
    pub upstream: usize,
    pub device_avg_factor: bool,
    pub device_grad_scale: bool,
}

impl Layout {
    /// All buffers as the driver aligns them.
    pub const ALIGNED: Layout = Layout {
        logits: 0,
        grad: 0,
        loss: 0,
        targets: 0,
        quality: 0,
        weight: 0,
        upstream: 0,
        device_avg_factor: false,
        device_grad_scale: false,
    };
    /// No buffer at a multiple of 16 bytes, and no two alike. Numbers are on the device.
    pub const MISALIGNED: Layout = Layout {
        logits: 1,
        grad: 3,
        loss: 1,
        targets: 3,
        quality: 1,
        weight: 3,
        upstream: 5,
        device_avg_factor: true,
        device_grad_scale: true,
    };
}

/// The device buffers of a case, for calls on them.
pub struct Buffers<T> {
    pub logits: Buffer<T>,
    pub labels: Buffer<i64>,
    pub narrow: Buffer<i32>,
    pub quality: Buffer<f32>,
    pub target: Buffer<f32>,
    pub weight: Option<Buffer<f32>>,
    pub upstream: Option<Buffer<f32>>,
    pub class_weights: Option<Buffer<f32>>,
    pub element_weights: Option<Buffer<f32>>,
    pub avg_factor: Option<Buffer<f32>>,
    pub grad_scale: Option<Buffer<f32>>,
    pub found_inf: Buffer<f32>,
    pub loss: Buffer<f32>,
    pub grad: Buffer<T>,
    pub status: StatusBlock,
    /// Do without `found_inf` and `status`.
    pub bare: bool,
}

impl<T: OnDevice> Buffers<T> {
    pub fn new(gpu: &Gpu, case: &Case, layout: &Layout) -> Buffers<T> {
        let (mut labels, mut narrow, mut quality, mut target) = (&[][..], vec![], &[][..], &[][..]);
        match &case.loss {
            Loss::Sparse { labels: l, narrow: false, quality: q, .. } => (labels, quality) = (l, q),
            Loss::Sparse { labels: l, narrow: true, quality: q, .. } => (narrow, quality) = (narrowed(l), q),
            Loss::Dense { target: t, .. } | Loss::Dfl { target: t, .. } => target = t,
        }
        let options = &case.options;
        let given = |values: &Option<Vec<f32>>, offset| {
            values.as_ref().map(|values| Buffer::new(gpu, values, offset))
        };
        let avg_factor = match options.reduction {
            Reduction::MeanBy { avg_factor, .. } if layout.device_avg_factor => Some(avg_factor as f32),
            _ => None,
        };
        let grad_scale = layout.device_grad_scale.then_some(options.grad_scale as f32);
        Buffers {
            logits: Buffer::new(gpu, &case.logits_as::<T>(), layout.logits),
            labels: Buffer::new(gpu, labels, layout.targets),
            narrow: Buffer::new(gpu, &narrow, layout.targets),
            quality: Buffer::new(gpu, quality, layout.quality),
            target: Buffer::new(gpu, target, layout.targets),
            weight: given(&options.weight, layout.weight),
            upstream: given(&options.upstream, layout.upstream),
            class_weights: given(&options.elements.class_weights, layout.weight),
            element_weights: given(&options.elements.element_weights, layout.upstream),
            avg_factor: avg_factor.map(|value| Buffer::new(gpu, &[value], 1)),
            grad_scale: grad_scale.map(|value| Buffer::new(gpu, &[value], 2)),
            found_inf: Buffer::new(gpu, &[Outcome::<T>::FLAG_BEFORE], 1),
            loss: Buffer::poisoned(gpu, case.losses(), layout.loss),
            grad: Buffer::poisoned(gpu, case.logits.len(), layout.grad),
            status: StatusBlock::new(&gpu.stream).expect("device memory"),
            bare: false,
        }
    }

    /// What a call reads and counts in; and where its loss and its gradient go.
    pub fn views(&mut self) -> (Views<'_, T>, CudaViewMut<'_, f32>, CudaViewMut<'_, T>) {
        let views = Views {
            logits: self.logits.view(),
            labels: self.labels.view(),
            narrow: self.narrow.view(),
            quality: self.quality.view(),
            target: self.target.view(),
            weight: self.weight.as_ref().map(Buffer::view),
            upstream: self.upstream.as_ref().map(Buffer::view),
            class_weights: self.class_weights.as_ref().map(Buffer::view),
            element_weights: self.element_weights.as_ref().map(Buffer::view),
            avg_factor: self.avg_factor.as_ref().map(Buffer::view),
            grad_scale: self.grad_scale.as_ref().map(Buffer::view),
            reports: (!self.bare).then(|| (self.found_inf.view_mut(), &mut self.status)),
        };
        (views, self.loss.view_mut(), self.grad.view_mut())
    }

    /// Enqueues the call.
    pub fn call(&mut self, gpu: &Gpu, case: &Case, pass: Pass) -> Result<()> {
        let (mut views, mut loss, mut grad) = self.views();
        macro_rules! run {
            ($call:expr) => {
                match pass {
                    Pass::Forward => $call.forward(&mut loss),
                    Pass::ForwardBackward => $call.forward_backward(&mut loss, &mut grad),
                    Pass::Backward => $call.backward(&mut grad),
                }
            };
        }
        match case.loss {
            Loss::Dfl { .. } => run!(views.dfl(gpu, case, &dfl_of(case)?)),
            _ => run!(views.qfl(gpu, case, &qfl_of(case)?)),
        }
    }

    /// What the call has left behind.
    #[track_caller]
    pub fn outcome(&self, gpu: &Gpu, pass: Pass) -> Outcome<T> {
        let (mut loss, mut grad) = (self.loss.read(gpu), self.grad.read(gpu));
        if pass == Pass::Backward {
            assert!(loss.drain(..).all(|loss| loss.is_poison()), "a backward pass wrote a loss");
        }
        if pass == Pass::Forward {
            assert!(grad.drain(..).all(|grad| grad.is_poison()), "a forward pass wrote a gradient");
        }
        let status = self.status.read(&gpu.stream).expect("the stream's work ends well");
        Outcome { loss, grad, status, found_inf: self.found_inf.read(gpu)[0] }
    }
}

/// Views of a case's buffers, which a call borrows.
pub struct Views<'a, T> {
    logits: CudaView<'a, T>,
    labels: CudaView<'a, i64>,
    narrow: CudaView<'a, i32>,
    quality: CudaView<'a, f32>,
    target: CudaView<'a, f32>,
    weight: Option<CudaView<'a, f32>>,
    upstream: Option<CudaView<'a, f32>>,
    class_weights: Option<CudaView<'a, f32>>,
    element_weights: Option<CudaView<'a, f32>>,
    avg_factor: Option<CudaView<'a, f32>>,
    grad_scale: Option<CudaView<'a, f32>>,
    reports: Option<(CudaViewMut<'a, f32>, &'a mut StatusBlock)>,
}

/// A call with all options of a case.
macro_rules! with_options {
    ($views:ident, $case:ident, $call:expr) => {{
        let options = &$case.options;
        let reduction = match (options.reduction, &$views.avg_factor) {
            (Reduction::MeanBy { policy, .. }, Some(on_device)) => {
                Reduction::MeanBy { avg_factor: on_device.into(), policy }
            }
            (reduction, _) => reduction.into(),
        };
        let grad_scale = $views.grad_scale.as_ref().map_or(Scalar::Host(options.grad_scale), Scalar::from);
        let mut call = $call.reduction(reduction).grad_scale(grad_scale);
        if let Some((found_inf, status)) = &mut $views.reports {
            call = call.found_inf(found_inf).status(status);
        }
        if let Some(weight) = &$views.weight {
            call = call.weight(weight);
        }
        if let Some(upstream) = &$views.upstream {
            call = call.upstream(upstream);
        }
        call
    }};
}

impl<T: OnDevice> Views<'_, T> {
    pub fn qfl<'b>(
        &'b mut self,
        gpu: &'b Gpu,
        case: &Case,
        qfl: &'b QualityFocalLoss,
    ) -> Call<'b, QualityFocalLoss, Device, T> {
        let (handle, logits, shape) = (&gpu.handle, &self.logits, case.shape);
        let call = match case.loss {
            Loss::Sparse { narrow: false, .. } => {
                qfl.cuda(handle, logits, shape, &self.labels, &self.quality)
            }
            Loss::Sparse { narrow: true, .. } => qfl.cuda(handle, logits, shape, &self.narrow, &self.quality),
            _ => qfl.cuda_dense(handle, logits, shape, &self.target),
        };
        let mut call = with_options!(self, case, call);
        if let Some(weights) = &self.class_weights {
            call = call.class_weights(weights);
        }
        if let Some(weights) = &self.element_weights {
            call = call.element_weights(weights);
        }
        call
    }

    pub fn dfl<'b>(
        &'b mut self,
        gpu: &'b Gpu,
        case: &Case,
        dfl: &'b DistributionFocalLoss,
    ) -> Call<'b, DistributionFocalLoss, Device, T> {
        with_options!(self, case, dfl.cuda(&gpu.handle, &self.logits, case.shape, &self.target))
    }
}

#[track_caller]
pub fn run<T: OnDevice>(gpu: &Gpu, case: &Case, pass: Pass, layout: &Layout) -> Result<Outcome<T>> {
    let mut buffers = Buffers::<T>::new(gpu, case, layout);
    buffers.call(gpu, case, pass)?;
    Ok(buffers.outcome(gpu, pass))
}

/// Expectations, and their gradients.
pub fn integral<T: OnDevice>(
    gpu: &Gpu,
    logits: &[T],
    shape: [usize; 2],
    upstream: &[f32],
    layout: &Layout,
) -> Result<(Vec<f32>, Vec<T>)> {
    let (mut expectation, mut grad) =
        (Buffer::poisoned(gpu, shape[0], layout.loss), Buffer::poisoned(gpu, logits.len(), layout.grad));
    let (logits, upstream) =
        (Buffer::new(gpu, logits, layout.logits), Buffer::new(gpu, upstream, layout.upstream));
    integral::forward_cuda(&gpu.handle, &logits.view(), shape, &mut expectation.view_mut())?;
    integral::backward_cuda(&gpu.handle, &logits.view(), shape, &upstream.view(), &mut grad.view_mut())?;
    Ok((expectation.read(gpu), grad.read(gpu)))
}
