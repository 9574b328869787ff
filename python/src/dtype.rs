//! The types that elements of tensors have.

use gfocal::{Element, bf16, f16};

use crate::dlpack;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DType {
    F64,
    F32,
    F16,
    Bf16,
    I64,
    I32,
    U8,
}

impl DType {
    pub fn of(dtype: dlpack::DataType) -> Option<DType> {
        match (dtype.code, dtype.bits, dtype.lanes) {
            (dlpack::FLOAT, 64, 1) => Some(DType::F64),
            (dlpack::FLOAT, 32, 1) => Some(DType::F32),
            (dlpack::FLOAT, 16, 1) => Some(DType::F16),
            (dlpack::BFLOAT, 16, 1) => Some(DType::Bf16),
            (dlpack::INT, 64, 1) => Some(DType::I64),
            (dlpack::INT, 32, 1) => Some(DType::I32),
            (dlpack::UINT, 8, 1) => Some(DType::U8),
            _ => None,
        }
    }

    /// As PyTorch and NumPy call it.
    pub fn name(self) -> &'static str {
        match self {
            DType::F64 => "float64",
            DType::F32 => "float32",
            DType::F16 => "float16",
            DType::Bf16 => "bfloat16",
            DType::I64 => "int64",
            DType::I32 => "int32",
            DType::U8 => "uint8",
        }
    }
}

/// A type that elements of tensors have.
pub trait Item: Copy + Send + Sync + 'static {
    const DTYPE: DType;
}

macro_rules! items {
    ($($type:ty: $dtype:ident,)*) => {$(
        impl Item for $type {
            const DTYPE: DType = DType::$dtype;
        }
    )*};
}
items! { f64: F64, f32: F32, f16: F16, bf16: Bf16, i64: I64, i32: I32, u8: U8, }

/// What there is beside elements of a type: weights, losses.
pub trait Real: Element<Loss: Item> + Item {}
impl<T: Element<Loss: Item> + Item> Real for T {}

/// `$body` with `$T` the element type that logits have, or an error that names the tensor.
macro_rules! for_floats {
    ($tensor:expr, $T:ident => $body:expr) => {
        match $tensor.dtype {
            $crate::dtype::DType::F64 => {
                type $T = f64;
                $body
            }
            $crate::dtype::DType::F32 => {
                type $T = f32;
                $body
            }
            $crate::dtype::DType::F16 => {
                type $T = gfocal::f16;
                $body
            }
            $crate::dtype::DType::Bf16 => {
                type $T = gfocal::bf16;
                $body
            }
            _ => Err($tensor.no_float()),
        }
    };
}
pub(crate) use for_floats;

/// The same on CUDA, which has no float64.
macro_rules! for_cuda_floats {
    ($tensor:expr, $T:ident => $body:expr) => {
        match $tensor.dtype {
            $crate::dtype::DType::F32 => {
                type $T = f32;
                $body
            }
            $crate::dtype::DType::F16 => {
                type $T = gfocal::f16;
                $body
            }
            $crate::dtype::DType::Bf16 => {
                type $T = gfocal::bf16;
                $body
            }
            _ => Err($tensor.no_cuda_float()),
        }
    };
}
pub(crate) use for_cuda_floats;
