//! What a correct program sees.

mod common;

use common::{capability, fresh, function, good, load, shape};
use cudarc::driver::{CudaContext, DeviceRepr, PushKernelArg, sys};

#[repr(C)]
#[derive(Clone, Copy)]
struct SumArgs {
    x: u64,
    scratch: u64,
    total: u64,
    n: u32,
}
// SAFETY: plain numbers in the layout of the kernel's struct.
unsafe impl DeviceRepr for SumArgs {}

#[test]
fn a_reduction_is_the_same_under_all_seeds() {
    let Some(device) = fresh() else { return };
    let stream = device.context.new_stream().unwrap();
    let sum = function(&device.context, &good(), "sum_f32");
    let x: Vec<f32> = (0..10_000).map(|i| (i % 97) as f32 - 31.5).collect();
    let expected: f64 = x.iter().map(|&x| f64::from(x)).sum();
    let device_x = stream.clone_htod(&x).unwrap();
    let scratch = stream.alloc_zeros::<u64>(1 + 13).unwrap();
    let total = stream.alloc_zeros::<f32>(1).unwrap();
    use cudarc::driver::DevicePtr;
    let args = SumArgs {
        x: device_x.device_ptr(&stream).0,
        scratch: scratch.device_ptr(&stream).0,
        total: total.device_ptr(&stream).0,
        n: x.len() as u32,
    };
    let mut seen = Vec::new();
    for seed in 0..200 {
        device.emulator.set_seed(seed);
        // SAFETY: the argument has the kernel's type, and its pointers are to live allocations.
        unsafe { stream.launch_builder(&sum).arg(&args).launch(shape(13, 128)) }.unwrap();
        seen.push(stream.clone_dtoh(&total).unwrap()[0].to_bits());
    }
    assert_eq!(f32::from_bits(seen[0]), expected as f32);
    assert!(seen.iter().all(|&bits| bits == seen[0]));
    device.no_fault();
}

#[test]
fn warp_functions() {
    let Some(device) = fresh() else { return };
    let stream = &device.stream;
    let f = function(&device.context, &good(), "warp_functions_f32");
    let mut out = stream.alloc_zeros::<u32>(12).unwrap();
    // SAFETY: `out` has room for the 12 words that the kernel writes.
    unsafe { stream.launch_builder(&f).arg(&mut out).launch(shape(1, 64)) }.unwrap();
    let out = stream.clone_dtoh(&out).unwrap();
    let ballot = (0..32).filter(|lane| lane % 3 == 0).fold(0u32, |mask, lane| mask | 1 << lane);
    // Thread 37 is lane 5 of the second warp.
    let expected = [39 * 3, 34 * 3, 53 * 3, 35 * 3, 37 * 3, 39 * 3, 37 * 3, ballot, 1, 13, 1, 4];
    assert_eq!(out, expected);
}

#[test]
fn atomics_and_early_exits() {
    let Some(device) = fresh() else { return };
    let stream = &device.stream;
    let f = function(&device.context, &good(), "count_f32");
    let mut out = stream.alloc_zeros::<u32>(5).unwrap();
    let mut least = stream.clone_htod(&[u64::MAX]).unwrap();
    // SAFETY: the buffers have room for what the kernel writes.
    unsafe { stream.launch_builder(&f).arg(&mut out).arg(&mut least).launch(shape(5, 96)) }.unwrap();
    assert_eq!(stream.clone_dtoh(&out).unwrap(), [480, 479, 80, 320, 5]);
    assert_eq!(stream.clone_dtoh(&least).unwrap(), [7]);
}

#[test]
fn grids_of_three_dimensions() {
    let Some(device) = fresh() else { return };
    let stream = &device.stream;
    let f = function(&device.context, &good(), "indices_f32");
    let mut out = stream.alloc_zeros::<u32>(2 * 3 * 4 * 32).unwrap();
    let mut config = shape(2, 32);
    config.grid_dim = (2, 3, 4);
    // SAFETY: `out` has a word for each thread.
    unsafe { stream.launch_builder(&f).arg(&mut out).launch(config) }.unwrap();
    let expected: Vec<u32> = (0..24 * 32).map(|i| i / 32 * 1000 + i % 32).collect();
    assert_eq!(stream.clone_dtoh(&out).unwrap(), expected);
}

#[test]
fn vectors_and_plain_arguments() {
    let Some(device) = fresh() else { return };
    let stream = device.context.per_thread_stream();
    let f = function(&device.context, &good(), "scale_f32");
    let mut x = stream.clone_htod(&(0..400).map(|i| i as f32).collect::<Vec<_>>()).unwrap();
    // SAFETY: the kernel touches 100 vectors of 4, which is all of `x`.
    unsafe { stream.launch_builder(&f).arg(&mut x).arg(&0.5f32).arg(&100u32).launch(shape(1, 128)) }.unwrap();
    let expected: Vec<f32> = (0..400).map(|i| i as f32 / 2.0).collect();
    assert_eq!(stream.clone_dtoh(&x).unwrap(), expected);
}

#[test]
fn the_device_says_that_it_is_none() {
    let Some(_device) = fresh() else { return };
    let context = CudaContext::new(1).unwrap();
    assert!(context.name().unwrap().contains("emulator (not a GPU)"));
    assert_eq!(context.compute_capability().unwrap(), (capability() / 10, capability() % 10));
    assert_eq!(CudaContext::device_count().unwrap(), 2);
    let warp = context.attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_WARP_SIZE).unwrap();
    assert_eq!(warp, 32);
    assert!(CudaContext::new(2).is_err());
    let (free, total) = context.mem_get_info().unwrap();
    assert!(free <= total && total == context.total_mem().unwrap());
    assert_ne!(context.uuid().unwrap().bytes, CudaContext::new(0).unwrap().uuid().unwrap().bytes);
}

#[test]
fn functions_have_the_attributes_of_their_ptx() {
    let Some(device) = fresh() else { return };
    let module = load(&device.context, &good());
    let f = module.load_function("sum_f32").unwrap();
    assert_eq!(f.max_threads_per_block().unwrap(), 128);
    assert_eq!(f.ptx_version().unwrap(), 75);
    assert_eq!(f.binary_version().unwrap(), capability());
    let blocks = f.occupancy_max_active_blocks_per_multiprocessor(128, 0, None).unwrap();
    assert_eq!(blocks, if capability() == 75 { 8 } else { 16 });
    assert!(module.load_function("sum_f64").is_err());
}
