//! Planted faults. Each must be found, and each must be named in words.

mod common;

use common::{Device, fresh, shape};
use cudarc::driver::{
    CudaContext, CudaSlice, DevicePtr, DriverError, PushKernelArg,
    sys::{self, CUresult},
};
use std::num::FpCategory;

impl Device {
    /// Launches one block, with arguments that are given as words.
    fn launch(
        &self,
        name: &str,
        threads: u32,
        parameters: &[&str],
        words: &[u64],
    ) -> Result<(), DriverError> {
        let f = self.kernel(name, parameters, threads);
        let mut builder = self.stream.launch_builder(&f);
        for word in words {
            builder.arg(word);
        }
        // SAFETY: not safe, on purpose; the emulator is to notice.
        unsafe { builder.launch(shape(1, threads)) }?;
        self.stream.synchronize() // before the module goes
    }

    /// How many of 100 seeds give a wrong result.
    fn wrong_seeds(
        &self,
        blocks: u32,
        name: &str,
        parameters: usize,
        scratch: bool,
        wrong: impl Fn(&[u64]) -> bool,
    ) -> usize {
        let stream = &self.stream;
        let threads = if name.contains("warp") { 32 } else { 128 };
        let f = self.kernel(name, &vec![".u64"; parameters], threads);
        (0..100)
            .filter(|&seed| {
                self.emulator.set_seed(seed);
                let partials = stream.alloc_zeros::<u64>(1 + blocks as usize).unwrap();
                let out = stream.alloc_zeros::<u64>(blocks as usize).unwrap();
                let mut builder = stream.launch_builder(&f);
                if scratch {
                    builder.arg(&partials);
                }
                builder.arg(&out);
                // SAFETY: the buffers have room for what the kernels write.
                unsafe { builder.launch(shape(blocks, threads)) }.unwrap();
                wrong(&stream.clone_dtoh(&out).unwrap())
            })
            .count()
    }

    fn address<T>(&self, slice: &CudaSlice<T>) -> u64 {
        slice.device_ptr(&self.stream).0
    }
}

#[test]
fn missing_order_shows_under_most_seeds() {
    let Some(device) = fresh() else { return };
    let late = device.wrong_seeds(8, "late_partial_f32", 2, true, |out| f64::from_bits(out[0]) != 36.0);
    let barrier = device.wrong_seeds(1, "no_barrier_f32", 1, false, |out| f64::from_bits(out[0]) != 128.0);
    let second = device.wrong_seeds(1, "no_second_barrier_f32", 1, false, |out| out[0] != 0);
    let warp = device.wrong_seeds(1, "no_warp_barrier_f32", 1, false, |out| out[0] != 0);
    eprintln!(
        "of 100 seeds: {late} late partial, {barrier} no barrier, {second} no second barrier, {warp} no warp barrier"
    );
    assert!(late > 30 && barrier > 50 && second > 50 && warp > 90);
    device.no_fault();
}

#[test]
fn writes_outside_an_allocation() {
    // (index of a float in 100 of them, where that is, whether a page fence is hit)
    for (index, place) in [
        (100i64, "0 bytes after the end"),
        (101, "4 bytes after the end"),
        (2000, "7600 bytes after the end"),
        (-1, "4 bytes before the start"),
        (-1100, "4400 bytes before the start"),
    ] {
        let Some(device) = fresh() else { return };
        let x = device.stream.alloc_zeros::<f32>(100).unwrap();
        let words = [device.address(&x), index as u64];
        let result = device.launch("write_at_f32", 32, &[".u64", ".s64"], &words);
        device.expect(
            result,
            CUresult::CUDA_ERROR_ILLEGAL_ADDRESS,
            &["write_at_f32", "write", place, "400 bytes at"],
        );
        // As on a GPU, the context is of no use any more.
        assert!(device.stream.synchronize().is_err());
        assert!(device.stream.alloc_zeros::<f32>(1).is_err());
    }
}

#[test]
fn reads_outside_an_allocation() {
    // Within 256 bytes: seen with tight fences, else what is read is NaN.
    for (index, tight) in [(164i64, false), (100, true), (-1200, false), (1 << 40, false)] {
        let Some(device) = fresh() else { return };
        device.emulator.set_tight_fences(tight);
        let x = device.stream.alloc_zeros::<f32>(100).unwrap();
        let out = device.stream.alloc_zeros::<f32>(1).unwrap();
        let words = [device.address(&x), index as u64, device.address(&out)];
        let result = device.launch("read_at_f32", 32, &[".u64", ".s64", ".u64"], &words);
        device.expect(
            result,
            CUresult::CUDA_ERROR_ILLEGAL_ADDRESS,
            &["read_at_f32, block 0, thread 17: read"],
        );
    }
    let Some(device) = fresh() else { return };
    let x = device.stream.alloc_zeros::<f32>(100).unwrap();
    let out = device.stream.alloc_zeros::<f32>(1).unwrap();
    let words = [device.address(&x), 100, device.address(&out)];
    device.launch("read_at_f32", 32, &[".u64", ".s64", ".u64"], &words).unwrap();
    assert!(device.stream.clone_dtoh(&out).unwrap()[0].is_nan());
    device.no_fault();
}

#[test]
fn null_and_host_pointers() {
    let Some(device) = fresh() else { return };
    let result = device.launch("write_at_f32", 32, &[".u64", ".s64"], &[0, 0]);
    device.expect(result, CUresult::CUDA_ERROR_ILLEGAL_ADDRESS, &["thread 17: write address 0"]);
}

#[test]
fn use_after_free() {
    let Some(device) = fresh() else { return };
    let x = device.stream.alloc_zeros::<f32>(100).unwrap();
    let words = [device.address(&x), 5];
    drop(x);
    let result = device.launch("write_at_f32", 32, &[".u64", ".s64"], &words);
    let words = ["thread 17: write use after free: at byte 20 of allocation"];
    device.expect(result, CUresult::CUDA_ERROR_ILLEGAL_ADDRESS, &words);
}

#[test]
fn double_free() {
    let Some(device) = fresh() else { return };
    let x = device.stream.alloc_zeros::<f32>(100).unwrap();
    let pointer = device.address(&x);
    drop(x);
    // SAFETY: freed already, on purpose.
    let result = unsafe { cudarc::driver::result::free_async(pointer, std::ptr::null_mut()) };
    device.expect(result, CUresult::CUDA_ERROR_INVALID_VALUE, &["double free"]);
}

#[test]
fn addresses_of_the_other_device() {
    let Some(device) = fresh() else { return };
    let other = CudaContext::new(1).unwrap();
    let x = other.default_stream().alloc_zeros::<f32>(100).unwrap();
    let words = [x.device_ptr(&other.default_stream()).0, 5];
    device.context.bind_to_thread().unwrap();
    let result = device.launch("write_at_f32", 32, &[".u64", ".s64"], &words);
    device.expect(result, CUresult::CUDA_ERROR_ILLEGAL_ADDRESS, &["runs on device 0", "of device 1"]);
}

#[test]
fn misaligned_vectors() {
    let Some(device) = fresh() else { return };
    let x = device.stream.alloc_zeros::<f32>(100).unwrap();
    let out = device.stream.alloc_zeros::<f32>(1).unwrap();
    let words = [device.address(&x), 8, device.address(&out)];
    device.launch("vector_at_f32", 32, &[".u64", ".s64", ".u64"], &words).unwrap();
    let words = [device.address(&x), 9, device.address(&out)];
    let result = device.launch("vector_at_f32", 32, &[".u64", ".s64", ".u64"], &words);
    let words = ["block 0, thread 3: misaligned", "float4", "bad.cu:"];
    device.expect(result, CUresult::CUDA_ERROR_MISALIGNED_ADDRESS, &words);
}

#[test]
fn shared_memory() {
    let Some(device) = fresh() else { return };
    let out = device.stream.alloc_zeros::<u32>(32).unwrap();
    let f = device.kernel("shared_index_f32", &[".u32", ".u64"], 32);
    // SAFETY: an index beyond the shared array, on purpose.
    let result = unsafe { device.stream.launch_builder(&f).arg(&1u32).arg(&out).launch(shape(1, 32)) };
    let words = ["thread 31: index 32 is out of bounds for", "[32]", "bad.cu:"];
    device.expect(result, CUresult::CUDA_ERROR_ILLEGAL_ADDRESS, &words);
    drop((f, out, device));

    let Some(device) = fresh() else { return };
    let f = device.kernel("shared_pointer_f32", &[".u32"], 32);
    // SAFETY: as above.
    let result = unsafe { device.stream.launch_builder(&f).arg(&1u32).launch(shape(1, 32)) };
    let words = ["outside the shared array `words`", "at byte 128 of 128"];
    device.expect(result, CUresult::CUDA_ERROR_ILLEGAL_ADDRESS, &words);
    drop((f, device));

    // What nothing was stored to is NaN in some launches, a number in others, and 0 in the rest.
    let Some(device) = fresh() else { return };
    let out = device.stream.alloc_zeros::<f64>(32).unwrap();
    let mut seen = Vec::new();
    for seed in 0..20 {
        device.emulator.set_seed(seed);
        device.launch("uninitialised_f32", 32, &[".u64"], &[device.address(&out)]).unwrap();
        let words = device.stream.clone_dtoh(&out).unwrap();
        assert!(words.iter().all(|x| x.to_bits() == words[0].to_bits()));
        seen.push(words[0].classify());
    }
    for kind in [FpCategory::Nan, FpCategory::Normal, FpCategory::Zero] {
        assert!(seen.contains(&kind), "never {kind:?}");
    }
    // SAFETY: only read as bits.
    let fresh = unsafe { device.stream.alloc::<f32>(50) }.unwrap();
    assert!(device.stream.clone_dtoh(&fresh).unwrap().iter().all(|x| x.is_nan()));
}

/// A module whose kernel nobody has waited for goes.
#[test]
fn unloaded_too_early() {
    let Some(device) = fresh() else { return };
    let other = device.context.new_stream().unwrap();
    let out = device.stream.alloc_zeros::<f64>(32).unwrap();
    let early = |wait: &dyn Fn()| {
        let f = device.kernel("uninitialised_f32", &[".u64"], 32);
        // SAFETY: `out` has the 32 words that the kernel writes.
        unsafe { other.launch_builder(&f).arg(&out).launch(shape(1, 32)) }.unwrap();
        wait();
        drop(f);
        device.emulator.faults() - device.faults
    };
    assert_eq!(early(&|| other.synchronize().unwrap()), 0);
    assert_eq!(early(&|| device.context.synchronize().unwrap()), 0);
    assert_eq!(early(&|| other.record_event(None).unwrap().synchronize().unwrap()), 0);
    let by_event = || {
        device.stream.wait(&other.record_event(None).unwrap()).unwrap();
        device.stream.synchronize().unwrap();
    };
    assert_eq!(early(&by_event), 0);
    assert_eq!(early(&|| device.stream.synchronize().unwrap()), 1);
    assert!(device.emulator.last_fault().unwrap().contains("cuModuleUnload"));
    assert_eq!(early(&|| {}), 2);
}

/// A graph runs a kernel whose module is gone.
#[test]
fn unloaded_under_a_graph() {
    let Some(device) = fresh() else { return };
    // SAFETY: one stream is used, so nothing needs to be ordered by events.
    unsafe { device.context.disable_event_tracking() };
    let stream = device.context.new_stream().unwrap();
    let out = stream.alloc_zeros::<f64>(32).unwrap();
    let f = device.kernel("uninitialised_f32", &[".u64"], 32);
    stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_GLOBAL).unwrap();
    // SAFETY: as above.
    unsafe { stream.launch_builder(&f).arg(&out).launch(shape(1, 32)) }.unwrap();
    let graph = stream.end_capture(sys::CUgraphInstantiate_flags(0)).unwrap().unwrap();
    graph.launch().unwrap();
    stream.synchronize().unwrap();
    drop(f);
    device.no_fault();
    let result = graph.launch();
    device.expect(result, CUresult::CUDA_ERROR_ILLEGAL_ADDRESS, &["its module has been unloaded"]);
}

#[test]
fn divergence() {
    for (name, threads, arguments, words) in [
        (
            "half_barrier_f32",
            64,
            Some(8u32),
            &["divergent warp", "lanes 0-7 wait at __syncthreads", "8-31 wait at __syncwarp"][..],
        ),
        (
            "two_barriers_f32",
            64,
            None,
            &["divergent barrier", "came to __syncthreads", "others wait at __syncthreads"],
        ),
        ("divergent_shuffle_f32", 32, Some(0), &["divergent warp", "__shfl_xor_sync (bad.cu:"]),
        ("exited_lanes_f32", 32, Some(0), &["lanes 0-19 wait at __shfl_xor_sync", "lanes 20-31 have exited"]),
        ("small_mask_f32", 32, Some(0), &["mask 0xffff"]),
    ] {
        let Some(device) = fresh() else { return };
        let out = device.stream.alloc_zeros::<u32>(32).unwrap();
        let result = match arguments {
            None => device.launch(name, threads, &[], &[]),
            Some(0) => device.launch(name, threads, &[".u64"], &[device.address(&out)]),
            Some(lanes) => device.launch(name, threads, &[".u32"], &[lanes.into()]),
        };
        device.expect(result, CUresult::CUDA_ERROR_LAUNCH_FAILED, words);
    }
}

#[test]
fn traps() {
    let Some(device) = fresh() else { return };
    let zeros = device.stream.alloc_zeros::<u32>(32).unwrap();
    let result = device.launch("divide_by_zero_f32", 32, &[".u64"], &[device.address(&zeros)]);
    device.expect(result, CUresult::CUDA_ERROR_LAUNCH_FAILED, &["division by zero"]);
    drop((zeros, device));

    let Some(device) = fresh() else { return };
    let result = device.launch("asserts_f32", 32, &[".u32"], &[31]);
    let words = ["thread 31: assertion failed: threadIdx", "bad.cu:"];
    device.expect(result, CUresult::CUDA_ERROR_ASSERT, &words[1..]);
    drop(device);

    let Some(device) = fresh() else { return };
    let x = device.stream.alloc_zeros::<u32>(32).unwrap();
    let words = [device.address(&x), 100_000];
    let result = device.launch("recursion_f32", 32, &[".u64", ".u32"], &words);
    device.expect(result, CUresult::CUDA_ERROR_ILLEGAL_ADDRESS, &["stack overflow"]);
}

#[test]
fn parameters_that_do_not_fit() {
    for parameters in [&[".u64", ".u32"][..], &[".u64"], &[".u64", ".s64", ".u32"], &[".align 8 .b8[16]"]] {
        let Some(device) = fresh() else { return };
        let result = device.launch("write_at_f32", 32, parameters, &[0; 3]);
        device.expect(
            result,
            CUresult::CUDA_ERROR_INVALID_SOURCE,
            &["write_at_f32", "(8, 8) bytes in the source"],
        );
    }
}

#[test]
fn launches_that_the_driver_refuses() {
    let Some(device) = fresh() else { return };
    let x = device.stream.alloc_zeros::<f32>(1).unwrap();
    let f = device.kernel("write_at_f32", &[".u64", ".s64"], 32);
    for (blocks, threads, shared) in [(0, 32, 0), (1, 0, 0), (1, 33, 0), (1, 2048, 0), (1, 32, 50_000)] {
        let mut config = shape(blocks, threads);
        config.shared_mem_bytes = shared;
        // SAFETY: nothing is launched.
        let result = unsafe { device.stream.launch_builder(&f).arg(&x).arg(&0i64).launch(config) };
        assert_eq!(result.map(drop).map_err(|e| e.0), Err(CUresult::CUDA_ERROR_INVALID_VALUE));
    }
    let other = CudaContext::new(1).unwrap();
    // SAFETY: nothing is launched.
    let result = unsafe { other.default_stream().launch_builder(&f).arg(&x).arg(&0i64).launch(shape(1, 32)) };
    assert_eq!(result.map(drop).map_err(|e| e.0), Err(CUresult::CUDA_ERROR_INVALID_HANDLE));
    device.context.bind_to_thread().unwrap();
    // SAFETY: one element of one.
    unsafe { device.stream.launch_builder(&f).arg(&x).arg(&0i64).launch(shape(1, 32)) }.unwrap();
    device.no_fault();
}
