//! One made-up training step of a detector on one small image, as GFL's head has it.
//!
//! 512 anchor points, of which 24 are positive; 20 classes; boxes of 17 bins a side. Nothing but
//! additions and multiplications goes into the numbers, and they are rounded to 1/64 or 1/1024, so
//! that every machine makes the same file and f16 holds the logits exactly.

use std::collections::HashMap;

use safetensors::Dtype;
use safetensors::tensor::TensorView;

use super::random::{Random, round};

const POINTS: usize = 512;
const CLASSES: usize = 20;
const POSITIVES: usize = 24;
const BINS: usize = 17;
const SIDES: usize = 4;
/// Points outside of the image, which take no part.
const MASKED: [usize; 6] = [0, 31, 32, 480, 510, 511];
/// Where the classification head's bias starts: −ln 99, for scores of 0.01.
const PRIOR: f64 = -4.59375;

const ABOUT: &str = "One made-up training step: 512 points, 20 classes (label 20 is background), 24 positives, 17 bins a \
                     side. qfl.* for gfocal qfl, dfl.* for gfocal dfl, both for gfocal gfl. Made by \
                     cli/examples/make_sample.";

/// The bytes of the file.
pub fn file() -> Vec<u8> {
    let mut random = Random(2020);
    let mut logits = Vec::new();
    for _ in 0..POINTS * CLASSES {
        logits.push(PRIOR + 0.8 * random.normal());
    }
    let mut labels = vec![CLASSES as i64; POINTS];
    let mut quality = vec![0.0; POINTS];
    let mut weight = vec![1.0; POINTS];
    for point in MASKED {
        weight[point] = 0.0;
    }
    let (mut boxes, mut targets, mut box_weight) = (Vec::new(), Vec::new(), Vec::new());
    for positive in 0..POSITIVES {
        let point = 40 + 17 * positive;
        let class = random.below(CLASSES);
        let iou = 0.35 + 0.6 * random.unit();
        labels[point] = class as i64;
        quality[point] = round(iou, 1024.0);
        // The better the box, the surer the head is; about half way to what it will learn.
        let logit = -2.5 + 4.0 * iou + 0.8 * random.normal();
        logits[point * CLASSES + class] = logit;
        // The head weighs a box by its score; this is one without an exponential in it.
        let score = 0.5 + 0.5 * logit / (1.0 + logit.abs());
        for _ in 0..SIDES {
            let target = round(15.9 * random.unit(), 1024.0);
            let guess = target + 1.5 * (1.0 - iou) * random.normal();
            for bin in 0..BINS {
                let distance = bin as f64 - guess;
                boxes.push(round((3.0 - 0.4 * distance * distance).max(-4.0) + 0.3 * random.normal(), 64.0));
            }
            targets.push(target);
            box_weight.push(round(score, 1024.0));
        }
    }
    let logits = logits.into_iter().map(|logit| round(logit, 64.0)).collect::<Vec<_>>();

    let labels: Vec<u8> = labels.iter().flat_map(|label| label.to_le_bytes()).collect();
    let [logits, quality, weight, boxes, targets, box_weight] =
        [logits, quality, weight, boxes, targets, box_weight].map(bytes);
    let sides = POSITIVES * SIDES;
    let tensors = [
        ("qfl.logits", Dtype::F32, vec![POINTS, CLASSES], &logits),
        ("qfl.labels", Dtype::I64, vec![POINTS], &labels),
        ("qfl.quality", Dtype::F32, vec![POINTS], &quality),
        ("qfl.weight", Dtype::F32, vec![POINTS], &weight),
        ("dfl.logits", Dtype::F32, vec![sides, BINS], &boxes),
        ("dfl.target", Dtype::F32, vec![sides], &targets),
        ("dfl.weight", Dtype::F32, vec![sides], &box_weight),
    ];
    let views = tensors.into_iter().map(|(name, dtype, shape, data)| {
        (name, TensorView::new(dtype, shape, data).expect("the data has the length of the shape"))
    });
    let about = HashMap::from([("about".to_owned(), ABOUT.to_owned())]);
    safetensors::serialize(views, Some(about)).expect("the header is small")
}

fn bytes(numbers: Vec<f64>) -> Vec<u8> {
    numbers.iter().flat_map(|&number| (number as f32).to_le_bytes()).collect()
}
