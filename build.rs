//! Puts the kernels' PTX into the library.
//!
//! Two origins, best first: compiled now, if an NVRTC is found, and the PTX that is committed in
//! kernels/ptx. Without an NVRTC the committed one must belong to the sources. Nothing here needs
//! a GPU or a driver, the network, or a particular folder.

#[path = "build/manifest.rs"]
mod manifest;
#[path = "build/nvrtc.rs"]
mod nvrtc;
#[path = "build/search.rs"]
mod search;
#[path = "build/variants.rs"]
mod variants;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process;

use manifest::Committed;
use nvrtc::Nvrtc;
use search::Answer;
use variants::{Image, Sources, Variant};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=build");
    println!("cargo::rerun-if-changed=kernels");
    println!("cargo::rustc-check-cfg=cfg(has_avx512)");
    if compiler_minor().is_some_and(|minor| minor >= 89) {
        println!("cargo::rustc-cfg=has_avx512");
    }
    if !cuda_is_wanted() {
        return;
    }
    let kernels = manifest_dir().join("kernels");
    let sources = Sources::read(&kernels).unwrap_or_else(|error| fail(&error));
    let committed = manifest::read(&kernels, &sources);
    let answer = search::find().unwrap_or_else(|error| {
        fail(&format!(
            "GFOCAL_NVRTC cannot be used: {error}.\n\
             Set it to a libnvrtc of CUDA 12.0 or later, or to its folder; unset it to have one \
             looked for; or set it to `none` to take the PTX of kernels/ptx."
        ))
    });
    match (answer, committed) {
        (Answer::Found(nvrtc), committed) => {
            let images = compile(&nvrtc, &sources);
            if let Err(reason) = &committed {
                warn(&format!(
                    "{reason}: only what NVRTC has compiled now is built in, which an older \
                     driver may refuse; run `cargo xtask ptx`"
                ));
            }
            emit(&sources, Ok((&nvrtc, &images)), committed.ok());
        }
        (Answer::Without(why), Ok(committed)) => emit(&sources, Err(&why), Some(committed)),
        (Answer::Without(why), Err(reason)) => fail(&format!(
            "the committed PTX cannot be used: {reason}.\n\
             And the kernels cannot be compiled now: NVRTC was {why}.\n\
             Either run `cargo xtask ptx`, which makes kernels/ptx anew (it fetches NVRTC from \
             PyPI; no GPU and no CUDA toolkit are needed), or set GFOCAL_NVRTC to a libnvrtc of \
             CUDA 12.0 or later, or build without the `cuda` feature."
        )),
    }
}

/// The compiler's version is 1.this, if it tells one: 1.89 is the first that has AVX-512.
fn compiler_minor() -> Option<u32> {
    let output = process::Command::new(cargo_variable("RUSTC")).arg("--version").output().ok()?;
    let version = String::from_utf8(output.stdout).ok()?;
    version.split_whitespace().nth(1)?.strip_prefix("1.")?.split('.').next()?.parse().ok()
}

/// Is the `cuda` feature on?
fn cuda_is_wanted() -> bool {
    // Cargo itself runs the script again when features change.
    env::var_os("CARGO_FEATURE_CUDA").is_some()
}

/// Where is the package?
fn manifest_dir() -> PathBuf {
    cargo_variable("CARGO_MANIFEST_DIR")
}

/// Where may the script write?
fn out_dir() -> PathBuf {
    cargo_variable("OUT_DIR")
}

fn cargo_variable(name: &str) -> PathBuf {
    match env::var_os(name) {
        Some(value) => value.into(),
        None => fail(&format!("{name} is not set: this script is run by cargo")),
    }
}

/// Compiles what this NVRTC has targets for: at least one for each storage type.
fn compile<'a>(nvrtc: &Nvrtc, sources: &'a Sources) -> Vec<Image<'a>> {
    let (major, minor) = nvrtc.version();
    if nvrtc.path().is_absolute() {
        // A toolkit that is removed or replaced calls for another build.
        println!("cargo::rerun-if-changed={}", nvrtc.path().display());
    }
    let mut variants = sources.variants();
    variants.retain(|variant| nvrtc.supports(variant.target));
    variants::compile(nvrtc, sources, &variants).unwrap_or_else(|log| {
        fail(&format!(
            "{log}\nThat is what NVRTC {major}.{minor} says ({}). With GFOCAL_NVRTC=none the \
             committed PTX is taken instead, if it belongs to these sources.",
            nvrtc.path().display()
        ))
    })
}

/// Writes images.rs, which `src/cuda/images.rs` includes.
fn emit(sources: &Sources, built: Result<(&Nvrtc, &[Image]), &str>, committed: Option<Committed>) {
    let out_dir = out_dir();
    let mut entries = Vec::new();
    if let Ok((_, images)) = built {
        for Image { variant, ptx, .. } in images {
            write(&out_dir.join(variant.image_name()), ptx);
            let file = format!("concat!(env!(\"OUT_DIR\"), \"/{}\")", variant.image_name());
            entries.push(entry(variant, ptx, "BuildScript", &file));
        }
    }
    if let Some(committed) = &committed {
        for (variant, ptx) in sources.variants().iter().zip(&committed.ptx) {
            let file =
                format!("concat!(env!(\"CARGO_MANIFEST_DIR\"), \"/kernels/ptx/{}\")", variant.image_name());
            entries.push(entry(variant, ptx, "Committed", &file));
        }
    }
    let built = match built {
        Ok((nvrtc, images)) => {
            let (major, minor) = nvrtc.version();
            let release = images.iter().find_map(|image| variants::compiler_release(&image.ptx));
            let release = release.map_or(format!("{major}.{minor}"), str::to_owned);
            format!("Ok(({release:?}, {:?}))", nvrtc.path().display().to_string())
        }
        Err(why) => format!("Err({why:?})"),
    };
    let committed = committed.map(|committed| committed.release);
    let text = format!(
        "const BUILT: Result<(&str, &str), &str> = {built};\n\
         const COMMITTED: Option<&str> = {committed:?};\n\
         static IMAGES: [Image; {}] = [\n{}];\n",
        entries.len(),
        entries.concat()
    );
    write(&out_dir.join("images.rs"), &text);
}

fn entry(variant: &Variant, ptx: &str, origin: &str, file: &str) -> String {
    let name = variant.image_name();
    let Some(version) = ptx_version(ptx) else {
        fail(&format!("{name} has no .version line, so it is not PTX"));
    };
    format!(
        "    Image {{ unit: {:?}, storage: {:?}, compute_capability: {}, ptx_version: {version:?}, \
         ptx: concat!(include_str!({file}), \"\\0\"), origin: Origin::{origin} }},\n",
        variant.unit.stem(),
        variant.storage.name,
        variant.target,
    )
}

/// The version that a PTX declares: `.version 8.0`.
fn ptx_version(ptx: &str) -> Option<(u32, u32)> {
    let version = ptx.lines().find_map(|line| line.trim().strip_prefix(".version "))?;
    let (major, minor) = version.trim().split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn write(path: &Path, text: &str) {
    if let Err(error) = fs::write(path, text) {
        fail(&format!("{} cannot be written: {error}", path.display()));
    }
}

fn warn(message: &str) {
    // Cargo takes one line; a message that breaks would lose its rest.
    println!("cargo::warning={}", message.replace('\n', " "));
}

/// Ends the build with a message and no backtrace.
fn fail(message: &str) -> ! {
    eprintln!("error: {message}");
    process::exit(1)
}
