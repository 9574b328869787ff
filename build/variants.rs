//! What is compiled: every `kernels/*.cu`, once for each storage type that it has and compute target.
//!
//! The build script and `cargo xtask ptx` both take everything from here, so that the PTX which
//! is committed is the PTX which a build would make with the same NVRTC.

use std::fs;
use std::num::NonZero;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use sha2::{Digest, Sha256};

use crate::nvrtc::{Code, CompileError, Compiled, Nvrtc};

mod tidy;

/// A storage type of logits and gradients.
pub struct Storage {
    /// As in the names of the images and of the entry points.
    pub name: &'static str,
    /// The macro that chooses it in `kernels/storage.cuh`.
    pub define: &'static str,
    /// The compute capabilities that are compiled for, lowest first.
    pub targets: &'static [u32],
}

/// Compute capability 7.5 runs everywhere from Turing on. 8.0 converts to bf16, which pays; it has packed
/// conversions to f16 too, which ptxas makes by itself of the others. Nothing newer pays.
pub const STORAGES: [Storage; 3] = [
    Storage { name: "f32", define: "STORAGE_F32", targets: &[75] },
    Storage { name: "f16", define: "STORAGE_F16", targets: &[75] },
    Storage { name: "bf16", define: "STORAGE_BF16", targets: &[75, 80] },
];

/// The units that have nothing in one storage type: they are compiled for f32 alone.
const ONLY_F32: [&str; 4] = ["assign", "boxes", "decode", "head_positives"];

/// The units that store nothing in the logits' storage type, and so have no use for those conversions: they
/// are compiled for the lowest target alone.
const ONLY_LOADS: [&str; 4] = ["dfl_forward", "gfl_forward", "head_forward", "qfl_forward"];

/// One compilation.
#[derive(Clone, Copy)]
pub struct Variant<'a> {
    pub unit: &'a Source,
    pub storage: &'static Storage,
    /// The compute capability, as in 75.
    pub target: u32,
}

impl Variant<'_> {
    /// The name of the file that it makes, as in `qfl.bf16.sm_80.ptx`.
    pub fn image_name(&self) -> String {
        format!("{}.ptx", self.name())
    }

    /// The same of machine code, as in `qfl.bf16.sm_90.cubin`.
    #[allow(dead_code)] // only the build script makes it
    pub fn machine_code_name(&self) -> String {
        format!("{}.cubin", self.name())
    }

    fn name(&self) -> String {
        format!("{}.{}.sm_{}", self.unit.stem(), self.storage.name, self.target)
    }

    /// The compute capabilities that this unit is compiled for in this storage type.
    #[allow(dead_code)] // the build script takes variants as they come
    pub fn targets(&self) -> &'static [u32] {
        targets(self.unit, self.storage)
    }

    fn options(&self, code: Code) -> Vec<String> {
        let architecture = match code {
            Code::Ptx => "compute",
            Code::Machine => "sm",
        };
        options(&format!("{architecture}_{}", self.target), self.storage.define)
    }
}

fn targets(unit: &Source, storage: &'static Storage) -> &'static [u32] {
    if ONLY_LOADS.contains(&unit.stem()) { &storage.targets[..1] } else { storage.targets }
}

fn options(architecture: &str, define: &str) -> Vec<String> {
    // No fast-math flag: the kernels say themselves where an approximation is good enough.
    vec![
        format!("--gpu-architecture={architecture}"),
        "--std=c++17".to_owned(),
        // Lambdas have no execution space of their own.
        "--device-as-default-execution-space".to_owned(),
        format!("-D{define}"),
    ]
}

/// The options of all variants in one line, for the manifest.
pub fn options_in_words() -> String {
    options("compute_CC", "STORAGE").join(" ")
}

/// A file of kernels/.
pub struct Source {
    /// As in `qfl.cu`.
    pub name: String,
    pub text: String,
}

impl Source {
    /// As in `qfl`.
    pub fn stem(&self) -> &str {
        self.name.split('.').next().unwrap_or(&self.name)
    }

    /// What error messages call it; a path that an editor opens from the checkout's root.
    fn path(&self) -> String {
        format!("kernels/{}", self.name)
    }

    pub fn hash(&self) -> String {
        hash(self.text.as_bytes())
    }
}

/// The device code.
pub struct Sources {
    /// The translation units, `*.cu`, by name.
    pub units: Vec<Source>,
    /// What they include, `*.cuh`, by name.
    pub headers: Vec<Source>,
}

impl Sources {
    /// Reads the folder `kernels`.
    pub fn read(kernels: &Path) -> Result<Sources, String> {
        let cannot_read = |error| format!("{} cannot be read: {error}", kernels.display());
        let mut sources = Sources { units: Vec::new(), headers: Vec::new() };
        for entry in fs::read_dir(kernels).map_err(cannot_read)? {
            let path = entry.map_err(cannot_read)?.path();
            let list = match path.extension().and_then(|extension| extension.to_str()) {
                Some("cu") => &mut sources.units,
                Some("cuh") => &mut sources.headers,
                _ => continue,
            };
            let text = fs::read_to_string(&path)
                .map_err(|error| format!("{} cannot be read: {error}", path.display()))?;
            let name = path.file_name().unwrap_or_default();
            list.push(Source { name: name.to_string_lossy().into_owned(), text });
        }
        if sources.units.is_empty() {
            return Err(format!("{} holds no .cu file", kernels.display()));
        }
        sources.units.sort_by(|a, b| a.name.cmp(&b.name));
        sources.headers.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(sources)
    }

    /// Units and headers.
    pub fn all(&self) -> impl Iterator<Item = &Source> {
        self.units.iter().chain(&self.headers)
    }

    /// Everything there is to compile.
    pub fn variants(&self) -> Vec<Variant<'_>> {
        self.variants_for(|unit, storage| targets(unit, storage).to_vec())
    }

    /// The same for one architecture, as in 90.
    #[allow(dead_code)] // only the build script makes machine code
    pub fn variants_of(&self, architecture: u32) -> Vec<Variant<'_>> {
        self.variants_for(|_, _| vec![architecture])
    }

    fn variants_for(&self, targets: impl Fn(&Source, &'static Storage) -> Vec<u32>) -> Vec<Variant<'_>> {
        let mut variants = Vec::new();
        for unit in &self.units {
            let only_f32 = ONLY_F32.contains(&unit.stem());
            for storage in STORAGES.iter().filter(|storage| !only_f32 || storage.name == "f32") {
                let targets = targets(unit, storage).into_iter();
                variants.extend(targets.map(|target| Variant { unit, storage, target }));
            }
        }
        variants
    }

    /// The texts that an `#include` finds. NVRTC gets them from memory, and so the PTX cannot
    /// depend on where the checkout is; the `#line` makes messages point at the file all the same.
    fn includes(&self) -> Vec<(String, String)> {
        self.headers
            .iter()
            .map(|header| {
                let text = format!("#line 1 \"{}\"\n{}", header.path(), header.text);
                (header.name.clone(), text)
            })
            .collect()
    }
}

/// What a variant compiled to.
pub struct Image<'a> {
    pub variant: Variant<'a>,
    pub ptx: String,
    /// NVRTC's warnings; mostly none.
    #[allow(dead_code)] // for who works on the kernels, not for who builds them
    pub warnings: String,
}

/// Compiles variants to PTX on all cores; the order of the result is that of `variants`. The error
/// has the log of every variant that does not compile.
pub fn compile<'a>(
    nvrtc: &Nvrtc,
    sources: &Sources,
    variants: &[Variant<'a>],
) -> Result<Vec<Image<'a>>, String> {
    compile_with(nvrtc, sources, variants, &[])
}

/// The same with some macros defined.
pub fn compile_with<'a>(
    nvrtc: &Nvrtc,
    sources: &Sources,
    variants: &[Variant<'a>],
    defines: &[&str],
) -> Result<Vec<Image<'a>>, String> {
    let compiled = compile_to(Code::Ptx, nvrtc, sources, variants, defines)?;
    let image = |(variant, Compiled { code, warnings })| Image {
        variant,
        ptx: tidy::tidy(&String::from_utf8_lossy(&code)),
        warnings,
    };
    Ok(compiled.into_iter().map(image).collect())
}

/// Compiles to PTX, as NVRTC writes it, or to machine code.
pub fn compile_to<'a>(
    code: Code,
    nvrtc: &Nvrtc,
    sources: &Sources,
    variants: &[Variant<'a>],
    defines: &[&str],
) -> Result<Vec<(Variant<'a>, Compiled)>, String> {
    let includes = sources.includes();
    let results = in_parallel(variants, |variant| {
        let (text, path) = (&variant.unit.text, variant.unit.path());
        let mut options = variant.options(code);
        options.extend(defines.iter().map(|define| format!("-D{define}")));
        nvrtc.compile(text, &path, &includes, &options, code)
    });
    let mut images = Vec::new();
    // A mistake shows in most variants of a unit: say it once. (unit, log, variants)
    let mut errors: Vec<(String, String, Vec<String>)> = Vec::new();
    for (&variant, result) in variants.iter().zip(results) {
        match result {
            Ok(compiled) => images.push((variant, compiled)),
            Err(CompileError { log }) => {
                let path = variant.unit.path();
                let what = format!("{} (compute_{})", variant.storage.name, variant.target);
                match errors.iter_mut().find(|known| known.0 == path && known.1 == log) {
                    Some((.., variants)) => variants.push(what),
                    None => errors.push((path, log, vec![what])),
                }
            }
        }
    }
    if errors.is_empty() {
        return Ok(images);
    }
    let errors: Vec<String> = errors
        .into_iter()
        .map(|(path, log, variants)| {
            let variants = variants.join(", ");
            format!("{path} does not compile for {variants}:\n{log}\n")
        })
        .collect();
    Err(errors.join("\n"))
}

/// Applies a function to all items, on all cores. The results are in the order of the items.
pub fn in_parallel<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Vec::new());
    let worker = || {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(index) else { break };
            let result = work(item);
            let mut results = results.lock().expect("nothing panics that holds the lock");
            results.push((index, result));
        }
    };
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    thread::scope(|scope| {
        for _ in 0..threads.min(items.len()) {
            scope.spawn(worker);
        }
    });
    let mut results = results.into_inner().expect("nothing panics that holds the lock");
    results.sort_by_key(|(index, _)| *index);
    results.into_iter().map(|(_, result)| result).collect()
}

/// The release that made a PTX, as in 12.0.76: NVRTC itself only knows 12.0, but writes
/// `// Cuda compilation tools, release 12.0, V12.0.76` into what it makes.
pub fn compiler_release(ptx: &str) -> Option<&str> {
    let line = ptx.lines().find(|line| line.contains("compilation tools"))?;
    let release = line.rsplit_once(", V")?.1.trim();
    release.starts_with(|c: char| c.is_ascii_digit()).then_some(release)
}

/// SHA-256 in the hexadecimal of `sha256sum`.
pub fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
