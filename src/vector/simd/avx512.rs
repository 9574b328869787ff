//! AVX-512: a vector is one register. The build script leaves this out where the compiler is older than
//! 1.89, which first has these instructions.
#![allow(clippy::incompatible_msrv)]

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::{HALF, Lanes, MOST_COLUMNS, Simd};

/// AVX-512 F, BW, DQ and VL.
#[derive(Clone, Copy, Debug)]
pub(in crate::vector) struct Avx512(());

impl Avx512 {
    /// `Some` if this machine has them.
    pub fn detect() -> Option<Avx512> {
        let found = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("fma");
        found.then_some(Avx512(()))
    }
}

macro_rules! avx512 {
    ($(fn $name:ident($self:ident $(, $arg:ident: $type:ty)*) $(-> $out:ty)? $body:block)*) => {$(
        #[inline(always)]
        fn $name($self $(, $arg: $type)*) $(-> $out)? {
            // SAFETY: `Avx512::detect`, which alone makes `self`, has found AVX-512 F, BW, DQ and VL; and
            // what loads and stores point to is as many numbers, by its type.
            unsafe { $body }
        }
    )*};
}

impl Simd for Avx512 {
    type F = __m512;
    type Mask = __mmask16;
    const FUSED: bool = true;

    #[inline(always)]
    fn any(self, mask: __mmask16) -> bool {
        mask != 0
    }

    avx512! {
        fn load(self, from: &Lanes) -> __m512 { _mm512_loadu_ps(from.as_ptr()) }
        fn store(self, a: __m512, to: &mut Lanes) { _mm512_storeu_ps(to.as_mut_ptr(), a) }
        fn load_halves(self, low: &[f32; HALF], high: &[f32; HALF]) -> __m512 {
            let low = _mm512_castps256_ps512(_mm256_loadu_ps(low.as_ptr()));
            _mm512_insertf32x8::<1>(low, _mm256_loadu_ps(high.as_ptr()))
        }
        fn store_halves(self, a: __m512, low: &mut [f32; HALF], high: &mut [f32; HALF]) {
            _mm256_storeu_ps(low.as_mut_ptr(), _mm512_castps512_ps256(a));
            _mm256_storeu_ps(high.as_mut_ptr(), _mm512_extractf32x8_ps::<1>(a));
        }
        fn load_f16(self, low: &[f16; HALF], high: &[f16; HALF]) -> __m512 {
            let low = _mm256_castsi128_si256(_mm_loadu_si128(low.as_ptr().cast()));
            _mm512_cvtph_ps(_mm256_inserti128_si256::<1>(low, _mm_loadu_si128(high.as_ptr().cast())))
        }
        fn store_f16(self, a: __m512, low: &mut [f16; HALF], high: &mut [f16; HALF]) {
            let narrow = _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(a);
            _mm_storeu_si128(low.as_mut_ptr().cast(), _mm256_castsi256_si128(narrow));
            _mm_storeu_si128(high.as_mut_ptr().cast(), _mm256_extracti128_si256::<1>(narrow));
        }
        fn load_bf16(self, low: &[bf16; HALF], high: &[bf16; HALF]) -> __m512 {
            let low = _mm256_castsi128_si256(_mm_loadu_si128(low.as_ptr().cast()));
            let both = _mm256_inserti128_si256::<1>(low, _mm_loadu_si128(high.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(both)))
        }
        fn store_bf16(self, a: __m512, low: &mut [bf16; HALF], high: &mut [bf16; HALF]) {
            let bits = _mm512_castps_si512(a);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
            let is_nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(a, a);
            let rounded = _mm512_mask_blend_epi32(is_nan, rounded, _mm512_set1_epi32(0x7fc0_0000));
            let narrow = _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(rounded));
            _mm_storeu_si128(low.as_mut_ptr().cast(), _mm256_castsi256_si128(narrow));
            _mm_storeu_si128(high.as_mut_ptr().cast(), _mm256_extracti128_si256::<1>(narrow));
        }
        fn splat(self, a: f32) -> __m512 { _mm512_set1_ps(a) }
        fn add(self, a: __m512, b: __m512) -> __m512 { _mm512_add_ps(a, b) }
        fn sub(self, a: __m512, b: __m512) -> __m512 { _mm512_sub_ps(a, b) }
        fn mul(self, a: __m512, b: __m512) -> __m512 { _mm512_mul_ps(a, b) }
        fn div(self, a: __m512, b: __m512) -> __m512 { _mm512_div_ps(a, b) }
        fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 { _mm512_fmadd_ps(a, b, c) }
        fn min(self, a: __m512, b: __m512) -> __m512 { _mm512_min_ps(a, b) }
        fn max(self, a: __m512, b: __m512) -> __m512 { _mm512_max_ps(a, b) }
        fn abs(self, a: __m512) -> __m512 { _mm512_abs_ps(a) }
        fn floor(self, a: __m512) -> __m512 {
            _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC }>(a)
        }
        fn pick(self, columns: &[Lanes], at: __m512) -> __m512 {
            assert!(!columns.is_empty() && columns.len() <= MOST_COLUMNS);
            let last = _mm512_set1_ps((columns.len() - 1) as f32);
            // With the bound second, NaN becomes 0. So all indices are inside.
            let at = _mm512_min_ps(_mm512_max_ps(at, _mm512_setzero_ps()), last);
            let lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
            let index = _mm512_add_epi32(_mm512_slli_epi32::<4>(_mm512_cvttps_epi32(at)), lane);
            _mm512_i32gather_ps::<4>(index, columns.as_ptr().cast())
        }
        fn le(self, a: __m512, b: __m512) -> __mmask16 { _mm512_cmp_ps_mask::<_CMP_LE_OQ>(a, b) }
        fn all_within(self, a: __m512, x: __m512, b: __m512) -> bool {
            let above = _mm512_cmp_ps_mask::<_CMP_LE_OQ>(a, x);
            _mm512_mask_cmp_ps_mask::<_CMP_LE_OQ>(above, x, b) == 0xffff
        }
        fn select(self, mask: __mmask16, yes: __m512, no: __m512) -> __m512 { _mm512_mask_blend_ps(mask, no, yes) }
        fn add_exponent(self, a: __m512, n: __m512) -> __m512 {
            let n = _mm512_slli_epi32::<23>(_mm512_castps_si512(n));
            _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a), n))
        }
        fn split(self, a: __m512) -> (__m512, __m512) {
            let bits = _mm512_castps_si512(a);
            let k = _mm512_sub_epi32(_mm512_srli_epi32::<23>(bits), _mm512_set1_epi32(127));
            let digits = _mm512_and_si512(bits, _mm512_set1_epi32(0x007f_ffff));
            let mantissa = _mm512_or_si512(digits, _mm512_set1_epi32(0x3f80_0000));
            (_mm512_cvtepi32_ps(k), _mm512_castsi512_ps(mantissa))
        }
        fn sum(self, a: __m512) -> f32 {
            let eight = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps::<1>(a));
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
        fn transpose_halves(self, r: [__m512; HALF]) -> [__m512; HALF] {
            // Pairs of rows, then fours in each quarter, then the quarters of each half.
            let (a, b) = (_mm512_unpacklo_ps(r[0], r[1]), _mm512_unpackhi_ps(r[0], r[1]));
            let (c, d) = (_mm512_unpacklo_ps(r[2], r[3]), _mm512_unpackhi_ps(r[2], r[3]));
            let (e, f) = (_mm512_unpacklo_ps(r[4], r[5]), _mm512_unpackhi_ps(r[4], r[5]));
            let (g, h) = (_mm512_unpacklo_ps(r[6], r[7]), _mm512_unpackhi_ps(r[6], r[7]));
            let (a, c) = (_mm512_shuffle_ps::<0x44>(a, c), _mm512_shuffle_ps::<0xee>(a, c));
            let (b, d) = (_mm512_shuffle_ps::<0x44>(b, d), _mm512_shuffle_ps::<0xee>(b, d));
            let (e, g) = (_mm512_shuffle_ps::<0x44>(e, g), _mm512_shuffle_ps::<0xee>(e, g));
            let (f, h) = (_mm512_shuffle_ps::<0x44>(f, h), _mm512_shuffle_ps::<0xee>(f, h));
            let lower = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27);
            let upper = _mm512_setr_epi32(4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
            [
                _mm512_permutex2var_ps(a, lower, e),
                _mm512_permutex2var_ps(c, lower, g),
                _mm512_permutex2var_ps(b, lower, f),
                _mm512_permutex2var_ps(d, lower, h),
                _mm512_permutex2var_ps(a, upper, e),
                _mm512_permutex2var_ps(c, upper, g),
                _mm512_permutex2var_ps(b, upper, f),
                _mm512_permutex2var_ps(d, upper, h),
            ]
        }
    }
}
