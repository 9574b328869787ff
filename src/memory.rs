//! Where the tensors of a call are.

use std::fmt;

use crate::element::{LabelSlice, Sealed};

/// Where the tensors of a call are: [`Host`] or `cuda::Device`.
pub trait Memory: Sealed + 'static {
    /// A tensor that is read.
    type Slice<'a, T: 'static>: Copy;
    /// A tensor that is written.
    type SliceMut<'a, T: 'static>;
    /// Labels of either type.
    type Labels<'a>: Copy;
    /// A number.
    type Scalar<'a>: Copy + fmt::Debug + From<f64>;
    /// What the call runs on.
    type Backend<'a>;
    /// Where counts of unusable values go.
    type StatusOut<'a>: Default;

    #[doc(hidden)]
    fn len<T: 'static>(tensor: &Self::Slice<'_, T>) -> usize;
    #[doc(hidden)]
    fn len_mut<T: 'static>(tensor: &Self::SliceMut<'_, T>) -> usize;
}

/// Memory of the host; the call runs on the CPU.
#[derive(Clone, Copy, Debug)]
pub enum Host {}

impl Sealed for Host {}
impl Memory for Host {
    type Slice<'a, T: 'static> = &'a [T];
    type SliceMut<'a, T: 'static> = &'a mut [T];
    type Labels<'a> = LabelSlice<'a>;
    type Scalar<'a> = f64;
    type Backend<'a> = ();
    type StatusOut<'a> = ();

    fn len<T: 'static>(tensor: &&[T]) -> usize {
        tensor.len()
    }

    fn len_mut<T: 'static>(tensor: &&mut [T]) -> usize {
        tensor.len()
    }
}
