//! Shows that an assignment can be captured in a CUDA graph and replayed with other boxes and another number of
//! them, other sizes of the images, and other boxes to ignore.
//!
//! In a binary of its own, as one test: a stream that is created while another one captures
//! breaks the capture.

use gfocal::assign::{Atss, Fcos};
use support::assign::{Level, OnCuda, Rules, Scene, on_cpu, same};
use support::gpu;
use support::random::Random;

const IMAGES: usize = 2;
const CLASSES: usize = 10;
/// Room for boxes, and for boxes to ignore; a step that has fewer pads.
const ROOM: usize = 30;
const ROOM_TO_IGNORE: usize = 4;

fn levels() -> Vec<Level> {
    vec![Level::new(16, 20, 8.0), Level::new(8, 10, 16.0), Level::new(4, 5, 32.0)]
}

/// What a step has.
fn step(number: u64) -> Scene {
    let mut random = Random::new(51 + number);
    let some = |random: &mut Random| {
        let (x, y) = (random.between(0.0, 160.0), random.between(0.0, 128.0));
        let (w, h) = (random.between(4.0, 60.0), random.between(4.0, 60.0));
        [x - w, y - h, x + w, y + h].map(|side| side as f32)
    };
    let [used, ignored] = [[30, 2], [3, 4], [0, 0], [17, 1]][number as usize % 4];
    let mut scene = Scene {
        boxes: vec![[f32::NAN; 4]; ROOM],
        labels: vec![99; ROOM],
        image: vec![-1; ROOM],
        weights: Some(random.many(ROOM, 0.0, 2.0).into_iter().map(|weight| weight as f32).collect()),
        ignore: Some((vec![[f32::NAN; 4]; ROOM_TO_IGNORE], vec![-1; ROOM_TO_IGNORE])),
        valid_hw: Some(
            (0..IMAGES)
                .flat_map(|_| [40 + random.index(89), 60 + random.index(101)])
                .map(|n| n as i64)
                .collect(),
        ),
        images: IMAGES,
        classes: CLASSES,
    };
    for i in 0..used {
        scene.boxes[i] = some(&mut random);
        scene.labels[i] = random.index(CLASSES + 1) as i64; // one of them is none
        scene.image[i] = random.index(IMAGES) as i64;
    }
    let (boxes, image) = scene.ignore.as_mut().expect("boxes to ignore");
    for i in 0..ignored {
        (boxes[i], image[i]) = (some(&mut random), random.index(IMAGES) as i64);
    }
    scene
}

#[test]
fn an_assignment_is_captured_and_replayed() {
    let Some(gpu) = gpu() else { return };
    // SAFETY: all work is on one stream, so that nothing needs to be ordered by events; no buffer
    // has been allocated yet.
    unsafe { gpu.context.disable_event_tracking() };
    let levels = levels();
    let calls = [
        Rules::atss(9).ignoring(0.5),
        Rules::atss(9).ignoring(0.25).falling_back(2),
        Rules::fcos_for(&levels, Some(1.5)).ignoring(0.5).falling_back(1),
    ];
    gpu.handle.prepare(Atss::units() | Fcos::units()).expect("they load");
    for rules in &calls {
        let mut call = OnCuda::<i64>::new(&gpu, &levels, &step(0), 0);
        let (graph, result) = gpu.captured(|| call.call(&gpu, rules));
        result.expect("a call can be captured");

        for number in [1, 0, 2, 3, 4, 0] {
            let scene = step(number);
            call.write(&gpu, &scene);
            for _ in 0..2 {
                call.status.reset(&gpu.stream).expect("a reset");
                graph.launch().expect("a replay");
            }
            let want = on_cpu::<i64>(rules, &levels, &scene).expect("a legal call");
            same(&format!("step {number}, {rules:?}"), &call.read(&gpu), &want);
            assert_eq!(want.positives() == 0, number == 2, "step {number}: {} positives", want.positives());
            assert!(want.label_weights().any(|weight| weight == 0.0));
        }
    }
}
