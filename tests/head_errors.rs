//! Shows what the head loss says of a wrong call, word for word, and that such a call writes nothing.

use gfocal::head::{
    BoxCoding, BoxWeight, Gradients, HeadLoss, Layout, Level, Logits, Normalisers, Points, QualitySource,
    Targets,
};
use gfocal::{DistributionFocalLoss, Host, QualityFocalLoss, boxes::IouKind, f16};

const BATCH: usize = 2;
const CLASSES: usize = 3;
const POSITIONS: usize = 6;
const ANCHORS: usize = BATCH * POSITIONS;

/// Buffers of the right lengths for a level of 2 by 3 positions and 4 bins, or for both outputs.
struct Memory {
    cls: [f32; ANCHORS * CLASSES],
    boxes: [f32; ANCHORS * 16],
    both: [f32; ANCHORS * 19],
    labels: [i64; ANCHORS],
    numbers: [f32; 4 * ANCHORS],
}

static MEMORY: Memory = Memory {
    cls: [0.5; ANCHORS * CLASSES],
    boxes: [0.5; ANCHORS * 16],
    both: [0.5; ANCHORS * 19],
    labels: [0; ANCHORS],
    numbers: [1.0; 4 * ANCHORS],
};

type HostLevel = Level<'static, Host, f32>;

fn level() -> HostLevel {
    Level {
        height: 2,
        width: 3,
        stride: 8.0,
        points: Points::Grid { offset: 0.0 },
        logits: Logits::Separate { cls: &MEMORY.cls, boxes: &MEMORY.boxes },
        cls_layout: Layout::nchw(CLASSES, POSITIONS),
        box_layout: Layout::nchw(16, POSITIONS),
        targets: Targets::<Host>::new(MEMORY.labels[..].into(), &MEMORY.numbers),
    }
}

fn joint() -> HostLevel {
    let layout = Layout::nchw(19, POSITIONS);
    Level {
        logits: Logits::Joint(&MEMORY.both[..]),
        cls_layout: layout.from_channel(16),
        box_layout: layout,
        ..level()
    }
}

fn head() -> HeadLoss {
    HeadLoss::mmdetection().with_bins(4).expect("a legal number")
}

/// A call on these levels, and what is said of it.
struct Attempt {
    head: HeadLoss,
    batch: usize,
    classes: usize,
    levels: Vec<HostLevel>,
    losses: usize,
    gradients: usize,
    joint: bool,
    /// Lengths of the gradient buffers: classes, boxes, both.
    lengths: [usize; 3],
    flags: usize,
    grad_scale: f64,
    normalisers: Option<Normalisers>,
    class_weights: Option<usize>,
}

impl Attempt {
    fn new(levels: Vec<HostLevel>) -> Attempt {
        Attempt {
            head: head(),
            batch: BATCH,
            classes: CLASSES,
            losses: 3 * levels.len(),
            gradients: levels.len(),
            joint: false,
            lengths: [MEMORY.cls.len(), MEMORY.boxes.len(), MEMORY.both.len()],
            flags: 1,
            grad_scale: 1.0,
            normalisers: None,
            class_weights: None,
            levels,
        }
    }

    fn of(change: impl FnOnce(&mut HostLevel)) -> Attempt {
        let mut changed = level();
        change(&mut changed);
        Attempt::new(vec![level(), changed])
    }

    fn with(mut self, change: impl FnOnce(&mut Attempt)) -> Attempt {
        change(&mut self);
        self
    }

    fn run(&self) -> Result<(), String> {
        let mut losses = vec![7.0f32; self.losses];
        let mut flags = vec![7.0f32; self.flags];
        let buffer = |length: usize| vec![7.0f32; length];
        let mut buffers: Vec<_> = (0..self.gradients).map(|_| self.lengths.map(buffer)).collect();
        let result = {
            let mut gradients: Vec<Gradients<Host, f32>> = (buffers.iter_mut())
                .map(|[cls, boxes, both]| -> Gradients<Host, f32> {
                    if self.joint {
                        Gradients::Joint(&mut both[..])
                    } else {
                        Gradients::Separate { cls, boxes }
                    }
                })
                .collect();
            let call = self.head.cpu(self.batch, self.classes, &self.levels);
            let call = call.grad_scale(self.grad_scale).found_inf(&mut flags);
            let call = match self.class_weights {
                Some(count) => call.class_weights(&MEMORY.numbers[..count]),
                None => call,
            };
            let call = match self.normalisers {
                Some(normalisers) => call.normalised_by(normalisers),
                None => call,
            };
            call.forward_backward(&mut losses, &mut gradients)
        };
        let mut written = losses.iter().chain(&flags).chain(buffers.iter().flatten().flatten());
        assert!(result.is_ok() || written.all(|&x| x == 7.0), "a call that failed wrote something");
        result.map(|_| ()).map_err(|error| error.to_string())
    }

    #[track_caller]
    fn says(&self, text: &str) {
        assert_eq!(self.run().expect_err("a wrong call"), text);
    }
}

#[test]
fn right_calls() {
    for levels in [vec![level()], vec![level(); 8]] {
        Attempt::new(levels).run().expect("a right call");
    }
    Attempt::new(vec![joint()]).with(|call| call.joint = true).run().expect("a right call");
    Attempt::of(|level| level.points = Points::Explicit(&MEMORY.numbers[..2 * POSITIONS]))
        .run()
        .expect("points");
    Attempt::of(|level| level.points = Points::Explicit(&MEMORY.numbers[..2 * ANCHORS]))
        .run()
        .expect("points");
}

#[test]
fn counts() {
    Attempt::new(vec![]).says("0 levels, there must be 1 to 8");
    Attempt::new(vec![level(); 9]).says("9 levels, there must be 1 to 8");
    let of = |change: fn(&mut Attempt)| Attempt::new(vec![level(), level()]).with(change);
    of(|call| call.losses = 2).says("losses has 2 elements, these levels need 6");
    of(|call| call.gradients = 3).says("gradients has 3 elements, these levels need 2");
    of(|call| call.gradients = 0).says("gradients has 0 elements, these levels need 2");
    of(|call| call.flags = 0).says("found_inf has 0 elements, these levels need 1");
    of(|call| call.classes = 0).says("logits [2, 0] has 0 classes, it must have 1 to 2147483647");
}

#[test]
fn lengths() {
    let numbers = &MEMORY.numbers;
    let two = "2 images of 6 positions need";
    let says = |attempt: Attempt, tensor: &str, has: usize, needs: usize| {
        attempt.says(&format!("level 1: {tensor} has {has} elements, {two} {needs}"));
    };
    says(Attempt::of(|level| level.targets.labels = MEMORY.labels[..11].into()), "labels", 11, 12);
    says(Attempt::of(|level| level.targets.boxes = &numbers[..12]), "boxes", 12, 48);
    says(Attempt::of(|level| level.targets.label_weights = Some(&numbers[..6])), "label_weights", 6, 12);
    says(Attempt::of(|level| level.targets.quality = Some(&numbers[..48])), "quality", 48, 12);
    says(Attempt::of(|level| level.points = Points::Explicit(&numbers[..6])), "points", 6, 24);
    Attempt::of(|level| level.height = 3)
        .says("level 1: labels has 12 elements, 2 images of 9 positions need 18");
    let given = head().with_quality(QualitySource::Given);
    Attempt::new(vec![level()])
        .with(|call| call.head = given)
        .says("level 0: this head takes the quality of positives from the caller; give Targets::quality");
}

#[test]
fn options_of_elements_and_boxes() {
    let numbers = &MEMORY.numbers;
    let two = "2 images of 6 positions need";
    let says = |attempt: Attempt, tensor: &str, has: usize, needs: usize| {
        attempt.says(&format!("level 1: {tensor} has {has} elements, {two} {needs}"));
    };
    says(Attempt::of(|level| level.targets.box_weights = Some(&numbers[..6])), "box_weights", 6, 12);
    says(Attempt::of(|level| level.targets.box_scores = Some(&numbers[..48])), "box_scores", 48, 12);
    says(Attempt::of(|level| level.targets.scores = Some(&numbers[..12])), "scores", 12, 36);
    says(Attempt::of(|level| level.targets.element_weights = Some(&numbers[..3])), "element_weights", 3, 36);
    let of = |change: fn(&mut Attempt)| Attempt::new(vec![level()]).with(change);
    of(|call| call.class_weights = Some(3)).run().expect("a right call");
    of(|call| call.class_weights = Some(2)).says("class_weights has 2 elements, these levels need 3");

    let given = head().with_box_weight(BoxWeight::Given);
    of(|call| call.head = head().with_box_weight(BoxWeight::Given))
        .says("level 0: this head takes the weights v of boxes from the caller; give Targets::box_scores");
    // Scores are targets instead of the quality, of which only v is left.
    let mut scored = level();
    scored.targets.scores = Some(&numbers[..36]);
    scored.targets.box_scores = Some(&numbers[..12]);
    let of_scored = |head| Attempt::new(vec![scored]).with(|call| call.head = head);
    of_scored(given.with_quality(QualitySource::Given)).run().expect("a right call");
    of_scored(head().with_quality(QualitySource::Given).with_box_weight(BoxWeight::Quality))
        .says("level 0: this head takes the quality of positives from the caller; give Targets::quality");

    of(|call| call.head = head().with_qfl(QualityFocalLoss::default().with_activated(true)))
        .says("the head loss takes class logits; its QualityFocalLoss takes probabilities (with_activated)");
    let of_numbers = head().with_box_coding(BoxCoding::Relu).expect("legal");
    assert_eq!((of_numbers.bins(), of_numbers.box_channels()), (1, 4));
    Attempt::of(|level| level.box_layout = Layout::nchw(4, POSITIONS))
        .with(|call| call.levels[0].box_layout = Layout::nchw(4, POSITIONS))
        .with(|call| call.head = of_numbers)
        .run()
        .expect("a right call");
}

/// Class and box logits of one tensor are of one type.
#[test]
fn joint_logits_of_two_types() {
    let Level { height, width, stride, points, targets, .. } = level();
    let layout = Layout::nchw(19, POSITIONS);
    let mixed: Level<Host, f32, f16> = Level {
        height,
        width,
        stride,
        points,
        targets,
        logits: Logits::Joint(&MEMORY.both[..]),
        cls_layout: layout.from_channel(16),
        box_layout: layout,
    };
    let error = head().cpu(BATCH, CLASSES, &[mixed]).forward(&mut [0.0; 3]).expect_err("two types");
    assert_eq!(error.to_string(), "level 0: class and box logits are of two types, and cannot be joint");
}

#[test]
fn options() {
    let of = |change: fn(&mut Attempt)| Attempt::new(vec![level()]).with(change);
    of(|call| call.grad_scale = f64::INFINITY).says("grad_scale is inf, it must be a finite number");
    of(|call| call.normalisers = Some(Normalisers { positives: -1.0, box_weights: 1.0 }))
        .says("the number of positives is -1, it must be a finite number, 0 or more");
    of(|call| call.normalisers = Some(Normalisers { positives: f64::NAN, box_weights: 1.0 }))
        .says("the number of positives is NaN, it must be a finite number, 0 or more");
    of(|call| call.normalisers = Some(Normalisers { positives: 1.0, box_weights: f64::INFINITY }))
        .says("the sum of box weights is inf, it must be a finite number, 0 or more");
    of(|call| {
        call.head = head().with_dfl(DistributionFocalLoss::new(3.5).expect("a legal number"));
    })
    .says("target_eps is 3.5, it must be at most the number of bins less one");
    Attempt::of(|level| level.stride = 0.0).says("stride is 0, it must be a finite number above 0");
    Attempt::of(|level| level.stride = f64::NAN).says("stride is NaN, it must be a finite number above 0");
    Attempt::of(|level| level.points = Points::Grid { offset: f64::INFINITY })
        .says("the offset of the anchor points is inf, it must be a finite number");
    for (bins, text) in [(1, "bins is 1"), (1025, "bins is 1025")] {
        let error = HeadLoss::default().with_bins(bins).expect_err("too few or too many");
        assert_eq!(error.to_string(), format!("{text}, it must be from 2 to 1024"));
    }
    let error = HeadLoss::default().with_iou(IouKind::Giou, f64::NAN).expect_err("a weight that is NaN");
    assert_eq!(error.to_string(), "iou_weight is NaN, it must be a finite number");
    for (eps, shown) in [(0.0, "0"), (1.5, "1.5"), (f64::NAN, "NaN")] {
        let error = HeadLoss::default().with_iou_eps(eps).expect_err("an eps beyond its range");
        assert_eq!(error.to_string(), format!("iou_eps is {shown}, it must be from 1e-30 to 1"));
    }
    assert_eq!(HeadLoss::ultralytics().with_iou_eps(1e-6).map(|head| head.iou_eps()), Ok(1e-6));
}

#[test]
fn sizes_beyond_memory() {
    Attempt::of(|level| level.height = usize::MAX)
        .says(&format!("logits [{}, 3] has more elements than memory can address", usize::MAX));
    Attempt::of(|level| level.width = 1 << 31)
        .says("logits [2, 2147483648] has more elements than memory can address");
    // No labels at all, and no logits: still no index overflows.
    Attempt::of(|_| ())
        .with(|call| call.levels[0].height = 1 << 20)
        .with(|call| call.batch = 1 << 40)
        .says("logits [1048576, 3] has more elements than memory can address");
}

#[test]
fn places() {
    Attempt::of(|level| level.cls_layout.offset = 1).says(
        "level 1: cls_logits has 36 elements, Layout { offset: 1, batch: 18, channel: 6, position: 1 } needs 37",
    );
    Attempt::of(|level| level.box_layout.batch = usize::MAX).says(&format!(
        "level 1: box_logits has 192 elements, Layout {{ offset: 0, batch: {0}, channel: 6, position: 1 }} needs {1}",
        usize::MAX,
        usize::MAX as u128 + 96
    ));
    // Logits may share places, as broadcast ones do; their gradients may not.
    let same = "cannot be written to: some of its elements may be in the same place";
    Attempt::of(|level| level.cls_layout.channel = 0)
        .says(&format!("level 1: the layout of cls_logits' gradient {same}"));
    Attempt::of(|level| level.box_layout.position = 6).says(
        "level 1: box_logits has 192 elements, Layout { offset: 0, batch: 96, channel: 6, position: 6 } needs 217",
    );
    Attempt::of(|level| level.box_layout.channel = 5)
        .says(&format!("level 1: the layout of box_logits' gradient {same}"));
    let mut losses = [0.0f32; 3];
    let mut broadcast = level();
    broadcast.cls_layout.channel = 0;
    head().cpu(BATCH, CLASSES, &[broadcast]).forward(&mut losses).expect("a right call");

    let reach = |call: &mut Attempt| call.lengths = [35, 192, 228];
    Attempt::new(vec![level()]).with(reach).says(
        "level 0: cls_logits' gradient has 35 elements, Layout { offset: 0, batch: 18, channel: 6, position: 1 } needs 36",
    );
    let of = |change: fn(&mut HostLevel)| {
        let mut level = joint();
        change(&mut level);
        Attempt::new(vec![level]).with(|call| call.joint = true)
    };
    of(|_| ()).with(|call| call.joint = false).says(
        "level 0: cls_logits' gradient has 36 elements, Layout { offset: 96, batch: 114, channel: 6, position: 1 } needs 228",
    );
    Attempt::new(vec![level()])
        .with(|call| call.joint = true)
        .says("level 0: the layout of gradients cannot be written to: they must be joint if the logits are");
    let channels = "level 0: the layout of box_logits' gradient cannot be written to: \
                    some of its elements may be in places of another gradient";
    of(|level| level.cls_layout = level.box_layout.from_channel(15)).says(channels);
    of(|level| (level.cls_layout, level.box_layout) = (level.box_layout, level.box_layout.from_channel(2)))
        .says(channels);
    of(|level| level.cls_layout = Layout { batch: 120, ..level.box_layout }).says(channels);
}
