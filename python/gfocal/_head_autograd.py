"""The operators of the head loss, and its gradient.

On the CPU the gradients of logits that are not float16 are made in the forward pass, in one go with the losses.
Backward gives them as they are if all upstream gradients are 1, multiplies them if all are the same, and else makes
them anew.

On CUDA nobody may wait to see what the upstream gradients are; and the box logits' gradient is a sum of two losses',
of which no multiple is right if their upstream gradients differ. So there, as for float16 and wherever PyTorch traces,
forward gives the losses alone, and backward makes the gradients with the upstream gradients in them. What phase one
has found out of the anchors is kept, so backward is one launch. It costs a second look at the class logits: of 80
classes and 17 bins 308 numbers of each anchor pass through memory, where 228 would in one pass. It saves a launch for
each of the gradients, which multiplying takes even if the factor is 1, and their memory between the passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Optional

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from . import _native
from ._arguments import loss_dtype
from ._autograd import Once, OnceInTransforms
from ._library import differentiable, in_transforms, is_plain, operator
from ._status import WORDS

_native_head = lru_cache(maxsize=256)(_native.Head)

_LISTS = (
    "Tensor[] cls_scores, Tensor[] bbox_preds, Tensor[] labels, Tensor[] box_targets, Tensor[] label_weights, "
    "Tensor[] quality, Tensor[] box_weights, Tensor[] box_scores, Tensor[] scores, Tensor[] element_weights, "
    "Tensor[] points, Tensor? class_weights"
)
_PHASES = "Tensor? normalisers, Tensor? workspace"
_OPTIONS = (
    "float[] strides, float offset, str profile, str coding, int? bins, float? beta, float? alpha, float? cls_weight, "
    "str background, int? ignore_label, str? iou, float? box_weight, float? iou_eps, float? dfl_weight, "
    "float? target_eps, str? quality_source, str? box_weighting, str? normaliser"
)
LISTS = 11


def _run(tensors: Sequence[Any], options: Sequence[Any], **others: Any) -> None:
    strides, offset, *of_head = options
    (
        cls, boxes, labels, targets, label_weights, quality, box_weights, box_scores, scores, element_weights, points,
        class_weights,
    ) = tensors  # fmt: skip
    _native_head(*of_head).run(
        cls, boxes, labels, targets, strides, offset=offset, label_weights=label_weights, quality=quality,
        box_weights=box_weights, box_scores=box_scores, scores=scores, element_weights=element_weights, points=points,
        class_weights=class_weights, **others,
    )  # fmt: skip


def _workspace(cls: Sequence[Tensor]) -> Tensor | None:
    """Memory that phase one writes and phase two reads: as much as ``HeadWorkspace::bytes`` says, and a little more
    for what depends on the GPU."""
    if cls[0].device.type != "cuda":
        return None
    batch, anchors = cls[0].shape[0], sum(scores.shape[2:].numel() for scores in cls)
    return torch.empty(32 * batch * (anchors + 64) + 2**19, dtype=torch.uint8, device=cls[0].device)


def _status(cls: Sequence[Tensor], wanted: bool) -> Tensor | None:
    return torch.empty(WORDS, dtype=torch.int64, device=cls[0].device) if wanted else None


def _divisors(cls: Sequence[Tensor]) -> Tensor:
    return torch.empty(2, dtype=torch.float32 if cls[0].device.type == "cuda" else torch.float64, device=cls[0].device)


def _gradients(logits: Sequence[Tensor]) -> list[Tensor]:
    """In the strides of the logits if those have no holes, else dense in their order."""
    return [torch.empty_like(tensor) for tensor in logits]


Counted = tuple[Tensor, Optional[Tensor], Optional[Tensor]]


def _fake_normalisers(*args: Any) -> Counted:
    cls = args[0]
    return _divisors(cls), _workspace(cls), _status(cls, args[-1])


def _normalisers(*args: Any) -> Counted:
    counted, workspace, status = results = _fake_normalisers(*args)
    _run(args[: LISTS + 1], args[LISTS + 1 : -1], counted=counted, workspace=workspace, status=status)
    return results


Results = tuple[Tensor, Optional[Tensor], Optional[Tensor], list[Tensor], list[Tensor]]


def _fake_forward(*args: Any) -> Results:
    cls, boxes, workspace, (with_grad, with_status) = args[0], args[1], args[LISTS + 2], args[-2:]
    return (
        torch.empty((len(cls), 3), dtype=loss_dtype(cls[0].dtype), device=cls[0].device),
        _workspace(cls) if workspace is None else None,
        _status(cls, with_status),
        _gradients(cls) if with_grad else [],
        _gradients(boxes) if with_grad else [],
    )


def _forward(*args: Any) -> Results:
    losses, made, status, cls_grads, box_grads = results = _fake_forward(*args)
    normalisers, workspace = args[LISTS + 1 : LISTS + 3]
    _run(
        args[: LISTS + 1], args[LISTS + 3 : -2], normalisers=normalisers, losses=losses, status=status,
        workspace=made if workspace is None else workspace, resume=workspace is not None,
        cls_grads=cls_grads or None, box_grads=box_grads or None,
    )  # fmt: skip
    return results


def _fake_backward(*args: Any) -> tuple[list[Tensor], list[Tensor]]:
    return _gradients(args[0]), _gradients(args[1])


def _backward_run(*args: Any) -> tuple[list[Tensor], list[Tensor]]:
    cls_grads, box_grads = results = _fake_backward(*args)
    normalisers, workspace = args[LISTS + 1 : LISTS + 3]
    _run(
        args[: LISTS + 1], args[LISTS + 3 : -1], normalisers=normalisers, workspace=workspace,
        resume=workspace is not None, upstream=args[-1].contiguous(), cls_grads=cls_grads, box_grads=box_grads,
    )  # fmt: skip
    return results


head_normalisers = operator(
    f"head_normalisers({_LISTS}, {_OPTIONS}, bool with_status) -> (Tensor, Tensor, Tensor)",
    _normalisers,
    _fake_normalisers,
)
head = operator(
    f"head({_LISTS}, {_PHASES}, {_OPTIONS}, bool with_grad, bool with_status) "
    "-> (Tensor, Tensor, Tensor, Tensor[], Tensor[])",
    _forward,
    _fake_forward,
)
head_backward = operator(
    f"head_backward({_LISTS}, {_PHASES}, {_OPTIONS}, Tensor upstream) -> (Tensor[], Tensor[])",
    _backward_run,
    _fake_backward,
)

Lengths = tuple[int, ...]


def _lists(lengths: Lengths, flat: Sequence[Any]) -> list[Any]:
    """The lists that a flat sequence was made of, and the single tensors behind them."""
    lists, at = [], 0
    for length in lengths:
        lists.append(flat[at : at + length])
        at += length
    return [*lists, *flat[at:]]


def _gradients_of(ctx: Any, upstream: Tensor) -> Sequence[Tensor]:
    saved = ctx.saved_tensors
    flat, made = saved[: ctx.inputs], saved[ctx.inputs :]
    if made and is_plain(upstream):
        values = [value for level in upstream.tolist() for value in level]
        factor = values[0]
        if values.count(factor) == len(values):
            return made if factor == 1.0 else [grad * factor for grad in made]
    of_cls, of_boxes = ctx.backward_op(*_lists(ctx.lengths, flat), *ctx.options, upstream)
    return [*of_cls, *of_boxes]


def _backward(ctx: Any, upstream: Tensor | None, functional: bool) -> tuple[Tensor | None, ...]:
    """The gradients of all that was flat; under ``create_graph`` ones that cannot be differentiated again."""
    inputs: int = ctx.inputs
    if upstream is None:
        return (None,) * inputs
    if torch.is_grad_enabled():
        with torch.no_grad():
            grads = _gradients_of(ctx, upstream)
        refusing = OnceInTransforms if functional else Once
        grads = [refusing.apply(grad, logits, upstream) for grad, logits in zip(grads, ctx.saved_tensors)]
    else:
        grads = _gradients_of(ctx, upstream)
    none: tuple[Tensor | None, ...] = (None,) * (inputs - len(grads))
    return (*grads, *none)


class Head(Function):
    """``flat``: the lists, one after the other, then class weights, normalisers and workspace."""

    @staticmethod
    def forward(
        ctx: Any, lengths: Lengths, options: tuple[Any, ...], early: bool, counts: bool, *flat: Tensor | None
    ) -> Any:
        lists = _lists(lengths, flat)
        losses, workspace, status, cls_grads, box_grads = head(*lists, *options, early, counts)
        ctx.lengths, ctx.options, ctx.inputs = lengths, options, len(flat)
        ctx.backward_op = head_backward
        ctx.set_materialize_grads(False)
        kept = flat if workspace is None or flat[-1] is not None else (*flat[:-1], workspace)
        ctx.save_for_backward(*kept, *cls_grads, *box_grads)
        if not counts:
            return losses
        ctx.mark_non_differentiable(status)
        return losses, status

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return (None, None, None, None, *_backward(ctx, grads[0], False))


class HeadInTransforms(Function):
    """The same under ``torch.func``."""

    @staticmethod
    def forward(lengths: Lengths, options: tuple[Any, ...], counts: bool, *flat: Tensor | None) -> Any:
        losses, workspace, status, _, _ = head.overload(*_lists(lengths, flat), *options, False, counts)
        return losses, workspace, status

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        lengths, options, _, *flat = inputs
        _, workspace, status = output
        ctx.lengths, ctx.options, ctx.inputs = lengths, options, len(flat)
        ctx.backward_op = head_backward
        ctx.mark_non_differentiable(workspace, status)
        if flat[-1] is None and workspace.device.type == "cuda":
            flat[-1] = workspace
        ctx.save_for_backward(*flat)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return (None, None, None, *_backward(ctx, grads[0], True))


@differentiable
def head_loss_of(
    lists: tuple[Sequence[Tensor], ...],
    class_weights: Tensor | None,
    normalisers: Tensor | None,
    workspace: Tensor | None,
    options: tuple[Any, ...],
    counts: bool,
) -> tuple[Tensor, Tensor | None]:
    """The losses, and the words of their status if ``counts``."""
    functional = in_transforms()
    tracked = functional or forward_ad._current_level >= 0
    if not tracked and torch.is_grad_enabled():
        tracked = any(logits.requires_grad for of_kind in lists[:2] for logits in of_kind)
    if not tracked:
        losses, _, status, _, _ = head(*lists, class_weights, normalisers, workspace, *options, False, counts)
        return losses, status
    lengths = tuple(map(len, lists))
    flat = [tensor for tensors in lists for tensor in tensors]
    if functional:
        result = HeadInTransforms.apply(lengths, options, counts, *flat, class_weights, normalisers, workspace)
        return result[0], result[2]
    first = lists[0][0]
    early = first.device.type == "cpu" and first.dtype is not torch.float16 and is_plain(first)
    result = Head.apply(lengths, options, early, counts, *flat, class_weights, normalisers, workspace)
    return result if counts else (result, None)
