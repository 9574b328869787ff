//! Shows that ATSS assigns as mmdetection does (the golden heads), and as a plain transcription
//! of its definition does on scenes of all kinds; that CUDA gives the bits of the CPU, in two
//! launches that neither allocate nor wait, whatever the order; and what the errors say.

use gfocal::Background;
use gfocal::assign::{AnchorGrid, AssignWorkspace, Atss, GroundTruth, LevelTargets};
use support::assign::{
    Level, OfLevel, OnCuda, Outcome, Rules, Scene, Ties, as_defined, assigned, eight_levels, golden, on_cpu,
    pyramid, real_scene, same, same_on_cuda, scene, transcription,
};
use support::gpu;
use support::random::Random;
use support::vectors::Vectors;

fn explicit(levels: &[Level]) -> Vec<Level> {
    levels.iter().map(Level::explicit).collect()
}

#[test]
fn as_mmdetection_does() {
    let gpu = gpu();
    for name in ["head_small", "head_coco", "head_no_gt"] {
        let vectors = Vectors::open(format!("tests/golden/{name}.safetensors"));
        let number = |key: &str| vectors.case[key].as_f64().expect("a number");
        let strides = vectors.case["strides"].as_array().expect("strides");
        let (mut grids, mut boxes, mut want) = (Vec::new(), Vec::new(), Outcome::default());
        let mut images = 0;
        for (i, stride) in strides.iter().enumerate() {
            let shape = vectors.shape(&format!("level{i}.cls_logits"));
            let stride = stride.as_f64().expect("a stride") as f32;
            images = shape[0];
            let size = number("anchor_scale") as f32 * stride;
            grids.push(Level::new(shape[2], shape[3], stride).sizes(&[[size; 2]]));
            // The same in all images.
            let anchors = vectors.f32s(&format!("level{i}.anchors"));
            boxes.push(Level::Boxes(anchors.as_chunks().0[..shape[2] * shape[3]].to_vec()));
            want.levels.push(OfLevel {
                labels: vectors.i64s(&format!("level{i}.labels")),
                box_targets: vectors.f32s(&format!("level{i}.box_targets")),
                label_weights: vectors.f32s(&format!("level{i}.label_weights")),
                ..OfLevel::default()
            });
        }
        let scene = golden(&vectors, images);
        assert_eq!(scene.boxes.is_empty(), name == "head_no_gt");
        assert_eq!(want.positives() > 0, !scene.boxes.is_empty(), "{name}");
        let rules = Rules::atss(number("atss_topk") as usize);
        let defined = |ties| transcription(&rules, ties, &boxes, &scene);
        want.status = defined(Ties::Higher).status;
        same(&format!("{name}, as defined"), &defined(Ties::Higher), &want);
        // Of head_small, anchors 91 and 94 of the first image are equally near to the first box, as its
        // ninth and tenth candidate, and PyTorch took 94.
        let other = defined(Ties::Lower);
        let labels = |outcome: &Outcome| -> Vec<Vec<i64>> {
            outcome.levels.iter().map(|level| level.labels.clone()).collect()
        };
        assert_eq!(name == "head_small", labels(&other) != labels(&want), "{name}");
        for levels in [&grids, &boxes] {
            same(name, &assigned(&rules, levels, &scene), &want);
            same_on_cuda(name, &gpu, &rules, levels, &scene);
        }
    }
}

#[test]
fn as_the_definition_says() {
    let gpu = gpu();
    let mut random = Random::new(41);
    let (grids, boxes) = (pyramid(), explicit(&pyramid()));
    for (round, count) in [0, 1, 3, 20, 60, 120].into_iter().enumerate() {
        let scene = scene(&mut random, count);
        for topk in [9, 1, 4, 7, 32, 33] {
            let rules = Rules::atss(topk);
            let what = format!("round {round}, {count} boxes, topk {topk}");
            let want = transcription(&rules, Ties::Higher, &boxes, &scene);
            assert!(want.positives() > 0 || count < 20, "{what}");
            same(&what, &assigned(&rules, &grids, &scene), &want);
            same(&what, &assigned(&rules, &boxes, &scene), &want);
            if topk == 9 || round == 3 {
                same_on_cuda(&what, &gpu, &rules, &grids, &scene);
            }
            if round == 2 {
                same_on_cuda(&what, &gpu, &rules, &boxes, &scene);
            }
        }
    }
}

/// As many levels as there may be, a warp of the block for each; and more anchors than the emulator's 32 blocks have
/// threads.
#[test]
fn eight_levels_as_the_definition_says() {
    let gpu = gpu();
    let (grids, boxes) = (eight_levels(), explicit(&eight_levels()));
    let scene = scene(&mut Random::new(44), 250);
    for topk in [9, 16] {
        let rules = Rules::atss(topk);
        let (what, want) = (format!("topk {topk}"), transcription(&rules, Ties::Higher, &boxes, &scene));
        let of_level = |level: &OfLevel<i64>| level.labels.iter().any(|&label| label != 20);
        assert!(want.levels.iter().all(of_level), "{what}: every level has positives");
        for levels in [&grids, &boxes] {
            same(&what, &assigned(&rules, levels, &scene), &want);
            same_on_cuda(&what, &gpu, &rules, levels, &scene);
        }
    }
}

/// As many candidates as there may be: on levels that have fewer, on strips, and near corners.
#[test]
fn many_candidates() {
    let gpu = gpu();
    let levels = [
        Level::new(24, 30, 8.0),
        Level::new(1, 150, 8.0),
        Level::new(90, 2, 16.0),
        Level::new(6, 8, 32.0),
        Level::new(0, 9, 8.0),
    ];
    let scene = scene(&mut Random::new(45), 14);
    for topk in [2, 31, 64, 100, 255, 256] {
        let (rules, what) = (Rules::atss(topk), format!("topk {topk}"));
        let want = transcription(&rules, Ties::Higher, &levels, &scene);
        assert!(want.positives() > 0, "{what}");
        same(&what, &assigned(&rules, &levels, &scene), &want);
        if [31, 256].contains(&topk) {
            same_on_cuda(&what, &gpu, &rules, &levels, &scene);
        }
    }
}

/// Images of several sizes, regions to ignore, weights, broken boxes, several anchors at a position, either
/// background, anchors for boxes that have none.
#[test]
fn real_scenes_as_the_definition_says() {
    let gpu = gpu();
    let mut random = Random::new(46);
    let sizes = [[32.0, 64.0], [48.0, 48.0], [96.0, 24.0]];
    let several: Vec<Level> = pyramid().into_iter().skip(1).map(|level| level.sizes(&sizes)).collect();
    let (mut ignored, mut unassigned, mut positives) = (0, 0, 0);
    for (round, count) in [40, 0, 12, 90, 25, 60, 33, 8].into_iter().enumerate() {
        let scene = real_scene(&mut random, count);
        let levels = match round % 4 {
            0 => pyramid(),
            1 => several.clone(),
            2 => explicit(&pyramid()[1..]),
            _ => pyramid().into_iter().map(|level| level.offset(0.5)).collect(),
        };
        let rules = Rules::atss([9, 27, 5, 40][round % 4])
            .ignoring([0.5, 0.25, 0.75, -1.0][round / 2])
            .falling_back([0, 1, 3, 2][(round + round / 4) % 4])
            .background([Background::Last, Background::First][round / 2 % 2]);
        let what = format!("round {round}, {count} boxes, {rules:?}");
        let want = as_defined(&what, &gpu, &rules, &levels, &scene);
        ignored += want.label_weights().filter(|&weight| weight == 0.0).count();
        unassigned += want.status.unassigned.count;
        positives += want.positives();
    }
    assert!(ignored > 5000 && unassigned > 5 && positives > 400, "{ignored} {unassigned} {positives}");
}

/// Boxes that no anchor can be trained on, numbers of levels and anchors at their limits.
#[test]
fn what_is_strange() {
    let gpu = gpu();
    let (nan, inf, max) = (f32::NAN, f32::INFINITY, f32::MAX);
    let boxes = vec![
        [nan, 0.0, 100.0, 100.0],
        [0.0, 0.0, nan, 100.0],
        [0.0, -inf, 100.0, 100.0],
        [-inf, 0.0, 100.0, 100.0],
        [0.0, 0.0, inf, 100.0],
        [0.0, 0.0, 100.0, inf],
        [100.0, 0.0, 20.0, 100.0],
        [50.0, 50.0, 50.0, 50.0],
        [16.0, 16.0, 16.0, 90.0],
        [-500.0, -500.0, -300.0, -300.0],
        [1e30, 1e30, 2e30, 2e30],
        [40.0, 40.0, 40.001, 40.001],
    ];
    let count = boxes.len();
    let unusable = Scene {
        boxes,
        labels: vec![3; count],
        image: vec![0; count],
        images: 1,
        classes: 20,
        ..Scene::default()
    };
    let rules = Rules::atss(9);
    let none = assigned(&rules, &pyramid(), &unusable);
    assert_eq!(none.positives(), 0);
    assert!(none.levels.iter().all(|level| level.box_targets.iter().all(|side| side.to_bits() == 0)));
    assert_eq!((none.status.bad_boxes.count, none.status.bad_boxes.first), (9, Some(0)));
    assert_eq!((none.status.unassigned.count, none.status.unassigned.first), (3, Some(9)));
    same_on_cuda("unusable", &gpu, &rules, &pyramid(), &unusable);

    // Around a good box they change nothing; nor does a box in no image; nor one of no class.
    let good = [30.0, 30.0, 90.0, 80.0];
    let with = |image: i64, label: i64, all: bool| {
        let mut scene =
            if all { unusable.clone() } else { Scene { images: 1, classes: 20, ..Scene::default() } };
        scene.boxes.push(good);
        scene.labels.push(label);
        scene.image.push(image);
        assigned(&rules, &pyramid(), &scene)
    };
    let among = Outcome { status: with(0, 7, false).status, ..with(0, 7, true) };
    same("among unusable boxes", &among, &with(0, 7, false));
    assert!(with(0, 7, false).positives() > 0);
    for image in [-1, 1, i64::MAX, i64::MIN] {
        let nobody = with(image, 7, false);
        assert_eq!((nobody.positives(), nobody.status.is_ok()), (0, image == -1), "image {image}");
    }
    for label in [-5, -1, 20, i64::MAX] {
        let nobody = with(0, label, false);
        assert_eq!((nobody.positives(), nobody.status.bad_labels.count), (0, 1), "label {label}");
    }

    // Huge boxes, whose areas are beyond f32; one anchor alone, whose IoU has no deviation; levels
    // without anchors; eight levels; no image.
    let huge = Scene {
        boxes: vec![[-max, -max, max, max], [-1e20, -1e20, 1e20, 1e20], [-3e38, 0.0, 3e38, 64.0], good],
        labels: vec![1, 2, 3, 4],
        image: vec![0; 4],
        images: 1,
        classes: 20,
        ..Scene::default()
    };
    let levels = [
        pyramid(),
        vec![Level::new(1, 1, 64.0)],
        vec![Level::new(0, 7, 8.0), Level::new(5, 5, 8.0), Level::Boxes(vec![])],
        (0..8).map(|i| Level::new(3 + i, 9 - i, 8.0)).collect(),
        vec![Level::Boxes(vec![
            [nan, 0.0, 1.0, 1.0],
            [0.0, 0.0, 60.0, 60.0],
            [inf, inf, inf, inf],
            [-max, -max, max, max],
        ])],
        vec![Level::new(0, 0, 8.0)],
    ];
    for levels in &levels {
        let what = format!("{} levels", levels.len());
        for rules in [rules.clone(), rules.clone().falling_back(1)] {
            same_on_cuda(&what, &gpu, &rules, levels, &huge);
            same_on_cuda(&what, &gpu, &rules, levels, &Scene { images: 0, ..huge.clone() });
        }
    }
    assert_eq!(assigned(&rules, &levels[1], &huge).positives(), 0);
    let nowhere = assigned(&rules, &levels[5], &huge).status;
    assert_eq!((nowhere.unassigned.count, nowhere.unassigned.first), (4, Some(0)));
}

/// Of equal IoUs, all count as equal to their mean; of equal boxes, the first has the anchors.
#[test]
fn ties() {
    let scene = Scene {
        boxes: vec![[4.0, 4.0, 28.0, 28.0]; 2],
        labels: vec![5, 6],
        image: vec![0; 2],
        images: 1,
        classes: 20,
        ..Scene::default()
    };
    let level = [Level::new(4, 4, 8.0)];
    let got = assigned(&Rules::atss(9), &level, &scene);
    assert_eq!(got.levels[0].labels, [20, 20, 20, 20, 20, 5, 5, 5, 20, 5, 5, 5, 20, 5, 5, 5]);
    // The other one has lost all its anchors. Of those that are left, (16, 0) and (0, 16) are nearest to its
    // centre: the second has the higher number.
    assert_eq!((got.status.unassigned.count, got.status.unassigned.first), (1, Some(1)));
    let got = assigned(&Rules::atss(9).falling_back(1), &level, &scene);
    assert_eq!(got.levels[0].labels, [20, 20, 20, 20, 20, 5, 5, 5, 6, 5, 5, 5, 20, 5, 5, 5]);
    assert!(got.status.is_ok());
    // The centre of the box is between four anchors: with one candidate, the last is nearest. On
    // two levels that are the same, both candidates have the mean IoU.
    let scene = Scene { boxes: vec![[4.0, 4.0, 20.0, 20.0]], labels: vec![5], image: vec![0], ..scene };
    let levels = [level[0].clone(), level[0].explicit()];
    let got = assigned(&Rules::atss(1), &levels, &scene);
    for level in &got.levels {
        let taken: Vec<usize> = (0..16).filter(|&i| level.labels[i] == 5).collect();
        assert_eq!(taken, [10]);
    }
    let gpu = gpu();
    same_on_cuda("ties", &gpu, &Rules::atss(9), &levels, &scene);
    same_on_cuda("ties", &gpu, &Rules::atss(9).falling_back(3), &levels, &scene);
}

#[test]
fn two_launches_no_allocation_no_wait() {
    let Some(gpu) = gpu() else { return };
    let mut random = Random::new(42);
    let atss = Rules::atss(9).ignoring(0.5).falling_back(1);
    let fcos = Rules::fcos_for(&pyramid(), Some(1.5)).ignoring(0.5).falling_back(1);
    for (rules, boxes, launches) in [(&atss, 0, 1), (&atss, 40, 2), (&fcos, 0, 1), (&fcos, 40, 1)] {
        let scene = real_scene(&mut random, boxes);
        let want = assigned(rules, &pyramid(), &scene);
        let mut call = OnCuda::<i64>::new(&gpu, &pyramid(), &scene, 0);
        for seed in 0..4 {
            if let Some(emulator) = gpu.emulator {
                emulator.set_seed(seed * 7919 + 1);
            }
            call.status.reset(&gpu.stream).expect("a reset");
            gpu.enqueued(launches, || call.call(&gpu, rules)).expect("a legal call");
            // Each call finds the workspace as the one before left it.
            same(&format!("seed {seed}"), &call.read(&gpu), &want);
        }
    }
}

#[test]
fn errors() {
    let gpu = gpu();
    let good = real_scene(&mut Random::new(43), 4);
    let rules = Rules::atss(9);
    let text = |levels: &[Level], scene: &Scene| {
        let text = on_cpu::<i64>(&rules, levels, scene).expect_err("a wrong call").to_string();
        if let Some(gpu) = &gpu {
            let mut call = OnCuda::<i64>::new(gpu, levels, scene, 0);
            let on_cuda = call.call(gpu, &rules).expect_err("a wrong call");
            assert_eq!(on_cuda.to_string(), text);
            let is_untouched = |level: &OfLevel<i64>| level.box_targets.iter().all(|side| side.is_nan());
            assert!(call.read(gpu).levels.iter().all(is_untouched), "a call that failed wrote something");
        }
        text
    };
    let wrong = |change: fn(&mut Scene)| {
        let mut scene = good.clone();
        change(&mut scene);
        text(&pyramid(), &scene)
    };
    assert_eq!(wrong(|scene| scene.boxes.truncate(3)), "gt boxes has 12 elements, 4 boxes need 16");
    assert_eq!(wrong(|scene| scene.image.push(0)), "gt image has 5 elements, 4 boxes need 4");
    assert_eq!(
        wrong(|scene| scene.weights = Some(vec![1.0; 3])),
        "gt weights has 3 elements, 4 boxes need 4"
    );
    assert_eq!(
        wrong(|scene| scene.ignore = Some((vec![[0.0; 4]; 3], vec![0; 2]))),
        "ignore boxes has 12 elements, 2 boxes need 8"
    );
    assert_eq!(wrong(|scene| scene.valid_hw = Some(vec![64; 5])), "valid_hw has 5 elements, 3 images need 6");
    let number = "at most 2147483647";
    assert_eq!(
        wrong(|scene| scene.classes = 1 << 31),
        format!("the number of classes is 2147483648, it must be {number}")
    );
    let levels = |count: usize| vec![Level::new(2, 2, 8.0); count];
    for count in [0, 9] {
        let want = format!("the number of levels is {count}, it must be from 1 to 8");
        assert_eq!(text(&levels(count), &good), want);
    }
    let one = |level: Level| text(&[level], &good);
    assert_eq!(one(Level::new(2, 2, 0.0)), "stride is 0, it must be a number above 0");
    let sizes = |side: f32| Level::new(2, 2, 8.0).sizes(&[[8.0, 8.0], [8.0, side]]);
    assert_eq!(one(sizes(-8.0)), "the anchors' size is -8, it must be a number above 0");
    assert_eq!(one(sizes(f32::NAN)), "the anchors' size is NaN, it must be a number above 0");
    let away = Level::new(2, 2, 8.0).offset(f32::INFINITY);
    assert_eq!(one(away), "offset is inf, it must be a finite number");
    type Wrong = fn() -> gfocal::Result<()>;
    let options: [(&str, Wrong); 8] = [
        ("topk is 0, it must be from 1 to 256", || Atss::new(0).map(drop)),
        ("topk is 257, it must be from 1 to 256", || Atss::new(257).map(drop)),
        ("ignore_iof is 0, it must be above 0 and at most 1, or -1 for none", || {
            Atss::default().with_ignore_iof(0.0).map(drop)
        }),
        ("ignore_iof is 1.5, it must be above 0 and at most 1, or -1 for none", || {
            Atss::default().with_ignore_iof(1.5).map(drop)
        }),
        ("ignore_iof is NaN, it must be above 0 and at most 1, or -1 for none", || {
            Atss::default().with_ignore_iof(f32::NAN).map(drop)
        }),
        ("fallback is 2147483648, it must be at most 2147483647", || {
            Atss::default().with_fallback(1 << 31).map(drop)
        }),
        ("the number of anchors at a position is 0, it must be from 1 to 16", || {
            AnchorGrid::new(2, 2, 8.0).with_sizes(&[]).map(drop)
        }),
        ("the number of anchors at a position is 17, it must be from 1 to 16", || {
            AnchorGrid::new(2, 2, 8.0).with_sizes(&[[8.0; 2]; 17]).map(drop)
        }),
    ];
    for (want, wrong) in options {
        assert_eq!(wrong().expect_err("a wrong option").to_string(), want);
    }
    if let Some(gpu) = &gpu {
        let mut call = OnCuda::<i64>::new(gpu, &pyramid(), &good, 0);
        let mut text = |[images, anchors, boxes]: [usize; 3]| {
            call.workspace =
                AssignWorkspace::new(&gpu.stream, images, anchors, boxes).expect("device memory");
            call.call(gpu, &rules).expect_err("a small workspace").to_string()
        };
        let end = "; make a larger one";
        let anchors = format!("the workspace is for 300 anchors of all images, the call has 5118{end}");
        assert_eq!(text([3, 100, 4]), anchors);
        assert_eq!(text([3, 2000, 3]), format!("the workspace is for 3 boxes, the call has 4{end}"));
    }
}

/// What the shared calls of this file always get right.
#[test]
fn lengths_of_targets() {
    let gt = || GroundTruth::cpu(&[], &[0i64; 0], &[]);
    let one = [AnchorGrid::new(2, 3, 8.0).into()];
    let text = |targets: &mut [LevelTargets<gfocal::Host, i64>]| {
        Atss::default().cpu(&one, gt(), 1, 20, targets).expect_err("a wrong call").to_string()
    };
    assert_eq!(text(&mut []), "there are 1 levels of anchors, but targets for 0");
    let (mut labels, mut boxes, mut six, mut five) = ([0i64; 6], [0.0; 24], [0.0; 6], [0.0; 5]);
    let mut few = [0i64; 4];
    assert_eq!(text(&mut [LevelTargets::cpu(&mut few, &mut boxes)]), "labels has 4 elements, 6 boxes need 6");
    let mut short = [0.0; 23];
    let targets = LevelTargets::cpu(&mut labels, &mut short);
    assert_eq!(text(&mut [targets]), "box targets has 23 elements, 6 boxes need 24");
    let targets = LevelTargets::cpu(&mut labels, &mut boxes).label_weights(&mut five);
    assert_eq!(text(&mut [targets]), "label weights has 5 elements, 6 boxes need 6");
    let targets = LevelTargets::cpu(&mut labels, &mut boxes).box_weights(&mut five);
    assert_eq!(text(&mut [targets]), "box weights has 5 elements, 6 boxes need 6");
    let targets = LevelTargets::cpu(&mut labels, &mut boxes).centerness(&mut five);
    assert_eq!(text(&mut [targets]), "centerness has 5 elements, 6 boxes need 6");
    let targets = LevelTargets::cpu(&mut labels, &mut boxes).centerness(&mut six);
    assert_eq!(text(&mut [targets]), "level 0: ATSS gives no centerness; leave it out, or take Fcos");
    let odd = [gfocal::assign::Anchors::cpu(&[0.0; 7])];
    let targets = &mut [LevelTargets::cpu(&mut few, &mut boxes)];
    let text = Atss::default().cpu(&odd, gt(), 1, 20, targets).expect_err("a wrong call").to_string();
    assert_eq!(text, "anchors has 7 elements, 1 boxes need 4");
}
