//! The program that runs a command on the emulator, and what depends on the environment.

use std::process::{Command, Output};

fn emulator(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gfocal-emulator"));
    command.args(arguments);
    // What the tests ask about is what the variables do by themselves.
    for variable in ["CC", "SMS", "DRIVER", "DEVICES", "PTX"] {
        command.env_remove(format!("GFOCAL_EMULATOR_{variable}"));
    }
    command
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn no_compiler() -> bool {
    matches!(gfocal_emulator::library_folder(), Err(gfocal_emulator::Error::NoCompiler { .. }))
        && gfocal_emulator::skip_allowed()
}

#[test]
fn without_a_command_it_says_what_it_does() {
    let output = emulator(&[]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output).starts_with("usage: gfocal-emulator COMMAND"));
}

#[test]
fn the_exit_code_is_that_of_the_command() {
    if no_compiler() {
        return;
    }
    let output =
        emulator(&["sh", "-c", "test -e ${LD_LIBRARY_PATH%%:*}/libcuda.so.1 && exit 7"]).output().unwrap();
    assert_eq!(output.status.code(), Some(7), "{}", text(&output));
}

#[test]
fn a_command_that_is_not_there() {
    if no_compiler() {
        return;
    }
    let output = emulator(&["no-such-command"]).output().unwrap();
    assert_eq!(output.status.code(), Some(127));
    assert!(text(&output).contains("`no-such-command` was not found"));
}

#[test]
fn no_compiler_is_one_sentence() {
    let output = emulator(&["true"]).env_remove("CXX").env("PATH", "/nonexistent").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = text(&output);
    assert!(text.contains("no C++ compiler was found (tried c++, g++, clang++): install g++"), "{text}");
    assert!(text.contains("GFOCAL_SKIP_EMULATOR=1"));
}

/// What another process sees of the device, with these variables.
fn device(variables: &[(&str, &str)]) -> String {
    seen("prints_the_device", variables)
}

/// What another process prints, with these variables. It is this test binary again.
fn seen(test: &str, variables: &[(&str, &str)]) -> String {
    let own = std::env::current_exe().unwrap();
    let mut command = emulator(&[own.to_str().unwrap(), "--exact", test, "--ignored", "--nocapture"]);
    let output = command.envs(variables.iter().copied()).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().filter(|line| line.contains("seen:")).collect()
}

#[test]
#[ignore = "another test runs it in a process of its own"]
fn prints_the_device() {
    use cudarc::driver::{CudaContext, result};
    let driver = gfocal_emulator::driver().unwrap();
    assert!(driver.emulator().is_some());
    match CudaContext::new(0) {
        Ok(context) => {
            let (major, minor) = context.compute_capability().unwrap();
            let attribute = cudarc::driver::sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
            let multiprocessors = context.attribute(attribute).unwrap();
            let mut version = 0;
            // SAFETY: the pointer is to a live variable.
            unsafe { cudarc::driver::sys::cuDriverGetVersion(&mut version) }.result().unwrap();
            let count = result::device::get_count().unwrap();
            println!("\nseen: {major}.{minor}, {multiprocessors}, {version}, {count}");
        }
        Err(error) => println!("\nseen: {:?}", error.0),
    }
}

/// Which driver functions a process can find: one that a driver for CUDA 12.0 has, and one that it
/// has not.
#[test]
#[ignore = "another test runs it in a process of its own"]
fn prints_the_functions() {
    gfocal_emulator::driver().unwrap();
    // SAFETY: the library is the emulator's, which is open already.
    let library = unsafe { libloading::Library::new("libcuda.so") }.unwrap();
    // SAFETY: the symbols are only looked up.
    let there = |name: &str| unsafe { library.get::<unsafe extern "C" fn()>(name) }.is_ok();
    println!("\nseen: {} {}", there("cuEventElapsedTime"), there("cuEventElapsedTime_v2"));
}

#[test]
fn an_old_driver_has_no_new_functions() {
    if no_compiler() {
        return;
    }
    assert_eq!(seen("prints_the_functions", &[]), "seen: true true");
    assert_eq!(seen("prints_the_functions", &[("GFOCAL_EMULATOR_DRIVER", "12000")]), "seen: true false");
    assert_eq!(seen("prints_the_functions", &[("GFOCAL_EMULATOR_DRIVER", "12080")]), "seen: true true");
}

#[test]
fn the_environment_decides_what_the_device_is() {
    if no_compiler() {
        return;
    }
    assert_eq!(device(&[]), "seen: 9.0, 4, 13000, 2");
    let other = [
        ("GFOCAL_EMULATOR_CC", "75"),
        ("GFOCAL_EMULATOR_SMS", "7"),
        ("GFOCAL_EMULATOR_DRIVER", "12000"),
        ("GFOCAL_EMULATOR_DEVICES", "1"),
    ];
    assert_eq!(device(&other), "seen: 7.5, 7, 12000, 1");
    assert_eq!(device(&[("GFOCAL_EMULATOR_DEVICES", "0")]), "seen: CUDA_ERROR_NO_DEVICE");
}
