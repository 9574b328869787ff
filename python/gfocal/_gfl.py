"""Quality and Distribution Focal Loss together, in one launch on CUDA."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Optional

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from . import _arguments as arguments
from . import _native
from ._autograd import Once, OnceInTransforms
from ._library import differentiable, in_transforms, is_plain, operator
from ._status import WORDS, Status, is_counted


@lru_cache(maxsize=256)
def _native_gfl(options: tuple[Any, ...]) -> _native.Gfl:
    *of_qfl, dfl_weight, target_eps = options
    return _native.Gfl(_native.Qfl(*of_qfl), _native.Dfl(dfl_weight, target_eps))


_TENSORS = (
    "Tensor pred, Tensor sides, Tensor? labels, Tensor target, Tensor label, Tensor? weight, Tensor? side_weight, "
    "Tensor? class_weights, Tensor? element_weights, Tensor? qfl_avg_factor, Tensor? dfl_avg_factor"
)
_OPTIONS = (
    "float beta, float qfl_weight, float? alpha, bool activated, str background, int? ignore_label, "
    "float dfl_weight, float target_eps, str reduction, float? qfl_average, float? dfl_average, str policy, "
    "float minimum"
)
_OF_LOSSES = 8
"""How many of the options are the losses' own."""

Results = tuple[Tensor, Optional[Tensor], Optional[Tensor], Optional[Tensor], Optional[Tensor]]


def _run(tensors: Sequence[Any], options: Sequence[Any], losses: Tensor, *results: Any, **scales: Any) -> None:
    pred, sides, labels, target, label, weight, side_weight, of_classes, of_elements, *factors = tensors
    reduction, *averages, policy, minimum = options[_OF_LOSSES:]
    of_qfl, of_dfl = (average if factor is None else factor for factor, average in zip(factors, averages))
    grad, side_grad, status, side_status = results
    _native_gfl(tuple(options[:_OF_LOSSES])).run(
        pred, labels, target, sides, label, losses, weight, side_weight, of_classes, of_elements, reduction, of_qfl,
        of_dfl, policy, minimum, grad=grad, side_grad=side_grad, status=status, side_status=side_status, **scales,
    )  # fmt: skip


def _losses(pred: Tensor) -> Tensor:
    return torch.empty(3, dtype=arguments.loss_dtype(pred.dtype), device=pred.device)


def _fake_forward(pred: Tensor, sides: Tensor, *args: Any) -> Results:
    with_grad, with_status = args[-2:]
    grads = (torch.empty_like(pred), torch.empty_like(sides)) if with_grad else (None, None)
    words = [torch.empty(WORDS, dtype=torch.int64, device=pred.device) if with_status else None for _ in range(2)]
    return _losses(pred), *grads, *words


def _forward(*args: Any) -> Results:
    results = _fake_forward(*args)
    _run(args[:11], args[11:-2], *results)
    return results


def _fake_backward(pred: Tensor, sides: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(pred), torch.empty_like(sides)


def _backward(*args: Any) -> tuple[Tensor, Tensor]:
    grads = _fake_backward(*args)
    # The third loss is the sum of the others.
    upstream = args[-1]
    pred_scale, side_scale = (upstream[:2] + upstream[2]).unbind()
    _run(
        args[:11], args[11:-1], _losses(args[0]), *grads, None, None, pred_scale=pred_scale, side_scale=side_scale
    )  # fmt: skip
    return grads


_gfl = operator(
    f"gfl({_TENSORS}, {_OPTIONS}, bool with_grad, bool with_status) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _forward,
    _fake_forward,
)
_gfl_backward = operator(
    f"gfl_backward({_TENSORS}, {_OPTIONS}, Tensor upstream) -> (Tensor, Tensor)", _backward, _fake_backward
)


class Call(NamedTuple):
    """All but the logits."""

    tensors: tuple[Tensor | None, ...]
    options: tuple[Any, ...]
    early: bool
    counts: bool


def _gradients_of(ctx: Any, upstream: Tensor) -> Sequence[Tensor]:
    saved = ctx.saved_tensors
    tensors, made = saved[:11], saved[11:]
    if made and is_plain(upstream):
        of_qfl, of_dfl, of_both = upstream.tolist()
        factors = of_qfl + of_both, of_dfl + of_both
        return [grad if factor == 1.0 else grad * factor for grad, factor in zip(made, factors)]
    grads: Sequence[Tensor] = _gfl_backward(*tensors, *ctx.options, upstream)
    return grads


def _gradients(ctx: Any, upstream: Tensor, functional: bool) -> Sequence[Tensor]:
    """Under ``create_graph`` ones that cannot be differentiated again."""
    if not torch.is_grad_enabled():
        return _gradients_of(ctx, upstream)
    with torch.no_grad():
        grads = _gradients_of(ctx, upstream)
    refusing = OnceInTransforms if functional else Once
    return [refusing.apply(grad, logits, upstream) for grad, logits in zip(grads, ctx.saved_tensors)]


class Gfl(Function):
    """Both losses."""

    @staticmethod
    def forward(ctx: Any, pred: Tensor, sides: Tensor, call: Call) -> Any:
        tensors, options, early, counts = call
        losses, grad, side_grad, status, side_status = _gfl(pred, sides, *tensors, *options, early, counts)
        ctx.options = options
        ctx.save_for_backward(pred, sides, *tensors, *([grad, side_grad] if early else []))
        if not counts:
            return losses
        ctx.mark_non_differentiable(status, side_status)
        return losses, status, side_status

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return *_gradients(ctx, grads[0], False), None


class GflInTransforms(Function):
    """The same under ``torch.func``."""

    @staticmethod
    def forward(pred: Tensor, sides: Tensor, call: Call) -> Any:
        losses, _, _, status, side_status = _gfl.overload(pred, sides, *call.tensors, *call.options, False, call.counts)
        return losses, status, side_status

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pred, sides, call = inputs
        ctx.options = call.options
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(pred, sides, *call.tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return *_gradients(ctx, grads[0], True), None


def gfl(
    pred: Tensor,
    target: Tensor | tuple[Tensor, Tensor],
    sides: Tensor,
    label: Tensor,
    weight: Tensor | None = None,
    side_weight: Tensor | None = None,
    *,
    reduction: str = "mean",
    qfl_avg_factor: float | Tensor | None = None,
    dfl_avg_factor: float | Tensor | None = None,
    qfl_weight: float = 1.0,
    dfl_weight: float = 0.25,
    policy: str = "eps",
    minimum: float = 1.0,
    beta: float = 2.0,
    alpha: float | None = None,
    activated: bool = False,
    background: str = "last",
    ignore_label: int | None = None,
    class_weights: Tensor | None = None,
    element_weights: Tensor | None = None,
    target_eps: float = 0.0,
    status: Status | None = None,
) -> Tensor:
    r"""Quality Focal Loss, Distribution Focal Loss and their sum.

    With w of each loss its weight, and n what its mean divides by (*Generalized Focal Loss*, Li et al., NeurIPS 2020,
    equation 6 without the box loss)::

        GFL = w_q · QFL / n_q + w_d · DFL / n_d

    On CUDA both are one launch: for up to about ten thousand rows, where launches cost more than bytes. For a
    detector's raw outputs see :func:`head_loss`.

    Args:
        pred, target, weight: of :func:`quality_focal_loss`, ``[N, C]``.
        sides, label, side_weight: of :func:`distribution_focal_loss`, ``[M, K]``, where they are ``pred``, ``label``
            and ``weight``; ``sides`` of the type of ``pred``.
        reduction: of both, ``"mean"`` or ``"sum"``.
        qfl_avg_factor, dfl_avg_factor: what each mean divides by, in place of N and M; a number or a tensor with one
            element, which stays on its device.
        qfl_weight, dfl_weight: w of each loss.
        policy, minimum: see :func:`quality_focal_loss`; of both.
        beta, alpha, activated, background, ignore_label, class_weights, element_weights: see
            :func:`quality_focal_loss`.
        target_eps: see :func:`distribution_focal_loss`.
        status: counts labels, scores and distances that could not be used.

    Returns:
        ``[3]``: QFL, DFL, their sum, each of which may be differentiated; float32 (float64 for float64).

    Raises:
        ShapeError: if shapes do not go together.
        TypeError: if a dtype cannot be used.
        ValueError: if an option is outside its range, tensors are on different devices, or anything but ``pred`` and
            ``sides`` requires a gradient.

    >>> import torch, gfocal
    >>> pred, sides = torch.zeros(1, 2, requires_grad=True), torch.zeros(1, 4, requires_grad=True)
    >>> target = torch.tensor([0]), torch.tensor([0.5])  # class 0 with an IoU of 0.5
    >>> losses = gfocal.gfl(pred, target, sides, torch.tensor([1.5]), reduction="sum")
    >>> losses  # ln 2 / 4, 2·ln 2 / 4
    tensor([0.1733, 0.3466, 0.5199], grad_fn=<GflBackward>)
    >>> losses[2].backward()
    >>> sides.grad
    tensor([[ 0.0625, -0.0625, -0.0625,  0.0625]])
    """
    pred, sides = arguments.logits("pred", pred), arguments.logits("sides", sides)
    labels, dense = arguments.target(target, pred)
    (qfl_factor, qfl_average), (dfl_factor, dfl_average) = (
        arguments.average("qfl_avg_factor", qfl_avg_factor, pred),
        arguments.average("dfl_avg_factor", dfl_avg_factor, pred),
    )
    tensors = (
        labels,
        dense,
        arguments.beside("label", label, pred),
        arguments.optional("weight", weight, pred),
        arguments.optional("side_weight", side_weight, pred),
        arguments.optional("class_weights", class_weights, pred),
        arguments.optional("element_weights", element_weights, pred),
        qfl_factor,
        dfl_factor,
    )
    options = (
        beta, qfl_weight, alpha, activated, background, ignore_label, dfl_weight, target_eps, reduction, qfl_average,
        dfl_average, policy, minimum,
    )  # fmt: skip
    losses, *words = _run_gfl(pred, sides, tensors, options, is_counted(status))
    if status is not None:
        for of_loss in words:
            status.add(of_loss)
    return losses  # type: ignore[no-any-return]


@differentiable
def _run_gfl(
    pred: Tensor, sides: Tensor, tensors: tuple[Tensor | None, ...], options: tuple[Any, ...], counts: bool
) -> Any:
    """The losses, and the words of the status of each if ``counts``."""
    if in_transforms():
        return GflInTransforms.apply(pred, sides, Call(tensors, options, False, counts))
    tracked = torch.is_grad_enabled() and (pred.requires_grad or sides.requires_grad)
    if tracked or forward_ad._current_level >= 0:
        # See `_head_autograd`.
        early = pred.is_cpu and pred.dtype is not torch.float16 and is_plain(pred)
        result = Gfl.apply(pred, sides, Call(tensors, options, early, counts))
        return result if counts else (result, None, None)
    losses, _, _, *words = _gfl(pred, sides, *tensors, *options, False, counts)
    return losses, *words
