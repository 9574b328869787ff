//! From scores and boxes to one number: suppression of doubles, and average precision as COCO has it.

use super::scenes::{CLASSES, Object};

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Detection {
    pub class: usize,
    pub score: f32,
    /// `[x1, y1, x2, y2]`.
    pub corners: [f32; 4],
}

/// Intersection over union.
pub fn iou(a: [f32; 4], b: [f32; 4]) -> f32 {
    let area = |b: [f32; 4]| (b[2] - b[0]).max(0.0) * (b[3] - b[1]).max(0.0);
    let both = area([a[0].max(b[0]), a[1].max(b[1]), a[2].min(b[2]), a[3].min(b[3])]);
    both / (area(a) + area(b) - both).max(1e-6)
}

/// The best first. Of equal scores the order stays.
fn sort(detections: &mut [Detection]) {
    detections.sort_by(|a, b| b.score.total_cmp(&a.score));
}

/// Of the detections of an image those that overlap no better one of their class by more than `overlap`; the best `most`.
pub fn suppress(mut detections: Vec<Detection>, overlap: f32, most: usize) -> Vec<Detection> {
    sort(&mut detections);
    let mut kept: Vec<Detection> = Vec::new();
    for new in detections {
        if kept.len() == most {
            break;
        }
        let is_double = |old: &Detection| old.class == new.class && iou(old.corners, new.corners) > overlap;
        if !kept.iter().any(is_double) {
            kept.push(new);
        }
    }
    kept
}

/// Average precision in percent, the mean of all classes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ap {
    /// The mean over IoUs from 0.50 to 0.95 in steps of 0.05.
    pub mean: f64,
    pub at_50: f64,
    pub at_75: f64,
    pub at_90: f64,
}

/// IoUs in percent.
const IOUS: [usize; 10] = [50, 55, 60, 65, 70, 75, 80, 85, 90, 95];
const RECALLS: usize = 101;

/// Of the detections in all images, given what is there. Areas of all sizes count.
pub fn average_precision(detections: &[Vec<Detection>], truth: &[Vec<Object>]) -> Ap {
    assert_eq!(detections.len(), truth.len());
    let classes: Vec<_> =
        (0..CLASSES).filter(|&class| truth.iter().flatten().any(|o| o.class == class)).collect();
    let at = |percent: usize| {
        let of_class = |&class: &usize| of_one_class(detections, truth, class, percent as f32 / 100.0);
        100.0 * classes.iter().map(of_class).sum::<f64>() / classes.len().max(1) as f64
    };
    let all = IOUS.map(at);
    let of = |percent| all[IOUS.iter().position(|&iou| iou == percent).expect("one of them")];
    Ap { mean: all.iter().sum::<f64>() / all.len() as f64, at_50: of(50), at_75: of(75), at_90: of(90) }
}

fn of_one_class(detections: &[Vec<Detection>], truth: &[Vec<Object>], class: usize, least: f32) -> f64 {
    let mut found: Vec<(usize, Detection)> = (detections.iter().enumerate())
        .flat_map(|(image, all)| all.iter().filter(|d| d.class == class).map(move |&d| (image, d)))
        .collect();
    found.sort_by(|a, b| b.1.score.total_cmp(&a.1.score));
    let mut free: Vec<Vec<[f32; 4]>> = (truth.iter())
        .map(|objects| objects.iter().filter(|o| o.class == class).map(|o| o.corners).collect())
        .collect();
    let wanted: usize = free.iter().map(Vec::len).sum();
    // Precision and recall after each detection.
    let (mut hits, mut curve) = (0, Vec::with_capacity(found.len()));
    for (number, (image, detection)) in found.into_iter().enumerate() {
        let boxes = &mut free[image];
        let best = (0..boxes.len())
            .map(|place| (place, iou(boxes[place], detection.corners)))
            .filter(|&(_, iou)| iou >= least)
            .max_by(|a, b| a.1.total_cmp(&b.1));
        if let Some((place, _)) = best {
            boxes.swap_remove(place);
            hits += 1;
        }
        curve.push((hits as f64 / (number + 1) as f64, hits));
    }
    // The best precision at this recall or a higher one.
    let mut best = 0.0;
    for (precision, _) in curve.iter_mut().rev() {
        best = f64::max(best, *precision);
        *precision = best;
    }
    let at = |recall: usize| {
        let first = curve.partition_point(|&(_, hits)| hits * (RECALLS - 1) < recall * wanted);
        curve.get(first).map_or(0.0, |&(precision, _)| precision)
    };
    (0..RECALLS).map(at).sum::<f64>() / RECALLS as f64
}

/// Pearson's.
pub fn correlation(pairs: &[[f32; 2]]) -> f64 {
    let count = pairs.len() as f64;
    let mean = |i: usize| pairs.iter().map(|pair| f64::from(pair[i])).sum::<f64>() / count;
    let means = [mean(0), mean(1)];
    let moment = |i: usize, j: usize| {
        pairs
            .iter()
            .map(|pair| (f64::from(pair[i]) - means[i]) * (f64::from(pair[j]) - means[j]))
            .sum::<f64>()
    };
    moment(0, 1) / (moment(0, 0) * moment(1, 1)).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenes::Side;

    fn object(class: usize, corners: [f32; 4]) -> Object {
        Object { class, corners, sides: [Side::Clear; 4] }
    }

    fn detection(class: usize, score: f32, corners: [f32; 4]) -> Detection {
        Detection { class, score, corners }
    }

    const A: [f32; 4] = [0.0, 0.0, 10.0, 10.0];
    const B: [f32; 4] = [20.0, 0.0, 30.0, 10.0];

    #[test]
    fn doubles_of_the_same_class_go() {
        let near = [0.0, 0.0, 10.0, 8.0]; // IoU 0.8 with A
        let half = [0.0, 0.0, 10.0, 5.0]; // 0.5 with A, 0.625 with `near`
        let all = vec![
            detection(0, 0.3, half),
            detection(0, 0.9, A),
            detection(0, 0.8, near),
            detection(1, 0.7, near),
            detection(0, 0.1, B),
        ];
        let kept = suppress(all.clone(), 0.6, 100);
        assert_eq!(kept, [all[1], all[3], all[0], all[4]]);
        assert_eq!(suppress(all.clone(), 0.6, 2), [all[1], all[3]]);
        assert_eq!(suppress(all.clone(), 0.9, 100).len(), 5);
    }

    /// Two of three found, with a miss between: recall ⅓ at precision 1, ⅔ at precision ⅔.
    #[test]
    fn average_precision_of_a_set_made_by_hand() {
        let (c, miss) = ([40.0, 0.0, 50.0, 10.0], [0.0, 40.0, 10.0, 50.0]);
        let truth = vec![vec![object(0, A), object(0, B)], vec![object(0, c)]];
        let loose = [20.0, 0.0, 30.0, 7.0]; // IoU 0.7 with B
        let found = vec![vec![detection(0, 0.9, A), detection(0, 0.5, loose)], vec![detection(0, 0.7, miss)]];
        // Recalls 0.00 to 0.33 are 34 points, those up to 0.66 another 33.
        let (both, one) = (100.0 * (34.0 + 33.0 * 2.0 / 3.0) / 101.0, 100.0 * 34.0 / 101.0);
        let ap = average_precision(&found, &truth);
        let is = |got: f64, want: f64| assert!((got - want).abs() < 1e-9, "{got} is not {want}");
        is(ap.at_50, both);
        is(ap.at_75, one);
        is(ap.at_90, one);
        is(ap.mean, (5.0 * both + 5.0 * one) / 10.0); // 0.70 is reached, 0.75 is not
    }

    #[test]
    fn a_box_is_found_once_and_by_its_class_and_in_its_image() {
        let truth = vec![vec![object(0, A)], vec![object(1, A)]];
        let perfect = |first| vec![vec![first], vec![detection(1, 0.5, A)]];
        assert_eq!(average_precision(&perfect(detection(0, 0.5, A)), &truth).mean, 100.0);
        assert_eq!(average_precision(&perfect(detection(1, 0.4, A)), &truth).mean, 50.0);
        // A double behind the right one costs nothing, one before it half the precision.
        let doubled =
            |score| vec![vec![detection(0, 0.5, A)], vec![detection(1, 0.5, A), detection(1, score, B)]];
        assert_eq!(average_precision(&doubled(0.4), &truth).mean, 100.0);
        assert_eq!(average_precision(&doubled(0.6), &truth).mean, 75.0);
        assert_eq!(average_precision(&[vec![], vec![]], &truth).mean, 0.0);
    }

    #[test]
    fn correlation_of_a_line_and_of_a_square() {
        let pairs = |of: [f32; 4]| [0, 1, 2, 3].map(|i| [i as f32, of[i]]);
        assert!((correlation(&pairs([1.0, 3.0, 5.0, 7.0])) - 1.0).abs() < 1e-12);
        assert!((correlation(&pairs([1.0, 0.0, 0.0, 1.0]))).abs() < 1e-12);
    }
}
