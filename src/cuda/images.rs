//! The kernels' code: what is built in, and which of it a device can take.
//!
//! The table is written by the build script. It holds what NVRTC compiled during the build, if
//! one was found, and the PTX committed in `kernels/ptx`, which every driver of CUDA 12.0 or later
//! takes.

use std::cmp::Reverse;
use std::fmt;

include!(concat!(env!("OUT_DIR"), "/images.rs"));

/// One translation unit, compiled for one storage type and compute capability.
#[derive(Debug)]
pub(super) struct Image {
    /// The name of the source without its ending, as in `qfl`.
    pub unit: &'static str,
    /// `f32`, `f16` or `bf16`, as at the end of the kernels' names.
    pub storage: &'static str,
    /// The lowest compute capability that runs it, as in 75.
    pub compute_capability: u32,
    /// Which language it is in.
    pub code: Code,
    /// Where it comes from.
    pub origin: Origin,
    /// How long it is once it is unpacked.
    bytes: usize,
    packed: &'static [u8],
}

/// The language of an image. The better one is first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Code {
    /// Machine code, by a release of NVRTC, as in (12, 9). Nothing is left to be done at load.
    #[allow(dead_code, reason = "a build makes it where GFOCAL_ARCHS asks for it")]
    Machine((u32, u32)),
    /// A version of PTX, as in (8, 0), which the driver assembles.
    Ptx((u32, u32)),
}

/// Where an image comes from. The better one is first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Origin {
    /// NVRTC compiled it when the library was built.
    #[allow(dead_code, reason = "a build without NVRTC has none")]
    BuildScript,
    /// It is the PTX in `kernels/ptx`.
    Committed,
}

impl Image {
    /// What the driver loads: PTX with a NUL at its end, or a cubin.
    pub fn unpack(&self) -> Vec<u8> {
        miniz_oxide::inflate::decompress_to_vec_zlib_with_limit(self.packed, self.bytes)
            .expect("the build script has packed as many bytes")
    }

    /// Whether a device runs it, and its driver takes it.
    fn fits(&self, compute_capability: u32, driver_version: i32) -> bool {
        let same_family = self.compute_capability / 10 == compute_capability / 10;
        self.compute_capability <= compute_capability
            && match self.code {
                // It runs on the later members of a family, and on any driver of its CUDA's major release.
                Code::Machine((major, _)) => same_family && driver_version >= 1000 * major as i32,
                Code::Ptx(version) => driver_takes(driver_version, version),
            }
    }
}

impl fmt::Display for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.code {
            Code::Machine(_) => write!(f, "machine code for sm_{}", self.compute_capability),
            Code::Ptx((major, minor)) => {
                write!(f, "PTX {major}.{minor} for sm_{}", self.compute_capability)
            }
        }?;
        f.write_str(match self.origin {
            Origin::BuildScript => ", compiled by the build script",
            Origin::Committed => ", committed",
        })
    }
}

/// The images that a device and its driver can take, best first. `driver_version` is the number
/// of `cuDriverGetVersion`: 12020 for CUDA 12.2.
pub(super) fn candidates(
    unit: &str,
    storage: &str,
    compute_capability: u32,
    driver_version: i32,
) -> Vec<&'static Image> {
    choose(&IMAGES, unit, storage, compute_capability, driver_version)
}

/// All that is built in.
pub(super) fn all() -> impl Iterator<Item = &'static Image> {
    IMAGES.iter()
}

/// Which NVRTC compiled the kernels in this build, as release and path, or why none did; and which
/// release made the committed PTX, if that belongs to the sources.
pub(super) fn origins() -> (Result<(&'static str, &'static str), &'static str>, Option<&'static str>) {
    (BUILT, COMMITTED)
}

fn choose<'a>(
    images: &'a [Image],
    unit: &str,
    storage: &str,
    compute_capability: u32,
    driver_version: i32,
) -> Vec<&'a Image> {
    let mut candidates: Vec<&Image> = images
        .iter()
        .filter(|image| image.unit == unit && image.storage == storage)
        .filter(|image| image.fits(compute_capability, driver_version))
        .collect();
    let is_ptx = |image: &Image| matches!(image.code, Code::Ptx(_));
    candidates.sort_by_key(|image| (is_ptx(image), image.origin, Reverse(image.compute_capability)));
    candidates
}

/// Whether a driver understands a version of PTX. A driver refuses any that is newer than itself.
fn driver_takes(driver_version: i32, ptx_version: (u32, u32)) -> bool {
    match first_cuda_release(ptx_version) {
        Some((major, minor)) => driver_version >= 1000 * major + 10 * minor,
        // Not known here, so newer than this table. PTX 9 came with CUDA 13, 8 with 12: a driver
        // of a later CUDA than that knows all of it.
        None => driver_version / 1000 > ptx_version.0 as i32 + 4,
    }
}

/// The CUDA release that a version of PTX came with ("Release History" in NVIDIA's PTX manual).
fn first_cuda_release(ptx_version: (u32, u32)) -> Option<(i32, i32)> {
    match ptx_version {
        (..=7, _) => Some((12, 0)), // older than any driver that is supported
        (8, minor @ 0..=5) => Some((12, minor as i32)),
        (8, minor @ 6..=8) => Some((12, minor as i32 + 1)), // CUDA 12.6 had no PTX of its own
        (9, minor @ 0..=5) => Some((13, minor as i32)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::cuda::units::UNITS;

    const fn image(compute_capability: u32, code: Code, origin: Origin, storage: &'static str) -> Image {
        Image { unit: "qfl", storage, compute_capability, code, origin, bytes: 0, packed: &[] }
    }

    const TABLE: [Image; 8] = [
        image(75, Code::Ptx((8, 0)), Origin::Committed, "bf16"),
        image(80, Code::Ptx((8, 0)), Origin::Committed, "bf16"),
        image(75, Code::Ptx((9, 0)), Origin::BuildScript, "bf16"),
        image(80, Code::Ptx((9, 0)), Origin::BuildScript, "bf16"),
        image(75, Code::Ptx((8, 0)), Origin::Committed, "f32"),
        image(75, Code::Ptx((9, 0)), Origin::BuildScript, "f32"),
        image(80, Code::Machine((12, 9)), Origin::BuildScript, "f32"),
        image(86, Code::Machine((12, 9)), Origin::BuildScript, "f32"),
    ];

    fn chosen(storage: &str, compute_capability: u32, driver: i32) -> Vec<(Origin, u32)> {
        choose(&TABLE, "qfl", storage, compute_capability, driver)
            .into_iter()
            .map(|image| (image.origin, image.compute_capability))
            .collect()
    }

    #[test]
    fn the_best_comes_first() {
        use Origin::{BuildScript, Committed};
        let everything = [(BuildScript, 80), (BuildScript, 75), (Committed, 80), (Committed, 75)];
        assert_eq!(chosen("bf16", 90, 13000), everything);
        assert_eq!(chosen("bf16", 80, 13010), everything);
        assert_eq!(chosen("f32", 120, 13000), [(BuildScript, 75), (Committed, 75)]);
    }

    /// It serves its own family of devices, from its own member on.
    #[test]
    fn machine_code_comes_before_ptx() {
        use Origin::{BuildScript, Committed};
        let ptx = [(BuildScript, 75), (Committed, 75)];
        let after = |machine: &[u32]| -> Vec<(Origin, u32)> {
            machine.iter().map(|&architecture| (BuildScript, architecture)).chain(ptx).collect()
        };
        assert_eq!(chosen("f32", 80, 13000), after(&[80]));
        assert_eq!(chosen("f32", 86, 13000), after(&[86, 80]));
        assert_eq!(chosen("f32", 89, 13000), after(&[86, 80]));
        assert_eq!(chosen("f32", 90, 13000), after(&[]));
        assert_eq!(chosen("f32", 75, 13000), after(&[]));
        // CUDA 12.9's machine code on a driver of CUDA 12.0, which does not take PTX 9.0.
        assert_eq!(chosen("f32", 80, 12000), [(BuildScript, 80), (Committed, 75)]);
    }

    #[test]
    fn an_old_device_gets_no_new_target() {
        use Origin::{BuildScript, Committed};
        assert_eq!(chosen("bf16", 75, 13000), [(BuildScript, 75), (Committed, 75)]);
        assert_eq!(chosen("bf16", 70, 13000), []);
    }

    #[test]
    fn an_old_driver_gets_no_new_ptx() {
        use Origin::Committed;
        assert_eq!(chosen("bf16", 90, 12090), [(Committed, 80), (Committed, 75)]);
        assert_eq!(chosen("bf16", 90, 12000), [(Committed, 80), (Committed, 75)]);
        assert_eq!(chosen("bf16", 90, 11080), []);
    }

    #[test]
    fn another_unit_is_not_taken() {
        assert!(choose(&TABLE, "dfl", "f32", 90, 13000).is_empty());
    }

    #[test]
    fn ptx_needs_the_driver_of_its_cuda_release() {
        // (PTX, the oldest driver that takes it)
        let pairs = [
            ((8, 0), 12000),
            ((8, 5), 12050),
            ((8, 6), 12070),
            ((8, 8), 12090),
            ((9, 0), 13000),
            ((9, 5), 13050),
            ((9, 9), 14000),  // not known: the next major release takes it
            ((10, 2), 15000), // likewise
        ];
        for (ptx, oldest) in pairs {
            assert!(driver_takes(oldest, ptx), "{ptx:?} on {oldest}");
            assert!(!driver_takes(oldest - 10, ptx), "{ptx:?} before {oldest}");
        }
    }

    #[test]
    fn the_table_is_complete() {
        let units: BTreeSet<_> = IMAGES.iter().map(|image| image.unit).collect();
        assert!(!units.is_empty());
        for unit in units {
            let only_f32 = UNITS.iter().any(|known| known.name == unit && known.only_f32);
            let storages: &[&str] = if only_f32 { &["f32"] } else { &["f32", "f16", "bf16"] };
            for storage in storages {
                // The newest driver imaginable on the oldest device that is supported.
                assert!(!candidates(unit, storage, 75, 99000).is_empty());
            }
        }
        for image in &IMAGES {
            let code = image.unpack();
            match image.code {
                Code::Ptx(_) => assert_eq!(code.iter().position(|&byte| byte == 0), Some(code.len() - 1)),
                Code::Machine(_) => assert!(code.starts_with(b"\x7fELF")),
            }
        }
    }
}
