//! Shows that FCOS' assignment is mmdetection's (`FCOSHead.get_targets`, the golden files `fcos_*`) and what
//! a plain transcription makes of scenes of all kinds; that CUDA gives the bits of the CPU; ties; and what
//! the errors say.

use gfocal::Background;
use gfocal::assign::{Anchors, Fcos, GroundTruth, LevelTargets};
use support::assign::{
    Level, OfLevel, OnCuda, Outcome, Rules, Scene, Ties, as_defined, assigned, eight_levels, golden, on_cpu,
    pyramid, real_scene, same, same_on_cuda, scene, transcription,
};
use support::gpu;
use support::random::Random;
use support::vectors::Vectors;

/// FCOS' points are in the middle of their cells.
fn points(levels: Vec<Level>) -> Vec<Level> {
    levels.into_iter().map(|level| level.offset(0.5)).collect()
}

#[test]
fn as_mmdetection_does() {
    let gpu = gpu();
    for name in ["fcos_center", "fcos_crowd", "fcos_no_gt", "fcos_plain", "fcos_tiny"] {
        let vectors = Vectors::open(format!("tests/golden/{name}.safetensors"));
        let number = |value: &serde_json::Value| value.as_f64().expect("a number") as f32;
        let list = |key: &str| vectors.case[key].as_array().expect("a list").clone();
        let ranges: Vec<[f32; 2]> =
            list("regress_ranges").iter().map(|range| [number(&range[0]), number(&range[1])]).collect();
        let sampled = vectors.case["center_sampling"].as_bool().expect("a boolean");
        let radius = sampled.then(|| number(&vectors.case["center_sample_radius"]));
        let size = list("image_hw");
        let (mut levels, mut want) = (Vec::new(), Outcome::default());
        let mut images = 0;
        for (i, stride) in list("strides").iter().enumerate() {
            let stride = number(stride);
            let [height, width] = [0, 1].map(|axis| (number(&size[axis]) / stride).ceil() as usize);
            let level = Level::new(height, width, stride).offset(number(&vectors.case["offset"]));
            assert_eq!(vectors.shape(&format!("level{i}.points")), [level.anchors(), 2], "{name}");
            images = vectors.shape(&format!("level{i}.labels"))[0];
            levels.push(level);
            want.levels.push(OfLevel {
                labels: vectors.i64s(&format!("level{i}.labels")),
                box_targets: vectors.f32s(&format!("level{i}.box_targets")),
                centerness: vectors.f32s(&format!("level{i}.centerness")),
                ..OfLevel::default()
            });
        }
        let scene = golden(&vectors, images);
        let rules = Rules::fcos(&ranges, radius);
        let got = assigned(&rules, &levels, &scene);
        assert_eq!(got.positives(), number(&vectors.case["num_pos"]) as usize, "{name}");
        // Their boxes are points and distances, put together in f32, so that a digit at the scale of the
        // image is lost; of centerness each step rounds, and PyTorch's roots are not always the nearest.
        for (level, (got, want)) in got.levels.iter().zip(&mut want.levels).enumerate() {
            let close = |got: &[f32], want: &mut [f32], scale: fn(f32) -> f32| {
                for (i, (got, want)) in got.iter().zip(want).enumerate() {
                    let error = (f64::from(*got) - f64::from(*want)).abs();
                    assert!(error <= f64::from(f32::EPSILON * scale(*want)), "{name}, level {level}, {i}");
                    *want = *got;
                }
            };
            close(&got.box_targets, &mut want.box_targets, |_| 192.0);
            close(&got.centerness, &mut want.centerness, |centerness| centerness);
            assert_eq!(got.labels, want.labels, "{name}, level {level}");
        }
        want.status = got.status;
        same(name, &got, &want);
        same(&format!("{name}, as defined"), &got, &transcription(&rules, Ties::Higher, &levels, &scene));
        same_on_cuda(name, &gpu, &rules, &levels, &scene);
        if radius.is_none() {
            // Points are the centres of explicit boxes, too.
            let listed: Vec<Level> = (0..levels.len())
                .map(|i| {
                    let points = vectors.f32s(&format!("level{i}.points"));
                    let around = |p: &[f32; 2]| [p[0] - 4.0, p[1] - 2.0, p[0] + 4.0, p[1] + 2.0];
                    Level::Boxes(points.as_chunks().0.iter().map(around).collect())
                })
                .collect();
            same(&format!("{name}, listed"), &assigned(&rules, &listed, &scene), &got);
            same_on_cuda(&format!("{name}, listed"), &gpu, &rules, &listed, &scene);
        }
    }
}

#[test]
fn as_the_definition_says() {
    let gpu = gpu();
    let mut random = Random::new(61);
    for (round, boxes) in [0, 1, 30, 200].into_iter().enumerate() {
        let (scene, levels) = (scene(&mut random, boxes), points(pyramid()));
        for radius in [None, Some(1.5), Some(0.3)] {
            let rules = Rules::fcos_for(&levels, radius);
            let what = format!("round {round}, {boxes} boxes, radius {radius:?}");
            let want = as_defined(&what, &gpu, &rules, &levels, &scene);
            assert!(want.positives() > 0 || boxes < 30, "{what}");
        }
    }
}

/// Images of several sizes, regions to ignore, weights, broken boxes, several points at a position, either
/// background, points for boxes that have none.
#[test]
fn real_scenes_as_the_definition_says() {
    let gpu = gpu();
    let mut random = Random::new(62);
    let (mut ignored, mut unassigned, mut positives) = (0, 0, 0);
    for (round, boxes) in [40, 0, 12, 150, 25, 60].into_iter().enumerate() {
        let scene = real_scene(&mut random, boxes);
        let levels = match round % 3 {
            0 => points(pyramid()),
            1 => points(eight_levels()),
            _ => pyramid().into_iter().skip(1).map(|level| level.sizes(&[[8.0; 2]; 3])).collect(),
        };
        let radius = [None, Some(1.5), Some(2.5)][(round + round / 3) % 3];
        let rules = Rules::fcos_for(&levels, radius)
            .ignoring([0.5, 1.0, 0.25][round / 2])
            .falling_back([0, 1, 3][(round + 2 * (round / 3)) % 3])
            .background([Background::Last, Background::First][round / 2 % 2]);
        let what = format!("round {round}, {boxes} boxes, {rules:?}");
        let want = as_defined(&what, &gpu, &rules, &levels, &scene);
        ignored += want.label_weights().filter(|&weight| weight == 0.0).count();
        unassigned += want.status.unassigned.count;
        positives += want.positives();
    }
    assert!(ignored > 5000 && unassigned > 5 && positives > 500, "{ignored} {unassigned} {positives}");
}

/// Grids and listed anchors side by side, in any order, by either rule; ranges that leave many boxes to points that
/// are in them and others out of reach.
#[test]
fn mixtures_of_levels() {
    let gpu = gpu();
    let mut random = Random::new(65);
    let (mut unassigned, mut positives, mut central) = (0, 0, 0);
    for round in 0..32 {
        let scene = real_scene(&mut random, 2 + round);
        let mut levels = Vec::new();
        for level in &pyramid()[2..] {
            let level = level.clone().offset([0.0, 0.5][random.index(2)]);
            let level = if random.chance(0.3) { level.sizes(&[[40.0, 24.0], [90.0, 70.0]]) } else { level };
            let Level::Boxes(mut boxes) = level.explicit() else { unreachable!("they are listed") };
            boxes.iter_mut().flatten().for_each(|side| *side += random.between(-3.0, 3.0) as f32);
            levels.push(if random.chance(0.5) { Level::Boxes(boxes) } else { level });
        }
        let ranges: Vec<[f32; 2]> = (levels.iter())
            .map(|_| [random.between(-1.0, 100.0) as f32, random.between(100.0, 300.0) as f32])
            .collect();
        let are_grids = levels.iter().all(|level| matches!(level, Level::Grid { .. }));
        let radius = [None, Some(1.0)][random.index(2)].filter(|_| are_grids);
        let rules =
            if round % 4 == 0 { Rules::atss(1 + random.index(12)) } else { Rules::fcos(&ranges, radius) };
        let rules = rules
            .ignoring([-1.0, 0.3, 0.6, 1.0][random.index(4)])
            .falling_back(random.index(4))
            .background([Background::Last, Background::First][random.index(2)]);
        let what = format!("round {round}, {rules:?}");
        let want = as_defined(&what, &gpu, &rules, &levels, &scene);
        unassigned += want.status.unassigned.count;
        positives += want.positives();
        let centerness = want.levels.iter().flat_map(|level| &level.centerness);
        central += centerness.filter(|&&centerness| centerness > 0.0).count();
    }
    assert!(unassigned > 20 && positives > 300 && central > 100, "{unassigned} {positives} {central}");
}

/// Both ends of a range count, all four sides of a middle do not; of equal areas the first box has the point.
#[test]
fn ties() {
    let gpu = gpu();
    let levels = [Level::new(4, 4, 8.0).offset(0.5)];
    let scene = |boxes: &[[f32; 4]]| Scene {
        boxes: boxes.to_vec(),
        labels: (0..boxes.len() as i64).collect(),
        image: vec![0; boxes.len()],
        images: 1,
        classes: 9,
        ..Scene::default()
    };
    // Of (12, 12) the furthest side is 20 pixels away.
    let wide = scene(&[[4.0, 4.0, 32.0, 20.0]]);
    for (range, positive) in
        [([20.0, 64.0], true), ([0.0, 20.0], true), ([20.5, 64.0], false), ([0.0, 19.5], false)]
    {
        let rules = Rules::fcos(&[range], None);
        let labels = &assigned(&rules, &levels, &wide).levels[0].labels;
        assert_eq!(labels[5] == 0, positive, "{range:?}");
        same_on_cuda("a range", &gpu, &rules, &levels, &wide);
    }
    // A point on the side of a box is not inside; nor is one on the side of its middle, 8 pixels around (16, 16).
    let rules = Rules::fcos(&[[-1.0, 64.0]], Some(1.0));
    let on_sides = scene(&[[4.0, 4.0, 28.0, 28.0], [12.0, 12.0, 20.0, 20.0]]);
    let labels = &assigned(&rules, &levels, &on_sides).levels[0].labels;
    assert_eq!(labels[5..7], [0, 0], "(12, 12) and (20, 12) are on the sides of the second");
    assert_eq!(labels.iter().filter(|&&label| label != 9).count(), 4);
    same_on_cuda("sides", &gpu, &rules, &levels, &on_sides);
    // Nor is it in a region to ignore, all sides of which have points here.
    let ignored = Scene { ignore: Some((vec![[4.0, 4.0, 20.0, 20.0]], vec![0])), ..on_sides };
    let want = as_defined("a region", &gpu, &rules.clone().ignoring(0.5), &levels, &ignored);
    assert_eq!(want.label_weights().filter(|&weight| weight == 0.0).count(), 1, "(12, 12)");
    // The same area, in another shape or twice.
    let rules = Rules::fcos(&[[-1.0, 64.0]], None);
    let equal = scene(&[
        [0.0, 0.0, 32.0, 32.0],
        [8.0, 0.0, 24.0, 16.0],
        [0.0, 8.0, 16.0, 24.0],
        [8.0, 0.0, 24.0, 16.0],
    ]);
    let got = assigned(&rules, &levels, &equal);
    assert_eq!(got.levels[0].labels, [0, 1, 1, 0, 2, 1, 1, 0, 2, 2, 0, 0, 0, 0, 0, 0]);
    assert_eq!((got.status.unassigned.count, got.status.unassigned.first), (1, Some(3)));
    same_on_cuda("areas", &gpu, &rules, &levels, &equal);
    // It gets the nearest point that is free; there is none.
    let rules = rules.falling_back(2);
    assert_eq!(assigned(&rules, &levels, &equal).status.unassigned.count, 1);
    same_on_cuda("no free point", &gpu, &rules, &levels, &equal);
    let small = scene(&[[13.0, 13.0, 15.0, 15.0], [30.0, 2.0, 31.0, 3.0]]);
    let got = assigned(&rules, &levels, &small);
    assert!(got.status.is_ok());
    let level = &got.levels[0];
    let taken: Vec<usize> = (0..16).filter(|&i| level.labels[i] != 9).collect();
    assert_eq!(taken, [3, 5, 7, 9]);
    assert!(level.centerness.iter().all(|&centerness| centerness == 0.0), "outside of their boxes");
    same_on_cuda("small", &gpu, &rules, &levels, &small);
}

/// Boxes and points that are far apart, areas beyond f32, levels without points, no image.
#[test]
fn what_is_strange() {
    let gpu = gpu();
    let max = f32::MAX;
    let scene = Scene {
        boxes: vec![
            [-max, -max, max, max],
            [-1e20, -1e20, 1e20, 1e20],
            [-3e38, 0.0, 3e38, 64.0],
            [1e30, 1e30, 2e30, 2e30],
            [40.0, 40.0, 40.001, 40.001],
            [30.0, 30.0, 90.0, 80.0],
        ],
        labels: vec![1, 2, 3, 4, 5, 6],
        image: vec![0; 6],
        images: 1,
        classes: 20,
        ..Scene::default()
    };
    let levels = [
        points(pyramid()),
        vec![Level::new(0, 7, 8.0), Level::new(5, 5, 8.0), Level::new(3, 0, 8.0)],
        vec![Level::new(0, 0, 8.0)],
        vec![Level::Boxes(vec![
            [f32::NAN; 4],
            [0.0, 0.0, 60.0, 60.0],
            [f32::INFINITY; 4],
            [-max, -max, max, max],
        ])],
    ];
    for levels in &levels {
        let open = vec![[0.0, f32::INFINITY]; levels.len()];
        for fallback in [0, 2] {
            let rules = Rules::fcos(&open, None).falling_back(fallback);
            let what = format!("{} levels", levels.len());
            same_on_cuda(&what, &gpu, &rules, levels, &scene);
            same_on_cuda(&what, &gpu, &rules, levels, &Scene { images: 0, ..scene.clone() });
        }
    }
    let rules = Rules::fcos(&[[0.0, f32::INFINITY]; 5], None);
    let got = assigned(&rules, &levels[0], &scene);
    // Areas beyond f32 are equal, and larger than all others.
    let mut labels: Vec<i64> = got.levels.iter().flat_map(|level| level.labels.clone()).collect();
    labels.sort_unstable();
    labels.dedup();
    assert_eq!(labels, [1, 6]);
}

/// The centerness of points all over a box and all but on its sides: of those within its range, and of those that a box
/// gets which has none.
#[test]
fn centerness_from_side_to_side() {
    let gpu = gpu();
    let levels = [Level::new(10, 12, 8.0).offset(0.5)];
    let scene = Scene {
        boxes: vec![[3.99, 3.9, 92.02, 76.5], [3.0, 1.0, 61.0, 40.0]],
        labels: vec![1, 2],
        image: vec![0, 1],
        images: 2,
        classes: 9,
        ..Scene::default()
    };
    for (range, fallback) in [([0.0, f32::INFINITY], 0), ([1e6, f32::INFINITY], 120)] {
        let rules = Rules::fcos(&[range], None).falling_back(fallback);
        let want = as_defined("a side", &gpu, &rules, &levels, &scene);
        let inside = want.levels[0].centerness.iter().filter(|&&centerness| centerness > 0.0);
        assert!(inside.clone().count() > 120 && inside.clone().any(|&centerness| centerness < 1e-3));
    }
}

#[test]
fn errors() {
    let gpu = gpu();
    let good = real_scene(&mut Random::new(63), 4);
    let text = |rules: &Rules, levels: &[Level]| {
        let text = on_cpu::<i64>(rules, levels, &good).expect_err("a wrong call").to_string();
        if let Some(gpu) = &gpu {
            let mut call = OnCuda::<i64>::new(gpu, levels, &good, 0);
            assert_eq!(call.call(gpu, rules).expect_err("a wrong call").to_string(), text);
        }
        text
    };
    let levels = points(pyramid());
    let two = Rules::fcos(&[[0.0, 1.0]; 2], None);
    assert_eq!(text(&two, &levels), "there are 5 levels of anchors, but regress ranges for 2");
    let sampled = Rules::fcos(&[[0.0, 1.0]; 2], Some(1.5));
    let listed = [levels[3].clone(), levels[4].explicit()];
    assert_eq!(
        text(&sampled, &listed),
        "level 1: centre sampling needs a stride, which explicit anchors do not have; give a grid"
    );
    type Wrong = fn() -> gfocal::Result<Fcos>;
    let options: [(&str, Wrong); 9] = [
        ("the number of regress ranges is 0, it must be from 1 to 8", || Fcos::new(&[])),
        ("the number of regress ranges is 9, it must be from 1 to 8", || Fcos::new(&[[0.0, 1.0]; 9])),
        ("a regress range's start is NaN, it must be a number", || Fcos::new(&[[f32::NAN, 1.0]])),
        ("a regress range's end is NaN, it must be no less than its start", || Fcos::new(&[[0.0, f32::NAN]])),
        ("a regress range's end is 3, it must be no less than its start", || {
            Fcos::new(&[[0.0, 1.0], [4.0, 3.0]])
        }),
        ("the radius is 0, it must be a finite number above 0", || Fcos::default().with_center_sampling(0.0)),
        ("the radius is inf, it must be a finite number above 0", || {
            Fcos::default().with_center_sampling(f32::INFINITY)
        }),
        ("ignore_iof is -0.5, it must be above 0 and at most 1, or -1 for none", || {
            Fcos::default().with_ignore_iof(-0.5)
        }),
        ("fallback is 2147483648, it must be at most 2147483647", || Fcos::default().with_fallback(1 << 31)),
    ];
    for (want, wrong) in options {
        assert_eq!(wrong().expect_err("a wrong option").to_string(), want);
    }
    let (mut labels, mut boxes, mut five) = ([0i64; 6], [0.0; 24], [0.0; 5]);
    let targets = &mut [LevelTargets::cpu(&mut labels, &mut boxes).centerness(&mut five)];
    let anchors = [Anchors::Grid(gfocal::assign::AnchorGrid::new(2, 3, 8.0))];
    let fcos = Fcos::new(&[[0.0, 1.0]]).expect("a legal range");
    let gt = GroundTruth::cpu(&[], &[], &[]);
    let text = fcos.cpu(&anchors, gt, 1, 20, targets).expect_err("a wrong call").to_string();
    assert_eq!(text, "centerness has 5 elements, 6 boxes need 6");
    assert_eq!(Fcos::default(), Fcos::default().with_ignore_iof(-1.0).expect("the default"));
}
