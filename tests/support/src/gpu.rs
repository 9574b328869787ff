//! The CUDA device of the tests: a GPU, or the emulator where there is none.

use std::fmt::Debug;
use std::sync::{Arc, OnceLock};

use gfocal::cuda::{self, Handle, StorageElement};
use gfocal::cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use gfocal::cudarc::driver::{
    CudaContext, CudaGraph, CudaSlice, CudaStream, CudaView, CudaViewMut, DeviceRepr,
};
use gfocal::{bf16, f16};
use gfocal_emulator::{Driver, Emulator};

use super::tolerance::Stored;

/// A stream of its own, and a handle on it with the kernels that all tests of the process share.
/// When it goes, it asserts that the emulator has seen no fault: that guard bands are intact,
/// that no kernel has read what was never written, and so on.
pub struct Gpu {
    pub context: Arc<CudaContext>,
    pub stream: Arc<CudaStream>,
    pub handle: Handle,
    pub emulator: Option<Emulator>,
}

impl Gpu {
    /// Runs calls that launch so many kernels, and neither allocate nor wait nor copy.
    #[track_caller]
    pub fn enqueued<R>(&self, launches: u64, calls: impl FnOnce() -> R) -> R {
        let Some(emulator) = self.emulator else { return calls() };
        let before = emulator.counters();
        let result = calls();
        let spent = emulator.counters().since(&before);
        let counts = (spent.allocations, spent.frees, spent.waits, spent.copies_to_host, spent.launches);
        assert_eq!(counts, (0, 0, 0, 0, launches), "allocations, frees, waits, copies, launches");
        result
    }

    /// Captures calls, whose result it gives with their graph.
    #[track_caller]
    pub fn captured<R>(&self, calls: impl FnOnce() -> R) -> (CudaGraph, R) {
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_GLOBAL;
        self.stream.begin_capture(mode).expect("a capture begins");
        let result = calls();
        let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
        let graph = self.stream.end_capture(flags).expect("the capture is whole").expect("a graph");
        (graph, result)
    }
}

/// `None`, with a sentence on stderr: there is neither a GPU nor a C++ compiler, and skipping is
/// allowed.
pub fn gpu() -> Option<Gpu> {
    static FIRST: OnceLock<(Arc<CudaContext>, Handle)> = OnceLock::new();
    let driver = driver()?;
    let (context, first) = FIRST.get_or_init(|| {
        let context = cuda::context(0).expect("there is a driver");
        let handle = Handle::new(&context.default_stream()).expect("the kernels load");
        (context, handle)
    });
    context.bind_to_thread().expect("the context is alive");
    let stream = context.new_stream().expect("a stream");
    let handle = first.on(&stream).expect("a handle");
    Some(Gpu { context: context.clone(), stream, handle, emulator: driver.emulator() })
}

/// As [`gpu`], but only the driver.
pub fn driver() -> Option<Driver> {
    match gfocal_emulator::driver() {
        Ok(driver) => Some(driver),
        Err(error) if gfocal_emulator::skip_allowed() => {
            eprintln!("skipped what needs CUDA: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// Asserts that the emulator has seen no fault in this process.
#[track_caller]
pub fn assert_no_fault(emulator: Option<Emulator>) {
    if let Some(emulator) = emulator {
        assert_eq!(emulator.faults(), 0, "the emulator found: {:?}", emulator.last_fault());
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.stream.synchronize().expect("the stream's work ends well");
            assert_no_fault(self.emulator);
        }
    }
}

/// A type of device memory, with a value that no kernel should read or leave.
pub trait Poison: DeviceRepr + Copy + Debug + Unpin + 'static {
    const POISON: Self;
    fn is_poison(&self) -> bool;
}

macro_rules! poison {
    ($($type:ty: $value:expr, $same:expr;)*) => {$(
        impl Poison for $type {
            const POISON: $type = $value;
            fn is_poison(&self) -> bool {
                $same(*self)
            }
        }
    )*};
}
poison! {
    f32: f32::from_bits(0x7fc5_a5a5), |x: f32| x.to_bits() == 0x7fc5_a5a5;
    f16: f16::from_bits(0x7ea5), |x: f16| x.to_bits() == 0x7ea5;
    bf16: bf16::from_bits(0x7fe5), |x: bf16| x.to_bits() == 0x7fe5;
    i64: 0x5a5a_5a5a_5a5a, |x| x == 0x5a5a_5a5a_5a5a;
    i32: 0x5a5a_5a5a, |x| x == 0x5a5a_5a5a;
}

/// A storage type of the kernels.
pub trait OnDevice: Stored + StorageElement + Poison {}
impl<T: Stored + StorageElement + Poison> OnDevice for T {}

/// A view into a larger allocation, whose rest must stay as it is.
pub struct Buffer<T> {
    slice: CudaSlice<T>,
    offset: usize,
    len: usize,
}

const TAIL: usize = 3;

impl<T: Poison> Buffer<T> {
    /// Holds `data`, `offset` elements from the start of an allocation.
    pub fn new(gpu: &Gpu, data: &[T], offset: usize) -> Buffer<T> {
        let mut all = vec![T::POISON; offset + data.len() + TAIL];
        all[offset..offset + data.len()].copy_from_slice(data);
        let slice = gpu.stream.clone_htod(&all).expect("device memory");
        Buffer { slice, offset, len: data.len() }
    }

    /// Holds poison: an output before a call.
    pub fn poisoned(gpu: &Gpu, len: usize, offset: usize) -> Buffer<T> {
        Buffer::new(gpu, &vec![T::POISON; len], offset)
    }

    pub fn view(&self) -> CudaView<'_, T> {
        self.slice.slice(self.offset..self.offset + self.len)
    }

    pub fn view_mut(&mut self) -> CudaViewMut<'_, T> {
        self.slice.slice_mut(self.offset..self.offset + self.len)
    }

    /// Replaces what it holds, at the same address.
    pub fn write(&mut self, gpu: &Gpu, data: &[T]) {
        assert_eq!(data.len(), self.len);
        if !data.is_empty() {
            gpu.stream.memcpy_htod(data, &mut self.view_mut()).expect("a copy");
        }
    }

    /// What it holds, once the margins have been found intact.
    #[track_caller]
    pub fn read(&self, gpu: &Gpu) -> Vec<T> {
        let all = gpu.stream.clone_dtoh(&self.slice).expect("the stream's work ends well");
        let (before, rest) = all.split_at(self.offset);
        let (data, after) = rest.split_at(self.len);
        assert!(before.iter().chain(after).all(T::is_poison), "written outside of a view");
        data.to_vec()
    }
}
