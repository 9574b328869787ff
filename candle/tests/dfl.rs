//! Distribution Focal Loss and the integral against candle's derivatives of the plain formulas.

mod support;

use candle_core::{DType, Device, Result, Tensor, Var};
use gfocal_candle::{DflOptions, DistributionFocalLoss, Reduction, dfl, integral};
use support::{DTYPES, Random, Stored, compare, numbers, reference};

const SIDES: usize = 41;

#[test]
fn types_bins_and_layouts() -> Result<()> {
    for bins in [2, 8, 17, 300] {
        let mut random = Random::new(bins as u64);
        let logits = random.floats(&[SIDES, bins], -4.0, 4.0);
        let target = random.floats(&[SIDES], 0.0, (bins - 1) as f32);
        let (weight, upstream) = (random.floats(&[SIDES], 0.5, 2.0), random.floats(&[SIDES], 0.5, 2.0));
        for dtype in DTYPES {
            for stored in Stored::ALL {
                let options = DflOptions {
                    weight: Some(weight.clone()),
                    reduction: Reduction::None,
                    ..DflOptions::default()
                };
                compare(
                    &format!("{dtype:?}, {bins} bins, {stored:?}"),
                    &[(stored.leaf(&logits)?, dtype)],
                    |leaves| {
                        let loss = DistributionFocalLoss::default();
                        let losses = dfl(&loss, &stored.view(&leaves[0])?, &target, &options)?;
                        (&losses * upstream.to_dtype(losses.dtype())?)?.sum_all()
                    },
                    |leaves| {
                        let losses = reference::dfl(&stored.view(&leaves[0])?, &target, 0.0)?;
                        ((losses * &weight)? * &upstream)?.sum_all()
                    },
                );
            }
        }
    }
    Ok(())
}

#[test]
fn reductions_and_options() -> Result<()> {
    let mut random = Random::new(1);
    let logits = random.floats(&[2, 5, 4, 8], -4.0, 4.0);
    let target = random.floats(&[2, 5, 4], -1.0, 9.0);
    let loss = DistributionFocalLoss::new(0.1).and_then(|dfl| dfl.with_loss_weight(0.25));
    let loss = loss.map_err(candle_core::Error::wrap)?;
    for (reduction, factor) in [(Reduction::Sum, 1.0), (Reduction::Mean, 1.0 / 40.0)] {
        let options = DflOptions { reduction, ..DflOptions::default() };
        compare(
            &format!("{factor}"),
            &[(logits.clone(), DType::F32)],
            |leaves| dfl(&loss, &leaves[0], &target, &options),
            |leaves| reference::dfl(&leaves[0], &target, 0.1)?.sum_all()? * (0.25 * factor),
        );
        let outside =
            numbers(&target).iter().filter(|target| !(0.0..=6.9f32 as f64).contains(*target)).count();
        assert_eq!(options.report.status()?.out_of_range_targets as usize, outside);
    }
    Ok(())
}

#[test]
fn the_target_keeps_its_digits_beside_bf16() -> Result<()> {
    let logits = Var::from_tensor(&Tensor::zeros((1, 17), DType::BF16, &Device::Cpu)?)?;
    let target = Tensor::new(&[15.99f32], &Device::Cpu)?;
    let loss = dfl(&DistributionFocalLoss::default(), &logits, &target, &DflOptions::default())?;
    let grad = loss.backward()?.remove(&logits).expect("a gradient");
    let right = 1.0 / 17.0 - f64::from(15.99f32 - 15.0);
    assert!((numbers(&grad)[16] - right).abs() <= right.abs() * support::limit(DType::BF16));
    Ok(())
}

#[test]
fn the_integral() -> Result<()> {
    for bins in [2, 17, 300] {
        let mut random = Random::new(bins as u64);
        let (logits, upstream) =
            (random.floats(&[SIDES, bins], -4.0, 4.0), random.floats(&[SIDES], 0.5, 1.0));
        for dtype in DTYPES {
            for stored in Stored::ALL {
                compare(
                    &format!("{dtype:?}, {bins} bins, {stored:?}"),
                    &[(stored.leaf(&logits)?, dtype)],
                    |leaves| {
                        let expectations = integral(&stored.view(&leaves[0])?)?;
                        (&expectations * upstream.to_dtype(expectations.dtype())?)?.sum_all()
                    },
                    |leaves| (reference::integral(&stored.view(&leaves[0])?)? * &upstream)?.sum_all(),
                );
            }
        }
    }
    let of_rank_4 = Tensor::zeros((2, 3, 4, 5), DType::F16, &Device::Cpu)?;
    assert_eq!(integral(&of_rank_4)?.dims(), [2, 3, 4]);
    Ok(())
}
