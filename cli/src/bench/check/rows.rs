//! Operations on rows.

use gfocal_bench::rows::{Inputs, Outcome};
use gfocal_bench::{Pass, RowOp, Stored};
use gfocal_reference::{dfl, integral, qfl_row};

use super::{ROWS, close, tolerance};
use crate::bench::case::Case;
use crate::bench::cpu;
use crate::error::{Error, Result};

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
                None => {
                    (cpu::sum(inputs.shape[0], |row| truth(inputs, row).0), "the plain formula's".to_owned())
                }
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
    let (columns, (value, grad)) = (inputs.shape[1], truth(inputs, row));
    if (inputs.op, pass) == (RowOp::Integral, Pass::Forward) {
        let found = f64::from(outcome.loss[row]);
        let right = close(found, value, 1e-5, 1e-6);
        return if right { Ok(()) } else { Err(format!("row {row} is {found}, not {value}")) };
    }
    if pass == Pass::Forward {
        return Ok(());
    }
    let (relative, absolute) = tolerance(case.dtype);
    for (column, &truth) in grad.iter().enumerate() {
        let found = outcome.grad[row * columns + column].to_f64();
        if !close(found, truth, relative, absolute) {
            let at = format!("row {row}, column {column}");
            return Err(format!("the {} gradient is {found} and not {truth} at {at}", pass.name()));
        }
    }
    Ok(())
}

/// The formula's result and gradient of a row, with its weight.
fn truth<T: Stored>(inputs: &Inputs<T>, row: usize) -> (f64, Vec<f64>) {
    let (z, weight) = (inputs.row(row), f64::from(inputs.weight[row]));
    let (value, mut grad) = match inputs.op {
        RowOp::Qfl => qfl_row(&z, inputs.labels[row], inputs.quality[row].into(), 2.0),
        RowOp::Dfl => dfl(&z, inputs.target[row].into()),
        RowOp::Integral => integral(&z),
    };
    grad.iter_mut().for_each(|slope| *slope *= weight);
    (if inputs.op == RowOp::Integral { value } else { value * weight }, grad)
}

#[cfg(test)]
mod tests {
    use gfocal_bench::{Op, Size};

    use super::super::assert_noticed;
    use super::*;
    use crate::floats::Dtype;

    #[test]
    fn right_results_pass_and_wrong_ones_do_not() {
        for op in [Op::Qfl, Op::Dfl, Op::Integral] {
            let size = Size { rows: 300, columns: 9 };
            let case = Case { op, dtype: Dtype::F32, size, passes: vec![] };
            let inputs = Inputs::<f32>::random(op.on_rows().unwrap(), case.size);
            assert_noticed(
                &case,
                &inputs,
                &[
                    ("a gradient", &|outcome| outcome.grad[4] += 1e-3),
                    ("nothing written", &|outcome| outcome.grad.fill(f32::NAN)),
                    ("a loss", &|outcome| outcome.loss[0] *= 1.0001),
                ],
            );
        }
    }
}
