//! Scenes: golden ones, and random ones.

use gfocal::Background;
use gfocal::head::{BoxCoding, BoxWeight, QualitySource};

use super::super::random::Random;
use super::super::vectors::Vectors;
use super::{LevelScene, PointsAt, Profile, Scene, Settings};

/// A scene of mmdetection's, and what it gave there in f64.
pub struct Golden {
    pub name: &'static str,
    pub scene: Scene,
    /// `[levels, 3]`.
    pub losses: Vec<f64>,
    /// Of class and box logits, for each level.
    pub grads: Vec<[Vec<f64>; 2]>,
    /// The average factor of the classification loss.
    pub positives: f64,
    /// Centres of the anchors, `[batch, positions, 2]`, for each level.
    pub centres: Vec<Vec<f64>>,
}

pub const GOLDEN: [&str; 3] = ["head_coco", "head_no_gt", "head_small"];

pub fn golden(name: &'static str) -> Golden {
    let file = Vectors::open(format!("tests/golden/{name}.safetensors"));
    let number = |value: &serde_json::Value| value.as_f64().expect("a number");
    let (case, weights) = (&file.case, &file.case["weights"]);
    let settings = Settings {
        beta: number(&case["beta"]),
        weights: ["qfl", "giou", "dfl"].map(|name| number(&weights[name])),
        bins: number(&case["reg_max"]) as usize + 1,
        ..Settings::of(Profile::Mmdetection)
    };
    let strides = case["strides"].as_array().expect("strides");
    let (mut levels, mut losses, mut grads, mut centres) = (vec![], vec![], vec![], vec![]);
    for (i, stride) in strides.iter().enumerate() {
        let named = |name: &str| format!("level{i}.{name}");
        let [_, _, height, width] = file.shape(&named("cls_logits"))[..] else { panic!("four axes") };
        let f64s = |name: &str| -> Vec<f64> { file.f32s(&named(name)).into_iter().map(f64::from).collect() };
        levels.push(LevelScene {
            height,
            width,
            stride: number(stride),
            points: PointsAt::Grid(0.0),
            cls: f64s("cls_logits"),
            boxes: f64s("box_logits"),
            labels: file.i64s(&named("labels")),
            label_weights: Some(f64s("label_weights")),
            box_targets: f64s("box_targets"),
            ..LevelScene::default()
        });
        losses.extend(["loss_cls", "loss_bbox", "loss_dfl"].map(|name| file.f64s(&named(name))[0]));
        grads.push(["grad_cls_logits", "grad_box_logits"].map(|name| file.f64s(&named(name))));
        let anchors = f64s("anchors");
        let centre = |a: &[f64]| [(a[0] + a[2]) / 2.0, (a[1] + a[3]) / 2.0];
        centres.push(anchors.chunks_exact(4).flat_map(centre).collect());
    }
    let [batch, classes, ..] = file.shape("level0.cls_logits")[..] else { panic!("four axes") };
    let scene = Scene {
        settings,
        batch,
        classes,
        levels,
        class_weights: None,
        narrow: false,
        grad_scale: 1.0,
        upstream: None,
        normalisers: None,
        gradient_form: None,
    };
    Golden { name, scene, losses, grads, positives: number(&case["num_pos"]), centres }
}

/// A report's head, and the right answer.
pub struct Report {
    pub scene: Scene,
    pub loss: f64,
    /// `[levels, 3]`.
    pub losses: Vec<f64>,
    pub grads: Vec<[Vec<f64>; 2]>,
}

/// A file of tests/reports in which each image has one box: that of its positives.
pub fn report(name: &str) -> Report {
    let file = Vectors::open(format!("tests/reports/{name}.safetensors"));
    let f64s = |name: &str| -> Vec<f64> { file.f32s(name).into_iter().map(f64::from).collect() };
    let (images, gt_boxes) = (file.i64s("gt_image"), f64s("gt_boxes"));
    assert_eq!(images, [0, 1], "one box for each image");
    let strides = file.case["strides"].as_array().expect("strides");
    let number = |value: &serde_json::Value| value.as_f64().expect("a number");
    let wants: Vec<_> = ["loss_cls", "loss_bbox", "loss_dfl"]
        .map(|name| file.expect[name].as_array().expect("levels"))
        .into();
    let (mut levels, mut losses, mut grads) = (vec![], vec![], vec![]);
    let (mut classes, mut channels) = (0, 0);
    for (i, stride) in strides.iter().enumerate() {
        let named = |name: &str| format!("level{i}.{name}");
        let want = |name: &str| format!("want.level{i}.{name}");
        let [_, of_cls, height, width] = file.shape(&named("cls_logits"))[..] else { panic!("four axes") };
        (classes, channels) = (of_cls, file.shape(&named("box_logits"))[1]);
        let positions = height * width;
        levels.push(LevelScene {
            height,
            width,
            stride: number(stride),
            cls: file.f16s(&named("cls_logits")),
            boxes: f64s(&named("box_logits")),
            labels: file.i64s(&want("labels")),
            label_weights: Some(f64s(&want("label_weights"))),
            box_targets: gt_boxes.chunks_exact(4).flat_map(|corners| corners.repeat(positions)).collect(),
            ..LevelScene::default()
        });
        losses.extend(wants.iter().map(|want| number(&want[i])));
        grads.push(["grad_cls_logits", "grad_box_logits"].map(|name| file.f64s(&want(name))));
    }
    let settings = Settings { bins: channels / 4, ..Settings::of(Profile::Mmdetection) };
    let scene = Scene {
        settings,
        batch: images.len(),
        classes,
        levels,
        class_weights: None,
        narrow: false,
        grad_scale: 1.0,
        upstream: None,
        normalisers: None,
        gradient_form: None,
    };
    Report { scene, loss: number(&file.expect["loss"]), losses, grads }
}

/// What a random scene is like.
#[derive(Clone, Debug)]
pub struct Recipe {
    pub settings: Settings,
    pub batch: usize,
    pub classes: usize,
    /// Height, width and stride of each level.
    pub sizes: Vec<(usize, usize, f64)>,
    /// How many anchors are positive.
    pub positives: f64,
    /// Weights, some of them 0 and over NaN logits, and labels that are ignored.
    pub masks: bool,
    /// Labels, qualities and targets that cannot be used, and targets beyond the bins.
    pub faults: bool,
    /// Logits that are inf or NaN.
    pub not_finite: bool,
    pub options: Options,
}

/// What a scene has besides labels, boxes and qualities: weights, some of them 0 and over NaN logits,
/// and targets of all elements.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    pub class_weights: bool,
    pub element_weights: bool,
    pub box_weights: bool,
    pub scores: bool,
}

impl Options {
    /// Some of them.
    pub fn any(random: &mut Random) -> Options {
        Options {
            class_weights: random.chance(0.5),
            element_weights: random.chance(0.4),
            box_weights: random.chance(0.5),
            scores: random.chance(0.4),
        }
    }
}

impl Recipe {
    pub fn new(settings: Settings) -> Recipe {
        Recipe {
            settings,
            batch: 2,
            classes: 3,
            sizes: vec![(7, 9, 8.0), (3, 5, 16.0), (1, 1, 32.0)],
            positives: 0.2,
            masks: false,
            faults: false,
            not_finite: false,
            options: Options::default(),
        }
    }

    pub fn scene(&self, random: &mut Random) -> Scene {
        let mut class_weights: Option<Vec<f64>> = None;
        if self.options.class_weights {
            let weight = |_| if random.chance(0.15) { 0.0 } else { random.between(0.2, 3.0) };
            class_weights = Some((0..self.classes).map(weight).collect());
        }
        let mut level = |&size| {
            let mut level = self.level(random, size);
            self.add_options(random, &mut level, class_weights.as_deref());
            level
        };
        let levels = self.sizes.iter().map(&mut level).collect();
        Scene {
            class_weights,
            settings: self.settings,
            batch: self.batch,
            classes: self.classes,
            levels,
            narrow: random.chance(0.5),
            grad_scale: [1.0, 1.0, 1024.0, -0.5][random.index(4)],
            upstream: None,
            normalisers: None,
            gradient_form: None,
        }
    }

    fn level(&self, random: &mut Random, (height, width, stride): (usize, usize, f64)) -> LevelScene {
        let (batch, settings, positions) = (self.batch, &self.settings, height * width);
        let bins = if settings.numbers.is_some() { 1 } else { settings.bins };
        let anchors = batch * positions;
        let mut cls = random.many(batch * self.classes * positions, -7.0, 2.0);
        let (low, high) = match settings.numbers {
            None | Some(BoxCoding::Bins(_)) => (-3.0, 3.0),
            Some(BoxCoding::Exp) => (-1.0, 2.5),
            Some(BoxCoding::Relu) => (-0.5, 8.0),
        };
        let mut boxes = random.many(batch * 4 * bins * positions, low, high);
        let points = match random.index(4) {
            0 => PointsAt::Grid(0.0),
            1 => PointsAt::Grid(0.5),
            kind => {
                let count = if kind == 2 { positions } else { anchors };
                let mut point = |i: usize, size| (i as f64 + random.between(0.2, 0.8)) * stride * size;
                let both = |i: usize| [point(i % width, 1.0), point(i % positions / width, 1.0)];
                PointsAt::Explicit((0..count).flat_map(both).collect())
            }
        };
        let at = |anchor: usize| match &points {
            PointsAt::Grid(offset) => {
                let position = anchor % positions;
                [position % width, position / width].map(|i| (i as f64 + offset) * stride)
            }
            PointsAt::Explicit(points) => {
                let i = if points.len() == 2 * positions { anchor % positions } else { anchor };
                [points[2 * i], points[2 * i + 1]]
            }
        };
        let first = i64::from(settings.background == Background::First);
        let background = if first == 1 { 0 } else { self.classes as i64 };
        let (mut labels, mut weights, mut targets, mut quality) = (vec![], vec![], vec![], vec![]);
        for anchor in 0..anchors {
            let positive = random.chance(self.positives);
            labels.push(if positive { first + random.index(self.classes) as i64 } else { background });
            weights.push(1.0);
            quality.push(if positive { random.unit() } else { f64::NAN });
            let last = if settings.numbers.is_some() { 8.0 } else { (bins - 1) as f64 - settings.target_eps };
            let mut side = || {
                if self.faults && random.chance(0.1) {
                    [-0.3, last + 0.7][random.index(2)]
                } else {
                    random.between(0.02, 0.98) * last
                }
            };
            let [x, y] = at(anchor);
            let [left, top, right, bottom] = [side(), side(), side(), side()].map(|side| side * stride);
            let corners = [x - left, y - top, x + right, y + bottom];
            targets.extend(if positive { corners } else { [f64::NAN; 4] });
            if self.faults && random.chance(0.08) {
                match random.index(3) {
                    0 => *labels.last_mut().expect("a label") = background + self.classes as i64 + 7,
                    1 => targets[4 * anchor + random.index(4)] = [f64::NAN, f64::INFINITY][random.index(2)],
                    _ => *quality.last_mut().expect("a quality") = [f64::NAN, -0.5, 1.5][random.index(3)],
                }
            }
            if self.masks && random.chance(0.3) {
                match random.index(3) {
                    0 => labels[anchor] = settings.ignore_label.unwrap_or(background),
                    1 => weights[anchor] = random.between(0.1, 2.0),
                    _ => weights[anchor] = 0.0,
                }
                let (image, position) = (anchor / positions, anchor % positions);
                if labels[anchor] == settings.ignore_label.unwrap_or(background) && weights[anchor] == 0.0 {
                    cls[(image * self.classes + random.index(self.classes)) * positions + position] =
                        f64::NAN;
                    boxes[image * 4 * bins * positions + position] = f64::NAN;
                }
            }
        }
        if self.not_finite {
            for x in cls.iter_mut().chain(&mut boxes) {
                if random.chance(0.01) {
                    *x = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY][random.index(3)];
                }
            }
        }
        let given = settings.quality == QualitySource::Given;
        LevelScene {
            height,
            width,
            stride,
            points,
            cls,
            boxes,
            labels,
            label_weights: (self.masks || random.chance(0.5)).then_some(weights),
            box_targets: targets,
            quality: (given || random.chance(0.3)).then_some(quality),
            ..LevelScene::default()
        }
    }

    fn add_options(&self, random: &mut Random, level: &mut LevelScene, class_weights: Option<&[f64]>) {
        let (anchors, classes, options) = (level.labels.len(), self.classes, &self.options);
        let positions = level.positions();
        let weight = |random: &mut Random| match random.index(4) {
            0 => 0.0,
            _ => random.between(0.1, 2.0),
        };
        if options.box_weights {
            level.box_weights = Some((0..anchors).map(|_| weight(random)).collect());
        }
        if self.settings.box_weight == BoxWeight::Given {
            let score = |_| match random.index(40) {
                0 if self.faults => [f64::NAN, f64::INFINITY][random.index(2)],
                _ => random.between(0.0, 1.5),
            };
            level.box_scores = Some((0..anchors).map(score).collect());
        }
        if options.scores {
            let score = |_| match random.index(12) {
                0 | 1 => random.unit(),
                2 if self.faults => [-0.25, 1.25][random.index(2)],
                _ => 0.0,
            };
            let mut scores: Vec<f64> = (0..anchors * classes).map(score).collect();
            for anchor in (0..anchors).filter(|_| self.faults) {
                if random.chance(0.05) {
                    scores[anchor * classes + random.index(classes)] = f64::NAN;
                }
            }
            level.scores = Some(scores);
        }
        if options.element_weights {
            level.element_weights = Some((0..anchors * classes).map(|_| weight(random)).collect());
        }
        let masks = |anchor: usize, class: usize| {
            class_weights.is_some_and(|weights| weights[class] == 0.0)
                || level.element_weights.as_ref().is_some_and(|w| w[anchor * classes + class] == 0.0)
        };
        for anchor in 0..anchors {
            let (image, position) = (anchor / positions, anchor % positions);
            for class in 0..classes {
                if masks(anchor, class)
                    && random.chance(0.2)
                    && self.settings.box_weight != BoxWeight::MaxScore
                {
                    level.cls[(image * classes + class) * positions + position] = f64::NAN;
                }
            }
            // Of a box that is masked, where no quality depends on it.
            let masked = level.box_weights.as_ref().is_some_and(|weights| weights[anchor] == 0.0);
            let detached = self.settings.quality == QualitySource::Given;
            if masked && detached && level.quality.is_some() && random.chance(0.3) {
                let channels = level.boxes.len() / anchors;
                level.boxes[image * channels * positions + position] = f64::NAN;
            }
        }
    }
}
