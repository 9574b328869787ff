//! The picture: a held-out scene with true and predicted boxes, what the network says of the sides of two objects, and
//! scores against IoUs of two arms.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{Error, Result, bail};
use clap::Args;
use plotters::coord::Shift;
use plotters::element::DashedPathElement;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::checkpoint::{load, save};
use super::detect::{Said, detect, held_out, said, scores_and_ious, truth};
use super::eval::{Ap, Detection, average_precision, correlation, iou};
use super::losses::Losses;
use super::model::Model;
use super::scenes::{CLASS_NAMES, Object, SIZE, Scenes, Side};
use super::train::{Arm, Settings, name};
use super::{Common, bar, check_writable, of_file, run};

#[derive(Args)]
pub struct Plot {
    #[arg(long, value_name = "FILE.svg")]
    out: PathBuf,
    /// What `train --arm base --save` and `train --arm both --save` have saved. Trained, and saved beside the picture,
    /// if not given.
    #[arg(long, value_name = "FILE.safetensors")]
    base: Option<PathBuf>,
    #[arg(long, value_name = "FILE.safetensors")]
    both: Option<PathBuf>,
    /// Which held-out scene. If not given: of those where a side may be in two places, and where both objects that are
    /// shown are found, the one whose answer is the most divided.
    #[arg(long)]
    scene: Option<usize>,
    #[command(flatten)]
    common: Common,
}

struct Network {
    settings: Settings,
    losses: Losses,
    model: Model,
}

const SIZE_OF_ALL: (u32, u32) = (1240, 900);
/// Of a pixel of the scene.
const ZOOM: i32 = 6;
/// Where the scene is.
const SCENE: (i32, i32) = (30, 56);

const INK: RGBColor = RGBColor(38, 50, 56);
const PALE: RGBColor = RGBColor(176, 190, 197);
const CLEAR: RGBColor = RGBColor(2, 136, 209);
const HIDDEN: RGBColor = RGBColor(230, 81, 0);
const OTHER: RGBColor = RGBColor(255, 214, 0);

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

fn wrap<T, E: std::error::Error + Send + Sync + 'static>(result: std::result::Result<T, E>) -> Result<T> {
    result.map_err(Error::wrap)
}

impl Plot {
    pub fn run(&self) -> Result<()> {
        if let Some(scene) = self.scene.filter(|&scene| scene >= Settings::default().test_scenes) {
            bail!("--scene {scene}: the held-out scenes are 0 to {}", Settings::default().test_scenes - 1);
        }
        check_writable(&self.out)?;
        let base = self.network(self.base.as_deref(), Arm::Base)?;
        let both = self.network(self.both.as_deref(), Arm::Both)?;
        if base.settings.scenes != both.settings.scenes {
            bail!("one of the networks was trained on other scenes than the other");
        }
        let shown = Shown::choose(&both, self.scene)?;
        let mut svg = String::new();
        {
            let root = SVGBackend::with_string(&mut svg, SIZE_OF_ALL).into_drawing_area();
            wrap(root.fill(&WHITE))?;
            shown.draw_scene(&root)?;
            shown.draw_distributions(&root)?;
            for (place, network, title) in
                [(0, &base, "focal loss + centerness, four numbers"), (1, &both, "Generalized Focal Loss")]
            {
                draw_scores(&root.clone().shrink((30 + 610 * place, 520), (570, 360)), network, title)?;
            }
            wrap(root.present())?;
        }
        // What is so by default need not be said.
        for default in [" stroke=\"none\" stroke-width=\"1\"", " opacity=\"1\""] {
            svg = svg.replace(default, "");
        }
        // Beneath all but the background, which is the first element.
        let place = svg.find("/>").map_or(svg.len(), |place| place + 2);
        svg.insert_str(place, &pixels(both.settings.scenes, shown.number));
        fs::write(&self.out, svg).map_err(|error| of_file(&self.out, error))
    }

    fn network(&self, path: Option<&Path>, arm: Arm) -> Result<Network> {
        let (settings, losses, model) = match path {
            Some(path) => load(path)?,
            None => {
                let settings = Settings { arm, ..self.common.settings(Scenes::Alternatives) };
                let (_, trained) = run::run(&settings, &bar(settings.steps))?;
                save(
                    &self.out.with_extension(format!("{}.safetensors", name(arm))),
                    &settings,
                    &trained.model,
                )?;
                (settings, trained.losses, trained.model)
            }
        };
        if settings.arm != arm {
            bail!("a network of arm {}, where one of {} is shown", name(settings.arm), name(arm));
        }
        Ok(Network { settings, losses, model })
    }
}

/// The scene as paths, one a colour.
fn pixels(scenes: Scenes, number: usize) -> String {
    let scene = scenes.scene(held_out(number));
    let mut places: Vec<(u32, usize)> = (scene.pixels.chunks(3).enumerate())
        .map(|(place, pixel)| {
            let level = |value: f32| ((value + 1.3) / 2.6 * 15.0).round().clamp(0.0, 15.0) as u32 * 17;
            (level(pixel[0]) << 16 | level(pixel[1]) << 8 | level(pixel[2]), place)
        })
        .collect();
    places.sort_unstable();
    let ((x, y), mut text) = (SCENE, String::new());
    let _ =
        writeln!(text, "\n<g shape-rendering=\"crispEdges\" transform=\"translate({x} {y}) scale({ZOOM})\">");
    for of_colour in places.chunk_by(|a, b| a.0 == b.0) {
        let _ = write!(text, "<path fill=\"#{:06x}\" d=\"", of_colour[0].0);
        for (_, place) in of_colour {
            let _ = write!(text, "M{} {}h1v1h-1z", place % SIZE, place / SIZE);
        }
        text += "\"/>\n";
    }
    text + "</g>"
}

/// What is shown of a scene.
struct Shown {
    number: usize,
    objects: Vec<Object>,
    detections: Vec<Detection>,
    /// The four sides of an object that is clear on all of them, and of one with a hidden handle, or without it, each
    /// at the position that is surest of the class.
    clear: Vec<Said>,
    hidden: Vec<Said>,
}

impl Shown {
    fn choose(network: &Network, number: Option<usize>) -> Result<Shown> {
        let numbers = number.map_or(0..network.settings.test_scenes, |number| number..number + 1);
        let Some(all) = said(network.settings.scenes, &network.losses, &network.model, numbers)? else {
            bail!("the network has no distributions");
        };
        // Sides come in fours.
        let (fours, _) = all.as_chunks::<4>();
        let best = |scene: usize, is: &dyn Fn(&[Said; 4]) -> bool| {
            let of = fours.iter().filter(|four| four[0].scene == scene && is(four));
            of.max_by(|a, b| a[0].score.total_cmp(&b[0].score))
        };
        let is_clear = |four: &[Said; 4]| four.iter().all(|said| said.of.sides[said.side] == Side::Clear);
        let is_open = |four: &[Said; 4]| four.iter().any(|said| said.division().is_some());
        let mut scenes: Vec<usize> = fours.iter().map(|four| four[0].scene).collect();
        scenes.sort_unstable();
        scenes.dedup();
        let mut candidates: Vec<_> = (scenes.into_iter())
            .filter_map(|scene| {
                let (clear, hidden) = (best(scene, &is_clear)?, best(scene, &is_open)?);
                Some((clear, hidden, hidden.iter().filter_map(Said::division).fold(0.0, f32::max)))
            })
            .collect();
        candidates.sort_by(|a, b| b.2.total_cmp(&a.2));
        let show = |&(clear, hidden, _): &(&[Said; 4], &[Said; 4], f32)| {
            let number = clear[0].scene;
            let range = number..number + 1;
            let found = detect(&network.settings, &network.losses, &network.model, range.clone())?;
            let (objects, mut detections) =
                (truth(network.settings.scenes, range).remove(0), found.by_score.concat());
            detections.truncate(objects.len()); // the best
            Ok(Shown { number, objects, detections, clear: clear.to_vec(), hidden: hidden.to_vec() })
        };
        for candidate in &candidates {
            let shown = show(candidate)?;
            if shown.finds(&shown.clear) && shown.finds(&shown.hidden) {
                return Ok(shown);
            }
        }
        match candidates.first() {
            Some(candidate) => show(candidate),
            None => {
                bail!("no scene has both an object that is clear on all sides and one with an open question")
            }
        }
    }

    /// Whether one of the boxes shown is that of the object, whichever of two it is.
    fn finds(&self, four: &[Said]) -> bool {
        let Object { class, corners, sides } = four[0].of;
        let mut other = corners;
        for (side, to) in other.iter_mut().enumerate() {
            if let Side::Alternative(place) = sides[side] {
                *to = place;
            }
        }
        let is = |found: &Detection| iou(found.corners, corners).max(iou(found.corners, other)) > 0.5;
        self.detections.iter().any(|found| found.class == class && is(found))
    }

    fn colour(&self, corners: [f32; 4], class: usize) -> RGBColor {
        let is = |of: &Object| of.class == class && iou(of.corners, corners) > 0.4;
        match () {
            () if is(&self.hidden[0].of) => HIDDEN,
            () if is(&self.clear[0].of) => CLEAR,
            () => OTHER,
        }
    }

    fn draw_scene(&self, root: &Area) -> Result<()> {
        let title = format!("Held-out scene {}: predicted, and true (dashed)", self.number);
        write(root, &title, (SCENE.0, 34), 17, INK, HPos::Left)?;
        for Object { corners, .. } in &self.objects {
            for (width, colour) in [(4, BLACK.mix(0.5)), (2, WHITE.mix(1.0))] {
                let path = outline(*corners);
                wrap(root.draw(&DashedPathElement::new(path, 8, 5, colour.stroke_width(width))))?;
            }
        }
        for &Detection { class, score, corners } in self.detections.iter().rev() {
            let colour = self.colour(corners, class);
            wrap(root.draw(&PathElement::new(outline(corners), colour.stroke_width(3))))?;
            let (x, y) = at([corners[0], corners[1]]);
            let text = format!("{} {score:.2}", CLASS_NAMES[class]);
            let top = (y - 17).max(SCENE.1);
            let length = 7 * text.len() as i32 + 4;
            wrap(root.draw(&Rectangle::new([(x, top), (x + length, top + 16)], colour.filled())))?;
            let ink = if colour == OTHER { BLACK } else { WHITE };
            write(root, &text, (x + 3, top + 8), 13, ink, HPos::Left)?;
        }
        for (four, colour) in [(&self.clear, CLEAR), (&self.hidden, HIDDEN)] {
            let place = at(four[0].point);
            wrap(root.draw(&Circle::new(place, 5, WHITE.filled())))?;
            wrap(root.draw(&Circle::new(place, 4, colour.filled())))?;
        }
        // Where the hidden side might be as well.
        for side in 0..4 {
            if let Side::Alternative(other) = self.hidden[0].of.sides[side] {
                let mut corners = self.hidden[0].of.corners;
                (corners[side], corners[(side + 2) % 4]) = (other, other);
                let (a, b) = (at([corners[0], corners[1]]), at([corners[2], corners[3]]));
                wrap(root.draw(&DashedPathElement::new([a, b], 2, 5, HIDDEN.stroke_width(4))))?;
            }
        }
        Ok(())
    }

    fn draw_distributions(&self, root: &Area) -> Result<()> {
        let rows = [
            (&self.clear, CLEAR, "What it says of an object that is clear on all sides, at the blue point:"),
            (
                &self.hidden,
                HIDDEN,
                "and of one that may have a handle under what covers it, at the orange point:",
            ),
        ];
        let left = SCENE.0 + ZOOM * SIZE as i32 + 40;
        let all = self.clear.iter().chain(&self.hidden);
        let bins = all.map(Said::bins_in_use).max().unwrap_or(0);
        for (row, (four, colour, title)) in rows.into_iter().enumerate() {
            let top = 20 + 228 * row as i32;
            write(root, title, (left, top + 14), 17, INK, HPos::Left)?;
            let highest = four.iter().flat_map(|said| said.probabilities.iter().copied()).fold(0.0, f32::max);
            for said in four {
                let area = root.clone().shrink((left + 196 * said.side as i32, top + 30), (188u32, 186u32));
                draw_side(&area, said, colour, [bins as f32, highest])?;
            }
        }
        let legend = "Line: where the side is. Dashed: where it would be if the answer were the other.";
        write(root, legend, (left, 484), 14, INK, HPos::Left)
    }
}

impl Said {
    /// Those that anything is in, and where it might be.
    fn bins_in_use(&self) -> usize {
        let last = self.probabilities.iter().rposition(|&p| p > 0.005).unwrap_or(0);
        let places =
            [self.target, self.alternative.unwrap_or(0.0)].map(|place| place.max(0.0).ceil() as usize);
        (last.max(places[0]).max(places[1]) + 1).min(self.probabilities.len())
    }

    /// How much of a distribution is at the place of which there is less, if there are two.
    fn division(&self) -> Option<f32> {
        let near = |place| self.mass_near(place, 1.0);
        let other = self.open_question()?;
        Some(near(other).min(near(self.target)))
    }
}

fn at([x, y]: [f32; 2]) -> (i32, i32) {
    let pixel = |at: f32| (at * ZOOM as f32).round() as i32;
    (SCENE.0 + pixel(x), SCENE.1 + pixel(y))
}

fn outline([x1, y1, x2, y2]: [f32; 4]) -> Vec<(i32, i32)> {
    [[x1, y1], [x2, y1], [x2, y2], [x1, y2], [x1, y1]].map(at).to_vec()
}

fn write(root: &Area, text: &str, place: (i32, i32), size: i32, colour: RGBColor, from: HPos) -> Result<()> {
    let style = ("sans-serif", size).into_font().color(&colour).pos(Pos::new(from, VPos::Center));
    wrap(root.draw(&Text::new(text.to_owned(), place, style)))
}

/// The distribution of a side over distances, with the true one, and the other that is as true.
fn draw_side(area: &Area, said: &Said, colour: RGBColor, [bins, highest]: [f32; 2]) -> Result<()> {
    let name = ["left", "top", "right", "bottom"][said.side];
    let mut chart = wrap(
        ChartBuilder::on(area)
            .margin(6)
            .x_label_area_size(34)
            .y_label_area_size(30)
            .build_cartesian_2d(-0.6f32..bins - 0.4, 0f32..1.12 * highest),
    )?;
    wrap(
        chart
            .configure_mesh()
            .disable_mesh()
            .axis_style(PALE)
            .x_desc(format!("{name}, {} pixels a bin", said.stride))
            .axis_desc_style(("sans-serif", 12, &INK))
            .label_style(("sans-serif", 11, &INK))
            .x_labels(9)
            .x_label_formatter(&|bin| format!("{bin:.0}"))
            .y_labels(4)
            .y_label_formatter(&|p| format!("{p:.1}"))
            .draw(),
    )?;
    let bar = |(bin, &p): (usize, &f32)| {
        Rectangle::new([(bin as f32 - 0.4, 0.0), (bin as f32 + 0.4, p)], colour.mix(0.75).filled())
    };
    wrap(chart.draw_series(said.probabilities.iter().enumerate().take(bins as usize).map(bar)))?;
    let line = |place: f32| [(place, 0.0), (place, 1.12 * highest)];
    let true_one = PathElement::new(line(said.target).to_vec(), INK.stroke_width(2));
    wrap(chart.draw_series([true_one]))?;
    if let Some(other) = said.alternative.filter(|&other| other > 0.0) {
        let other = DashedPathElement::new(line(other), 3, 4, INK.stroke_width(2));
        wrap(chart.plotting_area().draw(&other))?;
    }
    Ok(())
}

/// Detections that are shown.
const POINTS: usize = 500;

fn draw_scores(area: &Area, network: &Network, title: &str) -> Result<()> {
    let numbers = 0..network.settings.test_scenes;
    let found = detect(&network.settings, &network.losses, &network.model, numbers.clone())?.by_score;
    let truth = truth(network.settings.scenes, numbers);
    let Ap { mean, .. } = average_precision(&found, &truth);
    let pairs = scores_and_ious(&found, &truth);
    let colour = if network.settings.arm == Arm::Both { HIDDEN } else { CLEAR };
    let text = format!("{title}: AP {mean:.1}, correlation {:.2}", correlation(&pairs));
    write(area, &text, (0, 10), 17, INK, HPos::Left)?;
    let mut chart = wrap(
        ChartBuilder::on(area)
            .margin_top(28)
            .margin_right(10)
            .x_label_area_size(38)
            .y_label_area_size(46)
            .build_cartesian_2d(0f32..1.0, 0f32..1.0),
    )?;
    wrap(
        chart
            .configure_mesh()
            .light_line_style(WHITE)
            .bold_line_style(PALE.mix(0.5))
            .axis_style(PALE)
            .x_desc("IoU with the nearest object of the class")
            .y_desc("score of the detection")
            .axis_desc_style(("sans-serif", 14, &INK))
            .label_style(("sans-serif", 12, &INK))
            .x_label_formatter(&|at| format!("{at:.1}"))
            .y_label_formatter(&|at| format!("{at:.1}"))
            .draw(),
    )?;
    let points = pairs.iter().take(POINTS);
    let circle = |&[score, iou]: &[f32; 2]| Circle::new((iou, score), 2, colour.mix(0.45).filled());
    wrap(chart.draw_series(points.map(circle)))?;
    Ok(())
}
