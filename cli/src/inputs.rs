//! What the losses take from a file, with every shape checked.

use std::path::Path;

use gfocal::QualityFocalLoss;
use gfocal::qfl::Class;

use crate::error::{Error, Result};
use crate::file::{Input, Tensors};
use crate::floats::{Dtype, Floats};

/// Labels of either type.
#[derive(Clone)]
pub enum Labels {
    I64(Vec<i64>),
    I32(Vec<i32>),
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

/// The targets of QFL.
pub enum QflTargets {
    Sparse { labels: Labels, quality: Vec<f32> },
    Dense { target: Vec<f32> },
}

/// Logits and what goes with them; `T` is the loss's own targets.
pub struct Inputs<T> {
    pub logits: Floats,
    pub shape: [usize; 2],
    pub targets: T,
    pub weight: Option<Vec<f32>>,
}

/// The inputs of QFL.
pub type QflInputs = Inputs<QflTargets>;

/// The inputs of DFL.
pub type DflInputs = Inputs<Vec<f32>>;

impl QflInputs {
    pub fn read(input: &Input, prefix: &'static str, dtype: Option<Dtype>) -> Result<QflInputs> {
        let reader = Reader::new(input, prefix, "classes", dtype)?;
        let (labels, target) = (reader.has("labels"), reader.has("target"));
        let targets = match (labels, target) {
            (true, true) => {
                return Err(Error::TwoTargets { path: reader.path().to_owned(), prefix });
            }
            (true, false) => {
                QflTargets::Sparse { labels: reader.labels()?, quality: reader.per_row("quality")? }
            }
            (false, true) => QflTargets::Dense { target: reader.like_logits("target")? },
            (false, false) => {
                let wanted = format!("{prefix}labels (with {prefix}quality), and no {prefix}target either");
                return Err(reader.tensors.missing(wanted));
            }
        };
        reader.finish(targets)
    }

    /// Rows whose label is a class; for dense targets, rows that have a target above 0.
    pub fn positives(&self, loss: &QualityFocalLoss) -> usize {
        let classes = self.shape[1];
        let is_positive = |label| matches!(loss.class_of(label, classes), Class::Foreground(_));
        match &self.targets {
            QflTargets::Sparse { labels: Labels::I64(labels), .. } => {
                labels.iter().filter(|&&label| is_positive(label)).count()
            }
            QflTargets::Sparse { labels: Labels::I32(labels), .. } => {
                labels.iter().filter(|&&label| is_positive(label.into())).count()
            }
            QflTargets::Dense { target } => {
                target.chunks(classes.max(1)).filter(|row| row.iter().any(|&y| y > 0.0)).count()
            }
        }
    }
}

impl DflInputs {
    pub fn read(input: &Input, prefix: &'static str, dtype: Option<Dtype>) -> Result<DflInputs> {
        let reader = Reader::new(input, prefix, "bins", dtype)?;
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

    /// The sum of the weights, which are 1 if there are none.
    pub fn weight_sum(&self) -> f64 {
        match &self.weight {
            Some(weight) => weight.iter().fold(0.0, |sum, &weight| sum + f64::from(weight)),
            None => self.shape[0] as f64,
        }
    }
}

/// Reads the tensors that go with logits.
struct Reader<'a> {
    tensors: Tensors<'a>,
    prefix: &'static str,
    logits: Floats,
    shape: [usize; 2],
}

impl<'a> Reader<'a> {
    fn new(
        input: &'a Input,
        prefix: &'static str,
        columns: &'static str,
        dtype: Option<Dtype>,
    ) -> Result<Self> {
        let tensors = input.tensors()?;
        let name = format!("{prefix}logits");
        let (shape, logits) = tensors.floats(&name)?;
        let Ok(shape) = <[usize; 2]>::try_from(&*shape) else {
            return Err(Error::Rank { path: input.path().to_owned(), tensor: name, found: shape, columns });
        };
        let logits = match dtype {
            Some(dtype) => logits.to(dtype),
            None => logits,
        };
        Ok(Reader { tensors, prefix, logits, shape })
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

    fn per_row(&self, name: &str) -> Result<Vec<f32>> {
        self.floats(name, &self.shape[..1])
    }

    fn like_logits(&self, name: &str) -> Result<Vec<f32>> {
        self.floats(name, &self.shape)
    }

    fn floats(&self, name: &str, expected: &[usize]) -> Result<Vec<f32>> {
        let name = format!("{}{name}", self.prefix);
        let (shape, numbers) = self.tensors.floats(&name)?;
        self.check(name, shape, expected)?;
        Ok(numbers.into_f32())
    }

    fn check(&self, tensor: String, found: Vec<usize>, expected: &[usize]) -> Result<()> {
        if found == expected {
            return Ok(());
        }
        let (path, expected) = (self.path().to_owned(), expected.to_vec());
        Err(Error::Shape { path, tensor, found, logits: self.shape, expected })
    }

    fn finish<T>(self, targets: T) -> Result<Inputs<T>> {
        let weight = if self.has("weight") { Some(self.per_row("weight")?) } else { None };
        Ok(Inputs { logits: self.logits, shape: self.shape, targets, weight })
    }
}

/// The prefix of a loss's tensors in a file: none, unless only the prefixed logits are there.
pub fn prefix(input: &Input, prefix: &'static str) -> Result<&'static str> {
    let tensors = input.tensors()?;
    let prefixed = !tensors.has("logits") && tensors.has(&format!("{prefix}logits"));
    Ok(if prefixed { prefix } else { "" })
}
