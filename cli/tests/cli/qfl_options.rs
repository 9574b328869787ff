//! Probabilities, α, and weights of classes and elements in `gfocal qfl`, on both devices.

use std::path::{Path, PathBuf};

use crate::cuda::written_on_both;
use crate::support::*;

/// Loss and gradient, on both devices if there are two.
fn on_both(file: &Path, args: &str, check: impl Fn(f64, &[f64])) {
    let args = format!("{args} --reduction sum");
    written_on_both("qfl", file, &args, |written| check(written["loss"].2[0], &written["grad"].2));
}

#[test]
fn probabilities() {
    for case in ["qfl_prob", "qfl_dense_prob"] {
        let file = golden(case);
        let expected = read(&file);
        on_both(&file, "--activated", |loss, grad| {
            assert_close(&[loss], &expected["loss_sum"].2, 1e-5);
            assert_near(grad, &expected["grad_sum"].2, 1e-5, 2e-7, case);
        });
        let told = json("qfl", &file, "--activated");
        assert_eq!(told["activated"], true);
        assert_close(&[number(&told["loss"])], &expected["loss_mean"].2, 1e-5);
        let f64 = json("qfl", &file, "--activated --reduction sum");
        assert_close(&[number(&f64["loss"])], &expected["loss_sum"].2, 1e-5);
    }
    let mistake = cpu("qfl", &golden("qfl_prob"), "").mistake();
    assert!(mistake.contains("has no tensor logits"), "{mistake}");
    let folder = Folder::new();
    let tensors = [("qfl.probs", f32s(&[1, 2], &[0.5; 2])), ("qfl.target", f32s(&[2], &[0.5; 2]))];
    let mistake = cpu("qfl", &folder.file("in", &tensors), "--activated").mistake();
    assert!(mistake.contains("[2]; probs [1, 2] needs [1, 2]"), "{mistake}");
}

/// Two rows of two classes with dense targets.
fn scene(folder: &Folder, weights: Option<(&'static str, Tensor)>) -> PathBuf {
    let mut tensors =
        vec![("logits", f32s(&[2, 2], &LOGITS)), ("target", f32s(&[2, 2], &[0.75, 0.0, 0.0, 0.25]))];
    tensors.extend(weights);
    folder.file("scene.safetensors", &tensors)
}

/// Of each element.
fn elements(factor: impl Fn(usize, f64) -> f64) -> (f64, Vec<f64>) {
    let targets = [0.75, 0.0, 0.0, 0.25];
    let weighted = (0..4).map(|i| {
        let (loss, grad) = crate::formula::qfl(LOGITS[i], targets[i], 2.0);
        (factor(i, targets[i]) * loss, factor(i, targets[i]) * grad)
    });
    let (losses, grads): (Vec<f64>, Vec<f64>) = weighted.unzip();
    (losses.iter().sum(), grads)
}

#[test]
fn alpha_and_weights() {
    let folder = Folder::new();
    let classes = [0.5, 3.0];
    let mask = [1.0, 0.0, 2.0, 0.0];
    let by_alpha = elements(|_, y| y * 0.25 + (1.0 - y) * 0.75);
    let by_class = elements(|i, _| classes[i % 2]);
    let by_element = elements(|i, _| mask[i]);
    for (weights, args, (loss, grad)) in [
        (None, "--alpha 0.25", by_alpha),
        (Some(("class_weights", f32s(&[2], &classes))), "", by_class),
        (Some(("element_weights", f32s(&[2, 2], &mask))), "", by_element),
    ] {
        let file = scene(&folder, weights);
        on_both(&file, args, |found, found_grad| {
            assert_close(&[found], &[loss], 2e-6);
            assert_close(found_grad, &grad, 1e-5);
        });
        assert_eq!(cpu("qfl", &file, args).ok().stderr, "");
    }
    let told = |weights: (&'static str, Tensor), part: &str| {
        let mistake = cpu("qfl", &scene(&folder, Some(weights)), "").mistake();
        assert!(mistake.contains(part), "{mistake}");
    };
    told(("class_weights", f32s(&[3], &[1.0; 3])), "class_weights in");
    told(("class_weights", f32s(&[3], &[1.0; 3])), "[3]; logits [2, 2] needs [2]");
    told(("element_weights", f32s(&[2], &[1.0; 2])), "[2]; logits [2, 2] needs [2, 2]");
    let mistake = cpu("qfl", &scene(&folder, None), "--alpha -1").mistake();
    assert!(mistake.contains("from 0 to 1"), "{mistake}");
    assert_eq!(json("qfl", &scene(&folder, None), "--alpha 0.25")["alpha"], 0.25);
}
