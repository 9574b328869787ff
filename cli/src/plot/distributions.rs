//! The distributions of the box sides.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, VPos};

use super::positives::{Positive, Side};
use super::{Area, BLUE, Drawn, FONT, GREEN, GREY, ORANGE, WIDTH, heading, nothing, style};

const HEADING: u32 = 76;
const ROW: u32 = 190;
const NAMES: u32 = 170;
const SIDES: [&str; 4] = ["left", "top", "right", "bottom"];

pub fn height(positives: usize) -> u32 {
    HEADING + ROW * positives as u32
}

pub fn draw(area: &Area, positives: &[&Positive]) -> Drawn {
    const TITLE: &str = "Distributions of the box sides";
    if positives.is_empty() {
        return nothing(area, TITLE);
    }
    heading(
        area,
        TITLE,
        "Probability of each bin. The distance of a side is the expectation; DFL pulls the two bins beside the target up.",
    )?;
    legend(area)?;
    let mut rest = area.split_vertically(HEADING).1;
    for positive in positives {
        let (row, below) = rest.split_vertically(ROW);
        draw_row(&row, positive)?;
        rest = below;
    }
    Ok(())
}

fn legend(area: &Area) -> Drawn {
    let y = 60;
    let mut x = NAMES as i32 + 44;
    for (colour, words) in [(GREEN, "target"), (ORANGE, "expectation E (entropy in nats)")] {
        area.draw(&PathElement::new([(x, y - 7), (x, y + 7)], colour.stroke_width(3)))?;
        area.draw(&Text::new(words, (x + 8, y), style(13, &GREY, HPos::Left, VPos::Center)))?;
        x += 110;
    }
    Ok(())
}

fn draw_row(area: &Area, positive: &Positive) -> Drawn {
    let lines = [
        format!("class {}", positive.label),
        format!("IoU {:.3}", positive.iou),
        format!("score {:.3}", positive.score),
        format!("level {}, image {}", positive.level, positive.image),
        format!("position {}", positive.position),
    ];
    for (i, line) in lines.into_iter().enumerate() {
        let (size, colour) = if i < 3 { (15, BLACK) } else { (12, GREY) };
        let y = 30 + 20 * i as i32;
        area.draw(&Text::new(line, (24, y), style(size, &colour, HPos::Left, VPos::Center)))?;
    }
    let mut rest = area.split_horizontally(NAMES).1;
    let width = (WIDTH - NAMES) / 4;
    for (name, side) in SIDES.iter().zip(&positive.sides) {
        let (cell, beside) = rest.split_horizontally(width);
        draw_side(&cell, name, side)?;
        rest = beside;
    }
    Ok(())
}

fn draw_side(area: &Area, name: &str, side: &Side) -> Drawn {
    let bins = side.probabilities.len();
    let most = side.probabilities.iter().copied().fold(0.05, f64::max);
    let mut chart = ChartBuilder::on(area)
        .margin_top(24)
        .margin_right(14)
        .set_label_area_size(LabelAreaPosition::Left, 42)
        .set_label_area_size(LabelAreaPosition::Bottom, 26)
        .build_cartesian_2d(-0.6..bins as f64 - 0.4, 0.0..most * 1.08)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GREY.mix(0.18))
        .axis_style(GREY)
        .x_labels(bins.min(9))
        .y_labels(4)
        .x_label_formatter(&|bin| format!("{bin:.0}"))
        .label_style((FONT, 11))
        .draw()?;
    chart.draw_series(side.probabilities.iter().enumerate().map(|(bin, &p)| {
        Rectangle::new([(bin as f64 - 0.4, 0.0), (bin as f64 + 0.4, p)], BLUE.mix(0.75).filled())
    }))?;
    let line = |x: f64| [(x, 0.0), (x, most * 1.08)];
    chart.draw_series([PathElement::new(line(side.target), GREEN.stroke_width(2))])?;
    chart.draw_series([PathElement::new(line(side.expectation), ORANGE.stroke_width(2))])?;
    let words =
        format!("{name}: target {:.2}, E {:.2}, entropy {:.2}", side.target, side.expectation, side.entropy);
    area.draw(&Text::new(words, (42, 12), style(12, &BLACK, HPos::Left, VPos::Center)))?;
    Ok(())
}
