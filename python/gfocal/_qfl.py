"""Quality Focal Loss."""

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

_native_qfl = lru_cache(maxsize=256)(_native.Qfl)

_TENSORS = (
    "Tensor pred, Tensor? labels, Tensor target, Tensor? weight, Tensor? class_weights, Tensor? element_weights, "
    "Tensor? avg_factor"
)
_OPTIONS = (
    "float beta, float loss_weight, float? alpha, bool activated, str background, int? ignore_label, str reduction, "
    "float? average, str policy, float minimum"
)


def _forward(
    pred: Tensor,
    labels: Tensor | None,
    target: Tensor,
    weight: Tensor | None,
    class_weights: Tensor | None,
    element_weights: Tensor | None,
    avg_factor: Tensor | None,
    beta: float,
    loss_weight: float,
    alpha: float | None,
    activated: bool,
    background: str,
    ignore_label: int | None,
    reduction: str,
    average: float | None,
    policy: str,
    minimum: float,
    with_grad: bool,
    with_status: bool,
) -> Results:
    qfl = _native_qfl(beta, loss_weight, alpha, activated, background, ignore_label)
    loss, grad, status = results(pred, reduction, with_grad, with_status)
    # By their places: names take longer to look up than a small loss to compute.
    qfl.run(
        pred, labels, target, weight, class_weights, element_weights, None, None, reduction,
        average if avg_factor is None else avg_factor, policy, minimum, loss, grad, None, status,
    )  # fmt: skip
    return loss, grad, status


def _backward(
    pred: Tensor,
    labels: Tensor | None,
    target: Tensor,
    weight: Tensor | None,
    class_weights: Tensor | None,
    element_weights: Tensor | None,
    avg_factor: Tensor | None,
    beta: float,
    loss_weight: float,
    alpha: float | None,
    activated: bool,
    background: str,
    ignore_label: int | None,
    reduction: str,
    average: float | None,
    policy: str,
    minimum: float,
    upstream: Tensor,
) -> Tensor:
    qfl = _native_qfl(beta, loss_weight, alpha, activated, background, ignore_label)
    grad = torch.empty_like(pred)
    rows = reduction == "none"
    qfl.run(
        pred, labels, target, weight=weight, class_weights=class_weights, element_weights=element_weights,
        upstream=upstream.contiguous() if rows else None, grad_scale=None if rows else upstream, reduction=reduction,
        avg_factor=average if avg_factor is None else avg_factor, policy=policy, minimum=minimum, grad=grad,
    )  # fmt: skip
    return grad


qfl = operator(
    f"qfl({_TENSORS}, {_OPTIONS}, bool with_grad, bool with_status) -> (Tensor, Tensor, Tensor)",
    _forward,
    fake_results,
)
qfl_backward = operator(
    f"qfl_backward({_TENSORS}, {_OPTIONS}, Tensor upstream) -> Tensor",
    _backward,
    lambda pred, *_: torch.empty_like(pred),
)


def quality_focal_loss(
    pred: Tensor,
    target: Tensor | tuple[Tensor, Tensor],
    weight: Tensor | None = None,
    beta: float = 2.0,
    reduction: str = "mean",
    avg_factor: float | Tensor | None = None,
    loss_weight: float = 1.0,
    *,
    policy: str = "eps",
    minimum: float = 1.0,
    background: str = "last",
    ignore_label: int | None = None,
    alpha: float | None = None,
    activated: bool = False,
    class_weights: Tensor | None = None,
    element_weights: Tensor | None = None,
    status: Status | None = None,
) -> Tensor:
    r"""Quality Focal Loss, one pass over the logits.

    For a logit x with target y, and the sigmoid σ (*Generalized Focal Loss*, Li et al., NeurIPS 2020, equation 4)::

        QFL(x, y) = |y − σ(x)|^β · (softplus(x) − x·y)

    The target y of a row is its score (the IoU of its box) in the column of its label, and 0 elsewhere; the loss of a
    row is the sum over its classes.

    Args:
        pred: logits ``[N, C]``, float32, float16 or bfloat16, on the CPU also float64. With ``activated``,
            probabilities.
        target: ``(labels [N], score [N])``, labels int64 or int32, of which C and those below 0 are background; or a
            target for each logit, ``[N, C]``. Scores and targets are clamped to [0, 1].
        weight: ``[N]``, multiplies the losses of rows. A weight of exactly 0 masks its row, whatever its logits hold.
        beta: exponent β of the modulating factor, from 0 (binary cross entropy) to 10^6.
        reduction: ``"mean"``: the sum over N, or over ``avg_factor``; ``"sum"``; ``"none"``: ``[N]``.
        avg_factor: what a mean divides by, a number or a tensor with one element, which stays on its device.
        loss_weight: multiplies the loss.
        policy: what becomes of ``avg_factor``: ``"eps"`` adds 2^-23 as mmdetection 3 does, ``"exact"`` takes it as it
            is, ``"at_least"`` takes ``minimum`` if that is larger.
        minimum: for ``policy="at_least"``.
        background: ``"last"``: classes are 0 to C − 1; ``"first"``: 0 is background, classes are 1 to C.
        ignore_label: rows with this label give nothing.
        alpha: α of focal loss: an element is multiplied by y·α + (1 − y)·(1 − α).
        activated: ``pred`` holds probabilities; the gradient is with respect to them.
        class_weights: ``[C]``; 0 masks a class.
        element_weights: ``[N, C]``; 0 masks an element.
        status: counts labels and scores that could not be used, whose rows give nothing.

    Returns:
        The loss, float32 (float64 for float64): a number, or ``[N]``.

    Raises:
        ShapeError: if shapes do not go together.
        TypeError: if a dtype cannot be used.
        ValueError: if an option is outside its range, tensors are on different devices, or anything but ``pred``
            requires a gradient.

    >>> import torch, gfocal
    >>> pred = torch.tensor([[0.0, -2.0], [1.0, -1.0]], requires_grad=True)
    >>> labels, score = torch.tensor([0, 2]), torch.tensor([0.75, 0.0])  # class 0, background
    >>> loss = gfocal.quality_focal_loss(pred, (labels, score), reduction="sum")
    >>> round(loss.item(), 4)
    0.7697
    >>> loss.backward()
    >>> round(pred.grad[0, 0].item(), 4)  # d·(d² + 2·σ(1 − σ)·ln 2), d = −0.25
    -0.1023
    """
    pred = arguments.logits("pred", pred)
    labels, dense = arguments.target(target, pred)
    factor, average = arguments.average("avg_factor", avg_factor, pred)
    tensors = (
        labels,
        dense,
        None if weight is None else arguments.beside("weight", weight, pred),
        None if class_weights is None else arguments.beside("class_weights", class_weights, pred),
        None if element_weights is None else arguments.beside("element_weights", element_weights, pred),
        factor,
    )
    options = (
        beta, loss_weight, alpha, activated, background, ignore_label, reduction, average, policy, minimum,
    )  # fmt: skip
    loss, words = loss_of(pred, qfl, qfl_backward, tensors, options, reduction, is_counted(status))
    if status is not None:
        status.add(words)
    return loss


class QualityFocalLoss(nn.Module):
    """See :func:`quality_focal_loss`; arguments and call as mmdetection's ``QualityFocalLoss``."""

    def __init__(
        self,
        use_sigmoid: bool = True,
        beta: float = 2.0,
        reduction: str = "mean",
        loss_weight: float = 1.0,
        activated: bool = False,
    ) -> None:
        super().__init__()
        if not use_sigmoid:
            raise ValueError("use_sigmoid is False, and only a sigmoid is defined for Quality Focal Loss")
        _native_qfl(beta, loss_weight, None, activated, "last", None)
        self.use_sigmoid, self.beta, self.reduction = use_sigmoid, beta, arguments.reduction(reduction)
        self.loss_weight, self.activated = loss_weight, activated

    def forward(
        self,
        pred: Tensor,
        target: Tensor | tuple[Tensor, Tensor],
        weight: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
        reduction_override: str | None = None,
    ) -> Tensor:
        """See :func:`quality_focal_loss`."""
        return quality_focal_loss(
            pred, target, weight, self.beta, reduction_override or self.reduction, avg_factor, self.loss_weight,
            activated=self.activated,
        )  # fmt: skip

    def extra_repr(self) -> str:
        options = f"beta={self.beta}, reduction={self.reduction!r}, loss_weight={self.loss_weight}"
        return f"{options}, activated={self.activated}"
