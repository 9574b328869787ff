//! `cargo xtask sass`: what the committed PTX becomes on the GPUs that load it.
//!
//! No GPU is needed: ptxas assembles, nvdisasm prints the machine code, and this reads it. It
//! counts what stands in the code, not what a run executes.

mod listing;
mod resources;

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{self, Command};

use crate::manifest;
use crate::variants::{Sources, Variant, in_parallel};
use crate::wheels::{NVCC, NVDISASM, cannot_write, run as run_tool};
use crate::{cache, root};
use listing::{Instruction, Kernel};
use resources::Resources;

/// Turing, Ampere, Hopper, Blackwell.
const ARCHITECTURES: [u32; 4] = [75, 80, 90, 120];

/// Assembles every committed image for the architectures that load it, prints a table, and fails
/// if a kernel breaks a rule.
pub fn run() -> Result<(), String> {
    let kernels = root().join("kernels");
    let sources = Sources::read(&kernels)?;
    let committed =
        manifest::read(&kernels, &sources).map_err(|reason| format!("{reason}. Run `cargo xtask ptx`."))?;
    let mut jobs = Vec::new();
    for (variant, ptx) in sources.variants().into_iter().zip(&committed.ptx) {
        for architecture in ARCHITECTURES {
            if is_loaded(&variant, architecture) {
                let image = variant.image_name();
                jobs.push((image, ptx.as_str(), architecture));
            }
        }
    }

    let tools = Tools::new()?;
    let results = in_parallel(&jobs, |(image, ptx, architecture)| tools.assemble(image, ptx, *architecture));
    let mut kernels = Vec::new();
    for result in results {
        kernels.extend(result?);
    }
    kernels.sort_by(|a, b| (a.name(), a.architecture).cmp(&(b.name(), b.architecture)));
    report(&kernels)
}

/// Whether a device of this architecture takes this image, and not one for a higher target.
fn is_loaded(variant: &Variant, architecture: u32) -> bool {
    let targets = variant.storage.targets.iter().copied();
    targets.filter(|&target| target <= architecture).max() == Some(variant.target)
}

/// The table and the verdict.
fn report(kernels: &[Assembled]) -> Result<(), String> {
    let width = kernels.iter().map(|kernel| kernel.name().len()).max();
    let width = width.unwrap_or(0);
    let header = ["arch", "regs", "shared", "instr", "LDG.128", "STG.128", "MUFU"];
    print!("{:width$}", "kernel");
    for title in header {
        print!("{title:>9}");
    }
    println!("  verdict");

    let mut failures: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for kernel in kernels {
        let faults = kernel.faults();
        let verdict = if faults.is_empty() { "good" } else { "FAIL" };
        println!("{:width$}{kernel}  {verdict}", kernel.name());
        for fault in faults {
            let architectures = failures.entry(format!("{}: {fault}", kernel.name()));
            architectures.or_default().push(format!("sm_{}", kernel.architecture));
        }
    }
    if failures.is_empty() {
        return Ok(());
    }
    let list: String = failures
        .iter()
        .map(|(fault, architectures)| format!("\n  {fault} ({})", architectures.join(", ")))
        .collect();
    Err(format!("the machine code has faults:{list}"))
}

/// A kernel as it is on one architecture.
struct Assembled {
    kernel: Kernel,
    architecture: u32,
    resources: Resources,
}

impl Assembled {
    fn name(&self) -> &str {
        &self.kernel.name
    }

    /// The rules that it breaks.
    fn faults(&self) -> Vec<String> {
        let Resources { stack, spills, .. } = self.resources;
        let local = |instruction: &Instruction| matches!(instruction.base(), "LDL" | "STL");
        let mut faults = Vec::new();
        if spills > 0 {
            faults.push(format!("{spills} bytes of registers are spilled to local memory"));
        }
        if stack > 0 {
            faults.push(format!("its stack takes {stack} bytes"));
        }
        match self.kernel.count(local) {
            0 => {}
            count => faults.push(format!("{count} loads and stores of local memory")),
        }
        if let Some(callee) = self.kernel.code.iter().find_map(Instruction::callee) {
            faults.push(format!("it calls {callee}"));
        }
        if self.wide("LDG") == 0 {
            faults.push("no 128-bit load from global memory".to_owned());
        }
        faults
    }

    /// How many 128-bit instructions there are with an opcode.
    fn wide(&self, base: &str) -> usize {
        self.kernel.count(|instruction| instruction.base() == base && instruction.width() == 128)
    }
}

/// The columns of the table behind the name.
impl fmt::Display for Assembled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let resources = &self.resources;
        let architecture = format!("sm_{}", self.architecture);
        write!(
            f,
            "{architecture:>9}{:>9}{:>9}{:>9}{:>9}{:>9}{:>9}",
            resources.registers,
            resources.static_shared,
            self.kernel.code.len(),
            self.wide("LDG"),
            self.wide("STG"),
            self.kernel.count(|instruction| instruction.base() == "MUFU"),
        )
    }
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
        fs::create_dir_all(&tools.folder).map_err(|error| cannot_write(&tools.folder, &error))?;
        Ok(tools)
    }

    /// Assembles an image and reads its kernels.
    fn assemble(&self, image: &str, ptx: &str, architecture: u32) -> Result<Vec<Assembled>, String> {
        let failed = |tool: &str, log: String| {
            format!("{tool} fails on kernels/ptx/{image} for sm_{architecture}:\n{log}")
        };
        let source = self.folder.join(format!("{architecture}.{image}"));
        let cubin = source.with_extension("cubin");
        fs::write(&source, ptx).map_err(|error| cannot_write(&source, &error))?;
        let mut assemble = Command::new(&self.ptxas);
        assemble.arg("-v").arg(format!("--gpu-name=sm_{architecture}")).arg(&source).arg("-o").arg(&cubin);
        let output = run_tool(&mut assemble).map_err(|log| failed("ptxas", log))?;
        let log = String::from_utf8_lossy(&output.stderr);
        let listing = self.disassemble(&cubin).map_err(|log| failed("nvdisasm", log))?;

        let mut kernels = Vec::new();
        for kernel in listing::read(&listing) {
            let resources = resources::of(&kernel.name, &log).ok_or_else(|| {
                let what = format!("its log does not tell what {} takes:\n{log}", kernel.name);
                failed("ptxas", what)
            })?;
            kernels.push(Assembled { kernel, architecture, resources });
        }
        if kernels.is_empty() {
            return Err(format!("kernels/ptx/{image} holds no kernel"));
        }
        Ok(kernels)
    }

    fn disassemble(&self, cubin: &Path) -> Result<String, String> {
        let output = run_tool(Command::new(&self.nvdisasm).arg("-c").arg(cubin))?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

impl Drop for Tools {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder); // at worst it stays until the next `cargo clean`
    }
}
