//! Calls on memory of the host: what all operations have in common.

use crate::call::{Call, Memory, Operation};
use crate::element::{Element, LabelSlice, Sealed};
use crate::error::Result;
use crate::status::Status;

/// Memory of the host; the call runs on the CPU.
#[derive(Clone, Copy, Debug)]
pub enum Host {}

impl Sealed for Host {}
impl Memory for Host {
    type Slice<'a, T: 'static> = &'a [T];
    type SliceMut<'a, T: 'static> = &'a mut [T];
    type Labels<'a> = LabelSlice<'a>;
    type Scalar<'a> = f64;
    type Backend<'a> = ();
    type StatusOut<'a> = ();
}

impl<'a, Op: Operation, T: Element> Call<'a, Op, Host, T> {
    /// Weights of the rows, `[rows]`. A weight of exactly 0 masks its row: loss 0 and gradient 0,
    /// whatever the logits hold.
    pub fn weight(mut self, weight: &'a [f32]) -> Self {
        self.weight = Some(weight);
        self
    }

    /// The gradient with respect to each row's loss, `[rows]`; for
    /// [`Reduction::None`](crate::Reduction::None). The default is all ones.
    pub fn upstream(mut self, upstream: &'a [f32]) -> Self {
        self.upstream = Some(upstream);
        self
    }

    /// A flag, `[1]`, that is set to 1 if a stored gradient is inf or NaN, and is otherwise left
    /// as it is.
    pub fn found_inf(mut self, found_inf: &'a mut [f32]) -> Self {
        self.found_inf = Some(found_inf);
        self
    }

    /// The loss alone: `[1]`, or `[rows]` for [`Reduction::None`](crate::Reduction::None).
    ///
    /// # Errors
    /// If a length does not fit the shape, or an option is outside its range.
    pub fn forward(mut self, loss: &mut [T::Loss]) -> Result<Status> {
        Op::run_cpu(&mut self, Some(loss), None)
    }

    /// The loss and its gradient, of the logits' shape, in one pass.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn forward_backward(mut self, loss: &mut [T::Loss], grad: &mut [T]) -> Result<Status> {
        Op::run_cpu(&mut self, Some(loss), Some(grad))
    }

    /// The gradient alone, of the logits' shape.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn backward(mut self, grad: &mut [T]) -> Result<Status> {
        Op::run_cpu(&mut self, None, Some(grad))
    }

    /// Runs `row_loss` over the rows, after all checks. It is given a row, its logits, what to
    /// multiply the gradient by and where to put it; it gives the row's loss, or `None` if there
    /// is neither loss nor gradient. Rows that the weight masks do not come to it.
    pub(crate) fn for_rows(
        &mut self,
        loss_weight: f64,
        loss: Option<&mut [T::Loss]>,
        grad: Option<&mut [T]>,
        mut row_loss: impl FnMut(usize, &[T], f64, Option<&mut [T]>) -> Option<f64>,
    ) -> Result<()> {
        let [rows, columns] = self.shape;
        let factor = loss_weight * self.reduction.factor(rows)?;
        let (mut loss, mut grad) = (loss, grad);
        let mut sum = 0.0;
        for row in 0..rows {
            let columns = row * columns..(row + 1) * columns;
            let weight = self.weight.map_or(1.0, |weight| weight[row].into());
            let upstream = self.upstream.map_or(1.0, |upstream| upstream[row].into());
            let scale = factor * self.grad_scale * weight * upstream;
            let mut grad = grad.as_deref_mut().map(|grad| &mut grad[columns.clone()]);
            let found = if weight == 0.0 {
                None
            } else {
                row_loss(row, &self.logits[columns], scale, grad.as_deref_mut())
            };
            if let (None, Some(grad)) = (found, &mut grad) {
                grad.fill(T::from_f64(0.0));
            }
            let row_loss = found.map_or(0.0, |loss| loss * weight);
            sum += row_loss;
            if let (true, Some(loss)) = (self.reduction.is_none(), &mut loss) {
                loss[row] = T::Loss::from_f64(row_loss * factor);
            }
            if let (Some(grad), Some(found_inf)) = (grad, &mut self.found_inf)
                && grad.iter().any(|slope| !slope.to_f64().is_finite())
            {
                found_inf[0] = 1.0;
            }
        }
        if let (false, Some(loss)) = (self.reduction.is_none(), loss) {
            loss[0] = T::Loss::from_f64(if rows == 0 { 0.0 } else { sum * factor });
        }
        Ok(())
    }
}
