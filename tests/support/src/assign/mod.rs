//! Scenes to assign, and by what rules.

mod run;

use gfocal::assign::{AnchorGrid, Atss, Fcos, MAX_LEVELS};
use gfocal::{AssignmentStatus, Background, Counted};
use gfocal_reference::assign::{self as reference};
pub use gfocal_reference::assign::{By, Level, OfLevel, Scene, Ties};

use super::random::Random;
use super::vectors::Vectors;
pub use run::{Cast, OnCuda, as_defined, assigned, on_cpu, same, same_on_cuda};

/// Targets of each level, and what was wrong.
#[derive(Clone, Debug, Default)]
pub struct Outcome<L = i64> {
    pub levels: Vec<OfLevel<L>>,
    pub status: AssignmentStatus,
}

impl Outcome {
    /// How many anchors have a box.
    pub fn positives(&self) -> usize {
        let boxes = self.levels.iter().flat_map(|level| level.box_targets.as_chunks::<4>().0);
        boxes.filter(|b| b[0] < b[2]).count()
    }

    pub fn label_weights(&self) -> impl Iterator<Item = f32> {
        self.levels.iter().flat_map(|level| level.label_weights.iter().copied())
    }
}

/// An assignment and its options.
#[derive(Clone, Debug, PartialEq)]
pub struct Rules {
    pub by: By,
    pub background: Background,
    pub ignore_iof: f32,
    pub fallback: usize,
}

impl Rules {
    fn by(by: By) -> Rules {
        Rules { by, background: Background::Last, ignore_iof: -1.0, fallback: 0 }
    }

    pub fn atss(topk: usize) -> Rules {
        Rules::by(By::Atss { topk })
    }

    pub fn fcos(ranges: &[[f32; 2]], radius: Option<f32>) -> Rules {
        Rules::by(By::Fcos { ranges: ranges.to_vec(), radius })
    }

    /// FCOS with ranges for levels of these strides.
    pub fn fcos_for(levels: &[Level], radius: Option<f32>) -> Rules {
        let mut low = -1.0;
        let mut ranges: Vec<[f32; 2]> = (levels.iter())
            .map(|level| {
                let range = [low, 8.0 * level.stride()];
                low = range[1].max(low);
                [range[0].min(low), low]
            })
            .collect();
        ranges.last_mut().expect("a level")[1] = f32::INFINITY;
        Rules::fcos(&ranges, radius)
    }

    pub fn ignoring(self, ignore_iof: f32) -> Rules {
        Rules { ignore_iof, ..self }
    }

    pub fn falling_back(self, fallback: usize) -> Rules {
        Rules { fallback, ..self }
    }

    pub fn background(self, background: Background) -> Rules {
        Rules { background, ..self }
    }

    fn built(&self) -> gfocal::Result<Assigner> {
        Ok(match &self.by {
            By::Atss { topk } => Assigner::Atss(
                Atss::new(*topk)?
                    .with_background(self.background)
                    .with_ignore_iof(self.ignore_iof)?
                    .with_fallback(self.fallback)?,
            ),
            By::Fcos { ranges, radius } => {
                let fcos = Fcos::new(ranges)?;
                let fcos = radius.map_or(Ok(fcos), |radius| fcos.with_center_sampling(radius))?;
                Assigner::Fcos(
                    fcos.with_background(self.background)
                        .with_ignore_iof(self.ignore_iof)?
                        .with_fallback(self.fallback)?,
                )
            }
        })
    }
}

enum Assigner {
    Atss(Atss),
    Fcos(Fcos),
}

/// What an assignment must give.
pub fn transcription(rules: &Rules, ties: Ties, levels: &[Level], scene: &Scene) -> Outcome {
    let Rules { by, background, ignore_iof, fallback } = rules.clone();
    let background_first = background == Background::First;
    let rules = reference::Rules { by, background_first, ignore_iof, fallback };
    let (levels, faults) = reference::assign(&rules, ties, levels, scene);
    let counted = |numbers: Vec<usize>| Counted {
        count: numbers.len() as u32,
        first: numbers.first().map(|&first| first as u64),
    };
    let status = AssignmentStatus {
        bad_boxes: counted(faults.boxes),
        bad_labels: counted(faults.labels),
        bad_images: counted(faults.images),
        unassigned: counted(faults.unassigned),
    };
    Outcome { levels, status }
}

/// A level as a grid, if it is one.
fn grid(level: &Level) -> Option<AnchorGrid> {
    match level {
        Level::Grid { height, width, stride, offset, sizes } => Some(
            (AnchorGrid::new(*height, *width, *stride).with_offset(*offset))
                .with_sizes(sizes)
                .expect("a legal number of sizes"),
        ),
        Level::Boxes(_) => None,
    }
}

/// The levels of an image of 256 by 320 pixels: height, width, stride.
const PYRAMID: [(usize, usize, f32); 5] =
    [(32, 40, 8.0), (16, 20, 16.0), (8, 10, 32.0), (4, 5, 64.0), (2, 3, 128.0)];

pub fn pyramid() -> Vec<Level> {
    PYRAMID.map(|(height, width, stride)| Level::new(height, width, stride)).to_vec()
}

/// As many levels as there may be, of an image of 160 by 224 pixels.
pub fn eight_levels() -> Vec<Level> {
    let strides: [f32; MAX_LEVELS] = [4.0, 8.0, 16.0, 24.0, 32.0, 48.0, 64.0, 128.0];
    let cells = |pixels: f32, stride: f32| (pixels / stride).ceil() as usize;
    strides.map(|stride| Level::new(cells(160.0, stride), cells(224.0, stride), stride)).to_vec()
}

/// A box of any size in and around an image of 256 by 320 pixels, perhaps on the lattice of the anchors.
pub fn some_box(random: &mut Random) -> [f32; 4] {
    let (x, y) = (random.between(-60.0, 380.0), random.between(-60.0, 316.0));
    let size = |random: &mut Random| 2f64.powf(random.between(0.0, 9.5)) / 2.0;
    let (w, h) = (size(random), size(random));
    let b = [x - w, y - h, x + w, y + h].map(|side| side as f32);
    if random.chance(0.3) { b.map(|side| (side / 4.0).round() * 4.0) } else { b }
}

/// Boxes of all sizes in and around three images, some twice.
pub fn scene(random: &mut Random, boxes: usize) -> Scene {
    let mut scene = Scene { images: 3, classes: 20, ..Scene::default() };
    for _ in 0..boxes {
        let again = random.chance(0.1) && !scene.boxes.is_empty();
        let b = some_box(random);
        scene.boxes.push(if again { scene.boxes[random.index(scene.boxes.len())] } else { b });
        scene.labels.push(1 + random.index(19) as i64); // a class whatever the background
        scene.image.push(random.index(4) as i64 - 1); // -1: padding
    }
    scene
}

/// As [`scene`], with images of several sizes, regions to ignore, weights, and faults of all kinds.
pub fn real_scene(random: &mut Random, boxes: usize) -> Scene {
    let mut scene = scene(random, boxes);
    let size = |random: &mut Random, most: f64| random.between(1.0, most) as i64;
    scene.valid_hw =
        Some((0..3).flat_map(|_| [size(random, 300.0), size(random, 380.0)]).collect::<Vec<_>>());
    let count = random.index(6);
    scene.ignore = Some((
        (0..count).map(|_| some_box(random)).collect(),
        (0..count).map(|_| random.index(4) as i64 - 1).collect(),
    ));
    scene.weights = Some(random.many(boxes, 0.0, 2.0).into_iter().map(|weight| weight as f32).collect());
    for i in 0..boxes {
        if random.chance(0.05) {
            scene.boxes[i].swap(0, 2);
        }
        if random.chance(0.03) {
            scene.boxes[i][random.index(4)] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][random.index(3)];
        }
        if random.chance(0.05) {
            scene.labels[i] = [-1, 20, 21, -7, 0, 1 << 20][random.index(6)];
        }
        if random.chance(0.05) {
            scene.image[i] = [-2, 3, 4, 1 << 30][random.index(4)];
        }
    }
    scene
}

/// The ground truth in a golden file.
pub fn golden(vectors: &Vectors, images: usize) -> Scene {
    Scene {
        boxes: vectors.f32s("gt_boxes").as_chunks().0.to_vec(),
        labels: vectors.i64s("gt_labels"),
        image: vectors.i64s("gt_image"),
        images,
        classes: vectors.case["num_classes"].as_u64().expect("a number") as usize,
        ..Scene::default()
    }
}

/// A file of tests/reports: levels, scene, and what is right.
pub fn report(name: &str, scale: f32) -> (Vec<Level>, Scene, Vectors) {
    let vectors = Vectors::open(format!("tests/reports/{name}.safetensors"));
    let strides = vectors.case["strides"].as_array().expect("strides").clone();
    let level = |(i, stride): (usize, &serde_json::Value)| {
        let (shape, stride) =
            (vectors.shape(&format!("level{i}.cls_logits")), stride.as_f64().expect("a stride") as f32);
        Level::new(shape[2], shape[3], stride).sizes(&[[scale * stride; 2]])
    };
    let levels = strides.iter().enumerate().map(level).collect();
    let shape = vectors.shape("level0.cls_logits");
    let boxes = |key: &str| vectors.f32s(key).as_chunks().0.to_vec();
    let scene = Scene {
        boxes: boxes("gt_boxes"),
        labels: vectors.i64s("gt_labels"),
        image: vectors.i64s("gt_image"),
        valid_hw: vectors.has("valid_hw").then(|| vectors.i64s("valid_hw")),
        ignore: (vectors.has("gt_ignore_boxes"))
            .then(|| (boxes("gt_ignore_boxes"), vectors.i64s("gt_ignore_image"))),
        weights: None,
        images: shape[0],
        classes: shape[1],
    };
    (levels, scene, vectors)
}
