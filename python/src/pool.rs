//! Calls off the interpreter's lock, on the threads of this package.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;

use gfocal::cpu::Pool;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::error::{Failure, Outcome, value};

/// Of all calls, once there is one, which is locked only while attached: so no fork happens meanwhile.
static POOL: Mutex<Option<Pool>> = Mutex::new(None);

/// A module, if something has imported it.
pub fn loaded<'py>(py: Python<'py>, name: &str) -> PyResult<Option<Bound<'py, PyAny>>> {
    let modules = py.import(intern!(py, "sys"))?.getattr(intern!(py, "modules"))?;
    modules.cast_into::<PyDict>()?.get_item(name)
}

/// How many threads calls on the CPU run on from now on; 0: as many as there are cores.
#[pyfunction]
pub fn set_num_threads(threads: i64) -> Result<(), Failure> {
    let Some(threads) = usize::try_from(threads).ok().filter(|&threads| threads <= 1 << 16) else {
        return Err(value(format!("threads is {threads}, it must be 0 (as many as cores) to 65536")));
    };
    *POOL.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(Pool::new(threads));
    Ok(())
}

/// As many threads as PyTorch has, when it is first needed.
fn pool(py: Python<'_>) -> PyResult<Pool> {
    let mut pool = POOL.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(pool) = &*pool {
        return Ok(pool.clone());
    }
    let threads = match loaded(py, "torch")? {
        Some(torch) => torch.call_method0(intern!(py, "get_num_threads"))?.extract()?,
        None => 0,
    };
    Ok(pool.insert(Pool::new(threads)).clone())
}

/// Elements below which giving the lock away costs more than the call.
const SMALL: usize = 1 << 12;

/// Runs a call on the CPU of so many elements, others' Python code beside it; a panic becomes an exception.
pub fn run<R: Send>(py: Python<'_>, elements: usize, call: impl FnOnce() -> Outcome<R> + Send) -> Outcome<R> {
    if elements < SMALL {
        return caught(call);
    }
    let pool = pool(py)?;
    py.detach(|| caught(|| pool.enter(call)))
}

/// Enqueues a call on CUDA, which may have to load kernels first.
pub fn enqueue<R: Send>(py: Python<'_>, call: impl FnOnce() -> Outcome<R> + Send) -> Outcome<R> {
    py.detach(|| caught(call))
}

fn caught<R>(call: impl FnOnce() -> Outcome<R>) -> Outcome<R> {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|panic| Err(Failure::of_panic(&*panic)))
}
