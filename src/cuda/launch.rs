//! Which kernel runs a call, and with how many blocks.

use std::ffi::c_void;

use cudarc::driver::sys::CUstream;

use super::kernels::Kernel;
use super::module::Function;
use super::{Kernels, check};
use crate::element::Element;
use crate::error::Result;

/// A storage type that there are kernels for. Twin of `StorageType` in kernels/any_storage.cuh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// 32-bit floats.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of a 32-bit float.
    Bf16,
}

impl Storage {
    /// All of them.
    pub const ALL: [Storage; 3] = [Storage::F32, Storage::F16, Storage::Bf16];

    /// As in the names of the kernels: f32, f16 or bf16.
    pub fn name(self) -> &'static str {
        match self {
            Storage::F32 => "f32",
            Storage::F16 => "f16",
            Storage::Bf16 => "bf16",
        }
    }

    /// How many fit into 16 bytes; twin of VECTOR in kernels/storage.cuh.
    pub(crate) fn vector(self) -> usize {
        match self {
            Storage::F32 => 4,
            Storage::F16 | Storage::Bf16 => 8,
        }
    }
}

/// An element that there are kernels for: f32, f16 or bf16.
pub trait StorageElement: Element<Loss = f32> {
    /// Which it is.
    const STORAGE: Storage;
}

impl StorageElement for f32 {
    const STORAGE: Storage = Storage::F32;
}
impl StorageElement for half::f16 {
    const STORAGE: Storage = Storage::F16;
}
impl StorageElement for half::bf16 {
    const STORAGE: Storage = Storage::Bf16;
}

/// The blocks that a multiprocessor is given at most; scratch memory is made for them.
pub(crate) const MOST_BLOCKS: u32 = 8;

pub(crate) fn max_blocks(multiprocessors: u32) -> u32 {
    multiprocessors.max(1) * MOST_BLOCKS
}

/// A kernel's shape. The number of blocks depends on nothing but the size of the problem, the
/// device and the image that was loaded for it, and so does the order of the sums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Grid {
    pub blocks: u32,
    pub threads: u32,
}

impl Grid {
    /// Enough blocks for `rows`, of which a block has `rows_per_block` at once, but not more than
    /// `per_multiprocessor`: the rest comes by looping.
    pub fn new(
        threads: u32,
        rows: u64,
        rows_per_block: u64,
        multiprocessors: u32,
        per_multiprocessor: u32,
    ) -> Grid {
        let most = u64::from(multiprocessors.max(1) * per_multiprocessor.min(MOST_BLOCKS));
        let blocks = rows.div_ceil(rows_per_block.max(1)).clamp(1, most);
        Grid { blocks: blocks as u32, threads }
    }
}

/// The blocks of kernels in which `lanes` lanes share a row.
pub(crate) fn rows_grid(threads: u32, rows: u64, lanes: u32, kernels: &Kernels, function: &Function) -> Grid {
    Grid::new(threads, rows, u64::from(threads / lanes), kernels.multiprocessors(), function.resident)
}

/// How many lanes of a warp share a row: so many that each has about `each` vectors of this length.
pub(crate) fn lanes(columns: u32, vector: usize, each: u32) -> u32 {
    let vectors = columns.div_ceil(vector as u32);
    vectors.div_ceil(each).clamp(1, 32).next_power_of_two()
}

/// Enqueues a kernel.
///
/// # Safety
/// `stream` is a stream of the kernel's context, and `args` is the kernel's one parameter, which it may
/// follow.
pub(crate) unsafe fn launch<A>(kernel: Kernel, grid: Grid, args: &A, stream: CUstream) -> Result<()> {
    let mut parameters = [std::ptr::from_ref(args).cast_mut().cast::<c_void>()];
    // SAFETY: the caller's promise; the driver copies the parameter before it returns, and does
    // not write to it.
    let result = unsafe {
        cudarc::driver::result::launch_kernel(
            kernel.handle,
            (grid.blocks, 1, 1),
            (grid.threads, 1, 1),
            0,
            stream,
            &mut parameters,
        )
    };
    check("cuLaunchKernel", result)
}
