//! What a GPU's memory gives at most: a kernel that only reads.
//!
//! The ceiling of a copy needs no kernel. This one's PTX is written by hand and stands in read.ptx.

use std::ffi::{CString, c_void};
use std::sync::Arc;

use gfocal::cuda::check;
use gfocal::cudarc::driver::sys::CUfunction;
use gfocal::cudarc::driver::{CudaSlice, CudaStream, DevicePtr, result};

const PTX: &str = concat!(include_str!("read.ptx"), "\0");
/// As in read.ptx.
const THREADS: u32 = 256;
const VECTOR: usize = 16;
/// 2048 threads: all that a multiprocessor holds.
const BLOCKS_PER_MULTIPROCESSOR: u32 = 8;
/// What every word must be.
const WORD: u32 = 0x0101_0101;

/// The kernel, loaded.
pub struct Reader {
    stream: Arc<CudaStream>,
    function: CUfunction,
    most_blocks: u32,
    /// One word: 0 as long as every word that was read was [`WORD`].
    differs: CudaSlice<u32>,
}

impl Reader {
    /// Loads it, and sees whether it reads every word. The error says why not.
    pub fn new(stream: &Arc<CudaStream>, multiprocessors: u32) -> Result<Reader, String> {
        let words = |error: gfocal::Error| error.to_string();
        let function = load(stream).map_err(words)?;
        let differs = check("cuMemAllocAsync", stream.alloc_zeros(1)).map_err(words)?;
        let most_blocks = multiprocessors.max(1) * BLOCKS_PER_MULTIPROCESSOR;
        let mut reader = Reader { stream: stream.clone(), function, most_blocks, differs };
        if reader.reads_all().map_err(words)? {
            Ok(reader)
        } else {
            Err("the kernel that measures it misses words".to_owned())
        }
    }

    /// An array for it, of so many bytes or a few more.
    pub fn array(&self, bytes: usize) -> gfocal::Result<CudaSlice<u32>> {
        let words = vec![WORD; bytes.div_ceil(VECTOR).max(1) * VECTOR / 4];
        check("cuMemcpyHtoDAsync", self.stream.clone_htod(&words))
    }

    /// Enqueues a launch that reads an array of [`Reader::array`]'s.
    pub fn launch(&mut self, array: &CudaSlice<u32>) -> gfocal::Result<()> {
        let vectors = array.len() * 4 / VECTOR;
        let blocks = vectors.div_ceil(THREADS as usize).clamp(1, self.most_blocks as usize) as u32;
        let (mut vectors, mut word) = (vectors as u64, WORD);
        let (mut data, _reading) = array.device_ptr(&self.stream);
        let (mut differs, _writing) = self.differs.device_ptr(&self.stream);
        let mut parameters: [*mut c_void; 4] = [
            (&raw mut data).cast(),
            (&raw mut vectors).cast(),
            (&raw mut word).cast(),
            (&raw mut differs).cast(),
        ];
        // SAFETY: the function is of the stream's context, and its parameters are these, in this order
        // and of these types. It reads `vectors` vectors of 16 bytes, as many as the array holds, and
        // writes at most the one word of `differs`; the driver copies the parameters at once.
        let launched = unsafe {
            result::launch_kernel(
                self.function,
                (blocks, 1, 1),
                (THREADS, 1, 1),
                0,
                self.stream.cu_stream(),
                &mut parameters,
            )
        };
        check("cuLaunchKernel", launched)
    }

    /// Whether one wrong word shows, wherever it is, and none does when none is wrong.
    fn reads_all(&mut self) -> gfocal::Result<bool> {
        // Several steps of the whole grid, and a rest.
        let bytes = self.most_blocks as usize * THREADS as usize * VECTOR * 9 + 5 * VECTOR;
        let mut array = self.array(bytes)?;
        let last = array.len() - 1;
        let places = (0..last).step_by(last / 19).chain([1, 2, last - 1, last]);
        for place in std::iter::once(None).chain(places.map(Some)) {
            check("cuMemsetD8Async", self.stream.memset_zeros(&mut self.differs))?;
            if let Some(place) = place {
                self.write(&mut array, place, !WORD)?;
            }
            self.launch(&array)?;
            let differs = check("cuMemcpyDtoHAsync", self.stream.clone_dtoh(&self.differs))?;
            check("cuStreamSynchronize", self.stream.synchronize())?;
            if let Some(place) = place {
                self.write(&mut array, place, WORD)?;
            }
            if (differs[0] != 0) != place.is_some() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn write(&self, array: &mut CudaSlice<u32>, place: usize, word: u32) -> gfocal::Result<()> {
        check("cuMemcpyHtoDAsync", self.stream.memcpy_htod(&[word], &mut array.slice_mut(place..place + 1)))
    }
}

/// The module stays loaded as long as the process lives.
fn load(stream: &Arc<CudaStream>) -> gfocal::Result<CUfunction> {
    check("cuCtxSetCurrent", stream.context().bind_to_thread())?;
    // SAFETY: the image is a text that ends with NUL.
    let module = check("cuModuleLoadData", unsafe { result::module::load_data(PTX.as_ptr().cast()) })?;
    let name = CString::new("gfocal_read").expect("a name has no NUL");
    // SAFETY: the module has just been loaded, and is never unloaded.
    check("cuModuleGetFunction", unsafe { result::module::get_function(module, name) })
}
