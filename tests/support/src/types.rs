//! Calls in several storage types.

/// Calls a function in each of the types: `in_types!(f32, f16, bf16: check(&case))`.
#[macro_export]
macro_rules! in_types {
    ($($type:ty),+: $function:ident $arguments:tt) => {
        $($function::<$type> $arguments;)+
    };
}
