//! The `gfocal` command: Quality Focal Loss and Distribution Focal Loss of the tensors in a
//! `.safetensors` file.

mod args;
mod assign;
mod bench;
mod buffer;
mod case;
mod commands;
mod decode;
mod device;
mod error;
mod file;
mod floats;
mod head;
mod info;
mod inputs;
mod plot;
mod report;
mod run;
mod table;
mod terminal;
mod values;
mod words;

use std::process::ExitCode;

use args::{Cli, Command};
use clap::Parser;

/// For errors of every kind, as clap does for those of usage.
const FAILURE: u8 = 2;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if terminal::usage(&error) => return ExitCode::SUCCESS,
        Err(_) => return ExitCode::from(FAILURE),
    };
    let done = match &cli.command {
        Command::Qfl(args) => commands::qfl(args),
        Command::Dfl(args) => commands::dfl(args),
        Command::Gfl(args) => commands::gfl(args),
        Command::Head(args) => head::run(args),
        Command::Decode(args) => decode::run(args),
        Command::Assign(args) => assign::run(args),
        Command::Plot(args) => plot::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Info(args) => info::run(args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            terminal::note(&error.to_string());
            ExitCode::from(FAILURE)
        }
    }
}
