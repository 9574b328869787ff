//! Which vector instructions there are, found at run time. AVX-512 is not among them: naming it to
//! the compiler needs Rust 1.89.

/// A set of vector instructions of this machine. Its values other than the portable one come from
/// detection alone, so that having one shows that the instructions are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isa(pub(super) Set);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Set {
    /// What the target of the build has: SSE2 on x86-64, NEON on aarch64.
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
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
            (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")).then_some(Set::Avx2),
        ];
        sets.into_iter().flatten().map(Isa)
    }
}

/// Whether the target of the build itself has fused multiply-add; without, `mul_add` would be a
/// slow function.
pub(super) const PORTABLE_FUSED: bool = cfg!(any(target_arch = "aarch64", target_feature = "fma"));

/// `name(isa, ...)`: calls `body::<FUSED>(...)`, compiled for those instructions. `body` must be
/// `#[inline(always)]`.
macro_rules! dispatch {
    ($($(#[$doc:meta])* $name:ident = $body:ident($($arg:ident: $type:ty),* $(,)?);)*) => {$(
        $(#[$doc])*
        pub(crate) fn $name(isa: $crate::vector::Isa, $($arg: $type),*) {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2($($arg: $type),*) {
                $body::<true>($($arg),*)
            }
            match isa.0 {
                // SAFETY: `Isa::all`, which alone makes this value, has detected AVX2 and FMA.
                #[cfg(target_arch = "x86_64")]
                Set::Avx2 => unsafe { avx2($($arg),*) },
                Set::Portable => $body::<PORTABLE_FUSED>($($arg),*),
            }
        }
    )*};
}
pub(super) use dispatch;
