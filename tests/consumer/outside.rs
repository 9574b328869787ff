//! A framework's view of gfocal: one allocation that it owns and hands parts of out, first to the raw layer, then
//! to the safe API through `Borrowed`. A step of training gives the same bits as with cudarc's memory, allocates
//! nothing and waits for nothing.

#[path = "../../src/cuda/raw/example.rs"]
mod example;

use std::cell::RefCell;
use std::sync::Arc;

use example::{Step, StepLevel};
use gfocal::assign::{AnchorGrid, AssignWorkspace, Atss, GroundTruth, LevelTargets};
use gfocal::cuda::{self, Borrowed, Device, Handle, Kernels, LabelBuffer, Pass, StatusBlock, Storage, raw};
use gfocal::cudarc::driver::{CudaStream, DevicePtr, DevicePtrMut};
use gfocal::head::{Gradients, HeadWorkspace, Layout, Level, Logits, Points, Targets};
use gfocal::{HeadLoss, Result};

const BATCH: usize = 2;
const CLASSES: usize = 12;
const SIDES: [(usize, f32); 2] = [(9, 8.0), (4, 16.0)];
const BOXES: [[f32; 4]; 3] = [[4.0, 6.0, 40.0, 44.0], [20.0, 8.0, 60.0, 60.0], [10.0, 10.0, 30.0, 26.0]];
const LABELS: [i64; 3] = [3, 0, 7];
const IMAGES: [i64; 3] = [0, 1, 1];
const UPSTREAM: f32 = 0.375;

/// What a framework's allocator gives out: parts of one piece of memory.
struct Arena {
    next: u64,
    end: u64,
    stream: Arc<CudaStream>,
}

impl Arena {
    fn take<T>(&mut self, len: usize) -> Borrowed<T> {
        let address = self.next.next_multiple_of(256);
        self.next = address + (len * size_of::<T>()) as u64;
        assert!(self.next <= self.end, "the arena is too small");
        // SAFETY: it lies in the arena, which lives as long as the program, and is given out once.
        unsafe { Borrowed::new(&self.stream, address, len) }
    }
}

/// The tensors of a level.
struct Tensors<F, L> {
    cls: F,
    boxes: F,
    grad_cls: F,
    grad_boxes: F,
    labels: L,
    box_targets: F,
    label_weights: F,
}

/// All tensors of a step.
struct All<F, L> {
    levels: Vec<Tensors<F, L>>,
    gt_boxes: F,
    gt_labels: L,
    gt_image: L,
    losses: F,
    upstream: F,
    found_inf: F,
}

/// As a network leaves them.
fn logits(len: usize) -> Vec<f32> {
    (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 16) as f32 / 16384.0 - 2.0).collect()
}

impl<F: DevicePtrMut<f32> + DevicePtr<f32>, L: DevicePtrMut<i64> + DevicePtr<i64>> All<F, L> {
    fn new(
        stream: &Arc<CudaStream>,
        mut floats: impl FnMut(usize) -> F,
        mut labels: impl FnMut(usize) -> L,
    ) -> Self {
        let channels = HeadLoss::mmdetection().box_channels();
        let mut filled = |values: &[f32]| {
            let mut to = floats(values.len());
            stream.memcpy_htod(values, &mut to).expect("a copy");
            to
        };
        let levels = SIDES.map(|(side, _)| {
            let anchors = BATCH * side * side;
            let mut zeros = |len| filled(&vec![0.0; len]);
            let (grad_cls, grad_boxes) = (zeros(CLASSES * anchors), zeros(channels * anchors));
            let (box_targets, label_weights) = (zeros(4 * anchors), zeros(anchors));
            let (cls, boxes) = (filled(&logits(CLASSES * anchors)), filled(&logits(channels * anchors)));
            Tensors { cls, boxes, grad_cls, grad_boxes, labels: labels(anchors), box_targets, label_weights }
        });
        let [gt_labels, gt_image] = [LABELS, IMAGES].map(|values| {
            let mut to = labels(values.len());
            stream.memcpy_htod(&values, &mut to).expect("a copy");
            to
        });
        All {
            levels: levels.into(),
            gt_boxes: filled(BOXES.as_flattened()),
            gt_labels,
            gt_image,
            losses: filled(&[0.0; 6]),
            upstream: filled(&[UPSTREAM]),
            found_inf: filled(&[0.0]),
        }
    }

    /// All that a step writes.
    fn bits(&self, stream: &Arc<CudaStream>) -> Vec<u32> {
        let grads = self.levels.iter().flat_map(|level| [&level.grad_cls, &level.grad_boxes]);
        let read = |from: &F| stream.clone_dtoh(from).expect("a copy");
        grads.chain([&self.losses, &self.found_inf]).flat_map(read).map(f32::to_bits).collect()
    }

    /// The step by the safe API.
    fn run(
        &mut self,
        handle: &Handle,
        assign: &mut AssignWorkspace,
        workspace: &mut HeadWorkspace,
        status: &mut StatusBlock,
    ) -> Result<()> {
        let head = HeadLoss::mmdetection();
        let grids = SIDES.map(|(side, stride)| AnchorGrid::new(side, side, stride).into());
        let gt = GroundTruth::cuda(&self.gt_boxes, &self.gt_labels, &self.gt_image);
        let mut targets: Vec<_> = (self.levels.iter_mut())
            .map(|level| {
                LevelTargets::cuda(&mut level.labels, &mut level.box_targets)
                    .label_weights(&mut level.label_weights)
            })
            .collect();
        Atss::default().cuda(handle, &grids, gt, BATCH, CLASSES, &mut targets, assign, Some(&mut *status))?;
        let mut levels: Vec<Level<'_, Device, f32>> = Vec::new();
        let mut gradients: Vec<Gradients<'_, Device, f32>> = Vec::new();
        for (level, (side, stride)) in self.levels.iter_mut().zip(SIDES) {
            let positions = side * side;
            levels.push(Level {
                height: side,
                width: side,
                stride: stride.into(),
                points: Points::Grid { offset: 0.0 },
                logits: Logits::Separate { cls: &level.cls, boxes: &level.boxes },
                cls_layout: Layout::nchw(CLASSES, positions),
                box_layout: Layout::nchw(head.box_channels(), positions),
                targets: Targets {
                    label_weights: Some(&level.label_weights),
                    ..Targets::<Device>::new(LabelBuffer::I64(&level.labels), &level.box_targets)
                },
            });
            gradients.push(Gradients::Separate { cls: &mut level.grad_cls, boxes: &mut level.grad_boxes });
        }
        head.cuda(handle, workspace, BATCH, CLASSES, &levels)
            .found_inf(&mut self.found_inf)
            .status(status)
            .forward_backward(&mut self.losses, &mut gradients)?;
        drop(gradients);
        for level in &mut self.levels {
            cuda::scale(handle, &mut level.grad_cls, &self.upstream, Some(&mut self.found_inf))?;
            cuda::scale(handle, &mut level.grad_boxes, &self.upstream, Some(&mut self.found_inf))?;
        }
        Ok(())
    }
}

fn main() {
    let emulator = gfocal_emulator::driver().expect("a driver").emulator();
    let context = cuda::context(0).expect("a device");
    let stream = context.default_stream();
    let kernels = Arc::new(Kernels::new(&context).expect("kernels"));
    let head = HeadLoss::mmdetection();
    let units =
        head.units(Storage::F32, Pass::ForwardBackward) | Atss::units() | cuda::scale_units(Storage::F32);
    kernels.prepare(units).expect("the kernels load");
    let anchors = SIDES.iter().map(|(side, _)| side * side).sum();
    let measured = |what: &str, launches: u64, work: &mut dyn FnMut()| {
        let Some(emulator) = emulator else { return work() };
        let before = emulator.counters();
        work();
        let spent = emulator.counters().since(&before);
        println!("{what}: {spent:?}");
        assert_eq!(
            (spent.allocations, spent.frees, spent.waits, spent.copies_to_host),
            (0, 0, 0, 0),
            "{what}"
        );
        assert_eq!(spent.launches, launches, "{what}");
    };

    // With cudarc's memory.
    let handle = Handle::with_kernels(&stream, kernels.clone()).expect("a handle");
    let floats = |len| stream.alloc_zeros::<f32>(len).expect("device memory");
    let mut own = All::new(&stream, floats, |len| stream.alloc_zeros::<i64>(len).expect("device memory"));
    let mut assign = AssignWorkspace::new(&stream, BATCH, anchors, BOXES.len()).expect("device memory");
    let mut workspace = HeadWorkspace::new(&handle, BATCH, anchors).expect("device memory");
    let mut status = StatusBlock::new(&stream).expect("device memory");
    own.run(&handle, &mut assign, &mut workspace, &mut status).expect("a step");
    let (want, want_status) = (own.bits(&stream), status.read(&stream).expect("the step ends well"));
    let losses = stream.clone_dtoh(&own.losses).expect("a copy");
    assert!(losses[1] + losses[4] > 0.0, "there are positives: {losses:?}");

    // All in memory of the caller's.
    const ROOM: usize = 4 << 20;
    let memory = stream.alloc_zeros::<u8>(ROOM).expect("device memory");
    let next = memory.device_ptr(&stream).0;
    let arena = RefCell::new(Arena { next, end: next + ROOM as u64, stream: stream.clone() });
    let bytes = |len: usize| arena.borrow_mut().take::<u8>(len);
    let floats = |len| arena.borrow_mut().take::<f32>(len);
    let mut theirs = All::new(&stream, floats, |len| arena.borrow_mut().take::<i64>(len));

    // By the raw layer.
    let levels: Vec<StepLevel> = (theirs.levels.iter().zip(SIDES))
        .map(|(level, (side, stride))| StepLevel {
            side: side as u32,
            stride,
            cls: level.cls.address(),
            boxes: level.boxes.address(),
            grad_cls: level.grad_cls.address(),
            grad_boxes: level.grad_boxes.address(),
            labels: level.labels.address(),
            box_targets: level.box_targets.address(),
            label_weights: level.label_weights.address(),
        })
        .collect();
    let for_head = bytes(HeadWorkspace::bytes(&kernels, BATCH, anchors).expect("a size"));
    let for_assignment = bytes(AssignWorkspace::bytes(BATCH, anchors, BOXES.len()).expect("a size"));
    let for_status = bytes(StatusBlock::BYTES);
    let step = Step {
        batch: BATCH as u32,
        classes: CLASSES as u32,
        levels: &levels,
        gts: BOXES.len() as u32,
        gt_boxes: theirs.gt_boxes.address(),
        gt_labels: theirs.gt_labels.address(),
        gt_image: theirs.gt_image.address(),
        losses: theirs.losses.address(),
        upstream: theirs.upstream.address(),
        found_inf: theirs.found_inf.address(),
        status: for_status.address(),
        for_assignment: for_assignment.address(),
        for_head: for_head.address(),
    };
    for round in 0..2 {
        measured("raw", 8, &mut || {
            // SAFETY: the arena's parts have the sizes of the comments, and live as long as the program.
            unsafe { step.enqueue(&kernels, stream.cu_stream().cast()) }.expect("a step");
        });
        assert_eq!(theirs.bits(&stream), want, "the raw layer, round {round}");
    }

    // By the safe API: handle and workspaces are made of it, too, over what the raw layer has used.
    let scratch = bytes(raw::scratch_bytes(&kernels));
    let mut made = None;
    measured("handle and workspaces", 0, &mut || {
        let (scratch, for_head) = (again(&scratch, &stream), again(&for_head, &stream));
        let handle = Handle::over(&stream, kernels.clone(), scratch).expect("a handle");
        let workspace = HeadWorkspace::over(&handle, for_head, BATCH, anchors).expect("a workspace");
        let memory = again(&for_assignment, &stream);
        let assign =
            AssignWorkspace::over(&stream, memory, BATCH, anchors, BOXES.len()).expect("a workspace");
        let status = StatusBlock::over(&stream, again(&for_status, &stream)).expect("a block");
        made = Some((handle, assign, workspace, status));
    });
    let (handle, mut assign, mut workspace, mut status) = made.expect("it was made");
    for level in &mut theirs.levels {
        stream.memset_zeros(&mut level.grad_cls).expect("a memset");
    }
    measured("borrowed", 8, &mut || {
        theirs.run(&handle, &mut assign, &mut workspace, &mut status).expect("a step");
    });
    assert_eq!(theirs.bits(&stream), want, "through Borrowed");
    assert_eq!(status.read(&stream), Ok(want_status));
    drop((handle, assign, workspace, status));
    stream.synchronize().expect("all ends well");
    if let Some(emulator) = emulator {
        assert_eq!(emulator.faults(), 0, "{:?}", emulator.last_fault());
    }
    println!("all the same");
}

fn again(memory: &Borrowed<u8>, stream: &Arc<CudaStream>) -> Borrowed<u8> {
    use gfocal::cudarc::driver::DeviceSlice;
    // SAFETY: what had it before is done with it.
    unsafe { Borrowed::new(stream, memory.address(), memory.len()) }
}
