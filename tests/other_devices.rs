//! What needs another emulator than the usual one, each in a process of its own: a driver that is as old as is
//! allowed, a device that is as large as is usual, and one that is as small as there is.

use std::process::Command;

use gfocal::cuda::driver_version;
use gfocal::{Reduction, bf16, f16};
use support::cuda::{Buffers, Layout};
use support::gpu::OnDevice;
use support::head::scenes::Recipe;
use support::head::{self, Form, Profile, Settings};
use support::in_types;
use support::random::Random;
use support::{
    Case, Gpu, LOUD, Pass, QUIET, check_alone, check_cuda, check_with, cuda, expect, gpu, nearly_most,
};

/// Whether this is the process with this setting. If not it is started, and runs the test of this name.
fn has(test: &str, (variable, value): (&str, &str)) -> bool {
    if std::env::var(variable).is_ok_and(|set| set == value) {
        return true;
    }
    let Some(Gpu { emulator: Some(_), .. }) = gpu().as_ref() else { return false };
    let own = std::env::current_exe().expect("a test is a program");
    let mut command = Command::new(own);
    command.args(["--exact", test]).env(variable, value);
    let output = command.output().expect("it runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{variable}={value}: {text}");
    false
}

fn cases() -> Vec<Case> {
    let mut random = Random::new(95);
    let labels: Vec<i64> = (0..70).map(|row| row % 17).collect();
    let sparse = Case::sparse([70, 16], &random.many(70 * 16, -6.0, 4.0), &labels, &[0.5; 70]);
    let dense = Case::dense([70, 7], &random.many(70 * 7, -6.0, 4.0), &[0.5; 70 * 7]).with_beta(1.5);
    let dfl = Case::dfl([300, 17], &random.many(300 * 17, -4.0, 4.0), &[3.25; 300]);
    vec![sparse.clone().reduced(Reduction::None), sparse, dense, dfl]
}

fn of_all_kinds<T: OnDevice>(gpu: &Gpu) {
    for case in cases() {
        check_cuda::<T>(gpu, &case, &Layout::MISALIGNED);
        check_cuda::<T>(gpu, &case, &Layout::ALIGNED);
    }
    let recipe = Recipe::new(Settings::of(Profile::Mmdetection));
    let scene = recipe.scene(&mut Random::new(96));
    let got = head::cuda::run::<T>(gpu, &scene, Form::Nchw, 0, Pass::ForwardBackward).expect("a legal call");
    head::check("a head", Pass::ForwardBackward, &got, &head::expect(&scene.stored_as::<T>()));
}

/// Driver 525 has CUDA 12.0, and none of the functions that came later.
#[test]
fn a_driver_of_cuda_12_0() {
    if !has("a_driver_of_cuda_12_0", ("GFOCAL_EMULATOR_DRIVER", "12000")) {
        return;
    }
    let Some(gpu) = gpu() else { return };
    assert_eq!(driver_version(), Ok(12_000));
    in_types!(f32, f16, bf16: of_all_kinds(&gpu));
}

/// More blocks than a warp has lanes, in every kernel with a sum.
fn several_warps_of_blocks<T: OnDevice>(gpu: &Gpu) {
    let mut random = Random::new(98);
    let rows = 34 * 256;
    let mut cases = Vec::new();
    // Whole vectors; rows at any address, with labels and with targets.
    for shape @ [rows, classes] in [[5500, 16], [rows, 1]] {
        let logits = random.many(rows * classes, -6.0, 4.0);
        let labels: Vec<i64> = (0..rows).map(|row| row as i64 % 40).collect();
        let sparse = Case::sparse(shape, &logits, &labels, &vec![0.5; rows]);
        cases.extend([2.0, 1.5].map(|beta| sparse.clone().with_beta(beta)));
    }
    let dense = Case::dense([rows, 1], &random.many(rows, -6.0, 4.0), &vec![0.5; rows]);
    cases.extend([2.0, 1.5].map(|beta| dense.clone().with_beta(beta)));
    for bins in [16, 17, 2] {
        cases.push(Case::dfl([rows, bins], &random.many(rows * bins, -4.0, 4.0), &vec![0.25; rows]));
    }
    for case in cases {
        let want = expect(&case.stored_as::<T>());
        for pass in [Pass::Forward, Pass::ForwardBackward] {
            let got = cuda::run::<T>(gpu, &case, pass, &Layout::ALIGNED).expect("a legal call");
            check_with(&format!("{:?}", case.shape), &case, pass, &got, &want);
        }
    }
}

/// With 132 multiprocessors there are more blocks than a block has threads, which add up the blocks.
#[test]
fn more_blocks_than_threads() {
    if !has("more_blocks_than_threads", ("GFOCAL_EMULATOR_SMS", "132")) {
        return;
    }
    let Some(gpu) = gpu() else { return };
    let mut random = Random::new(97);
    // A row for each thread of 300 blocks of 256; the last tiles of 130 blocks of 128.
    let rows = 300 * 256;
    let labels: Vec<i64> = (0..rows).map(|row| row as i64 % 2).collect();
    let qfl = Case::sparse([rows, 1], &random.many(rows, -6.0, 4.0), &labels, &vec![0.5; rows]);
    check_cuda::<f32>(&gpu, &qfl, &Layout::ALIGNED);
    let rows = 130 * 128;
    let dfl = Case::dfl([rows, 16], &random.many(rows * 16, -4.0, 4.0), &vec![3.25; rows]);
    check_cuda::<f32>(&gpu, &dfl, &Layout::ALIGNED);
    // A lane for each anchor of 257 blocks, in both phases.
    let settings = Settings { bins: 2, ..Settings::of(Profile::Mmdetection) };
    let sizes = vec![(257, 256, 8.0), (1, 1, 16.0)];
    let recipe = Recipe { batch: 1, classes: 1, sizes, positives: 0.05, ..Recipe::new(settings) };
    let scene = recipe.scene(&mut random);
    let got = head::cuda::run::<f32>(&gpu, &scene, Form::Scattered, 0, Pass::Forward).expect("a legal call");
    head::check("a large head", Pass::Forward, &got, &head::expect(&scene));
    several_warps_of_blocks::<f32>(&gpu);
    several_warps_of_blocks::<f16>(&gpu);
    several_warps_of_blocks::<bf16>(&gpu);
}

/// Of so many rows each of the blocks of one multiprocessor, at most 6, has four steps, which a thread has in flight
/// (two, if beta is not 2), with a vector of each.
fn steps<T: OnDevice>(gpu: &Gpu) {
    let vector = 16 / size_of::<T>();
    let (classes, step) = (16, 320 / (16 / vector));
    let rows = 6 * 4 * step;
    let quiet =
        Case::sparse([rows, classes], &vec![QUIET; rows * classes], &vec![-1; rows], &vec![0.0; rows]);
    let quiet = quiet.with(|options| options.grad_scale = nearly_most::<T>());
    let mut logits = quiet.logits_as::<T>();
    for beta in [2.0, 1.5] {
        let case = quiet.clone().with_beta(beta);
        let mut buffers = Buffers::<T>::new(gpu, &case, &Layout::ALIGNED);
        for (n, column) in (0..4).flat_map(|n| (0..vector).map(move |column| (n, column))) {
            let at = (n * step + 3) * classes + column;
            logits[at] = T::from_f64(LOUD);
            buffers.logits.write(gpu, &logits);
            buffers.found_inf.write(gpu, &[0.0]);
            buffers.call(gpu, &case, Pass::ForwardBackward).expect("a legal call");
            let what = format!("step {n}, column {column}, beta {beta}");
            check_alone(&what, &buffers.grad.read(gpu), at, buffers.found_inf.read(gpu)[0]);
            logits[at] = T::from_f64(QUIET);
        }
    }
}

/// A lane goes through its anchors in several rounds, and there are rests of images.
fn rounds<T: OnDevice>(gpu: &Gpu) {
    for beta in [2.0, 1.5] {
        let settings = Settings { beta, ..Settings::of(Profile::Mmdetection) };
        let sizes = vec![(61, 69, 8.0), (33, 37, 16.0)];
        let recipe = Recipe { batch: 1, classes: 16, sizes, positives: 0.01, ..Recipe::new(settings) };
        let scene = recipe.scene(&mut Random::new(99));
        let want = head::expect(&scene.stored_as::<T>());
        for pass in [Pass::Forward, Pass::ForwardBackward] {
            let got = head::cuda::run::<T>(gpu, &scene, Form::ChannelsLast, 0, pass).expect("a legal call");
            head::check(&format!("long ways, beta {beta}"), pass, &got, &want);
        }
    }
}

/// Of so many rows as in [`steps`], the sums of ranges so narrow that each vector of a thread counts.
fn narrow_ranges<T: OnDevice>(gpu: &Gpu) {
    let (classes, rows) = (16, 6 * 4 * 320 / (16 / (16 / size_of::<T>())));
    let mut random = Random::new(100);
    for (low, high) in [(-6.0, -2.1), (-0.01, 0.01), (1.0, 20.0)] {
        let logits = random.many(rows * classes, low, high);
        let case = Case::sparse([rows, classes], &logits, &vec![-1; rows], &vec![0.0; rows]);
        for case in [2.0, 1.5, 0.0].map(|beta| case.clone().with_beta(beta)) {
            let want = expect(&case.stored_as::<T>());
            for pass in [Pass::Forward, Pass::ForwardBackward] {
                let got = cuda::run::<T>(gpu, &case, pass, &Layout::ALIGNED).expect("a legal call");
                check_with(&format!("{low} to {high}"), &case, pass, &got, &want);
            }
        }
    }
}

#[test]
fn whole_tiles_of_narrow_ranges() {
    if !has("whole_tiles_of_narrow_ranges", ("GFOCAL_EMULATOR_SMS", "1")) {
        return;
    }
    let Some(gpu) = gpu() else { return };
    narrow_ranges::<f32>(&gpu);
    narrow_ranges::<f16>(&gpu);
    narrow_ranges::<bf16>(&gpu);
}

#[test]
fn a_small_device_and_a_large_head() {
    if !has("a_small_device_and_a_large_head", ("GFOCAL_EMULATOR_SMS", "1")) {
        return;
    }
    let Some(gpu) = gpu() else { return };
    rounds::<f32>(&gpu);
    rounds::<f16>(&gpu);
    rounds::<bf16>(&gpu);
}

/// One gradient that overflows sets the flag, wherever it is of what a thread has at once.
#[test]
fn one_gradient_that_overflows_anywhere_in_a_tile() {
    if !has("one_gradient_that_overflows_anywhere_in_a_tile", ("GFOCAL_EMULATOR_SMS", "1")) {
        return;
    }
    let Some(gpu) = gpu() else { return };
    in_types!(f32, f16, bf16: steps(&gpu));
}
