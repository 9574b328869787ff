//! Calls on memory of the host: what all operations have in common, and the [threads](Pool) that they run on.

mod pool;
mod shared;

pub use pool::Pool;
pub(crate) use pool::map;

use crate::call::{Call, Operation};
use crate::element::{Element, singles};
use crate::error::Result;
use crate::memory::Host;
use crate::status::Status;
use crate::vector::LANES;

impl<'a, Op: Operation, T: Element> Call<'a, Op, Host, T> {
    /// Weights of the rows, `[rows]`. A weight of exactly 0 masks its row: loss 0 and gradient 0,
    /// whatever the logits hold.
    pub fn weight(mut self, weight: &'a [T::Loss]) -> Self {
        self.weight = Some(weight);
        self
    }

    /// The gradient with respect to each row's loss, `[rows]`; for
    /// [`Reduction::None`](crate::Reduction::None). The default is all ones.
    pub fn upstream(mut self, upstream: &'a [T::Loss]) -> Self {
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

    /// Runs `run` over blocks of rows, after all checks, on the threads of a [`Pool`].
    ///
    /// Which rows a block has depends on the shape alone, and their sums are added up in the order
    /// of the blocks: so the result does not depend on the number of threads.
    pub(crate) fn for_blocks(
        &mut self,
        loss_weight: f64,
        loss: Option<&mut [T::Loss]>,
        grad: Option<&mut [T]>,
        run: impl Fn(&mut Block<T>) + Sync,
    ) -> Result<Status> {
        let [rows, columns] = self.shape;
        let factor = loss_weight * self.reduction.factor(rows)?;
        let (mut reduced, mut losses) = if self.reduction.is_none() { (None, loss) } else { (loss, None) };
        let mut grad = grad;
        let block_rows = rows_of_block(rows, columns);
        let blocks = (0..rows).step_by(block_rows).map(|first| {
            let rows = first..rows.min(first + block_rows);
            Block {
                first,
                columns,
                logits: &self.logits[rows.start * columns..rows.end * columns],
                grad: grad.as_mut().map(|grad| split_off(grad, rows.len() * columns)),
                status: Status::default(),
                weight: self.weight.map(|weight| &weight[rows.clone()]),
                upstream: self.upstream.map(|upstream| &upstream[rows.clone()]),
                losses: losses.as_mut().map(|losses| split_off(losses, rows.len())),
                loss_factor: factor,
                grad_factor: factor * self.grad_scale,
                sum: 0.0,
            }
        });
        let look_for_inf = self.found_inf.is_some();
        let results = map(rows * columns, blocks, |mut block| {
            run(&mut block);
            let not_finite = look_for_inf && block.grad.as_deref().is_some_and(T::any_not_finite);
            (block.sum, block.status, not_finite)
        });
        let (mut sum, mut status, mut any_not_finite) = (0.0, Status::default(), false);
        for (of_block, counted, not_finite) in &results {
            sum += of_block;
            status.append(counted);
            any_not_finite |= not_finite;
        }
        if let Some(found_inf) = &mut self.found_inf
            && any_not_finite
        {
            found_inf[0] = 1.0;
        }
        if let Some(loss) = &mut reduced {
            loss[0] = T::Loss::from_f64(if rows == 0 { 0.0 } else { sum * factor });
        }
        Ok(status)
    }
}

/// Blocks of at least 2^14 elements, so that handing them out costs nothing, and where there is
/// more to do, some hundred of them. A multiple of what vectors of rows need.
pub(crate) fn rows_of_block(rows: usize, columns: usize) -> usize {
    let elements = (rows.saturating_mul(columns) / 256).clamp(1 << 14, 1 << 17);
    (elements / columns).next_multiple_of(LANES).max(1)
}

/// Takes the first `len` elements off `rest`.
pub(crate) fn split_off<'a, T>(rest: &mut &'a mut [T], len: usize) -> &'a mut [T] {
    let (first, others) = std::mem::take(rest).split_at_mut(len);
    *rest = others;
    first
}

/// Consecutive rows of a call: what they hold, and what becomes of them.
pub(crate) struct Block<'a, T: Element> {
    /// The number of its first row in the call; other numbers of rows count from it.
    pub first: usize,
    pub columns: usize,
    pub logits: &'a [T],
    pub grad: Option<&'a mut [T]>,
    pub status: Status,
    weight: Option<&'a [T::Loss]>,
    upstream: Option<&'a [T::Loss]>,
    /// The losses of the rows, where they are not reduced.
    losses: Option<&'a mut [T::Loss]>,
    loss_factor: f64,
    grad_factor: f64,
    sum: f64,
}

impl<T: Element> Block<'_, T> {
    pub fn rows(&self) -> usize {
        self.logits.len() / self.columns
    }

    /// A weight of exactly 0 masks the row, whatever it holds.
    pub fn is_masked(&self, row: usize) -> bool {
        self.weight(row) == 0.0
    }

    fn weight(&self, row: usize) -> f64 {
        self.weight.map_or(1.0, |weight| weight[row].to_f64())
    }

    /// What to multiply the gradient of a row by.
    pub fn scale(&self, row: usize) -> f64 {
        let upstream = self.upstream.map_or(1.0, |upstream| upstream[row].to_f64());
        self.grad_factor * self.weight(row) * upstream
    }

    /// The weights of [`LANES`] rows, 1 behind the last.
    pub fn weights(&self, first: usize) -> [f32; LANES] {
        self.weight.map_or([1.0; LANES], |weight| lanes_at(singles(weight), first, 1.0))
    }

    /// What to multiply the gradients of [`LANES`] rows by.
    pub fn scales(&self, first: usize) -> [f64; LANES] {
        let upstream = self.upstream.map_or([1.0; LANES], |upstream| lanes_at(singles(upstream), first, 1.0));
        let mut scales = [self.grad_factor; LANES];
        for ((scale, weight), upstream) in scales.iter_mut().zip(self.weights(first)).zip(upstream) {
            *scale *= f64::from(weight) * f64::from(upstream);
        }
        scales
    }

    /// [`finish`](Self::finish) for [`LANES`] rows that all have a loss.
    pub fn finish_lanes(&mut self, first: usize, losses: &[f32; LANES]) {
        let mut weighted = [0.0; LANES];
        for ((weighted, loss), weight) in weighted.iter_mut().zip(losses).zip(self.weights(first)) {
            *weighted = f64::from(*loss) * f64::from(weight);
        }
        self.sum += weighted.iter().sum::<f64>();
        if let Some(losses) = &mut self.losses {
            for (loss, weighted) in losses[first..].iter_mut().zip(weighted) {
                *loss = T::Loss::from_f64(weighted * self.loss_factor);
            }
        }
    }

    /// Takes the loss of a row, whose gradient is written; or `None` if it gives neither.
    pub fn finish(&mut self, row: usize, loss: Option<f64>) {
        if loss.is_none() {
            self.clear_grad(row);
        }
        self.finish_rows(row, [loss].into_iter());
    }

    /// The gradient of a row that gives none.
    pub fn clear_grad(&mut self, row: usize) {
        if let Some(grad) = &mut self.grad {
            grad[row * self.columns..(row + 1) * self.columns].fill(T::from_f64(0.0));
        }
    }

    /// Takes the losses of rows from `first`, whose gradients are written; or `None` of those without.
    pub fn finish_rows(&mut self, first: usize, losses: impl Iterator<Item = Option<f64>>) {
        let mut sum = self.sum;
        for (row, loss) in (first..).zip(losses) {
            let loss = loss.map_or(0.0, |loss| loss * self.weight(row));
            sum += loss;
            if let Some(losses) = &mut self.losses {
                losses[row] = T::Loss::from_f64(loss * self.loss_factor);
            }
        }
        self.sum = sum;
    }
}

/// [`LANES`] numbers from `first`, or fewer and then `padding`.
pub(crate) fn lanes_at(values: &[f32], first: usize, padding: f32) -> [f32; LANES] {
    let values = &values[first..];
    values.first_chunk().copied().unwrap_or_else(|| {
        let mut lanes = [padding; LANES];
        lanes[..values.len()].copy_from_slice(values);
        lanes
    })
}

/// Whether f32 has room for a gradient of order 1 times this scale, and for what is smaller: what is lost
/// of digits below 2^-126 must stay small. Other rows are computed in f64.
#[inline]
pub(crate) fn fits_single(scale: f64) -> bool {
    scale == 0.0 || (1e-15..=1e8).contains(&scale.abs())
}
