//! Shows that the CUDA toolkit's stand-in for the driver's library, which is for linking only, is named
//! as what it is: every call of it gives error 34.
//!
//! In a binary of its own: it must not open the emulator.
#![cfg(target_os = "linux")]

use std::fs;
use std::path::Path;
use std::process::Command;

use gfocal::{Error, cuda};

const STUB: &str = "extern \"C\" int cuDriverGetVersion(int*) { return 34; }\n";

/// The loader reads LD_LIBRARY_PATH when a process starts, so that a second one looks.
#[test]
fn the_toolkits_stub_is_named() {
    if std::env::var_os("GFOCAL_TEST_STUB").is_some() {
        let error = cuda::driver_version().expect_err("it is a stub");
        assert_eq!(error, Error::StubDriver { library: "libcuda.so" });
        assert_eq!(
            error.to_string(),
            "libcuda.so is the CUDA toolkit's stub library, not the driver's; take its folder (it ends in \
             stubs) out of LD_LIBRARY_PATH, or install NVIDIA's driver, version 525 or newer"
        );
        assert_eq!(cuda::devices(), Err(error));
        return;
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("stubs");
    fs::create_dir_all(&folder).expect("a folder");
    let (source, library) = (folder.join("stub.cpp"), folder.join("libcuda.so"));
    fs::write(&source, STUB).expect("a file");
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    let made = Command::new(&compiler).args(["-shared", "-o"]).args([&library, &source]).status();
    match made {
        Ok(status) => assert!(status.success(), "{compiler} makes the stub"),
        Err(error) if gfocal_emulator::skip_allowed() => {
            eprintln!("skipped: {compiler} does not run: {error}");
            return;
        }
        Err(error) => panic!("{compiler} does not run: {error}"),
    }
    let own = std::env::current_exe().expect("a test is a program");
    let mut command = Command::new(own);
    command.env("LD_LIBRARY_PATH", &folder).env("GFOCAL_TEST_STUB", "1");
    let output = command.output().expect("it runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}
