//! The commands that compute.

use gfocal::cuda::Pass;
use gfocal::{AvgPolicy, DistributionFocalLoss, QualityFocalLoss, Reduction};

use crate::args::{CommonArgs, DflArgs, DflOptions, GflArgs, QflArgs, QflOptions, ScalingArgs};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::file::{Input, Output};
use crate::floats::Dtype;
use crate::inputs::{DflInputs, QflInputs, prefix};
use crate::report::{GflReport, LossReport, OptionReport, Subject, json};
use crate::run::{self, Outcome, Scaling};
use crate::values::{HeadReductionChoice, ReductionChoice};
use crate::{table, terminal};

pub fn qfl(args: &QflArgs) -> Result<()> {
    let loss = args.options.loss(args.scaling.loss_weight)?.with_activated(args.activated);
    let scaling = args.scaling.scaling(&args.common)?;
    let (input, output) = args.common.files()?;
    let name = if args.activated { "probs" } else { "logits" };
    let inputs = QflInputs::read(&input, prefix(&input, "qfl.", name)?, name, args.common.dtype())?;
    let (device, note) =
        Device::open(args.common.device, &[inputs.logits.dtype()], |storage| inputs.units(&loss, storage))?;
    let (report, outcome) =
        run_qfl(&device, &loss, &args.options, args.scaling.loss_weight, &inputs, scaling)?;

    let told = (json(&report), table::loss(&report));
    finish(&args.common, output, told, vec![("", report, outcome)], [note, input.unread()?])
}

pub fn dfl(args: &DflArgs) -> Result<()> {
    let loss = args.options.loss(args.scaling.loss_weight)?;
    let scaling = args.scaling.scaling(&args.common)?;
    let (input, output) = args.common.files()?;
    let inputs = DflInputs::read(&input, prefix(&input, "dfl.", "logits")?, args.common.dtype())?;
    let (device, note) = Device::open(args.common.device, &[inputs.logits.dtype()], |storage| {
        loss.units(storage, Pass::ForwardBackward)
    })?;
    let (report, outcome) =
        run_dfl(&device, &loss, &args.options, args.scaling.loss_weight, &inputs, scaling)?;

    let told = (json(&report), table::loss(&report));
    finish(&args.common, output, told, vec![("", report, outcome)], [note, input.unread()?])
}

pub fn gfl(args: &GflArgs) -> Result<()> {
    let qfl = args.qfl.loss(args.qfl_weight)?;
    let dfl = args.dfl.loss(args.dfl_weight)?;
    args.check()?;
    let (input, output) = args.common.files()?;
    let qfl_inputs = QflInputs::read(&input, "qfl.", "logits", args.common.dtype())?;
    let dfl_inputs = DflInputs::read(&input, "dfl.", args.common.dtype())?;
    let dtypes = [qfl_inputs.logits.dtype(), dfl_inputs.logits.dtype()];
    let (device, note) = Device::open(args.common.device, &dtypes, |storage| {
        qfl_inputs.units(&qfl, storage) | dfl.units(storage, Pass::ForwardBackward)
    })?;

    // The normalisation of GFL's head. A box has four sides, so DFL's weights add up to four times
    // those of the boxes, of which the head takes 1 at least.
    let by = |avg_factor, minimum| args.scaling(avg_factor, minimum);
    let qfl_scaling = by(args.qfl_avg_factor.unwrap_or_else(|| qfl_inputs.positives(&qfl) as f64), 1.0);
    let dfl_scaling = by(args.dfl_avg_factor.unwrap_or_else(|| dfl_inputs.weight_sum()), 4.0);
    let (qfl_report, qfl_outcome) =
        run_qfl(&device, &qfl, &args.qfl, args.qfl_weight, &qfl_inputs, qfl_scaling)?;
    let (dfl_report, dfl_outcome) =
        run_dfl(&device, &dfl, &args.dfl, args.dfl_weight, &dfl_inputs, dfl_scaling)?;

    let report = GflReport::new(qfl_report, dfl_report);
    let told = (json(&report), table::gfl(&report));
    let outcomes = vec![("qfl.", report.qfl, qfl_outcome), ("dfl.", report.dfl, dfl_outcome)];
    finish(&args.common, output, told, outcomes, [note, input.unread()?])
}

fn run_qfl(
    device: &Device,
    loss: &QualityFocalLoss,
    options: &QflOptions,
    loss_weight: f64,
    inputs: &QflInputs,
    scaling: Scaling,
) -> Result<(LossReport, Outcome)> {
    let outcome = run::qfl(device, loss, inputs, scaling)?;
    let (dtype, shape, positives) = (inputs.logits.dtype(), inputs.shape, inputs.positives(loss));
    let status = inputs.status(loss, outcome.status);
    let subject = Subject { device, dtype, shape, positives, loss_weight, status };
    Ok((LossReport::new(subject, options.report(loss), scaling, &outcome), outcome))
}

fn run_dfl(
    device: &Device,
    loss: &DistributionFocalLoss,
    options: &DflOptions,
    loss_weight: f64,
    inputs: &DflInputs,
    scaling: Scaling,
) -> Result<(LossReport, Outcome)> {
    let outcome = run::dfl(device, loss, inputs, scaling)?;
    let (dtype, shape, positives) = (inputs.logits.dtype(), inputs.shape, inputs.positives());
    let status = inputs.status(outcome.status);
    let subject = Subject { device, dtype, shape, positives, loss_weight, status };
    Ok((LossReport::new(subject, options.report(), scaling, &outcome), outcome))
}

/// The file first, so that what is printed is true. A report is told in JSON and in a table.
fn finish(
    common: &CommonArgs,
    output: Option<Output>,
    (json, table): (String, String),
    outcomes: Vec<(&str, LossReport, Outcome)>,
    notes: [Option<String>; 2],
) -> Result<()> {
    if let Some(mut output) = output {
        for (prefix, report, outcome) in outcomes {
            let losses = if report.loss.is_some() { 1 } else { report.shape[0] };
            output.add(format!("{prefix}loss"), &[losses], &outcome.loss);
            output.add(format!("{prefix}grad"), &report.shape, &outcome.grad);
        }
        output.write(&json)?;
    }
    terminal::finish(&if common.json { json + "\n" } else { table }, notes)
}

impl CommonArgs {
    fn files(&self) -> Result<(Input, Option<Output>)> {
        let input = Input::read(&self.file)?;
        let output = self.output.as_deref().map(|path| Output::new(path, Some(&self.file))).transpose()?;
        Ok((input, output))
    }

    fn dtype(&self) -> Option<Dtype> {
        self.dtype.map(Dtype::from)
    }
}

impl ScalingArgs {
    fn scaling(&self, common: &CommonArgs) -> Result<Scaling> {
        let reduction = match (self.reduction, self.avg_factor) {
            (ReductionChoice::None, None) => Reduction::None,
            (ReductionChoice::Sum, None) => Reduction::Sum,
            (ReductionChoice::Mean, None) => Reduction::Mean,
            (ReductionChoice::Mean, Some(avg_factor)) => {
                Reduction::MeanBy { avg_factor, policy: self.avg_policy.0 }
            }
            (ReductionChoice::None, Some(_)) => return Err(avg_factor("--avg-factor", "mean", "none")),
            (ReductionChoice::Sum, Some(_)) => return Err(avg_factor("--avg-factor", "mean", "sum")),
        };
        Ok(Scaling { reduction, grad_scale: common.grad_scale })
    }
}

impl GflArgs {
    fn check(&self) -> Result<()> {
        let given = match self.reduction {
            HeadReductionChoice::Head => return Ok(()),
            HeadReductionChoice::None => "none",
            HeadReductionChoice::Mean => "mean",
            HeadReductionChoice::Sum => "sum",
        };
        let options = [("--qfl-avg-factor", self.qfl_avg_factor), ("--dfl-avg-factor", self.dfl_avg_factor)];
        match options.iter().find(|(_, value)| value.is_some()) {
            Some(&(option, _)) => Err(avg_factor(option, "head", given)),
            None => Ok(()),
        }
    }

    fn scaling(&self, avg_factor: f64, minimum: f64) -> Scaling {
        let reduction = match self.reduction {
            HeadReductionChoice::Head => {
                Reduction::MeanBy { avg_factor, policy: AvgPolicy::AtLeast(minimum) }
            }
            HeadReductionChoice::None => Reduction::None,
            HeadReductionChoice::Mean => Reduction::Mean,
            HeadReductionChoice::Sum => Reduction::Sum,
        };
        Scaling { reduction, grad_scale: self.common.grad_scale }
    }
}

fn avg_factor(option: &'static str, needed: &'static str, given: &'static str) -> Error {
    Error::AvgFactor { option, needed, given }
}

impl QflOptions {
    fn loss(&self, loss_weight: f64) -> Result<QualityFocalLoss> {
        let loss = QualityFocalLoss::new(self.beta)?
            .with_loss_weight(loss_weight)?
            .with_background(self.background.into());
        let loss = match self.alpha {
            Some(alpha) => loss.with_alpha(alpha)?,
            None => loss,
        };
        Ok(match self.ignore_label {
            Some(label) => loss.with_ignore_label(label),
            None => loss,
        })
    }

    fn report(&self, loss: &QualityFocalLoss) -> OptionReport {
        OptionReport::Qfl {
            beta: self.beta,
            alpha: self.alpha,
            activated: loss.activated(),
            background: self.background.name(),
            ignore_label: self.ignore_label,
        }
    }
}

impl DflOptions {
    fn loss(&self, loss_weight: f64) -> Result<DistributionFocalLoss> {
        Ok(DistributionFocalLoss::new(self.target_eps)?.with_loss_weight(loss_weight)?)
    }

    fn report(&self) -> OptionReport {
        OptionReport::Dfl { target_eps: self.target_eps }
    }
}
