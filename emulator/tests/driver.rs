//! The driver API: what it counts, captures and refuses.

mod common;

use common::{Device, capability, entry, fresh, function, good, load, ptx, shape};
use cudarc::driver::{
    CudaContext, CudaFunction, DriverError, PushKernelArg, result,
    sys::{self, CUresult, CUstreamCaptureMode, CUstreamCaptureStatus},
};

const GLOBAL: CUstreamCaptureMode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_GLOBAL;
const RELAXED: CUstreamCaptureMode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
const NO_FLAGS: sys::CUgraphInstantiate_flags = sys::CUgraphInstantiate_flags(0);

#[track_caller]
fn refused<T>(result: Result<T, DriverError>, code: CUresult) {
    assert_eq!(result.map(drop).map_err(|e| e.0), Err(code));
}

/// A device without event tracking, which a capture would not survive, and with a stream for it.
fn for_capture() -> Option<Device> {
    let mut device = fresh()?;
    // SAFETY: one stream is used, so nothing needs to be ordered by events.
    unsafe { device.context.disable_event_tracking() };
    device.stream = device.context.new_stream().unwrap();
    Some(device)
}

impl Device {
    fn good(&self, name: &str) -> CudaFunction {
        function(&self.context, &good(), name)
    }
}

#[test]
fn counters_are_of_the_thread() {
    let Some(device) = for_capture() else { return };
    let (emulator, stream) = (device.emulator, &device.stream);
    let f = device.good("scale_f32");
    let before = emulator.counters();
    let live = emulator.live_allocations();
    let mut x = stream.alloc_zeros::<f32>(128).unwrap();
    let y = stream.clone_htod(&[1.0f32; 4]).unwrap();
    assert_eq!(emulator.live_allocations(), live + 2);
    // SAFETY: 32 vectors of 4 are all of `x`.
    unsafe { stream.launch_builder(&f).arg(&mut x).arg(&2f32).arg(&32u32).launch(shape(1, 128)) }.unwrap();
    let so_far = emulator.counters().since(&before);
    assert_eq!((so_far.allocations, so_far.frees, so_far.waits, so_far.launches), (2, 0, 0, 1));
    stream.clone_dtoh(&x).unwrap();
    stream.synchronize().unwrap();
    drop((x, y));
    let all = emulator.counters().since(&before);
    assert_eq!((all.allocations, all.frees, all.waits, all.launches, all.copies_to_host), (2, 2, 2, 1, 1));
    assert_eq!(emulator.live_allocations(), live);
    let elsewhere = std::thread::spawn(move || emulator.counters()).join().unwrap();
    assert_eq!(elsewhere, gfocal_emulator::Counters::default());
}

#[test]
fn a_captured_graph_runs_again_and_again() {
    let Some(device) = for_capture() else { return };
    let stream = &device.stream;
    let f = device.good("scale_f32");
    let mut x = stream.clone_htod(&[1.0f32; 8]).unwrap();
    let mut factor = 2.0f32;
    stream.begin_capture(GLOBAL).unwrap();
    // SAFETY: 2 vectors of 4 are all of `x`.
    unsafe { stream.launch_builder(&f).arg(&mut x).arg(&factor).arg(&2u32).launch(shape(1, 32)) }.unwrap();
    factor += 100.0; // the graph has its own copy
    assert_eq!(stream.capture_status().unwrap(), CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_ACTIVE);
    let graph = stream.end_capture(NO_FLAGS).unwrap().unwrap();
    assert_eq!(factor, 102.0);
    assert_eq!(stream.clone_dtoh(&x).unwrap(), [1.0; 8]);
    graph.upload().unwrap();
    for expected in [2.0, 4.0, 8.0] {
        graph.launch().unwrap();
        assert_eq!(stream.clone_dtoh(&x).unwrap(), [expected; 8]);
    }
    stream.memset_zeros(&mut x).unwrap();
    graph.launch().unwrap();
    assert_eq!(stream.clone_dtoh(&x).unwrap(), [0.0; 8]);
    drop(graph);
    refused(stream.end_capture(NO_FLAGS), CUresult::CUDA_ERROR_ILLEGAL_STATE);
}

#[test]
fn a_capture_refuses_what_would_wait() {
    let Some(device) = for_capture() else { return };
    let Device { context, stream, .. } = &device;
    let other = context.new_stream().unwrap();
    let mut x = stream.alloc_zeros::<f32>(4).unwrap();
    let outside = other.record_event(None).unwrap();
    let text = good();
    type Call<'a> = Box<dyn FnMut() -> Result<(), DriverError> + 'a>;
    // SAFETY: refused before it allocates.
    let alloc = || unsafe { result::malloc_sync(4) }.map(drop);
    // SAFETY: refused before it copies.
    let copy = || unsafe { result::memcpy_dtoh_sync(&mut [0u8; 0], 0) };
    let unsupported = CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    let calls: Vec<(&str, CUresult, Call)> = vec![
        ("stream", unsupported, Box::new(|| stream.synchronize())),
        ("context", unsupported, Box::new(|| context.synchronize())),
        ("alloc", unsupported, Box::new(alloc)),
        ("copy", unsupported, Box::new(copy)),
        ("module", unsupported, Box::new(|| context.load_module(text.clone().into()).map(drop))),
        ("event", CUresult::CUDA_ERROR_STREAM_CAPTURE_ISOLATION, Box::new(|| stream.wait(&outside))),
        (
            "query",
            CUresult::CUDA_ERROR_CAPTURED_EVENT,
            Box::new(|| stream.record_event(None)?.try_is_complete().map(drop)),
        ),
    ];
    for (name, code, mut call) in calls {
        stream.begin_capture(GLOBAL).unwrap();
        refused(call(), code);
        assert_eq!(
            stream.capture_status().unwrap(),
            CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_INVALIDATED,
            "{name}"
        );
        refused(stream.memset_zeros(&mut x), CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
        refused(stream.end_capture(NO_FLAGS), CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    }
    // A relaxed capture lets its own thread allocate.
    stream.begin_capture(RELAXED).unwrap();
    // SAFETY: freed at once.
    unsafe { result::free_sync(result::malloc_sync(4).unwrap()) }.unwrap();
    stream.memset_zeros(&mut x).unwrap();
    drop(stream.end_capture(NO_FLAGS).unwrap().unwrap());
    refused(context.default_stream().begin_capture(GLOBAL), CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
}

#[test]
fn a_capture_takes_in_other_streams_that_come_back() {
    let Some(device) = for_capture() else { return };
    let Device { context, stream, .. } = &device;
    let other = context.new_stream().unwrap();
    let mut x = stream.clone_htod(&[1u8; 4]).unwrap();
    stream.begin_capture(GLOBAL).unwrap();
    other.join(stream).unwrap();
    other.memset_zeros(&mut x).unwrap();
    stream.join(&other).unwrap();
    let graph = stream.end_capture(NO_FLAGS).unwrap().unwrap();
    graph.launch().unwrap();
    assert_eq!(stream.clone_dtoh(&x).unwrap(), [0; 4]);

    stream.begin_capture(GLOBAL).unwrap();
    other.join(stream).unwrap();
    other.memset_zeros(&mut x).unwrap();
    refused(stream.end_capture(NO_FLAGS), CUresult::CUDA_ERROR_STREAM_CAPTURE_UNJOINED);
    // Both streams are free again.
    other.synchronize().unwrap();
    stream.synchronize().unwrap();
}

#[test]
fn a_graph_frees_only_what_it_allocates() {
    let Some(device) = for_capture() else { return };
    let Device { emulator, stream, .. } = &device;
    let x = stream.alloc_zeros::<f32>(4).unwrap();
    let live = emulator.live_allocations();
    stream.begin_capture(GLOBAL).unwrap();
    let scratch = stream.alloc_zeros::<f32>(4).unwrap();
    drop(scratch);
    let graph = stream.end_capture(NO_FLAGS).unwrap().unwrap();
    graph.launch().unwrap();
    graph.launch().unwrap();
    drop(graph);
    assert_eq!(emulator.live_allocations(), live);

    stream.begin_capture(GLOBAL).unwrap();
    drop(x);
    refused(stream.context().check_err(), CUresult::CUDA_ERROR_INVALID_VALUE);
    refused(stream.end_capture(NO_FLAGS), CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
}

#[test]
fn graphs_count_the_faults_of_their_kernels() {
    let Some(device) = for_capture() else { return };
    let stream = &device.stream;
    let f = device.good("scale_f32");
    let mut x = stream.alloc_zeros::<f32>(8).unwrap();
    stream.begin_capture(GLOBAL).unwrap();
    // SAFETY: 2 vectors of 4 are all of `x`.
    unsafe { stream.launch_builder(&f).arg(&mut x).arg(&2f32).arg(&2u32).launch(shape(1, 32)) }.unwrap();
    let graph = stream.end_capture(NO_FLAGS).unwrap().unwrap();
    drop(x);
    device.expect(graph.launch(), CUresult::CUDA_ERROR_ILLEGAL_ADDRESS, &["use after free"]);
}

#[test]
fn streams_and_events() {
    let Some(device) = fresh() else { return };
    let context = &device.context;
    let (first, second) = (context.new_stream().unwrap(), context.new_stream().unwrap());
    let f = device.good("scale_f32");
    let mut x = first.clone_htod(&[1.0f32; 8]).unwrap();
    let start = first.record_event(Some(sys::CUevent_flags::CU_EVENT_DEFAULT)).unwrap();
    for stream in [&first, &second, &first, &context.default_stream(), &context.per_thread_stream()] {
        // SAFETY: 2 vectors of 4 are all of `x`.
        unsafe { stream.launch_builder(&f).arg(&mut x).arg(&2f32).arg(&2u32).launch(shape(1, 32)) }.unwrap();
    }
    second.join(&first).unwrap();
    let end = second.record_event(Some(sys::CUevent_flags::CU_EVENT_DEFAULT)).unwrap();
    assert!(start.elapsed_ms(&end).unwrap() > 0.0);
    assert!(end.is_complete());
    let untimed = first.record_event(None).unwrap();
    refused(start.elapsed_ms(&untimed), CUresult::CUDA_ERROR_INVALID_HANDLE);
    assert_eq!(second.clone_dtoh(&x).unwrap(), [32.0; 8]);
    let elsewhere = std::thread::spawn(move || second.clone_dtoh(&x).unwrap()).join().unwrap();
    assert_eq!(elsewhere, [32.0; 8]);
}

#[test]
fn copies_stay_within_allocations() {
    let Some(device) = fresh() else { return };
    let Device { context, stream, .. } = &device;
    let mut x = stream.clone_htod(&[1.0f32; 8]).unwrap();
    let pointer = cudarc::driver::DevicePtr::device_ptr(&x, stream).0;
    // SAFETY: the driver refuses to copy beyond the end, and from where no memory is.
    unsafe {
        refused(result::memcpy_htod_sync(pointer + 4, &[0f32; 8]), CUresult::CUDA_ERROR_INVALID_VALUE);
        refused(result::memcpy_dtoh_sync(&mut [0f32; 9], pointer), CUresult::CUDA_ERROR_INVALID_VALUE);
        refused(result::memset_d8_sync(64, 0, 4), CUresult::CUDA_ERROR_INVALID_VALUE);
    }
    let y = stream.clone_dtod(&x.slice(2..6)).unwrap();
    stream.memset_zeros(&mut x.slice_mut(0..3)).unwrap();
    assert_eq!(stream.clone_dtoh(&x).unwrap(), [0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0]);
    assert_eq!(stream.clone_dtoh(&y).unwrap(), [1.0; 4]);
    // SAFETY: written before it is read.
    let mut pinned = unsafe { context.alloc_pinned::<f32>(8) }.unwrap();
    stream.memcpy_dtoh(&x, &mut pinned).unwrap();
    assert_eq!(pinned.as_slice().unwrap()[2..4], [0.0, 1.0]);
    // The other device, by way of both contexts.
    let far = CudaContext::new(1).unwrap().default_stream();
    assert_eq!(far.clone_dtoh(&far.clone_dtod(&x).unwrap()).unwrap()[3..], [1.0; 5]);
    let empty = stream.null::<f32>().unwrap();
    assert_eq!(empty.len(), 0);
}

#[test]
fn modules_are_checked() {
    let Some(device) = fresh() else { return };
    let context = &device.context;
    let good = good();
    let module = load(context, &good);
    refused(module.load_function("no_such_f32"), CUresult::CUDA_ERROR_NOT_FOUND);
    let without_source = load(context, &ptx(&[entry("no_source_f32", &[".u64"], 32)]));
    refused(without_source.load_function("no_source_f32"), CUresult::CUDA_ERROR_NOT_FOUND);
    let load = |text: String| context.load_module(text.into());
    let text_errors = [
        String::new(),
        "this is not PTX".to_owned(),
        good.replace(".version 8.0", ""),
        good.replace(".target sm_75", ".target gpu"),
        good.replacen('}', "", 1).chars().take(300).collect(),
        good.replacen(".param", ".parm", 1),
        good.replacen(".entry", ".entrance", 1),
    ];
    for text in text_errors {
        refused(load(text), CUresult::CUDA_ERROR_INVALID_PTX);
    }
    refused(load(good.replace("8.0", "9.1")), CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION);
    refused(load(good.replace("sm_75", "sm_100")), CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU);
    refused(load(good.replace("sm_75", "sm_80a")), CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU);
    load(good.replace("sm_75", &format!("sm_{}a", capability()))).unwrap();
    let binary = cudarc::nvrtc::Ptx::from_binary(b"\x7fELF\x02\x01\x01\0".to_vec());
    refused(context.load_module(binary), CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU);
}

/// What a test can make the next loads say, and where the words go.
#[test]
fn loads_fail_on_request() {
    let Some(device) = fresh() else { return };
    let Device { emulator, context, .. } = &device;
    emulator.fail_loads(209, 2);
    for _ in 0..2 {
        refused(context.load_module(good().into()), CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU);
    }
    load(context, &good());

    let load_with_log = |text: &str| {
        let text = std::ffi::CString::new(text).unwrap();
        let mut log = [0xffu8; 100];
        let mut options = [
            sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER,
            sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES,
        ];
        let mut values = [log.as_mut_ptr().cast(), std::ptr::without_provenance_mut(log.len())];
        let mut module = std::ptr::null_mut();
        // SAFETY: the text ends with NUL, and the options are a buffer and its length.
        let result = unsafe {
            sys::cuModuleLoadDataEx(
                &mut module,
                text.as_ptr().cast(),
                2,
                options.as_mut_ptr(),
                values.as_mut_ptr(),
            )
        };
        (result, String::from_utf8(log[..values[1].addr()].to_vec()).unwrap())
    };
    assert_eq!(load_with_log(&good()), (CUresult::CUDA_SUCCESS, String::new()));
    let (result, log) = load_with_log(&good().replace("sm_75", "sm_100"));
    assert_eq!(result, CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU);
    let (major, minor) = (capability() / 10, capability() % 10);
    let words = format!("gfocal emulator: PTX for sm_100 on a device of capability {major}.{minor}");
    assert_eq!(log, words);
    emulator.fail_loads(221, 1);
    assert_eq!(load_with_log(&good()).1, "gfocal emulator: a test has asked for this");
}

#[test]
fn contexts_and_what_belongs_to_them() {
    let Some(_device) = fresh() else { return };
    let (zero, one) = (CudaContext::new(0).unwrap(), CudaContext::new(1).unwrap());
    let again = CudaContext::new(0).unwrap();
    assert_eq!(zero.cu_ctx(), again.cu_ctx());
    assert_ne!(zero.cu_ctx(), one.cu_ctx());
    let x = one.default_stream().clone_htod(&[3u8; 4]).unwrap();
    assert_eq!(x.context().ordinal(), 1);
    assert_eq!(one.default_stream().clone_dtoh(&x).unwrap(), [3; 4]);
    // A stream of another context than the current one.
    let stream = one.new_stream().unwrap();
    zero.bind_to_thread().unwrap();
    // SAFETY: the handle is refused.
    refused(unsafe { result::stream::synchronize(stream.cu_stream()) }, CUresult::CUDA_ERROR_INVALID_HANDLE);
    std::thread::spawn(|| refused(result::ctx::synchronize(), CUresult::CUDA_ERROR_INVALID_CONTEXT))
        .join()
        .unwrap();
}
