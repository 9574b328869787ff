"""What a type checker must accept, and what it must see; pytest runs it, too."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import gfocal


def losses(pred: Tensor, labels: Tensor, score: Tensor) -> Tensor:
    status = gfocal.Status()
    loss: Tensor = gfocal.quality_focal_loss(pred, (labels, score), reduction="sum", status=status)
    loss = loss + gfocal.quality_focal_loss(pred, torch.zeros_like(pred), avg_factor=labels.sum() + 1)
    loss = loss + gfocal.distribution_focal_loss(pred, score, target_eps=0.1)
    loss = loss + gfocal.integral(pred).sum() + gfocal.gfl(pred, (labels, score), pred, score)[2]
    loss = loss + gfocal.iou(pred, gfocal.distances_to_box(pred[:, :2], pred)).sum()
    module: nn.Module = gfocal.QualityFocalLoss(beta=1.5)
    more: Tensor = module(pred, (labels, score))
    return loss + more * float(status.ok)


def test_typed() -> None:
    loss = losses(torch.zeros(2, 4), torch.tensor([0, 4]), torch.tensor([0.5, 0.0]))
    assert loss.isfinite()
