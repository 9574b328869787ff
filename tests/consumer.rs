//! Shows that a crate outside of this workspace can own all device memory: tests/consumer/outside.rs, built by
//! cargo in a folder of its own, without a network.

use std::path::Path;
use std::process::Command;
use std::{env, fs};

#[test]
fn a_framework_owns_all_memory() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("consumer");
    fs::create_dir_all(&folder).expect("a folder");
    // What the workspace is locked to is at hand.
    fs::copy(root.join("Cargo.lock"), folder.join("Cargo.lock")).expect("a copy");
    let [gfocal, emulator, program] =
        ["", "emulator", "tests/consumer/outside.rs"].map(|path| root.join(path));
    let manifest = format!(
        r#"
[package]
name = "consumer"
version = "0.0.0"
edition = "2024"

[workspace]

[[bin]]
name = "consumer"
path = {program:?}

[dependencies]
gfocal = {{ path = {gfocal:?} }}
gfocal-emulator = {{ path = {emulator:?} }}

[profile.dev]
debug = false
"#
    );
    fs::write(folder.join("Cargo.toml"), manifest).expect("a file");
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["run", "--offline", "--quiet"]).current_dir(&folder).env("CARGO_TARGET_DIR", "target");
    // The sources would be compiled a second time, for this folder's emulator.
    cargo.env("GFOCAL_EMULATOR_PTX", "1");
    let output = cargo.output().expect("cargo runs");
    let [told, said] = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    if gfocal_emulator::skip_allowed() && said.contains("C++") {
        eprintln!("skipped: {said}");
        return;
    }
    assert!(output.status.success(), "{told}{said}");
    assert!(told.ends_with("all the same\n"), "{told}");
}
