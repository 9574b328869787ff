//! A small detector, trained with gfocal's losses on made scenes: the ablation of *Generalized Focal Loss* (Li et al.,
//! NeurIPS 2020) in minutes on a CPU.
//!
//! ```text
//! shapes train --arm both --seed 1               one run: AP on held-out scenes
//! shapes ablation --seeds 4 --json ablation.json  all arms, side by side
//! shapes evaluate both.safetensors               what `train --save` has saved, once more
//! shapes bench                                   the losses' share of a step, by gfocal and by candle
//! shapes plot --out shapes.svg                   a scene, its distributions, scores against IoU
//! ```
//!
//! README.md beside this file says what came out. The settings and the loop are in train.rs.

mod ablation;
mod bench;
mod checkpoint;
mod detect;
mod eval;
mod losses;
mod model;
mod nn;
mod plain;
mod plot;
mod rng;
mod run;
mod scenes;
mod shape;
mod train;

#[cfg(test)]
mod tests;

use std::fmt::Display;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::LazyLock;

use candle_core::{Error, Result, bail};
use clap::{Args, Parser, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};

use scenes::Scenes;
use train::{Arm, Assignment, Operations, Settings, Storage};

#[derive(Parser)]
#[command(name = "shapes", about = "Trains a small detector with gfocal's losses on made scenes")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// One run: trains, evaluates on held-out scenes, prints a JSON object.
    Train(Train),
    /// Evaluates what `train --save` has saved once more, prints a JSON object.
    Evaluate {
        #[arg(value_name = "FILE.safetensors")]
        checkpoint: PathBuf,
    },
    /// Arms × seeds: a table with means, spreads and paired gains.
    Ablation(ablation::Ablation),
    /// The share of assignment and losses in a step, by gfocal and by candle's operations.
    Bench(Common),
    /// The picture, as SVG: a held-out scene, distributions of a clear and of a hidden side, scores against IoU.
    Plot(plot::Plot),
}

/// What runs have in common.
#[derive(Args, Clone)]
pub struct Common {
    #[arg(long, default_value_t = 1)]
    seed: u32,
    /// Steps of 8 images.
    #[arg(long, default_value_t = Settings::default().steps)]
    steps: usize,
    #[arg(long, value_enum, default_value = "atss")]
    assigner: Assignment,
    /// Plain, but for `plot`, if not given.
    #[arg(long, value_enum)]
    scenes: Option<Scenes>,
}

#[derive(Args)]
struct Train {
    #[command(flatten)]
    common: Common,
    #[arg(long, value_enum, default_value = "both")]
    arm: Arm,
    /// Of the logits and their gradients.
    #[arg(long, value_enum, default_value = "f32")]
    dtype: Storage,
    /// Whose operations the losses are made of.
    #[arg(long, value_enum, default_value = "gfocal")]
    losses: Operations,
    /// Makes the gradients of a step overflow, with --dtype f16.
    #[arg(long, value_name = "STEP")]
    overflow_at: Option<usize>,
    /// Where weights and settings go.
    #[arg(long, value_name = "FILE.safetensors")]
    save: Option<PathBuf>,
    /// Fails if the AP is below.
    #[arg(long, value_name = "AP")]
    at_least: Option<f64>,
}

impl Common {
    fn settings(&self, default: Scenes) -> Settings {
        let scenes = self.scenes.unwrap_or(default);
        Settings {
            scenes,
            seed: self.seed,
            steps: self.steps,
            assigner: self.assigner,
            ..Settings::default()
        }
    }
}

/// A progress bar of so many steps; silent where there is no terminal.
fn bar(steps: usize) -> ProgressBar {
    let style =
        ProgressStyle::with_template("{prefix:>22} {bar:30} {pos:>5}/{len} {elapsed} left {eta}  {msg}");
    ProgressBar::new(steps as u64).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// Finds out whether a file can be written before minutes are spent on what goes there. One that is there stays as it is.
fn check_writable(path: &Path) -> Result<()> {
    let opened = OpenOptions::new().append(true).create(true).open(path);
    opened.map(drop).map_err(|error| of_file(path, error))
}

/// An error that names the file.
fn of_file(path: &Path, error: impl Display) -> Error {
    Error::Msg(format!("{}: {error}", path.display()))
}

/// The mistake itself: where in the program it was found is of no use to who made it.
fn without_backtrace(error: Error) -> Error {
    match error {
        Error::WithBacktrace { inner, .. } => without_backtrace(*inner),
        Error::WithPath { inner, path } => of_file(&path, without_backtrace(*inner)),
        error => error,
    }
}

fn train(options: &Train) -> Result<()> {
    options.save.as_deref().map_or(Ok(()), check_writable)?;
    let &Train { arm, dtype, losses, overflow_at, .. } = options;
    let settings = Settings { arm, dtype, losses, overflow_at, ..options.common.settings(Scenes::Plain) };
    settings.check()?;
    eprintln!("{}", serde_json::to_string_pretty(&settings).map_err(Error::wrap)?);
    let (result, trained) = run::run(&settings, &bar(settings.steps))?;
    println!("{}", serde_json::to_string_pretty(&result).map_err(Error::wrap)?);
    if let Some(path) = &options.save {
        checkpoint::save(path, &settings, &trained.model)?;
    }
    match options.at_least {
        Some(least) if result.quality.ap.total_cmp(&least).is_lt() => {
            bail!("AP {:.1} is below {least}", result.quality.ap)
        }
        _ => Ok(()),
    }
}

/// candle's operations on many elements wait, spinning, for threads of their own: in runs side by side for each other's.
fn one_thread() {
    // SAFETY: there is no other thread yet.
    unsafe { std::env::set_var("CANDLE_NUM_THREADS", "1") };
}

fn evaluate(checkpoint: &Path) -> Result<()> {
    let (settings, losses, model) = checkpoint::load(checkpoint)?;
    let quality = detect::evaluate(&settings, &losses, &model)?;
    println!("{}", serde_json::to_string_pretty(&quality).map_err(Error::wrap)?);
    Ok(())
}

fn main() -> ExitCode {
    one_thread();
    LazyLock::force(&run::COMMIT);
    let result = match &Cli::parse().command {
        Command::Train(options) => train(options),
        Command::Evaluate { checkpoint } => evaluate(checkpoint),
        Command::Ablation(options) => options.run(),
        Command::Bench(options) => bench::bench(&options.settings(Scenes::Plain)),
        Command::Plot(options) => options.run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", without_backtrace(error));
            ExitCode::FAILURE
        }
    }
}
