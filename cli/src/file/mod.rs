//! Files of tensors.

mod input;
mod output;

pub use input::{Input, Tensors};
pub use output::Output;
