//! Mixed precision: 16-bit logits and gradients, a scale on the loss, and what overflows.

mod support;

use candle_core::{DType, Device, Result, Tensor, Var};
use gfocal_candle::{
    DflOptions, DistributionFocalLoss, HeadLoss, HeadOptions, QflOptions, QualityFocalLoss, Reduction,
    Report, dfl, head_with, qfl,
};
use support::pyramid::{BINS, Pyramid};
use support::{Random, numbers, tensors};

const SCALE: f64 = 65536.0;

/// Gradients of the mean of a million rows lie below what f16 holds; with a scale on the loss they do not.
#[test]
fn a_scaled_loss_has_gradients_that_f16_holds() -> Result<()> {
    let (rows, device) = (100, &Device::Cpu);
    let logits = Random::new(1).floats(&[rows, 3], -4.0, 4.0);
    let (labels, quality) =
        (Random::new(2).integers(&[rows], 0, 4), Random::new(3).floats(&[rows], 0.0, 1.0));
    let by = gfocal_candle::AvgPolicy::Exact;
    let reduction = Reduction::MeanBy { avg_factor: 1e8.into(), policy: by };
    let run = |dtype: DType, scale: f64| {
        let leaf = Var::from_tensor(&logits.to_dtype(dtype)?)?;
        let options = QflOptions { reduction: reduction.clone(), ..QflOptions::default() };
        let loss = (qfl(&QualityFocalLoss::default(), &leaf, &labels, &quality, &options)? * scale)?;
        let grad = loss.backward()?.remove(&leaf).expect("a gradient");
        assert_eq!(options.report.found_inf(device)?.to_vec1::<f32>()?, [0.0]);
        Ok::<_, candle_core::Error>((numbers(&grad), numbers(&leaf)))
    };
    let (unscaled, _) = run(DType::F16, 1.0)?;
    assert!(unscaled.iter().all(|slope| *slope == 0.0));
    let (scaled, stored) = run(DType::F16, SCALE)?;
    // The truth, of what f16 holds of the logits.
    let exact = Var::from_vec(stored, (rows, 3), device)?;
    let options = QflOptions { reduction, ..QflOptions::default() };
    let loss = qfl(&QualityFocalLoss::default(), &exact, &labels, &quality, &options)?;
    let truth = numbers(loss.backward()?.get(&exact).expect("a gradient"));
    for (scaled, truth) in scaled.iter().zip(truth) {
        let error = (scaled - SCALE * truth).abs();
        // Half of the last bit, and of the smallest number.
        assert!(error <= SCALE * truth.abs() * 2f64.powi(-11) + 2f64.powi(-25), "{scaled} is not {truth}");
    }
    Ok(())
}

#[test]
fn overflow_is_found_and_stays_until_reset() -> Result<()> {
    let device = &Device::Cpu;
    let report = Report::new();
    let found = || report.found_inf(device)?.to_vec1::<f32>();
    let leaf = Var::from_tensor(&Tensor::zeros((1, 4), DType::F16, device)?)?;
    let target = Tensor::new(&[1.25f32], device)?;
    let options = DflOptions { report: report.clone(), ..DflOptions::default() };
    let run = |scale: f64| {
        let loss = dfl(&DistributionFocalLoss::default(), &leaf, &target, &options)?;
        (loss * scale)?.backward()?.remove(&leaf).expect("a gradient").to_dtype(DType::F32)?.to_vec2::<f32>()
    };
    assert!(run(SCALE)?[0].iter().all(|slope| slope.is_finite()));
    assert_eq!(found()?, [0.0]);
    assert_eq!(run(4.0 * SCALE)?[0], [f32::INFINITY, f32::NEG_INFINITY, 0.0, f32::INFINITY]);
    assert_eq!(found()?, [1.0]);
    run(1.0)?;
    assert_eq!(found()?, [1.0]);
    report.reset();
    assert_eq!(found()?, [0.0]);
    Ok(())
}

/// What comes from upstream need not be finite.
#[test]
fn gradients_of_infinite_losses() -> Result<()> {
    let device = &Device::Cpu;
    for (reduction, scale) in [
        (Reduction::Sum, f64::INFINITY),
        (Reduction::Sum, f64::NAN),
        (Reduction::None, f64::INFINITY),
        (Reduction::None, f64::NAN),
    ] {
        let leaf = Var::from_tensor(&Tensor::zeros((2, 4), DType::F32, device)?)?;
        let target = Tensor::new(&[1.25f32, 0.5], device)?;
        let options = DflOptions { reduction, ..DflOptions::default() };
        let loss = dfl(&DistributionFocalLoss::default(), &leaf, &target, &options)?;
        let grad = (loss * scale)?.sum_all()?.backward()?.remove(&leaf).expect("a gradient");
        assert!(numbers(&grad).iter().filter(|slope| !slope.is_finite()).count() >= 6);
        assert_eq!(options.report.found_inf(device)?.to_vec1::<f32>()?, [1.0]);
    }
    Ok(())
}

/// One report for a step of two losses, of which one overflows.
#[test]
fn a_report_for_a_step() -> Result<()> {
    let device = &Device::Cpu;
    let pyramid = Pyramid::new(4)?;
    let loss = HeadLoss::mmdetection().with_bins(BINS).map_err(candle_core::Error::wrap)?;
    let report = Report::new();
    for (scale, found) in [(1.0, 0.0), (1e9, 1.0)] {
        report.reset();
        let leaves = pyramid.leaves([DType::F16, DType::F32]).into_iter();
        let leaves = leaves
            .map(|(leaf, dtype)| Var::from_tensor(&leaf.to_dtype(dtype)?))
            .collect::<Result<Vec<_>>>()?;
        let options = HeadOptions { report: report.clone(), ..HeadOptions::default() };
        let output = head_with(&loss, &pyramid.levels(&tensors(&leaves)), &options)?;
        let other = Var::from_tensor(&Tensor::zeros((3, 4), DType::F32, device)?)?;
        // A target that is beyond the bins.
        let target = Tensor::new(&[0f32, 1., 9.], device)?;
        let options = DflOptions { report: report.clone(), ..DflOptions::default() };
        let dfl = dfl(&DistributionFocalLoss::default(), &other, &target, &options)?;
        assert_eq!(report.found_inf(device)?.to_vec1::<f32>()?, [0.0]);
        ((output.loss + dfl)? * scale)?.backward()?;
        assert_eq!(report.found_inf(device)?.to_vec1::<f32>()?, [found]);
        assert_eq!(report.status()?.out_of_range_targets, 1);
    }
    Ok(())
}
