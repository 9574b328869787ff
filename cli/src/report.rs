//! What is told of a loss, in JSON and in a table.

use gfocal::{AvgPolicy, Reduction, Status};
use serde::{Serialize, Serializer};

use crate::device::Device;
use crate::floats::{Dtype, Floats};
use crate::run::{Outcome, Scaling};
use crate::values::PolicyChoice;

/// A number that may be NaN or infinite, which JSON cannot hold: "NaN", "inf" and "-inf" are
/// strings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Number(pub f64);

impl Serialize for Number {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0.is_finite() { serializer.serialize_f64(self.0) } else { serializer.collect_str(&self.0) }
    }
}

/// A loss, its options and its results.
#[derive(Debug, Serialize)]
pub struct LossReport {
    pub op: &'static str,
    pub device: String,
    pub dtype: &'static str,
    pub shape: [usize; 2],
    pub reduction: &'static str,
    pub avg_factor: Option<f64>,
    pub avg_policy: Option<String>,
    #[serde(flatten)]
    pub options: OptionReport,
    pub loss_weight: f64,
    pub grad_scale: f64,
    /// `None` for a loss for each row.
    pub loss: Option<Number>,
    /// The least and the greatest loss of a row.
    #[serde(skip)]
    pub range: Option<[f64; 2]>,
    pub positives: usize,
    pub grad_norm: Number,
    pub status: StatusReport,
}

/// The options of one loss alone.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum OptionReport {
    Qfl { beta: f64, background: &'static str, ignore_label: Option<i64> },
    Dfl { target_eps: f64 },
}

/// Counts of values that could not be used.
#[derive(Debug, Serialize)]
pub struct StatusReport {
    pub bad_labels: u32,
    pub bad_qualities: u32,
    pub out_of_range_targets: u32,
    pub first_bad_row: Option<u64>,
}

/// Both losses and their sum; the weights are in them.
#[derive(Debug, Serialize)]
pub struct GflReport {
    pub op: &'static str,
    pub device: String,
    pub loss: Option<Number>,
    pub qfl: LossReport,
    pub dfl: LossReport,
}

/// What a report says of the input.
pub struct Subject<'a> {
    pub device: &'a Device,
    pub dtype: Dtype,
    pub shape: [usize; 2],
    pub positives: usize,
    pub loss_weight: f64,
}

impl LossReport {
    pub fn new(subject: &Subject, options: OptionReport, scaling: Scaling, outcome: &Outcome) -> LossReport {
        let (reduction, avg_factor, avg_policy) = match scaling.reduction {
            Reduction::None => ("none", None, None),
            Reduction::Sum => ("sum", None, None),
            Reduction::Mean => ("mean", None, None),
            Reduction::MeanBy { avg_factor, policy } => ("mean", Some(avg_factor), Some(policy)),
        };
        let per_row = reduction == "none";
        LossReport {
            op: match options {
                OptionReport::Qfl { .. } => "qfl",
                OptionReport::Dfl { .. } => "dfl",
            },
            device: subject.device.name(),
            dtype: subject.dtype.name(),
            shape: subject.shape,
            reduction,
            avg_factor,
            avg_policy: avg_policy.map(|policy: AvgPolicy| PolicyChoice(policy).to_string()),
            options,
            loss_weight: subject.loss_weight,
            grad_scale: scaling.grad_scale,
            loss: if per_row { None } else { outcome.loss.iter().next().map(Number) },
            range: if per_row { range(&outcome.loss) } else { None },
            positives: subject.positives,
            grad_norm: Number(outcome.grad.norm()),
            status: outcome.status.into(),
        }
    }
}

/// Least and greatest; NaN if there is one.
fn range(losses: &Floats) -> Option<[f64; 2]> {
    let least = losses.iter().min_by(f64::total_cmp)?;
    let greatest = losses.iter().max_by(f64::total_cmp)?;
    Some([least, greatest])
}

impl From<Status> for StatusReport {
    fn from(status: Status) -> Self {
        StatusReport {
            bad_labels: status.bad_labels,
            bad_qualities: status.bad_qualities,
            out_of_range_targets: status.out_of_range_targets,
            first_bad_row: status.first_bad_row,
        }
    }
}

impl GflReport {
    pub fn new(qfl: LossReport, dfl: LossReport) -> GflReport {
        let loss = qfl.loss.zip(dfl.loss).map(|(qfl, dfl)| Number(qfl.0 + dfl.0));
        GflReport { op: "gfl", device: qfl.device.clone(), loss, qfl, dfl }
    }
}

/// The JSON of a report, in one line.
pub fn json(report: &impl Serialize) -> String {
    serde_json::to_string(report).expect("reports have string keys, and numbers that JSON has")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_json_lacks_are_strings() {
        let numbers = [0.5, f64::NAN, f64::INFINITY, f64::NEG_INFINITY].map(Number);
        assert_eq!(json(&numbers), r#"[0.5,"NaN","inf","-inf"]"#);
    }

    #[test]
    fn a_nan_shows_in_the_range() {
        assert_eq!(range(&Floats::F32(vec![2.0, 1.0])), Some([1.0, 2.0]));
        assert!(range(&Floats::F32(vec![2.0, f32::NAN])).unwrap()[1].is_nan());
        assert_eq!(range(&Floats::F32(vec![])), None);
    }
}
