//! What the tests share: numbers, ways to store them, and how near a result must be.
#![allow(dead_code, reason = "each test program uses a part")]

pub mod pyramid;
pub mod reference;

use candle_core::{D, DType, Device, Error, Result, Tensor, Var};
use rand::{RngExt, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;

pub const DTYPES: [DType; 4] = [DType::F64, DType::F32, DType::F16, DType::BF16];

/// How far a gradient may be off, relative to the largest: what it is rounded to when it is stored, which is half of
/// the last of 53, 24, 11 or 8 bits, and for f64 and f32 some more roundings on the way.
pub fn limit(dtype: DType) -> f64 {
    match dtype {
        DType::F64 => 1e-14,
        DType::F32 => 1e-6,
        DType::F16 => 2f64.powi(-11) + 1e-6,
        DType::BF16 => 2f64.powi(-8) + 1e-6,
        other => panic!("{other:?} has no limit"),
    }
}

/// How far a loss may be off, relatively: it is f32, but f64 of f64.
pub fn loss_limit(dtype: DType) -> f64 {
    if dtype == DType::F64 { 1e-14 } else { 2e-6 }
}

/// Fails if an element is further off than `limit` times the largest of those that are expected. NaN fails.
#[track_caller]
pub fn close(what: &str, got: &Tensor, expected: &Tensor, limit: f64) {
    assert_eq!(got.dims(), expected.dims(), "{what}");
    let (got, expected) = (numbers(got), numbers(expected));
    let largest = expected.iter().fold(0.0, |largest: f64, value| largest.max(value.abs()));
    for (i, (got, expected)) in got.iter().zip(&expected).enumerate() {
        let error = (got - expected).abs();
        assert!(
            error <= limit * largest,
            "{what}: element {i} is {got}, expected {expected} of at most {largest}"
        );
    }
}

/// All elements, in order.
pub fn numbers(tensor: &Tensor) -> Vec<f64> {
    let read = || tensor.to_dtype(DType::F64)?.flatten_all()?.to_vec1();
    read().expect("a tensor of numbers")
}

/// The text of an error.
#[track_caller]
pub fn message<T>(result: Result<T>) -> String {
    match result {
        Ok(_) => panic!("this should be an error"),
        Err(Error::WithBacktrace { inner, .. }) => inner.to_string(),
        Err(error) => error.to_string(),
    }
}

/// Numbers from a seed.
pub struct Random(Xoshiro256PlusPlus);

impl Random {
    pub fn new(seed: u64) -> Self {
        Random(Xoshiro256PlusPlus::seed_from_u64(seed))
    }

    /// f64 that f32 holds too.
    pub fn floats(&mut self, shape: &[usize], low: f32, high: f32) -> Tensor {
        let count = shape.iter().product();
        let values: Vec<f64> = (0..count).map(|_| self.0.random_range(low..high).into()).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).expect("as many as the shape has")
    }

    pub fn integers(&mut self, shape: &[usize], low: i64, high: i64) -> Tensor {
        let count = shape.iter().product();
        let values: Vec<i64> = (0..count).map(|_| self.0.random_range(low..high)).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).expect("as many as the shape has")
    }
}

/// A way to store the rows of a matrix.
#[derive(Clone, Copy, Debug)]
pub enum Stored {
    Rows,
    /// Column after column.
    Columns,
    /// Behind two other rows.
    After,
    /// Among other columns.
    Among,
}

impl Stored {
    pub const ALL: [Stored; 4] = [Stored::Rows, Stored::Columns, Stored::After, Stored::Among];

    /// The leaf that a matrix is a view of.
    pub fn leaf(self, matrix: &Tensor) -> Result<Tensor> {
        match self {
            Stored::Rows => Ok(matrix.clone()),
            Stored::Columns => matrix.t()?.contiguous(),
            Stored::After => matrix.pad_with_zeros(0, 2, 1),
            Stored::Among => matrix.pad_with_zeros(D::Minus1, 3, 1),
        }
    }

    pub fn view(self, leaf: &Tensor) -> Result<Tensor> {
        match self {
            Stored::Rows => Ok(leaf.clone()),
            Stored::Columns => leaf.t(),
            Stored::After => leaf.narrow(0, 2, leaf.dim(0)? - 3),
            Stored::Among => leaf.narrow(D::Minus1, 3, leaf.dim(D::Minus1)? - 4),
        }
    }
}

/// Compares a loss and its gradients with those of a plain formula, which candle differentiates in f64, on what is
/// stored. `leaves`: f64, with the type that each is stored in.
#[track_caller]
pub fn compare(
    what: &str,
    leaves: &[(Tensor, DType)],
    ours: impl Fn(&[Tensor]) -> Result<Tensor>,
    plain: impl Fn(&[Tensor]) -> Result<Tensor>,
) {
    let run = || -> Result<()> {
        let stored = leaves.iter().map(|(leaf, dtype)| Var::from_tensor(&leaf.to_dtype(*dtype)?));
        let stored = stored.collect::<Result<Vec<_>>>()?;
        let exact = stored.iter().map(|leaf| Var::from_tensor(&leaf.to_dtype(DType::F64)?));
        let exact = exact.collect::<Result<Vec<_>>>()?;
        let (loss, expected) = (ours(&tensors(&stored))?, plain(&tensors(&exact))?);
        close(&format!("{what}, loss"), &loss, &expected, loss_limit(leaves[0].1));
        let (grads, expected) = (loss.backward()?, expected.backward()?);
        for (i, (stored, exact)) in stored.iter().zip(&exact).enumerate() {
            let grad = grads.get(stored).expect("a gradient of each leaf");
            assert_eq!(grad.dtype(), leaves[i].1, "{what}");
            let zeros = exact.zeros_like()?;
            let expected = expected.get(exact).unwrap_or(&zeros);
            close(&format!("{what}, gradient {i}"), grad, expected, limit(leaves[i].1));
        }
        Ok(())
    };
    if let Err(error) = run() {
        panic!("{what}: {error}");
    }
}

pub fn tensors(variables: &[Var]) -> Vec<Tensor> {
    variables.iter().map(|variable| variable.as_tensor().clone()).collect()
}
