//! Reading a level of a head.

use gfocal::head::Layout;

use super::args::SceneArgs;
use super::choices::{BoxesChoice, Profile};
use super::raw;
use super::scene::{Axes, Pair, SceneLevel, Tensor};
use super::targets::LevelTargets;
use crate::assign::{AssignerChoice, Place, PointSource, check_size, positions_of};
use crate::case::Case;
use crate::error::{Error, Result};
use crate::file::{Input, Tensors};
use crate::floats::Dtype;
use crate::words::count;

/// Reads the tensors of a level.
pub struct LevelReader<'a> {
    pub input: &'a Input,
    pub tensors: &'a Tensors<'a>,
    pub args: &'a SceneArgs,
    pub case: &'a Case,
    pub profile: Profile,
    pub level: usize,
    pub stride: f64,
    /// The type of the class logits, if it is known: that all logits are converted to, or that was read.
    pub dtype: Option<Dtype>,
}

/// The axes of a tensor of logits.
struct Shape {
    batch: usize,
    channels: usize,
    size: [usize; 2],
    layout: Layout,
}

impl LevelReader<'_> {
    pub fn name(&self, tensor: &str) -> String {
        format!("level{}.{tensor}", self.level)
    }

    /// Where the level is, and its logits. `outputs` are those of all levels, if they are in one tensor.
    pub fn read(&self, outputs: Option<&raw::Outputs>) -> Result<(Place, SceneLevel, Axes)> {
        let (logits, shapes) = match (outputs, self.args.raw) {
            (Some(outputs), _) => {
                let (size, tensor) = outputs.level(self.level);
                self.joint("raw".to_owned(), tensor, Some(size))?
            }
            (None, true) => {
                let name = self.name("raw");
                let (shape, numbers) = self.tensors.floats(&name)?;
                self.joint(name, Tensor { shape, numbers }, None)?
            }
            (None, false) => self.separate()?,
        };
        let [cls, boxes] = shapes;
        let (batch, [height, width]) = (cls.batch, cls.size);
        let bins = self.bins(boxes.channels)?;
        self.check_size(cls.size)?;
        let logits = match self.dtype {
            Some(dtype) => logits.map(|tensor| tensor.to(dtype)),
            None => logits,
        };
        let points = self.points([batch, height * width], logits.cls().numbers.dtype())?;
        let place = Place { height, width, stride: self.stride, points };
        let targets = LevelTargets::default();
        let level = SceneLevel { logits, cls_layout: cls.layout, box_layout: boxes.layout, targets };
        Ok((place, level, Axes { batch, classes: cls.channels, bins }))
    }

    /// How many logits a side of a box has.
    fn bins(&self, channels: usize) -> Result<usize> {
        let boxes = self.args.boxes.unwrap_or_default();
        match (boxes, channels) {
            (BoxesChoice::Bins, 8..) if channels.is_multiple_of(4) => Ok(channels / 4),
            (BoxesChoice::Exp | BoxesChoice::Relu, 4) => Ok(1),
            (BoxesChoice::Bins, _) => Err(self.input.head(format!(
                "{} has {}; there must be 4 K of them, for K >= 2 bins a side (4 are for --boxes exp or relu)",
                self.name("box_logits"),
                count(channels, "channel", "channels")
            ))),
            (BoxesChoice::Exp | BoxesChoice::Relu, _) => Err(self.input.head(format!(
                "{} has {}; with --boxes {} there must be 4",
                self.name("box_logits"),
                count(channels, "channel", "channels"),
                boxes.name()
            ))),
        }
    }

    fn separate(&self) -> Result<(Pair<Tensor>, [Shape; 2])> {
        let tensor = |tensor: &str| -> Result<(Tensor, Shape)> {
            let name = self.name(tensor);
            let (shape, numbers) = self.tensors.floats(&name)?;
            let axes = self.shape(&name, &shape)?;
            Ok((Tensor { shape, numbers }, axes))
        };
        let ((cls, cls_axes), (boxes, box_axes)) = (tensor("cls_logits")?, tensor("box_logits")?);
        if (cls_axes.batch, cls_axes.size) != (box_axes.batch, box_axes.size) {
            return Err(self.input.head(format!(
                "{} has the shape {:?} and {} {:?}; batch and positions must be the same",
                self.name("cls_logits"),
                cls.shape,
                self.name("box_logits"),
                boxes.shape
            )));
        }
        Ok((Pair::Separate([cls, boxes]), [cls_axes, box_axes]))
    }

    /// Both outputs in one tensor, with the channels of boxes first.
    fn joint(
        &self,
        name: String,
        tensor: Tensor,
        size: Option<[usize; 2]>,
    ) -> Result<(Pair<Tensor>, [Shape; 2])> {
        let (batch, channels, size) = match (&*tensor.shape, size) {
            (&[batch, channels, height, width], _) => (batch, channels, [height, width]),
            (&[batch, channels, _], Some(size)) => (batch, channels, size),
            (&[batch, channels, positions], None) => {
                (batch, channels, self.size_of(&name, "one axis of positions", positions)?)
            }
            (shape, _) => {
                return Err(self.input.head(format!(
                    "{name} has the shape {shape:?}; it must be [B, 4K + C, H, W] or [B, 4K + C, H*W]"
                )));
            }
        };
        self.positions(&name, size)?;
        let of_boxes = raw::box_channels(self.input, &name, channels, self.args, self.case, self.profile)?;
        let layout = Layout::nchw(channels, size[0] * size[1]);
        let boxes = Shape { batch, channels: of_boxes, size, layout };
        let cls = Shape { batch, channels: channels - of_boxes, size, layout: layout.from_channel(of_boxes) };
        Ok((Pair::Joint(tensor), [cls, boxes]))
    }

    fn shape(&self, name: &str, shape: &[usize]) -> Result<Shape> {
        match *shape {
            [batch, channels, height, width] => {
                let positions = self.positions(name, [height, width])?;
                let layout = Layout::nchw(channels, positions);
                Ok(Shape { batch, channels, size: [height, width], layout })
            }
            [batch, positions, channels] => {
                let size = self.size_of(name, "channels last", positions)?;
                Ok(Shape { batch, channels, size, layout: Layout::channels_last(channels, positions) })
            }
            _ => Err(self.input.head(format!(
                "{name} has the shape {shape:?}; it must be [B, channels, H, W] or [B, H*W, channels]"
            ))),
        }
    }

    /// Height and width of a level of which only their product is told.
    fn size_of(&self, name: &str, why: &str, positions: usize) -> Result<[usize; 2]> {
        if let Some(image) = self.image() {
            let size = positions_of(image, self.stride);
            if size[0].checked_mul(size[1]) == Some(positions) {
                return Ok(size);
            }
            return Err(self.input.head(format!(
                "{name} has {}; an image of {}x{} pixels has {}x{} at stride {}",
                count(positions, "position", "positions"),
                image[0],
                image[1],
                size[0],
                size[1],
                self.stride
            )));
        }
        if self.tensors.has(&self.name("anchors")) || self.tensors.has(&self.name("points")) {
            return Ok([1, positions]); // the points say where they are
        }
        Err(self.input.head(format!("{name} has {why}, so give --image-size")))
    }

    fn positions(&self, name: &str, [height, width]: [usize; 2]) -> Result<usize> {
        let many =
            || self.input.head(format!("{name} has {height}x{width} positions, which nothing can hold"));
        height.checked_mul(width).filter(|&positions| positions <= i32::MAX as usize).ok_or_else(many)
    }

    fn check_size(&self, size: [usize; 2]) -> Result<()> {
        check_size(self.input, self.level, size, self.stride, self.image())
    }

    fn image(&self) -> Option<[usize; 2]> {
        self.args.image_size.or(self.case.image_hw)
    }

    fn points(&self, anchors: [usize; 2], logits: Dtype) -> Result<PointSource> {
        match self.args.offset {
            Some(offset) => Ok(PointSource::Grid(offset)),
            None => {
                let offset = match self.args.assigner.choice() {
                    AssignerChoice::Fcos => AssignerChoice::Fcos.offset(),
                    AssignerChoice::Atss => self.profile.offset(),
                };
                let offset = self.case.offset.unwrap_or(offset);
                PointSource::read(self.input, self.tensors, self.level, anchors, offset, logits)
            }
        }
    }

    pub fn wrong_shape(&self, tensor: String, found: Vec<usize>, expected: &[usize]) -> Error {
        self.input.head(format!("{tensor} has the shape {found:?}; the level's logits need {expected:?}"))
    }
}
