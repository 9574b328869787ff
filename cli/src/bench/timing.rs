//! Samples and what is told of them.

use std::time::Instant;

use crate::error::Result;

const LEAST: usize = 10;
const MOST: usize = 100_000;

/// Times of one call, in seconds, in rising order.
pub struct Samples(Vec<f64>);

impl Samples {
    /// Warms up for a tenth of the time, and then samples for as long as it takes. `once` gives the time
    /// of a call.
    pub fn take(seconds: f64, mut once: impl FnMut() -> Result<f64>) -> Result<Samples> {
        let start = Instant::now();
        once()?;
        while start.elapsed().as_secs_f64() < 0.1 * seconds {
            once()?;
        }
        let start = Instant::now();
        let mut samples = Vec::new();
        while samples.len() < LEAST || (samples.len() < MOST && start.elapsed().as_secs_f64() < seconds) {
            samples.push(once()?);
        }
        samples.sort_by(f64::total_cmp);
        Ok(Samples(samples))
    }

    pub fn count(&self) -> usize {
        self.0.len()
    }

    pub fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// Between neighbours in proportion.
    pub fn quantile(&self, share: f64) -> f64 {
        let place = share * (self.0.len() - 1) as f64;
        let (below, above) = (self.0[place.floor() as usize], self.0[place.ceil() as usize]);
        below + (above - below) * place.fract()
    }
}

/// The time that something takes, by the clock on the wall.
pub fn wall_clock(call: impl FnOnce() -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    call()?;
    Ok(start.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles() {
        let mut next = 12.0;
        let samples = Samples::take(1e-9, || {
            next -= 1.0;
            Ok(next)
        });
        let samples = samples.unwrap();
        assert_eq!(samples.count(), LEAST);
        assert_eq!((samples.quantile(0.0), samples.median(), samples.quantile(1.0)), (1.0, 5.5, 10.0));
        assert!((samples.quantile(0.2) - 2.8).abs() < 1e-12);
    }
}
