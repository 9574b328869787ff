"""Decoding, as an operation of PyTorch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, library

import gfocal

from . import reference
from .tolerance import assert_close

SIZES, STRIDES, BATCH, BINS = [(3, 5), (2, 2)], [8.0, 16.0], 2, 5


def logits(dtype: torch.dtype = torch.float64, channels: int = 4 * BINS) -> list[Tensor]:
    source = torch.Generator().manual_seed(0)
    return [torch.randn(BATCH, channels, *size, dtype=torch.float64, generator=source).to(dtype) for size in SIZES]


def expected(preds: list[Tensor], offset: float, of_side: Any, points: list[Tensor] | None = None) -> Tensor:
    """By PyTorch's operations, ``[B, A, 4]``."""
    boxes = []
    for level, (pred, (height, width), stride) in enumerate(zip(preds, SIZES, STRIDES)):
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        centre = (torch.stack([x, y], -1).reshape(-1, 2).double() + offset) * stride
        if points is not None:
            centre = points[level].double()
        sides = pred.flatten(2).unflatten(1, (4, -1)).permute(0, 3, 1, 2)
        distance = of_side(sides) * stride
        boxes.append(torch.cat([centre - distance[..., :2], centre + distance[..., 2:]], -1))
    return torch.cat(boxes, 1)


CODINGS = [
    ("bins", 4 * BINS, reference.integral),
    ("exp", 4, lambda sides: sides.squeeze(-1).exp()),
    ("relu", 4, lambda sides: sides.squeeze(-1).relu()),
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("coding", range(3))
def test_boxes_and_gradients(coding: int, dtype: torch.dtype) -> None:
    name, channels, of_side = CODINGS[coding]
    stored = logits(dtype, channels)
    for offset, points in [(0.5, None), (0.0, [torch.rand(15, 2) * 50, torch.rand(BATCH, 4, 2) * 50])]:
        truth = [pred.double().clone().requires_grad_() for pred in stored]
        want = expected(truth, offset, of_side, points)
        upstream = torch.randn(want.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).float()
        want.backward(upstream.double())
        forms = [
            [pred.clone() for pred in stored],
            [pred.to(memory_format=torch.channels_last) for pred in stored],
            [torch.cat([pred, pred], 1)[:, channels:] for pred in stored],
            [torch.nn.functional.pad(pred, (1, 2, 1, 0))[..., 1:, 1:-2] for pred in stored],
        ]
        for form in forms:
            preds = [pred.detach().requires_grad_() for pred in form]
            boxes = gfocal.decode(preds, STRIDES, offset=offset, bins=BINS, coding=name, points=points or ())
            assert_close(boxes.detach(), want.detach(), f"boxes, {name}", relative=2e-6, absolute=1e-5)
            boxes.backward(upstream.to(boxes.dtype))
            for pred, of_truth in zip(preds, truth):
                assert pred.grad is not None and of_truth.grad is not None
                assert_close(pred.grad, of_truth.grad, f"gradient, {name}", absolute=1e-5)


def total(*preds: Tensor) -> Tensor:
    return gfocal.decode(list(preds), STRIDES, bins=BINS)


def test_as_an_operation() -> None:
    preds = [pred.requires_grad_() for pred in logits()]
    assert torch.autograd.gradcheck(total, preds)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.gradgradcheck(total, preds)
    single = [pred.detach().float() for pred in preds]
    compiled = torch.compile(total, fullgraph=True, backend="aot_eager")
    leaves = [pred.clone().requires_grad_() for pred in single]
    compiled(*leaves).sum().backward()
    grads = torch.func.grad(lambda first: total(first, single[1]).sum())(single[0])
    assert leaves[0].grad is not None and torch.equal(leaves[0].grad, grads)
    ops, rest = torch.ops.gfocal, ([], STRIDES, 0.5, "bins", BINS)
    library.opcheck(ops.decode.default, (single, *rest))
    library.opcheck(ops.decode_backward.default, (single, *rest, torch.rand(BATCH, 19, 4)))
    with pytest.raises(RuntimeError, match="has no gradient of its own"):
        ops.decode(leaves, *rest)
    with pytest.raises(NotImplementedError, match="jvp"):
        torch.func.jvp(lambda first: total(first, single[1]), (single[0],), (single[0],))


def test_expanded_logits() -> None:
    one = torch.randn(1, 4 * BINS, 3, 5, requires_grad=True)
    boxes = gfocal.decode([one.expand(2, -1, -1, -1)], [8.0], bins=BINS)
    boxes.sum().backward()
    assert torch.equal(boxes[0], boxes[1]) and one.grad is not None and one.grad.isfinite().all()


def test_mistakes() -> None:
    preds = logits(torch.float32)
    mistakes: list[tuple[Any, type[Exception], str]] = [
        (lambda: gfocal.decode([], []), gfocal.ShapeError, "bbox_preds has no levels"),
        (lambda: gfocal.decode(preds, [8.0], bins=BINS), gfocal.ShapeError, "there are 1 strides, bbox_preds has 2"),
        (lambda: gfocal.decode(preds, STRIDES), gfocal.ShapeError, r"bbox_preds\[0\] has shape \[2, 20, 3, 5\]"),
        (lambda: gfocal.decode(preds, [8.0, 0.0], bins=BINS), ValueError, "stride is 0, it must be"),
        (lambda: gfocal.decode(preds, STRIDES, bins=BINS, coding="log"), ValueError, 'coding is "log"'),
        (lambda: gfocal.decode([x.flatten(2) for x in preds], STRIDES, bins=BINS), gfocal.ShapeError, "needs points"),
        (lambda: gfocal.decode(preds, STRIDES, bins=BINS, points=preds[:1]), gfocal.ShapeError, "points has 1"),
        (lambda: gfocal.decode(preds[0], STRIDES), TypeError, "bbox_preds must be a list"),
    ]  # fmt: skip
    for call, kind, message in mistakes:
        with pytest.raises(kind, match=message):
            call()
