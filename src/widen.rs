//! Slices of a storage type as slices of f32, and back.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::vector::{self, Isa};

/// How the CPU path computes with a storage type.
pub trait Widen: Sized {
    /// Whether arithmetic is in f32; otherwise it is in f64, element by element.
    const SINGLE: bool;

    /// The values, exactly: `from` itself, or in `room`, which is at least as long.
    fn widen<'a>(isa: Isa, from: &'a [Self], room: &'a mut [f32]) -> &'a [f32];

    /// Lets `write` fill `to` with the nearest values to those of f32; too large becomes inf.
    /// What it is given holds anything before, and lies in `room` if not in `to`. Gives what
    /// `write` gives.
    fn narrow<R>(isa: Isa, to: &mut [Self], room: &mut [f32], write: impl FnOnce(&mut [f32]) -> R) -> R;

    /// Whether any is inf or NaN.
    fn any_not_finite(values: &[Self]) -> bool;
}

/// Whether any is, without a branch for each.
fn any<T: Copy>(values: &[T], is: impl Fn(T) -> bool) -> bool {
    values.chunks(256).any(|values| values.iter().fold(false, |any, &value| any | is(value)))
}

impl Widen for f64 {
    const SINGLE: bool = false;
    fn widen<'a>(_: Isa, _: &'a [f64], _: &'a mut [f32]) -> &'a [f32] {
        unreachable!("f64 is not computed in f32")
    }
    fn narrow<R>(_: Isa, _: &mut [f64], _: &mut [f32], _: impl FnOnce(&mut [f32]) -> R) -> R {
        unreachable!("f64 is not computed in f32")
    }
    fn any_not_finite(values: &[f64]) -> bool {
        any(values, |value| !value.is_finite())
    }
}

impl Widen for f32 {
    const SINGLE: bool = true;
    fn widen<'a>(_: Isa, from: &'a [f32], _: &'a mut [f32]) -> &'a [f32] {
        from
    }
    fn narrow<R>(_: Isa, to: &mut [f32], _: &mut [f32], write: impl FnOnce(&mut [f32]) -> R) -> R {
        write(to)
    }
    fn any_not_finite(values: &[f32]) -> bool {
        any(values, |value| !value.is_finite())
    }
}

impl Widen for f16 {
    const SINGLE: bool = true;
    fn widen<'a>(_: Isa, from: &'a [f16], room: &'a mut [f32]) -> &'a [f32] {
        let room = &mut room[..from.len()];
        from.convert_to_f32_slice(room);
        room
    }
    fn narrow<R>(_: Isa, to: &mut [f16], room: &mut [f32], write: impl FnOnce(&mut [f32]) -> R) -> R {
        let room = &mut room[..to.len()];
        let result = write(room);
        to.convert_from_f32_slice(room);
        result
    }
    fn any_not_finite(values: &[f16]) -> bool {
        any(values, |value| value.to_bits() & 0x7c00 == 0x7c00)
    }
}

impl Widen for bf16 {
    const SINGLE: bool = true;
    fn widen<'a>(isa: Isa, from: &'a [bf16], room: &'a mut [f32]) -> &'a [f32] {
        let room = &mut room[..from.len()];
        vector::widen_bf16(isa, from, room);
        room
    }
    fn narrow<R>(isa: Isa, to: &mut [bf16], room: &mut [f32], write: impl FnOnce(&mut [f32]) -> R) -> R {
        let room = &mut room[..to.len()];
        let result = write(room);
        vector::narrow_bf16(isa, room, to);
        result
    }
    fn any_not_finite(values: &[bf16]) -> bool {
        any(values, |value| value.to_bits() & 0x7f80 == 0x7f80)
    }
}
