"""What the gradients of all losses have in common.

A reduced loss has its gradient made in the forward pass, in one go with the loss; backward multiplies it by the
upstream gradient. In float16 it is made in the backward pass, with the upstream gradient (a loss scale, say) in it
before it is rounded: one of 5e-9 would be 0 otherwise. So it is for losses that are not reduced, each of which has an
upstream gradient of its own.
"""

from __future__ import annotations

from typing import Any, Optional

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from . import _native
from ._library import Operator, differentiable, in_transforms, is_plain, operator
from ._status import WORDS

_F16, _F32, _F64 = torch.float16, torch.float32, torch.float64

Results = tuple[Tensor, Optional[Tensor], Optional[Tensor]]


def _scale(grad: Tensor, upstream: Tensor) -> Tensor:
    scaled = grad.clone()
    _native.scale(scaled, upstream)
    return scaled


scale_grad = operator(
    "scale_grad(Tensor grad, Tensor upstream) -> Tensor", _scale, lambda grad, _: torch.empty_like(grad)
)


def results(pred: Tensor, reduction: str, with_grad: bool, with_status: bool) -> Results:
    """Room for loss, gradient and status of a loss of rows."""
    dtype, device = (_F64 if pred.dtype is _F64 else _F32), pred.device
    return (
        torch.empty((pred.shape[0],) if reduction == "none" else (), dtype=dtype, device=device),
        torch.empty_like(pred) if with_grad else None,
        torch.empty(WORDS, dtype=torch.int64, device=device) if with_status else None,
    )


def fake_results(pred: Tensor, *args: Any) -> Results:
    """The same of the arguments of an operator for a loss of rows."""
    reduction, with_grad, with_status = args[-6], args[-2], args[-1]
    return results(pred, reduction, with_grad, with_status)


_NO_SECOND = "gfocal's losses have no second derivative; it was asked for by create_graph=True or nested transforms"


class Once(Function):
    """A gradient as it is; one of it is refused, with respect to logits and upstream gradient alike."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, *tracked: Tensor) -> Tensor:
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise RuntimeError(_NO_SECOND)


class OnceInTransforms(Function):
    """The same under ``torch.func``."""

    @staticmethod
    def forward(grad: Tensor, *tracked: Tensor) -> Tensor:
        return grad.view_as(grad)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise RuntimeError(_NO_SECOND)


def is_early(pred: Tensor, reduction: str) -> bool:
    return reduction != "none" and pred.dtype is not _F16


def _backward(ctx: Any, upstream: Tensor, functional: bool) -> Tensor:
    """The gradient of the logits; under ``create_graph`` one that cannot be differentiated again."""
    if not torch.is_grad_enabled():
        return _gradient(ctx, upstream, functional)
    with torch.no_grad():
        grad = _gradient(ctx, upstream, functional)
    pred = ctx.saved_tensors[0]
    return (OnceInTransforms if functional else Once).apply(grad, pred, upstream)  # type: ignore[no-any-return]


def _gradient(ctx: Any, upstream: Tensor, functional: bool) -> Tensor:
    pred, *tensors = ctx.saved_tensors
    if ctx.early:
        grad: Tensor = tensors.pop()
        if functional or not is_plain(upstream):
            return scale_grad(grad, upstream)  # type: ignore[no-any-return]
        if pred.is_cpu:
            return grad if upstream.item() == 1.0 else scale_grad(grad, upstream)
        # On CUDA the upstream gradient is not looked at here: that would be waited for. The gradient is multiplied
        # where it is, unless an earlier backward pass has given it away.
        if not getattr(ctx, "given_away", False):
            ctx.given_away = True
            _native.scale(grad, upstream)
            return grad
    return ctx.backward_op(pred, *tensors, *ctx.options, upstream)  # type: ignore[no-any-return]


# A loss of rows, and all but its logits: `forward_op` and `backward_op`, which take pred, tensors and options, in this
# order; tensors, options, `early`, `counts`. One argument, and no class, as each takes time.
Call = tuple[Operator, Operator, tuple[Optional[Tensor], ...], tuple[Any, ...], bool, bool]


class Loss(Function):
    """A loss of rows."""

    @staticmethod
    def forward(ctx: Any, pred: Tensor, call: Call) -> Any:
        forward_op, backward_op, tensors, options, early, counts = call
        loss, grad, status = forward_op.of(pred)(pred, *tensors, *options, early, counts)
        ctx.early = early
        if early and pred.is_cpu:
            ctx.save_for_backward(pred, grad)  # which is never made anew
        else:
            ctx.backward_op, ctx.options = backward_op, options
            ctx.save_for_backward(pred, *tensors, *([grad] if early else []))
        if not counts:
            return loss
        ctx.mark_non_differentiable(status)
        return loss, status

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return _backward(ctx, grads[0], False), None


class LossInTransforms(Function):
    """The same under ``torch.func``, which needs ``setup_context``: a slower call."""

    @staticmethod
    def forward(pred: Tensor, call: Call) -> Any:
        forward_op, _, tensors, options, early, counts = call
        return forward_op.overload(pred, *tensors, *options, early, counts)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pred, (_, ctx.backward_op, tensors, ctx.options, ctx.early, _) = inputs
        _, grad, status = output
        ctx.mark_non_differentiable(grad, status)
        ctx.save_for_backward(pred, *tensors, *([grad] if ctx.early else []))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return _backward(ctx, grads[0], True), None


@differentiable
def loss(
    pred: Tensor,
    forward_op: Operator,
    backward_op: Operator,
    tensors: tuple[Tensor | None, ...],
    options: tuple[Any, ...],
    reduction: str,
    counts: bool,
) -> tuple[Tensor, Tensor | None]:
    """The loss, and the words of its status if ``counts``."""
    if in_transforms():
        call = forward_op, backward_op, tensors, options, is_early(pred, reduction), counts
        result = LossInTransforms.apply(pred, call)
        return result[0], result[2]
    if (pred.requires_grad and torch.is_grad_enabled()) or forward_ad._current_level >= 0:
        call = forward_op, backward_op, tensors, options, is_early(pred, reduction), counts
        result = Loss.apply(pred, call)
        return result if counts else (result, None)
    result, _, status = forward_op(pred, *tensors, *options, False, counts)
    return result, status


class Map(Function):
    """What is made row by row, with a gradient of its own for each: ``forward_op`` takes input, tensors and options,
    ``backward_op`` the upstream gradient besides."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        forward_op: Operator,
        backward_op: Operator,
        tensors: tuple[Tensor | None, ...],
        options: tuple[Any, ...],
    ) -> Tensor:
        ctx.early, ctx.backward_op, ctx.options = False, backward_op, options
        ctx.save_for_backward(input, *tensors)
        return forward_op(input, *tensors, *options)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return _backward(ctx, grads[0], False), None, None, None, None


class MapInTransforms(Function):
    """The same under ``torch.func``."""

    @staticmethod
    def forward(
        input: Tensor,
        forward_op: Operator,
        backward_op: Operator,
        tensors: tuple[Tensor | None, ...],
        options: tuple[Any, ...],
    ) -> Tensor:
        return forward_op(input, *tensors, *options)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        input, _, ctx.backward_op, tensors, ctx.options = inputs
        ctx.early = False
        ctx.save_for_backward(input, *tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return _backward(ctx, grads[0], True), None, None, None, None


@differentiable
def mapped(
    input: Tensor,
    forward_op: Operator,
    backward_op: Operator,
    tensors: tuple[Tensor | None, ...],
    options: tuple[Any, ...],
) -> Tensor:
    """What ``forward_op`` makes of it, differentiable."""
    if in_transforms():
        return MapInTransforms.apply(input, forward_op, backward_op, tensors, options)  # type: ignore[no-any-return]
    if (input.requires_grad and torch.is_grad_enabled()) or forward_ad._current_level >= 0:
        return Map.apply(input, forward_op, backward_op, tensors, options)  # type: ignore[no-any-return]
    return forward_op(input, *tensors, *options)  # type: ignore[no-any-return]
