//! Shows that a head call takes tensors wherever they are: rows that do not follow each other, gradients in
//! layouts of their own, levels between each other in one buffer. And that what the checks let through stays
//! in its buffers and in places of its own, whatever layouts and lengths a call has; and what they refuse is
//! named.

use std::collections::HashSet;

use gfocal::head::{Gradients, HeadLoss, Layout, Layouts, Level, Logits, Points, Targets};
use gfocal::{Error, Host, bf16, f16};
use proptest::prelude::*;
use support::gpu::OnDevice;
use support::head::scenes::{Options, Recipe};
use support::head::{Form, Profile, Scene, Settings, check_mixed, cpu, cuda, expect};
use support::in_types;
use support::random::Random;
use support::{Gpu, Pass, Stored, gpu};

/// Where logits and gradients are.
const PAIRS: [(Form, Option<Form>); 12] = [
    (Form::Crop, None),
    (Form::CropLast, None),
    (Form::Columns, None),
    (Form::Crop, Some(Form::Nchw)),
    (Form::CropLast, Some(Form::ChannelsLast)),
    (Form::Nchw, Some(Form::Crop)),
    (Form::ChannelsLast, Some(Form::CropLast)),
    (Form::Joint, Some(Form::Nchw)),
    (Form::JointLast, Some(Form::ChannelsLast)),
    (Form::Nchw, Some(Form::ChannelsLast)),
    (Form::ChannelsLast, Some(Form::Joint)),
    (Form::Columns, Some(Form::Scattered)),
];

fn scene(number: usize, random: &mut Random) -> Scene {
    let all = number % 3 == 2;
    let settings = Settings {
        beta: [2.0, 0.0][usize::from(all)],
        ..Settings::of([Profile::Mmdetection, Profile::Nanodet, Profile::Ultralytics][number % 3])
    };
    let recipe = Recipe {
        classes: [8, 16, 5][number % 3],
        sizes: vec![(4, 8, 8.0), (3, 5, 16.0), (1, 4, 32.0)],
        positives: 0.3,
        masks: true,
        options: Options { class_weights: all, element_weights: all, box_weights: all, scores: all },
        ..Recipe::new(settings)
    };
    recipe.scene(random)
}

fn on_cpu<T: Stored>(what: &str, scene: &Scene, form: Form) {
    let want = expect(&scene.stored_as::<T>());
    for pass in Pass::ALL {
        let got = cpu::run_mixed::<T, T>(scene, form, pass).expect("a legal call");
        check_mixed(what, pass, &got, &want);
    }
}

#[test]
fn rows_and_gradients_anywhere_on_the_cpu() {
    let mut random = Random::new(1301);
    for (number, (form, gradient_form)) in PAIRS.into_iter().cycle().take(36).enumerate() {
        let scene = Scene { gradient_form, ..scene(number / 12, &mut random) };
        let what = format!("{form:?}, gradients in {gradient_form:?}");
        in_types!(f64, f32, bf16: on_cpu(&what, &scene, form));
    }
    // Of several blocks.
    let large =
        Recipe { classes: 20, sizes: vec![(40, 52, 8.0)], ..Recipe::new(Settings::of(Profile::Mmdetection)) };
    let large = large.scene(&mut random);
    for (form, gradient_form) in PAIRS {
        on_cpu::<f32>("a large level", &Scene { gradient_form, ..large.clone() }, form);
    }
}

fn on_cuda<T: OnDevice>(gpu: &Gpu, what: &str, scene: &Scene, form: Form) {
    let want = expect(&scene.stored_as::<T>());
    for offset in [0, 1] {
        for pass in [Pass::Forward, Pass::ForwardBackward] {
            let got = cuda::run_mixed::<T, T>(gpu, scene, form, offset, pass).expect("a legal call");
            check_mixed(what, pass, &got, &want);
        }
    }
}

#[test]
fn rows_and_gradients_anywhere_on_cuda() {
    let Some(gpu) = gpu() else { return };
    let mut random = Random::new(1302);
    // Every pair at every beta.
    for (number, (form, gradient_form)) in PAIRS.into_iter().cycle().take(3 * PAIRS.len()).enumerate() {
        let scene = Scene { gradient_form, ..scene(number + number / PAIRS.len(), &mut random) };
        let what = format!("{number}: {form:?}, gradients in {gradient_form:?}");
        in_types!(f32, f16, bf16: on_cuda(&gpu, &what, &scene, form));
    }
}

const CLASSES: usize = 2;
const BINS: usize = 2;
const CHANNELS: [usize; 2] = [CLASSES, 4 * BINS];

/// A level of a call: its size, where its tensors are, and how long their buffers are.
#[derive(Clone, Debug)]
struct Plan {
    size: [usize; 2],
    logits: [Layout; 2],
    gradients: [Layout; 2],
    /// Of class and box logits, then of their gradients.
    lengths: [usize; 4],
    joint: bool,
    shared: bool,
}

/// Places by the definition of a layout.
fn places(layout: &Layout, batch: usize, channels: usize, size: [usize; 2]) -> Vec<usize> {
    support::head::places(layout, batch, channels, size[0] * size[1])
}

fn any_layout(channels: usize, size: [usize; 2]) -> impl Strategy<Value = Layout> {
    let [height, width] = size;
    let order = Just([0usize, 1, 2, 3]).prop_shuffle();
    // Mostly nested axes, in any order, sometimes with gaps; now and then anything.
    (order, 0usize..3, prop::array::uniform4(0usize..6), prop::bool::weighted(0.15), 0usize..8).prop_map(
        move |(order, offset, gaps, wild, split)| {
            let extents = [2, channels, height, width];
            let (mut steps, mut step) = ([0; 4], 1);
            for axis in order {
                steps[axis] = step + gaps[axis] / 4;
                step = steps[axis] * extents[axis].max(1);
            }
            if wild {
                steps[order[0]] = gaps[0] * 3;
            }
            let [batch, channel, row, position] = steps;
            let layout = Layout { offset, batch, channel, position, rows: None };
            match split {
                0 => layout,
                1 => layout.with_rows(width + 1, row),
                _ => layout.with_rows(width, row),
            }
        },
    )
}

fn any_level() -> impl Strategy<Value = Plan> {
    (0usize..4, 1usize..4)
        .prop_flat_map(|(height, width)| {
            let size = [height, width];
            let both = move || (any_layout(CHANNELS[0], size), any_layout(CHANNELS[1], size));
            let flags = (prop::bool::weighted(0.2), prop::bool::weighted(0.4));
            (Just(size), both(), both(), prop::array::uniform4(0usize..12), flags, 0usize..300)
        })
        .prop_map(|(size, logits, gradients, less, (joint, shared), shift)| {
            let (logits, mut gradients) = ([logits.0, logits.1], [gradients.0, gradients.1]);
            if joint {
                gradients[1].offset += shift;
            }
            if shared {
                gradients.iter_mut().for_each(|layout| layout.offset += shift);
            }
            let length = |i: usize| {
                let layout = [logits, gradients][i / 2][i % 2];
                let layout = Layout { rows: layout.rows.filter(|rows| rows.width == size[1]), ..layout };
                let needed =
                    places(&layout, 2, CHANNELS[i % 2], size).into_iter().max().map_or(0, |last| last + 1);
                // Sometimes one too short.
                (needed + 400 * usize::from(i > 1 && less[i] % 2 == 0))
                    .saturating_sub(usize::from(less[i] == 1))
            };
            Plan { size, logits, gradients, lengths: [0, 1, 2, 3].map(length), joint, shared }
        })
}

/// What must be wrong of a call, by brute force.
fn is_wrong(plans: &[Plan]) -> bool {
    let mut taken: [HashSet<usize>; 2] = Default::default();
    let (mut joint, mut lengths) = (false, [0; 2]);
    for (level, plan) in plans.iter().enumerate() {
        if plan.shared && level == 0 {
            return true;
        }
        if !plan.shared {
            (joint, lengths) = (plan.joint, [plan.lengths[2], plan.lengths[3]]);
            taken = Default::default();
        }
        for i in 0..4 {
            let layout = [plan.logits, plan.gradients][i / 2][i % 2];
            if layout.rows.is_some_and(|rows| rows.width != plan.size[1]) {
                return true;
            }
            let buffer = if joint { 0 } else { i % 2 };
            let length = if i < 2 { plan.lengths[i] } else { lengths[buffer] };
            for place in places(&layout, 2, CHANNELS[i % 2], plan.size) {
                if place >= length || (i > 1 && !taken[buffer].insert(place)) {
                    return true;
                }
            }
        }
    }
    false
}

/// Runs the call, and says whether it was refused. What it writes are all places of gradients, and no others.
fn run(plans: &[Plan]) -> Result<(), Error> {
    const BEFORE: f32 = 77.0;
    let head = HeadLoss::mmdetection().with_bins(BINS).expect("a legal number");
    let logits: Vec<_> = plans.iter().map(|plan| [0, 1].map(|i| vec![0.25f32; plan.lengths[i]])).collect();
    let labels: Vec<_> = plans
        .iter()
        .map(|plan| (0..2 * plan.size[0] * plan.size[1]).map(|i| i as i64 % 3).collect::<Vec<_>>())
        .collect();
    let targets: Vec<_> =
        labels.iter().map(|labels| [-1.0f32, -1.0, 9.0, 9.0].repeat(labels.len())).collect();
    let levels: Vec<Level<Host, f32>> = (plans.iter().zip(&logits).zip(labels.iter().zip(&targets)))
        .map(|((plan, [cls, boxes]), (labels, targets))| Level {
            height: plan.size[0],
            width: plan.size[1],
            stride: 8.0,
            points: Points::Grid { offset: 0.5 },
            logits: Logits::Separate { cls: &cls[..], boxes: &boxes[..] },
            cls_layout: plan.logits[0],
            box_layout: plan.logits[1],
            targets: Targets::<Host>::new(labels[..].into(), &targets[..]),
        })
        .collect();
    let layouts: Vec<_> =
        plans.iter().map(|plan| Layouts { cls: plan.gradients[0], boxes: plan.gradients[1] }).collect();
    let mut buffers: Vec<_> =
        plans.iter().map(|plan| [2, 3].map(|i| vec![BEFORE; plan.lengths[i]])).collect();
    let mut gradients: Vec<Gradients<Host, f32>> = (plans.iter().zip(&mut buffers))
        .map(|(plan, [cls, boxes])| -> Gradients<Host, f32> {
            match (plan.shared, plan.joint) {
                (true, _) => Gradients::Shared,
                (_, true) => Gradients::Joint(&mut cls[..]),
                _ => Gradients::Separate { cls, boxes },
            }
        })
        .collect();
    let mut losses = vec![0.0f32; 3 * plans.len()];
    let call = head.cpu(2, CLASSES, &levels).gradient_layouts(&layouts);
    let result = call.forward_backward(&mut losses, &mut gradients);
    let mut owner = 0;
    for (level, plan) in plans.iter().enumerate().filter(|_| result.is_ok()) {
        owner = if plan.shared { owner } else { level };
        for i in [0, 1] {
            let buffer = if plans[owner].joint { 0 } else { i };
            for place in places(&plan.gradients[i], 2, CHANNELS[i], plan.size) {
                let stored = std::mem::replace(&mut buffers[owner][buffer][place], BEFORE);
                assert!(
                    stored.is_finite() && stored != BEFORE,
                    "level {level}: nothing was written at {place}"
                );
            }
        }
    }
    let untouched = buffers.iter().flatten().flatten().all(|&x| x == BEFORE);
    assert!(untouched, "something was written between the gradients, or by a call that was refused");
    result.map(|_| ())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_passes_is_in_places_of_its_own(plans in prop::collection::vec(any_level(), 1..4)) {
        let wrong = is_wrong(&plans);
        match run(&plans) {
            Ok(()) => prop_assert!(!wrong, "a wrong call passed"),
            Err(Error::Layout { level, tensor, reason }) => {
                prop_assert!(level < plans.len() && !tensor.is_empty());
                // Tensors that may share a buffer are refused unless it is plain that they are apart.
                prop_assert!(wrong || reason.contains("may be"), "{reason}");
            }
            Err(Error::Reach { level, tensor, actual, needed, .. }) => {
                prop_assert!(wrong && level < plans.len() && (actual as u128) < needed, "{tensor}");
            }
            Err(Error::RowWidth { level, actual, .. }) => {
                prop_assert!(wrong && actual == plans[level].size[1] + 1);
            }
            Err(other) => prop_assert!(false, "{other}"),
        }
    }
}

/// `[B, Σ H·W, C]`, whose levels lie between each other: the bits are those of levels apart.
#[test]
fn levels_between_each_other() {
    let sizes = [[3, 4], [2, 2], [1, 5]];
    let total: usize = sizes.iter().map(|[height, width]| height * width).sum();
    for last in [true, false] {
        for joint in [false, true] {
            let all = [CHANNELS[0] + CHANNELS[1], total];
            let mut first = 0;
            let plans: Vec<_> = (sizes.iter().enumerate())
                .map(|(level, &size)| {
                    let layout = |channels| {
                        let whole = if last { Layout::channels_last } else { Layout::nchw }(channels, total);
                        Layout { offset: first * whole.position, ..whole }
                    };
                    let gradients = if joint {
                        [layout(all[0]), layout(all[0]).from_channel(CLASSES)]
                    } else {
                        CHANNELS.map(layout)
                    };
                    first += size[0] * size[1];
                    let whole = CHANNELS.map(|channels| 2 * channels * total);
                    let lengths = if joint { [2 * all[0] * total, 0] } else { whole };
                    let positions = size[0] * size[1];
                    Plan {
                        size,
                        logits: CHANNELS.map(|channels| Layout::nchw(channels, positions)),
                        gradients,
                        lengths: [
                            2 * CHANNELS[0] * positions,
                            2 * CHANNELS[1] * positions,
                            lengths[0],
                            lengths[1],
                        ],
                        joint,
                        shared: level > 0,
                    }
                })
                .collect();
            assert!(!is_wrong(&plans));
            run(&plans).expect("a right call");

            let mut wrong = plans.clone();
            wrong[2].gradients[1].offset -= 1;
            assert!(is_wrong(&wrong));
            let error = run(&wrong).expect_err("a place in two levels");
            assert_eq!(
                error.to_string(),
                "level 2: the layout of box_logits' gradient cannot be written to: \
                 some of its elements may be in places of another gradient"
            );
            wrong = plans.clone();
            wrong[0].shared = true;
            assert_eq!(
                run(&wrong).expect_err("no level before").to_string(),
                "level 0: the layout of gradients cannot be written to: \
                 there is no level before with buffers to share"
            );
        }
    }
}
