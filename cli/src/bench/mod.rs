//! `gfocal bench`: how fast the operations are, once they are known to be right.

mod args;
mod case;
mod cpu;
mod data;
mod date;
mod formula;
mod gpu;
mod plot;
mod report;
mod timing;
mod verify;

use half::{bf16, f16};
use indicatif::{ProgressBar, ProgressStyle};

pub use args::BenchArgs;
use args::Format;
use case::{Case, Pass};
use data::{Inputs, Stored};
use gpu::Gpu;
use report::Record;
use timing::Samples;

use crate::device::Device;
use crate::error::{Error, Result};
use crate::file::Output;
use crate::floats::Dtype;
use crate::terminal;

/// What a pass gives.
pub struct Outcome<T> {
    /// `[1]`, or the expectations `[rows]`.
    pub loss: Vec<f32>,
    pub grad: Vec<T>,
}

/// What is timed on, and what is needed for it.
enum Machine {
    Cpu,
    Gpu(Gpu),
}

pub fn run(args: &BenchArgs) -> Result<()> {
    let cases = Case::all(args)?;
    let plot = args.plot.as_deref().map(|path| Output::new(path, None)).transpose()?;
    let dtypes: Vec<Dtype> = cases.iter().map(|case| case.dtype).collect();
    let (device, note) = Device::open(args.device, &dtypes)?;
    let machine = Machine::new(&device)?;
    machine.check_memory(&cases)?;

    let bar = ProgressBar::new(cases.iter().map(|case| case.passes.len() as u64).sum());
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}") {
        bar.set_style(style);
    }
    let mut records = Vec::new();
    for case in &cases {
        let found = match case.dtype {
            Dtype::F16 => machine.time::<f16>(case, args.seconds, &bar, &device),
            Dtype::Bf16 => machine.time::<bf16>(case, args.seconds, &bar, &device),
            Dtype::F32 | Dtype::F64 => machine.time::<f32>(case, args.seconds, &bar, &device),
        };
        // The bar must not stay in the line of an error.
        records.extend(found.inspect_err(|_| bar.finish_and_clear())?);
    }
    bar.finish_and_clear();

    if let Some(plot) = plot {
        plot.write_bytes(plot::svg(&records, &date::today())?.as_bytes())?;
    }
    for note in note.into_iter().chain(machine.note()) {
        terminal::note(&note);
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
    fn new(device: &Device) -> Result<Machine> {
        Ok(match device {
            Device::Cpu => Machine::Cpu,
            Device::Cuda(cuda) => Machine::Gpu(Gpu::new(cuda)?),
        })
    }

    fn name(&self) -> String {
        match self {
            Machine::Cpu => cpu::name(),
            Machine::Gpu(gpu) => gpu.name().to_owned(),
        }
    }

    /// How it is timed, where that is not the best way.
    fn note(&self) -> Option<String> {
        match self {
            Machine::Cpu => None,
            Machine::Gpu(gpu) => gpu.note(),
        }
    }

    fn check_memory(&self, cases: &[Case]) -> Result<()> {
        let Some(free) = cpu::free_memory() else { return Ok(()) };
        for case in cases {
            // Results are read back beside the inputs, and a copy is of two buffers more.
            let (needed, size) = (case.memory().saturating_mul(3), case.size);
            if needed > free.into() {
                return Err(Error::Memory { rows: size.rows, columns: size.columns, needed, free });
            }
        }
        Ok(())
    }

    /// Checks and times the passes of a case.
    fn time<T: Stored>(
        &self,
        case: &Case,
        seconds: f64,
        bar: &ProgressBar,
        device: &Device,
    ) -> Result<Vec<Record>> {
        bar.set_message(format!("checking {case}"));
        bar.tick();
        let inputs = Inputs::<T>::random(case);
        let record = |pass: Pass, samples: &Samples, ceilings, method| {
            bar.inc(1);
            Record::new(case, pass, (device.name(), self.name()), samples, ceilings, method)
        };
        let mut records = Vec::new();
        match self {
            Machine::Cpu => {
                let mut cpu = cpu::Cpu::new(&inputs);
                verify::check(case, &inputs, |pass| cpu.outcome(pass))?;
                for &pass in &case.passes {
                    bar.set_message(format!("{} {case}", pass.name()));
                    let (samples, bytes) = (cpu.time(pass, seconds)?, case.bytes(pass));
                    let copy = cpu::copy_seconds(bytes, seconds / 4.0)?;
                    let read = cpu::read_seconds(bytes, seconds / 4.0)?;
                    records.push(record(pass, &samples, (copy, Some(read)), "wall clock"));
                }
            }
            Machine::Gpu(gpu) => {
                let mut sets = gpu::Sets::new(gpu, case, &inputs)?;
                verify::check(case, &inputs, |pass| sets.outcome(pass))?;
                for &pass in &case.passes {
                    bar.set_message(format!("{} {case}", pass.name()));
                    let (samples, method) = sets.time(pass, seconds)?;
                    let copy = gpu.copy_seconds(case.bytes(pass), seconds / 4.0)?;
                    records.push(record(pass, &samples, (copy, None), method));
                }
            }
        }
        Ok(records)
    }
}
