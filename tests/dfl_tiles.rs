//! DFL of 16 and 17 bins on many rows. There the CUDA kernels have a short way, for whole blocks of rows
//! (128 of f32, 256 of 16 bits), and a long way, for the rows left over and for those that the short way
//! is no good for. Shows that both give what the reference gives, next to each other and at the limits
//! between them.

use gfocal::{AvgPolicy, Reduction, bf16, f16};
use support::cuda::Layout;
use support::gpu::OnDevice;
use support::in_types;
use support::random::Random;
use support::tolerance::check_same_bits;
use support::{Case, Outcome, Pass, check_cpu, check_cuda, cpu, cuda, gpu};

const BINS: [usize; 2] = [16, 17];

/// Whole blocks of f32 and of 16 bits, whole ones of f32 alone, and tails of one row, of a few, of a
/// warp, and of nearly a block of f32.
const ROWS: [usize; 6] = [768, 640, 769, 773, 800, 895];

/// What the kernels read row by row may lie anywhere.
const ROWWISE_ANYWHERE: Layout =
    Layout { loss: 1, targets: 3, weight: 1, upstream: 5, device_avg_factor: true, ..Layout::ALIGNED };

/// Rows that take the short way, all of them.
fn usual(rows: usize, bins: usize) -> Case {
    let mut random = Random::new((rows * bins) as u64);
    let logits = random.many(rows * bins, -6.0, 6.0);
    let last = (bins - 1) as f64;
    let mut target: Vec<f32> = (0..rows).map(|_| random.between(0.0, last) as f32).collect();
    for (row, t) in target.iter_mut().enumerate().filter(|(row, _)| row % 5 == 0) {
        *t = (row / 5 % bins) as f32; // each end, and each integer
    }
    Case::dfl([rows, bins], &logits, &target)
}

/// Every so many rows `change` makes one unusual: of some blocks none, of others one or more. It gets
/// how many it has changed, the row's logits and its target.
fn with_some(case: Case, every: usize, mut change: impl FnMut(usize, &mut [f64], &mut f32)) -> Case {
    let bins = case.shape[1];
    let mut case = case;
    let support::Loss::Dfl { target, .. } = &mut case.loss else { unreachable!("a DFL case") };
    let rows = case.logits.chunks_mut(bins).zip(target).skip(every / 2).step_by(every);
    for (count, (logits, target)) in rows.enumerate() {
        change(count, logits, target);
    }
    case
}

/// A weight for each row: one in `every` is 0, one -0, one negative.
fn weighted(case: Case, every: usize) -> Case {
    let weight = |row: usize| match row % every {
        0 => 0.0,
        1 => -0.0,
        2 => -0.5,
        _ => 0.25 + (row % 7) as f32,
    };
    let weight = (0..case.shape[0]).map(weight).collect();
    case.with(|options| options.weight = Some(weight))
}

fn with_upstream(case: Case) -> Case {
    let mut random = Random::new(11);
    let upstream = (0..case.shape[0]).map(|_| random.between(-2.0, 2.0) as f32).collect();
    case.reduced(Reduction::None).with(|options| options.upstream = Some(upstream))
}

fn check_as<T: OnDevice>(case: &Case) {
    check_cpu::<T>(case);
    let Some(gpu) = gpu() else { return };
    check_cuda::<T>(&gpu, case, &Layout::ALIGNED);
    check_cuda::<T>(&gpu, case, &ROWWISE_ANYWHERE);
}

/// On both backends in every storage type.
fn check_reduction(case: &Case) {
    in_types!(f32, f16, bf16: check_as(case));
}

/// As a sum, and as losses of rows with gradients of their own.
fn check(case: &Case) {
    check_reduction(case);
    check_reduction(&with_upstream(case.clone()));
}

/// What both backends give forward and backward.
fn on_both<T: OnDevice>(case: &Case) -> Vec<Outcome<T>> {
    let mut outcomes = vec![cpu::run(case, Pass::ForwardBackward).expect("a legal call")];
    outcomes
        .extend(gpu().map(|gpu| {
            cuda::run(&gpu, case, Pass::ForwardBackward, &Layout::ALIGNED).expect("a legal call")
        }));
    outcomes
}

#[test]
fn usual_rows_and_every_tail() {
    for bins in BINS {
        for rows in ROWS {
            check(&usual(rows, bins));
        }
        let by = Reduction::MeanBy { avg_factor: 37.5, policy: AvgPolicy::Exact };
        for reduction in [Reduction::None, Reduction::Mean, by] {
            check_reduction(&usual(800, bins).reduced(reduction));
        }
    }
}

#[test]
fn the_row_counts_of_small_batches() {
    for bins in BINS {
        for rows in [1, 31, 32, 64, 65, 127, 128, 129, 255, 256, 257, 383, 385] {
            for case in [usual(rows, bins), weighted(usual(rows, bins), 4)] {
                check_as::<f32>(&case);
                check_as::<f16>(&case);
                check_as::<bf16>(&case.reduced(Reduction::None));
            }
        }
    }
}

#[test]
fn logits_that_are_not_finite_spoil_their_row_alone() {
    for bins in BINS {
        for odd in [f64::INFINITY, f64::NEG_INFINITY, f64::NAN] {
            // In every bin in turn, in both target bins, everywhere.
            let case = with_some(usual(1000, bins), 29, |count, logits, target| match count % (bins + 2) {
                bin if bin < bins => logits[bin] = odd,
                bin if bin == bins => {
                    let left = (*target as usize).min(bins - 2);
                    logits[left..left + 2].fill(odd);
                }
                _ => logits.fill(odd),
            });
            check(&case);
        }
    }
}

#[test]
fn masked_rows_give_zeros_whatever_they_hold() {
    for bins in BINS {
        let whatever = |count: usize, logits: &mut [f64], target: &mut f32| match count % 4 {
            0 => logits[count % bins] = f64::NAN,
            1 => logits.fill(f64::INFINITY),
            2 => *target = f32::NAN,
            _ => *target = -7.0,
        };
        // Rows 3, 18, 33, ...: of 5 rows, the fourth.
        let case = with_some(usual(1001, bins), 6, whatever).with(|options| {
            options.weight = Some((0..1001).map(|row| if row % 6 == 3 { 0.0 } else { 2.0 }).collect());
        });
        check(&case);
        check(&weighted(usual(1001, bins), 4));

        // +0, whatever the sign of the weight and of the scale.
        let case = weighted(case, 4).with(|options| options.grad_scale = -3.0).reduced(Reduction::None);
        in_types!(f32, f16, bf16: zeros_are_positive(&case));
    }
}

fn zeros_are_positive<T: OnDevice>(case: &Case) {
    let Some(gpu) = gpu() else { return };
    let got = cuda::run::<T>(&gpu, case, Pass::ForwardBackward, &Layout::ALIGNED).expect("a legal call");
    let bins = case.shape[1];
    let masked = case.options.weight.iter().flatten().enumerate().filter(|(_, weight)| **weight == 0.0);
    let mut rows = 0;
    for (row, _) in masked {
        check_same_bits("a masked row", &got.grad[row * bins..][..bins], &vec![T::from_f64(0.0); bins]);
        rows += 1;
    }
    assert_eq!(rows, 501);
}

#[test]
fn targets_out_of_range_are_clamped_and_counted() {
    for bins in BINS {
        let last = (bins - 1) as f32;
        let odd =
            [-0.0, -1e-30, -1.0, f32::NEG_INFINITY, last, last.next_up(), 1e30, f32::INFINITY, f32::NAN];
        for every in [1, 3, 41] {
            let case =
                with_some(usual(1000, bins), every, |count, _, target| *target = odd[count % odd.len()]);
            check(&case);
            check(&weighted(case.clone(), 7).with_target_eps(0.1));

            // As many as were put there, for the same results as of the clamped targets.
            let changed = (1000 - every / 2).div_ceil(every);
            let fine = (0..changed).filter(|count| [0, 4].contains(&(count % odd.len()))).count();
            let clamped = with_some(case.clone(), every, |_, _, target| *target = target.clamp(0.0, last));
            for (got, clamped) in on_both::<f32>(&case).iter().zip(on_both::<f32>(&clamped)) {
                assert_eq!(got.status.out_of_range_targets as usize, changed - fine);
                assert_eq!(got.status.first_bad_row, Some((every / 2 + every) as u64));
                let rows = (0..1000).filter(|row| !is_nan_target(&case, *row));
                for row in rows.map(|row| row * bins..(row + 1) * bins) {
                    assert_eq!(got.grad[row.clone()], clamped.grad[row]);
                }
            }
        }
    }
}

fn is_nan_target(case: &Case, row: usize) -> bool {
    let support::Loss::Dfl { target, .. } = &case.loss else { unreachable!("a DFL case") };
    target[row].is_nan()
}

/// The short way ends where the larger target bin's logit is 2^14 bits, or 11356.5.
#[test]
fn rows_far_from_zero() {
    let limit = 2f64.powi(14) * std::f64::consts::LN_2;
    let centres =
        [50.0, 1000.0, limit - 64.0, limit - 1.0, limit, limit + 1.0, limit + 64.0, 20000.0, 60000.0];
    for bins in BINS {
        let case = with_some(usual(1000, bins), 3, |count, logits, _| {
            let centre = centres[count / 2 % centres.len()] * [1.0, -1.0][count % 2];
            logits.iter_mut().for_each(|logit| *logit += centre);
        });
        check(&case);
    }
}

/// The short way ends where the other bins have 2^30 times what the larger target bin has.
#[test]
fn rows_with_little_at_the_target() {
    let limit = 30.0 * std::f64::consts::LN_2;
    for bins in BINS {
        let all_others = ((bins - 2) as f64).ln();
        let case = with_some(usual(1000, bins), 2, |count, logits, target| {
            let distance = limit + (count / 3) as f64 * 0.07 - 8.0;
            let left = (*target as usize).min(bins - 2);
            let others = match count % 3 {
                0 => distance - all_others, // all the same
                1 => -3.0,                  // but for one of them
                _ => -60.0,
            };
            for (bin, logit) in logits.iter_mut().enumerate() {
                *logit = if bin == left || bin == left + 1 { 0.0 } else { others };
            }
            if count % 3 > 0 {
                logits[(left + 2 + count % (bins - 2)) % bins] = distance;
            }
            // One target bin far below the other.
            logits[left + count % 2] -= [0.0, 5.0, 40.0, 120.0][count % 4];
        });
        check(&case);
    }
}

/// And where the target bins have nearly everything: a loss next to 0.
#[test]
fn confident_rows_keep_their_digits() {
    for bins in BINS {
        let case = with_some(usual(1000, bins), 1, |count, logits, target| {
            *target = target.round();
            logits[*target as usize] = 5.0 + count as f64 * 0.1;
        });
        check(&case);
    }
}

#[test]
fn numbers_at_the_end_of_f32() {
    for bins in BINS {
        // A quarter of the largest, so that the loss, a difference of logits, is less than that too.
        let ends = [f32::MAX / 4.0, -f32::MAX / 4.0, 1e30, -1e30, 1e19, -1e19, 1e-40, -1e-40].map(f64::from);
        let case = with_some(usual(900, bins), 7, |count, logits, _| {
            logits[count % bins] = ends[count % ends.len()];
            logits[count / 3 % bins] = ends[count / 2 % ends.len()];
        });
        check(&case);
    }
}

/// So many rows that on the emulator, of 4 multiprocessors and at most 8 blocks on each, warps have a second tile.
/// Of their lanes a few have rows of the long way, and are behind the others when these go on.
#[test]
fn a_warp_has_a_second_tile_and_its_lanes_drift_apart() {
    let Some(gpu) = gpu() else { return };
    for bins in BINS {
        let limit = 2f64.powi(14) * std::f64::consts::LN_2;
        let case = |rows: usize| {
            with_some(usual(rows, bins), 37, |count, logits, target| match count % 3 {
                0 => *target = -1.0,
                1 => logits.iter_mut().for_each(|logit| *logit += 2.0 * limit),
                _ => logits[count % bins] = 55.0,
            })
        };
        // 32 blocks of 128 rows, or of 256.
        check_cuda::<f32>(&gpu, &case(6_000), &Layout::ALIGNED);
        check_cuda::<f16>(&gpu, &case(10_500), &Layout::ALIGNED);
        check_cuda::<bf16>(&gpu, &case(10_500), &Layout::ALIGNED);
    }
}

/// The flag is set by any row, short way or long, and by none whose gradient is finite.
#[test]
fn overflow_sets_the_flag_wherever_it_is() {
    for bins in BINS {
        for row in [300, 511, 512, 899] {
            for weight in [64999.0, 65001.0, 70000.0, 3e38] {
                let heavy = |options: &mut support::Options| {
                    options.weight = Some((0..900).map(|n| if n == row { weight } else { 1.0 }).collect());
                };
                let case = usual(900, bins).with(heavy);
                check_as::<f16>(&case);
                check_as::<f16>(&with_upstream(case.clone()));
                check_as::<f32>(&case);
                check_as::<bf16>(&case.with(|options| options.grad_scale = -1.0));
            }
        }
    }
}
