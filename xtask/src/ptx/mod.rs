//! `cargo xtask ptx`: kernels/ptx and its manifest, made by a pinned NVRTC; and what the tests see of it.

mod change;
mod coverage;
mod exceptions;
mod mutants;
mod noticed;
mod tests;
mod text;
mod unused;
pub mod variants;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::files::{cannot_write, create_folder};
use crate::manifest;
use crate::nvrtc::Nvrtc;
use crate::root;
use crate::variants::{Sources, compile, compiler_release};
use crate::wheels::NVRTC;

const MANIFEST: &str = "MANIFEST";

/// What to do with kernels/ptx.
#[derive(clap::Args)]
#[group(multiple = false)]
pub struct Options {
    /// Only compare: fail if kernels/ptx is not what the sources give
    #[arg(long)]
    check: bool,
    /// Compile the kernels with what only a GPU can decide instead, one folder in DIR for each trial
    #[arg(long, value_name = "DIR")]
    variants: Option<PathBuf>,
    /// Run every test on the PTX, and fail if they leave out too many of its instructions
    #[arg(long)]
    coverage: bool,
    /// As --coverage, from files that tests have left in a folder (GFOCAL_EMULATOR_COVERAGE)
    #[arg(long, value_name = "FOLDER")]
    coverage_of: Option<PathBuf>,
    /// Change single instructions, after --coverage, and fail if the tests do not notice
    #[arg(long)]
    mutants: bool,
    #[command(flatten)]
    draw: Draw,
}

/// Which mutants.
#[derive(clap::Args)]
#[group(multiple = true)]
struct Draw {
    /// How many mutants
    #[arg(long, default_value_t = 60, requires = "mutants")]
    count: usize,
    /// What the mutants follow from
    #[arg(long, default_value_t = 1, requires = "mutants")]
    seed: u64,
}

/// Does what the options say.
pub fn run(options: &Options) -> Result<(), String> {
    if let Some(folder) = &options.variants {
        variants::run(folder)
    } else if let Some(folder) = &options.coverage_of {
        coverage::run(Some(folder))
    } else if options.coverage {
        coverage::run(None)
    } else if options.mutants {
        mutants::run(options.draw.count, options.draw.seed)
    } else {
        generate_or_check(options.check)
    }
}

/// Brings kernels/ptx up to date, or only compares.
fn generate_or_check(check: bool) -> Result<(), String> {
    let kernels = root().join("kernels");
    let wanted = generate(&kernels)?;
    let folder = kernels.join("ptx");
    let present = read(&folder)?;
    let mut changes = Vec::new();
    for (name, text) in &wanted {
        match present.get(name) {
            Some(old) if old == text => {}
            Some(_) => changes.push((name, "is not what the sources give")),
            None => changes.push((name, "is missing")),
        }
    }
    for name in present.keys() {
        if !wanted.contains_key(name) {
            changes.push((name, "belongs to no kernel"));
        }
    }
    if check {
        if changes.is_empty() {
            println!("kernels/ptx is up to date ({} files)", wanted.len());
            return Ok(());
        }
        let list: String =
            changes.iter().map(|(name, what)| format!("  kernels/ptx/{name} {what}\n")).collect();
        return Err(format!("kernels/ptx is out of date:\n{list}Run `cargo xtask ptx`."));
    }
    create_folder(&folder)?;
    // The manifest comes last: after an interrupted run the old one does not fit, and that shows.
    changes.sort_by_key(|(name, _)| *name == MANIFEST);
    for (name, _) in &changes {
        let path = folder.join(name);
        let done = match wanted.get(*name) {
            Some(text) => fs::write(&path, text),
            None => fs::remove_file(&path),
        };
        done.map_err(|error| cannot_write(&path, &error))?;
        let verb = if wanted.contains_key(*name) { "wrote" } else { "removed" };
        println!("{verb} kernels/ptx/{name}");
    }
    if changes.is_empty() {
        println!("kernels/ptx was up to date ({} files)", wanted.len());
    }
    Ok(())
}

/// The files of kernels/ptx, by name.
fn generate(kernels: &Path) -> Result<BTreeMap<String, String>, String> {
    let sources = Sources::read(kernels)?;
    let library = NVRTC.fetch()?.join("libnvrtc.so.12");
    let nvrtc = Nvrtc::open(&library)?;
    let images = compile(&nvrtc, &sources, &sources.variants())?;
    for image in images.iter().filter(|image| !image.warnings.is_empty()) {
        let name = image.variant.image_name();
        eprintln!("warning: for {name} NVRTC says:\n{}", image.warnings);
    }
    let release = images.iter().find_map(|image| compiler_release(&image.ptx));
    if release != Some(NVRTC.version()) {
        let found = release.unwrap_or("of an unknown release");
        let library = library.display();
        return Err(format!("{library} is {found}, not {}; delete it", NVRTC.version()));
    }
    let manifest = manifest::write(&sources, NVRTC.version(), &images);
    let mut files: BTreeMap<_, _> =
        images.into_iter().map(|image| (image.variant.image_name(), image.ptx)).collect();
    files.insert(MANIFEST.to_owned(), manifest);
    Ok(files)
}

/// What is in kernels/ptx now: the manifest and the PTX.
fn read(folder: &Path) -> Result<BTreeMap<String, String>, String> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name == MANIFEST || name.ends_with(".ptx") {
            let text = fs::read(entry.path())
                .map_err(|error| format!("kernels/ptx/{name} cannot be read: {error}"))?;
            files.insert(name, String::from_utf8_lossy(&text).into_owned());
        }
    }
    Ok(files)
}
