//! candle's tensors as gfocal takes them: their elements, their types, what is wrong with them.

use std::ops::Range;

use candle_core::{DType, Device, Error, Result, Storage, StorageRef, Tensor, WithDType};
use gfocal::Element;

/// A storage type of logits on the CPU.
pub(crate) trait Float: Element<Loss: WithDType> + WithDType {}

impl Float for f32 {}
impl Float for f64 {}
impl Float for gfocal::f16 {}
impl Float for gfocal::bf16 {}

/// Runs `$body` with the type of the elements by the name `$type`.
macro_rules! for_floats {
    ($name:expr, $tensor:expr, $type:ident => $body:expr) => {
        match $tensor.dtype() {
            candle_core::DType::F64 => {
                type $type = f64;
                $body
            }
            _ => $crate::tensor::for_floats!(
                but F64: $name, $tensor, "f32, f16, bf16 or f64", $type => $body
            ),
        }
    };
    (but F64: $name:expr, $tensor:expr, $allowed:expr, $type:ident => $body:expr) => {
        match $tensor.dtype() {
            candle_core::DType::F32 => {
                type $type = f32;
                $body
            }
            candle_core::DType::F16 => {
                type $type = gfocal::f16;
                $body
            }
            candle_core::DType::BF16 => {
                type $type = gfocal::bf16;
                $body
            }
            other => Err($crate::tensor::not_a_float($name, other, $allowed)),
        }
    };
}
pub(crate) use for_floats;

pub(crate) fn not_a_float(name: &str, actual: DType, allowed: &str) -> Error {
    Error::msg(format!("{name} is {}, it must be {allowed}", actual.as_str()))
}

/// gfocal's error, whose text stays.
pub(crate) fn wrap(error: gfocal::Error) -> Error {
    Error::wrap(error)
}

/// What can be run on.
pub(crate) enum Place<'a> {
    Cpu,
    #[cfg(feature = "cuda")]
    Cuda(&'a candle_core::CudaDevice),
    /// Without the feature there is no other.
    #[cfg(not(feature = "cuda"))]
    #[allow(dead_code, reason = "it has the lifetime")]
    Nowhere(std::convert::Infallible, &'a ()),
}

pub(crate) fn place<'a>(name: &str, tensor: &'a Tensor) -> Result<Place<'a>> {
    match tensor.device() {
        Device::Cpu => Ok(Place::Cpu),
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => Ok(Place::Cuda(device)),
        #[cfg(not(feature = "cuda"))]
        Device::Cuda(_) => {
            Err(Error::msg(format!("{name} is on CUDA, which needs the feature \"cuda\" of gfocal-candle")))
        }
        Device::Metal(_) => Err(Error::msg(format!("{name} is on Metal, it must be on the CPU or on CUDA"))),
    }
}

/// The type of losses and of what is beside logits of a type.
pub(crate) fn beside(logits: DType) -> DType {
    if logits == DType::F64 { DType::F64 } else { DType::F32 }
}

/// What may be said of a tensor that depends on a variable, though there is no gradient for it.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Tracked {
    /// It is a constant of the loss by definition.
    Detached,
    /// It would get a gradient of zero in silence.
    Refused,
}

/// A tensor without its graph, after the checks of its shape and device. `because`: what it must go with.
pub(crate) fn constant_like(
    name: &str,
    tensor: &Tensor,
    shapes: &[&[usize]],
    (because, like): (&str, &Tensor),
    tracked: Tracked,
) -> Result<Tensor> {
    if !shapes.contains(&tensor.dims()) {
        let (actual, expected) = (tensor.dims(), shapes.first().copied().unwrap_or_default());
        let of = like.dims();
        let message = format!("{name} has shape {actual:?}, {because} {of:?} needs {expected:?}");
        return Err(Error::msg(message));
    }
    same_device(name, tensor, (because, like))?;
    if tracked == Tracked::Refused && tensor.track_op() {
        let message = format!(
            "{name} depends on a variable, and gfocal computes no gradient for it; give {name}.detach()"
        );
        return Err(Error::msg(message));
    }
    Ok(tensor.detach())
}

pub(crate) fn same_device(name: &str, tensor: &Tensor, (other, like): (&str, &Tensor)) -> Result<()> {
    let (actual, expected) = (tensor.device().location(), like.device().location());
    if actual == expected {
        Ok(())
    } else {
        Err(Error::msg(format!("{name} is on {actual:?}, {other} on {expected:?}")))
    }
}

/// Numbers of this type, one after the other.
pub(crate) fn numbers(name: &str, tensor: &Tensor, dtype: DType) -> Result<Tensor> {
    if !tensor.dtype().is_float() {
        return Err(not_a_float(name, tensor.dtype(), "a float"));
    }
    tensor.to_dtype(dtype)?.contiguous()
}

/// Labels as i64, one after the other.
pub(crate) fn labels(name: &str, tensor: &Tensor) -> Result<Tensor> {
    if !tensor.dtype().is_int() {
        return Err(Error::msg(format!("{name} is {}, it must be an integer", tensor.dtype().as_str())));
    }
    tensor.to_dtype(DType::I64)?.contiguous()
}

/// Elements of a tensor, which nobody writes to as long as this lives.
pub(crate) struct Held<'t> {
    storage: StorageRef<'t>,
    range: Range<usize>,
}

impl<'t> Held<'t> {
    /// All of a contiguous tensor.
    pub fn new(tensor: &'t Tensor) -> Result<Self> {
        let (storage, layout) = tensor.storage_and_layout();
        let (start, end) = layout
            .contiguous_offsets()
            .ok_or_else(|| Error::msg(format!("a tensor {:?} is not contiguous", tensor.dims())))?;
        Ok(Held { storage, range: start..end })
    }

    /// The first.
    pub fn first(tensor: &'t Tensor) -> Self {
        let (storage, layout) = tensor.storage_and_layout();
        let start = layout.start_offset();
        Held { storage, range: start..start + 1 }
    }

    /// All of a tensor without gaps, in whatever order.
    pub fn dense(tensor: &'t Tensor) -> Self {
        let (storage, layout) = tensor.storage_and_layout();
        let start = layout.start_offset();
        Held { storage, range: start..start + tensor.elem_count() }
    }

    /// All that its storage has.
    pub fn whole(tensor: &'t Tensor) -> Self {
        let storage = tensor.storage_and_layout().0;
        let len = match &*storage {
            Storage::Cpu(storage) => elements(storage),
            #[cfg(feature = "cuda")]
            Storage::Cuda(storage) => crate::cuda::elements(storage),
            _ => 0,
        };
        Held { storage, range: 0..len }
    }

    pub fn of(tensor: &'t Option<Tensor>) -> Result<Option<Self>> {
        tensor.as_ref().map(Held::new).transpose()
    }

    /// On the CPU.
    pub fn host<T: WithDType>(&self) -> Result<&[T]> {
        match &*self.storage {
            Storage::Cpu(storage) => Ok(&T::cpu_storage_as_slice(storage)?[self.range.clone()]),
            _ => Err(Error::msg("a tensor is not on the CPU")),
        }
    }

    /// On CUDA.
    #[cfg(feature = "cuda")]
    pub fn device<T: candle_core::cuda::CudaDType>(&self) -> Result<crate::cuda::View<'_, T>> {
        match &*self.storage {
            Storage::Cuda(storage) => Ok(storage.as_cuda_slice::<T>()?.slice(self.range.clone())),
            _ => Err(Error::msg("a tensor is not on CUDA")),
        }
    }
}

/// What is held of a tensor that may not be given.
pub(crate) fn host<'h, T: WithDType>(held: &'h Option<Held<'_>>) -> Result<Option<&'h [T]>> {
    held.as_ref().map(Held::host).transpose()
}

fn elements(storage: &candle_core::CpuStorage) -> usize {
    use candle_core::CpuStorage::*;
    match storage {
        F32(elements) => elements.len(),
        F16(elements) => elements.len(),
        BF16(elements) => elements.len(),
        F64(elements) => elements.len(),
        _ => 0,
    }
}

/// So many zeros.
pub(crate) fn zeros<T: Element>(count: usize) -> Vec<T> {
    vec![<T as Element>::from_f64(0.0); count]
}

/// Elements as candle has them.
pub(crate) fn stored<T: WithDType>(elements: Vec<T>) -> Storage {
    Storage::Cpu(T::to_cpu_storage_owned(elements))
}
