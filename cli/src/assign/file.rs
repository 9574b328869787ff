//! What `gfocal assign` takes from a file.

use std::ops::RangeInclusive;

use super::place::{Place, PointSource, check_size, positions_of};
use super::{AssignArgs, Assigner, Problem, Truth};
use crate::case::Case;
use crate::error::Result;
use crate::file::{Input, Tensors};
use crate::floats::Dtype;
use crate::words::count;

/// Ground truth, and where anchors are.
pub struct File {
    places: Vec<Place>,
    batch: usize,
    classes: usize,
    truth: Truth,
    assigner: Assigner,
}

/// Where the positions of the levels come from, best first.
const TENSORS: [&str; 3] = ["points", "anchors", "cls_logits"];

impl File {
    pub fn read(input: &Input, args: &AssignArgs) -> Result<File> {
        let (tensors, case) = (input.tensors()?, Case::read(input)?);
        let reader = Reader { input, tensors: &tensors, args, case: &case };
        let of_levels =
            |tensor: &str| (0..).take_while(|i| tensors.has(&format!("level{i}.{tensor}"))).count();
        let levels = TENSORS.iter().map(|tensor| of_levels(tensor)).max().filter(|&levels| levels > 0);
        let strides = case.strides(input, &args.strides, levels)?;
        let sizes: Result<Vec<[usize; 2]>> =
            strides.iter().enumerate().map(|(level, &stride)| reader.size(level, stride)).collect();
        let (sizes, batch, classes) = (sizes?, reader.batch()?, reader.classes()?);

        let mut places = Vec::new();
        for (level, (&stride, [height, width])) in strides.iter().zip(sizes).enumerate() {
            let points = reader.points(level, batch, height * width)?;
            let place = Place { height, width, stride, points };
            if !place.same_for_all(batch) {
                let reason = format!(
                    "the anchors of level {level} differ between images; an assignment needs the same for all"
                );
                return Err(input.head(reason));
            }
            places.push(place);
        }
        let anchors: usize = places.iter().map(Place::positions).sum();
        if anchors.checked_mul(batch).is_none_or(|all| all > i32::MAX as usize) {
            return Err(input.head(format!(
                "{} of {} are more than can be assigned; give --images",
                count(batch, "image", "images"),
                count(anchors, "anchor", "anchors")
            )));
        }
        let assigner = Assigner::new(input, &args.assigner, &case, args.background, places.len())?;
        let truth = Truth::read(input, &tensors, args.assigner.ignore_iof.is_some(), batch, reader.image())?;
        Ok(File { places, batch, classes, truth, assigner })
    }

    pub fn problem(&self) -> Problem<'_> {
        let File { places, batch, classes, truth, assigner } = self;
        Problem { places, batch: *batch, classes: *classes, truth, assigner }
    }
}

struct Reader<'a> {
    input: &'a Input,
    tensors: &'a Tensors<'a>,
    args: &'a AssignArgs,
    case: &'a Case,
}

impl Reader<'_> {
    /// The shape of a tensor of a level, if it is there.
    fn shape(&self, level: usize, tensor: &str) -> Option<Vec<usize>> {
        self.tensors.shape(&format!("level{level}.{tensor}"))
    }

    /// Rows and columns of the positions of a level.
    fn size(&self, level: usize, stride: f64) -> Result<[usize; 2]> {
        let image = self.image();
        let size = match (self.shape(level, "cls_logits").as_deref(), self.explicit(level)) {
            (Some(&[_, _, height, width]), _) => [height, width],
            (_, Some(positions)) => match image.map(|image| positions_of(image, stride)) {
                Some(size) if size[0].checked_mul(size[1]) == Some(positions) => size,
                Some([rows, columns]) => {
                    return Err(self.input.head(format!(
                        "level {level} has {}, and images of that size have {rows}x{columns} at stride {stride}",
                        count(positions, "anchor point", "anchor points")
                    )));
                }
                None => [1, positions],
            },
            (_, None) => match image {
                Some(image) => positions_of(image, stride),
                None => {
                    return Err(self.input.head(format!(
                        "nothing tells the positions of level {level}; give --image-size, or level{level}.points"
                    )));
                }
            },
        };
        check_size(self.input, level, size, stride, image)?;
        let few = size[0].checked_mul(size[1]).is_some_and(|positions| positions <= i32::MAX as usize);
        let [rows, columns] = size;
        let many = || {
            self.input.head(format!("level {level} has {rows}x{columns} positions, which nothing can hold"))
        };
        few.then_some(size).ok_or_else(many)
    }

    fn image(&self) -> Option<[usize; 2]> {
        self.args.image_size.or(self.case.image_hw)
    }

    /// How many anchor points or anchors a level has, if they are given.
    fn explicit(&self, level: usize) -> Option<usize> {
        if self.args.offset.is_some() {
            return None;
        }
        let shape = self.shape(level, "points").or_else(|| self.shape(level, "anchors"))?;
        shape.len().checked_sub(2).map(|axis| shape[axis])
    }

    fn points(&self, level: usize, batch: usize, positions: usize) -> Result<PointSource> {
        match self.args.offset {
            Some(offset) => Ok(PointSource::Grid(offset)),
            None => {
                let offset = self.case.offset.unwrap_or(self.args.assigner.choice().offset());
                PointSource::read(self.input, self.tensors, level, [batch, positions], offset, Dtype::F32)
            }
        }
    }

    /// How many images there are: those that a tensor is for, else those that boxes are in.
    fn batch(&self) -> Result<usize> {
        if let Some(images) = self.args.images {
            return Ok(images);
        }
        let of_images = |shape: Option<Vec<usize>>, axes: RangeInclusive<usize>| {
            shape.filter(|shape| axes.contains(&shape.len())).map(|shape| shape[0])
        };
        let told = of_images(self.shape(0, "cls_logits"), 3..=4)
            .or_else(|| of_images(self.shape(0, "anchors"), 3..=3))
            .or_else(|| of_images(self.shape(0, "points"), 3..=3))
            .or_else(|| of_images(self.tensors.shape("valid_hw"), 2..=2))
            .or_else(|| of_images(self.tensors.shape_unread("level0.labels"), 2..=2));
        if let Some(images) = told {
            return Ok(images);
        }
        let (_, images) = self.tensors.labels("gt_image")?;
        let last = (0..images.len()).map(|i| images.get(i)).max().unwrap_or(-1);
        match usize::try_from(last).ok().and_then(|last| last.checked_add(1)) {
            Some(images) if images <= i32::MAX as usize => Ok(images),
            _ => Err(self.input.head("nothing tells how many images there are; give --images")),
        }
    }

    fn classes(&self) -> Result<usize> {
        let of_logits = |shape: Vec<usize>| match *shape {
            [_, classes, _, _] | [_, _, classes] => Some(classes),
            _ => None,
        };
        let classes = match self.args.classes.or(self.case.num_classes) {
            Some(classes) => Some(classes),
            None => self.shape(0, "cls_logits").and_then(of_logits),
        };
        let none = "nothing tells how many classes there are; give --classes";
        classes.filter(|&classes| classes > 0).ok_or_else(|| self.input.head(none))
    }
}
