//! Which threads a call on the CPU takes: none if it is small, those of its pool if not, and in a forked child the
//! child's own.
#![cfg(target_os = "linux")]

use std::panic::catch_unwind;
use std::time::{Duration, Instant};
use std::{fs, thread};

use gfocal::assign::{AnchorGrid, Fcos, GroundTruth, LevelTargets};
use gfocal::boxes::BoxLoss;
use gfocal::cpu::Pool;
use gfocal::head::{BoxCoding, Gradients, HeadLoss, Layout, Level, Logits, Points, Targets};
use gfocal::{DistributionFocalLoss, Host, QualityFocalLoss, decode, f16, integral};
use rayon::prelude::*;

/// The bits of what all operations give of so many rows.
fn everything(rows: usize) -> Vec<u64> {
    let number = |i: usize| (i * 7919 % 1013) as f32 / 200.0 - 3.0;
    let x: Vec<f32> = (0..16 * rows).map(number).collect();
    let half: Vec<f16> = x.iter().map(|&x| f16::from_f32(x)).collect();
    let labels: Vec<i64> = (0..rows).map(|row| (row % 9) as i64).collect();
    let (quality, target) = (vec![0.5f32; rows], vec![1.25f32; rows]);
    let boxes: Vec<f32> = (0..rows).flat_map(|_| [0.0, 0.0, 20.0, 30.0]).collect();
    let mut bits = Vec::new();
    let mut keep = |values: &[f32]| bits.extend(values.iter().map(|value| u64::from(value.to_bits())));

    let (mut loss, mut grad) = ([0.0f32], vec![0.0f32; 8 * rows]);
    let qfl = QualityFocalLoss::default();
    let call = qfl.cpu(&x[..8 * rows], [rows, 8], &labels, &quality);
    call.forward_backward(&mut loss, &mut grad).expect("a legal call");
    keep(&loss);
    keep(&grad);
    let (dfl, mut sides) = (DistributionFocalLoss::default(), vec![f16::ZERO; 16 * rows]);
    let call = dfl.cpu(&half, [rows, 16], &target);
    call.forward_backward(&mut loss, &mut sides).expect("a legal call");
    keep(&loss);
    keep(&sides.iter().map(|side| side.to_f32()).collect::<Vec<_>>());
    let (mut losses, mut slopes) = (vec![0.0f32; rows], vec![0.0f32; 4 * rows]);
    let (pred, iou) = (&x[..4 * rows], BoxLoss::default());
    iou.forward_backward(pred, &boxes, rows, None, &mut losses, &mut slopes).expect("a legal call");
    keep(&losses);
    keep(&slopes);

    let (mut expectations, mut slopes) = (vec![0.0f32; 2 * rows], vec![0.0f32; 16 * rows]);
    integral::forward(&x, [2 * rows, 8], &mut expectations).expect("a legal call");
    integral::backward(&x, [2 * rows, 8], &x[..2 * rows], &mut slopes).expect("a legal call");
    keep(&expectations);
    keep(&slopes);

    let (head, grid) =
        (HeadLoss::mmdetection().with_bins(2).expect("two bins"), AnchorGrid::new(1, rows, 8.0));
    let level: Level<Host, f32> = Level {
        height: 1,
        width: rows,
        stride: 8.0,
        points: Points::Grid { offset: 0.5 },
        logits: Logits::Separate { cls: &x[..8 * rows], boxes: &x[8 * rows..] },
        cls_layout: Layout::nchw(8, rows),
        box_layout: Layout::nchw(8, rows),
        targets: Targets::<Host>::new(labels[..].into(), &boxes),
    };
    let (mut losses, mut of_boxes) = ([0.0f32; 3], vec![0.0f32; 8 * rows]);
    let (two, raw, mut decoded) = (BoxCoding::Bins(2), [decode::Level::from(&level)], vec![0.0f32; 4 * rows]);
    decode::forward(two, 1, &raw, &mut decoded).expect("a legal call");
    decode::backward(two, 1, &raw, &x[..4 * rows], &mut [&mut of_boxes], None).expect("a legal call");
    keep(&decoded);
    keep(&of_boxes);
    let gradients: Gradients<Host, f32> = Gradients::Separate { cls: &mut grad, boxes: &mut of_boxes };
    let call = head.cpu(1, 8, std::slice::from_ref(&level));
    call.forward_backward(&mut losses, &mut [gradients]).expect("a legal call");
    keep(&losses);
    keep(&grad);
    keep(&of_boxes);

    let fcos = Fcos::new(&[[-1.0, 1e9]]).expect("a range");
    let gt = GroundTruth::cpu(&boxes[..8], &labels[..2], &[0, 1]);
    let (mut found, mut targets) = (vec![0i64; 2 * rows], vec![0.0f32; 8 * rows]);
    let to = LevelTargets::cpu(&mut found, &mut targets);
    fcos.cpu(&[grid.into()], gt, 2, 80, &mut [to]).expect("a legal call");
    keep(&targets);
    bits
}

/// How many threads of gfocal's pools there are.
fn threads() -> usize {
    let tasks = fs::read_dir("/proc/self/task").expect("the threads of this process");
    let names = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.filter(|name| name.starts_with("gfocal-")).count()
}

/// Waits for so many, which end and start when they like.
fn expect_threads(count: usize, what: &str) {
    let start = Instant::now();
    while threads() != count {
        assert!(start.elapsed() < Duration::from_secs(60), "{} threads, not {count}: {what}", threads());
        thread::sleep(Duration::from_millis(1));
    }
}

const SMALL: usize = 1000;
const LARGE: usize = 6000;

unsafe extern "C" {
    fn fork() -> i32;
    fn waitpid(child: i32, status: *mut i32, options: i32) -> i32;
    fn kill(process: i32, signal: i32) -> i32;
    fn _exit(status: i32) -> !;
}

/// Whether `run` is true in a forked child.
fn in_a_child(run: impl Fn() -> bool + std::panic::RefUnwindSafe) -> bool {
    // SAFETY: the child computes, and leaves without a return.
    let child = unsafe { fork() };
    if child == 0 {
        let right = catch_unwind(&run).unwrap_or(false);
        // SAFETY: it always is.
        unsafe { _exit(i32::from(!right)) }
    }
    assert!(child > 0, "no child");
    let (start, mut status) = (Instant::now(), -1);
    // SAFETY: a child of this process, and a place for its status; 1 is WNOHANG.
    while unsafe { waitpid(child, &mut status, 1) } == 0 {
        if start.elapsed() > Duration::from_secs(60) {
            // SAFETY: as above; 9 is SIGKILL.
            unsafe { kill(child, 9) };
            panic!("the child hangs");
        }
        thread::sleep(Duration::from_millis(1));
    }
    status == 0
}

// One test: it counts the threads of its process.
#[test]
fn threads_of_small_calls_of_pools_and_of_children() {
    let small = everything(SMALL);
    assert_eq!(threads(), 0, "small calls take no threads");

    let [one, three] = [1, 3].map(Pool::new);
    let want = one.enter(|| everything(LARGE));
    assert_eq!(threads(), 0, "the thread that calls is the pool");
    three.enter(|| {
        assert_eq!(everything(SMALL), small);
        assert_eq!(threads(), 0, "small calls take no threads of a pool either");
        assert!(everything(LARGE) == want);
        one.enter(|| assert!(everything(LARGE) == want));
    });
    expect_threads(2, "of the pool that was entered, beside this one");
    drop(three.clone());
    assert!(three.enter(|| everything(LARGE)) == want);
    expect_threads(2, "kept, and no others");
    drop(three);
    expect_threads(0, "ended with their pool");

    let rayons = rayon::ThreadPoolBuilder::new().num_threads(2).build().expect("threads");
    assert!(rayons.install(|| everything(LARGE)) == want);
    assert_eq!(threads(), 0, "on a thread of a rayon pool, that pool's");

    let two = Pool::new(2);
    assert!(two.enter(|| everything(LARGE)) == want);
    assert!(everything(LARGE) == want);
    let all = threads();
    let cores = thread::available_parallelism().map_or(1, Into::into);
    assert!(all > 1 || cores == 1, "the default pool");
    assert!((0..1000).into_par_iter().sum::<i32>() > 0, "rayon's global pool has been used, too");

    // Children have none of these threads.
    assert!(in_a_child(|| threads() == 0 && everything(SMALL) == small && threads() == 0));
    assert!(in_a_child(|| everything(LARGE) == want && everything(LARGE) == want && threads() == all - 1));
    assert!(in_a_child(|| two.enter(|| everything(LARGE)) == want && threads() == 1));
    assert!(in_a_child(|| in_a_child(|| everything(LARGE) == want)), "a child of a child");
    for _ in 0..20 {
        assert!(rayons.install(|| in_a_child(|| everything(LARGE) == want && threads() == 0)), "of a worker");
    }
    assert!(rayons.install(|| in_a_child(|| two.enter(|| everything(LARGE)) == want && threads() == 0)));
    let own = || rayon::ThreadPoolBuilder::new().num_threads(2).build().expect("threads");
    assert!(
        in_a_child(|| own().install(|| everything(LARGE)) == want && threads() == 0),
        "a pool of the child's"
    );
    assert!(
        two.enter(|| in_a_child(|| everything(LARGE) == want && threads() == 1)),
        "in the middle of a call"
    );
    assert!(everything(LARGE) == want, "the parent goes on");
}
