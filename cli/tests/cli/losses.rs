//! The numbers.

use crate::formula;
use crate::support::*;

fn expected_qfl() -> (Vec<f64>, Vec<f64>) {
    formula::qfl_rows(&LOGITS, &[0.75, 0.0, 0.0, 0.0], 2, 2.0)
}

#[test]
fn the_formula_is_the_one_computed_by_hand() {
    let (losses, _) = expected_qfl();
    // 0.25² · ln 2 for the labelled logit, and σ² · softplus for the others.
    assert_close(&losses, &[0.0625 * 2f64.ln() + 0.0018035, 0.7018684 + 0.0226580], 1e-6);
    let (loss, grad) = formula::dfl(&BOXES[..4], 1.25);
    assert_close(&[loss], &[4f64.ln()], 1e-12);
    assert_close(&grad, &[0.25, -0.5, 0.0, 0.25], 1e-12);
}

#[test]
fn qfl_in_all_reductions() {
    let folder = Folder::new();
    let file = qfl_file(&folder);
    let (losses, _) = expected_qfl();
    let sum: f64 = losses.iter().sum();
    let loss = |args: &str| number(&json("qfl", &file, args)["loss"]);
    assert_close(&[loss("")], &[sum / 2.0], 2e-6);
    assert_close(&[loss("--reduction mean")], &[sum / 2.0], 2e-6);
    assert_close(&[loss("--reduction sum")], &[sum], 2e-6);
    assert_close(&[loss("--avg-factor 0.25")], &[sum / 0.25], 2e-6);
    assert!(json("qfl", &file, "--reduction none")["loss"].is_null());
}

#[test]
fn dfl_in_all_reductions() {
    let folder = Folder::new();
    let file = dfl_file(&folder);
    let sum = formula::dfl(&BOXES[..4], 1.25).0 + formula::dfl(&BOXES[4..], 3.0).0;
    let loss = |args: &str| number(&json("dfl", &file, args)["loss"]);
    assert_close(&[loss("")], &[sum / 2.0], 2e-6);
    assert_close(&[loss("--reduction sum")], &[sum], 2e-6);
    assert_close(&[loss("--avg-factor 8")], &[sum / 8.0], 2e-6);
    assert!(json("dfl", &file, "--reduction none")["loss"].is_null());
}

#[test]
fn rows_gradients_and_their_norm() {
    let folder = Folder::new();
    let (file, out) = (qfl_file(&folder), folder.path("out.safetensors"));
    let report = json("qfl", &file, &format!("--reduction none --output {}", out.display()));
    let (losses, grads) = expected_qfl();
    let tensors = read(&out);
    assert_close(&tensors["loss"].2, &losses, 1e-6);
    assert_close(&tensors["grad"].2, &grads, 1e-6);
    let norm = grads.iter().map(|grad| grad * grad).sum::<f64>().sqrt();
    assert_close(&[number(&report["grad_norm"])], &[norm], 1e-6);
    assert_eq!(report["shape"], serde_json::json!([2, 2]));
    assert_eq!((report["op"].as_str(), report["device"].as_str()), (Some("qfl"), Some("cpu")));
}

#[test]
fn dense_targets_give_what_labels_give() {
    let folder = Folder::new();
    let dense = [("logits", f32s(&[2, 2], &LOGITS)), ("target", f32s(&[2, 2], &[0.75, 0.0, 0.0, 0.0]))];
    let dense = json("qfl", &folder.file("dense.safetensors", &dense), "");
    let sparse = json("qfl", &qfl_file(&folder), "");
    // To the accuracy of a loss, not to the bit: background elements have formulas of their own.
    assert_close(&[number(&dense["loss"])], &[number(&sparse["loss"])], 2e-6);
    assert_eq!((&dense["positives"], &sparse["positives"]), (&1.into(), &1.into()));
}

#[test]
fn every_type_of_logits_labels_and_targets() {
    let folder = Folder::new();
    let expected: f64 = expected_qfl().0.iter().sum();
    type Make = fn(&[usize], &[f64]) -> Tensor;
    let makes: [(&str, Make); 4] = [("f64", f64s), ("f32", f32s), ("f16", f16s), ("bf16", bf16s)];
    for (name, make) in makes {
        for labels in [i64s(&[0, 2]), i32s(&[0, 2])] {
            // All of these numbers are exact in all of these types.
            let tensors = [
                ("logits", make(&[2, 2], &LOGITS)),
                ("labels", labels),
                ("quality", make(&[2], &[0.75, 0.0])),
            ];
            let report = json("qfl", &folder.file("qfl.safetensors", &tensors), "--reduction sum");
            assert_eq!(report["dtype"], name);
            assert_close(&[number(&report["loss"])], &[expected], 2e-6);
        }
    }
    for (_, make) in makes {
        let (target, weight) = (make(&[2], &[1.25, 3.0]), make(&[2], &[0.5, 2.0]));
        let tensors = [("logits", f32s(&[2, 4], &BOXES)), ("target", target), ("weight", weight)];
        let report = json("dfl", &folder.file("dfl.safetensors", &tensors), "--reduction sum");
        let sum = 0.5 * formula::dfl(&BOXES[..4], 1.25).0 + 2.0 * formula::dfl(&BOXES[4..], 3.0).0;
        assert_close(&[number(&report["loss"])], &[sum], 2e-6);
    }
}

/// Digits that F32 has not count beside F64 logits, if they are in the file.
#[test]
fn what_is_beside_f64_logits_is_f64() {
    let folder = Folder::new();
    let third = 1.0 / 3.0;
    let (target, sides, weight) = ([third, 0.0, 0.1, 0.0], [1.0 + third, 2.9], [0.7, third]);
    let weighted = |losses: Vec<f64>| losses.iter().zip(weight).map(|(loss, by)| loss * by).sum::<f64>();
    let qfl = |target: &[f64]| weighted(formula::qfl_rows(&LOGITS, target, 2, 2.0).0);
    let dfl = weighted(vec![formula::dfl(&BOXES[..4], sides[0]).0, formula::dfl(&BOXES[4..], sides[1]).0]);
    let check = |make: fn(&[usize], &[f64]) -> Tensor, exact: bool| {
        let told = |op: &str, want: f64, mut tensors: Vec<(&str, Tensor)>| {
            tensors.push(("weight", make(&[2], &weight)));
            let file = folder.file("f64.safetensors", &tensors);
            let loss = number(&json(op, &file, "--reduction sum")["loss"]);
            assert_eq!((loss - want).abs() <= 1e-12 * want, exact, "{op}: {loss} for {want}");
        };
        let logits = || ("logits", f64s(&[2, 2], &LOGITS));
        let quality = ("quality", make(&[2], &[third, 0.1]));
        told("qfl", qfl(&[third, 0.0, 0.0, 0.1]), vec![logits(), ("labels", i64s(&[0, 1])), quality]);
        told("qfl", qfl(&target), vec![logits(), ("target", make(&[2, 2], &target))]);
        told("dfl", dfl, vec![("logits", f64s(&[2, 4], &BOXES)), ("target", make(&[2], &sides))]);
    };
    check(f64s, true);
    check(f32s, false);
}

#[test]
fn weights_mask_and_scale() {
    let folder = Folder::new();
    let nan = f64::NAN;
    let tensors = [
        ("logits", f32s(&[3, 2], &[0.0, -2.0, 1.0, -1.0, nan, nan])),
        ("labels", i64s(&[0, 2, 1])),
        ("quality", f32s(&[3], &[0.75, 0.0, 1.0])),
        ("weight", f32s(&[3], &[1.0, 3.0, 0.0])),
    ];
    let report = json("qfl", &folder.file("qfl.safetensors", &tensors), "--reduction sum");
    let (losses, _) = expected_qfl();
    assert_close(&[number(&report["loss"])], &[losses[0] + 3.0 * losses[1]], 2e-6);
    assert_eq!(report["positives"], 2); // weights are not looked at

    let tensors = [
        ("logits", f32s(&[2, 4], &BOXES)),
        ("target", f32s(&[2], &[1.25, 3.0])),
        ("weight", f32s(&[2], &[1.0, 0.0])),
    ];
    let report = json("dfl", &folder.file("dfl.safetensors", &tensors), "--reduction sum");
    assert_close(&[number(&report["loss"])], &[4f64.ln()], 2e-6);
    assert_eq!(report["positives"], 1);
}

#[test]
fn no_rows_give_zero() {
    let folder = Folder::new();
    let tensors = [("logits", f32s(&[0, 4], &[])), ("target", f32s(&[0], &[]))];
    let file = folder.file("empty.safetensors", &tensors);
    let out = folder.path("out.safetensors");
    for args in ["", "--reduction sum", "--avg-factor 0 --avg-policy exact"] {
        let report = json("dfl", &file, args);
        assert_eq!(number(&report["loss"]), 0.0);
        assert_eq!(number(&report["grad_norm"]), 0.0);
    }
    json("dfl", &file, &format!("--reduction none --output {}", out.display()));
    assert_eq!((&*read(&out)["loss"].1, &*read(&out)["grad"].1), (&[0][..], &[0, 4][..]));
}

#[test]
fn both_losses_are_normalised_as_the_head_does() {
    let folder = Folder::new();
    let tensors = [
        ("qfl.logits", f32s(&[2, 2], &LOGITS)),
        ("qfl.labels", i64s(&[0, 2])),
        ("qfl.quality", f32s(&[2], &[0.75, 0.0])),
        ("dfl.logits", f32s(&[2, 4], &BOXES)),
        ("dfl.target", f32s(&[2], &[1.25, 3.0])),
        ("dfl.weight", f32s(&[2], &[4.0, 6.0])),
    ];
    let file = folder.file("gfl.safetensors", &tensors);
    let qfl: f64 = expected_qfl().0.iter().sum();
    let dfl = [formula::dfl(&BOXES[..4], 1.25).0, formula::dfl(&BOXES[4..], 3.0).0];
    let weighted = 4.0 * dfl[0] + 6.0 * dfl[1];

    let losses = |args: &str| {
        let report = json("gfl", &file, args);
        [&report["qfl"]["loss"], &report["dfl"]["loss"], &report["loss"]].map(number)
    };
    let both = |qfl: f64, dfl: f64| [qfl, dfl, qfl + dfl];
    assert_close(&losses(""), &both(qfl, 0.25 * weighted / 10.0), 2e-6);
    assert_close(
        &losses("--qfl-avg-factor 4 --dfl-avg-factor 5"),
        &both(qfl / 4.0, 0.25 * weighted / 5.0),
        2e-6,
    );
    assert_close(&losses("--qfl-avg-factor 0 --dfl-avg-factor 0"), &both(qfl, 0.25 * weighted / 4.0), 2e-6);
    assert_close(
        &losses("--reduction sum --dfl-weight 2 --qfl-weight 3"),
        &both(3.0 * qfl, 2.0 * weighted),
        2e-6,
    );
    assert_close(&losses("--reduction mean"), &both(qfl / 2.0, 0.25 * weighted / 2.0), 2e-6);
    assert!(json("gfl", &file, "--reduction none")["loss"].is_null());

    // The two commands find their tensors in such a file too.
    assert_close(&[number(&json("qfl", &file, "--reduction sum")["loss"])], &[qfl], 2e-6);
    assert_close(&[number(&json("dfl", &file, "--reduction sum")["loss"])], &[weighted], 2e-6);
}
