//! Quality Focal Loss against candle's derivative of the plain formula.

mod support;

use candle_core::{D, DType, Result, Tensor};
use gfocal_candle::{AvgPolicy, QflOptions, QualityFocalLoss, Reduction, Scalar, qfl, qfl_dense};
use support::{DTYPES, Random, Stored, compare, reference};

const ROWS: usize = 37;
const CLASSES: usize = 11;

/// Losses of rows as calls reduce them; those that are not are weighted, so that each has another gradient.
fn reduced(losses: &Tensor, reduction: &Reduction<Scalar>, upstream: &Tensor) -> Result<Tensor> {
    match reduction {
        Reduction::None => (losses * upstream.to_dtype(losses.dtype())?)?.sum_all(),
        Reduction::Sum => losses.sum_all(),
        Reduction::Mean => losses.mean_all(),
        Reduction::MeanBy { .. } => losses.sum_all()? / 7.0,
    }
}

fn reductions() -> Result<[(&'static str, Reduction<Scalar>); 5]> {
    let policy = AvgPolicy::Exact;
    // One of several numbers in its storage.
    let on_device = Tensor::new(&[3.0f32, 7.0], &candle_core::Device::Cpu)?.get(1)?;
    Ok([
        ("none", Reduction::None),
        ("sum", Reduction::Sum),
        ("mean", Reduction::Mean),
        ("by a number", Reduction::MeanBy { avg_factor: 7.0.into(), policy }),
        ("by a tensor", Reduction::MeanBy { avg_factor: on_device.into(), policy }),
    ])
}

struct Problem {
    logits: Tensor,
    labels: Tensor,
    quality: Tensor,
    weight: Tensor,
    upstream: Tensor,
}

impl Problem {
    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        Problem {
            logits: random.floats(&[ROWS, CLASSES], -6.0, 6.0),
            labels: random.integers(&[ROWS], 0, CLASSES as i64 + 1),
            quality: random.floats(&[ROWS], 0.0, 1.0),
            weight: random.floats(&[ROWS], 0.5, 2.0),
            upstream: random.floats(&[ROWS], 0.5, 2.0),
        }
    }
}

#[test]
fn types_reductions_and_layouts() -> Result<()> {
    let problem = Problem::new(1);
    let Problem { logits, labels, quality, weight, upstream } = &problem;
    for dtype in DTYPES {
        for (name, reduction) in reductions()? {
            for stored in Stored::ALL {
                let options = QflOptions {
                    weight: Some(weight.clone()),
                    reduction: reduction.clone(),
                    ..QflOptions::default()
                };
                let ours = |leaves: &[Tensor]| {
                    let logits = stored.view(&leaves[0])?;
                    let loss = qfl(&QualityFocalLoss::default(), &logits, labels, quality, &options)?;
                    if loss.rank() == 0 { Ok(loss) } else { reduced(&loss, &Reduction::None, upstream) }
                };
                let plain = |leaves: &[Tensor]| {
                    let y = reference::targets(labels, quality, CLASSES)?;
                    let losses = reference::qfl(&stored.view(&leaves[0])?, &y, 2.0)?.sum(D::Minus1)?;
                    reduced(&(losses * weight)?, &reduction, upstream)
                };
                let what = format!("{dtype:?}, {name}, {stored:?}");
                compare(&what, &[(stored.leaf(logits)?, dtype)], ours, plain);
            }
        }
    }
    Ok(())
}

#[test]
fn betas_and_dense_targets() -> Result<()> {
    let logits = Problem::new(2).logits;
    let target = Random::new(3).floats(&[ROWS, CLASSES], 0.0, 1.0);
    for dtype in DTYPES {
        for beta in [0.0, 1.0, 1.5, 2.0] {
            let loss = QualityFocalLoss::new(beta).map_err(candle_core::Error::wrap)?;
            compare(
                &format!("{dtype:?}, beta {beta}"),
                &[(logits.clone(), dtype)],
                |leaves| qfl_dense(&loss, &leaves[0], &target, &QflOptions::default()),
                |leaves| reference::qfl(&leaves[0], &target, beta)?.sum(D::Minus1)?.mean_all(),
            );
        }
    }
    Ok(())
}

#[test]
fn weights_of_classes_and_elements() -> Result<()> {
    let Problem { logits, labels, quality, .. } = Problem::new(4);
    let mut random = Random::new(5);
    let (of_classes, of_elements) =
        (random.floats(&[CLASSES], 0.5, 2.0), random.floats(&[ROWS, CLASSES], 0.5, 2.0));
    let loss = QualityFocalLoss::default().with_alpha(0.25).map_err(candle_core::Error::wrap)?;
    let options = QflOptions {
        class_weights: Some(of_classes.clone()),
        element_weights: Some(of_elements.clone()),
        reduction: Reduction::Sum,
        ..QflOptions::default()
    };
    for dtype in DTYPES {
        compare(
            &format!("{dtype:?}"),
            &[(logits.clone(), dtype)],
            |leaves| qfl(&loss, &leaves[0], &labels, &quality, &options),
            |leaves| {
                let y = reference::targets(&labels, &quality, CLASSES)?;
                let alpha = ((&y * 0.25)? + ((1.0 - &y)? * 0.75)?)?;
                let losses = (reference::qfl(&leaves[0], &y, 2.0)? * alpha)?.broadcast_mul(&of_classes)?;
                (losses * &of_elements)?.sum_all()
            },
        );
    }
    Ok(())
}

#[test]
fn probabilities() -> Result<()> {
    let probs = Random::new(6).floats(&[ROWS, CLASSES], 0.05, 0.95);
    let target = Random::new(7).floats(&[ROWS, CLASSES], 0.05, 0.95);
    let loss = QualityFocalLoss::default().with_activated(true);
    compare(
        "probabilities",
        &[(probs, DType::F32)],
        |leaves| qfl_dense(&loss, &leaves[0], &target, &QflOptions::default()),
        |leaves| reference::qfl_of_probability(&leaves[0], &target, 2.0)?.sum(D::Minus1)?.mean_all(),
    );
    Ok(())
}

#[test]
fn ranks_have_the_same_rows() -> Result<()> {
    let Problem { logits, labels, quality, upstream, .. } = Problem::new(8);
    let options = QflOptions { reduction: Reduction::None, ..QflOptions::default() };
    let loss = QualityFocalLoss::default();
    let flat = qfl(&loss, &logits, &labels, &quality, &options)?;
    let shape = (1, ROWS, 1);
    let of_rank_4 = qfl(
        &loss,
        &logits.reshape((1, ROWS, 1, CLASSES))?,
        &labels.reshape(shape)?,
        &quality.reshape(shape)?,
        &options,
    )?;
    assert_eq!(of_rank_4.dims(), [1, ROWS, 1]);
    assert_eq!(support::numbers(&of_rank_4), support::numbers(&flat));
    let row = (logits.get(3)?, labels.get(3)?, quality.get(3)?);
    let of_rank_1 = qfl(&loss, &row.0, &row.1, &row.2, &options)?;
    assert_eq!(of_rank_1.to_scalar::<f64>()?, support::numbers(&flat)[3]);
    assert!(support::numbers(&upstream).len() == ROWS);
    Ok(())
}

#[test]
fn no_rows_give_0() -> Result<()> {
    let device = &candle_core::Device::Cpu;
    let logits = candle_core::Var::zeros((0, CLASSES), DType::F32, device)?;
    let (labels, quality) = (Tensor::zeros(0, DType::I64, device)?, Tensor::zeros(0, DType::F32, device)?);
    let loss = qfl(&QualityFocalLoss::default(), &logits, &labels, &quality, &QflOptions::default())?;
    assert_eq!(loss.to_scalar::<f32>()?, 0.0);
    assert_eq!(loss.backward()?.get(&logits).expect("a gradient").dims(), [0, CLASSES]);
    Ok(())
}

#[test]
fn rows_that_do_not_count() -> Result<()> {
    let device = &candle_core::Device::Cpu;
    let rows = [[f32::NAN, 1.0], [1.0, f32::INFINITY], [0.5, -0.5], [0.5, -0.5], [0.5, -0.5]];
    let logits = candle_core::Var::new(&rows, device)?;
    // Masked by its weight, ignored, no class, a quality that is NaN, and one that counts.
    let labels = Tensor::new(&[0i64, 255, 7, 0, 1], device)?;
    let quality = Tensor::new(&[0.5f32, 0.5, 0.5, f32::NAN, 0.5], device)?;
    let weight = Tensor::new(&[0.0f32, 1.0, 1.0, 1.0, 1.0], device)?;
    let options = QflOptions { weight: Some(weight), reduction: Reduction::None, ..QflOptions::default() };
    let loss = QualityFocalLoss::default().with_ignore_label(255);
    let losses = qfl(&loss, &logits, &labels, &quality, &options)?;
    let of_rows = losses.to_vec1::<f32>()?;
    assert_eq!(of_rows[..4], [0.0; 4]);
    assert!(of_rows[4] > 0.0);
    let grad = losses.sum_all()?.backward()?.remove(&logits).expect("a gradient").to_vec2::<f32>()?;
    assert_eq!(grad[..4], [[0.0; 2]; 4]);
    assert!(grad[4].iter().all(|slope| slope.is_finite() && *slope != 0.0));
    let status = options.report.status()?;
    assert_eq!((status.bad_labels, status.bad_qualities, status.first_bad_row), (1, 1, Some(2)));
    Ok(())
}

#[test]
fn labels_of_other_integers() -> Result<()> {
    let Problem { logits, labels, quality, .. } = Problem::new(9);
    let run = |labels: &Tensor| {
        qfl(&QualityFocalLoss::default(), &logits, labels, &quality, &QflOptions::default())?
            .to_scalar::<f64>()
    };
    let expected = run(&labels)?;
    for dtype in [DType::U8, DType::U32, DType::I16, DType::I32] {
        assert_eq!(run(&labels.to_dtype(dtype)?)?, expected, "{dtype:?}");
    }
    Ok(())
}
