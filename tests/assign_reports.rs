//! Shows what becomes of real batches that users reported (tests/reports): images of different sizes, regions to
//! ignore, broken ground truth; and that a status counts each kind of fault, with the first of it, on both
//! backends, and in one block with the head's.

use gfocal::cuda::StatusBlock;
use gfocal::{AssignmentStatus, Counted, QualityFocalLoss, Status};
use support::assign::{
    Level, OfLevel, OnCuda, Outcome, Rules, Scene, Ties, on_cpu, pyramid, report, same, same_on_cuda,
    transcription,
};
use support::vectors::Vectors;
use support::{Buffer, gpu};

/// Labels and their weights as they should be, and how many positives there are.
#[track_caller]
fn as_wanted(name: &str, rules: &Rules, levels: &[Level], scene: &Scene, vectors: &Vectors, positives: u64) {
    let got = on_cpu::<i64>(rules, levels, scene).expect("a legal call");
    let mut want = got.clone();
    for (i, level) in want.levels.iter_mut().enumerate() {
        level.labels = vectors.i64s(&format!("want.level{i}.labels"));
        level.label_weights = vectors.f32s(&format!("want.level{i}.label_weights"));
    }
    same(name, &got, &want);
    assert_eq!(got.positives() as u64, positives, "{name}");
    assert_eq!(vectors.expect["num_pos"], positives, "{name}");
    assert!(got.status.is_ok(), "{name}: {:?}", got.status);
    same_on_cuda(name, &gpu(), rules, levels, scene);
    same(name, &got, &transcription(rules, Ties::Higher, levels, scene));
}

#[test]
fn padded_batch() {
    let (levels, scene, vectors) = report("padded_batch", 8.0);
    as_wanted("padded_batch", &Rules::atss(9), &levels, &scene, &vectors, 11);
    let unpadded = Scene { valid_hw: None, ..scene };
    // What was seen: 5, and the second image has none.
    let got = on_cpu::<i64>(&Rules::atss(9), &levels, &unpadded).expect("a legal call");
    assert_eq!(got.positives(), 5);
    assert!(got.label_weights().all(|weight| weight == 1.0));
}

#[test]
fn ignore_boxes() {
    let (levels, scene, vectors) = report("ignore_boxes", 4.0);
    let threshold = vectors.expect["ignore_iof_thr"].as_f64().expect("a number") as f32;
    as_wanted("ignore_boxes", &Rules::atss(9).ignoring(threshold), &levels, &scene, &vectors, 6);
    // They are given, but nothing is said of a threshold.
    assert_eq!(on_cpu::<i64>(&Rules::atss(9), &levels, &scene).expect("a legal call").positives(), 5);
}

fn counted(count: u32, first: u64) -> Counted {
    Counted { count, first: Some(first) }
}

#[test]
fn bad_ground_truth() {
    let (levels, scene, vectors) = report("bad_ground_truth", 8.0);
    for rules in [Rules::atss(9), Rules::fcos(&[[-1.0, 64.0], [64.0, f32::INFINITY]], Some(1.5))] {
        let got = on_cpu::<i64>(&rules, &levels, &scene).expect("a legal call");
        let want = AssignmentStatus {
            bad_boxes: counted(2, 1),
            bad_labels: counted(2, 3),
            bad_images: counted(1, 5),
            unassigned: Counted::default(),
        };
        assert_eq!(got.status, want);
        for (kind, counted) in
            [("bad_boxes", want.bad_boxes), ("bad_labels", want.bad_labels), ("bad_images", want.bad_images)]
        {
            assert_eq!(vectors.expect[kind], counted.count, "{kind}");
        }
        // The good one is assigned as if it were alone.
        let alone = Scene {
            boxes: scene.boxes[..1].to_vec(),
            labels: scene.labels[..1].to_vec(),
            image: scene.image[..1].to_vec(),
            ..scene.clone()
        };
        let want = on_cpu::<i64>(&rules, &levels, &alone).expect("a legal call");
        assert!(want.status.is_ok() && want.positives() > 0);
        same("the rest", &Outcome { status: want.status, ..got }, &want);
        same_on_cuda("bad_ground_truth", &gpu(), &rules, &levels, &scene);
    }
}

/// What is to be wrong with which box.
type Fault = (usize, fn(&mut Scene, usize));

/// Good boxes of two images, and what is to be wrong with them.
fn broken(faults: &[Fault]) -> Scene {
    let mut scene = Scene { images: 2, classes: 5, ..Scene::default() };
    for i in 0..8u8 {
        let x = f32::from(i) * 36.0;
        scene.boxes.push([x, 20.0, x + 90.0, 130.0]);
        scene.labels.push(i64::from(i % 4) + 1);
        scene.image.push(i64::from(i % 2));
    }
    scene.ignore = Some((vec![[0.0, 0.0, 8.0, 8.0]; 3], vec![0, 1, -1]));
    faults.iter().for_each(|&(i, fault)| fault(&mut scene, i));
    scene
}

#[test]
fn every_kind_is_counted_with_its_first() {
    let gpu = gpu();
    let nan: fn(&mut Scene, usize) = |scene, i| scene.boxes[i][2] = f32::NAN;
    let infinite: fn(&mut Scene, usize) = |scene, i| scene.boxes[i][1] = f32::NEG_INFINITY;
    let flat: fn(&mut Scene, usize) = |scene, i| scene.boxes[i][3] = scene.boxes[i][1];
    let label: fn(&mut Scene, usize) = |scene, i| scene.labels[i] = 6;
    let outside: fn(&mut Scene, usize) = |scene, i| scene.image[i] = 2;
    let negative: fn(&mut Scene, usize) = |scene, i| scene.image[i] = -2;
    let padding: fn(&mut Scene, usize) = |scene, i| scene.image[i] = -1;
    let bad_crowd: fn(&mut Scene, usize) = |scene, i| {
        let (boxes, image) = scene.ignore.as_mut().expect("boxes to ignore");
        boxes[i - 8].swap(0, 2);
        image[i - 8] = -5;
    };
    let none = Counted::default();
    // Faults, and how many of boxes, labels, images.
    let cases: [(&[Fault], [Counted; 3]); 9] = [
        (&[], [none; 3]),
        (&[(3, nan), (5, infinite), (6, flat)], [counted(3, 3), none, none]),
        (&[(7, label)], [none, counted(1, 7), none]),
        (&[(2, outside), (4, negative)], [none, none, counted(2, 2)]),
        (&[(0, outside), (0, label), (0, nan)], [counted(1, 0), counted(1, 0), counted(1, 0)]),
        (&[(1, nan), (1, padding), (2, label), (2, padding)], [none; 3]),
        (&[(5, flat), (6, label), (6, outside), (7, label)], [counted(1, 5), counted(2, 6), counted(1, 6)]),
        // Boxes to ignore are numbered behind the others.
        (&[(8, bad_crowd), (10, bad_crowd)], [counted(2, 8), none, counted(2, 8)]),
        (&[(4, nan), (9, bad_crowd)], [counted(2, 4), none, counted(1, 9)]),
    ];
    for (faults, [bad_boxes, bad_labels, bad_images]) in cases {
        let scene = broken(faults);
        let levels = pyramid();
        for rules in [Rules::atss(9), Rules::fcos_for(&levels, None)] {
            let rules = rules.ignoring(0.5).background(gfocal::Background::First);
            let got = on_cpu::<i64>(&rules, &levels, &scene).expect("a legal call").status;
            let want = AssignmentStatus { bad_boxes, bad_labels, bad_images, unassigned: got.unassigned };
            assert_eq!(got, want, "{} faults", faults.len());
            assert_eq!(got.is_ok(), got == AssignmentStatus::default());
            same_on_cuda("faults", &gpu, &rules, &levels, &scene);
        }
        // Where nothing is ignored, nobody looks at what there would be.
        let got = on_cpu::<i64>(&Rules::atss(9), &levels, &scene).expect("a legal call").status;
        assert!(got.bad_boxes.first.is_none_or(|first| first < 8));
    }
}

/// Boxes too small for any anchor, or of which others have all.
#[test]
fn unassigned_boxes_and_what_they_fall_back_to() {
    let gpu = gpu();
    let scene = Scene {
        boxes: vec![
            [33.0, 33.0, 34.0, 34.0],
            [30.0, 30.0, 90.0, 80.0],
            [30.0, 30.0, 90.0, 80.0],
            [33.0, 33.0, 34.0, 34.0],
            [2000.0, 2000.0, 2010.0, 2010.0],
        ],
        labels: vec![1, 2, 3, 4, 5],
        image: vec![1, 1, 1, 1, 0],
        images: 2,
        classes: 9,
        ..Scene::default()
    };
    let levels = pyramid();
    for rules in [Rules::atss(9), Rules::fcos_for(&levels, None)] {
        let of = |fallback: usize| {
            let rules = rules.clone().falling_back(fallback);
            same_on_cuda("fallback", &gpu, &rules, &levels, &scene);
            let got = on_cpu::<i64>(&rules, &levels, &scene).expect("a legal call");
            same("fallback", &got, &transcription(&rules, Ties::Higher, &levels, &scene));
            got
        };
        let alone = of(0);
        assert_eq!(alone.status.unassigned, counted(4, 0));
        assert!(!alone.status.is_ok());
        for fallback in [1, 3] {
            let got = of(fallback);
            assert!(got.status.is_ok());
            for label in [1, 3, 4, 5] {
                let has = |level: &OfLevel<i64>| level.labels.iter().filter(|&&l| l == label).count();
                assert_eq!(got.levels.iter().map(has).sum::<usize>(), fallback, "label {label}");
            }
            let others = |outcome: &Outcome| -> usize {
                outcome.levels.iter().map(|level| level.labels.iter().filter(|&&l| l == 2).count()).sum()
            };
            assert_eq!(others(&got), others(&alone), "who had anchors keeps them");
        }
    }
}

/// One block for the assignment and for what comes after it, calls added up until it is reset.
#[test]
fn a_block_tells_both() {
    let Some(gpu) = gpu() else { return };
    let (levels, scene, _) = report("bad_ground_truth", 8.0);
    let mut call = OnCuda::<i64>::new(&gpu, &levels, &scene, 0);
    for _ in 0..2 {
        call.call(&gpu, &Rules::atss(9)).expect("a legal call");
    }
    let logits = Buffer::new(&gpu, &[0.0f32; 6], 0);
    let (labels, quality) = (Buffer::new(&gpu, &[0i64, 7, 9], 0), Buffer::new(&gpu, &[0.5f32; 3], 0));
    let mut loss = Buffer::poisoned(&gpu, 1, 0);
    let qfl = QualityFocalLoss::default();
    let status: &mut StatusBlock = &mut call.status;
    qfl.cuda(&gpu.handle, &logits.view(), [3, 2], &labels.view(), &quality.view())
        .status(status)
        .forward(&mut loss.view_mut())
        .expect("a legal call");
    let want = Status {
        bad_labels: 2,
        first_bad_row: Some(1),
        assignment: AssignmentStatus {
            bad_boxes: counted(4, 1),
            bad_labels: counted(4, 3),
            bad_images: counted(2, 5),
            unassigned: Counted::default(),
        },
        ..Status::default()
    };
    assert_eq!(call.status.read(&gpu.stream).expect("a status"), want);
    assert!(!want.is_ok());
    call.status.reset(&gpu.stream).expect("a reset");
    assert!(call.status.read(&gpu.stream).expect("a status").is_ok());
}
