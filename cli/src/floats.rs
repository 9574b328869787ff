//! Tensors of any of the float types.

use clap::ValueEnum;
use gfocal::Element;
use half::{bf16, f16};
use safetensors::Dtype as FileDtype;

/// The types that logits may be stored in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Dtype {
    /// 64-bit floats, on the CPU only
    F64,
    /// 32-bit floats
    F32,
    /// IEEE half precision
    F16,
    /// The upper half of a 32-bit float
    Bf16,
}

impl Dtype {
    pub fn name(self) -> &'static str {
        match self {
            Dtype::F64 => "f64",
            Dtype::F32 => "f32",
            Dtype::F16 => "f16",
            Dtype::Bf16 => "bf16",
        }
    }

    pub fn in_file(self) -> FileDtype {
        match self {
            Dtype::F64 => FileDtype::F64,
            Dtype::F32 => FileDtype::F32,
            Dtype::F16 => FileDtype::F16,
            Dtype::Bf16 => FileDtype::BF16,
        }
    }
}

/// An element of [`Floats`].
pub trait Float: Element {
    /// The numbers of little-endian bytes.
    fn read(bytes: &[u8]) -> Vec<Self>;

    /// The little-endian bytes of numbers.
    fn write(numbers: &[Self]) -> Vec<u8>;

    /// The numbers; none if they are of another type.
    fn of(floats: &Floats) -> &[Self];

    /// Numbers of this type, as those of any.
    fn floats(numbers: Vec<Self>) -> Floats;
}

macro_rules! float {
    ($type:ty, $variant:ident) => {
        impl Float for $type {
            fn read(bytes: &[u8]) -> Vec<Self> {
                let (numbers, _) = bytes.as_chunks();
                numbers.iter().map(|&number| <$type>::from_le_bytes(number)).collect()
            }

            fn write(numbers: &[Self]) -> Vec<u8> {
                numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
            }

            fn of(floats: &Floats) -> &[Self] {
                if let Floats::$variant(numbers) = floats { numbers } else { &[] }
            }

            fn floats(numbers: Vec<Self>) -> Floats {
                Floats::$variant(numbers)
            }
        }
    };
}
float!(f64, F64);
float!(f32, F32);
float!(f16, F16);
float!(bf16, Bf16);

/// Numbers of one of the float types.
#[derive(Clone, Debug, PartialEq)]
pub enum Floats {
    F64(Vec<f64>),
    F32(Vec<f32>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
}

/// Runs an expression with the vector of whichever type it is.
macro_rules! with_floats {
    ($floats:expr, $numbers:ident => $run:expr) => {
        match $floats {
            $crate::floats::Floats::F64($numbers) => $run,
            $crate::floats::Floats::F32($numbers) => $run,
            $crate::floats::Floats::F16($numbers) => $run,
            $crate::floats::Floats::Bf16($numbers) => $run,
        }
    };
}
pub(crate) use with_floats;

/// The same with the types that CUDA has; returns that f64 is none of them.
macro_rules! with_cuda_floats {
    ($floats:expr, $numbers:ident => $run:expr) => {
        match $floats {
            $crate::floats::Floats::F64(_) => return Err($crate::error::Error::F64OnCuda),
            $crate::floats::Floats::F32($numbers) => $run,
            $crate::floats::Floats::F16($numbers) => $run,
            $crate::floats::Floats::Bf16($numbers) => $run,
        }
    };
}
pub(crate) use with_cuda_floats;

impl Floats {
    /// The numbers of little-endian bytes; `None` for a type that is none of the floats.
    pub fn read(dtype: FileDtype, bytes: &[u8]) -> Option<Floats> {
        Some(match dtype {
            FileDtype::F64 => Floats::F64(Float::read(bytes)),
            FileDtype::F32 => Floats::F32(Float::read(bytes)),
            FileDtype::F16 => Floats::F16(Float::read(bytes)),
            FileDtype::BF16 => Floats::Bf16(Float::read(bytes)),
            _ => return None,
        })
    }

    pub fn bytes(&self) -> Vec<u8> {
        with_floats!(self, numbers => Float::write(numbers))
    }

    pub fn len(&self) -> usize {
        with_floats!(self, numbers => numbers.len())
    }

    pub fn dtype(&self) -> Dtype {
        match self {
            Floats::F64(_) => Dtype::F64,
            Floats::F32(_) => Dtype::F32,
            Floats::F16(_) => Dtype::F16,
            Floats::Bf16(_) => Dtype::Bf16,
        }
    }

    /// Rounded to another type; too large becomes inf.
    pub fn to(self, dtype: Dtype) -> Floats {
        if self.dtype() == dtype {
            return self;
        }
        match dtype {
            Dtype::F64 => Floats::F64(self.rounded()),
            Dtype::F32 => Floats::F32(self.rounded()),
            Dtype::F16 => Floats::F16(self.rounded()),
            Dtype::Bf16 => Floats::Bf16(self.rounded()),
        }
    }

    /// Numbers that go with logits of a type, rounded to what the library takes there: f64 beside f64, else f32.
    pub fn beside(self, logits: Dtype) -> Vec<f64> {
        self.to(if logits == Dtype::F64 { Dtype::F64 } else { Dtype::F32 }).iter().collect()
    }

    /// As f32, which is what an assignment takes.
    pub fn into_f32(self) -> Vec<f32> {
        match self {
            Floats::F32(numbers) => numbers,
            other => other.rounded(),
        }
    }

    fn rounded<T: Element>(&self) -> Vec<T> {
        self.iter().map(T::from_f64).collect()
    }

    /// The numbers, exactly.
    pub fn iter(&self) -> Box<dyn Iterator<Item = f64> + '_> {
        with_floats!(self, numbers => Box::new(numbers.iter().map(|number| number.to_f64())))
    }

    /// How many are inf or NaN.
    pub fn not_finite(&self) -> usize {
        self.iter().filter(|number| !number.is_finite()).count()
    }

    /// How many are 0 because this type has none as small as the numbers that they stand for.
    pub fn flushed(&self, exact: &Floats) -> usize {
        fn lost<T: Element>(stored: T, exact: f64) -> bool {
            let is_zero = |number: T| number.to_f64() == 0.0;
            exact != 0.0 && is_zero(stored) && is_zero(T::from_f64(exact))
        }
        with_floats!(self, numbers => {
            numbers.iter().zip(exact.iter()).filter(|&(&stored, exact)| lost(stored, exact)).count()
        })
    }

    /// The Euclidean norm. (Not by `sum`, which is -0 for no numbers.)
    pub fn norm(&self) -> f64 {
        self.iter().fold(0.0, |sum: f64, number| sum + number * number).sqrt()
    }
}

/// Numbers in a type; too large becomes inf.
pub fn numbers<T: Element>(numbers: &[f64]) -> Vec<T> {
    numbers.iter().map(|&number| T::from_f64(number)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        let numbers = Floats::F64(vec![0.0, -1.5, 1e300, f64::INFINITY]);
        for (dtype, large) in [(Dtype::F64, 1e300), (Dtype::F32, f64::INFINITY), (Dtype::F16, f64::INFINITY)]
        {
            let rounded = numbers.clone().to(dtype);
            assert_eq!(rounded.dtype(), dtype);
            let read = Floats::read(dtype.in_file(), &rounded.bytes()).unwrap();
            assert_eq!(read.iter().collect::<Vec<_>>(), [0.0, -1.5, large, f64::INFINITY]);
        }
        assert_eq!(Floats::read(FileDtype::I64, &[0; 8]), None);
    }

    #[test]
    fn what_a_type_cannot_hold_is_counted() {
        let exact = Floats::F64(vec![0.0, 1e-9, -1e-9, 1e-3, 1e9, f64::NAN]);
        let stored = exact.clone().to(Dtype::F16);
        assert_eq!((stored.not_finite(), stored.flushed(&exact)), (2, 2));
        let stored = exact.clone().to(Dtype::Bf16);
        assert_eq!((stored.not_finite(), stored.flushed(&exact)), (1, 0));
    }

    #[test]
    fn the_norm_does_not_overflow_in_the_storage_type() {
        let large = Floats::F16(vec![f16::MAX; 4]);
        assert_eq!(large.norm(), 2.0 * 65504.0);
    }
}
