//! One run: training, evaluation, and what is kept of it.

use std::process::Command;
use std::sync::LazyLock;
use std::{fs, thread};

use candle_core::Result;
use cpu_time::ThreadTime;
use gfocal_candle::gfocal::cpu::Pool;
use indicatif::ProgressBar;
use serde::{Deserialize, Serialize};

use super::detect::{Quality, evaluate};
use super::train::{Settings, Trained, ms, name, train};

/// An object of the JSON file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Outcome {
    #[serde(flatten)]
    pub settings: Settings,
    #[serde(flatten)]
    pub quality: Quality,
    /// CPU time of a training step, of one thread.
    pub step_ms: f64,
    /// Of it assignment and losses with their gradients.
    pub loss_ms: f64,
    /// CPU time of all, evaluation included.
    pub run_s: f64,
    /// Mean of the last tenth of the steps.
    pub last_loss: f32,
    pub skipped_steps: Vec<usize>,
    pub last_loss_scale: f64,
    /// What it was run from, and on.
    pub commit: String,
    pub machine: String,
}

/// All on one thread.
pub fn run(settings: &Settings, bar: &ProgressBar) -> Result<(Outcome, Trained)> {
    Pool::new(1).enter(|| {
        bar.set_prefix(format!("{} {} {}", name(settings.arm), name(settings.assigner), settings.seed));
        let clock = ThreadTime::now();
        let trained = train(settings, |step, loss| {
            bar.inc(1);
            if step % 10 == 0 {
                bar.set_message(format!("loss {loss:.3}"));
            }
        })?;
        bar.set_message("evaluating");
        let quality = evaluate(settings, &trained.losses, &trained.model)?;
        bar.finish_with_message(format!("AP {:.1}", quality.ap));
        let last = &trained.history[trained.history.len() - settings.steps.div_ceil(10)..];
        let outcome = Outcome {
            settings: settings.clone(),
            quality,
            step_ms: trained.step_ms,
            loss_ms: trained.loss_ms,
            run_s: ms(&clock) / 1e3,
            last_loss: last.iter().sum::<f32>() / last.len() as f32,
            skipped_steps: trained.scale.skipped.clone(),
            last_loss_scale: trained.scale.value,
            commit: COMMIT.clone(),
            machine: machine(),
        };
        Ok((outcome, trained))
    })
}

/// Of the source, as it is when the program begins.
pub static COMMIT: LazyLock<String> = LazyLock::new(commit);

/// If it is in a repository.
fn commit() -> String {
    let git = Command::new("git")
        .args(["-C", env!("CARGO_MANIFEST_DIR"), "describe", "--always", "--dirty"])
        .output();
    let text = git.ok().filter(|git| git.status.success()).and_then(|git| String::from_utf8(git.stdout).ok());
    text.map_or_else(|| "unknown".to_owned(), |text| text.trim().to_owned())
}

fn machine() -> String {
    let about = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = about.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let cores = thread::available_parallelism().map_or(1, usize::from);
    format!("{}, {cores} cores", model.map_or(std::env::consts::ARCH, |(_, model)| model))
}
