"""The head loss in PyTorch's operations, in float64: the truth, and slow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .reference import dfl, qfl

EPS = 2.0**-23


def rows(logits: Tensor) -> Tensor:
    """``[B, C, H, W]`` to ``[B, H·W, C]``."""
    return logits.double().flatten(2).transpose(1, 2)


def corners(points: Tensor, distances: Tensor) -> Tensor:
    return torch.cat([points - distances[..., :2], points + distances[..., 2:]], -1)


def iou_and_giou(a: Tensor, b: Tensor, eps: float = 1e-6) -> tuple[Tensor, Tensor]:
    def area(boxes: Tensor) -> Tensor:
        return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])

    sides = (torch.min(a[..., 2:], b[..., 2:]) - torch.max(a[..., :2], b[..., :2])).clamp(min=0)
    around = torch.max(a[..., 2:], b[..., 2:]) - torch.min(a[..., :2], b[..., :2])
    common = sides.prod(-1)
    union = (area(a) + area(b) - common).clamp(min=eps)
    hull = around.prod(-1).clamp(min=eps)
    return common / union, common / union - (hull - union) / hull


def gfl_head(
    cls: Sequence[Tensor],
    boxes: Sequence[Tensor],
    labels: Sequence[Tensor],
    targets: Sequence[Tensor],
    strides: Sequence[float],
    *,
    label_weights: Sequence[Tensor] | None = None,
    beta: float = 2.0,
    weights: tuple[float, float, float] = (1.0, 2.0, 0.25),
    target_eps: float = 0.1,
    normalisers: Any = None,
) -> Tensor:
    """``[levels, 3]``: mmdetection's ``GFLHead.loss_by_feat``, anchor points on a grid without offset."""
    classes, bins = cls[0].shape[1], boxes[0].shape[1] // 4
    sums, positives, scores = [], torch.zeros(cls[0].shape[0]), torch.zeros((), dtype=torch.float64)
    for level, stride in enumerate(strides):
        height, width = cls[level].shape[2:]
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        points = torch.stack([x, y], -1).view(1, -1, 2).double()
        of_cls, of_boxes = rows(cls[level]), rows(boxes[level]).unflatten(-1, (4, bins))
        positive = (labels[level] >= 0) & (labels[level] < classes)
        distances = of_boxes.softmax(-1) @ torch.arange(bins).double()
        want = targets[level].double() / stride
        iou, giou = iou_and_giou(corners(points, distances), want)
        v = torch.where(positive, of_cls.detach().sigmoid().amax(-1), 0)
        target = torch.zeros_like(of_cls)
        place = positive.nonzero(as_tuple=True)
        target[(*place, labels[level][place].long())] = iou.detach()[place].clamp(0, 1)
        of_rows = qfl(of_cls, target, beta).sum(-1)
        if label_weights is not None:
            of_rows = of_rows * label_weights[level]
        sides = torch.cat([points - want[..., :2], want[..., 2:] - points], -1).clamp(0, bins - 1 - target_eps)
        of_sides = dfl(of_boxes[place].reshape(-1, bins), sides[place].reshape(-1)).view(-1, 4).sum(1)
        sums.append(torch.stack([of_rows.sum(), (v * (1 - giou))[place].sum(), (v[place] * of_sides).sum()]))
        positives += positive.sum(1)
        scores = scores + v.sum()
    n = positives.clamp(min=1).sum().double()
    if normalisers is not None:
        n, scores = normalisers
    w = scores.clamp(min=1)
    factors = torch.stack([1 / (n + EPS), 1 / (w * (1 + EPS)), 1 / (w * (4 + EPS))])
    return torch.stack(sums) * factors * torch.tensor(weights, dtype=torch.float64)
