//! Generalized Focal Loss as its paper and the public implementations have it, one equation after the other.
//!
//! In f64, on one element, row, box or image at a time; obviously right rather than fast. The only care taken is
//! that nothing cancels. It depends on nothing and shares no code with gfocal: the tests and `gfocal bench` compare
//! what is fast with this. The numbers are those that stand beside the code.
//!
//! Rows. σ is the logistic function, sp(x) = ln(1 + e^x), y a target from 0 to 1, β ≥ 0, d = σ(x) − y and
//! ce = sp(x) − x·y; p is the softmax of K bins, t a target from 0 to K − 1, i = min(⌊t⌋, K − 2), w_r = t − i and
//! w_l = 1 − w_r; \[a\] is 1 where a is the bin, else 0:
//!
//! ```text
//!  (1) QFL(x, y) = |d|^β · ce                        d/dx = sign(d)·|d|^(β−1)·(d² + β·σ(1−σ)·ce), 0 where d = 0
//!  (2) where y = 0 the same is                       d/dx = σ^β·(σ + β(1−σ)·sp(x))
//!  (3) QFL of a probability p, BCE(p, y) for ce      d/dp = |p−y|^β·(p−y)/(p(1−p)) + β·sign(p−y)·|p−y|^(β−1)·BCE
//!  (4) DFL(z, t) = ln Σ e^z − w_l·z_i − w_r·z_(i+1)  d/dz_j = p_j − w_l·[i] − w_r·[i+1]
//!  (5) E(z) = Σ j·p_j                                d/dz_j = p_j·(j − E)
//! ```
//!
//! Boxes, (x1, y1, x2, y2): I is the area that both have, U that of their union, H that of the box around both, c
//! its diagonal, ρ the distance of the centres, v = 4/π²·(atan(w'/h') − atan(w/h))². Derivatives come from dual
//! numbers, those of [`Dual`]:
//!
//! ```text
//!  (6) IoU = I / U                                   the loss is 1 − IoU
//!  (7) GIoU = IoU − (H − U) / H                      1 − GIoU
//!  (8) DIoU = IoU − ρ² / c²                          1 − DIoU
//!  (9) CIoU = DIoU − α·v, α = v / (1 − IoU + v)      1 − CIoU, α without a derivative
//! ```
//!
//! The head, from all anchors of all images: q is the quality of a positive (its IoU, or what the caller says), v
//! the weight of its box, E its four distances in strides:
//!
//! ```text
//! (10) box = (x − E_0, y − E_1, x + E_2, y + E_3)   E of one logit in place of bins is e^z, or max(z, 0)
//! (11) cls = Σ QFL / D_0     y is q in a positive's class, else 0
//! (12) box = Σ v·(1 − GIoU) / D_1,   dfl = Σ v·Σ DFL over sides / D_2
//! (13) D of mmdetection, NanoDet and Ultralytics: see [`Normaliser::divisors`]
//! ```
//!
//! What there is to know of assignment is in [`assign`]:
//!
//! ```text
//! (14) ATSS: of the k nearest anchors of each level, those whose IoU is at least mean + standard deviation
//! (15) FCOS: the smallest box that an anchor point is in, at a distance that its level is for
//! ```
//!
//! ```
//! // Class 0 at probability 1/2, to be 3/4: (1/4)² · ln 2.
//! let (loss, slope) = gfocal_reference::qfl(0.0, 0.75, 2.0);
//! assert!((loss - 2f64.ln() / 16.0).abs() < 1e-15 && slope < 0.0);
//! ```

pub mod assign;
mod boxes;
mod dual;
mod head;
mod rows;

pub use boxes::{BoxLoss, box_loss};
pub use dual::Dual;
pub use head::{BoxCoding, Decoded, Normaliser, box_around, decoded_loss, distance, distances};
pub use rows::{dfl, integral, qfl, qfl_of_probability, qfl_row};
