//! What is told of boxes, in JSON and in a table.

use serde::Serialize;

use super::{Outcome, Pyramid};
use crate::device::Device;
use crate::floats::Floats;
use crate::head::Profile;
use crate::report::{GradReport, Number};
use crate::table::{number, sentences, table};
use crate::words::count;

/// The boxes of a pyramid.
#[derive(Debug, Serialize)]
pub struct DecodeReport {
    op: &'static str,
    device: String,
    dtype: &'static str,
    profile: Profile,
    boxes: &'static str,
    batch: usize,
    bins: usize,
    levels: Vec<LevelReport>,
    /// How many coordinates are inf or NaN.
    boxes_not_finite: usize,
    /// With an upstream gradient.
    #[serde(flatten)]
    grad: Option<GradReport>,
}

/// The boxes of a level.
#[derive(Debug, Serialize)]
struct LevelReport {
    stride: f64,
    height: usize,
    width: usize,
    /// The mean of width and height.
    mean_size: [Number; 2],
    /// Of all boxes together, x1, y1, x2, y2.
    extent: [Number; 4],
    grad_box_norm: Option<Number>,
}

impl DecodeReport {
    /// `exact`: the gradients in f64, if they are known.
    pub fn new(
        pyramid: &Pyramid,
        device: &Device,
        outcome: &Outcome,
        exact: Option<&Vec<Floats>>,
    ) -> DecodeReport {
        let boxes: Vec<f64> = outcome.boxes.iter().collect();
        let (boxes, _) = boxes.as_chunks::<4>();
        let mut first = 0;
        let mut levels = Vec::new();
        for (i, place) in pyramid.places.iter().enumerate() {
            let of_level = first..first + place.positions();
            first = of_level.end;
            let images = boxes.chunks(pyramid.positions().max(1));
            let boxes: Vec<[f64; 4]> = images.flat_map(|image| &image[of_level.clone()]).copied().collect();
            levels.push(LevelReport {
                stride: place.stride,
                height: place.height,
                width: place.width,
                mean_size: mean_size(&boxes).map(Number),
                extent: extent(&boxes).map(Number),
                grad_box_norm: outcome.gradients.get(i).map(|gradient| Number(gradient.norm())),
            });
        }
        let of_level = |(i, gradient)| GradReport::new(gradient, exact.map(|exact| &exact[i]));
        let grads = outcome.gradients.iter().enumerate().map(of_level);
        DecodeReport {
            op: "decode",
            device: device.name(),
            dtype: pyramid.dtype().name(),
            profile: pyramid.profile,
            boxes: pyramid.boxes.name(),
            batch: pyramid.batch,
            bins: pyramid.bins,
            levels,
            boxes_not_finite: outcome.boxes.not_finite(),
            grad: grads.reduce(|all, of_level| all + of_level),
        }
    }

    pub fn table(&self) -> String {
        let header = ["stride", "positions", "mean size", "least x1,y1", "greatest x2,y2", "|grad box|"];
        let pair = |between: &str, [a, b]: [Number; 2]| number(a.0) + between + &number(b.0);
        let mut rows = vec![header.map(str::to_owned)];
        for level in &self.levels {
            let [x1, y1, x2, y2] = level.extent;
            rows.push([
                number(level.stride),
                format!("{}x{}", level.height, level.width),
                pair("x", level.mean_size),
                pair(",", [x1, y1]),
                pair(",", [x2, y2]),
                level.grad_box_norm.map_or("-".to_owned(), |norm| number(norm.0)),
            ]);
        }
        let mut text = format!(
            "{} on {}: batch {}, {}, {} profile\n\n",
            self.dtype,
            self.device,
            self.batch,
            match self.boxes {
                "bins" => count(self.bins, "bin", "bins"),
                coding => format!("boxes by {coding}"),
            },
            self.profile.name(),
        );
        text += &table(&rows);
        let mut told = Vec::new();
        if self.boxes_not_finite > 0 {
            let are = if self.boxes_not_finite == 1 { "is" } else { "are" };
            let coordinates = count(self.boxes_not_finite, "coordinate of a box", "coordinates of boxes");
            told.push(format!("{coordinates} {are} inf or NaN."));
        }
        told.extend(self.grad.map_or(Vec::new(), |grad| grad.sentences("the box logits", self.dtype)));
        text + &sentences("", &told)
    }
}

/// Width and height; 0 of no boxes.
fn mean_size(boxes: &[[f64; 4]]) -> [f64; 2] {
    [0, 1].map(|axis| {
        let sum = boxes.iter().fold(0.0, |sum, corners| sum + (corners[2 + axis] - corners[axis]));
        sum / boxes.len().max(1) as f64
    })
}

/// Of no boxes, nothing.
fn extent(boxes: &[[f64; 4]]) -> [f64; 4] {
    let least = |corner: usize| boxes.iter().map(|corners| corners[corner]).reduce(f64::min);
    let most = |corner: usize| boxes.iter().map(|corners| corners[corner]).reduce(f64::max);
    [least(0), least(1), most(2), most(3)].map(|at| at.unwrap_or(0.0))
}
