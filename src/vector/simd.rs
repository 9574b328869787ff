//! Vectors of 8 f32. All sets of instructions do the same to each lane, except that those without
//! fused multiply-add round the product too.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// Lanes of a vector.
pub(crate) const LANES: usize = 8;

/// The numbers of a vector, in memory.
pub(crate) type Lanes = [f32; LANES];

/// A set of instructions. Having a value of the type shows that the machine has them.
pub(super) trait Simd: Copy {
    /// A vector.
    type F: Copy;
    /// Yes or no for each lane.
    type Mask: Copy;
    /// Whether `fma` rounds once.
    const FUSED: bool;

    fn load(self, from: &Lanes) -> Self::F;
    fn store(self, a: Self::F, to: &mut Lanes);
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
    /// a <= b. No NaN is.
    fn le(self, a: Self::F, b: Self::F) -> Self::Mask;
    fn both(self, a: Self::Mask, b: Self::Mask) -> Self::Mask;
    fn all(self, mask: Self::Mask) -> bool;
    fn select(self, mask: Self::Mask, yes: Self::F, no: Self::F) -> Self::F;
    /// a * 2^n, where n is the integer in the low bits of `n`, and the result is a normal number.
    fn add_exponent(self, a: Self::F, n: Self::F) -> Self::F;
    /// (k, m) with a = 2^k * m and 1 <= m < 2, for positive normal numbers.
    fn split(self, a: Self::F) -> (Self::F, Self::F);
    /// The sum of the lanes: i and i + 4, then i and i + 2, then the last two.
    fn sum(self, a: Self::F) -> f32;
    /// Lane j of vector i becomes lane i of vector j.
    fn transpose(self, rows: [Self::F; LANES]) -> [Self::F; LANES];
}

/// AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug)]
pub(super) struct Avx2(());

#[cfg(target_arch = "x86_64")]
impl Avx2 {
    /// `Some` if this machine has them.
    pub(super) fn detect() -> Option<Avx2> {
        (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")).then_some(Avx2(()))
    }
}

#[cfg(target_arch = "x86_64")]
macro_rules! avx2 {
    ($(fn $name:ident($self:ident $(, $arg:ident: $type:ty)*) $(-> $out:ty)? $body:block)*) => {$(
        #[inline(always)]
        fn $name($self $(, $arg: $type)*) $(-> $out)? {
            // SAFETY: `Avx2::detect`, which alone makes `self`, has found AVX2 and FMA; and what loads
            // and stores point to is 8 f32 by its type.
            unsafe { $body }
        }
    )*};
}

#[cfg(target_arch = "x86_64")]
impl Simd for Avx2 {
    type F = __m256;
    type Mask = __m256;
    const FUSED: bool = true;

    avx2! {
        fn load(self, from: &Lanes) -> __m256 { _mm256_loadu_ps(from.as_ptr()) }
        fn store(self, a: __m256, to: &mut Lanes) { _mm256_storeu_ps(to.as_mut_ptr(), a) }
        fn splat(self, a: f32) -> __m256 { _mm256_set1_ps(a) }
        fn add(self, a: __m256, b: __m256) -> __m256 { _mm256_add_ps(a, b) }
        fn sub(self, a: __m256, b: __m256) -> __m256 { _mm256_sub_ps(a, b) }
        fn mul(self, a: __m256, b: __m256) -> __m256 { _mm256_mul_ps(a, b) }
        fn div(self, a: __m256, b: __m256) -> __m256 { _mm256_div_ps(a, b) }
        fn fma(self, a: __m256, b: __m256, c: __m256) -> __m256 { _mm256_fmadd_ps(a, b, c) }
        fn min(self, a: __m256, b: __m256) -> __m256 { _mm256_min_ps(a, b) }
        fn max(self, a: __m256, b: __m256) -> __m256 { _mm256_max_ps(a, b) }
        fn abs(self, a: __m256) -> __m256 { _mm256_andnot_ps(_mm256_set1_ps(-0.0), a) }
        fn le(self, a: __m256, b: __m256) -> __m256 { _mm256_cmp_ps::<_CMP_LE_OQ>(a, b) }
        fn both(self, a: __m256, b: __m256) -> __m256 { _mm256_and_ps(a, b) }
        fn all(self, mask: __m256) -> bool { _mm256_movemask_ps(mask) == 0xff }
        fn select(self, mask: __m256, yes: __m256, no: __m256) -> __m256 { _mm256_blendv_ps(no, yes, mask) }
        fn add_exponent(self, a: __m256, n: __m256) -> __m256 {
            let n = _mm256_slli_epi32::<23>(_mm256_castps_si256(n));
            _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), n))
        }
        fn split(self, a: __m256) -> (__m256, __m256) {
            let bits = _mm256_castps_si256(a);
            let k = _mm256_sub_epi32(_mm256_srli_epi32::<23>(bits), _mm256_set1_epi32(127));
            let mantissa = _mm256_and_si256(bits, _mm256_set1_epi32(0x007f_ffff));
            let mantissa = _mm256_or_si256(mantissa, _mm256_set1_epi32(0x3f80_0000));
            (_mm256_cvtepi32_ps(k), _mm256_castsi256_ps(mantissa))
        }
        fn sum(self, a: __m256) -> f32 {
            let four = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
        fn transpose(self, r: [__m256; LANES]) -> [__m256; LANES] {
            // Pairs of rows, then fours in each half, then the halves.
            let (a, b) = (_mm256_unpacklo_ps(r[0], r[1]), _mm256_unpackhi_ps(r[0], r[1]));
            let (c, d) = (_mm256_unpacklo_ps(r[2], r[3]), _mm256_unpackhi_ps(r[2], r[3]));
            let (e, f) = (_mm256_unpacklo_ps(r[4], r[5]), _mm256_unpackhi_ps(r[4], r[5]));
            let (g, h) = (_mm256_unpacklo_ps(r[6], r[7]), _mm256_unpackhi_ps(r[6], r[7]));
            let (a, c) = (_mm256_shuffle_ps::<0x44>(a, c), _mm256_shuffle_ps::<0xee>(a, c));
            let (b, d) = (_mm256_shuffle_ps::<0x44>(b, d), _mm256_shuffle_ps::<0xee>(b, d));
            let (e, g) = (_mm256_shuffle_ps::<0x44>(e, g), _mm256_shuffle_ps::<0xee>(e, g));
            let (f, h) = (_mm256_shuffle_ps::<0x44>(f, h), _mm256_shuffle_ps::<0xee>(f, h));
            [
                _mm256_permute2f128_ps::<0x20>(a, e),
                _mm256_permute2f128_ps::<0x20>(c, g),
                _mm256_permute2f128_ps::<0x20>(b, f),
                _mm256_permute2f128_ps::<0x20>(d, h),
                _mm256_permute2f128_ps::<0x31>(a, e),
                _mm256_permute2f128_ps::<0x31>(c, g),
                _mm256_permute2f128_ps::<0x31>(b, f),
                _mm256_permute2f128_ps::<0x31>(d, h),
            ]
        }
    }
}

/// What the target of the build has, by arrays that the compiler makes vectors of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Portable;

/// Of each lane.
macro_rules! lanes {
    ($i:ident => $value:expr) => {{
        let mut out = [Default::default(); LANES];
        for $i in 0..LANES {
            out[$i] = $value;
        }
        out
    }};
}

impl Simd for Portable {
    type F = Lanes;
    type Mask = [u32; LANES];
    /// Without it in the target of the build, `mul_add` would be a slow function.
    const FUSED: bool = cfg!(any(target_arch = "aarch64", target_feature = "fma"));

    #[inline(always)]
    fn load(self, from: &Lanes) -> Lanes {
        *from
    }
    #[inline(always)]
    fn store(self, a: Lanes, to: &mut Lanes) {
        *to = a;
    }
    #[inline(always)]
    fn splat(self, a: f32) -> Lanes {
        [a; LANES]
    }
    #[inline(always)]
    fn add(self, a: Lanes, b: Lanes) -> Lanes {
        lanes!(i => a[i] + b[i])
    }
    #[inline(always)]
    fn sub(self, a: Lanes, b: Lanes) -> Lanes {
        lanes!(i => a[i] - b[i])
    }
    #[inline(always)]
    fn mul(self, a: Lanes, b: Lanes) -> Lanes {
        lanes!(i => a[i] * b[i])
    }
    #[inline(always)]
    fn div(self, a: Lanes, b: Lanes) -> Lanes {
        lanes!(i => a[i] / b[i])
    }
    #[inline(always)]
    fn fma(self, a: Lanes, b: Lanes, c: Lanes) -> Lanes {
        if Self::FUSED { lanes!(i => a[i].mul_add(b[i], c[i])) } else { lanes!(i => a[i] * b[i] + c[i]) }
    }
    #[inline(always)]
    fn min(self, a: Lanes, b: Lanes) -> Lanes {
        lanes!(i => if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn max(self, a: Lanes, b: Lanes) -> Lanes {
        lanes!(i => if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn abs(self, a: Lanes) -> Lanes {
        lanes!(i => a[i].abs())
    }
    #[inline(always)]
    fn le(self, a: Lanes, b: Lanes) -> [u32; LANES] {
        lanes!(i => if a[i] <= b[i] { u32::MAX } else { 0 })
    }
    #[inline(always)]
    fn both(self, a: [u32; LANES], b: [u32; LANES]) -> [u32; LANES] {
        lanes!(i => a[i] & b[i])
    }
    #[inline(always)]
    fn all(self, mask: [u32; LANES]) -> bool {
        let mut all = u32::MAX;
        for lane in mask {
            all &= lane;
        }
        all != 0
    }
    #[inline(always)]
    fn select(self, mask: [u32; LANES], yes: Lanes, no: Lanes) -> Lanes {
        lanes!(i => f32::from_bits(mask[i] & yes[i].to_bits() | !mask[i] & no[i].to_bits()))
    }
    #[inline(always)]
    fn add_exponent(self, a: Lanes, n: Lanes) -> Lanes {
        lanes!(i => f32::from_bits(a[i].to_bits().wrapping_add(n[i].to_bits() << 23)))
    }
    #[inline(always)]
    fn split(self, a: Lanes) -> (Lanes, Lanes) {
        let k = lanes!(i => ((a[i].to_bits() >> 23) as i32 - 127) as f32);
        (k, lanes!(i => f32::from_bits(a[i].to_bits() & 0x007f_ffff | 0x3f80_0000)))
    }
    #[inline(always)]
    fn sum(self, a: Lanes) -> f32 {
        let [a, b, c, d] = [a[0] + a[4], a[1] + a[5], a[2] + a[6], a[3] + a[7]];
        (a + c) + (b + d)
    }
    #[inline(always)]
    fn transpose(self, rows: [Lanes; LANES]) -> [Lanes; LANES] {
        lanes!(j => lanes!(i => rows[i][j]))
    }
}
