//! What is told of a loss, in JSON and in a table.

use std::ops::Add;

use gfocal::{AvgPolicy, Reduction, Status};
use serde::{Serialize, Serializer};

use crate::device::Device;
use crate::floats::{Dtype, Floats};
use crate::run::{Outcome, Scaling};
use crate::values::PolicyChoice;
use crate::words;

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
    #[serde(flatten)]
    pub grad: GradReport,
    pub status: StatusReport,
}

/// What the type of a gradient could not hold.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct GradReport {
    /// How many are inf or NaN.
    #[serde(rename = "grad_not_finite")]
    pub not_finite: usize,
    /// How many are not 0, but stored as 0.
    #[serde(rename = "grad_flushed")]
    pub flushed: usize,
}

/// The options of one loss alone.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum OptionReport {
    Qfl {
        beta: f64,
        alpha: Option<f64>,
        activated: bool,
        background: &'static str,
        ignore_label: Option<i64>,
    },
    Dfl {
        target_eps: f64,
    },
}

/// Counts of values that could not be used.
#[derive(Debug, Serialize)]
pub struct StatusReport {
    pub bad_labels: u32,
    pub bad_qualities: u32,
    pub out_of_range_targets: u32,
    pub first_bad_row: Option<u64>,
    /// The same in sentences.
    #[serde(skip)]
    pub sentences: Vec<String>,
}

/// A kind of values that could not be used.
pub struct Trouble {
    pub count: usize,
    pub one: &'static str,
    pub many: &'static str,
}

/// The first of them.
pub struct First {
    /// What it is, with its article.
    pub what: &'static str,
    /// Where it is, counted from 0.
    pub place: String,
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
    pub status: StatusReport,
}

impl LossReport {
    pub fn new(subject: Subject, options: OptionReport, scaling: Scaling, outcome: &Outcome) -> LossReport {
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
            grad: GradReport::new(&outcome.grad, outcome.exact_grad.as_ref()),
            status: subject.status,
        }
    }
}

/// Least and greatest; NaN if there is one.
fn range(losses: &Floats) -> Option<[f64; 2]> {
    let least = losses.iter().min_by(f64::total_cmp)?;
    let greatest = losses.iter().max_by(f64::total_cmp)?;
    Some([least, greatest])
}

impl OptionReport {
    /// What the input holds.
    pub fn input(&self) -> &'static str {
        if let OptionReport::Qfl { activated: true, .. } = self { "the probabilities" } else { "the logits" }
    }
}

impl StatusReport {
    /// `first` is the first of all.
    pub fn new(status: Status, troubles: &[Trouble], first: Option<First>) -> StatusReport {
        let told: Vec<&Trouble> = troubles.iter().filter(|trouble| trouble.count > 0).collect();
        let mut sentences: Vec<String> = (told.iter())
            .map(|Trouble { count, one, many }| format!("{}.", words::count(*count, one, many)))
            .collect();
        if let Some(First { what, place }) = first {
            let count: usize = told.iter().map(|trouble| trouble.count).sum();
            sentences.push(match told.len() {
                1 if count == 1 => format!("it is in {place}, counted from 0."),
                1 => format!("the first of them is in {place}, counted from 0."),
                _ => format!("the first of all, {what}, is in {place}, counted from 0."),
            });
        }
        StatusReport {
            bad_labels: status.bad_labels,
            bad_qualities: status.bad_qualities,
            out_of_range_targets: status.out_of_range_targets,
            first_bad_row: status.first_bad_row,
            sentences,
        }
    }
}

impl Add for GradReport {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        GradReport { not_finite: self.not_finite + other.not_finite, flushed: self.flushed + other.flushed }
    }
}

impl GradReport {
    /// `exact`: the gradient that `stored` would be in f64, if it is known.
    pub fn new(stored: &Floats, exact: Option<&Floats>) -> GradReport {
        let flushed = exact.map_or(0, |exact| stored.flushed(exact));
        GradReport { not_finite: stored.not_finite(), flushed }
    }

    /// In sentences; `whose`: the name of what the gradients are of.
    pub fn sentences(self, whose: &str, dtype: &str) -> Vec<String> {
        let mut sentences = Vec::new();
        if self.not_finite > 0 {
            let count = words::count(self.not_finite, "gradient", "gradients");
            let is = if self.not_finite == 1 { "is" } else { "are" };
            sentences.push(format!("{count} of {whose} {is} inf or NaN in {dtype}."));
        }
        if self.flushed > 0 {
            let count = words::count(self.flushed, "gradient", "gradients");
            let (is, it) = if self.flushed == 1 { ("is", "it") } else { ("are", "them") };
            sentences.push(format!(
                "{count} of {whose} {is} too small for {dtype} and stored as 0; a larger --grad-scale keeps {it}."
            ));
        }
        sentences
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
    fn counts_are_told_in_sentences() {
        let trouble = |count| Trouble { count, one: "label is odd", many: "labels are odd" };
        let other = |count| Trouble { count, one: "target is even", many: "targets are even" };
        let first = || Some(First { what: "a label", place: "row 3".to_owned() });
        let told = |troubles: &[Trouble]| StatusReport::new(Status::default(), troubles, first()).sentences;
        assert_eq!(told(&[trouble(1), other(0)]), ["1 label is odd.", "it is in row 3, counted from 0."]);
        assert_eq!(
            told(&[trouble(2), other(0)]),
            ["2 labels are odd.", "the first of them is in row 3, counted from 0."]
        );
        assert_eq!(
            told(&[trouble(2), other(1)])[2],
            "the first of all, a label, is in row 3, counted from 0."
        );
        assert!(StatusReport::new(Status::default(), &[trouble(0)], None).sentences.is_empty());
    }

    #[test]
    fn gradients_that_a_type_cannot_hold() {
        let told = |not_finite, flushed| GradReport { not_finite, flushed }.sentences("the logits", "f16");
        assert!(told(0, 0).is_empty());
        assert_eq!(told(1, 0), ["1 gradient of the logits is inf or NaN in f16."]);
        let small = "are too small for f16 and stored as 0; a larger --grad-scale keeps them.";
        assert_eq!(told(0, 2), [format!("2 gradients of the logits {small}")]);
    }

    #[test]
    fn a_nan_shows_in_the_range() {
        assert_eq!(range(&Floats::F32(vec![2.0, 1.0])), Some([1.0, 2.0]));
        assert!(range(&Floats::F32(vec![2.0, f32::NAN])).unwrap()[1].is_nan());
        assert_eq!(range(&Floats::F32(vec![])), None);
    }
}
