//! Logits of the head wherever a network leaves them: the same losses, and gradients for the same logits.

mod support;

use candle_core::{DType, Device, Result, Tensor, Var};
use gfocal_candle::{HeadLevel, HeadLoss, Points, Targets, head};
use support::pyramid::{BATCH, BINS, CLASSES, Pyramid, SIZES};
use support::{close, limit, numbers};

/// Where the elements of logits `[B, C, H, W]` are.
#[derive(Clone, Copy, Debug)]
enum Stored {
    Nchw,
    /// `[B, H, W, C]`.
    ChannelsLast,
    /// `[C, B, W, H]`.
    TurnedAround,
    /// Some images of a larger batch.
    Images,
    /// Some channels of an output that has others, too.
    Channels,
    /// The same, channels last.
    ChannelsOfLast,
    /// Some rows and columns of a larger image.
    Crop,
    /// The same, channels last.
    CropOfLast,
}

impl Stored {
    const ALL: [Stored; 8] = [
        Stored::Nchw,
        Stored::ChannelsLast,
        Stored::TurnedAround,
        Stored::Images,
        Stored::Channels,
        Stored::ChannelsOfLast,
        Stored::Crop,
        Stored::CropOfLast,
    ];

    fn leaf(self, logits: &Tensor) -> Result<Tensor> {
        let last = |logits: &Tensor| logits.permute((0, 2, 3, 1))?.contiguous();
        match self {
            Stored::Nchw => Ok(logits.clone()),
            Stored::ChannelsLast => last(logits),
            Stored::TurnedAround => logits.permute((1, 0, 3, 2))?.contiguous(),
            Stored::Images => logits.pad_with_zeros(0, 1, 2),
            Stored::Channels => logits.pad_with_zeros(1, 3, 1),
            Stored::ChannelsOfLast => last(&logits.pad_with_zeros(1, 3, 1)?),
            Stored::Crop => logits.pad_with_zeros(2, 1, 2)?.pad_with_zeros(3, 3, 1),
            Stored::CropOfLast => last(&logits.pad_with_zeros(2, 1, 2)?.pad_with_zeros(3, 3, 1)?),
        }
    }

    fn view(self, leaf: &Tensor) -> Result<Tensor> {
        let first = |leaf: &Tensor| leaf.permute((0, 3, 1, 2));
        let crop = |leaf: &Tensor| leaf.narrow(2, 1, leaf.dim(2)? - 3)?.narrow(3, 3, leaf.dim(3)? - 4);
        match self {
            Stored::Nchw => Ok(leaf.clone()),
            Stored::ChannelsLast => first(leaf),
            Stored::TurnedAround => leaf.permute((1, 0, 3, 2)),
            Stored::Images => leaf.narrow(0, 1, leaf.dim(0)? - 3),
            Stored::Channels => leaf.narrow(1, 3, leaf.dim(1)? - 4),
            Stored::ChannelsOfLast => first(leaf)?.narrow(1, 3, leaf.dim(3)? - 4),
            Stored::Crop => crop(leaf),
            Stored::CropOfLast => crop(&first(leaf)?),
        }
    }
}

fn loss() -> Result<HeadLoss> {
    HeadLoss::mmdetection().with_bins(BINS).map_err(candle_core::Error::wrap)
}

/// Losses, and the gradients of all logits as `[B, C, H, W]`.
fn run(pyramid: &Pyramid, cls: Stored, boxes: Stored, dtype: DType) -> Result<(Tensor, Vec<Tensor>)> {
    let ways = [cls, boxes, cls, boxes];
    let leaves = pyramid.leaves([dtype; 2]).into_iter().zip(ways);
    let leaves = leaves.map(|((logits, dtype), way)| Var::from_tensor(&way.leaf(&logits.to_dtype(dtype)?)?));
    let leaves = leaves.collect::<Result<Vec<_>>>()?;
    let views = leaves.iter().zip(ways).map(|(leaf, way)| way.view(leaf)).collect::<Result<Vec<_>>>()?;
    let output = head(&loss()?, &pyramid.levels(&views))?;
    let grads = output.loss.backward()?;
    let of_logits = leaves.iter().zip(ways).map(|(leaf, way)| {
        let grad = grads.get(leaf).expect("a gradient");
        // What is no part of the logits has none.
        let [all, part] = [grad.clone(), way.view(grad)?]
            .map(|grad| numbers(&grad).iter().filter(|slope| **slope != 0.0).count());
        assert_eq!(all, part, "{way:?}");
        way.view(grad)
    });
    Ok((output.losses, of_logits.collect::<Result<_>>()?))
}

#[test]
fn anywhere() -> Result<()> {
    let pyramid = Pyramid::new(1)?;
    for dtype in support::DTYPES {
        let (losses, grads) = run(&pyramid, Stored::Nchw, Stored::Nchw, dtype)?;
        for (i, cls) in Stored::ALL.into_iter().enumerate() {
            let boxes = Stored::ALL[(i + 3) % Stored::ALL.len()];
            for (cls, boxes) in [(cls, cls), (cls, boxes)] {
                let what = format!("{dtype:?}, {cls:?}, {boxes:?}");
                let (other_losses, other_grads) = run(&pyramid, cls, boxes, dtype)?;
                close(&what, &other_losses, &losses, support::loss_limit(dtype));
                for (other, grad) in other_grads.iter().zip(&grads) {
                    close(&what, other, grad, limit(dtype));
                }
            }
        }
    }
    Ok(())
}

/// Anchors of all levels in one tensor, of which each level is a part.
#[test]
fn levels_of_one_tensor() -> Result<()> {
    let pyramid = Pyramid::new(2)?;
    let (expected, expected_grads) = run(&pyramid, Stored::Nchw, Stored::Nchw, DType::F32)?;
    // `[B, A, C]`.
    let joined = |of: usize| {
        let levels =
            pyramid.logits.iter().map(|level| level[of].flatten_from(2)?.transpose(1, 2)?.contiguous());
        Var::from_tensor(&Tensor::cat(&levels.collect::<Result<Vec<_>>>()?, 1)?.to_dtype(DType::F32)?)
    };
    let (cls, boxes) = (joined(0)?, joined(1)?);
    let mut first = 0;
    let mut levels = Vec::new();
    for (i, (height, width, stride)) in SIZES.into_iter().enumerate() {
        let part = |all: &Var| all.narrow(1, first, height * width)?.transpose(1, 2);
        let points = support::reference::grid(height, width, stride, 0.5)?;
        levels.push(HeadLevel {
            cls: part(&cls)?,
            boxes: part(&boxes)?,
            stride,
            points: Points::Explicit(points),
            targets: pyramid.targets[i].clone(),
        });
        first += height * width;
    }
    let output = head(&loss()?, &levels)?;
    close("losses", &output.losses, &expected, 2e-6);
    let grads = output.loss.backward()?;
    for (of, joined) in [&cls, &boxes].into_iter().enumerate() {
        let expected = expected_grads.iter().skip(of).step_by(2);
        let expected = expected.map(|grad| grad.flatten_from(2)?.transpose(1, 2)?.contiguous());
        let expected = Tensor::cat(&expected.collect::<Result<Vec<_>>>()?, 1)?;
        close("gradients", grads.get(joined).expect("a gradient"), &expected, 1e-6);
    }
    Ok(())
}

/// Targets may have rows and columns, too, and any strides.
#[test]
fn targets_of_rows_and_columns() -> Result<()> {
    let mut pyramid = Pyramid::new(3)?;
    let (expected, _) = run(&pyramid, Stored::Nchw, Stored::Nchw, DType::F32)?;
    for (targets, (height, width, _)) in pyramid.targets.iter_mut().zip(SIZES) {
        let labels = targets.labels.reshape((BATCH, height, width))?;
        let boxes = targets.boxes.reshape((BATCH, height, width, 4))?;
        *targets = Targets::new(
            labels.transpose(1, 2)?.contiguous()?.transpose(1, 2)?,
            boxes.permute((3, 0, 1, 2))?.contiguous()?.permute((1, 2, 3, 0))?,
        );
    }
    let (losses, _) = run(&pyramid, Stored::Nchw, Stored::Nchw, DType::F32)?;
    assert_eq!(numbers(&losses), numbers(&expected));
    Ok(())
}

/// Logits that repeat in memory, as a broadcast of a bias.
#[test]
fn logits_that_repeat() -> Result<()> {
    let pyramid = Pyramid::new(4)?;
    let bias = Var::from_tensor(&Tensor::full(-2f32, (1, CLASSES, 1, 1), &Device::Cpu)?)?;
    let logits = |of: fn(&Tensor, (usize, usize)) -> Result<Tensor>| {
        let mut all = Vec::new();
        for (level, (height, width, _)) in pyramid.logits.iter().zip(SIZES) {
            all.push(of(&bias, (height, width))?);
            all.push(level[1].to_dtype(DType::F32)?);
        }
        head(&loss()?, &pyramid.levels(&all))?
            .loss
            .backward()?
            .remove(&bias)
            .ok_or_else(|| candle_core::Error::msg("no gradient"))
    };
    let repeated = logits(|bias, (height, width)| bias.broadcast_as((BATCH, CLASSES, height, width)))?;
    let copied =
        logits(|bias, (height, width)| bias.broadcast_as((BATCH, CLASSES, height, width))?.contiguous())?;
    close("the bias", &repeated, &copied, 1e-6);
    Ok(())
}
