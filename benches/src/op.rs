//! The words of the options: operations, passes, sizes.

use std::fmt;
use std::str::FromStr;

use clap::ValueEnum;
use serde::Serialize;

use crate::head::pyramid;

/// An operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    /// Quality Focal Loss
    Qfl,
    /// Distribution Focal Loss
    Dfl,
    /// The expectation of a distribution over bins
    Integral,
    /// The loss of a head, from its raw outputs of all levels
    Head,
}

/// An operation whose inputs are rows of logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowOp {
    Qfl,
    Dfl,
    Integral,
}

/// What of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Pass {
    /// The result alone
    Forward,
    /// Loss and gradient in one pass
    ForwardBackward,
    /// The gradient alone
    Backward,
}

impl Op {
    pub fn name(self) -> &'static str {
        match self {
            Op::Qfl => "qfl",
            Op::Dfl => "dfl",
            Op::Integral => "integral",
            Op::Head => "head",
        }
    }

    /// The name for people.
    pub fn title(self) -> &'static str {
        match self {
            Op::Qfl => "QFL",
            Op::Dfl => "DFL",
            Op::Integral => "Integral",
            Op::Head => "Head",
        }
    }

    /// What it does with each row; nothing, where there is more to it.
    pub fn on_rows(self) -> Option<RowOp> {
        match self {
            Op::Qfl => Some(RowOp::Qfl),
            Op::Dfl => Some(RowOp::Dfl),
            Op::Integral => Some(RowOp::Integral),
            Op::Head => None,
        }
    }

    /// The bytes that a pass must move, of elements of so many.
    pub fn bytes(self, size: Size, element: usize, pass: Pass) -> usize {
        let tensor = size.rows * size.columns * element;
        let per_row = match self {
            Op::Qfl => 8 + 4,
            Op::Dfl => 4 + 4,
            Op::Integral => 4, // written forward, read backward
            Op::Head => return pyramid::bytes(size, element, pass),
        };
        tensor * if pass == Pass::Forward { 1 } else { 2 } + size.rows * per_row
    }

    /// The passes that it has.
    pub fn passes(self) -> &'static [Pass] {
        match self {
            Op::Qfl | Op::Dfl => &[Pass::Forward, Pass::ForwardBackward, Pass::Backward],
            Op::Integral => &[Pass::Forward, Pass::Backward],
            Op::Head => &[Pass::Forward, Pass::ForwardBackward],
        }
    }
}

impl Pass {
    pub fn name(self) -> &'static str {
        match self {
            Pass::Forward => "forward",
            Pass::ForwardBackward => "forward_backward",
            Pass::Backward => "backward",
        }
    }
}

/// Rows and columns of logits, 1 or more each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    pub rows: usize,
    pub columns: usize,
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.parse().ok().filter(|&number: &usize| number > 0);
        let numbers =
            text.split_once('x').and_then(|(rows, columns)| Some((number(rows)?, number(columns)?)));
        let (rows, columns) =
            numbers.ok_or("it must be ROWSxCOLUMNS, as 8400x80, of 1 or more each and less than 2^64")?;
        Ok(Size { rows, columns })
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.rows, self.columns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!("8400x80".parse(), Ok(Size { rows: 8400, columns: 80 }));
        for wrong in ["", "x", "8400", "8400x", "0x80", "8400x0", "-1x80", "8400X80", "1x2x3", "1.5x2"] {
            assert!(wrong.parse::<Size>().is_err(), "{wrong}");
        }
    }
}
