//! What `gfocal head` takes from a file.

use gfocal::head::{HeadLoss, Layout};

use super::args::SceneArgs;
use super::choices::{NormaliserChoice, Profile};
use super::level::{LevelReader, Levels};
use super::options;
use super::targets::LevelTargets;
use crate::assign::{Assigner, AssignerChoice, Place, Problem, Truth};
use crate::case::Case;
use crate::error::Result;
use crate::file::{Input, Tensors};
use crate::floats::{Dtype, Floats};
use crate::words::count;

/// A head's outputs, and what they are to become.
pub struct Scene {
    pub profile: Profile,
    pub head: HeadLoss,
    pub normaliser: NormaliserChoice,
    pub batch: usize,
    pub classes: usize,
    pub places: Vec<Place>,
    pub levels: Vec<SceneLevel>,
    /// Whether all levels were in one tensor.
    pub whole_raw: bool,
    /// `[C]`.
    pub class_weights: Option<Vec<f64>>,
    /// If targets are to be assigned.
    pub assignment: Option<(Truth, Assigner)>,
}

/// One level, of which [`Scene::places`] tells where it is.
pub struct SceneLevel {
    pub logits: Pair<Tensor>,
    pub cls_layout: Layout,
    pub box_layout: Layout,
    /// Without labels and boxes if they are to be assigned.
    pub targets: LevelTargets,
}

/// Of class and box logits.
#[derive(Clone)]
pub enum Pair<T> {
    /// One for each.
    Separate([T; 2]),
    /// One for both.
    Joint(T),
}

/// Numbers in a shape.
#[derive(Clone)]
pub struct Tensor {
    pub shape: Vec<usize>,
    pub numbers: Floats,
}

/// The axes of a level's outputs.
#[derive(Clone, Copy, PartialEq)]
pub struct Axes {
    pub batch: usize,
    pub classes: usize,
    /// How many logits a side of a box has.
    pub bins: usize,
}

impl<T> Pair<T> {
    pub fn cls(&self) -> &T {
        match self {
            Pair::Separate([cls, _]) => cls,
            Pair::Joint(both) => both,
        }
    }

    pub fn boxes(&self) -> &T {
        match self {
            Pair::Separate([_, boxes]) => boxes,
            Pair::Joint(both) => both,
        }
    }

    pub fn map<U>(self, mut to: impl FnMut(T) -> U) -> Pair<U> {
        match self {
            Pair::Separate(both) => Pair::Separate(both.map(to)),
            Pair::Joint(both) => Pair::Joint(to(both)),
        }
    }
}

impl Scene {
    pub fn read(input: &Input, args: &SceneArgs, dtype: Option<Dtype>) -> Result<Scene> {
        options::check(args)?;
        let (tensors, case) = (input.tensors()?, Case::read(input)?);
        let profile = args.levels.profile();
        let offset = match args.assigner.choice() {
            AssignerChoice::Fcos => AssignerChoice::Fcos.offset(),
            AssignerChoice::Atss => profile.offset(),
        };
        let read = |reader: &LevelReader, outputs: Option<&_>| reader.read(outputs, dtype);
        let levels = Levels::read(input, &tensors, &args.levels, &case, offset, "cls_logits", read)?;
        let Levels { readers, places, mut levels, axes, whole_raw } = levels;
        let Axes { batch, classes, bins } = axes;
        options::check_classes(input, &args.levels, &case, classes)?;
        check_types(input, levels.iter().map(SceneLevel::types))?;

        let assignment = if args.assign {
            check_anchors(input, &places, batch)?;
            let assigner = Assigner::new(input, &args.assigner, &case, args.background, places.len())?;
            let (ignores, image) =
                (args.assigner.ignore_iof.is_some(), args.levels.image_size.or(case.image_hw));
            Some((Truth::read(input, &tensors, ignores, batch, image)?, assigner))
        } else {
            None
        };
        let head = options::head(profile, bins, &tensors, args, &case)?;
        let reads = options::reads(args, profile, &tensors);
        let dtype = levels[0].logits.cls().numbers.dtype();
        for ((level, reader), place) in levels.iter_mut().zip(&readers).zip(&places) {
            level.targets = LevelTargets::read(reader, args, axes, place.positions(), reads, dtype)?;
        }
        let class_weights = class_weights(input, &tensors, classes, dtype)?;
        let normaliser = options::normaliser(args, profile);
        Ok(Scene {
            profile,
            head,
            normaliser,
            batch,
            classes,
            places,
            levels,
            whole_raw,
            class_weights,
            assignment,
        })
    }

    /// What is to be assigned, and how.
    pub fn problem(&self) -> Option<Problem<'_>> {
        let (truth, assigner) = self.assignment.as_ref()?;
        let Scene { places, batch, classes, .. } = self;
        Some(Problem { places, batch: *batch, classes: *classes, truth, assigner })
    }

    pub fn assigner(&self) -> Option<AssignerChoice> {
        self.assignment.as_ref().map(|(_, assigner)| assigner.choice())
    }

    /// The types of class and box logits.
    pub fn dtypes(&self) -> [Dtype; 2] {
        let logits = &self.levels[0].logits;
        [logits.cls().numbers.dtype(), logits.boxes().numbers.dtype()]
    }

    /// Their names, or the name of both.
    pub fn dtype(&self) -> String {
        let [cls, boxes] = self.dtypes().map(Dtype::name);
        if cls == boxes { cls.to_owned() } else { format!("{cls} and {boxes}") }
    }
}

impl Tensor {
    pub fn to(self, dtype: impl Into<Option<Dtype>>) -> Tensor {
        match dtype.into() {
            Some(dtype) => Tensor { numbers: self.numbers.to(dtype), ..self },
            None => self,
        }
    }
}

impl SceneLevel {
    fn types(&self) -> String {
        let [cls, boxes] =
            [self.logits.cls(), self.logits.boxes()].map(|tensor| tensor.numbers.dtype().name());
        format!("class logits of {cls} and box logits of {boxes}")
    }
}

impl Axes {
    /// Refuses a level that is not as the first.
    pub fn check_same(self, input: &Input, level: usize, other: Axes) -> Result<()> {
        if self == other {
            return Ok(());
        }
        let of = |axes: Axes| [axes.batch, axes.classes, axes.bins];
        Err(input.head(format!(
            "level {level} has batch, classes and bins {:?}, level 0 has {:?}; they must be the same",
            of(other),
            of(self)
        )))
    }
}

/// The types of all levels, in words, are those of the first.
pub fn check_types(input: &Input, levels: impl Iterator<Item = String>) -> Result<()> {
    let levels: Vec<String> = levels.collect();
    let Some(i) = levels.iter().position(|types| *types != levels[0]) else { return Ok(()) };
    let [first, other] = [0, i].map(|i| &levels[i]);
    Err(input.head(format!("level 0 has {first}, level {i} {other}; make them the same with --dtype")))
}

/// `[C]`, if there are any.
fn class_weights(
    input: &Input,
    tensors: &Tensors,
    classes: usize,
    logits: Dtype,
) -> Result<Option<Vec<f64>>> {
    if !tensors.has("class_weights") {
        return Ok(None);
    }
    match tensors.floats("class_weights")? {
        (shape, weights) if *shape == [classes] => Ok(Some(weights.beside(logits))),
        (shape, _) => Err(input.head(format!(
            "class_weights has the shape {shape:?}; {} {:?}",
            count(classes, "class needs", "classes need"),
            [classes]
        ))),
    }
}

/// An assignment has the same anchors for all images.
fn check_anchors(input: &Input, places: &[Place], batch: usize) -> Result<()> {
    let Some(i) = places.iter().position(|place| !place.same_for_all(batch)) else { return Ok(()) };
    let reason = format!("the anchors of level {i} differ between images; --assign needs the same for all");
    Err(input.head(reason))
}
