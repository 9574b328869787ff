"""Losses between boxes: 1 − IoU and its variants."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn

from . import _arguments as arguments
from . import _native
from ._autograd import mapped
from ._library import operator

_native_boxes = lru_cache(maxsize=64)(_native.Boxes)


def boxes_forward(pred: Tensor, target: Tensor, kind: str, eps: float) -> Tensor:
    loss = pred.new_empty(pred.shape[0])
    _native_boxes(kind, eps).run(pred, target, loss)
    return loss


def boxes_backward(pred: Tensor, target: Tensor, kind: str, eps: float, upstream: Tensor) -> Tensor:
    grad, loss = torch.empty_like(pred), pred.new_empty(pred.shape[0])
    _native_boxes(kind, eps).run(pred, target, loss, upstream=upstream.contiguous(), grad=grad)
    return grad


_boxes = operator(
    "boxes(Tensor pred, Tensor target, str kind, float eps) -> Tensor",
    boxes_forward,
    lambda pred, *_: pred.new_empty(pred.shape[0]),
)
_boxes_backward = operator(
    "boxes_backward(Tensor pred, Tensor target, str kind, float eps, Tensor upstream) -> Tensor",
    boxes_backward,
    lambda pred, *_: torch.empty_like(pred),
)


def box_loss(pred: Tensor, target: Tensor, kind: str = "giou", eps: float = 1e-6) -> Tensor:
    r"""1 − IoU, or one of its variants, of each pair of boxes.

    With I the area of the intersection, U of the union, H of the smallest box around both, c that box's diagonal, ρ the
    distance of the centres, and v a measure of how the aspects differ::

        IoU = I / U      GIoU = IoU − (H − U) / H      DIoU = IoU − ρ²/c²      CIoU = DIoU − α·v

    Args:
        pred: ``[N, 4]`` x1, y1, x2, y2; float32, on the CPU also float64. 16-bit boxes are converted to float32.
        target: ``[N, 4]``.
        kind: ``"iou"``, ``"giou"``, ``"diou"``, ``"ciou"`` (mmdetection's: α is 0 where IoU ≤ 0.5) or
            ``"ciou_ultralytics"``.
        eps: from 1e-30 to 1, the least area, or what is added to areas.

    Returns:
        ``[N]``.

    Raises:
        ShapeError: if shapes do not go together.
        TypeError: if a dtype cannot be used.
        ValueError: if an option is outside its range, tensors are on different devices, or ``target`` requires a
            gradient.

    >>> import torch, gfocal
    >>> pred = torch.tensor([[0.0, 0.0, 4.0, 4.0]])
    >>> gfocal.box_loss(pred, torch.tensor([[2.0, 0.0, 6.0, 4.0]]))  # I = 8, U = H = 24
    tensor([0.6667])
    """
    pred = arguments.logits("pred", pred)
    if pred.dtype in {torch.float16, torch.bfloat16}:
        pred = pred.float()
    return mapped(pred, _boxes, _boxes_backward, (arguments.beside("target", target, pred),), (kind, eps))


def reduced(
    loss: Tensor, weight: Tensor | None, reduction: str, avg_factor: float | Tensor | None, loss_weight: float
) -> Tensor:
    """What mmdetection's ``weight_reduce_loss`` does."""
    arguments.reduction(reduction)
    if avg_factor is not None and reduction == "sum":
        raise ValueError('avg_factor can not be used with reduction="sum"')
    if weight is not None:
        # A weight of 0 masks, whatever the box.
        loss = torch.where(weight == 0, torch.zeros_like(loss), loss * weight)
    if reduction == "none":
        return loss * loss_weight
    if reduction == "sum":
        return loss.sum() * loss_weight
    if avg_factor is None:
        return loss.sum() / max(loss.numel(), 1) * loss_weight
    factor, average = arguments.average("avg_factor", avg_factor, loss)
    if factor is not None:
        if factor.numel() != 1:
            raise _native.ShapeError(f"avg_factor has shape {list(factor.shape)}, it must have one element")
        avg_factor = factor.reshape(())
    elif average is not None and not 0 <= average < float("inf"):
        raise ValueError(f"avg_factor is {average}, it must be a finite number, 0 or more")
    return loss.sum() / (avg_factor + torch.finfo(torch.float32).eps) * loss_weight


class _BoxLoss(nn.Module):
    kind: str

    def __init__(self, eps: float = 1e-6, reduction: str = "mean", loss_weight: float = 1.0) -> None:
        super().__init__()
        _native_boxes(self.kind, eps)
        self.eps, self.reduction, self.loss_weight = eps, arguments.reduction(reduction), loss_weight

    def of_boxes(self, pred: Tensor, target: Tensor) -> Tensor:
        return box_loss(pred, target, self.kind, self.eps)

    def forward(
        self,
        pred: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
        reduction_override: str | None = None,
    ) -> Tensor:
        """``weight`` is ``[N]``, or ``[N, 4]``, whose mean is taken. See :func:`box_loss`."""
        loss = self.of_boxes(pred, target)
        if weight is not None:
            weight = arguments.beside("weight", weight, loss)
            weight = weight.mean(-1) if weight.dim() > 1 else weight
            if weight.shape != loss.shape:
                raise _native.ShapeError(
                    f"weight has shape {list(weight.shape)}, pred {list(pred.shape)} needs {list(loss.shape)} or "
                    f"{list(pred.shape)}"
                )
        return reduced(loss, weight, reduction_override or self.reduction, avg_factor, self.loss_weight)

    def extra_repr(self) -> str:
        return f"eps={self.eps}, reduction={self.reduction!r}, loss_weight={self.loss_weight}"


class GIoULoss(_BoxLoss):
    """1 − GIoU; see :func:`box_loss`. Arguments and call as mmdetection's ``GIoULoss``."""

    kind = "giou"


class DIoULoss(_BoxLoss):
    """1 − DIoU; see :func:`box_loss`. Arguments and call as mmdetection's ``DIoULoss``."""

    kind = "diou"


class CIoULoss(_BoxLoss):
    """1 − CIoU; see :func:`box_loss`. Arguments and call as mmdetection's ``CIoULoss``; or Ultralytics' variant."""

    kind = "ciou"

    def __init__(
        self,
        eps: float = 1e-6,
        reduction: str = "mean",
        loss_weight: float = 1.0,
        *,
        ultralytics: bool = False,
    ) -> None:
        self.kind = "ciou_ultralytics" if ultralytics else "ciou"
        super().__init__(eps, reduction, loss_weight)


class IoULoss(_BoxLoss):
    """−log IoU, 1 − IoU or 1 − IoU²; see :func:`box_loss`. Arguments and call as mmdetection's ``IoULoss``."""

    kind = "iou"

    def __init__(
        self,
        linear: bool = False,
        eps: float = 1e-6,
        reduction: str = "mean",
        loss_weight: float = 1.0,
        mode: str = "log",
    ) -> None:
        super().__init__(eps, reduction, loss_weight)
        if mode not in {"linear", "square", "log"}:
            raise ValueError(f'mode is {mode!r}, it must be "linear", "square" or "log"')
        self.mode = "linear" if linear else mode

    def of_boxes(self, pred: Tensor, target: Tensor) -> Tensor:
        loss = super().of_boxes(pred, target)
        if self.mode == "linear":
            return loss
        iou = (1 - loss).clamp(min=self.eps)
        return 1 - iou**2 if self.mode == "square" else -iou.log()

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, mode={self.mode!r}"
