//! The kernels' PTX: what is built in, where it comes from, and which of it a device can take.
//!
//! The table is written by the build script. It holds what NVRTC compiled during the build, if
//! one was found, and the PTX committed in `kernels/ptx`, which every driver of CUDA 12.0 or later
//! takes.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::fmt;

include!(concat!(env!("OUT_DIR"), "/images.rs"));

/// One translation unit, compiled for one storage type and compute capability.
#[derive(Debug)]
pub(crate) struct Image {
    /// The name of the source without its ending, as in `qfl`.
    pub unit: &'static str,
    /// `f32`, `f16` or `bf16`, as at the end of the kernels' names.
    pub storage: &'static str,
    /// The lowest compute capability that runs it, as in 75.
    pub compute_capability: u32,
    /// The version of the PTX language, as in (8, 0).
    pub ptx_version: (u32, u32),
    /// The text, with a NUL at the end as the driver wants it.
    pub ptx: &'static str,
    /// Where it comes from.
    pub origin: Origin,
}

/// Where an image comes from. The better one is first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Origin {
    /// NVRTC compiled it when the library was built.
    BuildScript,
    /// It is the PTX in `kernels/ptx`.
    Committed,
}

/// The images that a device and its driver can take, best first. `driver_version` is the number
/// of `cuDriverGetVersion`: 12020 for CUDA 12.2.
pub(crate) fn candidates(
    unit: &str,
    storage: &str,
    compute_capability: u32,
    driver_version: i32,
) -> Vec<&'static Image> {
    choose(&IMAGES, unit, storage, compute_capability, driver_version)
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
        .filter(|image| image.compute_capability <= compute_capability)
        .filter(|image| driver_takes(driver_version, image.ptx_version))
        .collect();
    candidates.sort_by_key(|image| (image.origin, Reverse(image.compute_capability)));
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

/// Where the kernels of this build come from: compiled by an NVRTC that the build found, or the
/// PTX that is committed in the repository. [`Display`](fmt::Display) tells it in words.
#[derive(Clone, Copy, Debug)]
pub struct Provenance {
    built: Result<(&'static str, &'static str), &'static str>,
    committed: Option<&'static str>,
}

/// Where the kernels of this build come from.
pub fn provenance() -> Provenance {
    Provenance { built: BUILT, committed: COMMITTED }
}

impl Provenance {
    /// Whether NVRTC compiled the kernels when the library was built. If not, they are the
    /// committed PTX.
    pub fn compiled_at_build_time(&self) -> bool {
        self.built.is_ok()
    }

    /// The release of the NVRTC that made the kernels that are tried first, as in `12.0.76`.
    pub fn nvrtc_release(&self) -> &'static str {
        match self.built {
            Ok((release, _)) => release,
            Err(_) => self.committed.unwrap_or("unknown"),
        }
    }
}

impl fmt::Display for Provenance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.built {
            Ok((release, library)) => {
                write!(
                    f,
                    "compiled at build time by NVRTC {release} ({library}): {}",
                    Summary(Origin::BuildScript)
                )?;
                match self.committed {
                    Some(release) => write!(
                        f,
                        "; second choice: committed PTX, made by NVRTC {release}: {}",
                        Summary(Origin::Committed)
                    ),
                    None => write!(f, "; no second choice: the committed PTX was out of date"),
                }
            }
            Err(why) => write!(
                f,
                "committed PTX, made by NVRTC {}: {}; nothing was compiled at build time: NVRTC \
                 was {why}",
                self.nvrtc_release(),
                Summary(Origin::Committed)
            ),
        }
    }
}

/// The PTX versions and targets of the images of one origin.
struct Summary(Origin);

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds: BTreeSet<_> = IMAGES
            .iter()
            .filter(|image| image.origin == self.0)
            .map(|image| (image.ptx_version, image.compute_capability))
            .collect();
        let mut last_version = None;
        for ((major, minor), compute_capability) in kinds {
            if last_version != Some((major, minor)) {
                let comma = if last_version.is_some() { ", " } else { "" };
                write!(f, "{comma}PTX {major}.{minor} for sm_{compute_capability}")?;
            } else {
                write!(f, ", sm_{compute_capability}")?;
            }
            last_version = Some((major, minor));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::raw::UNITS;

    const fn image(
        compute_capability: u32,
        ptx_version: (u32, u32),
        origin: Origin,
        storage: &'static str,
    ) -> Image {
        Image { unit: "qfl", storage, compute_capability, ptx_version, ptx: "\0", origin }
    }

    const TABLE: [Image; 6] = [
        image(75, (8, 0), Origin::Committed, "bf16"),
        image(80, (8, 0), Origin::Committed, "bf16"),
        image(75, (9, 0), Origin::BuildScript, "bf16"),
        image(80, (9, 0), Origin::BuildScript, "bf16"),
        image(75, (8, 0), Origin::Committed, "f32"),
        image(75, (9, 0), Origin::BuildScript, "f32"),
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
            assert!(image.ptx.ends_with('\0'));
            assert_eq!(image.ptx.matches('\0').count(), 1);
        }
    }

    #[test]
    fn the_provenance_says_which_it_is() {
        let built = Provenance {
            built: Ok(("13.0.88", "/usr/local/cuda/lib64/libnvrtc.so.13")),
            committed: Some("12.0.76"),
        };
        let text = built.to_string();
        assert!(text.starts_with("compiled at build time by NVRTC 13.0.88 (/usr/local/cuda"));
        assert!(text.contains("second choice: committed PTX, made by NVRTC 12.0.76"));
        assert!(built.compiled_at_build_time());
        assert_eq!(built.nvrtc_release(), "13.0.88");

        let committed = Provenance { built: Err("not found"), committed: Some("12.0.76") };
        let text = committed.to_string();
        assert!(text.starts_with("committed PTX, made by NVRTC 12.0.76"));
        assert!(text.ends_with("nothing was compiled at build time: NVRTC was not found"));
        assert!(!committed.compiled_at_build_time());
        assert_eq!(committed.nvrtc_release(), "12.0.76");
    }
}
