//! `gfocal head` and `gfocal plot`.

use std::path::Path;

use crate::support::*;

const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../samples/head.safetensors");

/// Everything that is written for a golden case, against what it holds.
fn assert_golden(run: &dyn Fn(&Path, &str) -> Run, case: &str, args: &str, relative: f64, absolute: f64) {
    let folder = Folder::new();
    let (file, out) = (golden(case), folder.path("out.safetensors"));
    run(&file, &format!("{args} --output {}", out.display())).ok();
    let (golden, written) = (read(&file), read(&out));
    for (name, (_, shape, numbers)) in &written {
        let Some((_, expected_shape, expected)) = golden.get(name) else { panic!("{name}") };
        assert_eq!(shape, expected_shape, "{name}");
        assert_near(numbers, expected, relative, absolute, &format!("{case} {args}: {name}"));
    }
    let wanted = |name: &&String| name.contains("loss") || name.contains("grad");
    let assigned = if args.contains("--assign") { written.len() / 8 * 3 } else { 0 };
    assert_eq!(written.len() - assigned, golden.keys().filter(wanted).count());
}

const GOLDEN: [&str; 3] = ["head_small", "head_coco", "head_no_gt"];

#[test]
fn golden_cases_on_the_cpu() {
    let run = |file: &Path, args: &str| cpu("head", file, args);
    for case in GOLDEN {
        for assign in ["", "--assign"] {
            assert_golden(&run, case, assign, 1e-4, 2e-6);
            assert_golden(&run, case, &format!("--dtype f64 {assign}"), 1e-10, 1e-12);
        }
    }
}

#[test]
fn golden_cases_on_cuda() {
    let Some(_) = crate::cuda::with_driver() else { return };
    let run = |file: &Path, args: &str| {
        crate::cuda::on_cuda("head", file, &format!("--device cuda {args}")).unwrap()
    };
    for case in GOLDEN {
        for assign in ["", "--assign"] {
            assert_golden(&run, case, assign, 1e-4, 2e-6);
        }
    }
}

/// In 16 bits the truth is another one: of the rounded logits.
#[test]
fn cuda_is_as_near_as_the_cpu_in_16_bits() {
    let Some(_) = crate::cuda::with_driver() else { return };
    let folder = Folder::new();
    for dtype in ["f16", "bf16"] {
        let out = ["cpu.safetensors", "cuda.safetensors"].map(|name| folder.path(name));
        let args = |i: usize| format!("--dtype {dtype} --output {}", out[i].display());
        cpu("head", &golden("head_small"), &args(0)).ok();
        crate::cuda::on_cuda("head", &golden("head_small"), &format!("--device cuda {}", args(1)))
            .unwrap()
            .ok();
        let [on_cpu, on_cuda] = [0, 1].map(|i| read(&out[i]));
        // A unit in the last place of bf16; f16's are smaller, but it has subnormal numbers too.
        for (name, (_, _, numbers)) in &on_cpu {
            for (a, b) in numbers.iter().zip(&on_cuda[name].2) {
                assert!((a - b).abs() <= a.abs() / 128.0 + 6e-8, "{dtype} {name}: {a} and {b}");
            }
        }
    }
}

#[test]
fn json_and_table_tell_the_same() {
    let report = json("head", Path::new(SAMPLE), "");
    assert_eq!(
        (&report["op"], &report["dtype"], &report["profile"]),
        (&"head".into(), &"f16".into(), &"mmdetection".into())
    );
    let levels = report["levels"].as_array().unwrap();
    let sum = |name: &str| levels.iter().map(|level| number(&level[name])).sum::<f64>();
    assert_close(&[number(&report["loss_cls"])], &[sum("loss_cls")], 1e-12);
    let total = ["loss_cls", "loss_bbox", "loss_dfl"].map(|name| number(&report[name])).iter().sum::<f64>();
    assert_close(&[number(&report["loss"])], &[total], 1e-12);
    assert_eq!(sum("positives"), number(&report["num_pos"]));
    let table = cpu("head", Path::new(SAMPLE), "").ok().stdout;
    assert!(table.contains("f16 on cpu: batch 2, 8 classes, 17 bins, mmdetection profile"), "{table}");
    assert!(table.contains("positions") && table.contains("12x16") && table.contains("\nloss "), "{table}");
}

#[test]
fn options_have_the_last_word() {
    let file = golden("head_small");
    let loss = |args: &str, name: &str| number(&json("head", &file, args)[name]);
    let (cls, bbox, dfl) = (loss("", "loss_cls"), loss("", "loss_bbox"), loss("", "loss_dfl"));
    let args = "--cls-weight 2 --iou-weight 1 --dfl-weight 0";
    assert_close(&[loss(args, "loss_cls"), loss(args, "loss_bbox")], &[2.0 * cls, bbox / 2.0], 1e-6);
    assert_eq!(loss(args, "loss_dfl"), 0.0);
    assert!(loss("--iou diou", "loss_bbox") != bbox && loss("--target-eps 12", "loss_dfl") != dfl);
    assert!(loss("--beta 0", "loss_cls") > cls && loss("--offset 0.5", "loss_bbox") != bbox);
    assert_close(&[loss("--profile nanodet", "loss_bbox")], &[bbox], 1e-6);
    let mistake = cpu("head", &file, "--profile ultralytics").mistake();
    assert!(
        mistake.contains("17 bins are reg_max 17 in the ultralytics profile, and the metadata tell 16"),
        "{mistake}"
    );
}

/// One level of 1 x 2 positions with one class and two bins, as tensors.
fn tiny(last: bool) -> Vec<(&'static str, Tensor)> {
    let (cls, boxes) =
        if last { (vec![1, 2, 1], vec![1, 2, 8]) } else { (vec![1, 1, 1, 2], vec![1, 8, 1, 2]) };
    let number = |i: usize, j: usize| (i * 7 + j * 3) as f64 * 0.1 - 0.8;
    // The same numbers in either layout.
    let order: Vec<(usize, usize)> = if last {
        (0..2).flat_map(|position| (0..8).map(move |channel| (channel, position))).collect()
    } else {
        (0..8).flat_map(|channel| (0..2).map(move |position| (channel, position))).collect()
    };
    let numbers: Vec<f64> = order.into_iter().map(|(channel, position)| number(channel, position)).collect();
    let labels = i64s(&[0, 1]).with_shape(&[1, 2]);
    vec![
        ("level0.cls_logits", f32s(&cls, &[-1.0, 0.5])),
        ("level0.box_logits", f32s(&boxes, &numbers)),
        ("level0.labels", labels),
        ("level0.box_targets", f32s(&[1, 2, 4], &[-4.0, -3.0, 2.0, 5.0, 0.0, 0.0, 0.0, 0.0])),
    ]
}

#[test]
fn channels_last_is_the_same() {
    let folder = Folder::new();
    let (first, last) =
        (folder.file("first.safetensors", &tiny(false)), folder.file("last.safetensors", &tiny(true)));
    let out = |name: &str, file: &Path, args: &str| {
        let out = folder.path(name);
        cpu("head", file, &format!("--strides 8 {args} --output {}", out.display())).ok();
        read(&out)
    };
    let (first, last) = (out("1.safetensors", &first, ""), out("2.safetensors", &last, "--image-size 8x16"));
    assert_eq!(first["level0.loss_bbox"], last["level0.loss_bbox"]);
    let [first, last] = [first, last].map(|tensors| tensors["level0.grad_box_logits"].2.clone());
    for channel in 0..8 {
        for position in 0..2 {
            assert_eq!(first[channel * 2 + position], last[position * 8 + channel]);
        }
    }
}

/// An empty batch has no anchor points, wherever they come from.
#[test]
fn no_images() {
    let folder = Folder::new();
    for (name, axes) in [("level0.points", 2), ("level0.anchors", 4)] {
        let tensors = [
            ("level0.cls_logits", f32s(&[0, 1, 1, 2], &[])),
            ("level0.box_logits", f32s(&[0, 8, 1, 2], &[])),
            (name, f32s(&[0, 2, axes], &[])),
            ("gt_boxes", f32s(&[0, 4], &[])),
            ("gt_labels", i64s(&[])),
            ("gt_image", i64s(&[])),
        ];
        let report = json("head", &folder.file("none.safetensors", &tensors), "--strides 8 --assign");
        assert_eq!(number(&report["loss"]), 0.0, "{name}");
    }
}

#[test]
fn mistakes() {
    let folder = Folder::new();
    let without = |missing: &str| {
        let mut tensors = tiny(false);
        tensors.retain(|(name, _)| !name.ends_with(missing));
        folder.file("without.safetensors", &tensors)
    };
    let with = |name: &'static str, tensor: Tensor| {
        let mut tensors = tiny(false);
        tensors.retain(|(old, _)| *old != name);
        tensors.push((name, tensor));
        folder.file("with.safetensors", &tensors)
    };
    let whole = folder.file("whole.safetensors", &tiny(false));
    let last = folder.file("last.safetensors", &tiny(true));
    let told = |file: &Path, args: &str, part: &str| {
        let mistake = cpu("head", file, args).mistake();
        assert!(mistake.contains(part), "{mistake}");
    };
    told(&whole, "", "--strides");
    told(&whole, "--strides 8,16", "it has 1 level, and there are 2 strides");
    told(&whole, "--strides 0", "above 0");
    told(&whole, "--strides 8 --reg-max 16", "2 bins are reg_max 1 in");
    told(&whole, "--strides 8 --assign", "gt_boxes");
    told(&whole, "--strides 8 --iou round", "--iou");
    told(&last, "--strides 8", "--image-size");
    told(&last, "--strides 8 --image-size 80x80", "10x10");
    told(&without("cls_logits"), "--strides 8", "level0.cls_logits");
    told(&without("box_logits"), "--strides 8", "level0.box_logits");
    told(&without("labels"), "--strides 8", "level0.labels");
    told(&without("box_targets"), "--strides 8", "level0.box_targets");
    told(&with("level0.cls_logits", f32s(&[2], &[0.0, 0.0])), "--strides 8", "[B, channels, H, W]");
    told(&with("level0.cls_logits", f32s(&[1, 1, 2, 2], &[0.0; 4])), "--strides 8", "must be the same");
    told(&with("level0.box_logits", f32s(&[1, 6, 1, 2], &[0.0; 12])), "--strides 8", "4 K");
    told(&with("level0.labels", i64s(&[0, 0])), "--strides 8", "[1, 2]");
    told(&with("level0.box_targets", f32s(&[2, 4], &[0.0; 8])), "--strides 8", "[1, 2, 4]");
    told(&with("level0.points", f32s(&[3, 2], &[0.0; 6])), "--strides 8", "[2, 2]");
    let f64_on_cuda = run("head", Path::new(SAMPLE), &["--dtype", "f64", "--device", "cuda"]).mistake();
    assert!(f64_on_cuda.contains("no CUDA kernels"), "{f64_on_cuda}");
}

#[test]
fn pictures() {
    let folder = Folder::new();
    let picture = folder.path("head.svg");
    let plot = |file: &Path, args: &str| {
        let mut command = command();
        command.arg("plot").arg(file).arg("--out").arg(&picture).args(args.split_whitespace());
        Run::from(command.output().unwrap())
    };
    let drawn = |file: &Path, args: &str| {
        plot(file, args).ok();
        std::fs::read_to_string(&picture).unwrap()
    };
    let all = drawn(Path::new(SAMPLE), "");
    for part in [
        "<svg",
        "Distributions of the box sides",
        "The surface of the loss",
        "Reliability of the score",
        "entropy",
    ] {
        assert!(all.contains(part), "{part}");
    }
    let one = drawn(Path::new(SAMPLE), "--panels distributions --positives 1");
    assert!(one.contains("entropy") && !one.contains("surface"));
    assert!(drawn(&golden("head_no_gt"), "").contains("no positives in this file"));
    assert!(plot(Path::new(SAMPLE), "--positives 0").mistake().contains("--positives"));
    assert!(plot(&folder.path("none.safetensors"), "").mistake().contains("none.safetensors"));
    let run = command().arg("plot").arg(SAMPLE).arg("--out").arg(folder.path("head.png")).output().unwrap();
    assert!(Run::from(run).mistake().contains(".svg"));
}
