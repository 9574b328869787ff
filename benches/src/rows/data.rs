//! Random inputs of the operations on rows, the same in every run.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::op::{RowOp, Size};
use crate::random::{PRIOR, SEED, Stored, normals};

/// The share of rows that are.
const POSITIVES: f64 = 0.01;

/// The tensors of a case. What an operation does not take is empty.
pub struct Inputs<T> {
    pub op: RowOp,
    pub shape: [usize; 2],
    pub logits: Vec<T>,
    pub labels: Vec<i64>,
    pub quality: Vec<f32>,
    /// Of DFL, in units of bins.
    pub target: Vec<f32>,
    /// Of a loss; for integral the gradient with respect to each expectation.
    pub weight: Vec<f32>,
}

impl<T: Stored> Inputs<T> {
    pub fn random(op: RowOp, Size { rows, columns }: Size) -> Inputs<T> {
        let mut rng = StdRng::seed_from_u64(SEED);
        let mean = if op == RowOp::Qfl { PRIOR } else { 0.0 };
        let logits = normals(&mut rng, mean, rows * columns);
        let mut many = |range: std::ops::Range<f32>, wanted| -> Vec<f32> {
            (0..if wanted { rows } else { 0 }).map(|_| rng.random_range(range.clone())).collect()
        };
        let weight = many(0.5..1.5, true);
        let quality = many(0.3..1.0, op == RowOp::Qfl);
        // One bin has no range; the library refuses it later.
        let target = many(0.0..(columns.max(2) - 1) as f32, op == RowOp::Dfl);
        let label = |rng: &mut StdRng| {
            if rng.random_bool(POSITIVES) { rng.random_range(0..columns) } else { columns }
        };
        let labels = (0..quality.len()).map(|_| label(&mut rng) as i64).collect();
        Inputs { op, shape: [rows, columns], logits, labels, quality, target, weight }
    }

    /// How many numbers there are beside the gradient: a loss, or the expectations.
    pub fn results(&self) -> usize {
        if self.op == RowOp::Integral { self.shape[0] } else { 1 }
    }

    /// The logits of a row.
    pub fn row(&self, row: usize) -> Vec<f64> {
        let columns = self.shape[1];
        self.logits[row * columns..][..columns].iter().map(|logit| logit.to_f64()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_distribution_is_that_of_the_help() {
        let size = Size { rows: 20_000, columns: 3 };
        let inputs = Inputs::<f32>::random(RowOp::Qfl, size);
        let count = inputs.logits.len() as f32;
        let mean = inputs.logits.iter().sum::<f32>() / count;
        let variance = inputs.logits.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / count;
        let positives = inputs.labels.iter().filter(|&&label| label < 3).count();
        assert!((mean + 4.6).abs() < 0.02 && (variance - 1.0).abs() < 0.03, "{mean} {variance}");
        assert!((140..260).contains(&positives), "{positives}");
        assert_eq!(inputs.logits, Inputs::<f32>::random(RowOp::Qfl, size).logits);
    }
}
