//! A step of the head loss, as data: options, levels, targets; and where its tensors lie in memory.
//!
//! Logits and gradients are here `[batch, channels, positions]`, whatever their place in memory.

pub mod cpu;
pub mod cuda;
mod form;
pub mod reference;
pub mod scenes;

use gfocal::boxes::IouKind;
use gfocal::head::{BoxCoding, BoxWeight, HeadLoss, Layouts, Normaliser, Normalisers, QualitySource};
use gfocal::{Background, DistributionFocalLoss, Element, QualityFocalLoss, Status};

use super::case::Pass;
use super::random::Random;
use super::tolerance::{Stored, check_elements, check_reduced};
pub use form::{Form, Placement, places};
pub use reference::expect;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    Mmdetection,
    Nanodet,
    Ultralytics,
}

/// All options of the head loss but the epsilon of the IoU, which is the profile's.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub profile: Profile,
    pub beta: f64,
    pub alpha: Option<f64>,
    pub background: Background,
    pub ignore_label: Option<i64>,
    pub target_eps: f64,
    pub iou: IouKind,
    /// Of classification, box and distribution loss.
    pub weights: [f64; 3],
    /// Of a side, if the coding is that of bins.
    pub bins: usize,
    /// Four numbers, without bins.
    pub numbers: Option<BoxCoding>,
    pub quality: QualitySource,
    pub box_weight: BoxWeight,
    pub normaliser: Normaliser,
}

impl Settings {
    /// What the constructors of [`HeadLoss`] promise.
    pub fn of(profile: Profile) -> Settings {
        let mmdetection = Settings {
            profile,
            beta: 2.0,
            alpha: None,
            background: Background::Last,
            ignore_label: None,
            target_eps: 0.1,
            iou: IouKind::Giou,
            weights: [1.0, 2.0, 0.25],
            bins: 17,
            numbers: None,
            quality: QualitySource::Iou,
            box_weight: BoxWeight::MaxScore,
            normaliser: Normaliser::Mmdetection,
        };
        match profile {
            Profile::Mmdetection => mmdetection,
            Profile::Nanodet => Settings {
                bins: 8,
                quality: QualitySource::Given,
                normaliser: Normaliser::Nanodet,
                ..mmdetection
            },
            Profile::Ultralytics => Settings {
                beta: 0.0,
                target_eps: 0.01,
                iou: IouKind::CiouUltralytics,
                weights: [0.5, 7.5, 1.5],
                bins: 16,
                quality: QualitySource::Given,
                box_weight: BoxWeight::Quality,
                normaliser: Normaliser::Ultralytics,
                ..mmdetection
            },
        }
    }

    /// What box logits say, whose other constants are the profile's.
    pub fn with_coding(self, coding: BoxCoding) -> Settings {
        match coding {
            BoxCoding::Bins(bins) => Settings { bins, numbers: None, ..self },
            numbers => Settings { numbers: Some(numbers), ..self },
        }
    }

    pub fn coding(&self) -> BoxCoding {
        self.numbers.unwrap_or(BoxCoding::Bins(self.bins))
    }

    pub fn iou_eps(&self) -> f64 {
        if self.profile == Profile::Ultralytics { 1e-7 } else { 1e-6 }
    }

    pub fn profile(&self) -> HeadLoss {
        match self.profile {
            Profile::Mmdetection => HeadLoss::mmdetection(),
            Profile::Nanodet => HeadLoss::nanodet(),
            Profile::Ultralytics => HeadLoss::ultralytics(),
        }
    }

    pub fn head(&self) -> gfocal::Result<HeadLoss> {
        let qfl = QualityFocalLoss::new(self.beta)?
            .with_background(self.background)
            .with_loss_weight(self.weights[0])?;
        let qfl = self.ignore_label.map_or(qfl, |label| qfl.with_ignore_label(label));
        let qfl = self.alpha.map_or(Ok(qfl), |alpha| qfl.with_alpha(alpha))?;
        let dfl = DistributionFocalLoss::new(self.target_eps)?.with_loss_weight(self.weights[2])?;
        Ok(self
            .profile()
            .with_qfl(qfl)
            .with_dfl(dfl)
            .with_iou(self.iou, self.weights[1])?
            .with_box_coding(self.coding())?
            .with_quality(self.quality)
            .with_box_weight(self.box_weight)
            .with_normaliser(self.normaliser))
    }
}

#[derive(Clone, Debug)]
pub enum PointsAt {
    Grid(f64),
    Explicit(Vec<f64>),
}

#[derive(Clone, Debug)]
pub struct LevelScene {
    pub height: usize,
    pub width: usize,
    pub stride: f64,
    pub points: PointsAt,
    /// `[batch, classes, positions]`, before it is rounded to a storage type, as all else is.
    pub cls: Vec<f64>,
    /// `[batch, box channels, positions]`.
    pub boxes: Vec<f64>,
    pub labels: Vec<i64>,
    pub label_weights: Option<Vec<f64>>,
    pub box_targets: Vec<f64>,
    pub quality: Option<Vec<f64>>,
    pub box_weights: Option<Vec<f64>>,
    pub box_scores: Option<Vec<f64>>,
    /// `[batch, positions, classes]`, as the next.
    pub scores: Option<Vec<f64>>,
    pub element_weights: Option<Vec<f64>>,
}

impl Default for LevelScene {
    /// Without positions.
    fn default() -> Self {
        LevelScene {
            height: 0,
            width: 0,
            stride: 1.0,
            points: PointsAt::Grid(0.0),
            cls: vec![],
            boxes: vec![],
            labels: vec![],
            label_weights: None,
            box_targets: vec![],
            quality: None,
            box_weights: None,
            box_scores: None,
            scores: None,
            element_weights: None,
        }
    }
}

/// What a level may have beside its logits: box targets, label weights, qualities, weights and scores of boxes, scores,
/// element weights, points.
pub const BESIDE: usize = 8;
pub const POINTS: usize = 7;

impl LevelScene {
    pub fn positions(&self) -> usize {
        self.height * self.width
    }

    pub fn beside_mut(&mut self) -> [Option<&mut Vec<f64>>; BESIDE] {
        [
            Some(&mut self.box_targets),
            self.label_weights.as_mut(),
            self.quality.as_mut(),
            self.box_weights.as_mut(),
            self.box_scores.as_mut(),
            self.scores.as_mut(),
            self.element_weights.as_mut(),
            match &mut self.points {
                PointsAt::Grid(_) => None,
                PointsAt::Explicit(points) => Some(points),
            },
        ]
    }

    /// The same, as a backend takes it.
    pub fn beside<W: Element>(&self) -> [Option<Vec<W>>; BESIDE] {
        self.clone().beside_mut().map(|numbers| numbers.map(|numbers| as_stored(numbers)))
    }
}

/// Numbers in a type.
pub fn as_stored<W: Element>(numbers: &[f64]) -> Vec<W> {
    numbers.iter().map(|&number| W::from_f64(number)).collect()
}

#[derive(Clone, Debug)]
pub struct Scene {
    pub settings: Settings,
    pub batch: usize,
    pub classes: usize,
    pub levels: Vec<LevelScene>,
    pub class_weights: Option<Vec<f64>>,
    /// Whether to give the labels as i32.
    pub narrow: bool,
    pub grad_scale: f64,
    /// `[levels, 3]`
    pub upstream: Option<Vec<f64>>,
    pub normalisers: Option<Normalisers>,
    /// Where the gradients are, if not where the logits are.
    pub gradient_form: Option<Form>,
}

impl Scene {
    pub fn box_channels(&self) -> usize {
        4 * if self.settings.numbers.is_some() { 1 } else { self.settings.bins }
    }

    /// With gradients with respect to the losses, one of them 0.
    pub fn with_upstream(mut self, random: &mut Random) -> Scene {
        let mut upstream: Vec<f64> = random.many(3 * self.levels.len(), -2.0, 2.0);
        let zero = random.index(upstream.len());
        upstream[zero] = 0.0;
        self.upstream = Some(upstream);
        self
    }

    /// Where the gradients are, with logits in this form.
    pub fn gradients(&self, form: Form) -> Form {
        self.gradient_form.unwrap_or(form)
    }

    /// Layouts of the gradients, if they are not those of the logits.
    pub fn gradient_layouts(&self) -> Option<Vec<Layouts>> {
        let form = self.gradient_form?;
        let of_level = |level: &LevelScene| {
            let channels = [self.classes, self.box_channels()];
            let Placement { cls, boxes, .. } = form.place(self.batch, channels, [level.height, level.width]);
            Layouts { cls, boxes }
        };
        Some(self.levels.iter().map(of_level).collect())
    }

    /// What the gradients of the three losses of a level are multiplied by.
    pub fn grad_scales(&self, level: usize) -> [f64; 3] {
        let upstream = |which| self.upstream.as_ref().map_or(1.0, |upstream| upstream[3 * level + which]);
        [0, 1, 2].map(|which| self.grad_scale * upstream(which))
    }

    /// The scene on what storage as `T` leaves.
    pub fn stored_as<T: Stored>(&self) -> Scene {
        self.stored_as_both::<T, T>()
    }

    /// The same for class logits of type `T` and box logits of type `U`.
    pub fn stored_as_both<T: Stored, U: Stored>(&self) -> Scene {
        fn store<T: Element>(numbers: &mut [f64]) {
            numbers.iter_mut().for_each(|x| *x = T::from_f64(*x).to_f64());
        }
        let mut scene = self.clone();
        for level in &mut scene.levels {
            store::<T>(&mut level.cls);
            store::<U>(&mut level.boxes);
            level.beside_mut().into_iter().flatten().for_each(|numbers| store::<T::Loss>(numbers));
        }
        let of_call = [&mut scene.class_weights, &mut scene.upstream];
        of_call.into_iter().flatten().for_each(|numbers| store::<T::Loss>(numbers));
        scene
    }

    /// Some of the images, as a scene of their own.
    pub fn images(&self, images: std::ops::Range<usize>) -> Scene {
        let mut part = self.clone();
        part.batch = images.len();
        for level in &mut part.levels {
            fn cut<T: Clone>(values: &mut Vec<T>, batch: usize, images: &std::ops::Range<usize>) {
                let each = values.len() / batch;
                *values = values[images.start * each..images.end * each].to_vec();
            }
            let positions = level.positions();
            cut(&mut level.cls, self.batch, &images);
            cut(&mut level.boxes, self.batch, &images);
            cut(&mut level.labels, self.batch, &images);
            for (i, numbers) in level.beside_mut().into_iter().enumerate() {
                let numbers = numbers.filter(|numbers| i != POINTS || numbers.len() != 2 * positions);
                numbers.into_iter().for_each(|numbers| cut(numbers, self.batch, &images));
            }
        }
        part
    }
}

/// The buffers of a level: one for both outputs, or one for each. Joint ones are of one type.
#[derive(Clone, Debug)]
pub struct Buffers<T, U = T> {
    pub placement: Placement,
    /// Of the classes, or of both.
    pub cls: Vec<T>,
    /// Of the boxes, if that is another one.
    pub boxes: Option<Vec<U>>,
    places: [Vec<usize>; 2],
}

impl<T: Stored, U: Stored> Buffers<T, U> {
    /// With nothing but `value` in them.
    pub fn filled(scene: &Scene, level: &LevelScene, form: Form, value: f64) -> Buffers<T, U> {
        let channels = [scene.classes, scene.box_channels()];
        let placement = form.place(scene.batch, channels, [level.height, level.width]);
        let places_of = |layout, channels| places(layout, scene.batch, channels, level.positions());
        let (cls, boxes) = match placement.lengths {
            Ok(both) => (both, None),
            Err([cls, boxes]) => (cls, Some(boxes)),
        };
        Buffers {
            placement,
            places: [places_of(&placement.cls, channels[0]), places_of(&placement.boxes, channels[1])],
            cls: vec![T::from_f64(value); cls],
            boxes: boxes.map(|length| vec![U::from_f64(value); length]),
        }
    }

    /// The logits; what is between them is NaN.
    pub fn logits(scene: &Scene, level: &LevelScene, form: Form) -> Buffers<T, U> {
        let mut logits = Buffers::filled(scene, level, form, f64::NAN);
        let [of_cls, of_boxes] = &logits.places;
        let mut write = |places: &[usize], values: &[f64]| {
            for (place, &value) in places.iter().zip(values) {
                logits.cls[*place] = T::from_f64(value);
            }
        };
        write(of_cls, &level.cls);
        match &mut logits.boxes {
            None => write(of_boxes, &level.boxes),
            Some(boxes) => {
                for (place, &value) in of_boxes.iter().zip(&level.boxes) {
                    boxes[*place] = U::from_f64(value);
                }
            }
        }
        logits
    }

    /// Class and box tensor; asserts that all other places still hold `value`.
    #[track_caller]
    pub fn read(&self, value: f64) -> (Vec<T>, Vec<U>) {
        fn take<T: Stored>(rest: &mut [T], places: &[usize], value: f64) -> Vec<T> {
            places.iter().map(|&place| std::mem::replace(&mut rest[place], T::from_f64(value))).collect()
        }
        let (mut first, mut second) = (self.cls.clone(), self.boxes.clone().unwrap_or_default());
        let cls = take(&mut first, &self.places[0], value);
        let boxes = match &self.boxes {
            Some(_) => take(&mut second, &self.places[1], value),
            None => {
                let boxes = take(&mut first, &self.places[1], value);
                boxes.into_iter().map(|x| U::from_f64(x.to_f64())).collect()
            }
        };
        let untouched =
            first.iter().all(|&x| x == T::from_f64(value)) && second.iter().all(|&x| x == U::from_f64(value));
        assert!(untouched, "something was written between the gradients");
        (cls, boxes)
    }
}

/// What a call gave.
#[derive(Clone, Debug)]
pub struct Outcome<T: Stored> {
    /// `[levels, 3]`.
    pub losses: Vec<T::Loss>,
    /// Of class and box logits, for each level; none after a forward pass.
    pub grads: Vec<[Vec<T>; 2]>,
    pub status: Status,
    pub found_inf: f32,
}

/// The same of a call on class logits of type `T` and box logits of type `U`.
#[derive(Clone, Debug)]
pub struct Mixed<T: Stored, U: Stored> {
    pub losses: Vec<T::Loss>,
    pub grads: Vec<(Vec<T>, Vec<U>)>,
    pub status: Status,
    pub found_inf: f32,
}

impl<T: Stored> From<Mixed<T, T>> for Outcome<T> {
    fn from(Mixed { losses, grads, status, found_inf }: Mixed<T, T>) -> Self {
        let grads = grads.into_iter().map(|(cls, boxes)| [cls, boxes]).collect();
        Outcome { losses, grads, status, found_inf }
    }
}

/// What the flag holds before the call: neither of the values that a call could write.
pub const FLAG_BEFORE: f32 = 0.375;
/// What gradients hold before the call: no gradient of a scene.
pub const GRAD_BEFORE: f64 = 77.0;

/// Compares what a backend gave with the reference for the scene as it is stored.
#[track_caller]
pub fn check<T: Stored>(what: &str, pass: Pass, got: &Outcome<T>, want: &reference::Expected) {
    let Outcome { losses, grads, status, found_inf } = got.clone();
    let grads = grads.into_iter().map(|[cls, boxes]| (cls, boxes)).collect();
    check_mixed(what, pass, &Mixed { losses, grads, status, found_inf }, want);
}

/// The same for two types.
#[track_caller]
pub fn check_mixed<T: Stored, U: Stored>(
    what: &str,
    pass: Pass,
    got: &Mixed<T, U>,
    want: &reference::Expected,
) {
    let what = format!("{what} in {} and {}, {pass:?}", T::NAME, U::NAME);
    let losses = if pass == Pass::Backward { 0 } else { want.losses.len() };
    assert_eq!(got.losses.len(), losses, "{what}: losses");
    for (index, (&got, want)) in got.losses.iter().zip(&want.losses).enumerate() {
        if let Some(want) = want {
            check_reduced(&format!("{what}, loss {index}"), got, want);
        }
    }
    let levels = if pass == Pass::Forward { 0 } else { want.grads.len() };
    assert_eq!(got.grads.len(), levels, "{what}: levels of gradients");
    let mut raised = false;
    for (level, ((cls, boxes), want)) in got.grads.iter().zip(&want.grads).enumerate() {
        check_elements(&format!("{what}, level {level}, gradient of classes"), cls, &want[0]);
        check_elements(&format!("{what}, level {level}, gradient of boxes"), boxes, &want[1]);
        raised |= cls.iter().any(|grad| !grad.to_f64().is_finite());
        raised |= boxes.iter().any(|grad| !grad.to_f64().is_finite());
    }
    assert_eq!(got.found_inf, if raised { 1.0 } else { FLAG_BEFORE }, "{what}: found_inf");
    assert_eq!(got.status, want.status, "{what}: status");
}
