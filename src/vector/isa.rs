//! Which vector instructions there are, found at run time.

#[cfg(target_arch = "x86_64")]
use super::simd::Avx2;
#[cfg(all(target_arch = "x86_64", has_avx512))]
use super::simd::Avx512;
use super::simd::{Portable, Simd};

/// A set of vector instructions of this machine.
#[derive(Clone, Copy, Debug)]
pub struct Isa(pub(super) Set);

#[derive(Clone, Copy, Debug)]
pub(super) enum Set {
    /// What the target of the build has: SSE2 on x86-64, NEON on aarch64.
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    #[cfg(all(target_arch = "x86_64", has_avx512))]
    Avx512(Avx512),
}

impl Isa {
    /// The best.
    pub(crate) fn detect() -> Isa {
        Isa::all().next_back().expect("the portable one is always there")
    }

    /// Whether it has fused multiply-add.
    pub(super) fn is_fused(self) -> bool {
        !matches!(self.0, Set::Portable) || Portable::FUSED
    }

    /// All that this machine has, the best last.
    pub(crate) fn all() -> impl DoubleEndedIterator<Item = Isa> {
        let sets = [
            Some(Set::Portable),
            #[cfg(target_arch = "x86_64")]
            Avx2::detect().map(Set::Avx2),
            #[cfg(all(target_arch = "x86_64", has_avx512))]
            Avx512::detect().map(Set::Avx512),
        ];
        sets.into_iter().flatten().map(Isa)
    }
}

/// `name(isa, ...)`: calls `body(simd, ...)`, compiled for those instructions. `body` and all that it
/// calls must be `#[inline(always)]`, and closures do not count as such.
macro_rules! dispatch {
    ($(
        $(#[$doc:meta])*
        $name:ident $(<$t:ident: $bound:path $(, const $flag:ident: bool)?>)? = $body:ident($($arg:ident: $type:ty),* $(,)?) -> $out:ty;
    )*) => {$(
        $(#[$doc])*
        pub(crate) fn $name $(<$t: $bound $(, const $flag: bool)?>)? (isa: $crate::vector::Isa, $($arg: $type),*) -> $out {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            fn avx2 $(<$t: $bound $(, const $flag: bool)?>)? (simd: $crate::vector::simd::Avx2, $($arg: $type),*) -> $out {
                $body $(::<_, $t $(, $flag)?>)? (simd, $($arg),*)
            }
            #[cfg(all(target_arch = "x86_64", has_avx512))]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
            fn avx512 $(<$t: $bound $(, const $flag: bool)?>)? (simd: $crate::vector::simd::Avx512, $($arg: $type),*) -> $out {
                $body $(::<_, $t $(, $flag)?>)? (simd, $($arg),*)
            }
            match isa.0 {
                // SAFETY: `Avx512::detect`, which alone makes this value, has found these features.
                #[cfg(all(target_arch = "x86_64", has_avx512))]
                $crate::vector::isa::Set::Avx512(simd) => unsafe { avx512 $(::<$t $(, $flag)?>)? (simd, $($arg),*) },
                // SAFETY: `Avx2::detect`, which alone makes this value, has found these features.
                #[cfg(target_arch = "x86_64")]
                $crate::vector::isa::Set::Avx2(simd) => unsafe { avx2 $(::<$t $(, $flag)?>)? (simd, $($arg),*) },
                $crate::vector::isa::Set::Portable => $body $(::<_, $t $(, $flag)?>)? ($crate::vector::simd::Portable, $($arg),*),
            }
        }
    )*};
}
pub(super) use dispatch;
