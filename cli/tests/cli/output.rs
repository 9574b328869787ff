//! The file that `--output` writes.

use std::fs;
use std::process::Stdio;

use safetensors::{Dtype, SafeTensors};

use crate::support::*;

#[test]
fn types_and_shapes() {
    let folder = Folder::new();
    let out = folder.path("out.safetensors");
    let to = format!("--output {}", out.display());
    for (tensor, grad, loss) in [
        (f32s(&[2, 2], &LOGITS), Dtype::F32, Dtype::F32),
        (f16s(&[2, 2], &LOGITS), Dtype::F16, Dtype::F32),
        (bf16s(&[2, 2], &LOGITS), Dtype::BF16, Dtype::F32),
        (f64s(&[2, 2], &LOGITS), Dtype::F64, Dtype::F64),
    ] {
        let tensors = [("logits", tensor), ("target", f32s(&[2, 2], &[0.5, 0.0, 0.0, 1.0]))];
        let file = folder.file("in.safetensors", &tensors);
        for (args, losses) in [("--reduction none", 2), ("", 1)] {
            let report = json("qfl", &file, &format!("{args} {to}"));
            let written = read(&out);
            assert_eq!(written.len(), 2);
            assert_eq!((&written["loss"].0, &written["loss"].1), (&loss, &vec![losses]));
            assert_eq!((&written["grad"].0, &written["grad"].1), (&grad, &vec![2, 2]));
            if losses == 1 {
                assert_eq!(written["loss"].2[0], number(&report["loss"]));
            }
        }
    }
    assert_eq!(folder.names(), ["in.safetensors", "out.safetensors"]);
}

#[test]
fn both_losses_with_their_prefixes() {
    let folder = Folder::new();
    let tensors = [
        ("qfl.logits", f32s(&[1, 2], &[0.0, 1.0])),
        ("qfl.target", f32s(&[1, 2], &[0.0, 1.0])),
        ("dfl.logits", f16s(&[1, 2], &[0.0, 1.0])),
        ("dfl.target", f32s(&[1], &[0.0])),
    ];
    let (file, out) = (folder.file("in.safetensors", &tensors), folder.path("out.safetensors"));
    let report = json("gfl", &file, &format!("--output {}", out.display()));
    let written = read(&out);
    let mut names: Vec<_> = written.keys().map(String::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["dfl.grad", "dfl.loss", "qfl.grad", "qfl.loss"]);
    assert_eq!(written["dfl.grad"].0, Dtype::F16);
    assert_eq!(written["qfl.loss"].2[0], number(&report["qfl"]["loss"]));
}

#[test]
fn it_tells_how_it_was_made_and_is_the_same_every_time() {
    let folder = Folder::new();
    let file = qfl_file(&folder);
    let [first, second] = ["1.safetensors", "2.safetensors"].map(|name| {
        let out = folder.path(name);
        let report = json("qfl", &file, &format!("--beta 1.5 --output {}", out.display()));
        let bytes = fs::read(out).unwrap();
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        let about: serde_json::Value =
            serde_json::from_str(&header.metadata().as_ref().unwrap()["gfocal"]).unwrap();
        assert_eq!(about, report);
        bytes
    });
    assert_eq!(first, second);
}

#[test]
fn an_older_file_is_replaced() {
    let folder = Folder::new();
    let (file, out) = (qfl_file(&folder), folder.path("out.safetensors"));
    fs::write(&out, "old").unwrap();
    cpu("qfl", &file, &format!("--output {}", out.display())).ok();
    assert_eq!(read(&out).len(), 2);
}

#[test]
fn a_name_alone_is_in_the_current_folder() {
    let folder = Folder::new();
    let file = qfl_file(&folder);
    let arguments = ["qfl", file.to_str().unwrap(), "--device", "cpu", "--output", "out.safetensors"];
    let run: Run = command().args(arguments).current_dir(folder.path("")).output().unwrap().into();
    run.ok();
    assert_eq!(read(&folder.path("out.safetensors")).len(), 2);
}

#[cfg(unix)]
#[test]
fn it_may_be_read_by_whoever_may_read_new_files() {
    use std::os::unix::fs::PermissionsExt;

    let folder = Folder::new();
    let (file, out) = (qfl_file(&folder), folder.path("out.safetensors"));
    cpu("qfl", &file, &format!("--output {}", out.display())).ok();
    // The other file was made in the ordinary way.
    let mode = |path| fs::metadata(path).unwrap().permissions().mode();
    assert_eq!(mode(&out), mode(&file));
}

#[test]
fn a_reader_that_has_gone_is_no_error() {
    let folder = Folder::new();
    let file = qfl_file(&folder);
    for args in [&["info"][..], &["--help"], &["qfl", file.to_str().unwrap(), "--device", "cpu"]] {
        let mut child = command().args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let run: Run = child.wait_with_output().unwrap().into();
        let told = run.ok().stderr;
        assert!(told.is_empty() || told.contains("note: the tensor loss_none"), "{told}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_an_error() {
    let folder = Folder::new();
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let arguments = ["qfl", qfl_file(&folder).to_str().unwrap(), "--device", "cpu"].map(str::to_owned);
    let run: Run = command().args(arguments).stdout(full).output().unwrap().into();
    assert!(run.mistake().starts_with("cannot write to standard output: "));
}
