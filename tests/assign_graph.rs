//! Shows that an assignment can be captured in a CUDA graph and replayed with other boxes and
//! another number of them.
//!
//! In a binary of its own, as one test: a stream that is created while another one captures
//! breaks the capture.

mod support;

use gfocal::assign::{AnchorGrid, AssignWorkspace, Atss, GroundTruth, LevelTargets};
use gfocal::cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use support::random::Random;
use support::tolerance::check_same_bits;
use support::{Buffer, gpu};

const IMAGES: usize = 2;
const CLASSES: usize = 10;
/// Room for boxes; a step that has fewer pads.
const ROOM: usize = 30;
const SHAPES: [(usize, usize, f32); 3] = [(16, 20, 8.0), (8, 10, 16.0), (4, 5, 32.0)];

/// Boxes, labels and images of a step.
fn step(number: u64) -> (Vec<f32>, Vec<i64>, Vec<i64>) {
    let mut random = Random::new(51 + number);
    let used = [30, 3, 0, 17][number as usize % 4];
    let (mut boxes, mut labels, mut image) = (vec![f32::NAN; 4 * ROOM], vec![99; ROOM], vec![-1; ROOM]);
    for i in 0..used {
        let (x, y) = (random.between(0.0, 160.0), random.between(0.0, 128.0));
        let (w, h) = (random.between(4.0, 60.0), random.between(4.0, 60.0));
        boxes[4 * i..4 * i + 4].copy_from_slice(&[x - w, y - h, x + w, y + h].map(|side| side as f32));
        labels[i] = random.index(CLASSES) as i64;
        image[i] = random.index(IMAGES) as i64;
    }
    (boxes, labels, image)
}

fn on_cpu((boxes, labels, image): &(Vec<f32>, Vec<i64>, Vec<i64>)) -> Vec<(Vec<i64>, Vec<f32>)> {
    let mut out =
        SHAPES.map(|(h, w, _)| (vec![-1; IMAGES * h * w], vec![f32::NAN; 4 * IMAGES * h * w])).to_vec();
    let mut targets: Vec<_> =
        out.iter_mut().map(|(labels, boxes)| LevelTargets::cpu(labels, boxes)).collect();
    let anchors = SHAPES.map(|(h, w, stride)| AnchorGrid::new(h, w, stride).into());
    let gt = GroundTruth::cpu(boxes, labels, image);
    Atss::default().cpu(&anchors, gt, IMAGES, CLASSES, &mut targets).expect("a legal call");
    out
}

#[test]
fn an_assignment_is_captured_and_replayed() {
    let Some(gpu) = gpu() else { return };
    // SAFETY: all work is on one stream, so that nothing needs to be ordered by events; no buffer
    // has been allocated yet.
    unsafe { gpu.context.disable_event_tracking() };
    let first = step(0);
    let (mut boxes, mut labels, mut image) =
        (Buffer::new(&gpu, &first.0, 0), Buffer::new(&gpu, &first.1, 0), Buffer::new(&gpu, &first.2, 0));
    let mut out = SHAPES.map(|(h, w, _)| {
        (
            Buffer::<i64>::poisoned(&gpu, IMAGES * h * w, 0),
            Buffer::<f32>::poisoned(&gpu, 4 * IMAGES * h * w, 0),
        )
    });
    let anchors: usize = SHAPES.iter().map(|(h, w, _)| h * w).sum();
    let mut workspace = AssignWorkspace::new(&gpu.stream, IMAGES, anchors, ROOM).expect("device memory");
    gpu.handle.prepare(Atss::units()).expect("they load");

    gpu.stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_GLOBAL).expect("a capture begins");
    let result = {
        let mut views: Vec<_> =
            out.iter_mut().map(|(labels, boxes)| (labels.view_mut(), boxes.view_mut())).collect();
        let mut targets: Vec<_> =
            views.iter_mut().map(|(labels, boxes)| LevelTargets::cuda(labels, boxes)).collect();
        let (boxes, labels, image) = (boxes.view(), labels.view(), image.view());
        let gt = GroundTruth::cuda(&boxes, &labels, &image);
        let anchors = SHAPES.map(|(h, w, stride)| AnchorGrid::new(h, w, stride).into());
        Atss::default().cuda(&gpu.handle, &anchors, gt, IMAGES, CLASSES, &mut targets, &mut workspace, None)
    };
    let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = gpu.stream.end_capture(flags).expect("a capture ends").expect("a graph");
    result.expect("a call can be captured");

    for number in [1, 0, 2, 3, 0] {
        let step = step(number);
        boxes.write(&gpu, &step.0);
        labels.write(&gpu, &step.1);
        image.write(&gpu, &step.2);
        for _ in 0..2 {
            graph.launch().expect("a replay");
        }
        let mut positives = 0;
        for ((labels, boxes), want) in out.iter().zip(on_cpu(&step)) {
            let labels = labels.read(&gpu);
            positives += labels.iter().filter(|&&label| label != CLASSES as i64).count();
            assert_eq!(labels, want.0, "step {number}");
            check_same_bits(&format!("step {number}"), &boxes.read(&gpu), &want.1);
        }
        assert_eq!(positives == 0, number == 2, "step {number}: {positives} positives");
    }
}
