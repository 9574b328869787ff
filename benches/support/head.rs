//! The head loss: a training step with mmdetection's options, from the raw outputs of all levels.

use std::cell::LazyCell;

use criterion::{BenchmarkId, Criterion, Throughput};
use gfocal::head::{Gradients, LOSSES, Layout, Level, Logits, Points, Targets};
use gfocal::{Element, HeadLoss, Host, Memory};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::{BINS, CLASSES};

/// Images of a batch.
pub const IMAGES: [usize; 3] = [1, 4, LARGEST_IMAGES];
pub const LARGEST_IMAGES: usize = 16;
/// Height, width and stride of the levels of an image of COCO, of 800x1333 pixels.
const LEVELS: [(usize, usize, f64); 5] =
    [(100, 167, 8.0), (50, 84, 16.0), (25, 42, 32.0), (13, 21, 64.0), (7, 11, 128.0)];
const BOX_CHANNELS: usize = 4 * BINS;
/// Each so many anchors of a level there is a positive.
const POSITIVE: usize = 200;

/// The tensors of a batch.
pub struct Inputs<T> {
    pub images: usize,
    pub levels: Vec<LevelInputs<T>>,
}

/// Those of a level, each `[images, ...]`.
pub struct LevelInputs<T> {
    pub at: usize,
    pub cls: Vec<T>,
    pub boxes: Vec<T>,
    pub labels: Vec<i64>,
    pub targets: Vec<f32>,
}

impl<T: Element> Inputs<T> {
    pub fn random(images: usize) -> Self {
        let mut rng = StdRng::seed_from_u64(13);
        let levels = (0..LEVELS.len()).map(|at| LevelInputs::random(&mut rng, images, at)).collect();
        Inputs { images, levels }
    }

    fn on_host(&self) -> Vec<Level<'_, Host, T>> {
        self.levels.iter().map(LevelInputs::on_host).collect()
    }

    /// Memory for the gradients.
    fn gradients(&self) -> Vec<[Vec<T>; 2]> {
        self.levels.iter().map(|level| [level.cls.clone(), level.boxes.clone()]).collect()
    }
}

impl<T: Element> LevelInputs<T> {
    /// Logits as at the start of training; a positive is in the middle of its box.
    fn random(rng: &mut StdRng, images: usize, at: usize) -> Self {
        let (height, width, stride) = LEVELS[at];
        let anchors = images * height * width;
        let mut logits = |count, range: std::ops::Range<f64>| -> Vec<T> {
            (0..count).map(|_| T::from_f64(rng.random_range(range.clone()))).collect()
        };
        let cls = logits(anchors * CLASSES, -6.6..-2.6);
        let boxes = logits(anchors * BOX_CHANNELS, -2.0..2.0);
        let (mut labels, mut targets) = (vec![CLASSES as i64; anchors], vec![0.0; 4 * anchors]);
        for _ in 0..anchors.div_ceil(POSITIVE) {
            let anchor = rng.random_range(0..anchors);
            labels[anchor] = rng.random_range(0..CLASSES as i64);
            let position = anchor % (height * width);
            let [x, y] = [position % width, position / width].map(|steps| steps as f64);
            let [half_width, half_height] = [(); 2].map(|()| rng.random_range(2.0..8.0));
            let corners = [x - half_width, y - half_height, x + half_width, y + half_height];
            targets[4 * anchor..][..4].copy_from_slice(&corners.map(|corner| (corner * stride) as f32));
        }
        LevelInputs { at, cls, boxes, labels, targets }
    }

    fn on_host(&self) -> Level<'_, Host, T> {
        let logits = Logits::Separate { cls: &self.cls[..], boxes: &self.boxes[..] };
        let labels = self.labels[..].into();
        level(self.at, logits, Targets::new(labels, &self.targets[..]))
    }
}

/// A level of logits as convolutions give them.
pub fn level<'a, M: Memory, T: Element>(
    at: usize,
    logits: Logits<'a, M, T>,
    targets: Targets<'a, M>,
) -> Level<'a, M, T> {
    let (height, width, stride) = LEVELS[at];
    Level {
        height,
        width,
        stride,
        points: Points::Grid { offset: 0.0 },
        logits,
        cls_layout: Layout::nchw(CLASSES, height * width),
        box_layout: Layout::nchw(BOX_CHANNELS, height * width),
        targets,
    }
}

/// Anchors of all levels.
pub fn anchors(images: usize) -> usize {
    images * LEVELS.iter().map(|(height, width, _)| height * width).sum::<usize>()
}

/// What is read of so many images, and what is written besides: class logits, labels, box logits and targets of
/// positives; both gradients.
pub fn bytes<T>(images: usize) -> [usize; 2] {
    let anchors = anchors(images);
    let positives = anchors / POSITIVE;
    let read = anchors * (CLASSES * size_of::<T>() + 8) + positives * (BOX_CHANNELS * size_of::<T>() + 16);
    [read, anchors * (CLASSES + BOX_CHANNELS) * size_of::<T>()]
}

/// The forward pass, and losses and gradients. The inputs are made when the first of them is run.
pub fn bench<T: Element>(c: &mut Criterion, dtype: &str, images: usize) {
    let head = HeadLoss::mmdetection();
    let zero = T::Loss::from_f64(0.0);
    let mut losses = vec![zero; LOSSES * LEVELS.len()];
    let inputs = LazyCell::new(|| {
        let inputs = Inputs::<T>::random(images);
        let levels = inputs.on_host();
        let [mut once, mut both] = [(); 2].map(|()| vec![zero; LOSSES * LEVELS.len()]);
        head.cpu(inputs.images, CLASSES, &levels).forward(&mut once).expect("lengths fit");
        let mut grads = inputs.gradients();
        head.cpu(inputs.images, CLASSES, &levels)
            .forward_backward(&mut both, &mut as_gradients(&mut grads))
            .expect("lengths fit");
        let sum = |losses: &[T::Loss]| losses.iter().map(|loss| loss.to_f64()).sum::<f64>();
        assert!(sum(&once) > 0.0 && once.iter().zip(&both).all(|(a, b)| a.to_f64() == b.to_f64()));
        inputs
    });
    let [read, written] = bytes::<T>(images);
    let mut group = c.benchmark_group(format!("head/cpu/{dtype}"));
    group.throughput(Throughput::BytesDecimal(read as u64));
    group.bench_function(BenchmarkId::new("forward", anchors(images)), |b| {
        let levels = inputs.on_host();
        b.iter(|| head.cpu(inputs.images, CLASSES, &levels).forward(&mut losses));
    });
    group.throughput(Throughput::BytesDecimal((read + written) as u64));
    group.bench_function(BenchmarkId::new("forward_backward", anchors(images)), |b| {
        let levels = inputs.on_host();
        let mut grads = inputs.gradients();
        let mut gradients = as_gradients(&mut grads);
        b.iter(|| head.cpu(inputs.images, CLASSES, &levels).forward_backward(&mut losses, &mut gradients));
    });
}

fn as_gradients<T: Element>(grads: &mut [[Vec<T>; 2]]) -> Vec<Gradients<'_, Host, T>> {
    let grads = grads.iter_mut();
    grads.map(|[cls, boxes]| -> Gradients<Host, T> { Gradients::Separate { cls, boxes } }).collect()
}
