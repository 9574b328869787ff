//! What is wrong with the sizes of a call, whatever memory it is in.

use super::{BoxCoding, BoxWeight, HeadLoss, LOSSES, Layout, MAX_LEVELS};
use crate::error::{Error, Result, check_option};

/// The sizes of a call. `None`: not given.
pub(super) struct CallSizes {
    pub batch: usize,
    pub classes: usize,
    /// Class and box logits are of one type.
    pub one_type: bool,
    pub class_weights: Option<usize>,
    pub losses: Option<usize>,
    /// How many levels' gradients there are.
    pub gradients: Option<usize>,
    pub found_inf: usize,
}

/// The sizes of a level. `None`: not given.
pub(super) struct LevelSizes {
    pub height: usize,
    pub width: usize,
    pub stride: f64,
    /// The offset of a grid of anchor points, or the length of explicit ones.
    pub points: Result<f64, usize>,
    pub logits: BufferSizes,
    pub cls_layout: Layout,
    pub box_layout: Layout,
    pub labels: usize,
    pub label_weights: Option<usize>,
    pub boxes: usize,
    pub quality: Option<usize>,
    pub box_weights: Option<usize>,
    pub box_scores: Option<usize>,
    pub scores: Option<usize>,
    pub element_weights: Option<usize>,
    pub gradients: Option<BufferSizes>,
}

/// The lengths of the buffers of both outputs, or of the one that holds both.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum BufferSizes {
    Separate { cls: usize, boxes: usize },
    Joint(usize),
}

impl HeadLoss {
    /// The one place where sizes are compared, for both backends.
    pub(super) fn check(&self, call: &CallSizes, levels: &[LevelSizes]) -> Result<()> {
        let &CallSizes { batch, classes, .. } = call;
        if !(1..=MAX_LEVELS).contains(&levels.len()) {
            return Err(Error::LevelCount { actual: levels.len(), maximum: MAX_LEVELS });
        }
        let maximum = i32::MAX as usize;
        if !(1..=maximum).contains(&classes) {
            let shape = [batch, classes];
            return Err(Error::Columns { shape, axis: "classes", columns: classes, minimum: 1, maximum });
        }
        if self.qfl.activated {
            return Err(Error::ActivatedHead);
        }
        if let BoxCoding::Bins(bins) = self.coding
            && self.dfl.target_max(bins) < 0.0
        {
            return Err(Error::InvalidOption {
                option: "target_eps",
                value: self.dfl.target_eps,
                rule: "at most the number of bins less one",
            });
        }
        let count = levels.len();
        let whole = |tensor, actual, expected| {
            if actual == expected { Ok(()) } else { Err(Error::LevelTensors { tensor, actual, expected }) }
        };
        call.losses.map_or(Ok(()), |actual| whole("losses", actual, LOSSES * count))?;
        call.gradients.map_or(Ok(()), |actual| whole("gradients", actual, count))?;
        call.class_weights.map_or(Ok(()), |actual| whole("class_weights", actual, classes))?;
        whole("found_inf", call.found_inf, 1)?;
        levels.iter().enumerate().try_for_each(|(level, sizes)| self.check_level(level, call, sizes))
    }

    fn check_level(&self, level: usize, call: &CallSizes, sizes: &LevelSizes) -> Result<()> {
        let &CallSizes { batch, classes, one_type, .. } = call;
        check_option("stride", sizes.stride, "a finite number above 0", sizes.stride > 0.0)?;
        let positions = sizes.height.checked_mul(sizes.width);
        let anchors = positions.and_then(|positions| positions.checked_mul(batch)?.checked_mul(4));
        let (Some(positions), Some(_)) = (positions, anchors.filter(|&all| all <= isize::MAX as usize))
        else {
            return Err(Error::ShapeOverflow { shape: [sizes.height, sizes.width] });
        };
        let channels = classes.max(self.box_channels());
        let elements = (batch * positions).checked_mul(channels).filter(|&all| all <= isize::MAX as usize);
        if positions > i32::MAX as usize || elements.is_none() {
            return Err(Error::ShapeOverflow { shape: [sizes.height, sizes.width] });
        }
        let anchors = batch * positions;
        let length = |tensor, actual, expected| {
            if actual == expected {
                Ok(())
            } else {
                Err(Error::LevelLength { level, tensor, actual, batch, positions, expected })
            }
        };
        length("labels", sizes.labels, anchors)?;
        length("boxes", sizes.boxes, 4 * anchors)?;
        let options = [
            ("label_weights", sizes.label_weights, anchors),
            ("quality", sizes.quality, anchors),
            ("box_weights", sizes.box_weights, anchors),
            ("box_scores", sizes.box_scores, anchors),
            ("scores", sizes.scores, classes * anchors),
            ("element_weights", sizes.element_weights, classes * anchors),
        ];
        for (tensor, actual, expected) in options {
            actual.map_or(Ok(()), |actual| length(tensor, actual, expected))?;
        }
        if sizes.quality.is_none() && self.reads_quality(sizes.scores.is_some()) {
            return Err(Error::NoQuality { level });
        }
        if sizes.box_scores.is_none() && self.box_weight == BoxWeight::Given {
            return Err(Error::NoBoxScores { level });
        }
        match sizes.points {
            Ok(offset) => check_option("the offset of the anchor points", offset, "a finite number", true)?,
            Err(actual) if actual == 2 * positions => {}
            Err(actual) => length("points", actual, 2 * anchors)?,
        }

        let cls =
            Shape { tensor: "cls_logits", layout: sizes.cls_layout, batch, channels: classes, positions };
        let boxes = Shape {
            tensor: "box_logits",
            layout: sizes.box_layout,
            batch,
            channels: self.box_channels(),
            positions,
        };
        let fits = |sizes: BufferSizes| {
            let (in_cls, in_boxes) = match sizes {
                BufferSizes::Separate { cls, boxes } => (cls, boxes),
                BufferSizes::Joint(both) => (both, both),
            };
            cls.check_reach(level, in_cls)?;
            boxes.check_reach(level, in_boxes)
        };
        fits(sizes.logits)?;
        let is_joint = |sizes| matches!(sizes, BufferSizes::Joint(_));
        if !one_type && (is_joint(sizes.logits) || sizes.gradients.is_some_and(is_joint)) {
            return Err(Error::JointTypes { level });
        }
        let Some(gradients) = sizes.gradients else { return Ok(()) };
        fits(gradients)?;
        if is_joint(sizes.logits) != is_joint(gradients) {
            let reason = "they must be joint if the logits are";
            return Err(Error::Layout { level, tensor: "gradients", reason });
        }
        if anchors == 0 {
            return Ok(()); // There is nothing to overlap.
        }
        if is_joint(gradients) {
            return cls.joined(&boxes, level)?.check_distinct(level);
        }
        cls.check_distinct(level)?;
        boxes.check_distinct(level)
    }
}

/// A tensor of a level.
pub(crate) struct Shape {
    pub tensor: &'static str,
    pub layout: Layout,
    pub batch: usize,
    pub channels: usize,
    pub positions: usize,
}

impl Shape {
    fn error(&self, level: usize, reason: &'static str) -> Error {
        Error::Layout { level, tensor: self.tensor, reason }
    }

    /// Extent and stride of each axis.
    fn axes(&self) -> [(usize, usize); 3] {
        let Layout { batch, channel, position, .. } = self.layout;
        [(self.batch, batch), (self.channels, channel), (self.positions, position)]
    }

    /// Whether its last element is in a buffer of `len` elements.
    pub fn check_reach(&self, level: usize, len: usize) -> Result<()> {
        if self.axes().iter().any(|&(extent, _)| extent == 0) {
            return Ok(());
        }
        let steps =
            self.axes().iter().map(|&(extent, stride)| (extent as u128 - 1) * stride as u128).sum::<u128>();
        let needed = self.layout.offset as u128 + steps + 1;
        if needed <= len as u128 {
            return Ok(());
        }
        Err(Error::Reach { level, tensor: self.tensor, actual: len, layout: self.layout, needed })
    }

    /// Whether no two elements are in the same place, which gradients must not be. Called after
    /// `check_reach`, so that nothing overflows.
    pub fn check_distinct(&self, level: usize) -> Result<()> {
        let mut axes = self.axes();
        axes.sort_unstable_by_key(|&(_, stride)| stride);
        let mut reach = 0;
        for (extent, stride) in axes {
            if extent > 1 {
                if stride <= reach {
                    return Err(self.error(level, "some of its elements are in the same place"));
                }
                reach += (extent - 1) * stride;
            }
        }
        Ok(())
    }

    /// The shape that holds this one and another one of the same buffer.
    fn joined(&self, other: &Shape, level: usize) -> Result<Shape> {
        let (first, second) =
            if self.layout.offset <= other.layout.offset { (self, other) } else { (other, self) };
        let layout = first.layout;
        let same = Layout { offset: layout.offset, ..second.layout } == layout;
        let apart = second.layout.offset - layout.offset;
        let channels = apart.checked_div(layout.channel).unwrap_or(0);
        if !same || channels * layout.channel != apart || channels < first.channels {
            let reason = "the two outputs of a joint tensor must be different channels of it";
            return Err(self.error(level, reason));
        }
        Ok(Shape { tensor: "gradients", layout, channels: channels + second.channels, ..*first })
    }
}
