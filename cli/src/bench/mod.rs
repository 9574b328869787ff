//! `gfocal bench`: how fast the operations are, once they are known to be right.

mod args;
mod case;
mod ceiling;
mod check;
mod cpu;
mod date;
mod gpu;
mod plot;
mod report;
mod timing;

use gfocal_bench::{Calls, Pass, Stored, head, rows};
use half::{bf16, f16};
use indicatif::{ProgressBar, ProgressStyle};

pub use args::BenchArgs;
use args::Format;
use case::Case;
use check::Checked;
use gpu::{Gpu, Sets};
use report::Record;
use timing::{Samples, wall_clock};

use crate::device::{self, Device};
use crate::error::{Error, Result};
use crate::file::Output;
use crate::floats::Dtype;
use crate::terminal;

/// What is timed on, and what is needed for it.
enum Machine {
    Cpu,
    Gpu(Box<Gpu>),
}

/// How cases are run.
struct Bench<'a> {
    args: &'a BenchArgs,
    device: Device,
    machine: Machine,
    bar: ProgressBar,
}

pub fn run(args: &BenchArgs) -> Result<()> {
    let cases = Case::all(args)?;
    let plot = args.plot.as_deref().map(|path| Output::new(path, None)).transpose()?;
    let dtypes: Vec<Dtype> = cases.iter().map(|case| case.dtype).collect();
    let (device, note) = Device::open(args.device, &dtypes, |_| device::smallest())?;
    let machine = Machine::new(&device, args)?;
    machine.check_memory(&cases, &device)?;

    let bar = ProgressBar::new(cases.iter().map(|case| case.passes.len() as u64).sum());
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}") {
        bar.set_style(style);
    }
    let bench = Bench { args, device, machine, bar };
    let mut records = Vec::new();
    for case in &cases {
        let found = match case.dtype {
            Dtype::F16 => bench.run::<f16>(case),
            Dtype::Bf16 => bench.run::<bf16>(case),
            Dtype::F32 | Dtype::F64 => bench.run::<f32>(case),
        };
        // The bar must not stay in the line of an error.
        records.extend(found.inspect_err(|_| bench.bar.finish_and_clear())?);
    }
    bench.bar.finish_and_clear();

    if let Some(plot) = plot {
        plot.write_bytes(plot::svg(&records, &date::today())?.as_bytes())?;
    }
    for note in note.into_iter().chain(bench.machine.notes(args.check_only)) {
        terminal::note(&note);
    }
    if args.check_only {
        return terminal::print(&report::checked(&cases, &bench.device.name(), &bench.machine.name()));
    }
    if cfg!(debug_assertions) {
        terminal::note("this gfocal was built without optimisation, and its figures tell nothing");
    }
    terminal::print(&match args.format {
        Format::Table => report::table(&records),
        Format::Csv => report::csv(&records),
        Format::Json => report::json(&records),
    })
}

impl Machine {
    fn new(device: &Device, args: &BenchArgs) -> Result<Machine> {
        match device {
            Device::Cpu => {
                let options = [("--kernels", args.kernels.is_some()), ("--calls", args.calls.is_some())];
                match options.into_iter().find(|(_, given)| *given) {
                    Some((option, _)) => Err(Error::ForGpu { option, device: device.name() }),
                    None => Ok(Machine::Cpu),
                }
            }
            Device::Cuda(cuda) => Ok(Machine::Gpu(Box::new(Gpu::new(cuda, args)?))),
        }
    }

    fn name(&self) -> String {
        match self {
            Machine::Cpu => cpu::name(),
            Machine::Gpu(gpu) => gpu.name().to_owned(),
        }
    }

    /// What is not measured in the best way.
    fn notes(&self, check_only: bool) -> Vec<String> {
        match self {
            Machine::Cpu => Vec::new(),
            Machine::Gpu(gpu) => gpu.notes(check_only),
        }
    }

    fn check_memory(&self, cases: &[Case], device: &Device) -> Result<()> {
        // A system that does not tell has no more than addresses.
        let host = cpu::free_memory().unwrap_or(u64::MAX / 4);
        for case in cases {
            // Results are read back beside the inputs, and a copy is of two buffers more.
            let (needed, size) = (case.memory().saturating_mul(3), case.size);
            let short = |place: String, free| {
                Err(Error::Memory { rows: size.rows, columns: size.columns, needed, place, free })
            };
            if needed > host.into() {
                return short("this machine".to_owned(), host);
            }
            if let Machine::Gpu(gpu) = self
                && needed > gpu.free_memory()?.into()
            {
                return short(device.name(), gpu.free_memory()?);
            }
        }
        Ok(())
    }
}

impl Bench<'_> {
    fn run<T: Stored>(&self, case: &Case) -> Result<Vec<Record>> {
        self.bar.set_message(format!("checking {case}"));
        self.bar.tick();
        match case.op.on_rows() {
            Some(op) => self.measure(case, &rows::Inputs::<T>::random(op, case.size)),
            None => self.measure(case, &head::Inputs::<T>::random(case.size)),
        }
    }

    /// Checks the passes of a case, and times them.
    fn measure(&self, case: &Case, inputs: &impl Checked) -> Result<Vec<Record>> {
        match &self.machine {
            Machine::Cpu => {
                let mut calls = inputs.on_cpu();
                if !self.args.no_check {
                    inputs.check(case, |pass| Ok(calls.outcome(pass)?))?;
                }
                self.time(case, |pass, seconds| {
                    let (samples, bytes) =
                        (Samples::take(seconds, || wall_clock(|| Ok(calls.run(pass)?)))?, case.bytes(pass));
                    let copy = cpu::copy_seconds(bytes, seconds / 4.0)?;
                    let read = reads(pass).then(|| cpu::read_seconds(bytes, seconds / 4.0)).transpose()?;
                    Ok((samples, copy, read, "wall clock"))
                })
            }
            Machine::Gpu(gpu) => {
                let mut sets = Sets::new(gpu, case, |handle| inputs.upload(handle))?;
                if !self.args.no_check {
                    inputs.check(case, |pass| sets.called(pass))?;
                    if self.args.calls.is_none() {
                        inputs.check(case, |pass| sets.replayed(pass))?;
                    }
                }
                self.time(case, |pass, seconds| {
                    let (samples, bytes) = (sets.time(pass, seconds)?, case.bytes(pass));
                    let copy = gpu.copy_seconds(bytes, seconds / 4.0)?;
                    let read = reads(pass).then(|| gpu.read_seconds(bytes, seconds / 4.0)).transpose()?;
                    Ok((samples, copy, read.flatten(), gpu.method()))
                })
            }
        }
    }

    /// Times the passes of a case. `measure` gives the samples, the seconds of a copy and of a read, and
    /// how it was measured.
    fn time(
        &self,
        case: &Case,
        mut measure: impl FnMut(Pass, f64) -> Result<(Samples, f64, Option<f64>, &'static str)>,
    ) -> Result<Vec<Record>> {
        let check_only = self.args.check_only;
        let mut records = Vec::new();
        for &pass in &case.passes {
            self.bar.set_message(format!("{} {case}", pass.name()));
            // A check goes the way of the times too, and drops what it finds there.
            let (samples, copy, read, method) =
                measure(pass, if check_only { 0.0 } else { self.args.seconds })?;
            if !check_only {
                let device = (self.device.name(), self.machine.name());
                records.push(Record::new(case, pass, device, &samples, (copy, read), method));
            }
            self.bar.inc(1);
        }
        Ok(records)
    }
}

/// Whether a pass does next to nothing but read.
fn reads(pass: Pass) -> bool {
    pass == Pass::Forward
}
