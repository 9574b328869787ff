//! The two losses as the paper has them, in f64; independent of the library.

pub use gfocal_reference::{dfl, qfl};

/// Losses of the rows and gradients for dense targets.
pub fn qfl_rows(logits: &[f64], targets: &[f64], columns: usize, beta: f64) -> (Vec<f64>, Vec<f64>) {
    let elements: Vec<_> = logits.iter().zip(targets).map(|(&x, &y)| qfl(x, y, beta)).collect();
    let losses = elements.chunks(columns).map(|row| row.iter().map(|(loss, _)| loss).sum()).collect();
    (losses, elements.iter().map(|(_, grad)| *grad).collect())
}
