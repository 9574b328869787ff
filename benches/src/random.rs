//! Where random inputs come from, the same in every run.

use gfocal::Element;
use gfocal::cuda::StorageElement;
use gfocal::cudarc::driver::{DeviceRepr, ValidAsZeroBits};
use rand::RngExt;
use rand::rngs::StdRng;

/// The types that are timed.
pub trait Stored: Element<Loss = f32> + StorageElement + DeviceRepr + ValidAsZeroBits {}
impl<T: Element<Loss = f32> + StorageElement + DeviceRepr + ValidAsZeroBits> Stored for T {}

pub const SEED: u64 = 7;
/// The logit of the prior probability 0.01.
pub const PRIOR: f64 = -4.6;

/// So many numbers of the normal distribution around `mean`, of variance 1.
pub fn normals<T: Stored>(rng: &mut StdRng, mean: f64, count: usize) -> Vec<T> {
    let mut numbers = Vec::with_capacity(count + 1);
    while numbers.len() < count {
        numbers.extend(normal_pair(rng).map(|number| T::from_f64(mean + number)));
    }
    numbers.truncate(count);
    numbers
}

/// Two independent numbers of the normal distribution (Box and Muller).
fn normal_pair(rng: &mut StdRng) -> [f64; 2] {
    let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
    let (sin, cos) = (std::f64::consts::TAU * rng.random::<f64>()).sin_cos();
    [radius * cos, radius * sin]
}
