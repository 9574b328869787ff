//! What is embedded: each image compressed, in a file of its own, and the table of all.

use std::fs;
use std::path::Path;

use miniz_oxide::deflate::compress_to_vec_zlib;

use crate::variants::{Variant, in_parallel};

/// Of 0 to 10: PTX packs to a fifth. What is above takes twice the time for a hundredth.
const LEVEL: u8 = 7;

/// An image to be embedded.
pub struct Embedded {
    /// The file's name, without what the compression adds.
    name: String,
    /// The fields of the table's row that follow from the image.
    fields: String,
    bytes: Vec<u8>,
}

impl Embedded {
    /// A PTX of an `origin`, a name of `Origin` in src/cuda/images.rs.
    pub fn ptx(variant: &Variant, ptx: &str, origin: &str) -> Embedded {
        let name = variant.image_name();
        let Some(version) = version(ptx) else {
            crate::fail(&format!("{name} has no .version line, so it is not PTX"));
        };
        // The driver takes a text that ends with NUL.
        let bytes = [ptx.as_bytes(), &[0]].concat();
        Embedded::new(variant, format!("{origin}.{name}"), &format!("Ptx({version:?})"), origin, bytes)
    }

    /// Machine code that this `release` of NVRTC made.
    pub fn machine_code(variant: &Variant, cubin: &[u8], release: (u32, u32)) -> Embedded {
        let code = format!("Machine({release:?})");
        Embedded::new(variant, variant.machine_code_name(), &code, "BuildScript", cubin.to_vec())
    }

    fn new(variant: &Variant, name: String, code: &str, origin: &str, bytes: Vec<u8>) -> Embedded {
        let fields = format!(
            "unit: {:?}, storage: {:?}, compute_capability: {}, code: Code::{code}, \
             origin: Origin::{origin}, bytes: {}",
            variant.unit.stem(),
            variant.storage.name,
            variant.target,
            bytes.len()
        );
        Embedded { name, fields, bytes }
    }
}

/// Writes the images and images.rs, which begins with `constants`, into `folder`.
pub fn write(folder: &Path, constants: &str, images: &[Embedded]) -> Result<(), String> {
    let packed = in_parallel(images, |image| compress_to_vec_zlib(&image.bytes, LEVEL));
    let mut table = String::new();
    for (Embedded { name, fields, .. }, packed) in images.iter().zip(packed) {
        let file = format!("{name}.z");
        write_file(&folder.join(&file), &packed)?;
        table += &format!(
            "    Image {{ {fields}, packed: include_bytes!(concat!(env!(\"OUT_DIR\"), \"/{file}\")) }},\n"
        );
    }
    let text = format!("{constants}static IMAGES: [Image; {}] = [\n{table}];\n", images.len());
    write_file(&folder.join("images.rs"), text.as_bytes())
}

fn write_file(path: &Path, bytes: &[u8]) -> Result<(), String> {
    fs::write(path, bytes).map_err(|error| format!("{} cannot be written: {error}", path.display()))
}

/// The version that a PTX declares: `.version 8.0`.
fn version(ptx: &str) -> Option<(u32, u32)> {
    let version = ptx.lines().find_map(|line| line.trim().strip_prefix(".version "))?;
    let (major, minor) = version.trim().split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}
