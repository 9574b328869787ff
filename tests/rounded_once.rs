//! Shows that what is worked out in double, the positives of a head and labelled elements if beta is not 0 or 2, is
//! rounded once, at the end: a wrong digit of any series in it is one of some result, too.

use gfocal::boxes::IouKind;
use gfocal::head::{BoxWeight, Normaliser, QualitySource};
use gfocal::{Gfl, Reduction, bf16, f16};
use support::cpu::{dfl_of, qfl_of};
use support::cuda::{Buffers, Layout};
use support::gpu::OnDevice;
use support::head::scenes::Recipe;
use support::head::{self, Form, Profile, Settings};
use support::random::Random;
use support::tolerance::{Want, check_rounded_once};
use support::{Buffer, Case, Gpu, Pass, cuda, expect, gpu};

/// Neither 0 nor 2, which are worked out in float.
const BETAS: [f64; 4] = [1.5, 0.5, 1.0, 3.0];
/// Of a background logit so low there is nothing.
const NOTHING: f64 = -300.0;

/// Gradients, where storage rounds them no more.
#[track_caller]
fn check_grad<T: OnDevice>(what: &str, got: &[T], want: &[Option<Want>]) {
    if T::NAME == "f32" {
        let got: Vec<f32> = got.iter().map(|grad| grad.to_f64() as f32).collect();
        check_rounded_once(&format!("{what}, gradients"), &got, want);
    }
}

/// Losses of rows with one class, and gradients of labels in whole vectors.
fn labelled<T: OnDevice>(gpu: &Gpu, beta: f64) {
    let mut random = Random::new(131);
    let (rows, classes) = (400, 16);
    let logits = random.many(rows, -12.0, 12.0);
    let quality: Vec<f32> = random.many(rows, 0.02, 0.98).into_iter().map(|y| y as f32).collect();
    let sparse = Case::sparse([rows, 1], &logits, &vec![0; rows], &quality);
    let dense = Case::dense([rows, 1], &logits, &quality);
    for (case, what) in [(sparse, "sparse"), (dense, "dense")] {
        let case = case.with_beta(beta).reduced(Reduction::None);
        let want = expect(&case.stored_as::<T>());
        let what = format!("{what} in {}, beta {beta}", T::NAME);
        for pass in [Pass::Forward, Pass::ForwardBackward] {
            let got = cuda::run::<T>(gpu, &case, pass, &Layout::ALIGNED).expect("a legal call");
            check_rounded_once(&format!("{what}, losses"), &got.loss, &want.loss);
            if pass != Pass::Forward {
                check_grad(&what, &got.grad, &want.grad);
            }
        }
    }
    let mut all = vec![NOTHING; rows * classes];
    (0..rows).for_each(|row| all[row * classes + row % classes] = logits[row]);
    let labels: Vec<i64> = (0..rows).map(|row| (row % classes) as i64).collect();
    let case = Case::sparse([rows, classes], &all, &labels, &quality).with_beta(beta);
    let want = expect(&case.stored_as::<T>());
    let got = cuda::run::<T>(gpu, &case, Pass::ForwardBackward, &Layout::ALIGNED).expect("a legal call");
    check_grad(&format!("vectors, beta {beta}"), &got.grad, &want.grad);
}

/// The same in a step of both losses: of one row the sum is its loss.
fn in_a_step<T: OnDevice>(gpu: &Gpu, beta: f64) {
    let mut random = Random::new(132);
    let dfl = Case::dfl([1, 4], &[0.0; 4], &[1.5]);
    let sides = dfl_of(&dfl).expect("legal options");
    for n in 0..100 {
        let (logits, quality) = (random.many(1, -12.0, 12.0), [random.between(0.02, 0.98) as f32]);
        let qfl = match n % 2 {
            0 => Case::sparse([1, 1], &logits, &[0], &quality),
            _ => Case::dense([1, 1], &logits, &quality),
        };
        let qfl = qfl.with_beta(beta);
        let (want, loss) = (expect(&qfl.stored_as::<T>()), qfl_of(&qfl).expect("legal options"));
        let mut of_qfl = Buffers::<T>::new(gpu, &qfl, &Layout::ALIGNED);
        let mut of_dfl = Buffers::<T>::new(gpu, &dfl, &Layout::ALIGNED);
        let mut losses = Buffer::poisoned(gpu, 3, 0);
        let what = format!("a step in {}, beta {beta}", T::NAME);
        for pass in [Pass::Forward, Pass::ForwardBackward] {
            let ((mut views, _, mut grad), (mut other, _, mut grad_sides)) = (of_qfl.views(), of_dfl.views());
            let both = Gfl::new(views.qfl(gpu, &qfl, &loss), other.dfl(gpu, &dfl, &sides));
            let done = if pass == Pass::Forward {
                both.forward(&mut losses.view_mut())
            } else {
                both.forward_backward(&mut losses.view_mut(), &mut grad, &mut grad_sides)
            };
            done.expect("a legal call");
            check_rounded_once(&format!("{what}, losses"), &losses.read(gpu)[..1], &want.loss);
        }
        check_grad(&what, &of_qfl.grad.read(gpu), &want.grad);
    }
}

#[test]
fn labelled_elements() {
    let Some(gpu) = gpu() else { return };
    for beta in BETAS {
        labelled::<f32>(&gpu, beta);
        labelled::<f16>(&gpu, beta);
        labelled::<bf16>(&gpu, beta);
        in_a_step::<f32>(&gpu, beta);
        in_a_step::<f16>(&gpu, beta);
        in_a_step::<bf16>(&gpu, beta);
    }
}

/// Eight levels with a positive each: their weights are given, and add up to less than 1, which W is then; their number
/// is a power of 2. If beta is not 2, the class losses are rounded once, too; without a box loss, so are the gradients of
/// box logits.
fn positives<T: OnDevice>(gpu: &Gpu) {
    let mut random = Random::new(133);
    for (n, kind) in (0..12).flat_map(|n| IouKind::ALL.map(|kind| (n, kind))) {
        let (with_box_loss, beta) = (n % 2 == 0, [2.0, 1.5][n / 2 % 2]);
        let settings = Settings {
            beta,
            iou: kind,
            weights: [1.0, if with_box_loss { 2.0 } else { 0.0 }, 0.25],
            bins: [9, 16, 17][n % 3],
            quality: QualitySource::Given,
            box_weight: BoxWeight::Quality,
            normaliser: Normaliser::Nanodet,
            ..Settings::of(Profile::Mmdetection)
        };
        let sizes = vec![(1, 1, 8.0); 8];
        let recipe = Recipe { batch: 1, sizes, positives: 1.0, ..Recipe::new(settings) };
        let mut scene = recipe.scene(&mut random);
        scene.grad_scale = 1.0;
        for (at, level) in scene.levels.iter_mut().enumerate() {
            let most = [0.5, 8.0][at % 2];
            level.quality = Some(vec![random.between(0.05, 0.12)]);
            level.cls.fill(NOTHING);
            level.cls[level.labels[0] as usize] = random.between(-most, most);
        }
        let want = head::expect(&scene.stored_as::<T>());
        let what = format!("{settings:?} in {}", T::NAME);
        for pass in [Pass::Forward, Pass::ForwardBackward] {
            let got = head::cuda::run::<T>(gpu, &scene, Form::Nchw, 0, pass).expect("a legal call");
            head::check(&what, pass, &got, &want);
            let first = usize::from(beta == 2.0);
            for (got, want) in got.losses.chunks(3).zip(want.losses.chunks(3)) {
                check_rounded_once(&format!("{what}, losses"), &got[first..], &want[first..]);
            }
            for (got, want) in got.grads.iter().zip(&want.grads).filter(|_| !with_box_loss) {
                check_grad(&what, &got[1], &want[1]);
            }
        }
    }
}

#[test]
fn positives_of_a_head() {
    let Some(gpu) = gpu() else { return };
    positives::<f32>(&gpu);
    positives::<f16>(&gpu);
    positives::<bf16>(&gpu);
}
