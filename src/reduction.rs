//! How the losses of the rows become one number, and what its gradient is multiplied by.

use crate::error::{Result, check_option};

/// How the losses of the rows are reduced.
///
/// `S` is what an average factor may be: a number of the host (f64) on the CPU; a number or a
/// device scalar (`cuda::Scalar`) on CUDA.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Reduction<S = f64> {
    /// The loss of each row, `[rows]`.
    None,
    /// Their sum.
    Sum,
    /// Their sum over the number of rows; 0 without rows. The weight is not in the denominator.
    #[default]
    Mean,
    /// Their sum over an average factor, as the number of positives.
    MeanBy {
        /// What to divide by.
        avg_factor: S,
        /// What becomes of an average factor near 0.
        policy: AvgPolicy,
    },
}

/// What the sum of the losses is divided by, given an average factor.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum AvgPolicy {
    /// The average factor itself, 0 included (mmdetection 2, the paper's code).
    Exact,
    /// The average factor plus the epsilon of f32, 2^-23 (mmdetection 3).
    #[default]
    Eps,
    /// The average factor, or this number if it is larger (1 in most heads).
    AtLeast(f64),
}

impl AvgPolicy {
    /// The normaliser is max(avg_factor + epsilon, minimum).
    pub(crate) fn epsilon_and_minimum(self) -> (f64, f64) {
        match self {
            AvgPolicy::Exact => (0.0, f64::NEG_INFINITY),
            AvgPolicy::Eps => (f32::EPSILON.into(), f64::NEG_INFINITY),
            AvgPolicy::AtLeast(minimum) => (0.0, minimum),
        }
    }

    pub(crate) fn check(self) -> Result<()> {
        match self {
            AvgPolicy::AtLeast(m) => {
                check_option("the least average factor", m, "a finite number above 0", m > 0.0)
            }
            AvgPolicy::Exact | AvgPolicy::Eps => Ok(()),
        }
    }

    /// What to divide by, for an average factor that the host knows.
    pub(crate) fn normaliser(self, avg_factor: f64) -> Result<f64> {
        self.check()?;
        check_option("the average factor", avg_factor, "a finite number, 0 or more", avg_factor >= 0.0)?;
        let (epsilon, minimum) = self.epsilon_and_minimum();
        Ok((avg_factor + epsilon).max(minimum))
    }
}

impl<S> Reduction<S> {
    pub(crate) fn is_none(&self) -> bool {
        matches!(self, Reduction::None)
    }

    /// How many losses come out.
    pub(crate) fn losses(&self, rows: usize) -> usize {
        if self.is_none() { rows } else { 1 }
    }
}

impl Reduction<f64> {
    /// What the sum, or each loss, is multiplied by.
    pub(crate) fn factor(&self, rows: usize) -> Result<f64> {
        match *self {
            Reduction::None | Reduction::Sum => Ok(1.0),
            Reduction::Mean => Ok(1.0 / rows.max(1) as f64),
            Reduction::MeanBy { avg_factor, policy } => Ok(1.0 / policy.normaliser(avg_factor)?),
        }
    }
}
