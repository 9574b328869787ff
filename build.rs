//! Puts the kernels' PTX into the library.
//!
//! Two origins, best first: compiled now, if an NVRTC is found, and the PTX that is committed in
//! kernels/ptx. Without an NVRTC the committed one must belong to the sources. With one,
//! GFOCAL_ARCHS asks for machine code as well. All of it is embedded compressed. Nothing here
//! needs a GPU or a driver, the network, or a particular folder.

#[path = "build/images.rs"]
mod images;
#[path = "build/manifest.rs"]
mod manifest;
#[path = "build/nvrtc.rs"]
mod nvrtc;
#[path = "build/search.rs"]
mod search;
#[path = "build/variants.rs"]
mod variants;

use std::env;
use std::path::PathBuf;
use std::process;

use images::Embedded;
use manifest::Committed;
use nvrtc::{Code, Nvrtc};
use search::Answer;
use variants::{Image, Sources};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=build");
    println!("cargo::rerun-if-changed=kernels/ptx");
    println!("cargo::rustc-check-cfg=cfg(has_avx512)");
    if compiler_minor().is_some_and(|minor| minor >= 89) {
        println!("cargo::rustc-cfg=has_avx512");
    }
    if !cuda_is_wanted() {
        return;
    }
    let kernels = manifest_dir().join("kernels");
    let sources = Sources::read(&kernels).unwrap_or_else(|error| fail(&error));
    // Not all of the folder: what is known about kernels changes none of them.
    for source in sources.all() {
        println!("cargo::rerun-if-changed=kernels/{}", source.name);
    }
    let committed = manifest::read(&kernels, &sources);
    let answer = search::find().unwrap_or_else(|error| {
        fail(&format!(
            "GFOCAL_NVRTC cannot be used: {error}.\n\
             Set it to a libnvrtc of CUDA 12.0 or later, or to its folder; unset it to have one \
             looked for; or set it to `none` to take the PTX of kernels/ptx."
        ))
    });
    let architectures = search::architectures().unwrap_or_else(|error| fail(&error));
    match (answer, committed) {
        (Answer::Found(nvrtc), committed) => {
            let compiled = Compiled::new(&nvrtc, &sources, &architectures);
            if let Err(reason) = &committed {
                warn(&format!(
                    "{reason}: only what NVRTC has compiled now is built in, which an older \
                     driver may refuse; run `cargo xtask ptx`"
                ));
            }
            emit(&sources, Ok(&compiled), committed.ok());
        }
        (Answer::Without(why), _) if !architectures.is_empty() => fail(&format!(
            "GFOCAL_ARCHS asks for machine code, which NVRTC makes, and that was {why}.\n\
             Set GFOCAL_NVRTC to a libnvrtc of CUDA 12.0 or later, or unset GFOCAL_ARCHS: the \
             driver assembles PTX for any device."
        )),
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

/// What NVRTC has made in this build.
struct Compiled<'a> {
    nvrtc: &'a Nvrtc,
    ptx: Vec<Image<'a>>,
    machine_code: Vec<(variants::Variant<'a>, nvrtc::Compiled)>,
}

impl<'a> Compiled<'a> {
    /// PTX for what this NVRTC has targets for, at least one for each storage type; and machine
    /// code for `architectures`.
    fn new(nvrtc: &'a Nvrtc, sources: &'a Sources, architectures: &[u32]) -> Compiled<'a> {
        let (major, minor) = nvrtc.version();
        if nvrtc.path().is_absolute() {
            // A toolkit that is removed or replaced calls for another build.
            println!("cargo::rerun-if-changed={}", nvrtc.path().display());
        }
        if let Some(unknown) = architectures.iter().find(|&&architecture| !nvrtc.supports(architecture)) {
            fail(&format!(
                "GFOCAL_ARCHS asks for sm_{unknown}, and NVRTC {major}.{minor} ({}) compiles for {:?}",
                nvrtc.path().display(),
                nvrtc.compute_capabilities()
            ));
        }
        let give_up = |log: String| -> ! {
            fail(&format!(
                "{log}\nThat is what NVRTC {major}.{minor} says ({}). With GFOCAL_NVRTC=none the \
                 committed PTX is taken instead, if it belongs to these sources.",
                nvrtc.path().display()
            ))
        };
        let mut targets = sources.variants();
        targets.retain(|variant| nvrtc.supports(variant.target));
        let ptx = variants::compile(nvrtc, sources, &targets).unwrap_or_else(|log| give_up(log));
        let targets: Vec<_> = architectures.iter().flat_map(|&each| sources.variants_of(each)).collect();
        let machine_code = variants::compile_to(Code::Machine, nvrtc, sources, &targets, &[]);
        Compiled { nvrtc, ptx, machine_code: machine_code.unwrap_or_else(|log| give_up(log)) }
    }

    /// The release of NVRTC, as in 12.0.76.
    fn release(&self) -> String {
        let (major, minor) = self.nvrtc.version();
        let release = self.ptx.iter().find_map(|image| variants::compiler_release(&image.ptx));
        release.map_or(format!("{major}.{minor}"), str::to_owned)
    }
}

/// Writes what `src/cuda/images.rs` includes.
fn emit(sources: &Sources, compiled: Result<&Compiled, &str>, committed: Option<Committed>) {
    let mut embedded = Vec::new();
    if let Ok(compiled) = compiled {
        let release = compiled.nvrtc.version();
        for (variant, made) in &compiled.machine_code {
            embedded.push(Embedded::machine_code(variant, &made.code, release));
        }
        for image in &compiled.ptx {
            embedded.push(Embedded::ptx(&image.variant, &image.ptx, "BuildScript"));
        }
    }
    if let Some(committed) = &committed {
        for (variant, ptx) in sources.variants().iter().zip(&committed.ptx) {
            embedded.push(Embedded::ptx(variant, ptx, "Committed"));
        }
    }
    let built = match compiled {
        Ok(compiled) => {
            format!("Ok(({:?}, {:?}))", compiled.release(), compiled.nvrtc.path().display().to_string())
        }
        Err(why) => format!("Err({why:?})"),
    };
    let committed = committed.map(|committed| committed.release);
    let constants = format!(
        "const BUILT: Result<(&str, &str), &str> = {built};\n\
         const COMMITTED: Option<&str> = {committed:?};\n"
    );
    images::write(&out_dir(), &constants, &embedded).unwrap_or_else(|error| fail(&error));
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
