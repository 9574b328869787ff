//! Equations (14) and (15): ATSS and FCOS by their definitions, for all pairs of anchors and boxes, in f64 where f32
//! is not asked for.

/// Boxes, labels and images, and what else may be given.
#[derive(Clone, Debug, Default)]
pub struct Scene {
    /// Of all images, x1, y1, x2, y2 in pixels.
    pub boxes: Vec<[f32; 4]>,
    /// Of each box.
    pub labels: Vec<i64>,
    /// Of each box, its image; -1: padding.
    pub image: Vec<i64>,
    /// Of each box.
    pub weights: Option<Vec<f32>>,
    /// Regions to ignore, and their images.
    pub ignore: Option<(Vec<[f32; 4]>, Vec<i64>)>,
    /// Height and width of each image.
    pub valid_hw: Option<Vec<i64>>,
    /// How many images there are.
    pub images: usize,
    /// How many classes there are.
    pub classes: usize,
}

/// The targets of a level, `[images, anchors]` and `[images, anchors, 4]`.
#[derive(Clone, Debug, Default)]
pub struct OfLevel<L = i64> {
    /// The class of an anchor's box, or background.
    pub labels: Vec<L>,
    /// Its box; four zeros: none.
    pub box_targets: Vec<f32>,
    /// 0 where an anchor takes no part, else 1.
    pub label_weights: Vec<f32>,
    /// The weight of its box; 0: none.
    pub box_weights: Vec<f32>,
    /// Empty for ATSS.
    pub centerness: Vec<f32>,
}

/// Which of equally near anchors is taken.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Ties {
    /// The one with the lower number.
    Lower,
    /// The one with the higher number.
    Higher,
}

/// By which rule.
#[derive(Clone, Debug, PartialEq)]
pub enum By {
    /// (14)
    Atss {
        /// Candidates of each level.
        topk: usize,
    },
    /// (15)
    Fcos {
        /// Of each level, from what to what distance.
        ranges: Vec<[f32; 2]>,
        /// In strides, how far from a box's centre a point may be.
        radius: Option<f32>,
    },
}

/// An assignment and its options.
#[derive(Clone, Debug, PartialEq)]
pub struct Rules {
    /// Which one.
    pub by: By,
    /// Whether 0 is background, and 1 the first class; else the number of classes is.
    pub background_first: bool,
    /// Above which overlap with a region to ignore an anchor takes no part; 0 or less: never.
    pub ignore_iof: f32,
    /// How many of the nearest free anchors a box has that else has none.
    pub fallback: usize,
}

/// Numbers of boxes, in rising order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Faults {
    /// Not finite, or without width or height.
    pub boxes: Vec<usize>,
    /// Whose label is not a class.
    pub labels: Vec<usize>,
    /// In no image of the batch, and no padding.
    pub images: Vec<usize>,
    /// Without an anchor in the end.
    pub unassigned: Vec<usize>,
}

/// A level, as a grid or as its boxes.
#[derive(Clone, Debug)]
pub enum Level {
    /// At each position an anchor of each size.
    Grid {
        /// Rows of positions.
        height: usize,
        /// Positions in a row.
        width: usize,
        /// Pixels from one position to the next.
        stride: f32,
        /// Of the first position, in strides.
        offset: f32,
        /// Width and height.
        sizes: Vec<[f32; 2]>,
    },
    /// One after the other.
    Boxes(Vec<[f32; 4]>),
}

impl Level {
    /// mmdetection's anchors for GFL: 8 strides wide.
    pub fn new(height: usize, width: usize, stride: f32) -> Level {
        Level::Grid { height, width, stride, offset: 0.0, sizes: vec![[8.0 * stride; 2]] }
    }

    /// With the first position so many strides from the corner.
    pub fn offset(self, new: f32) -> Level {
        match self {
            Level::Grid { height, width, stride, sizes, .. } => {
                Level::Grid { height, width, stride, offset: new, sizes }
            }
            boxes => boxes,
        }
    }

    /// With anchors of these widths and heights.
    pub fn sizes(self, new: &[[f32; 2]]) -> Level {
        match self {
            Level::Grid { height, width, stride, offset, .. } => {
                Level::Grid { height, width, stride, offset, sizes: new.to_vec() }
            }
            boxes => boxes,
        }
    }

    /// How many anchors an image has.
    pub fn anchors(&self) -> usize {
        match self {
            Level::Grid { height, width, sizes, .. } => height * width * sizes.len(),
            Level::Boxes(boxes) => boxes.len(),
        }
    }

    /// Of a grid; of boxes, 16.
    pub fn stride(&self) -> f32 {
        match self {
            Level::Grid { stride, .. } => *stride,
            Level::Boxes(_) => 16.0,
        }
    }

    /// The same anchors, one by one.
    pub fn explicit(&self) -> Level {
        Level::Boxes(anchors(self).into_iter().map(|anchor| anchor.sides).collect())
    }
}

/// An anchor, where it is, and its row, column and stride on a grid.
struct Anchor {
    sides: [f32; 4],
    point: [f32; 2],
    cell: Option<([f64; 2], f64)>,
}

/// The anchors of a level, by its definition.
fn anchors(level: &Level) -> Vec<Anchor> {
    let mut all = Vec::new();
    match level {
        Level::Boxes(boxes) => {
            for &b in boxes {
                all.push(Anchor { sides: b, point: centre(b), cell: None });
            }
        }
        Level::Grid { height, width, stride, offset, sizes } => {
            for row in 0..*height {
                for column in 0..*width {
                    for [w, h] in sizes {
                        let (x, y) = ((column as f32 + offset) * stride, (row as f32 + offset) * stride);
                        all.push(Anchor {
                            sides: [x - w / 2.0, y - h / 2.0, x + w / 2.0, y + h / 2.0],
                            point: [x, y],
                            cell: Some(([row as f64, column as f64], f64::from(*stride))),
                        });
                    }
                }
            }
        }
    }
    all
}

fn centre(b: [f32; 4]) -> [f32; 2] {
    [(b[0] + b[2]) / 2.0, (b[1] + b[3]) / 2.0]
}

fn distance(a: [f32; 2], b: [f32; 2]) -> f64 {
    let ([ax, ay], [bx, by]) = (a.map(f64::from), b.map(f64::from));
    (ax - bx).hypot(ay - by)
}

fn area(b: [f32; 4]) -> f32 {
    (b[2] - b[0]) * (b[3] - b[1])
}

fn intersection(a: [f32; 4], b: [f32; 4]) -> f32 {
    let w = (a[2].min(b[2]) - a[0].max(b[0])).max(0.0);
    let h = (a[3].min(b[3]) - a[1].max(b[1])).max(0.0);
    w * h
}

/// Left, top, right, bottom.
fn sides(p: [f32; 2], b: [f32; 4]) -> [f32; 4] {
    [p[0] - b[0], p[1] - b[1], b[2] - p[0], b[3] - p[1]]
}

fn least(values: [f32; 4]) -> f32 {
    values.into_iter().fold(f32::INFINITY, f32::min)
}

fn is_usable(b: [f32; 4]) -> bool {
    b.iter().all(|side| side.is_finite()) && b[0] < b[2] && b[1] < b[3]
}

/// An anchor of an image: level, image, number.
type Place = (usize, usize, usize);

/// (14), (15): the targets of each level, and which boxes could not be used, or have no anchor.
pub fn assign(rules: &Rules, ties: Ties, levels: &[Level], scene: &Scene) -> (Vec<OfLevel>, Faults) {
    let levels: Vec<Vec<Anchor>> = levels.iter().map(anchors).collect();
    let (mut out, mut faults) = (Vec::new(), Faults::default());

    // Which boxes take part.
    let mut images: Vec<Option<usize>> = Vec::new();
    let first = i64::from(rules.background_first);
    let classes = first..scene.classes as i64 + first;
    let background = if rules.background_first { 0 } else { scene.classes as i64 };
    let mut image_of = |number: usize, b: [f32; 4], label: Option<i64>, image: i64| {
        if image == -1 {
            return None;
        }
        let good_label = label.is_none_or(|label| classes.contains(&label));
        let good_image = 0 <= image && image < scene.images as i64;
        let found = [
            (is_usable(b), &mut faults.boxes),
            (good_label, &mut faults.labels),
            (good_image, &mut faults.images),
        ];
        found.into_iter().filter(|(good, _)| !good).for_each(|(_, numbers)| numbers.push(number));
        (is_usable(b) && good_label && good_image).then_some(image as usize)
    };
    for (number, &b) in scene.boxes.iter().enumerate() {
        images.push(image_of(number, b, Some(scene.labels[number]), scene.image[number]));
    }
    let mut ignored = vec![Vec::new(); scene.images];
    if let (true, Some((boxes, image))) = (rules.ignore_iof > 0.0, &scene.ignore) {
        for (i, &b) in boxes.iter().enumerate() {
            if let Some(image) = image_of(scene.boxes.len() + i, b, None, image[i]) {
                ignored[image].push(b);
            }
        }
    }

    // Which anchors do.
    let takes_part = |(level, image, number): Place| {
        let anchor: &Anchor = &levels[level][number];
        let valid = match (&scene.valid_hw, anchor.cell) {
            (None, _) => true,
            (Some(size), Some(([row, column], stride))) => {
                let [height, width] = [size[2 * image] as f64, size[2 * image + 1] as f64];
                row < (height / stride).ceil() && column < (width / stride).ceil()
            }
            (Some(size), None) => {
                let [x, y] = centre(anchor.sides).map(f64::from);
                x < size[2 * image + 1] as f64 && y < size[2 * image] as f64
            }
        };
        let is_ignored = |&b: &[f32; 4]| match rules.by {
            By::Atss { .. } => {
                intersection(anchor.sides, b) / area(anchor.sides).max(1e-6) > rules.ignore_iof
            }
            By::Fcos { .. } => rules.ignore_iof < 1.0 && least(sides(anchor.point, b)) > 0.0,
        };
        valid && !ignored[image].iter().any(is_ignored)
    };

    // Who has which anchor.
    let mut owners: Vec<Vec<Option<usize>>> =
        levels.iter().map(|anchors| vec![None; scene.images * anchors.len()]).collect();
    let at = |(level, image, number): Place| image * levels[level].len() + number;
    match &rules.by {
        By::Atss { topk } => {
            let mut best: Vec<Vec<f32>> =
                owners.iter().map(|owners| vec![f32::NEG_INFINITY; owners.len()]).collect();
            for (g, &b) in scene.boxes.iter().enumerate() {
                let Some(image) = images[g] else { continue };
                let mut candidates: Vec<Place> = Vec::new();
                for (level, anchors) in levels.iter().enumerate() {
                    let mut nearest: Vec<(f64, Place)> = (0..anchors.len())
                        .map(|number| (level, image, number))
                        .filter(|&place| takes_part(place))
                        .map(|place| (distance(centre(anchors[place.2].sides), centre(b)), place))
                        .collect();
                    if ties == Ties::Higher {
                        nearest.reverse();
                    }
                    nearest.sort_by(|a, b| a.0.partial_cmp(&b.0).expect("finite distances")); // stable
                    candidates.extend(nearest.iter().take(*topk).map(|&(_, place)| place));
                }
                let overlap = |place: &Place| {
                    let (a, both) =
                        (levels[place.0][place.2].sides, intersection(levels[place.0][place.2].sides, b));
                    both / (area(a) + area(b) - both).max(1e-6)
                };
                let ious: Vec<f32> = candidates.iter().map(overlap).collect();
                let n = ious.len() as f64;
                let mean = ious.iter().map(|&iou| f64::from(iou)).sum::<f64>() / n;
                let variance =
                    ious.iter().map(|&iou| (f64::from(iou) - mean).powi(2)).sum::<f64>() / (n - 1.0);
                let threshold = mean + variance.sqrt();
                for (&place, &iou) in candidates.iter().zip(&ious) {
                    let inside = least(sides(centre(levels[place.0][place.2].sides), b)) > 0.01;
                    let best = &mut best[place.0][at(place)];
                    if inside && f64::from(iou) >= threshold && iou > *best {
                        *best = iou;
                        owners[place.0][at(place)] = Some(g);
                    }
                }
            }
        }
        By::Fcos { ranges, radius } => {
            for level in 0..levels.len() {
                for image in 0..scene.images {
                    for number in 0..levels[level].len() {
                        if !takes_part((level, image, number)) {
                            continue;
                        }
                        let Anchor { point, cell, .. } = levels[level][number];
                        let mut smallest = f32::INFINITY;
                        for (g, &b) in scene.boxes.iter().enumerate() {
                            let furthest = sides(point, b).into_iter().fold(f32::NEG_INFINITY, f32::max);
                            let mut middle = b;
                            if let (Some(radius), Some((_, stride))) = (radius, cell) {
                                let ([x, y], reach) = (centre(b), stride as f32 * radius);
                                let around = [x - reach, y - reach, x + reach, y + reach];
                                for side in 0..4 {
                                    let keep = if side < 2 {
                                        around[side] > b[side]
                                    } else {
                                        around[side] < b[side]
                                    };
                                    middle[side] = if keep { around[side] } else { b[side] };
                                }
                            }
                            let in_range = ranges[level][0] <= furthest && furthest <= ranges[level][1];
                            let inside = least(sides(point, middle)) > 0.0;
                            if images[g] == Some(image) && inside && in_range && area(b) < smallest {
                                smallest = area(b);
                                owners[level][at((level, image, number))] = Some(g);
                            }
                        }
                    }
                }
            }
        }
    }

    // Boxes without an anchor, one after the other.
    for (g, &b) in scene.boxes.iter().enumerate() {
        let Some(image) = images[g] else { continue };
        if owners.iter().flatten().any(|&owner| owner == Some(g)) {
            continue;
        }
        let mut free: Vec<(f64, Place)> = Vec::new();
        for (level, anchors) in levels.iter().enumerate() {
            for (number, anchor) in anchors.iter().enumerate() {
                let place = (level, image, number);
                if owners[level][at(place)].is_none() && takes_part(place) {
                    let from = match rules.by {
                        By::Atss { .. } => centre(anchor.sides),
                        By::Fcos { .. } => anchor.point,
                    };
                    free.push((distance(from, centre(b)), place));
                }
            }
        }
        free.reverse();
        free.sort_by(|a, b| a.0.partial_cmp(&b.0).expect("finite distances"));
        free.truncate(rules.fallback);
        if free.is_empty() {
            faults.unassigned.push(g);
        }
        for (_, place) in free {
            owners[place.0][at(place)] = Some(g);
        }
    }

    // What comes of it.
    for (level, owners) in owners.iter().enumerate() {
        let mut of_level = OfLevel::default();
        for (i, &owner) in owners.iter().enumerate() {
            let (image, number) = (i / levels[level].len(), i % levels[level].len());
            of_level.labels.push(owner.map_or(background, |g| scene.labels[g]));
            of_level.box_targets.extend(owner.map_or([0.0; 4], |g| scene.boxes[g]));
            of_level.label_weights.push(if takes_part((level, image, number)) { 1.0 } else { 0.0 });
            let weight = |g: usize| scene.weights.as_ref().map_or(1.0, |weights| weights[g]);
            of_level.box_weights.push(owner.map_or(0.0, weight));
            if let By::Fcos { .. } = rules.by {
                let centerness = |g: usize| {
                    let [l, t, r, b] = sides(levels[level][number].point, scene.boxes[g]);
                    if least([l, t, r, b]) <= 0.0 {
                        return 0.0;
                    }
                    ((l.min(r) / l.max(r)) * (t.min(b) / t.max(b))).sqrt()
                };
                of_level.centerness.push(owner.map_or(0.0, centerness));
            }
        }
        out.push(of_level);
    }
    (out, faults)
}
