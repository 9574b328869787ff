//! Every option does what its help says.

use crate::formula;
use crate::support::*;

fn qfl_sum(targets: [f64; 4], beta: f64) -> f64 {
    formula::qfl_rows(&LOGITS, &targets, 2, beta).0.iter().sum()
}

#[test]
fn beta() {
    let folder = Folder::new();
    let file = qfl_file(&folder);
    for beta in [0.0, 0.5, 1.0, 1.5, 3.0] {
        let report = json("qfl", &file, &format!("--reduction sum --beta {beta}"));
        assert_close(&[number(&report["loss"])], &[qfl_sum([0.75, 0.0, 0.0, 0.0], beta)], 2e-6);
        assert_eq!(report["beta"], beta);
    }
}

#[test]
fn background_and_ignore_label() {
    let folder = Folder::new();
    let tensors = [
        ("logits", f32s(&[2, 2], &LOGITS)),
        ("labels", i64s(&[2, -7])),
        ("quality", f32s(&[2], &[0.5, 1.0])),
    ];
    let file = folder.file("qfl.safetensors", &tensors);
    let check = |args: &str, loss: f64, positives: u64, bad_labels: u64| {
        let report = json("qfl", &file, &format!("--reduction sum {args}"));
        assert_close(&[number(&report["loss"])], &[loss], 2e-6);
        assert_eq!(
            (report["positives"].as_u64(), report["status"]["bad_labels"].as_u64()),
            (Some(positives), Some(bad_labels))
        );
    };
    let row = |targets: [f64; 4], row: usize| formula::qfl_rows(&LOGITS, &targets, 2, 2.0).0[row];
    check("", qfl_sum([0.0; 4], 2.0), 0, 0);
    check("--background last", qfl_sum([0.0; 4], 2.0), 0, 0);
    // Label 2 is the second class, and -7 is nothing.
    check("--background first", row([0.0, 0.5, 0.0, 0.0], 0), 1, 1);
    check("--background first --ignore-label -7", row([0.0, 0.5, 0.0, 0.0], 0), 1, 0);
    check("--ignore-label=-7", row([0.0; 4], 0), 0, 0);
    check("--ignore-label 2", row([0.0; 4], 1), 0, 0);
}

#[test]
fn status_counts_and_first_row() {
    let folder = Folder::new();
    let tensors = [
        ("logits", f32s(&[4, 1], &[0.0; 4])),
        ("labels", i64s(&[1, 5, 0, i64::MAX])),
        ("quality", f32s(&[4], &[0.0, 0.0, f64::NAN, 0.0])),
    ];
    let file = folder.file("qfl.safetensors", &tensors);
    let status = serde_json::json!({
        "bad_labels": 2, "bad_qualities": 1, "out_of_range_targets": 0, "first_bad_row": 1
    });
    assert_eq!(json("qfl", &file, "")["status"], status);
    let text = cpu("qfl", &file, "").ok().stdout;
    assert!(text.contains("2 labels that are neither a class nor background"), "{text}");
    assert!(text.contains("1 quality that is NaN"), "{text}");
    assert!(text.contains("QFL: the first of all, a label, is in row 1, counted from 0."), "{text}");
}

#[test]
fn target_eps() {
    let folder = Folder::new();
    let file = dfl_file(&folder);
    let expected = |target| formula::dfl(&BOXES[..4], 1.25).0 + formula::dfl(&BOXES[4..], target).0;
    let report = json("dfl", &file, "--reduction sum --target-eps 0.5");
    assert_close(&[number(&report["loss"])], &[expected(2.5)], 2e-6);
    assert_eq!(report["status"]["out_of_range_targets"], 1);
    assert_eq!(report["status"]["first_bad_row"], 1);
    assert!(
        cpu("dfl", &file, "--target-eps 0.5").ok().stdout.contains("1 target outside the bins (clamped).")
    );
    assert_eq!(json("dfl", &file, "")["status"]["out_of_range_targets"], 0);
}

#[test]
fn average_factor_and_its_policies() {
    let folder = Folder::new();
    let file = qfl_file(&folder);
    let sum = qfl_sum([0.75, 0.0, 0.0, 0.0], 2.0);
    let loss = |args: &str| json("qfl", &file, args)["loss"].clone();
    assert_close(&[number(&loss("--avg-factor 4"))], &[sum / 4.0], 2e-6);
    assert_close(&[number(&loss("--avg-factor 0"))], &[sum * f64::from(1 << 23)], 2e-6);
    assert_close(&[number(&loss("--avg-factor 0 --avg-policy eps"))], &[sum * f64::from(1 << 23)], 2e-6);
    assert_eq!(loss("--avg-factor 0 --avg-policy exact"), "inf");
    assert_close(&[number(&loss("--avg-factor 0 --avg-policy min=1"))], &[sum], 2e-6);
    assert_close(&[number(&loss("--avg-factor 2 --avg-policy min=0.5"))], &[sum / 2.0], 2e-6);
    assert_close(&[number(&loss("--avg-factor 4 --reduction mean"))], &[sum / 4.0], 2e-6);
}

#[test]
fn loss_weight_and_grad_scale() {
    let folder = Folder::new();
    let file = qfl_file(&folder);
    let plain = json("qfl", &file, "");
    let scaled = json("qfl", &file, "--loss-weight -2 --grad-scale 8");
    assert_close(&[number(&scaled["loss"])], &[-2.0 * number(&plain["loss"])], 1e-6);
    assert_close(&[number(&scaled["grad_norm"])], &[16.0 * number(&plain["grad_norm"])], 1e-6);
}

#[test]
fn dtype_rounds_the_logits() {
    let folder = Folder::new();
    let tensors =
        [("logits", f32s(&[1, 2], &[0.1, 1e6])), ("labels", i64s(&[0])), ("quality", f32s(&[1], &[0.5]))];
    let file = folder.file("qfl.safetensors", &tensors);
    assert_eq!(json("qfl", &file, "--dtype f16")["loss"], "inf");
    assert_eq!(json("qfl", &file, "--dtype f16")["dtype"], "f16");
    let tensors =
        [("logits", f64s(&[1, 1], &[0.1])), ("labels", i64s(&[0])), ("quality", f32s(&[1], &[1.0]))];
    let file = folder.file("qfl.safetensors", &tensors);
    for (args, logit, precision) in [
        ("", 0.1, 1e-12),
        ("--dtype f32", f64::from(0.1f32), 1e-6),
        ("--dtype bf16", half::bf16::from_f64(0.1).to_f64(), 1e-6),
    ] {
        assert_close(
            &[number(&json("qfl", &file, args)["loss"])],
            &[formula::qfl(logit, 1.0, 2.0).0],
            precision,
        );
    }
}

#[test]
fn auto_says_what_it_chose() {
    let folder = Folder::new();
    let file = qfl_file(&folder);
    for args in [&["--json"][..], &["--json", "--device", "auto"]] {
        let run = run("qfl", &file, args).ok();
        let report: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
        let device = report["device"].as_str().unwrap();
        let lines: Vec<&str> = run.stderr.lines().collect();
        let [chosen, note] = lines[..] else { panic!("{}", run.stderr) };
        assert!(chosen.starts_with(&format!("gfocal: --device auto chose {device}: ")), "{chosen}");
        assert!(note.contains("loss_none"), "{note}");
    }
}

#[test]
fn auto_takes_the_cpu_for_f64() {
    let folder = Folder::new();
    let tensors = [("logits", f64s(&[1, 2], &[0.0, 0.0])), ("target", f32s(&[1], &[0.5]))];
    let run = run("dfl", &folder.file("dfl.safetensors", &tensors), &["--json"]).ok();
    assert!(run.stdout.contains("\"device\":\"cpu\""));
    assert!(run.stderr.contains("f64"));
}

#[test]
fn the_table() {
    let folder = Folder::new();
    let text = cpu("qfl", &qfl_file(&folder), "--reduction sum").ok().stdout;
    let expected = "\
f32 on cpu

     rows  columns  positives  reduction  weight      loss  gradient norm
-------------------------------------------------------------------------
QFL     2        2          1        sum       1  0.769652       0.776809
";
    assert_eq!(text, expected);
    let text = cpu("dfl", &dfl_file(&folder), "--reduction none").ok().stdout;
    assert!(text.contains("one a row"), "{text}");
    assert!(text.ends_with("DFL: the losses of the rows are from 0.495182 to 1.38629.\n"), "{text}");
}

#[test]
fn help_and_version() {
    for args in [&["--help"][..], &["qfl", "--help"], &["dfl", "-h"], &["gfl", "--help"], &["info", "--help"]]
    {
        let run: Run = command().args(args).output().unwrap().into();
        assert!(run.ok().stdout.contains("Usage: gfocal"));
    }
    let run: Run = command().arg("--version").output().unwrap().into();
    assert_eq!(run.ok().stdout, format!("gfocal {}\n", env!("CARGO_PKG_VERSION")));
}
