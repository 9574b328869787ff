//! Everything that can go wrong: one sentence each, with the way out.

use std::io;
use std::path::PathBuf;

use crate::words;

/// A result whose error is [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why the command could not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },

    #[error("cannot read {}: it is {what}; give a .safetensors file", path.display())]
    NotAFile { path: PathBuf, what: &'static str },

    #[error("{} is not a valid .safetensors file: {reason}; write it again, as with safetensors' save_file", path.display())]
    Format { path: PathBuf, reason: String },

    #[error("{} has no tensor {wanted}; it holds {held}", path.display())]
    Missing { path: PathBuf, wanted: String, held: String },

    #[error(
        "{} has both {prefix}labels and {prefix}target, which are two ways to say the same; remove {prefix}target for one class a row, or {prefix}labels for a target for each logit",
        path.display()
    )]
    TwoTargets { path: PathBuf, prefix: &'static str },

    #[error("{tensor} in {} is of type {found}; it must be {allowed}", path.display())]
    Type { path: PathBuf, tensor: String, found: String, allowed: &'static str },

    #[error("{tensor} in {} has the shape {found:?}; it must have two axes, [rows, {columns}]", path.display())]
    Rank { path: PathBuf, tensor: String, found: Vec<usize>, columns: &'static str },

    #[error("{tensor} in {} has the shape {found:?}; {of} needs {expected:?}", path.display())]
    Shape { path: PathBuf, tensor: String, found: Vec<usize>, of: String, expected: Vec<usize> },

    #[error("cannot use {}: {reason}", path.display())]
    Head { path: PathBuf, reason: String },

    #[error("{option} says how targets are assigned; give --assign too, or leave it out")]
    NeedsAssign { option: &'static str },

    #[error(
        "--profile {profile} takes the quality of positives from its own assigner, and --assign finds others; give \
         --quality iou, or --quality given for level{{i}}.quality"
    )]
    QualityOfOthers { profile: &'static str },

    #[error("{option} is for boxes with bins, and --boxes is {boxes}")]
    WithoutBins { option: &'static str, boxes: &'static str },

    #[error("{option} is not an option of --assigner {assigner}; leave out one of the two")]
    OtherAssigner { option: &'static str, assigner: &'static str },

    #[error(
        "{option} goes with --reduction {needed} and not with --reduction {given}; leave out one of the two"
    )]
    AvgFactor { option: &'static str, needed: &'static str, given: &'static str },

    #[error("{}", words::of(.0))]
    Library(#[from] gfocal::Error),

    #[error("cannot use {device}: {}; --device cpu needs no GPU", words::of(source))]
    Cuda { device: String, source: gfocal::Error },

    #[error(
        "logits are f64, for which there are no CUDA kernels; convert them with --dtype f32, or use --device cpu"
    )]
    F64OnCuda,

    #[error("cannot write {}: {reason}", path.display())]
    Output { path: PathBuf, reason: String },

    #[error(
        "{device} is {name}: what it takes there says nothing of a GPU; use a real one, or --device cpu, or --check-only"
    )]
    Emulated { device: String, name: String },

    #[error(
        "--kernels {} holds no PTX of a kernel, such as qfl.bf16.sm_80.ptx; name a folder that does", folder.display()
    )]
    NoKernels { folder: PathBuf },

    #[error("{option} is for a GPU, and {device} is timed; give --device cuda, or leave it out")]
    ForGpu { option: &'static str, device: String },

    #[error(
        "none of --ops has one of --passes; integral has forward and backward, head forward and forward_backward, qfl and dfl all three"
    )]
    NoPass,

    #[error(
        "{rows}x{columns} needs {needed} bytes of memory, and on {place} {free} are free; give smaller --sizes"
    )]
    Memory { rows: usize, columns: usize, needed: u128, place: String, free: u64 },

    #[error("{case} is not timed, since it is wrong: {what}")]
    Wrong { case: String, what: String },

    #[error("cannot draw the plot: {0}; leave out --plot")]
    Plot(String),

    #[error("cannot write to standard output: {0}")]
    Stdout(io::Error),
}

impl Error {
    /// For a device that was asked for and cannot be used.
    pub fn cuda(ordinal: usize) -> impl Fn(gfocal::Error) -> Error {
        move |source| Error::Cuda { device: format!("cuda:{ordinal}"), source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_one_way_out() {
        let source = gfocal::Error::OldDevice { compute_capability: 61 };
        assert_eq!(
            Error::cuda(1)(source).to_string(),
            "cannot use cuda:1: the device's compute capability is 6.1, the kernels need 7.5 (Turing) or newer; \
             --device cpu needs no GPU"
        );
    }
}
