//! Reading a level of a head.

use gfocal::head::Layout;

use super::args::LevelArgs;
use super::choices::BoxesChoice;
use super::scene::{Axes, Pair, SceneLevel, Tensor};
use super::targets::LevelTargets;
use super::{options, raw};
use crate::assign::{Place, PointSource, check_size, positions_of};
use crate::case::Case;
use crate::error::{Error, Result};
use crate::file::{Input, Tensors};
use crate::floats::Dtype;
use crate::words::count;

/// The levels of a file, finest first, and what they have in common.
pub struct Levels<'a, L> {
    pub readers: Vec<LevelReader<'a>>,
    pub places: Vec<Place>,
    pub levels: Vec<L>,
    pub axes: Axes,
    /// Whether all were in one tensor.
    pub whole_raw: bool,
}

/// Reads the tensors of a level.
pub struct LevelReader<'a> {
    pub input: &'a Input,
    pub tensors: &'a Tensors<'a>,
    pub args: &'a LevelArgs,
    case: &'a Case,
    /// That of a grid, unless option or file tell another.
    offset: f64,
    level: usize,
    stride: f64,
}

/// The box logits of a level, perhaps beside those of classes.
pub struct BoxLevel {
    pub logits: Tensor,
    pub layout: Layout,
}

/// The axes of a tensor of logits.
struct Shape {
    batch: usize,
    channels: usize,
    size: [usize; 2],
    layout: Layout,
}

impl<'a, L> Levels<'a, L> {
    /// Those that have a tensor, or are in one. `offset`: that of a grid, unless option or file tell another.
    pub fn read(
        input: &'a Input,
        tensors: &'a Tensors<'a>,
        args: &'a LevelArgs,
        case: &'a Case,
        offset: f64,
        tensor: &str,
        read: impl Fn(&LevelReader, Option<&raw::Outputs>) -> Result<(Place, L, Axes)>,
    ) -> Result<Self> {
        let outputs = if args.raw { raw::Outputs::read(input, tensors, args, case)? } else { None };
        let name = |i: usize| format!("level{i}.{}", if args.raw { "raw" } else { tensor });
        let count = match &outputs {
            Some(outputs) => outputs.levels(),
            None => (0..).take_while(|&i| tensors.has(&name(i))).count(),
        };
        if count == 0 {
            return Err(tensors.missing(name(0)));
        }
        let strides = case.strides(input, &args.strides, Some(count))?;
        let reader = |(level, stride)| LevelReader { input, tensors, args, case, offset, level, stride };
        let readers: Vec<_> = strides.into_iter().enumerate().map(reader).collect();
        let (mut places, mut levels, mut axes) = (Vec::new(), Vec::new(), Vec::new());
        for (i, reader) in readers.iter().enumerate() {
            let (place, level, of_level) = read(reader, outputs.as_ref())?;
            axes.push(of_level);
            axes[0].check_same(input, i, of_level)?;
            places.push(place);
            levels.push(level);
        }
        options::check_bins(input, args, case, axes[0].bins)?;
        Ok(Levels { readers, places, levels, axes: axes[0], whole_raw: outputs.is_some() })
    }
}

impl LevelReader<'_> {
    pub fn name(&self, tensor: &str) -> String {
        format!("level{}.{tensor}", self.level)
    }

    /// Where the level is, and its logits. `outputs` are those of all levels, if they are in one tensor.
    pub fn read(
        &self,
        outputs: Option<&raw::Outputs>,
        dtype: Option<Dtype>,
    ) -> Result<(Place, SceneLevel, Axes)> {
        let (logits, [cls, boxes]) = match self.joint(outputs)? {
            Some((both, shapes)) => (Pair::Joint(both), shapes),
            None => self.separate()?,
        };
        let logits = logits.map(|tensor| tensor.to(dtype));
        let (place, bins) = self.place(&boxes, logits.cls().numbers.dtype())?;
        let targets = LevelTargets::default();
        let level = SceneLevel { logits, cls_layout: cls.layout, box_layout: boxes.layout, targets };
        Ok((place, level, Axes { batch: cls.batch, classes: cls.channels, bins }))
    }

    /// The same without class logits, where they are apart.
    pub fn read_boxes(
        &self,
        outputs: Option<&raw::Outputs>,
        dtype: Option<Dtype>,
    ) -> Result<(Place, BoxLevel, Axes)> {
        let (logits, classes, boxes) = match self.joint(outputs)? {
            Some((both, [cls, boxes])) => (both, cls.channels, boxes),
            None => {
                let (logits, boxes) = self.tensor("box_logits")?;
                (logits, 0, boxes)
            }
        };
        let logits = logits.to(dtype);
        let (place, bins) = self.place(&boxes, logits.numbers.dtype())?;
        let level = BoxLevel { logits, layout: boxes.layout };
        Ok((place, level, Axes { batch: boxes.batch, classes, bins }))
    }

    /// Where it is, as it goes with logits of a type, and how many logits a side of a box has.
    fn place(&self, boxes: &Shape, logits: Dtype) -> Result<(Place, usize)> {
        let (stride, size @ [height, width]) = (self.stride, boxes.size);
        let bins = self.bins(boxes.channels)?;
        check_size(self.input, self.level, size, stride, self.image())?;
        let points = self.points([boxes.batch, height * width], logits)?;
        Ok((Place { height, width, stride, points }, bins))
    }

    /// How many logits a side of a box has.
    fn bins(&self, channels: usize) -> Result<usize> {
        let boxes = self.args.boxes();
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
        let ((cls, cls_axes), (boxes, box_axes)) = (self.tensor("cls_logits")?, self.tensor("box_logits")?);
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

    fn tensor(&self, tensor: &str) -> Result<(Tensor, Shape)> {
        let name = self.name(tensor);
        let (shape, numbers) = self.tensors.floats(&name)?;
        let axes = self.shape(&name, &shape)?;
        Ok((Tensor { shape, numbers }, axes))
    }

    /// Both outputs in one tensor, with the channels of boxes first; `None` if they are apart.
    fn joint(&self, outputs: Option<&raw::Outputs>) -> Result<Option<(Tensor, [Shape; 2])>> {
        let (name, tensor, size) = match outputs {
            Some(outputs) => {
                let (size, tensor) = outputs.level(self.level);
                ("raw".to_owned(), tensor, Some(size))
            }
            None if self.args.raw => {
                let name = self.name("raw");
                let (shape, numbers) = self.tensors.floats(&name)?;
                (name, Tensor { shape, numbers }, None)
            }
            None => return Ok(None),
        };
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
        let of_boxes = raw::box_channels(self.input, &name, channels, self.args, self.case)?;
        let layout = Layout::nchw(channels, size[0] * size[1]);
        let boxes = Shape { batch, channels: of_boxes, size, layout };
        let cls = Shape { batch, channels: channels - of_boxes, size, layout: layout.from_channel(of_boxes) };
        Ok(Some((tensor, [cls, boxes])))
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

    fn image(&self) -> Option<[usize; 2]> {
        self.args.image_size.or(self.case.image_hw)
    }

    fn points(&self, anchors: [usize; 2], logits: Dtype) -> Result<PointSource> {
        match self.args.offset {
            Some(offset) => Ok(PointSource::Grid(offset)),
            None => {
                let offset = self.case.offset.unwrap_or(self.offset);
                PointSource::read(self.input, self.tensors, self.level, anchors, offset, logits)
            }
        }
    }

    pub fn wrong_shape(&self, tensor: String, found: Vec<usize>, expected: &[usize]) -> Error {
        self.input.head(format!("{tensor} has the shape {found:?}; the level's logits need {expected:?}"))
    }
}
