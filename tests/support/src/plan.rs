//! Random cases: a plan is what proptest draws and shrinks; the numbers in the tensors follow from
//! its seed.

use gfocal::{AvgPolicy, Background, Reduction};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, RngSeed};

use super::case::{Case, Elements, Loss, Options};
use super::cuda::Layout;
use super::random::Random;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Sparse,
    Dense,
    Dfl,
}

/// What the logits are like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Logits {
    Usual,
    Wide,
    Extreme,
    /// Some are inf or NaN.
    NotFinite,
}

#[derive(Clone, Debug)]
pub struct Plan {
    pub kind: Kind,
    pub rows: usize,
    pub columns: usize,
    pub logits: Logits,
    pub beta: f64,
    pub reduction: Reduction,
    pub flags: [bool; 6],
    /// For QFL: weights of classes, weights of elements, alpha, probabilities.
    pub elements: [bool; 4],
    pub layout: Layout,
    pub seed: u64,
}

/// The same cases every time, unless PROPTEST_RNG_SEED says otherwise; as many as PROPTEST_CASES,
/// or else as the test says.
pub fn config(cases: u32) -> Config {
    let mut config = Config { failure_persistence: None, max_shrink_iters: 200, ..Config::default() };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = cases;
    }
    if std::env::var_os("PROPTEST_RNG_SEED").is_none() {
        config.rng_seed = RngSeed::Fixed(1);
    }
    config
}

fn reduction() -> impl Strategy<Value = Reduction> {
    let policy =
        select(vec![AvgPolicy::Exact, AvgPolicy::Eps, AvgPolicy::AtLeast(1.0), AvgPolicy::AtLeast(0.375)]);
    let avg_factor = select(vec![0.0, 0.25, 1.0, 3.0, 37.5, 1000.0]);
    let by = (avg_factor, policy).prop_map(|(avg_factor, policy)| Reduction::MeanBy { avg_factor, policy });
    prop_oneof![3 => Just(Reduction::None), 1 => Just(Reduction::Sum), 1 => Just(Reduction::Mean), 3 => by]
}

fn layout() -> impl Strategy<Value = Layout> {
    let offset = || prop_oneof![Just(0usize), 0usize..9];
    let offsets = (offset(), offset(), offset(), offset(), offset(), offset(), offset());
    (offsets, any::<bool>(), any::<bool>()).prop_map(|(offsets, device_avg_factor, device_grad_scale)| {
        let (logits, grad, loss, targets, quality, weight, upstream) = offsets;
        Layout {
            logits,
            grad,
            loss,
            targets,
            quality,
            weight,
            upstream,
            device_avg_factor,
            device_grad_scale,
        }
    })
}

pub fn plan() -> impl Strategy<Value = Plan> {
    let kind = select(vec![Kind::Sparse, Kind::Sparse, Kind::Dense, Kind::Dfl, Kind::Dfl]);
    let kind_and_sizes = kind.prop_flat_map(|kind| {
        let columns = match kind {
            Kind::Dfl => prop_oneof![2 => Just(16usize), 2 => Just(17), 3 => 2usize..71].boxed(),
            _ => prop_oneof![1 => Just(80usize), 1 => (1usize..20).prop_map(|c| 8 * c), 3 => 1usize..151]
                .boxed(),
        };
        // DFL's tiles are of 256 rows.
        let many = if kind == Kind::Dfl { 5 } else { 0 };
        let rows = prop_oneof![1 => Just(0usize), 3 => 1usize..5, 9 => 1usize..71, many => 256usize..600];
        (Just(kind), columns, rows)
    });
    let logits = prop_oneof![
        4 => Just(Logits::Usual), 3 => Just(Logits::Wide), 1 => Just(Logits::Extreme), 1 => Just(Logits::NotFinite),
    ];
    let beta =
        prop_oneof![2 => Just(2.0), 3 => select(vec![0.0, 0.25, 0.5, 0.7, 1.0, 1.3, 1.5, 2.5, 3.0, 4.0])];
    let elements = prop_oneof![2 => Just([false; 4]), 3 => any::<[bool; 4]>()];
    let flags = (any::<[bool; 6]>(), elements);
    (kind_and_sizes, logits, beta, reduction(), flags, layout(), any::<u64>()).prop_map(
        |((kind, columns, rows), logits, beta, reduction, (flags, elements), layout, seed)| Plan {
            elements: if kind == Kind::Dfl { [false; 4] } else { elements },
            kind,
            rows,
            columns,
            logits,
            beta,
            reduction,
            flags,
            layout,
            seed,
        },
    )
}

fn quality(random: &mut Random) -> f32 {
    match random.index(24) {
        0 => f32::NAN,
        1 => -0.25,
        2 => 1.75,
        3 => f32::INFINITY,
        4 => f32::NEG_INFINITY,
        5 | 6 => 0.0,
        7 | 8 => 1.0,
        9 => 1e-30,
        _ => random.unit() as f32,
    }
}

fn label(random: &mut Random, classes: usize, narrow: bool) -> i64 {
    let classes = classes as i64;
    let odd: &[i64] = if narrow {
        &[i32::MIN as i64, i32::MAX as i64, -1, -100]
    } else {
        // The low halves of the last ones are 0 and 1.
        &[i64::MIN, i64::MAX, -1, -100, i32::MIN as i64, 1 << 32, -(1 << 40) + 1]
    };
    match random.index(12) {
        0 => odd[random.index(odd.len())],
        1 => classes + 1,
        2 | 3 => classes,
        4 => 0,
        _ => random.index(classes as usize) as i64,
    }
}

fn dfl_target(random: &mut Random, bins: usize) -> f32 {
    let last = (bins - 1) as f32;
    match random.index(24) {
        0 => f32::NAN,
        1 => f32::INFINITY,
        2 => f32::NEG_INFINITY,
        3 => -0.5,
        4 => last + 0.25,
        5 => -0.0,
        6 | 7 => last,
        8 => last.next_down(),
        9..=12 => random.index(bins) as f32,
        _ => random.between(0.0, last.into()) as f32,
    }
}

impl Plan {
    pub fn case(&self) -> Case {
        let mut random = Random::new(self.seed);
        let (rows, columns) = (self.rows, self.columns);
        let [weighted, flag, narrow, upstream, ignore, first] = self.flags;
        let logits: Vec<f64> = (0..rows * columns).map(|_| self.logit(&mut random)).collect();
        let loss = match self.kind {
            Kind::Sparse => {
                let labels: Vec<i64> = (0..rows).map(|_| label(&mut random, columns, narrow)).collect();
                let ignored = if flag { -100 } else { labels.first().copied().unwrap_or(255) };
                Loss::Sparse {
                    beta: self.beta,
                    background: if first { Background::First } else { Background::Last },
                    ignore_label: ignore.then_some(ignored),
                    quality: (0..rows).map(|_| quality(&mut random)).collect(),
                    labels,
                    narrow,
                }
            }
            Kind::Dense => {
                // One row in eight may hold a NaN; most targets are 0.
                let mut target = vec![0.0; rows * columns];
                for row in target.chunks_mut(columns.max(1)) {
                    let usable = !random.chance(0.125);
                    for y in row {
                        let drawn = quality(&mut random);
                        if random.chance(0.15) && !(usable && drawn.is_nan()) {
                            *y = drawn;
                        }
                    }
                }
                Loss::Dense { beta: self.beta, target }
            }
            Kind::Dfl => Loss::Dfl {
                target_eps: match (flag, first) {
                    (false, _) => 0.0,
                    (true, false) => 0.1,
                    (true, true) => 0.01,
                },
                target: (0..rows).map(|_| dfl_target(&mut random, columns)).collect(),
            },
        };
        let options = Options {
            beside_f64: false,
            loss_weight: [1.0, 0.25, 2.0, 0.3][random.index(4)],
            weight: weighted.then(|| {
                let choices = [0.0, 0.0, -0.0, 1.0, 1.0, 1.0, -0.5, 1e-3];
                let mut one = || {
                    if random.chance(0.4) {
                        random.between(0.0, 2.0) as f32
                    } else {
                        choices[random.index(8)]
                    }
                };
                (0..rows).map(|_| one()).collect()
            }),
            upstream: (upstream && self.reduction == Reduction::None)
                .then(|| (0..rows).map(|_| random.between(-2.0, 2.0) as f32).collect()),
            reduction: self.reduction,
            grad_scale: [1.0, 1.0, 65536.0, 1.0 / 1024.0, -1.0, 0.0][random.index(6)],
            elements: self.elements(&mut random),
        };
        Case { shape: [rows, columns], logits, loss, options }
    }

    fn elements(&self, random: &mut Random) -> Elements {
        let [of_classes, of_elements, alpha, activated] = self.elements;
        let mut weights = |count: usize| {
            let mut one = || match random.index(8) {
                0 | 1 => 0.0,
                2 | 3 => 1.0,
                4 => -0.75,
                _ => random.between(0.0, 3.0) as f32,
            };
            (0..count).map(|_| one()).collect()
        };
        Elements {
            class_weights: of_classes.then(|| weights(self.columns)),
            element_weights: of_elements.then(|| weights(self.rows * self.columns)),
            alpha: alpha.then(|| [0.25, 0.5, 0.75, 0.0, 1.0][random.index(5)]),
            activated,
        }
    }

    fn probability(&self, random: &mut Random) -> f64 {
        match self.logits {
            Logits::Usual => random.unit(),
            Logits::Wide => 1.0 / (1.0 + random.between(-30.0, 30.0).exp()),
            Logits::Extreme => [0.0, 1.0, 1e-4, 0.5, 1.0 - 1e-3, 6e-8, 1e-30][random.index(7)],
            Logits::NotFinite if random.chance(0.01) => {
                [f64::NAN, -0.25, 1.25, f64::INFINITY, f64::NEG_INFINITY][random.index(5)]
            }
            Logits::NotFinite => random.unit(),
        }
    }

    fn logit(&self, random: &mut Random) -> f64 {
        if self.elements[3] {
            return self.probability(random);
        }
        match self.logits {
            Logits::Usual => random.between(-6.0, 6.0),
            Logits::Wide => random.between(-30.0, 30.0),
            Logits::Extreme => {
                let choices =
                    [0.0, -0.0, 1e-4, -1e-4, 5.0, -5.0, 30.0, -30.0, 100.0, -100.0, 65504.0, -65504.0];
                choices[random.index(choices.len())]
            }
            Logits::NotFinite if random.chance(0.01) => {
                [f64::NAN, f64::INFINITY, f64::NEG_INFINITY][random.index(3)]
            }
            Logits::NotFinite => random.between(-10.0, 3.0),
        }
    }
}
