//! Writes `samples/step.safetensors`:
//!
//! ```text
//! cargo run -p gfocal-cli --example make_sample -- samples/step.safetensors
//! ```

mod step;

use std::process::ExitCode;

fn main() -> ExitCode {
    let Some(path) = std::env::args_os().nth(1) else {
        eprintln!("make_sample: give the file to write, as samples/step.safetensors");
        return ExitCode::from(2);
    };
    match std::fs::write(&path, step::file()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("make_sample: cannot write {}: {error}", path.display());
            ExitCode::from(2)
        }
    }
}
