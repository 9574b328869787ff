//! Files of tensors.

mod input;
mod output;
mod unread;

pub use input::{Input, Tensors};
pub use output::Output;
