//! The native module of the Python package: it takes tensors of PyTorch, NumPy and whatever speaks DLPack, and calls
//! gfocal on them. What a user sees is python/gfocal.

mod assign;
mod boxes;
mod cuda;
mod decode;
mod dfl;
mod dlpack;
mod dtype;
mod error;
mod gfl;
mod head;
mod info;
mod integral;
mod pool;
mod qfl;
mod rows;
mod scale;
mod status;
mod tensor;

use pyo3::prelude::*;

#[pymodule(gil_used = false)]
mod _native {
    use pyo3::prelude::*;

    #[pymodule_export]
    use crate::assign::Assigner;
    #[pymodule_export]
    use crate::boxes::{Boxes, iou};
    #[pymodule_export]
    use crate::cuda::set_allocator;
    #[pymodule_export]
    use crate::decode::run_decode;
    #[pymodule_export]
    use crate::dfl::Dfl;
    #[pymodule_export]
    use crate::error::{CudaError, ShapeError};
    #[pymodule_export]
    use crate::gfl::Gfl;
    #[pymodule_export]
    use crate::head::Head;
    #[pymodule_export]
    use crate::info::info;
    #[pymodule_export]
    use crate::integral::{backward, forward};
    #[pymodule_export]
    use crate::pool::set_num_threads;
    #[pymodule_export]
    use crate::qfl::Qfl;
    #[pymodule_export]
    use crate::scale::scale;
    #[pymodule_export]
    use crate::status::read_status;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
