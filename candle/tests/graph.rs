//! What candle's graph does with the operations: twice, in part, with what depends on variables.

mod support;

use std::thread;

use candle_core::{D, DType, Device, Result, Tensor, Var};
use gfocal_candle::{
    BoxLoss, DflOptions, DistributionFocalLoss, HeadLoss, IouKind, QflOptions, QualityFocalLoss,
    QualitySource, box_loss, dfl, head, qfl, qfl_dense,
};
use support::pyramid::{BINS, Pyramid};
use support::{Random, numbers, tensors};

fn loss() -> Result<HeadLoss> {
    HeadLoss::mmdetection().with_bins(BINS).map_err(candle_core::Error::wrap)
}

fn leaves(pyramid: &Pyramid) -> Result<Vec<Var>> {
    let leaves = pyramid.leaves([DType::F32; 2]).into_iter();
    leaves.map(|(leaf, dtype)| Var::from_tensor(&leaf.to_dtype(dtype)?)).collect()
}

fn gradients(loss: &Tensor, leaves: &[Var]) -> Result<Vec<Option<Vec<f64>>>> {
    let grads = loss.backward()?;
    Ok(leaves.iter().map(|leaf| grads.get(leaf).map(numbers)).collect())
}

#[test]
fn backward_twice_gives_the_same() -> Result<()> {
    let pyramid = Pyramid::new(1)?;
    let leaves = leaves(&pyramid)?;
    let loss = head(&loss()?, &pyramid.levels(&tensors(&leaves)))?.loss;
    let first = gradients(&loss, &leaves)?;
    assert!(first.iter().all(Option::is_some));
    assert_eq!(gradients(&loss, &leaves)?, first);
    Ok(())
}

#[test]
fn a_loss_that_is_used_twice_counts_twice() -> Result<()> {
    let pyramid = Pyramid::new(2)?;
    let leaves = leaves(&pyramid)?;
    let output = head(&loss()?, &pyramid.levels(&tensors(&leaves)))?;
    let once = gradients(&output.loss, &leaves)?;
    let twice = gradients(&(&output.loss + &output.loss)?, &leaves)?;
    // The sum, and each of its parts once more.
    let both = gradients(&(&output.loss + output.losses.sum_all()?)?, &leaves)?;
    for ((once, twice), both) in once.iter().flatten().zip(twice.iter().flatten()).zip(both.iter().flatten())
    {
        let doubled: Vec<f64> = once.iter().map(|slope| 2.0 * slope).collect();
        assert_eq!((&doubled, &doubled), (twice, both));
    }
    Ok(())
}

#[test]
fn what_depends_on_no_variable_gets_nothing() -> Result<()> {
    let pyramid = Pyramid::new(3)?;
    let leaves = leaves(&pyramid)?;
    let all = gradients(&head(&loss()?, &pyramid.levels(&tensors(&leaves)))?.loss, &leaves)?;
    for detached in [vec![0], vec![3], vec![0, 1], vec![1, 3], vec![0, 1, 2]] {
        let mut logits = tensors(&leaves);
        detached.iter().for_each(|&at| logits[at] = logits[at].detach());
        let part = gradients(&head(&loss()?, &pyramid.levels(&logits))?.loss, &leaves)?;
        for (at, (part, all)) in part.iter().zip(&all).enumerate() {
            assert_eq!(part, if detached.contains(&at) { &None } else { all }, "{detached:?}");
        }
    }
    let logits: Vec<_> = tensors(&leaves).iter().map(Tensor::detach).collect();
    let output = head(&loss()?, &pyramid.levels(&logits))?;
    assert!(!output.losses.track_op());
    Ok(())
}

/// Logits that are one tensor in two levels get both gradients.
#[test]
fn a_leaf_in_two_places() -> Result<()> {
    let logits = Var::from_tensor(&Random::new(4).floats(&[6, 3], -2.0, 2.0))?;
    let target = Random::new(5).floats(&[6, 3], 0.0, 1.0);
    let loss =
        |logits: &Tensor| qfl_dense(&QualityFocalLoss::default(), logits, &target, &QflOptions::default());
    let both = (loss(&logits)? + loss(&(logits.as_tensor() * 1.0)?)?)?;
    let once = numbers(loss(&logits)?.backward()?.get(&logits).expect("a gradient"));
    let twice = numbers(both.backward()?.get(&logits).expect("a gradient"));
    for (once, twice) in once.iter().zip(twice) {
        assert!((2.0 * once - twice).abs() <= 1e-15);
    }
    Ok(())
}

/// Qualities come from predictions in training; they are constants of the loss.
#[test]
fn a_quality_of_predictions_is_detached() -> Result<()> {
    let (logits, labels) = (
        Var::from_tensor(&Random::new(6).floats(&[4, 3], -2.0, 2.0).to_dtype(DType::F32)?)?,
        Tensor::new(&[0i64, 1, 2, 3], &Device::Cpu)?,
    );
    let corners: [[f32; 4]; 4] = std::array::from_fn(|i| [0.0, 0.0, 8.0 + i as f32, 9.0]);
    let (pred, target) =
        (Var::new(&corners, &Device::Cpu)?, Tensor::new(&[[1f32, 1., 9., 9.]; 4], &Device::Cpu)?);
    let losses = box_loss(&BoxLoss::new(IouKind::Iou), &pred, &target, None)?;
    let quality = (1.0 - losses)?;
    assert!(quality.track_op());
    let run = |quality: &Tensor| {
        qfl(&QualityFocalLoss::default(), &logits, &labels, quality, &QflOptions::default())
    };
    let grads = run(&quality)?.backward()?;
    let detached = run(&quality.detach())?.backward()?;
    assert!(grads.get(&pred).is_none());
    assert_eq!(
        numbers(&grads.get(&logits).expect("a gradient").clone()),
        numbers(&detached.get(&logits).expect("a gradient").clone())
    );

    // Also where the rest of the loss depends on it.
    let sum = (run(&quality)? + (1.0 - &quality)?.sum_all()?)?;
    let alone = (1.0 - &quality)?.sum_all()?.backward()?;
    assert_eq!(
        numbers(sum.backward()?.get(&pred).expect("a gradient")),
        numbers(alone.get(&pred).expect("a gradient"))
    );

    let dense = quality.unsqueeze(1)?.broadcast_as((4, 3))?;
    let grads =
        qfl_dense(&QualityFocalLoss::default(), &logits, &dense, &QflOptions::default())?.backward()?;
    assert!(grads.get(&pred).is_none() && grads.get(&logits).is_some());
    Ok(())
}

#[test]
fn qualities_of_the_heads_own_logits() -> Result<()> {
    let mut pyramid = Pyramid::new(7)?;
    let leaves = leaves(&pyramid)?;
    for (targets, cls) in pyramid.targets.iter_mut().zip(leaves.iter().step_by(2)) {
        // As a task-aligned assigner would.
        let score = cls.max(1)?.flatten_from(1)?.neg()?.exp()?;
        targets.quality = Some((score + 1.0)?.recip()?);
        assert!(targets.quality.as_ref().is_some_and(Tensor::track_op));
    }
    let loss = loss()?.with_quality(QualitySource::Given);
    let grads = gradients(&head(&loss, &pyramid.levels(&tensors(&leaves)))?.loss, &leaves)?;
    for targets in &mut pyramid.targets {
        targets.quality = targets.quality.as_ref().map(Tensor::detach);
    }
    assert_eq!(gradients(&head(&loss, &pyramid.levels(&tensors(&leaves)))?.loss, &leaves)?, grads);
    Ok(())
}

/// Each thread has the gradients of its own backward pass.
#[test]
fn two_threads_go_back_through_one_graph() -> Result<()> {
    let pyramid = Pyramid::new(8)?;
    let leaves = leaves(&pyramid)?;
    let losses = head(&loss()?, &pyramid.levels(&tensors(&leaves)))?.losses;
    let scaled = |factor: f64| (&losses * factor)?.sum_all();
    let expected = [gradients(&scaled(1.0)?, &leaves)?, gradients(&scaled(2.0)?, &leaves)?];
    thread::scope(|scope| {
        let run = |factor: f64| {
            let (scaled, leaves) = (&scaled, &leaves);
            scope.spawn(move || {
                (0..20).map(|_| gradients(&scaled(factor)?, leaves)).collect::<Result<Vec<_>>>()
            })
        };
        for (running, expected) in [run(1.0), run(2.0)].into_iter().zip(&expected) {
            let all = running.join().expect("no panic")?;
            assert!(all.iter().all(|grads| grads == expected));
        }
        Ok(())
    })
}

/// The operation holds the logits' elements, not their graph.
#[test]
fn results_outlive_their_inputs() -> Result<()> {
    let leaf = Var::from_tensor(&Random::new(9).floats(&[3, 4, 8], -2.0, 2.0))?;
    let target = Random::new(10).floats(&[3, 4], 0.0, 7.0);
    let loss = {
        let doubled = (leaf.as_tensor() * 2.0)?;
        dfl(&DistributionFocalLoss::default(), &doubled, &target, &DflOptions::default())?
    };
    let grad = loss.backward()?.remove(&leaf).expect("a gradient");
    assert!(numbers(&grad.sum(D::Minus1)?).iter().all(|sum| sum.abs() <= 1e-15)); // p sums up to 1, as the two hot ones
    Ok(())
}
