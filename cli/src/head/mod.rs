//! `gfocal head`: the three losses of a detector's head and the gradients of its outputs.

mod args;
mod cpu;
mod cuda;
mod report;
mod scene;

use gfocal::Status;
use gfocal::assign::Atss;
use gfocal::cuda::Pass;
use gfocal::head::{LOSSES, Normalisers};

pub use args::{HeadArgs, SceneArgs};
pub use scene::{LevelTargets, Scene};

use crate::buffer;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::file::{Input, Output};
use crate::floats::{Floats, with_floats};
use crate::report::json;
use crate::terminal;
use report::HeadReport;

/// What comes out.
pub struct Outcome {
    /// Classification, box and distribution loss of each level.
    pub losses: Floats,
    /// The gradients of class and box logits of each level.
    pub gradients: Vec<[Floats; 2]>,
    pub normalisers: Normalisers,
    pub status: Status,
    /// What the levels were to become.
    pub targets: Vec<LevelTargets>,
}

pub fn run(args: &HeadArgs) -> Result<()> {
    let input = Input::read(&args.file)?;
    let output = args.output.as_deref().map(|path| Output::new(path, Some(&args.file))).transpose()?;
    let scene = Scene::read(&input, &args.scene, args.dtype)?;
    let (device, note) = Device::open(args.device, &[scene.dtype], |storage| {
        let loss = scene.head.units(storage, Pass::ForwardBackward);
        if args.scene.assign { loss | Atss::units() } else { loss }
    })?;
    let outcome = compute(&device, &scene, args.grad_scale)?;

    let report = HeadReport::new(&scene, &device, args.scene.assign, &outcome, args.grad_scale);
    if let Some(mut output) = output {
        add(&mut output, &scene, args.scene.assign, &outcome);
        output.write(&json(&report))?;
    }
    if let Some(note) = note {
        terminal::note(&note);
    }
    terminal::print(&if args.json { json(&report) + "\n" } else { report.table() })
}

fn compute(device: &Device, scene: &Scene, grad_scale: f64) -> Result<Outcome> {
    match device {
        Device::Cpu => {
            let targets = scene.targets()?;
            let first = &scene.levels[0].cls.numbers;
            Ok(with_floats!(first, like => cpu::run(like, scene, targets, grad_scale))?)
        }
        Device::Cuda(device) => {
            let outcome = match &scene.levels[0].cls.numbers {
                Floats::F64(_) => return Err(Error::F64OnCuda),
                Floats::F32(like) => cuda::run(like, device, scene, grad_scale),
                Floats::F16(like) => cuda::run(like, device, scene, grad_scale),
                Floats::Bf16(like) => cuda::run(like, device, scene, grad_scale),
            };
            outcome.map_err(buffer::error(device))
        }
    }
}

/// The results, under the names of the inputs.
fn add(output: &mut Output, scene: &Scene, assigned: bool, outcome: &Outcome) {
    let losses: Vec<f64> = outcome.losses.iter().collect();
    let dtype = outcome.losses.dtype();
    for (i, (level, gradients)) in scene.levels.iter().zip(&outcome.gradients).enumerate() {
        let name = |tensor: &str| format!("level{i}.{tensor}");
        for (tensor, loss) in ["loss_cls", "loss_bbox", "loss_dfl"].iter().zip(&losses[LOSSES * i..]) {
            output.add(name(tensor), &[1], &Floats::F64(vec![*loss]).to(dtype));
        }
        let [cls, boxes] = gradients;
        output.add(name("grad_cls_logits"), &level.cls.shape, cls);
        output.add(name("grad_box_logits"), &level.boxes.shape, boxes);
        if assigned {
            let (targets, anchors) = (&outcome.targets[i], [scene.batch, level.positions()]);
            output.add_labels(name("labels"), &anchors, &targets.labels);
            output.add(
                name("box_targets"),
                &[anchors[0], anchors[1], 4],
                &Floats::F32(targets.boxes.clone()),
            );
        }
    }
}
