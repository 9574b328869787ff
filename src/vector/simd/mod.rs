//! Vectors of 16 f32. All sets of instructions do the same to each lane, except that those without
//! fused multiply-add round the product too.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(all(target_arch = "x86_64", has_avx512))]
mod avx512;
mod portable;

#[cfg(target_arch = "x86_64")]
pub(super) use avx2::Avx2;
#[cfg(all(target_arch = "x86_64", has_avx512))]
pub(super) use avx512::Avx512;
use half::{bf16, f16};
pub(super) use portable::Portable;

use super::rows::Loss;

/// Lanes of a vector.
pub const LANES: usize = 16;

/// The numbers of a vector, in memory.
pub type Lanes = [f32; LANES];

/// Half as many.
pub const HALF: usize = LANES / 2;

/// Numbers that f32 has, and that can be multiplied by [`LANES`].
const MOST_COLUMNS: usize = 1 << 23;

/// A set of instructions. Having a value of the type shows that the machine has them.
pub trait Simd: Copy {
    /// A vector.
    type F: Copy;
    /// Yes or no for each lane.
    type Mask: Copy;
    /// Whether `fma` rounds once.
    const FUSED: bool;

    fn load(self, from: &Lanes) -> Self::F;
    fn store(self, a: Self::F, to: &mut Lanes);
    /// The two halves from different places.
    fn load_halves(self, low: &[f32; HALF], high: &[f32; HALF]) -> Self::F;
    fn store_halves(self, a: Self::F, low: &mut [f32; HALF], high: &mut [f32; HALF]);
    /// The values, exactly. A NaN stays one, here and below.
    fn load_f16(self, low: &[f16; HALF], high: &[f16; HALF]) -> Self::F;
    /// The nearest values, ties to even; too large becomes inf.
    fn store_f16(self, a: Self::F, low: &mut [f16; HALF], high: &mut [f16; HALF]);
    /// The values, exactly.
    fn load_bf16(self, low: &[bf16; HALF], high: &[bf16; HALF]) -> Self::F;
    /// The nearest values, ties to even; too large becomes inf.
    fn store_bf16(self, a: Self::F, low: &mut [bf16; HALF], high: &mut [bf16; HALF]);
    fn splat(self, a: f32) -> Self::F;
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// a * b + c.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The smaller, or `b` if either is NaN.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// The larger, or `b` if either is NaN.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    fn abs(self, a: Self::F) -> Self::F;
    /// The integer part of numbers from 0 to 2^23.
    fn floor(self, a: Self::F) -> Self::F;
    /// Lane i of column `at[i]`, an integer. What is outside the columns, or NaN, is taken for the nearest.
    fn pick(self, columns: &[Lanes], at: Self::F) -> Self::F;
    /// a <= b. No NaN is.
    fn le(self, a: Self::F, b: Self::F) -> Self::Mask;
    fn any(self, mask: Self::Mask) -> bool;
    /// Whether a <= x <= b in all lanes.
    fn all_within(self, a: Self::F, x: Self::F, b: Self::F) -> bool;
    fn select(self, mask: Self::Mask, yes: Self::F, no: Self::F) -> Self::F;
    /// a * 2^n, where n is the integer in the low bits of `n`, and the result is a normal number.
    fn add_exponent(self, a: Self::F, n: Self::F) -> Self::F;
    /// (k, m) with a = 2^k * m and 1 <= m < 2, for positive normal numbers.
    fn split(self, a: Self::F) -> (Self::F, Self::F);
    /// The sum of the lanes: i and i + 8, then i and i + 4, then i and i + 2, then the last two.
    fn sum(self, a: Self::F) -> f32;
    /// The losses of a vector of elements, and their gradients.
    #[inline(always)]
    fn losses<L: Loss>(self, losses: L, x: Self::F, y: Self::F, scale: Self::F) -> (Self::F, Self::F) {
        losses.of(self, x, y, scale)
    }
    /// In each half, lane j of vector i becomes lane i of vector j.
    fn transpose_halves(self, rows: [Self::F; HALF]) -> [Self::F; HALF];
}
