//! Boxes on the CPU: arithmetic in f64.

use super::{BoxLoss, Coordinate, check, check_eps, math};
use crate::cpu::{map, split_off};
use crate::element::compiled;
use crate::error::{Result, check_option};

/// Boxes that a thread takes at a time.
const CHUNK: usize = 1 << 12;

impl BoxLoss {
    /// The losses `[boxes]` of predictions `[boxes, 4]` and targets `[boxes, 4]`.
    ///
    /// # Errors
    /// If a length does not fit the number of boxes.
    pub fn forward<T: Coordinate>(
        &self,
        pred: &[T],
        target: &[T],
        boxes: usize,
        loss: &mut [T],
    ) -> Result<()> {
        let lengths =
            [("pred", Some(pred.len()), 4), ("target", Some(target.len()), 4), ("loss", Some(loss.len()), 1)];
        check(boxes, &lengths)?;
        T::box_losses(self, [pred, target], None, loss, None);
        Ok(())
    }

    /// The losses `[boxes]`, and the gradient `[boxes, 4]` with respect to the predictions, given
    /// the gradient `upstream` `[boxes]` with respect to each loss (default: all ones).
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn forward_backward<T: Coordinate>(
        &self,
        pred: &[T],
        target: &[T],
        boxes: usize,
        upstream: Option<&[T]>,
        loss: &mut [T],
        grad: &mut [T],
    ) -> Result<()> {
        let lengths = [
            ("pred", Some(pred.len()), 4),
            ("target", Some(target.len()), 4),
            ("upstream", upstream.map(<[T]>::len), 1),
            ("loss", Some(loss.len()), 1),
            ("grad", Some(grad.len()), 4),
        ];
        check(boxes, &lengths)?;
        T::box_losses(self, [pred, target], upstream, loss, Some(grad));
        Ok(())
    }
}

compiled! {
    /// Box losses on the CPU.
    BoxesOnCpu: Coordinate for [f64, f32] {
        fn box_losses(
            boxes: &BoxLoss,
            of: [&[Self]; 2],
            upstream: Option<&[Self]>,
            loss: &mut [Self],
            grad: Option<&mut [Self]>,
        ) = box_losses;
    }
}

/// Of predictions and targets.
fn box_losses<T: Coordinate>(
    boxes: &BoxLoss,
    [pred, target]: [&[T]; 2],
    upstream: Option<&[T]>,
    loss: &mut [T],
    mut grad: Option<&mut [T]>,
) {
    let work = 8 * loss.len();
    let chunks = loss.chunks_mut(CHUNK).enumerate().map(|(chunk, loss)| {
        let grad = grad.as_mut().map(|grad| split_off(grad, 4 * loss.len()));
        (chunk * CHUNK, loss, grad)
    });
    map(work, chunks, |(first, loss, mut grad)| {
        let both = corners(&pred[4 * first..]).zip(corners(&target[4 * first..]));
        for (row, ((pred, target), loss)) in both.zip(loss).enumerate() {
            let result = math::iou_loss(boxes.kind, pred, target, boxes.eps);
            *loss = T::from_f64(result.loss);
            if let Some(grad) = &mut grad {
                let scale = upstream.map_or(1.0, |upstream| upstream[first + row].to_f64());
                for (grad, slope) in grad[4 * row..].iter_mut().zip(result.grad) {
                    *grad = T::from_f64(scale * slope);
                }
            }
        }
    });
}

/// The IoU `[n]` of boxes `[n, 4]` and `[n, 4]`, pair by pair; a union below `eps` counts as `eps`.
/// mmdetection's `bbox_overlaps` with `is_aligned`, whose default is 1e-6.
///
/// ```
/// let mut iou = [0.0f32];
/// gfocal::boxes::iou(&[0.0f32, 0.0, 4.0, 4.0], &[2.0, 0.0, 4.0, 4.0], 1, 1e-6, &mut iou)?;
/// assert_eq!(iou, [0.5]);
/// # Ok::<(), gfocal::Error>(())
/// ```
///
/// # Errors
/// If a length does not fit the number of boxes, or `eps` is outside 1e-30 to 1.
pub fn iou<T: Coordinate>(a: &[T], b: &[T], n: usize, eps: f64, iou: &mut [T]) -> Result<()> {
    check_eps(eps)?;
    check(n, &[("a", Some(a.len()), 4), ("b", Some(b.len()), 4), ("iou", Some(iou.len()), 1)])?;
    for ((a, b), iou) in corners(a).zip(corners(b)).zip(iou) {
        *iou = T::from_f64(math::iou(a, b, eps));
    }
    Ok(())
}

/// Boxes `[n, 4]`: the sides have the distances left, top, right and bottom, `[n, 4]`, from points
/// `[n, 2]`. mmdetection's `distance2bbox`.
///
/// ```
/// let mut boxes = [0.0f32; 4];
/// gfocal::boxes::distances_to_box(&[10.0, 20.0], &[1.0, 2.0, 3.0, 4.0], 1, &mut boxes)?;
/// assert_eq!(boxes, [9.0, 18.0, 13.0, 24.0]);
/// # Ok::<(), gfocal::Error>(())
/// ```
///
/// # Errors
/// If a length does not fit the number of points.
pub fn distances_to_box<T: Coordinate>(
    points: &[T],
    distances: &[T],
    n: usize,
    boxes: &mut [T],
) -> Result<()> {
    let lengths = [
        ("points", Some(points.len()), 2),
        ("distances", Some(distances.len()), 4),
        ("boxes", Some(boxes.len()), 4),
    ];
    check(n, &lengths)?;
    convert(points, distances, boxes, math::distances_to_box);
    Ok(())
}

/// The distances left, top, right and bottom `[n, 4]` of the sides of boxes `[n, 4]` from points
/// `[n, 2]`; with `max`, clamped to [0, max]. mmdetection's `bbox2distance`, where `max` is
/// `max_dis - eps`: in units of bins, 15.9 for 17 bins.
///
/// ```
/// let mut distances = [0.0f32; 4];
/// gfocal::boxes::box_to_distances(&[10.0, 20.0], &[9.0, 21.0, 13.0, 44.0], 1, Some(16.0), &mut distances)?;
/// assert_eq!(distances, [1.0, 0.0, 3.0, 16.0]);
/// # Ok::<(), gfocal::Error>(())
/// ```
///
/// # Errors
/// If a length does not fit the number of points, or `max` is negative or not finite.
pub fn box_to_distances<T: Coordinate>(
    points: &[T],
    boxes: &[T],
    n: usize,
    max: Option<f64>,
    distances: &mut [T],
) -> Result<()> {
    if let Some(max) = max {
        check_option("max", max, "a finite number of 0 or more", max >= 0.0)?;
    }
    let lengths = [
        ("points", Some(points.len()), 2),
        ("boxes", Some(boxes.len()), 4),
        ("distances", Some(distances.len()), 4),
    ];
    check(n, &lengths)?;
    convert(points, boxes, distances, |point, corners| math::box_to_distances(point, corners, max));
    Ok(())
}

fn convert<T: Coordinate>(
    points: &[T],
    from: &[T],
    to: &mut [T],
    one: impl Fn([f64; 2], [f64; 4]) -> [f64; 4],
) {
    let points = points.chunks_exact(2).map(|point| [point[0].to_f64(), point[1].to_f64()]);
    for ((point, from), to) in points.zip(corners(from)).zip(to.chunks_exact_mut(4)) {
        for (to, value) in to.iter_mut().zip(one(point, from)) {
            *to = T::from_f64(value);
        }
    }
}

/// Four numbers each.
fn corners<T: Coordinate>(boxes: &[T]) -> impl Iterator<Item = [f64; 4]> {
    boxes.chunks_exact(4).map(|corners| [0, 1, 2, 3].map(|i| corners[i].to_f64()))
}
