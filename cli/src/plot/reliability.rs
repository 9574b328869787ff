//! How far the score tells the IoU.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, VPos};

use super::positives::Positive;
use super::{Area, BLUE, Drawn, FONT, GREY, ORANGE, heading, nothing, style};
use crate::words::count;

pub const HEIGHT: u32 = 520;
const BINS: usize = 10;
const PLOT: u32 = 520;

/// Positives whose scores are near each other.
struct Group {
    count: usize,
    score: f64,
    iou: f64,
}

/// Those with scores in the i-th tenth.
fn groups(positives: &[Positive]) -> Vec<Group> {
    let of = |bin: usize| {
        let inside = |positive: &&Positive| ((positive.score * BINS as f64) as usize).min(BINS - 1) == bin;
        let members: Vec<&Positive> = positives.iter().filter(inside).collect();
        let count = members.len();
        let mean =
            |value: fn(&Positive) -> f64| members.iter().map(|&p| value(p)).sum::<f64>() / count as f64;
        Group { count, score: mean(|positive| positive.score), iou: mean(|positive| positive.iou) }
    };
    (0..BINS).map(of).filter(|group| group.count > 0).collect()
}

pub fn draw(area: &Area, positives: &[Positive]) -> Drawn {
    const TITLE: &str = "Reliability of the score";
    if positives.is_empty() {
        return nothing(area, TITLE);
    }
    let groups = groups(positives);
    let total = positives.len() as f64;
    let error: f64 =
        groups.iter().map(|group| group.count as f64 / total * (group.iou - group.score).abs()).sum();
    heading(
        area,
        TITLE,
        "Score of each positive's class against the IoU of its box. QFL trains them to be equal: the dashed line.",
    )?;
    let rest = area.split_vertically(56).1;
    let (left, right) = rest.split_horizontally(PLOT);
    let mut chart = ChartBuilder::on(&left)
        .margin_left(20)
        .margin_right(20)
        .margin_top(8)
        .margin_bottom(8)
        .set_label_area_size(LabelAreaPosition::Left, 52)
        .set_label_area_size(LabelAreaPosition::Bottom, 42)
        .build_cartesian_2d(0.0..1.0, 0.0..1.0)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GREY.mix(0.18))
        .axis_style(GREY)
        .x_desc("score of the class")
        .y_desc("IoU of the box")
        .axis_desc_style((FONT, 14))
        .label_style((FONT, 12))
        .draw()?;
    chart.draw_series(DashedLineSeries::new([(0.0, 0.0), (1.0, 1.0)], 6, 5, GREY.stroke_width(1)))?;
    let dots = positives.iter().map(|p| Circle::new((p.score, p.iou), 3, BLUE.mix(0.45).filled()));
    chart.draw_series(dots)?;
    let means: Vec<_> = groups.iter().map(|group| (group.score, group.iou)).collect();
    chart.draw_series(LineSeries::new(means.iter().copied(), ORANGE.stroke_width(2)))?;
    chart.draw_series(means.iter().map(|&mean| Circle::new(mean, 5, ORANGE.filled())))?;

    let mut y = 40;
    let mut line = |words: String, size: u32| {
        let drawn = right.draw(&Text::new(words, (70, y), style(size, &BLACK, HPos::Left, VPos::Center)));
        y += size as i32 + 9;
        drawn
    };
    line(count(positives.len(), "positive", "positives"), 15)?;
    line(format!("mean |IoU - score| over tenths of the score: {error:.3}"), 15)?;
    line(String::new(), 8)?;
    for group in &groups {
        line(format!("{} with scores about {:.2}: mean IoU {:.2}", group.count, group.score, group.iou), 13)?;
    }
    right.draw(&Circle::new((56, 40), 4, BLUE.mix(0.45).filled()))?;
    right.draw(&Circle::new((56, 64), 5, ORANGE.filled()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_grouped_in_tenths() {
        let positive = |score, iou| Positive { score, ..Positive::with_iou(iou) };
        let groups = groups(&[positive(0.0, 0.1), positive(0.05, 0.3), positive(1.0, 0.9)]);
        let told: Vec<_> = groups.iter().map(|group| (group.count, group.score, group.iou)).collect();
        assert_eq!(told, [(2, 0.025, 0.2), (1, 1.0, 0.9)]);
    }
}
