//! Shows that assignment is as it is defined where anchors are not: whole regions without one, boxes far before the
//! first, centres at the edge of an image; on the CPU, and with the same bits on CUDA.

use support::assign::{Level, Rules, Scene, as_defined, pyramid, scene};
use support::gpu;
use support::random::Random;

/// Whole regions without an anchor: the nearest are far, or there are none.
#[test]
fn nothing_near_takes_part() {
    let gpu = gpu();
    let levels = pyramid();
    let mut scene = scene(&mut Random::new(47), 30);
    let far = [236.0, 181.0, 286.0, 231.0];
    scene.boxes.push(far);
    scene.labels.push(3);
    scene.image.push(0);
    let rules = Rules::atss(9).ignoring(0.5).falling_back(2);
    let all = [-1e4, -1e4, 1e4, 1e4];
    let (most, least) = (f32::INFINITY, f32::NEG_INFINITY);
    for (what, ignore, valid_hw) in [
        ("a crowd in the middle", Some([40.0, 30.0, 260.0, 220.0]), None),
        ("everything is a crowd", Some(all), None),
        ("the left half is a crowd", Some([-1e4, -1e4, 170.0, 1e4]), None),
        ("the right half is a crowd", Some([150.0, -1e4, 1e4, 1e4]), None),
        ("the upper half is a crowd", Some([-1e4, -1e4, 1e4, 150.0]), None),
        ("the lower half is a crowd", Some([-1e4, 106.0, 1e4, 1e4]), None),
        ("a small crowd, far from the first anchor", Some(far), None),
        // These are none.
        ("a crowd without a left side", Some([least, 30.0, 260.0, 220.0]), None),
        ("a crowd without a top", Some([40.0, least, 260.0, 220.0]), None),
        ("a crowd without a right side", Some([40.0, 30.0, most, 220.0]), None),
        ("a crowd without a bottom", Some([40.0, 30.0, 260.0, most]), None),
        ("no valid pixel", None, Some([0, 0])),
        ("no valid column", None, Some([256, 0])),
        ("no valid row", None, Some([0, 320])),
        ("a negative size", None, Some([-64, 320])),
        ("one valid anchor a level", None, Some([1, 1])),
        ("a larger size", None, Some([10_000, 10_000])),
        ("a corner, and a crowd in it", Some([-60.0, -60.0, 70.0, 60.0]), Some([64, 80])),
    ] {
        // The third image is as it was.
        scene.ignore = ignore.map(|b| (vec![b; 2], vec![0, 1]));
        scene.valid_hw = valid_hw.map(|[h, w]: [i64; 2]| vec![h, w, h, w, 256, 320]);
        let want = as_defined(what, &gpu, &rules, &levels, &scene);
        assert!(want.positives() > 0, "{what}");
        as_defined(what, &gpu, &rules, &levels[2..].iter().map(Level::explicit).collect::<Vec<_>>(), &scene);
    }
}

/// Boxes whose centres are far before the first of a single row or column of anchors, and in line with it: what is
/// rounded on the way there costs none of the nearest.
#[test]
fn far_before_a_row() {
    let gpu = gpu();
    let far: Vec<f32> = (0..150).map(|i| -7.0 - 5.0 * i as f32).collect();
    let scene = |corners: fn(f32) -> [f32; 4]| Scene {
        boxes: far.iter().map(|&x| corners(x)).collect(),
        labels: vec![3; far.len()],
        image: (0..far.len() as i64).collect(),
        images: far.len(),
        classes: 20,
        ..Scene::default()
    };
    let level = |height, width| [Level::new(height, width, 10.0).offset(0.5).sizes(&[[8.0, 8.0]])];
    for topk in [2, 3, 5, 6] {
        // The centres of all are inside, and the IoUs are the same.
        for (what, scene, level) in [
            ("a row", scene(|x| [x, -15.0, 80.0, 25.0]), level(1, 6)),
            ("a column", scene(|y| [-15.0, y, 25.0, 80.0]), level(6, 1)),
        ] {
            let what = format!("{what}, topk {topk}");
            let want = as_defined(&what, &gpu, &Rules::atss(topk), &level, &scene);
            assert_eq!(want.positives(), topk * far.len(), "{what}");
        }
    }
}

/// Listed anchors whose centres are at the edge of an image: the last that is in it, and the first that is not.
#[test]
fn centres_at_an_edge() {
    let edge = 100f32;
    let anchors = [edge.next_down(), edge, edge.next_up()].into_iter().flat_map(|at| {
        let (x, y) = ([0.0, 40.0, 2.0 * at, 60.0], [40.0, 0.0, 60.0, 2.0 * at]);
        [x, x, y, y]
    });
    let levels = [Level::Boxes(anchors.collect())];
    let scene = Scene {
        // Around the edge, and beyond it.
        boxes: vec![
            [80.0, 30.0, 120.0, 70.0],
            [30.0, 80.0, 70.0, 120.0],
            [140.0, 45.0, 150.0, 55.0],
            [45.0, 140.0, 55.0, 150.0],
        ],
        labels: vec![1, 2, 3, 4],
        image: vec![0, 1, 2, 3],
        valid_hw: Some([[1000, 100], [100, 1000], [1000, 100], [100, 1000]].concat()),
        images: 4,
        classes: 20,
        ..Scene::default()
    };
    // Two that are alike around each edge, and one beyond it; of boxes that are too small for the level, one each.
    let fcos = |low| Rules::fcos(&[[low, f32::INFINITY]], None);
    for (rules, positives) in [(Rules::atss(2), 6), (fcos(-1.0), 6), (fcos(1000.0), 4)] {
        let what = format!("{rules:?}");
        let want = as_defined(&what, &gpu(), &rules.falling_back(1), &levels, &scene);
        assert_eq!(want.positives(), positives, "{what}");
    }
}
