//! A call under construction: an operation, its tensors and its options.

use crate::element::{Element, Sealed};
use crate::error::{Error, Result, check_option};
use crate::memory::{Host, Memory};
use crate::reduction::Reduction;
use crate::status::Status;

/// A loss that can be called. What is hidden here is behind the methods of [`Call`].
pub trait Operation: Sealed + Sized {
    /// Its tensors besides the logits.
    type Targets<'a, M: Memory, T: Element>: Copy;

    #[doc(hidden)]
    fn run_cpu<T: Element>(
        call: &mut Call<'_, Self, Host, T>,
        loss: Option<&mut [T::Loss]>,
        grad: Option<&mut [T]>,
    ) -> Result<Status>;

    #[doc(hidden)]
    #[cfg(feature = "cuda")]
    fn run_cuda<'s, T: crate::cuda::StorageElement>(
        call: &'s mut Call<'_, Self, crate::cuda::Device, T>,
        loss: Option<&'s mut dyn cudarc::driver::DevicePtrMut<f32>>,
        grad: Option<&'s mut dyn cudarc::driver::DevicePtrMut<T>>,
    ) -> Result<()>;
}

/// A loss, its tensors and its options; [`forward`](Call::forward),
/// [`forward_backward`](Call::forward_backward) or [`backward`](Call::backward) run it.
///
/// Made by [`QualityFocalLoss`](crate::QualityFocalLoss) and
/// [`DistributionFocalLoss`](crate::DistributionFocalLoss).
#[must_use = "a call does nothing until forward, forward_backward or backward"]
pub struct Call<'a, Op: Operation, M: Memory, T: Element> {
    pub(crate) operation: &'a Op,
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "a CPU call has none"))]
    pub(crate) backend: M::Backend<'a>,
    pub(crate) logits: M::Slice<'a, T>,
    pub(crate) shape: [usize; 2],
    pub(crate) targets: Op::Targets<'a, M, T>,
    pub(crate) weight: Option<M::Slice<'a, T::Loss>>,
    pub(crate) upstream: Option<M::Slice<'a, T::Loss>>,
    pub(crate) reduction: Reduction<M::Scalar<'a>>,
    pub(crate) grad_scale: M::Scalar<'a>,
    pub(crate) found_inf: Option<M::SliceMut<'a, f32>>,
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "a CPU call returns it"))]
    pub(crate) status: M::StatusOut<'a>,
}

impl<'a, Op: Operation, M: Memory, T: Element> Call<'a, Op, M, T> {
    pub(crate) fn new(
        operation: &'a Op,
        backend: M::Backend<'a>,
        logits: M::Slice<'a, T>,
        shape: [usize; 2],
        targets: Op::Targets<'a, M, T>,
    ) -> Self {
        Call {
            operation,
            backend,
            logits,
            shape,
            targets,
            weight: None,
            upstream: None,
            reduction: Reduction::Mean,
            grad_scale: M::Scalar::from(1.0),
            found_inf: None,
            status: M::StatusOut::default(),
        }
    }

    /// How the losses of the rows are reduced; the default is [`Reduction::Mean`].
    pub fn reduction(mut self, reduction: Reduction<M::Scalar<'a>>) -> Self {
        self.reduction = reduction;
        self
    }

    /// What the gradient is multiplied by, before it is rounded to the storage type: the upstream
    /// gradient of a reduced loss, a loss scale, or their product. The default is 1.
    pub fn grad_scale(mut self, scale: impl Into<M::Scalar<'a>>) -> Self {
        self.grad_scale = scale.into();
        self
    }
}

/// The lengths of a call's tensors, whatever memory they are in. `None`: not given.
pub(crate) struct Lengths<'a> {
    pub shape: [usize; 2],
    pub logits: usize,
    /// Name and length of what has one element a row.
    pub per_row: &'a [(&'static str, Option<usize>)],
    /// Name and length of what has one element a column.
    pub per_column: &'a [(&'static str, Option<usize>)],
    /// Name and length of what has the logits' shape.
    pub like_logits: &'a [(&'static str, Option<usize>)],
    /// Length of the loss, and how many losses there are.
    pub loss: Option<(usize, usize)>,
    /// Name and length of what has one element.
    pub scalars: &'a [(&'static str, Option<usize>)],
}

pub(crate) fn check_length(
    tensor: &'static str,
    actual: usize,
    shape: [usize; 2],
    expected: usize,
) -> Result<()> {
    if actual == expected { Ok(()) } else { Err(Error::Length { tensor, actual, shape, expected }) }
}

/// The one place where lengths are compared, for both backends.
pub(crate) fn check_lengths(lengths: &Lengths, axis: &'static str, minimum: usize) -> Result<()> {
    let shape = lengths.shape;
    let [rows, columns] = shape;
    let elements = rows.checked_mul(columns).ok_or(Error::ShapeOverflow { shape })?;
    let maximum = i32::MAX as usize;
    if !(minimum..=maximum).contains(&columns) {
        return Err(Error::Columns { shape, axis, columns, minimum, maximum });
    }
    let check = |tensor, actual, expected| check_length(tensor, actual, shape, expected);
    check("logits", lengths.logits, elements)?;
    let groups = [
        (lengths.like_logits, elements),
        (lengths.per_row, rows),
        (lengths.per_column, columns),
        (lengths.scalars, 1),
    ];
    for (tensors, expected) in groups {
        for &(tensor, actual) in tensors {
            actual.map_or(Ok(()), |actual| check(tensor, actual, expected))?;
        }
    }
    lengths.loss.map_or(Ok(()), |(actual, expected)| check("loss", actual, expected))
}

/// What else is wrong with a call, whatever memory it is in.
pub(crate) fn check_options<S>(
    reduction: &Reduction<S>,
    has_upstream: bool,
    grad_scale: Option<f64>,
) -> Result<()> {
    if has_upstream && !reduction.is_none() {
        return Err(Error::UpstreamNeedsNone);
    }
    if let Some(scale) = grad_scale {
        check_option("grad_scale", scale, "a finite number", true)?;
    }
    Ok(())
}
