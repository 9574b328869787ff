//! The values of options.

use std::fmt;
use std::str::FromStr;

use clap::ValueEnum;
use gfocal::AvgPolicy;

use crate::floats::Dtype;

/// What `--device` may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceChoice {
    Auto,
    Cpu,
    Cuda(usize),
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(DeviceChoice::Auto),
            "cpu" => Ok(DeviceChoice::Cpu),
            "cuda" => Ok(DeviceChoice::Cuda(0)),
            _ => {
                let ordinal = text.strip_prefix("cuda:").and_then(|ordinal| ordinal.parse().ok());
                ordinal
                    .map(DeviceChoice::Cuda)
                    .ok_or_else(|| "it must be auto, cpu, cuda or cuda:N".to_owned())
            }
        }
    }
}

/// What `--dtype` may be.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum DtypeChoice {
    /// 32-bit floats
    F32,
    /// IEEE half precision
    F16,
    /// The upper half of a 32-bit float
    Bf16,
}

impl From<DtypeChoice> for Dtype {
    fn from(choice: DtypeChoice) -> Dtype {
        match choice {
            DtypeChoice::F32 => Dtype::F32,
            DtypeChoice::F16 => Dtype::F16,
            DtypeChoice::Bf16 => Dtype::Bf16,
        }
    }
}

/// What `--reduction` may be for one loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ReductionChoice {
    /// The loss of each row
    None,
    /// Their sum over the number of rows, or over --avg-factor
    Mean,
    /// Their sum
    Sum,
}

/// What `--reduction` may be for both losses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum HeadReductionChoice {
    /// As GFL's head: QFL's sum over the positives, DFL's over its weights
    Head,
    /// The loss of each row
    None,
    /// Their sum over the number of rows
    Mean,
    /// Their sum
    Sum,
}

/// What `--background` may be.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum BackgroundChoice {
    /// Classes are 0..C; C and every negative label are background
    Last,
    /// 0 is background; the classes are 1..=C
    First,
}

impl BackgroundChoice {
    pub fn name(self) -> &'static str {
        match self {
            BackgroundChoice::Last => "last",
            BackgroundChoice::First => "first",
        }
    }
}

impl From<BackgroundChoice> for gfocal::Background {
    fn from(choice: BackgroundChoice) -> Self {
        match choice {
            BackgroundChoice::Last => gfocal::Background::Last,
            BackgroundChoice::First => gfocal::Background::First,
        }
    }
}

/// What `--avg-policy` may be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PolicyChoice(pub AvgPolicy);

impl FromStr for PolicyChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let policy = match text {
            "exact" => AvgPolicy::Exact,
            "eps" => AvgPolicy::Eps,
            _ => {
                let minimum = text.strip_prefix("min=").ok_or("it must be exact, eps or min=M")?;
                AvgPolicy::AtLeast(
                    above_0(minimum).map_err(|_| "in min=M, M must be a finite number above 0")?,
                )
            }
        };
        Ok(PolicyChoice(policy))
    }
}

impl fmt::Display for PolicyChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            AvgPolicy::Exact => f.write_str("exact"),
            AvgPolicy::Eps => f.write_str("eps"),
            AvgPolicy::AtLeast(minimum) => write!(f, "min={minimum}"),
        }
    }
}

/// A finite number that is as `rule` says.
fn number(text: &str, rule: &str, allowed: impl Fn(f64) -> bool) -> Result<f64, String> {
    let value = text.parse().ok().filter(|value: &f64| value.is_finite() && allowed(*value));
    value.ok_or_else(|| format!("it must be {rule}"))
}

/// A number that is neither NaN nor infinite.
pub fn finite(text: &str) -> Result<f64, String> {
    number(text, "a finite number", |_| true)
}

/// A finite number, 0 or more.
pub fn not_negative(text: &str) -> Result<f64, String> {
    number(text, "a finite number, 0 or more", |value| value >= 0.0)
}

/// A finite number above 0.
pub fn above_0(text: &str) -> Result<f64, String> {
    number(text, "a finite number above 0", |value| value > 0.0)
}

/// β: the range that the library takes.
pub fn beta(text: &str) -> Result<f64, String> {
    number(text, "a number from 0 to 10^6", |value| (0.0..=1e6).contains(&value))
}

/// α: a share.
pub fn alpha(text: &str) -> Result<f64, String> {
    number(text, "a number from 0 to 1", |value| (0.0..=1.0).contains(&value))
}

/// A height and a width in pixels.
pub fn image_size(text: &str) -> Result<[usize; 2], String> {
    let side = |text: &str| text.parse::<usize>().ok().filter(|&side| side > 0);
    let sides = text.split_once('x').and_then(|(height, width)| Some([side(height)?, side(width)?]));
    sides.ok_or_else(|| "it must be a height and a width in pixels, as 800x1333".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices() {
        assert_eq!("cuda:12".parse(), Ok(DeviceChoice::Cuda(12)));
        assert_eq!("cuda".parse(), Ok(DeviceChoice::Cuda(0)));
        for wrong in ["", "CPU", "cuda:", "cuda:-1", "cuda:1.5", "cuda:99999999999999999999", "gpu"] {
            assert!(wrong.parse::<DeviceChoice>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn policies() {
        for text in ["exact", "eps", "min=1", "min=0.5"] {
            assert_eq!(text.parse::<PolicyChoice>().unwrap().to_string(), text);
        }
        for wrong in ["", "min", "min=", "min=0", "min=-1", "min=NaN", "min=inf", "max=1"] {
            assert!(wrong.parse::<PolicyChoice>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes_and_strides() {
        assert_eq!(image_size("800x1333"), Ok([800, 1333]));
        for wrong in ["", "800", "800x", "x", "0x8", "8x-1", "8x8x8", "8.5x8"] {
            assert!(image_size(wrong).is_err(), "{wrong}");
        }
        assert_eq!(above_0("8"), Ok(8.0));
        for wrong in ["", "0", "-8", "NaN", "inf", "8px"] {
            assert!(above_0(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn numbers() {
        assert_eq!(finite("-1e3"), Ok(-1000.0));
        for wrong in ["", "NaN", "inf", "-inf", "1e999", "one"] {
            assert!(
                finite(wrong).is_err() && not_negative(wrong).is_err() && beta(wrong).is_err(),
                "{wrong}"
            );
        }
        assert!(not_negative("-1").is_err() && beta("-1").is_err() && beta("1000001").is_err());
    }
}
