//! Both outputs of a head as channels of one tensor.

use std::path::Path;

use crate::cuda::written_on_both;
use crate::support::*;

const LEVELS: usize = 3;
const CHANNELS: [usize; 2] = [68, 4];

/// The golden case with box and class logits of a level in one tensor.
pub fn joined(tensors: &Tensors, kind: [&str; 2]) -> Vec<(Vec<usize>, Vec<f64>)> {
    let level = |level: usize| {
        let [boxes, cls] = kind.map(|tensor| &tensors[&format!("level{level}.{tensor}")]);
        let positions: usize = boxes.1[2..].iter().product();
        let rows = |numbers: &[f64], channels: usize, image: usize| {
            numbers[image * channels * positions..][..channels * positions].to_vec()
        };
        let image = |image| [rows(&boxes.2, CHANNELS[0], image), rows(&cls.2, CHANNELS[1], image)].concat();
        let mut shape = boxes.1.clone();
        shape[1] = CHANNELS[0] + CHANNELS[1];
        (shape, (0..boxes.1[0]).flat_map(image).collect())
    };
    (0..LEVELS).map(level).collect()
}

/// Levels one after another.
pub fn whole(levels: &[(Vec<usize>, Vec<f64>)]) -> (Vec<usize>, Vec<f64>) {
    let [batch, channels] = [levels[0].0[0], levels[0].0[1]];
    let positions = |shape: &[usize]| shape[2..].iter().product::<usize>();
    let row = |row: usize| {
        levels
            .iter()
            .flat_map(move |(shape, numbers)| numbers[row * positions(shape)..][..positions(shape)].to_vec())
    };
    let all = levels.iter().map(|level| positions(&level.0)).sum();
    (vec![batch, channels, all], (0..batch * channels).flat_map(row).collect())
}

/// What else of the golden case is read.
fn rest(tensors: &Tensors) -> Vec<(&str, Tensor)> {
    let others = ["labels", "box_targets", "label_weights"];
    chosen(tensors, |name| name.starts_with("gt_") || others.iter().any(|of| name.ends_with(of)))
}

const TOLD: &str = "--strides 8,16,32 --image-size 128x160";

#[test]
fn one_tensor_for_all_levels_gives_the_same() {
    let (folder, tensors) = (Folder::new(), read(&golden("head_small")));
    let levels = joined(&tensors, ["box_logits", "cls_logits"]);
    let (shape, numbers) = whole(&levels);
    let expected = whole(&joined(&tensors, ["grad_box_logits", "grad_cls_logits"]));
    let mut file = rest(&tensors);
    file.push(("raw", f32s(&shape, &numbers)));
    let file = folder.file("raw.safetensors", &file);
    for args in ["", "--assign", "--reg-max 16", "--classes 4"] {
        written_on_both("head", &file, &format!("{TOLD} --raw {args}"), |written| {
            assert_eq!(written["grad_raw"].1, expected.0);
            assert_near(&written["grad_raw"].2, &expected.1, 1e-4, 2e-6, args);
            for level in 0..LEVELS {
                for loss in ["loss_cls", "loss_bbox", "loss_dfl"] {
                    let name = format!("level{level}.{loss}");
                    assert_close(&written[&name].2, &tensors[&name].2, 1e-5);
                }
                assert!(!written.contains_key(&format!("level{level}.grad_raw")));
            }
        });
    }
    // f64, against the numbers as they are.
    let out = folder.path("out.safetensors");
    cpu("head", &file, &format!("{TOLD} --raw --dtype f64 --output {}", out.display())).ok();
    assert_near(&read(&out)["grad_raw"].2, &expected.1, 1e-10, 1e-12, "f64");
}

#[test]
fn a_tensor_for_each_level() {
    let (folder, tensors) = (Folder::new(), read(&golden("head_small")));
    let levels = joined(&tensors, ["box_logits", "cls_logits"]);
    let expected = joined(&tensors, ["grad_box_logits", "grad_cls_logits"]);
    let names: Vec<String> = (0..LEVELS).map(|level| format!("level{level}.raw")).collect();
    for flat in [false, true] {
        let mut file = rest(&tensors);
        for (name, (shape, numbers)) in names.iter().zip(&levels) {
            let [batch, channels, height, width] = shape[..] else { unreachable!() };
            let shape = if flat { vec![batch, channels, height * width] } else { shape.clone() };
            file.push((name, f32s(&shape, numbers)));
        }
        let file = folder.file("levels.safetensors", &file);
        written_on_both("head", &file, &format!("{TOLD} --raw"), |written| {
            for (level, (shape, numbers)) in expected.iter().enumerate() {
                let (_, found, gradient) = &written[&format!("level{level}.grad_raw")];
                assert_eq!(found.iter().product::<usize>(), shape.iter().product::<usize>());
                assert_eq!(found.len(), if flat { 3 } else { 4 });
                assert_near(gradient, numbers, 1e-4, 2e-6, &names[level]);
            }
            assert!(!written.contains_key("grad_raw"));
        });
    }
}

#[test]
fn mistakes() {
    let folder = Folder::new();
    let raw = |shape: &[usize]| {
        let numbers = vec![0.0; shape.iter().product()];
        folder.file("raw.safetensors", &[("raw", f32s(shape, &numbers))])
    };
    let told = |file: &Path, args: &str, part: &str| {
        let mistake = cpu("head", file, &format!("--raw {args}")).mistake();
        assert!(mistake.contains(part), "{mistake}");
    };
    told(&raw(&[1, 72, 10]), "", "--strides");
    told(&raw(&[1, 72, 10]), "--strides 8,16", "--image-size");
    let counts = "raw has 10 positions; images of 32x32 pixels have 4x4 + 2x2 = 20 at strides 8, 16";
    told(&raw(&[1, 72, 10]), "--strides 8,16 --image-size 32x32", counts);
    told(&raw(&[72, 20]), "--strides 8,16 --image-size 32x32", "[B, 4K + C, A]");
    let none = "raw has 64 channels, and 4 x 17 of boxes leave none for classes";
    told(&raw(&[1, 64, 20]), "--strides 8,16 --image-size 32x32", none);
    told(&raw(&[1, 72, 20]), "--strides 8,16 --image-size 32x32 --classes 5", "classes");
    told(&raw(&[1, 72, 20]), "--strides 8,16 --image-size 32x32", "level0.labels");
    told(&folder.file("none.safetensors", &[("x", i64s(&[]))]), "", "has no tensor level0.raw");
}
