//! Quality Focal Loss on CUDA: checks, addresses, launch.

use cudarc::driver::{DevicePtr, DevicePtrMut, DeviceSlice};

use super::launch::{QflArgs, launch_qfl, qfl_units};
use super::{Background, QualityFocalLoss, Targets};
use crate::call::{Call, Lengths};
use crate::cuda::{Device, Handle, Pass, Prepared, Storage, StorageElement, Units};
use crate::element::Label;
use crate::error::Result;

impl QualityFocalLoss {
    /// A call on CUDA with a label and a quality for each row: as [`cpu`](Self::cpu), with device
    /// buffers (slices, views, or your own types that implement cudarc's traits).
    pub fn cuda<'a, T: StorageElement, L: Label>(
        &'a self,
        handle: &'a Handle,
        logits: &'a impl DevicePtr<T>,
        shape: [usize; 2],
        labels: &'a impl DevicePtr<L>,
        quality: &'a impl DevicePtr<f32>,
    ) -> Call<'a, Self, Device, T> {
        let (logits, quality): (&dyn DevicePtr<T>, &dyn DevicePtr<f32>) = (logits, quality);
        let targets: Targets<Device, T> = Targets::Sparse { labels: L::device(labels), quality };
        Call::new(self, handle, logits, shape, targets.into())
    }

    /// A call on CUDA with a target for each logit: as [`cpu_dense`](Self::cpu_dense).
    pub fn cuda_dense<'a, T: StorageElement>(
        &'a self,
        handle: &'a Handle,
        logits: &'a impl DevicePtr<T>,
        shape: [usize; 2],
        target: &'a impl DevicePtr<f32>,
    ) -> Call<'a, Self, Device, T> {
        let (logits, target): (&dyn DevicePtr<T>, &dyn DevicePtr<f32>) = (logits, target);
        let targets: Targets<Device, T> = Targets::Dense { target };
        Call::new(self, handle, logits, shape, targets.into())
    }

    /// The kernels that calls need, for [`Handle::prepare`]. Calls with class weights or element weights need
    /// [others](Self::units_with_weights).
    pub fn units(&self, storage: Storage, pass: Pass) -> Units {
        qfl_units(self.beta as f32, self.alpha.is_some() || self.activated, storage, pass)
    }

    /// The kernels that calls with class weights or element weights need, for [`Handle::prepare`].
    pub fn units_with_weights(&self, storage: Storage, pass: Pass) -> Units {
        qfl_units(self.beta as f32, true, storage, pass)
    }
}

impl<'a, T: StorageElement> Call<'a, QualityFocalLoss, Device, T> {
    /// Weights of the classes, `[classes]`: what the elements of a class are multiplied by, loss and gradient. A
    /// weight of exactly 0 masks its elements, whatever their logits.
    pub fn class_weights(mut self, weights: &'a impl DevicePtr<f32>) -> Self {
        self.targets.class_weights = Some(weights);
        self
    }

    /// Weights of the elements, `[rows, classes]`, or a mask of zeros and ones: as
    /// [`class_weights`](Self::class_weights), with which they are multiplied if both are given.
    pub fn element_weights(mut self, weights: &'a impl DevicePtr<f32>) -> Self {
        self.targets.element_weights = Some(weights);
        self
    }
}

pub(super) fn run<'s, T: StorageElement>(
    call: &'s mut Call<'_, QualityFocalLoss, Device, T>,
    loss: Option<&'s mut dyn DevicePtrMut<f32>>,
    grad: Option<&'s mut dyn DevicePtrMut<T>>,
) -> Result<()> {
    let handle = call.backend;
    let pass = if grad.is_some() { Pass::ForwardBackward } else { Pass::Forward };
    let mut prepared = Prepared::on(handle)?;
    let args = prepare(call, loss, grad, &mut prepared)?;
    prepared.check_overlaps()?;
    // SAFETY: `prepare` has compared every length with the shape, and Prepared every context with the
    // stream's and the places of the buffers; it keeps them borrowed until the launch is enqueued, and
    // cudarc orders what other streams do with them.
    unsafe { launch_qfl(handle.kernels(), T::STORAGE, pass, &args, handle.stream().cu_stream().cast()) }
}

/// The kernel's parameters, after the checks of lengths and options; the buffers join `prepared`.
pub(crate) fn prepare<'s, 'b: 's, T: StorageElement>(
    call: &'s mut Call<'_, QualityFocalLoss, Device, T>,
    loss: Option<&'s mut (dyn DevicePtrMut<f32> + 'b)>,
    grad: Option<&'s mut (dyn DevicePtrMut<T> + 'b)>,
    prepared: &mut Prepared<'s>,
) -> Result<QflArgs> {
    let (qfl, handle, logits, inputs, [rows, classes]) =
        (call.operation, call.backend, call.logits, call.targets, call.shape);
    let (labels, quality, target) = match inputs.targets {
        Targets::Sparse { labels, quality } => (Some(labels.len()), Some(quality.len()), None),
        Targets::Dense { target } => (None, None, Some(target.len())),
    };
    let ([weight, upstream], scalars) = call.option_lengths();
    let lengths = Lengths {
        shape: call.shape,
        logits: logits.len(),
        per_row: &[("labels", labels), ("quality", quality), weight, upstream],
        per_column: &[("class_weights", inputs.class_weights.map(DeviceSlice::len))],
        like_logits: &[
            ("target", target),
            ("element_weights", inputs.element_weights.map(DeviceSlice::len)),
            ("grad", grad.as_deref().map(DeviceSlice::len)),
        ],
        loss: loss.as_deref().map(|loss| (loss.len(), call.reduction.losses(rows))),
        scalars: &scalars,
    };
    super::check(&lengths, &call.reduction, call.upstream.is_some(), call.host_grad_scale())?;

    let stream = handle.stream();
    let mut args = QflArgs {
        scaling: call.prepare(qfl.loss_weight, loss, prepared)?,
        logits: prepared.read("logits", Some(logits), stream)?,
        class_weights: prepared.read("class_weights", inputs.class_weights, stream)?,
        element_weights: prepared.read("element_weights", inputs.element_weights, stream)?,
        grad: prepared.write("grad", grad, stream)?,
        rows: rows as u64,
        classes: classes as u32,
        beta: qfl.beta as f32,
        ignore_label: qfl.ignore_label.unwrap_or(0),
        has_ignore_label: qfl.ignore_label.is_some().into(),
        background_first: (qfl.background == Background::First).into(),
        activated: qfl.activated.into(),
        has_alpha: qfl.alpha.is_some().into(),
        alpha: qfl.alpha.unwrap_or(0.0) as f32,
        ..QflArgs::default()
    };
    match inputs.targets {
        Targets::Sparse { labels, quality } => {
            let (labels, labels_are_i64) = prepared.read_labels(labels, stream)?;
            args.labels = labels;
            args.labels_are_i64 = labels_are_i64.into();
            args.quality = prepared.read("quality", Some(quality), stream)?;
        }
        Targets::Dense { target } => args.target = prepared.read("target", Some(target), stream)?,
    }
    Ok(args)
}
