//! Quality Focal Loss on the CPU: one pass over the logits.
//!
//! Elements with target 0, and at beta 2 and 0 dense targets, go through vectors of f32; others, and whole
//! rows that f32 does not suit (a loss that is not finite, an extreme scale or beta, logits in f64,
//! probabilities) through the functions of math.rs.

use half::{bf16, f16};

use super::factors::Factors;
use super::{Class, QualityFocalLoss, Targets};
use crate::call::{Call, Lengths};
use crate::cpu::Block;
use crate::element::{Element, any_nan, compiled, singles};
use crate::error::Result;
use crate::math::{LossGrad, qfl_background, qfl_of_probability, qfl_soft};
use crate::memory::Host;
use crate::status::Status;
use crate::vector::{self, Beta, Given, Isa, NONE, QflRow};

/// What the inputs say of a row.
enum Target<'a, W> {
    Background,
    Class { column: usize, quality: f64 },
    Dense(&'a [W]),
}

impl<W: Element> Target<'_, W> {
    /// Of an element.
    fn of(&self, column: usize) -> f64 {
        match *self {
            Target::Class { column: labelled, quality } if labelled == column => quality,
            Target::Background | Target::Class { .. } => 0.0,
            Target::Dense(target) => target[column].to_f64().clamp(0.0, 1.0),
        }
    }
}

/// What all blocks of a call need.
struct Job<'a, T: Element> {
    isa: Isa,
    qfl: &'a QualityFocalLoss,
    /// Of vectors, if it is not 2.
    beta: Option<Beta>,
    targets: Targets<'a, Host, T>,
    factors: Factors<'a, T::Loss>,
}

compiled! {
    /// Quality Focal Loss on the CPU.
    QflOnCpu: Element for [f64, f32, f16, bf16] {
        fn qfl(
            call: &mut Call<'_, QualityFocalLoss, Host, Self>,
            loss: Option<&mut [<Self as Element>::Loss]>,
            grad: Option<&mut [Self]>,
        ) -> Result<Status> = run;
    }
}

fn run<T: Element>(
    call: &mut Call<'_, QualityFocalLoss, Host, T>,
    loss: Option<&mut [T::Loss]>,
    grad: Option<&mut [T]>,
) -> Result<Status> {
    let (qfl, inputs, shape) = (call.operation, call.targets, call.shape);
    let (labels, quality, target) = match inputs.targets {
        Targets::Sparse { labels, quality } => (Some(labels.len()), Some(quality.len()), None),
        Targets::Dense { target } => (None, None, Some(target.len())),
    };
    let lengths = Lengths {
        shape,
        logits: call.logits.len(),
        per_row: &[
            ("labels", labels),
            ("quality", quality),
            ("weight", call.weight.map(<[_]>::len)),
            ("upstream", call.upstream.map(<[_]>::len)),
        ],
        per_column: &[("class_weights", inputs.class_weights.map(<[_]>::len))],
        like_logits: &[
            ("target", target),
            ("element_weights", inputs.element_weights.map(<[_]>::len)),
            ("grad", grad.as_deref().map(<[_]>::len)),
        ],
        loss: loss.as_deref().map(|loss| (loss.len(), call.reduction.losses(shape[0]))),
        scalars: &[("found_inf", call.found_inf.as_deref().map(<[_]>::len))],
    };
    super::check(&lengths, &call.reduction, call.upstream.is_some(), Some(call.grad_scale))?;

    let isa = Isa::detect();
    let job = Job {
        isa,
        qfl,
        beta: if qfl.beta == 2.0 { None } else { Beta::new(isa, qfl.beta) },
        targets: inputs.targets,
        factors: Factors::new(isa, qfl, inputs.class_weights, inputs.element_weights),
    };
    let single = T::SINGLE && !qfl.activated && (qfl.beta == 2.0 || job.beta.is_some());
    call.for_blocks(qfl.loss_weight, loss, grad, |block| {
        if single {
            job.run_single(block);
        } else {
            job.run_double(block);
        }
    })
}

/// Rows that are prepared, computed and finished together, so that none of them waits for what has just
/// been stored.
const BATCH: usize = 64;

impl<'a, T: Element> Job<'a, T> {
    /// A block, element by element.
    fn run_double(&self, block: &mut Block<T>) {
        for row in 0..block.rows() {
            let loss = self.target_of(block, row).map(|target| self.double_row(&target, block, row));
            block.finish(row, loss);
        }
    }

    /// The loss of a row; writes its gradient.
    fn double_row(&self, target: &Target<T::Loss>, block: &mut Block<T>, row: usize) -> f64 {
        (0..block.columns).map(|column| self.double_element(target, column, block, row)).sum()
    }

    /// The loss of an element; writes its gradient.
    fn double_element(
        &self,
        target: &Target<T::Loss>,
        column: usize,
        block: &mut Block<T>,
        row: usize,
    ) -> f64 {
        let at = row * block.columns + column;
        let (logit, y) = (block.logits[at].to_f64(), target.of(column));
        let factor = self.factors.of(block.first + row, column, block.columns, y);
        let LossGrad { loss, grad: slope } = match target {
            _ if factor == 0.0 => LossGrad { loss: 0.0, grad: 0.0 },
            _ if self.qfl.activated => qfl_of_probability(logit, y, self.qfl.beta),
            Target::Class { column: labelled, .. } if *labelled == column => {
                qfl_soft(logit, y, self.qfl.beta)
            }
            Target::Background | Target::Class { .. } => qfl_background(logit, self.qfl.beta),
            Target::Dense(_) => qfl_soft(logit, y, self.qfl.beta),
        };
        let scale = if factor == 0.0 { 0.0 } else { block.scale(row) * factor }; // which may be inf
        if let Some(grad) = &mut block.grad {
            grad[at] = T::from_f64(slope * scale);
        }
        loss * factor
    }

    /// A block in vectors, some rows at a time.
    fn run_single(&self, block: &mut Block<T>) {
        let columns = block.columns;
        // With labels, α's factor is the same for all elements but the labelled ones.
        let of_background = match self.targets {
            Targets::Sparse { .. } => self.factors.of_target(0.0),
            Targets::Dense { .. } => 1.0,
        };
        let mut rows = [QflRow::default(); BATCH];
        let mut special = Vec::with_capacity(BATCH); // rows of which there is more to say than their loss
        for first in (0..block.rows()).step_by(BATCH) {
            let rows = &mut rows[..BATCH.min(block.rows() - first)];
            let elements = first * columns..(first + rows.len()) * columns;
            let start = (block.first + first) * columns;
            let y = match self.targets {
                Targets::Sparse { .. } => &[],
                Targets::Dense { target } => singles(&target[start..start + elements.len()]),
            };
            let weights = self.factors.of_rows(start, elements.len(), columns, y);
            special.clear();
            for (row, plan) in (first..).zip(&mut *rows) {
                let (target, scale) = (self.target_of(block, row), block.scale(row) * of_background);
                (plan.scale, plan.left_out) = (scale as f32, NONE);
                if let Some(Target::Class { column, .. }) = target {
                    plan.left_out = column;
                }
                let fits = weights.fit(scale);
                if !matches!(target, Some(Target::Background)) || !fits {
                    special.push((row, target, fits));
                }
            }
            let grad = block.grad.as_deref_mut().map(|grad| &mut grad[elements.clone()]);
            let x = &block.logits[elements];
            let given = Given { targets: y, weights: &weights.values };
            vector::qfl_rows(self.isa, self.beta, x, given, rows, grad);
            rows.iter_mut().for_each(|plan| plan.loss *= of_background);
            let mut gives_none = [false; BATCH];
            for (row, target, fits) in &special {
                let plan = &mut rows[row - first];
                if let Some(target) = target {
                    plan.loss += self.loss_above_0(target, block, *row);
                    if !plan.loss.is_finite() || !fits {
                        plan.loss = self.double_row(target, block, *row);
                    }
                } else {
                    gives_none[row - first] = true;
                    block.clear_grad(*row);
                }
            }
            for (row, plan) in (first..).zip(&mut *rows) {
                if !plan.loss.is_finite() && !special.iter().any(|&(special, ..)| special == row) {
                    plan.loss = self.double_row(&Target::Background, block, row);
                }
            }
            let losses = rows.iter().zip(gives_none);
            block.finish_rows(first, losses.map(|(plan, gives_none)| (!gives_none).then_some(plan.loss)));
        }
    }

    /// The losses of a row's elements with a target above 0 that the vectors have left out; writes their gradients.
    fn loss_above_0(&self, target: &Target<T::Loss>, block: &mut Block<T>, row: usize) -> f64 {
        match *target {
            Target::Background => 0.0,
            Target::Class { column, .. } => self.double_element(target, column, block, row),
            Target::Dense(_) if self.beta.is_none_or(Beta::is_0) => 0.0,
            Target::Dense(y) => (0..block.columns)
                .filter(|&column| y[column].to_f64() > 0.0)
                .map(|column| self.double_element(target, column, block, row))
                .sum(),
        }
    }

    /// `None`: neither loss nor gradient, whatever the logits hold.
    #[inline]
    fn target_of(&self, block: &mut Block<T>, row: usize) -> Option<Target<'a, T::Loss>> {
        let (number, columns) = (block.first + row, block.columns);
        if block.is_masked(row) { None } else { self.row_target(number, columns, &mut block.status) }
    }

    /// The target of a row that is not masked, by its number in the call.
    #[inline]
    fn row_target(&self, row: usize, classes: usize, status: &mut Status) -> Option<Target<'a, T::Loss>> {
        match self.targets {
            Targets::Dense { target } => {
                let target = &target[row * classes..(row + 1) * classes];
                if any_nan(self.isa, target) {
                    status.bad_quality(row);
                    return None;
                }
                Some(Target::Dense(target))
            }
            Targets::Sparse { labels, quality } => match self.qfl.class_of(labels.get(row), classes) {
                Class::Background => Some(Target::Background),
                Class::Ignored => None,
                Class::Foreground(_) if quality[row].to_f64().is_nan() => {
                    status.bad_quality(row);
                    None
                }
                Class::Foreground(column) => {
                    Some(Target::Class { column, quality: quality[row].to_f64().clamp(0.0, 1.0) })
                }
                Class::Invalid => {
                    status.bad_label(row);
                    None
                }
            },
        }
    }
}
