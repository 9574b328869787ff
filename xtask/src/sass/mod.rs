//! `cargo xtask sass`: what the committed PTX becomes on the GPUs that load it, against the budgets
//! in `kernels/budgets.toml`.
//!
//! No GPU is needed: ptxas assembles, nvdisasm prints the machine code, and this reads it. It
//! counts what stands in the code, not what a run executes: an instruction under a predicate counts,
//! and how often a loop or a branch is taken is not known.

mod budgets;
mod device;
mod dump;
mod entries;
mod figures;
mod flow;
mod listing;
mod measured;
mod resources;
mod sizes;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{self, Command, Stdio};
use std::time::Duration;

use clap::Args;
use wait4::Wait4;

use crate::files::{create_folder, write};
use crate::manifest;
use crate::variants::{Sources, Variant, in_parallel};
use crate::wheels::{NVCC, NVDISASM, run as run_tool};
use crate::{cache, root};
use budgets::{Budgets, TITLES};
use entries::{Entry, entries, matches};
use figures::Assembled;
pub use figures::Cost;
use flow::Flow;
pub use measured::{Measured, measure};
use sizes::Weighed;

/// The architecture for which assembly times are printed.
const TIMED: u32 = 90;

/// What `cargo xtask sass` takes.
#[derive(Args)]
pub struct Options {
    /// Only kernels whose names hold this; `*` stands for any characters
    #[arg(long, value_name = "PATTERN", default_value = "")]
    kernel: String,
    /// Only these architectures, as in sm_80,sm_90
    #[arg(long, value_name = "ARCH", value_delimiter = ',')]
    arch: Vec<String>,
    /// Print the reason of each budget too
    #[arg(long)]
    verbose: bool,
    /// Print the machine code of these kernels instead, with loops and cold code marked
    #[arg(long, value_name = "PATTERN", conflicts_with_all = ["kernel", "verbose"])]
    dump: Option<String>,
}

/// Assembles every committed image for the architectures that load it, prints each kernel's figures
/// against its budget, and fails if a budget is broken.
pub fn run(options: &Options) -> Result<(), String> {
    let (sources, ptx) = committed()?;
    let budgets = Budgets::of_checkout()?;

    let mut images = Vec::new();
    for (variant, ptx) in sources.variants().into_iter().zip(&ptx) {
        let name = variant.image_name();
        let entries = entries(ptx).map_err(|error| format!("kernels/ptx/{name}: {error}"))?;
        images.push((variant, ptx.as_str(), entries));
    }
    if options.dump.is_none() {
        let all: Vec<Entry> = images.iter().flat_map(|(.., entries)| entries.iter().copied()).collect();
        budgets.cover(&all).map_err(|error| format!("kernels/budgets.toml: {error}"))?;
    }

    let pattern = format!("*{}*", options.dump.as_ref().unwrap_or(&options.kernel));
    let is_wanted = |name: &str| matches(&pattern, name);
    let mut jobs = Vec::new();
    for (variant, ptx, entries) in &images {
        for architecture in budgets.architectures().filter(|&number| is_loaded(variant, number)) {
            let chosen = options.arch.is_empty() || options.arch.contains(&format!("sm_{architecture}"));
            if chosen && entries.iter().any(|entry| is_wanted(entry.name)) {
                jobs.push((*variant, *ptx, entries, architecture));
            }
        }
    }

    let tools = Tools::new()?;
    let results = in_parallel(&jobs, |(variant, ptx, entries, architecture)| {
        tools.assemble(&variant.image_name(), ptx, entries, *architecture)
    });
    let mut kernels = Vec::new();
    let mut times = BTreeMap::new();
    for (result, (variant, .., architecture)) in results.into_iter().zip(&jobs) {
        let (assembled, time) = result?;
        kernels.extend(assembled.into_iter().filter(|assembled| is_wanted(assembled.name())));
        if *architecture == TIMED {
            times.insert(variant.image_name(), time);
        }
    }
    if kernels.is_empty() {
        return Err("no kernel is of this name, on these architectures".to_owned());
    }
    kernels.sort_by(|a, b| (a.name(), a.architecture).cmp(&(b.name(), b.architecture)));
    if options.dump.is_some() {
        kernels.iter().for_each(dump::print);
        return Ok(());
    }
    let weighed: Vec<Weighed> = (images.iter())
        .map(|(variant, ptx, _)| Weighed {
            unit: variant.unit.stem(),
            storage: variant.storage.name,
            target: variant.target,
            bytes: ptx.len(),
            time: times.get(&variant.image_name()).copied(),
        })
        .collect();
    sizes::print(&weighed, TIMED);
    println!();
    report(&kernels, &budgets, options.verbose)?;
    match budgets.sizes.faults(&weighed) {
        faults if faults.is_empty() => Ok(()),
        faults => {
            Err(format!("kernels/ptx is larger than kernels/budgets.toml says:\n  {}", faults.join("\n  ")))
        }
    }
}

/// The sources, and the PTX that is committed for each of their variants.
fn committed() -> Result<(Sources, Vec<String>), String> {
    let kernels = root().join("kernels");
    let sources = Sources::read(&kernels)?;
    let committed =
        manifest::read(&kernels, &sources).map_err(|reason| format!("{reason}. Run `cargo xtask ptx`."))?;
    Ok((sources, committed.ptx))
}

/// Whether a device of this architecture takes this image, and not one for a higher target.
fn is_loaded(variant: &Variant, architecture: u32) -> bool {
    let targets = variant.targets().iter().copied();
    targets.filter(|&target| target <= architecture).max() == Some(variant.target)
}

/// The table and the verdict.
fn report(kernels: &[Assembled], budgets: &Budgets, verbose: bool) -> Result<(), String> {
    let mut table =
        vec![["kernel", "arch"].into_iter().chain(TITLES).chain(["verdict"]).map(str::to_owned).collect()];
    // By the reason of the budget: the faults, and the architectures that have them.
    let mut faults: BTreeMap<&str, BTreeMap<String, Vec<String>>> = BTreeMap::new();
    let mut reasons: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for kernel in kernels {
        let own = budgets.of(kernel.name());
        if own.is_empty() {
            return Err(format!("{} has no budget", kernel.name()));
        }
        let architecture = format!("sm_{}", kernel.architecture);
        let mut broken = budgets.broken_rules(kernel);
        if !budgets.bounds_on(kernel.architecture) {
            let known = faults.entry("the rules of every kernel").or_default();
            for fault in broken.drain(..) {
                known.entry(format!("{}: {fault}", kernel.name())).or_default().push(architecture.clone());
            }
            continue;
        }
        for budget in own {
            let title = budget.title(kernel.name());
            let checks = budget.checks(kernel);
            broken.extend(budget.broken_rules(kernel));
            let faulty = checks.iter().filter(|check| !check.is_good);
            broken.extend(faulty.map(|check| format!("{} {check}", check.title)));

            let mut row = vec![title.clone(), architecture.clone()];
            row.extend(checks.iter().map(ToString::to_string));
            row.push(if broken.is_empty() { "good" } else { "FAIL" }.to_owned());
            table.push(row);
            reasons.entry(budget.reason()).or_default().insert(kernel.name());
            for fault in broken.drain(..) {
                let known = faults.entry(budget.reason()).or_default();
                known.entry(format!("{title}: {fault}")).or_default().push(architecture.clone());
            }
        }
    }
    print!("{}", aligned(&table));
    if verbose {
        for (reason, names) in reasons {
            println!("\n{}:\n{reason}", names.into_iter().collect::<Vec<_>>().join(", "));
        }
    }
    faults.retain(|_, of_reason| !of_reason.is_empty());
    if faults.is_empty() {
        println!("{} kernels keep their budgets", kernels.len());
        return Ok(());
    }
    let mut list = String::new();
    for (reason, faults) in faults {
        for (fault, architectures) in faults {
            list += &format!("\n  {fault} ({})", architectures.join(", "));
        }
        list += &format!("\n  Why the budget is as it is: {}", reason.replace('\n', " "));
    }
    Err(format!("the machine code breaks kernels/budgets.toml:{list}"))
}

/// Lines of a table: the first column to the left, the others to the right.
pub fn aligned(table: &[Vec<String>]) -> String {
    let columns = table.first().map_or(0, Vec::len);
    let width = |column: usize| table.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in table {
        text += &format!("{:width$}", row[0], width = widths[0]);
        for (cell, width) in row.iter().zip(&widths).skip(1) {
            text += &format!("  {cell:>width$}");
        }
        text.push('\n');
    }
    text
}

/// The assembler, the disassembler, and a folder for their files, which is removed at the end.
struct Tools {
    ptxas: PathBuf,
    nvdisasm: PathBuf,
    folder: PathBuf,
}

impl Tools {
    fn new() -> Result<Tools, String> {
        let tools = Tools {
            ptxas: NVCC.fetch()?.join("ptxas"),
            nvdisasm: NVDISASM.fetch()?.join("nvdisasm"),
            // Two runs at once shall not share it.
            folder: cache().join(format!("sass-{}", process::id())),
        };
        create_folder(&tools.folder)?;
        Ok(tools)
    }

    /// Assembles an image and reads its kernels; and how much of a processor's time ptxas took.
    fn assemble(
        &self,
        image: &str,
        ptx: &str,
        entries: &[Entry],
        architecture: u32,
    ) -> Result<(Vec<Assembled>, Duration), String> {
        let failed = |tool: &str, log: String| {
            format!("{tool} fails on kernels/ptx/{image} for sm_{architecture}:\n{log}")
        };
        let source = self.folder.join(format!("{architecture}.{image}"));
        let cubin = source.with_extension("cubin");
        write(&source, ptx)?;
        let mut assemble = Command::new(&self.ptxas);
        assemble.arg("-v").arg(format!("--gpu-name=sm_{architecture}")).arg(&source).arg("-o").arg(&cubin);
        let (log, time) = timed(&mut assemble).map_err(|log| failed("ptxas", log))?;
        let listing = self.disassemble(&cubin).map_err(|log| failed("nvdisasm", log))?;

        let mut kernels = Vec::new();
        let mut found = listing::read(&listing);
        for entry in entries {
            let lacks =
                |what: &str, text: &str| failed("ptxas", format!("its {what} lacks {}:\n{text}", entry.name));
            let position =
                found.iter().position(|kernel| kernel.name == entry.name && !kernel.code.is_empty());
            let kernel = found.swap_remove(position.ok_or_else(|| lacks("listing", &listing))?);
            let resources = resources::of(entry.name, &log).ok_or_else(|| lacks("log", &log))?;
            let flow = Flow::of(&kernel);
            kernels.push(Assembled { kernel, flow, architecture, threads: entry.threads, resources });
        }
        Ok((kernels, time))
    }

    fn disassemble(&self, cubin: &Path) -> Result<String, String> {
        let output = run_tool(Command::new(&self.nvdisasm).arg("-c").arg(cubin))?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// Runs a program to its end: what it says on its standard error, and how long it took of a processor's time.
fn timed(command: &mut Command) -> Result<(String, Duration), String> {
    let cannot_run = |error| format!("it cannot be run: {error}");
    let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(cannot_run)?;
    let mut log = Vec::new();
    if let Some(mut stream) = child.stderr.take() {
        stream.read_to_end(&mut log).map_err(cannot_run)?;
    }
    let used = child.wait4().map_err(cannot_run)?;
    let log = String::from_utf8_lossy(&log).into_owned();
    if used.status.success() { Ok((log, used.rusage.utime)) } else { Err(log) }
}

impl Drop for Tools {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder); // at worst it stays until the next `cargo clean`
    }
}
