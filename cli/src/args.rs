//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use gfocal::AvgPolicy;

use crate::assign::AssignArgs;
use crate::bench::BenchArgs;
use crate::decode::DecodeArgs;
use crate::head::HeadArgs;
use crate::plot::PlotArgs;
use crate::values::{
    BackgroundChoice, DeviceChoice, DtypeChoice, HeadReductionChoice, PolicyChoice, ReductionChoice, alpha,
    beta, finite, not_negative,
};

const EXAMPLES: &str = "\
Examples:
  gfocal gfl samples/step.safetensors
      both losses of the sample step, with the normalisation of GFL's head
  gfocal qfl step.safetensors --avg-factor 37 --device cuda --output out.safetensors
      QFL on the GPU, over 37 positives; loss and gradient go to out.safetensors
  gfocal dfl step.safetensors --reduction none --dtype bf16 --json
      DFL of logits rounded to bf16, told in JSON
  gfocal head step.safetensors --assign --output out.safetensors
      the whole head loss, with targets from the ground truth by ATSS
  gfocal decode step.safetensors --output boxes.safetensors
      the boxes in pixels that the head's outputs say
  gfocal bench --device cpu --plot bench.svg
      how fast it is here, and how far from a plain copy
  gfocal info
      which kernels are built in, and which device would be used

Errors are one line on standard error, with exit status 2; no output file is left then.";

const QFL_EXAMPLES: &str = "\
The file holds logits [N, C] (F32, F16, BF16 or F64) and either labels [N] (I64 or I32) with
quality [N], or target [N, C]; and, if wanted, weight [N], which is 0 for rows to be left out,
class_weights [C] and element_weights [N, C], which are 0 for elements to be left out. All but logits
and labels may be F32, F64, F16 or BF16; they are used as F32, and as F64
beside F64 logits. If there is no tensor logits but one
qfl.logits, the names are taken with that prefix. With --activated it is probs instead of logits.
Other tensors are not read, and a note names them.

Examples:
  gfocal qfl step.safetensors
  gfocal qfl step.safetensors --avg-factor 0 --avg-policy min=1
  gfocal qfl step.safetensors --background first --ignore-label -1 --beta 1.5 --reduction sum";

const DFL_EXAMPLES: &str = "\
The file holds logits [N, K] (F32, F16, BF16 or F64), a row for each side of a box, and target [N]
in units of bins; and, if wanted, weight [N], which is 0 for rows to be left out. Target and weight
may be F32, F64, F16 or BF16; they are used as F32, and as F64
beside F64 logits. If there is no tensor logits but one
dfl.logits, the names are taken with that prefix. Other tensors are not read, and a note names them.

Examples:
  gfocal dfl step.safetensors
  gfocal dfl step.safetensors --avg-factor 4 --loss-weight 0.25
  gfocal dfl step.safetensors --target-eps 0.1 --reduction none --output out.safetensors";

const GFL_EXAMPLES: &str = "\
The file holds the tensors of `gfocal qfl` with the prefix qfl. and those of `gfocal dfl` with the
prefix dfl.; the output has the same prefixes. The gradients are those of the weighted sum.

Examples:
  gfocal gfl samples/step.safetensors
  gfocal gfl step.safetensors --reduction mean --dfl-weight 1
  gfocal gfl step.safetensors --qfl-avg-factor 61.5 --dfl-avg-factor 130 --json";

/// Generalized Focal Loss of the tensors in a .safetensors file, with gradients, on an NVIDIA GPU or on the CPU
#[derive(Debug, Parser)]
#[command(name = "gfocal", version, after_help = EXAMPLES)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Quality Focal Loss of a file's logits, labels and qualities
    #[command(after_help = QFL_EXAMPLES)]
    Qfl(QflArgs),
    /// Distribution Focal Loss of a file's logits and targets
    #[command(after_help = DFL_EXAMPLES)]
    Dfl(DflArgs),
    /// Both, and their weighted sum, as GFL's head has it
    #[command(after_help = GFL_EXAMPLES)]
    Gfl(GflArgs),
    /// The whole head loss of a detector's raw outputs: three losses, and the gradients of both outputs
    Head(HeadArgs),
    /// The boxes of a detector's raw outputs, and the gradients of box logits for those of boxes
    Decode(DecodeArgs),
    /// Which anchors are trained on which box: targets for a head from the ground truth
    Assign(AssignArgs),
    /// Pictures of a head's distributions, of the loss, and of scores against IoU
    Plot(PlotArgs),
    /// Times the losses on random data, after checking that they are right
    Bench(BenchArgs),
    /// Version, where the kernels come from, driver, devices, and what `--device auto` chooses and why
    Info(InfoArgs),
}

#[derive(Debug, Args)]
pub struct QflArgs {
    #[command(flatten)]
    pub common: CommonArgs,
    #[command(flatten)]
    pub scaling: ScalingArgs,
    #[command(flatten)]
    pub options: QflOptions,

    /// The input is probs [N, C], probabilities; the gradient is the one with respect to them
    #[arg(long)]
    pub activated: bool,
}

#[derive(Debug, Args)]
pub struct DflArgs {
    #[command(flatten)]
    pub common: CommonArgs,
    #[command(flatten)]
    pub scaling: ScalingArgs,
    #[command(flatten)]
    pub options: DflOptions,
}

#[derive(Debug, Args)]
pub struct GflArgs {
    #[command(flatten)]
    pub common: CommonArgs,

    /// How the losses of the rows become one number
    #[arg(long, value_name = "HOW", value_enum, default_value = "head")]
    pub reduction: HeadReductionChoice,

    /// What QFL's sum is divided by, at least 1 [default: the number of positives]
    #[arg(long, value_name = "A", value_parser = not_negative, allow_hyphen_values = true)]
    pub qfl_avg_factor: Option<f64>,

    /// What DFL's sum is divided by, at least 4 [default: the sum of its weights, or its rows]
    #[arg(long, value_name = "A", value_parser = not_negative, allow_hyphen_values = true)]
    pub dfl_avg_factor: Option<f64>,

    /// What QFL and its gradient are multiplied by
    #[arg(long, value_name = "W", value_parser = finite, allow_hyphen_values = true, default_value = "1")]
    pub qfl_weight: f64,

    /// What DFL and its gradient are multiplied by
    #[arg(long, value_name = "W", value_parser = finite, allow_hyphen_values = true, default_value = "0.25")]
    pub dfl_weight: f64,

    #[command(flatten)]
    pub qfl: QflOptions,
    #[command(flatten)]
    pub dfl: DflOptions,
}

#[derive(Debug, Args)]
pub struct InfoArgs {
    /// Load all kernels, and say how long it took: the first time the driver may have to assemble them
    #[arg(long)]
    pub load: bool,

    /// One JSON object on standard output instead of text
    #[arg(long)]
    pub json: bool,
}

/// What all losses have in common.
#[derive(Debug, Args)]
pub struct CommonArgs {
    /// The .safetensors file that holds the tensors
    pub file: PathBuf,

    /// Where to compute: auto, cpu, cuda (the same as cuda:0) or cuda:N. auto is the first GPU that can be used,
    /// else the CPU, and says on standard error which and why
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: DeviceChoice,

    /// Type to round the logits to, which is also the gradient's; too large a number becomes inf [default: the
    /// file's type]. Only the CPU takes F64 logits as they are: arithmetic, loss and gradient are f64 then
    #[arg(long, value_name = "TYPE", value_enum, hide_possible_values = false)]
    pub dtype: Option<DtypeChoice>,

    /// What the gradient is multiplied by before it is rounded, as the loss scale of mixed precision
    #[arg(long, value_name = "S", value_parser = finite, allow_hyphen_values = true, default_value = "1")]
    pub grad_scale: f64,

    /// File to write: `loss` (`[1]`, or `[N]` for --reduction none; F32, or F64 for F64 logits) and `grad` (the logits'
    /// type and shape; for --reduction none the gradient of the sum of the rows)
    #[arg(long, value_name = "OUT.safetensors")]
    pub output: Option<PathBuf>,

    /// One JSON object on standard output instead of a table. A number that JSON does not have is the string
    /// "NaN", "inf" or "-inf"
    #[arg(long)]
    pub json: bool,
}

/// How one loss is scaled.
#[derive(Debug, Args)]
pub struct ScalingArgs {
    /// How the losses of the rows become one number
    #[arg(long, value_name = "HOW", value_enum, default_value = "mean")]
    pub reduction: ReductionChoice,

    /// What --reduction mean divides the sum by, instead of the number of rows: as the number of positives
    #[arg(long, value_name = "A", value_parser = not_negative, allow_hyphen_values = true)]
    pub avg_factor: Option<f64>,

    /// What becomes of an average factor near 0: exact (divide by A, be it 0), eps (by A + 2^-23, mmdetection 3's
    /// way) or min=M (by A, but at least by M)
    #[arg(long, value_name = "POLICY", requires = "avg_factor", default_value_t = PolicyChoice(AvgPolicy::Eps))]
    pub avg_policy: PolicyChoice,

    /// What loss and gradient are multiplied by
    #[arg(long, value_name = "W", value_parser = finite, allow_hyphen_values = true, default_value = "1")]
    pub loss_weight: f64,
}

/// The options of QFL itself.
#[derive(Debug, Args)]
pub struct QflOptions {
    /// Exponent of the modulating factor, from 0 (binary cross entropy) to 10^6
    #[arg(long, value_name = "BETA", value_parser = beta, allow_hyphen_values = true, default_value = "2")]
    pub beta: f64,

    /// Elements with target y are weighted by y A + (1 - y)(1 - A), from 0 to 1, as focal loss is [default: they are
    /// not]
    #[arg(long, value_name = "A", value_parser = alpha, allow_hyphen_values = true)]
    pub alpha: Option<f64>,

    /// Which label means background
    #[arg(long, value_name = "WHICH", value_enum, default_value = "last")]
    pub background: BackgroundChoice,

    /// Rows with this label give no loss and no gradient; any integer [default: there is no such label]
    #[arg(long, value_name = "L", allow_hyphen_values = true)]
    pub ignore_label: Option<i64>,
}

/// The options of DFL itself.
#[derive(Debug, Args)]
pub struct DflOptions {
    /// Targets are clamped to [0, K - 1 - E], in units of bins: mmdetection's heads take 0.1, Ultralytics 0.01
    #[arg(long, value_name = "E", value_parser = not_negative, allow_hyphen_values = true, default_value = "0")]
    pub target_eps: f64,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
