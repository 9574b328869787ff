"""What the gradients of all losses have in common.

A reduced loss has its gradient made in the forward pass, in one go with the loss; backward multiplies it by the
upstream gradient. In float16 it is made in the backward pass, with the upstream gradient (a loss scale, say) in it before it is
rounded: one of 5e-9 would be 0 otherwise. So it is for losses that are not reduced, each of which has an upstream
gradient of its own.
"""

from __future__ import annotations

from typing import Any, Optional

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from . import _native
from ._arguments import loss_dtype
from ._library import Operator, is_plain, operator
from ._status import WORDS

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
    dtype, device = loss_dtype(pred.dtype), pred.device
    return (
        torch.empty((pred.shape[0],) if reduction == "none" else (), dtype=dtype, device=device),
        torch.empty_like(pred) if with_grad else None,
        torch.empty(WORDS, dtype=torch.int64, device=device) if with_status else None,
    )


def fake_results(pred: Tensor, *args: Any) -> Results:
    """The same of the arguments of an operator for a loss of rows."""
    reduction, with_grad, with_status = args[-6], args[-2], args[-1]
    return results(pred, reduction, with_grad, with_status)


class Once(Function):
    """A gradient as it is; a gradient of it is refused. ``tracked`` makes autograd ask for one."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, tracked: Tensor) -> Tensor:
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise RuntimeError(
            "gfocal's losses have no second derivative; it was asked for with create_graph=True, or by nested transforms"
        )


class OnceInTransforms(Function):
    """The same under ``torch.func``."""

    @staticmethod
    def forward(grad: Tensor, tracked: Tensor) -> Tensor:
        return grad.view_as(grad)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    backward = Once.backward


def once(grad: Tensor, logits: Tensor | None) -> Tensor:
    """Under ``create_graph``: the gradient, which cannot be differentiated again."""
    if not torch.is_grad_enabled():
        return grad
    if logits is not None:  # a transform does not see a leaf of ours
        return OnceInTransforms.apply(grad, logits)  # type: ignore[no-any-return]
    leaf = torch.empty(0, device=grad.device, requires_grad=True)
    return Once.apply(grad, leaf)  # type: ignore[no-any-return]


def is_early(pred: Tensor, reduction: str) -> bool:
    return reduction != "none" and pred.dtype is not torch.float16


def _backward(ctx: Any, upstream: Tensor, functional: bool) -> Tensor:
    """The gradient of the logits."""
    if not ctx.early:
        pred, *tensors = ctx.saved_tensors
        grad = ctx.backward_op(pred, *tensors, *ctx.options, upstream)
        return once(grad, pred if functional else None)
    if functional:
        grad, pred = ctx.saved_tensors
        return once(scale_grad(grad, upstream), pred)
    if ctx.grad is None:
        (grad,) = ctx.saved_tensors
        if upstream.device.type != "cpu" or not is_plain(upstream) or upstream.item() != 1.0:
            grad = scale_grad(grad, upstream)
        return once(grad, None)
    # On CUDA the upstream gradient is not looked at here: it would be waited for. The gradient is multiplied where it
    # is, unless it has been given away by an earlier backward pass.
    grad, ctx.grad = ctx.grad, False
    pred, *tensors = ctx.saved_tensors
    if grad is False:
        grad = ctx.backward_op(pred, *tensors, *ctx.options, upstream)
    else:
        _native.scale(grad, upstream)
    return once(grad, None)


class Loss(Function):
    """A loss of rows: ``forward_op`` and ``backward_op`` take pred, tensors and options, in this order."""

    @staticmethod
    def forward(
        ctx: Any,
        pred: Tensor,
        forward_op: Operator,
        backward_op: Operator,
        tensors: tuple[Tensor | None, ...],
        options: tuple[Any, ...],
        early: bool,
        counts: bool,
    ) -> Any:
        loss, grad, status = forward_op(pred, *tensors, *options, early, counts)
        ctx.early, ctx.backward_op, ctx.options, ctx.grad = early, backward_op, options, None
        if not early:
            ctx.save_for_backward(pred, *tensors)
        elif pred.device.type == "cpu" or not is_plain(pred):
            ctx.save_for_backward(grad)
        else:
            ctx.grad = grad
            ctx.save_for_backward(pred, *tensors)
        if not counts:
            return loss
        ctx.mark_non_differentiable(status)
        return loss, status

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return _backward(ctx, grads[0], False), None, None, None, None, None, None


class LossInTransforms(Function):
    """The same under ``torch.func``, which needs ``setup_context``: a slower call."""

    @staticmethod
    def forward(
        pred: Tensor,
        forward_op: Operator,
        backward_op: Operator,
        tensors: tuple[Tensor | None, ...],
        options: tuple[Any, ...],
        early: bool,
        counts: bool,
    ) -> Any:
        return forward_op.overload(pred, *tensors, *options, early, counts)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pred, _, backward_op, tensors, options, early, _ = inputs
        _, grad, status = output
        ctx.early, ctx.backward_op, ctx.options = early, backward_op, options
        ctx.mark_non_differentiable(grad, status)
        if early:
            ctx.save_for_backward(grad, pred)
        else:
            ctx.save_for_backward(pred, *tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return _backward(ctx, grads[0], True), None, None, None, None, None, None


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
    if torch._C._are_functorch_transforms_active():
        early = is_early(pred, reduction)
        result = LossInTransforms.apply(pred, forward_op, backward_op, tensors, options, early, counts)
        return result[0], result[2]
    if (pred.requires_grad and torch.is_grad_enabled()) or forward_ad._current_level >= 0:
        early = is_early(pred, reduction)
        result = Loss.apply(pred, forward_op, backward_op, tensors, options, early, counts)
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


def mapped(
    input: Tensor,
    forward_op: Operator,
    backward_op: Operator,
    tensors: tuple[Tensor | None, ...],
    options: tuple[Any, ...],
) -> Tensor:
    """What ``forward_op`` makes of it, differentiable."""
    if torch._C._are_functorch_transforms_active():
        return MapInTransforms.apply(input, forward_op, backward_op, tensors, options)  # type: ignore[no-any-return]
    if (input.requires_grad and torch.is_grad_enabled()) or forward_ad._current_level >= 0:
        return Map.apply(input, forward_op, backward_op, tensors, options)  # type: ignore[no-any-return]
    return forward_op(input, *tensors, *options)  # type: ignore[no-any-return]
