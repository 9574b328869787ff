//! The head loss against candle's derivative of the plain formula.

mod support;

use candle_core::{DType, Device, Result, Tensor, Var};
use gfocal_candle::{
    BoxCoding, BoxWeight, HeadLoss, HeadOptions, Normaliser, QualityFocalLoss, QualitySource, Targets, head,
    head_with,
};
use support::pyramid::{BATCH, BINS, CLASSES, Pyramid};
use support::{DTYPES, Random, close, compare, loss_limit, numbers, reference, tensors};

fn loss() -> Result<HeadLoss> {
    let loss = HeadLoss::mmdetection().with_bins(BINS).map_err(candle_core::Error::wrap)?;
    Ok(loss.with_normaliser(Normaliser::Nanodet))
}

#[test]
fn types() -> Result<()> {
    let (pyramid, loss) = (Pyramid::new(1)?, loss()?);
    for cls in DTYPES {
        for boxes in DTYPES {
            compare(
                &format!("{cls:?} classes, {boxes:?} boxes"),
                &pyramid.leaves([cls, boxes]),
                |logits| Ok(head(&loss, &pyramid.levels(logits))?.loss),
                |logits| reference::head(&pyramid.plain(logits)?, BINS)?.sum_all(),
            );
        }
    }
    Ok(())
}

#[test]
fn losses_are_weighted_one_by_one() -> Result<()> {
    let (pyramid, loss) = (Pyramid::new(2)?, loss()?);
    let weights = Random::new(3).floats(&[2, 3], -1.0, 1.0);
    for dtype in DTYPES {
        compare(
            &format!("{dtype:?}"),
            &pyramid.leaves([dtype, dtype]),
            |logits| {
                let losses = head(&loss, &pyramid.levels(logits))?.losses;
                (&losses * weights.to_dtype(losses.dtype())?)?.sum_all()
            },
            |logits| (reference::head(&pyramid.plain(logits)?, BINS)? * &weights)?.sum_all(),
        );
    }
    Ok(())
}

#[test]
fn one_loss_alone() -> Result<()> {
    let (pyramid, loss) = (Pyramid::new(4)?, loss()?);
    for of in 0..3 {
        compare(
            &format!("loss {of}"),
            &pyramid.leaves([DType::F32, DType::F32]),
            |logits| head(&loss, &pyramid.levels(logits))?.losses.narrow(1, of, 1)?.sum_all(),
            |logits| reference::head(&pyramid.plain(logits)?, BINS)?.narrow(1, of, 1)?.sum_all(),
        );
    }
    Ok(())
}

#[test]
fn the_sum_and_its_parts() -> Result<()> {
    let (pyramid, loss) = (Pyramid::new(5)?, loss()?);
    let logits: Vec<_> = pyramid.leaves([DType::F64; 2]).into_iter().map(|(leaf, _)| leaf).collect();
    let output = head(&loss, &pyramid.levels(&logits))?;
    assert_eq!((output.loss.dims(), output.losses.dims()), (&[][..], &[2, 3][..]));
    let expected = reference::head(&pyramid.plain(&logits)?, BINS)?;
    close("losses", &output.losses, &expected, loss_limit(DType::F64));
    assert!(output.report.status()?.is_ok());
    assert!(numbers(&output.losses).iter().all(|loss| *loss > 0.0));
    Ok(())
}

/// A target for each logit, and v and q as tensors, are what the head computes itself if they say the same.
#[test]
fn given_targets() -> Result<()> {
    let (mut pyramid, loss) = (Pyramid::new(6)?, loss()?);
    let mut random = Random::new(7);
    for targets in &mut pyramid.targets {
        let shape = targets.labels.dims().to_vec();
        let quality = random.floats(&shape, 0.0, 1.0);
        targets.scores = Some(reference::targets(&targets.labels, &quality, CLASSES)?);
        targets.box_scores = Some(quality.clone());
        targets.quality = Some(quality);
    }
    let given = loss.with_quality(QualitySource::Given);
    let of = |loss: &HeadLoss, change: fn(&mut Targets)| {
        let logits = pyramid.leaves([DType::F32; 2]).into_iter().map(|(leaf, dtype)| leaf.to_dtype(dtype));
        let mut levels = pyramid.levels(&logits.collect::<Result<Vec<_>>>()?);
        levels.iter_mut().for_each(|level| change(&mut level.targets));
        Ok::<_, candle_core::Error>(numbers(&head(loss, &levels)?.losses))
    };
    let by_score = of(&given.with_box_weight(BoxWeight::Given), |targets| targets.scores = None)?;
    let by_quality = of(&given.with_box_weight(BoxWeight::Quality), |targets| targets.scores = None)?;
    assert_eq!(by_score, by_quality);
    let dense = of(&given.with_box_weight(BoxWeight::Given), |targets| targets.quality = None)?;
    for (dense, sparse) in dense.iter().zip(&by_score) {
        assert!((dense - sparse).abs() <= 1e-6 * sparse.abs(), "{dense} is not {sparse}");
    }
    Ok(())
}

#[test]
fn weights() -> Result<()> {
    let (mut pyramid, loss) = (Pyramid::new(8)?, loss()?);
    let logits: Vec<_> = pyramid.leaves([DType::F64; 2]).into_iter().map(|(leaf, _)| leaf).collect();
    let plain = numbers(&head(&loss, &pyramid.levels(&logits))?.losses);
    let device = &Device::Cpu;
    for targets in &mut pyramid.targets {
        let count = targets.labels.dims()[1];
        targets.label_weights = Some(Tensor::full(0.5f32, (BATCH, count), device)?);
        targets.box_weights = Some(Tensor::full(0.25f32, (BATCH, count), device)?);
        targets.element_weights = Some(Tensor::full(0.5f32, (BATCH, count, CLASSES), device)?);
    }
    let class_weights = Some(Tensor::full(0.5f32, CLASSES, device)?);
    let options = HeadOptions { class_weights, ..HeadOptions::default() };
    let weighted = head_with(&loss, &pyramid.levels(&logits), &options)?;
    for (i, (weighted, plain)) in numbers(&weighted.losses).iter().zip(plain).enumerate() {
        let factor = if i % 3 == 0 { 0.125 } else { 0.25 };
        assert!((weighted - factor * plain).abs() <= 1e-14 * plain, "{i}");
    }
    Ok(())
}

/// Without bins there is no distribution loss.
#[test]
fn boxes_of_four_numbers() -> Result<()> {
    let (pyramid, loss) = (Pyramid::new(9)?, loss()?);
    let loss = loss.with_box_coding(BoxCoding::Exp).map_err(candle_core::Error::wrap)?;
    let logits = pyramid.logits.iter().flat_map(|[cls, boxes]| [Ok(cls.clone()), boxes.narrow(1, 0, 4)]);
    let leaves = logits.map(|leaf| Var::from_tensor(&leaf?)).collect::<Result<Vec<_>>>()?;
    let output = head(&loss, &pyramid.levels(&tensors(&leaves)))?;
    let losses = numbers(&output.losses);
    assert_eq!((losses[2], losses[5]), (0.0, 0.0));
    assert!(losses[1] > 0.0);
    let grads = output.loss.backward()?;
    for leaf in &leaves {
        let grad = numbers(grads.get(leaf).expect("a gradient"));
        assert!(grad.iter().all(|slope| slope.is_finite()) && grad.iter().any(|slope| *slope != 0.0));
    }
    Ok(())
}

#[test]
fn no_positives_no_images_and_bad_labels() -> Result<()> {
    let (mut pyramid, loss) = (Pyramid::new(10)?, loss()?);
    for targets in &mut pyramid.targets {
        targets.labels = targets.labels.ones_like()?.affine(CLASSES as f64, 0.0)?;
    }
    let leaves = pyramid.leaves([DType::F32; 2]);
    let leaves = leaves.iter().map(|(leaf, dtype)| Var::from_tensor(&leaf.to_dtype(*dtype)?));
    let leaves = leaves.collect::<Result<Vec<_>>>()?;
    let output = head(&loss, &pyramid.levels(&tensors(&leaves)))?;
    let losses = numbers(&output.losses);
    assert!(losses[0] > 0.0 && losses[3] > 0.0);
    assert_eq!([losses[1], losses[2], losses[4], losses[5]], [0.0; 4]);
    let grads = output.loss.backward()?;
    for boxes in leaves.iter().skip(1).step_by(2) {
        assert!(numbers(grads.get(boxes).expect("a gradient")).iter().all(|slope| *slope == 0.0));
    }

    let empty = |tensor: &Tensor| tensor.narrow(0, 0, 0);
    let mut levels = pyramid.levels(&tensors(&leaves));
    for level in &mut levels {
        (level.cls, level.boxes) = (empty(&level.cls)?, empty(&level.boxes)?);
        level.targets = Targets::new(empty(&level.targets.labels)?, empty(&level.targets.boxes)?);
    }
    let output = head(&loss, &levels)?;
    assert_eq!(numbers(&output.losses), [0.0; 6]);
    let grads = output.loss.backward()?;
    assert!(numbers(grads.get(&leaves[0]).expect("a gradient")).iter().all(|slope| *slope == 0.0));

    pyramid.targets[1].labels = pyramid.targets[1].labels.ones_like()?.affine(77.0, 0.0)?;
    let report = head(&loss, &pyramid.levels(&tensors(&leaves)))?.report;
    let status = report.status()?;
    assert_eq!((status.bad_labels, status.first_bad_row), (40, Some(160)));
    Ok(())
}

#[test]
fn other_heads_have_finite_gradients() -> Result<()> {
    let mut pyramid = Pyramid::new(11)?;
    for targets in &mut pyramid.targets {
        targets.quality = Some(Random::new(12).floats(targets.labels.dims(), 0.0, 1.0));
    }
    let bins = |loss: HeadLoss| loss.with_bins(BINS).map_err(candle_core::Error::wrap);
    let focal = QualityFocalLoss::default().with_alpha(0.25).map_err(candle_core::Error::wrap)?;
    let heads = [HeadLoss::nanodet(), HeadLoss::ultralytics(), HeadLoss::mmdetection().with_qfl(focal)];
    for loss in heads {
        let leaves = pyramid.leaves([DType::F32; 2]);
        let leaves = leaves.iter().map(|(leaf, dtype)| Var::from_tensor(&leaf.to_dtype(*dtype)?));
        let leaves = leaves.collect::<Result<Vec<_>>>()?;
        let grads = head(&bins(loss)?, &pyramid.levels(&tensors(&leaves)))?.loss.backward()?;
        for leaf in &leaves {
            assert!(numbers(grads.get(leaf).expect("a gradient")).iter().all(|slope| slope.is_finite()));
        }
    }
    Ok(())
}
