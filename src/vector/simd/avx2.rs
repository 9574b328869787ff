//! AVX2, FMA and F16C: a vector is two registers.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::{HALF, Lanes, MOST_COLUMNS, Simd};

/// AVX2, FMA and F16C.
#[derive(Clone, Copy, Debug)]
pub(in crate::vector) struct Avx2(());

impl Avx2 {
    /// `Some` if this machine has them.
    pub fn detect() -> Option<Avx2> {
        let found = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        found.then_some(Avx2(()))
    }
}

macro_rules! avx2 {
    ($(fn $name:ident($self:ident $(, $arg:ident: $type:ty)*) $(-> $out:ty)? $body:block)*) => {$(
        #[inline(always)]
        fn $name($self $(, $arg: $type)*) $(-> $out)? {
            // SAFETY: `Avx2::detect`, which alone makes `self`, has found AVX2, FMA and F16C; and
            // what loads and stores point to is as many numbers, by its type.
            unsafe { $body }
        }
    )*};
}

/// Of each half. (Not a closure: that would not be compiled for these instructions.)
macro_rules! halves {
    ($i:ident => $value:expr) => {
        [
            {
                const $i: usize = 0;
                $value
            },
            {
                const $i: usize = 1;
                $value
            },
        ]
    };
}

impl Simd for Avx2 {
    type F = [__m256; 2];
    type Mask = [__m256; 2];
    const FUSED: bool = true;

    avx2! {
        fn load(self, from: &Lanes) -> [__m256; 2] { halves!(I => _mm256_loadu_ps(from.as_ptr().add(I * HALF))) }
        fn store(self, a: [__m256; 2], to: &mut Lanes) {
            _mm256_storeu_ps(to.as_mut_ptr(), a[0]);
            _mm256_storeu_ps(to.as_mut_ptr().add(HALF), a[1]);
        }
        fn load_halves(self, low: &[f32; HALF], high: &[f32; HALF]) -> [__m256; 2] {
            [_mm256_loadu_ps(low.as_ptr()), _mm256_loadu_ps(high.as_ptr())]
        }
        fn store_halves(self, a: [__m256; 2], low: &mut [f32; HALF], high: &mut [f32; HALF]) {
            _mm256_storeu_ps(low.as_mut_ptr(), a[0]);
            _mm256_storeu_ps(high.as_mut_ptr(), a[1]);
        }
        fn load_f16(self, low: &[f16; HALF], high: &[f16; HALF]) -> [__m256; 2] {
            let from = [low.as_ptr(), high.as_ptr()];
            halves!(I => _mm256_cvtph_ps(_mm_loadu_si128(from[I].cast())))
        }
        fn store_f16(self, a: [__m256; 2], low: &mut [f16; HALF], high: &mut [f16; HALF]) {
            let narrow = halves!(I => _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(a[I]));
            _mm_storeu_si128(low.as_mut_ptr().cast(), narrow[0]);
            _mm_storeu_si128(high.as_mut_ptr().cast(), narrow[1]);
        }
        fn load_bf16(self, low: &[bf16; HALF], high: &[bf16; HALF]) -> [__m256; 2] {
            let from = [low.as_ptr(), high.as_ptr()];
            halves!(I => {
                let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(from[I].cast()));
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
            })
        }
        fn store_bf16(self, a: [__m256; 2], low: &mut [bf16; HALF], high: &mut [bf16; HALF]) {
            let narrow = halves!(I => {
                let bits = _mm256_castps_si256(a[I]);
                let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
                let rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
                let is_nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(a[I], a[I]));
                let rounded = _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc0_0000), is_nan);
                let high = _mm256_srli_epi32::<16>(rounded);
                // Packs within the halves of the register.
                let packed = _mm256_permute4x64_epi64::<0b00_00_10_00>(_mm256_packus_epi32(high, high));
                _mm256_castsi256_si128(packed)
            });
            _mm_storeu_si128(low.as_mut_ptr().cast(), narrow[0]);
            _mm_storeu_si128(high.as_mut_ptr().cast(), narrow[1]);
        }
        fn splat(self, a: f32) -> [__m256; 2] { [_mm256_set1_ps(a); 2] }
        fn add(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] { halves!(I => _mm256_add_ps(a[I], b[I])) }
        fn sub(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] { halves!(I => _mm256_sub_ps(a[I], b[I])) }
        fn mul(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] { halves!(I => _mm256_mul_ps(a[I], b[I])) }
        fn div(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] { halves!(I => _mm256_div_ps(a[I], b[I])) }
        fn fma(self, a: [__m256; 2], b: [__m256; 2], c: [__m256; 2]) -> [__m256; 2] {
            halves!(I => _mm256_fmadd_ps(a[I], b[I], c[I]))
        }
        fn min(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] { halves!(I => _mm256_min_ps(a[I], b[I])) }
        fn max(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] { halves!(I => _mm256_max_ps(a[I], b[I])) }
        fn abs(self, a: [__m256; 2]) -> [__m256; 2] {
            halves!(I => _mm256_andnot_ps(_mm256_set1_ps(-0.0), a[I]))
        }
        fn floor(self, a: [__m256; 2]) -> [__m256; 2] { halves!(I => _mm256_floor_ps(a[I])) }
        fn pick(self, columns: &[Lanes], at: [__m256; 2]) -> [__m256; 2] {
            assert!(!columns.is_empty() && columns.len() <= MOST_COLUMNS);
            let last = _mm256_set1_ps((columns.len() - 1) as f32);
            let lane = [
                _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7),
                _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15),
            ];
            halves!(I => {
                // With the bound second, NaN becomes 0. So all indices are inside.
                let at = _mm256_min_ps(_mm256_max_ps(at[I], _mm256_setzero_ps()), last);
                let index = _mm256_add_epi32(_mm256_slli_epi32::<4>(_mm256_cvttps_epi32(at)), lane[I]);
                _mm256_i32gather_ps::<4>(columns.as_ptr().cast(), index)
            })
        }
        fn le(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
            halves!(I => _mm256_cmp_ps::<_CMP_LE_OQ>(a[I], b[I]))
        }
        fn any(self, mask: [__m256; 2]) -> bool { _mm256_movemask_ps(_mm256_or_ps(mask[0], mask[1])) != 0 }
        fn all_within(self, a: [__m256; 2], x: [__m256; 2], b: [__m256; 2]) -> bool {
            let within = halves!(I => _mm256_and_ps(
                _mm256_cmp_ps::<_CMP_LE_OQ>(a[I], x[I]),
                _mm256_cmp_ps::<_CMP_LE_OQ>(x[I], b[I]),
            ));
            _mm256_movemask_ps(_mm256_and_ps(within[0], within[1])) == 0xff
        }
        fn select(self, mask: [__m256; 2], yes: [__m256; 2], no: [__m256; 2]) -> [__m256; 2] {
            halves!(I => _mm256_blendv_ps(no[I], yes[I], mask[I]))
        }
        fn add_exponent(self, a: [__m256; 2], n: [__m256; 2]) -> [__m256; 2] {
            halves!(I => {
                let n = _mm256_slli_epi32::<23>(_mm256_castps_si256(n[I]));
                _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a[I]), n))
            })
        }
        fn split(self, a: [__m256; 2]) -> ([__m256; 2], [__m256; 2]) {
            let bits = halves!(I => _mm256_castps_si256(a[I]));
            let k = halves!(I => {
                _mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_srli_epi32::<23>(bits[I]), _mm256_set1_epi32(127)))
            });
            let mantissa = halves!(I => {
                let digits = _mm256_and_si256(bits[I], _mm256_set1_epi32(0x007f_ffff));
                _mm256_castsi256_ps(_mm256_or_si256(digits, _mm256_set1_epi32(0x3f80_0000)))
            });
            (k, mantissa)
        }
        fn sum(self, a: [__m256; 2]) -> f32 {
            let eight = _mm256_add_ps(a[0], a[1]);
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
        fn transpose_halves(self, r: [[__m256; 2]; HALF]) -> [[__m256; 2]; HALF] {
            let mut out = r;
            for half in 0..2 {
                // Pairs of rows, then fours in each half, then the halves.
                let (a, b) = (_mm256_unpacklo_ps(r[0][half], r[1][half]), _mm256_unpackhi_ps(r[0][half], r[1][half]));
                let (c, d) = (_mm256_unpacklo_ps(r[2][half], r[3][half]), _mm256_unpackhi_ps(r[2][half], r[3][half]));
                let (e, f) = (_mm256_unpacklo_ps(r[4][half], r[5][half]), _mm256_unpackhi_ps(r[4][half], r[5][half]));
                let (g, h) = (_mm256_unpacklo_ps(r[6][half], r[7][half]), _mm256_unpackhi_ps(r[6][half], r[7][half]));
                let (a, c) = (_mm256_shuffle_ps::<0x44>(a, c), _mm256_shuffle_ps::<0xee>(a, c));
                let (b, d) = (_mm256_shuffle_ps::<0x44>(b, d), _mm256_shuffle_ps::<0xee>(b, d));
                let (e, g) = (_mm256_shuffle_ps::<0x44>(e, g), _mm256_shuffle_ps::<0xee>(e, g));
                let (f, h) = (_mm256_shuffle_ps::<0x44>(f, h), _mm256_shuffle_ps::<0xee>(f, h));
                for (i, (low, high)) in [(a, e), (c, g), (b, f), (d, h)].into_iter().enumerate() {
                    out[i][half] = _mm256_permute2f128_ps::<0x20>(low, high);
                    out[i + 4][half] = _mm256_permute2f128_ps::<0x31>(low, high);
                }
            }
            out
        }
    }
}
