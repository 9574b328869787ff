//! The raw outputs of a half-trained head for two small images, as a network leaves them.
//!
//! Images of 128 x 96 pixels, strides 8, 16 and 32, 8 classes, boxes of 17 bins a side, logits in
//! f16. Additions, multiplications and divisions alone go into the numbers, and they are rounded to
//! 1/64, so that every machine makes the same file.

use std::collections::HashMap;

use half::f16;
use safetensors::Dtype;
use safetensors::tensor::TensorView;

use super::random::{Random, round};

const IMAGES: usize = 2;
const IMAGE: [usize; 2] = [96, 128];
const STRIDES: [usize; 3] = [8, 16, 32];
const CLASSES: usize = 8;
const BINS: usize = 17;
/// Where the classification head's bias starts: −ln 99, for scores of 0.01.
const PRIOR: f64 = -4.59375;

/// Image, class, and x1, y1, x2, y2 in pixels.
const TRUTH: [(usize, usize, [f64; 4]); 7] = [
    (0, 2, [10.0, 14.0, 58.0, 66.0]),
    (0, 5, [50.0, 30.0, 118.0, 90.0]),
    (0, 0, [84.0, 6.0, 112.0, 30.0]),
    (1, 2, [6.0, 8.0, 122.0, 92.0]),
    (1, 7, [30.0, 40.0, 62.0, 80.0]),
    (1, 1, [88.0, 20.0, 116.0, 52.0]),
    (1, 3, [64.0, 60.0, 92.0, 88.0]),
];

const ABOUT: &str = "The raw outputs of a made-up head for two images: 3 levels, 8 classes (label 8 is background), 17 bins \
                     a side. For gfocal head and gfocal plot. Made by cli/examples/make_sample.";
const CASE: &str = r#"{"strides": [8, 16, 32], "reg_max": 16, "num_classes": 8, "image_hw": [96, 128]}"#;

/// A tensor of the file.
type Named = (String, Dtype, Vec<usize>, Vec<u8>);

/// The bytes of the file.
pub fn file() -> Vec<u8> {
    let mut random = Random(2006);
    let mut tensors: Vec<Named> = Vec::new();
    for (level, stride) in STRIDES.into_iter().enumerate() {
        level_tensors(&mut random, level, stride, &mut tensors);
    }
    let boxes = TRUTH.iter().flat_map(|(_, _, corners)| corners.map(|x| x as f32)).flat_map(f32::to_le_bytes);
    tensors.push(("gt_boxes".to_owned(), Dtype::F32, vec![TRUTH.len(), 4], boxes.collect()));
    let integers = |of: fn(&(usize, usize, [f64; 4])) -> usize| {
        TRUTH.iter().flat_map(|truth| (of(truth) as i64).to_le_bytes()).collect::<Vec<_>>()
    };
    tensors.push(("gt_labels".to_owned(), Dtype::I64, vec![TRUTH.len()], integers(|truth| truth.1)));
    tensors.push(("gt_image".to_owned(), Dtype::I64, vec![TRUTH.len()], integers(|truth| truth.0)));

    let views = tensors.iter().map(|(name, dtype, shape, data)| {
        let view = TensorView::new(*dtype, shape.clone(), data);
        (name, view.expect("the data has the length of the shape"))
    });
    // One key: the crate writes the keys in no fixed order.
    let case = CASE.replacen('{', &format!("{{\"about\": \"{ABOUT}\", "), 1);
    let metadata = HashMap::from([("case".to_owned(), case)]);
    safetensors::serialize(views, Some(metadata)).expect("the header is small")
}

fn level_tensors(random: &mut Random, level: usize, stride: usize, tensors: &mut Vec<Named>) {
    let [height, width] = IMAGE.map(|side| side / stride);
    let (positions, stride) = (height * width, stride as f64);
    let mut cls = vec![0.0; IMAGES * CLASSES * positions];
    let mut boxes = vec![0.0; IMAGES * 4 * BINS * positions];
    let mut labels = vec![CLASSES as i64; IMAGES * positions];
    let mut box_targets = vec![0f32; IMAGES * positions * 4];
    for image in 0..IMAGES {
        for position in 0..positions {
            let point = [(position % width) as f64 * stride, (position / width) as f64 * stride];
            let around = surrounding(image, point);
            let anchor = image * positions + position;
            for class in 0..CLASSES {
                cls[(image * CLASSES + class) * positions + position] = PRIOR + 0.7 * random.normal();
            }
            let Some((class, corners)) = around else {
                for channel in 0..4 * BINS {
                    boxes[(image * 4 * BINS + channel) * positions + position] = 0.5 * random.normal();
                }
                continue;
            };
            let [x1, y1, x2, y2] = corners;
            let distances = [point[0] - x1, point[1] - y1, x2 - point[0], y2 - point[1]].map(|d| d / stride);
            // 1 in the middle of the box, 0 at its border.
            let [left, top, right, bottom] = distances;
            let centred = (left.min(right) / left.max(right)) * (top.min(bottom) / top.max(bottom));
            // Boxes of other sizes are other levels' work.
            let size = (left + right).max(top + bottom);
            let suits = (4.0..9.0).contains(&size);
            let sure = if suits { centred } else { 0.3 * centred };
            cls[(image * CLASSES + class) * positions + position] = -3.5 + 5.0 * sure + 0.6 * random.normal();
            for (side, distance) in distances.into_iter().enumerate() {
                let guess = distance + 0.9 * (1.0 - sure) * random.normal();
                for bin in 0..BINS {
                    let off = bin as f64 - guess;
                    let logit = (3.5 - (0.3 + sure) * off * off).max(-4.0) + 0.25 * random.normal();
                    boxes[(image * 4 * BINS + side * BINS + bin) * positions + position] = logit;
                }
            }
            if suits && centred > 0.15 {
                labels[anchor] = class as i64;
                box_targets[4 * anchor..][..4].copy_from_slice(&corners.map(|x| x as f32));
            }
        }
    }
    let name = |tensor: &str| format!("level{level}.{tensor}");
    let labels = labels.iter().flat_map(|label| label.to_le_bytes()).collect();
    let box_targets = box_targets.iter().flat_map(|x| x.to_le_bytes()).collect();
    tensors.extend([
        (name("cls_logits"), Dtype::F16, vec![IMAGES, CLASSES, height, width], halves(&cls)),
        (name("box_logits"), Dtype::F16, vec![IMAGES, 4 * BINS, height, width], halves(&boxes)),
        (name("labels"), Dtype::I64, vec![IMAGES, positions], labels),
        (name("box_targets"), Dtype::F32, vec![IMAGES, positions, 4], box_targets),
    ]);
}

/// The smallest box around a point.
fn surrounding(image: usize, point: [f64; 2]) -> Option<(usize, [f64; 4])> {
    let [x, y] = point;
    let area = |[x1, y1, x2, y2]: [f64; 4]| (x2 - x1) * (y2 - y1);
    let around = TRUTH
        .iter()
        .filter(|(of, _, [x1, y1, x2, y2])| *of == image && *x1 < x && x < *x2 && *y1 < y && y < *y2);
    let smallest = around.min_by(|(_, _, a), (_, _, b)| area(*a).total_cmp(&area(*b)));
    smallest.map(|&(_, class, corners)| (class, corners))
}

fn halves(numbers: &[f64]) -> Vec<u8> {
    numbers.iter().flat_map(|&number| f16::from_f64(round(number, 64.0)).to_le_bytes()).collect()
}
