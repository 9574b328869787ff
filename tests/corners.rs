//! Shows what drawn calls meet too rarely, in every storage type on CUDA: divisors on the device that are below
//! their least, rows of whole vectors with something wrong about them, scores that are their quality to the last bit.

use gfocal::{AvgPolicy, Reduction, bf16, f16};
use support::cuda::{Buffers, Layout};
use support::gpu::OnDevice;
use support::random::Random;
use support::tolerance::check_same_bits;
use support::{Case, Gpu, Pass, check_cuda, gpu};

/// Numbers on the device, beside buffers as the driver aligns them.
const NUMBERS_ON_DEVICE: Layout =
    Layout { device_avg_factor: true, device_grad_scale: true, ..Layout::ALIGNED };
const BETAS: [f64; 3] = [2.0, 0.0, 1.5];

fn check(gpu: &Gpu, case: &Case) {
    for layout in [NUMBERS_ON_DEVICE, Layout::MISALIGNED] {
        check_both::<f32>(gpu, case, &layout);
        check_both::<f16>(gpu, case, &layout);
        check_both::<bf16>(gpu, case, &layout);
    }
}

/// Without status and flag the results are the same.
fn check_both<T: OnDevice>(gpu: &Gpu, case: &Case, layout: &Layout) {
    check_cuda::<T>(gpu, case, layout);
    for pass in [Pass::Forward, Pass::ForwardBackward] {
        let [got, want] = [true, false].map(|bare| {
            let mut buffers = Buffers::<T>::new(gpu, case, layout);
            buffers.bare = bare;
            buffers.call(gpu, case, pass).expect("a legal call");
            buffers.outcome(gpu, pass)
        });
        check_same_bits("losses", &got.loss, &want.loss);
        check_same_bits("gradients", &got.grad, &want.grad);
    }
}

/// Background but for every third row.
fn sparse(random: &mut Random, shape: [usize; 2]) -> Case {
    let [rows, classes] = shape;
    let labels: Vec<i64> =
        (0..rows).map(|row| if row % 3 == 0 { row % classes } else { classes } as i64).collect();
    Case::sparse(shape, &random.many(rows * classes, -6.0, 3.0), &labels, &vec![0.625; rows])
}

fn dense(random: &mut Random, shape: [usize; 2]) -> Case {
    let elements = shape[0] * shape[1];
    let target: Vec<f32> = (0..elements).map(|i| if i % 5 == 0 { 0.375 } else { 0.0 }).collect();
    Case::dense(shape, &random.many(elements, -6.0, 3.0), &target)
}

/// A call of each kind of shape.
fn check_all(gpu: &Gpu, seed: u64, reduction: Reduction) {
    let mut random = Random::new(seed);
    for shape in [[12, 16], [9, 5]] {
        for beta in BETAS {
            check(gpu, &sparse(&mut random, shape).with_beta(beta).reduced(reduction));
            check(gpu, &dense(&mut random, shape).with_beta(beta).reduced(reduction));
        }
    }
    for bins in [16, 17, 9] {
        let target: Vec<f32> = (0..20).map(|_| random.between(0.0, bins as f64 - 1.0) as f32).collect();
        let case = Case::dfl([20, bins], &random.many(20 * bins, -3.0, 3.0), &target);
        check(gpu, &case.reduced(reduction));
    }
}

#[test]
fn a_divisor_on_the_device_that_is_below_its_least() {
    let Some(gpu) = gpu() else { return };
    check_all(&gpu, 401, Reduction::MeanBy { avg_factor: 0.25, policy: AvgPolicy::AtLeast(0.75) });
}

/// Which the host cannot see: nothing is finite.
#[test]
fn a_divisor_on_the_device_that_is_nan() {
    let Some(gpu) = gpu() else { return };
    for policy in [AvgPolicy::Exact, AvgPolicy::AtLeast(0.75)] {
        check_all(&gpu, 405, Reduction::MeanBy { avg_factor: f64::NAN, policy });
    }
}

#[test]
fn rows_of_whole_vectors_with_wrong_labels_and_qualities() {
    let Some(gpu) = gpu() else { return };
    let mut case = sparse(&mut Random::new(402), [40, 16]);
    for narrow_labels in [false, true] {
        let support::Loss::Sparse { labels, quality, narrow, .. } = &mut case.loss else { unreachable!() };
        (labels[4], labels[21]) = (17, -1);
        (quality[3], quality[4], quality[5], quality[33]) = (f32::NAN, f32::NAN, f32::NAN, f32::NAN);
        *narrow = narrow_labels;
        for case in BETAS.map(|beta| case.clone().with_beta(beta)) {
            check(&gpu, &case);
            check(&gpu, &case.reduced(Reduction::None));
        }
    }
}

#[test]
fn a_score_that_is_its_quality_to_the_last_bit() {
    let Some(gpu) = gpu() else { return };
    let mut logits = Random::new(403).many(6 * 16, -3.0, 3.0);
    let labels = [0, 1, 2, 3, 4, 5];
    labels.into_iter().for_each(|row| logits[row * 17] = 0.0);
    let case = Case::sparse([6, 16], &logits, &labels.map(|label| label as i64), &[0.5; 6]);
    for beta in [0.5, 1.0, 1.5, 3.0] {
        check(&gpu, &case.clone().with_beta(beta));
    }
}

#[test]
fn upstream_gradients_of_dense_rows() {
    let Some(gpu) = gpu() else { return };
    let mut random = Random::new(404);
    for shape in [[7, 16], [7, 5]] {
        for beta in BETAS {
            let case = dense(&mut random, shape).with_beta(beta).reduced(Reduction::None);
            check(
                &gpu,
                &case.with(|options| options.upstream = Some(vec![0.0, 1.0, -2.0, 0.5, 3.0, 1e-3, 1.0])),
            );
        }
    }
}

/// Labelled logits that are so far away that exponentials end.
#[test]
fn labelled_logits_far_away() {
    let Some(gpu) = gpu() else { return };
    let far = [-6e4, -1e3, -710.0, -690.0, 690.0, 710.0, 1e3, 6e4];
    for classes in [16, 5, 1] {
        let mut logits = vec![-1.0; 8 * classes];
        far.iter().enumerate().for_each(|(row, &x)| logits[row * classes + row % classes] = x);
        let labels: Vec<i64> = (0..8).map(|row| (row % classes) as i64).collect();
        let sparse = Case::sparse([8, classes], &logits, &labels, &[0.25; 8]);
        let dense = Case::dense([8, classes], &logits, &vec![0.25; 8 * classes]);
        for case in
            [sparse, dense].into_iter().flat_map(|case| BETAS.map(|beta| case.clone().with_beta(beta)))
        {
            check(&gpu, &case);
        }
    }
}
