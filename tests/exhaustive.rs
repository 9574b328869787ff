//! Every f16 and every bf16 logit, and f32 logits close together over the range that matters, as
//! background, labelled and with a dense target: inf and NaN propagate, all others are within
//! tolerance from the largest to the subnormal ones. Neighbours in a row are alike, so that whole
//! warps take the kernels' short way for confident negatives.

use gfocal::{Reduction, bf16, f16};
use support::cuda::Layout;
use support::gpu::{Gpu, OnDevice, gpu};
use support::{Case, check_cpu, check_cuda};

/// Classes of a row: one vector of 16 bytes.
const CLASSES: usize = 8;
const ROWS: usize = (1 << 16) / CLASSES;

fn check_all<T: OnDevice>(gpu: &Gpu, logit: impl Fn(u16) -> T) {
    let logits: Vec<f64> = (0..=u16::MAX).map(|index| logit(index).to_f64()).collect();
    let check = |case: Case| {
        for reduction in [Reduction::None, Reduction::Sum] {
            let case = case.clone().reduced(reduction);
            check_cpu::<T>(&case);
            check_cuda::<T>(gpu, &case, &Layout::ALIGNED);
        }
    };
    let background = vec![CLASSES as i64; ROWS];
    for beta in [2.0, 1.5, 0.0] {
        check(Case::sparse([ROWS, CLASSES], &logits, &background, &vec![0.0; ROWS]).with_beta(beta));
    }
    for quality in [0.0, 0.3, 1.0] {
        for beta in [2.0, 0.5] {
            let (labels, qualities) = (vec![0; logits.len()], vec![quality; logits.len()]);
            check(Case::sparse([logits.len(), 1], &logits, &labels, &qualities).with_beta(beta));
            let target = vec![quality; logits.len()];
            check(Case::dense([ROWS, CLASSES], &logits, &target).with_beta(beta));
        }
    }
}

#[test]
fn every_f16_logit() {
    let Some(gpu) = gpu() else { return };
    check_all(&gpu, f16::from_bits);
}

#[test]
fn every_bf16_logit() {
    let Some(gpu) = gpu() else { return };
    check_all(&gpu, bf16::from_bits);
}

#[test]
fn f32_logits_from_minus_104_to_104() {
    let Some(gpu) = gpu() else { return };
    check_all(&gpu, |index| (f32::from(index) - 32768.0) / 314.0);
}
