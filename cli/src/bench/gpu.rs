//! A GPU: launches in a graph, timed by events.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gfocal::cuda::{DeviceInfo, Handle, Kernels, check};
use gfocal::cudarc::driver::{CudaContext, CudaStream};
use gfocal_bench::{Pass, Replays, Set};

use super::args::{BenchArgs, Calls};
use super::case::Case;
use super::ceiling::Reader;
use super::timing::{Samples, wall_clock};
use crate::device::Cuda;
use crate::error::{Error, Result};

/// Launches in a graph, at most.
const MOST_SETS: usize = 512;
/// As many show that each launch has buffers of its own.
const CHECKED_SETS: usize = 2;

/// A GPU with a stream that can be captured.
pub struct Gpu {
    name: String,
    replays: Replays,
    /// The kernel of the read ceiling, or why there is none.
    reader: RefCell<std::result::Result<Reader, String>>,
    most_sets: usize,
    calls: Option<Calls>,
    /// Where kernels are taken from before those of the command.
    kernels: Option<PathBuf>,
}

impl Gpu {
    /// An emulator may be checked, but not timed.
    pub fn new(cuda: &Cuda, args: &BenchArgs) -> Result<Gpu> {
        let (kernels, check_only) = (args.kernels.as_deref(), args.check_only);
        let context = cuda.stream().context();
        let failed = Error::cuda(cuda.ordinal);
        let info = DeviceInfo::of(context).map_err(&failed)?;
        if !check_only && info.name.contains("not a GPU") {
            return Err(Error::Emulated { device: format!("cuda:{}", cuda.ordinal), name: info.name });
        }
        let most_sets = if check_only { CHECKED_SETS } else { MOST_SETS };
        if let Some(folder) = kernels.filter(|folder| !holds_kernels(folder)) {
            return Err(Error::NoKernels { folder: folder.to_owned() });
        }
        let shared = match kernels {
            // SAFETY: that they are kernels of this release with changes inside is what `--kernels` asks for.
            Some(folder) => Arc::new(unsafe { Kernels::with_folder(context, folder) }.map_err(&failed)?),
            None => cuda.handle.kernels().clone(),
        };
        let gpu = Gpu::open(context, shared, info, most_sets, args.calls).map_err(&failed)?;
        Ok(Gpu { kernels: kernels.map(Path::to_owned), ..gpu })
    }

    fn open(
        context: &Arc<CudaContext>,
        shared: Arc<Kernels>,
        info: DeviceInfo,
        most_sets: usize,
        calls: Option<Calls>,
    ) -> gfocal::Result<Gpu> {
        let replays = Replays::new(context, shared, calls == Some(Calls::Tracked))?;
        let reader = RefCell::new(Reader::new(replays.stream(), info.multiprocessors));
        Ok(Gpu { name: info.name, replays, reader, most_sets, calls, kernels: None })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// What is not measured in the best way, and why.
    pub fn notes(&self, check_only: bool) -> Vec<String> {
        let mut notes = Vec::new();
        if let Some(folder) = &self.kernels {
            let (theirs, own): (Vec<_>, Vec<_>) = self
                .replays
                .handle
                .kernels()
                .images()
                .into_iter()
                .partition(|image| image.contains(&*folder.to_string_lossy()));
            for (giver, images) in [("--kernels", theirs), ("the command", own)] {
                let images = if images.is_empty() { "nothing".to_owned() } else { images.join("; ") };
                notes.push(format!("{giver} gave {images}"));
            }
        }
        if let Err(why) = &*self.reader.borrow() {
            notes.push(format!("there is no read ceiling: {why}"));
        }
        if !check_only && self.calls.is_none() && !self.replays.has_events {
            let why = "the driver is older than CUDA 12.8";
            notes.push(format!("{why}, so times are by the wall clock around graph replays"));
        }
        notes
    }

    /// How it is timed.
    pub fn method(&self) -> &'static str {
        match self.calls {
            Some(Calls::Tracked) => "wall clock around calls with event tracking",
            Some(Calls::Untracked) => "wall clock around calls",
            None if self.replays.has_events => "CUDA events around replays of a graph",
            None => "wall clock around replays of a graph",
        }
    }

    /// Bytes of its memory that are free.
    pub fn free_memory(&self) -> Result<u64> {
        Ok(check("cuMemGetInfo", self.stream().context().mem_get_info())?.0 as u64)
    }

    fn stream(&self) -> &Arc<CudaStream> {
        self.replays.stream()
    }

    /// How many sets of buffers of `held` bytes, of which a launch moves `moved`, it takes to get past
    /// the L2 cache; of half the free memory at most.
    fn sets(&self, moved: usize, held: usize) -> gfocal::Result<usize> {
        self.replays.sets(moved, held, self.most_sets)
    }

    /// Seconds of a copy from device to device that reads and writes so many bytes in all.
    pub fn copy_seconds(&self, bytes: usize, seconds: f64) -> Result<f64> {
        let half = bytes.div_ceil(2).max(1);
        let allocate = || check("cuMemAllocAsync", self.stream().alloc_zeros::<u8>(half));
        let sets = self.sets(2 * half, 2 * half)?;
        let mut buffers =
            (0..sets).map(|_| Ok((allocate()?, allocate()?))).collect::<gfocal::Result<Vec<_>>>()?;
        let samples = self.time(seconds, sets, |i| {
            let (source, target) = &mut buffers[i];
            check("cuMemcpyDtoDAsync", self.stream().memcpy_dtod(source, target))
        })?;
        Ok(samples.median())
    }

    /// Seconds that it takes to read so many bytes; `None` where the kernel for it cannot be had.
    pub fn read_seconds(&self, bytes: usize, seconds: f64) -> Result<Option<f64>> {
        let mut reader = self.reader.borrow_mut();
        let Ok(reader) = &mut *reader else { return Ok(None) };
        let arrays: Vec<_> =
            (0..self.sets(bytes, bytes)?).map(|_| reader.array(bytes)).collect::<gfocal::Result<_>>()?;
        let samples = self.time(seconds, arrays.len(), |i| reader.launch(&arrays[i]))?;
        Ok(Some(samples.median()))
    }

    /// Times `count` launches, the i-th on the i-th set of buffers, and gives the time of one.
    fn time(
        &self,
        seconds: f64,
        count: usize,
        mut launch: impl FnMut(usize) -> gfocal::Result<()>,
    ) -> Result<Samples> {
        // Once without a graph, so that what is made at the first call is there.
        (0..count).try_for_each(&mut launch)?;
        check("cuStreamSynchronize", self.stream().synchronize())?;
        if self.calls.is_some() {
            let mut calls = || {
                (0..count).try_for_each(&mut launch)?;
                Ok(check("cuStreamSynchronize", self.stream().synchronize())?)
            };
            return Samples::take(seconds, || Ok(wall_clock(&mut calls)? / count as f64));
        }
        let graph = self.replays.capture(|| (0..count).try_for_each(&mut launch))?;
        Samples::take(seconds, || Ok(self.replays.seconds(&graph, 1)? / count as f64))
    }
}

fn holds_kernels(folder: &Path) -> bool {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.into_iter().any(|entry| entry.path().extension().is_some_and(|extension| extension == "ptx"))
}

/// Sets of buffers with the same inputs.
pub struct Sets<'a, S> {
    gpu: &'a Gpu,
    sets: Vec<S>,
}

impl<'a, S: Set> Sets<'a, S> {
    /// As many as it takes for a case; `upload` makes one.
    pub fn new(gpu: &'a Gpu, case: &Case, upload: impl Fn(&Handle) -> gfocal::Result<S>) -> Result<Self> {
        // The pass that moves least says how many it takes.
        let least = case.passes.iter().map(|&pass| case.bytes(pass)).min().unwrap_or(1);
        let held = usize::try_from(case.memory()).unwrap_or(usize::MAX);
        let sets = (0..gpu.sets(least, held)?).map(|_| upload(&gpu.replays.handle));
        Ok(Sets { gpu, sets: sets.collect::<gfocal::Result<_>>()? })
    }

    /// What a call of a pass gives.
    pub fn called(&mut self, pass: Pass) -> Result<S::Outcome> {
        let (gpu, set) = (self.gpu, &mut self.sets[0]);
        set.clear(gpu.stream())?;
        set.launch(&gpu.replays.handle, pass)?;
        Ok(set.outcome(gpu.stream())?)
    }

    /// What a replay of its graph gives, in the last set.
    pub fn replayed(&mut self, pass: Pass) -> Result<S::Outcome> {
        let (gpu, sets) = (self.gpu, &mut self.sets);
        let graph = gpu
            .replays
            .capture(|| sets.iter_mut().try_for_each(|set| set.launch(&gpu.replays.handle, pass)))?;
        let last = sets.last_mut().expect("there is a set");
        last.clear(gpu.stream())?;
        gpu.replays.seconds(&graph, 1)?;
        Ok(last.outcome(gpu.stream())?)
    }

    pub fn time(&mut self, pass: Pass, seconds: f64) -> Result<Samples> {
        let (gpu, sets) = (self.gpu, &mut self.sets);
        gpu.time(seconds, sets.len(), |i| sets[i].launch(&gpu.replays.handle, pass))
    }
}
