//! kernels/ptx/MANIFEST: which sources the committed PTX was made from.
//!
//! It is what `sha256sum` prints, with comments that `sha256sum -c` passes over:
//!
//! ```text
//! # NVRTC 12.0.76
//! # options: ...
//! 0123...cdef  qfl.cu
//! 4567...89ab  ptx/qfl.f32.sm_75.ptx
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::variants::{Image, Sources, hash, options_in_words};

const NVRTC: &str = "# NVRTC ";
const OPTIONS: &str = "# options: ";

/// The manifest of images that `release` of NVRTC made.
#[allow(dead_code)] // the build script only reads manifests
pub fn write(sources: &Sources, release: &str, images: &[Image]) -> String {
    let mut text = format!(
        "# Made by `cargo xtask ptx`. To check: cd kernels && sha256sum -c ptx/MANIFEST\n\
         {NVRTC}{release}\n{OPTIONS}{}\n",
        options_in_words()
    );
    for source in sources.all() {
        text += &format!("{}  {}\n", source.hash(), source.name);
    }
    for image in images {
        let name = image.variant.image_name();
        text += &format!("{}  ptx/{name}\n", hash(image.ptx.as_bytes()));
    }
    text
}

/// The committed PTX, known to belong to the sources.
pub struct Committed {
    /// The release of NVRTC that made it.
    pub release: String,
    /// The PTX of each variant, in the order of [`Sources::variants`].
    pub ptx: Vec<String>,
}

/// Reads the committed PTX if it was made from `sources`; else says what does not fit.
pub fn read(kernels: &Path, sources: &Sources) -> Result<Committed, String> {
    let manifest = fs::read_to_string(kernels.join("ptx/MANIFEST"))
        .map_err(|error| format!("kernels/ptx/MANIFEST cannot be read ({error})"))?;
    let after = |prefix| manifest.lines().find_map(|line| line.strip_prefix(prefix));
    let release = after(NVRTC).ok_or("kernels/ptx/MANIFEST does not name its NVRTC")?;
    if after(OPTIONS) != Some(&options_in_words()) {
        return Err("the compiler options have changed since kernels/ptx was made".to_owned());
    }
    // A checkout may have changed the ends of lines; `lines` takes both forms.
    let mut hashes: BTreeMap<&str, &str> = manifest
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once("  "))
        .map(|(hash, name)| (name, hash))
        .collect();

    for source in sources.all() {
        match hashes.remove(source.name.as_str()) {
            Some(hash) if hash == source.hash() => {}
            Some(_) => {
                let name = &source.name;
                return Err(format!("kernels/{name} has changed since kernels/ptx was made"));
            }
            None => {
                let name = &source.name;
                return Err(format!("kernels/{name} was added after kernels/ptx was made"));
            }
        }
    }
    let mut ptx = Vec::new();
    for variant in sources.variants() {
        let name = format!("ptx/{}", variant.image_name());
        let Some(expected) = hashes.remove(name.as_str()) else {
            return Err(format!("kernels/{name} is not in kernels/ptx/MANIFEST"));
        };
        let text = fs::read_to_string(kernels.join(&name))
            .map_err(|error| format!("kernels/{name} cannot be read ({error})"))?;
        if hash(text.as_bytes()) != expected {
            return Err(format!("kernels/{name} is not the file that kernels/ptx/MANIFEST lists"));
        }
        ptx.push(text);
    }
    if let Some(name) = hashes.keys().next() {
        return Err(format!("kernels/{name} is gone, but kernels/ptx was made with it"));
    }
    Ok(Committed { release: release.to_owned(), ptx })
}
