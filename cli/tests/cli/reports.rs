//! What users of other libraries reported, with the right values: see the files' metadata.

use std::path::{Path, PathBuf};

use safetensors::Dtype;
use serde_json::Value;

use crate::cuda::{on_both, on_cuda, with_driver};
use crate::support::*;

pub fn report(case: &str) -> PathBuf {
    checkout(&format!("tests/reports/{case}.safetensors"))
}

/// Cases that have an answer, with the options that say what the file's metadata say, and those that the case
/// is about.
const CASES: [(&str, &str, &str); 4] = [
    ("padded_batch", "--strides 8,16 --image-size 64x96", "--assign"),
    ("ignore_boxes", "--strides 8,16 --anchor-scale 4", "--assign --ignore-iof 0.5"),
    ("label_weights_with_assign", "--strides 8,16", "--assign"),
    ("mixed_types", "--strides 8,16", "--assign"),
];

const DTYPES: [(&str, Dtype); 3] = [("f32", Dtype::F32), ("f16", Dtype::F16), ("bf16", Dtype::BF16)];

type Runs<'a> = &'a dyn Fn(&Path, &str) -> Run;

#[test]
fn f64_gives_the_right_values() {
    for (case, _, args) in CASES {
        let (folder, file) = (Folder::new(), report(case));
        let out = folder.path("out.safetensors");
        let told = json("head", &file, &format!("{args} --dtype f64 --output {}", out.display()));
        let (expect, wanted, written) = (metadata(&file, "expect"), read(&file), read(&out));
        let near = |actual: f64, expected: f64, what: &str| {
            let near = (actual - expected).abs() <= 1e-9 * expected.abs().max(1.0);
            assert!(near, "{case} {what}: {actual} and not {expected}");
        };
        for (key, expected) in expect.as_object().unwrap() {
            match expected {
                Value::Array(levels) => levels.iter().enumerate().for_each(|(i, expected)| {
                    near(number(&told["levels"][i][key]), number(expected), key);
                }),
                Value::Number(_) if key != "ignore_iof_thr" => {
                    near(number(&told[key]), number(expected), key)
                }
                _ => {}
            }
        }
        for (name, (_, shape, expected)) in &wanted {
            let Some(name) = name.strip_prefix("want.") else { continue };
            let (_, found, actual) = &written[name];
            assert_eq!(found, shape, "{case} {name}");
            actual.iter().zip(expected).for_each(|(&actual, &expected)| near(actual, expected, name));
        }
    }
}

/// The truth of rounded logits is that of f64 for the rounded ones.
fn assert_all_types(run: Runs) {
    for (case, told, args) in CASES {
        let (folder, tensors) = (Folder::new(), read(&report(case)));
        let out = ["truth", "out"].map(|name| folder.path(&format!("{name}.safetensors")));
        for (name, dtype) in DTYPES {
            let is_logits = |tensor: &str| tensor.ends_with("_logits") && !tensor.contains("grad");
            let mut rounded = tensors.clone();
            rounded.iter_mut().filter(|(name, _)| is_logits(name)).for_each(|(_, tensor)| tensor.0 = dtype);
            let file = folder.file("rounded.safetensors", &chosen(&rounded, |_| true));
            let args = |i: usize| format!("{told} {args} --output {}", out[i].display());
            cpu("head", &file, &format!("--dtype f64 {}", args(0))).ok();
            run(&file, &args(1)).ok();
            let (truth, written) = (read(&out[0]), read(&out[1]));
            // Half a unit in the last place, subnormal ones of f16, and what f32 arithmetic adds.
            let (relative, absolute) = match dtype {
                Dtype::F16 => (1.0 / 2048.0, 3e-8),
                Dtype::BF16 => (1.0 / 256.0, 0.0),
                _ => (0.0, 0.0),
            };
            assert_eq!(truth.len(), written.len());
            for (tensor, (_, _, expected)) in &truth {
                let (found, _, actual) = &written[tensor];
                let is_gradient = tensor.contains("grad");
                if is_gradient {
                    assert_eq!(*found, dtype, "{case} {tensor}");
                }
                let (relative, absolute) =
                    if is_gradient { (relative + 1e-4, absolute + 2e-6) } else { (1e-5, 1e-7) };
                assert_near(actual, expected, relative, absolute, &format!("{case} {name} {tensor}"));
            }
        }
    }
}

#[test]
fn every_type_on_the_cpu() {
    assert_all_types(&|file, args| cpu("head", file, args));
}

#[test]
fn every_type_on_cuda() {
    let Some(_) = with_driver() else { return };
    assert_all_types(&|file, args| on_cuda("head", file, &format!("--device cuda {args}")).unwrap());
}

#[test]
fn both_types_of_logits_keep_their_own() {
    let (folder, file) = (Folder::new(), report("mixed_types"));
    let (expect, wanted) = (metadata(&file, "expect"), read(&file));
    let out = folder.path("out.safetensors");
    on_both("head", &file, &format!("--assign --json --output {}", out.display()), |run| {
        let told = run.json();
        assert_eq!(told["dtype"], "f16 and f32");
        assert_close(&[number(&told["loss"])], &[number(&expect["loss"])], 1e-5);
        let written = read(&out);
        for (name, dtype) in [("cls", Dtype::F16), ("box", Dtype::F32)] {
            for level in 0..2 {
                let name = format!("level{level}.grad_{name}_logits");
                assert_eq!(written[&name].0, dtype);
                let relative = if dtype == Dtype::F16 { 1.0 / 2000.0 } else { 1e-4 };
                assert_close(&written[&name].2, &wanted[&format!("want.{name}")].2, relative);
            }
        }
    });
    let text = cpu("head", &file, "--assign").ok().stdout;
    assert!(text.starts_with("f16 and f32 on cpu: "), "{text}");
}

#[test]
fn broken_ground_truth_is_counted_by_kind() {
    let file = report("bad_ground_truth");
    let expect = metadata(&file, "expect");
    for (op, args) in [
        ("head", "--assign --json"),
        ("head", "--assign --json --dtype f16"),
        ("head", "--assign --json --dtype bf16"),
        ("assign", "--json"),
    ] {
        on_both(op, &file, args, |run| {
            let told = run.json();
            let counts = told["assignment"].as_object().unwrap();
            for kind in ["bad_boxes", "bad_labels", "bad_images"] {
                assert_eq!(counts[kind], expect[kind], "{op} {kind}");
            }
            assert_eq!(counts.len(), 4);
        });
    }
    for (op, args) in [("head", "--assign"), ("assign", "")] {
        let text = cpu(op, &file, args).ok().stdout;
        for sentence in [
            "2 boxes of gt_boxes are not finite, or have no width or height, first box 1.",
            "2 labels of gt_labels are not classes, first box 3.",
            "1 number of gt_image is outside the batch of 2 images: box 5.",
        ] {
            assert!(text.contains(sentence), "{text}");
        }
    }
}

#[test]
fn what_is_refused() {
    for (case, args) in
        [("bins_against_reg_max", "--assign --reg-max 16"), ("strides_against_image_size", "--assign")]
    {
        let expect = metadata(&report(case), "expect");
        on_both("head", &report(case), args, |run| {
            let line = run.mistake();
            assert!(line.contains(expect["error"].as_str().unwrap()), "{line}");
        });
    }
    let file = report("bins_against_reg_max");
    for (args, bins) in [("--reg-max 15", 16), ("--reg-max 16 --profile ultralytics --quality iou", 16)] {
        assert_eq!(json("head", &file, &format!("--assign {args}"))["bins"], bins);
    }
}

#[test]
fn weights_of_labels_are_read() {
    for (dtype, _) in DTYPES {
        let args = format!("--assign --json --dtype {dtype}");
        on_both("head", &report("label_weights_with_assign"), &args, |run| {
            assert_eq!(run.stderr, "");
            assert_eq!(number(&run.json()["loss_cls"]), 0.0);
        });
    }
}

#[test]
fn qualities_of_other_positives_are_not() {
    let (folder, file) = (Folder::new(), report("nanodet_quality_with_assign"));
    let tensors = read(&file);
    let without = folder.file("without.safetensors", &chosen(&tensors, |name| !name.ends_with("quality")));
    let args = "--strides 8,16 --assign --profile nanodet --json";
    for (dtype, _) in DTYPES {
        let args = format!("{args} --dtype {dtype}");
        let expected = cpu("head", &without, &args);
        assert_eq!(expected.stderr, "");
        let expected = number(&expected.json()["loss"]);
        on_both("head", &file, &args, |run| {
            let note = "gfocal: note: 2 tensors of the file are not read: level0.quality, level1.quality\n";
            assert_eq!(run.stderr, note);
            assert_close(&[number(&run.json()["loss"])], &[expected], 1e-6);
        });
    }
    let given = cpu("head", &file, &format!("{args} --quality given"));
    assert_eq!(given.stderr, "");
    assert!(number(&given.json()["loss_cls"]).is_finite());
    let line = cpu("head", &file, "--assign --profile ultralytics").mistake();
    assert!(line.contains("--assign finds others; give --quality iou"), "{line}");
}
