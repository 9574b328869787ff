//! What is told of a case.

use gfocal_bench::{Op, Pass};
use serde::Serialize;

use super::case::Case;
use super::timing::Samples;
use crate::report::json as to_json;
use crate::table::table as aligned;

/// A pass of a case. The names of the fields are those in JSON and CSV.
#[derive(Clone, Debug, Serialize)]
pub struct Record {
    #[serde(rename = "impl")]
    pub implementation: &'static str,
    pub op: Op,
    pub pass: Pass,
    pub dtype: &'static str,
    pub rows: usize,
    pub columns: usize,
    pub device: String,
    pub device_name: String,
    pub samples: usize,
    pub median_us: f64,
    pub p20_us: f64,
    pub p80_us: f64,
    /// Those that must be moved.
    pub bytes: usize,
    pub gbytes_per_s: f64,
    pub copy_gbytes_per_s: f64,
    pub percent_of_copy: f64,
    /// Where it was measured, and the pass does nothing but read.
    pub read_gbytes_per_s: Option<f64>,
    pub percent_of_read: Option<f64>,
    pub elements_per_s: f64,
    pub method: &'static str,
}

impl Record {
    /// `device` is its short and its long name; the `ceilings` are seconds of a copy and of a read.
    pub fn new(
        case: &Case,
        pass: Pass,
        device: (String, String),
        samples: &Samples,
        ceilings: (f64, Option<f64>),
        method: &'static str,
    ) -> Record {
        let (bytes, median) = (case.bytes(pass), samples.median());
        let (rate, (copy, read)) = (|seconds: f64| bytes as f64 / seconds / 1e9, ceilings);
        Record {
            implementation: "gfocal",
            op: case.op,
            pass,
            dtype: case.dtype.name(),
            rows: case.size.rows,
            columns: case.size.columns,
            device: device.0,
            device_name: device.1,
            samples: samples.count(),
            median_us: median * 1e6,
            p20_us: samples.quantile(0.2) * 1e6,
            p80_us: samples.quantile(0.8) * 1e6,
            bytes,
            gbytes_per_s: rate(median),
            copy_gbytes_per_s: rate(copy),
            percent_of_copy: 100.0 * copy / median,
            read_gbytes_per_s: read.map(rate),
            percent_of_read: read.map(|read| 100.0 * read / median),
            elements_per_s: (case.size.rows * case.size.columns) as f64 / median,
            method,
        }
    }

    /// The name of what is the same for all sizes.
    pub fn series(&self) -> String {
        series(self.op, self.pass, self.dtype)
    }
}

fn series(op: Op, pass: Pass, dtype: &str) -> String {
    format!("{} {} {dtype}", op.title(), pass.name().replace('_', "+"))
}

pub fn json(records: &[Record]) -> String {
    let objects: Vec<String> = records.iter().map(to_json).collect();
    format!("[\n{}\n]\n", objects.join(",\n"))
}

/// Commas between; what has a comma or a quote is quoted.
pub fn csv(records: &[Record]) -> String {
    let mut text = String::new();
    for (i, record) in records.iter().enumerate() {
        let line: Vec<(String, String)> = fields(record);
        if i == 0 {
            let names: Vec<&str> = line.iter().map(|(name, _)| &**name).collect();
            text += &(names.join(",") + "\n");
        }
        let values: Vec<&str> = line.iter().map(|(_, value)| &**value).collect();
        text += &(values.join(",") + "\n");
    }
    text
}

/// Names and values, in the order of the fields.
fn fields(record: &Record) -> Vec<(String, String)> {
    let option = |value: Option<f64>| value.map_or(String::new(), |value| value.to_string());
    let quoted = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
    let fields = [
        ("impl", record.implementation.to_owned()),
        ("op", record.op.name().to_owned()),
        ("pass", record.pass.name().to_owned()),
        ("dtype", record.dtype.to_owned()),
        ("rows", record.rows.to_string()),
        ("columns", record.columns.to_string()),
        ("device", record.device.clone()),
        ("device_name", quoted(&record.device_name)),
        ("samples", record.samples.to_string()),
        ("median_us", record.median_us.to_string()),
        ("p20_us", record.p20_us.to_string()),
        ("p80_us", record.p80_us.to_string()),
        ("bytes", record.bytes.to_string()),
        ("gbytes_per_s", record.gbytes_per_s.to_string()),
        ("copy_gbytes_per_s", record.copy_gbytes_per_s.to_string()),
        ("percent_of_copy", record.percent_of_copy.to_string()),
        ("read_gbytes_per_s", option(record.read_gbytes_per_s)),
        ("percent_of_read", option(record.percent_of_read)),
        ("elements_per_s", record.elements_per_s.to_string()),
        ("method", quoted(record.method)),
    ];
    fields.map(|(name, value)| (name.to_owned(), value)).to_vec()
}

const HEADER: [&str; 11] =
    ["", "rows", "columns", "median", "p20", "p80", "GB/s", "copy GB/s", "% copy", "% read", "Gelem/s"];

/// For people.
pub fn table(records: &[Record]) -> String {
    let row = |record: &Record| {
        [
            record.series(),
            record.rows.to_string(),
            record.columns.to_string(),
            time(record.median_us),
            time(record.p20_us),
            time(record.p80_us),
            digits(record.gbytes_per_s),
            digits(record.copy_gbytes_per_s),
            format!("{:.1}", record.percent_of_copy),
            record.percent_of_read.map_or("-".to_owned(), |percent| format!("{percent:.1}")),
            digits(record.elements_per_s / 1e9),
        ]
    };
    let rows: Vec<_> = [HEADER.map(str::to_owned)].into_iter().chain(records.iter().map(row)).collect();
    let about = records.first().map_or(String::new(), |record| {
        format!("{}: {}; {}\n\n", record.device, record.device_name, record.method)
    });
    let remark =
        "\nBytes are logits, gradients, labels or targets, and weights, once each; the copy moves as many.\n";
    about + &aligned(&rows) + remark
}

/// What was found right.
pub fn checked(cases: &[Case], device: &str, name: &str) -> String {
    let header = ["", "rows", "columns", "results"].map(str::to_owned);
    let rows = cases.iter().flat_map(|case| {
        case.passes.iter().map(|&pass| {
            let size = case.size;
            [
                series(case.op, pass, case.dtype.name()),
                size.rows.to_string(),
                size.columns.to_string(),
                "right".to_owned(),
            ]
        })
    });
    let rows: Vec<_> = std::iter::once(header).chain(rows).collect();
    format!("{device}: {name}; checked, not timed\n\n{}", aligned(&rows))
}

/// Microseconds in a unit to read.
fn time(microseconds: f64) -> String {
    match microseconds {
        us if us < 1e3 => format!("{} us", digits(us)),
        us if us < 1e6 => format!("{} ms", digits(us / 1e3)),
        us => format!("{} s", digits(us / 1e6)),
    }
}

/// Three or more significant digits, without an exponent.
pub fn digits(value: f64) -> String {
    let places = match value {
        value if value < 0.1 => 4,
        value if value < 1.0 => 3,
        value if value < 10.0 => 2,
        value if value < 100.0 => 1,
        _ => 0,
    };
    format!("{value:.places$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_short() {
        let times = [0.5, 12.34, 999.9, 1500.0, 2.5e6].map(time);
        assert_eq!(times, ["0.500 us", "12.3 us", "1000 us", "1.50 ms", "2.50 s"]);
    }
}
