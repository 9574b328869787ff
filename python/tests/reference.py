"""The formulas in PyTorch's operations, in float64: the truth, and slow."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def dense_target(labels: Tensor, score: Tensor, classes: int) -> Tensor:
    """The target of each logit: the score at the label, and 0 elsewhere."""
    target = torch.zeros(len(labels), classes, dtype=torch.float64)
    rows = torch.nonzero((labels >= 0) & (labels < classes)).squeeze(1)
    target[rows, labels[rows]] = score[rows].double().clamp(0, 1)
    return target


def qfl(pred: Tensor, target: Tensor, beta: float = 2.0) -> Tensor:
    """``[N, C]``; logits and their targets."""
    sigmoid = pred.sigmoid()
    # 1 − σ where that is exact; |d| has the gradient 0 at 0.
    distance = torch.where(target > 0.5, (1 - target) - (-pred).sigmoid(), sigmoid - target).abs()
    distance = torch.where(distance == 0, distance.detach(), distance)
    return distance**beta * (F.softplus(pred) - pred * target)


def qfl_of_probabilities(prob: Tensor, target: Tensor, beta: float = 2.0) -> Tensor:
    """``[N, C]``; probabilities and their targets."""
    cross_entropy = -(target * prob.log().clamp(min=-100) + (1 - target) * (-prob).log1p().clamp(min=-100))
    return (prob - target).abs() ** beta * cross_entropy


def dfl(pred: Tensor, label: Tensor) -> Tensor:
    """``[N]``."""
    bins = pred.shape[1]
    label = label.double().clamp(0, bins - 1)
    left = label.floor().clamp(max=bins - 2)
    right_weight = (label - left).unsqueeze(1)
    logs = pred.log_softmax(1)
    left = left.long().unsqueeze(1)
    return -((1 - right_weight) * logs.gather(1, left) + right_weight * logs.gather(1, left + 1)).squeeze(1)


def integral(logits: Tensor) -> Tensor:
    return logits.softmax(-1) @ torch.arange(logits.shape[-1], dtype=logits.dtype)


def gradient(of: Tensor, pred: Tensor) -> Tensor:
    (grad,) = torch.autograd.grad(of, pred)
    return grad
