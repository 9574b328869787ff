//! Shows that boxes are decoded as equations (5) and (10) say, and gradients are their derivatives: five levels at once,
//! every coding, storage type and form of memory, on the CPU and on CUDA, there in one launch and nothing else; that
//! extreme and useless logits give what is promised; and that a wrong call says what is wrong and writes nothing.

mod support;

use gfocal::cuda::Device;
use gfocal::cudarc::driver::{DevicePtr, DevicePtrMut};
use gfocal::decode::{self, Level};
use gfocal::head::{BoxCoding, HeadLoss, Layout, Logits, Points, Targets};
use gfocal::{Element as _, Host, bf16, f16};
use gfocal_reference::integral;
use support::gpu::OnDevice;
use support::head::{Form, as_stored, places};
use support::random::Random;
use support::tolerance::{Want, check_same_bits};
use support::{Buffer, Gpu, Stored, check_elements, gpu};

const CODINGS: [BoxCoding; 5] =
    [BoxCoding::Bins(17), BoxCoding::Bins(2), BoxCoding::Bins(9), BoxCoding::Exp, BoxCoding::Relu];

fn bins(coding: BoxCoding) -> usize {
    HeadLoss::default().with_box_coding(coding).expect("a coding").bins()
}

/// What a level has, before it is stored.
#[derive(Clone)]
struct OfLevel {
    size: [usize; 2],
    stride: f64,
    offset: f64,
    /// Explicit points, of all images or of each.
    points: Option<Vec<f64>>,
    /// `[B, 4K, P]`
    logits: Vec<f64>,
}

impl OfLevel {
    fn positions(&self) -> usize {
        self.size[0] * self.size[1]
    }
}

#[derive(Clone)]
struct Scene {
    coding: BoxCoding,
    batch: usize,
    levels: Vec<OfLevel>,
    /// `[B, A, 4]`
    upstream: Vec<f64>,
}

/// Boxes, and the gradient of each level's logits `[B, 4K, P]`.
struct Outcome<T: Stored> {
    boxes: Vec<T::Loss>,
    grads: Vec<Vec<T>>,
}

impl Scene {
    fn new(coding: BoxCoding, batch: usize, sizes: &[[usize; 2]], seed: u64) -> Scene {
        let mut random = Random::new(seed);
        let channels = 4 * bins(coding);
        let level = |(index, &size): (usize, &[usize; 2])| {
            let positions = size[0] * size[1];
            let explicit = match index {
                1 => 2 * positions,
                2 => 2 * positions * batch,
                _ => 0,
            };
            let points = random.many(explicit, -20.0, 300.0);
            OfLevel {
                size,
                stride: [8.0, 16.0, 32.0, 50.0, 7.5][index],
                offset: if index % 2 == 0 { 0.5 } else { 0.0 },
                points: (explicit > 0).then_some(points),
                logits: random.many(batch * channels * positions, -4.0, 4.0),
            }
        };
        let levels: Vec<_> = sizes.iter().enumerate().map(level).collect();
        let anchors: usize = levels.iter().map(|level| batch * level.positions()).sum();
        Scene { coding, batch, levels, upstream: random.many(4 * anchors, -2.0, 2.0) }
    }

    /// Five levels, none of a round size, and of as many positions as a vector and a tile.
    fn five(coding: BoxCoding) -> Scene {
        Scene::new(coding, 2, &[[5, 14], [8, 4], [5, 3], [1, 4], [1, 1]], 5)
    }

    fn channels(&self) -> usize {
        4 * bins(self.coding)
    }

    /// On what storage leaves.
    fn stored_as<T: Stored>(&self) -> Scene {
        let mut stored = self.clone();
        for logit in stored.levels.iter_mut().flat_map(|level| &mut level.logits) {
            *logit = T::from_f64(*logit).to_f64();
        }
        let points = stored.levels.iter_mut().filter_map(|level| level.points.as_mut()).flatten();
        for beside in points.chain(&mut stored.upstream) {
            *beside = T::Loss::from_f64(*beside).to_f64();
        }
        stored
    }

    /// Layout and places of a level's logits, and the length of their buffer.
    fn place(&self, level: &OfLevel, form: Form) -> (Layout, Vec<usize>, usize) {
        let placement = form.place(self.batch, [3, self.channels()], level.size);
        let len = placement.lengths.unwrap_or_else(|[_, boxes]| boxes);
        (placement.boxes, places(&placement.boxes, self.batch, self.channels(), level.positions()), len)
    }

    /// Each level's buffer: the logits, and `rest` in between.
    fn buffers<T: Stored>(&self, form: Form, rest: T) -> Vec<Vec<T>> {
        let fill = |level: &OfLevel| {
            let (_, places, len) = self.place(level, form);
            let mut buffer = vec![rest; len];
            for (place, &logit) in places.into_iter().zip(&level.logits) {
                buffer[place] = T::from_f64(logit);
            }
            buffer
        };
        self.levels.iter().map(fill).collect()
    }

    /// The gradients out of their buffers, whose rest must be as it was.
    #[track_caller]
    fn grads<T: Stored>(&self, form: Form, buffers: Vec<Vec<T>>, rest: T) -> Vec<Vec<T>> {
        let read = |(level, mut buffer): (&OfLevel, Vec<T>)| {
            let (_, places, _) = self.place(level, form);
            let grad = places.iter().map(|&place| std::mem::replace(&mut buffer[place], rest)).collect();
            assert!(buffer.iter().all(|value| value.bits() == rest.bits()), "written outside of {form:?}");
            grad
        };
        self.levels.iter().zip(buffers).map(read).collect()
    }

    fn level<'a, M: gfocal::Memory, T: Stored>(
        &self,
        level: &OfLevel,
        form: Form,
        logits: M::Slice<'a, T>,
        points: Option<M::Slice<'a, T::Loss>>,
    ) -> Level<'a, M, T> {
        let ([height, width], layout) = (level.size, self.place(level, form).0);
        let points = points.map_or(Points::Grid { offset: level.offset }, Points::Explicit);
        Level { height, width, stride: level.stride, points, logits, layout }
    }

    fn cpu<T: Stored>(&self, form: Form) -> Outcome<T> {
        let nan = T::from_f64(f64::NAN);
        let logits = self.buffers(form, nan);
        let points: Vec<_> =
            self.levels.iter().map(|level| level.points.as_deref().map(as_stored::<T::Loss>)).collect();
        let levels: Vec<Level<Host, T>> = (self.levels.iter().zip(&logits).zip(&points))
            .map(|((level, logits), points)| self.level(level, form, &logits[..], points.as_deref()))
            .collect();
        let mut boxes = vec![T::Loss::from_f64(f64::NAN); self.upstream.len()];
        decode::forward(self.coding, self.batch, &levels, &mut boxes).expect("a legal call");
        let mut grads: Vec<Vec<T>> = logits.iter().map(|logits| vec![nan; logits.len()]).collect();
        let mut slices: Vec<&mut [T]> = grads.iter_mut().map(|grad| &mut grad[..]).collect();
        let upstream = as_stored::<T::Loss>(&self.upstream);
        decode::backward(self.coding, self.batch, &levels, &upstream, &mut slices).expect("a legal call");
        Outcome { boxes, grads: self.grads(form, grads, nan) }
    }

    fn cuda<T: OnDevice>(&self, gpu: &Gpu, form: Form, offset: usize) -> Outcome<T> {
        let rest = T::from_f64(f64::NAN);
        let logits: Vec<_> =
            self.buffers(form, rest).iter().map(|logits| Buffer::new(gpu, logits, offset)).collect();
        let points: Vec<_> = (self.levels.iter())
            .map(|level| {
                level.points.as_ref().map(|points| Buffer::new(gpu, &as_stored::<f32>(points), offset))
            })
            .collect();
        let views: Vec<_> = logits.iter().map(Buffer::view).collect();
        let point_views: Vec<_> = points.iter().map(|points| points.as_ref().map(Buffer::view)).collect();
        let levels: Vec<Level<Device, T>> = (self.levels.iter().zip(&views).zip(&point_views))
            .map(|((level, logits), points)| {
                let points = points.as_ref().map(|points| points as &dyn DevicePtr<f32>);
                self.level(level, form, logits as &dyn DevicePtr<T>, points)
            })
            .collect();
        let upstream = Buffer::new(gpu, &as_stored::<f32>(&self.upstream), offset);
        let mut boxes = Buffer::<f32>::poisoned(gpu, self.upstream.len(), offset);
        let mut grads: Vec<_> =
            logits.iter().map(|logits| Buffer::new(gpu, &vec![rest; logits.view().len()], offset)).collect();
        gpu.handle.prepare(decode::units()).expect("the kernels load");
        let before = gpu.emulator.map(|emulator| emulator.counters());
        decode::forward_cuda(&gpu.handle, self.coding, self.batch, &levels, &mut boxes.view_mut())
            .expect("a legal call");
        let mut grad_views: Vec<_> = grads.iter_mut().map(Buffer::view_mut).collect();
        let mut slices: Vec<_> = grad_views.iter_mut().map(|grad| grad as &mut dyn DevicePtrMut<T>).collect();
        decode::backward_cuda(&gpu.handle, self.coding, self.batch, &levels, &upstream.view(), &mut slices)
            .expect("a legal call");
        if let (Some(emulator), Some(before)) = (gpu.emulator, before) {
            let spent = emulator.counters().since(&before);
            let launches = if self.upstream.is_empty() { 0 } else { 2 };
            let counts = (spent.allocations, spent.frees, spent.waits, spent.copies_to_host, spent.launches);
            assert_eq!(counts, (0, 0, 0, 0, launches), "allocations, frees, waits, copies, launches");
        }
        let grads = grads.iter().map(|grad| grad.read(gpu)).collect();
        // Boxes of f32, f16 and bf16 are f32.
        let boxes = boxes.read(gpu).iter().map(|&value| T::Loss::from_f64(value.into())).collect();
        Outcome { boxes, grads: self.grads(form, grads, rest) }
    }

    /// Equations (5) and (10).
    fn expect(&self) -> (Vec<Option<Want>>, Vec<Vec<Option<Want>>>) {
        let bins = bins(self.coding);
        let mut boxes = Vec::new();
        let mut grads: Vec<Vec<_>> = self.levels.iter().map(|level| vec![None; level.logits.len()]).collect();
        for image in 0..self.batch {
            for (level, grad) in self.levels.iter().zip(&mut grads) {
                let positions = level.positions();
                for position in 0..positions {
                    for side in 0..4 {
                        let element = |bin| ((image * 4 + side) * bins + bin) * positions + position;
                        let z: Vec<f64> = (0..bins).map(|bin| level.logits[element(bin)]).collect();
                        let (e, slopes) = match self.coding {
                            _ if !z.iter().all(|z| z.is_finite()) => (f64::NAN, vec![f64::NAN; bins]),
                            BoxCoding::Bins(_) => integral(&z),
                            BoxCoding::Exp => (z[0].exp(), vec![z[0].exp()]),
                            BoxCoding::Relu => (z[0].max(0.0), vec![if z[0] > 0.0 { 1.0 } else { 0.0 }]),
                        };
                        let way = if side < 2 { -level.stride } else { level.stride };
                        let point = match &level.points {
                            Some(points) => {
                                let of_batch = points.len() > 2 * positions;
                                let row = if of_batch { image * positions + position } else { position };
                                points[2 * row + side % 2]
                            }
                            None => {
                                let at = [position % level.size[1], position / level.size[1]][side % 2];
                                (at as f64 + level.offset) * level.stride
                            }
                        };
                        let upstream = self.upstream[boxes.len()];
                        for (bin, slope) in slopes.into_iter().enumerate() {
                            grad[element(bin)] = Some(Want::new(slope, way * upstream, true));
                        }
                        let magnitude = point.abs() + level.stride * e;
                        let value = point + way * e;
                        boxes.push(Some(Want { value, magnitude, scale: level.stride, cancels: false }));
                    }
                }
            }
        }
        (boxes, grads)
    }

    #[track_caller]
    fn check<T: Stored>(&self, what: &str, got: &Outcome<T>) {
        let (boxes, grads) = self.stored_as::<T>().expect();
        let what = format!("{:?} of {what} in {}", self.coding, T::NAME);
        check_elements(&format!("boxes: {what}"), &got.boxes, &boxes);
        for (level, (got, want)) in got.grads.iter().zip(&grads).enumerate() {
            check_elements(&format!("gradient of level {level}: {what}"), got, want);
        }
    }

    fn check_cpu<T: Stored>(&self, form: Form) {
        self.check(&format!("{form:?} on the CPU"), &self.cpu::<T>(form));
    }

    fn check_cuda<T: OnDevice>(&self, gpu: &Gpu, form: Form, offset: usize) {
        self.check(&format!("{form:?} on CUDA"), &self.cuda::<T>(gpu, form, offset));
    }
}

#[test]
fn five_levels_on_the_cpu() {
    for coding in CODINGS {
        let scene = Scene::five(coding);
        for form in Form::ALL {
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
        for (offset, form) in Form::ALL.into_iter().enumerate() {
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
    for (coding, form) in [(BoxCoding::Bins(16), Form::Nchw), (BoxCoding::Exp, Form::Scattered)] {
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
        let level = &mut scene.levels[0];
        let each = bins * level.positions();
        level.logits.iter_mut().enumerate().for_each(|(i, logit)| *logit += 150.0 * (i / each % 4) as f64);
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
                    moved.levels[level].logits[element] += step;
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
        let (bins, positions) = (bins(coding), scene.levels[0].positions());
        let logits = &mut scene.levels[0].logits;
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
            // Signs stay; some are 0, huge and tiny. Not where exp is huge as well.
            *upstream *= [1.0, 0.0, 1e20, 1e-20][if at > 360 { at / 4 % 4 } else { 0 }];
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

/// Levels that interleave in one tensor, `[B, 4K, A]`, and what a level of the head loss has.
#[test]
fn levels_of_one_tensor() {
    let coding = BoxCoding::Bins(4);
    let mut scene = Scene::new(coding, 2, &[[2, 3], [1, 4]], 3);
    scene.levels[1].points = None;
    let want = scene.cpu::<f32>(Form::Nchw).boxes;
    let mut all = vec![0.0f32; 2 * 16 * 10];
    let layouts = [0, 6].map(|first| Layout { offset: first, ..Layout::nchw(16, 10) });
    for (level, layout) in scene.levels.iter().zip(&layouts) {
        let places = places(layout, 2, 16, level.positions());
        places.iter().zip(&level.logits).for_each(|(&place, &z)| all[place] = z as f32);
    }
    let levels: Vec<Level<Host, f32>> = (scene.levels.iter().zip(layouts))
        .map(|(level, layout)| Level {
            layout,
            ..scene.level::<Host, f32>(level, Form::Nchw, &all[..], None)
        })
        .collect();
    let mut boxes = vec![f32::NAN; want.len()];
    decode::forward(coding, 2, &levels, &mut boxes).expect("a legal call");
    check_same_bits("levels of one tensor", &boxes, &want);

    // As levels of a head have them.
    let of_head = levels.iter().map(|level| gfocal::head::Level {
        height: level.height,
        width: level.width,
        stride: level.stride,
        points: level.points,
        logits: Logits::Joint(level.logits),
        cls_layout: level.layout,
        box_layout: level.layout,
        targets: Targets::new((&[] as &[i64]).into(), &[][..]),
    });
    let levels: Vec<Level<Host, f32>> = of_head.map(|level| Level::from(&level)).collect();
    boxes.fill(f32::NAN);
    decode::forward(coding, 2, &levels, &mut boxes).expect("a legal call");
    check_same_bits("levels of a head", &boxes, &want);
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
    let cases: [Wrong; 12] = [
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
            "the step of rows is 7, it must be the width times the step from one position to the next: rows follow each \
             other in decoding",
            two,
            vec![Level { layout: level.layout.with_rows(level.width, 7), ..level }],
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
        let error = decode::backward(coding, 2, &levels, &boxes, &mut slices).expect_err("a wrong call");
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
        let error = decode::backward_cuda(&gpu.handle, coding, 2, &levels, &out.view(), &mut grads);
        assert_eq!(error.expect_err("a wrong call").to_string(), words("upstream"));
    }
    let mut boxes = [0.0f32; 48];
    let error = decode::backward(two, 2, &[level], &boxes, &mut []).expect_err("a wrong call");
    assert_eq!(error.to_string(), "gradients has 0 elements, these levels need 1");
    let mut short = vec![0.0f32; 95];
    let error = decode::backward(two, 2, &[level], &boxes, &mut [&mut short]).expect_err("a wrong call");
    assert!(error.to_string().starts_with("level 0: box_logits has 95 elements"), "{error}");
    decode::forward(two, 2, &[level], &mut boxes).expect("a legal call");
}
