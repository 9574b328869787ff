//! Decoding: its scenes are heads without classes.

use gfocal::decode::{self, Level};
use gfocal::head::BoxCoding;
use gfocal::{Element as _, Host};
use gfocal_reference::box_around;

use super::case::Pass;
use super::gpu::{Buffer, Gpu, OnDevice};
use super::head::cuda::OnCuda;
use super::head::scenes::Recipe;
use super::head::{
    self, Buffers, FLAG_BEFORE, Form, GRAD_BEFORE, LevelScene, PointsAt, Profile, Settings, as_stored,
};
use super::random::Random;
use super::tolerance::{Stored, Want, check_elements};

/// A head without classes, and the gradient with respect to its boxes, `[B, A, 4]`.
#[derive(Clone)]
pub struct Scene {
    pub of: head::Scene,
    pub upstream: Vec<f64>,
}

/// Boxes, and the gradient of each level's logits `[B, 4K, P]`.
pub struct Outcome<T: Stored> {
    pub boxes: Vec<T::Loss>,
    pub grads: Vec<Vec<T>>,
    pub found_inf: f32,
}

impl Scene {
    pub fn new(coding: BoxCoding, batch: usize, sizes: &[[usize; 2]], seed: u64) -> Scene {
        let mut random = Random::new(seed);
        let settings = Settings::of(Profile::Mmdetection).with_coding(coding);
        let recipe = Recipe { batch, classes: 0, sizes: vec![], ..Recipe::new(settings) };
        let mut of = recipe.scene(&mut random);
        for (index, &[height, width]) in sizes.iter().enumerate() {
            let positions = height * width;
            let points = match index {
                1 => 2 * positions,
                2 => 2 * positions * batch,
                _ => 0,
            };
            of.levels.push(LevelScene {
                height,
                width,
                stride: [8.0, 16.0, 32.0, 50.0, 7.5][index],
                points: match random.many(points, -20.0, 300.0) {
                    points if points.is_empty() => PointsAt::Grid([0.5, 0.0][index % 2]),
                    points => PointsAt::Explicit(points),
                },
                boxes: random.many(batch * of.box_channels() * positions, -4.0, 4.0),
                ..LevelScene::default()
            });
        }
        let anchors: usize = of.levels.iter().map(|level| batch * level.positions()).sum();
        Scene { of, upstream: random.many(4 * anchors, -2.0, 2.0) }
    }

    /// Five levels, none of a round size, and of as many positions as a vector and a tile; a row has more than a vector.
    pub fn five(coding: BoxCoding) -> Scene {
        Scene::new(coding, 2, &[[4, 19], [8, 4], [5, 3], [1, 4], [1, 1]], 5)
    }

    fn coding(&self) -> BoxCoding {
        self.of.settings.coding()
    }

    pub fn cpu<T: Stored>(&self, form: Form) -> Outcome<T> {
        let filled = |level| Buffers::<T>::filled(&self.of, level, form, GRAD_BEFORE);
        let mut grads: Vec<Buffers<T>> = self.of.levels.iter().map(filled).collect();
        let of_boxes =
            grads.iter_mut().map(|Buffers { cls, boxes, .. }| &mut boxes.as_mut().unwrap_or(cls)[..]);
        let mut of_boxes: Vec<&mut [T]> = of_boxes.collect();
        let upstream = as_stored::<T::Loss>(&self.upstream);
        let (coding, batch) = (self.coding(), self.of.batch);
        let (mut boxes, mut flag) = (vec![T::Loss::from_f64(f64::NAN); self.upstream.len()], [FLAG_BEFORE]);
        head::cpu::with_levels::<T, T, _>(&self.of, form, |levels| {
            let levels: Vec<Level<Host, T>> = levels.iter().map(Level::from).collect();
            decode::forward(coding, batch, &levels, &mut boxes)?;
            decode::backward(coding, batch, &levels, &upstream, &mut of_boxes, Some(&mut flag))
        })
        .expect("legal calls");
        let grads = grads.iter().map(|grads| grads.read(GRAD_BEFORE).1).collect();
        Outcome { boxes, grads, found_inf: flag[0] }
    }

    pub fn cuda<T: OnDevice>(&self, gpu: &Gpu, form: Form, offset: usize) -> Outcome<T> {
        let mut head = OnCuda::<T>::new(gpu, &self.of, form, offset);
        let upstream = Buffer::new(gpu, &as_stored::<f32>(&self.upstream), offset);
        let mut boxes = Buffer::<f32>::poisoned(gpu, self.upstream.len(), offset);
        gpu.handle.prepare(decode::units()).expect("the kernels load");
        let launches = if self.upstream.is_empty() { 0 } else { 2 };
        gpu.enqueued(launches, || head.decode(gpu, &self.of, &mut boxes, &upstream)).expect("legal calls");
        let head::Outcome { grads, found_inf, .. } = head.outcome(gpu, &self.of, Pass::Backward);
        Outcome {
            // Boxes of f32, f16 and bf16 are f32.
            boxes: boxes.read(gpu).iter().map(|&value| T::Loss::from_f64(value.into())).collect(),
            grads: grads.into_iter().map(|[_, boxes]| boxes).collect(),
            found_inf,
        }
    }

    /// Equations (5) and (10), of what storage leaves.
    fn expect<T: Stored>(&self) -> (Vec<Option<Want>>, Vec<Vec<Option<Want>>>) {
        let scene = self.of.stored_as::<T>();
        let channels = scene.box_channels();
        let mut boxes = Vec::new();
        let mut grads: Vec<_> = scene.levels.iter().map(|level| vec![None; level.boxes.len()]).collect();
        for image in 0..scene.batch {
            for (level, grad) in scene.levels.iter().zip(&mut grads) {
                let positions = level.positions();
                for position in 0..positions {
                    let sides = scene.sides(level, image, position).map(|z| scene.distance(&z));
                    let point = scene.point(level, image * positions + position).map(|at| at * level.stride);
                    let distances = [0, 1, 2, 3].map(|side| level.stride * sides[side].0);
                    let corners = box_around(point, distances);
                    // How a box depends on its distances: each coordinate on one.
                    let ways = box_around([0.0; 2], [level.stride; 4]);
                    for (side, (_, slopes)) in sides.into_iter().enumerate() {
                        let upstream = T::Loss::from_f64(self.upstream[boxes.len()]).to_f64();
                        for (bin, slope) in slopes.iter().enumerate() {
                            let channel = side * channels / 4 + bin;
                            // An exponential without end, times 0, is 0.
                            let slope = if upstream == 0.0 && !slope.is_nan() { 0.0 } else { *slope };
                            grad[(image * channels + channel) * positions + position] =
                                Some(Want::new(slope, ways[side] * upstream, true));
                        }
                        let magnitude = point[side % 2].abs() + distances[side];
                        boxes.push(Some(Want {
                            value: corners[side],
                            magnitude,
                            scale: level.stride,
                            cancels: false,
                        }));
                    }
                }
            }
        }
        (boxes, grads)
    }

    #[track_caller]
    pub fn check<T: Stored>(&self, what: &str, got: &Outcome<T>) {
        let (boxes, grads) = self.expect::<T>();
        let what = format!("{:?} of {what} in {}", self.coding(), T::NAME);
        check_elements(&format!("boxes: {what}"), &got.boxes, &boxes);
        for (level, (got, want)) in got.grads.iter().zip(&grads).enumerate() {
            check_elements(&format!("gradient of level {level}: {what}"), got, want);
        }
        let raised = got.grads.iter().flatten().any(|grad| !grad.to_f64().is_finite());
        assert_eq!(got.found_inf, if raised { 1.0 } else { FLAG_BEFORE }, "found_inf: {what}");
    }

    pub fn check_cpu<T: Stored>(&self, form: Form) {
        self.check(&format!("{form:?} on the CPU"), &self.cpu::<T>(form));
    }

    pub fn check_cuda<T: OnDevice>(&self, gpu: &Gpu, form: Form, offset: usize) {
        self.check(&format!("{form:?} on CUDA"), &self.cuda::<T>(gpu, form, offset));
    }
}
