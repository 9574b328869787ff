//! One call of one loss, as data: what it is, its tensors, its options.

use gfocal::{Background, Reduction, Status};

use super::tolerance::Stored;

/// The tensors and settings that only one loss has.
#[derive(Clone, Debug)]
pub enum Loss {
    /// QFL with a label and a quality for each row.
    Sparse {
        beta: f64,
        background: Background,
        ignore_label: Option<i64>,
        labels: Vec<i64>,
        /// Whether to give the labels as i32.
        narrow: bool,
        quality: Vec<f32>,
    },
    /// QFL with a target for each logit.
    Dense { beta: f64, target: Vec<f32> },
    /// DFL.
    Dfl { target_eps: f64, target: Vec<f32> },
}

/// What every loss has.
#[derive(Clone, Debug)]
pub struct Options {
    pub loss_weight: f64,
    pub weight: Option<Vec<f32>>,
    pub upstream: Option<Vec<f32>>,
    pub reduction: Reduction,
    pub grad_scale: f64,
    pub elements: Elements,
    /// Whether the logits are f64, and so what is beside them.
    pub beside_f64: bool,
}

/// What QFL alone has.
#[derive(Clone, Debug, Default)]
pub struct Elements {
    pub class_weights: Option<Vec<f32>>,
    pub element_weights: Option<Vec<f32>>,
    pub alpha: Option<f64>,
    /// Whether the logits are probabilities.
    pub activated: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            loss_weight: 1.0,
            weight: None,
            upstream: None,
            reduction: Reduction::Sum,
            grad_scale: 1.0,
            elements: Elements::default(),
            beside_f64: false,
        }
    }
}

#[derive(Clone, Debug)]
pub struct Case {
    pub shape: [usize; 2],
    /// Before they are rounded to a storage type.
    pub logits: Vec<f64>,
    pub loss: Loss,
    pub options: Options,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    Forward,
    ForwardBackward,
    Backward,
}

impl Pass {
    pub const ALL: [Pass; 3] = [Pass::Forward, Pass::ForwardBackward, Pass::Backward];
}

/// What a call gave. What it does not give is empty.
#[derive(Clone, Debug)]
pub struct Outcome<T: Stored> {
    pub loss: Vec<T::Loss>,
    pub grad: Vec<T>,
    pub status: Status,
    pub found_inf: f32,
}

impl<T: Stored> Outcome<T> {
    /// What the flag holds before the call: neither of the values that a call could write.
    pub const FLAG_BEFORE: f32 = 0.375;
}

impl Case {
    pub fn sparse(shape: [usize; 2], logits: &[f64], labels: &[i64], quality: &[f32]) -> Case {
        let loss = Loss::Sparse {
            beta: 2.0,
            background: Background::Last,
            ignore_label: None,
            labels: labels.to_vec(),
            narrow: false,
            quality: quality.to_vec(),
        };
        Case { shape, logits: logits.to_vec(), loss, options: Options::default() }
    }

    pub fn dense(shape: [usize; 2], logits: &[f64], target: &[f32]) -> Case {
        let loss = Loss::Dense { beta: 2.0, target: target.to_vec() };
        Case { shape, logits: logits.to_vec(), loss, options: Options::default() }
    }

    pub fn dfl(shape: [usize; 2], logits: &[f64], target: &[f32]) -> Case {
        let loss = Loss::Dfl { target_eps: 0.0, target: target.to_vec() };
        Case { shape, logits: logits.to_vec(), loss, options: Options::default() }
    }

    pub fn with_beta(mut self, value: f64) -> Case {
        match &mut self.loss {
            Loss::Sparse { beta, .. } | Loss::Dense { beta, .. } => *beta = value,
            Loss::Dfl { .. } => panic!("DFL has no beta"),
        }
        self
    }

    pub fn with_ignore_label(mut self, value: i64) -> Case {
        match &mut self.loss {
            Loss::Sparse { ignore_label, .. } => *ignore_label = Some(value),
            _ => panic!("only sparse targets have labels"),
        }
        self
    }

    pub fn with_background(mut self, value: Background) -> Case {
        match &mut self.loss {
            Loss::Sparse { background, .. } => *background = value,
            _ => panic!("only sparse targets have labels"),
        }
        self
    }

    pub fn with_target_eps(mut self, value: f64) -> Case {
        match &mut self.loss {
            Loss::Dfl { target_eps, .. } => *target_eps = value,
            _ => panic!("only DFL has bins"),
        }
        self
    }

    pub fn with(mut self, change: impl FnOnce(&mut Options)) -> Case {
        change(&mut self.options);
        self
    }

    pub fn with_elements(self, change: impl FnOnce(&mut Elements)) -> Case {
        self.with(|options| change(&mut options.elements))
    }

    pub fn reduced(self, reduction: Reduction) -> Case {
        self.with(|options| options.reduction = reduction)
    }

    /// The case on the logits that storage as `T` leaves.
    pub fn stored_as<T: Stored>(&self) -> Case {
        let logits = self.logits.iter().map(|&x| T::from_f64(x).to_f64()).collect();
        let stored = Case { logits, ..self.clone() };
        stored.with(|options| options.beside_f64 = T::NAME == "f64")
    }

    pub fn logits_as<T: Stored>(&self) -> Vec<T> {
        self.logits.iter().map(|&x| T::from_f64(x)).collect()
    }

    /// How many losses come out.
    pub fn losses(&self) -> usize {
        if self.options.reduction == Reduction::None { self.shape[0] } else { 1 }
    }

    /// Some of the rows, as a case of their own.
    pub fn rows(&self, rows: std::ops::Range<usize>) -> Case {
        let columns = self.shape[1];
        let elements = rows.start * columns..rows.end * columns;
        let of_row = |values: &[f32]| values[rows.clone()].to_vec();
        let mut part = self.clone();
        part.shape[0] = rows.len();
        part.logits = self.logits[elements.clone()].to_vec();
        let weights = self.options.elements.element_weights.as_ref();
        part.options.elements.element_weights = weights.map(|weights| weights[elements.clone()].to_vec());
        match (&self.loss, &mut part.loss) {
            (Loss::Sparse { labels, quality, .. }, Loss::Sparse { labels: l, quality: q, .. }) => {
                (*l, *q) = (labels[rows.clone()].to_vec(), of_row(quality));
            }
            (Loss::Dense { target, .. }, Loss::Dense { target: t, .. }) => *t = target[elements].to_vec(),
            (Loss::Dfl { target, .. }, Loss::Dfl { target: t, .. }) => *t = of_row(target),
            _ => unreachable!("a clone has the same targets"),
        }
        part.options.weight = self.options.weight.as_deref().map(of_row);
        part.options.upstream = self.options.upstream.as_deref().map(of_row);
        part
    }
}
