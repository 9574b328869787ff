//! What is timed.

use std::fmt;

use gfocal_bench::head::pyramid::{self, COCO_ANCHORS};
use gfocal_bench::{Op, Pass, Size};

use super::args::BenchArgs;
use crate::error::{Error, Result};
use crate::floats::Dtype;

/// An operation, a type and a size: what has the same data.
#[derive(Clone, Debug, PartialEq)]
pub struct Case {
    pub op: Op,
    pub dtype: Dtype,
    pub size: Size,
    pub passes: Vec<Pass>,
}

impl Case {
    /// All that the options ask for.
    pub fn all(args: &BenchArgs) -> Result<Vec<Case>> {
        let mut cases: Vec<Case> = Vec::new();
        for &op in &args.ops {
            let mut passes = if args.passes.is_empty() { default_passes(op) } else { op.passes() }.to_vec();
            passes.retain(|pass| args.passes.is_empty() || args.passes.contains(pass));
            let sizes = if args.sizes.is_empty() { default_sizes(op).to_vec() } else { args.sizes.clone() };
            for &size in sizes.iter().filter(|_| !passes.is_empty()) {
                for &dtype in &args.dtype {
                    let case = Case { op, dtype: dtype.into(), size, passes: passes.clone() };
                    // What is asked for twice is timed once.
                    if !cases.contains(&case) {
                        cases.push(case);
                    }
                }
            }
        }
        if cases.is_empty() { Err(Error::NoPass) } else { Ok(cases) }
    }

    /// The bytes that a pass must move.
    pub fn bytes(&self, pass: Pass) -> usize {
        self.op.bytes(self.size, self.element_bytes(), pass)
    }

    /// What the largest pass takes on a device, more or less.
    pub fn memory(&self) -> u128 {
        let Size { rows, columns } = self.size;
        let row = match self.op.on_rows() {
            Some(_) => columns as u128 * 2 * self.element_bytes() as u128 + 32,
            None => pyramid::memory_of_anchor(columns, self.element_bytes()),
        };
        row.saturating_mul(rows as u128)
    }

    fn element_bytes(&self) -> usize {
        match self.dtype {
            Dtype::F64 => 8,
            Dtype::F32 => 4,
            Dtype::F16 | Dtype::Bf16 => 2,
        }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} in {}", self.op.name(), self.size, self.dtype.name())
    }
}

fn default_passes(op: Op) -> &'static [Pass] {
    match op {
        Op::Qfl | Op::Dfl => &[Pass::Forward, Pass::ForwardBackward],
        Op::Integral | Op::Head => op.passes(),
    }
}

/// Anchors of one, four and sixteen images, with the classes of COCO: of 640x640 for QFL, of 800x1333 for
/// the head; sides of boxes.
fn default_sizes(op: Op) -> [Size; 3] {
    let (rows, columns) = match op {
        Op::Qfl => ([8_400, 33_600, 134_400], 80),
        Op::Dfl | Op::Integral => ([4_096, 33_600, 262_144], 17),
        Op::Head => ([1, 4, 16].map(|images| images * COCO_ANCHORS), 80),
    };
    rows.map(|rows| Size { rows, columns })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_the_least_that_must_move() {
        let case = |op, dtype| Case { op, dtype, size: Size { rows: 10, columns: 80 }, passes: vec![] };
        assert_eq!(case(Op::Qfl, Dtype::F32).bytes(Pass::Forward), 10 * (320 + 12));
        assert_eq!(case(Op::Qfl, Dtype::Bf16).bytes(Pass::ForwardBackward), 10 * (320 + 12));
        assert_eq!(case(Op::Dfl, Dtype::F16).bytes(Pass::Backward), 10 * (320 + 8));
        assert_eq!(case(Op::Integral, Dtype::F32).bytes(Pass::Forward), 10 * (320 + 4));
        // Ten anchors in two levels, of which each has a positive with 68 box logits and a target.
        assert_eq!(case(Op::Head, Dtype::F16).bytes(Pass::Forward), 10 * (160 + 12) + 2 * (136 + 16));
    }
}
