//! Wrong results are not timed.

use std::thread;

use super::case::{Case, Pass, RowOp};
use super::data::{Inputs, Stored};
use super::formula;
use super::workload::Outcome;
use crate::error::{Error, Result};
use crate::floats::Dtype;

/// Gradients are compared in about so many rows, from first to last.
pub const ROWS: usize = 256;

/// Runs every pass once, and compares: the loss with the plain formula's over all rows, the gradient
/// in a sample of rows, and the passes with each other.
pub fn check<T: Stored>(
    case: &Case,
    inputs: &Inputs<T>,
    mut run: impl FnMut(Pass) -> Result<Outcome<T>>,
) -> Result<()> {
    let wrong = |what: String| Error::Wrong { case: case.to_string(), what };
    let mut loss: Option<(f64, Pass)> = None;
    for &pass in case.op.passes() {
        let outcome = run(pass)?;
        if pass != Pass::Backward && inputs.op != RowOp::Integral {
            let found = f64::from(outcome.loss[0]);
            let (expected, what) = match loss {
                None => (total(inputs), "the plain formula's".to_owned()),
                Some((loss, pass)) => (loss, format!("{}'s", pass.name())),
            };
            if !close(found, expected, 2e-6, 1e-12) {
                return Err(wrong(format!("the {} loss is {found}, {what} {expected}", pass.name())));
            }
            loss = loss.or(Some((found, pass)));
        }
        for row in (0..inputs.shape[0]).step_by(inputs.shape[0].div_ceil(ROWS)) {
            check_row(case, pass, inputs, &outcome, row).map_err(&wrong)?;
        }
    }
    Ok(())
}

fn check_row<T: Stored>(
    case: &Case,
    pass: Pass,
    inputs: &Inputs<T>,
    outcome: &Outcome<T>,
    row: usize,
) -> Result<(), String> {
    let (columns, truth) = (inputs.shape[1], formula::row(inputs, row));
    if (inputs.op, pass) == (RowOp::Integral, Pass::Forward) {
        let found = f64::from(outcome.loss[row]);
        let right = close(found, truth.value, 1e-5, 1e-6);
        return if right { Ok(()) } else { Err(format!("row {row} is {found}, not {}", truth.value)) };
    }
    if pass == Pass::Forward {
        return Ok(());
    }
    let (relative, absolute) = tolerance(case.dtype);
    for (column, &truth) in truth.grad.iter().enumerate() {
        let found = outcome.grad[row * columns + column].to_f64();
        if !close(found, truth, relative, absolute) {
            let at = format!("row {row}, column {column}");
            return Err(format!("the {} gradient is {found} and not {truth} at {at}", pass.name()));
        }
    }
    Ok(())
}

/// Twice one unit in the last place for the storage types, 1e-5 for f32; and what is lost where
/// two numbers near each other are subtracted, or below the least normal number.
pub fn tolerance(dtype: Dtype) -> (f64, f64) {
    match dtype {
        Dtype::F64 | Dtype::F32 => (1e-5, 4e-7),
        Dtype::F16 => (2f64.powi(-9), 4e-7),
        Dtype::Bf16 => (2f64.powi(-6), 4e-7),
    }
}

/// NaN is never close.
pub fn close(found: f64, expected: f64, relative: f64, absolute: f64) -> bool {
    (found - expected).abs() <= relative * expected.abs() + absolute
}

/// The plain formula's loss of all rows, by all cores.
fn total<T: Stored>(inputs: &Inputs<T>) -> f64 {
    let rows = inputs.shape[0];
    let share = rows.div_ceil(super::cpu::threads());
    let sum = |start: usize| -> f64 {
        (start..rows.min(start + share)).map(|row| formula::row(inputs, row).value).sum()
    };
    thread::scope(|scope| {
        let parts: Vec<_> = (0..rows).step_by(share).map(|start| scope.spawn(move || sum(start))).collect();
        parts.into_iter().map(|part| part.join().expect("the formula does not panic")).sum()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::args::Size;
    use crate::bench::case::Op;
    use crate::bench::cpu::Calls;
    use crate::bench::workload::Workload;

    fn case(op: Op) -> Case {
        Case { op, dtype: Dtype::F32, size: Size { rows: 300, columns: 9 }, passes: vec![] }
    }

    #[test]
    fn right_results_pass_and_wrong_ones_do_not() {
        for op in [Op::Qfl, Op::Dfl, Op::Integral] {
            let case = case(op);
            let inputs = Inputs::<f32>::random(op.on_rows().unwrap(), case.size);
            let mut cpu = inputs.on_cpu();
            check(&case, &inputs, |pass| cpu.outcome(pass)).unwrap();
            let spoilt: [fn(&mut Outcome<f32>); 3] = [
                |outcome| outcome.grad[4] += 1e-3,
                |outcome| outcome.grad.fill(f32::NAN),
                |outcome| outcome.loss[0] *= 1.0001,
            ];
            for spoil in spoilt {
                let run = |pass| {
                    let mut outcome = cpu.outcome(pass)?;
                    spoil(&mut outcome);
                    Ok(outcome)
                };
                assert!(matches!(check(&case, &inputs, run), Err(Error::Wrong { .. })), "{op:?}");
            }
        }
    }
}
