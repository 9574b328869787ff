//! What the losses take from a file, with every shape checked.

use std::path::Path;

use gfocal::cuda::{Pass, Storage, Units};
use gfocal::qfl::Class;
use gfocal::{QualityFocalLoss, Status};

use crate::error::{Error, Result};
use crate::file::{Input, Tensors};
use crate::floats::{Dtype, Floats};
use crate::report::{First, StatusReport, Trouble};

/// Labels of either type.
#[derive(Clone)]
pub enum Labels {
    I64(Vec<i64>),
    I32(Vec<i32>),
}

impl Default for Labels {
    fn default() -> Self {
        Labels::I64(Vec::new())
    }
}

impl Labels {
    pub fn len(&self) -> usize {
        match self {
            Labels::I64(labels) => labels.len(),
            Labels::I32(labels) => labels.len(),
        }
    }

    /// Their type in a file.
    pub fn dtype(&self) -> safetensors::Dtype {
        match self {
            Labels::I64(_) => safetensors::Dtype::I64,
            Labels::I32(_) => safetensors::Dtype::I32,
        }
    }

    /// Their little-endian bytes.
    pub fn bytes(&self) -> Vec<u8> {
        match self {
            Labels::I64(labels) => labels.iter().flat_map(|label| label.to_le_bytes()).collect(),
            Labels::I32(labels) => labels.iter().flat_map(|label| label.to_le_bytes()).collect(),
        }
    }

    pub fn get(&self, row: usize) -> i64 {
        match self {
            Labels::I64(labels) => labels[row],
            Labels::I32(labels) => labels[row].into(),
        }
    }
}

/// The targets of QFL, and the weights that it alone has.
pub struct QflTargets {
    pub rows: QflRows,
    /// `[C]`.
    pub class_weights: Option<Vec<f64>>,
    /// `[N, C]`.
    pub element_weights: Option<Vec<f64>>,
}

/// What the rows are to become.
pub enum QflRows {
    Sparse { labels: Labels, quality: Vec<f64> },
    Dense { target: Vec<f64> },
}

/// Logits and what goes with them, in f64 after [`Floats::beside`]; `T` is the loss's own targets.
pub struct Inputs<T> {
    pub logits: Floats,
    pub shape: [usize; 2],
    pub targets: T,
    pub weight: Option<Vec<f64>>,
}

/// The inputs of QFL.
pub type QflInputs = Inputs<QflTargets>;

/// The inputs of DFL.
pub type DflInputs = Inputs<Vec<f64>>;

impl QflInputs {
    /// `logits`: the name of the input, which may hold probabilities.
    pub fn read(
        input: &Input,
        prefix: &'static str,
        logits: &'static str,
        dtype: Option<Dtype>,
    ) -> Result<QflInputs> {
        let reader = Reader::new(input, prefix, [logits, "classes"], dtype)?;
        let (labels, target) = (reader.has("labels"), reader.has("target"));
        let rows = match (labels, target) {
            (true, true) => {
                return Err(Error::TwoTargets { path: reader.path().to_owned(), prefix });
            }
            (true, false) => {
                QflRows::Sparse { labels: reader.labels()?, quality: reader.per_row("quality")? }
            }
            (false, true) => QflRows::Dense { target: reader.like_logits("target")? },
            (false, false) => {
                let wanted = format!("{prefix}labels (with {prefix}quality), and no {prefix}target either");
                return Err(reader.tensors.missing(wanted));
            }
        };
        let class_weights = reader.optional("class_weights", &reader.shape[1..])?;
        let element_weights = reader.optional("element_weights", &reader.shape)?;
        reader.finish(QflTargets { rows, class_weights, element_weights })
    }

    /// Rows whose label is a class; for dense targets, rows that have a target above 0.
    pub fn positives(&self, loss: &QualityFocalLoss) -> usize {
        let classes = self.shape[1];
        let is_positive = |label| matches!(loss.class_of(label, classes), Class::Foreground(_));
        match &self.targets.rows {
            QflRows::Sparse { labels: Labels::I64(labels), .. } => {
                labels.iter().filter(|&&label| is_positive(label)).count()
            }
            QflRows::Sparse { labels: Labels::I32(labels), .. } => {
                labels.iter().filter(|&&label| is_positive(label.into())).count()
            }
            QflRows::Dense { target } => {
                target.chunks(classes.max(1)).filter(|row| row.iter().any(|&y| y > 0.0)).count()
            }
        }
    }

    /// The kernels that a call with gradients needs.
    pub fn units(&self, loss: &QualityFocalLoss, storage: Storage) -> Units {
        match (&self.targets.class_weights, &self.targets.element_weights) {
            (None, None) => loss.units(storage, Pass::ForwardBackward),
            _ => loss.units_with_weights(storage, Pass::ForwardBackward),
        }
    }

    /// What could not be used, in words.
    pub fn status(&self, loss: &QualityFocalLoss, status: Status) -> StatusReport {
        let labels = Trouble {
            count: status.bad_labels as usize,
            one: "label that is neither a class nor background (no loss)",
            many: "labels that are neither a class nor background (no loss)",
        };
        let count = status.bad_qualities as usize;
        let (qualities, one) = match &self.targets.rows {
            QflRows::Sparse { .. } => {
                let (one, many) = ("quality that is NaN (no loss)", "qualities that are NaN (no loss)");
                (Trouble { count, one, many }, "a quality")
            }
            QflRows::Dense { .. } => {
                let one = "row of targets that holds a NaN (no loss)";
                let many = "rows of targets that hold a NaN (no loss)";
                (Trouble { count, one, many }, "a row of targets")
            }
        };
        let is_label = |row: u64| match &self.targets.rows {
            QflRows::Sparse { labels, .. } => {
                matches!(loss.class_of(labels.get(row as usize), self.shape[1]), Class::Invalid)
            }
            QflRows::Dense { .. } => false,
        };
        let first = status.first_bad_row.map(|row| First {
            what: if is_label(row) { "a label" } else { one },
            place: format!("row {row}"),
        });
        StatusReport::new(status, &[labels, qualities], first)
    }
}

impl DflInputs {
    pub fn read(input: &Input, prefix: &'static str, dtype: Option<Dtype>) -> Result<DflInputs> {
        let reader = Reader::new(input, prefix, ["logits", "bins"], dtype)?;
        let target = reader.per_row("target")?;
        reader.finish(target)
    }

    /// Rows whose weight is not 0: each is a side of a positive's box.
    pub fn positives(&self) -> usize {
        match &self.weight {
            Some(weight) => weight.iter().filter(|&&weight| weight != 0.0).count(),
            None => self.shape[0],
        }
    }

    /// What could not be used, in words.
    pub fn status(&self, status: Status) -> StatusReport {
        let nan = |row: &usize| self.targets[*row].is_nan() && self.is_used(*row);
        let (count, nans) = (status.out_of_range_targets as usize, (0..self.shape[0]).filter(nan).count());
        let troubles = [
            Trouble {
                count: count.saturating_sub(nans),
                one: "target outside the bins (clamped)",
                many: "targets outside the bins (clamped)",
            },
            Trouble {
                count: nans,
                one: "target that is NaN (no loss)",
                many: "targets that are NaN (no loss)",
            },
        ];
        let first = status.first_bad_row.map(|row| First {
            what: if nan(&(row as usize)) { "one that is NaN" } else { "one outside the bins" },
            place: format!("row {row}"),
        });
        StatusReport::new(status, &troubles, first)
    }

    /// Whether a row has not the weight 0.
    fn is_used(&self, row: usize) -> bool {
        self.weight.as_ref().is_none_or(|weight| weight[row] != 0.0)
    }

    /// The sum of the weights, which are 1 if there are none.
    pub fn weight_sum(&self) -> f64 {
        match &self.weight {
            Some(weight) => weight.iter().fold(0.0, |sum, weight| sum + weight),
            None => self.shape[0] as f64,
        }
    }
}

/// Reads the tensors that go with logits.
struct Reader<'a> {
    tensors: Tensors<'a>,
    prefix: &'static str,
    /// The name of the logits.
    of: &'static str,
    logits: Floats,
    shape: [usize; 2],
}

impl<'a> Reader<'a> {
    fn new(
        input: &'a Input,
        prefix: &'static str,
        [name, columns]: [&'static str; 2],
        dtype: Option<Dtype>,
    ) -> Result<Self> {
        let tensors = input.tensors()?;
        let (of, name) = (name, format!("{prefix}{name}"));
        let (shape, logits) = tensors.floats(&name)?;
        let Ok(shape) = <[usize; 2]>::try_from(&*shape) else {
            return Err(Error::Rank { path: input.path().to_owned(), tensor: name, found: shape, columns });
        };
        let logits = match dtype {
            Some(dtype) => logits.to(dtype),
            None => logits,
        };
        Ok(Reader { tensors, prefix, of, logits, shape })
    }

    fn path(&self) -> &'a Path {
        self.tensors.path()
    }

    fn has(&self, name: &str) -> bool {
        self.tensors.has(&format!("{}{name}", self.prefix))
    }

    fn labels(&self) -> Result<Labels> {
        let name = format!("{}labels", self.prefix);
        let (shape, labels) = self.tensors.labels(&name)?;
        self.check(name, shape, &self.shape[..1])?;
        Ok(labels)
    }

    fn per_row(&self, name: &str) -> Result<Vec<f64>> {
        self.floats(name, &self.shape[..1])
    }

    fn like_logits(&self, name: &str) -> Result<Vec<f64>> {
        self.floats(name, &self.shape)
    }

    fn optional(&self, name: &str, expected: &[usize]) -> Result<Option<Vec<f64>>> {
        if self.has(name) { self.floats(name, expected).map(Some) } else { Ok(None) }
    }

    fn floats(&self, name: &str, expected: &[usize]) -> Result<Vec<f64>> {
        let name = format!("{}{name}", self.prefix);
        let (shape, numbers) = self.tensors.floats(&name)?;
        self.check(name, shape, expected)?;
        Ok(numbers.beside(self.logits.dtype()))
    }

    fn check(&self, tensor: String, found: Vec<usize>, expected: &[usize]) -> Result<()> {
        if found == expected {
            return Ok(());
        }
        let (path, expected) = (self.path().to_owned(), expected.to_vec());
        let of = format!("{} {:?}", self.of, self.shape);
        Err(Error::Shape { path, tensor, found, of, expected })
    }

    fn finish<T>(self, targets: T) -> Result<Inputs<T>> {
        let weight = self.optional("weight", &self.shape[..1])?;
        Ok(Inputs { logits: self.logits, shape: self.shape, targets, weight })
    }
}

/// The prefix of a loss's tensors in a file: none, unless only the prefixed logits are there.
pub fn prefix(input: &Input, prefix: &'static str, logits: &str) -> Result<&'static str> {
    let tensors = input.tensors()?;
    let prefixed = !tensors.has(logits) && tensors.has(&format!("{prefix}{logits}"));
    Ok(if prefixed { prefix } else { "" })
}
