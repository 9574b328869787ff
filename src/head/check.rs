//! What is wrong with the sizes of a call, whatever memory it is in.

use super::{BoxCoding, BoxWeight, Gradients, HeadLoss, LOSSES, Layout, Layouts, MAX_LEVELS};
use super::{Level, Logits, Points, Rows};
use crate::element::Element;
use crate::error::{Error, Result, check_option};
use crate::memory::Memory;

/// The sizes of a call. `None`: not given.
pub(super) struct CallSizes {
    pub batch: usize,
    pub classes: usize,
    /// Class and box logits are of one type.
    pub one_type: bool,
    pub class_weights: Option<usize>,
    pub losses: Option<usize>,
    pub upstream: Option<usize>,
    /// How many levels' gradients there are.
    pub gradients: Option<usize>,
    /// How many levels' gradients have layouts of their own.
    pub gradient_layouts: Option<usize>,
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
    pub gradients: Option<GradientSizes>,
}

/// The gradients of a level.
#[derive(Clone, Copy)]
pub(super) struct GradientSizes {
    /// The level whose buffers they are in: this one, or one before.
    pub owner: usize,
    pub buffers: BufferSizes,
    pub layouts: Layouts,
    /// The layouts are not those of the logits.
    pub own_layouts: bool,
}

/// The lengths of the buffers of both outputs, or of the one that holds both.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum BufferSizes {
    Separate { cls: usize, boxes: usize },
    Joint(usize),
}

impl BufferSizes {
    fn both(self) -> [usize; 2] {
        match self {
            BufferSizes::Separate { cls, boxes } => [cls, boxes],
            BufferSizes::Joint(both) => [both, both],
        }
    }

    fn is_joint(self) -> bool {
        matches!(self, BufferSizes::Joint(_))
    }
}

/// The level whose buffers have the gradients of this one: the last up to it with buffers of its own.
pub(super) fn owner<M: Memory, T: Element, U: Element>(
    gradients: &[Gradients<M, T, U>],
    level: usize,
) -> Result<usize> {
    let has_own = |&level: &usize| !matches!(gradients.get(level), Some(Gradients::Shared));
    let reason = "there is no level before with buffers to share";
    (0..=level).rev().find(has_own).ok_or(Error::Layout { level, tensor: "gradients", reason })
}

impl LevelSizes {
    /// Of level number `number`, which has so many labels.
    pub fn new<M: Memory, T: Element, U: Element>(
        number: usize,
        level: &Level<M, T, U>,
        labels: usize,
        gradients: Option<&[Gradients<M, T, U>]>,
        layouts: Option<&[Layouts]>,
    ) -> Result<LevelSizes> {
        let targets = &level.targets;
        let length = |tensor: &Option<M::Slice<'_, T::Loss>>| tensor.as_ref().map(M::len);
        let of_logits = Layouts { cls: level.cls_layout, boxes: level.box_layout };
        let own = layouts.and_then(|layouts| layouts.get(number));
        let of_gradients = |gradients: &[Gradients<M, T, U>]| -> Result<Option<GradientSizes>> {
            let owner = owner(gradients, number)?;
            let buffers = match gradients.get(owner) {
                Some(Gradients::Separate { cls, boxes }) => {
                    BufferSizes::Separate { cls: M::len_mut(cls), boxes: M::len_mut(boxes) }
                }
                Some(Gradients::Joint(both)) => BufferSizes::Joint(M::len_mut(both)),
                // How many there are is another check.
                Some(Gradients::Shared) | None => return Ok(None),
            };
            let (layouts, own_layouts) = (*own.unwrap_or(&of_logits), own.is_some());
            Ok(Some(GradientSizes { owner, buffers, layouts, own_layouts }))
        };
        Ok(LevelSizes {
            height: level.height,
            width: level.width,
            stride: level.stride,
            points: match &level.points {
                Points::Grid { offset } => Ok(*offset),
                Points::Explicit(points) => Err(M::len(points)),
            },
            logits: match &level.logits {
                Logits::Separate { cls, boxes } => {
                    BufferSizes::Separate { cls: M::len(cls), boxes: M::len(boxes) }
                }
                Logits::Joint(both) => BufferSizes::Joint(M::len(both)),
            },
            cls_layout: level.cls_layout,
            box_layout: level.box_layout,
            labels,
            label_weights: length(&targets.label_weights),
            boxes: M::len(&targets.boxes),
            quality: length(&targets.quality),
            box_weights: length(&targets.box_weights),
            box_scores: length(&targets.box_scores),
            scores: length(&targets.scores),
            element_weights: length(&targets.element_weights),
            gradients: gradients.map_or(Ok(None), of_gradients)?,
        })
    }
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
        call.upstream.map_or(Ok(()), |actual| whole("upstream", actual, LOSSES * count))?;
        call.gradients.map_or(Ok(()), |actual| whole("gradients", actual, count))?;
        call.gradient_layouts.map_or(Ok(()), |actual| whole("gradient_layouts", actual, count))?;
        call.class_weights.map_or(Ok(()), |actual| whole("class_weights", actual, classes))?;
        whole("found_inf", call.found_inf, 1)?;
        levels.iter().enumerate().try_for_each(|(level, sizes)| self.check_level(level, call, sizes))?;
        self.check_shared(call, levels)
    }

    /// Class and box tensor of a level.
    fn shapes(
        &self,
        call: &CallSizes,
        sizes: &LevelSizes,
        layouts: Layouts,
        names: [&'static str; 2],
    ) -> [Shape; 2] {
        let (positions, channels) = (sizes.height * sizes.width, [call.classes, self.box_channels()]);
        [0, 1].map(|i| Shape {
            tensor: names[i],
            layout: [layouts.cls, layouts.boxes][i],
            batch: call.batch,
            channels: channels[i],
            width: sizes.width,
            positions,
        })
    }

    /// Whether gradients that are in one buffer are in different places of it.
    fn check_shared(&self, call: &CallSizes, levels: &[LevelSizes]) -> Result<()> {
        let mut before: Vec<(usize, usize, Places)> = Vec::new();
        for (level, sizes) in levels.iter().enumerate() {
            let Some(gradients) = sizes.gradients else { continue };
            for (i, shape) in self.shapes(call, sizes, gradients.layouts, GRADIENTS).into_iter().enumerate() {
                let Some(places) = shape.places() else { continue };
                let buffer = if gradients.buffers.is_joint() { 0 } else { i };
                let mut others =
                    before.iter().filter(|other| (other.0, other.1) == (gradients.owner, buffer));
                if !others.all(|(_, _, other)| places.are_apart_from(other)) {
                    let reason = "some of its elements may be in places of another gradient";
                    return Err(shape.error(level, reason));
                }
                before.push((gradients.owner, buffer, places));
            }
        }
        Ok(())
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

        let layouts = Layouts { cls: sizes.cls_layout, boxes: sizes.box_layout };
        let fits = |layouts, names, buffers: BufferSizes| {
            let shapes = self.shapes(call, sizes, layouts, names);
            shapes.iter().zip(buffers.both()).try_for_each(|(shape, len)| shape.check_reach(level, len))?;
            Ok(shapes)
        };
        fits(layouts, ["cls_logits", "box_logits"], sizes.logits)?;
        let joint_gradients = sizes.gradients.is_some_and(|gradients| gradients.buffers.is_joint());
        if !one_type && (sizes.logits.is_joint() || joint_gradients) {
            return Err(Error::JointTypes { level });
        }
        let Some(gradients) = sizes.gradients else { return Ok(()) };
        let shapes = fits(gradients.layouts, GRADIENTS, gradients.buffers)?;
        if sizes.logits.is_joint() != joint_gradients && !gradients.own_layouts {
            let reason = "they must be joint if the logits are";
            return Err(Error::Layout { level, tensor: "gradients", reason });
        }
        shapes.iter().try_for_each(|shape| shape.check_distinct(level))
    }
}

const GRADIENTS: [&str; 2] = ["cls_logits' gradient", "box_logits' gradient"];

/// A tensor of a level.
pub(crate) struct Shape {
    pub tensor: &'static str,
    pub layout: Layout,
    pub batch: usize,
    pub channels: usize,
    pub width: usize,
    pub positions: usize,
}

/// Extents and steps, images first.
type Axes = [(usize, usize); 4];

impl Shape {
    fn error(&self, level: usize, reason: &'static str) -> Error {
        Error::Layout { level, tensor: self.tensor, reason }
    }

    /// Those of rows are one if they follow each other.
    fn axes(&self) -> Axes {
        let Layout { batch, channel, position, .. } = self.layout;
        let [rows, columns] = match self.layout.pitch(self.positions) {
            Some(rows) => [(self.positions / self.width, rows.step), (self.width, position)],
            None => [(1, 0), (self.positions, position)],
        };
        [(self.batch, batch), (self.channels, channel), rows, columns]
    }

    /// Whether its rows are those of the level, and its last element is in a buffer of `len` elements.
    pub fn check_reach(&self, level: usize, len: usize) -> Result<()> {
        let (tensor, expected) = (self.tensor, self.width);
        if let Some(Rows { width: actual, .. }) = self.layout.rows
            && actual != expected
        {
            return Err(Error::RowWidth { level, tensor, actual, expected });
        }
        let axes = self.axes();
        if axes.iter().any(|&(extent, _)| extent == 0) {
            return Ok(());
        }
        let steps = axes.iter().map(|&(extent, step)| (extent as u128 - 1) * step as u128).sum::<u128>();
        let needed = self.layout.offset as u128 + steps + 1;
        if needed <= len as u128 {
            return Ok(());
        }
        Err(Error::Reach { level, tensor, actual: len, layout: Box::new(self.layout), needed })
    }

    /// Whether no two elements are in the same place, which gradients must not be. Called after
    /// `check_reach`, so that nothing overflows.
    pub fn check_distinct(&self, level: usize) -> Result<()> {
        let Some(places) = self.places() else { return Ok(()) };
        let mut reach = 0;
        for &(extent, step) in places.axes.iter().rev() {
            if step <= reach {
                return Err(self.error(level, "some of its elements may be in the same place"));
            }
            reach += (extent - 1) * step;
        }
        Ok(())
    }

    /// `None` without elements.
    fn places(&self) -> Option<Places> {
        let axes = self.axes();
        let mut places = Places { first: self.layout.offset as i128, axes: axes.to_vec() };
        places.axes.retain(|&(extent, _)| extent > 1);
        places.axes.sort_by_key(|&(_, step)| std::cmp::Reverse(step));
        axes.iter().all(|&(extent, _)| extent > 0).then_some(places)
    }
}

/// The places of a tensor whose elements are all in places of their own.
#[derive(Clone)]
struct Places {
    first: i128,
    /// Extents above 1 and steps, the largest step first.
    axes: Vec<(usize, usize)>,
}

impl Places {
    /// From the first place to the last.
    fn span(&self) -> i128 {
        self.axes.iter().map(|&(extent, step)| ((extent - 1) * step) as i128).sum()
    }

    /// Whether it is certain that no place is in both: one ends before the other begins, or they do so in
    /// each period of the largest step.
    fn are_apart_from(&self, other: &Places) -> bool {
        if self.first + self.span() < other.first || other.first + other.span() < self.first {
            return true;
        }
        let largest = |places: &Places| places.axes.first().map_or(0, |&(_, step)| step);
        let period = largest(self).max(largest(other));
        let within = |places: &Places| {
            let mut places = places.clone();
            places.axes.retain(|&(_, step)| step != period);
            places
        };
        let (one, mut two) = (within(self), within(other));
        let period = period as i128;
        if one.span() >= period || two.span() >= period {
            return false;
        }
        two.first = one.first + (two.first - one.first).rem_euclid(period);
        let here = one.are_apart_from(&two);
        two.first -= period;
        here && one.are_apart_from(&two)
    }
}
