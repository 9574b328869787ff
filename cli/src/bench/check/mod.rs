//! Wrong results are not timed: what passes give is held to the formulas of `reference/`.

mod head;
mod rows;
mod truth;

use gfocal_bench::{Pass, Stored, Workload, head as of_head, rows as of_rows};

use super::case::Case;
use crate::error::Result;
use crate::floats::Dtype;

/// Inputs that are known what to give for.
pub trait Checked: Workload {
    /// Runs every pass, and compares with the plain formula.
    fn check(&self, case: &Case, run: impl FnMut(Pass) -> Result<Self::Outcome>) -> Result<()>;
}

impl<T: Stored> Checked for of_rows::Inputs<T> {
    fn check(&self, case: &Case, run: impl FnMut(Pass) -> Result<Self::Outcome>) -> Result<()> {
        rows::check(case, self, run)
    }
}

impl<T: Stored> Checked for of_head::Inputs<T> {
    fn check(&self, case: &Case, run: impl FnMut(Pass) -> Result<Self::Outcome>) -> Result<()> {
        head::check(case, self, run)
    }
}

/// Gradients are compared in about so many rows, from first to last.
const ROWS: usize = 256;

/// Twice one unit in the last place for the storage types, 1e-5 for f32; and what is lost where
/// two numbers near each other are subtracted, or below the least normal number.
fn tolerance(dtype: Dtype) -> (f64, f64) {
    match dtype {
        Dtype::F64 | Dtype::F32 => (1e-5, 4e-7),
        Dtype::F16 => (2f64.powi(-9), 4e-7),
        Dtype::Bf16 => (2f64.powi(-6), 4e-7),
    }
}

#[cfg(test)]
type Spoil<'a, Outcome> = (&'a str, &'a dyn Fn(&mut Outcome));

/// Results that are spoilt are noticed, and others are not.
#[cfg(test)]
fn assert_noticed<I: Checked>(case: &Case, inputs: &I, spoilt: &[Spoil<I::Outcome>]) {
    use gfocal_bench::Calls;

    let mut cpu = inputs.on_cpu();
    inputs.check(case, |pass| Ok(cpu.outcome(pass)?)).unwrap();
    for (what, spoil) in spoilt {
        let run = |pass| {
            let mut outcome = cpu.outcome(pass)?;
            spoil(&mut outcome);
            Ok(outcome)
        };
        let found = inputs.check(case, run);
        assert!(matches!(found, Err(crate::error::Error::Wrong { .. })), "{case}: {what}");
    }
}

/// NaN is never close.
fn close(found: f64, expected: f64, relative: f64, absolute: f64) -> bool {
    (found - expected).abs() <= relative * expected.abs() + absolute
}
