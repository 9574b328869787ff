//! A gradient that is scaled after it has been computed.

#[cfg(feature = "cuda")]
pub(crate) mod cuda;
#[cfg(feature = "cuda")]
pub(crate) mod launch;

use crate::call::check_length;
use crate::element::Element;
use crate::error::Result;

/// Multiplies a gradient by a number: the upstream gradient of a loss whose gradient has been computed with
/// it. If that is 1, nothing is read or written.
///
/// `found_inf`, `[1]`, is set to 1 if a gradient that is stored is inf or NaN, and is otherwise left as it is.
///
/// ```
/// let mut grad = [0.5f32, -2.0, 1e38];
/// let mut found_inf = [0.0];
/// gfocal::scale(&mut grad, 4.0, Some(&mut found_inf))?;
/// assert_eq!((grad, found_inf), ([2.0, -8.0, f32::INFINITY], [1.0]));
/// # Ok::<(), gfocal::Error>(())
/// ```
///
/// # Errors
/// If `found_inf` is not one element.
pub fn scale<T: Element>(grad: &mut [T], scale: T::Loss, found_inf: Option<&mut [f32]>) -> Result<()> {
    check_length("found_inf", found_inf.as_deref().map_or(1, <[_]>::len), [grad.len(), 1], 1)?;
    let scale = scale.to_f64();
    if scale == 1.0 {
        return Ok(());
    }
    let mut finite = true;
    for value in grad {
        // Rounded as on CUDA: to f32, then to what is stored.
        *value = T::from_f64(T::Loss::from_f64(value.to_f64() * scale).to_f64());
        finite &= value.to_f64().is_finite();
    }
    if let Some([found_inf]) = found_inf.filter(|_| !finite) {
        *found_inf = 1.0;
    }
    Ok(())
}
