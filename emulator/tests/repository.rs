//! This repository's kernels and its committed PTX fit each other and the emulator.

use cudarc::driver::CudaFunction;
use cudarc::driver::sys::{self, CUresult};
use std::path::Path;

mod common;

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
    let Some(device) = common::Device::of(gfocal_emulator::install_with(&kernels)) else { return };
    for (name, f) in common::entry_points(&device.context) {
        let f = f.unwrap();
        let threads = f.max_threads_per_block().unwrap();
        assert!((32..=1024).contains(&threads), "{name}: {threads} threads a block");
        assert!(f.shared_size_bytes().unwrap() <= 48 << 10);
        let fit = f.occupancy_max_active_blocks_per_multiprocessor(threads as u32, 0, None).unwrap();
        assert!(fit >= 1, "{name}");
        let said = launch_nothing(&f, threads as u32);
        assert_eq!(said, CUresult::CUDA_ERROR_INVALID_VALUE, "{name}: {:?}", device.emulator.last_fault());
    }
    device.no_fault();
}
