//! How far a result may be from the truth, and why. No other file has a tolerance.
//!
//! The truth is in f64, on the same stored inputs.
//!
//! - f32, each element: [`RELATIVE`] for a dozen rounded operations, the conditioning of e^x
//!   included; [`CANCELLATION`], times what the element is multiplied by, where a target is
//!   subtracted from a probability of f32, which has an error of 6e-8 itself; and [`UNDERFLOW`],
//!   because a product of small factors may pass through numbers below the smallest normal f32.
//! - f32, a reduced loss: [`RELATIVE_REDUCED`] of the sum of magnitudes whatever the number of
//!   rows, and the absolute terms once.
//! - f16 and bf16: one unit in the last place from the correctly rounded truth, because the f32
//!   result may lie on the other side of a rounding boundary; and f32's absolute terms.
//! - f64: [`DOUBLE`], and [`DOUBLE_CANCELLATION`] for the same reasons.
//!
//! A comparison is `!(error <= tolerance)`, so that NaN fails. Where the truth is not finite, the
//! result must not be either, but which of inf and NaN it is does not matter.

use std::fmt::Debug;

use gfocal::{Element, bf16, f16};

const RELATIVE: f64 = 1e-5;
const RELATIVE_REDUCED: f64 = 2e-6;
/// Of gradients before they are rounded to 16 bits, for which the series of confident logits are good to 5e-5.
const BEFORE_ROUNDING: f64 = 1e-4;
/// Of results in double before they are rounded to f32: series are good to 1e-14, and differences lose some of it.
const BEFORE_ROUNDING_TO_F32: f64 = 1e-12;
const CANCELLATION: f64 = 2e-7;
const UNDERFLOW: f64 = 1e-36;
const DOUBLE: f64 = 1e-10;
const DOUBLE_CANCELLATION: f64 = 1e-13;

/// The truth of one number.
#[derive(Clone, Copy, Debug)]
pub struct Want {
    /// NaN or inf: the result must not be finite.
    pub value: f64,
    /// What relative errors are relative to: for a sum, the sum of magnitudes.
    pub magnitude: f64,
    /// What a loss or gradient of order 1 has been multiplied by. 0: exactly zero.
    pub scale: f64,
    /// Whether a target above 0 is subtracted from a probability in it.
    pub cancels: bool,
}

impl Want {
    /// Exactly zero: a masked row.
    pub const ZERO: Want = Want { value: 0.0, magnitude: 0.0, scale: 0.0, cancels: false };

    pub fn new(unscaled: f64, factor: f64, cancels: bool) -> Want {
        let value = unscaled * factor;
        Want { value, magnitude: value.abs(), scale: factor.abs(), cancels }
    }

    /// The sum over a divisor.
    pub fn sum(parts: &[Option<Want>], divisor: f64) -> Want {
        let mut sum = Want::ZERO;
        for part in parts {
            let part = part.expect("every loss is specified");
            sum.value += part.value;
            sum.magnitude += part.magnitude;
            sum.scale = sum.scale.max(part.scale);
            sum.cancels |= part.cancels;
        }
        let factor = 1.0 / divisor;
        Want {
            value: sum.value * factor,
            magnitude: sum.magnitude * factor,
            scale: sum.scale * factor,
            ..sum
        }
    }

    /// The error of a number: relative, beyond the absolute terms; of a 16-bit one in units in the last place.
    pub fn error<T: Number>(&self, got: T) -> f64 {
        if size_of::<T>() == 2 {
            return got.error_ratio(self, RELATIVE);
        }
        let beyond = (got.to_f64() - self.value).abs() - self.absolute();
        // NaN stays.
        if beyond <= 0.0 { 0.0 } else { beyond / self.magnitude }
    }

    fn absolute(&self) -> f64 {
        let cancellation = if self.cancels { CANCELLATION * self.scale } else { 0.0 };
        if self.scale == 0.0 { 0.0 } else { cancellation + UNDERFLOW * self.scale.max(1.0) }
    }

    fn single(&self, relative: f64) -> f64 {
        relative * self.magnitude + self.absolute()
    }

    fn double(&self) -> f64 {
        let cancellation = if self.cancels { DOUBLE_CANCELLATION * self.scale } else { 0.0 };
        DOUBLE * self.magnitude + cancellation
    }
}

/// A type of results.
pub trait Number: Element + Debug + Default + PartialEq {
    const NAME: &str;
    /// How far a value is from the truth, over how far it may be.
    fn error_ratio(self, want: &Want, relative: f64) -> f64;
    /// All bits: -0 differs from 0, and one NaN from another.
    fn bits(self) -> u64;
}

/// A storage type of logits and gradients.
pub trait Stored: Number + Element<Loss: Number> {}
impl<T: Number + Element<Loss: Number>> Stored for T {}

fn ratio(error: f64, tolerance: f64) -> f64 {
    if error == 0.0 { 0.0 } else { error / tolerance }
}

impl Number for f32 {
    const NAME: &str = "f32";
    fn error_ratio(self, want: &Want, relative: f64) -> f64 {
        if self == want.value as f32 {
            return 0.0; // inf too, where the truth is beyond f32
        }
        ratio((f64::from(self) - want.value).abs(), want.single(relative))
    }
    fn bits(self) -> u64 {
        self.to_bits().into()
    }
}

impl Number for f64 {
    const NAME: &str = "f64";
    fn error_ratio(self, want: &Want, _: f64) -> f64 {
        ratio((self - want.value).abs(), want.double())
    }
    fn bits(self) -> u64 {
        self.to_bits()
    }
}

/// The number of a 16-bit float in the order of their values.
fn order(bits: u16) -> i32 {
    let magnitude = i32::from(bits & 0x7fff);
    if bits & 0x8000 == 0 { magnitude } else { -magnitude }
}

macro_rules! half {
    ($type:ty, $name:literal) => {
        impl Number for $type {
            const NAME: &str = $name;
            fn error_ratio(self, want: &Want, _: f64) -> f64 {
                if self.is_nan() {
                    return f64::NAN;
                }
                let nearest = |value: f64| order(<$type>::from_f64(value).to_bits());
                let (low, high) =
                    (nearest(want.value - want.absolute()), nearest(want.value + want.absolute()));
                let got = order(self.to_bits());
                let ulps = (low - got).max(got - high).max(0);
                // Exactly zero is exactly zero: there is no rounding boundary near it.
                if want.scale == 0.0 && ulps > 0 { f64::INFINITY } else { ulps.into() }
            }
            fn bits(self) -> u64 {
                self.to_bits().into()
            }
        }
    };
}
half!(f16, "f16");
half!(bf16, "bf16");

fn complaint<T: Number>(index: usize, got: T, want: &Want, relative: f64) -> Option<String> {
    let bad = if want.value.is_finite() {
        let ratio = got.error_ratio(want, relative);
        // Written so that NaN is bad.
        #[allow(clippy::neg_cmp_op_on_partial_ord)]
        let bad = !(ratio <= 1.0);
        bad.then(|| format!("error / tolerance {ratio:.3}"))
    } else {
        got.to_f64().is_finite().then(|| "must not be finite".to_owned())
    };
    bad.map(|why| {
        let rounded = T::from_f64(want.value).to_f64();
        format!(
            "  [{index}] got {:e}, want {:e} ({rounded:e} in {}): {why}",
            got.to_f64(),
            want.value,
            T::NAME
        )
    })
}

#[track_caller]
fn check<T: Number>(what: &str, got: &[T], want: &[Option<Want>], relative: f64) {
    assert_eq!(got.len(), want.len(), "{what}: number of elements");
    let pairs = got.iter().zip(want).enumerate();
    let bad: Vec<String> =
        pairs.filter_map(|(index, (&got, want))| complaint(index, got, want.as_ref()?, relative)).collect();
    if !bad.is_empty() {
        let first: Vec<&str> = bad.iter().take(4).map(String::as_str).collect();
        panic!("{what}: {} of {} are wrong\n{}", bad.len(), got.len(), first.join("\n"));
    }
}

/// Compares gradients, or the losses of rows.
#[track_caller]
pub fn check_elements<T: Number>(what: &str, got: &[T], want: &[Option<Want>]) {
    check(what, got, want, RELATIVE);
}

/// Compares 16-bit gradients with the nearest to the truth, or to what f32 arithmetic may have made of it. Closer
/// than [`check_elements`]: shows that they are rounded to nearest.
#[track_caller]
pub fn check_nearest<T: Number>(what: &str, got: &[T], want: &[Option<Want>]) {
    assert_eq!(got.len(), want.len(), "{what}: number of elements");
    for (index, (got, want)) in got.iter().zip(want).enumerate() {
        let Some(want) = want.filter(|want| want.value.is_finite()) else { continue };
        let slack = want.single(BEFORE_ROUNDING);
        let [low, high] = [-slack, slack].map(|slack| T::from_f64(want.value + slack).to_f64());
        let nearest = (low..=high).contains(&got.to_f64());
        assert!(nearest, "{what} [{index}]: {got:?} is not from {low:e} to {high:e}, for {:e}", want.value);
    }
}

/// Compares with the nearest f32 to the truth, or to what arithmetic in double may have made of it. Closer than
/// [`check_elements`]: shows that what is said to be worked out in double is, and rounded only at the end.
#[track_caller]
pub fn check_rounded_once(what: &str, got: &[f32], want: &[Option<Want>]) {
    assert_eq!(got.len(), want.len(), "{what}: number of elements");
    for (index, (got, want)) in got.iter().zip(want).enumerate() {
        let Some(want) = want.filter(|want| want.value.is_finite()) else { continue };
        let slack = BEFORE_ROUNDING_TO_F32 * (want.magnitude + want.scale);
        let [low, high] = [-slack, slack].map(|slack| (want.value + slack) as f32);
        let nearest = (low..=high).contains(got);
        assert!(nearest, "{what} [{index}]: {got:e} is not from {low:e} to {high:e}, for {:e}", want.value);
    }
}

/// Compares a sum or mean.
#[track_caller]
pub fn check_reduced<T: Number>(what: &str, got: T, want: &Want) {
    check(what, &[got], &[Some(*want)], RELATIVE_REDUCED);
}

/// Compares with golden results: relative plus cancellation everywhere, which is all that they
/// are worth. `scale`: what the element was multiplied by.
#[track_caller]
pub fn check_golden<T: Number>(what: &str, got: &[T], want: &[f64], scale: impl Fn(usize) -> f64) {
    let want: Vec<_> = (want.iter().enumerate())
        .map(|(i, &value)| Some(Want { value, magnitude: value.abs(), scale: scale(i), cancels: true }))
        .collect();
    // An f64 result is compared as f32 would be: the golden results are no better.
    if T::NAME == "f64" {
        let got: Vec<f32> = got.iter().map(|got| got.to_f64() as f32).collect();
        check(what, &got, &want, RELATIVE);
    } else {
        check(what, got, &want, RELATIVE);
    }
}

/// Compares with golden results of a head, all of which is divided by a normaliser of 1 or more.
#[track_caller]
pub fn check_golden_single<T: Number>(what: &str, got: &[T], want: &[f64]) {
    check_golden(what, got, want, |_| 1.0);
}

/// The same at the precision that these results have: their cross entropies are differences of
/// numbers of order 10, which leaves 1e-14 of absolute error in a sum of a few hundred.
#[track_caller]
pub fn check_golden_double(what: &str, got: &[f64], want: &[f64]) {
    let of = |&value: &f64| Some(Want { value, magnitude: value.abs(), scale: 10.0, cancels: true });
    check(what, got, &want.iter().map(of).collect::<Vec<_>>(), RELATIVE);
}

/// The same bits, NaN included.
#[track_caller]
pub fn check_same_bits<T: Number>(what: &str, got: &[T], want: &[T]) {
    assert_eq!(got.len(), want.len(), "{what}: number of elements");
    for (index, (got, want)) in got.iter().zip(want).enumerate() {
        assert!(got.bits() == want.bits(), "{what} [{index}]: {got:?} has other bits than {want:?}");
    }
}
