"""QFL, DFL, the integral and box losses, as operations of PyTorch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import gfocal

from . import reference
from .op_tester import OpTester, check_module
from .tolerance import assert_close

ROWS, CLASSES, BINS = 9, 5, 8
LOSS = 1e-6


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def reduced(loss: Tensor, reduction: str) -> Tensor:
    return {"none": loss, "sum": loss.sum(), "mean": loss.sum() / 7.0}[reduction]


LABELS = torch.tensor([0, 4, 5, 2, -1, 5, 3, 1, 0])
SCORE = torch.tensor([0.5, 0.75, 0.0, 1.0, 0.25, 0.5, 0.875, 0.125, 0.0])
WEIGHT = torch.tensor([1.0, 0.5, 2.0, 0.0, 1.0, 0.25, 1.0, 1.0, 3.0])


class TestQfl(OpTester):
    def inputs(self) -> Tensor:
        return 2 * numbers(ROWS, CLASSES)

    def call(self, pred: Tensor, reduction: str = "mean", **options: Any) -> Tensor:
        factor = 7.0 if reduction == "mean" else None
        return gfocal.quality_focal_loss(
            pred, (LABELS, SCORE), WEIGHT, reduction=reduction, avg_factor=factor, policy="exact", **options
        )

    def expected(self, pred: Tensor, reduction: str = "mean") -> Tensor:
        loss = reference.qfl(pred, reference.dense_target(LABELS, SCORE, CLASSES)).sum(1) * WEIGHT
        return reduced(loss, reduction)

    def samples(self) -> list[tuple[Any, tuple[Any, ...]]]:
        pred = self.inputs().float()
        dense = torch.rand(ROWS, CLASSES)
        ops = torch.ops.gfocal
        of = (2.0, 1.0, None, False, "last", None)
        found = []
        for reduction, upstream in (("mean", torch.ones(())), ("none", torch.rand(ROWS))):
            how = (reduction, None, "eps", 1.0)
            factor = torch.tensor(3.0)
            for tensors in (
                (LABELS, SCORE, WEIGHT, None, None, factor),
                (None, dense, None, torch.rand(CLASSES), torch.rand(ROWS, CLASSES), None),
            ):
                for passes in ((False, False), (True, True)):
                    found.append((ops.qfl.default, (pred, *tensors, *of, *how, *passes)))
                found.append((ops.qfl_backward.default, (pred, *tensors, *of, *how, upstream)))
        found.append((ops.scale_grad.default, (pred, torch.tensor(2.0))))
        return found

    def test_no_rows(self) -> None:
        pred = torch.zeros(0, CLASSES, requires_grad=True)
        none = torch.zeros(0, dtype=torch.int64), torch.zeros(0)
        loss = gfocal.quality_focal_loss(pred, none)
        loss.backward()
        assert loss == 0 and pred.grad is not None and pred.grad.shape == (0, CLASSES)
        assert gfocal.quality_focal_loss(pred, none, reduction="none").shape == (0,)

    def test_other_betas_dense_targets_and_weights(self) -> None:
        target = torch.rand(ROWS, CLASSES)
        of_classes, of_elements = torch.rand(CLASSES), torch.rand(ROWS, CLASSES)
        for beta in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0):
            pred = self.inputs().float().requires_grad_()
            loss = gfocal.quality_focal_loss(
                pred,
                target,
                beta=beta,
                reduction="sum",
                class_weights=of_classes,
                element_weights=of_elements,
                alpha=0.25,
            )
            loss.backward()
            truth = pred.detach().double().requires_grad_()
            factors = of_classes * of_elements * (target * 0.25 + (1 - target) * 0.75)
            want = (reference.qfl(truth, target.double(), beta) * factors).sum()
            want.backward()
            assert pred.grad is not None and truth.grad is not None
            assert_close(loss.detach(), want.detach(), f"loss, beta {beta}")
            assert_close(pred.grad, truth.grad, f"gradient, beta {beta}", absolute=1e-6)

    def test_backgrounds_and_ignored_rows(self) -> None:
        pred = self.inputs().float()
        first = torch.where((LABELS < 0) | (LABELS == CLASSES), 0, LABELS + 1)
        last = gfocal.quality_focal_loss(pred, (LABELS, SCORE))
        assert torch.equal(gfocal.quality_focal_loss(pred, (first, SCORE), background="first"), last)
        assert torch.equal(gfocal.quality_focal_loss(pred, (LABELS.int(), SCORE)), last)
        rows = gfocal.quality_focal_loss(pred, (LABELS, SCORE), reduction="none", ignore_label=5)
        assert (rows[LABELS == 5] == 0).all() and (rows[LABELS != 5] != 0).all()

    def test_policies(self) -> None:
        pred = self.inputs().float()
        total = gfocal.quality_focal_loss(pred, (LABELS, SCORE), reduction="sum").item()
        for factor, policy, divisor in [
            (0.5, "eps", 0.5 + 2.0**-23), (0.5, "exact", 0.5), (0.5, "at_least", 1.5), (2.0, "at_least", 2.0),
        ]:  # fmt: skip
            for given in (factor, torch.tensor(factor), torch.tensor([factor], dtype=torch.float64)):
                loss = gfocal.quality_focal_loss(pred, (LABELS, SCORE), avg_factor=given, policy=policy, minimum=1.5)
                assert abs(loss.item() - total / divisor) <= 1e-6 * total / divisor, (factor, policy)

    def test_float16_keeps_what_a_loss_scale_is_for(self) -> None:
        pred = torch.full((1, 1), -10.0, dtype=torch.float16, requires_grad=True)
        loss = gfocal.quality_focal_loss(pred, (torch.tensor([1]), torch.zeros(1)), reduction="sum")
        (loss * 65536).backward()
        truth = torch.full((1, 1), -10.0, dtype=torch.float64, requires_grad=True)
        reference.qfl(truth, torch.zeros(1, 1, dtype=torch.float64)).sum().backward()
        assert pred.grad is not None and truth.grad is not None
        assert_close(pred.grad / 65536.0 * 65536.0, truth.grad * 65536, "scaled", absolute=0.0)

    def test_status(self) -> None:
        status = gfocal.Status()
        pred = torch.zeros(4, 2, requires_grad=True)
        labels, score = torch.tensor([0, 3, 1, -1]), torch.tensor([0.5, 0.5, float("nan"), 0.0])
        for _ in range(2):
            loss = gfocal.quality_focal_loss(pred, (labels, score), status=status)
            loss.backward()
        assert (status.bad_labels, status.bad_qualities, status.first_bad_row, status.ok) == (2, 2, 1, False)
        assert repr(status) == "Status(bad_labels=2, bad_qualities=2, first_bad_row=1)"
        status.reset()
        assert status.ok and repr(status) == "Status(ok)"
        with pytest.raises(AttributeError, match="a Status has no 'labels'; it has bad_labels"):
            status.labels  # noqa: B018

    def test_module(self) -> None:
        check_module(gfocal.QualityFocalLoss(beta=1.5), self.inputs().float(), (LABELS, SCORE), WEIGHT)


def test_inductor() -> None:
    """One program through all of PyTorch's compiler, of several sizes."""

    def program(pred: Tensor, labels: Tensor, score: Tensor) -> Tensor:
        return gfocal.quality_focal_loss(pred * 2, (labels, score)) + gfocal.distribution_focal_loss(pred, 4 * score)

    torch._dynamo.reset()
    compiled = torch.compile(program, fullgraph=True, dynamic=True)
    for rows in (9, 7):
        results = []
        for run in (compiled, program):
            pred = numbers(rows, CLASSES).float().requires_grad_()
            loss = run(pred, LABELS[:rows], SCORE[:rows])
            loss.backward()
            results.append((loss.detach(), pred.grad))
        assert torch.equal(results[0][0], results[1][0])
        assert results[0][1] is not None and torch.equal(results[0][1], results[1][1])


class TestDfl(OpTester):
    label = torch.tensor([0.0, 1.25, 6.75, 7.0, 3.5, 2.0, 0.5, 5.125, 6.0])

    def inputs(self) -> Tensor:
        return 2 * numbers(ROWS, BINS)

    def call(self, pred: Tensor, reduction: str = "mean", **options: Any) -> Tensor:
        factor = 7.0 if reduction == "mean" else None
        return gfocal.distribution_focal_loss(pred, self.label, WEIGHT, reduction, factor, policy="exact", **options)

    def expected(self, pred: Tensor, reduction: str = "mean") -> Tensor:
        return reduced(reference.dfl(pred, self.label) * WEIGHT, reduction)

    def samples(self) -> list[tuple[Any, tuple[Any, ...]]]:
        pred, ops = self.inputs().float(), torch.ops.gfocal
        found = []
        for reduction, upstream in (("mean", torch.ones(())), ("none", torch.rand(ROWS))):
            rest = (self.label, WEIGHT, None, 1.0, 0.1, reduction, None, "eps", 1.0)
            found += [(ops.dfl.default, (pred, *rest, *passes)) for passes in ((False, False), (True, True))]
            found.append((ops.dfl_backward.default, (pred, *rest, upstream)))
        return found

    def test_no_rows(self) -> None:
        pred = torch.zeros(0, BINS, requires_grad=True)
        loss = gfocal.distribution_focal_loss(pred, torch.zeros(0))
        loss.backward()
        assert loss == 0 and pred.grad is not None

    def test_clamped_targets_are_counted(self) -> None:
        status = gfocal.Status()
        pred = torch.zeros(3, 4)
        label = torch.tensor([3.0, 2.95, float("nan")])
        rows = gfocal.distribution_focal_loss(pred, label, reduction="none", target_eps=0.1, status=status)
        assert rows[2] == 0 and status.out_of_range_targets == 3

    def test_module(self) -> None:
        check_module(gfocal.DistributionFocalLoss(loss_weight=0.25), self.inputs().float(), self.label, WEIGHT)


class TestIntegral(OpTester):
    reductions = ("none",)

    def inputs(self) -> Tensor:
        return numbers(ROWS, BINS)

    def call(self, pred: Tensor, reduction: str = "none", **options: Any) -> Tensor:
        return gfocal.integral(pred)

    def expected(self, pred: Tensor, reduction: str = "none") -> Tensor:
        return reference.integral(pred)

    def samples(self) -> list[tuple[Any, tuple[Any, ...]]]:
        pred, ops = self.inputs().float(), torch.ops.gfocal
        return [(ops.integral.default, (pred,)), (ops.integral_backward.default, (pred, torch.rand(ROWS)))]

    def test_no_rows(self) -> None:
        assert gfocal.integral(torch.zeros(0, 4)).shape == (0,)
        assert gfocal.integral(torch.zeros(2, 0, 4, requires_grad=True)).shape == (2, 0)

    def test_module(self) -> None:
        x = numbers(6, 4 * 17).float()
        check_module(gfocal.Integral(), x)
        want = reference.integral(x.double().reshape(6, 4, 17))
        assert_close(gfocal.Integral()(x), want, "Integral")
        assert gfocal.Integral(7)(numbers(2, 3, 32).float()).shape == (2, 3, 4)


class TestBoxes(OpTester):
    reductions = ("none",)

    corner = numbers(ROWS, 2)
    boxes = torch.cat([corner, corner + 1 + numbers(ROWS, 2, seed=2).abs()], 1)
    target = boxes + 0.3 * numbers(ROWS, 4, seed=1)

    def inputs(self) -> Tensor:
        return self.boxes.clone()

    def dtypes(self) -> list[torch.dtype]:
        return [torch.float64, torch.float32]

    def call(self, pred: Tensor, reduction: str = "none", **options: Any) -> Tensor:
        return gfocal.box_loss(pred, self.target, **options)

    def expected(self, pred: Tensor, reduction: str = "none") -> Tensor:
        a, b = pred, self.target
        inside = torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])
        hull = torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])
        intersection = inside.clamp(min=0).prod(1)
        union = (a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1) - intersection
        area = hull.prod(1)
        return 1 - (intersection / union - (area - union) / area)

    def samples(self) -> list[tuple[Any, tuple[Any, ...]]]:
        pred, target, ops = self.inputs().float(), self.target.float(), torch.ops.gfocal
        found: list[tuple[Any, tuple[Any, ...]]] = []
        for kind in ("iou", "giou", "diou", "ciou", "ciou_ultralytics"):
            found.append((ops.boxes.default, (pred, target, kind, 1e-6)))
            found.append((ops.boxes_backward.default, (pred, target, kind, 1e-6, torch.rand(ROWS))))
        return found

    def test_no_rows(self) -> None:
        pred = torch.zeros(0, 4, requires_grad=True)
        for loss in (gfocal.GIoULoss(), gfocal.CIoULoss(ultralytics=True), gfocal.IoULoss()):
            assert loss(pred, torch.zeros(0, 4)) == 0

    def test_16_bit_boxes(self) -> None:
        pred = self.inputs().to(torch.bfloat16).requires_grad_()
        loss = gfocal.box_loss(pred, self.target)
        loss.sum().backward()
        assert loss.dtype is torch.float32 and pred.grad is not None and pred.grad.dtype is torch.bfloat16

    def test_modules(self) -> None:
        pred, target = self.inputs().float(), self.target.float()
        for module in (gfocal.GIoULoss(), gfocal.DIoULoss(), gfocal.CIoULoss(), gfocal.IoULoss(mode="square")):
            check_module(module, pred, target)
        weight = torch.rand(ROWS)
        loss = gfocal.GIoULoss(loss_weight=2.0)
        rows = gfocal.box_loss(pred, target)
        assert_close(loss(pred, target, weight, avg_factor=3.0), 2 * (rows * weight).sum().double() / 3, "mean", LOSS)
        each = loss(pred, target, weight[:, None].expand(-1, 4), reduction_override="none")
        assert_close(each, 2.0 * (rows * weight).double(), "each", 1e-6)
        assert_close(loss(pred, target, reduction_override="sum"), 2 * rows.double().sum(), "sum", 1e-6)
