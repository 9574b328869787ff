//! The picture: how near each series comes to a copy, and how that goes with the size.

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::report::{Record, digits};
use crate::error::{Error, Result};

const WIDTH: u32 = 1100;
const TITLE: u32 = 60;
const BAR: u32 = 22;
const SWEEP: u32 = 520;
const FONT: &str = "sans-serif";
/// Room to the left of the bars for the names of the series.
const NAMES: i32 = 300;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// An SVG of the records.
pub fn svg(records: &[Record], date: &str) -> Result<String> {
    let mut text = String::new();
    draw(&mut text, records, date).map_err(|error| Error::Plot(error.to_string()))?;
    Ok(text)
}

fn draw(text: &mut String, records: &[Record], date: &str) -> Result<(), Box<dyn std::error::Error>> {
    let Some(first) = records.first() else { return Ok(()) };
    let series = series(records);
    let bars = BAR * series.len() as u32 + 110;
    let all = SVGBackend::with_string(text, (WIDTH, TITLE + bars + SWEEP)).into_drawing_area();
    all.fill(&WHITE)?;
    let (title, rest) = all.split_vertically(TITLE);
    let heading = format!("gfocal on {}: {}", first.device, first.device_name);
    title.draw(&Text::new(heading, (20, 14), (FONT, 20)))?;
    let about = format!("{date}; {}; bytes are those that must be moved", first.method);
    title.draw(&Text::new(about, (20, 40), (FONT, 13).into_font().color(&grey())))?;
    let (top, bottom) = rest.split_vertically(bars);
    draw_bars(&top, &series)?;
    draw_sweep(&bottom, &series)?;
    all.present()?;
    Ok(())
}

/// The records of each series, in the order of their first, smallest first.
fn series(records: &[Record]) -> Vec<Vec<&Record>> {
    let mut all: Vec<Vec<&Record>> = Vec::new();
    for record in records {
        match all.iter_mut().find(|series| series[0].series() == record.series()) {
            Some(series) => series.push(record),
            None => all.push(vec![record]),
        }
    }
    for series in &mut all {
        series.sort_by_key(|record| (record.rows, record.columns));
    }
    all
}

/// A bar for the largest size of each series, and a mark where the copy of as many bytes is.
fn draw_bars(area: &Area, series: &[Vec<&Record>]) -> Result<(), Box<dyn std::error::Error>> {
    let largest: Vec<&Record> = series.iter().filter_map(|series| series.last().copied()).collect();
    let most = greatest(largest.iter().copied());
    area.draw(&Text::new(
        "Largest size of each, and the copy of as many bytes in the same run",
        (20, 12),
        (FONT, 15),
    ))?;
    let mut chart = ChartBuilder::on(area)
        .margin_top(36)
        .margin_right(120)
        .set_label_area_size(LabelAreaPosition::Left, NAMES)
        .set_label_area_size(LabelAreaPosition::Bottom, 44)
        .build_cartesian_2d(0.0..most * 1.02, 0.0..largest.len() as f64)?;
    chart
        .configure_mesh()
        .disable_y_axis()
        .disable_y_mesh()
        .light_line_style(TRANSPARENT)
        .x_desc("GB/s")
        .x_label_formatter(&|value| digits_or_zero(*value))
        .axis_desc_style((FONT, 14))
        .label_style((FONT, 12))
        .draw()?;
    let place = |i: usize| (largest.len() - i) as f64;
    let bars = largest.iter().enumerate().map(|(i, record)| {
        let (top, bottom) = (place(i) - 0.15, place(i) - 0.85);
        Rectangle::new([(0.0, bottom), (record.gbytes_per_s, top)], colour(i).filled())
    });
    chart
        .draw_series(bars)?
        .label("this operation")
        .legend(|(x, y)| Rectangle::new([(x, y - 4), (x + 16, y + 4)], colour(0).filled()));
    let marks = largest.iter().enumerate().map(|(i, record)| {
        let x = record.copy_gbytes_per_s;
        PathElement::new([(x, place(i)), (x, place(i) - 1.0)], BLACK.stroke_width(2))
    });
    chart
        .draw_series(marks)?
        .label("copy")
        .legend(|(x, y)| PathElement::new([(x + 8, y - 6), (x + 8, y + 6)], BLACK.stroke_width(2)));
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE.mix(0.8))
        .border_style(grey())
        .label_font((FONT, 12))
        .draw()?;
    let (left, _) = chart.plotting_area().get_pixel_range();
    let style = |horizontal| TextStyle::from((FONT, 12).into_font()).pos(Pos::new(horizontal, VPos::Center));
    for (i, record) in largest.iter().enumerate() {
        let (x, y) = chart.backend_coord(&(record.gbytes_per_s, place(i) - 0.5));
        let offset = area.get_base_pixel();
        let (x, y) = (x - offset.0, y - offset.1);
        let name = format!("{}, {}x{}", record.series(), record.rows, record.columns);
        area.draw(&Text::new(name, (left.start - offset.0 - 8, y), style(HPos::Right)))?;
        let figure = format!("{} ({:.0} %)", digits(record.gbytes_per_s), record.percent_of_copy);
        area.draw(&Text::new(figure, (x + 6, y), style(HPos::Left)))?;
    }
    Ok(())
}

/// A line for each series over the number of rows, both axes in powers of ten.
fn draw_sweep(area: &Area, series: &[Vec<&Record>]) -> Result<(), Box<dyn std::error::Error>> {
    let records = || series.iter().flatten().copied();
    let rows = |record: &Record| record.rows as f64;
    let least = records().map(rows).fold(f64::INFINITY, f64::min);
    let most = records().map(rows).fold(0.0, f64::max);
    let slowest = records().map(|record| record.gbytes_per_s).fold(f64::INFINITY, f64::min);
    area.draw(&Text::new("Throughput over the size; copies dashed", (20, 12), (FONT, 15)))?;
    let mut chart = ChartBuilder::on(area)
        .margin_top(36)
        .margin_left(20)
        .margin_right(240)
        .margin_bottom(12)
        .set_label_area_size(LabelAreaPosition::Left, 80)
        .set_label_area_size(LabelAreaPosition::Bottom, 46)
        .build_cartesian_2d(
            (least * 0.8..most * 1.25).log_scale(),
            (slowest * 0.7..greatest(records()) * 1.5).log_scale(),
        )?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .x_desc("rows (log scale)")
        .y_desc("GB/s (log scale)")
        .x_label_formatter(&|rows| format!("{rows:.0}"))
        .y_label_formatter(&|value| digits(*value))
        .axis_desc_style((FONT, 14))
        .label_style((FONT, 12))
        .draw()?;
    for (i, series) in series.iter().enumerate() {
        let copies = series.iter().map(|record| (rows(record), record.copy_gbytes_per_s));
        chart.draw_series(DashedLineSeries::new(copies, 5, 5, colour(i).mix(0.5).stroke_width(1)))?;
        let points: Vec<_> = series.iter().map(|record| (rows(record), record.gbytes_per_s)).collect();
        chart.draw_series(LineSeries::new(points.iter().copied(), colour(i).stroke_width(2)))?;
        let marks = points.iter().map(|&point| marker(i, point));
        chart.draw_series(marks)?;
    }
    // The legend beside, where it hides no line.
    for (i, series) in series.iter().enumerate() {
        let y = 44 + 20 * i as i32;
        let x = WIDTH as i32 - 226;
        area.draw(&PathElement::new([(x, y), (x + 24, y)], colour(i).stroke_width(2)))?;
        area.draw(&marker(i, (x + 12, y)))?;
        let style = TextStyle::from((FONT, 12).into_font()).pos(Pos::new(HPos::Left, VPos::Center));
        area.draw(&Text::new(series[0].series(), (x + 32, y), style))?;
    }
    Ok(())
}

/// The greatest rate that has to fit, copies included.
fn greatest<'a>(records: impl Iterator<Item = &'a Record>) -> f64 {
    records.map(|record| record.gbytes_per_s.max(record.copy_gbytes_per_s)).fold(f64::MIN_POSITIVE, f64::max)
}

fn marker<C>(i: usize, place: C) -> Circle<C, i32> {
    Circle::new(place, 4, colour(i).filled())
}

fn digits_or_zero(value: f64) -> String {
    if value == 0.0 { "0".to_owned() } else { digits(value) }
}

fn grey() -> RGBColor {
    RGBColor(90, 90, 90)
}

/// The colour of the i-th series.
fn colour(i: usize) -> RGBColor {
    const COLOURS: [(u8, u8, u8); 12] = [
        (31, 119, 180),
        (255, 127, 14),
        (44, 160, 44),
        (214, 39, 40),
        (148, 103, 189),
        (140, 86, 75),
        (227, 119, 194),
        (23, 190, 207),
        (188, 189, 34),
        (0, 60, 120),
        (150, 75, 0),
        (0, 90, 50),
    ];
    let (red, green, blue) = COLOURS[i % COLOURS.len()];
    RGBColor(red, green, blue)
}
