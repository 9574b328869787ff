//! Shows that one gradient that overflows sets the flag, wherever it is: each kernel looks at what it stores in
//! several places. And that a factor that is inf makes a gradient of none that is masked.

use gfocal::boxes::IouKind;
use gfocal::head::{BoxWeight, Normaliser, QualitySource};
use gfocal::{bf16, f16};
use support::cuda::Layout;
use support::gpu::OnDevice;
use support::head::cuda::{OnCuda, Phases};
use support::head::scenes::Recipe;
use support::head::{self, Form, Profile, Scene, Settings};
use support::random::Random;
use support::{Case, Gpu, LOUD, Pass, QUIET, check_alone, check_cuda, cuda, gpu, nearly_most};

const LAYOUTS: [Layout; 2] = [Layout::ALIGNED, Layout::MISALIGNED];

/// The reference says whether the flag is to be set; this, by how many.
fn check<T: OnDevice>(gpu: &Gpu, case: Case, scale: f64, overflow: bool) {
    let case = case.with(|options| options.grad_scale = scale);
    let pass = Pass::ForwardBackward;
    for layout in &LAYOUTS {
        let got = cuda::run::<T>(gpu, &case, pass, layout).expect("a legal call");
        let what = format!("{:?} at {}", case.shape, layout.grad);
        support::check(&what, &case, pass, &got);
        let count = got.grad.iter().filter(|grad| !grad.to_f64().is_finite()).count();
        assert_eq!(count, usize::from(overflow), "{what} in {}", T::NAME);
    }
}

/// Of background logits near 2 the gradient is largest, a little more than what it is multiplied by; of the same
/// logit labelled with quality 0, too.
fn losses<T: OnDevice>() {
    let Some(gpu) = gpu() else { return };
    // Whole tiles of rows and some left over, and vectors; vectors and ends.
    for shape @ [rows, classes] in [[700, 16], [9, 19]] {
        for beta in [2.0, 1.5] {
            // A row of a whole tile, and the last.
            for row in [rows / 2, rows - 1] {
                for (column, labelled) in [(0, false), (9, false), (9, true), (classes - 1, false)] {
                    let mut logits = vec![QUIET; rows * classes];
                    logits[row * classes + column] = 2.0;
                    let mut labels = vec![classes as i64; rows];
                    if labelled {
                        labels[row] = column as i64;
                    }
                    // Next to it a loss that doubles to more than f32 holds, after which a thread begins anew.
                    if T::NAME != "f16" && beta == 2.0 && !labelled {
                        logits[row * classes + (column ^ 1).min(classes - 2)] = 3e38;
                    }
                    let case = Case::sparse(shape, &logits, &labels, &vec![0.0; rows]).with_beta(beta);
                    check::<T>(&gpu, case, nearly_most::<T>(), true);
                }
            }
            let quiet = Case::sparse(shape, &vec![QUIET; rows * classes], &vec![-1; rows], &vec![0.0; rows]);
            check::<T>(&gpu, quiet.with_beta(beta), nearly_most::<T>(), false);
        }
    }
    // Dense: a target of 0, and one above.
    for classes in [16, 19] {
        for (beta, column, target) in [(2.0, 9, 0.0), (1.5, 9, 0.0), (2.0, 18, 1e-4), (1.5, 3, 1e-4)] {
            let at = 4 * classes + column % classes;
            let (mut logits, mut targets) = (vec![QUIET; 9 * classes], vec![0.0; 9 * classes]);
            (logits[at], targets[at]) = (2.0, target);
            let case = Case::dense([9, classes], &logits, &targets).with_beta(beta);
            check::<T>(&gpu, case, nearly_most::<T>(), true);
        }
    }
    // DFL, where a gradient is at most what it is multiplied by.
    // In either half of a word, and by itself at an end of a row that is not aligned.
    for (bins, column) in [(16, 3), (16, 8), (17, 3), (17, 14), (9, 3), (24, 2), (24, 13), (24, 20)] {
        for row in [100, 299] {
            let case = dfl_alone([300, bins], row, column);
            check::<T>(&gpu, case, dfl_scale::<T>(), T::NAME != "f32");
        }
    }
}

#[test]
fn one_gradient_that_overflows() {
    losses::<f32>();
    losses::<f16>();
    losses::<bf16>();
}

/// What DFL's gradients are multiplied by. Between the largest of bf16 and of f32 there is a number, but none is above
/// that of f32.
fn dfl_scale<T: OnDevice>() -> f64 {
    if T::NAME == "f16" { 66000.0 } else { 3.402e38 }
}

/// The gradient of one logit is nearly all of the scale, and those of others are half of it and less.
fn dfl_alone([rows, bins]: [usize; 2], row: usize, column: usize) -> Case {
    let (mut logits, mut target) = (vec![0.0; rows * bins], vec![3.5; rows]);
    (logits[row * bins + column], target[row]) = (-9.0, column as f32);
    let weight = (0..rows).map(|n| if n == row { 1.0 } else { 0.5 }).collect();
    Case::dfl([rows, bins], &logits, &target).with(|options| options.weight = Some(weight))
}

/// Wherever it is of a row, at every alignment of a row: at an end by itself, or in a vector, in either half of each
/// word.
fn rows<T: OnDevice>() {
    let Some(gpu) = gpu() else { return };
    let check = |case: Case, at: usize, scale: f64| {
        let case = case.with(|options| options.grad_scale = scale);
        for layout in &LAYOUTS {
            let got = cuda::run::<T>(&gpu, &case, Pass::ForwardBackward, layout).expect("a legal call");
            let what = format!("{:?}, at {}", case.shape, layout.grad);
            check_alone(&what, &got.grad, at, got.found_inf);
        }
    };
    let shape = [8, 19];
    for at in 0..8 * 19 {
        let mut logits = vec![QUIET; 8 * 19];
        logits[at] = LOUD;
        for beta in [2.0, 1.5] {
            let sparse = Case::sparse(shape, &logits, &[-1; 8], &[0.0; 8]).with_beta(beta);
            check(sparse, at, nearly_most::<T>());
            let dense = Case::dense(shape, &logits, &[0.0; 8 * 19]).with_beta(beta);
            check(dense, at, nearly_most::<T>());
        }
        if T::NAME != "f32" {
            check(dfl_alone(shape, at / 19, at % 19), at, dfl_scale::<T>());
        }
    }
    // Tiles of rows, and the rows that are left over.
    for bins in [16, 17] {
        for (row, column) in [100, 101, 299].into_iter().flat_map(|row| (0..bins).map(move |n| (row, n))) {
            if T::NAME != "f32" {
                check(dfl_alone([300, bins], row, column), row * bins + column, dfl_scale::<T>());
            }
        }
    }
}

#[test]
fn one_gradient_that_overflows_anywhere_in_a_row() {
    rows::<f32>();
    rows::<f16>();
    rows::<bf16>();
}

/// A head with one positive, whose quality is 1 and whose logit says so.
fn scene(beta: f64) -> Scene {
    let settings = Settings {
        beta,
        iou: IouKind::Giou,
        weights: [1.0, 0.0, 4.0],
        bins: 9,
        quality: QualitySource::Given,
        box_weight: BoxWeight::Quality,
        normaliser: Normaliser::Nanodet,
        ..Settings::of(Profile::Mmdetection)
    };
    let sizes = vec![(8, 8, 8.0), (3, 5, 16.0), (6, 6, 32.0)];
    let recipe = Recipe { batch: 1, classes: 8, sizes, positives: 0.0, ..Recipe::new(settings) };
    let mut scene = recipe.scene(&mut Random::new(111));
    for level in &mut scene.levels {
        level.cls.fill(QUIET);
        level.boxes.fill(0.0);
        level.label_weights = None;
        level.points = head::PointsAt::Grid(0.0);
        level.quality = Some(vec![1.0; level.labels.len()]);
        level.box_targets.fill(0.0);
    }
    scene
}

fn heads<T: OnDevice>() {
    let Some(gpu) = gpu() else { return };
    for (level, anchor) in [(0, 19), (1, 7)] {
        for (beta, what) in
            [(2.0, "plain"), (2.0, "labelled"), (2.0, "box"), (1.5, "plain"), (1.5, "labelled")]
        {
            let mut scene = scene(beta);
            scene.grad_scale = nearly_most::<T>();
            let of = &mut scene.levels[level];
            let positions = of.positions();
            // Half a stride to each side, so that two bins share the target; the logits say another.
            let stride = of.stride;
            let [x, y] = [anchor % of.width, anchor / of.width].map(|at| at as f64 * stride);
            let sides = [x - 1.5 * stride, y - 1.5 * stride, x + 1.5 * stride, y + 1.5 * stride];
            match what {
                "plain" => of.cls[5 * positions + anchor] = 2.0,
                "labelled" => {
                    of.labels[anchor] = 5;
                    of.cls[5 * positions + anchor] = 2.0;
                    of.quality.as_mut().expect("given")[anchor] = 0.0;
                    of.box_targets[4 * anchor..4 * anchor + 4].copy_from_slice(&sides);
                }
                _ => {
                    of.labels[anchor] = 5;
                    of.cls[5 * positions + anchor] = 8.0;
                    // One side's target is a bin of its own, which has next to nothing.
                    of.boxes[2 * positions + anchor] = -9.0;
                    of.box_targets[4 * anchor..4 * anchor + 4].copy_from_slice(&sides);
                    of.box_targets[4 * anchor] = x - 2.0 * stride;
                    scene.settings.weights[2] = 4.0 * 1.02;
                }
            }
            let want = head::expect(&scene.stored_as::<T>());
            for (form, offset) in Form::ALL.into_iter().flat_map(|form| [(form, 0), (form, 1)]) {
                let pass = Pass::ForwardBackward;
                let got = head::cuda::run::<T>(&gpu, &scene, form, offset, pass).expect("a legal call");
                let what = format!("{what} of level {level}, beta {beta}, in {form:?}, {offset} off");
                head::check(&what, pass, &got, &want);
                let grads = got.grads.iter().flatten().flatten();
                assert_eq!(grads.filter(|grad| !grad.to_f64().is_finite()).count(), 1, "{what}");
            }
        }
    }
}

#[test]
fn one_gradient_of_a_head_that_overflows() {
    heads::<f32>();
    heads::<f16>();
    heads::<bf16>();
}

/// Wherever it is: in vectors of positions, of half as many, of channels, and by itself.
fn places<T: OnDevice>() {
    let Some(gpu) = gpu() else { return };
    for (beta, form) in
        [2.0, 1.5].into_iter().flat_map(|beta| [(beta, Form::Nchw), (beta, Form::ChannelsLast)])
    {
        let mut scene = scene(beta);
        scene.grad_scale = nearly_most::<T>();
        let mut cuda = OnCuda::<T>::new(&gpu, &scene, form, 0);
        // Where channels come last, all levels are alike.
        for level in 0..if form == Form::Nchw { scene.levels.len() } else { 1 } {
            let positions = scene.levels[level].positions();
            for (channel, position) in
                (0..8).flat_map(|channel| (0..8).map(move |position| (channel, position)))
            {
                let at = channel * positions + position;
                scene.levels[level].cls[at] = LOUD;
                cuda.refill(&gpu, &scene);
                cuda.call(&gpu, &scene, Pass::ForwardBackward, Phases::Both).expect("a legal call");
                let got = cuda.outcome(&gpu, &scene, Pass::ForwardBackward);
                let what = format!("level {level}, beta {beta}, in {form:?}");
                check_alone(&what, &got.grads[level][0], at, got.found_inf);
                scene.levels[level].cls[at] = QUIET;
            }
        }
    }
}

#[test]
fn one_gradient_of_a_head_that_overflows_anywhere() {
    places::<f32>();
    places::<f16>();
    places::<bf16>();
}

/// Of each loss one of each kind of shape.
fn cases(random: &mut Random) -> Vec<Case> {
    let mut cases = Vec::new();
    for shape @ [rows, classes] in [[700, 16], [9, 19]] {
        let logits = random.many(rows * classes, -3.0, 3.0);
        let labels: Vec<i64> = (0..rows).map(|row| (row % (classes + 2)) as i64).collect();
        let sparse = Case::sparse(shape, &logits, &labels, &vec![0.5; rows]);
        let dense = Case::dense(shape, &logits, &vec![0.5; rows * classes]);
        for beta in [2.0, 1.5] {
            cases.extend([sparse.clone().with_beta(beta), dense.clone().with_beta(beta)]);
        }
    }
    for bins in [16, 17, 9] {
        cases.push(Case::dfl([300, bins], &random.many(300 * bins, -3.0, 3.0), &[3.25; 300]));
    }
    cases
}

/// 0, and not 0 * inf; the other gradients are inf.
fn masked<T: OnDevice>() {
    let Some(gpu) = gpu() else { return };
    for case in cases(&mut Random::new(112)) {
        let weight = (0..case.shape[0]).map(|row| if row % 3 == 0 { 0.0 } else { 1.0 }).collect();
        let case = case.with(|options| (options.grad_scale, options.weight) = (1e60, Some(weight)));
        for layout in &LAYOUTS {
            check_cuda::<T>(&gpu, &case, layout);
        }
    }
}

#[test]
fn masks_under_an_infinite_factor() {
    masked::<f32>();
    masked::<f16>();
    masked::<bf16>();
}

/// The weight of a row, and what all are multiplied by.
fn not_a_number<T: OnDevice>() {
    let Some(gpu) = gpu() else { return };
    let layouts = LAYOUTS.map(|layout| Layout { device_grad_scale: true, ..layout });
    let check = |case: Case| layouts.iter().for_each(|layout| check_cuda::<T>(&gpu, &case, layout));
    for case in cases(&mut Random::new(113)) {
        // Of a thread's two rows either.
        for row in [4, 5] {
            let weight = (0..case.shape[0]).map(|n| if n == row { f32::NAN } else { 1.0 }).collect();
            check(case.clone().with(|options| options.weight = Some(weight)));
        }
        check(case.with(|options| options.grad_scale = f64::NAN));
    }
}

#[test]
fn factors_that_are_not_numbers() {
    not_a_number::<f32>();
    not_a_number::<f16>();
    not_a_number::<bf16>();
}
