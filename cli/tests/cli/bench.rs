//! `gfocal bench`: what it prints and refuses; never how fast anything is.

use std::fs;

use serde_json::Value;

use crate::cuda::{emulated, with_driver};
use crate::support::*;

/// Small, so that it is soon done.
const SMALL: &str = "--device cpu --seconds 0.02";

fn bench(args: &str) -> Run {
    command().arg("bench").args(args.split_whitespace()).output().unwrap().into()
}

fn objects(args: &str) -> Vec<Value> {
    let run = bench(&format!("{SMALL} --format json {args}")).ok();
    serde_json::from_str(&run.stdout).unwrap()
}

#[test]
fn json_has_an_object_for_each_case() {
    let found = objects("--sizes 64x80,33x7 --dtype f32,bf16 --ops qfl,dfl,integral,head");
    assert_eq!(found.len(), 4 * 2 * 2 * 2);
    for object in &found {
        for field in ["median_us", "p20_us", "p80_us", "gbytes_per_s", "percent_of_copy", "elements_per_s"] {
            assert!(number(&object[field]) > 0.0, "{field} of {object}");
        }
        assert!(number(&object["p20_us"]) <= number(&object["median_us"]));
        assert!(number(&object["median_us"]) <= number(&object["p80_us"]));
        assert!(number(&object["samples"]) >= 10.0);
        assert_eq!((&object["device"], &object["impl"]), (&"cpu".into(), &"gfocal".into()));
        let reads = object["pass"] == "forward";
        assert_eq!(object["percent_of_read"].is_number(), reads, "{object}");
        assert_eq!(object["percent_of_read"].is_null(), !reads, "{object}");
    }
    let first = &found[0];
    assert_eq!(
        (&first["op"], &first["pass"], &first["dtype"]),
        (&"qfl".into(), &"forward".into(), &"f32".into())
    );
    assert_eq!((&first["rows"], &first["columns"]), (&64.into(), &80.into()));
    assert_eq!(first["bytes"], 64 * (80 * 4 + 12));
}

#[test]
fn a_head_is_timed_by_default() {
    let found = objects("--sizes 64x80 --dtype f16 --passes forward,forward_backward");
    let ops: Vec<&str> = found.iter().filter_map(|object| object["op"].as_str()).collect();
    assert_eq!(ops, ["qfl", "qfl", "dfl", "dfl", "head", "head"]);
    let [forward, both] = [&found[4], &found[5]];
    assert_eq!((&forward["rows"], &forward["columns"]), (&64.into(), &80.into()));
    // Levels of 49, 12 and 3 positions, each with a positive of 68 box logits and a target box.
    let read = 64 * (80 * 2 + 8 + 4) + 3 * (68 * 2 + 16);
    assert_eq!(forward["bytes"], read);
    assert_eq!(both["bytes"], read + 64 * (80 + 68) * 2);
}

#[test]
fn passes_are_chosen() {
    let passes = |args: &str| -> Vec<String> {
        let found = objects(&format!("--sizes 16x5 --dtype f16 {args}"));
        found.iter().map(|object| format!("{} {}", object["op"], object["pass"]).replace('"', "")).collect()
    };
    assert_eq!(passes("--ops qfl --passes backward"), ["qfl backward"]);
    assert_eq!(passes("--ops integral"), ["integral forward", "integral backward"]);
    assert_eq!(passes("--ops dfl,integral --passes forward_backward"), ["dfl forward_backward"]);
    assert_eq!(passes("--ops head"), ["head forward", "head forward_backward"]);
    assert_eq!(passes("--ops integral,head --passes backward"), ["integral backward"]);
}

#[test]
fn csv_and_table() {
    let csv = bench(&format!("{SMALL} --sizes 16x5 --ops dfl --dtype f32 --format csv")).ok().stdout;
    let lines: Vec<&str> = csv.lines().collect();
    assert_eq!(lines.len(), 3);
    assert!(lines[0].starts_with("impl,op,pass,dtype,rows,columns,device,device_name,"), "{csv}");
    assert!(lines[1].starts_with("gfocal,dfl,forward,f32,16,5,cpu,\""), "{csv}");
    // The names in CSV are those in JSON.
    let object = objects("--sizes 16x5 --ops dfl --dtype f32 --passes forward").remove(0);
    let mut names: Vec<&str> = lines[0].split(',').collect();
    names.sort_unstable();
    let mut keys: Vec<&String> = object.as_object().unwrap().keys().collect();
    keys.sort_unstable();
    assert_eq!(names, keys);

    let table = bench(&format!("{SMALL} --sizes 16x5 --ops qfl --dtype f32")).ok().stdout;
    for part in ["cpu: ", "GB/s", "% copy", "p20", "QFL forward+backward f32"] {
        assert!(table.contains(part), "{table}");
    }
}

#[test]
fn a_plot_is_an_svg_with_its_labels() {
    let folder = Folder::new();
    let path = folder.path("plot.svg");
    let args =
        format!("{SMALL} --sizes 16x5,64x5 --ops qfl,dfl,head --dtype f32,f16 --plot {}", path.display());
    bench(&args).ok();
    let svg = fs::read_to_string(&path).unwrap();
    assert!(svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>"));
    assert_eq!(svg.matches("<text ").count(), svg.matches("</text>").count());
    for label in [
        "gfocal on cpu",
        "Roofline",
        "GB/s",
        "% of read",
        "DFL forward+backward f16",
        "a copy of as many bytes",
        "QFL, 5 columns: time of a call",
        "Head, 5 columns: time of a call",
        "Head forward+backward f16",
    ] {
        assert!(svg.contains(label), "{label}");
    }
    assert_eq!(folder.names(), ["plot.svg"]);
}

#[test]
fn mistakes_are_one_sentence() {
    for (args, part) in [
        ("--sizes 8400", "ROWSxCOLUMNS"),
        ("--sizes 0x80", "ROWSxCOLUMNS"),
        ("--sizes 8x80,", "ROWSxCOLUMNS"),
        ("--ops focal", "focal"),
        ("--passes sideways", "sideways"),
        ("--dtype f64", "f64"),
        ("--seconds 0", "0.001 to 600"),
        ("--seconds NaN", "0.001 to 600"),
        ("--seconds -1", "0.001 to 600"),
        ("--format xml", "xml"),
        ("--device gpu", "auto, cpu, cuda"),
        ("--device cuda:-1", "auto, cpu, cuda"),
        ("--ops ,", "possible values"),
        ("--dtype f32,,f16", "possible values"),
        ("--sizes 99999999999999999999x80", "less than 2^64"),
        ("--plot plot.png", "FILE.svg"),
        ("--plot plot", "FILE.svg"),
        ("--device cpu --sizes 1x9223372036854775807", "are free"),
        ("--ops integral --passes forward_backward", "none of --ops has one of --passes"),
        ("--ops head --passes backward", "head forward and forward_backward"),
        ("--device cpu --ops head --sizes 18446744073709551615x80", "are free"),
        ("--device cpu --ops head --sizes 2x9223372036854775807", "are free"),
        ("--device cpu --ops dfl --sizes 8x1 --seconds 0.02", "has 1 bin"),
        ("--device cpu --sizes 18446744073709551615x80", "are free"),
        ("--device cpu --sizes 9223372036854775807x9223372036854775807", "are free"),
    ] {
        let line = bench(args).mistake();
        assert!(line.contains(part), "{line:?} does not say {part:?}");
    }
    let folder = Folder::new();
    fs::create_dir(folder.path("folder.svg")).unwrap();
    for plot in [folder.path("folder.svg"), folder.path("no/plot.svg")] {
        let line = bench(&format!("{SMALL} --plot {}", plot.display())).mistake();
        assert!(line.contains("cannot write"), "{line}");
    }
    assert_eq!(folder.names(), ["folder.svg"]);
    // Before anything is timed.
    let start = std::time::Instant::now();
    let line = bench("--device cpu --seconds 600 --sizes 4x4 --plot /proc/plot.svg").mistake();
    assert!(line.contains("cannot write /proc/plot.svg") && start.elapsed().as_secs() < 60, "{line}");
}

fn on_device(args: &str) -> Option<Run> {
    Some(with_driver()?.arg("bench").args(args.split_whitespace()).output().unwrap().into())
}

/// What an emulator takes is no GPU's time.
#[test]
fn the_emulator_is_not_timed() {
    for device in ["cuda", "auto"] {
        let Some(run) = on_device(&format!("--seconds 0.02 --sizes 8x8 --device {device}")) else { return };
        if !emulated() {
            return;
        }
        let line = run.mistake();
        assert!(line.contains("not a GPU") && line.contains("--device cpu"), "{line}");
        assert!(line.contains("--check-only"), "{line}");
    }
}

/// Calls, graphs and their replays, on the way on which they are timed.
#[test]
fn the_emulator_is_checked() {
    let args = "--device cuda --check-only --sizes 40x80,7x17 --ops qfl,dfl,integral,head --dtype f32,bf16";
    let Some(run) = on_device(args) else { return };
    let run = run.ok();
    let right: Vec<&str> = run.stdout.lines().filter(|line| line.ends_with("right")).collect();
    assert_eq!(right.len(), 4 * 2 * 2 * 2, "{}", run.stdout);
    assert!(run.stdout.contains("checked, not timed") && !run.stdout.contains("GB/s"), "{}", run.stdout);
    if emulated() {
        // The ceiling is PTX alone: the emulator has no source of it.
        let runs_ptx = std::env::var("GFOCAL_EMULATOR_PTX").is_ok_and(|value| value == "1");
        assert_eq!(run.stderr.contains("there is no read ceiling"), !runs_ptx, "{}", run.stderr);
        assert!(!run.stderr.contains("fault"), "{}", run.stderr);
    }
}

/// Kernels of a folder, and calls as a program makes them.
#[test]
fn kernels_and_calls_of_another_kind_are_checked() {
    let folder = Folder::new();
    let small = "--check-only --sizes 40x80 --ops qfl --dtype f32";
    let kernels = format!("--kernels {}", folder.path("").display());
    let give = |name: &str| fs::copy(checkout(&format!("kernels/ptx/{name}")), folder.path(name)).unwrap();
    let Some(run) = on_device(&format!("--device cuda {small} {kernels}")) else { return };
    assert!(run.mistake().contains("holds no PTX of a kernel"));
    // It is not called.
    give("boxes.f32.sm_75.ptx");
    let run = on_device(&format!("--device cuda {small} {kernels} --calls tracked")).unwrap().ok();
    assert_eq!(run.stdout.matches("right").count(), 2, "{}", run.stdout);
    assert!(run.stderr.contains("--kernels gave nothing"), "{}", run.stderr);
    give("qfl.f32.sm_75.ptx");
    give("qfl_forward.f32.sm_75.ptx");
    let run = on_device(&format!("--device cuda {small} {kernels} --calls untracked")).unwrap().ok();
    assert_eq!(run.stdout.matches("right").count(), 2, "{}", run.stdout);
    assert!(run.stderr.contains("--kernels gave qfl f32: "), "{}", run.stderr);
    assert!(run.stderr.contains("the command gave nothing"), "{}", run.stderr);

    for option in [&*kernels, "--calls tracked"] {
        let line = bench(&format!("--device cpu {small} {option}")).mistake();
        assert!(line.contains("is for a GPU, and cpu is timed"), "{line}");
    }
}

#[test]
fn the_cpu_is_checked() {
    let run = bench("--device cpu --check-only --sizes 9x5 --ops integral --dtype f16").ok();
    assert_eq!(run.stdout.matches("right").count(), 2, "{}", run.stdout);
    let line = bench("--device cpu --check-only --plot a.svg").mistake();
    assert!(line.contains("cannot be used with"), "{line}");
    // Who does not want a check gets figures.
    let run = bench("--device cpu --no-check --seconds 0.01 --sizes 9x5 --ops qfl --dtype f16").ok();
    assert_eq!(run.stdout.matches("QFL forward").count(), 2, "{}", run.stdout);
    let line = bench("--device cpu --check-only --no-check").mistake();
    assert!(line.contains("cannot be used with"), "{line}");
}

/// From one anchor on, with every number of levels; two images at 22300 each.
#[test]
fn a_head_of_any_size_is_checked() {
    let sizes = "1x1,5x3,22x4,86x2,341x80,1009x3,44600x1";
    let run = bench(&format!("--device cpu --check-only --ops head --sizes {sizes} --dtype f16")).ok();
    assert_eq!(run.stdout.matches("right").count(), 7 * 2, "{}", run.stdout);
    let run = bench("--device cpu --check-only --ops head --sizes 341x80 --dtype f32,bf16").ok();
    assert_eq!(run.stdout.matches("right").count(), 2 * 2, "{}", run.stdout);
}

#[test]
fn what_is_asked_for_twice_is_timed_once() {
    assert_eq!(objects("--ops dfl,dfl --dtype f32,f32 --sizes 4x5,4x5 --passes forward,forward").len(), 1);
}
