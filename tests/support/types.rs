//! Calls in several storage types.

#![allow(unused_macros, reason = "not every test binary has them")]

/// Calls a function in each of the types: `in_types!(f32, f16, bf16: check(&case))`.
macro_rules! in_types {
    ($($type:ty),+: $function:ident $arguments:tt) => {
        $($function::<$type> $arguments;)+
    };
}
pub(crate) use in_types;
