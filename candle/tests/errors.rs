//! What errors say.

mod support;

use candle_core::{DType, Device, Result, Tensor, Var};
use gfocal_candle::{
    AnchorGrid, Anchors, Atss, AvgPolicy, BoxCoding, BoxLevel, BoxLoss, DflOptions, DistributionFocalLoss,
    GroundTruth, HeadLevel, HeadLoss, Points, QflOptions, QualityFocalLoss, QualitySource, Reduction,
    Targets, assign, box_loss, box_to_distances, decode, dfl, distances_to_box, head, integral, qfl,
    qfl_dense,
};
use support::message;

fn floats(shape: &[usize]) -> Tensor {
    Tensor::zeros(shape, DType::F32, &Device::Cpu).expect("zeros")
}

fn variable(shape: &[usize]) -> Tensor {
    Var::from_tensor(&floats(shape)).expect("a variable").as_tensor().clone()
}

fn integers(shape: &[usize]) -> Tensor {
    Tensor::zeros(shape, DType::I64, &Device::Cpu).expect("zeros")
}

#[test]
fn of_rows() {
    let loss = QualityFocalLoss::default();
    let run = |logits: &[usize], labels: &[usize], quality: &[usize], options: QflOptions| {
        message(qfl(&loss, &floats(logits), &integers(labels), &floats(quality), &options))
    };
    let options = QflOptions::default;
    assert_eq!(run(&[4, 80], &[3], &[4], options()), "labels has shape [3], logits [4, 80] needs [4]");
    assert_eq!(
        run(&[2, 3, 80], &[2, 3], &[6], options()),
        "quality has shape [6], logits [2, 3, 80] needs [2, 3]"
    );
    assert_eq!(run(&[], &[], &[], options()), "logits has no dimension, the last must be that of a row");
    let weighted = |options: QflOptions| run(&[4, 80], &[4], &[4], options);
    assert_eq!(
        weighted(QflOptions { weight: Some(floats(&[4, 80])), ..options() }),
        "weight has shape [4, 80], logits [4, 80] needs [4]"
    );
    assert_eq!(
        weighted(QflOptions { class_weights: Some(floats(&[4])), ..options() }),
        "class_weights has shape [4], logits [4, 80] needs [80]"
    );
    assert_eq!(
        weighted(QflOptions { element_weights: Some(floats(&[4])), ..options() }),
        "element_weights has shape [4], logits [4, 80] needs [4, 80]"
    );
    assert_eq!(
        weighted(QflOptions { weight: Some(variable(&[4])), ..options() }),
        "weight depends on a variable, and gfocal computes no gradient for it; give weight.detach()"
    );
    let by = |avg_factor| Reduction::MeanBy { avg_factor, policy: AvgPolicy::Exact };
    assert_eq!(
        weighted(QflOptions { reduction: by(floats(&[2]).into()), ..options() }),
        "avg_factor has shape [2], it must have one element"
    );
    // gfocal's own.
    assert_eq!(
        weighted(QflOptions { reduction: by((-1.0).into()), ..options() }),
        "the average factor is -1, it must be a finite number, 0 or more"
    );
}

#[test]
fn of_types() {
    let (loss, options) = (QualityFocalLoss::default(), QflOptions::default());
    let run = |logits: &Tensor, labels: &Tensor, quality: &Tensor| {
        message(qfl(&loss, logits, labels, quality, &options))
    };
    assert_eq!(
        run(&integers(&[2, 3]), &integers(&[2]), &floats(&[2])),
        "logits is i64, it must be f32, f16, bf16 or f64"
    );
    assert_eq!(run(&floats(&[2, 3]), &floats(&[2]), &floats(&[2])), "labels is f32, it must be an integer");
    assert_eq!(run(&floats(&[2, 3]), &integers(&[2]), &integers(&[2])), "quality is i64, it must be a float");
    assert_eq!(
        message(qfl_dense(&loss, &floats(&[2, 3]), &floats(&[2]), &options)),
        "target has shape [2], logits [2, 3] needs [2, 3]"
    );
    assert_eq!(message(integral(&integers(&[2, 3]))), "logits is i64, it must be f32, f16, bf16 or f64");
}

#[test]
fn of_sides_and_boxes() {
    let loss = DistributionFocalLoss::default();
    let run = |logits: &[usize], target: &Tensor| {
        message(dfl(&loss, &floats(logits), target, &DflOptions::default()))
    };
    assert_eq!(run(&[4, 17], &floats(&[1])), "target has shape [1], logits [4, 17] needs [4]");
    assert_eq!(
        run(&[4, 17], &variable(&[4])),
        "target depends on a variable, and gfocal computes no gradient for it; give target.detach()"
    );
    assert!(run(&[4, 1], &floats(&[4])).contains("[4, 1]"));

    let pairs =
        |pred: &[usize], target: &Tensor| message(box_loss(&BoxLoss::default(), &floats(pred), target, None));
    assert_eq!(pairs(&[4, 3], &floats(&[4, 3])), "pred has shape [4, 3], it must be [.., 4]");
    assert_eq!(pairs(&[4, 4], &floats(&[3, 4])), "target has shape [3, 4], pred [4, 4] needs [4, 4]");
    assert_eq!(
        pairs(&[4, 4], &variable(&[4, 4])),
        "target depends on a variable, and gfocal computes no gradient for it; give target.detach()"
    );
    assert_eq!(
        message(distances_to_box(&floats(&[3, 2]), &floats(&[4, 4]))),
        "points has shape [3, 2], distances [4, 4]"
    );
    assert_eq!(
        message(box_to_distances(&floats(&[4, 2]), &floats(&[4, 4]), Some(-1.0))),
        "max is -1, it must be a finite number of 0 or more"
    );
}

#[test]
fn of_assignments() {
    let truth = GroundTruth::new(floats(&[3, 4]), integers(&[3]), integers(&[3]));
    let grids = [AnchorGrid::new(4, 4, 8.0)];
    let run = |truth: GroundTruth| message(assign(Atss::default(), &grids, &truth, 2, 80));
    assert_eq!(
        run(GroundTruth { boxes: floats(&[12]), ..truth.clone() }),
        "boxes has shape [12], it must be [n, 4]"
    );
    assert_eq!(
        run(GroundTruth { image: integers(&[2]), ..truth.clone() }),
        "image has shape [2], boxes [3, 4] needs [3]"
    );
    assert_eq!(
        run(GroundTruth { valid_hw: Some(integers(&[3, 2])), ..truth.clone() }),
        "valid_hw has shape [3, 2], boxes [3, 4] needs [2, 2]"
    );
    assert_eq!(
        run(GroundTruth { labels: floats(&[3]), ..truth.clone() }),
        "labels is f32, it must be an integer"
    );
    let anchors = [Anchors::Boxes(floats(&[5, 3]))];
    assert_eq!(
        message(assign(Atss::default(), &anchors, &truth, 2, 80)),
        "anchors[0] has shape [5, 3], boxes [3, 4] needs [5, 4]"
    );
}

fn level() -> HeadLevel {
    HeadLevel {
        cls: floats(&[2, 3, 4, 5]),
        boxes: floats(&[2, 32, 4, 5]),
        stride: 8.0,
        points: Points::Grid { offset: 0.0 },
        targets: Targets::new(integers(&[2, 20]), floats(&[2, 20, 4])),
    }
}

#[test]
fn of_levels() -> Result<()> {
    let loss = HeadLoss::mmdetection().with_bins(8).map_err(candle_core::Error::wrap)?;
    let run = |levels: &[HeadLevel]| message(head(&loss, levels));
    assert_eq!(run(&[]), "there are no levels");
    assert_eq!(
        run(&[HeadLevel { cls: floats(&[2, 3]), ..level() }]),
        "levels[0].cls has shape [2, 3], it must be [B, C, H, W] or [B, C, A]"
    );
    assert_eq!(
        run(&[HeadLevel { cls: floats(&[2, 3, 20]), ..level() }]),
        "levels[0].cls has shape [2, 3, 20], without rows it needs points"
    );
    assert_eq!(
        run(&[level(), HeadLevel { boxes: floats(&[2, 4, 4, 5]), ..level() }]),
        "levels[1].boxes has 4 channels, it must have 32"
    );
    assert_eq!(
        run(&[level(), HeadLevel { cls: floats(&[2, 4, 4, 5]), ..level() }]),
        "levels[1].cls has 4 channels, it must have 3"
    );
    assert_eq!(
        run(&[HeadLevel { boxes: floats(&[2, 32, 5, 4]), ..level() }]),
        "levels[0].boxes has shape [2, 32, 5, 4], levels[0].cls [2, 3, 4, 5]"
    );
    assert_eq!(
        run(&[level(), HeadLevel { cls: level().cls.to_dtype(DType::F16)?, ..level() }]),
        "levels[1].cls is f16, levels[0].cls f32"
    );
    let targets = |targets| run(&[HeadLevel { targets, ..level() }]);
    assert_eq!(
        targets(Targets::new(integers(&[40]), floats(&[2, 20, 4]))),
        "levels[0].targets.labels has shape [40], levels[0].cls [2, 3, 4, 5] needs [2, 20]"
    );
    assert_eq!(
        targets(Targets { label_weights: Some(variable(&[2, 20])), ..level().targets }),
        "levels[0].targets.label_weights depends on a variable, and gfocal computes no gradient for it; give \
         levels[0].targets.label_weights.detach()"
    );
    assert_eq!(
        targets(Targets { scores: Some(floats(&[2, 20])), ..level().targets }),
        "levels[0].targets.scores has shape [2, 20], levels[0].cls [2, 3, 4, 5] needs [2, 20, 3]"
    );
    assert_eq!(
        run(&[HeadLevel { points: Points::Explicit(floats(&[40, 2])), ..level() }]),
        "levels[0].points has shape [40, 2], levels[0].cls [2, 3, 4, 5] needs [20, 2]"
    );
    // gfocal's own.
    assert!(run(&vec![level(); 9]).contains('9'));
    let given = loss.with_quality(QualitySource::Given);
    assert!(message(head(&given, &[level()])).contains("quality"));
    Ok(())
}

#[test]
fn of_box_levels() {
    let level = |boxes: &[usize], stride| BoxLevel {
        boxes: floats(boxes),
        stride,
        points: Points::Grid { offset: 0.5 },
    };
    let run = |levels: &[BoxLevel]| message(decode(BoxCoding::Bins(8), levels));
    assert_eq!(run(&[]), "there are no levels");
    assert_eq!(run(&[level(&[], 8.0)]), "levels[0].boxes has shape [], it must be [B, C, H, W] or [B, C, A]");
    assert_eq!(run(&[level(&[2, 4, 4, 5], 8.0)]), "levels[0].boxes has 4 channels, it must have 32");
    assert_eq!(
        run(&[level(&[2, 32, 4, 5], 8.0), level(&[3, 32, 4, 5], 8.0)]),
        "levels[1].boxes has 3 images, levels[0].boxes 2"
    );
    assert_eq!(run(&[level(&[2, 32, 4, 5], 0.0)]), "stride is 0, it must be a finite number above 0");
    assert_eq!(message(decode(BoxCoding::Bins(1), &[])), "bins is 1, it must be from 2 to 1024");
}
