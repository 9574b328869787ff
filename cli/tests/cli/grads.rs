//! Gradients that their type cannot hold are told.

use crate::cuda::{on_both, on_cuda};
use crate::support::*;

#[test]
fn gradients_of_a_loss() {
    let folder = Folder::new();
    let file = qfl_file(&folder);
    let counts = |args: &str| {
        let told = json("qfl", &file, args);
        [&told["grad_not_finite"], &told["grad_flushed"]].map(|count| count.as_u64().unwrap())
    };
    assert_eq!(counts(""), [0, 0]);
    assert_eq!(counts("--dtype f16"), [0, 0]);
    // 65504 is the largest number of f16, and 2^-24 the smallest. The gradients are from 0.005 to 0.8.
    assert_eq!(counts("--dtype f16 --grad-scale 1e9"), [4, 0]);
    assert_eq!(counts("--dtype f16 --grad-scale 1e-9"), [0, 4]);
    assert_eq!(counts("--dtype bf16 --grad-scale 1e-9"), [0, 0]);
    assert_eq!(counts("--grad-scale 1e-60"), [0, 4]);
    let text = |args: &str| cpu("qfl", &file, args).ok().stdout;
    let small = "\nQFL: 4 gradients of the logits are too small for f16 and stored as 0; a larger --grad-scale keeps them.\n";
    let large = "QFL: 4 gradients of the logits are inf or NaN in f16.\n";
    for (args, part) in [("--grad-scale 1e-9", small), ("--grad-scale 1e9", large)] {
        let text = text(&format!("--dtype f16 {args}"));
        assert!(text.contains(part), "{text}");
    }
    assert!(!text("--dtype f16").contains("gradients of"));
    let told = json("dfl", &dfl_file(&folder), "--dtype f16 --grad-scale 1e-9");
    assert!(told["grad_flushed"].as_u64().unwrap() >= 4, "{told}");
    if let Some(run) = on_cuda("qfl", &file, "--dtype f16 --grad-scale 1e-9 --json --device cuda") {
        assert_eq!(run.json()["grad_flushed"], 4);
    }
}

/// A gradient of exactly 0 is no loss of precision.
#[test]
fn masked_rows_are_not_counted() {
    let folder = Folder::new();
    let tensors = [
        ("logits", f32s(&[2, 2], &LOGITS)),
        ("target", f32s(&[2, 2], &[0.5; 4])),
        ("weight", f32s(&[2], &[0.0, 1.0])),
    ];
    let file = folder.file("qfl.safetensors", &tensors);
    let told = json("qfl", &file, "--dtype f16");
    assert_eq!((&told["grad_not_finite"], &told["grad_flushed"]), (&0.into(), &0.into()));
}

#[test]
fn gradients_of_a_head() {
    let sample = checkout("samples/head.safetensors");
    for (args, flushed, not_finite) in [
        ("--dtype f32", false, false),
        ("--dtype f16 --grad-scale 1e-6", true, false),
        ("--dtype f16 --grad-scale 1e7", false, true),
    ] {
        on_both("head", &sample, &format!("{args} --json"), |run| {
            let told = run.json();
            assert_eq!(told["grad_flushed"].as_u64().unwrap() > 0, flushed, "{told}");
            assert_eq!(told["grad_not_finite"].as_u64().unwrap() > 0, not_finite, "{told}");
        });
    }
    let text = cpu("head", &sample, "--dtype f16 --grad-scale 1e-6").ok().stdout;
    assert!(text.contains("gradients of the class logits are too small for f16 and stored as 0"), "{text}");
    assert!(text.contains("gradients of the box logits are too small for f16"), "{text}");
}
