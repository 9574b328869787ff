"""Both losses together."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import gfocal

from . import reference, test_rows
from .op_tester import OpTester
from .test_rows import BINS, CLASSES, LABELS, ROWS, SCORE, WEIGHT, numbers, reduced
from .tolerance import assert_close


class TestGfl(OpTester):
    """Logits of both side by side, ``[N, C + K]``."""

    reductions = ("mean", "sum")

    def inputs(self) -> Tensor:
        return 2 * numbers(ROWS, CLASSES + BINS)

    def call(self, pred: Tensor, reduction: str = "mean", **options: Any) -> Tensor:
        factors = {"qfl_avg_factor": 7.0, "dfl_avg_factor": torch.tensor(7.0)} if reduction == "mean" else {}
        return gfocal.gfl(
            pred[:, :CLASSES], (LABELS, SCORE), pred[:, CLASSES:], test_rows.TestDfl.label, WEIGHT, WEIGHT.flip(0),
            reduction=reduction, policy="exact", **factors, **options,
        )  # fmt: skip

    def expected(self, pred: Tensor, reduction: str = "mean") -> Tensor:
        target = reference.dense_target(LABELS, SCORE, CLASSES)
        qfl = reduced(reference.qfl(pred[:, :CLASSES], target).sum(1) * WEIGHT, reduction)
        dfl = 0.25 * reduced(reference.dfl(pred[:, CLASSES:], test_rows.TestDfl.label) * WEIGHT.flip(0), reduction)
        return torch.stack([qfl, dfl, qfl + dfl])

    def samples(self) -> list[tuple[Any, tuple[Any, ...]]]:
        pred, sides, ops = numbers(ROWS, CLASSES).float(), numbers(ROWS, BINS).float(), torch.ops.gfocal
        of = (2.0, 1.0, None, False, "last", None, 0.25, 0.1)
        found = []
        for tensors in (
            (LABELS, SCORE, test_rows.TestDfl.label, WEIGHT, None, None, None, torch.tensor(3.0), None),
            (None, torch.rand(ROWS, CLASSES), test_rows.TestDfl.label, None, WEIGHT, torch.rand(CLASSES),
             torch.rand(ROWS, CLASSES), None, None),
        ):  # fmt: skip
            rest = (sides, *tensors, *of, "mean", None, 4.0, "at_least", 4.0)
            found += [(ops.gfl.default, (pred, *rest, *passes)) for passes in ((False, False), (True, True))]
            found.append((ops.gfl_backward.default, (pred, *rest, torch.rand(3))))
        return found

    def test_no_rows(self) -> None:
        pred, sides = torch.zeros(0, CLASSES, requires_grad=True), torch.zeros(0, BINS, requires_grad=True)
        losses = gfocal.gfl(pred, (torch.zeros(0, dtype=torch.int64), torch.zeros(0)), sides, torch.zeros(0))
        losses.sum().backward()
        assert (losses == 0).all() and pred.grad is not None and sides.grad is not None

    def test_as_the_two(self) -> None:
        stored = self.inputs().float()
        options = {"beta": 1.5, "alpha": 0.25, "background": "first", "ignore_label": 5, "class_weights": torch.rand(5)}
        results = []
        for joint in (True, False):
            pred, sides = (part.clone().requires_grad_() for part in stored.split([CLASSES, BINS], 1))
            target, label = (LABELS, SCORE), test_rows.TestDfl.label
            if joint:
                qfl, dfl, both = gfocal.gfl(
                    pred, target, sides, label, WEIGHT, qfl_weight=2.0, dfl_weight=0.5, target_eps=0.1, **options
                )
                assert_close(both.detach(), (qfl + dfl).detach(), "sum", relative=2e-7)
            else:
                qfl = gfocal.quality_focal_loss(pred, target, WEIGHT, loss_weight=2.0, **options)
                dfl = gfocal.distribution_focal_loss(sides, label, loss_weight=0.5, target_eps=0.1)
            (qfl + dfl).backward()
            results.append((qfl.detach(), dfl.detach(), pred.grad, sides.grad))
        assert all(torch.equal(a, b) for a, b in zip(*results))

    def test_one_of_them_alone(self) -> None:
        for frozen in (0, 1):
            parts = [part.clone() for part in self.inputs().float().split([CLASSES, BINS], 1)]
            parts[1 - frozen].requires_grad_()
            gfocal.gfl(parts[0], (LABELS, SCORE), parts[1], test_rows.TestDfl.label)[2].backward()
            assert parts[frozen].grad is None and parts[1 - frozen].grad is not None

    def test_status(self) -> None:
        status = gfocal.Status()
        labels = torch.where(LABELS == 3, 99, LABELS)
        for tracked in (False, True):
            pred = numbers(ROWS, CLASSES).float().requires_grad_(tracked)
            gfocal.gfl(pred, (labels, SCORE), numbers(ROWS, BINS).float(), test_rows.TestDfl.label + 1, status=status)
        assert (status.bad_labels, status.out_of_range_targets) == (2, 4)

    def test_mistakes(self) -> None:
        pred, sides = torch.zeros(4, 3), torch.zeros(8, 5)
        target, label = (torch.tensor([0, 1, 2, 3]), torch.full((4,), 0.5)), torch.ones(8)

        def fails(kind: type[Exception], message: str, *arguments: Any, **options: Any) -> None:
            with pytest.raises(kind) as caught:
                gfocal.gfl(*arguments, **options)
            assert message in str(caught.value), str(caught.value)

        shape = gfocal.ShapeError
        fails(shape, "label has shape [7], sides [8, 5] needs [8]", pred, target, sides, label[:7])
        fails(shape, "side_weight has shape [4], sides [8, 5] needs [8]", pred, target, sides, label,
              side_weight=torch.ones(4))  # fmt: skip
        fails(shape, "weight has shape [8], pred [4, 3] needs [4]", pred, target, sides, label, torch.ones(8))
        fails(shape, "sides has shape [40], it must be [M, bins]", pred, target, sides.flatten(), label)
        fails(TypeError, "sides is float16, pred beside it needs float32", pred, target, sides.half(), label)
        fails(ValueError, 'reduction is "none", both', pred, target, sides, label, reduction="none")
        fails(ValueError, "dfl_avg_factor can not be used with", pred, target, sides, label, reduction="sum",
              dfl_avg_factor=1.0)  # fmt: skip
        fails(ValueError, "label requires a gradient", pred, target, sides, label.clone().requires_grad_())
