//! Counts of unusable values, as nine 64-bit words of a tensor.

use gfocal::Status;
use gfocal::cuda::StatusBlock;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::cuda::Stream;
use crate::error::Outcome;
use crate::tensor::{Item, Tensor};

/// `[9]` int64.
pub fn write_status(counted: &Status, tensor: &mut Tensor) -> Outcome {
    check(tensor)?;
    for (word, counted) in tensor.slice_mut::<i64>()?.iter_mut().zip(counted.to_words()) {
        *word = counted.cast_signed();
    }
    Ok(())
}

/// The same on CUDA, cleared in the stream's order.
pub fn status_block(tensor: &Tensor, stream: &Stream) -> Outcome<StatusBlock> {
    check(tensor)?;
    let bytes = tensor.borrowed_bytes(stream)?;
    Ok(StatusBlock::over(stream.of_driver(), bytes)?)
}

fn check(tensor: &Tensor) -> Outcome {
    tensor.expect(&[Status::WORDS], &"a status")?;
    tensor.expect_dtype(i64::DTYPE, &"a status")
}

/// What the words of a status say: names and counts, `first_*` None where there is none.
#[pyfunction]
pub fn read_status<'py>(py: Python<'py>, words: [i64; Status::WORDS]) -> PyResult<Bound<'py, PyDict>> {
    let status = Status::from_words(words.map(i64::cast_unsigned));
    let counts = PyDict::new(py);
    counts.set_item("bad_labels", status.bad_labels)?;
    counts.set_item("bad_qualities", status.bad_qualities)?;
    counts.set_item("out_of_range_targets", status.out_of_range_targets)?;
    counts.set_item("first_bad_row", status.first_bad_row)?;
    let assignment = &status.assignment;
    for (name, first, counted) in [
        ("bad_boxes", "first_bad_box", assignment.bad_boxes),
        ("bad_box_labels", "first_bad_box_label", assignment.bad_labels),
        ("bad_box_images", "first_bad_box_image", assignment.bad_images),
        ("unassigned_boxes", "first_unassigned_box", assignment.unassigned),
    ] {
        counts.set_item(name, counted.count)?;
        counts.set_item(first, counted.first)?;
    }
    Ok(counts)
}
