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
    let found = objects("--sizes 64x80,33x7 --dtype f32,bf16 --ops qfl,dfl,integral");
    assert_eq!(found.len(), 3 * 2 * 2 * 2);
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
fn passes_are_chosen() {
    let passes = |args: &str| -> Vec<String> {
        let found = objects(&format!("--sizes 16x5 --dtype f16 {args}"));
        found.iter().map(|object| format!("{} {}", object["op"], object["pass"]).replace('"', "")).collect()
    };
    assert_eq!(passes("--ops qfl --passes backward"), ["qfl backward"]);
    assert_eq!(passes("--ops integral"), ["integral forward", "integral backward"]);
    assert_eq!(passes("--ops dfl,integral --passes forward_backward"), ["dfl forward_backward"]);
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
    let args = format!("{SMALL} --sizes 16x5,64x5 --ops qfl,dfl --dtype f32,f16 --plot {}", path.display());
    bench(&args).ok();
    let svg = fs::read_to_string(&path).unwrap();
    assert!(svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>"));
    assert_eq!(svg.matches("<text ").count(), svg.matches("</text>").count());
    for label in ["gfocal on cpu", "GB/s (log scale)", "rows (log scale)", "DFL forward+backward f16", "copy"]
    {
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
        ("--ops integral --passes forward_backward", "none of --ops has one of --passes"),
        ("--device cpu --ops dfl --sizes 8x1 --seconds 0.02", "has 1 bins"),
        ("--device cpu --sizes 18446744073709551615x80", "are free"),
        ("--device cpu --sizes 9223372036854775807x9223372036854775807", "are free"),
    ] {
        let line = bench(args).mistake();
        assert!(line.contains(part), "{line:?} does not say {part:?}");
    }
    let folder = Folder::new();
    for plot in [folder.path(""), folder.path("no/plot.svg")] {
        let line = bench(&format!("{SMALL} --plot {}", plot.display())).mistake();
        assert!(line.contains("cannot write"), "{line}");
    }
    assert!(folder.names().is_empty());
}

/// What an emulator takes is no GPU's time.
#[test]
fn the_emulator_is_refused() {
    for device in ["cuda", "auto"] {
        let Some(mut command) = with_driver() else { return };
        if !emulated() {
            return;
        }
        let output =
            command.args(["bench", "--seconds", "0.02", "--sizes", "8x8", "--device", device]).output();
        let line = Run::from(output.unwrap()).mistake();
        assert!(line.contains("not a GPU") && line.contains("--device cpu"), "{line}");
    }
}
