//! Which vector instructions there are, found at run time. AVX-512 is not among them: naming it to
//! the compiler needs Rust 1.89.

#[cfg(target_arch = "x86_64")]
use super::simd::Avx2;

/// A set of vector instructions of this machine.
#[derive(Clone, Copy, Debug)]
pub struct Isa(pub(super) Set);

#[derive(Clone, Copy, Debug)]
pub(super) enum Set {
    /// What the target of the build has: SSE2 on x86-64, NEON on aarch64.
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
}

impl Isa {
    /// The best.
    pub(crate) fn detect() -> Isa {
        Isa::all().next_back().expect("the portable one is always there")
    }

    /// All that this machine has, the best last.
    pub(crate) fn all() -> impl DoubleEndedIterator<Item = Isa> {
        let sets = [
            Some(Set::Portable),
            #[cfg(target_arch = "x86_64")]
            Avx2::detect().map(Set::Avx2),
        ];
        sets.into_iter().flatten().map(Isa)
    }
}

/// `name(isa, ...)`: calls `body(simd, ...)`, compiled for those instructions. `body` and all that it
/// calls must be `#[inline(always)]`, and closures do not count as such.
macro_rules! dispatch {
    ($($(#[$doc:meta])* $name:ident = $body:ident($($arg:ident: $type:ty),* $(,)?) -> $out:ty;)*) => {$(
        $(#[$doc])*
        pub(crate) fn $name(isa: $crate::vector::Isa, $($arg: $type),*) -> $out {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2(simd: $crate::vector::simd::Avx2, $($arg: $type),*) -> $out {
                $body(simd, $($arg),*)
            }
            match isa.0 {
                // SAFETY: `Avx2::detect`, which alone makes this value, has found AVX2 and FMA.
                #[cfg(target_arch = "x86_64")]
                $crate::vector::isa::Set::Avx2(simd) => unsafe { avx2(simd, $($arg),*) },
                $crate::vector::isa::Set::Portable => $body($crate::vector::simd::Portable, $($arg),*),
            }
        }
    )*};
}
pub(super) use dispatch;
