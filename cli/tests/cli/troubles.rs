//! What a head could not use is told by its kind, and what losses are divided by.

use std::path::PathBuf;

use crate::cuda::on_cuda;
use crate::support::*;

const NAN: f64 = f64::NAN;

/// A level of four positions with one class and two bins, of which the first two are positives.
struct Scene {
    labels: [i64; 4],
    boxes: [[f64; 4]; 4],
    points: [[f64; 2]; 4],
    quality: [f64; 4],
}

impl Scene {
    fn new() -> Scene {
        Scene {
            labels: [0, 0, 1, 1],
            boxes: [[-4.0, -4.0, 4.0, 4.0]; 4],
            points: [[0.0, 0.0]; 4],
            quality: [0.5; 4],
        }
    }

    fn file(&self, folder: &Folder) -> PathBuf {
        let tensors = [
            ("level0.cls_logits", f32s(&[2, 1, 1, 2], &[-1.0, 0.5, 0.0, 1.0])),
            ("level0.box_logits", f32s(&[2, 8, 1, 2], &[0.25; 32])),
            ("level0.labels", i64s(&self.labels).with_shape(&[2, 2])),
            ("level0.box_targets", f32s(&[2, 2, 4], self.boxes.as_flattened())),
            ("level0.points", f32s(&[2, 2, 2], self.points.as_flattened())),
            ("level0.quality", f32s(&[2, 2], &self.quality)),
        ];
        folder.file("scene.safetensors", &tensors)
    }

    /// The lines of the text that tell of troubles, the same on both devices.
    fn told(&self, args: &str) -> Vec<String> {
        let folder = Folder::new();
        let file = self.file(&folder);
        let args = format!("--strides 8 --target-eps 0 {args}");
        let lines = |run: Run| -> Vec<String> {
            let text = run.ok().stdout;
            let rest = text.split_once("\nloss ").unwrap().1;
            rest.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
        };
        let on_cpu = lines(cpu("head", &file, &args));
        if let Some(run) = on_cuda("head", &file, &format!("{args} --device cuda")) {
            assert_eq!(lines(run)[1..], on_cpu[1..]);
        }
        on_cpu
    }
}

#[test]
fn each_kind_has_its_name() {
    let given = "--quality given";
    let told = |change: fn(&mut Scene)| {
        let mut scene = Scene::new();
        change(&mut scene);
        scene.told(given)[1..].to_vec()
    };
    let it = |place: &str| format!("it is in level 0, {place}, counted from 0.");
    assert!(told(|_| {}).is_empty());
    assert_eq!(
        told(|scene| scene.boxes[1][2] = NAN),
        ["1 target box of a positive that is not finite (no loss).", &it("image 0, position 1")]
    );
    assert_eq!(
        told(|scene| scene.points[0][1] = f64::INFINITY),
        ["1 anchor point of a positive that is not finite (no loss).", &it("image 0, position 0")]
    );
    assert_eq!(
        told(|scene| scene.quality[1] = NAN),
        ["1 quality of a positive that is NaN (no loss).", &it("image 0, position 1")]
    );
    assert_eq!(
        told(|scene| scene.labels[3] = 7),
        ["1 label that is neither a class nor background (no loss).", &it("image 1, position 1")]
    );
    assert_eq!(
        told(|scene| scene.labels = [0, 0, 7, 9]),
        [
            "2 labels that are neither a class nor background (no loss).",
            "the first of them is in level 0, image 1, position 0, counted from 0."
        ]
    );
    assert_eq!(
        told(|scene| scene.boxes[1] = [-12.0, -4.0, 4.0, 4.0]),
        [
            "1 distance to a side of a target box that is beyond the bins (clamped).",
            &it("image 0, position 1")
        ]
    );
    assert_eq!(
        told(|scene| {
            scene.boxes[0][0] = NAN;
            scene.quality[1] = NAN;
            scene.labels[2] = 7;
        }),
        [
            "1 label that is neither a class nor background (no loss).",
            "1 target box of a positive that is not finite (no loss).",
            "1 quality of a positive that is NaN (no loss).",
            "the first of all, a target box, is in level 0, image 0, position 0, counted from 0."
        ]
    );
    // Qualities of background are not looked at, nor are any without --quality given.
    assert!(told(|scene| scene.quality[2] = NAN).is_empty());
    let mut scene = Scene::new();
    scene.quality[0] = NAN;
    assert_eq!(scene.told("").len(), 1);
}

#[test]
fn divisors() {
    let told = |labels: [i64; 4], args: &str| {
        let scene = Scene { labels, ..Scene::new() };
        let first = scene.told(args)[0].clone();
        first.split_once(", ").unwrap().1.to_owned()
    };
    assert_eq!(
        told([1; 4], ""),
        "over 2 positives (2 images without any count as one each) and box weights of 0, which count as 1"
    );
    let one = told([0, 1, 1, 1], "");
    assert!(
        one.starts_with("over 2 positives (an image without any counts as one) and box weights of 0.2689"),
        "{one}"
    );
    let all = told([0; 4], "");
    assert!(all.starts_with("over 4 positives and box weights of 2.1") && !all.contains("count"), "{all}");
    let none = "over 0 positives (which count as one) and box weights of 0, which count as 1";
    assert_eq!(told([1; 4], "--normaliser nanodet"), none);
    let weights = told([0; 4], "--normaliser ultralytics");
    assert!(weights.starts_with("over box weights of 2.1"), "{weights}");
    let one = told([0, 1, 0, 1], "--normaliser nanodet");
    assert!(one.starts_with("over 2 positives and"), "{one}");
    assert!(told([0, 1, 1, 1], "--normaliser nanodet").starts_with("over 1 positive and"));
}
