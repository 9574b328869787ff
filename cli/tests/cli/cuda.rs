//! On CUDA: a real GPU if there is one, else the emulator.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use crate::support::*;

/// Where the driver is, for the loader; `None` for the system's. No driver at all is an error in
/// words, or a skip where that is allowed.
static DRIVER: LazyLock<Option<Option<PathBuf>>> = LazyLock::new(|| {
    let real =
        gfocal::cuda::devices().is_ok_and(|devices| devices.iter().any(|device| device.usable().is_ok()));
    if real && std::env::var_os("GFOCAL_FORCE_EMULATOR").is_none() {
        eprintln!("driver: the system's");
        return Some(None);
    }
    match gfocal_emulator::library_folder() {
        Ok(folder) => {
            eprintln!("driver: the emulator's (not a GPU)");
            Some(Some(folder))
        }
        Err(error) if gfocal_emulator::skip_allowed() => {
            eprintln!("skipped: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
});

/// The command with a driver.
pub fn with_driver() -> Option<Command> {
    let mut command = command();
    if let Some(folder) = DRIVER.as_ref()? {
        command.env("LD_LIBRARY_PATH", folder);
    }
    Some(command)
}

pub fn emulated() -> bool {
    matches!(&*DRIVER, Some(Some(_)))
}

pub fn on_cuda(op: &str, file: &Path, args: &str) -> Option<Run> {
    let mut command = with_driver()?;
    command.arg(op).arg(file).args(args.split_whitespace());
    Some(command.output().unwrap().into())
}

/// Runs on both devices, if there are two.
pub fn on_both(op: &str, file: &Path, args: &str, check: impl Fn(Run)) {
    check(cpu(op, file, args));
    if let Some(run) = on_cuda(op, file, &format!("--device cuda {args}")) {
        check(run);
    }
}

/// The same, of what is written.
pub fn written_on_both(op: &str, file: &Path, args: &str, check: impl Fn(&Tensors)) {
    let folder = Folder::new();
    let out = folder.path("out.safetensors");
    on_both(op, file, &format!("{args} --output {}", out.display()), |run| {
        run.ok();
        check(&read(&out));
    });
}

#[test]
fn it_gives_what_the_cpu_gives() {
    let folder = Folder::new();
    let weight = || ("weight", f32s(&[2], &[0.5, 2.0]));
    let dense =
        [("logits", f32s(&[2, 2], &LOGITS)), ("target", f32s(&[2, 2], &[0.5, 0.0, 1.0, 0.0])), weight()];
    let narrow =
        [("logits", f32s(&[2, 2], &LOGITS)), ("labels", i32s(&[1, 9])), ("quality", f32s(&[2], &[0.5, 0.5]))];
    let files = [
        ("qfl", qfl_file(&folder)),
        ("qfl", folder.file("dense.safetensors", &dense)),
        ("qfl", folder.file("i32.safetensors", &narrow)),
        ("dfl", dfl_file(&folder)),
    ];
    let out = folder.path("out.safetensors");
    for (op, file) in files {
        for options in [
            "",
            "--reduction none --dtype bf16",
            "--reduction sum --dtype f16",
            "--avg-factor 3 --loss-weight 2",
        ] {
            let args = format!("{options} --output {}", out.display());
            let expected = json(op, &file, &args);
            let expected_tensors = read(&out);
            let Some(run) = on_cuda(op, &file, &format!("{args} --device cuda --json")) else { return };
            let report = run.json();
            assert_eq!(report["device"], "cuda:0");
            for field in ["op", "dtype", "shape", "reduction", "avg_factor", "positives", "status"] {
                assert_eq!(report[field], expected[field], "{field}");
            }
            let precision = if options.contains("dtype") { 1e-2 } else { 1e-5 };
            for (name, (dtype, shape, numbers)) in read(&out) {
                let expected = &expected_tensors[&name];
                assert_eq!((dtype, &shape), (expected.0, &expected.1));
                assert_close(&numbers, &expected.2, precision);
            }
        }
    }
}

#[test]
fn no_rows_and_no_columns() {
    let folder = Folder::new();
    let empty = [("logits", f32s(&[0, 4], &[])), ("target", f32s(&[0], &[])), ("weight", f32s(&[0], &[]))];
    let file = folder.file("empty.safetensors", &empty);
    let out = folder.path("out.safetensors");
    for reduction in ["none", "mean", "sum"] {
        let args = format!("--device cuda --reduction {reduction} --output {}", out.display());
        let Some(run) = on_cuda("dfl", &file, &args) else { return };
        run.ok();
        assert_eq!(read(&out)["grad"].1, [0, 4]);
    }
    let none = [("logits", f32s(&[2, 0], &[])), ("target", f32s(&[2, 0], &[]))];
    let run = on_cuda("qfl", &folder.file("none.safetensors", &none), "--device cuda").unwrap();
    assert!(run.mistake().starts_with("logits [2, 0] has 0 classes"));
}

#[test]
fn auto_takes_it() {
    let folder = Folder::new();
    let Some(run) = on_cuda("dfl", &dfl_file(&folder), "--json") else { return };
    let run = run.ok();
    assert!(run.stdout.contains("\"device\":\"cuda:"), "{}", run.stdout);
    assert!(run.stderr.starts_with("gfocal: --device auto chose cuda:"), "{}", run.stderr);
    let run: Run = with_driver().unwrap().arg("info").output().unwrap().into();
    let text = run.ok().stdout;
    assert!(text.contains("auto     chooses cuda:") && text.contains("loaded boxes f32: PTX"), "{text}");
    assert_eq!(text.contains("not a GPU"), emulated());
}

/// What a driver may be that cannot be used; only the emulator can be told to be so.
#[test]
fn auto_says_why_not() {
    let folder = Folder::new();
    let file = dfl_file(&folder);
    for (variable, value, why) in [
        ("GFOCAL_EMULATOR_CC", "70", "compute capability is 7.0, the kernels need 7.5"),
        ("GFOCAL_EMULATOR_DRIVER", "11080", "supports CUDA 11.8, gfocal needs 12.0"),
        ("GFOCAL_EMULATOR_DEVICES", "0", "there is no CUDA device 0"),
    ] {
        let Some(mut command) = with_driver() else { return };
        if !emulated() {
            return;
        }
        command.env(variable, value).arg("dfl").arg(&file);
        let run: Run = command.output().unwrap().into();
        assert!(run.stderr.starts_with("gfocal: --device auto chose cpu: "), "{}", run.stderr);
        assert!(run.stderr.contains(why) && !run.stderr.contains("use the CPU"), "{}", run.stderr);
        run.ok();
        let run: Run = command.args(["--device", "cuda"]).output().unwrap().into();
        let line = run.mistake();
        assert!(line.starts_with("cannot use cuda:0: ") && line.contains(why), "{line}");
    }
}
