//! Shows that handles do not get in each other's way: two streams with handles and workspaces of their own, at
//! work at once with calls of all kinds, give the bits of a stream alone, while a third makes handles and drops
//! them; and that the last handle may go as soon as its calls are enqueued.

use std::sync::atomic::{AtomicBool, Ordering};

use gfocal::assign::{AnchorGrid, AssignWorkspace, Atss, GroundTruth, LevelTargets};
use gfocal::boxes::BoxLoss;
use gfocal::cuda::Handle;
use gfocal::{Gfl, Reduction, bf16, f16, integral};
use support::cpu::{dfl_of, qfl_of};
use support::cuda::{Buffers, Layout};
use support::gpu::OnDevice;
use support::head::cuda::{OnCuda, Phases};
use support::head::scenes::Recipe;
use support::head::{Form, Profile, Settings};
use support::random::Random;
use support::tolerance::Number;
use support::{Buffer, Case, Gpu, Pass, gpu};

/// A call that may be repeated on its buffers.
trait Call {
    fn enqueue(&mut self, gpu: &Gpu);
    /// Of all that it has written, once the stream has come to it.
    fn bits(&self, gpu: &Gpu) -> Vec<u64>;
}

struct Of<S> {
    state: S,
    enqueue: fn(&mut S, &Gpu) -> gfocal::Result<()>,
    bits: fn(&S, &Gpu) -> Vec<u64>,
}

impl<S> Call for Of<S> {
    fn enqueue(&mut self, gpu: &Gpu) {
        (self.enqueue)(&mut self.state, gpu).expect("a legal call");
    }

    fn bits(&self, gpu: &Gpu) -> Vec<u64> {
        (self.bits)(&self.state, gpu)
    }
}

fn bits_of<T: Number>(numbers: &[T]) -> impl Iterator<Item = u64> {
    numbers.iter().map(|&number| number.bits())
}

/// QFL or DFL.
fn loss<T: OnDevice>(gpu: &Gpu, case: Case) -> Box<dyn Call> {
    Box::new(Of {
        state: (Buffers::<T>::new(gpu, &case, &Layout::ALIGNED), case),
        enqueue: |(buffers, case), gpu| buffers.call(gpu, case, Pass::ForwardBackward),
        bits: |(buffers, _), gpu| {
            let got = buffers.outcome(gpu, Pass::ForwardBackward);
            bits_of(&got.loss).chain(bits_of(&got.grad)).collect()
        },
    })
}

fn gfl(gpu: &Gpu, qfl: Case, dfl: Case) -> Box<dyn Call> {
    let buffers = |case| Buffers::<f32>::new(gpu, case, &Layout::ALIGNED);
    Box::new(Of {
        state: (buffers(&qfl), buffers(&dfl), Buffer::<f32>::poisoned(gpu, 3, 0), qfl, dfl),
        enqueue: |(of_qfl, of_dfl, losses, qfl, dfl), gpu| {
            let (loss, sides) = (qfl_of(qfl)?, dfl_of(dfl)?);
            let ((mut views, _, mut grad), (mut other, _, mut grad_sides)) = (of_qfl.views(), of_dfl.views());
            Gfl::new(views.qfl(gpu, qfl, &loss), other.dfl(gpu, dfl, &sides)).forward_backward(
                &mut losses.view_mut(),
                &mut grad,
                &mut grad_sides,
            )
        },
        bits: |(of_qfl, of_dfl, losses, ..), gpu| {
            let [losses, grad, grad_sides] = [losses.read(gpu), of_qfl.grad.read(gpu), of_dfl.grad.read(gpu)];
            bits_of(&losses).chain(bits_of(&grad)).chain(bits_of(&grad_sides)).collect()
        },
    })
}

fn head<T: OnDevice>(gpu: &Gpu, random: &mut Random) -> Box<dyn Call> {
    let sizes = vec![(16, 24, 8.0), (5, 7, 16.0)];
    let recipe = Recipe { sizes, classes: 8, ..Recipe::new(Settings::of(Profile::Mmdetection)) };
    let scene = recipe.scene(random);
    Box::new(Of {
        state: (OnCuda::<T>::new(gpu, &scene, Form::Nchw, 0), scene),
        enqueue: |(cuda, scene), gpu| cuda.call(gpu, scene, Pass::ForwardBackward, Phases::Both),
        bits: |(cuda, scene), gpu| {
            let got = cuda.outcome(gpu, scene, Pass::ForwardBackward);
            bits_of(&got.losses).chain(got.grads.iter().flatten().flat_map(|grad| bits_of(grad))).collect()
        },
    })
}

fn expectation(gpu: &Gpu, random: &mut Random) -> Box<dyn Call> {
    let logits = random.floats(500 * 17, -4.0, 4.0);
    Box::new(Of {
        state: (Buffer::new(gpu, &logits, 0), Buffer::<f32>::poisoned(gpu, 500, 0)),
        enqueue: |(logits, out), gpu| {
            integral::forward_cuda(&gpu.handle, &logits.view(), [500, 17], &mut out.view_mut())
        },
        bits: |(_, out), gpu| bits_of(&out.read(gpu)).collect(),
    })
}

fn boxes(gpu: &Gpu, random: &mut Random) -> Box<dyn Call> {
    let mut corners = || {
        let sides = random.many(4 * 300, 0.0, 50.0).into_iter().enumerate();
        sides.map(|(i, x)| (x + 40.0 * (i % 4 / 2) as f64) as f32).collect::<Vec<f32>>()
    };
    let [pred, target] = [Buffer::new(gpu, &corners(), 0), Buffer::new(gpu, &corners(), 0)];
    Box::new(Of {
        state: (pred, target, Buffer::<f32>::poisoned(gpu, 300, 0)),
        enqueue: |(pred, target, out), gpu| {
            let (pred, target) = (pred.view(), target.view());
            BoxLoss::default().forward_cuda(&gpu.handle, &pred, &target, 300, &mut out.view_mut())
        },
        bits: |(.., out), gpu| bits_of(&out.read(gpu)).collect(),
    })
}

fn assigned(gpu: &Gpu, random: &mut Random) -> Box<dyn Call> {
    let corners: Vec<f32> = (0..40)
        .flat_map(|_| {
            let [x, y, w, h] = [200.0, 200.0, 60.0, 60.0].map(|most| random.between(0.0, most) as f32);
            [x, y, x + w, y + h]
        })
        .collect();
    let numbers = |modulus: i64| (0..40).map(|i| i % modulus).collect::<Vec<i64>>();
    let workspace = AssignWorkspace::new(&gpu.stream, 2, 32 * 32, 40).expect("device memory");
    Box::new(Of {
        state: (
            Buffer::new(gpu, &corners, 0),
            [Buffer::new(gpu, &numbers(20), 0), Buffer::new(gpu, &numbers(2), 0)],
            (Buffer::<i64>::poisoned(gpu, 2 * 32 * 32, 0), Buffer::<f32>::poisoned(gpu, 8 * 32 * 32, 0)),
            workspace,
        ),
        enqueue: |(boxes, [labels, image], (out, out_boxes), workspace), gpu| {
            let (boxes, labels, image) = (boxes.view(), labels.view(), image.view());
            let (mut out, mut out_boxes) = (out.view_mut(), out_boxes.view_mut());
            let anchors = [AnchorGrid::new(32, 32, 8.0).into()];
            let mut targets = [LevelTargets::cuda(&mut out, &mut out_boxes)];
            let gt = GroundTruth::cuda(&boxes, &labels, &image);
            Atss::default().cuda(&gpu.handle, &anchors, gt, 2, 20, &mut targets, workspace, None)
        },
        bits: |(.., (labels, boxes), _), gpu| {
            let labels = labels.read(gpu).into_iter().map(|label| label as u64);
            labels.chain(bits_of(&boxes.read(gpu))).collect()
        },
    })
}

/// Calls of all kinds, each on several blocks.
fn calls(gpu: &Gpu) -> Vec<Box<dyn Call>> {
    let mut random = Random::new(91);
    let mut qfl = |classes: usize| {
        let labels: Vec<i64> = (0..1500).map(|_| random.index(classes + 1) as i64).collect();
        Case::sparse([1500, classes], &random.many(1500 * classes, -8.0, 4.0), &labels, &[0.5; 1500])
    };
    let (linear, rows) = (qfl(16), qfl(7));
    let mut dfl = |bins: usize| {
        let target = random.floats(1500, 0.0, bins as f64 - 1.0);
        Case::dfl([1500, bins], &random.many(1500 * bins, -4.0, 4.0), &target)
    };
    let (tile, other) = (dfl(17), dfl(9));
    let dense = Case::dense([1500, 7], &rows.logits, &[0.25; 1500 * 7]);
    vec![
        loss::<f32>(gpu, linear.clone()),
        loss::<f16>(gpu, linear.clone().with_beta(1.5)),
        loss::<bf16>(gpu, tile.clone()),
        head::<f32>(gpu, &mut random),
        loss::<f32>(gpu, rows.clone().reduced(Reduction::None)),
        assigned(gpu, &mut random),
        loss::<f16>(gpu, dense),
        gfl(gpu, rows, tile),
        expectation(gpu, &mut random),
        loss::<f32>(gpu, other),
        head::<bf16>(gpu, &mut random),
        boxes(gpu, &mut random),
    ]
}

/// Each enqueued in turn, and none waited for before the last.
fn rounds(gpu: &Gpu, backwards: bool, want: &[Vec<u64>]) {
    // A GPU chooses its orders itself, so there it takes more of them; the kit asks for 200.
    let repeats = std::env::var("GFOCAL_REPEATS").ok().and_then(|repeats| repeats.parse().ok()).unwrap_or(2);
    let mut calls = calls(gpu);
    for round in 0..repeats {
        let mut order: Vec<&mut Box<dyn Call>> = calls.iter_mut().collect();
        if backwards {
            order.reverse();
        }
        order.into_iter().for_each(|call| call.enqueue(gpu));
        for (i, (call, want)) in calls.iter().zip(want).enumerate() {
            assert!(call.bits(gpu) == *want, "round {round}: call {i} has other bits than alone");
        }
    }
}

/// `gpu`, with kernels that nothing else uses.
fn with_own_kernels(mut gpu: Gpu) -> Gpu {
    gpu.handle = Handle::new(&gpu.stream).expect("a handle");
    gpu
}

#[test]
fn two_streams_and_a_third_that_makes_handles() {
    let Some(alone) = gpu() else { return };
    let mut calls = calls(&alone);
    calls.iter_mut().for_each(|call| call.enqueue(&alone));
    let want: Vec<Vec<u64>> = calls.iter().map(|call| call.bits(&alone)).collect();
    let (want, over) = (&want, &AtomicBool::new(false));
    std::thread::scope(|scope| {
        let shared = scope.spawn(|| rounds(&gpu().expect("as above"), false, want));
        let own = scope.spawn(|| {
            rounds(&with_own_kernels(gpu().expect("as above")), true, want);
        });
        let third = scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                dropped_at_once(&want[9]);
            }
        });
        let ends = [shared.join(), own.join()];
        over.store(true, Ordering::Relaxed);
        ends.into_iter().chain([third.join()]).for_each(|end| end.expect("no thread has failed"));
    });
}

/// A call whose handle, the last with its kernels, goes before anything has waited for it.
fn dropped_at_once(want: &[u64]) {
    let gpu = gpu().expect("there is a driver");
    let shared = gpu.handle.on(&gpu.stream).expect("a handle");
    let mut own = with_own_kernels(gpu);
    let mut call = calls(&own).swap_remove(9);
    call.enqueue(&own);
    own.handle = shared;
    assert!(call.bits(&own) == want, "a call whose handle has gone has other bits");
}

#[test]
fn the_last_handle_goes_while_its_call_is_enqueued() {
    let Some(gpu) = gpu() else { return };
    let mut call = calls(&gpu).swap_remove(9);
    call.enqueue(&gpu);
    dropped_at_once(&call.bits(&gpu));
}
