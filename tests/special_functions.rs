//! The numeric contract with the GPU's special functions as wrong as NVIDIA's manual allows: 2
//! units in the last place for `ex2.approx`, 1 for `rcp.approx`, 2^-22 for `lg2.approx`, to both
//! sides in every combination. In a test binary of its own: the setting is the process's.

use gfocal::{Reduction, bf16, f16};
use gfocal_emulator::Sign;
use support::assign::{self, Level, Rules, on_cpu, same, scene};
use support::cuda::Layout;
use support::gpu::{Gpu, OnDevice, gpu};
use support::head::scenes::Recipe;
use support::head::{self, Form, Profile, Scene, Settings};
use support::in_types;
use support::random::Random;
use support::{Case, Pass, check_cuda};

const SIDES: [Sign; 2] = [Sign::Minus, Sign::Plus];

/// QFL of logits over the range in which f32 gradients do not vanish, neighbours alike, so that
/// both ways of the kernels are taken.
fn qfl(classes: usize) -> Vec<Case> {
    let rows = 4096 / classes;
    let count = rows * classes;
    let logits: Vec<f64> = (0..count).map(|i| (i as f64 / count as f64 - 0.5) * 60.0).collect();
    let mut random = Random::new(3);
    let labels: Vec<i64> = (0..rows).map(|_| random.index(classes + 1) as i64).collect();
    let (quality, target) = (random.floats(rows, 0.0, 1.0), random.floats(count, 0.0, 1.0));
    let mut cases = Vec::new();
    for beta in [2.0, 0.5, 1.0, 3.0, 6.5] {
        cases.push(Case::sparse([rows, classes], &logits, &labels, &quality).with_beta(beta));
        cases.push(Case::dense([rows, classes], &logits, &target).with_beta(beta));
    }
    cases
}

/// DFL of rows from flat to one bin with everything.
fn dfl(bins: usize) -> Case {
    let rows = 600;
    let mut random = Random::new(5);
    let logits: Vec<f64> =
        (0..rows * bins).map(|i| random.between(-1.0, 1.0) * ((i / bins) as f64 / 30.0)).collect();
    Case::dfl([rows, bins], &logits, &random.floats(rows, 0.0, (bins - 1) as f64))
}

fn check<T: OnDevice>(gpu: &Gpu, cases: &[Case]) {
    for case in cases {
        // The sum is checked against 2e-6 too, and takes other kernels than the losses of rows.
        for reduction in [Reduction::None, Reduction::Sum] {
            check_cuda::<T>(gpu, &case.clone().reduced(reduction), &Layout::ALIGNED);
        }
    }
}

/// The head loss with beta 2 and another one, along positions and along channels.
fn heads() -> Vec<(Scene, Form)> {
    let mut random = Random::new(11);
    let mut heads = Vec::new();
    for (profile, beta) in [(Profile::Mmdetection, 2.0), (Profile::Ultralytics, 0.0), (Profile::Nanodet, 1.5)]
    {
        for form in [Form::Nchw, Form::ChannelsLast] {
            let settings = Settings { beta, ..Settings::of(profile) };
            let sizes = vec![(8, 8, 8.0), (3, 5, 16.0)];
            let recipe = Recipe { classes: 16, sizes, positives: 0.3, ..Recipe::new(settings) };
            heads.push((recipe.scene(&mut random), form));
        }
    }
    heads
}

fn check_heads<T: OnDevice>(gpu: &Gpu, heads: &[(Scene, Form)]) {
    for (scene, form) in heads {
        let got = head::cuda::run::<T>(gpu, scene, *form, 0, Pass::ForwardBackward).expect("a legal call");
        let want = head::expect(&scene.stored_as::<T>());
        head::check(&format!("{form:?}"), Pass::ForwardBackward, &got, &want);
    }
}

/// Centerness of many points: its root begins with an approximation, and ends with the CPU's bits.
fn check_centerness(gpu: &Gpu) {
    let (mut random, levels) = (Random::new(13), [Level::new(64, 80, 4.0).offset(0.5)]);
    let rules = Rules::fcos(&[[-1.0, f32::INFINITY]], None);
    let mut scene = scene(&mut random, 60);
    // Points that all but lie on a side, and on the one at 0.
    scene.boxes[0] = [2.0 - 1e-6, -1e-30, 300.0, 200.0];
    scene.boxes[1] = [-1e-38, -1e-36, 90.0, 40.0];
    (scene.image[0], scene.image[1]) = (0, 1);
    for offset in [0.5, 0.0] {
        let levels = levels.clone().map(|level| level.offset(offset));
        let mut call = assign::OnCuda::<i64>::new(gpu, &levels, &scene, 0);
        call.call(gpu, &rules).expect("a legal call");
        let want = on_cpu(&rules, &levels, &scene).expect("a legal call");
        assert!(want.levels[0].centerness.iter().filter(|&&centerness| centerness > 0.0).count() > 5000);
        same("centerness", &call.read(gpu), &want);
    }
}

#[test]
fn the_contract_holds_at_the_worst_of_the_special_functions() {
    let Some(gpu) = gpu() else { return };
    let Some(emulator) = gpu.emulator else {
        return eprintln!("a GPU has special functions of its own: nothing to set");
    };
    let mut cases: Vec<Case> = [16, 7].into_iter().flat_map(qfl).collect();
    cases.extend([2, 16, 17, 33].map(dfl));
    let heads = heads();
    for exp2 in SIDES {
        for log2 in SIDES {
            for reciprocal in SIDES {
                emulator.set_special_errors(exp2, log2, reciprocal);
                in_types!(f32, f16, bf16: check(&gpu, &cases));
                in_types!(f32, f16, bf16: check_heads(&gpu, &heads));
                check_centerness(&gpu);
            }
        }
    }
    emulator.set_special_errors(Sign::None, Sign::None, Sign::None);
}
