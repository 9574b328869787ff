//! How near a result must be.

use crate::floats::Dtype;

/// Gradients are compared in about so many rows, from first to last.
pub const ROWS: usize = 256;

/// Twice one unit in the last place for the storage types, 1e-5 for f32; and what is lost where
/// two numbers near each other are subtracted, or below the least normal number.
pub fn tolerance(dtype: Dtype) -> (f64, f64) {
    match dtype {
        Dtype::F64 | Dtype::F32 => (1e-5, 4e-7),
        Dtype::F16 => (2f64.powi(-9), 4e-7),
        Dtype::Bf16 => (2f64.powi(-6), 4e-7),
    }
}

/// NaN is never close.
pub fn close(found: f64, expected: f64, relative: f64, absolute: f64) -> bool {
    (found - expected).abs() <= relative * expected.abs() + absolute
}
