//! What single elements are multiplied by on the CPU: class weights, element weights and the factor of α.

use std::borrow::Cow;

use super::QualityFocalLoss;
use crate::cpu::fits_single;
use crate::element::{Element, singles};
use crate::vector::{self, Isa};

/// What the elements of a call are multiplied by. 0 masks, whatever the logit.
pub(super) struct Factors<'a, W> {
    isa: Isa,
    alpha: Option<f64>,
    of_classes: Option<&'a [W]>,
    of_elements: Option<&'a [W]>,
}

/// The factors of elements that are computed together.
pub(super) struct Weights<'a> {
    /// As [`Given::weights`](vector::Given).
    pub values: Cow<'a, [f32]>,
    /// The least and the largest size but 0.
    sizes: [f32; 2],
}

impl<'a, W: Element> Factors<'a, W> {
    pub fn new(
        isa: Isa,
        qfl: &QualityFocalLoss,
        of_classes: Option<&'a [W]>,
        of_elements: Option<&'a [W]>,
    ) -> Self {
        Factors { isa, alpha: qfl.alpha, of_classes, of_elements }
    }

    /// By the element's row, its column, and its target.
    pub fn of(&self, row: usize, column: usize, classes: usize, y: f64) -> f64 {
        let of_class = self.of_classes.map_or(1.0, |weights| weights[column].to_f64());
        let of_element = self.of_elements.map_or(1.0, |weights| weights[row * classes + column].to_f64());
        self.of_target(y) * of_class * of_element
    }

    /// α of focal loss: y·α + (1−y)(1−α).
    pub fn of_target(&self, y: f64) -> f64 {
        self.alpha.map_or(1.0, |alpha| y * alpha + (1.0 - y) * (1.0 - alpha))
    }

    /// Those of whole rows from the element `start`. Without targets `y` that of α is left out.
    pub fn of_rows(&self, start: usize, elements: usize, classes: usize, y: &[f32]) -> Weights<'a> {
        let of_classes = self.of_classes.map(singles);
        let of_elements = self.of_elements.map(|weights| singles(&weights[start..start + elements]));
        let alpha = self.alpha.filter(|_| !y.is_empty()).map(|alpha| alpha as f32);
        let values = match (of_classes, of_elements, alpha) {
            (None, None, None) => Cow::default(),
            (Some(weights), None, None) | (None, Some(weights), None) => Cow::Borrowed(weights),
            _ => {
                let mut product = of_elements.map_or_else(|| vec![1.0; elements], <[f32]>::to_vec);
                for row in product.chunks_mut(classes) {
                    row.iter_mut()
                        .zip(of_classes.into_iter().flatten())
                        .for_each(|(factor, weight)| *factor *= weight);
                }
                for (factor, y) in product.iter_mut().zip(y) {
                    let y = y.clamp(0.0, 1.0);
                    *factor *= alpha.map_or(1.0, |alpha| y * alpha + (1.0 - y) * (1.0 - alpha));
                }
                Cow::Owned(product)
            }
        };
        let sizes = if values.is_empty() { [1.0; 2] } else { vector::sizes(self.isa, &values) };
        Weights { values, sizes }
    }
}

impl Weights<'_> {
    /// Whether f32 is enough for gradients of this scale times these factors.
    pub fn fit(&self, scale: f64) -> bool {
        let fits = |size| fits_single(size) && fits_single(scale * size);
        fits_single(scale) && self.sizes.iter().all(|&size| fits(size.into()))
    }
}
