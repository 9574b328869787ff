//! `gfocal plot`: pictures of a head's distributions, of the loss, and of how far scores can be
//! trusted.

mod distributions;
mod positives;
mod reliability;
mod surface;

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::error::{Error, Result};
use crate::file::{Input, Output};
use crate::head::{BoxesChoice, Scene, SceneArgs};
use crate::terminal;
use crate::words::count;
use positives::Positive;

const ABOUT: &str = "\
The file is that of `gfocal head`. Panels:
  distributions  the four sides of some positives: probability of each bin, target, expectation, entropy
  surface        QFL over score and quality beside focal loss: only QFL is least where the score is the quality
  reliability    the score of each positive's class against the IoU of its box

Examples:
  gfocal plot step.safetensors --out step.svg
  gfocal plot step.safetensors --assign --panels distributions --positives 6 --out sides.svg";

#[derive(Debug, Args)]
#[command(after_help = ABOUT)]
pub struct PlotArgs {
    /// The .safetensors file that holds the head's outputs and targets
    pub file: PathBuf,

    /// The picture to write
    #[arg(long, value_name = "PICTURE.svg")]
    pub out: PathBuf,

    /// What to draw, with commas between
    #[arg(
        long,
        value_name = "PANELS",
        value_enum,
        value_delimiter = ',',
        default_value = "distributions,surface,reliability"
    )]
    pub panels: Vec<Panel>,

    /// How many positives to show the distributions of: from the best IoU to the worst
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=32), default_value = "3")]
    pub positives: u32,

    #[command(flatten)]
    pub scene: SceneArgs,
}

/// A part of the picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Panel {
    /// Distributions of the box sides of positives
    Distributions,
    /// QFL and focal loss over score and quality
    Surface,
    /// Score against IoU
    Reliability,
}

pub type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
pub type Drawn = std::result::Result<(), Box<dyn std::error::Error>>;

const WIDTH: u32 = 1200;
const TITLE: u32 = 44;
pub const FONT: &str = "sans-serif";

pub fn run(args: &PlotArgs) -> Result<()> {
    let output = Output::new(&args.out, Some(&args.file))?;
    if args.out.extension().is_none_or(|extension| !extension.eq_ignore_ascii_case("svg")) {
        let reason = "only SVG is drawn; give a name that ends in .svg".to_owned();
        return Err(Error::Output { path: args.out.clone(), reason });
    }
    let boxes = args.scene.levels.boxes();
    if boxes != BoxesChoice::Bins {
        return Err(Error::WithoutBins { option: "gfocal plot", boxes: boxes.name() });
    }
    let input = Input::read(&args.file)?;
    let scene = Scene::read(&input, &args.scene, None)?;
    let (targets, _) = scene.targets()?;
    let positives = positives::of(&scene, &targets)?;
    let mut panels = Vec::new();
    for &panel in &args.panels {
        if !panels.contains(&panel) {
            panels.push(panel);
        }
    }
    let mut text = String::new();
    draw(&mut text, args, &panels, &scene, &positives).map_err(|error| Error::Plot(error.to_string()))?;
    output.write_bytes(text.as_bytes())?;
    let positives = count(positives.len(), "positive", "positives");
    terminal::finish(&format!("{}: {positives}\n", args.out.display()), [input.unread()?])
}

fn draw(
    text: &mut String,
    args: &PlotArgs,
    panels: &[Panel],
    scene: &Scene,
    positives: &[Positive],
) -> Drawn {
    let shown = choose(positives, args.positives as usize);
    let height = |panel: &Panel| match panel {
        Panel::Distributions => distributions::height(shown.len()),
        Panel::Surface => surface::HEIGHT,
        Panel::Reliability => reliability::HEIGHT,
    };
    let total = TITLE + panels.iter().map(height).sum::<u32>();
    let all = SVGBackend::with_string(text, (WIDTH, total)).into_drawing_area();
    all.fill(&WHITE)?;
    let file = args.file.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
    let title = format!(
        "{file}: {}, {}, {}, {}",
        count(scene.batch, "image", "images"),
        count(scene.classes, "class", "classes"),
        count(scene.head.bins(), "bin", "bins"),
        count(positives.len(), "positive", "positives")
    );
    all.draw(&Text::new(title, (24, 14), (FONT, 20)))?;
    let mut rest = all.split_vertically(TITLE).1;
    for panel in panels {
        let (area, below) = rest.split_vertically(height(panel));
        match panel {
            Panel::Distributions => distributions::draw(&area, &shown)?,
            Panel::Surface => surface::draw(&area, scene.head.qfl().beta())?,
            Panel::Reliability => reliability::draw(&area, positives)?,
        }
        rest = below;
    }
    all.present()?;
    Ok(())
}

/// So many, evenly from the best IoU to the worst.
fn choose(positives: &[Positive], count: usize) -> Vec<&Positive> {
    let mut ranked: Vec<&Positive> = positives.iter().collect();
    ranked.sort_by(|a, b| b.iou.total_cmp(&a.iou));
    let (count, last) = (count.min(ranked.len()), ranked.len().saturating_sub(1));
    (0..count).map(|i| ranked[(i * last).checked_div(count - 1).unwrap_or(0)]).collect()
}

/// The heading of a panel, and what is to be seen in it.
fn heading(area: &Area, title: &str, about: &str) -> Drawn {
    area.draw(&Text::new(title.to_owned(), (24, 8), (FONT, 17)))?;
    area.draw(&Text::new(about.to_owned(), (24, 31), (FONT, 13).into_font().color(&GREY)))?;
    Ok(())
}

/// Where there is nothing to draw.
fn nothing(area: &Area, title: &str) -> Drawn {
    heading(area, title, "no positives in this file, so there is nothing to show")
}

pub fn style<'a>(size: u32, colour: &'a RGBColor, horizontal: HPos, vertical: VPos) -> TextStyle<'a> {
    TextStyle::from((FONT, size).into_font()).color(colour).pos(Pos::new(horizontal, vertical))
}

const GREY: RGBColor = RGBColor(95, 95, 95);
const BLUE: RGBColor = RGBColor(66, 133, 190);
const ORANGE: RGBColor = RGBColor(225, 110, 20);
const GREEN: RGBColor = RGBColor(40, 140, 70);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positives_are_chosen_from_the_best_to_the_worst() {
        let all: Vec<Positive> = [0.5, 0.9, 0.1, 0.7, 0.3].map(Positive::with_iou).into();
        let ious = |count| choose(&all, count).iter().map(|positive| positive.iou).collect::<Vec<_>>();
        assert_eq!(ious(1), [0.9]);
        assert_eq!(ious(3), [0.9, 0.5, 0.1]);
        assert_eq!(ious(9), [0.9, 0.7, 0.5, 0.3, 0.1]);
        assert!(choose(&[], 3).is_empty());
    }
}
