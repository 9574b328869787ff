//! Shows that the head loss on CUDA gives what the formulas and mmdetection's `GFLHead` give, in
//! every storage type, form of memory and alignment; in two launches at most, without allocations,
//! waits or copies; with the same bits whatever the order of blocks and threads; and that its two
//! phases can be run apart.

use gfocal::boxes::IouKind;
use gfocal::head::{BoxWeight, HeadWorkspace, Normaliser, QualitySource};
use gfocal::{Background, Error, Status, bf16, f16};
use support::gpu::OnDevice;
use support::head::cuda::{OnCuda, Phases};
use support::head::scenes::{GOLDEN, Recipe, golden};
use support::head::{
    FLAG_BEFORE, Form, Outcome, PointsAt, Profile, Scene, Settings, check, cpu, cuda, expect,
};
use support::random::Random;
use support::tolerance::{check_golden_single, check_same_bits};
use support::{Gpu, Pass, gpu};

const PASSES: [Pass; 2] = [Pass::Forward, Pass::ForwardBackward];

/// A scene in all forms of memory, aligned and not, compared with the reference.
fn compare<T: OnDevice>(gpu: &Gpu, what: &str, scene: &Scene) {
    compare_in::<T>(gpu, what, scene, &Form::ALL);
}

fn compare_in<T: OnDevice>(gpu: &Gpu, what: &str, scene: &Scene, forms: &[Form]) {
    let want = expect(&scene.stored_as::<T>());
    for &form in forms {
        for offset in [0, 1] {
            for pass in PASSES {
                let got = cuda::run::<T>(gpu, scene, form, offset, pass).expect("a legal call");
                check(&format!("{what} in {form:?}, {offset} off"), pass, &got, &want);
            }
        }
    }
}

#[test]
fn golden_heads() {
    let Some(gpu) = gpu() else { return };
    for golden in GOLDEN.map(golden) {
        for form in Form::ALL {
            let got =
                cuda::run::<f32>(&gpu, &golden.scene, form, 0, Pass::ForwardBackward).expect("a legal call");
            let what = format!("{} in {form:?}", golden.name);
            check_golden_single(&format!("{what}, losses"), &got.losses, &golden.losses);
            for (got, want) in got.grads.iter().flatten().zip(golden.grads.iter().flatten()) {
                check_golden_single(&format!("{what}, gradients"), got, want);
            }
        }
        compare::<f32>(&gpu, golden.name, &golden.scene);
        compare::<f16>(&gpu, golden.name, &golden.scene);
        compare::<bf16>(&gpu, golden.name, &golden.scene);
    }
}

/// Every option, each in another mixture; sizes with whole vectors and without; masks and faults.
fn recipes() -> Vec<Recipe> {
    let odd = vec![(7, 9, 8.0), (3, 5, 16.0), (1, 1, 32.0)];
    let even = vec![(8, 16, 8.0), (4, 4, 16.0), (2, 4, 32.0)];
    let mut recipes = Vec::new();
    for (i, profile) in [Profile::Mmdetection, Profile::Nanodet, Profile::Ultralytics].into_iter().enumerate()
    {
        for (j, sizes) in [&odd, &even].into_iter().enumerate() {
            for (masks, faults, not_finite) in [
                (false, false, false),
                (true, false, false),
                (false, true, false),
                (true, true, false),
                (false, false, true),
            ] {
                let mut settings = Settings::of(profile);
                if masks {
                    settings.ignore_label = Some(-7);
                }
                if faults {
                    settings.background = [Background::First, Background::Last][(i + j) % 2];
                }
                recipes.push(Recipe {
                    batch: 1 + 2 * j,
                    classes: [3, 8, 24][i],
                    sizes: sizes.clone(),
                    masks,
                    faults,
                    not_finite,
                    ..Recipe::new(settings)
                });
            }
        }
    }
    let mut kinds = IouKind::ALL.into_iter().cycle();
    for normaliser in [Normaliser::Mmdetection, Normaliser::Nanodet, Normaliser::Ultralytics] {
        for (quality, box_weight) in [
            (QualitySource::Iou, BoxWeight::Quality),
            (QualitySource::Given, BoxWeight::MaxScore),
            (QualitySource::Iou, BoxWeight::MaxScore),
        ] {
            let settings = Settings {
                beta: [2.0, 1.5, 0.5, 3.0][recipes.len() % 4],
                iou: kinds.next().expect("a cycle"),
                bins: [2, 5, 9, 33][recipes.len() % 4],
                quality,
                box_weight,
                normaliser,
                ..Settings::of(Profile::Mmdetection)
            };
            let sizes = [&odd, &even][recipes.len() % 2].clone();
            recipes.push(Recipe {
                classes: 5 + recipes.len(),
                sizes,
                positives: 0.5,
                ..Recipe::new(settings)
            });
        }
    }
    recipes
}

#[test]
fn random_scenes() {
    let Some(gpu) = gpu() else { return };
    let mut random = Random::new(77);
    for recipe in recipes() {
        let scene = recipe.scene(&mut random);
        let what = format!("{recipe:?}");
        compare::<f32>(&gpu, &what, &scene);
        compare::<f16>(&gpu, &what, &scene);
        compare::<bf16>(&gpu, &what, &scene);
    }
}

/// As many levels as an FPN has, and as many as there may be. The search for the level of a block goes in fours:
/// these leave a rest of 0, 1 and 3, and the scenes above, of three levels, one of 2.
#[test]
fn pyramids() {
    let Some(gpu) = gpu() else { return };
    let mut random = Random::new(83);
    // With whole vectors of 8, of 4 and without.
    let sizes = [(8, 12), (6, 8), (6, 6), (5, 5), (4, 4), (2, 3), (1, 2), (1, 1)];
    // Of the class logits of each level, without positives: so narrow that a wrong digit of any formula is one of
    // the level's loss, too.
    let ranges = [(-0.5, 0.5), (-4.0, -2.0), (1.0, 20.0), (-88.0, -20.0), (20.0, 88.0)];
    for (levels, beta) in [(5, 2.0), (5, 1.5), (6, 2.0), (8, 2.0), (8, 0.5)] {
        let settings = Settings { beta, ..Settings::of(Profile::Mmdetection) };
        let sizes = sizes[..levels].iter().zip(3..).map(|(&(h, w), octave)| (h, w, f64::from(1 << octave)));
        let positives = if levels == 5 { 0.0 } else { 0.2 };
        let masks = levels > 5;
        let recipe = Recipe { classes: 8, sizes: sizes.collect(), masks, positives, ..Recipe::new(settings) };
        let mut scene = recipe.scene(&mut random);
        for (level, (low, high)) in scene.levels.iter_mut().zip(ranges) {
            if positives == 0.0 {
                level.cls.iter_mut().for_each(|x| *x = random.between(low, high));
            }
        }
        let (what, forms) = (format!("{levels} levels, beta {beta}"), [Form::Nchw, Form::ChannelsLast]);
        compare_in::<f32>(&gpu, &what, &scene, &forms);
        compare_in::<f16>(&gpu, &what, &scene, &forms);
        compare_in::<bf16>(&gpu, &what, &scene, &forms);
    }
}

/// A tile of box logits has four positions for each of 256 threads: here a block's last tile has some for two, for
/// three and for four of the rounds.
#[test]
fn tiles_of_positions() {
    let Some(gpu) = gpu() else { return };
    for sizes in [vec![(20, 30, 8.0)], vec![(30, 30, 8.0)], vec![(33, 41, 8.0)]] {
        for beta in [2.0, 1.5] {
            let settings = Settings { beta, ..Settings::of(Profile::Mmdetection) };
            let recipe = Recipe { batch: 1, sizes: sizes.clone(), positives: 0.05, ..Recipe::new(settings) };
            let scene = recipe.scene(&mut Random::new(85));
            let (what, forms) = (format!("{sizes:?}, beta {beta}"), [Form::Nchw, Form::Joint]);
            compare_in::<f32>(&gpu, &what, &scene, &forms);
            compare_in::<f16>(&gpu, &what, &scene, &forms);
            compare_in::<bf16>(&gpu, &what, &scene, &forms);
        }
    }
}

/// The largest class logit and the largest of each side, in all places: a positive for each. A side whose largest is
/// overlooked by so much has exponentials beyond double.
#[test]
fn the_largest_wherever_it_is() {
    let Some(gpu) = gpu() else { return };
    let (classes, bins) = (130, 33);
    let settings = Settings { bins, ..Settings::of(Profile::Mmdetection) };
    let sizes = vec![(10, 13, 8.0)];
    let recipe = Recipe { batch: 1, classes, sizes, positives: 1.0, ..Recipe::new(settings) };
    for largest in [4.0, 2000.0] {
        let mut scene = recipe.scene(&mut Random::new(86));
        let level = &mut scene.levels[0];
        let positions = level.positions();
        for anchor in 0..positions {
            level.cls[anchor % classes * positions + anchor] = 3.0;
            for side in 0..4 {
                let bin = (anchor + 8 * side) % bins;
                level.boxes[(side * bins + bin) * positions + anchor] = largest;
            }
        }
        let (what, forms) = (format!("{largest} at the top"), [Form::Nchw, Form::ChannelsLast]);
        compare_in::<f32>(&gpu, &what, &scene, &forms);
        compare_in::<f16>(&gpu, &what, &scene, &forms);
        compare_in::<bf16>(&gpu, &what, &scene, &forms);
    }
}

/// Sides that are alike, boxes that touch, and one whose sides are far off and swapped: between two equal logits, above
/// all others, a distance is exact.
#[test]
fn boxes_with_ties() {
    let Some(gpu) = gpu() else { return };
    // Where a target lies along an axis, whose prediction is from -1.5 to 1.5.
    let along = [
        (-3.0, -2.0),
        (-2.5, -1.5),
        (-2.5, 1.5),
        (-2.5, 2.5),
        (-1.5, 0.0),
        (-1.5, 1.5),
        (-1.5, 2.5),
        (-0.5, 0.5),
        (0.0, 1.5),
        (1.5, 2.5),
        (8.5, 1.5),
    ];
    let (n, all) = (along.len(), along.len().pow(2));
    for kind in IouKind::ALL {
        let settings = Settings {
            iou: kind,
            bins: 4,
            quality: QualitySource::Given,
            box_weight: BoxWeight::Quality,
            ..Settings::of(Profile::Mmdetection)
        };
        let recipe = Recipe { batch: 1, sizes: vec![(n, n, 8.0)], positives: 1.0, ..Recipe::new(settings) };
        let mut scene = recipe.scene(&mut Random::new(88));
        let level = &mut scene.levels[0];
        level.points = PointsAt::Grid(0.0);
        level.boxes =
            (0..16 * all).map(|at| if matches!(at / all % 4, 1 | 2) { 0.0 } else { -2000.0 }).collect();
        level.quality = Some(vec![0.75; all]);
        level.box_targets = (0..all)
            .flat_map(|anchor| {
                let (x, y) = (anchor % n, anchor / n);
                let [of_x, of_y] = [x, y].map(|at| (along[at].0 + at as f64, along[at].1 + at as f64));
                [of_x.0, of_y.0, of_x.1, of_y.1].map(|side| 8.0 * side)
            })
            .collect();
        let what = format!("ties of {kind:?}");
        compare_in::<f32>(&gpu, &what, &scene, &[Form::Nchw]);
        compare_in::<f16>(&gpu, &what, &scene, &[Form::Nchw]);
        compare_in::<bf16>(&gpu, &what, &scene, &[Form::Nchw]);
    }
}

/// An image without positives counts as one, and the threads of a block, 256, add up the images.
#[test]
fn more_images_than_threads() {
    let Some(gpu) = gpu() else { return };
    let settings = Settings { bins: 2, ..Settings::of(Profile::Mmdetection) };
    let recipe = Recipe { batch: 300, sizes: vec![(1, 2, 8.0)], ..Recipe::new(settings) };
    let scene = recipe.scene(&mut Random::new(84));
    compare_in::<f32>(&gpu, "300 images", &scene, &[Form::Nchw]);
}

/// Scenes of several blocks for each part, with and without whole vectors.
fn large() -> Vec<Scene> {
    let mut random = Random::new(5);
    let mut scenes = Vec::new();
    for (profile, classes) in [(Profile::Mmdetection, 80), (Profile::Ultralytics, 16)] {
        for sizes in [vec![(32, 40, 8.0), (8, 8, 16.0)], vec![(33, 35, 8.0), (5, 5, 16.0)]] {
            let recipe = Recipe {
                classes,
                sizes,
                positives: 0.05,
                faults: true,
                ..Recipe::new(Settings::of(profile))
            };
            scenes.push(recipe.scene(&mut random));
        }
    }
    scenes
}

#[track_caller]
fn same<T: OnDevice>(what: &str, got: &Outcome<T>, want: &Outcome<T>) {
    check_same_bits(&format!("{what}, losses"), &got.losses, &want.losses);
    for (got, want) in got.grads.iter().flatten().zip(want.grads.iter().flatten()) {
        check_same_bits(&format!("{what}, gradients"), got, want);
    }
    assert_eq!(got.status, want.status, "{what}: status");
    assert_eq!(got.found_inf, want.found_inf, "{what}: found_inf");
}

fn same_bits<T: OnDevice>(gpu: &Gpu, scene: &Scene, form: Form) {
    let what = format!("{:?} {form:?} in {}", scene.settings.profile, T::NAME);
    let want = cuda::run::<T>(gpu, scene, form, 0, Pass::ForwardBackward).expect("a legal call");
    check(&what, Pass::ForwardBackward, &want, &expect(&scene.stored_as::<T>()));
    let repeats = std::env::var("GFOCAL_REPEATS").ok().and_then(|repeats| repeats.parse().ok()).unwrap_or(3);
    for seed in 0..repeats {
        if let Some(emulator) = gpu.emulator {
            emulator.set_seed(seed * 7919 + 1);
        }
        // Once without a status and a flag, which make no difference.
        let mut cuda = OnCuda::<T>::new(gpu, scene, form, 0);
        cuda.bare = seed == 1;
        cuda.call(gpu, scene, Pass::ForwardBackward, Phases::Both).expect("a legal call");
        let mut got = cuda.outcome(gpu, scene, Pass::ForwardBackward);
        if cuda.bare {
            assert_eq!((got.status, got.found_inf), (Status::default(), FLAG_BEFORE), "{what}: not given");
            (got.status, got.found_inf) = (want.status, want.found_inf);
        }
        same(&what, &got, &want);
    }
}

#[test]
fn the_same_bits_over_orders() {
    let Some(gpu) = gpu() else { return };
    for (i, scene) in large().iter().enumerate() {
        let form = [Form::Nchw, Form::ChannelsLast, Form::JointLast][i % 3];
        same_bits::<f32>(&gpu, scene, form);
        same_bits::<f16>(&gpu, scene, form);
    }
}

#[test]
fn two_launches_and_nothing_else() {
    let Some(gpu) = gpu() else { return };
    for scene in large() {
        for form in [Form::Nchw, Form::ChannelsLast] {
            let mut cuda = OnCuda::<f16>::new(&gpu, &scene, form, 0);
            let mut first = None;
            for (phases, launches) in
                [(Phases::Both, 2), (Phases::Normalisers, 1), (Phases::Normalised, 1), (Phases::Both, 2)]
            {
                let call = || cuda.call(&gpu, &scene, Pass::ForwardBackward, phases);
                gpu.enqueued(launches, call).expect("a legal call");
                if phases != Phases::Normalisers {
                    // The workspace is as before, and the status has counted once more or not.
                    let mut got = cuda.outcome(&gpu, &scene, Pass::ForwardBackward);
                    got.status = Default::default();
                    same("again", &got, first.get_or_insert_with(|| got.clone()));
                }
            }
        }
    }
}

/// As the mean over processes would be.
#[test]
fn phase_two_divides_by_what_it_finds() {
    let Some(gpu) = gpu() else { return };
    for mut scene in large() {
        let mut cuda = OnCuda::<f32>::new(&gpu, &scene, Form::Nchw, 0);
        cuda.call(&gpu, &scene, Pass::ForwardBackward, Phases::Normalisers).expect("a legal call");
        let (found, want) =
            (cuda.normalisers(&gpu), cpu::normalisers::<f32>(&scene, Form::Nchw).expect("a legal call"));
        assert_eq!(found.positives, want.positives);
        assert!((found.box_weights - want.box_weights).abs() <= 1e-6 * want.box_weights);
        let mean = [17.25f32, 9.5];
        gpu.stream.memcpy_htod(&mean, cuda.workspace.normalisers_mut()).expect("a copy");
        cuda.call(&gpu, &scene, Pass::ForwardBackward, Phases::Normalised).expect("a legal call");
        let [positives, box_weights] = mean.map(f64::from);
        scene.normalisers = Some(gfocal::head::Normalisers { positives, box_weights });
        let got = cuda.outcome(&gpu, &scene, Pass::ForwardBackward);
        check("with other normalisers", Pass::ForwardBackward, &got, &expect(&scene));
    }
}

/// A workspace serves smaller problems, too, and refuses larger ones.
#[test]
fn workspaces() {
    let Some(gpu) = gpu() else { return };
    let mut random = Random::new(3);
    let recipe = Recipe::new(Settings::of(Profile::Mmdetection));
    let large =
        Recipe { batch: 3, sizes: vec![(20, 20, 8.0), (7, 9, 16.0)], ..recipe.clone() }.scene(&mut random);
    let small = recipe.scene(&mut random);
    let mut workspace = cuda::workspace(&gpu, &large);
    for scene in [&large, &small, &large] {
        let mut cuda = OnCuda::<f32>::new(&gpu, scene, Form::Nchw, 0);
        std::mem::swap(&mut cuda.workspace, &mut workspace);
        cuda.call(&gpu, scene, Pass::ForwardBackward, Phases::Both).expect("a legal call");
        let got = cuda.outcome(&gpu, scene, Pass::ForwardBackward);
        check("in turn", Pass::ForwardBackward, &got, &expect(scene));
        std::mem::swap(&mut cuda.workspace, &mut workspace);
    }
    let mut cuda = OnCuda::<f32>::new(&gpu, &large, Form::Nchw, 0);
    cuda.workspace = cuda::workspace(&gpu, &small);
    let error = cuda.call(&gpu, &large, Pass::Forward, Phases::Both);
    assert_eq!(error, Err(Error::HeadWorkspace { axis: "images", actual: 3, capacity: 2 }));
    cuda.workspace = HeadWorkspace::new(&gpu.handle, 3, 462).expect("device memory");
    let error = cuda.call(&gpu, &large, Pass::Forward, Phases::Both);
    assert_eq!(error, Err(Error::HeadWorkspace { axis: "anchors", actual: 1389, capacity: 1386 }));
    assert_eq!(
        error.expect_err("too small").to_string(),
        "the workspace has room for 1386 anchors, this call has 1389; make a larger one"
    );
}

/// The same mistake is the same error on both backends.
#[test]
fn errors_are_those_of_the_cpu() {
    let Some(gpu) = gpu() else { return };
    let scene = Recipe::new(Settings::of(Profile::Mmdetection)).scene(&mut Random::new(9));
    let spoil: [fn(&mut Scene); 6] = [
        |scene| scene.levels[1].labels.truncate(7),
        |scene| scene.levels[0].box_targets.truncate(8),
        |scene| scene.levels[2].label_weights = Some(vec![1.0; 5]),
        |scene| scene.levels[0].stride = 0.0,
        |scene| scene.levels[1].points = PointsAt::Explicit(vec![0.0; 3]),
        |scene| scene.grad_scale = f64::NAN,
    ];
    for (i, spoil) in spoil.into_iter().enumerate() {
        let mut scene = scene.clone();
        spoil(&mut scene);
        let on_cpu = cpu::run::<f32>(&scene, Form::Nchw, Pass::ForwardBackward).expect_err("a mistake");
        let mut cuda = OnCuda::<f32>::new(&gpu, &scene, Form::Nchw, 0);
        let on_cuda = cuda.call(&gpu, &scene, Pass::ForwardBackward, Phases::Both).expect_err("a mistake");
        // Written out, as NaN is not equal to itself.
        assert_eq!(format!("{on_cuda:?}"), format!("{on_cpu:?}"), "mistake {i}");
    }
    let scene = Scene { settings: Settings { quality: QualitySource::Given, ..scene.settings }, ..scene };
    let mut scene = scene;
    scene.levels[1].quality = None;
    let on_cpu = cpu::run::<f32>(&scene, Form::Nchw, Pass::Forward).expect_err("a mistake");
    let on_cuda =
        OnCuda::<f32>::new(&gpu, &scene, Form::Nchw, 0).call(&gpu, &scene, Pass::Forward, Phases::Both);
    assert_eq!(on_cuda, Err(on_cpu));
}
