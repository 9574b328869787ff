//! NVIDIA's compilers out of Python wheels: pinned, checked, and kept below target/xtask.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{self, Command, Stdio};

use crate::cache;
use crate::files::{cannot_write, create_folder, entries, has_extension, write};

/// A wheel on PyPI, and what is wanted of it.
pub struct Wheel {
    name: &'static str,
    version: &'static str,
    /// Of the wheel for Linux on x86-64.
    sha256: &'static str,
    /// The folder in the wheel that is unpacked.
    folder: &'static str,
}

/// The oldest NVRTC that is used: its PTX 8.0 is taken by every driver from 525 on.
pub const NVRTC: Wheel = Wheel {
    name: "nvidia-cuda-nvrtc-cu12",
    version: "12.0.76",
    sha256: "8dd4458a7d8bf8fd2b01a34a9069856d53a9b4c0af2037b77c12b270daf9c828",
    folder: "nvidia/cuda_nvrtc/lib",
};

/// The assembler: `ptxas`. 12.8 is the first that knows sm_120.
pub const NVCC: Wheel = Wheel {
    name: "nvidia-cuda-nvcc-cu12",
    version: "12.9.86",
    sha256: "5d6a0d32fdc7ea39917c20065614ae93add6f577d840233237ff08e9a38f58f0",
    folder: "nvidia/cuda_nvcc/bin",
};

/// The disassembler; it reads the code of older assemblers too.
pub const NVDISASM: Wheel = Wheel {
    name: "nvidia-cuda-nvdisasm",
    version: "13.5.37",
    sha256: "d3fdbdd49fa53e2e4aacd3db8259d052bd2b049ececdcb69e92e083c6728e7ca",
    folder: "nvidia/cu13/bin",
};

impl Wheel {
    /// As in 12.0.76.
    pub fn version(&self) -> &'static str {
        self.version
    }

    /// The unpacked folder; the first call downloads it.
    pub fn fetch(&self) -> Result<PathBuf, String> {
        if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
            return Err(format!(
                "{} {} is pinned for Linux on x86-64 only; run this there",
                self.name, self.version
            ));
        }
        let place = cache().join(format!("{}-{}", self.name, self.version));
        let folder = place.join(self.folder);
        if folder.is_dir() {
            return Ok(folder);
        }
        // Filled under a name of its own and then renamed: a reader sees all of it or nothing,
        // and of two runs at once the first wins.
        let draft = place.with_file_name(format!("{}.draft-{}", self.name, process::id()));
        let filled = self.fill(&draft);
        let renamed = filled.and_then(|()| match fs::rename(&draft, &place) {
            Err(error) if !folder.is_dir() => Err(cannot_write(&place, &error)),
            _ => Ok(folder),
        });
        let _ = fs::remove_dir_all(&draft); // after a success there is none
        renamed
    }

    fn fill(&self, draft: &Path) -> Result<(), String> {
        eprintln!("fetching {} {} from PyPI", self.name, self.version);
        create_folder(draft)?;
        let requirement = draft.join("requirement.txt");
        write(&requirement, format!("{}=={} --hash=sha256:{}\n", self.name, self.version, self.sha256))?;
        let pip = ["-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input"];
        let mut download = python();
        download
            .args(pip)
            .args(["download", "--no-deps", "--only-binary=:all:", "--require-hashes"])
            .arg("--requirement")
            .arg(&requirement)
            .arg("--dest")
            .arg(draft);
        run(&mut download).map_err(|log| {
            format!(
                "{} {} could not be downloaded. This needs python3 with pip, and PyPI or a mirror \
                 of it within reach. pip says:\n{log}",
                self.name, self.version
            )
        })?;
        // The wheel is a zip file; its name has platform tags that differ between mirrors.
        const UNPACK: &str = "import glob, sys, zipfile
wheel = zipfile.ZipFile(*glob.glob(sys.argv[1] + '/*.whl'))
wheel.extractall(sys.argv[1], [n for n in wheel.namelist() if n.startswith(sys.argv[2] + '/')])";
        let mut unpack = python();
        unpack.args(["-c", UNPACK]).arg(draft).arg(self.folder);
        run(&mut unpack).map_err(|log| format!("{} cannot be unpacked:\n{log}", self.name))?;
        for wheel in entries(draft)?.iter().filter(|path| has_extension(path, "whl")) {
            let _ = fs::remove_file(wheel); // only to save space
        }
        make_executable(&draft.join(self.folder))
    }
}

fn python() -> Command {
    let mut python = Command::new("python3");
    // The download goes to a folder of its own: nobody's Python environment is at stake.
    python.stdin(Stdio::null()).env("PIP_REQUIRE_VIRTUALENV", "0");
    python
}

/// Runs a program; the error is what it printed.
pub fn run(command: &mut Command) -> Result<process::Output, String> {
    let output = command
        .output()
        .map_err(|error| format!("{} cannot be run: {error}", command.get_program().display()))?;
    if output.status.success() {
        return Ok(output);
    }
    let streams = [&output.stderr, &output.stdout].map(|bytes| String::from_utf8_lossy(bytes));
    let text = streams.concat().trim().to_owned();
    Err(if text.is_empty() { format!("nothing ({})", output.status) } else { text })
}

/// Python's zipfile drops the permission to execute.
fn make_executable(folder: &Path) -> Result<(), String> {
    for path in entries(folder).map_err(|error| format!("the wheel does not hold what it should: {error}"))? {
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))
                .map_err(|error| cannot_write(&path, &error))?;
        }
        #[cfg(not(unix))]
        let _ = path;
    }
    Ok(())
}
