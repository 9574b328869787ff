use std::path::PathBuf;

/// Why there is no emulator.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernels cannot be compiled. See also [`skip_allowed`](crate::skip_allowed).
    #[error(
        "no C++ compiler was found (tried {tried}): install g++ or clang++, or name one in CXX, \
         or set GFOCAL_SKIP_EMULATOR=1 to skip the tests that need it"
    )]
    NoCompiler {
        /// The names that were tried.
        tried: String,
    },
    /// A source, or the library as a whole, did not compile.
    #[error("{what} did not compile:\n{output}")]
    Compile {
        /// The file, or `libcuda.so` for the last step.
        what: String,
        /// What the compiler said.
        output: String,
    },
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What went wrong.
        source: std::io::Error,
    },
    /// The compiled library could not be opened.
    #[error("the emulator's library could not be opened: {0}")]
    Load(#[from] libloading::Error),
    /// The process has opened another `libcuda.so`, which cannot be replaced.
    #[error(
        "this process already uses another CUDA driver: install the emulator before the first use of CUDA"
    )]
    OtherDriver,
    /// The process has an emulator with other kernels, which cannot be replaced.
    #[error("this process already uses the emulator with the kernels of {}", .0.display())]
    Installed(PathBuf),
    /// The process has an emulator for PTX, which cannot be replaced.
    #[error("this process already uses the emulator for PTX, which has no kernel's source")]
    InstalledForPtx,
    /// Only Linux is supported.
    #[error("the emulator runs on Linux only")]
    Unsupported,
}
