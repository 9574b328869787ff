//! The two losses as the paper has them, in f64; independent of the library.

/// Loss and gradient of one logit.
pub fn qfl(x: f64, y: f64, beta: f64) -> (f64, f64) {
    let value = |x: f64| {
        let s = 1.0 / (1.0 + (-x).exp());
        let cross_entropy = -y * s.ln() - (1.0 - y) * (1.0 - s).ln();
        (y - s).abs().powf(beta) * cross_entropy
    };
    // A central difference: good to 1e-9 here.
    let h = 1e-5;
    (value(x), (value(x + h) - value(x - h)) / (2.0 * h))
}

/// Loss and gradient of one side.
pub fn dfl(z: &[f64], target: f64) -> (f64, Vec<f64>) {
    let total: f64 = z.iter().map(|z| z.exp()).sum();
    let left = (target.floor() as usize).min(z.len() - 2);
    let right_share = target - left as f64;
    let mut two_hot = vec![0.0; z.len()];
    two_hot[left] = 1.0 - right_share;
    two_hot[left + 1] = right_share;
    let loss = -z.iter().zip(&two_hot).map(|(z, share)| share * (z.exp() / total).ln()).sum::<f64>();
    (loss, z.iter().zip(&two_hot).map(|(z, share)| z.exp() / total - share).collect())
}

/// Losses of the rows and gradients for dense targets.
pub fn qfl_rows(logits: &[f64], targets: &[f64], columns: usize, beta: f64) -> (Vec<f64>, Vec<f64>) {
    let elements: Vec<_> = logits.iter().zip(targets).map(|(&x, &y)| qfl(x, y, beta)).collect();
    let losses = elements.chunks(columns).map(|row| row.iter().map(|(loss, _)| loss).sum()).collect();
    (losses, elements.iter().map(|(_, grad)| *grad).collect())
}
