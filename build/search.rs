//! Where NVRTC may be: toolkits, Python wheels, and what the loader knows; and what it is to make.
//!
//! Every question to the environment is a function that tells cargo so.

use std::cmp::Reverse;
use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::nvrtc::Nvrtc;
use crate::variants::STORAGES;

/// What the search came to.
pub enum Answer {
    Found(Nvrtc),
    /// Not found, or not looked for, and why: the rest of "NVRTC was ...".
    Without(String),
}

/// Looks for an NVRTC that can compile the kernels. The error is about a path that the user gave.
pub fn find() -> Result<Answer, String> {
    if docs_rs() {
        return Ok(Answer::Without("not looked for: this is a build of docs.rs".to_owned()));
    }
    match chosen() {
        Some(choice) if choice == "none" => {
            Ok(Answer::Without("not looked for: GFOCAL_NVRTC is `none`".to_owned()))
        }
        Some(choice) => open_chosen(Path::new(&choice)).map(Answer::Found),
        None => Ok(look_around()),
    }
}

/// For which architectures is machine code asked for? GFOCAL_ARCHS has them as in `90,120`; `sm_90`
/// and `9.0` are other ways to write 90.
pub fn architectures() -> Result<Vec<u32>, String> {
    let Some(list) = variable("GFOCAL_ARCHS") else { return Ok(Vec::new()) };
    let list = list.to_string_lossy();
    let number = |word: &str| {
        let digits = word.strip_prefix("sm_").unwrap_or(word).replace('.', "");
        digits.parse().ok().filter(|architecture| (75..1000).contains(architecture))
    };
    let mut architectures = Vec::new();
    for word in list.split([',', ';', ' ']).filter(|word| !word.is_empty()) {
        architectures.push(number(word).ok_or_else(|| {
            format!(
                "GFOCAL_ARCHS is `{list}`, and `{word}` is no architecture from sm_75 on; write them \
                 as in `90,120`"
            )
        })?);
    }
    architectures.sort_unstable();
    architectures.dedup();
    Ok(architectures)
}

/// Is this docs.rs? Nothing is installed there, and nothing is ever run.
fn docs_rs() -> bool {
    variable("DOCS_RS").is_some()
}

/// Did the user choose an NVRTC, or none?
fn chosen() -> Option<OsString> {
    variable("GFOCAL_NVRTC")
}

/// What variables name a CUDA toolkit?
fn toolkits_by_variable() -> Vec<PathBuf> {
    ["CUDA_HOME", "CUDA_PATH", "CUDA_ROOT"].into_iter().filter_map(variable).map(PathBuf::from).collect()
}

/// Is a Python environment active?
fn environments_by_variable() -> Vec<PathBuf> {
    ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(variable).map(PathBuf::from).collect()
}

/// Where does the Python of the PATH keep its packages? No answer of any kind is an answer: none.
///
/// The PATH is not registered with cargo: a terminal and an editor seldom have the same one, and
/// each would undo the other's build. An activated environment changes VIRTUAL_ENV as well.
fn packages_of_python() -> Vec<PathBuf> {
    const QUESTION: &str = "import site, sysconfig
for path in sysconfig.get_path('purelib'), sysconfig.get_path('platlib'), site.getusersitepackages():
    print(path)";
    let python = if cfg!(windows) { "python" } else { "python3" };
    let answer =
        Command::new(python).args(["-c", QUESTION]).stdin(Stdio::null()).stderr(Stdio::null()).output();
    match answer {
        Ok(answer) if answer.status.success() => {
            String::from_utf8_lossy(&answer.stdout).lines().map(PathBuf::from).collect()
        }
        _ => Vec::new(),
    }
}

/// What will the loader be able to find by a bare name?
fn loader_names() -> &'static [&'static str] {
    let path = if cfg!(windows) {
        // Registered nowhere: it is the PATH.
        return &["nvrtc64_130_0.dll", "nvrtc64_120_0.dll"];
    } else if cfg!(target_os = "macos") {
        return &[]; // there is no NVRTC for it
    } else {
        "LD_LIBRARY_PATH"
    };
    variable(path);
    &["libnvrtc.so", "libnvrtc.so.13", "libnvrtc.so.12"]
}

/// The value of an environment variable that is set to something. Asks cargo to run the build
/// script again when it changes.
fn variable(name: &str) -> Option<OsString> {
    println!("cargo::rerun-if-env-changed={name}");
    env::var_os(name).filter(|value| !value.is_empty())
}

/// Opens what GFOCAL_NVRTC names: a library, or the folder that holds it.
fn open_chosen(path: &Path) -> Result<Nvrtc, String> {
    let libraries = if path.is_dir() {
        let libraries = libraries_in(path);
        if libraries.is_empty() {
            return Err(format!("{} holds no libnvrtc", path.display()));
        }
        libraries
    } else {
        vec![path.to_owned()]
    };
    let mut refusals = Vec::new();
    for library in libraries {
        match open(&library) {
            Ok(nvrtc) => return Ok(nvrtc),
            Err(refusal) => refusals.push(refusal),
        }
    }
    Err(refusals.join("; "))
}

fn look_around() -> Answer {
    let files = folders().into_iter().flat_map(|folder| libraries_in(&folder));
    let names = loader_names().iter().map(PathBuf::from);
    let mut refusals = Vec::new();
    for candidate in files.chain(names) {
        match open(&candidate) {
            Ok(nvrtc) => return Answer::Found(nvrtc),
            // That a bare name is not found says nothing.
            Err(refusal) if candidate.is_absolute() => refusals.push(refusal),
            Err(_) => {}
        }
    }
    Answer::Without(if refusals.is_empty() {
        "not found".to_owned()
    } else {
        format!("not found ({})", refusals.join("; "))
    })
}

/// Opens an NVRTC that has a target for every storage type.
fn open(path: &Path) -> Result<Nvrtc, String> {
    let nvrtc = Nvrtc::open(path)?;
    for storage in &STORAGES {
        if !storage.targets.iter().any(|&target| nvrtc.supports(target)) {
            return Err(format!(
                "{} compiles for none of compute_{:?}, which {} needs",
                nvrtc.path().display(),
                storage.targets,
                storage.name
            ));
        }
    }
    Ok(nvrtc)
}

/// The folders to look into, best first.
fn folders() -> Vec<PathBuf> {
    let mut folders = Vec::new();
    for toolkit in toolkits_by_variable() {
        folders.extend(libraries_of_toolkit(&toolkit));
    }
    for environment in environments_by_variable() {
        let packages = if cfg!(windows) {
            vec![environment.join("Lib/site-packages")]
        } else {
            children(&environment.join("lib"), "python3")
                .into_iter()
                .map(|python| python.join("site-packages"))
                .collect()
        };
        folders.extend(packages.iter().flat_map(|folder| libraries_of_wheels(folder)));
    }
    for packages in packages_of_python() {
        folders.extend(libraries_of_wheels(&packages));
    }
    for toolkit in children(Path::new("/usr/local"), "cuda") {
        folders.extend(libraries_of_toolkit(&toolkit));
    }
    folders.extend(libraries_of_toolkit(Path::new("/opt/cuda")));
    folders
}

fn libraries_of_toolkit(toolkit: &Path) -> Vec<PathBuf> {
    let mut folders = vec![toolkit.join("lib64"), toolkit.join("lib")];
    for target in children(&toolkit.join("targets"), "") {
        folders.push(target.join("lib"));
    }
    folders.extend([toolkit.join("bin/x64"), toolkit.join("bin")]); // Windows
    folders
}

fn libraries_of_wheels(packages: &Path) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    for wheel in ["cuda_nvrtc", "cu13", "cu12"] {
        let wheel = packages.join("nvidia").join(wheel);
        folders.extend([wheel.join("lib"), wheel.join("bin/x86_64"), wheel.join("bin")]);
    }
    folders
}

/// What a folder holds under names that begin so, highest version first and plain names before.
fn children(folder: &Path, prefix: &str) -> Vec<PathBuf> {
    let mut children: Vec<PathBuf> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .map(|entry| entry.path())
        .collect();
    children.sort_by_key(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let numbers: Vec<u32> =
            name.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect();
        (!numbers.is_empty(), Reverse(numbers), path.clone())
    });
    children
}

/// The NVRTC libraries in a folder, best first. A folder mostly holds one under several names.
fn libraries_in(folder: &Path) -> Vec<PathBuf> {
    let (prefix, suffix) = if cfg!(windows) { ("nvrtc64_", ".dll") } else { ("libnvrtc.so", "") };
    let mut libraries = children(folder, prefix);
    libraries.retain(|path| {
        let name = path.to_string_lossy();
        path.is_absolute() && name.ends_with(suffix) && !name.contains(".alt.")
    });
    let mut seen = Vec::new();
    libraries.retain(|path| {
        let real = path.canonicalize().unwrap_or_else(|_| path.clone());
        let new = !seen.contains(&real);
        seen.push(real);
        new
    });
    libraries
}
