//! The head that options, metadata and a profile make.

use gfocal::head::{BoxWeight, HeadLoss, QualitySource};
use gfocal::{DistributionFocalLoss, QualityFocalLoss};

use super::args::{LevelArgs, SceneArgs};
use super::choices::{BoxesChoice, NormaliserChoice, Profile};
use super::targets::Reads;
use crate::case::Case;
use crate::error::{Error, Result};
use crate::file::{Input, Tensors};
use crate::words::count;

/// An option, else what the metadata say unless a profile was asked for, else the profile's.
pub fn head(
    profile: Profile,
    bins: usize,
    tensors: &Tensors,
    args: &SceneArgs,
    case: &Case,
) -> Result<HeadLoss> {
    let head = profile.head().with_box_coding(args.levels.boxes().coding(bins))?;
    let told = |value: Option<f64>| if args.levels.profile.is_some() { None } else { value };
    let (qfl, dfl) = (head.qfl(), head.dfl());
    let beta = args.beta.or(told(case.beta)).unwrap_or(qfl.beta());
    let cls_weight = args.cls_weight.or(told(case.weights.qfl)).unwrap_or(qfl.loss_weight());
    let dfl_weight = args.dfl_weight.or(told(case.weights.dfl)).unwrap_or(dfl.loss_weight());
    let iou_weight = args.iou_weight.or(told(case.weights.giou)).unwrap_or(head.iou_weight());
    let eps = args.target_eps.unwrap_or(dfl.target_eps());
    let mut qfl =
        QualityFocalLoss::new(beta)?.with_loss_weight(cls_weight)?.with_background(args.background.into());
    if let Some(alpha) = args.alpha {
        qfl = qfl.with_alpha(alpha)?;
    }
    if let Some(label) = args.ignore_label {
        qfl = qfl.with_ignore_label(label);
    }
    let Reads { quality, box_weight } = reads(args, profile, tensors);
    Ok(head
        .with_quality(quality)
        .with_box_weight(box_weight)
        .with_normaliser(normaliser(args, profile).into())
        .with_qfl(qfl)
        .with_dfl(DistributionFocalLoss::new(eps)?.with_loss_weight(dfl_weight)?)
        .with_iou(args.iou.map_or(head.iou(), Into::into), iou_weight)?)
}

/// What the losses are divided by.
pub fn normaliser(args: &SceneArgs, profile: Profile) -> NormaliserChoice {
    args.normaliser.unwrap_or(match profile {
        Profile::Mmdetection => NormaliserChoice::Mmdetection,
        Profile::Nanodet => NormaliserChoice::Nanodet,
        Profile::Ultralytics => NormaliserChoice::Ultralytics,
    })
}

/// Where quality and weight of a positive come from.
pub fn reads(args: &SceneArgs, profile: Profile, tensors: &Tensors) -> Reads {
    let box_weight = match profile {
        Profile::Mmdetection | Profile::Nanodet => BoxWeight::MaxScore,
        Profile::Ultralytics => BoxWeight::Quality,
    };
    Reads {
        quality: quality(args, profile, tensors),
        box_weight: args.box_weight.map_or(box_weight, Into::into),
    }
}

/// Where the quality of a positive comes from. NanoDet-Plus takes it from an assigner that sees an auxiliary
/// head, NanoDet from the boxes; and qualities in the file are not those of positives found by --assign.
fn quality(args: &SceneArgs, profile: Profile, tensors: &Tensors) -> QualitySource {
    match (args.quality, profile) {
        (Some(quality), _) => quality.into(),
        (None, Profile::Nanodet) if args.assign || !tensors.has("level0.quality") => QualitySource::Iou,
        (None, _) => profile.head().quality(),
    }
}

/// Refuses options that do not go together.
pub fn check(args: &SceneArgs) -> Result<()> {
    if let (false, Some(option)) = (args.assign, args.assigner.given()) {
        return Err(Error::NeedsAssign { option });
    }
    if let (true, None, Some(Profile::Ultralytics)) = (args.assign, args.quality, args.levels.profile) {
        return Err(Error::QualityOfOthers { profile: Profile::Ultralytics.name() });
    }
    let of_bins = [("--dfl-weight", args.dfl_weight.is_some()), ("--target-eps", args.target_eps.is_some())];
    check_coding(&args.levels, &of_bins)
}

/// Refuses options that are given and for bins, if there are none.
pub fn check_coding(args: &LevelArgs, others: &[(&'static str, bool)]) -> Result<()> {
    let (boxes, of_levels) = (args.boxes(), [("--reg-max", args.reg_max.is_some())]);
    match of_levels.iter().chain(others).find(|(_, given)| *given && boxes != BoxesChoice::Bins) {
        Some(&(option, _)) => Err(Error::WithoutBins { option, boxes: boxes.name() }),
        None => Ok(()),
    }
}

/// How many bins (numbers a side, without bins) the channels of --raw have: as told, else what is left beside the classes, else the
/// profile's.
pub fn bins_of(channels: usize, args: &LevelArgs, case: &Case) -> usize {
    let (classes, profile) = (args.classes.or(case.num_classes), args.profile());
    if args.boxes() != BoxesChoice::Bins {
        return 1;
    }
    match (args.reg_max.or(case.reg_max), classes) {
        (Some(reg_max), _) => profile.bins(reg_max),
        (None, Some(classes)) => channels.saturating_sub(classes) / 4,
        (None, None) => profile.head().bins(),
    }
}

/// Refuses bins that are not those of the largest distance, if that is told.
pub fn check_bins(input: &Input, args: &LevelArgs, case: &Case, bins: usize) -> Result<()> {
    if args.boxes() != BoxesChoice::Bins {
        return Ok(());
    }
    let profile = args.profile();
    let (found, name) = (profile.reg_max(bins), profile.name());
    let (told, by) = match (args.reg_max, case.reg_max) {
        (Some(told), _) => (told, "--reg-max is"),
        (None, Some(told)) => (told, "the metadata tell"),
        (None, None) => return Ok(()),
    };
    if told == found {
        return Ok(());
    }
    let bins = count(bins, "bin is", "bins are");
    Err(input.head(format!("{bins} reg_max {found} in the {name} profile, and {by} {told}")))
}

/// Refuses other classes than those told.
pub fn check_classes(input: &Input, args: &LevelArgs, case: &Case, classes: usize) -> Result<()> {
    if classes == 0 {
        return Err(input.head("it has no classes; there must be 1 or more"));
    }
    let (told, by) = match (args.classes, case.num_classes) {
        (Some(told), _) => (told, "--classes is"),
        (None, Some(told)) => (told, "the metadata tell"),
        (None, None) => return Ok(()),
    };
    if told == classes {
        return Ok(());
    }
    Err(input.head(format!("it has {}, and {by} {told}", count(classes, "class", "classes"))))
}
