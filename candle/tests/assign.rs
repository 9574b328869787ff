//! Assignment: what gfocal gives, as tensors.

mod support;

use candle_core::{DType, Device, Result, Tensor};
use gfocal_candle::{Anchors, Atss, Fcos, GroundTruth, assign};
use support::numbers;
use support::pyramid::{BATCH, CLASSES, SIZES, grids, truth};

#[test]
fn atss_gives_what_gfocal_gives() -> Result<()> {
    let assigned = assign(Atss::default(), &grids(), &truth()?, BATCH, CLASSES)?;
    assert!(assigned.report.status()?.is_ok());
    let (mut labels, mut boxes) = (vec![0i64; BATCH * 100], vec![0f32; BATCH * 400]);
    let truth = truth()?;
    let (of_boxes, of_labels, of_images) =
        (truth.boxes.flatten_all()?.to_vec1()?, truth.labels.to_vec1()?, truth.image.to_vec1()?);
    let gt = gfocal::assign::GroundTruth::<gfocal::Host, i64>::cpu(&of_boxes, &of_labels, &of_images);
    let ((first, second), (first_boxes, second_boxes)) =
        (labels.split_at_mut(BATCH * 80), boxes.split_at_mut(BATCH * 320));
    let anchors: Vec<_> = grids().into_iter().map(Into::into).collect();
    Atss::default()
        .cpu(
            &anchors,
            gt,
            BATCH,
            CLASSES,
            &mut [
                gfocal::assign::LevelTargets::cpu(first, first_boxes),
                gfocal::assign::LevelTargets::cpu(second, second_boxes),
            ],
        )
        .map_err(candle_core::Error::wrap)?;
    let mut all = (Vec::new(), Vec::new());
    for (level, (height, width, _)) in assigned.levels.iter().zip(SIZES) {
        assert_eq!(level.labels.dims(), [BATCH, height * width]);
        assert_eq!(level.boxes.dims(), [BATCH, height * width, 4]);
        all.0.extend(level.labels.flatten_all()?.to_vec1::<i64>()?);
        all.1.extend(level.boxes.flatten_all()?.to_vec1::<f32>()?);
        assert!(level.label_weights.is_none() && level.box_weights.is_none() && level.quality.is_none());
    }
    assert_eq!(all, (labels, boxes));
    assert!(all.0.iter().filter(|label| **label < CLASSES as i64).count() > 8);
    Ok(())
}

#[test]
fn what_is_known_of_images_comes_as_weights() -> Result<()> {
    let device = &Device::Cpu;
    let truth = GroundTruth {
        weights: Some(Tensor::new(&[0.5f32, 1., 1., 1.], device)?),
        ignore: Some((Tensor::new(&[[60f32, 0., 80., 20.]], device)?, Tensor::new(&[0i64], device)?)),
        valid_hw: Some(Tensor::new(&[[64u32, 80], [64, 40]], device)?),
        ..truth()?
    };
    let atss = Atss::default().with_ignore_iof(0.5).map_err(candle_core::Error::wrap)?;
    let assigned = assign(atss, &grids(), &truth, BATCH, CLASSES)?;
    let level = &assigned.levels[0];
    let label_weights = level.label_weights.as_ref().expect("sizes are given").to_vec2::<f32>()?;
    assert_eq!(label_weights[1][..10], [1., 1., 1., 1., 1., 0., 0., 0., 0., 0.]); // 40 pixels of 80
    let box_weights = numbers(level.box_weights.as_ref().expect("weights are given"));
    assert!(box_weights.contains(&0.5) && box_weights.contains(&1.0) && box_weights.contains(&0.0));
    Ok(())
}

#[test]
fn fcos_gives_centerness() -> Result<()> {
    let fcos = Fcos::new(&[[-1.0, 32.0], [32.0, f32::INFINITY]]).map_err(candle_core::Error::wrap)?;
    let assigned = assign(fcos, &grids(), &truth()?, BATCH, CLASSES)?;
    for level in &assigned.levels {
        let centerness = level.quality.as_ref().expect("FCOS has it");
        let positive = numbers(&level.labels.lt(CLASSES as i64)?);
        for (centerness, positive) in numbers(centerness).iter().zip(positive) {
            assert_eq!(*centerness > 0.0, positive == 1.0);
        }
    }
    Ok(())
}

#[test]
fn explicit_anchors_are_those_of_a_grid() -> Result<()> {
    let corners = (0..8 * 10).flat_map(|at| {
        let (x, y) = ((at % 10) as f32 * 8.0 + 4.0, (at / 10) as f32 * 8.0 + 4.0);
        [x - 16.0, y - 16.0, x + 16.0, y + 16.0]
    });
    let boxes = Tensor::from_iter(corners, &Device::Cpu)?.reshape((80, 4))?;
    let of_boxes = assign(Atss::default(), &[Anchors::Boxes(boxes)], &truth()?, BATCH, CLASSES)?;
    let of_grid = assign(Atss::default(), &grids()[..1], &truth()?, BATCH, CLASSES)?;
    assert_eq!(numbers(&of_boxes.levels[0].labels), numbers(&of_grid.levels[0].labels));
    Ok(())
}

#[test]
fn images_without_boxes_and_boxes_that_cannot_be_used() -> Result<()> {
    let device = &Device::Cpu;
    let none = GroundTruth::new(
        Tensor::zeros((0, 4), DType::F32, device)?,
        Tensor::zeros(0, DType::I64, device)?,
        Tensor::zeros(0, DType::I64, device)?,
    );
    let assigned = assign(Atss::default(), &grids(), &none, BATCH, CLASSES)?;
    assert!(numbers(&assigned.levels[0].labels).iter().all(|label| *label == CLASSES as f64));

    let broken = GroundTruth::new(
        Tensor::new(&[[0f32, 0., 0., 8.], [0., 0., 8., 8.]], device)?,
        Tensor::new(&[0i64, 9], device)?,
        Tensor::new(&[0i64, 0], device)?,
    );
    let status = assign(Atss::default(), &grids(), &broken, BATCH, CLASSES)?.report.status()?.assignment;
    assert_eq!((status.bad_boxes.count, status.bad_labels.first), (1, Some(1)));
    Ok(())
}
