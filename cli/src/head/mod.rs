//! `gfocal head`: the three losses of a detector's head and the gradients of its outputs.

mod args;
mod choices;
mod cpu;
mod cuda;
mod level;
mod options;
mod raw;
mod report;
mod scene;
mod status;
mod targets;

use gfocal::Status;
use gfocal::cuda::{Pass, Storage, Units};
use gfocal::head::{LOSSES, Normalisers};

pub use args::{HeadArgs, LevelArgs, SceneArgs};
pub use choices::{BoxesChoice, Profile};
pub use level::{BoxLevel, LevelReader, Levels};
pub use options::{check_classes, check_coding};
pub use raw::add_gradients;
pub use scene::{Scene, Tensor, check_types};
pub use targets::LevelTargets;

use crate::assign::{self, Assigner};
use crate::buffer;
use crate::device::Device;
use crate::error::Result;
use crate::file::{Input, Output};
use crate::floats::{Dtype, Floats, with_cuda_floats, with_floats};
use crate::report::json;
use crate::terminal;
use report::HeadReport;
use scene::{Pair, SceneLevel};

/// What comes out.
pub struct Outcome {
    /// Classification, box and distribution loss of each level.
    pub losses: Floats,
    /// Of the logits of each level.
    pub gradients: Vec<Pair<Floats>>,
    pub normalisers: Normalisers,
    pub status: Status,
    /// What the levels were to become.
    pub targets: Vec<LevelTargets>,
}

pub fn run(args: &HeadArgs) -> Result<()> {
    let input = Input::read(&args.file)?;
    let output = args.output.as_deref().map(|path| Output::new(path, Some(&args.file))).transpose()?;
    let scene = Scene::read(&input, &args.scene, args.dtype)?;
    let (device, note) = Device::open(args.device, &scene.device_types(), |storage| scene.units(storage))?;
    let outcome = compute(&device, &scene, args.grad_scale)?;
    let exact = exact_gradients(&scene, &outcome, args.grad_scale)?;

    let report = HeadReport::new(&scene, &device, &outcome, exact.as_deref(), args.grad_scale);
    if let Some(mut output) = output {
        add(&mut output, &scene, &outcome);
        output.write(&json(&report))?;
    }
    let text = if args.json { json(&report) + "\n" } else { report.table() };
    terminal::finish(&text, [note, input.unread()?])
}

fn compute(device: &Device, scene: &Scene, grad_scale: f64) -> Result<Outcome> {
    let logits = &scene.levels[0].logits;
    let (cls, boxes) = (&logits.cls().numbers, &logits.boxes().numbers);
    match device {
        Device::Cpu => {
            let (targets, assigned) = scene.targets()?;
            let logits: Vec<_> = scene.levels.iter().map(|level| &level.logits).collect();
            let run = with_floats!(cls, cls => with_floats!(boxes, boxes => {
                cpu::run((cls, boxes), scene, &logits, targets, grad_scale)
            }));
            let mut outcome = run?;
            outcome.status.assignment = assigned.assignment;
            Ok(outcome)
        }
        Device::Cuda(device) => {
            let outcome = with_cuda_floats!(cls, cls => with_cuda_floats!(boxes, boxes => {
                cuda::run((cls, boxes), device, scene, grad_scale)
            }));
            outcome.map_err(buffer::error(device))
        }
    }
}

impl Scene {
    /// The kernels for class logits of a type.
    fn units(&self, storage: Storage) -> Units {
        let of_elements = |level: &SceneLevel| {
            level.targets.options.scores.is_some() || level.targets.options.element_weights.is_some()
        };
        let loss = if self.class_weights.is_some() || self.levels.iter().any(of_elements) {
            self.head.units_with_weights(storage, Pass::ForwardBackward)
        } else {
            self.head.units(storage, Pass::ForwardBackward)
        };
        if self.assignment.is_some() { loss | Assigner::units() } else { loss }
    }

    /// The types that a device is chosen for: that of box logits makes no difference, if there are kernels.
    fn device_types(&self) -> Vec<Dtype> {
        let [cls, boxes] = self.dtypes();
        if boxes == Dtype::F64 { vec![boxes] } else { vec![cls] }
    }

    /// What the levels are to become: as the file says, or assigned on the CPU.
    pub fn targets(&self) -> Result<(Vec<LevelTargets>, Status)> {
        let Some(problem) = self.problem() else {
            return Ok((self.levels.iter().map(|level| level.targets.clone()).collect(), Status::default()));
        };
        let (assigned, status) = assign::on_cpu(&problem)?;
        let targets = self.levels.iter().zip(assigned);
        Ok((targets.map(|(level, assigned)| level.targets.assigned(assigned)).collect(), status))
    }
}

/// The gradients in f64, which tell of those that are too small to be stored; none if f64 is stored.
fn exact_gradients(scene: &Scene, outcome: &Outcome, grad_scale: f64) -> Result<Option<Vec<Pair<Floats>>>> {
    if scene.dtypes() == [Dtype::F64; 2] {
        return Ok(None);
    }
    let logits: Vec<_> =
        scene.levels.iter().map(|level| level.logits.clone().map(|tensor| tensor.to(Dtype::F64))).collect();
    let (logits, types): (Vec<_>, (&[f64], &[f64])) = (logits.iter().collect(), (&[], &[]));
    Ok(Some(cpu::run(types, scene, &logits, outcome.targets.clone(), grad_scale)?.gradients))
}

/// The results, under the names of the inputs.
fn add(output: &mut Output, scene: &Scene, outcome: &Outcome) {
    let losses: Vec<f64> = outcome.losses.iter().collect();
    let dtype = outcome.losses.dtype();
    let mut parts = Vec::new();
    for (i, (level, gradients)) in scene.levels.iter().zip(&outcome.gradients).enumerate() {
        let name = |tensor: &str| format!("level{i}.{tensor}");
        for (tensor, loss) in ["loss_cls", "loss_bbox", "loss_dfl"].iter().zip(&losses[LOSSES * i..]) {
            output.add(name(tensor), &[1], &Floats::F64(vec![*loss]).to(dtype));
        }
        match (&level.logits, gradients) {
            (Pair::Separate(logits), Pair::Separate(gradients)) => {
                for (tensor, (logits, gradient)) in
                    ["grad_cls_logits", "grad_box_logits"].iter().zip(logits.iter().zip(gradients))
                {
                    output.add(name(tensor), &logits.shape, gradient);
                }
            }
            (logits, gradients) => {
                parts.push(Tensor { shape: logits.cls().shape.clone(), numbers: gradients.cls().clone() });
            }
        }
        if scene.assignment.is_some() {
            let anchors = [scene.batch, scene.places[i].positions()];
            outcome.targets[i].as_assigned().add(output, i, anchors);
        }
    }
    raw::add_gradients(output, &parts, scene.whole_raw);
}
