"""IoU, and distances of boxes' sides from points."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import gfocal

from . import test_rows
from .op_tester import OpTester
from .test_rows import ROWS, numbers
from .tolerance import assert_close


class TestIou(OpTester):
    reductions = ("none",)

    def inputs(self) -> Tensor:
        return test_rows.TestBoxes.boxes.clone()

    def dtypes(self) -> list[torch.dtype]:
        return [torch.float64, torch.float32]

    def call(self, pred: Tensor, reduction: str = "none", **options: Any) -> Tensor:
        return gfocal.iou(pred, test_rows.TestBoxes.target)

    def expected(self, pred: Tensor, reduction: str = "none") -> Tensor:
        a, b = pred, test_rows.TestBoxes.target
        inside = torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])
        intersection = inside.clamp(min=0).prod(1)
        return intersection / ((a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1) - intersection)

    def samples(self) -> list[tuple[Any, tuple[Any, ...]]]:
        a, b, ops = self.inputs().float(), test_rows.TestBoxes.target.float(), torch.ops.gfocal
        return [(ops.iou.default, (a, b, 1e-6)), (ops.iou_backward.default, (a, b, 1e-6, torch.rand(ROWS)))]

    def test_no_rows(self) -> None:
        assert gfocal.iou(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0,)

    def test_as_the_loss(self) -> None:
        a, b = self.inputs().float(), test_rows.TestBoxes.target.float()
        assert_close(gfocal.iou(a, b), 1 - gfocal.box_loss(a, b, "iou").double(), "IoU", absolute=1e-7)
        point = torch.ones(1, 4)
        assert gfocal.iou(point, point) == 0 and gfocal.iou(point, point, eps=1e-30) == 0
        assert gfocal.iou(a.half(), b).dtype is torch.float32


def test_distances() -> None:
    points = torch.tensor([[10.0, 20.0], [0.0, -3.0]])
    boxes = torch.tensor([[9.0, 21.0, 13.0, 44.0], [-1.0, -4.0, 0.5, 2.0]])
    distances = torch.tensor([[1.0, -1.0, 3.0, 24.0], [1.0, 1.0, 0.5, 5.0]])
    assert torch.equal(gfocal.box_to_distances(points, boxes), distances)
    assert torch.equal(gfocal.box_to_distances(points, boxes, 16), distances.clamp(0, 16))
    assert torch.equal(gfocal.distances_to_box(points, distances), boxes)
    many = torch.stack([distances, 2 * distances])
    assert torch.equal(gfocal.distances_to_box(points, many)[0], boxes)
    assert torch.equal(gfocal.distances_to_box(points.expand(2, 2, 2), many), gfocal.distances_to_box(points, many))
    assert torch.equal(gfocal.distances_to_box(points[0], distances[0]), boxes[0])
    assert gfocal.distances_to_box(points.half(), distances.bfloat16()).dtype is torch.float32
    assert gfocal.box_to_distances(torch.zeros(0, 2), torch.zeros(0, 4), 3).shape == (0, 4)
    nan = torch.full((1, 4), float("nan"))
    assert gfocal.box_to_distances(points[:1], nan, 16.0).isnan().all()


def test_distances_have_gradients() -> None:
    points, distances = numbers(5, 2).requires_grad_(), numbers(2, 5, 4).abs().requires_grad_()
    assert torch.autograd.gradcheck(gfocal.distances_to_box, (points, distances))
    assert torch.autograd.gradcheck(lambda points, boxes: gfocal.box_to_distances(points, boxes, 1.5),
                                    (points, distances))  # fmt: skip


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: gfocal.iou(torch.zeros(3, 3), torch.zeros(3, 3)), gfocal.ShapeError, "a has shape [3, 3]"),
        (lambda: gfocal.iou(torch.zeros(3, 4), torch.zeros(2, 4)), gfocal.ShapeError, "b has shape [2, 4], a [3, 4]"),
        (lambda: gfocal.iou(torch.zeros(3, 4), torch.zeros(3, 4), 2.0), ValueError, "eps is 2, it must be from"),
        (lambda: gfocal.iou(torch.zeros(3, 4).long(), torch.zeros(3, 4)), TypeError, "a is int64"),
        (lambda: gfocal.iou(torch.zeros(3, 4), torch.zeros(3, 4).requires_grad_()), ValueError, "b requires a"),
        (lambda: gfocal.distances_to_box(torch.zeros(3, 2), torch.zeros(3, 5)), gfocal.ShapeError,
         "distances has shape [3, 5], it must be [..., 4]"),
        (lambda: gfocal.distances_to_box(torch.zeros(4, 2), torch.zeros(2, 3, 4)), gfocal.ShapeError,
         "points has shape [4, 2], distances [2, 3, 4] needs [2, 3, 2]"),
        (lambda: gfocal.box_to_distances(torch.zeros(3, 2).long(), torch.zeros(3, 4)), TypeError,
         "points is torch.int64, it must be of floats"),
        (lambda: gfocal.box_to_distances([0.0, 0.0], torch.zeros(4)), TypeError, "points must be a torch.Tensor"),
        (lambda: gfocal.box_to_distances(torch.zeros(3, 2), torch.zeros(3, 4), -1), ValueError, "max is -1, it must"),
    ],
)  # fmt: skip
def test_mistakes(call: Callable[[], Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind) as caught:
        call()
    assert message in str(caught.value)
