//! Shows that a call gives the same bits every time, whatever the order in which blocks and
//! threads run; that it allocates nothing and waits for nothing; that sum and mean are one
//! launch; and that status and scratch memory can be used again and again.

use gfocal::{AvgPolicy, Reduction, Status, bf16, f16};
use support::cuda::{Buffers, Layout};
use support::gpu::OnDevice;
use support::random::Random;
use support::tolerance::check_same_bits;
use support::{Case, Gpu, Pass, check, cuda, gpu};

/// Shapes so large that many blocks take part and each kernel loops, and shapes with tails.
fn cases() -> Vec<Case> {
    let mut random = Random::new(21);
    let mut cases = Vec::new();
    for (rows, classes) in [(3000, 80), (1501, 80), (997, 13), (2000, 7), (31, 1203), (33, 1)] {
        let logits = random.many(rows * classes, -8.0, 4.0);
        let labels: Vec<i64> = (0..rows).map(|_| random.index(classes + 2) as i64).collect();
        let sparse = Case::sparse([rows, classes], &logits, &labels, &random.floats(rows, 0.0, 1.0));
        cases.push(if rows % 2 == 0 { sparse } else { sparse.with_beta(1.5) });
    }
    let target = random.floats(700 * 20, 0.0, 1.0);
    let dense = Case::dense([700, 20], &random.many(700 * 20, -8.0, 4.0), &target);
    cases.push(dense.clone().with_beta(0.0));
    let weights: Vec<f32> = (0..700 * 20).map(|_| random.index(3) as f32).collect();
    cases.push(dense.clone().with_elements(|elements| elements.element_weights = Some(weights)));
    cases.push(dense);
    let by_class = |case: &Case| {
        case.clone().with_elements(|elements| elements.class_weights = Some(vec![0.5; case.shape[1]]))
    };
    cases.push(by_class(&cases[0]));
    for (rows, bins) in [(5000, 17), (4999, 16), (1333, 33), (2500, 2)] {
        let target = random.floats(rows, -0.5, bins as f64);
        cases.push(Case::dfl([rows, bins], &random.many(rows * bins, -5.0, 5.0), &target));
    }
    cases
}

fn reductions(rows: usize) -> [Reduction; 3] {
    let by = Reduction::MeanBy { avg_factor: rows as f64 / 3.0, policy: AvgPolicy::AtLeast(1.0) };
    [Reduction::Sum, by, Reduction::None]
}

/// The same call with new orders each time; once without a status and a flag, which make no difference.
fn same_bits<T: OnDevice>(gpu: &Gpu, case: &Case, layout: &Layout) {
    let what = format!("{:?} in {}", case.shape, T::NAME);
    let mut first = None;
    // A GPU chooses its orders itself, so there it takes more of them; the kit asks for 1000.
    let repeats = std::env::var("GFOCAL_REPEATS").ok().and_then(|repeats| repeats.parse().ok()).unwrap_or(4);
    for seed in 0..repeats {
        if let Some(emulator) = gpu.emulator {
            emulator.set_seed(seed * 7919 + 1);
        }
        let mut buffers = Buffers::<T>::new(gpu, case, layout);
        buffers.bare = seed == 1;
        buffers.call(gpu, case, Pass::ForwardBackward).expect("a legal call");
        let got = buffers.outcome(gpu, Pass::ForwardBackward);
        match &first {
            None => {
                check(&what, case, Pass::ForwardBackward, &got);
                first = Some(got);
            }
            Some(first) => {
                check_same_bits(&what, &got.loss, &first.loss);
                check_same_bits(&what, &got.grad, &first.grad);
                assert_eq!(got.status, if seed == 1 { Status::default() } else { first.status }, "{what}");
            }
        }
    }
}

#[test]
fn the_same_bits_over_orders() {
    let Some(gpu) = gpu() else { return };
    for case in cases() {
        for reduction in [Reduction::Sum, Reduction::None] {
            let case = case.clone().reduced(reduction);
            same_bits::<f32>(&gpu, &case, &Layout::ALIGNED);
        }
        let case = case.reduced(Reduction::Mean);
        same_bits::<f16>(&gpu, &case, &Layout::ALIGNED);
        same_bits::<bf16>(&gpu, &case, &Layout::MISALIGNED);
    }
}

/// The buffers are made once; the handle's scratch memory and the status serve every call.
#[test]
fn no_allocation_no_wait_one_launch() {
    let Some(gpu) = gpu() else { return };
    for case in cases() {
        for reduction in reductions(case.shape[0]) {
            let case = case.clone().reduced(reduction);
            for layout in [Layout::ALIGNED, Layout::MISALIGNED] {
                counted::<f32>(&gpu, &case, &layout);
                counted::<f16>(&gpu, &case, &layout);
            }
        }
    }
}

fn counted<T: OnDevice>(gpu: &Gpu, case: &Case, layout: &Layout) {
    let mut buffers = Buffers::<T>::new(gpu, case, layout);
    let mut first = None;
    for repetition in 1..=3u32 {
        gpu.enqueued(1, || buffers.call(gpu, case, Pass::ForwardBackward)).expect("a legal call");
        let got = buffers.outcome(gpu, Pass::ForwardBackward);
        let status = got.status;
        let (loss, grad, counts) = first.get_or_insert((got.loss.clone(), got.grad.clone(), status));
        check_same_bits("loss", &got.loss, loss);
        check_same_bits("gradient", &got.grad, grad);
        // The status adds up until it is reset.
        assert_eq!(status.bad_labels, counts.bad_labels * repetition);
        assert_eq!(status.out_of_range_targets, counts.out_of_range_targets * repetition);
        assert_eq!(status.first_bad_row, counts.first_bad_row);
    }
    buffers.status.reset(&gpu.stream).expect("a reset");
    assert!(buffers.status.read(&gpu.stream).expect("the stream's work ends well").is_ok());
}

/// One handle, calls of all kinds in turn: each finds the scratch memory as it needs it.
#[test]
fn kinds_of_calls_share_a_handle() {
    let Some(gpu) = gpu() else { return };
    let cases = cases();
    for pass in Pass::ALL {
        for case in cases.iter().chain(cases.iter().rev()) {
            let got = cuda::run::<f32>(&gpu, case, pass, &Layout::ALIGNED).expect("a legal call");
            check("in turn", case, pass, &got);
        }
    }
}
