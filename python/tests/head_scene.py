"""A head to call the loss of, and what it should give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import gfocal

from .head_reference import gfl_head
from .tolerance import assert_close

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
CLASSES, BINS, STRIDES = 3, 5, [8.0, 16.0]
SIZES = [(4, 6), (2, 3)]
NAMES = ("cls_scores", "bbox_preds", "labels", "box_targets")


def numbers(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def scene(dtype: torch.dtype = torch.float32) -> dict[str, list[Tensor]]:
    """Two images, two levels, a third of all anchors positive; numbers that every type holds."""

    def short(values: Tensor) -> Tensor:
        return (8 * values).round() / 8

    made: dict[str, list[Tensor]] = {name: [] for name in (*NAMES, "label_weights")}
    for level, (height, width) in enumerate(SIZES):
        count, stride = height * width, STRIDES[level]
        made["cls_scores"].append(short(2 * numbers(2, CLASSES, height, width, seed=level)).to(dtype))
        made["bbox_preds"].append(short(numbers(2, 4 * BINS, height, width, seed=10 + level)).to(dtype))
        labels = torch.randint(0, 3 * CLASSES, (2, count), generator=torch.Generator().manual_seed(20 + level))
        made["labels"].append(labels.clamp(max=CLASSES))
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        points = torch.stack([x, y], -1).view(1, count, 2) * stride
        sides = short(3 * numbers(2, count, 4, seed=30 + level).abs() + 0.25) * stride
        made["box_targets"].append(torch.cat([points - sides[..., :2], points + sides[..., 2:]], -1).float())
        made["label_weights"].append(short(numbers(2, count, seed=40 + level).abs()).float())
    return made


def leaves(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.detach().clone().requires_grad_() for tensor in tensors]


TARGETS: dict[str, Any] = {name: tensors for name, tensors in scene().items() if name not in NAMES[:2]}


def call(cls: Sequence[Tensor], boxes: Sequence[Tensor], **options: Any) -> Tensor:
    given = {**TARGETS, "bins": BINS, **options}
    labels, targets = given.pop("labels"), given.pop("box_targets")
    return gfocal.head_loss(cls, boxes, labels, targets, STRIDES, **given)


def truth(cls: Sequence[Tensor], boxes: Sequence[Tensor], **options: Any) -> Tensor:
    given = scene()
    return gfl_head(
        cls, boxes, given["labels"], given["box_targets"], STRIDES, label_weights=given["label_weights"], **options
    )


def gradients(
    losses: Tensor, logits: Sequence[Tensor], upstream: Tensor | None = None, **how: Any
) -> tuple[Tensor, ...]:
    """Of weighted losses."""
    return torch.autograd.grad(losses, logits, torch.ones_like(losses) if upstream is None else upstream, **how)


def expected(
    cls: Sequence[Tensor], boxes: Sequence[Tensor], upstream: Tensor, **options: Any
) -> tuple[Tensor, tuple[Tensor, ...]]:
    doubles = [logits.double() for logits in (*cls, *boxes)]
    logits = leaves(doubles)
    losses = truth(logits[: len(cls)], logits[len(cls) :], **options)
    return losses.detach(), gradients(losses, logits, upstream.double())


def check(got: Sequence[Tensor], want: Sequence[Tensor], what: str, relative: float = 1e-5) -> None:
    for number, (ours, theirs) in enumerate(zip(got, want)):
        assert_close(ours.detach(), theirs, f"{what}, {number}", relative=relative)


def upstreams() -> dict[str, Tensor]:
    return {
        "ones": torch.ones(2, 3),
        "equal": torch.full((2, 3), 0.375),
        "by loss": torch.tensor([[1.0, 2.0, 0.5]]).expand(2, 3),
        "by level": torch.tensor([[1.0], [3.0]]).expand(2, 3),
        "zero": torch.zeros(2, 3),
        "any": numbers(2, 3, seed=7).float(),
    }


def nchw(logits: Tensor) -> Tensor:
    return logits.clone()


def channels_last(logits: Tensor) -> Tensor:
    return logits.clone(memory_format=torch.channels_last)


def slice_of_channels(logits: Tensor) -> Tensor:
    wide = torch.zeros(logits.shape[0], logits.shape[1] + 7, *logits.shape[2:], dtype=logits.dtype)
    wide[:, 4:-3] = logits
    return wide[:, 4:-3]


def slice_of_last_channels(logits: Tensor) -> Tensor:
    wide = torch.zeros(logits.shape[0], logits.shape[1] + 7, *logits.shape[2:], dtype=logits.dtype)
    wide = wide.to(memory_format=torch.channels_last)
    wide[:, 4:-3] = logits
    return wide[:, 4:-3]


def crop(logits: Tensor) -> Tensor:
    wide = torch.zeros(*logits.shape[:2], logits.shape[2] + 3, logits.shape[3] + 2, dtype=logits.dtype)
    wide[:, :, 1:-2, 1:-1] = logits
    return wide[:, :, 1:-2, 1:-1]


def every_second(logits: Tensor) -> Tensor:
    wide = torch.zeros(*logits.shape, 2, dtype=logits.dtype)
    wide[..., 0] = logits
    return wide[..., 0]


LAYOUTS = [nchw, channels_last, slice_of_channels, slice_of_last_channels, crop, every_second]
