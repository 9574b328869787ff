//! `gfocal assign`.

use std::path::Path;

use crate::cuda::{on_cuda, written_on_both};
use crate::reports::report;
use crate::support::*;

/// The golden boxes went through distances to points, in f32: two roundings of up to 192 pixels.
const FCOS: f64 = 2.0 * 192.0 / (1 << 24) as f64;

/// Every tensor of `written` is that of `expected`, under a prefix.
fn assert_same(written: &Tensors, expected: &Tensors, prefix: &str, tolerance: f64) {
    for (name, (_, shape, numbers)) in written {
        let (_, expected_shape, expected) = &expected[&format!("{prefix}{name}")];
        assert_eq!(shape, expected_shape, "{name}");
        assert_near(numbers, expected, 0.0, tolerance, name);
    }
}

#[test]
fn golden_cases_of_fcos() {
    for case in ["plain", "center", "crowd", "no_gt", "tiny"] {
        let file = golden(&format!("fcos_{case}"));
        let expected = read(&file);
        let levels = expected.keys().filter(|name| name.ends_with(".points")).count();
        written_on_both("assign", &file, "--assigner fcos", |written| {
            assert_eq!(written.len(), 4 * levels);
            let mut written = written.clone();
            let weights = |name: &String, tensor: &mut (_, _, Vec<f64>)| {
                !name.ends_with("label_weights") || tensor.2.iter().any(|&weight| weight != 1.0)
            };
            written.retain(weights);
            assert_eq!(written.len(), 3 * levels, "all label weights are 1");
            assert_same(&written, &expected, "", FCOS);
        });
    }
}

#[test]
fn golden_cases_of_atss() {
    for case in ["small", "coco", "no_gt"] {
        let file = golden(&format!("head_{case}"));
        let expected = read(&file);
        written_on_both("assign", &file, "", |written| assert_same(written, &expected, "", 0.0));
    }
}

#[test]
fn padded_and_ignored() {
    for (case, args) in [("padded_batch", ""), ("ignore_boxes", "--ignore-iof 0.5 --classes 2")] {
        let expected = read(&report(case));
        written_on_both("assign", &report(case), args, |written| {
            let mut written = written.clone();
            written.retain(|name, _| !name.ends_with("box_targets"));
            assert_eq!(written.len(), 4);
            assert_same(&written, &expected, "want.", 0.0);
        });
    }
}

/// Without the points in the file, the same ones are those of the grid.
#[test]
fn sizes_from_points_or_from_the_image() {
    let (folder, file) = (Folder::new(), golden("fcos_center"));
    let tensors = read(&file);
    let bare = folder.file("bare.safetensors", &chosen(&tensors, |name| name.starts_with("gt_")));
    let told = "--assigner fcos --strides 8,16,32,64,128 --classes 80 --center-sampling 1.5";
    let ranges = "--regress-ranges -1:64,64:128,128:256,256:512,512:inf";
    for args in
        [format!("{told} --image-size 128x192"), format!("{told} {ranges} --image-size 128x192 --images 2")]
    {
        written_on_both("assign", &bare, &args, |written| {
            let mut written = written.clone();
            written.retain(|name, _| !name.ends_with("label_weights"));
            assert_same(&written, &tensors, "", FCOS);
        });
    }
    let line = cpu("assign", &bare, told).mistake();
    assert!(line.contains("--image-size"), "{line}");
}

/// Two images of 32 x 32 pixels and one level of stride 8: a large box, and one that no anchor is assigned to.
fn truth() -> Vec<(&'static str, Tensor)> {
    vec![
        ("gt_boxes", f32s(&[3, 4], &[2.0, 2.0, 30.0, 30.0, 9.0, 9.0, 10.0, 10.0, 0.0, 0.0, 1.0, 1.0])),
        ("gt_labels", i64s(&[0, 2, 1])),
        ("gt_image", i64s(&[0, 1, -1])),
        ("gt_weights", f32s(&[3], &[0.5, 2.0, 3.0])),
    ]
}

const TRUTH: &str = "--strides 8 --image-size 32x32 --classes 3 --anchor-scale 3";

#[test]
fn json_and_table() {
    let folder = Folder::new();
    let file = folder.file("truth.safetensors", &truth());
    let told = json("assign", &file, TRUTH);
    let assignment = serde_json::json!({"bad_boxes": 0, "bad_labels": 0, "bad_images": 0, "unassigned": 1});
    assert_eq!(told["assignment"], assignment);
    assert_eq!(told["assignment_first"]["unassigned"], 1);
    assert_eq!((&told["op"], &told["assigner"]), (&"assign".into(), &"atss".into()));
    assert_eq!((&told["batch"], &told["boxes"], &told["classes"]), (&2.into(), &3.into(), &3.into()));
    assert_eq!(told["levels"][0]["positives"], told["positives"]);
    let text = cpu("assign", &file, TRUTH).ok().stdout;
    assert!(text.starts_with("ATSS on cpu: 2 images, 3 boxes, 3 classes\n"), "{text}");
    assert!(text.contains("\n1 box has no anchor assigned to it: box 1.\n"), "{text}");
}

#[test]
fn weights_fallback_and_background() {
    let folder = Folder::new();
    let file = folder.file("truth.safetensors", &truth());
    let labels_of = |args: &str| {
        let out = folder.path("out.safetensors");
        let told = json("assign", &file, &format!("{TRUTH} {args} --output {}", out.display()));
        let written = read(&out);
        let [labels, weights] =
            ["labels", "box_weights"].map(|tensor| written[&format!("level0.{tensor}")].2.clone());
        (labels, weights, told["assignment"]["unassigned"].clone())
    };
    let (labels, weights, unassigned) = labels_of("");
    assert_eq!((labels[16..].iter().filter(|&&label| label != 3.0).count(), unassigned), (0, 1.into()));
    for (label, weight) in labels.iter().zip(&weights) {
        assert_eq!(*weight, if *label == 0.0 { 0.5 } else { 0.0 });
    }
    for count in [1, 3] {
        let (labels, weights, unassigned) = labels_of(&format!("--fallback {count}"));
        assert_eq!(labels[16..].iter().filter(|&&label| label == 2.0).count(), count);
        assert_eq!(weights[16..].iter().filter(|&&weight| weight == 2.0).count(), count);
        // Those are its anchors now.
        assert_eq!(unassigned, 0);
    }
    // The classes of the file are 0, 2 and 1; with background first, 0 is none.
    let (first, _, _) = labels_of("--background first");
    assert!(first.iter().all(|&label| label == 0.0), "{first:?}");
}

#[test]
fn mistakes() {
    let folder = Folder::new();
    let with = |name: &'static str, tensor: Tensor| {
        let mut tensors = truth();
        tensors.retain(|(old, _)| *old != name);
        tensors.push((name, tensor));
        folder.file("with.safetensors", &tensors)
    };
    let whole = folder.file("whole.safetensors", &truth());
    let told = |file: &Path, args: &str, part: &str| {
        let mistake = cpu("assign", file, args).mistake();
        assert!(mistake.contains(part), "{mistake}");
    };
    told(&whole, "", "--strides");
    told(&whole, "--strides 8", "--image-size");
    told(&whole, "--strides 8 --image-size 32x32", "--classes");
    told(&whole, &format!("{TRUTH} --assigner fcos --anchor-scale 4"), "--anchor-scale");
    told(
        &whole,
        "--strides 8 --image-size 32x32 --classes 3 --assigner fcos --topk 9",
        "--topk is not an option",
    );
    told(
        &whole,
        &format!("{TRUTH} --center-sampling 1.5"),
        "--center-sampling is not an option of --assigner atss",
    );
    let fcos = "--strides 8 --image-size 32x32 --classes 3 --assigner fcos";
    told(&whole, fcos, "--regress-ranges");
    told(&whole, &format!("{fcos} --regress-ranges -1:8,8:16"), "1 level, and there are 2 ranges");
    told(&whole, &format!("{fcos} --regress-ranges 8:4"), "as 64:128");
    told(&whole, &format!("{TRUTH} --ignore-iof 0.5"), "gt_ignore_boxes");
    told(&whole, &format!("{TRUTH} --ignore-iof 2"), "at most 1");
    told(&whole, &format!("{TRUTH} --topk 257"), "--topk");
    told(
        &with("gt_weights", f32s(&[2], &[1.0; 2])),
        TRUTH,
        "gt_weights has the shape [2]; gt_boxes needs [3]",
    );
    told(&with("gt_boxes", f32s(&[12], &[0.0; 12])), TRUTH, "[boxes, 4]");
    told(
        &with("valid_hw", i64s(&[8, 8]).with_shape(&[1, 2])),
        &format!("{TRUTH} --images 2"),
        "[1, 2]; 2 images need [2, 2]",
    );
    told(
        &with("valid_hw", i64s(&[8, 8, -1, 8]).with_shape(&[2, 2])),
        TRUTH,
        "valid_hw of image 1 is -1x8; it must be",
    );
    let swapped = "valid_hw of image 0 is 8x40 pixels, and the images have 32x32";
    told(&with("valid_hw", i64s(&[8, 40, 8, 8]).with_shape(&[2, 2])), TRUTH, swapped);
    told(&with("gt_image", i64s(&[-1; 3])), TRUTH, "--images");
    told(
        &with("gt_image", i64s(&[0, 1, 1 << 30])),
        TRUTH,
        "1073741825 images of 16 anchors are more than can be",
    );
    told(&with("level0.points", f32s(&[3, 2], &[0.0; 6])), TRUTH, "3 anchor points");
    // Points that are on no grid have no stride to count a radius in.
    let odd = with("level0.points", f32s(&[2, 2], &[0.0, 0.0, 9.0, 1.0]));
    let args = "--strides 8 --classes 3 --assigner fcos --regress-ranges -1:inf --center-sampling 1.5";
    told(&odd, args, "the anchor points of level 0 are not on a grid, which --center-sampling needs");
    let nine = "--classes 3 --image-size 8x8 --strides 1,2,3,4,5,6,7,8,9";
    told(&whole, nine, "the number of levels is 9, it must be from 1 to 8");
    // A mistake is no fault of the device.
    for (file, args) in [(&odd, args), (&whole, nine)] {
        if let Some(run) = on_cuda("assign", file, &format!("{args} --device cuda")) {
            assert_eq!(run.mistake(), cpu("assign", file, args).mistake());
        }
    }
    cpu("assign", &odd, "--strides 8 --classes 3 --assigner fcos --regress-ranges -1:inf").ok();
}
