//! What `gfocal head` takes from a file.

use gfocal::head::{HeadLoss, Layout};

use super::args::SceneArgs;
use super::choices::{NormaliserChoice, Profile};
use super::level::LevelReader;
use super::options;
use super::raw;
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
        let profile = args.profile.unwrap_or(Profile::Mmdetection);
        let outputs = if args.raw { raw::Outputs::read(input, &tensors, args, &case)? } else { None };
        let count = match &outputs {
            Some(outputs) => outputs.levels(),
            None => levels_with(&tensors, if args.raw { "raw" } else { "cls_logits" })?,
        };
        let strides = case.strides(input, &args.strides, Some(count))?;

        let (mut places, mut levels, mut axes) = (Vec::new(), Vec::new(), None);
        let reader = |level: usize| {
            let stride = strides[level];
            LevelReader { input, tensors: &tensors, args, case: &case, profile, level, stride, dtype }
        };
        for i in 0..count {
            let (place, level, of_level) = reader(i).read(outputs.as_ref())?;
            let first: Axes = *axes.get_or_insert(of_level);
            first.check_same(input, i, of_level)?;
            places.push(place);
            levels.push(level);
        }
        let Some(axes) = axes else { return Err(tensors.missing("level0.cls_logits")) };
        let Axes { batch, classes, bins } = axes;
        options::check_bins(input, args, &case, profile, bins)?;
        options::check_classes(input, args, &case, classes)?;
        check_types(input, &levels)?;

        let assignment = if args.assign {
            check_anchors(input, &places, batch)?;
            let assigner = Assigner::new(input, &args.assigner, &case, args.background, places.len())?;
            let (ignores, image) = (args.assigner.ignore_iof.is_some(), args.image_size.or(case.image_hw));
            Some((Truth::read(input, &tensors, ignores, batch, image)?, assigner))
        } else {
            None
        };
        let head = options::head(profile, bins, &tensors, args, &case)?;
        let reads = options::reads(args, profile, &tensors);
        for (i, level) in levels.iter_mut().enumerate() {
            let reader = LevelReader { dtype: Some(level.logits.cls().numbers.dtype()), ..reader(i) };
            level.targets = LevelTargets::read(&reader, axes, places[i].positions(), reads)?;
        }
        let dtype = levels[0].logits.cls().numbers.dtype();
        let class_weights = class_weights(input, &tensors, classes, dtype)?;
        let (normaliser, whole_raw) = (options::normaliser(args, profile), outputs.is_some());
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
    pub fn to(self, dtype: Dtype) -> Tensor {
        Tensor { numbers: self.numbers.to(dtype), ..self }
    }
}

impl Axes {
    fn check_same(self, input: &Input, level: usize, other: Axes) -> Result<()> {
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

/// How many levels have a tensor.
fn levels_with(tensors: &Tensors, tensor: &str) -> Result<usize> {
    match (0..).take_while(|i| tensors.has(&format!("level{i}.{tensor}"))).count() {
        0 => Err(tensors.missing(format!("level0.{tensor}"))),
        count => Ok(count),
    }
}

/// Class logits of all levels are of one type, and so are box logits.
fn check_types(input: &Input, levels: &[SceneLevel]) -> Result<()> {
    let types = |level: &SceneLevel| {
        [level.logits.cls(), level.logits.boxes()].map(|tensor| tensor.numbers.dtype().name())
    };
    let first = types(&levels[0]);
    let Some(i) = levels.iter().position(|level| types(level) != first) else { return Ok(()) };
    let both = |[cls, boxes]: [&str; 2]| format!("class logits of {cls} and box logits of {boxes}");
    Err(input.head(format!(
        "level 0 has {}, level {i} {}; make them the same with --dtype",
        both(first),
        both(types(&levels[i]))
    )))
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
