//! What the tests share: the emulator with the kernels of this folder, and PTX without code.

#![allow(dead_code, reason = "every test binary uses another part")]

use cudarc::driver::{CudaContext, CudaFunction, CudaModule, LaunchConfig};
use gfocal_emulator::Emulator;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

/// The emulator with the kernels of tests/kernels. `None`: there is no compiler, and that is
/// allowed.
pub fn emulator() -> Option<Emulator> {
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kernels");
    match gfocal_emulator::install_with(&kernels) {
        Ok(emulator) => Some(emulator),
        Err(error @ gfocal_emulator::Error::NoCompiler { .. }) if gfocal_emulator::skip_allowed() => {
            eprintln!("skipped: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// The compute capability that the environment gives the devices, as in 90.
pub fn capability() -> i32 {
    std::env::var("GFOCAL_EMULATOR_CC").map_or(90, |value| value.replace('.', "").parse().unwrap())
}

/// One test at a time: the seed and the faults are of the whole process.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(|e| e.into_inner())
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
