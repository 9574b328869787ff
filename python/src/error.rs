//! Everything that can go wrong, and the one place where it becomes an exception.

use std::any::Any;

use gfocal::ErrorKind;
use pyo3::exceptions::{PyRuntimeError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::{create_exception, intern};

create_exception!(
    gfocal,
    ShapeError,
    PyValueError,
    "Shapes, lengths or layouts of tensors that do not go together."
);
create_exception!(
    gfocal,
    CudaError,
    PyRuntimeError,
    "There is no CUDA driver or device that can be used, or the driver refused a call: then `code` and `name` are its \
     own, else None."
);

/// Why there is no result.
pub enum Failure {
    Gfocal(gfocal::Error),
    Shape(String),
    Type(String),
    Value(String),
    State(String),
    /// What a panic said.
    Panic(String),
    Python(PyErr),
}

pub type Outcome<T = ()> = Result<T, Failure>;

pub fn shape(reason: String) -> Failure {
    Failure::Shape(reason)
}

pub fn type_error(reason: String) -> Failure {
    Failure::Type(reason)
}

pub fn value(reason: String) -> Failure {
    Failure::Value(reason)
}

impl From<gfocal::Error> for Failure {
    fn from(error: gfocal::Error) -> Self {
        Failure::Gfocal(error)
    }
}

impl From<PyErr> for Failure {
    fn from(error: PyErr) -> Self {
        Failure::Python(error)
    }
}

impl Failure {
    pub fn of_panic(panic: &(dyn Any + Send)) -> Failure {
        let words = panic.downcast_ref::<String>().map(String::as_str);
        let words = words.or_else(|| panic.downcast_ref::<&str>().copied());
        Failure::Panic(words.unwrap_or("no reason given").to_owned())
    }
}

/// What Rust calls otherwise than Python does.
fn in_pythons_words(error: &gfocal::Error) -> String {
    const WORDS: [(&str, &str); 11] = [
        ("the least average factor", "minimum"),
        ("the average factor", "avg_factor"),
        ("the offset of the anchor points", "offset"),
        ("iou_weight", "box_weight"),
        ("the radius", "center_sampling"),
        ("the number of positives", "normalisers[0]"),
        ("the sum of box weights", "normalisers[1]"),
        ("Targets::quality", "quality"),
        ("Targets::box_scores", "box_scores"),
        (
            "give what it says to Handle::prepare before the capture",
            "make such a call once before the capture",
        ),
        (
            "make it before the capture, or over memory of your own",
            "make such a call once before the capture",
        ),
    ];
    WORDS.iter().fold(error.to_string(), |message, (rust, python)| message.replace(rust, python))
}

impl From<Failure> for PyErr {
    fn from(failure: Failure) -> PyErr {
        let error = match failure {
            Failure::Gfocal(error) => error,
            Failure::Shape(reason) => return ShapeError::new_err(reason),
            Failure::Type(reason) => return PyTypeError::new_err(reason),
            Failure::Value(reason) => return PyValueError::new_err(reason),
            Failure::State(reason) => return PyRuntimeError::new_err(reason),
            Failure::Panic(words) => {
                return PyRuntimeError::new_err(format!("a fault in gfocal, please report it: {words}"));
            }
            Failure::Python(error) => return error,
        };
        let message = in_pythons_words(&error);
        match error.kind() {
            ErrorKind::Shape => ShapeError::new_err(message),
            ErrorKind::Option | ErrorKind::Memory => PyValueError::new_err(message),
            ErrorKind::Capacity | ErrorKind::State => PyRuntimeError::new_err(message),
            ErrorKind::Device | ErrorKind::Driver => {
                Python::attach(|py| cuda_error(py, &error, message).unwrap_or_else(|error| error))
            }
        }
    }
}

/// CUDA_ERROR_OUT_OF_MEMORY.
const OUT_OF_MEMORY: u32 = 2;

fn cuda_error(py: Python<'_>, error: &gfocal::Error, message: String) -> PyResult<PyErr> {
    let driver = match error {
        gfocal::Error::Driver { code, name, .. } => Some((*code, name.clone())),
        _ => None,
    };
    if driver.as_ref().is_some_and(|(code, _)| *code == OUT_OF_MEMORY)
        && let Some(torch) = crate::pool::loaded(py, "torch")?
    {
        // What training loops catch to try a smaller batch.
        let kind = torch.getattr(intern!(py, "OutOfMemoryError"))?;
        return Ok(PyErr::from_value(kind.call1((message,))?));
    }
    let error = CudaError::new_err(message);
    let (code, name) = driver.unzip();
    error.value(py).setattr(intern!(py, "code"), code)?;
    error.value(py).setattr(intern!(py, "name"), name)?;
    Ok(error)
}
