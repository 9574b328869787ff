//! Shows what a framework relies on besides: the thread's current context is what it was after every call, good or
//! bad; nothing is made of memory of its own inside a capture, and over the caller's it is; a handle for a
//! per-thread default stream is for one thread; and memory that is too little or at the wrong place is refused.
//! (That it can own all memory is in tests/consumer.rs.)
//!
//! In a binary of its own, as one test: a stream that is created while another one captures breaks the capture.

use std::ptr;
use std::sync::Arc;
use std::thread;

use gfocal::assign::{AnchorGrid, AssignWorkspace, Atss, GroundTruth, LevelTargets};
use gfocal::cuda::{self, Borrowed, Handle, StatusBlock, raw};
use gfocal::cudarc::driver::DevicePtr;
use gfocal::cudarc::driver::sys;
use gfocal::head::HeadWorkspace;
use gfocal::{Error, QualityFocalLoss, Result};
use support::head::cuda::{OnCuda, Phases};
use support::head::scenes::Recipe;
use support::head::{Form, Profile, Settings};
use support::random::Random;
use support::{Gpu, Pass, gpu};

fn current() -> sys::CUcontext {
    let mut context = ptr::null_mut();
    // SAFETY: the pointer is to a live variable.
    unsafe { sys::cuCtxGetCurrent(&raw mut context) }.result().expect("there is a driver");
    context
}

fn make_current(context: sys::CUcontext) {
    // SAFETY: it is null, or the context of a device that is in use.
    unsafe { sys::cuCtxSetCurrent(context) }.result().expect("it is a context");
}

/// `bytes` of memory, to be borrowed more than once.
fn borrow(memory: &impl DevicePtr<u8>, offset: u64, bytes: usize) -> Borrowed<u8> {
    let address = memory.device_ptr(memory.stream()).0 + offset;
    // SAFETY: the test uses it for one thing at a time, as long as it lives.
    unsafe { Borrowed::new(memory.stream(), address, bytes) }
}

/// Runs a call while a context is current, which must be afterwards, too.
fn within<T>(outer: sys::CUcontext, call: impl FnOnce() -> T) -> T {
    let before = current();
    make_current(outer);
    let result = call();
    assert_eq!(current(), outer, "the context that was current before the call");
    make_current(before);
    result
}

/// The loss of 6 rows, and its gradient.
fn qfl(handle: &Handle, rows: usize, outer: sys::CUcontext) -> Result<f32> {
    let stream = handle.stream();
    let zeros = |len| stream.alloc_zeros::<f32>(len).expect("device memory");
    let (logits, mut loss, mut grad) = (zeros(48), zeros(1), zeros(48));
    let labels = stream.alloc_zeros::<i64>(6).expect("device memory");
    let quality = stream.clone_htod(&[0.5f32; 6]).expect("a copy");
    let qfl = QualityFocalLoss::default();
    let call = qfl.cuda(handle, &logits, [rows, 8], &labels, &quality);
    within(outer, || call.forward_backward(&mut loss, &mut grad))?;
    Ok(stream.clone_dtoh(&loss).expect("a copy")[0])
}

fn atss(handle: &Handle, workspace: &mut AssignWorkspace, outer: sys::CUcontext) -> Result<()> {
    let stream = handle.stream();
    let boxes = stream.clone_htod(&[0f32, 0.0, 16.0, 16.0]).expect("a copy");
    let (labels, image) = (stream.alloc_zeros::<i64>(1).unwrap(), stream.alloc_zeros::<i64>(1).unwrap());
    let (mut to, mut to_boxes) =
        (stream.alloc_zeros::<i64>(4).unwrap(), stream.alloc_zeros::<f32>(16).unwrap());
    let mut targets = [LevelTargets::cuda(&mut to, &mut to_boxes)];
    let (grids, gt) = ([AnchorGrid::new(2, 2, 8.0).into()], GroundTruth::cuda(&boxes, &labels, &image));
    within(outer, || Atss::default().cuda(handle, &grids, gt, 1, 2, &mut targets, workspace, None))
}

/// Calls of all kinds while another context is current, or none.
fn contexts_stay(gpu: &Gpu, other: sys::CUcontext) {
    let stream = &gpu.stream;
    let recipe = Recipe { sizes: vec![(4, 4, 8.0)], ..Recipe::new(Settings::of(Profile::Mmdetection)) };
    let scene = recipe.scene(&mut Random::new(3));
    let mut of_head = OnCuda::<f32>::new(gpu, &scene, Form::Nchw, 0);
    make_current(other);
    let stays = |what: &str| assert_eq!(current(), other, "{what}");
    let device = cuda::DeviceInfo::of(&gpu.context).expect("a device");
    stays("DeviceInfo::of");
    assert!(cuda::devices().expect("devices").contains(&device));
    stays("devices");
    let kernels = Arc::new(cuda::Kernels::new(&gpu.context).expect("kernels"));
    stays("Kernels::new");
    let mut handle = Handle::with_kernels(stream, kernels).expect("a handle");
    stays("Handle::with_kernels");
    handle.prepare(Atss::units()).expect("kernels");
    stays("Handle::prepare");
    handle.reset().expect("zeros");
    stays("Handle::reset");
    let mut status = StatusBlock::new(stream).expect("a block");
    stays("StatusBlock::new");
    let mut workspace = HeadWorkspace::new(&handle, 1, 4).expect("a workspace");
    stays("HeadWorkspace::new");
    let mut assign = AssignWorkspace::new(stream, 1, 4, 1).expect("a workspace");
    stays("AssignWorkspace::new");
    qfl(&handle, 6, other).expect("a call");
    assert!(matches!(qfl(&handle, 7, other), Err(Error::Length { tensor: "logits", .. })));
    within(other, || of_head.call(gpu, &scene, Pass::ForwardBackward, Phases::Both)).expect("a call");
    atss(&handle, &mut assign, other).expect("a call");
    make_current(other);
    workspace.reset(&handle).expect("zeros");
    stays("HeadWorkspace::reset");
    assign.reset(stream).expect("zeros");
    stays("AssignWorkspace::reset");
    assert!(status.read(stream).is_ok());
    stays("StatusBlock::read");
    status.reset(stream).expect("zeros");
    stays("StatusBlock::reset");
    let args = raw::BoxesArgs { boxes: 0, ..Default::default() };
    // SAFETY: no box is read.
    unsafe { raw::launch_boxes(handle.kernels(), raw::Pass::Forward, &args, stream.cu_stream().cast()) }
        .expect("nothing to do");
    drop((workspace, assign, status));
    stays("dropped workspaces");
    drop(handle);
    stays("a dropped handle with its kernels");
    make_current(gpu.context.cu_ctx());
}

/// A call whose context is current only within it.
fn a_call_in_another_context(gpu: &Gpu, other: sys::CUcontext) {
    let stream = &gpu.stream;
    let zeros = |len| stream.alloc_zeros::<f32>(len).expect("device memory");
    let (mut grad, scale, mut pair) = (zeros(8), zeros(1), zeros(2));
    let foreign =
        cuda::context(1).map(|context| context.default_stream().alloc_zeros::<f32>(1).expect("memory"));
    make_current(other);
    cuda::scale(&gpu.handle, &mut grad, &scale, None).expect("a call");
    assert_eq!(current(), other, "a call");
    let error = cuda::scale(&gpu.handle, &mut grad, &scale, Some(&mut pair)).expect_err("two flags");
    assert!(matches!(error, Error::Length { tensor: "found_inf", actual: 2, expected: 1, .. }), "{error}");
    assert_eq!(current(), other, "a refused call");
    if let Ok(foreign) = &foreign {
        let error = cuda::scale(&gpu.handle, &mut grad, foreign, None).expect_err("another device");
        assert!(matches!(error, Error::OtherContext { tensor: "scale", actual: 1, expected: 0 }), "{error}");
        assert_eq!(current(), other, "a call with another device's memory");
    }
    // SAFETY: the buffers are of these sizes, and live until the stream has come to it.
    unsafe {
        let args = raw::ScaleArgs {
            grad: grad.device_ptr(stream).0,
            scale: scale.device_ptr(stream).0,
            count: 8,
            ..Default::default()
        };
        make_current(other);
        let storage = cuda::Storage::F32;
        raw::launch_scale(gpu.handle.kernels(), storage, &args, stream.cu_stream().cast()).expect("a launch");
    }
    assert_eq!(current(), other, "a raw launch");
    make_current(gpu.context.cu_ctx());
}

fn captures(gpu: &Gpu, memory: &impl DevicePtr<u8>) {
    let stream = &gpu.stream;
    let (handle, kernels) = (&gpu.handle, gpu.handle.kernels());
    let want = qfl(handle, 6, current()).expect("a call"); // which also loads the kernels
    let logits = stream.alloc_zeros::<f32>(48).expect("device memory");
    let labels = stream.alloc_zeros::<i64>(6).expect("device memory");
    let quality = stream.clone_htod(&[0.5f32; 6]).expect("a copy");
    let (mut loss, mut grad) =
        (stream.alloc_zeros::<f32>(1).unwrap(), stream.alloc_zeros::<f32>(48).unwrap());
    let bytes = raw::scratch_bytes(kernels);

    // The handle lives as long as the graph.
    let (graph, (refused, _over, called)) = gpu.captured(|| {
        let refused = [
            ("a handle's scratch memory", handle.on(stream).map(drop)),
            ("the workspace of a head loss", HeadWorkspace::new(handle, 1, 4).map(drop)),
            ("the workspace of an assignment", AssignWorkspace::new(stream, 1, 4, 1).map(drop)),
            ("a status block", StatusBlock::new(stream).map(drop)),
        ];
        let over = Handle::over(stream, kernels.clone(), borrow(memory, 0, bytes));
        let called = over.as_ref().map(|handle| {
            QualityFocalLoss::default()
                .cuda(handle, &logits, [6, 8], &labels, &quality)
                .forward_backward(&mut loss, &mut grad)
        });
        let called = called.map_err(ToString::to_string);
        (refused, over, called)
    });
    assert_eq!(called, Ok(Ok(())), "a handle and its call");
    for (what, result) in refused {
        assert_eq!(result, Err(Error::Capturing { what }));
    }
    for _ in 0..3 {
        stream.memset_zeros(&mut loss).expect("a memset");
        graph.launch().expect("a replay");
        assert_eq!(stream.clone_dtoh(&loss).expect("a copy"), [want]);
    }
    // What was refused has left nothing behind.
    assert_eq!(qfl(&handle.on(stream).expect("a handle"), 6, current()), Ok(want));
}

fn per_thread_streams(gpu: &Gpu) {
    let stream = gpu.context.per_thread_stream();
    let handle = gpu.handle.on(&stream).expect("a handle");
    let want = qfl(&handle, 6, current()).expect("a call");
    stream.synchronize().expect("it ends well");
    thread::scope(|scope| {
        let call = || {
            let stream = gpu.context.per_thread_stream();
            assert_eq!(qfl(&handle, 6, current()), Err(Error::OtherThread));
            let own = handle.on(&stream).expect("a handle of its own");
            assert_eq!(qfl(&own, 6, current()), Ok(want));
            stream.synchronize().expect("it ends well");
        };
        scope.spawn(call).join().expect("no panic");
    });
    assert_eq!(qfl(&handle, 6, current()), Ok(want), "the first thread's is as good as before");
}

fn memory_is_looked_at(gpu: &Gpu, memory: &impl DevicePtr<u8>) {
    let (stream, kernels) = (&gpu.stream, gpu.handle.kernels());
    let refusals = |what: &str, needed: usize, make: &dyn Fn(Borrowed<u8>) -> Result<()>| {
        make(borrow(memory, 0, needed)).unwrap_or_else(|error| panic!("{what}: {error}"));
        for (offset, bytes) in [(0, needed - 1), (8, needed), (0, 0)] {
            let error = make(borrow(memory, offset, bytes)).expect_err(what);
            let fits = matches!(error, Error::CallersMemory { actual, needed: n, .. } if (actual, n) == (bytes, needed));
            assert!(fits, "{what}: {error}");
        }
    };
    let bytes = raw::scratch_bytes(kernels);
    refusals("scratch", bytes, &|memory| Handle::over(stream, kernels.clone(), memory).map(drop));
    let bytes = HeadWorkspace::bytes(kernels, 2, 50).expect("a size");
    refusals("head", bytes, &|memory| HeadWorkspace::over(&gpu.handle, memory, 2, 50).map(drop));
    refusals("head", bytes, &|memory| HeadWorkspace::resumed(&gpu.handle, memory, 2, 50).map(drop));
    let three = stream.alloc_zeros::<f32>(3).expect("device memory");
    let [few, right] = [3, 2].map(|len| {
        // SAFETY: so many are there, and nothing is run with them.
        let normalisers = unsafe { Borrowed::<f32>::new(stream, three.device_ptr(stream).0, len) };
        let workspace = HeadWorkspace::new(&gpu.handle, 2, 50).expect("a workspace");
        workspace.with_normalisers(&gpu.handle, normalisers).map(|workspace| {
            assert_eq!(workspace.normalisers().device_ptr(stream).0, three.device_ptr(stream).0);
        })
    });
    assert_eq!(few, Err(Error::LevelTensors { tensor: "normalisers", actual: 3, expected: 2 }));
    assert_eq!(right, Ok(()));
    let bytes = AssignWorkspace::bytes(2, 50, 7).expect("a size");
    refusals("assignment", bytes, &|memory| AssignWorkspace::over(stream, memory, 2, 50, 7).map(drop));
    refusals("status", StatusBlock::BYTES, &|memory| StatusBlock::over(stream, memory).map(drop));
    assert!(HeadWorkspace::bytes(kernels, usize::MAX, 2).is_err());
    assert!(AssignWorkspace::bytes(usize::MAX, 2, 1).is_err());
    assert!(AssignWorkspace::bytes(1, usize::MAX / 8, 1).is_err());
}

#[test]
fn a_framework_finds_things_as_it_left_them() {
    let Some(gpu) = gpu() else { return };
    let memory = gpu.stream.alloc_zeros::<u8>(1 << 16).expect("device memory");
    let _managed =
        gpu.context.new_stream().expect("a second stream, and so events are waited for and recorded");
    let before = current();
    let second = cuda::context(1);
    assert_eq!(current(), before, "cuda::context of another device");
    let others = [Some(ptr::null_mut()), second.as_ref().ok().map(|context| context.cu_ctx())];
    for other in others.into_iter().flatten() {
        contexts_stay(&gpu, other);
        a_call_in_another_context(&gpu, other);
    }
    // SAFETY: all work is on one stream, or waited for.
    unsafe { gpu.context.disable_event_tracking() };
    contexts_stay(&gpu, ptr::null_mut());
    assert_eq!(gpu.context.check_err(), Ok(()), "nothing was dropped without a context");
    memory_is_looked_at(&gpu, &memory);
    captures(&gpu, &memory);
    per_thread_streams(&gpu);
}
