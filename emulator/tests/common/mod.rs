//! What the tests share: the emulator with the kernels of this folder, and PTX without code.

#![allow(dead_code, reason = "every test binary uses another part")]

use cudarc::driver::{
    CudaContext, CudaFunction, CudaModule, CudaStream, DriverError, LaunchConfig, sys::CUresult,
};
use gfocal_emulator::{Emulator, Error};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

/// A device of the emulator, and nobody else's: the seed and the faults are of the whole process.
pub struct Device {
    pub emulator: Emulator,
    pub context: Arc<CudaContext>,
    pub stream: Arc<CudaStream>,
    /// How many there were before.
    pub faults: u64,
    _alone: MutexGuard<'static, ()>,
}

impl Device {
    /// Of an emulator that has been installed. `None`: there is no compiler, and that is allowed.
    pub fn of(installed: Result<Emulator, Error>) -> Option<Device> {
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock().unwrap_or_else(|e| e.into_inner());
        let emulator = match installed {
            Ok(emulator) => emulator,
            Err(error @ Error::NoCompiler { .. }) if gfocal_emulator::skip_allowed() => {
                eprintln!("skipped: {error}");
                return None;
            }
            Err(error) => panic!("{error}"),
        };
        emulator.set_tight_fences(false);
        emulator.set_seed(1);
        let context = CudaContext::new(0).unwrap();
        let stream = context.default_stream();
        Some(Device { emulator, context, stream, faults: emulator.faults(), _alone: alone })
    }

    /// The only kernel in a PTX text without code.
    pub fn kernel(&self, name: &str, parameters: &[&str], threads: u32) -> CudaFunction {
        function(&self.context, &ptx(&[entry(name, parameters, threads)]), name)
    }

    #[track_caller]
    pub fn no_fault(&self) {
        assert_eq!(self.emulator.faults(), self.faults, "{:?}", self.emulator.last_fault());
    }

    /// The one fault that this was, with these words in it.
    #[track_caller]
    pub fn expect<T>(&self, result: Result<T, DriverError>, code: CUresult, words: &[&str]) {
        let said = self.emulator.last_fault().unwrap_or_default();
        assert_eq!(result.map(drop).map_err(|error| error.0), Err(code), "{said}");
        assert_eq!(self.emulator.faults(), self.faults + 1, "{said}");
        for word in words {
            assert!(said.contains(word), "`{word}` is not in: {said}");
        }
    }
}

/// A new one, with the kernels of tests/kernels.
pub fn fresh() -> Option<Device> {
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kernels");
    Device::of(gfocal_emulator::install_with(&kernels))
}

/// Every entry point of kernels/ptx: its name, and the function or why there is none.
pub fn entry_points(context: &Arc<CudaContext>) -> Vec<(String, Result<CudaFunction, DriverError>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../kernels/ptx");
    let mut found = Vec::new();
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "ptx") {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let module = load(context, &text);
        for line in text.lines() {
            let Some((_, name)) = line.split_once(".entry ") else { continue };
            let name = name.trim_end_matches('(').trim();
            found.push((format!("{}: {name}", path.display()), module.load_function(name)));
        }
    }
    assert!(!found.is_empty());
    found
}

/// The compute capability that the environment gives the devices, as in 90.
pub fn capability() -> i32 {
    std::env::var("GFOCAL_EMULATOR_CC").map_or(90, |value| value.replace('.', "").parse().unwrap())
}

/// An entry point of a PTX text: its name, its parameters, the threads of a block.
pub fn entry(name: &str, parameters: &[&str], threads: u32) -> String {
    // ".align 8 .b8[32]" is a type; the count stands after the name.
    let parameters: Vec<String> = parameters
        .iter()
        .enumerate()
        .map(|(i, kind)| match kind.split_once('[') {
            Some((kind, count)) => format!(".param {kind} {name}_param_{i}[{count}"),
            None => format!(".param {kind} {name}_param_{i}"),
        })
        .collect();
    format!(
        ".visible .entry {name}(\n{}\n)\n.maxntid {threads}, 1, 1\n{{\n\tret;\n}}\n",
        parameters.join(",\n")
    )
}

/// A PTX text for sm_75.
pub fn ptx(entries: &[String]) -> String {
    format!(".version 8.0\n.target sm_75\n.address_size 64\n\n{}", entries.join("\n"))
}

/// The kernels of good.cu, for f32.
pub fn good() -> String {
    ptx(&[
        entry("sum_f32", &[".align 8 .b8[32]"], 128),
        entry("sum_f16", &[".align 8 .b8[32]"], 128),
        entry("scale_f32", &[".u64", ".f32", ".u32"], 128),
        entry("warp_functions_f32", &[".u64"], 64),
        entry("count_f32", &[".u64", ".u64"], 96),
        entry("indices_f32", &[".u64"], 32),
    ])
}

pub fn load(context: &Arc<CudaContext>, text: &str) -> Arc<CudaModule> {
    context.load_module(text.into()).unwrap()
}

pub fn function(context: &Arc<CudaContext>, text: &str, name: &str) -> CudaFunction {
    load(context, text).load_function(name).unwrap()
}

pub fn shape(blocks: u32, threads: u32) -> LaunchConfig {
    LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: (threads, 1, 1), shared_mem_bytes: 0 }
}
