//! Shows that phase two of the head loss on CUDA gives what the formulas give whatever the accesses that a level
//! allows: 16 bytes, 8 bytes or single logits, along positions or along channels, with rests of images and of
//! chunks; and whatever a vector of logits holds: a label, masked anchors over NaN logits, several weights.

use gfocal::{bf16, f16};
use support::gpu::OnDevice;
use support::head::cuda::{OnCuda, Phases};
use support::head::scenes::Recipe;
use support::head::{Form, Profile, Scene, Settings, check, cuda, expect};
use support::random::Random;
use support::tolerance::check_same_bits;
use support::{Gpu, Pass, gpu};

const PASSES: [Pass; 2] = [Pass::Forward, Pass::ForwardBackward];

/// A scene whose anchors are mostly plain, as in training, so that vectors are not taken apart; and among them
/// whatever is rare.
fn scene(
    random: &mut Random,
    classes: usize,
    batch: usize,
    beta: f64,
    sizes: &[(usize, usize, f64)],
) -> Scene {
    let settings = Settings { beta, ignore_label: Some(-7), ..Settings::of(Profile::Mmdetection) };
    let recipe = Recipe { classes, batch, sizes: sizes.into(), positives: 0.03, ..Recipe::new(settings) };
    let mut scene = recipe.scene(random);
    for level in &mut scene.levels {
        let (positions, anchors) = (level.positions(), level.labels.len());
        // Labels where chunks and vectors begin and end.
        let columns = [0, 1, 3, 4, 7, 8, 15, 16, 19, 20, classes - 2, classes - 1];
        for label in level.labels.iter_mut().filter(|label| **label < classes as i64) {
            *label = columns[random.index(columns.len())].min(classes - 1) as i64;
        }
        let mut weights = vec![1.0; anchors];
        // One weight for many, then each its own.
        for (begin, end, uneven) in
            [(anchors / 3, anchors / 2, false), (anchors / 2 + 3, anchors / 2 + 21, true)]
        {
            for weight in &mut weights[begin..end.min(anchors)] {
                *weight = if uneven { random.between(0.1, 2.0) } else { 0.625 };
            }
        }
        // Masked by weight or label, alone and side by side, and nothing but NaN and inf in their logits.
        for _ in 0..=anchors / 60 {
            let first = random.index(anchors);
            let last = anchors.min(first + 1 + random.index(9));
            for (anchor, weight) in weights.iter_mut().enumerate().take(last).skip(first) {
                match random.chance(0.5) {
                    true => *weight = 0.0,
                    false => level.labels[anchor] = -7,
                }
                let (image, position) = (anchor / positions, anchor % positions);
                for class in 0..classes {
                    level.cls[(image * classes + class) * positions + position] =
                        [f64::NAN, f64::INFINITY, f64::NEG_INFINITY][random.index(3)];
                }
            }
        }
        // An image of which nothing counts, so that whole warps have nothing to do.
        if batch > 1 {
            weights[anchors - positions..].fill(0.0);
            level.cls[(batch - 1) * classes * positions..].fill(f64::NAN);
        }
        level.label_weights = Some(weights);
        // Whole warps of confident negatives, too.
        for x in &mut level.cls[..classes * positions / 2] {
            *x = if x.is_finite() { x.min(-2.5) } else { *x };
        }
    }
    scene
}

/// What COCO's images and odd sizes give: multiples of 8, of 4 only, of 2 only, of nothing.
const SIZES: [&[(usize, usize, f64)]; 3] =
    [&[(7, 11, 8.0), (10, 6, 16.0), (16, 18, 32.0)], &[(13, 21, 8.0), (1, 4, 16.0)], &[(25, 42, 8.0)]];

fn compare<T: OnDevice>(gpu: &Gpu, what: &str, scene: &Scene) {
    let want = expect(&scene.stored_as::<T>());
    let forms = [Form::Nchw, Form::ChannelsLast, Form::Joint, Form::JointLast];
    // 4 off: 8 bytes of 16-bit logits are aligned, 16 are not.
    let anywhere = forms.into_iter().flat_map(|form| [0, 1, 4].map(|offset| (form, offset)));
    for (form, offset) in anywhere.chain([(Form::Crop, 0), (Form::CropLast, 0)]) {
        for pass in PASSES {
            let got = cuda::run::<T>(gpu, scene, form, offset, pass).expect("a legal call");
            check(&format!("{what} in {form:?}, {offset} off"), pass, &got, &want);
        }
    }
}

fn sizes_and_betas<T: OnDevice>(seed: u64) {
    let Some(gpu) = gpu() else { return };
    let mut random = Random::new(seed);
    for (i, sizes) in SIZES.into_iter().enumerate() {
        for beta in [2.0, 1.5] {
            let (classes, batch) = [(24, 3), (20, 2), (33, 1)][i];
            let scene = scene(&mut random, classes, batch, beta, sizes);
            compare::<T>(&gpu, &format!("{classes} classes, beta {beta}, {sizes:?}"), &scene);
        }
    }
}

#[test]
fn sizes_and_betas_in_f32() {
    sizes_and_betas::<f32>(21);
}

#[test]
fn sizes_and_betas_in_f16() {
    sizes_and_betas::<f16>(22);
}

#[test]
fn sizes_and_betas_in_bf16() {
    sizes_and_betas::<bf16>(23);
}

/// 80 classes and more: several chunks of channels, several tiles for a warp, and rows of channels that no lane
/// has alone.
#[test]
fn many_classes() {
    let Some(gpu) = gpu() else { return };
    let mut random = Random::new(31);
    for (classes, beta) in [(80, 2.0), (80, 0.0), (131, 2.0)] {
        let scene = scene(&mut random, classes, 2, beta, &[(10, 10, 8.0), (8, 8, 16.0), (5, 5, 32.0)]);
        let what = format!("{classes} classes, beta {beta}");
        compare::<f32>(&gpu, &what, &scene);
        compare::<f16>(&gpu, &what, &scene);
        compare::<bf16>(&gpu, &what, &scene);
    }
}

/// Confident logits and here and there, so many times for each level, one that is `odd` or two that lie where a
/// piece of a lane may hold both.
fn not_confident<T: OnDevice>(gpu: &Gpu, random: &mut Random, times: usize, odd: &[f64]) {
    // For 16 bits vectors of 8 positions, of 4, and none; all have a warp's positions of 8 and more.
    let sizes = vec![(16, 16, 8.0), (4, 65, 16.0), (1, 259, 32.0)];
    let settings = Settings::of(Profile::Nanodet);
    let recipe = Recipe { batch: 1, classes: 8, sizes, positives: 0.0, ..Recipe::new(settings) };
    let mut scene = Scene { grad_scale: 1.0, ..recipe.scene(random) };
    for level in &mut scene.levels {
        let positions = level.positions();
        level.label_weights = None;
        level.cls.iter_mut().for_each(|x| *x = random.between(-9.0, -2.5));
        for i in 0..times {
            let (class, position) = (random.index(8), random.index(positions));
            let (c, p) = [(0, 0), (0, 1), (0, 2), (1, 0), (2, 0), (4, 0)][random.index(6)];
            for (class, position) in [(class, position), (class ^ c, (position ^ p).min(positions - 1))] {
                level.cls[class * positions + position] = odd[i % odd.len()];
            }
        }
    }
    let want = expect(&scene.stored_as::<T>());
    for form in [Form::Nchw, Form::ChannelsLast, Form::Scattered, Form::Crop] {
        for pass in PASSES {
            let got = cuda::run::<T>(gpu, &scene, form, 0, pass).expect("a legal call");
            check(&format!("{odd:?} in {form:?}"), pass, &got, &want);
        }
    }
}

fn any_not_confident<T: OnDevice>(seed: u64) {
    let Some(gpu) = gpu() else { return };
    let mut random = Random::new(seed);
    not_confident::<T>(&gpu, &mut random, 90, &support::NOT_CONFIDENT);
    not_confident::<T>(&gpu, &mut random, 40, &[f64::NEG_INFINITY]);
    // Alone, as one is enough to spoil the sum.
    for _ in 0..4 {
        not_confident::<T>(&gpu, &mut random, 1, &[f64::NEG_INFINITY]);
    }
}

#[test]
fn one_logit_among_confident_ones_that_is_not() {
    any_not_confident::<f32>(61);
    any_not_confident::<f16>(62);
    any_not_confident::<bf16>(63);
}

/// Losses that double to more than f32 holds, in the storage types that reach so far; their sum fits once it is
/// divided.
fn huge<T: OnDevice>(gpu: &Gpu) {
    let mut random = Random::new(41);
    for form in [Form::Nchw, Form::ChannelsLast, Form::Scattered, Form::Crop, Form::CropLast] {
        let mut scene = scene(&mut random, 24, 2, 2.0, &[(12, 16, 8.0), (5, 6, 16.0)]);
        for level in &mut scene.levels {
            let positions = level.positions();
            for position in [0, positions / 2, positions - 1] {
                level.cls[9 * positions + position] = 2e38;
                // Of the image that counts, anchors that do.
                level.labels[position] = 24;
                level.label_weights.as_mut().expect("weights")[position] = 1.0;
                (0..24).for_each(|class| {
                    let x = &mut level.cls[class * positions + position];
                    *x = if x.is_finite() { *x } else { 0.5 };
                });
            }
        }
        // And where one is NaN besides, the others' gradients are what they are.
        for nan in [false, true] {
            for level in scene.levels.iter_mut().filter(|_| nan) {
                let positions = level.positions();
                level.cls[12 * positions + positions / 2] = f64::NAN;
            }
            let want = expect(&scene.stored_as::<T>());
            for pass in PASSES {
                let got = cuda::run::<T>(gpu, &scene, form, 0, pass).expect("a legal call");
                check(&format!("huge logits in {form:?}"), pass, &got, &want);
            }
        }
    }
}

#[test]
fn huge_logits() {
    let Some(gpu) = gpu() else { return };
    huge::<f32>(&gpu);
    huge::<bf16>(&gpu);
}

/// What is masked has the gradient 0, and not 0 * inf or 0 * NaN, where the others' is too large for a float or no
/// number. At beta 1.5 by the weight of its class, too.
fn masks<T: OnDevice>(beta: f64) {
    let Some(gpu) = gpu() else { return };
    let mut random = Random::new(51);
    let mut scene = scene(&mut random, 24, 2, beta, &[(8, 16, 8.0), (5, 7, 16.0), (10, 12, 32.0)]);
    let class_weights: Vec<f64> = (0..24).map(|class| [0.5, 1.0, 0.0][class % 3]).collect();
    scene.class_weights = (beta == 1.5).then(|| class_weights.clone());
    let of_class = |class: usize| if beta == 1.5 { class_weights[class] } else { 1.0 };
    for (grad_scale, upstream) in [(1e60, 1.0), (1.0, f64::NAN)] {
        scene.grad_scale = grad_scale;
        scene.upstream = Some(vec![upstream; 9]);
        for form in [Form::Nchw, Form::ChannelsLast, Form::JointLast, Form::Crop, Form::CropLast] {
            let got = cuda::run::<T>(&gpu, &scene, form, 0, Pass::ForwardBackward).expect("a legal call");
            for (level, of) in scene.levels.iter().enumerate() {
                let (positions, weights) = (of.positions(), of.label_weights.as_ref().expect("weights"));
                let mut masked = 0;
                for (i, grad) in got.grads[level][0].iter().map(|grad| grad.to_f64()).enumerate() {
                    let anchor = i / (24 * positions) * positions + i % positions;
                    let weight = weights[anchor] * of_class(i / positions % 24);
                    if weight == 0.0 || of.labels[anchor] == -7 {
                        masked += 1;
                        assert_eq!(grad, 0.0, "{form:?}, level {level}, element {i}");
                    } else {
                        assert!(!grad.is_finite(), "{form:?}, level {level}, element {i}: {grad}");
                    }
                }
                assert!(masked > 0, "{form:?}, level {level}");
            }
            assert_eq!(got.found_inf, 1.0);
            let mut bare = OnCuda::<T>::new(&gpu, &scene, form, 0);
            bare.bare = true;
            bare.call(&gpu, &scene, Pass::ForwardBackward, Phases::Both).expect("a legal call");
            let bare = bare.outcome(&gpu, &scene, Pass::ForwardBackward);
            for (bare, got) in bare.grads.iter().flatten().zip(got.grads.iter().flatten()) {
                check_same_bits("without a flag", bare, got);
            }
        }
    }
}

#[test]
fn masks_under_an_infinite_factor() {
    masks::<f32>(2.0);
    masks::<f16>(2.0);
    masks::<bf16>(2.0);
    for beta in [1.5, 1.25] {
        masks::<f32>(beta);
        masks::<f16>(beta);
        masks::<bf16>(beta);
    }
}

/// Weights that are NaN spoil their anchors, and no others: alone, and side by side.
fn weights_that_are_not_numbers<T: OnDevice>(gpu: &Gpu, beta: f64) {
    let mut scene = scene(&mut Random::new(52), 8, 2, beta, &[(8, 8, 8.0), (4, 7, 16.0)]);
    for level in &mut scene.levels {
        let weights = level.label_weights.as_mut().expect("weights");
        (weights[1], weights[10]) = (f64::NAN, f64::NAN);
        weights[14..31].fill(f64::NAN);
    }
    let want = expect(&scene.stored_as::<T>());
    for (form, offset) in [(Form::Nchw, 0), (Form::Nchw, 1), (Form::ChannelsLast, 0)] {
        for pass in PASSES {
            let got = cuda::run::<T>(gpu, &scene, form, offset, pass).expect("a legal call");
            check(&format!("beta {beta}, in {form:?}, {offset} off"), pass, &got, &want);
        }
    }
}

#[test]
fn weights_that_are_nan() {
    let Some(gpu) = gpu() else { return };
    for beta in [2.0, 1.5] {
        weights_that_are_not_numbers::<f32>(&gpu, beta);
        weights_that_are_not_numbers::<f16>(&gpu, beta);
        weights_that_are_not_numbers::<bf16>(&gpu, beta);
    }
}

/// Ranges so narrow that a wrong digit of any formula is one of a sum, too: from easy negatives to logits that are far
/// above, and where series end; all background or all labelled; in vectors of positions, of half as many, of channels,
/// and one by one.
fn narrow_ranges<T: OnDevice>() {
    let Some(gpu) = gpu() else { return };
    let mut random = Random::new(71);
    for (low, high) in
        [(-88.0, -20.0), (-6.0, -2.0), (-2.02, -2.0), (-0.01, 0.01), (1.0, 20.0), (20.0, 88.0), (705.0, 6e4)]
    {
        for (beta, classes) in [2.0, 0.0, 1.5].into_iter().flat_map(|beta| [(beta, 16), (beta, 1)]) {
            let settings = Settings { beta, ..Settings::of(Profile::Nanodet) };
            let sizes = vec![(4, 8, 8.0), (3, 4, 16.0)];
            let positives = if classes == 1 { 1.0 } else { 0.0 };
            let recipe = Recipe { batch: 1, classes, sizes, positives, ..Recipe::new(settings) };
            let mut scene = recipe.scene(&mut random);
            for level in &mut scene.levels {
                level.cls = random.many(level.cls.len(), low, high);
            }
            let want = expect(&scene.stored_as::<T>());
            let forms = if classes == 1 {
                &[Form::Nchw][..]
            } else {
                &[Form::Nchw, Form::ChannelsLast, Form::Scattered]
            };
            for (&form, pass) in forms.iter().flat_map(|form| PASSES.map(|pass| (form, pass))) {
                let got = cuda::run::<T>(&gpu, &scene, form, 0, pass).expect("a legal call");
                let what = format!("{low} to {high}, {classes} classes, beta {beta}, in {form:?}");
                check(&what, pass, &got, &want);
            }
        }
    }
}

#[test]
fn sums_over_narrow_ranges_in_f32() {
    narrow_ranges::<f32>();
}

#[test]
fn sums_over_narrow_ranges_in_f16() {
    narrow_ranges::<f16>();
}

#[test]
fn sums_over_narrow_ranges_in_bf16() {
    narrow_ranges::<bf16>();
}
