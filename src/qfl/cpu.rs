//! Quality Focal Loss on the CPU: one pass over the logits, arithmetic in f64.

use super::{Class, QualityFocalLoss, Targets};
use crate::call::{Call, Host, Lengths};
use crate::element::Element;
use crate::error::Result;
use crate::math::{LossGrad, qfl_background, qfl_soft};
use crate::status::Status;

/// What the inputs say of a row; `None`: no loss and no gradient, whatever the logits hold.
enum Target<'a> {
    None,
    Background,
    Class { column: usize, quality: f64 },
    Dense(&'a [f32]),
}

impl<T: Element> Call<'_, QualityFocalLoss, Host, T> {
    /// The loss alone: `[1]`, or `[rows]` for [`Reduction::None`](crate::Reduction::None).
    ///
    /// # Errors
    /// If a length does not fit the shape, or an option is outside its range.
    pub fn forward(mut self, loss: &mut [T::Loss]) -> Result<Status> {
        self.run(Some(loss), None)
    }

    /// The loss and its gradient `[rows, classes]`, in one pass.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn forward_backward(mut self, loss: &mut [T::Loss], grad: &mut [T]) -> Result<Status> {
        self.run(Some(loss), Some(grad))
    }

    /// The gradient alone.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn backward(mut self, grad: &mut [T]) -> Result<Status> {
        self.run(None, Some(grad))
    }

    fn run(&mut self, mut loss: Option<&mut [T::Loss]>, mut grad: Option<&mut [T]>) -> Result<Status> {
        let [rows, classes] = self.shape;
        let (labels, quality, target) = match self.targets {
            Targets::Sparse { labels, quality } => (Some(labels.len()), Some(quality.len()), None),
            Targets::Dense { target } => (None, None, Some(target.len())),
        };
        let lengths = Lengths {
            shape: self.shape,
            logits: self.logits.len(),
            per_row: &[
                ("labels", labels),
                ("quality", quality),
                ("weight", self.weight.map(<[_]>::len)),
                ("upstream", self.upstream.map(<[_]>::len)),
            ],
            like_logits: &[("target", target), ("grad", grad.as_deref().map(<[_]>::len))],
            loss: loss.as_deref().map(|loss| (loss.len(), self.reduction.losses(rows))),
            scalars: &[("found_inf", self.found_inf.as_deref().map(<[_]>::len))],
        };
        super::check(lengths, &self.reduction, self.upstream.is_some(), Some(self.grad_scale))?;

        let factor = self.operation.loss_weight * self.reduction.factor(rows)?;
        let mut status = Status::default();
        let (mut sum, mut finite) = (0.0, true);
        for row in 0..rows {
            let columns = row * classes..(row + 1) * classes;
            let logits = &self.logits[columns.clone()];
            let mut grad = grad.as_deref_mut().map(|grad| &mut grad[columns.clone()]);
            let target = self.target(row, &mut status);
            let scale = self.grad_factor(factor, row);
            let mut row_loss = 0.0;
            for (column, logit) in logits.iter().enumerate() {
                let Some(LossGrad { loss, grad: slope }) = self.element(&target, column, logit.to_f64())
                else {
                    break;
                };
                row_loss += loss;
                if let Some(grad) = &mut grad {
                    grad[column] = T::from_f64(slope * scale);
                    finite &= grad[column].to_f64().is_finite();
                }
            }
            match target {
                Target::None => {
                    if let Some(grad) = &mut grad {
                        grad.fill(T::from_f64(0.0));
                    }
                }
                _ => row_loss *= self.weight_of(row),
            }
            sum += row_loss;
            if let (true, Some(loss)) = (self.reduction.is_none(), &mut loss) {
                loss[row] = T::Loss::from_f64(row_loss * factor);
            }
        }
        if let (false, Some(loss)) = (self.reduction.is_none(), loss) {
            loss[0] = T::Loss::from_f64(if rows == 0 { 0.0 } else { sum * factor });
        }
        if let (false, Some(found_inf)) = (finite, &mut self.found_inf) {
            found_inf[0] = 1.0;
        }
        Ok(status)
    }

    fn target(&self, row: usize, status: &mut Status) -> Target<'_> {
        if self.weight_of(row) == 0.0 {
            return Target::None;
        }
        let classes = self.shape[1];
        match self.targets {
            Targets::Dense { target } => {
                let target = &target[row * classes..(row + 1) * classes];
                if target.iter().any(|y| y.is_nan()) {
                    status.bad_qualities += 1;
                    status.row(row);
                    return Target::None;
                }
                Target::Dense(target)
            }
            Targets::Sparse { labels, quality } => match self.operation.class_of(labels.get(row), classes) {
                Class::Background => Target::Background,
                Class::Ignored => Target::None,
                Class::Foreground(_) if quality[row].is_nan() => {
                    status.bad_qualities += 1;
                    status.row(row);
                    Target::None
                }
                Class::Foreground(column) => {
                    Target::Class { column, quality: f64::from(quality[row]).clamp(0.0, 1.0) }
                }
                Class::Invalid => {
                    status.bad_labels += 1;
                    status.row(row);
                    Target::None
                }
            },
        }
    }

    fn element(&self, target: &Target, column: usize, logit: f64) -> Option<LossGrad> {
        let beta = self.operation.beta;
        match *target {
            Target::None => None,
            Target::Class { column: labelled, quality } if labelled == column => {
                Some(qfl_soft(logit, quality, beta))
            }
            Target::Background | Target::Class { .. } => Some(qfl_background(logit, beta)),
            Target::Dense(target) => Some(qfl_soft(logit, f64::from(target[column]).clamp(0.0, 1.0), beta)),
        }
    }
}
