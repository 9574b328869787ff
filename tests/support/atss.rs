//! ATSS, transcribed from its definition.

/// Boxes, labels and images.
#[derive(Clone, Default)]
pub struct Scene {
    pub boxes: Vec<[f32; 4]>,
    pub labels: Vec<i64>,
    pub image: Vec<i64>,
    pub images: usize,
    pub classes: usize,
}

/// Labels `[images, anchors]` and box targets `[images, anchors, 4]` of each level.
pub type Targets<L = i64> = Vec<(Vec<L>, Vec<f32>)>;

/// Which of equally near anchors is taken.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Ties {
    Lower,
    Higher,
}

/// The definition, for all pairs of anchors and boxes, in f64 where f32 is not asked for.
pub fn transcription(topk: usize, ties: Ties, levels: &[Vec<f32>], scene: &Scene) -> Targets {
    let mut out: Targets = (levels.iter())
        .map(|level| {
            let anchors = scene.images * level.len() / 4;
            (vec![scene.classes as i64; anchors], vec![0.0; 4 * anchors])
        })
        .collect();
    // For each level and anchor of an image, the best IoU so far.
    let mut best: Vec<Vec<f32>> =
        out.iter().map(|(labels, _)| vec![f32::NEG_INFINITY; labels.len()]).collect();
    let centre = |b: &[f32]| [(b[0] + b[2]) / 2.0, (b[1] + b[3]) / 2.0].map(f64::from);
    for (g, b) in scene.boxes.iter().enumerate() {
        let Some(image) = usize::try_from(scene.image[g]).ok().filter(|&image| image < scene.images) else {
            continue;
        };
        if !b.iter().all(|side| side.is_finite()) {
            continue;
        }
        let mut candidates = Vec::new();
        for (l, level) in levels.iter().enumerate() {
            let mut nearest: Vec<(f64, usize)> = (level.chunks_exact(4).enumerate())
                .map(|(i, anchor)| {
                    let (a, b) = (centre(anchor), centre(b));
                    ((a[0] - b[0]).hypot(a[1] - b[1]), i)
                })
                .collect();
            if ties == Ties::Higher {
                nearest.reverse();
            }
            nearest.sort_by(|a, b| a.0.partial_cmp(&b.0).expect("finite distances")); // stable
            candidates.extend(nearest.iter().take(topk).map(|&(_, i)| (l, i)));
        }
        let anchor = |&(l, i): &(usize, usize)| &levels[l][4 * i..4 * i + 4];
        let overlap = |a: &[f32]| {
            let w = (a[2].min(b[2]) - a[0].max(b[0])).max(0.0);
            let h = (a[3].min(b[3]) - a[1].max(b[1])).max(0.0);
            let union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - w * h;
            w * h / union.max(1e-6)
        };
        let ious: Vec<f32> = candidates.iter().map(|place| overlap(anchor(place))).collect();
        let n = ious.len() as f64;
        let mean = ious.iter().map(|&iou| f64::from(iou)).sum::<f64>() / n;
        let variance = ious.iter().map(|&iou| (f64::from(iou) - mean).powi(2)).sum::<f64>() / (n - 1.0);
        let threshold = mean + variance.sqrt();
        for (place, &iou) in candidates.iter().zip(&ious) {
            let c = centre(anchor(place)).map(|x| x as f32);
            let inside = [c[0] - b[0], c[1] - b[1], b[2] - c[0], b[3] - c[1]].iter().all(|&d| d > 0.01);
            let at = image * levels[place.0].len() / 4 + place.1;
            if inside && f64::from(iou) >= threshold && iou > best[place.0][at] {
                best[place.0][at] = iou;
                out[place.0].0[at] = scene.labels[g];
                out[place.0].1[4 * at..4 * at + 4].copy_from_slice(b);
            }
        }
    }
    out
}
