//! Shows that 16-bit gradients are rounded to nearest, and to even where two are equally near, wherever a
//! kernel stores one.
//!
//! The inputs are such that the f32 gradient is exactly a given number, whatever the rounding of the
//! arithmetic: of a background logit of 100, σ is 1 and the gradient what it is multiplied by; of a distribution
//! that is even over 16 bins, a sixteenth of that. The numbers lie halfway between two of the storage type, or
//! next to that, from the subnormal ones to those that overflow.

use gfocal::head::{BoxWeight, Normaliser, QualitySource};
use gfocal::{Gfl, Reduction, bf16, f16};
use support::cpu::{dfl_of, qfl_of};
use support::cuda::{Buffers, Layout};
use support::gpu::OnDevice;
use support::head::scenes::Recipe;
use support::head::{self, Form, LevelScene, PointsAt, Profile, Scene, Settings};
use support::random::Random;
use support::tolerance::{check_nearest, check_same_bits};
use support::{Buffer, Case, Gpu, Pass, cuda, expect, gpu};

/// A 16-bit type: how many digits it has, its smallest and its largest number, and the nearest to one of f32
/// (`half` rounds f64 by its upper half alone).
trait Half: OnDevice {
    const DIGITS: i32;
    const LEAST: f64;
    const MOST: f64;
    fn nearest(x: f32) -> Self;
}

impl Half for f16 {
    const DIGITS: i32 = 11;
    const LEAST: f64 = f16::MIN_POSITIVE_SUBNORMAL.to_f64_const();
    const MOST: f64 = f16::MAX.to_f64_const();
    fn nearest(x: f32) -> f16 {
        f16::from_f32(x)
    }
}

impl Half for bf16 {
    const DIGITS: i32 = 8;
    const LEAST: f64 = bf16::MIN_POSITIVE_SUBNORMAL.to_f64_const();
    const MOST: f64 = bf16::MAX.to_f64_const();
    fn nearest(x: f32) -> bf16 {
        bf16::from_f32(x)
    }
}

/// Numbers of f32 between two of `T`: halfway, a little less and a little more; above even and odd ones, among
/// the smallest and the largest, and where the next one is inf; of both signs.
fn between<T: Half>() -> Vec<f32> {
    let place = 2f64.powi(1 - T::DIGITS); // the last of 1
    let last = place * 2f64.powi(T::MOST.log2() as i32); // of the largest
    let halfway = [
        1.0 + 0.5 * place,
        1.0 + 1.5 * place,
        1.5 - 0.5 * place,
        2.0 - 0.5 * place, // carries into the exponent
        40.0 + 32.0 * 4.5 * place,
        0.375 + 0.25 * 7.5 * place,
        0.5 * T::LEAST,
        1.5 * T::LEAST,
        6.5 * T::LEAST,
        T::MOST - 0.5 * last,
        T::MOST + 0.5 * last,
    ];
    let around = |x: f64| {
        let x = x as f32;
        [x, x.next_down(), x.next_up(), -x, -x.next_up()]
    };
    halfway.into_iter().flat_map(around).collect()
}

/// What a gradient must be before it is rounded; nothing is said of the others.
type Exact = Vec<Option<f32>>;

#[track_caller]
fn check_rounded<T: Half>(what: &str, got: &[T], exact: &Exact) {
    assert_eq!(got.len(), exact.len(), "{what}: number of elements");
    let known = got.iter().zip(exact).filter_map(|(&got, exact)| Some((got, (*exact)?)));
    let (got, want): (Vec<T>, Vec<T>) = known.map(|(got, exact)| (got, T::nearest(exact))).unzip();
    assert!(got.len() >= between::<T>().len() / 3, "{what}: something is compared");
    check_same_bits(&format!("{what} in {}", T::NAME), &got, &want);
}

/// Background logits of 100; of one row in three, one is labelled, with quality 0, which comes to the same.
fn qfl<T: Half>([rows, classes]: [usize; 2], dense: bool, beta: f64) -> (Case, Exact) {
    let weight: Vec<f32> = between::<T>().into_iter().cycle().take(rows).collect();
    let exact = weight.iter().flat_map(|&x| vec![Some(x); classes]).collect();
    let logits = vec![100.0; rows * classes];
    let label = |row: usize| if row.is_multiple_of(3) { row % classes } else { classes } as i64;
    let labels: Vec<i64> = (0..rows).map(label).collect();
    let case = if dense {
        Case::dense([rows, classes], &logits, &vec![0.0; rows * classes])
    } else {
        Case::sparse([rows, classes], &logits, &labels, &vec![0.0; rows])
    };
    (case.with_beta(beta).with(|options| options.weight = Some(weight)), exact)
}

/// Rows that are even over 16 bins, from the first or to the last, and have next to nothing in the others; and rows
/// with everything in a bin that shares the target with the next.
fn dfl<T: Half>(rows: usize, bins: usize) -> (Case, Exact) {
    let values = between::<T>().into_iter().filter(|x| (16.0 * x).is_finite());
    let ways = [Some(0), Some(bins - 16), None];
    let rows_of_value = values.cycle().flat_map(|x| ways.map(|even_from| (x, even_from))).take(rows);
    let (mut logits, mut weight, mut exact) = (Vec::new(), Vec::new(), Exact::new());
    for (x, even_from) in rows_of_value {
        weight.push(if even_from.is_some() { 16.0 * x } else { 2.0 * x });
        for bin in 0..bins {
            let (logit, grad) = match (even_from, bin) {
                (Some(first), _) if !(first..first + 16).contains(&bin) => (-100.0, None),
                (Some(_), 3 | 4) => (0.0, None),
                (Some(_), _) => (0.0, Some(x)),
                (None, 3) => (100.0, Some(x)),
                (None, 4) => (0.0, Some(-x)),
                (None, _) => (0.0, None),
            };
            logits.push(logit);
            exact.push(grad);
        }
    }
    let case = Case::dfl([rows, bins], &logits, &vec![3.5; rows]);
    (case.with(|options| options.weight = Some(weight)), exact)
}

/// The shapes of kernels by what a call is: sums of whole rows of vectors, aligned, have one of their own.
const LAYOUTS: [Layout; 3] = [Layout::ALIGNED, Layout::MISALIGNED, Layout { grad: 1, ..Layout::MISALIGNED }];

fn check<T: Half>(gpu: &Gpu, what: &str, (case, exact): &(Case, Exact)) {
    for reduction in [Reduction::Sum, Reduction::None] {
        let case = case.clone().reduced(reduction);
        for layout in &LAYOUTS {
            let got = cuda::run::<T>(gpu, &case, Pass::Backward, layout).expect("a legal call");
            let what = format!("{what} {:?}, {reduction:?}, at {}", case.shape, layout.grad);
            check_rounded(&what, &got.grad, exact);
            let raised = got.grad.iter().any(|grad| !grad.to_f64().is_finite());
            assert_eq!(got.found_inf == 1.0, raised, "{what}: found_inf");
        }
    }
}

fn losses<T: Half>(gpu: &Gpu) {
    for beta in [2.0, 1.5] {
        // More than a tile of 640 rows, and whole vectors; then neither.
        for shape in [[700, 16], [120, 19]] {
            check::<T>(gpu, &format!("QFL, beta {beta}"), &qfl::<T>(shape, false, beta));
            check::<T>(gpu, &format!("QFL, dense, beta {beta}"), &qfl::<T>(shape, true, beta));
        }
    }
    // A tile of 256 rows and some left over; any number of bins.
    for bins in [16, 17, 33] {
        check::<T>(gpu, "DFL", &dfl::<T>(300, bins));
    }
}

fn both<T: Half>(gpu: &Gpu) {
    for (dense, beta) in [(false, 2.0), (true, 2.0), (false, 1.5), (true, 1.5)] {
        let ((qfl, exact), (dfl, of_sides)) = (qfl::<T>([120, 19], dense, beta), dfl::<T>(120, 17));
        let (qfl, dfl) = (qfl.reduced(Reduction::Sum), dfl.reduced(Reduction::Sum));
        let (loss, sides) = (qfl_of(&qfl).expect("legal options"), dfl_of(&dfl).expect("legal options"));
        for layout in &LAYOUTS {
            let mut of_qfl = Buffers::<T>::new(gpu, &qfl, layout);
            let mut of_dfl = Buffers::<T>::new(gpu, &dfl, layout);
            let mut losses = Buffer::poisoned(gpu, 3, 0);
            let ((mut views, _, mut grad), (mut other, _, mut grad_sides)) = (of_qfl.views(), of_dfl.views());
            Gfl::new(views.qfl(gpu, &qfl, &loss), other.dfl(gpu, &dfl, &sides))
                .forward_backward(&mut losses.view_mut(), &mut grad, &mut grad_sides)
                .expect("a legal call");
            let what = format!("Gfl, dense {dense}, beta {beta}, at {}", layout.grad);
            check_rounded(&what, &of_qfl.grad.read(gpu), &exact);
            check_rounded(&what, &of_dfl.grad.read(gpu), &of_sides);
        }
    }
}

/// Two bins that have half each, on both sides of the expectation, wherever they are in the row.
fn integrals<T: Half>(gpu: &Gpu) {
    let values: Vec<f32> = between::<T>().into_iter().filter(|x| (2.0 * x).is_finite()).collect();
    for bins in [17usize, 40] {
        let rows = || (0..bins - 2).flat_map(|first| values.iter().map(move |&x| (first, x)));
        let of_row = |(first, x): (usize, f32)| {
            (0..bins).map(move |bin| match bin.checked_sub(first) {
                Some(0) => (0.0, Some(-x)),
                Some(2) => (0.0, Some(x)),
                _ => (-100.0, None),
            })
        };
        let (logits, exact): (Vec<f64>, Exact) = rows().flat_map(of_row).unzip();
        let logits: Vec<T> = logits.into_iter().map(T::from_f64).collect();
        let upstream: Vec<f32> = rows().map(|(_, x)| 2.0 * x).collect();
        for layout in &LAYOUTS {
            let (_, grad) = cuda::integral(gpu, &logits, [upstream.len(), bins], &upstream, layout)
                .expect("a legal call");
            check_rounded(&format!("integral of {bins} bins"), &grad, &exact);
        }
    }
}

/// A head whose class logits are 100, and whose distributions are even over 16 bins. Class gradients are the label
/// weights; box gradients, but of the bins that share the target, what the qualities make of them.
fn head_scene(sizes: &[(usize, usize)], classes: usize, beta: f64) -> Scene {
    let settings = Settings {
        beta,
        bins: 16,
        weights: [1.0, 0.0, 1.0],
        quality: QualitySource::Given,
        box_weight: BoxWeight::Quality,
        normaliser: Normaliser::Nanodet,
        ..Settings::of(Profile::Mmdetection)
    };
    let level = |&(height, width): &(usize, usize)| {
        let anchors = height * width;
        LevelScene {
            height,
            width,
            stride: 8.0,
            points: PointsAt::Grid(0.0),
            cls: vec![100.0; anchors * classes],
            boxes: vec![0.0; anchors * 64],
            labels: vec![classes as i64; anchors],
            label_weights: Some(vec![1.0; anchors]),
            box_targets: vec![f64::NAN; 4 * anchors],
            quality: Some(vec![0.0; anchors]),
            ..LevelScene::default()
        }
    };
    let levels = sizes.iter().map(level).collect();
    Scene {
        settings,
        batch: 1,
        classes,
        levels,
        class_weights: None,
        narrow: false,
        grad_scale: 1.0,
        upstream: None,
        normalisers: None,
        gradient_form: None,
    }
}

fn head_classes<T: Half>(gpu: &Gpu) {
    let values = between::<T>();
    // 8 and 4 positions for each number, in vectors of so many; then one.
    let counts = [8, 4, 1].map(|each| (each, each * (values.len() | 1)));
    for (beta, classes) in [(2.0, 16), (2.0, 3), (1.5, 16)] {
        let mut scene = head_scene(&counts.map(|(_, positions)| (1, positions)), classes, beta);
        let mut exact = Vec::new();
        for (level, (each, positions)) in scene.levels.iter_mut().zip(counts) {
            let weights: Vec<f32> = (0..positions).map(|i| values[i / each % values.len()]).collect();
            // One positive, of quality 0, which leaves the number of positives, and so what is divided by, at 1.
            if each == 4 {
                level.labels[5] = 1;
                level.box_targets[20..24].copy_from_slice(&[10.0, -8.0, 60.0, 8.0]);
            }
            exact.push(weights.repeat(classes).into_iter().map(Some).collect::<Exact>());
            level.label_weights = Some(weights.into_iter().map(f64::from).collect());
        }
        for (form, offset) in Form::ALL.into_iter().flat_map(|form| [(form, 0), (form, 1)]) {
            let got = head::cuda::run::<T>(gpu, &scene, form, offset, Pass::ForwardBackward);
            for (level, (got, exact)) in got.expect("a legal call").grads.iter().zip(&exact).enumerate() {
                let what =
                    format!("head, level {level}, {classes} classes, beta {beta}, {form:?}, {offset} off");
                check_rounded(&what, &got[0], exact);
            }
        }
    }
}

fn head_boxes<T: Half>(gpu: &Gpu) {
    // As qualities they are multiplied by 2^-40, and their sum, of at most 1, is not divided by.
    let values: Vec<f32> =
        between::<T>().into_iter().filter(|x| (2f32.powi(-60)..2f32.powi(30)).contains(x)).collect();
    let mut scene = head_scene(&[(1, values.len())], 2, 2.0);
    // The distribution loss is divided by 4, and a bin has a sixteenth.
    scene.grad_scale = 2f64.powi(40 + 2 + 4);
    let level = &mut scene.levels[0];
    level.labels.fill(0);
    level.quality = Some(values.iter().map(|&x| f64::from(x) * 2f64.powi(-40)).collect());
    // Three and a half strides to each side.
    let target = |x: usize| [-28.0, -28.0, 28.0, 28.0].into_iter().zip([x, 0].into_iter().cycle());
    level.box_targets = (0..values.len())
        .flat_map(|x| target(x).map(|(side, at)| side + 8.0 * at as f64).collect::<Vec<_>>())
        .collect();
    let of_channel = |channel: usize| {
        let shares_target = [3, 4].contains(&(channel % 16));
        values.iter().map(move |&x| (!shares_target).then_some(x))
    };
    let exact: Exact = (0..64).flat_map(of_channel).collect();
    for (form, offset) in Form::ALL.into_iter().flat_map(|form| [(form, 0), (form, 1)]) {
        let got =
            head::cuda::run::<T>(gpu, &scene, form, offset, Pass::ForwardBackward).expect("a legal call");
        check_rounded(&format!("boxes of a head in {form:?}, {offset} off"), &got.grads[0][1], &exact);
    }
}

/// Logits as usual, whose gradients are anywhere between two numbers; confident ones, in rows and places of
/// their own, go another way.
fn ordinary<T: Half>(gpu: &Gpu) {
    let mut random = Random::new(71);
    let mut cases = Vec::new();
    for (shape @ [rows, classes], low, high) in
        [([700, 16], -5.0, 3.0), ([700, 16], -5.0, -2.5), ([60, 19], -5.0, 3.0)]
    {
        let logits = random.many(rows * classes, low, high);
        let labels: Vec<i64> = (0..rows).map(|row| (row % (classes + 9)) as i64).collect();
        let sparse = Case::sparse(shape, &logits, &labels, &vec![0.4; rows]);
        let dense = Case::dense(shape, &logits, &vec![0.3; rows * classes]);
        cases.extend([1.5, 2.0].map(|beta| dense.clone().with_beta(beta)));
        cases.extend([1.5, 2.0].map(|beta| sparse.clone().with_beta(beta)));
    }
    for bins in [16, 17, 33] {
        cases.push(Case::dfl([300, bins], &random.many(300 * bins, -3.0, 3.0), &[3.3; 300]));
    }
    // So that no gradient is among the smallest, which have few digits.
    for case in cases.into_iter().map(|case| case.with(|options| options.grad_scale = 1024.0)) {
        let want = expect(&case.stored_as::<T>());
        for layout in &LAYOUTS {
            let got = cuda::run::<T>(gpu, &case, Pass::Backward, layout).expect("a legal call");
            check_nearest(&format!("{:?} in {}", case.shape, T::NAME), &got.grad, &want.grad);
        }
    }
    let recipe = Recipe { classes: 16, ..Recipe::new(Settings::of(Profile::Mmdetection)) };
    let mut scene = recipe.scene(&mut random);
    scene.grad_scale = 1024.0;
    scene.levels[0].cls.iter_mut().for_each(|x| *x = x.min(-2.5));
    let want = head::expect(&scene.stored_as::<T>());
    for form in Form::ALL {
        let got = head::cuda::run::<T>(gpu, &scene, form, 0, Pass::ForwardBackward).expect("a legal call");
        for (got, want) in got.grads.iter().flatten().zip(want.grads.iter().flatten()) {
            check_nearest(&format!("head in {form:?} in {}", T::NAME), got, want);
        }
    }
}

fn all<T: Half>() {
    let Some(gpu) = gpu() else { return };
    losses::<T>(&gpu);
    both::<T>(&gpu);
    integrals::<T>(&gpu);
    head_classes::<T>(&gpu);
    head_boxes::<T>(&gpu);
    ordinary::<T>(&gpu);
}

#[test]
fn f16_to_nearest_even() {
    all::<f16>();
}

#[test]
fn bf16_to_nearest_even() {
    all::<bf16>();
}
