"""QFL, DFL and the integral on mmdetection's own results, through PyTorch, in all types."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import gfocal

from . import golden, reference
from .tolerance import LOSS, assert_close

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def compare(loss_of: Any, stored: Tensor, case: dict[str, Any], want: dict[str, Tensor], weight: Tensor | None) -> None:
    """Loss and gradient by each reduction. ``want`` has ``loss_none`` and ``grad_sum``, weighted."""
    rows = len(stored)
    factor = case["avg_factor"]
    losses = want["loss_none"]
    for reduction, avg_factor, divisor in [
        ("none", None, 1.0),
        ("sum", None, 1.0),
        ("mean", None, rows),
        ("mean", factor, factor + 2.0**-23),
        ("mean", torch.tensor(factor), factor + 2.0**-23),
    ]:
        pred = stored.clone().requires_grad_()
        loss = loss_of(pred, weight, reduction, avg_factor)
        what = f"{reduction} by {avg_factor}, {stored.dtype}"
        assert loss.dtype is (torch.float64 if stored.dtype is torch.float64 else torch.float32)
        truth = losses if reduction == "none" else losses.sum() / divisor
        assert_close(loss, truth, f"loss {what}", *((1e-5, 2e-7) if reduction == "none" else (LOSS + 1e-5, 2e-7)))
        loss.sum().backward()
        assert pred.grad is not None and pred.grad.dtype is stored.dtype
        assert_close(pred.grad, want["grad_sum"] / divisor, f"gradient {what}")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", golden.names("qfl"))
def test_qfl(name: str, dtype: torch.dtype) -> None:
    tensors, case = golden.read(name)
    activated = bool(case.get("activated"))
    stored = tensors["probs" if activated else "logits"].to(dtype)
    labels, score, target, weight = (tensors.get(key) for key in ("labels", "quality", "target", "weight"))
    want = tensors
    if not golden.exact(case, dtype):
        truth = reference.qfl_of_probabilities if activated else reference.qfl
        pred = stored.double().requires_grad_()
        dense = target.double() if labels is None else reference.dense_target(labels, score, stored.shape[1])
        loss = truth(pred, dense, case["beta"]).sum(1) * (1 if weight is None else weight.double())
        want = {"loss_none": loss.detach(), "grad_sum": reference.gradient(loss.sum(), pred)}

    def loss_of(pred: Tensor, weight: Tensor | None, reduction: str, avg_factor: Any) -> Tensor:
        given = target if labels is None else (labels, score)
        return gfocal.quality_focal_loss(pred, given, weight, case["beta"], reduction, avg_factor, activated=activated)

    compare(loss_of, stored, case, want, weight)
    module = gfocal.QualityFocalLoss(beta=case["beta"], activated=activated, loss_weight=2.0)
    given = target if labels is None else (labels, score)
    loss = module(stored, given, weight, avg_factor=case["avg_factor"])
    assert_close(loss, 2 * want["loss_none"].sum() / (case["avg_factor"] + 2.0**-23), "module")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", golden.names("dfl"))
def test_dfl_and_integral(name: str, dtype: torch.dtype) -> None:
    tensors, case = golden.read(name)
    stored, target, weight = tensors["logits"].to(dtype), tensors["target"], tensors.get("weight")
    want = tensors
    if not golden.exact(case, dtype):
        pred = stored.double().requires_grad_()
        loss = reference.dfl(pred, target) * (1 if weight is None else weight.double())
        want = {
            "loss_none": loss.detach(),
            "grad_sum": reference.gradient(loss.sum(), pred),
            "expectation": reference.integral(stored.double()),
        }

    def loss_of(pred: Tensor, weight: Tensor | None, reduction: str, avg_factor: Any) -> Tensor:
        return gfocal.distribution_focal_loss(pred, target, weight, reduction, avg_factor)

    compare(loss_of, stored, case, want, weight)
    module = gfocal.DistributionFocalLoss(loss_weight=0.25)
    loss = module(stored, target, weight, avg_factor=case["avg_factor"])
    assert_close(loss, 0.25 * want["loss_none"].sum() / (case["avg_factor"] + 2.0**-23), "module")

    expectation = gfocal.integral(stored)
    assert_close(expectation, want["expectation"], "expectation")
    sides = stored.reshape(-1, 4 * stored.shape[1]) if len(stored) % 4 == 0 else None
    if sides is not None:
        assert_close(gfocal.Integral(stored.shape[1] - 1)(sides), want["expectation"].reshape(-1, 4), "Integral")
