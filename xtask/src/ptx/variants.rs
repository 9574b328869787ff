//! `cargo xtask ptx --variants DIR`: kernels with what only a GPU can decide, one folder for each trial.
//!
//! Each is behind a macro of kernels/ptx.cuh that nothing else defines. A file has the name of the image
//! that it stands for, the one that a GPU of compute capability 8.0 or more loads, so that it can replace it;
//! inside it may be for a higher target.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::files::{create_folder, write};
use crate::nvrtc::Nvrtc;
use crate::root;
use crate::variants::{Source, Sources, Variant, compile_with};
use crate::wheels::{NVCC, NVRTC, run as run_tool};

/// The target that all trials are for: copies from global to shared memory exist from it on.
const TARGET: u32 = 80;
/// What ptxas tries them for.
const ARCHITECTURES: [&str; 3] = ["sm_80", "sm_90", "sm_120"];

/// One thing to try.
struct Trial {
    /// Of the folder.
    name: &'static str,
    define: &'static str,
    /// The units that it changes.
    units: &'static [&'static str],
}

const TRIALS: [Trial; 4] = [
    Trial { name: "prefetch", define: "VARIANT_PREFETCH", units: &["qfl", "qfl_forward", "qfl_any_beta"] },
    Trial {
        name: "no_pmevent",
        define: "VARIANT_NO_PMEVENT",
        units: &["qfl", "qfl_forward", "qfl_any_beta", "head", "head_forward", "head_any_beta"],
    },
    Trial {
        name: "load_hints",
        define: "VARIANT_LOAD_HINTS",
        units: &["qfl", "qfl_forward", "dfl", "dfl_forward", "head", "head_forward"],
    },
    Trial { name: "streaming_stores", define: "VARIANT_STREAMING_STORES", units: &["qfl", "dfl", "head"] },
];

/// Compiles them all into `folder`, and has ptxas assemble each without spills.
pub fn run(folder: &Path) -> Result<(), String> {
    let sources = Sources::read(&root().join("kernels"))?;
    let nvrtc = Nvrtc::open(&NVRTC.fetch()?.join("libnvrtc.so.12"))?;
    let ptxas = NVCC.fetch()?.join("ptxas");
    for trial in &TRIALS {
        let (variants, names): (Vec<_>, Vec<_>) = images(&sources, trial)?.into_iter().unzip();
        let images = compile_with(&nvrtc, &sources, &variants, &[trial.define])?;
        let folder = folder.join(trial.name);
        create_folder(&folder)?;
        for (image, name) in images.iter().zip(names) {
            let path = folder.join(name);
            write(&path, &image.ptx)?;
            for architecture in ARCHITECTURES {
                check(&ptxas, &path, architecture)?;
            }
        }
        println!(
            "{}: {} files, without spills on {}",
            folder.display(),
            images.len(),
            ARCHITECTURES.join(", ")
        );
    }
    Ok(())
}

/// What a trial compiles, and the names of the images that it stands for.
fn images<'a>(sources: &'a Sources, trial: &Trial) -> Result<Vec<(Variant<'a>, String)>, String> {
    let mut images = Vec::new();
    for unit in trial.units {
        let is_it = |source: &&Source| source.stem() == *unit;
        let source =
            sources.units.iter().find(is_it).ok_or_else(|| format!("there is no kernels/{unit}.cu"))?;
        let all = sources.variants();
        let own = all.into_iter().filter(|variant| variant.unit.stem() == source.stem());
        let taken = own.filter(|variant| variant.targets().last() == Some(&variant.target));
        images.extend(taken.map(|variant| (Variant { target: TARGET, ..variant }, variant.image_name())));
    }
    Ok(images)
}

/// That a file assembles, and spills nothing.
fn check(ptxas: &Path, path: &Path, architecture: &str) -> Result<(), String> {
    let failed = |log: String| format!("ptxas fails on {} for {architecture}:\n{log}", path.display());
    let cubin = path.with_extension("cubin");
    let mut command = Command::new(ptxas);
    command.arg("-v").arg(format!("--gpu-name={architecture}")).arg(path).arg("-o").arg(&cubin);
    let output = run_tool(&mut command).map_err(failed)?;
    let _ = fs::remove_file(&cubin); // it is not wanted; at worst it stays
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    let spills = log.lines().filter(|line| line.contains("spill stores"));
    match spills.filter(|line| !line.contains(" 0 bytes spill stores")).count() {
        0 => Ok(()),
        count => Err(failed(format!("{count} kernels spill:\n{log}"))),
    }
}
