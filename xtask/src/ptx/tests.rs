//! The tests that may run kernels, each in a process of its own, on the emulator that runs PTX.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::root;

/// A test of a test program.
#[derive(Clone)]
pub struct Test {
    program: PathBuf,
    /// Where cargo would run it.
    folder: PathBuf,
    /// The program's name without cargo's hash, and the test's in it, as in `golden::cuda_in_f32`.
    pub name: String,
}

/// How a test ended.
pub struct Outcome {
    pub passed: bool,
    pub seconds: f64,
}

impl Test {
    fn own_name(&self) -> &str {
        self.name.split_once("::").map_or(self.name.as_str(), |(_, own)| own)
    }

    /// A name for a folder of this test.
    pub fn file_name(&self) -> String {
        self.name.replace("::", ".")
    }

    /// Runs it at a compute capability, for at most so long; what it prints goes to `log`.
    pub fn run(
        &self,
        capability: u32,
        variables: &[(&str, &Path)],
        limit: Duration,
        log: Option<&Path>,
    ) -> Result<Outcome, String> {
        let cannot = |error: std::io::Error| format!("{} cannot run: {error}", self.name);
        let mut command = Command::new(&self.program);
        // As cargo would: tests look for their files there.
        command.env("CARGO_MANIFEST_DIR", &self.folder).current_dir(&self.folder);
        command.args(["--exact", self.own_name(), "--test-threads", "1"]);
        command.env("GFOCAL_EMULATOR_PTX", "1").env("GFOCAL_EMULATOR_CC", capability.to_string());
        command.env("GFOCAL_FORCE_EMULATOR", "1").envs(variables.iter().copied()).stdin(Stdio::null());
        match log.map(File::create).transpose().map_err(cannot)? {
            Some(file) => {
                command.stderr(file.try_clone().map_err(cannot)?).stdout(file);
            }
            None => {
                command.stdout(Stdio::null()).stderr(Stdio::null());
            }
        }
        let start = Instant::now();
        let mut child = command.spawn().map_err(cannot)?;
        loop {
            if let Some(status) = child.try_wait().map_err(cannot)? {
                return Ok(Outcome { passed: status.success(), seconds: start.elapsed().as_secs_f64() });
            }
            if start.elapsed() > limit {
                child.kill().map_err(cannot)?;
                child.wait().map_err(cannot)?;
                return Ok(Outcome { passed: false, seconds: start.elapsed().as_secs_f64() });
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Builds the test programs of the library and the command, with the committed PTX, and lists their tests.
pub fn all() -> Result<Vec<Test>, String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(root()).args(["test", "--no-run", "--package", "gfocal", "--package", "gfocal-cli"]);
    command.args(["--tests", "--message-format", "json-render-diagnostics"]).env("GFOCAL_NVRTC", "none");
    let output =
        command.stderr(Stdio::inherit()).output().map_err(|error| format!("cargo cannot run: {error}"))?;
    if !output.status.success() {
        return Err("the tests do not compile".to_owned());
    }
    let messages = String::from_utf8_lossy(&output.stdout);
    let mut tests = Vec::new();
    for (program, folder) in messages.lines().filter_map(test_program) {
        let stem = program.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let plain = stem.rsplit_once('-').map_or(stem.as_str(), |(plain, _)| plain);
        let list = Command::new(&program).args(["--list", "--format", "terse"]).output();
        let list = list.map_err(|error| format!("{} cannot run: {error}", program.display()))?;
        for line in String::from_utf8_lossy(&list.stdout).lines() {
            if let Some(name) = line.strip_suffix(": test") {
                let name = format!("{plain}::{name}");
                tests.push(Test { program: program.clone(), folder: folder.clone(), name });
            }
        }
    }
    if tests.is_empty() { Err("there are no tests".to_owned()) } else { Ok(tests) }
}

/// The test program that a message of cargo's announces, and its package's folder.
fn test_program(message: &str) -> Option<(PathBuf, PathBuf)> {
    let message: serde_json::Value = serde_json::from_str(message).ok()?;
    if !message.get("profile")?.get("test")?.as_bool()? {
        return None;
    }
    let program = message.get("executable")?.as_str()?.into();
    let manifest = Path::new(message.get("manifest_path")?.as_str()?);
    Some((program, manifest.parent()?.to_owned()))
}

/// Does the work for each item on all cores; the results are in the order of the items. The first error
/// ends it.
pub fn on_all_cores<T: Sync, R: Send>(
    items: &[T],
    work: impl Fn(&T) -> Result<R, String> + Sync,
) -> Result<Vec<R>, String> {
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Vec::new());
    let worker = || {
        while let index = next.fetch_add(1, Ordering::Relaxed)
            && let Some(item) = items.get(index)
        {
            let result = work(item);
            if result.is_err() {
                next.store(items.len(), Ordering::Relaxed);
            }
            results.lock().unwrap_or_else(|e| e.into_inner()).push((index, result));
        }
    };
    let threads = std::thread::available_parallelism().map_or(2, usize::from).min(items.len());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(worker);
        }
    });
    let mut results = results.into_inner().unwrap_or_else(|e| e.into_inner());
    results.sort_by_key(|(index, _)| *index);
    results.into_iter().map(|(_, result)| result).collect()
}

/// A folder that is there and empty.
pub fn empty_folder(path: &Path) -> Result<(), String> {
    if path.exists() {
        fs::remove_dir_all(path).map_err(|error| format!("{} cannot be emptied: {error}", path.display()))?;
    }
    fs::create_dir_all(path).map_err(|error| crate::wheels::cannot_write(path, &error))
}
