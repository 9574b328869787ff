//! Every operation on CUDA against the CPU, forward and back. They need a device: a GPU, or the emulator by
//! `ci/on-emulator`, which runs gfocal's kernels and none of candle's. So nothing here makes candle launch one:
//! operations are run without a graph, and tensors cross over with the strides that they have.

use std::thread;

use candle_core::{D, DType, Device, Result, Tensor};
use gfocal::assign::{AnchorGrid, Atss, Fcos};
use gfocal::boxes::{BoxLoss, IouKind};
use gfocal::head::BoxCoding;
use gfocal::{AvgPolicy, DistributionFocalLoss, HeadLoss, QualityFocalLoss, Reduction};

use crate::boxes::Boxes;
use crate::decode::Decode;
use crate::dfl::Dfl;
use crate::head::Head;
use crate::integral::Integral;
use crate::qfl::Qfl;
use crate::record::{Op, constant};
use crate::{
    Assigned, Assigner, BoxLevel, DflOptions, GroundTruth, HeadLevel, HeadOptions, Points, QflOptions,
    Report, Targets, assign,
};

const CPU: Device = Device::Cpu;

/// Both kinds of stream: one by one name on each thread, and a stream like any other.
fn devices() -> Result<[Device; 2]> {
    Ok([Device::new_cuda(0)?, Device::new_cuda_with_stream(0)?])
}

/// Numbers that repeat.
fn floats(seed: u32, shape: &[usize], low: f32, high: f32) -> Result<Tensor> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let count = shape.iter().product();
    let numbers = (0..count).map(|_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        low + (high - low) * (state >> 8) as f32 / (1 << 24) as f32
    });
    Tensor::from_vec(numbers.collect::<Vec<_>>(), shape, &CPU)
}

fn integers(seed: u32, shape: &[usize], end: i64) -> Result<Tensor> {
    floats(seed, shape, 0.0, end as f32)?.to_dtype(DType::I64)
}

/// As f64, in order.
fn numbers(tensor: &Tensor) -> Result<Vec<f64>> {
    tensor.to_device(&CPU)?.to_dtype(DType::F64)?.flatten_all()?.to_vec1()
}

/// The CPU's arithmetic is f64 in places, CUDA's f32; both are rounded to what is stored.
fn limit(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => 2f64.powi(-10),
        DType::BF16 => 2f64.powi(-7),
        _ => 2e-6,
    }
}

#[track_caller]
fn close(what: &str, got: &Tensor, expected: &Tensor) -> Result<()> {
    assert_eq!((got.dims(), got.dtype()), (expected.dims(), expected.dtype()), "{what}");
    let limit = limit(got.dtype());
    let (got, expected) = (numbers(got)?, numbers(expected)?);
    let largest = expected.iter().fold(0.0, |largest: f64, value| largest.max(value.abs()));
    for (i, (got, expected)) in got.iter().zip(&expected).enumerate() {
        let error = (got - expected).abs();
        assert!(
            error <= limit * largest,
            "{what}: element {i} is {got}, on the CPU {expected} of at most {largest}"
        );
    }
    Ok(())
}

/// Runs an operation on the CPU and on both kinds of stream. `upstream`: the gradient of its result.
#[track_caller]
fn compare<O: Op>(what: &str, upstream: &Tensor, op: impl Fn(&Device) -> Result<O>) -> Result<()> {
    let run = |device: &Device| {
        let op = op(device)?;
        let result = constant(op.forward()?);
        Ok::<_, candle_core::Error>((result, op.backward(&upstream.to_device(device)?)?))
    };
    let (expected, expected_grads) = run(&CPU)?;
    for device in devices()? {
        let (result, grads) = run(&device)?;
        close(what, &result, &expected)?;
        assert_eq!(grads.len(), expected_grads.len());
        for (i, (grad, expected)) in grads.iter().zip(&expected_grads).enumerate() {
            close(&format!("{what}, gradient {i}"), grad, expected)?;
        }
        // The same bits again.
        let (again, again_grads) = run(&device)?;
        assert_eq!(numbers(&again)?, numbers(&result)?, "{what}");
        for (again, grad) in again_grads.iter().zip(&grads) {
            assert_eq!(numbers(again)?, numbers(grad)?, "{what}");
        }
    }
    Ok(())
}

const TYPES: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

#[test]
fn qfl() -> Result<()> {
    let (rows, classes) = (50, 12);
    let (logits, labels) = (floats(1, &[rows, classes], -6.0, 6.0)?, integers(2, &[rows], 13)?);
    let (quality, weight) = (floats(3, &[rows], 0.0, 1.0)?, floats(4, &[rows], 0.5, 2.0)?);
    let target = floats(5, &[rows, classes], 0.0, 1.0)?;
    let (of_rows, of_all) = (floats(6, &[rows], -1.0, 1.0)?, Tensor::new(3f32, &CPU)?);
    for dtype in TYPES {
        let logits = logits.to_dtype(dtype)?;
        for (reduction, upstream) in [(Reduction::None, &of_rows), (Reduction::Mean, &of_all)] {
            let what = format!("{dtype:?}, {reduction:?}");
            let options = |device: &Device| {
                let weight = Some(weight.to_device(device)?);
                Ok::<_, candle_core::Error>(QflOptions {
                    weight,
                    reduction: reduction.clone(),
                    ..QflOptions::default()
                })
            };
            compare(&what, upstream, |device| {
                let (labels, quality) = (labels.to_device(device)?, quality.to_device(device)?);
                let loss = QualityFocalLoss::default();
                Qfl::sparse(&loss, &logits.to_device(device)?, &labels, &quality, &options(device)?)
            })?;
            compare(&what, upstream, |device| {
                let loss = QualityFocalLoss::default().with_alpha(0.25).expect("from 0 to 1");
                let mut options = options(device)?;
                options.class_weights = Some(floats(7, &[classes], 0.5, 2.0)?.to_device(device)?);
                options.element_weights = Some(floats(8, &[rows, classes], 0.5, 2.0)?.to_device(device)?);
                Qfl::dense(&loss, &logits.to_device(device)?, &target.to_device(device)?, &options)
            })?;
        }
    }
    Ok(())
}

/// What to divide by and the upstream gradient stay on the device, also as one number among others.
#[test]
fn scalars_on_the_device() -> Result<()> {
    let (logits, target) = (floats(1, &[20, 9], -3.0, 3.0)?, floats(2, &[20], 0.0, 8.0)?);
    let several = Tensor::new(&[1f32, 0.25, 4.0], &CPU)?;
    for (at, upstream) in [several.get(1)?, several.get(2)?].iter().enumerate() {
        compare(&format!("upstream {at}"), upstream, |device| {
            let avg_factor = several.to_device(device)?.get(2)?.into();
            let reduction = Reduction::MeanBy { avg_factor, policy: AvgPolicy::AtLeast(1.0) };
            let options = DflOptions { reduction, ..DflOptions::default() };
            let (logits, target) = (logits.to_device(device)?, target.to_device(device)?);
            Dfl::new(&DistributionFocalLoss::default(), &logits, &target, &options)
        })?;
    }
    Ok(())
}

#[test]
fn dfl_and_the_integral() -> Result<()> {
    for bins in [2, 17] {
        let (logits, target) =
            (floats(1, &[3, 11, bins], -4.0, 4.0)?, floats(2, &[3, 11], 0.0, bins as f32)?);
        let upstream = floats(3, &[3, 11], -1.0, 1.0)?;
        for dtype in TYPES {
            let (what, logits) = (format!("{dtype:?}, {bins} bins"), logits.to_dtype(dtype)?);
            compare(&what, &upstream, |device| {
                let options = DflOptions { reduction: Reduction::None, ..DflOptions::default() };
                let (logits, target) = (logits.to_device(device)?, target.to_device(device)?);
                Dfl::new(&DistributionFocalLoss::default(), &logits, &target, &options)
            })?;
            compare(&what, &upstream, |device| Integral::new(&logits.to_device(device)?))?;
        }
    }
    Ok(())
}

fn corners(seed: u32, count: usize) -> Result<Tensor> {
    let first = floats(seed, &[count, 2], 0.0, 40.0)?;
    Tensor::cat(&[&first, &(&first + floats(seed + 1, &[count, 2], 8.0, 40.0)?)?], D::Minus1)
}

#[test]
fn boxes() -> Result<()> {
    let (pred, target, upstream) = (corners(1, 33)?, corners(3, 33)?, floats(5, &[33], -1.0, 1.0)?);
    for kind in IouKind::ALL {
        compare(&format!("{kind:?}"), &upstream, |device| {
            let (pred, target) = (pred.to_device(device)?, target.to_device(device)?);
            Ok(Boxes { loss: BoxLoss::new(kind), pred, target })
        })?;
    }
    Ok(())
}

/// Stored with the channels last.
fn channels_last(logits: &Tensor) -> Result<Tensor> {
    logits.permute((0, 2, 3, 1))?.contiguous()?.permute((0, 3, 1, 2))
}

/// Stored as a part of a larger image.
fn crop(logits: &Tensor) -> Result<Tensor> {
    let (height, width) = (logits.dim(2)?, logits.dim(3)?);
    logits.pad_with_zeros(2, 1, 1)?.pad_with_zeros(3, 2, 1)?.narrow(2, 1, height)?.narrow(3, 2, width)
}

#[test]
fn decoding() -> Result<()> {
    let upstream = floats(1, &[2, 30, 4], -1.0, 1.0)?;
    for (coding, channels) in [(BoxCoding::Bins(5), 20), (BoxCoding::Exp, 4), (BoxCoding::Relu, 4)] {
        let logits =
            [floats(2, &[2, channels, 4, 6], -2.0, 2.0)?, floats(3, &[2, channels, 2, 3], -2.0, 2.0)?];
        let points = Points::Explicit(floats(4, &[6, 2], 0.0, 48.0)?);
        for dtype in TYPES {
            compare(&format!("{coding:?}, {dtype:?}"), &upstream, |device| {
                let first = channels_last(&logits[0].to_dtype(dtype)?)?.to_device(device)?;
                let second = logits[1].to_dtype(dtype)?.to_device(device)?;
                let Points::Explicit(points) = &points else { unreachable!("they are explicit") };
                let points = Points::Explicit(points.to_device(device)?);
                let grid = Points::Grid { offset: 0.5 };
                let levels = [
                    BoxLevel { boxes: first, stride: 8.0, points: grid },
                    BoxLevel { boxes: second, stride: 16.0, points },
                ];
                Decode::new(coding, &levels)
            })?;
        }
    }
    Ok(())
}

const BATCH: usize = 2;
const CLASSES: usize = 8;
const SIZES: [(usize, usize, f64); 2] = [(8, 12, 8.0), (4, 6, 16.0)];

fn grids() -> [AnchorGrid; 2] {
    SIZES.map(|(height, width, stride)| {
        AnchorGrid::new(height, width, stride as f32).with_scale(4.0).with_offset(0.5)
    })
}

fn truth(device: &Device) -> Result<GroundTruth> {
    let boxes = [[3f32, 5., 30., 34.], [28., 20., 60., 50.], [10., 8., 50., 40.], [4., 2., 78., 62.]];
    Ok(GroundTruth {
        weights: Some(Tensor::new(&[1f32, 2., 0.5, 1.], device)?),
        valid_hw: Some(Tensor::new(&[[64i64, 96], [64, 80]], device)?),
        ..GroundTruth::new(
            Tensor::new(&boxes, device)?,
            Tensor::new(&[0i64, 3, 7, 1], device)?,
            Tensor::new(&[0i64, 0, 1, 1], device)?,
        )
    })
}

#[test]
fn assignments_are_the_same_bits() -> Result<()> {
    let fcos = Fcos::new(&[[-1.0, 32.0], [32.0, f32::INFINITY]]).expect("ranges");
    let parts = |assigned: &Assigned| -> Result<Vec<Vec<f64>>> {
        let of = |level: &Targets| {
            let optional = [&level.label_weights, &level.box_weights, &level.quality];
            let all = [&level.labels, &level.boxes].into_iter().chain(optional.into_iter().flatten());
            all.map(numbers).collect::<Result<Vec<_>>>()
        };
        Ok(assigned.levels.iter().map(of).collect::<Result<Vec<_>>>()?.concat())
    };
    for assigner in [Assigner::from(Atss::default()), Assigner::from(fcos)] {
        let run = |device: &Device| assign(assigner, &grids(), &truth(device)?, BATCH, CLASSES);
        let expected = run(&CPU)?;
        for device in devices()? {
            let assigned = run(&device)?;
            assert_eq!(parts(&assigned)?, parts(&expected)?, "{assigner:?}");
            assert_eq!(assigned.report.status()?, expected.report.status()?);
        }
    }
    Ok(())
}

fn level(targets: &Targets, device: &Device) -> Result<Targets> {
    let move_to =
        |tensor: &Option<Tensor>| tensor.as_ref().map(|tensor| tensor.to_device(device)).transpose();
    Ok(Targets {
        label_weights: move_to(&targets.label_weights)?,
        box_weights: move_to(&targets.box_weights)?,
        ..Targets::new(targets.labels.to_device(device)?, targets.boxes.to_device(device)?)
    })
}

fn levels(seed: u32, [cls, boxes]: [DType; 2], device: &Device) -> Result<Vec<HeadLevel>> {
    let assigned = assign(Atss::default(), &grids(), &truth(&CPU)?, BATCH, CLASSES)?.levels;
    let mut levels = Vec::new();
    for (i, (height, width, stride)) in SIZES.into_iter().enumerate() {
        let logits = |seed, channels, dtype| {
            floats(seed + i as u32, &[BATCH, channels, height, width], -3.0, 1.0)?.to_dtype(dtype)
        };
        let (of_cls, of_boxes) = (logits(seed, CLASSES, cls)?, logits(seed + 9, 32, boxes)?);
        let stored = if i == 0 { [channels_last(&of_cls)?, of_boxes] } else { [of_cls, crop(&of_boxes)?] };
        levels.push(HeadLevel {
            cls: stored[0].to_device(device)?,
            boxes: stored[1].to_device(device)?,
            stride,
            points: Points::Grid { offset: 0.5 },
            targets: level(&assigned[i], device)?,
        });
    }
    Ok(levels)
}

fn head_loss() -> HeadLoss {
    HeadLoss::mmdetection().with_bins(8).expect("from 2 to 1024")
}

#[test]
fn head() -> Result<()> {
    let upstream = floats(1, &[2, 3], 0.5, 2.0)?;
    for cls in TYPES {
        for boxes in TYPES {
            compare(&format!("{cls:?} classes, {boxes:?} boxes"), &upstream, |device| {
                let class_weights = Some(floats(2, &[CLASSES], 0.5, 2.0)?.to_device(device)?);
                let options = HeadOptions { class_weights, ..HeadOptions::default() };
                Head::new(&head_loss(), &levels(3, [cls, boxes], device)?, &options)
            })?;
        }
    }
    Ok(())
}

/// The backward pass takes up what the forward pass has left, unless another head has been there since.
#[test]
fn heads_in_turn() -> Result<()> {
    let upstream = floats(1, &[2, 3], 0.5, 2.0)?;
    for device in devices()? {
        let (upstream, options) = (upstream.to_device(&device)?, HeadOptions::default());
        let new = |seed| Head::new(&head_loss(), &levels(seed, [DType::F32; 2], &device)?, &options);
        let all = |grads: Vec<Tensor>| grads.iter().map(numbers).collect::<Result<Vec<_>>>();
        let (one, other) = (new(1)?, new(2)?);
        one.forward()?;
        let (alone, again) = (all(one.backward(&upstream)?)?, all(one.backward(&upstream)?)?);
        assert_eq!(alone, again);
        one.forward()?;
        other.forward()?;
        let of_other = all(other.backward(&upstream)?)?;
        assert_eq!(all(one.backward(&upstream)?)?, alone);
        assert_ne!(of_other, alone);
        assert_eq!(all(other.backward(&upstream)?)?, of_other);
    }
    Ok(())
}

#[test]
fn the_report() -> Result<()> {
    for device in devices()? {
        let report = Report::new();
        assert_eq!(numbers(&report.found_inf(&device)?)?, [0.0]);
        let options =
            DflOptions { report: report.clone(), reduction: Reduction::Sum, ..DflOptions::default() };
        let logits = Tensor::new(&[[0f32, 0.], [0., 0.]], &CPU)?.to_dtype(DType::F16)?.to_device(&device)?;
        let target = Tensor::new(&[0.5f32, 7.0], &device)?;
        let op = Dfl::new(&DistributionFocalLoss::default(), &logits, &target, &options)?;
        op.forward()?;
        op.backward(&Tensor::new(1f32, &device)?)?;
        assert_eq!(numbers(&report.found_inf(&device)?)?, [0.0]);
        assert_eq!(report.status()?.out_of_range_targets, 1);
        op.backward(&Tensor::new(1e9f32, &device)?)?;
        let found = report.found_inf(&device)?;
        assert_eq!(numbers(&found)?, [1.0]);
        report.reset();
        assert_eq!((numbers(&found)?, numbers(&report.found_inf(&device)?)?), (vec![1.0], vec![0.0]));
        assert!(report.status()?.is_ok());
    }
    Ok(())
}

/// The stream of `new_cuda` is another one on each thread, and so is what calls work in.
#[test]
fn threads_have_handles_of_their_own() -> Result<()> {
    let device = Device::new_cuda(0)?;
    let (logits, upstream) = (floats(1, &[64, 17], -3.0, 3.0)?, Tensor::new(1f32, &CPU)?);
    let target = floats(2, &[64], 0.0, 16.0)?;
    let run = |device: &Device| {
        let (logits, target) = (logits.to_device(device)?, target.to_device(device)?);
        let op = Dfl::new(&DistributionFocalLoss::default(), &logits, &target, &DflOptions::default())?;
        let loss = numbers(&constant(op.forward()?))?;
        let grads = op.backward(&upstream.to_device(device)?)?;
        Ok::<_, candle_core::Error>((loss, numbers(&grads[0])?))
    };
    let expected = run(&device)?;
    thread::scope(|scope| {
        let running: Vec<_> =
            (0..2).map(|_| scope.spawn(|| (0..10).map(|_| run(&device)).collect())).collect();
        for running in running {
            let all: Result<Vec<_>> = running.join().expect("no panic");
            assert!(all?.iter().all(|result| *result == expected));
        }
        Ok(())
    })
}
