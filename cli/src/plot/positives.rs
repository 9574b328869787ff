//! What a head says of its positives.

use gfocal::qfl::Class;

use crate::error::Result;
use crate::head::{LevelTargets, Scene};

/// A positive anchor.
#[derive(Clone, Debug)]
pub struct Positive {
    pub level: usize,
    pub image: usize,
    pub position: usize,
    pub label: usize,
    /// σ of its class logit.
    pub score: f64,
    /// Of its decoded box with its target.
    pub iou: f64,
    /// Left, top, right, bottom.
    pub sides: Vec<Side>,
}

/// The distribution of a side, in units of bins.
#[derive(Clone, Debug)]
pub struct Side {
    pub probabilities: Vec<f64>,
    pub target: f64,
    pub expectation: f64,
    /// In nats.
    pub entropy: f64,
}

/// All positives of a scene, in its order.
pub fn of(scene: &Scene, targets: &[LevelTargets]) -> Result<Vec<Positive>> {
    let mut positives = Vec::new();
    for (number, (level, targets)) in scene.levels.iter().zip(targets).enumerate() {
        let cls: Vec<f64> = level.logits.cls().numbers.iter().collect();
        let boxes: Vec<f64> = level.logits.boxes().numbers.iter().collect();
        let place = &scene.places[number];
        let positions = place.positions();
        for anchor in 0..scene.batch * positions {
            let Class::Foreground(label) =
                scene.head.qfl().class_of(targets.labels.get(anchor), scene.classes)
            else {
                continue;
            };
            let (image, position) = (anchor / positions, anchor % positions);
            let score = 1.0 / (1.0 + (-cls[level.cls_layout.index(image, label, position)]).exp());
            let side = |side: usize| {
                let channel = |bin| side * scene.head.bins() + bin;
                let logit = |bin| boxes[level.box_layout.index(image, channel(bin), position)];
                (0..scene.head.bins()).map(logit).collect::<Vec<_>>()
            };
            let logits = [0, 1, 2, 3].map(side);
            let target: Vec<f64> = targets.target_box(anchor).iter().map(|x| x / place.stride).collect();
            let point = place.point(image, position).map(|x| x / place.stride);
            positives.push(Positive {
                level: number,
                image,
                position,
                label,
                score,
                ..decoded(point, &logits, &target)?
            });
        }
    }
    Ok(positives)
}

/// What box logits say of a target box, all in strides.
fn decoded(point: [f64; 2], logits: &[Vec<f64>; 4], target: &[f64]) -> Result<Positive> {
    let mut distances = [0.0; 4];
    gfocal::boxes::box_to_distances(&point, target, 1, None, &mut distances)?;
    let sides: Vec<Side> =
        logits.iter().zip(distances).map(|(logits, target)| Side::new(logits, target)).collect();
    let expectations: Vec<f64> = sides.iter().map(|side| side.expectation).collect();
    let (mut decoded, mut iou) = ([0.0; 4], [0.0]);
    gfocal::boxes::distances_to_box(&point, &expectations, 1, &mut decoded)?;
    gfocal::boxes::iou(&decoded, target, 1, 1e-6, &mut iou)?;
    Ok(Positive { level: 0, image: 0, position: 0, label: 0, score: 0.0, iou: iou[0], sides })
}

impl Side {
    fn new(logits: &[f64], target: f64) -> Side {
        let peak = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let exp: Vec<f64> = logits.iter().map(|z| (z - peak).exp()).collect();
        let total: f64 = exp.iter().sum();
        let probabilities: Vec<f64> = exp.iter().map(|e| e / total).collect();
        let expectation = probabilities.iter().enumerate().map(|(bin, p)| bin as f64 * p).sum();
        let entropy = probabilities.iter().filter(|&&p| p > 0.0).map(|p| -p * p.ln()).sum();
        Side { probabilities, target, expectation, entropy }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Positive {
        pub fn with_iou(iou: f64) -> Positive {
            Positive { level: 0, image: 0, position: 0, label: 0, score: 0.5, iou, sides: Vec::new() }
        }
    }

    #[test]
    fn a_side_in_numbers() {
        let side = Side::new(&[0.0, 0.0, f64::NEG_INFINITY, 0.0], 2.5);
        assert!((side.expectation - 4.0 / 3.0).abs() < 1e-12);
        assert!((side.entropy - 3f64.ln()).abs() < 1e-12);
    }

    #[test]
    fn a_box_that_is_its_target() {
        // All sides one stride away: the middle of three bins.
        let logits = [(); 4].map(|()| vec![-50.0, 0.0, -50.0]);
        let positive = decoded([3.0, 4.0], &logits, &[2.0, 3.0, 4.0, 5.0]).unwrap();
        assert!((positive.iou - 1.0).abs() < 1e-9);
        assert_eq!(positive.sides[2].target, 1.0);
    }
}
