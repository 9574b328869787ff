//! The kit's script from start to end, with small programs in the place of gfocal, its tests and
//! NVIDIA's tools.

use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::*;

/// Says that it runs on a device of this name; its figures are in the records of `gfocal bench`.
const GFOCAL: &str = r#"case "$1 $*" in
info*) echo "devices  cuda:0: DEVICE"; echo "auto     chooses cuda:0: it is there" ;;
*--help*) echo "      --kernels <DIR>" ;;
*json*)
    op=$(grep -o -- '--ops [a-z]*' <<<"$*") size=$(grep -o -- '--sizes [0-9x]*' <<<"$*")
    size=${size#* } us=20
    [[ $* == *--kernels* ]] && us=25
    echo '['
    echo '{"impl":"gfocal","op":"'${op#* }'","pass":"forward","dtype":"f32","rows":'${size%x*}',"columns":'${size#*x}',"device_name":"a, b","median_us":'$us',"gbytes_per_s":3512.3,"percent_of_copy":88.25,"percent_of_read":null}'
    echo ']' ;;
*) echo right ;;
esac"#;
const KIT: &str = r#"echo "$GFOCAL_REPEATS repeats of $*""#;
const NCU: &str =
    r#"echo "  qfl_linear_forward_f32 (396, 1, 1)x(320, 1, 1)"; echo "    Duration    us    12.3""#;
const PYTHON: &str = r#"[[ $1 == -c ]] || echo '{"impl": "triton", "op": "qfl", "pass": "forward", "dtype": "f32", "rows": 134400, "columns": 80, "median_us": 30.0, "gbytes_per_s": 2000.0, "percent_of_copy": 50.0}'"#;
const PREDICTION: &str = r#"[
{"op":"qfl","pass":"forward","dtype":"f32","rows":134400,"columns":80,"least_us":18.04,"most_us":23.0,"least_percent_of_copy":77,"most_percent_of_copy":98.4},
]"#;

/// A kit in a folder, and beside it a folder for $OUT and one of tools for $PATH.
struct Kit(TempDir);

impl Kit {
    fn new(device: &str) -> Kit {
        let kit = Kit(tempfile::tempdir().expect("a temporary folder"));
        for folder in ["kit/bin", "kit/prediction", "tools"] {
            fs::create_dir_all(kit.0.path().join(folder)).expect("a folder");
        }
        write_scripts(&kit.0.path().join("kit")).expect("scripts");
        kit.program("kit/bin/gfocal", &GFOCAL.replace("DEVICE", device));
        kit.program("kit/bin/kit", KIT);
        fs::write(kit.0.path().join("kit/prediction/h200.json"), PREDICTION).expect("a file");
        kit
    }

    fn program(&self, name: &str, text: &str) {
        let path = self.0.path().join(name);
        fs::write(&path, format!("#!/usr/bin/env bash\n{text}\n")).expect("a file");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("permissions");
    }

    fn command(&self, stage: &str) -> Command {
        let path = std::env::var("PATH").expect("a PATH");
        let mut command = Command::new(self.0.path().join("kit/run.sh"));
        command.arg(stage).env("OUT", self.0.path().join("out"));
        command.env("PATH", format!("{}:{path}", self.0.path().join("tools").display()));
        command
    }

    fn run(&self, stage: &str) -> Output {
        self.command(stage).output().expect("bash")
    }

    /// The summary, once there are three files and they can be read.
    fn summary(&self) -> String {
        let out = self.0.path().join("out");
        let mut names: Vec<_> =
            entries(&out).expect("results").iter().map(|path| path.file_name().unwrap().to_owned()).collect();
        names.sort();
        assert_eq!(names, ["gfocal.json", "kit.tar.gz", "summary.txt"]);
        run_tool(Command::new("tar").arg("tzf").arg(out.join("kit.tar.gz"))).expect("a whole archive");
        let json = fs::read_to_string(out.join("gfocal.json")).expect("a text");
        let records: Vec<serde_json::Value> = serde_json::from_str(&json).expect("JSON");
        assert!(records.iter().all(|record| record["impl"] == "gfocal"));
        fs::read_to_string(out.join("summary.txt")).expect("a text")
    }
}

fn assert_has_line(text: &str, start: &str, rest: &str) {
    let found = text.lines().any(|line| line.starts_with(start) && line.contains(rest));
    assert!(found, "no line {start} ... {rest} in\n{text}");
}

#[test]
fn on_the_emulator_what_wants_a_gpu_is_named_and_left_out() {
    let kit = Kit::new("gfocal emulator (not a GPU)");
    let output = kit.run("lease");
    let summary = kit.summary();
    assert!(output.status.success(), "{summary}");
    for item in ["load-second", "check-rows", "check-head", "tests-graph", "tests-large", "repeat"] {
        assert_has_line(&summary, item, " s");
    }
    for item in
        ["bench-qfl-134400x80", "memcheck-rows", "synccheck-head", "ncu-head-bf16", "peers-dfl-262144x17"]
    {
        assert_has_line(&summary, item, "the emulator is no GPU");
    }
    assert_has_line(&summary, "variants", "the kit has none");
    assert!(!summary.contains("FAILED"), "{summary}");
}

#[test]
fn on_a_gpu_figures_stand_beside_the_prediction_and_peers() {
    let kit = Kit::new("NVIDIA H200");
    kit.program("tools/compute-sanitizer", "true");
    kit.program("tools/ncu", NCU);
    kit.program("tools/python3", PYTHON);
    kit.program("tools/nvidia-smi", "echo 1980 MHz");
    fs::create_dir_all(kit.0.path().join("kit/variants/prefetch")).expect("a folder");
    fs::write(kit.0.path().join("kit/variants/prefetch/qfl.f32.sm_75.ptx"), "").expect("a file");
    let output = kit.run("lease");
    let summary = kit.summary();
    assert!(output.status.success(), "{summary}");
    assert!(!summary.contains("left out"), "{summary}");
    assert_has_line(&summary, "qfl forward f32 134400x80", "18.0 to 23.0 us, 77 to 98 %");
    assert_has_line(&summary, "check-variant-qfl-prefetch", " s");
    let of_variant = summary.split("variant-qfl-prefetch\n").nth(1).expect("a section");
    assert_has_line(of_variant, "qfl forward f32 134400x80", " 1.25 ");
    let of_peers = summary.split("== peers").nth(1).expect("a section");
    assert_has_line(of_peers, "qfl forward f32 134400x80", "triton");
    assert_has_line(of_peers, "qfl forward f32 134400x80", " 1.50");
    assert_has_line(&summary, "    Duration", "12.3");
}

#[test]
fn tools_that_do_not_work_are_left_out_and_failures_shown() {
    let kit = Kit::new("NVIDIA H200");
    kit.program("tools/compute-sanitizer", "echo 'Error: no device debugger'; exit 1");
    kit.program("tools/ncu", "echo '==ERROR== ERR_NVGPUCTRPERM'");
    kit.program("tools/python3", "echo 'No module named torch'; exit 1");
    kit.program("kit/bin/kit", "[[ $1 != boxes* ]] || { echo 'a box is wrong'; exit 101; }");
    let output = kit.run("lease");
    let summary = kit.summary();
    assert_eq!(output.status.code(), Some(1), "{summary}");
    assert_has_line(
        &summary,
        "memcheck-rows",
        "compute-sanitizer does not work here: Error: no device debugger",
    );
    assert_has_line(&summary, "ncu-qfl-f32", "ERR_NVGPUCTRPERM");
    assert_has_line(&summary, "peers-qfl-134400x80", "No module named torch");
    assert_has_line(&summary, "tests-boxes", "exit status 101");
    assert_has_line(&summary, "a box is wrong", "");
    assert_has_line(&summary, "tests-large", " s");
}

#[test]
fn the_deadline_holds_and_says_what_it_left_out() {
    let kit = Kit::new("NVIDIA H200");
    kit.program(
        "kit/bin/gfocal",
        r#"[[ $1 == info ]] || sleep 60; echo "auto     chooses cuda:0: it is there""#,
    );
    let start = Instant::now();
    let output = kit.command("lease").env("GFOCAL_KIT_SECONDS", "12").output().expect("bash");
    assert!(start.elapsed() < Duration::from_secs(13), "{:?}", start.elapsed());
    let summary = kit.summary();
    assert_eq!(output.status.code(), Some(1), "{summary}");
    assert_has_line(&summary, "load-second", " s");
    assert_has_line(&summary, "check-rows", "stopped after");
    for item in ["bench-qfl-672000x80", "tests-graph", "ncu-qfl-f32", "peers-qfl-134400x80", "repeat"] {
        assert_has_line(&summary, item, "the time is over");
    }
}

#[test]
fn what_is_killed_leaves_its_results() {
    let kit = Kit::new("NVIDIA H200");
    kit.program("kit/bin/kit", "sleep 3");
    let mut child = kit.command("lease").stdout(Stdio::null()).spawn().expect("bash");
    let start = Instant::now();
    let out = kit.0.path().join("out/summary.txt");
    let benched = || fs::read_to_string(&out).is_ok_and(|text| text.contains("bench-head-22300x80"));
    while !benched() && start.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(Duration::from_millis(200)); // the archive comes after the summary
    child.kill().expect("it runs");
    child.wait().expect("it has run");
    assert_has_line(&kit.summary(), "qfl forward f32 134400x80", " 88.2");
}

#[test]
fn without_a_gpu_the_reason_comes_back() {
    let kit = Kit::new("");
    kit.program("kit/bin/gfocal", "echo 'auto     chooses cpu: there is no driver'");
    assert_eq!(kit.run("lease").status.code(), Some(2));
    assert_has_line(&kit.summary(), "auto", "there is no driver");
}

#[test]
fn a_stage_can_be_run_alone() {
    let kit = Kit::new("NVIDIA H200");
    // Results go where the caller is.
    let output = kit.command("repeat").current_dir(kit.0.path()).env("OUT", "out").output().expect("bash");
    assert!(output.status.success());
    let summary = kit.summary();
    assert_has_line(&summary, "load-first", " s");
    assert_has_line(&summary, "repeat", " s");
    assert!(!summary.contains("check-rows"), "{summary}");
    assert_eq!(kit.run("rest").status.code(), Some(2));
}

#[test]
fn a_kit_that_is_too_large_is_refused() {
    assert_eq!(at_most(MOST_PACKED_BYTES, MOST_PACKED_BYTES, "packed"), Ok(()));
    let error = at_most(MOST_PACKED_BYTES + 1, MOST_PACKED_BYTES, "packed").expect_err("a byte too many");
    assert!(error.contains("12000001 bytes packed"), "{error}");
}

#[test]
fn every_module_of_the_tests_is_run() {
    let path = root().join("tests/kit/main.rs");
    let text = fs::read_to_string(&path).expect("the tests of the kit");
    let modules: Vec<&str> =
        text.lines().filter_map(|line| line.strip_prefix("mod ")?.strip_suffix(';')).collect();
    assert!(modules.len() > 15, "{modules:?}");
    let script = SCRIPTS[0].1;
    let start = script.find("local modules=(").expect("the list of modules");
    let list = &script[start..start + script[start..].find(')').expect("its end")];
    let words: Vec<&str> = list.split(['(', ' ', '\n']).chain(["determinism"]).collect();
    for module in modules {
        assert!(words.contains(&module), "run.sh does not run {module}, which is in {}", path.display());
    }
    assert!(script.contains("bin/kit determinism::"));
}
