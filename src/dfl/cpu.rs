//! Distribution Focal Loss on the CPU: arithmetic in f64.

use super::DistributionFocalLoss;
use crate::call::{Call, Host, Lengths};
use crate::element::Element;
use crate::error::Result;
use crate::math::{TwoHot, dfl, exp_below, softmax, two_hot};
use crate::status::Status;

impl<T: Element> Call<'_, DistributionFocalLoss, Host, T> {
    /// The loss alone: `[1]`, or `[rows]` for [`Reduction::None`](crate::Reduction::None).
    ///
    /// # Errors
    /// If a length does not fit the shape, or an option is outside its range.
    pub fn forward(mut self, loss: &mut [T::Loss]) -> Result<Status> {
        self.run(Some(loss), None)
    }

    /// The loss and its gradient `[rows, bins]`, in one pass.
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
        let [rows, bins] = self.shape;
        let lengths = Lengths {
            shape: self.shape,
            logits: self.logits.len(),
            per_row: &[
                ("target", Some(self.targets.target.len())),
                ("weight", self.weight.map(<[_]>::len)),
                ("upstream", self.upstream.map(<[_]>::len)),
            ],
            like_logits: &[("grad", grad.as_deref().map(<[_]>::len))],
            loss: loss.as_deref().map(|loss| (loss.len(), self.reduction.losses(rows))),
            scalars: &[("found_inf", self.found_inf.as_deref().map(<[_]>::len))],
        };
        self.operation.check(lengths, &self.reduction, self.upstream.is_some(), Some(self.grad_scale))?;

        let factor = self.operation.loss_weight * self.reduction.factor(rows)?;
        let mut status = Status::default();
        let (mut sum, mut finite) = (0.0, true);
        for row in 0..rows {
            let columns = row * bins..(row + 1) * bins;
            let logits = &self.logits[columns.clone()];
            let grad = grad.as_deref_mut().map(|grad| &mut grad[columns]);
            let mut row_loss = 0.0;
            if let Some(target) = self.target(row, &mut status) {
                let softmax = softmax(logits.iter().map(|z| z.to_f64()));
                let [z_left, z_right] = [logits[target.left], logits[target.left + 1]].map(T::to_f64);
                row_loss = dfl(&target, &softmax, z_left, z_right) * self.weight_of(row);
                let scale = self.grad_factor(factor, row);
                for (bin, grad) in grad.into_iter().flatten().enumerate() {
                    let share = match bin.wrapping_sub(target.left) {
                        0 => target.left_weight,
                        1 => target.right_weight,
                        _ => 0.0,
                    };
                    let p = exp_below(logits[bin].to_f64(), softmax.peak) / softmax.total;
                    *grad = T::from_f64((p - share) * scale);
                    finite &= grad.to_f64().is_finite();
                }
            } else if let Some(grad) = grad {
                grad.fill(T::from_f64(0.0));
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

    /// `None`: no loss and no gradient, whatever the logits hold.
    fn target(&self, row: usize, status: &mut Status) -> Option<TwoHot> {
        if self.weight_of(row) == 0.0 {
            return None;
        }
        let (bins, target) = (self.shape[1], self.targets.target[row]);
        let range = 0.0..=self.operation.target_max(bins);
        if !range.contains(&target) {
            status.out_of_range_targets += 1;
            status.row(row);
        }
        (!target.is_nan()).then(|| two_hot(target.clamp(*range.start(), *range.end()).into(), bins))
    }
}
