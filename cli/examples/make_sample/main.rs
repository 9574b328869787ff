//! Writes the files of `samples/`:
//!
//! ```text
//! cargo run -p gfocal-cli --example make_sample -- samples
//! ```

mod head;
mod random;
mod step;

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let Some(folder) = std::env::args_os().nth(1) else {
        eprintln!("make_sample: give the folder to write to, as samples");
        return ExitCode::from(2);
    };
    for (name, bytes) in [("step.safetensors", step::file()), ("head.safetensors", head::file())] {
        let path = Path::new(&folder).join(name);
        if let Err(error) = std::fs::write(&path, bytes) {
            eprintln!("make_sample: cannot write {}: {error}", path.display());
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}
