"""Decoding: the boxes that raw box logits say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from . import _arguments as arguments
from . import _native
from ._autograd import Once, OnceInTransforms
from ._library import differentiable, in_transforms, operator

_ARGUMENTS = "Tensor[] bbox_preds, Tensor[] points, float[] strides, float offset, str coding, int bins"


def _room(preds: Sequence[Tensor], *_: Any) -> Tensor:
    anchors = sum(pred.shape[2:].numel() for pred in preds)
    dtype = arguments.loss_dtype(preds[0].dtype)
    return torch.empty((preds[0].shape[0], anchors, 4), dtype=dtype, device=preds[0].device)


def _rooms(preds: Sequence[Tensor], *_: Any) -> list[Tensor]:
    return [torch.empty_strided(pred.shape, pred.stride(), dtype=pred.dtype, device=pred.device) for pred in preds]


def _forward(
    preds: list[Tensor], points: list[Tensor], strides: Sequence[float], offset: float, coding: str, bins: int
) -> Tensor:
    boxes = _room(preds)
    _native.decode(preds, strides, boxes, coding=coding, bins=bins, offset=offset, points=points)
    return boxes


def _backward(
    preds: list[Tensor],
    points: list[Tensor],
    strides: Sequence[float],
    offset: float,
    coding: str,
    bins: int,
    upstream: Tensor,
) -> list[Tensor]:
    grads = _rooms(preds)
    _native.decode(
        preds, strides, upstream.contiguous(), coding=coding, bins=bins, offset=offset, points=points, grads=grads
    )
    return grads


_decode = operator(f"decode({_ARGUMENTS}) -> Tensor", _forward, _room)
_decode_backward = operator(f"decode_backward({_ARGUMENTS}, Tensor upstream) -> Tensor[]", _backward, _rooms)

Options = tuple[Any, ...]


def _gradients(ctx: Any, upstream: Tensor, functional: bool) -> list[Tensor | None]:
    saved = list(ctx.saved_tensors)
    preds, points = saved[: ctx.levels], saved[ctx.levels :]
    with torch.no_grad():
        grads = _decode_backward(preds, points, *ctx.options, upstream)
    if torch.is_grad_enabled():
        refusing = OnceInTransforms if functional else Once
        grads = [refusing.apply(grad, pred, upstream) for grad, pred in zip(grads, preds)]
    return [*grads, *[None] * len(points)]


class Decode(Function):
    """``flat``: the logits of all levels, then their points."""

    @staticmethod
    def forward(ctx: Any, levels: int, options: Options, *flat: Tensor) -> Tensor:
        ctx.levels, ctx.options = levels, options
        ctx.save_for_backward(*flat)
        boxes: Tensor = _decode(list(flat[:levels]), list(flat[levels:]), *options)
        return boxes

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return None, None, *_gradients(ctx, grads[0], False)


class DecodeInTransforms(Function):
    """The same under ``torch.func``."""

    @staticmethod
    def forward(levels: int, options: Options, *flat: Tensor) -> Tensor:
        boxes: Tensor = _decode(list(flat[:levels]), list(flat[levels:]), *options)
        return boxes

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.levels, ctx.options, *flat = inputs
        ctx.save_for_backward(*flat)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return None, None, *_gradients(ctx, grads[0], True)


def _in_place(pred: Tensor) -> Tensor:
    """Logits whose gradient can have their strides: no two of them are in one place."""
    distinct = all(stride > 0 or length <= 1 for length, stride in zip(pred.shape, pred.stride()))
    return pred if distinct else pred.contiguous()


@differentiable
def decode(
    bbox_preds: Sequence[Tensor],
    strides: Sequence[float],
    *,
    points: Sequence[Tensor] = (),
    offset: float = 0.0,
    reg_max: int = 16,
    bins: int | None = None,
    coding: str = "bins",
) -> Tensor:
    r"""The boxes that raw box logits of a pyramid say.

    For an anchor point (X, Y) in pixels of a level with stride s, and the logits z of its four sides left, top, right,
    bottom (*Generalized Focal Loss*, Li et al., NeurIPS 2020, equation 5, and mmdetection's ``distance2bbox``)::

        x1 = X − s·E(z_left)     y1 = Y − s·E(z_top)     x2 = X + s·E(z_right)     y2 = Y + s·E(z_bottom)

        E(z) = Σ_j j·p_j, p = softmax(z)     of bins, see integral;  or exp(z);  or max(z, 0)

    Args:
        bbox_preds: of each level, ``[B, 4·K, H, W]``, or ``[B, 4·K, A]`` with ``points``; channel side·K + bin;
            float32, float16 or bfloat16, on the CPU also float64. They are read where they are, in any strides.
        strides: pixels from one position to the next.
        points: of each level ``[H·W, 2]`` or ``[B, H·W, 2]``, anchor points in pixels, in place of
            ``((x, y) + offset)·stride``.
        offset: of anchor points, in strides: 0 in mmdetection's GFL, 0.5 in Ultralytics.
        reg_max: K − 1.
        bins: K, in place of ``reg_max``.
        coding: ``"bins"``; or, with one logit a side, ``"exp"`` or ``"relu"``.

    Returns:
        ``[B, A, 4]``, x1, y1, x2, y2 in pixels, the positions of all levels one after the other; float32 (float64 for
        float64).

    Raises:
        ShapeError: if shapes do not go together.
        TypeError: if a dtype cannot be used.
        ValueError: if an option is outside its range, tensors are on different devices, or points require a gradient.

    >>> import torch, gfocal
    >>> logits = torch.zeros(1, 8, 1, 2)  # two positions side by side, 2 bins a side
    >>> gfocal.decode([logits], [8.0], offset=0.5, bins=2)  # half a stride to each side
    tensor([[[ 0.,  0.,  8.,  8.],
             [ 8.,  0., 16.,  8.]]])
    """
    preds = arguments.levels("bbox_preds", bbox_preds)
    if not preds:
        raise _native.ShapeError("bbox_preds has no levels")
    beside = arguments.all_beside("points", points, preds[0])
    options = (arguments.strides(strides), offset, coding, reg_max + 1 if bins is None else bins)
    functional = in_transforms()
    tracked = functional or forward_ad._current_level >= 0
    if tracked or (torch.is_grad_enabled() and any(pred.requires_grad for pred in preds)):
        kind = DecodeInTransforms if functional else Decode
        return kind.apply(len(preds), options, *map(_in_place, preds), *beside)  # type: ignore[no-any-return]
    boxes: Tensor = _decode(preds, beside, *options)
    return boxes
