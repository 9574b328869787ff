//! Quality Focal Loss on CUDA: checks, addresses, launch.

use cudarc::driver::{DevicePtr, DevicePtrMut, DeviceSlice};

use super::{Background, QualityFocalLoss, Targets};
use crate::call::{Call, Lengths};
use crate::cuda::raw::{QflArgs, launch_qfl, qfl_units};
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
        Call::new(self, handle, logits, shape, Targets::Sparse { labels: L::device(labels), quality })
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
        Call::new(self, handle, logits, shape, Targets::Dense { target })
    }

    /// The kernels that calls need, for [`Handle::prepare`].
    pub fn units(&self, storage: Storage, pass: Pass) -> Units {
        qfl_units(self.beta as f32, storage, pass)
    }
}

pub(super) fn run<'s, T: StorageElement>(
    call: &'s mut Call<'_, QualityFocalLoss, Device, T>,
    loss: Option<&'s mut dyn DevicePtrMut<f32>>,
    grad: Option<&'s mut dyn DevicePtrMut<T>>,
) -> Result<()> {
    let handle = call.backend;
    let pass = if grad.is_some() { Pass::ForwardBackward } else { Pass::Forward };
    let mut prepared = Prepared::default();
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
    let (qfl, handle, logits, targets, [rows, classes]) =
        (call.operation, call.backend, call.logits, call.targets, call.shape);
    let (labels, quality, target) = match targets {
        Targets::Sparse { labels, quality } => (Some(labels.len()), Some(quality.len()), None),
        Targets::Dense { target } => (None, None, Some(target.len())),
    };
    let ([weight, upstream], scalars) = call.option_lengths();
    let lengths = Lengths {
        shape: call.shape,
        logits: logits.len(),
        per_row: &[("labels", labels), ("quality", quality), weight, upstream],
        like_logits: &[("target", target), ("grad", grad.as_deref().map(DeviceSlice::len))],
        loss: loss.as_deref().map(|loss| (loss.len(), call.reduction.losses(rows))),
        scalars: &scalars,
    };
    super::check(&lengths, &call.reduction, call.upstream.is_some(), call.host_grad_scale())?;

    let stream = handle.stream();
    let mut args = QflArgs {
        scaling: call.prepare(qfl.loss_weight, loss, prepared)?,
        logits: prepared.read("logits", Some(logits), stream)?,
        grad: prepared.write("grad", grad, stream)?,
        rows: rows as u64,
        classes: classes as u32,
        beta: qfl.beta as f32,
        ignore_label: qfl.ignore_label.unwrap_or(0),
        has_ignore_label: qfl.ignore_label.is_some().into(),
        background_first: (qfl.background == Background::First).into(),
        ..QflArgs::default()
    };
    match targets {
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
