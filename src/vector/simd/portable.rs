//! What the target of the build has, by arrays that the compiler makes vectors of.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::{HALF, LANES, Lanes, Loss, MOST_COLUMNS, Simd};

/// What the target of the build has.
#[derive(Clone, Copy, Debug)]
pub(in crate::vector) struct Portable;

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

macro_rules! portable {
    ($(fn $name:ident($self:ident $(, $arg:ident: $type:ty)*) $(-> $out:ty)? $body:block)*) => {$(
        #[inline(always)]
        fn $name($self $(, $arg: $type)*) $(-> $out)? $body
    )*};
}

impl Simd for Portable {
    type F = Lanes;
    type Mask = [u32; LANES];
    /// Without it in the target of the build, `mul_add` would be a slow function.
    const FUSED: bool = cfg!(any(target_arch = "aarch64", target_feature = "fma"));

    /// Not inlined on x86-64, where it is what few machines need, and so large that copies for every loop were a
    /// fifth of a program.
    #[cfg_attr(target_arch = "x86_64", inline(never))]
    #[cfg_attr(not(target_arch = "x86_64"), inline(always))]
    fn losses<L: Loss>(self, losses: L, x: Lanes, y: Lanes, scale: Lanes) -> (Lanes, Lanes) {
        losses.of(self, x, y, scale)
    }

    portable! {
        fn load(self, from: &Lanes) -> Lanes { *from }
        fn store(self, a: Lanes, to: &mut Lanes) { *to = a }
        fn load_halves(self, low: &[f32; HALF], high: &[f32; HALF]) -> Lanes {
            lanes!(i => if i < HALF { low[i] } else { high[i - HALF] })
        }
        fn store_halves(self, a: Lanes, low: &mut [f32; HALF], high: &mut [f32; HALF]) {
            low.copy_from_slice(&a[..HALF]);
            high.copy_from_slice(&a[HALF..]);
        }
        fn load_f16(self, low: &[f16; HALF], high: &[f16; HALF]) -> Lanes {
            let mut out = [0.0; LANES];
            low.convert_to_f32_slice(&mut out[..HALF]);
            high.convert_to_f32_slice(&mut out[HALF..]);
            out
        }
        fn store_f16(self, a: Lanes, low: &mut [f16; HALF], high: &mut [f16; HALF]) {
            low.convert_from_f32_slice(&a[..HALF]);
            high.convert_from_f32_slice(&a[HALF..]);
        }
        fn load_bf16(self, low: &[bf16; HALF], high: &[bf16; HALF]) -> Lanes {
            lanes!(i => f32::from_bits(u32::from(if i < HALF { low[i] } else { high[i - HALF] }.to_bits()) << 16))
        }
        fn store_bf16(self, a: Lanes, low: &mut [bf16; HALF], high: &mut [bf16; HALF]) {
            for i in 0..LANES {
                let bits = a[i].to_bits();
                let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
                let bits = if a[i].is_nan() { 0x7fc0_0000 } else { rounded };
                *(if i < HALF { &mut low[i] } else { &mut high[i - HALF] }) = bf16::from_bits((bits >> 16) as u16);
            }
        }
        fn splat(self, a: f32) -> Lanes { [a; LANES] }
        fn add(self, a: Lanes, b: Lanes) -> Lanes { lanes!(i => a[i] + b[i]) }
        fn sub(self, a: Lanes, b: Lanes) -> Lanes { lanes!(i => a[i] - b[i]) }
        fn mul(self, a: Lanes, b: Lanes) -> Lanes { lanes!(i => a[i] * b[i]) }
        fn div(self, a: Lanes, b: Lanes) -> Lanes { lanes!(i => a[i] / b[i]) }
        fn fma(self, a: Lanes, b: Lanes, c: Lanes) -> Lanes {
            if Self::FUSED { lanes!(i => a[i].mul_add(b[i], c[i])) } else { lanes!(i => a[i] * b[i] + c[i]) }
        }
        fn min(self, a: Lanes, b: Lanes) -> Lanes { lanes!(i => if a[i] < b[i] { a[i] } else { b[i] }) }
        fn max(self, a: Lanes, b: Lanes) -> Lanes { lanes!(i => if a[i] > b[i] { a[i] } else { b[i] }) }
        fn abs(self, a: Lanes) -> Lanes { lanes!(i => a[i].abs()) }
        fn floor(self, a: Lanes) -> Lanes { lanes!(i => a[i] as i32 as f32) }
        fn pick(self, columns: &[Lanes], at: Lanes) -> Lanes {
            assert!(!columns.is_empty() && columns.len() <= MOST_COLUMNS);
            let last = (columns.len() - 1) as i32;
            lanes!(i => columns[(at[i] as i32).clamp(0, last) as usize][i])
        }
        fn le(self, a: Lanes, b: Lanes) -> [u32; LANES] {
            lanes!(i => if a[i] <= b[i] { u32::MAX } else { 0 })
        }
        fn any(self, mask: [u32; LANES]) -> bool {
            let mut any = 0;
            for lane in mask {
                any |= lane;
            }
            any != 0
        }
        fn all_within(self, a: Lanes, x: Lanes, b: Lanes) -> bool {
            let mut all = true;
            for i in 0..LANES {
                all &= (a[i] <= x[i]) & (x[i] <= b[i]);
            }
            all
        }
        fn select(self, mask: [u32; LANES], yes: Lanes, no: Lanes) -> Lanes {
            lanes!(i => f32::from_bits(mask[i] & yes[i].to_bits() | !mask[i] & no[i].to_bits()))
        }
        fn add_exponent(self, a: Lanes, n: Lanes) -> Lanes {
            lanes!(i => f32::from_bits(a[i].to_bits().wrapping_add(n[i].to_bits() << 23)))
        }
        fn split(self, a: Lanes) -> (Lanes, Lanes) {
            let k = lanes!(i => ((a[i].to_bits() >> 23) as i32 - 127) as f32);
            (k, lanes!(i => f32::from_bits(a[i].to_bits() & 0x007f_ffff | 0x3f80_0000)))
        }
        fn sum(self, a: Lanes) -> f32 {
            let mut a = a;
            for half in [8, 4, 2, 1] {
                for i in 0..half {
                    a[i] += a[i + half];
                }
            }
            a[0]
        }
        fn transpose_halves(self, rows: [Lanes; HALF]) -> [Lanes; HALF] {
            let mut out = rows;
            for (j, column) in out.iter_mut().enumerate() {
                *column = lanes!(i => rows[i % HALF][i / HALF * HALF + j]);
            }
            out
        }
    }
}
