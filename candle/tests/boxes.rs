//! Box losses, distances and decoding against candle's derivatives of the plain formulas.

mod support;

use candle_core::{DType, Device, Result, Tensor, Var};
use gfocal_candle::{
    BoxCoding, BoxLevel, BoxLoss, IouKind, Points, box_loss, box_to_distances, decode, distances_to_box,
};
use support::{DTYPES, Random, close, compare, limit, numbers, reference};

const COUNT: usize = 29;

/// Boxes with a width and a height, in pixels.
fn boxes(seed: u64) -> Result<Tensor> {
    let mut random = Random::new(seed);
    let (first, size) = (random.floats(&[COUNT, 2], 0.0, 40.0), random.floats(&[COUNT, 2], 8.0, 40.0));
    // As f32 holds it.
    Tensor::cat(&[&first, &(&first + size)?.to_dtype(DType::F32)?.to_dtype(DType::F64)?], 1)
}

#[test]
fn kinds_and_types() -> Result<()> {
    let (pred, target) = (boxes(1)?, boxes(2)?);
    let upstream = Random::new(3).floats(&[COUNT], 0.5, 1.0);
    for dtype in [DType::F64, DType::F32, DType::F16, DType::BF16] {
        for kind in [IouKind::Iou, IouKind::Giou, IouKind::Diou] {
            let loss = BoxLoss::new(kind);
            compare(
                &format!("{dtype:?}, {kind:?}"),
                &[(pred.clone(), dtype)],
                |leaves| {
                    let losses = box_loss(&loss, &leaves[0], &target, None)?;
                    assert_eq!(losses.dims(), [COUNT]);
                    (&losses * upstream.to_dtype(losses.dtype())?)?.sum_all()
                },
                |leaves| {
                    let [iou, giou] = reference::iou(&leaves[0], &target)?;
                    let of_kind = match kind {
                        IouKind::Iou => iou,
                        IouKind::Giou => giou,
                        _ => reference::diou(&leaves[0], &target, 1e-6)?,
                    };
                    ((1.0 - of_kind)? * &upstream)?.sum_all()
                },
            );
        }
    }
    Ok(())
}

#[test]
fn weights_multiply_and_0_masks() -> Result<()> {
    let (pred, target) = (boxes(4)?, boxes(5)?);
    let weight = Random::new(6).floats(&[COUNT], 0.5, 2.0);
    compare(
        "weights",
        &[(pred.clone(), DType::F32)],
        |leaves| box_loss(&BoxLoss::default(), &leaves[0], &target, Some(&weight))?.sum_all(),
        |leaves| ((1.0 - &reference::iou(&leaves[0], &target)?[1])? * &weight)?.sum_all(),
    );

    let of_nothing = [[f32::NAN; 4], [0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 4.0]];
    let pred = Var::new(&of_nothing, &Device::Cpu)?;
    let target = Tensor::new(&[[0f32, 0., 4., 4.], [f32::NAN; 4], [2., 0., 6., 4.]], &Device::Cpu)?;
    let weight = Tensor::new(&[0f32, 0., 1.], &Device::Cpu)?;
    let losses = box_loss(&BoxLoss::default(), &pred, &target, Some(&weight))?;
    assert_eq!(losses.to_vec1::<f32>()?, [0.0, 0.0, 2.0 / 3.0]);
    let grad = losses.sum_all()?.backward()?.remove(&pred).expect("a gradient").to_vec2::<f32>()?;
    assert_eq!(grad[..2], [[0.0; 4]; 2]);
    assert!(grad[2].iter().all(|slope| slope.is_finite()));
    Ok(())
}

#[test]
fn no_boxes_have_no_losses() -> Result<()> {
    let (none, weight) =
        (Tensor::zeros((0, 4), DType::F32, &Device::Cpu)?, Tensor::zeros(0, DType::F32, &Device::Cpu)?);
    let pred = Var::from_tensor(&none)?;
    for weight in [None, Some(&weight)] {
        let losses = box_loss(&BoxLoss::default(), &pred, &none, weight)?;
        assert_eq!(losses.dims(), [0]);
        assert_eq!(losses.sum_all()?.backward()?.get(&pred).expect("a gradient").dims(), [0, 4]);
    }
    Ok(())
}

#[test]
fn distances_are_gfocals_and_have_gradients() -> Result<()> {
    let mut random = Random::new(7);
    let points = random.floats(&[COUNT, 2], -40.0, 40.0).to_dtype(DType::F32)?;
    let distances = random.floats(&[COUNT, 4], 0.0, 16.0).to_dtype(DType::F32)?;
    let boxes = distances_to_box(&points, &distances)?;
    let mut expected = vec![0f32; 4 * COUNT];
    let flat = |tensor: &Tensor| tensor.flatten_all()?.to_vec1::<f32>();
    gfocal::boxes::distances_to_box(&flat(&points)?, &flat(&distances)?, COUNT, &mut expected)
        .map_err(candle_core::Error::wrap)?;
    assert_eq!(flat(&boxes)?, expected);
    for max in [None, Some(7.5)] {
        let back = box_to_distances(&points, &boxes, max)?;
        gfocal::boxes::box_to_distances(&flat(&points)?, &flat(&boxes)?, COUNT, max, &mut expected)
            .map_err(candle_core::Error::wrap)?;
        assert_eq!(flat(&back)?, expected);
    }

    let variable = Var::from_tensor(&distances)?;
    let grad = distances_to_box(&points, &variable)?.sum_all()?.backward()?;
    let grad = grad.get(&variable).expect("a gradient").to_vec2::<f32>()?;
    assert!(grad.iter().all(|slopes| slopes == &[-1.0, -1.0, 1.0, 1.0]));
    Ok(())
}

#[test]
fn decoding() -> Result<()> {
    let mut random = Random::new(8);
    let (batch, bins) = (2, 5);
    let sizes = [(4, 6, 8.0), (2, 3, 16.0)];
    let leaves: Vec<_> = sizes
        .iter()
        .map(|&(height, width, _)| random.floats(&[batch, 4 * bins, height, width], -3.0, 3.0))
        .collect();
    let upstream = random.floats(&[batch, 30, 4], 0.5, 1.0);
    for dtype in DTYPES {
        compare(
            &format!("{dtype:?}"),
            &[(leaves[0].clone(), dtype), (leaves[1].clone(), dtype)],
            |leaves| {
                let levels: Vec<_> = leaves
                    .iter()
                    .zip(sizes)
                    .map(|(boxes, (.., stride))| BoxLevel {
                        boxes: boxes.clone(),
                        stride,
                        points: Points::Grid { offset: 0.5 },
                    })
                    .collect();
                let boxes = decode(BoxCoding::Bins(bins), &levels)?;
                (&boxes * upstream.to_dtype(boxes.dtype())?)?.sum_all()
            },
            |leaves| {
                let boxes = leaves.iter().zip(sizes).map(|(boxes, (height, width, stride))| {
                    reference::decode(boxes, bins, &reference::grid(height, width, stride, 0.5)?, stride)
                });
                (Tensor::cat(&boxes.collect::<Result<Vec<_>>>()?, 1)? * &upstream)?.sum_all()
            },
        );
    }
    Ok(())
}

/// The same logits stored in other ways have the same boxes and gradients.
#[test]
fn decoding_of_other_layouts() -> Result<()> {
    let logits = Random::new(9).floats(&[3, 8, 5, 7], -3.0, 3.0).to_dtype(DType::F32)?;
    type View = fn(&Tensor) -> Result<Tensor>;
    let stored: [(&str, Tensor, View); 4] = [
        ("channels last", logits.permute((0, 2, 3, 1))?.contiguous()?, |leaf| leaf.permute((0, 3, 1, 2))),
        ("columns before rows", logits.transpose(2, 3)?.contiguous()?, |leaf| leaf.transpose(2, 3)),
        ("a part", logits.pad_with_zeros(1, 2, 1)?.pad_with_zeros(0, 1, 1)?, |leaf| {
            leaf.narrow(1, 2, 8)?.narrow(0, 1, 3)
        }),
        ("a crop", logits.pad_with_zeros(2, 1, 2)?.pad_with_zeros(3, 2, 1)?, |leaf| {
            leaf.narrow(2, 1, 5)?.narrow(3, 2, 7)
        }),
    ];
    let upstream = Random::new(10).floats(&[3, 35, 4], 0.5, 1.0).to_dtype(DType::F32)?;
    let run = |leaf: &Tensor, view: View| {
        let leaf = Var::from_tensor(leaf)?;
        let level = BoxLevel { boxes: view(&leaf)?, stride: 8.0, points: Points::Grid { offset: 0.0 } };
        let boxes = decode(BoxCoding::Bins(2), &[level])?;
        let grad = (&boxes * &upstream)?.sum_all()?.backward()?.remove(&leaf).expect("a gradient");
        Ok::<_, candle_core::Error>((boxes, view(&grad)?))
    };
    let expected = run(&logits, |leaf| Ok(leaf.clone()))?;
    for (name, leaf, view) in stored {
        let (boxes, grad) = run(&leaf, view)?;
        assert_eq!(numbers(&boxes), numbers(&expected.0), "{name}");
        close(name, &grad, &expected.1, limit(DType::F32));
    }
    Ok(())
}

#[test]
fn decoding_around_explicit_points() -> Result<()> {
    let mut random = Random::new(11);
    let logits = random.floats(&[2, 4, 3], -1.0, 1.0).to_dtype(DType::F32)?;
    for (coding, shape) in [(BoxCoding::Exp, vec![3, 2]), (BoxCoding::Relu, vec![2, 3, 2])] {
        let points = random.floats(&shape, 0.0, 64.0).to_dtype(DType::F32)?;
        let level = BoxLevel { boxes: logits.clone(), stride: 4.0, points: Points::Explicit(points.clone()) };
        let boxes = decode(coding, &[level])?;
        let distances = logits.transpose(1, 2)?.contiguous()?;
        let distances = if coding == BoxCoding::Exp { distances.exp()? } else { distances.relu()? };
        let points = points.broadcast_as((2, 3, 2))?.contiguous()?;
        close("boxes", &boxes, &distances_to_box(&points, &(distances * 4.0)?)?, 1e-6);
    }
    Ok(())
}
