//! `gfocal decode`, against the formula: a distance is the integral of a side, or exp or relu of its number.

use std::path::Path;

use gfocal_reference::{BoxCoding, box_around, distance};
use safetensors::Dtype;

use crate::cuda::{on_cuda, written_on_both};
use crate::raw::{joined, whole};
use crate::support::*;

const STRIDES: [f64; 5] = [8.0, 16.0, 32.0, 64.0, 128.0];
const NAMES: [&str; 5] =
    ["level0.box_logits", "level1.box_logits", "level2.box_logits", "level3.box_logits", "level4.box_logits"];

/// What a file's box logits, `[B, 4K, H, W]`, are to give: boxes, and the gradients of levels by their names.
struct Truth {
    boxes: Vec<f64>,
    gradients: Vec<(String, Vec<f64>)>,
}

impl Truth {
    fn of(tensors: &Tensors, coding: BoxCoding, offset: f64) -> Truth {
        let levels: Vec<_> = NAMES.iter().map_while(|&name| tensors.get(name)).collect();
        let zeros = |(i, level): (usize, &&(_, _, Vec<f64>))| {
            (format!("level{i}.grad_box_logits"), vec![0.0; level.2.len()])
        };
        let mut truth = Truth { boxes: vec![], gradients: levels.iter().enumerate().map(zeros).collect() };
        let upstream = tensors.get("upstream").map(|upstream| &upstream.2);
        for image in 0..levels[0].1[0] {
            for (level, (_, shape, logits)) in levels.iter().enumerate() {
                let [channels, rows, columns] = shape[1..] else { panic!("{shape:?}") };
                for (y, x) in (0..rows).flat_map(|y| (0..columns).map(move |x| (y, x))) {
                    let at = |side: usize, bin: usize| {
                        ((image * channels + side * channels / 4 + bin) * rows + y) * columns + x
                    };
                    let side = |side| {
                        let z: Vec<f64> = (0..channels / 4).map(|bin| logits[at(side, bin)]).collect();
                        distance(coding, &z)
                    };
                    let (sides, stride) = ([0, 1, 2, 3].map(side), STRIDES[level]);
                    let point = [x, y].map(|i| (i as f64 + offset) * stride);
                    let ways = box_around([0.0; 2], [stride; 4]);
                    for (side, (_, slopes)) in sides.iter().enumerate() {
                        let upstream = upstream.map_or(0.0, |upstream| upstream[truth.boxes.len() + side]);
                        for (bin, slope) in slopes.iter().enumerate() {
                            truth.gradients[level].1[at(side, bin)] = upstream * ways[side] * slope;
                        }
                    }
                    truth.boxes.extend(box_around(point, sides.map(|(e, _)| stride * e)));
                }
            }
        }
        truth
    }

    #[track_caller]
    fn check(&self, written: &Tensors, tolerance: f64) {
        near(&written["boxes"].2, &self.boxes, tolerance, PIXELS);
        for (name, gradient) in self.gradients.iter().filter(|(name, _)| written.contains_key(name)) {
            near(&written[name].2, gradient, tolerance, SLOPES);
        }
    }
}

/// As near as tolerance times what the numbers are made of, which are at least so large.
#[track_caller]
fn near(actual: &[f64], expected: &[f64], tolerance: f64, least: f64) {
    assert_eq!(actual.len(), expected.len());
    for (i, (actual, expected)) in actual.iter().zip(expected).enumerate() {
        let near = (actual - expected).abs() <= tolerance * expected.abs().max(least);
        assert!(near, "at {i}: {actual} and not {expected}");
    }
}

/// Pixels from a corner to its anchor point.
const PIXELS: f64 = 32.0;
/// Of upstream gradients times strides, and probabilities.
const SLOPES: f64 = 1.0;

/// Box logits of the small golden case, and an upstream gradient.
fn with_upstream() -> Tensors {
    let mut tensors = read(&golden("head_small"));
    let boxes = Truth::of(&tensors, BoxCoding::Bins, 0.0).boxes;
    let batch = tensors[NAMES[0]].1[0];
    let upstream = (0..boxes.len()).map(|i| (i * 37 % 101) as f64 / 64.0 - 0.75).collect();
    tensors.retain(|name, _| NAMES.contains(&&**name));
    tensors.insert("upstream".to_owned(), (Dtype::F32, vec![batch, boxes.len() / batch / 4, 4], upstream));
    tensors
}

#[test]
fn golden_heads() {
    for case in ["head_small", "head_coco", "head_no_gt"] {
        let tensors = read(&golden(case));
        let truth = Truth::of(&tensors, BoxCoding::Bins, 0.0);
        written_on_both("decode", &golden(case), "", |written| {
            assert_eq!(written.keys().collect::<Vec<_>>(), ["boxes"]);
            let (dtype, shape, numbers) = &written["boxes"];
            let batch = tensors[NAMES[0]].1[0];
            assert_eq!((*dtype, &**shape), (Dtype::F32, &[batch, numbers.len() / batch / 4, 4][..]));
            truth.check(written, 1e-5);
        });
        let folder = Folder::new();
        let out = folder.path("out.safetensors");
        let args = format!("--dtype f64 --offset 0.5 --output {}", out.display());
        cpu("decode", &golden(case), &args).ok();
        Truth::of(&tensors, BoxCoding::Bins, 0.5).check(&read(&out), 1e-12);
        assert_eq!((read(&out)["boxes"].0, &metadata(&out, "gfocal")["op"]), (Dtype::F64, &"decode".into()));
    }
}

#[test]
fn gradients_of_boxes() {
    let (folder, tensors) = (Folder::new(), with_upstream());
    let (path, truth) = (rewritten(&folder, &tensors), Truth::of(&tensors, BoxCoding::Bins, 0.0));
    written_on_both("decode", &path, "--strides 8,16,32", |written| {
        assert_eq!(written.len(), 4);
        assert_eq!(written["level2.grad_box_logits"].1, tensors[NAMES[2]].1);
        truth.check(written, 2e-5);
    });
    // Rounded logits are others: those of the file, if they are what f16 has.
    let mut rounded = tensors.clone();
    for name in &NAMES[..3] {
        let (dtype, _, numbers) = rounded.get_mut(*name).unwrap();
        *dtype = Dtype::F16;
        numbers.iter_mut().for_each(|z| *z = half::f16::from_f64(*z).to_f64());
    }
    let truth = Truth::of(&rounded, BoxCoding::Bins, 0.0);
    let other = Folder::new();
    for path in [&path, &rewritten(&other, &rounded)] {
        written_on_both("decode", path, "--strides 8,16,32 --dtype f16", |written| {
            assert_eq!((written["boxes"].0, written["level0.grad_box_logits"].0), (Dtype::F32, Dtype::F16));
            near(&written["boxes"].2, &truth.boxes, 1e-5, PIXELS);
            truth.check(written, 1e-3);
        });
    }
    // The scale is that of mixed precision: it keeps what f16 rounds to 0.
    let told =
        |scale: &str| json("decode", &path, &format!("--strides 8,16,32 --dtype f16 --grad-scale {scale}"));
    let [small, large] = ["1e-6", "1e8"].map(told);
    assert!(number(&small["grad_flushed"]) > 0.0 && small["grad_not_finite"] == 0, "{small}");
    assert!(number(&large["grad_not_finite"]) > 0.0, "{large}");
    let text = cpu("decode", &path, "--strides 8,16,32 --dtype f16 --grad-scale 1e-6").ok().stdout;
    assert!(text.contains("of the box logits are too small for f16"), "{text}");
}

#[test]
fn one_tensor_for_all() {
    let (folder, golden) = (Folder::new(), read(&golden("head_small")));
    let mut tensors = with_upstream();
    let truth = Truth::of(&tensors, BoxCoding::Bins, 0.5);
    let levels = joined(&golden, ["box_logits", "cls_logits"]);
    tensors.retain(|name, _| name == "upstream");
    let gradient = |level: usize| {
        let like = &golden[&format!("level{level}.box_logits")];
        let zeros = &golden[&format!("level{level}.cls_logits")];
        let of_boxes = (like.0, like.1.clone(), truth.gradients[level].1.clone());
        let of_classes = (zeros.0, zeros.1.clone(), vec![0.0; zeros.2.len()]);
        [(format!("level{level}.boxes"), of_boxes), (format!("level{level}.cls"), of_classes)]
    };
    let gradients = joined(&(0..3).flat_map(gradient).collect(), ["boxes", "cls"]);
    let told = "--strides 8,16,32 --image-size 128x160 --raw --offset 0.5 --reg-max";

    let (shape, numbers) = whole(&levels);
    tensors.insert("raw".to_owned(), (Dtype::F32, shape, numbers));
    for args in ["16", "17 --profile ultralytics"] {
        written_on_both("decode", &rewritten(&folder, &tensors), &format!("{told} {args}"), |written| {
            truth.check(written, 2e-5);
            assert_eq!(written["grad_raw"].1, whole(&gradients).0);
            near(&written["grad_raw"].2, &whole(&gradients).1, 2e-5, SLOPES);
        });
    }
    tensors.remove("raw");
    for (level, (shape, numbers)) in levels.into_iter().enumerate() {
        tensors.insert(format!("level{level}.raw"), (Dtype::F32, shape, numbers));
    }
    written_on_both("decode", &rewritten(&folder, &tensors), &format!("{told} 16 --classes 4"), |written| {
        truth.check(written, 2e-5);
        for (level, (_, numbers)) in gradients.iter().enumerate() {
            near(&written[&format!("level{level}.grad_raw")].2, numbers, 2e-5, SLOPES);
        }
    });
}

/// Channels last, explicit points, and boxes without bins.
#[test]
fn layouts_and_codings() {
    let folder = Folder::new();
    let numbers = |channels: usize| -> Vec<f64> {
        (0..channels * 6).map(|i| (i * 7 % 19) as f64 / 8.0 - 1.0).collect()
    };
    for (channels, args, coding) in
        [(12, "", BoxCoding::Bins), (4, "--boxes exp", BoxCoding::Exp), (4, "--boxes relu", BoxCoding::Relu)]
    {
        let (shape, numbers) = (vec![1, channels, 2, 3], numbers(channels));
        let upstream = ("upstream".to_owned(), (Dtype::F32, vec![1, 6, 4], (0..24).map(f64::from).collect()));
        let logits = (NAMES[0].to_owned(), (Dtype::F32, shape, numbers.clone()));
        let first = Tensors::from([logits, upstream.clone()]);
        let truth = Truth::of(&first, coding, 0.5);
        let told = format!("--strides 8 --offset 0.5 {args}");
        written_on_both("decode", &rewritten(&folder, &first), &told, |written| truth.check(written, 1e-5));

        let last = |numbers: &[f64]| -> Vec<f64> {
            (0..6 * channels).map(|i| numbers[i % channels * 6 + i / channels]).collect()
        };
        let points: Vec<f64> =
            (0..6).flat_map(|i| [i % 3, i / 3]).map(|i| (f64::from(i) + 0.5) * 8.0).collect();
        let logits = (NAMES[0].to_owned(), (Dtype::F32, vec![1, 6, channels], last(&numbers)));
        let points = ("level0.points".to_owned(), (Dtype::F32, vec![6, 2], points));
        let path = rewritten(&folder, &Tensors::from([logits, upstream, points]));
        for told in ["--strides 8 --image-size 15x24", "--strides 8"] {
            written_on_both("decode", &path, &format!("{told} {args}"), |written| {
                near(&written["boxes"].2, &truth.boxes, 1e-5, PIXELS);
                near(&written["level0.grad_box_logits"].2, &last(&truth.gradients[0].1), 1e-5, SLOPES);
            });
        }
    }
}

/// Digits that F32 has not, in points, anchors and upstream gradients, count beside F64 logits alone.
#[test]
fn what_is_beside_f64_logits_is_f64() {
    let folder = Folder::new();
    let third = 1.0 / 3.0;
    // All distances are half a stride, and so the derivatives of bins a quarter of it.
    let points = [third, 0.1, 8.0 + third, 0.7];
    let upstream = [third, 0.7, -0.1, 2.9, -third, 0.2, 1.1, 0.3];
    let around = |half: f64| -> Vec<f64> {
        points.as_chunks().0.iter().flat_map(|[x, y]| [x - half, y - half, x + half, y + half]).collect()
    };
    let slope = |i: usize| [-2.0, 2.0][i / 8] * [-1.0, 1.0][i / 2 % 2] * upstream[i % 2 * 4 + i / 4];
    let (boxes, slopes) = (around(4.0), (0..16).map(slope).collect::<Vec<_>>());
    let is_near = |actual: &[f64], expected: &[f64]| {
        assert_eq!(actual.len(), expected.len());
        actual.iter().zip(expected).all(|(actual, expected)| (actual - expected).abs() < 1e-13)
    };
    for (tensor, axes, numbers) in
        [("level0.points", 2, points.to_vec()), ("level0.anchors", 4, around(20.0 + third))]
    {
        for (dtype, exact) in [(Dtype::F64, true), (Dtype::F32, false)] {
            let tensors = [
                (NAMES[0], Tensor::of(dtype, &[1, 8, 1, 2], &[0.0; 16])),
                (tensor, f64s(&[1, 2, axes], &numbers)),
                ("upstream", f64s(&[1, 2, 4], &upstream)),
            ];
            let (path, out) = (folder.file("in.safetensors", &tensors), folder.path("out.safetensors"));
            cpu("decode", &path, &format!("--strides 8 --output {}", out.display())).ok();
            let written = read(&out);
            assert_eq!(is_near(&written["boxes"].2, &boxes), exact, "{tensor} beside {dtype}");
            let slopes_are = is_near(&written["level0.grad_box_logits"].2, &slopes);
            assert_eq!(slopes_are, exact, "upstream beside {dtype}");
            near(&written["boxes"].2, &boxes, 1e-6, PIXELS);
            near(&written["level0.grad_box_logits"].2, &slopes, 1e-6, 8.0);
        }
    }
}

/// An empty batch has no boxes, wherever its anchor points come from.
#[test]
fn no_images() {
    let folder = Folder::new();
    for (tensor, axes) in [("level0.points", 2), ("level0.anchors", 4)] {
        let tensors = [
            (NAMES[0], f32s(&[0, 8, 1, 2], &[])),
            (tensor, f32s(&[0, 2, axes], &[])),
            ("upstream", f32s(&[0, 2, 4], &[])),
        ];
        written_on_both("decode", &folder.file("none.safetensors", &tensors), "--strides 8", |written| {
            assert_eq!(written["boxes"].1, [0, 2, 4], "{tensor}");
            assert_eq!(written["level0.grad_box_logits"].1, [0, 8, 1, 2], "{tensor}");
        });
    }
}

#[test]
fn what_is_told() {
    let folder = Folder::new();
    // All distances are half a stride, but for one that is none at all.
    let mut logits = [0.0; 16];
    logits[15] = f64::NAN;
    let path = folder.file("in.safetensors", &[(NAMES[0], f32s(&[1, 8, 1, 2], &logits))]);
    let told = json("decode", &path, "--strides 8");
    let level = &told["levels"][0];
    assert_eq!(
        (&told["op"], &told["boxes"], &told["bins"], &told["boxes_not_finite"]),
        (&"decode".into(), &"bins".into(), &2.into(), &1.into())
    );
    assert!(told.get("grad_flushed").is_none() && level["grad_box_norm"].is_null(), "{told}");
    assert_eq!(level["extent"].to_string(), "[-4.0,-4.0,12.0,4.0]");
    assert_eq!(level["mean_size"].to_string(), "[8.0,\"NaN\"]");
    let table = cpu("decode", &path, "--strides 8").ok().stdout;
    for part in ["f32 on cpu: batch 1, 2 bins, mmdetection profile", "8xNaN", "-4,-4", "12,4"] {
        assert!(table.contains(part), "{table}");
    }
    assert!(table.ends_with("1 coordinate of a box is inf or NaN.\n"), "{table}");
    let unread = cpu("decode", &golden("head_small"), "").ok().stderr;
    assert!(unread.contains("level{0,1,2}.cls_logits"), "{unread}");
    if let Some(run) = on_cuda("decode", &path, "--strides 8 --json --device cuda") {
        assert_eq!(run.json()["levels"], told["levels"]);
    }
}

#[test]
fn mistakes() {
    let folder = Folder::new();
    let logits = |shape: &[usize]| f32s(shape, &vec![0.0; shape.iter().product()]);
    let two = || (NAMES[0], logits(&[1, 8, 1, 2]));
    let with = |tensors: &[(&str, Tensor)]| folder.file("with.safetensors", tensors);
    let told = |file: &Path, args: &str, part: &str| {
        let out = folder.path("out.safetensors");
        let mistake = cpu("decode", file, &format!("--output {} {args}", out.display())).mistake();
        assert!(mistake.contains(part), "{mistake}");
        assert!(!out.exists(), "{mistake}");
    };
    let plain = folder.file("plain.safetensors", &[two()]);
    told(&plain, "", "it does not tell the strides; give --strides");
    told(&plain, "--strides 8,16", "it has 1 level, and there are 2 strides");
    told(
        &plain,
        "--strides 8 --reg-max 16",
        "2 bins are reg_max 1 in the mmdetection profile, and --reg-max is 16",
    );
    told(
        &plain,
        "--strides 8 --boxes exp",
        "level0.box_logits has 8 channels; with --boxes exp there must be 4",
    );
    told(
        &plain,
        "--strides 8 --boxes exp --reg-max 1",
        "--reg-max is for boxes with bins, and --boxes is exp",
    );
    told(&plain, "--strides 8 --classes 80", "leave out --classes, or give --raw");
    told(&plain, "--strides 8 --image-size 80x80", "1x2 positions at stride 8 are not those of 80x80 pixels");
    told(
        &plain,
        "--strides 8 --grad-scale 2",
        "no tensor upstream, which --grad-scale multiplies; it holds level0.box",
    );
    told(&plain, "--strides 8 --assign", "unexpected argument '--assign'");
    told(&plain, "--strides 8 --raw", "has no tensor level0.raw");
    let wrong = "upstream has the shape [1, 2, 3]; the boxes of 1 image with 2 positions have [1, 2, 4]";
    told(&with(&[two(), ("upstream", logits(&[1, 2, 3]))]), "--strides 8", wrong);
    told(&with(&[two(), ("upstream", i64s(&[1]))]), "--strides 8", "upstream in");
    let [a, b] = ["has box logits of f32", "level 1 box logits of f16; make them the same with --dtype"];
    let types = with(&[two(), (NAMES[1], f16s(&[1, 8, 1, 1], &[0.0; 8]))]);
    told(&types, "--strides 8,16", a);
    told(&types, "--strides 8,16", b);
    cpu("decode", &types, "--strides 8,16 --dtype f16").ok();
    told(&with(&[(NAMES[0], logits(&[1, 6, 1, 2]))]), "--strides 8", "has 6 channels; there must be 4 K");
    told(&with(&[(NAMES[0], logits(&[1, 2, 8]))]), "--strides 8", "give --image-size");
    told(&with(&[two(), (NAMES[1], logits(&[2, 8, 1, 1]))]), "--strides 8,16", "they must be the same");
    told(&with(&[two(), ("level0.points", logits(&[3, 2]))]), "--strides 8", "need [2, 2] or [1, 2, 2]");
    told(&with(&[("cls_logits", logits(&[1, 2]))]), "--strides 8", "has no tensor level0.box_logits");
    let on_cuda = run("decode", &plain, &["--strides", "8", "--dtype", "f64", "--device", "cuda"]).mistake();
    assert!(on_cuda.contains("no CUDA kernels"), "{on_cuda}");
    told(&plain, &format!("--strides 8 --output {}", plain.display()), "cannot be used multiple times");
    let names: Vec<String> = (0..9).map(|i| format!("level{i}.box_logits")).collect();
    let nine: Vec<_> = names.iter().map(|name| (&**name, logits(&[1, 8, 1, 1]))).collect();
    told(&with(&nine), "--strides 1,1,1,1,1,1,1,1,1", "there are 9 levels, and at most 8 can be taken");
}
