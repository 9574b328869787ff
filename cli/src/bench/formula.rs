//! The operations on rows as the papers have them, in f64: what results are compared with.

use super::case::RowOp;
use super::data::{Inputs, Stored};

/// Result and gradient of a row.
pub struct Row {
    /// The loss, with its weight; or the expectation.
    pub value: f64,
    pub grad: Vec<f64>,
}

pub fn row<T: Stored>(inputs: &Inputs<T>, row: usize) -> Row {
    let (z, weight) = (inputs.row(row), f64::from(inputs.weight[row]));
    let Row { value, grad } = match inputs.op {
        RowOp::Qfl => qfl(&z, inputs.labels[row], inputs.quality[row].into()),
        RowOp::Dfl => dfl(&z, inputs.target[row].into()),
        RowOp::Integral => integral(&z),
    };
    let value = if inputs.op == RowOp::Integral { value } else { value * weight };
    Row { value, grad: grad.into_iter().map(|slope| slope * weight).collect() }
}

pub fn qfl(z: &[f64], label: i64, quality: f64) -> Row {
    let mut value = 0.0;
    let slope = |(class, &x): (usize, &f64)| {
        let y = if class as i64 == label { quality } else { 0.0 };
        let sigmoid = 1.0 / (1.0 + (-x).exp());
        let cross_entropy = x.max(0.0) + (-x.abs()).exp().ln_1p() - x * y;
        let distance = sigmoid - y;
        value += distance.powi(2) * cross_entropy;
        distance * (distance.powi(2) + 2.0 * sigmoid * (1.0 - sigmoid) * cross_entropy)
    };
    let grad = z.iter().enumerate().map(slope).collect();
    Row { value, grad }
}

pub fn dfl(z: &[f64], target: f64) -> Row {
    let (mut grad, log_total) = softmax(z);
    let left = (target.floor() as usize).min(z.len() - 2);
    let right_share = target - left as f64;
    grad[left] -= 1.0 - right_share;
    grad[left + 1] -= right_share;
    Row { value: log_total - (1.0 - right_share) * z[left] - right_share * z[left + 1], grad }
}

pub fn integral(z: &[f64]) -> Row {
    let (p, _) = softmax(z);
    let value = p.iter().enumerate().map(|(bin, p)| bin as f64 * p).sum();
    Row { value, grad: p.iter().enumerate().map(|(bin, p)| p * (bin as f64 - value)).collect() }
}

/// The softmax, and the logarithm of the sum of the exponentials.
fn softmax(z: &[f64]) -> (Vec<f64>, f64) {
    let peak = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let total: f64 = z.iter().map(|z| (z - peak).exp()).sum();
    (z.iter().map(|z| (z - peak).exp() / total).collect(), peak + total.ln())
}
