//! Numbers that carry a derivative along, so that no formula for it has to be written, and none can be shared.

use std::ops::{Add, Div, Mul, Neg, Sub};

/// A number and its derivative.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dual(pub f64, pub f64);

impl Add for Dual {
    type Output = Dual;
    fn add(self, other: Dual) -> Dual {
        Dual(self.0 + other.0, self.1 + other.1)
    }
}
impl Sub for Dual {
    type Output = Dual;
    fn sub(self, other: Dual) -> Dual {
        Dual(self.0 - other.0, self.1 - other.1)
    }
}
impl Mul for Dual {
    type Output = Dual;
    fn mul(self, other: Dual) -> Dual {
        Dual(self.0 * other.0, self.1 * other.0 + self.0 * other.1)
    }
}
impl Div for Dual {
    type Output = Dual;
    fn div(self, other: Dual) -> Dual {
        Dual(self.0 / other.0, (self.1 * other.0 - self.0 * other.1) / (other.0 * other.0))
    }
}
impl Neg for Dual {
    type Output = Dual;
    fn neg(self) -> Dual {
        Dual(-self.0, -self.1)
    }
}
impl Dual {
    /// A number that does not change.
    pub fn constant(value: f64) -> Dual {
        Dual(value, 0.0)
    }

    /// The larger; where they are alike, half of each, as PyTorch's autograd has it.
    pub fn max(self, other: Dual) -> Dual {
        let half = Dual(self.0, (self.1 + other.1) / 2.0);
        if self.0 > other.0 {
            self
        } else if self.0 == other.0 {
            half
        } else {
            other
        }
    }

    /// The smaller, in the same way.
    pub fn min(self, other: Dual) -> Dual {
        -(-self).max(-other)
    }

    /// At least 0, and constant at 0, as PyTorch's `clamp(min=0)` has it.
    pub fn not_negative(self) -> Dual {
        if self.0 > 0.0 { self } else { Dual::constant(0.0) }
    }

    /// From `-limit` to `limit`, and constant there.
    pub fn within(self, limit: f64) -> Dual {
        if self.0.abs() < limit { self } else { Dual::constant(self.0.clamp(-limit, limit)) }
    }

    /// The arc tangent.
    pub fn atan(self) -> Dual {
        Dual(self.0.atan(), self.1 / (1.0 + self.0 * self.0))
    }
}
