//! Shows that boxes are decoded as equations (5) and (10) say, and gradients are their derivatives: five levels at once,
//! every coding, storage type and form of memory, on the CPU and on CUDA, there in one launch and nothing else; that
//! extreme and useless logits give what is promised, and one gradient that overflows sets the flag; and that a wrong call
//! says what is wrong and writes nothing.

use gfocal::cuda::Device;
use gfocal::cudarc::driver::{DevicePtr, DevicePtrMut};
use gfocal::decode::{self, Level};
use gfocal::head::{BoxCoding, Layout, Points};
use gfocal::{Host, bf16, f16};
use support::decode::{Outcome, Scene};
use support::gpu::OnDevice;
use support::head::{Form, LevelScene, PointsAt, places};
use support::tolerance::check_same_bits;
use support::{Buffer, check_alone, gpu, nearly_most};

const CODINGS: [BoxCoding; 5] =
    [BoxCoding::Bins(17), BoxCoding::Bins(2), BoxCoding::Bins(9), BoxCoding::Exp, BoxCoding::Relu];

const FORMS: [Form; 8] = {
    let ([a, b, c, d, e], [f, g, h]) = (Form::ALL, Form::ROWS);
    [a, b, c, d, e, f, g, h]
};

#[test]
fn five_levels_on_the_cpu() {
    for coding in CODINGS {
        let scene = Scene::five(coding);
        for form in FORMS {
            scene.check_cpu::<f64>(form);
            scene.check_cpu::<f32>(form);
            scene.check_cpu::<f16>(form);
            scene.check_cpu::<bf16>(form);
        }
    }
}

#[test]
fn five_levels_on_cuda() {
    let Some(gpu) = gpu() else { return };
    for coding in CODINGS {
        let scene = Scene::five(coding);
        for (offset, form) in FORMS.into_iter().enumerate() {
            scene.check_cuda::<f32>(&gpu, form, offset);
            scene.check_cuda::<f16>(&gpu, form, offset);
            scene.check_cuda::<bf16>(&gpu, form, offset);
        }
    }
}

/// Enough for all threads, and for more blocks than there are at once.
#[test]
fn many_positions() {
    let gpu = gpu();
    let bins = BoxCoding::Bins(16);
    for (coding, form) in [(bins, Form::Nchw), (bins, Form::Crop), (BoxCoding::Exp, Form::Scattered)] {
        let scene = Scene::new(coding, 2, &[[31, 29], [17, 20]], 7);
        let of = |threads: usize| -> Outcome<f32> {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
            pool.install(|| scene.cpu(form))
        };
        let first = of(1);
        scene.check("one thread", &first);
        for threads in [2, 5] {
            let got = of(threads);
            check_same_bits("boxes", &got.boxes, &first.boxes);
            got.grads.iter().zip(&first.grads).for_each(|(got, first)| check_same_bits("grad", got, first));
        }
        if let Some(gpu) = &gpu {
            scene.check_cuda::<f32>(gpu, form, 0);
        }
    }
}

/// More bins than the CPU computes in f32.
#[test]
fn many_bins() {
    let scene = Scene::new(BoxCoding::Bins(200), 1, &[[3, 6]], 13);
    scene.check_cpu::<f32>(Form::Nchw);
    scene.check_cpu::<f16>(Form::JointLast);
    if let Some(gpu) = gpu() {
        scene.check_cuda::<f16>(&gpu, Form::ChannelsLast, 0);
    }
}

/// However many bins a side has, it is none of the next one's, all of which are far above.
#[test]
fn sides_far_apart() {
    let Some(gpu) = gpu() else { return };
    for bins in (2..11).chain(16..20) {
        let mut scene = Scene::new(BoxCoding::Bins(bins), 2, &[[3, 6]], 14);
        let level = &mut scene.of.levels[0];
        let each = bins * level.positions();
        level.boxes.iter_mut().enumerate().for_each(|(i, logit)| *logit += 150.0 * (i / each % 4) as f64);
        for form in [Form::Nchw, Form::ChannelsLast] {
            scene.check_cuda::<f32>(&gpu, form, 0);
            scene.check_cuda::<f16>(&gpu, form, 0);
            scene.check_cuda::<bf16>(&gpu, form, 0);
        }
    }
}

/// Gradients are derivatives: central differences in f64.
#[test]
fn central_differences() {
    const STEP: f64 = 1e-5;
    for coding in CODINGS {
        let scene = Scene::new(coding, 2, &[[2, 3], [1, 2]], 11);
        let sum = |scene: &Scene| -> f64 {
            let boxes = scene.cpu::<f64>(Form::Joint).boxes;
            boxes.iter().zip(&scene.upstream).map(|(value, upstream)| value * upstream).sum()
        };
        let grads = scene.cpu::<f64>(Form::Joint).grads;
        for (level, grad) in grads.iter().enumerate() {
            for (element, &slope) in grad.iter().enumerate() {
                let [above, below] = [STEP, -STEP].map(|step| {
                    let mut moved = scene.clone();
                    moved.of.levels[level].boxes[element] += step;
                    sum(&moved)
                });
                let difference = (above - below) / (2.0 * STEP);
                let error = (difference - slope).abs();
                assert!(error <= 1e-5 * slope.abs().max(1.0), "{coding:?}: {slope} is {difference}");
            }
        }
    }
}

/// A bin that has nearly all, logits that overflow or are no numbers, and gradients that f32 has no room for.
#[test]
fn extremes() {
    let gpu = gpu();
    for coding in CODINGS {
        let mut scene = Scene::five(coding);
        let (bins, positions) = (scene.of.box_channels() / 4, scene.of.levels[0].positions());
        let logits = &mut scene.of.levels[0].boxes;
        // Of the first image, a side each.
        for (position, extreme) in
            [30.0, -30.0, 80.0, -200.0, 3e38, f64::INFINITY, f64::NEG_INFINITY, f64::NAN]
                .into_iter()
                .enumerate()
        {
            for side in 0..4 {
                logits[(side * bins + side % bins) * positions + 3 * position] = extreme;
            }
        }
        for (at, upstream) in scene.upstream.iter_mut().enumerate() {
            // Signs stay; some are 0, huge and tiny. Where exp is huge as well, none but 0.
            *upstream *= [1.0, 0.0, 1e20, 1e-20][if at > 360 { at / 4 % 4 } else { at % 2 }];
        }
        for form in [Form::Nchw, Form::JointLast] {
            scene.check_cpu::<f64>(form);
            scene.check_cpu::<f32>(form);
            if let Some(gpu) = &gpu {
                scene.check_cuda::<f32>(gpu, form, 0);
            }
        }
    }
}

/// One gradient that overflows, on each side, wherever it is of a level, a vector and a tile.
fn alone<T: OnDevice>() {
    let gpu = gpu();
    for (coding, quiet, loud) in [(BoxCoding::Bins(17), 0.0, 16f64.ln()), (BoxCoding::Exp, -3.0, 1.0)] {
        let mut scene = Scene::new(coding, 1, &[[3, 22], [2, 3]], 17);
        let channels = scene.of.box_channels();
        for level in &mut scene.of.levels {
            (level.stride, level.boxes) = (8.0, vec![quiet; level.boxes.len()]);
        }
        scene.upstream.fill(0.9 / 8.0 * nearly_most::<T>());
        for (level, position) in [(0, 0), (0, 20), (0, 21), (0, 65), (1, 4)] {
            let positions = scene.of.levels[level].positions();
            for channel in [0, channels / 4 + 3, channels / 2, channels - 1].map(|channel| channel % channels)
            {
                let at = channel * positions + position;
                scene.of.levels[level].boxes[at] = loud;
                for form in [Form::Nchw, Form::ChannelsLast, Form::Crop, Form::Scattered] {
                    let what = format!("{coding:?} in {form:?}, level {level}, position {position}");
                    let got = scene.cpu::<T>(form);
                    check_alone(&what, &got.grads[level], at, got.found_inf);
                    if let Some(gpu) = &gpu {
                        let got = scene.cuda::<T>(gpu, form, 1);
                        check_alone(&what, &got.grads[level], at, got.found_inf);
                    }
                }
                scene.of.levels[level].boxes[at] = quiet;
            }
        }
    }
}

#[test]
fn one_gradient_that_overflows() {
    alone::<f32>();
    alone::<f16>();
    alone::<bf16>();
}

#[test]
fn nothing_of_nothing() {
    let gpu = gpu();
    for (batch, size) in [(0, [3, 2]), (2, [0, 2])] {
        let scene = Scene::new(BoxCoding::Bins(4), batch, &[size], 1);
        scene.check_cpu::<f32>(Form::Nchw);
        if let Some(gpu) = &gpu {
            scene.check_cuda::<f32>(gpu, Form::Nchw, 0);
        }
    }
}

/// Levels that interleave in one tensor, `[B, 4K, A]`.
#[test]
fn levels_of_one_tensor() {
    let coding = BoxCoding::Bins(4);
    let mut scene = Scene::new(coding, 2, &[[2, 3], [1, 4]], 3);
    scene.of.levels[1].points = PointsAt::Grid(0.0);
    let want = scene.cpu::<f32>(Form::Nchw).boxes;
    let mut all = vec![0.0f32; 2 * 16 * 10];
    let layouts = [0, 6].map(|first| Layout { offset: first, ..Layout::nchw(16, 10) });
    for (level, layout) in scene.of.levels.iter().zip(&layouts) {
        let places = places(layout, 2, 16, level.positions());
        places.iter().zip(&level.boxes).for_each(|(&place, &z)| all[place] = z as f32);
    }
    let level = |(of, layout): (&LevelScene, Layout)| -> Level<Host, f32> {
        let &LevelScene { height, width, stride, points: PointsAt::Grid(offset), .. } = of else {
            panic!("a grid")
        };
        Level { height, width, stride, points: Points::Grid { offset }, logits: &all, layout }
    };
    let levels: Vec<_> = scene.of.levels.iter().zip(layouts).map(level).collect();
    let mut boxes = vec![f32::NAN; want.len()];
    decode::forward(coding, 2, &levels, &mut boxes).expect("a legal call");
    check_same_bits("levels of one tensor", &boxes, &want);
}

/// What is wrong with a call, in words; and that nothing was written.
#[test]
fn wrong_calls() {
    let logits = vec![0.0f32; 2 * 8 * 6];
    let points = [0.0f32; 7];
    let level = Level::<Host, f32> {
        height: 2,
        width: 3,
        stride: 8.0,
        points: Points::Grid { offset: 0.5 },
        logits: &logits,
        layout: Layout::nchw(8, 6),
    };
    let (two, none) = (BoxCoding::Bins(2), BoxCoding::Exp);
    let overlapping = Layout { channel: 1, position: 1, ..level.layout };
    type Wrong<'a> = (&'a str, BoxCoding, Vec<Level<'a, Host, f32>>, usize);
    let cases: [Wrong; 13] = [
        ("0 levels, there must be 1 to 8", two, vec![], 48),
        ("9 levels, there must be 1 to 8", two, vec![level; 9], 48),
        ("bins is 1, it must be from 2 to 1024", BoxCoding::Bins(1), vec![level], 48),
        ("BOXES has 47 elements, these levels need 48", two, vec![level], 47),
        ("stride is 0, it must be a finite number above 0", two, vec![Level { stride: 0.0, ..level }], 48),
        (
            "the offset of the anchor points is inf, it must be a finite number",
            two,
            vec![Level { points: Points::Grid { offset: f64::INFINITY }, ..level }],
            48,
        ),
        (
            "level 1: points has 7 elements, 2 images of 6 positions need 24",
            two,
            vec![level, Level { points: Points::Explicit(&points[..]), ..level }],
            96,
        ),
        (
            "level 0: box_logits has 95 elements, Layout { offset: 0, batch: 48, channel: 6, position: 1 } needs 96",
            two,
            vec![Level { logits: &logits[1..], ..level }],
            48,
        ),
        (
            "level 0: box_logits has 95 elements, Layout { offset: 0, batch: 48, channel: 16, position: 1 } needs 102",
            none,
            vec![Level { logits: &logits[1..], layout: Layout { channel: 16, ..level.layout }, ..level }],
            48,
        ),
        (
            "logits [9223372036854775807, 2] has more elements than memory can address",
            two,
            vec![Level { height: isize::MAX as usize, width: 2, ..level }],
            48,
        ),
        (
            "level 0: the layout of box_logits cannot be written to: some of its elements may be in the same place",
            two,
            vec![Level { layout: overlapping, ..level }],
            48,
        ),
        (
            "level 0: rows of box_logits have 2 positions, those of the level 3",
            two,
            vec![Level { layout: level.layout.with_rows(2, 4), ..level }],
            48,
        ),
        (
            "level 0: box_logits has 96 elements, Layout { offset: 0, batch: 48, channel: 6, position: 1, rows: Rows { \
             width: 3, step: 4 } } needs 97",
            two,
            vec![Level { layout: level.layout.with_rows(3, 4), ..level }],
            48,
        ),
    ];
    let gpu = gpu();
    for (words, coding, levels, coordinates) in cases {
        let words = |tensor: &str| words.replace("BOXES", tensor);
        let is_of_gradients = words("").contains("written");
        let mut boxes = vec![7.0f32; coordinates];
        if !is_of_gradients {
            let error = decode::forward(coding, 2, &levels, &mut boxes).expect_err("a wrong call");
            assert_eq!(error.to_string(), words("boxes"));
        }
        let mut grads: Vec<_> = levels.iter().map(|level| vec![7.0f32; level.logits.len()]).collect();
        let mut slices: Vec<&mut [f32]> = grads.iter_mut().map(|grad| &mut grad[..]).collect();
        let error =
            decode::backward(coding, 2, &levels, &boxes, &mut slices, None).expect_err("a wrong call");
        assert_eq!(error.to_string(), words("upstream"));
        assert!(grads.iter().flatten().chain(&boxes).all(|&value| value == 7.0), "something was written");

        let Some(gpu) = &gpu else { continue };
        let buffers: Vec<_> = levels.iter().map(|level| Buffer::new(gpu, level.logits, 0)).collect();
        let views: Vec<_> = buffers.iter().map(Buffer::view).collect();
        let on_device = |(level, view): (&Level<Host, f32>, _)| Level {
            height: level.height,
            width: level.width,
            stride: level.stride,
            points: match level.points {
                Points::Grid { offset } => Points::Grid { offset },
                Points::Explicit(_) => Points::Explicit(view),
            },
            logits: view,
            layout: level.layout,
        };
        let views = views.iter().map(|view| view as &dyn DevicePtr<f32>);
        let levels: Vec<Level<Device, f32>> = levels.iter().zip(views).map(on_device).collect();
        let words = |tensor| words(tensor).replace("points has 7", "points has 96");
        let mut out = Buffer::new(gpu, &boxes, 0);
        if !is_of_gradients {
            let error = decode::forward_cuda(&gpu.handle, coding, 2, &levels, &mut out.view_mut());
            assert_eq!(error.expect_err("a wrong call").to_string(), words("boxes"));
        }
        let mut grads: Vec<_> = grads.iter().map(|grad| Buffer::new(gpu, grad, 0)).collect();
        let mut grads: Vec<_> = grads.iter_mut().map(Buffer::view_mut).collect();
        let mut grads: Vec<_> = grads.iter_mut().map(|grad| grad as &mut dyn DevicePtrMut<f32>).collect();
        let error = decode::backward_cuda(&gpu.handle, coding, 2, &levels, &out.view(), &mut grads, None);
        assert_eq!(error.expect_err("a wrong call").to_string(), words("upstream"));
    }
    let mut boxes = [0.0f32; 48];
    let error = decode::backward(two, 2, &[level], &boxes, &mut [], None).expect_err("a wrong call");
    assert_eq!(error.to_string(), "gradients has 0 elements, these levels need 1");
    let mut short = vec![0.0f32; 95];
    let error =
        decode::backward(two, 2, &[level], &boxes, &mut [&mut short], None).expect_err("a wrong call");
    assert!(error.to_string().starts_with("level 0: box_logits has 95 elements"), "{error}");
    let (mut whole, mut flags) = (vec![0.0f32; 96], [0.0; 2]);
    let call = decode::backward(two, 2, &[level], &boxes, &mut [&mut whole], Some(&mut flags));
    let words = "found_inf has 2 elements, these levels need 1";
    assert_eq!(call.expect_err("a wrong call").to_string(), words);
    decode::forward(two, 2, &[level], &mut boxes).expect("a legal call");
}
