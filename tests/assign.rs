//! Shows that ATSS assigns as mmdetection does (the golden heads), and as a plain transcription
//! of its definition does on scenes of all kinds; that CUDA gives the bits of the CPU, in two
//! launches that neither allocate nor wait, whatever the order; and what the errors say.

mod support;

use std::fmt::Debug;

use gfocal::assign::{AnchorGrid, Anchors, AssignWorkspace, Atss, GroundTruth, LevelTargets};
use gfocal::cuda::Device;
use gfocal::{Host, Label};
use support::atss::{Scene, Targets, Ties, transcription};
use support::gpu::Poison;
use support::random::Random;
use support::tolerance::check_same_bits;
use support::vectors::Vectors;
use support::{Buffer, Gpu, gpu};

/// A level, as a grid or as its boxes.
#[derive(Clone)]
enum Level {
    Grid(AnchorGrid, usize),
    Boxes(Vec<f32>),
}

impl Level {
    /// mmdetection's anchors: 8 strides wide.
    fn new(height: usize, width: usize, stride: f32) -> Level {
        Level::Grid(AnchorGrid::new(height, width, stride), height * width)
    }

    fn anchors(&self) -> usize {
        match self {
            Level::Grid(_, anchors) => *anchors,
            Level::Boxes(boxes) => boxes.len() / 4,
        }
    }
}

/// The boxes of [`Level::new`], from their definition.
fn boxes_of(height: usize, width: usize, stride: f32) -> Vec<f32> {
    let centre = |i: usize| i as f32 * stride;
    let one = |i: usize| {
        let (x, y, half) = (centre(i % width), centre(i / width), 4.0 * stride);
        [x - half, y - half, x + half, y + half]
    };
    (0..height * width).flat_map(one).collect()
}

trait Cast: Label + Poison + PartialEq {
    fn cast(labels: &[i64]) -> Vec<Self>;
}

impl Cast for i64 {
    fn cast(labels: &[i64]) -> Vec<i64> {
        labels.to_vec()
    }
}

impl Cast for i32 {
    fn cast(labels: &[i64]) -> Vec<i32> {
        labels.iter().map(|&label| label as i32).collect()
    }
}

fn run<L: Cast>(atss: &Atss, levels: &[Level], scene: &Scene) -> gfocal::Result<Targets<L>> {
    let mut out: Targets<L> = (levels.iter())
        .map(|level| {
            let anchors = scene.images * level.anchors();
            (vec![L::POISON; anchors], vec![f32::NAN; 4 * anchors])
        })
        .collect();
    let anchors: Vec<Anchors> = (levels.iter())
        .map(|level| match level {
            Level::Grid(grid, _) => (*grid).into(),
            Level::Boxes(boxes) => Anchors::cpu(boxes),
        })
        .collect();
    let mut targets: Vec<LevelTargets<Host, L>> =
        out.iter_mut().map(|(labels, boxes)| LevelTargets::cpu(labels, boxes)).collect();
    let (labels, image) = (L::cast(&scene.labels), L::cast(&scene.image));
    let gt = GroundTruth::cpu(scene.boxes.as_flattened(), &labels, &image);
    atss.cpu(&anchors, gt, scene.images, scene.classes, &mut targets)?;
    drop(targets);
    Ok(out)
}

/// The buffers of a call on CUDA, for calls again and again.
struct OnCuda<L> {
    levels: Vec<(Option<AnchorGrid>, Buffer<f32>)>,
    boxes: Buffer<f32>,
    labels: Buffer<L>,
    image: Buffer<L>,
    targets: Vec<(Buffer<L>, Buffer<f32>)>,
    workspace: AssignWorkspace,
    images: usize,
    classes: usize,
}

impl<L: Cast> OnCuda<L> {
    fn new(gpu: &Gpu, levels: &[Level], scene: &Scene, offset: usize) -> OnCuda<L> {
        let anchors: usize = levels.iter().map(Level::anchors).sum();
        let targets = |level: &Level| {
            let anchors = scene.images * level.anchors();
            (Buffer::poisoned(gpu, anchors, offset), Buffer::poisoned(gpu, 4 * anchors, offset))
        };
        let level = |level: &Level| match level {
            Level::Grid(grid, _) => (Some(*grid), Buffer::new(gpu, &[], 0)),
            Level::Boxes(boxes) => (None, Buffer::new(gpu, boxes, offset)),
        };
        OnCuda {
            levels: levels.iter().map(level).collect(),
            boxes: Buffer::new(gpu, scene.boxes.as_flattened(), offset),
            labels: Buffer::new(gpu, &L::cast(&scene.labels), offset),
            image: Buffer::new(gpu, &L::cast(&scene.image), offset),
            targets: levels.iter().map(targets).collect(),
            workspace: AssignWorkspace::new(&gpu.stream, scene.images, anchors, scene.boxes.len())
                .expect("device memory"),
            images: scene.images,
            classes: scene.classes,
        }
    }

    fn call(&mut self, gpu: &Gpu, atss: &Atss) -> gfocal::Result<()> {
        let views: Vec<_> = self.levels.iter().map(|(_, boxes)| boxes.view()).collect();
        let anchors: Vec<Anchors<Device>> = (self.levels.iter().zip(&views))
            .map(|((grid, _), boxes)| grid.map_or_else(|| Anchors::cuda(boxes), Anchors::Grid))
            .collect();
        let mut views: Vec<_> =
            self.targets.iter_mut().map(|(labels, boxes)| (labels.view_mut(), boxes.view_mut())).collect();
        let mut targets: Vec<LevelTargets<Device, L>> =
            (views.iter_mut()).map(|(labels, boxes)| LevelTargets::cuda(labels, boxes)).collect();
        let (boxes, labels, image) = (self.boxes.view(), self.labels.view(), self.image.view());
        let gt = GroundTruth::cuda(&boxes, &labels, &image);
        let workspace = &mut self.workspace;
        atss.cuda(&gpu.handle, &anchors, gt, self.images, self.classes, &mut targets, workspace, None)
    }

    fn read(&self, gpu: &Gpu) -> Targets<L> {
        self.targets.iter().map(|(labels, boxes)| (labels.read(gpu), boxes.read(gpu))).collect()
    }
}

#[track_caller]
fn same<L: Debug + PartialEq>(what: &str, got: &Targets<L>, want: &Targets<L>) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (level, (got, want)) in got.iter().zip(want).enumerate() {
        let different = got.0.iter().zip(&want.0).position(|(got, want)| got != want);
        assert_eq!(different.map(|i| (i, &got.0[i], &want.0[i])), None, "{what}, level {level}: labels");
        check_same_bits(&format!("{what}, level {level}, box targets"), &got.1, &want.1);
    }
}

/// On CUDA as on the CPU, for labels of both types, at good and bad alignment.
#[track_caller]
fn same_on_cuda(what: &str, gpu: &Option<Gpu>, atss: &Atss, levels: &[Level], scene: &Scene) {
    let Some(gpu) = gpu else { return };
    let want = run::<i64>(atss, levels, scene).expect("a legal call");
    let mut wide = OnCuda::<i64>::new(gpu, levels, scene, 0);
    wide.call(gpu, atss).expect("a legal call");
    same(what, &wide.read(gpu), &want);
    let mut narrow = OnCuda::<i32>::new(gpu, levels, scene, 1);
    narrow.call(gpu, atss).expect("a legal call");
    same(what, &narrow.read(gpu), &run::<i32>(atss, levels, scene).expect("a legal call"));
}

/// The levels of an image of 256 by 320 pixels: height, width, stride.
const PYRAMID: [(usize, usize, f32); 5] =
    [(32, 40, 8.0), (16, 20, 16.0), (8, 10, 32.0), (4, 5, 64.0), (2, 3, 128.0)];

fn pyramid() -> Vec<Level> {
    PYRAMID.map(|(height, width, stride)| Level::new(height, width, stride)).to_vec()
}

fn pyramid_boxes() -> Vec<Vec<f32>> {
    PYRAMID.map(|(height, width, stride)| boxes_of(height, width, stride)).to_vec()
}

/// Boxes of all sizes in and around the image; some on the lattice of the anchors, some twice.
fn scene(random: &mut Random, boxes: usize) -> Scene {
    let mut scene = Scene { images: 3, classes: 20, ..Scene::default() };
    for _ in 0..boxes {
        let (x, y) = (random.between(-60.0, 380.0), random.between(-60.0, 316.0));
        let size = |random: &mut Random| 2f64.powf(random.between(0.0, 9.5)) / 2.0;
        let (w, h) = (size(random), size(random));
        let mut b = [x - w, y - h, x + w, y + h].map(|side| side as f32);
        if random.chance(0.3) {
            b = b.map(|side| (side / 4.0).round() * 4.0);
        }
        if random.chance(0.1) && !scene.boxes.is_empty() {
            b = scene.boxes[random.index(scene.boxes.len())];
        }
        scene.boxes.push(b);
        scene.labels.push(random.index(20) as i64);
        scene.image.push(random.index(4) as i64 - 1); // -1: padding
    }
    scene
}

fn positives(targets: &Targets, classes: usize) -> usize {
    targets.iter().flat_map(|(labels, _)| labels).filter(|&&label| label != classes as i64).count()
}

#[test]
fn as_mmdetection_does() {
    let gpu = gpu();
    for name in ["head_small", "head_coco", "head_no_gt"] {
        let vectors = Vectors::open(format!("tests/golden/{name}.safetensors"));
        let number = |key: &str| vectors.case[key].as_f64().expect("a number");
        let strides = vectors.case["strides"].as_array().expect("strides");
        let (mut grids, mut anchors, mut want) = (Vec::new(), Vec::new(), Targets::new());
        let mut images = 0;
        for (i, stride) in strides.iter().enumerate() {
            let shape = vectors.shape(&format!("level{i}.cls_logits"));
            let stride = stride.as_f64().expect("a stride") as f32;
            images = shape[0];
            let grid = AnchorGrid::new(shape[2], shape[3], stride).with_scale(number("anchor_scale") as f32);
            grids.push(Level::Grid(grid, shape[2] * shape[3]));
            // The same in all images.
            anchors.push(vectors.f32s(&format!("level{i}.anchors"))[..4 * shape[2] * shape[3]].to_vec());
            want.push((
                vectors.i64s(&format!("level{i}.labels")),
                vectors.f32s(&format!("level{i}.box_targets")),
            ));
        }
        let scene = Scene {
            boxes: vectors.f32s("gt_boxes").as_chunks().0.to_vec(),
            labels: vectors.i64s("gt_labels"),
            image: vectors.i64s("gt_image"),
            images,
            classes: number("num_classes") as usize,
        };
        assert_eq!(scene.boxes.is_empty(), name == "head_no_gt");
        assert_eq!(positives(&want, scene.classes) > 0, !scene.boxes.is_empty(), "{name}");
        let topk = number("atss_topk") as usize;
        let atss = Atss::new(topk).expect("a legal number");
        let defined = |ties| transcription(topk, ties, &anchors, &scene);
        same(&format!("{name}, as defined"), &defined(Ties::Higher), &want);
        // Of head_small, anchors 91 and 94 of the first image are equally near to the first box, as its
        // ninth and tenth candidate, and PyTorch took 94.
        assert_eq!(name == "head_small", defined(Ties::Lower) != want, "{name}");
        let explicit = anchors.into_iter().map(Level::Boxes).collect();
        for levels in [grids, explicit] {
            same(name, &run(&atss, &levels, &scene).expect("a legal call"), &want);
            same_on_cuda(name, &gpu, &atss, &levels, &scene);
        }
    }
}

#[test]
fn as_the_definition_says() {
    let gpu = gpu();
    let mut random = Random::new(41);
    let explicit: Vec<Level> = pyramid_boxes().into_iter().map(Level::Boxes).collect();
    for (round, boxes) in [0, 1, 3, 20, 60, 200, 60, 60].into_iter().enumerate() {
        let scene = scene(&mut random, boxes);
        for topk in [9, 1, 4, 7, 32] {
            let atss = Atss::new(topk).expect("a legal number");
            let what = format!("round {round}, {boxes} boxes, topk {topk}");
            let want = transcription(topk, Ties::Higher, &pyramid_boxes(), &scene);
            assert!(positives(&want, 20) > 0 || boxes < 20, "{what}");
            same(&what, &run(&atss, &pyramid(), &scene).expect("a legal call"), &want);
            same(&what, &run(&atss, &explicit, &scene).expect("a legal call"), &want);
            if topk == 9 || round == 3 {
                same_on_cuda(&what, &gpu, &atss, &pyramid(), &scene);
            }
            if round == 3 {
                same_on_cuda(&what, &gpu, &atss, &explicit, &scene);
            }
        }
    }
}

/// As many levels as there may be, a warp of the block for each; and more anchors than the emulator's 32 blocks have
/// threads.
#[test]
fn eight_levels_as_the_definition_says() {
    let gpu = gpu();
    let sizes = [4.0, 8.0, 16.0, 24.0, 32.0, 48.0, 64.0, 128.0].map(|stride| {
        let cells = |pixels: f32| (pixels / stride).ceil() as usize;
        (cells(160.0), cells(224.0), stride)
    });
    let grids = sizes.map(|(height, width, stride)| Level::new(height, width, stride));
    let boxes = sizes.map(|(height, width, stride)| boxes_of(height, width, stride));
    let explicit = boxes.clone().map(Level::Boxes);
    let scene = scene(&mut Random::new(44), 250);
    for topk in [9, 16] {
        let atss = Atss::new(topk).expect("a legal number");
        let (what, want) = (format!("topk {topk}"), transcription(topk, Ties::Higher, &boxes, &scene));
        let of_level = |level: &(Vec<i64>, Vec<f32>)| level.0.iter().any(|&label| label != 20);
        assert!(want.iter().all(of_level), "{what}: every level has positives");
        for levels in [&grids, &explicit] {
            same(&what, &run(&atss, levels, &scene).expect("a legal call"), &want);
            same_on_cuda(&what, &gpu, &atss, levels, &scene);
        }
    }
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
        [0.0, 0.0, inf, inf],
        [100.0, 0.0, 20.0, 100.0],
        [50.0, 50.0, 50.0, 50.0],
        [16.0, 16.0, 16.0, 90.0],
        [-500.0, -500.0, -300.0, -300.0],
        [1e30, 1e30, 2e30, 2e30],
        [40.0, 40.0, 40.001, 40.001],
    ];
    let count = boxes.len();
    let unusable = Scene { boxes, labels: vec![3; count], image: vec![0; count], images: 1, classes: 20 };
    let atss = Atss::default();
    let none = run::<i64>(&atss, &pyramid(), &unusable).expect("a legal call");
    assert_eq!(positives(&none, 20), 0);
    assert!(none.iter().all(|(_, boxes)| boxes.iter().all(|side| side.to_bits() == 0)));
    same_on_cuda("unusable", &gpu, &atss, &pyramid(), &unusable);

    // Around a good box they change nothing; nor does a box in no image; labels are copied.
    let good = [30.0, 30.0, 90.0, 80.0];
    let with = |image: i64, label: i64, all: bool| {
        let mut scene =
            if all { unusable.clone() } else { Scene { images: 1, classes: 20, ..Scene::default() } };
        scene.boxes.push(good);
        scene.labels.push(label);
        scene.image.push(image);
        run::<i64>(&atss, &pyramid(), &scene).expect("a legal call")
    };
    same("among unusable boxes", &with(0, 7, true), &with(0, 7, false));
    assert!(positives(&with(0, 7, false), 20) > 0);
    for image in [-1, 1, i64::MAX, i64::MIN] {
        assert_eq!(positives(&with(image, 7, false), 20), 0, "image {image}");
    }
    for label in [-5, -1, 20] {
        assert_eq!(positives(&with(0, label, false), 20), 0, "label {label}");
    }

    // Huge boxes, whose areas are beyond f32; one anchor alone, whose IoU has no deviation; levels
    // without anchors; eight levels; no image.
    let huge = Scene {
        boxes: vec![[-max, -max, max, max], [-1e20, -1e20, 1e20, 1e20], [-3e38, 0.0, 3e38, 64.0], good],
        labels: vec![1, 2, 3, 4],
        image: vec![0; 4],
        images: 1,
        classes: 20,
    };
    let levels = [
        pyramid(),
        vec![Level::new(1, 1, 64.0)],
        vec![Level::new(0, 7, 8.0), Level::new(5, 5, 8.0), Level::Boxes(vec![])],
        (0..8).map(|i| Level::new(3 + i, 9 - i, 8.0)).collect(),
        vec![Level::Boxes(vec![
            nan, 0.0, 1.0, 1.0, 0.0, 0.0, 60.0, 60.0, inf, inf, inf, inf, -max, -max, max, max,
        ])],
    ];
    for levels in &levels {
        let what = format!("{} levels", levels.len());
        same_on_cuda(&what, &gpu, &atss, levels, &huge);
        same_on_cuda(&what, &gpu, &atss, levels, &Scene { images: 0, ..huge.clone() });
    }
    let alone = run::<i64>(&atss, &levels[1], &huge).expect("a legal call");
    assert_eq!(positives(&alone, 20), 0);
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
    };
    let level = [Level::new(4, 4, 8.0)];
    let got = run::<i64>(&Atss::default(), &level, &scene).expect("a legal call");
    assert_eq!(got[0].0, [20, 20, 20, 20, 20, 5, 5, 5, 20, 5, 5, 5, 20, 5, 5, 5]);
    // The centre of the box is between four anchors: with one candidate, the last is nearest. On
    // two levels that are the same, both candidates have the mean IoU.
    let scene = Scene { boxes: vec![[4.0, 4.0, 20.0, 20.0]], labels: vec![5], image: vec![0], ..scene };
    let levels = [Level::new(4, 4, 8.0), Level::Boxes(boxes_of(4, 4, 8.0))];
    let got = run::<i64>(&Atss::new(1).expect("a legal number"), &levels, &scene).expect("a legal call");
    for (labels, _) in &got {
        let taken: Vec<usize> = (0..16).filter(|&i| labels[i] == 5).collect();
        assert_eq!(taken, [10]);
    }
    same_on_cuda("ties", &gpu(), &Atss::default(), &levels, &scene);
}

#[test]
fn two_launches_no_allocation_no_wait() {
    let Some(gpu) = gpu() else { return };
    let mut random = Random::new(42);
    for boxes in [0, 40] {
        let scene = scene(&mut random, boxes);
        let want = run::<i64>(&Atss::default(), &pyramid(), &scene).expect("a legal call");
        let mut call = OnCuda::<i64>::new(&gpu, &pyramid(), &scene, 0);
        for seed in 0..5 {
            if let Some(emulator) = gpu.emulator {
                emulator.set_seed(seed * 7919 + 1);
            }
            let before = gpu.emulator.map(|emulator| emulator.counters());
            call.call(&gpu, &Atss::default()).expect("a legal call");
            if let (Some(emulator), Some(before)) = (gpu.emulator, before) {
                let spent = emulator.counters().since(&before);
                let counts =
                    (spent.allocations, spent.frees, spent.waits, spent.copies_to_host, spent.launches);
                let launches = if boxes == 0 { 1 } else { 2 };
                assert_eq!(counts, (0, 0, 0, 0, launches), "allocations, frees, waits, copies, launches");
            }
            // Each call finds the workspace as the one before left it.
            same(&format!("seed {seed}"), &call.read(&gpu), &want);
        }
    }
}

#[test]
fn errors() {
    let gpu = gpu();
    let good = scene(&mut Random::new(43), 4);
    let text = |levels: &[Level], scene: &Scene| {
        let text = run::<i64>(&Atss::default(), levels, scene).expect_err("a wrong call").to_string();
        if let Some(gpu) = &gpu {
            let mut call = OnCuda::<i64>::new(gpu, levels, scene, 0);
            let on_cuda = call.call(gpu, &Atss::default()).expect_err("a wrong call");
            assert_eq!(on_cuda.to_string(), text);
            let untouched = call.read(gpu).iter().all(|(_, boxes)| boxes.iter().all(|side| side.is_nan()));
            assert!(untouched, "a call that failed wrote something");
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
    let grid = |grid: AnchorGrid| text(&[Level::Grid(grid, 4)], &good);
    assert_eq!(grid(AnchorGrid::new(2, 2, 0.0)), "stride is 0, it must be a number above 0");
    let small = AnchorGrid::new(2, 2, 8.0).with_scale(-1.0);
    assert_eq!(grid(small), "the anchors' size is -8, it must be a number above 0");
    let away = AnchorGrid::new(2, 2, 8.0).with_offset(f32::INFINITY);
    assert_eq!(grid(away), "offset is inf, it must be a finite number");
    assert_eq!(grid(AnchorGrid::new(2, 3, 8.0)), "labels has 12 elements, 18 boxes need 18");
    let odd = Level::Boxes(vec![0.0; 7]);
    assert_eq!(text(&[odd], &good), "anchors has 7 elements, 1 boxes need 4");
    for topk in [0, 257] {
        let text = Atss::new(topk).expect_err("a wrong number").to_string();
        assert_eq!(text, format!("topk is {topk}, it must be from 1 to 256"));
    }
    let gt = GroundTruth::cpu(&[], &[0i64; 0], &[]);
    let one = [AnchorGrid::new(0, 0, 8.0).into()];
    let text = Atss::default().cpu(&one, gt, 1, 20, &mut []).expect_err("a wrong call").to_string();
    assert_eq!(text, "there are 1 levels of anchors, but targets for 0");
    if let Some(gpu) = &gpu {
        let mut call = OnCuda::<i64>::new(gpu, &pyramid(), &good, 0);
        call.workspace = AssignWorkspace::new(&gpu.stream, 3, 100, 4).expect("device memory");
        let text = call.call(gpu, &Atss::default()).expect_err("a small workspace").to_string();
        let want = "the workspace is for 300 anchors of all images, the call has 5118; make a larger one";
        assert_eq!(text, want);
    }
}
