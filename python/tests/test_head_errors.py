"""What is wrong with a call of the head loss, by the names of its arguments."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import gfocal

from .head_scene import BINS, call, scene

ONE = torch.ones(2, 24)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"labels": [ONE.long()]}, gfocal.ShapeError, "labels has 1 levels, cls_scores 2"),
        ({"labels": [ONE.long(), ONE.long()]}, gfocal.ShapeError,
         r"labels\[1\] has shape \[2, 24\], cls_scores\[1\] \[2, 3, 2, 3\] needs \[2, 6\]"),
        ({"labels": [ONE, ONE]}, TypeError, r"labels\[0\] is torch.float32"),
        ({"labels": ONE.long()}, TypeError, "labels must be a list"),
        ({"box_targets": [torch.zeros(2, 24, 5), torch.zeros(2, 6, 4)]}, gfocal.ShapeError,
         r"box_targets\[0\] has shape"),
        ({"label_weights": [ONE, ONE]}, gfocal.ShapeError, r"label_weights\[1\] has shape"),
        ({"class_weights": torch.ones(4)}, gfocal.ShapeError, r"class_weights has shape \[4\], 3 classes needs \[3\]"),
        ({"scores": [ONE, ONE]}, gfocal.ShapeError, r"scores\[0\] has shape"),
        ({"points": [ONE, ONE]}, gfocal.ShapeError, r"points\[0\] has shape"),
        ({"normalisers": torch.ones(3)}, gfocal.ShapeError, r"normalisers has shape \[3\]"),
        ({"normalisers": torch.tensor([-1.0, 1.0])}, ValueError, r"normalisers\[0\] is -1"),
        ({"normalisers": torch.ones(2), "reduce": torch.clone}, ValueError, "normalisers are given"),
        ({"reduce": lambda _: 1}, TypeError, "what reduce gives must be a torch.Tensor, not int"),
        ({"quality_source": "given"}, ValueError, "level 0: .*quality"),
        ({"box_weighting": "given"}, ValueError, "level 0: .*box_scores"),
        ({"label_weights": [ONE.clone().requires_grad_(), torch.ones(2, 6)]}, ValueError,
         r"label_weights\[0\] requires a gradient"),
        ({"profile": "yolo"}, ValueError,
         'profile is "yolo", it must be one of "mmdetection", "nanodet", "ultralytics"'),
        ({"iou": "siou"}, ValueError, 'iou is "siou"'),
        ({"coding": "log"}, ValueError, "coding='log'"),
        ({"quality_source": "x"}, ValueError, 'quality_source is "x"'),
        ({"box_weighting": "x"}, ValueError, 'box_weighting is "x"'),
        ({"normaliser": "x"}, ValueError, 'normaliser is "x"'),
        ({"background": "x"}, ValueError, 'background is "x"'),
        ({"reg_max": 4}, ValueError, "bins is 5 and reg_max 4"),
        ({"beta": -1.0}, ValueError, "beta is -1"),
        ({"iou_eps": 0.0}, ValueError, "iou_eps is 0"),
        ({"box_weight": float("nan")}, ValueError, "box_weight is NaN"),
    ],
)  # fmt: skip
def test_errors(options: dict[str, Any], error: type[Exception], message: str) -> None:
    stored = scene()
    with pytest.raises(error, match=message):
        call(stored["cls_scores"], stored["bbox_preds"], **options)


def test_errors_of_logits() -> None:
    stored = scene()
    cls, boxes = stored["cls_scores"], stored["bbox_preds"]
    for given, error, message in [
        (([], boxes), gfocal.ShapeError, "cls_scores has no levels"),
        ((cls, boxes[:1]), gfocal.ShapeError, "bbox_preds has 1 levels, cls_scores 2"),
        ((cls[0], boxes), TypeError, "cls_scores must be a list of torch.Tensor, one a level, not Tensor"),
        (([1, 2], boxes), TypeError, r"cls_scores\[0\] must be a torch.Tensor, not int"),
        ((cls, [logits[:, 1:] for logits in boxes]), gfocal.ShapeError,
         r"bbox_preds\[0\] has shape \[2, 19, 4, 6\], .* 5 logits a side needs \[2, 20, 4, 6\]"),
        (([cls[0][0], cls[1]], boxes), gfocal.ShapeError, "without rows it needs points|needs"),
        (([cls[0][0, 0], cls[1]], boxes), gfocal.ShapeError, r"it must be \[B, C, H, W\] or \[B, C, anchors\]"),
        (([cls[0], cls[1][:, 1:]], boxes), gfocal.ShapeError, r"cls_scores\[1\] has shape"),
        (([cls[0], cls[1].half()], boxes), TypeError, r"cls_scores\[1\] is float16, cls_scores\[0\] needs float32"),
        (([logits.long() for logits in cls], boxes), TypeError, r"cls_scores\[0\] is int64"),
    ]:  # fmt: skip
        with pytest.raises(error, match=message):
            call(*given)
    nine = [torch.zeros(1, 3, 1, 1)] * 9
    with pytest.raises(gfocal.ShapeError, match="cls_scores has 9 levels, there can be 8"):
        gfocal.head_loss(nine, [torch.zeros(1, 8, 1, 1)] * 9, [ONE.long()] * 9, [ONE] * 9, [8.0] * 9, bins=2)
    with pytest.raises(gfocal.ShapeError, match="there are 1 strides, cls_scores has 2 levels"):
        gfocal.head_loss(cls, boxes, stored["labels"], stored["box_targets"], [8.0], bins=BINS)
    with pytest.raises(ValueError, match="stride is 0"):
        gfocal.head_loss(cls, boxes, stored["labels"], stored["box_targets"], [8.0, 0.0], bins=BINS)
