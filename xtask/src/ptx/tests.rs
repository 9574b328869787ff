//! The tests that may run kernels, each in a process of its own, on the emulator that runs PTX.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rayon::prelude::*;
use serde_json::Value;

use crate::cargo;

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
    let arguments = ["test", "--no-run", "--package", "gfocal", "--package", "gfocal-cli", "--tests"];
    let messages = cargo::build(&arguments, "none")?;
    let mut tests = Vec::new();
    for (program, folder) in messages.iter().filter_map(test_program) {
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
fn test_program(message: &Value) -> Option<(PathBuf, PathBuf)> {
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
    work: impl Fn(&T) -> Result<R, String> + Send + Sync,
) -> Result<Vec<R>, String> {
    items.par_iter().with_max_len(1).map(work).collect()
}
