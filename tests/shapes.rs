//! Shows that rows of any width give what the formulas give: at each number of lanes that share one, where a lane
//! goes round its loops several times, and on both sides of the widest row that the kernel for whole vectors takes.

use gfocal::{AvgPolicy, Reduction, bf16, f16};
use support::cuda::Layout;
use support::gpu::OnDevice;
use support::in_types;
use support::random::Random;
use support::tolerance::check_elements;
use support::{Case, Gpu, check_cuda, cuda, gpu, reference};

/// 16 lanes of f32 and then of 16 bits, 32 of both; 320 vectors of f32 and more, 320 of 16 bits and more.
const CLASSES: [usize; 6] = [170, 401, 1280, 1284, 2560, 2568];
/// 32 lanes of f32, of 16 bits too, and more than four vectors for each.
const BINS: [usize; 3] = [150, 301, 2100];

const LAYOUTS: [Layout; 2] = [Layout::ALIGNED, Layout::MISALIGNED];

fn check(gpu: &Gpu, case: &Case) {
    for layout in &LAYOUTS {
        in_types!(f32, f16, bf16: check_cuda(gpu, case, layout));
    }
}

#[test]
fn wide_rows_of_classes() {
    let Some(gpu) = gpu() else { return };
    let mut random = Random::new(101);
    for classes in CLASSES {
        // Five: more than a thread of the kernel for whole vectors has in flight.
        let logits = random.many(5 * classes, -6.0, 3.0);
        let labels = [0, classes / 2, classes, classes - 1, classes].map(|label| label as i64);
        let sparse = Case::sparse([5, classes], &logits, &labels, &[0.7; 5]);
        let mut target = vec![0.0; 5 * classes];
        target.iter_mut().step_by(7).for_each(|y| *y = random.unit() as f32);
        target[2 * classes - 1] = f32::NAN;
        let dense = Case::dense([5, classes], &logits, &target);
        for beta in [2.0, 1.5] {
            check(&gpu, &sparse.clone().with_beta(beta));
            check(&gpu, &dense.clone().with_beta(beta).reduced(Reduction::None));
        }
    }
}

#[test]
fn wide_rows_of_bins() {
    let Some(gpu) = gpu() else { return };
    let mut random = Random::new(102);
    for bins in BINS {
        let last = (bins - 1) as f32;
        let case =
            Case::dfl([4, bins], &random.many(4 * bins, -4.0, 4.0), &[0.0, last, 0.4 * last, last - 0.5]);
        check(&gpu, &case);
        in_types!(f32, f16, bf16: integral(&gpu, &case.logits, bins));
    }
}

fn integral<T: OnDevice>(gpu: &Gpu, logits: &[f64], bins: usize) {
    let stored: Vec<T> = logits.iter().map(|&x| T::from_f64(x)).collect();
    let shape = [stored.len() / bins, bins];
    let ones = vec![1.0; shape[0]];
    let [expectations, grads] = reference::expectations(&stored, bins, &ones);
    for layout in &LAYOUTS {
        let got = cuda::integral(gpu, &stored, shape, &ones, layout).expect("a legal call");
        check_elements(&format!("expectations of {bins} bins"), &got.0, &expectations);
        check_elements(&format!("gradients of {bins} bins"), &got.1, &grads);
    }
}

/// Of so many rows each of the emulator's 12 blocks has whole tiles of four steps, in any storage type; logits
/// are too large for the short way in each of them, and some labelled ones have no quality. The divisor on
/// the device is below the least that is allowed.
#[test]
fn whole_tiles() {
    let Some(gpu) = gpu() else { return };
    let (rows, classes, layout) = (18_000, 16, Layout { device_avg_factor: true, ..Layout::ALIGNED });
    let reduction = Reduction::MeanBy { avg_factor: 0.5, policy: AvgPolicy::AtLeast(2.0) };
    let mut random = Random::new(103);
    let logits = random.many(rows * classes, -6.0, 4.0);
    let labels: Vec<i64> = (0..rows).map(|row| (row % 23) as i64).collect();
    let quality: Vec<f32> = (0..rows).map(|row| (row % 5) as f32 * 0.25).collect();
    let case = Case::sparse([rows, classes], &logits, &labels, &quality).reduced(reduction);
    for beta in [2.0, 1.5] {
        let case = case.clone().with_beta(beta);
        in_types!(f32, f16, bf16: check_cuda(&gpu, &case, &layout));
    }
}

/// So many rows that each of the blocks that the emulator has at once goes on to others, however many lanes share a row.
#[test]
fn steps_of_every_block() {
    let Some(gpu) = gpu() else { return };
    let mut random = Random::new(105);
    for (rows, bins) in [(9_000, 3), (3_000, 17), (1_500, 70)] {
        let logits = random.many(rows * bins, -4.0, 4.0);
        in_types!(f32, f16, bf16: integral(&gpu, &logits, bins));
        let targets = random.floats(rows, 0.0, (bins - 1) as f64);
        let sides = Case::dfl([rows, bins], &logits, &targets).reduced(Reduction::None);
        let labels: Vec<i64> = (0..rows).map(|row| (row % (2 * bins)).min(bins) as i64).collect();
        let sparse = Case::sparse([rows, bins], &logits, &labels, &random.floats(rows, 0.0, 1.0));
        let dense = Case::dense([rows, bins], &logits, &random.floats(rows * bins, 0.0, 1.0));
        let of_rows = |case: Case, beta| case.with_beta(beta).reduced(Reduction::None);
        for case in [&sides, &of_rows(sparse, 2.0), &of_rows(dense, 1.5)] {
            in_types!(f32, f16, bf16: check_cuda(&gpu, case, &Layout::ALIGNED));
        }
    }
}

/// All logits of a sum are alike, so that a wrong digit of a formula is one of the sum, too.
#[test]
fn sums_over_narrow_ranges() {
    let Some(gpu) = gpu() else { return };
    let (rows, classes) = (120, 16);
    let mut random = Random::new(104);
    for (low, high) in [(-0.3, 0.3), (-4.0, -2.0), (1.0, 6.0)] {
        let logits = random.many(rows * classes, low, high);
        let quality = random.floats(rows * classes, 0.02, 0.98);
        let background = Case::sparse([rows, classes], &logits, &vec![-1; rows], &vec![0.0; rows]);
        let dense = Case::dense([rows, classes], &logits, &quality);
        // Labels alone: of all others there is nothing.
        let mut alone = vec![-300.0; rows * classes];
        (0..rows).for_each(|row| alone[row * classes + row % classes] = logits[row]);
        let labels: Vec<i64> = (0..rows).map(|row| (row % classes) as i64).collect();
        let labelled = Case::sparse([rows, classes], &alone, &labels, &quality[..rows]);
        for beta in [2.0, 1.5] {
            check(&gpu, &background.clone().with_beta(beta));
            check(&gpu, &dense.clone().with_beta(beta));
            check(&gpu, &labelled.clone().with_beta(beta));
        }
    }
}
