//! Reports for people.

use std::fmt::Write;

use crate::report::{GflReport, LossReport};

const HEADER: [&str; 8] =
    ["", "rows", "columns", "positives", "reduction", "weight", "loss", "gradient norm"];

/// One loss.
pub fn loss(report: &LossReport) -> String {
    let mut text = format!("{} on {}\n\n", report.dtype, report.device);
    text += &table(&[HEADER.map(str::to_owned), row(report)]);
    text += &remarks(report);
    text
}

/// Both losses and their sum.
pub fn gfl(report: &GflReport) -> String {
    let (qfl, dfl) = (&report.qfl, &report.dfl);
    let dtype = if qfl.dtype == dfl.dtype {
        qfl.dtype.to_owned()
    } else {
        format!("{} and {}", qfl.dtype, dfl.dtype)
    };
    let mut rows = vec![HEADER.map(str::to_owned), row(qfl), row(dfl)];
    if let Some(loss) = report.loss {
        let mut sum: [String; 8] = Default::default();
        "sum".clone_into(&mut sum[0]);
        sum[6] = number(loss.0);
        rows.push(sum);
    }
    format!("{dtype} on {}\n\n{}{}{}", report.device, table(&rows), remarks(qfl), remarks(dfl))
}

fn row(report: &LossReport) -> [String; 8] {
    let [rows, columns] = report.shape;
    let reduction = match (report.avg_factor, report.avg_policy.as_deref()) {
        (Some(factor), Some(policy)) => match policy.strip_prefix("min=") {
            Some(minimum) => format!("sum / max({}, {minimum})", number(factor)),
            None if policy == "eps" => format!("sum / ({} + 2^-23)", number(factor)),
            None => format!("sum / {}", number(factor)),
        },
        _ => report.reduction.to_owned(),
    };
    [
        report.op.to_uppercase(),
        rows.to_string(),
        columns.to_string(),
        report.positives.to_string(),
        reduction,
        number(report.loss_weight),
        report.loss.map_or("one a row".to_owned(), |loss| number(loss.0)),
        number(report.grad_norm.0),
    ]
}

/// What does not fit into the table.
fn remarks(report: &LossReport) -> String {
    let (mut text, name) = (String::new(), report.op.to_uppercase());
    if let Some([least, greatest]) = report.range {
        let _ = writeln!(
            text,
            "\n{name}: the losses of the rows are from {} to {}.",
            number(least),
            number(greatest)
        );
    }
    text += &sentences(&format!("{name}: "), &report.grad.sentences(report.options.input(), report.dtype));
    text + &sentences(&format!("{name}: "), &report.status.sentences)
}

/// A paragraph, a line for each.
pub fn sentences(prefix: &str, sentences: &[String]) -> String {
    let mut text = String::new();
    for (i, sentence) in sentences.iter().enumerate() {
        let _ = writeln!(text, "{}{prefix}{sentence}", if i == 0 { "\n" } else { "" });
    }
    text
}

/// Columns as wide as their cells, the first to the left, the others to the right.
pub fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let mut text = String::new();
    for (i, row) in rows.iter().enumerate() {
        let mut line = format!("{:<width$}", row[0], width = widths[0]);
        for (cell, width) in row.iter().zip(widths).skip(1) {
            let _ = write!(line, "  {cell:>width$}");
        }
        text += line.trim_end();
        text.push('\n');
        if i == 0 {
            text += &"-".repeat(widths.iter().sum::<usize>() + 2 * (N - 1));
            text.push('\n');
        }
    }
    text
}

/// Six significant digits.
pub fn number(value: f64) -> String {
    const DIGITS: i32 = 6;
    if value == 0.0 || !value.is_finite() {
        return value.to_string();
    }
    // The exponent after rounding: 999999.7 has 6.
    let scientific = format!("{value:.*e}", DIGITS as usize - 1);
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..DIGITS).contains(&exponent) {
        without_zeros(&format!("{value:.*}", (DIGITS - 1 - exponent) as usize))
    } else {
        format!("{}e{exponent}", without_zeros(mantissa))
    }
}

fn without_zeros(digits: &str) -> String {
    if digits.contains('.') { digits.trim_end_matches('0').trim_end_matches('.') } else { digits }.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_six_digits() {
        let cases = [
            (0.0, "0"),
            (1.0, "1"),
            (-0.25, "-0.25"),
            (1.0 / 3.0, "0.333333"),
            (123456.7, "123457"),
            (100.0, "100"),
            (999999.7, "1e6"),
            (1234567.0, "1.23457e6"),
            (0.00012345678, "0.000123457"),
            (0.000012345678, "1.23457e-5"),
            (f64::NAN, "NaN"),
            (f64::NEG_INFINITY, "-inf"),
        ];
        for (value, text) in cases {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn cells_are_aligned() {
        let rows = [["", "rows"], ["QFL", "7"]].map(|row| row.map(str::to_owned));
        assert_eq!(table(&rows), "     rows\n---------\nQFL     7\n");
    }
}
