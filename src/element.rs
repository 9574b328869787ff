//! The types that tensors are stored in. Arithmetic never happens in them.

/// A trait with the functions of an operation that depend on a type: here and not in every crate that calls
/// them they are compiled, for each of the types once.
macro_rules! compiled {
    ($(#[$doc:meta])* $name:ident: $element:ident for $types:tt { $($functions:tt)* }) => {
        $(#[$doc])*
        pub trait $name: Sized {
            $crate::element::compiled!(@declare $element $($functions)*);
        }
        $crate::element::compiled!(@types $name $element $types { $($functions)* });
    };
    (@declare $element:ident $(fn $function:ident($($arg:ident: $type:ty),* $(,)?) $(-> $out:ty)? = $body:path;)*) => {$(
        #[doc(hidden)]
        fn $function($($arg: $type),*) $(-> $out)?
        where
            Self: $element;
    )*};
    (@types $name:ident $element:ident [$($type:ty),*] $functions:tt) => {$(
        $crate::element::compiled!(@type $name $element $type $functions);
    )*};
    (@type $name:ident $element:ident $of:ty {
        $(fn $function:ident($($arg:ident: $type:ty),* $(,)?) $(-> $out:ty)? = $body:path;)*
    }) => {
        impl $name for $of {$(
            fn $function($($arg: $type),*) $(-> $out)? {
                $body($($arg),*)
            }
        )*}
    };
}
pub(crate) use compiled;

use std::any::TypeId;
use std::slice;

use half::{bf16, f16};

use crate::assign::atss::cpu::AtssOnCpu;
use crate::assign::fcos::cpu::FcosOnCpu;
use crate::decode::cpu::DecodeOnCpu;
use crate::dfl::cpu::DflOnCpu;
use crate::head::cpu::HeadOnCpu;
use crate::integral::cpu::IntegralOnCpu;
use crate::qfl::cpu::QflOnCpu;
use crate::vector::{self, Isa, Storage};

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for f64 {}
    impl Sealed for half::f16 {}
    impl Sealed for half::bf16 {}
    impl Sealed for i32 {}
    impl Sealed for i64 {}
}
pub(crate) use sealed::Sealed;

/// A storage type of logits and gradients: f32, f16 or bf16, and on the CPU f64.
pub trait Element:
    Copy
    + Send
    + Sync
    + Sealed
    + Storage
    + QflOnCpu
    + DflOnCpu
    + IntegralOnCpu
    + DecodeOnCpu
    + HeadOnCpu
    + 'static
{
    /// What losses come in, and what is beside logits, such as weights and targets: f64 for f64, else f32.
    type Loss: Element<Loss = Self::Loss>;

    /// The value, exactly.
    fn to_f64(self) -> f64;

    /// The nearest value; too large becomes inf.
    fn from_f64(value: f64) -> Self;
}

pub(crate) fn is_one_type<T: Element, U: Element>() -> bool {
    TypeId::of::<T>() == TypeId::of::<U>()
}

/// The same elements, if both types are one.
pub(crate) fn same<T: Element, U: Element>(elements: &[T]) -> Option<&[U]> {
    is_one_type::<T, U>().then(|| {
        // SAFETY: both are the same type.
        unsafe { slice::from_raw_parts(elements.as_ptr().cast(), elements.len()) }
    })
}

/// Numbers beside logits that vectors of f32 suit, which all but f64 do.
pub(crate) fn singles<W: Element>(numbers: &[W]) -> &[f32] {
    same(numbers).expect("f32 beside all logits but f64")
}

/// Whether any is NaN.
pub(crate) fn any_nan<W: Element>(isa: Isa, numbers: &[W]) -> bool {
    match same(numbers) {
        Some(singles) => vector::any_nan(isa, singles),
        None => numbers.iter().any(|number| number.to_f64().is_nan()),
    }
}

/// The same elements, to be written to, if both types are one.
pub(crate) fn same_mut<T: Element, U: Element>(elements: &mut [T]) -> Option<&mut [U]> {
    is_one_type::<T, U>().then(|| {
        // SAFETY: both are the same type.
        unsafe { slice::from_raw_parts_mut(elements.as_mut_ptr().cast(), elements.len()) }
    })
}

macro_rules! element {
    ($type:ty, $loss:ty, $to:expr, $from:expr) => {
        impl Element for $type {
            type Loss = $loss;
            fn to_f64(self) -> f64 {
                $to(self)
            }
            fn from_f64(value: f64) -> Self {
                $from(value)
            }
        }
    };
}
element!(f64, f64, |x| x, |x| x);
element!(f32, f32, f64::from, |x| x as f32);
element!(f16, f32, f16::to_f64, f16::from_f64);
element!(bf16, f32, bf16::to_f64, bf16::from_f64);

/// A type of class labels: i64 or i32.
pub trait Label: Copy + Send + Sync + Sealed + AtssOnCpu + FcosOnCpu + 'static {
    #[doc(hidden)]
    fn to_i64(self) -> i64;

    /// Of a label that fits.
    #[doc(hidden)]
    fn from_i64(label: i64) -> Self;

    /// Labels in memory of the host.
    fn host(labels: &[Self]) -> LabelSlice<'_>;

    /// Labels in memory of a device.
    #[cfg(feature = "cuda")]
    fn device<'a>(labels: &'a dyn cudarc::driver::DevicePtr<Self>) -> crate::cuda::LabelBuffer<'a>;
}

/// Labels of either type in memory of the host.
#[derive(Clone, Copy, Debug)]
pub enum LabelSlice<'a> {
    /// 64-bit labels.
    I64(&'a [i64]),
    /// 32-bit labels.
    I32(&'a [i32]),
}

impl<'a, L: Label> From<&'a [L]> for LabelSlice<'a> {
    fn from(labels: &'a [L]) -> Self {
        L::host(labels)
    }
}

impl LabelSlice<'_> {
    pub(crate) fn len(&self) -> usize {
        match self {
            LabelSlice::I64(labels) => labels.len(),
            LabelSlice::I32(labels) => labels.len(),
        }
    }

    pub(crate) fn get(&self, row: usize) -> i64 {
        match self {
            LabelSlice::I64(labels) => labels[row],
            LabelSlice::I32(labels) => labels[row].into(),
        }
    }
}

impl Label for i64 {
    fn to_i64(self) -> i64 {
        self
    }

    fn from_i64(label: i64) -> i64 {
        label
    }

    fn host(labels: &[i64]) -> LabelSlice<'_> {
        LabelSlice::I64(labels)
    }

    #[cfg(feature = "cuda")]
    fn device<'a>(labels: &'a dyn cudarc::driver::DevicePtr<i64>) -> crate::cuda::LabelBuffer<'a> {
        crate::cuda::LabelBuffer::I64(labels)
    }
}

impl Label for i32 {
    fn to_i64(self) -> i64 {
        self.into()
    }

    fn from_i64(label: i64) -> i32 {
        label as i32
    }

    fn host(labels: &[i32]) -> LabelSlice<'_> {
        LabelSlice::I32(labels)
    }

    #[cfg(feature = "cuda")]
    fn device<'a>(labels: &'a dyn cudarc::driver::DevicePtr<i32>) -> crate::cuda::LabelBuffer<'a> {
        crate::cuda::LabelBuffer::I32(labels)
    }
}
