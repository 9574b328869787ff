//! QFL and focal loss over the score and the quality.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, VPos};

use super::{Area, Drawn, FONT, GREY, heading, style};

pub const HEIGHT: u32 = 500;
/// Cells along each side.
const CELLS: usize = 40;
/// The darkest colour; larger losses have it too.
const MOST: f64 = 1.0;
const PLOT: u32 = 500;

/// QFL of a score, in (0, 1), for a quality.
fn qfl(score: f64, quality: f64, beta: f64) -> f64 {
    (quality - score).abs().powf(beta) * cross_entropy(score, quality)
}

/// Focal loss with soft labels, as torchvision's sigmoid_focal_loss has it, without α:
/// (1 - p_t)^γ times the cross entropy, p_t = y·σ + (1 - y)·(1 - σ).
fn focal(score: f64, quality: f64, gamma: f64) -> f64 {
    let wrong = quality * (1.0 - score) + (1.0 - quality) * score;
    wrong.powf(gamma) * cross_entropy(score, quality)
}

fn cross_entropy(score: f64, quality: f64) -> f64 {
    -(quality * score.ln() + (1.0 - quality) * (1.0 - score).ln())
}

pub fn draw(area: &Area, beta: f64) -> Drawn {
    heading(
        area,
        "The surface of the loss",
        "Loss over score and quality. White: the score at which the loss is least for each quality. QFL has it where the score is the quality.",
    )?;
    let rest = area.split_vertically(56).1;
    let (left, rest) = rest.split_horizontally(PLOT);
    let (right, bar) = rest.split_horizontally(PLOT);
    draw_surface(&left, &format!("QFL, β = {beta}"), |score, quality| qfl(score, quality, beta))?;
    draw_surface(&right, &format!("focal loss, γ = {beta}"), |score, quality| focal(score, quality, beta))?;
    draw_bar(&bar)
}

fn draw_surface(area: &Area, title: &str, loss: impl Fn(f64, f64) -> f64) -> Drawn {
    let mut chart = ChartBuilder::on(area)
        .caption(title, (FONT, 15))
        .margin_left(20)
        .margin_right(20)
        .margin_bottom(8)
        .set_label_area_size(LabelAreaPosition::Left, 52)
        .set_label_area_size(LabelAreaPosition::Bottom, 42)
        .build_cartesian_2d(0.0..1.0, 0.0..1.0)?;
    let edge = |i: usize| i as f64 / CELLS as f64;
    let cells = (0..CELLS * CELLS).map(|i| {
        let (x, y) = (i % CELLS, i / CELLS);
        let middle = |i: usize| edge(i) + 0.5 / CELLS as f64;
        // A little larger than a cell, so that no seam shows between two.
        let overlap = 0.1 / CELLS as f64;
        let far = |i: usize| (edge(i + 1) + overlap).min(1.0);
        Rectangle::new([(edge(x), edge(y)), (far(x), far(y))], colour(loss(middle(x), middle(y))).filled())
    });
    chart.draw_series(cells)?;
    let least = (0..=200).map(|i| {
        let quality = f64::from(i) / 200.0;
        let scores = (1..1000).map(|i| f64::from(i) / 1000.0);
        let best = scores.min_by(|&a, &b| loss(a, quality).total_cmp(&loss(b, quality)));
        (best.unwrap_or(0.5), quality)
    });
    chart.draw_series(LineSeries::new(least, WHITE.stroke_width(3)))?;
    chart
        .configure_mesh()
        .disable_mesh()
        .axis_style(GREY)
        .x_desc("score σ(x)")
        .y_desc("quality y")
        .axis_desc_style((FONT, 14))
        .label_style((FONT, 12))
        .draw()?;
    Ok(())
}

/// What the colours mean.
fn draw_bar(area: &Area) -> Drawn {
    const TOP: i32 = 40;
    const BOTTOM: i32 = 390;
    const LEFT: i32 = 24;
    for y in TOP..BOTTOM {
        let share = f64::from(BOTTOM - y) / f64::from(BOTTOM - TOP);
        area.draw(&Rectangle::new([(LEFT, y), (LEFT + 20, y + 1)], colour(share * MOST).filled()))?;
    }
    for i in 0..=4 {
        let share = f64::from(i) / 4.0;
        let y = BOTTOM - (share * f64::from(BOTTOM - TOP)) as i32;
        let more = if i == 4 { " and more" } else { "" };
        let words = format!("{}{more}", share * MOST);
        area.draw(&Text::new(words, (LEFT + 28, y), style(12, &BLACK, HPos::Left, VPos::Center)))?;
    }
    area.draw(&Text::new("loss", (LEFT, TOP - 18), style(13, &BLACK, HPos::Left, VPos::Center)))?;
    Ok(())
}

/// From dark blue over green to yellow; the square root shows what happens near 0.
fn colour(loss: f64) -> RGBColor {
    ViridisRGB::get_color((loss / MOST).clamp(0.0, 1.0).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_qfl_is_least_at_the_quality() {
        let least = |loss: fn(f64, f64, f64) -> f64, quality: f64| {
            let scores = (1..1000).map(|i| f64::from(i) / 1000.0);
            scores.min_by(|&a, &b| loss(a, quality, 2.0).total_cmp(&loss(b, quality, 2.0))).unwrap()
        };
        assert_eq!(least(qfl, 0.7), 0.7);
        assert!((least(focal, 0.7) - 0.7).abs() > 0.02, "{}", least(focal, 0.7));
    }
}
