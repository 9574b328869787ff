//! `gfocal assign`: which anchors are trained on which box; and the same for `gfocal head --assign`.

mod args;
mod cpu;
mod cuda;
mod file;
mod place;
mod report;
mod truth;

use gfocal::assign::{Atss, Fcos};
use gfocal::cuda::Units;

pub use args::{AssignArgs, AssignerArgs, AssignerChoice};
pub use cpu::run as on_cpu;
pub use cuda::{DeviceLevel, run as on_cuda};
pub use place::{Place, PointSource, check_size, positions_of};
pub use report::AssignmentReport;
pub use truth::Truth;

use crate::buffer;
use crate::case::Case;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::file::{Input, Output};
use crate::floats::{Dtype, Floats};
use crate::inputs::Labels;
use crate::report::json;
use crate::terminal;
use crate::values::BackgroundChoice;
use crate::words::count;
use report::AssignReport;

/// How targets are assigned.
pub enum Assigner {
    Atss {
        atss: Atss,
        /// Side of the anchors, in strides.
        scale: f64,
    },
    Fcos(Fcos),
}

/// What is to be assigned, and how.
pub struct Problem<'a> {
    pub places: &'a [Place],
    pub batch: usize,
    pub classes: usize,
    pub truth: &'a Truth,
    pub assigner: &'a Assigner,
}

/// What the anchors of a level are to become.
pub struct AssignedLevel {
    /// `[B, H*W]`.
    pub labels: Vec<i64>,
    /// `[B, H*W, 4]`.
    pub boxes: Vec<f32>,
    /// `[B, H*W]`.
    pub label_weights: Vec<f32>,
    /// `[B, H*W]`, if boxes have weights.
    pub box_weights: Option<Vec<f32>>,
    /// `[B, H*W]`, of FCOS.
    pub centerness: Option<Vec<f32>>,
}

/// FCOS's own distances, for its five levels.
const RANGES: [[f64; 2]; 5] =
    [[-1.0, 64.0], [64.0, 128.0], [128.0, 256.0], [256.0, 512.0], [512.0, f64::INFINITY]];

pub fn run(args: &AssignArgs) -> Result<()> {
    let input = Input::read(&args.file)?;
    let output = args.output.as_deref().map(|path| Output::new(path, Some(&args.file))).transpose()?;
    let file = file::File::read(&input, args)?;
    let problem = file.problem();
    let (device, note) = Device::open(args.device, &[Dtype::F32], |_| Assigner::units())?;
    let (levels, status) = match &device {
        Device::Cpu => on_cpu(&problem)?,
        Device::Cuda(cuda) => cuda::alone(cuda, &problem).map_err(buffer::error(cuda))?,
    };

    let report = AssignReport::new(&problem, &device, args.background, &levels, status);
    if let Some(mut output) = output {
        for (i, (place, level)) in problem.places.iter().zip(&levels).enumerate() {
            level.add(&mut output, i, [problem.batch, place.positions()]);
        }
        output.write(&json(&report))?;
    }
    let text = if args.json { json(&report) + "\n" } else { report.table() };
    terminal::finish(&text, [note, input.unread()?])
}

impl Assigner {
    pub fn new(
        input: &Input,
        args: &AssignerArgs,
        case: &Case,
        background: BackgroundChoice,
        levels: usize,
    ) -> Result<Assigner> {
        let choice = args.choice();
        if let Some(option) = args.of_the_other() {
            return Err(Error::OtherAssigner { option, assigner: choice.name() });
        }
        let (background, fallback) = (background.into(), args.fallback as usize);
        match choice {
            AssignerChoice::Atss => {
                let topk = args.topk.or(case.atss_topk).unwrap_or(9);
                let mut atss =
                    Atss::new(topk as usize)?.with_background(background).with_fallback(fallback)?;
                if let Some(share) = args.ignore_iof {
                    atss = atss.with_ignore_iof(share as f32)?;
                }
                Ok(Assigner::Atss { atss, scale: args.anchor_scale.or(case.anchor_scale).unwrap_or(8.0) })
            }
            AssignerChoice::Fcos => {
                let ranges = ranges(input, args, case, levels)?;
                let mut fcos = Fcos::new(&ranges)?.with_background(background).with_fallback(fallback)?;
                if let Some(share) = args.ignore_iof {
                    fcos = fcos.with_ignore_iof(share as f32)?;
                }
                let radius = match args.center_sampling {
                    Some(sampling) => sampling.0,
                    None => case
                        .center_sampling
                        .unwrap_or(false)
                        .then(|| case.center_sample_radius.unwrap_or(1.5)),
                };
                Ok(Assigner::Fcos(match radius {
                    Some(radius) => fcos.with_center_sampling(radius as f32)?,
                    None => fcos,
                }))
            }
        }
    }

    pub fn choice(&self) -> AssignerChoice {
        match self {
            Assigner::Atss { .. } => AssignerChoice::Atss,
            Assigner::Fcos(_) => AssignerChoice::Fcos,
        }
    }

    /// The kernels of either.
    pub fn units() -> Units {
        Atss::units() | Fcos::units()
    }
}

/// The distances that each level is for.
fn ranges(input: &Input, args: &AssignerArgs, case: &Case, levels: usize) -> Result<Vec<[f32; 2]>> {
    let given: Vec<[f64; 2]> = args.regress_ranges.iter().map(|range| range.0).collect();
    let ranges = match &case.regress_ranges {
        _ if !given.is_empty() => given,
        Some(told) => told.clone(),
        None if levels == RANGES.len() => RANGES.to_vec(),
        None => {
            return Err(input.head("it does not tell the distances for each level; give --regress-ranges"));
        }
    };
    if ranges.len() == levels {
        return Ok(ranges.iter().map(|range| range.map(|distance| distance as f32)).collect());
    }
    let (levels, ranges) = (count(levels, "level", "levels"), count(ranges.len(), "range", "ranges"));
    Err(input.head(format!("it has {levels}, and there are {ranges} of distances")))
}

impl Problem<'_> {
    /// How many anchors an image has.
    pub fn anchors(&self) -> usize {
        self.places.iter().map(Place::positions).sum()
    }

    /// The explicit anchors of each level; none for the grid.
    pub fn boxes(&self) -> Vec<Vec<f32>> {
        self.places.iter().map(|place| place.anchors(self.scale())).collect()
    }

    /// Side of the anchors, in strides; points have none.
    pub fn scale(&self) -> Option<f64> {
        match self.assigner {
            Assigner::Atss { scale, .. } => Some(*scale),
            Assigner::Fcos(_) => None,
        }
    }
}

impl AssignedLevel {
    /// What an output file holds of it.
    pub fn add(&self, output: &mut Output, level: usize, anchors @ [batch, positions]: [usize; 2]) {
        let name = |tensor: &str| format!("level{level}.{tensor}");
        output.add_labels(name("labels"), &anchors, &Labels::I64(self.labels.clone()));
        let mut floats = |tensor, shape: &[usize], numbers: &[f32]| {
            output.add(name(tensor), shape, &Floats::F32(numbers.to_vec()));
        };
        floats("box_targets", &[batch, positions, 4], &self.boxes);
        floats("label_weights", &anchors, &self.label_weights);
        if let Some(weights) = &self.box_weights {
            floats("box_weights", &anchors, weights);
        }
        if let Some(centerness) = &self.centerness {
            floats("centerness", &anchors, centerness);
        }
    }
}
