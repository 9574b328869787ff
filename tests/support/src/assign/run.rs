//! Assignments on both backends.

use std::fmt::Debug;

use gfocal::assign::{AnchorGrid, Anchors, AssignWorkspace, GroundTruth, LevelTargets};
use gfocal::cuda::{Device, StatusBlock};
use gfocal::{AssignmentStatus, Host, Label, Status};

use super::super::gpu::Poison;
use super::super::tolerance::check_same_bits;
use super::super::{Buffer, Gpu};
use super::{Assigner, By, Level, OfLevel, Outcome, Rules, Scene, Ties, grid, transcription};

/// A type of labels, for numbers that are given as i64.
pub trait Cast: Label + Poison + PartialEq {
    fn cast(labels: &[i64]) -> Vec<Self>;
}

impl Cast for i64 {
    fn cast(labels: &[i64]) -> Vec<i64> {
        labels.to_vec()
    }
}

impl Cast for i32 {
    fn cast(labels: &[i64]) -> Vec<i32> {
        labels.iter().map(|&label| label.clamp(i32::MIN.into(), i32::MAX.into()) as i32).collect()
    }
}

/// On the CPU, with all outputs.
pub fn on_cpu<L: Cast>(rules: &Rules, levels: &[Level], scene: &Scene) -> gfocal::Result<Outcome<L>> {
    let has_centerness = matches!(rules.by, By::Fcos { .. });
    let mut out: Vec<OfLevel<L>> = (levels.iter())
        .map(|level| {
            let anchors = scene.images * level.anchors();
            OfLevel {
                labels: vec![L::POISON; anchors],
                box_targets: vec![f32::NAN; 4 * anchors],
                label_weights: vec![f32::NAN; anchors],
                box_weights: vec![f32::NAN; anchors],
                centerness: vec![f32::NAN; if has_centerness { anchors } else { 0 }],
            }
        })
        .collect();
    let anchors: Vec<Anchors> = (levels.iter())
        .map(|level| match level {
            Level::Grid { .. } => grid(level).expect("a grid").into(),
            Level::Boxes(boxes) => Anchors::cpu(boxes.as_flattened()),
        })
        .collect();
    let mut targets: Vec<LevelTargets<Host, L>> = (out.iter_mut())
        .map(|to| {
            let targets = LevelTargets::cpu(&mut to.labels, &mut to.box_targets)
                .label_weights(&mut to.label_weights)
                .box_weights(&mut to.box_weights);
            if has_centerness { targets.centerness(&mut to.centerness) } else { targets }
        })
        .collect();
    let (labels, image) = (L::cast(&scene.labels), L::cast(&scene.image));
    let mut gt = GroundTruth::cpu(scene.boxes.as_flattened(), &labels, &image);
    if let Some(weights) = &scene.weights {
        gt = gt.weights(weights);
    }
    let ignore = scene.ignore.as_ref().map(|(boxes, image)| (boxes, L::cast(image)));
    if let Some((boxes, image)) = &ignore {
        gt = gt.ignore(boxes.as_flattened(), image);
    }
    let valid_hw = scene.valid_hw.as_ref().map(|sizes| L::cast(sizes));
    if let Some(valid_hw) = &valid_hw {
        gt = gt.valid_hw(valid_hw);
    }
    let status = match rules.built()? {
        Assigner::Atss(atss) => atss.cpu(&anchors, gt, scene.images, scene.classes, &mut targets)?,
        Assigner::Fcos(fcos) => fcos.cpu(&anchors, gt, scene.images, scene.classes, &mut targets)?,
    };
    drop(targets);
    assert_eq!(Status { assignment: AssignmentStatus::default(), ..status }, Status::default());
    Ok(Outcome { levels: out, status: status.assignment })
}

/// The buffers of a call on CUDA, for calls again and again.
pub struct OnCuda<L> {
    levels: Vec<(Option<AnchorGrid>, Buffer<f32>)>,
    boxes: Buffer<f32>,
    labels: Buffer<L>,
    image: Buffer<L>,
    weights: Option<Buffer<f32>>,
    ignore: Option<(Buffer<f32>, Buffer<L>)>,
    valid_hw: Option<Buffer<L>>,
    targets: Vec<OnDevice<L>>,
    pub workspace: AssignWorkspace,
    pub status: StatusBlock,
    /// Neither a status nor more than labels and boxes.
    pub bare: bool,
    images: usize,
    classes: usize,
}

/// Where the targets of a level go.
struct OnDevice<L> {
    labels: Buffer<L>,
    box_targets: Buffer<f32>,
    /// Label weights, box weights, centerness.
    more: [Buffer<f32>; 3],
}

impl<L: Cast> OnCuda<L> {
    pub fn new(gpu: &Gpu, levels: &[Level], scene: &Scene, offset: usize) -> OnCuda<L> {
        let anchors: usize = levels.iter().map(Level::anchors).sum();
        let targets = |level: &Level| {
            let anchors = scene.images * level.anchors();
            OnDevice {
                labels: Buffer::poisoned(gpu, anchors, offset),
                box_targets: Buffer::poisoned(gpu, 4 * anchors, offset),
                more: [(); 3].map(|()| Buffer::poisoned(gpu, anchors, offset)),
            }
        };
        let level = |level: &Level| match level {
            Level::Grid { .. } => (grid(level), Buffer::new(gpu, &[], 0)),
            Level::Boxes(boxes) => (None, Buffer::new(gpu, boxes.as_flattened(), offset)),
        };
        let integers = |numbers: &[i64]| Buffer::new(gpu, &L::cast(numbers), offset);
        let boxes = |boxes: &[[f32; 4]]| Buffer::new(gpu, boxes.as_flattened(), offset);
        OnCuda {
            levels: levels.iter().map(level).collect(),
            boxes: boxes(&scene.boxes),
            labels: integers(&scene.labels),
            image: integers(&scene.image),
            weights: scene.weights.as_ref().map(|weights| Buffer::new(gpu, weights, offset)),
            ignore: scene.ignore.as_ref().map(|(corners, image)| (boxes(corners), integers(image))),
            valid_hw: scene.valid_hw.as_ref().map(|sizes| integers(sizes)),
            targets: levels.iter().map(targets).collect(),
            workspace: AssignWorkspace::new(&gpu.stream, scene.images, anchors, scene.boxes.len())
                .expect("device memory"),
            status: StatusBlock::new(&gpu.stream).expect("device memory"),
            bare: false,
            images: scene.images,
            classes: scene.classes,
        }
    }

    pub fn call(&mut self, gpu: &Gpu, rules: &Rules) -> gfocal::Result<()> {
        let has_centerness = matches!(rules.by, By::Fcos { .. });
        let views: Vec<_> = self.levels.iter().map(|(_, boxes)| boxes.view()).collect();
        let anchors: Vec<Anchors<Device>> = (self.levels.iter().zip(&views))
            .map(|((grid, _), boxes)| grid.map_or_else(|| Anchors::cuda(boxes), Anchors::Grid))
            .collect();
        let mut views: Vec<_> = (self.targets.iter_mut())
            .map(|to| {
                (to.labels.view_mut(), to.box_targets.view_mut(), to.more.each_mut().map(Buffer::view_mut))
            })
            .collect();
        let mut targets: Vec<LevelTargets<Device, L>> = (views.iter_mut())
            .map(|(labels, boxes, [label_weights, box_weights, centerness])| {
                let targets = LevelTargets::cuda(labels, boxes);
                if self.bare {
                    return targets;
                }
                let targets = targets.label_weights(label_weights).box_weights(box_weights);
                if has_centerness { targets.centerness(centerness) } else { targets }
            })
            .collect();
        let (boxes, labels, image) = (self.boxes.view(), self.labels.view(), self.image.view());
        let mut gt = GroundTruth::cuda(&boxes, &labels, &image);
        let weights = self.weights.as_ref().map(Buffer::view);
        if let Some(weights) = &weights {
            gt = gt.weights(weights);
        }
        let ignore = self.ignore.as_ref().map(|(boxes, image)| (boxes.view(), image.view()));
        if let Some((boxes, image)) = &ignore {
            gt = gt.ignore(boxes, image);
        }
        let valid_hw = self.valid_hw.as_ref().map(Buffer::view);
        if let Some(valid_hw) = &valid_hw {
            gt = gt.valid_hw(valid_hw);
        }
        let (workspace, status) = (&mut self.workspace, (!self.bare).then_some(&mut self.status));
        let (handle, images, classes) = (&gpu.handle, self.images, self.classes);
        match rules.built()? {
            Assigner::Atss(atss) => {
                atss.cuda(handle, &anchors, gt, images, classes, &mut targets, workspace, status)
            }
            Assigner::Fcos(fcos) => {
                fcos.cuda(handle, &anchors, gt, images, classes, &mut targets, workspace, status)
            }
        }
    }

    /// Other ground truth, of the same lengths.
    pub fn write(&mut self, gpu: &Gpu, scene: &Scene) {
        self.boxes.write(gpu, scene.boxes.as_flattened());
        self.labels.write(gpu, &L::cast(&scene.labels));
        self.image.write(gpu, &L::cast(&scene.image));
        if let (Some(to), Some(weights)) = (&mut self.weights, &scene.weights) {
            to.write(gpu, weights);
        }
        if let (Some((to_boxes, to_image)), Some((boxes, image))) = (&mut self.ignore, &scene.ignore) {
            to_boxes.write(gpu, boxes.as_flattened());
            to_image.write(gpu, &L::cast(image));
        }
        if let (Some(to), Some(sizes)) = (&mut self.valid_hw, &scene.valid_hw) {
            to.write(gpu, &L::cast(sizes));
        }
    }

    /// What the calls have left behind; what there is no room for in a call is poison.
    pub fn read(&self, gpu: &Gpu) -> Outcome<L> {
        let read = |to: &OnDevice<L>| {
            let [label_weights, box_weights, centerness] = to.more.each_ref().map(|more| more.read(gpu));
            OfLevel {
                labels: to.labels.read(gpu),
                box_targets: to.box_targets.read(gpu),
                label_weights,
                box_weights,
                centerness,
            }
        };
        let status = self.status.read(&gpu.stream).expect("the stream's work ends well");
        assert_eq!(Status { assignment: AssignmentStatus::default(), ..status }, Status::default());
        Outcome { levels: self.targets.iter().map(read).collect(), status: status.assignment }
    }
}

/// The same bits; of what there may be no room for, only where `want` has it.
#[track_caller]
pub fn same<L: Debug + PartialEq>(what: &str, got: &Outcome<L>, want: &Outcome<L>) {
    assert_eq!(got.levels.len(), want.levels.len(), "{what}");
    for (level, (got, want)) in got.levels.iter().zip(&want.levels).enumerate() {
        let different = got.labels.iter().zip(&want.labels).position(|(got, want)| got != want);
        let different = different.map(|i| (i, &got.labels[i], &want.labels[i]));
        assert_eq!(different, None, "{what}, level {level}: labels");
        check_same_bits(&format!("{what}, level {level}, box targets"), &got.box_targets, &want.box_targets);
        for (name, got, want) in [
            ("label weights", &got.label_weights, &want.label_weights),
            ("box weights", &got.box_weights, &want.box_weights),
            ("centerness", &got.centerness, &want.centerness),
        ] {
            if !want.is_empty() {
                check_same_bits(&format!("{what}, level {level}, {name}"), got, want);
            }
        }
    }
    assert_eq!(got.status, want.status, "{what}: status");
}

/// A call on the CPU that must be legal.
#[track_caller]
pub fn assigned(rules: &Rules, levels: &[Level], scene: &Scene) -> Outcome {
    on_cpu(rules, levels, scene).expect("a legal call")
}

/// As the definition says, on the CPU and on CUDA; and what that is.
#[track_caller]
pub fn as_defined(what: &str, gpu: &Option<Gpu>, rules: &Rules, levels: &[Level], scene: &Scene) -> Outcome {
    let want = transcription(rules, Ties::Higher, levels, scene);
    same(what, &assigned(rules, levels, scene), &want);
    same_on_cuda(what, gpu, rules, levels, scene);
    want
}

/// On CUDA as on the CPU, for labels of both types, at good and bad alignment, and whatever else is asked for.
#[track_caller]
pub fn same_on_cuda(what: &str, gpu: &Option<Gpu>, rules: &Rules, levels: &[Level], scene: &Scene) {
    let Some(gpu) = gpu else { return };
    let want = on_cpu::<i64>(rules, levels, scene).expect("a legal call");
    let mut wide = OnCuda::<i64>::new(gpu, levels, scene, 0);
    wide.call(gpu, rules).expect("a legal call");
    same(what, &wide.read(gpu), &want);
    wide.bare = true;
    wide.call(gpu, rules).expect("a legal call");
    same(&format!("{what}, bare"), &wide.read(gpu), &want);
    let mut narrow = OnCuda::<i32>::new(gpu, levels, scene, 1);
    narrow.call(gpu, rules).expect("a legal call");
    same(what, &narrow.read(gpu), &on_cpu::<i32>(rules, levels, scene).expect("a legal call"));
}
