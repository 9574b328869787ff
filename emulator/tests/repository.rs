//! This repository's kernels and its committed PTX fit each other and the emulator.

use cudarc::driver::sys::{self, CUresult};
use cudarc::driver::{CudaContext, CudaFunction};
use std::path::Path;

/// What a launch without arguments says: INVALID_VALUE if the parameters of the source and of
/// the PTX are the same, INVALID_SOURCE if they are not.
fn launch_nothing(f: &CudaFunction, threads: u32) -> CUresult {
    let null = std::ptr::null_mut();
    // SAFETY: the function is alive, and a launch without arguments is refused.
    unsafe { sys::cuLaunchKernel(f.cu_function(), 1, 1, 1, threads, 1, 1, 0, null, null.cast(), null.cast()) }
}

#[test]
fn every_entry_point_of_the_ptx_has_a_source() {
    // In the mode that runs PTX there are no sources: tests/ptx.rs is about that.
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("../kernels");
    let emulator = match gfocal_emulator::install_with(&kernels) {
        Ok(emulator) => emulator,
        Err(error @ gfocal_emulator::Error::NoCompiler { .. }) if gfocal_emulator::skip_allowed() => {
            eprintln!("skipped: {error}");
            return;
        }
        Err(error) => panic!("{error}"),
    };
    let context = CudaContext::new(0).unwrap();
    let mut entries = 0;
    for file in std::fs::read_dir(kernels.join("ptx")).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_none_or(|e| e != "ptx") {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let module = context.load_module(text.as_str().into()).unwrap();
        for line in text.lines() {
            let Some((_, name)) = line.split_once(".entry ") else { continue };
            let name = name.trim_end_matches('(').trim();
            let f = module.load_function(name).unwrap();
            let threads = f.max_threads_per_block().unwrap();
            assert!((32..=1024).contains(&threads), "{name}: {threads} threads a block");
            assert!(f.shared_size_bytes().unwrap() <= 48 << 10);
            let fit = f.occupancy_max_active_blocks_per_multiprocessor(threads as u32, 0, None).unwrap();
            assert!(fit >= 1, "{name}");
            let said = launch_nothing(&f, threads as u32);
            assert_eq!(said, CUresult::CUDA_ERROR_INVALID_VALUE, "{name}: {:?}", emulator.last_fault());
            entries += 1;
        }
    }
    assert!(entries > 0);
    assert_eq!(emulator.faults(), 0);
}
