//! The picture: a roofline over the bytes moved, and times over the number of rows.

use gfocal_bench::{Op, Pass};
use plotters::coord::combinators::{LogCoord, WithKeyPoints};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, VPos};

use super::report::{Record, digits};
use crate::error::{Error, Result};
use crate::plot::{Area, Drawn, FONT, style};

const WIDTH: u32 = 1240;
const TITLE: u32 = 64;
const ROOFLINE: u32 = 460;
const SWEEP: u32 = 400;
/// Of the table beside the roofline.
const TABLE: u32 = 430;
const LINE: i32 = 22;
const PANELS: usize = 3;

type Axis = WithKeyPoints<LogCoord<f64>>;
type Chart<'a> = ChartContext<'a, SVGBackend<'a>, Cartesian2d<Axis, Axis>>;
/// Sizes of the same operation, pass, type and columns, smallest first.
type Series<'a> = Vec<&'a Record>;

/// An SVG of the records.
pub fn svg(records: &[Record], date: &str) -> Result<String> {
    let mut text = String::new();
    draw(&mut text, records, date).map_err(|error| Error::Plot(error.to_string()))?;
    Ok(text)
}

fn draw(text: &mut String, records: &[Record], date: &str) -> Drawn {
    let Some(first) = records.first() else { return Ok(()) };
    let series = grouped(records.iter(), |record| (record.series(), record.columns));
    let panels = grouped(records.iter(), |record| (record.op, record.columns));
    let top = ROOFLINE.max((series.len() as u32 + 6) * LINE as u32);
    let sweeps = SWEEP * panels.len().div_ceil(PANELS) as u32;
    let all = SVGBackend::with_string(text, (WIDTH, TITLE + top + sweeps)).into_drawing_area();
    all.fill(&WHITE)?;
    let (title, rest) = all.split_vertically(TITLE);
    let heading = format!("gfocal on {}: {}", first.device, first.device_name);
    title.draw(&Text::new(heading, (20, 14), (FONT, 20)))?;
    let about = format!(
        "{date}; {}; bytes: logits, gradients, labels or targets, and weights, once each",
        first.method
    );
    title.draw(&Text::new(about, (20, 40), (FONT, 13).into_font().color(&GREY)))?;
    let (top, bottom) = rest.split_vertically(top);
    let (left, right) = top.split_horizontally(WIDTH - TABLE);
    roofline(&left, records, &series)?;
    table(&right, &series)?;
    let places = bottom.split_evenly((panels.len().div_ceil(PANELS), panels.len().min(PANELS)));
    for (place, panel) in places.iter().zip(&panels) {
        sweep(place, &grouped(panel.iter().copied(), |record| record.series()))?;
    }
    all.present()?;
    Ok(())
}

/// The records of each key, in the order of their first, smallest first.
fn grouped<'a, K: PartialEq>(
    records: impl Iterator<Item = &'a Record>,
    key: impl Fn(&Record) -> K,
) -> Vec<Series<'a>> {
    let mut all: Vec<Series> = Vec::new();
    for record in records {
        match all.iter_mut().find(|series| key(series[0]) == key(record)) {
            Some(series) => series.push(record),
            None => all.push(vec![record]),
        }
    }
    for series in &mut all {
        series.sort_by_key(|record| record.rows);
    }
    all
}

/// What was reached over the bytes that had to be moved, under what the memory gives.
fn roofline(area: &Area, records: &[Record], series: &[Series]) -> Drawn {
    let ceilings = [
        ceiling(records, |record| Some(record.copy_gbytes_per_s)),
        ceiling(records, |record| record.read_gbytes_per_s),
    ];
    let reached = records.iter().map(|record| record.gbytes_per_s);
    let rates: Vec<f64> = ceilings.iter().flatten().map(|&(_, rate)| rate).chain(reached).collect();
    let (rates, bytes) = (range(rates.into_iter()), range(records.iter().map(megabytes)));
    heading(area, "Roofline: throughput over the bytes that must be moved")?;
    let mut chart = axes(area, 64, [bytes, rates], ("MB", Some("GB/s")), plain)?;
    let [copy, read] = ceilings;
    chart.draw_series(LineSeries::new(copy, COPY))?;
    chart.draw_series(DashedLineSeries::new(read, 7, 4, READ))?;
    for series in series {
        let points: Vec<_> = series.iter().map(|record| (megabytes(record), record.gbytes_per_s)).collect();
        chart.draw_series(LineSeries::new(points.iter().copied(), colour(series[0]).stroke_width(1)))?;
        for point in points {
            mark(chart.plotting_area(), series[0], point)?;
        }
    }
    Ok(())
}

/// The best rate among neighbours of about as many bytes: a ceiling is what can be reached.
fn ceiling(records: &[Record], rate: impl Fn(&Record) -> Option<f64>) -> Vec<(f64, f64)> {
    let mut all: Vec<(f64, f64)> =
        records.iter().filter_map(|record| Some((megabytes(record), rate(record)?))).collect();
    all.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut best: Vec<(f64, f64)> = Vec::new();
    for (bytes, rate) in all {
        match best.last_mut() {
            Some(last) if bytes <= last.0 * 1.25 => last.1 = last.1.max(rate),
            _ => best.push((bytes, rate)),
        }
    }
    // So far to both sides it holds, and a single point shows.
    if let (Some(&(first, low)), Some(&(last, high))) = (best.first(), best.last()) {
        best.insert(0, (first / 1.05, low));
        best.push((last * 1.05, high));
    }
    best
}

/// The legend, with the figures of each series at its largest.
fn table(area: &Area, series: &[Series]) -> Drawn {
    heading(area, "Largest size of each")?;
    let [name, rows, rate, of_copy, of_read] = [36, 238, 296, 356, 412];
    let text = |text: &str, x: i32, y: i32, horizontal: HPos, colour: RGBColor| {
        area.draw(&Text::new(text.to_owned(), (x, y), style(12, &colour, horizontal, VPos::Center)))
    };
    let titles = [(rows, "rows"), (rate, "GB/s"), (of_copy, "% of copy"), (of_read, "% of read")];
    for (x, title) in titles {
        text(title, x, 48, HPos::Right, GREY)?;
    }
    let several =
        |record: &Record| series.iter().any(|s| s[0].op == record.op && s[0].columns != record.columns);
    let mut y = 48;
    for series in series {
        y += LINE;
        let Some(record) = series.last() else { continue };
        area.draw(&PathElement::new([(4, y), (28, y)], colour(record).stroke_width(1)))?;
        mark(area, record, (16, y))?;
        let columns = if several(record) { format!(" x{}", record.columns) } else { String::new() };
        text(&(record.series() + &columns), name, y, HPos::Left, BLACK)?;
        let percent =
            |percent: Option<f64>| percent.map_or("-".to_owned(), |percent| format!("{percent:.0}"));
        for (x, figure) in [
            (rows, record.rows.to_string()),
            (rate, digits(record.gbytes_per_s)),
            (of_copy, percent(Some(record.percent_of_copy))),
            (of_read, percent(record.percent_of_read)),
        ] {
            text(&figure, x, y, HPos::Right, BLACK)?;
        }
    }
    y += LINE + LINE / 2;
    area.draw(&PathElement::new([(4, y), (28, y)], COPY))?;
    text("a copy of as many bytes, half read and half written", name, y, HPos::Left, BLACK)?;
    if series.iter().flatten().any(|record| record.read_gbytes_per_s.is_some()) {
        y += LINE;
        for x in [4, 15] {
            area.draw(&PathElement::new([(x, y), (x + 7, y)], READ))?;
        }
        text("a read of as many bytes", name, y, HPos::Left, BLACK)?;
    }
    Ok(())
}

/// The times of an operation over its rows: the median, and a bar from p20 to p80.
fn sweep(area: &Area, series: &[Series]) -> Drawn {
    let Some(first) = series.first().and_then(|series| series.first()) else { return Ok(()) };
    let records = || series.iter().flatten();
    let rows = range(records().map(|record| record.rows as f64));
    let times = range(records().flat_map(|record| [record.p20_us, record.p80_us]));
    heading(area, &format!("{}, {} columns: time of a call", first.op.title(), first.columns))?;
    let mut chart = axes(area, 60, [rows, times], ("rows", None), time)?;
    for series in series {
        let colour = colour(series[0]);
        let points: Vec<_> = series.iter().map(|record| (record.rows as f64, record.median_us)).collect();
        chart.draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(1)))?;
        let spread = series.iter().map(|record| {
            let x = record.rows as f64;
            PathElement::new([(x, record.p20_us), (x, record.p80_us)], colour.stroke_width(2))
        });
        chart.draw_series(spread)?;
        for point in points {
            mark(chart.plotting_area(), series[0], point)?;
        }
    }
    Ok(())
}

/// Axes and a grid; what stands at the left takes so many pixels.
fn axes<'a>(
    area: &Area<'a>,
    left: u32,
    [x, y]: [(f64, f64); 2],
    (x_name, y_name): (&str, Option<&str>),
    y_label: fn(f64) -> String,
) -> Result<Chart<'a>, Box<dyn std::error::Error>> {
    let mut chart = ChartBuilder::on(area)
        .margin(12)
        .margin_top(40)
        .margin_right(30)
        .set_label_area_size(LabelAreaPosition::Left, left)
        .set_label_area_size(LabelAreaPosition::Bottom, 42)
        .build_cartesian_2d(
            (x.0..x.1).log_scale().with_key_points(ticks(x)),
            (y.0..y.1).log_scale().with_key_points(ticks(y)),
        )?;
    let y_label = |value: &f64| y_label(*value);
    let mut mesh = chart.configure_mesh();
    mesh.light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .x_desc(x_name)
        .x_label_formatter(&|value| plain(*value))
        .y_label_formatter(&y_label)
        .axis_desc_style((FONT, 14))
        .label_style((FONT, 12));
    if let Some(name) = y_name {
        mesh.y_desc(name);
    }
    mesh.draw()?;
    Ok(chart)
}

fn heading(area: &Area, text: &str) -> Drawn {
    area.draw(&Text::new(text.to_owned(), (20, 12), (FONT, 15)))?;
    Ok(())
}

/// A range of an axis from a tick to a tick, with some room around the values.
fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (least, most) = values
        .fold((f64::INFINITY, 0.0), |(least, most): (f64, f64), value| (least.min(value), most.max(value)));
    let (least, most) = (least / 1.1, most * 1.1);
    let all = |value: f64| {
        let decade = value.log10().floor() as i32;
        [1.0, 2.0, 5.0, 10.0].map(|step| step * 10f64.powi(decade))
    };
    let below = all(least).into_iter().filter(|&tick| tick <= least).fold(least, |_, tick| tick);
    (below, all(most).into_iter().find(|&tick| tick >= most).unwrap_or(most))
}

/// 1, 2 and 5 of each power of ten within a range; where these are too many, the powers alone.
fn ticks((least, most): (f64, f64)) -> Vec<f64> {
    let decades = least.log10().floor() as i32..=most.log10().ceil() as i32;
    let steps: &[f64] = if most / least > 3e3 { &[1.0] } else { &[1.0, 2.0, 5.0] };
    let all = decades.flat_map(|decade| steps.iter().map(move |step| step * 10f64.powi(decade)));
    all.filter(|tick| (least * 0.999..most * 1.001).contains(tick)).collect()
}

fn megabytes(record: &Record) -> f64 {
    record.bytes as f64 / 1e6
}

/// A number for a tick, in full.
fn plain(value: f64) -> String {
    if value >= 1.0 { format!("{value:.0}") } else { format!("{}", (value * 1e9).round() / 1e9) }
}

/// Microseconds for a tick, in full.
fn time(microseconds: f64) -> String {
    match microseconds {
        us if us < 1e3 => format!("{} µs", plain(us)),
        us if us < 1e6 => format!("{} ms", plain(us / 1e3)),
        us => format!("{} s", plain(us / 1e6)),
    }
}

/// The mark of a storage type, in the colour of an operation's pass.
fn mark<CT: CoordTranslate>(area: &DrawingArea<SVGBackend, CT>, record: &Record, place: CT::From) -> Drawn
where
    CT::From: Clone + 'static,
{
    let style = colour(record).filled();
    match record.dtype {
        "f16" => area.draw(&TriangleMarker::new(place, 5, style))?,
        "bf16" => area.draw(&(EmptyElement::at(place) + Rectangle::new([(-4, -4), (4, 4)], style)))?,
        _ => area.draw(&Circle::new(place, 4, style))?,
    }
    Ok(())
}

const GREY: RGBColor = RGBColor(90, 90, 90);
const GRID: RGBColor = RGBColor(225, 225, 225);
const COPY: ShapeStyle = ShapeStyle { color: RGBAColor(0, 0, 0, 1.0), filled: false, stroke_width: 2 };
const READ: ShapeStyle = ShapeStyle { color: RGBAColor(120, 120, 120, 1.0), filled: false, stroke_width: 2 };

/// The colour of an operation's pass: dark for the pass that does more.
fn colour(record: &Record) -> RGBColor {
    match (record.op, record.pass) {
        (Op::Qfl, Pass::Forward) => RGBColor(107, 174, 214),
        (Op::Qfl, Pass::ForwardBackward) => RGBColor(8, 81, 156),
        (Op::Qfl, Pass::Backward) => RGBColor(33, 160, 160),
        (Op::Dfl, Pass::Forward) => RGBColor(253, 141, 60),
        (Op::Dfl, Pass::ForwardBackward) => RGBColor(166, 54, 3),
        (Op::Dfl, Pass::Backward) => RGBColor(214, 39, 40),
        (Op::Head, Pass::Forward) => RGBColor(158, 154, 200),
        (Op::Head, Pass::ForwardBackward | Pass::Backward) => RGBColor(84, 39, 143),
        (Op::Integral, Pass::Forward) => RGBColor(116, 196, 118),
        (Op::Integral, Pass::ForwardBackward | Pass::Backward) => RGBColor(0, 109, 44),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_few_and_within() {
        assert_eq!(range([3.0, 0.7, 30.0].into_iter()), (0.5, 50.0));
        assert_eq!(range([4000.0].into_iter()), (2000.0, 5000.0));
        assert_eq!(ticks((0.5, 20.0)), [0.5, 1.0, 2.0, 5.0, 10.0, 20.0]);
        assert_eq!(ticks((10.0, 1e5)), [10.0, 100.0, 1e3, 1e4, 1e5]);
        assert_eq!([0.2, 5.0, 2e3, 5e7].map(time), ["0.2 µs", "5 µs", "2 ms", "50 s"]);
        assert_eq!([0.001, 0.5, 20.0, 1e6].map(plain), ["0.001", "0.5", "20", "1000000"]);
    }
}
