//! Cargo, and what it says of what it builds.

use std::ffi::OsStr;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::root;

/// Has cargo build in the checkout; gives its messages. Programs carry the committed PTX, unless `nvrtc` is
/// another compiler.
pub fn build(arguments: &[&str], nvrtc: impl AsRef<OsStr>) -> Result<Vec<Value>, String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(root()).args(arguments).args(["--message-format", "json-render-diagnostics"]);
    command.env("GFOCAL_NVRTC", nvrtc).stderr(Stdio::inherit());
    let output = command.output().map_err(|error| format!("cargo cannot run: {error}"))?;
    if !output.status.success() {
        return Err(format!("cargo {} failed", arguments.join(" ")));
    }
    let messages = String::from_utf8_lossy(&output.stdout);
    Ok(messages.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}
