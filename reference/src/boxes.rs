//! Equations (6) to (9): losses of a box, (x1, y1, x2, y2).

use crate::Dual;

/// Which loss of a box.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BoxLoss {
    /// (6), mmdetection's `iou_loss` in its linear mode.
    Iou,
    /// (7), mmdetection's `giou_loss`.
    Giou,
    /// (8), mmdetection's `diou_loss`.
    Diou,
    /// (9), mmdetection's `ciou_loss`, whose α is 0 for an IoU of 1/2 or less.
    Ciou,
    /// (9) as 1 minus Ultralytics' `bbox_iou`.
    CiouUltralytics,
}

/// The IoU and the loss of one box. `eps` stands where the implementations have theirs.
pub fn box_loss(kind: BoxLoss, pred: [Dual; 4], target: [f64; 4], eps: f64) -> [Dual; 2] {
    let constant = Dual::constant;
    let [x1, y1, x2, y2] = pred;
    let [tx1, ty1, tx2, ty2] = target.map(constant);
    let (eps, one) = (constant(eps), constant(1.0));
    let overlap = (x2.min(tx2) - x1.max(tx1)).not_negative() * (y2.min(ty2) - y1.max(ty1)).not_negative();
    let union = (x2 - x1) * (y2 - y1) + (tx2 - tx1) * (ty2 - ty1) - overlap;
    let iou = overlap / union.max(eps);
    let (cw, ch) = (x2.max(tx2) - x1.min(tx1), y2.max(ty2) - y1.min(ty1));
    let (cw, ch) = (cw.not_negative(), ch.not_negative());
    let loss = match kind {
        BoxLoss::Iou => one - iou,
        BoxLoss::Giou => {
            let hull = (cw * ch).max(eps);
            one - (iou - (hull - union.max(eps)) / hull)
        }
        BoxLoss::Diou | BoxLoss::Ciou => {
            let iou = overlap / (union + eps);
            let diagonal = cw * cw + ch * ch + eps;
            let (dx, dy) = ((tx1 + tx2) - (x1 + x2), (ty1 + ty2) - (y1 + y2));
            let distance = (dx * dx + dy * dy) / constant(4.0) / diagonal;
            let diou = iou - distance;
            if kind == BoxLoss::Diou {
                one - diou
            } else {
                let ratio = |w: Dual, h: Dual| (w / (h + eps)).atan();
                let angle = ratio(tx2 - tx1, ty2 - ty1) - ratio(x2 - x1, y2 - y1);
                let v = constant(4.0 / std::f64::consts::PI.powi(2)) * angle * angle;
                let alpha = if iou.0 > 0.5 { v.0 / (1.0 - iou.0 + v.0) } else { 0.0 };
                one - (diou - constant(alpha) * v).within(1.0)
            }
        }
        BoxLoss::CiouUltralytics => {
            let (w1, h1, w2, h2) = (x2 - x1, y2 - y1 + eps, tx2 - tx1, ty2 - ty1 + eps);
            let iou = overlap / (w1 * h1 + w2 * h2 - overlap + eps);
            let (dx, dy) = (tx1 + tx2 - x1 - x2, ty1 + ty2 - y1 - y2);
            let distance = (dx * dx + dy * dy) / constant(4.0) / (cw * cw + ch * ch + eps);
            let angle = (w2 / h2).atan() - (w1 / h1).atan();
            let v = constant(4.0 / std::f64::consts::PI.powi(2)) * angle * angle;
            let alpha = v.0 / (v.0 - iou.0 + (1.0 + eps.0));
            one - (iou - (distance + v * constant(alpha)))
        }
    };
    [iou, loss]
}
