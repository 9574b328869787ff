//! What logits and gradients are stored in, as vectors of f32.

use half::{bf16, f16};

use super::LARGEST_EXPONENT;
use super::simd::{HALF, LANES, Simd};

/// How the CPU path computes with a storage type.
pub trait Storage: Copy {
    /// Whether arithmetic is in vectors of f32; otherwise it is in f64, element by element.
    const SINGLE: bool;

    /// A logit whose loss and gradient are 0 at target 0.
    const NO_LOSS: Self;

    /// The values: exactly, if `SINGLE`.
    fn load_halves<S: Simd>(s: S, low: &[Self; HALF], high: &[Self; HALF]) -> S::F;

    /// The nearest values; too large becomes inf.
    fn store_halves<S: Simd>(s: S, a: S::F, low: &mut [Self; HALF], high: &mut [Self; HALF]);

    /// Both halves together.
    #[inline(always)]
    fn load<S: Simd>(s: S, from: &[Self; LANES]) -> S::F {
        let (low, high) = from.split_at(HALF);
        Self::load_halves(s, low.try_into().expect("a half"), high.try_into().expect("a half"))
    }

    /// Both halves together.
    #[inline(always)]
    fn store<S: Simd>(s: S, a: S::F, to: &mut [Self; LANES]) {
        let (low, high) = to.split_at_mut(HALF);
        Self::store_halves(s, a, low.try_into().expect("a half"), high.try_into().expect("a half"));
    }

    /// Whether it is inf or NaN.
    fn is_not_finite(self) -> bool;

    /// Whether any is.
    fn any_not_finite(values: &[Self]) -> bool {
        // Without a branch for each.
        values.chunks(256).any(|values| values.iter().fold(false, |any, &value| any | value.is_not_finite()))
    }
}

impl Storage for f64 {
    const SINGLE: bool = false;
    const NO_LOSS: f64 = -LARGEST_EXPONENT as f64;
    #[inline(always)]
    fn load_halves<S: Simd>(s: S, low: &[f64; HALF], high: &[f64; HALF]) -> S::F {
        let (mut nearest_low, mut nearest_high) = ([0.0; HALF], [0.0; HALF]);
        for i in 0..HALF {
            (nearest_low[i], nearest_high[i]) = (low[i] as f32, high[i] as f32);
        }
        s.load_halves(&nearest_low, &nearest_high)
    }
    #[inline(always)]
    fn store_halves<S: Simd>(s: S, a: S::F, low: &mut [f64; HALF], high: &mut [f64; HALF]) {
        let (mut single_low, mut single_high) = ([0.0; HALF], [0.0; HALF]);
        s.store_halves(a, &mut single_low, &mut single_high);
        for i in 0..HALF {
            (low[i], high[i]) = (single_low[i].into(), single_high[i].into());
        }
    }
    fn is_not_finite(self) -> bool {
        !self.is_finite()
    }
}

impl Storage for f32 {
    const SINGLE: bool = true;
    const NO_LOSS: f32 = -LARGEST_EXPONENT;
    #[inline(always)]
    fn load_halves<S: Simd>(s: S, low: &[f32; HALF], high: &[f32; HALF]) -> S::F {
        s.load_halves(low, high)
    }
    #[inline(always)]
    fn store_halves<S: Simd>(s: S, a: S::F, low: &mut [f32; HALF], high: &mut [f32; HALF]) {
        s.store_halves(a, low, high);
    }
    #[inline(always)]
    fn load<S: Simd>(s: S, from: &[f32; LANES]) -> S::F {
        s.load(from)
    }
    #[inline(always)]
    fn store<S: Simd>(s: S, a: S::F, to: &mut [f32; LANES]) {
        s.store(a, to);
    }
    fn is_not_finite(self) -> bool {
        !self.is_finite()
    }
}

impl Storage for f16 {
    const SINGLE: bool = true;
    const NO_LOSS: f16 = f16::from_f32_const(-LARGEST_EXPONENT);
    #[inline(always)]
    fn load_halves<S: Simd>(s: S, low: &[f16; HALF], high: &[f16; HALF]) -> S::F {
        s.load_f16(low, high)
    }
    #[inline(always)]
    fn store_halves<S: Simd>(s: S, a: S::F, low: &mut [f16; HALF], high: &mut [f16; HALF]) {
        s.store_f16(a, low, high);
    }
    fn is_not_finite(self) -> bool {
        self.to_bits() & 0x7c00 == 0x7c00
    }
}

impl Storage for bf16 {
    const SINGLE: bool = true;
    const NO_LOSS: bf16 = bf16::from_f32_const(-LARGEST_EXPONENT);
    #[inline(always)]
    fn load_halves<S: Simd>(s: S, low: &[bf16; HALF], high: &[bf16; HALF]) -> S::F {
        s.load_bf16(low, high)
    }
    #[inline(always)]
    fn store_halves<S: Simd>(s: S, a: S::F, low: &mut [bf16; HALF], high: &mut [bf16; HALF]) {
        s.store_bf16(a, low, high);
    }
    fn is_not_finite(self) -> bool {
        self.to_bits() & 0x7f80 == 0x7f80
    }
}
