//! What the options and the further tensors of `gfocal head` do, on both devices.

use std::collections::BTreeSet;
use std::path::PathBuf;

use safetensors::Dtype;
use serde_json::Value;

use crate::cuda::{on_both, on_cuda};
use crate::support::*;

const LEVELS: usize = 3;
const CLASSES: usize = 4;
const TOLD: &str = "--strides 8,16,32 --json";

/// The golden case, changed; only what is read of it.
struct Scene(Tensors);

impl Scene {
    fn new() -> Scene {
        let mut tensors = read(&golden("head_small"));
        let wanted = ["cls_logits", "box_logits", "labels", "box_targets", "label_weights", "anchors"];
        let is_wanted = |name: &str| wanted.iter().any(|wanted| name.ends_with(&format!(".{wanted}")));
        tensors.retain(|name, _| is_wanted(name));
        Scene(tensors)
    }

    /// With ground truth instead of targets.
    fn with_truth() -> Scene {
        let mut tensors = read(&golden("head_small"));
        let is_logits = |name: &str| name.ends_with(".cls_logits") || name.ends_with(".box_logits");
        tensors.retain(|name, _| is_logits(name) || name.starts_with("gt_"));
        Scene(tensors)
    }

    fn with_truth_weights(mut self, weight: f64) -> Scene {
        let count = self.0["gt_labels"].2.len();
        self.0.insert("gt_weights".to_owned(), (Dtype::F32, vec![count], vec![weight; count]));
        self
    }

    fn tensor(&self, level: usize, tensor: &str) -> &[f64] {
        &self.0[&format!("level{level}.{tensor}")].2
    }

    /// Batch and positions.
    fn anchors(&self, level: usize) -> [usize; 2] {
        let shape = &self.0[&format!("level{level}.labels")].1;
        [shape[0], shape[1]]
    }

    /// With a tensor of every level, `[B, H*W]` or with an axis more.
    fn with(mut self, name: &str, axis: usize, numbers: impl Fn(&Scene, usize) -> Vec<f64>) -> Scene {
        for level in 0..LEVELS {
            let mut shape = self.anchors(level).to_vec();
            if axis > 1 {
                shape.push(axis);
            }
            let dtype = if name == "labels" { Dtype::I64 } else { Dtype::F32 };
            let numbers = numbers(&self, level);
            self.0.insert(format!("level{level}.{name}"), (dtype, shape, numbers));
        }
        self
    }

    fn with_class_weights(mut self, weights: [f64; CLASSES]) -> Scene {
        self.0.insert("class_weights".to_owned(), (Dtype::F32, vec![CLASSES], weights.to_vec()));
        self
    }

    fn file(&self, folder: &Folder) -> PathBuf {
        rewritten(folder, &self.0)
    }

    /// The three losses, which are the same on both devices.
    fn losses(&self, args: &str) -> [f64; 3] {
        let folder = Folder::new();
        let file = self.file(&folder);
        let losses = |told: &Value| ["loss_cls", "loss_bbox", "loss_dfl"].map(|loss| number(&told[loss]));
        let run = cpu("head", &file, &format!("{TOLD} {args}"));
        assert_eq!(run.stderr, "", "{args}");
        let on_cpu = losses(&run.json());
        if let Some(run) = on_cuda("head", &file, &format!("{TOLD} {args} --device cuda")) {
            assert_close(&losses(&run.json()), &on_cpu, 1e-5);
        }
        on_cpu
    }
}

fn ones(scene: &Scene, level: usize) -> Vec<f64> {
    vec![1.0; scene.anchors(level).iter().product()]
}

#[test]
fn weights_of_classes_and_elements() {
    let plain = Scene::new().losses("");
    let doubled = Scene::new().with_class_weights([2.0; CLASSES]).losses("");
    assert_close(&doubled, &[2.0 * plain[0], plain[1], plain[2]], 1e-5);
    let weights = [1.0, 0.0, 0.5, 3.0];
    let by_class = Scene::new().with_class_weights(weights).losses("");
    let by_element = Scene::new()
        .with("element_weights", CLASSES, |scene, level| weights.repeat(ones(scene, level).len()))
        .losses("");
    assert_close(&by_element, &by_class, 1e-5);
    assert!((by_class[0] - plain[0]).abs() > 1e-3);
}

#[test]
fn weights_of_boxes() {
    let plain = Scene::new().losses("");
    let doubled = Scene::new()
        .with("box_weights", 1, |scene, level| ones(scene, level).iter().map(|one| 2.0 * one).collect())
        .losses("");
    assert_close(&doubled, &[plain[0], 2.0 * plain[1], 2.0 * plain[2]], 1e-5);
}

/// The largest score of each anchor, given, is what is taken without.
#[test]
fn given_box_scores_and_qualities() {
    let max_score = |scene: &Scene, level: usize| {
        let [batch, positions] = scene.anchors(level);
        let logits = scene.tensor(level, "cls_logits");
        let of = |image: usize, position: usize| {
            let scores = (0..CLASSES).map(|class| logits[(image * CLASSES + class) * positions + position]);
            1.0 / (1.0 + (-scores.fold(f64::NEG_INFINITY, f64::max)).exp())
        };
        (0..batch * positions).map(|anchor| of(anchor / positions, anchor % positions)).collect()
    };
    let plain = Scene::new().losses("");
    assert_close(&Scene::new().with("box_scores", 1, max_score).losses("--box-weight given"), &plain, 1e-5);

    let half = |scene: &Scene, level: usize| ones(scene, level).iter().map(|one| 0.5 * one).collect();
    let by_quality = Scene::new().with("quality", 1, half).losses("--quality given");
    assert!((by_quality[0] - plain[0]).abs() > 1e-3);
    // The same targets for all classes of the anchor, dense.
    let scores = |scene: &Scene, level: usize| {
        let labels = scene.tensor(level, "labels");
        let row = |&label: &f64| (0..CLASSES).map(move |class| if class as f64 == label { 0.5 } else { 0.0 });
        labels.iter().flat_map(row).collect()
    };
    assert_close(&Scene::new().with("scores", CLASSES, scores).losses(""), &by_quality, 1e-5);
    let weighted = Scene::new().with("quality", 1, half).losses("--quality given --box-weight quality");
    let given = Scene::new().with("box_scores", 1, half).losses("--box-weight given");
    assert_close(&weighted[1..], &given[1..], 1e-5);
}

/// A step that F32 has not, in each tensor beside the logits, counts beside F64 logits alone.
#[test]
fn what_is_beside_f64_logits_is_f64() {
    let folder = Folder::new();
    let numbers = |scene: &Scene, level: usize| -> Vec<f64> {
        let unit = |at: usize| (at * 37 % 64) as f64 / 64.0;
        (0..ones(scene, level).len()).map(|at| 0.25 + 0.5 * unit(at)).collect()
    };
    let rows = |scene: &Scene, level: usize| numbers(scene, level).repeat(CLASSES);
    let points = |scene: &Scene, level: usize| {
        let anchors = scene.tensor(level, "anchors").as_chunks::<4>().0;
        anchors.iter().flat_map(|[x1, y1, x2, y2]| [(x1 + x2) / 2.0, (y1 + y2) / 2.0]).collect()
    };
    let given = Scene::new().with("quality", 1, numbers).with("box_weights", 1, numbers);
    let given = given.with("element_weights", CLASSES, rows).with_class_weights([0.1, 0.2, 0.3, 0.4]);
    let scored =
        Scene::new().with("quality", 1, numbers).with("scores", CLASSES, rows).with("points", 2, points);
    let given = given.with("box_scores", 1, numbers);
    for (scene, args) in [(given, "--box-weight given"), (scored, "--box-weight quality")] {
        for logits in [Dtype::F64, Dtype::F32] {
            let loss = |moved: &str| -> f64 {
                let mut scene = Scene(scene.0.clone());
                for (name, (dtype, _, numbers)) in &mut scene.0 {
                    *dtype = match name {
                        _ if name.ends_with("_logits") => logits,
                        _ if name.ends_with("labels") => *dtype,
                        _ => Dtype::F64,
                    };
                    if name.ends_with(moved) {
                        // Not all: v of all boxes in the same proportions are the same.
                        numbers.iter_mut().step_by(2).for_each(|number| *number *= 1.0 + 2f64.powi(-28));
                    }
                }
                let told =
                    json("head", &scene.file(&folder), &format!("--strides 8,16,32 --quality given {args}"));
                number(&told["loss"])
            };
            let still = loss("nothing");
            let tensors: BTreeSet<_> = scene.0.keys().map(|name| name.rsplit('.').next().unwrap()).collect();
            for tensor in tensors.into_iter().filter(|name| !name.ends_with("_logits") && *name != "labels") {
                // Anchors are not read where there are points.
                let reads = tensor != "anchors" || !args.ends_with("quality");
                assert_eq!(loss(tensor) != still, reads && logits == Dtype::F64, "{tensor} beside {logits}");
            }
        }
    }
}

#[test]
fn background_and_ignored_labels() {
    let plain = Scene::new().losses("");
    let shifted = |scene: &Scene, level: usize| {
        let labels = scene.tensor(level, "labels");
        labels.iter().map(|&label| if label < CLASSES as f64 { label + 1.0 } else { 0.0 }).collect()
    };
    assert_close(&Scene::new().with("labels", 1, shifted).losses("--background first"), &plain, 1e-6);
    // Without background: only positives are left in the classification loss.
    let only = |scene: &Scene, level: usize| {
        let labels = scene.tensor(level, "labels").iter().zip(scene.tensor(level, "label_weights"));
        labels.map(|(&label, weight)| if label < CLASSES as f64 { *weight } else { 0.0 }).collect()
    };
    let ignored = Scene::new().losses("--ignore-label 4");
    assert_close(&ignored, &Scene::new().with("label_weights", 1, only).losses(""), 1e-6);
    assert!(ignored[0] < plain[0]);
}

#[test]
fn targets_that_are_assigned() {
    let plain = Scene::new().losses("");
    assert_close(&Scene::with_truth().losses("--assign"), &plain, 1e-6);
    let mut shifted = Scene::with_truth();
    shifted.0.get_mut("gt_labels").unwrap().2.iter_mut().for_each(|label| *label += 1.0);
    assert_close(&shifted.losses("--assign --background first"), &plain, 1e-6);
    let weighted = Scene::with_truth().with_truth_weights(2.0);
    assert_close(&weighted.losses("--assign"), &[plain[0], 2.0 * plain[1], 2.0 * plain[2]], 1e-5);
    // Both weights multiply, and so do those of labels.
    let positions = |level: usize| 2 * [320, 80, 20][level];
    let mut both = Scene::with_truth().with_truth_weights(2.0);
    for level in 0..LEVELS {
        for (tensor, weight) in [("box_weights", 3.0), ("label_weights", 0.5)] {
            let tensor = format!("level{level}.{tensor}");
            let shape = vec![2, positions(level) / 2];
            both.0.insert(tensor, (Dtype::F32, shape, vec![weight; positions(level)]));
        }
    }
    assert_close(&both.losses("--assign"), &[0.5 * plain[0], 6.0 * plain[1], 6.0 * plain[2]], 1e-5);
}

#[test]
fn targets_by_fcos() {
    let folder = Folder::new();
    let (file, out) = (Scene::with_truth().file(&folder), folder.path("out.safetensors"));
    let told = "--assigner fcos --strides 8,16,32 --regress-ranges -1:32,32:64,64:inf --center-sampling 1.5";
    let alone = format!("{told} --classes 4 --image-size 128x160 --output {}", out.display());
    cpu("assign", &file, &alone).ok();
    let alone = read(&out);
    let args = format!("{told} --assign --json --output {}", out.display());
    let check = |run: Run| {
        let report = run.json();
        assert_eq!((&report["assigned"], &report["assigner"]), (&true.into(), &"fcos".into()));
        let written = read(&out);
        for (name, tensor) in &alone {
            assert_eq!(written[name], *tensor, "{name}");
        }
        let positives = report["levels"].as_array().unwrap().iter().map(|level| number(&level["positives"]));
        assert_eq!(positives.sum::<f64>(), number(&report["num_pos"]));
    };
    on_both("head", &file, &args, check);
    let text = cpu("head", &file, &format!("{told} --assign")).ok().stdout;
    assert!(text.contains("targets assigned by FCOS"), "{text}");
}

#[test]
fn normalisers() {
    let [plain, nanodet, ultralytics] = ["mmdetection", "nanodet", "ultralytics"]
        .map(|whose| Scene::new().losses(&format!("--normaliser {whose}")));
    assert_close(&nanodet, &plain, 1e-6);
    let folder = Folder::new();
    let told = json("head", &Scene::new().file(&folder), "--strides 8,16,32");
    let by = number(&told["num_pos"]) / number(&told["box_weight_sum"]);
    assert_close(&ultralytics, &[plain[0] * by, plain[1], plain[2]], 1e-5);
}

/// Elements with target 0, which are most, have 1 - α.
#[test]
fn alpha() {
    let none = |scene: &Scene, level: usize| vec![CLASSES as f64; ones(scene, level).len()];
    let background = || Scene::new().with("labels", 1, none);
    let plain = background().losses("");
    assert_close(&background().losses("--alpha 0.25"), &[0.75 * plain[0], 0.0, 0.0], 1e-5);
}

/// Boxes of four numbers: central differences of the losses, in f64.
#[test]
fn boxes_without_bins() {
    let folder = Folder::new();
    let scene = |boxes: &[f64]| {
        let tensors = [
            ("level0.cls_logits", f64s(&[1, 1, 1, 2], &[-1.0, 0.5])),
            ("level0.box_logits", f64s(&[1, 4, 1, 2], boxes)),
            ("level0.labels", i64s(&[0, 1]).with_shape(&[1, 2])),
            ("level0.box_targets", f32s(&[1, 2, 4], &[-4.0, -3.0, 2.0, 5.0, 0.0, 0.0, 0.0, 0.0])),
        ];
        folder.file("boxes.safetensors", &tensors)
    };
    let numbers = [0.3, 9.0, 0.2, 9.0, 0.4, 9.0, 0.6, 9.0];
    let out = folder.path("out.safetensors");
    for boxes in ["exp", "relu"] {
        // The quality and its gradient are apart: boxes have a part in the box loss alone.
        let args = format!("--strides 8 --boxes {boxes} --cls-weight 0");
        let loss = |numbers: &[f64]| number(&json("head", &scene(numbers), &args)["loss"]);
        let told = json("head", &scene(&numbers), &format!("{args} --output {}", out.display()));
        assert_eq!((&told["bins"], number(&told["loss_dfl"])), (&1.into(), 0.0));
        let gradient = read(&out)["level0.grad_box_logits"].2.clone();
        for i in 0..8 {
            let (mut more, mut less) = (numbers, numbers);
            more[i] += 1e-5;
            less[i] -= 1e-5;
            let expected = (loss(&more) - loss(&less)) / 2e-5;
            assert!(
                (gradient[i] - expected).abs() <= 1e-7,
                "{boxes} {i}: {} and not {expected}",
                gradient[i]
            );
        }
        let text = cpu("head", &scene(&numbers), &args).ok().stdout;
        assert!(text.contains(&format!("boxes by {boxes}")), "{text}");
        if let Some(run) =
            on_cuda("head", &scene(&numbers), &format!("{args} --dtype f32 --device cuda --json"))
        {
            assert_close(&[number(&run.json()["loss"])], &[loss(&numbers)], 1e-5);
        }
    }
}

#[test]
fn mistakes() {
    let folder = Folder::new();
    let told = |scene: Scene, args: &str, part: &str| {
        let line = cpu("head", &scene.file(&folder), &format!("--strides 8,16,32 {args}")).mistake();
        assert!(line.contains(part), "{line}");
    };
    let scene = Scene::new;
    told(scene(), "--quality given", "level0.quality, from which --quality given takes");
    told(scene(), "--profile nanodet --quality given", "level0.quality");
    told(
        scene(),
        "--profile ultralytics --reg-max 17",
        "level0.quality, from which --profile ultralytics takes",
    );
    told(scene(), "--box-weight given", "level0.box_scores");
    told(scene(), "--topk 9", "--topk says how targets are assigned; give --assign");
    told(scene(), "--fallback 1", "--fallback says");
    told(scene(), "--assigner fcos", "--assigner says");
    told(scene(), "--boxes exp", "level0.box_logits has 68 channels; with --boxes exp there must be 4");
    told(
        scene(),
        "--boxes relu --target-eps 0.1",
        "--target-eps is for boxes with bins, and --boxes is relu",
    );
    told(scene(), "--alpha 1.5", "from 0 to 1");
    told(scene(), "--classes 80", "it has 4 classes, and --classes is 80");
    told(scene(), "--reg-max 17", "17 bins are reg_max 16 in the mmdetection profile, and --reg-max is 17");
    told(
        scene(),
        "--image-size 128x192",
        "level 0: 16x20 positions at stride 8 are not those of 128x192 pixels, which are 16x24",
    );
    let three = scene().with("scores", 3, |scene, level| vec![0.0; 3 * ones(scene, level).len()]);
    told(three, "", "level0.scores has the shape [2, 320, 3]; the level's logits need [2, 320, 4]");
    let mut few = scene();
    few.0.insert("class_weights".to_owned(), (Dtype::F32, vec![3], vec![1.0; 3]));
    told(few, "", "class_weights has the shape [3]; 4 classes need [4]");
    let plot =
        command().arg("plot").arg(scene().file(&folder)).args(["--out", "x.svg", "--boxes", "exp"]).output();
    assert!(Run::from(plot.unwrap()).mistake().contains("gfocal plot is for boxes with bins"));
}
