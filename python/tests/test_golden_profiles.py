"""The head loss as NanoDet-Plus and Ultralytics compute it, and decoding, by their own results, in all types."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import gfocal

from . import golden
from .tolerance import assert_close

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def of_levels(tensors: dict[str, Tensor], case: dict[str, Any], name: str) -> list[Tensor]:
    return [tensors[f"level{level}.{name}"] for level in range(len(case["strides"]))]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", golden.names("family/head_nanodet") + golden.names("family/head_ultralytics"))
def test_profiles(name: str, dtype: torch.dtype) -> None:
    tensors, case = golden.read(name)
    assert golden.exact(case, dtype), "the files are for every type"
    cls, boxes = (
        [logits.to(dtype).requires_grad_() for logits in of_levels(tensors, case, of)]
        for of in ("cls_logits", "box_logits")
    )
    labels, quality, targets = (of_levels(tensors, case, of) for of in ("labels", "quality", "box_targets"))
    losses = gfocal.head_loss(
        cls, boxes, labels, targets, case["strides"], quality=quality, class_weights=tensors.get("class_weights"),
        profile=case["source"], bins=case["bins"],
    )  # fmt: skip
    assert losses.dtype is (dtype if dtype is torch.float64 else torch.float32)
    want = torch.cat([tensors[f"loss_{of}"] for of in ("cls", "bbox", "dfl")])
    assert_close(losses.detach().sum(0), want, f"{name}, losses")
    losses.sum().backward()
    for logits, of in ((cls, "grad_cls_logits"), (boxes, "grad_box_logits")):
        for ours, theirs in zip(logits, of_levels(tensors, case, of)):
            assert ours.grad is not None and ours.grad.dtype is dtype
            assert_close(ours.grad, theirs, f"{name}, {of} in {dtype}")


@pytest.mark.parametrize("dtype", FLOATS)
def test_decode(dtype: torch.dtype) -> None:
    tensors, case = golden.read("family/decode_ultralytics_small")
    stored = [logits.to(dtype) for logits in of_levels(tensors, case, "box_logits")]
    boxes = gfocal.decode(stored, case["strides"], offset=case["offset"], bins=case["bins"])
    centre, size = (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]
    want = tensors["boxes_cxcywh"]
    # What a distance is off by where a logit was rounded; without that the limit is f32's.
    rounded = {torch.float16: 2.0**-8, torch.bfloat16: 2.0**-5}.get(dtype, 0.0)
    error = (torch.cat([centre, size], -1).double() - want).abs()
    assert (error <= 1e-5 * want.abs() + max(rounded * case["strides"][-1], 1e-5)).all(), error.max()
