"""NanoDet-Plus' head is not on PyPI: a stand-in that has its parts, with its loss in PyTorch's operations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gfocal
import gfocal.nanodet

CLASSES, REG_MAX = 5, 7


class NanoDetPlusHead(nn.Module):
    """The attributes that the loss reads, and the loss by other modules."""

    def __init__(self) -> None:
        super().__init__()
        self.num_classes, self.reg_max, self.strides = CLASSES, REG_MAX, [8, 16]
        self.loss_qfl = gfocal.QualityFocalLoss(beta=2.0, loss_weight=1.0)
        self.loss_dfl = gfocal.DistributionFocalLoss(loss_weight=0.25)
        self.loss_bbox = gfocal.GIoULoss(loss_weight=2.0)

    def get_single_level_center_priors(self, images: int, size: tuple[int, int], stride: int) -> Tensor:
        y, x = torch.meshgrid(torch.arange(size[0]) * stride, torch.arange(size[1]) * stride, indexing="ij")
        strides = torch.full((size[0] * size[1],), stride)
        priors = torch.stack([x.flatten(), y.flatten(), strides, strides], -1)
        return priors.float().unsqueeze(0).repeat(images, 1, 1)

    def _get_loss_from_assign(
        self, cls_preds: Tensor, reg_preds: Tensor, decoded: Tensor, assign: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        labels, scores, boxes, distances = (torch.cat(list(parts)) for parts in assign[:4])
        cls, reg, decoded = (
            cls_preds.reshape(-1, CLASSES),
            reg_preds.reshape(-1, 4 * (REG_MAX + 1)),
            decoded.reshape(-1, 4),
        )
        positive = (labels < CLASSES).nonzero().squeeze(1)
        qfl = self.loss_qfl(cls, (labels, scores), avg_factor=max(float(len(positive)), 1.0))
        weight = cls[positive].detach().sigmoid().amax(1)
        total = max(weight.sum().item(), 1.0)
        bbox = self.loss_bbox(decoded[positive], boxes[positive], weight, avg_factor=total)
        sides = reg[positive].reshape(-1, REG_MAX + 1)
        dfl = self.loss_dfl(
            sides, distances[positive].reshape(-1), weight[:, None].expand(-1, 4).reshape(-1), avg_factor=4 * total
        )
        return qfl + bbox + dfl, {"loss_qfl": qfl, "loss_bbox": bbox, "loss_dfl": dfl}


def scene(head: NanoDetPlusHead) -> tuple[Tensor, Tensor, Any]:
    """Outputs ``[B, A, C + 4K]`` and centres; an assignment of some of them."""
    source = torch.Generator().manual_seed(0)
    priors = torch.cat([head.get_single_level_center_priors(2, (64 // s, 96 // s), s) for s in head.strides], 1)
    images, anchors = priors.shape[:2]
    preds = torch.randn(images, anchors, CLASSES + 4 * (REG_MAX + 1), generator=source)
    labels = torch.randint(0, CLASSES + 1, (images, anchors), generator=source)
    labels = torch.where(torch.rand(images, anchors, generator=source) < 0.8, CLASSES, labels)
    scores = torch.where(labels < CLASSES, torch.rand(images, anchors, generator=source), 0.0)
    sides = torch.rand(images, anchors, 4, generator=source) * 8 * priors[..., 2:3]
    boxes = torch.cat([priors[..., :2] - sides[..., :2], priors[..., :2] + sides[..., 2:]], -1)
    distances = (sides / priors[..., 2:3]).clamp(max=REG_MAX - 0.1)
    return preds, priors, (list(labels), list(scores), list(boxes), list(distances), [3, 4])


def run(head: Any) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    preds, priors, assign = scene(head)
    preds.requires_grad_()
    cls, reg = preds.split([CLASSES, 4 * (REG_MAX + 1)], dim=-1)
    distance = gfocal.integral(reg.reshape(-1, REG_MAX + 1)).reshape(*reg.shape[:2], 4) * priors[..., 2:3]
    decoded = torch.cat([priors[..., :2] - distance[..., :2], priors[..., :2] + distance[..., 2:]], -1)
    loss, states = head._get_loss_from_assign(cls, reg, decoded, assign)
    loss.backward()
    assert preds.grad is not None
    return loss.detach(), preds.grad, states


def test_swap() -> None:
    want = run(NanoDetPlusHead())
    head = gfocal.nanodet.swap(NanoDetPlusHead())
    assert gfocal.nanodet.swap(head) is head and isinstance(head, NanoDetPlusHead)
    got = run(head)
    assert abs(got[0] - want[0]) <= 2e-6 * want[0]
    assert (got[1] - want[1]).abs().max() <= 2e-6 * want[1].abs().max()
    for key, value in want[2].items():
        assert abs(got[2][key] - value) <= 2e-6 * value, key
    with pytest.raises(TypeError, match="it must be a NanoDetPlusHead"):
        gfocal.nanodet.swap(nn.Linear(1, 1))
