"""Distribution Focal Loss."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn

from . import _arguments as arguments
from . import _native
from ._autograd import Results, fake_results, results
from ._autograd import loss as loss_of
from ._library import operator
from ._status import Status, is_counted

_native_dfl = lru_cache(maxsize=256)(_native.Dfl)

_ARGUMENTS = (
    "Tensor pred, Tensor label, Tensor? weight, Tensor? avg_factor, float loss_weight, float target_eps, "
    "str reduction, float? average, str policy, float minimum"
)


def _forward(
    pred: Tensor,
    label: Tensor,
    weight: Tensor | None,
    avg_factor: Tensor | None,
    loss_weight: float,
    target_eps: float,
    reduction: str,
    average: float | None,
    policy: str,
    minimum: float,
    with_grad: bool,
    with_status: bool,
) -> Results:
    loss, grad, status = results(pred, reduction, with_grad, with_status)
    _native_dfl(loss_weight, target_eps).run(
        pred, label, weight, None, None, reduction, average if avg_factor is None else avg_factor, policy, minimum,
        loss, grad, None, status,
    )  # fmt: skip
    return loss, grad, status


def _backward(
    pred: Tensor,
    label: Tensor,
    weight: Tensor | None,
    avg_factor: Tensor | None,
    loss_weight: float,
    target_eps: float,
    reduction: str,
    average: float | None,
    policy: str,
    minimum: float,
    upstream: Tensor,
) -> Tensor:
    grad = torch.empty_like(pred)
    rows = reduction == "none"
    _native_dfl(loss_weight, target_eps).run(
        pred, label, weight=weight, upstream=upstream.contiguous() if rows else None,
        grad_scale=None if rows else upstream, reduction=reduction,
        avg_factor=average if avg_factor is None else avg_factor, policy=policy, minimum=minimum, grad=grad,
    )  # fmt: skip
    return grad


dfl = operator(
    f"dfl({_ARGUMENTS}, bool with_grad, bool with_status) -> (Tensor, Tensor, Tensor)", _forward, fake_results
)
dfl_backward = operator(
    f"dfl_backward({_ARGUMENTS}, Tensor upstream) -> Tensor",
    _backward,
    lambda pred, *_: torch.empty_like(pred),
)


def distribution_focal_loss(
    pred: Tensor,
    label: Tensor,
    weight: Tensor | None = None,
    reduction: str = "mean",
    avg_factor: float | Tensor | None = None,
    loss_weight: float = 1.0,
    *,
    target_eps: float = 0.0,
    policy: str = "eps",
    minimum: float = 1.0,
    status: Status | None = None,
) -> Tensor:
    r"""Distribution Focal Loss: a cross entropy with the two bins around a distance.

    For the K logits z of a box side and its distance t in [0, K − 1], in units of bins (*Generalized Focal Loss*, Li et
    al., NeurIPS 2020, equation 6)::

        i = min(⌊t⌋, K − 2),   w = t − i
        DFL(z, t) = −(1 − w)·log p_i − w·log p_(i+1),   p = softmax(z)

    Args:
        pred: logits ``[N, K]``, a row for each box side, K bins (reg_max + 1 in mmdetection, reg_max in Ultralytics);
            float32, float16 or bfloat16, on the CPU also float64.
        label: distances ``[N]`` in units of bins; clamped to [0, K − 1 − target_eps].
        weight: ``[N]``, multiplies the losses of rows. A weight of exactly 0 masks its row, whatever its logits hold.
        reduction: ``"mean"``: the sum over N, or over ``avg_factor``; ``"sum"``; ``"none"``: ``[N]``.
        avg_factor: what a mean divides by, a number or a tensor with one element, which stays on its device.
        loss_weight: multiplies the loss.
        target_eps: how far below the last bin distances are clamped: 0.1 in mmdetection's heads, 0.01 in Ultralytics.
        policy, minimum: see :func:`quality_focal_loss`.
        status: counts distances outside the bins, which are clamped, and NaN, whose rows give nothing.

    Returns:
        The loss, float32 (float64 for float64): a number, or ``[N]``.

    Raises:
        ShapeError: if shapes do not go together.
        TypeError: if a dtype cannot be used.
        ValueError: if an option is outside its range, tensors are on different devices, or anything but ``pred``
            requires a gradient.

    >>> import torch, gfocal
    >>> pred = torch.zeros(1, 4, requires_grad=True)  # one side, 4 bins, nothing learned yet
    >>> loss = gfocal.distribution_focal_loss(pred, torch.tensor([1.25]), reduction="sum")
    >>> round(loss.item(), 4)  # ln 4
    1.3863
    >>> loss.backward()
    >>> pred.grad
    tensor([[ 0.2500, -0.5000,  0.0000,  0.2500]])
    """
    pred = arguments.logits("pred", pred)
    factor, average = arguments.average("avg_factor", avg_factor, pred)
    tensors = (arguments.beside("label", label, pred), arguments.optional("weight", weight, pred), factor)
    options = (loss_weight, target_eps, reduction, average, policy, minimum)
    loss, words = loss_of(pred, dfl, dfl_backward, tensors, options, reduction, is_counted(status))
    if status is not None:
        status.add(words)
    return loss


class DistributionFocalLoss(nn.Module):
    """See :func:`distribution_focal_loss`; arguments and call as mmdetection's ``DistributionFocalLoss``."""

    def __init__(self, reduction: str = "mean", loss_weight: float = 1.0) -> None:
        super().__init__()
        _native_dfl(loss_weight, 0.0)
        self.reduction, self.loss_weight = arguments.reduction(reduction), loss_weight

    def forward(
        self,
        pred: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
        reduction_override: str | None = None,
    ) -> Tensor:
        """See :func:`distribution_focal_loss`."""
        reduction = reduction_override or self.reduction
        return distribution_focal_loss(pred, target, weight, reduction, avg_factor, self.loss_weight)

    def extra_repr(self) -> str:
        return f"reduction={self.reduction!r}, loss_weight={self.loss_weight}"
