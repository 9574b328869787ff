"""Boxes: how much they overlap, and what they are to points inside them."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _arguments as arguments
from . import _native
from ._autograd import mapped
from ._boxes import boxes_backward, boxes_forward
from ._library import operator


def _forward(a: Tensor, b: Tensor, eps: float) -> Tensor:
    if not a.is_cpu:
        return 1 - boxes_forward(a, b, "iou", eps)
    found = a.new_empty(a.shape[0])
    _native.iou(a, b, found, eps=eps)
    return found


def _backward(a: Tensor, b: Tensor, eps: float, upstream: Tensor) -> Tensor:
    return boxes_backward(a, b, "iou", eps, -upstream)


_iou = operator("iou(Tensor a, Tensor b, float eps) -> Tensor", _forward, lambda a, *_: a.new_empty(a.shape[0]))
_iou_backward = operator(
    "iou_backward(Tensor a, Tensor b, float eps, Tensor upstream) -> Tensor",
    _backward,
    lambda a, *_: torch.empty_like(a),
)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in {torch.float16, torch.bfloat16} else tensor


def iou(a: Tensor, b: Tensor, eps: float = 1e-6) -> Tensor:
    r"""Intersection over union, pair by pair: mmdetection's ``bbox_overlaps`` with ``is_aligned``.

    With I the area of the intersection, and U of the union::

        IoU = I / max(U, ε)

    Args:
        a: ``[N, 4]`` x1, y1, x2, y2; float32, on the CPU also float64. 16-bit boxes are converted to float32.
        b: ``[N, 4]``.
        eps: ε, from 1e-30 to 1.

    Returns:
        ``[N]``, differentiable with respect to ``a``.

    Raises:
        ShapeError: if shapes do not go together.
        TypeError: if a dtype cannot be used.
        ValueError: if ``eps`` is outside its range, tensors are on different devices, or ``b`` requires a gradient.

    >>> import torch, gfocal
    >>> gfocal.iou(torch.tensor([[0.0, 0.0, 4.0, 4.0]]), torch.tensor([[2.0, 0.0, 4.0, 4.0]]))
    tensor([0.5000])
    """
    a = _wide(arguments.logits("a", a))
    return mapped(a, _iou, _iou_backward, (arguments.beside("b", b, a),), (eps,))


def _check(points: Tensor, name: str, sides: Tensor) -> tuple[Tensor, Tensor]:
    for what, tensor, last in (("points", points, 2), (name, sides, 4)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{what} must be a torch.Tensor, not {type(tensor).__name__}")
        if not tensor.is_floating_point():
            raise TypeError(f"{what} is {tensor.dtype}, it must be of floats")
        if tensor.dim() == 0 or tensor.shape[-1] != last:
            raise _native.ShapeError(f"{what} has shape {list(tensor.shape)}, it must be [..., {last}]")
    if points.shape[:-1] not in {sides.shape[:-1], sides.shape[-2:-1]}:
        needed = [*sides.shape[:-1], 2]
        raise _native.ShapeError(f"points has shape {list(points.shape)}, {name} {list(sides.shape)} needs {needed}")
    return _wide(points), _wide(sides)


def distances_to_box(points: Tensor, distances: Tensor) -> Tensor:
    r"""The boxes whose sides have distances l, t, r, b from points: mmdetection's ``distance2bbox``.

    ::

        box = (x − l, y − t, x + r, y + b)

    Args:
        points: ``[..., N, 2]`` x, y, or ``[N, 2]`` for all; floats. 16-bit ones are converted to float32.
        distances: ``[..., N, 4]`` left, top, right, bottom.

    Returns:
        ``[..., N, 4]`` x1, y1, x2, y2, differentiable in the ways of PyTorch's own operations, of which it is made.

    Raises:
        ShapeError: if shapes do not go together.
        TypeError: if they are not floats.

    >>> import torch, gfocal
    >>> gfocal.distances_to_box(torch.tensor([[10.0, 20.0]]), torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    tensor([[ 9., 18., 13., 24.]])
    """
    points, distances = _check(points, "distances", distances)
    return torch.cat([points - distances[..., :2], points + distances[..., 2:]], -1)


def box_to_distances(points: Tensor, boxes: Tensor, max: float | None = None) -> Tensor:
    r"""The distances of the sides of boxes from points: mmdetection's ``bbox2distance``, whose ``max_dis − eps`` is
    ``max``.

    ::

        distances = (x − x1, y − y1, x2 − x, y2 − y), clamped to [0, max]

    Args:
        points: ``[..., N, 2]`` x, y, or ``[N, 2]`` for all; floats. 16-bit ones are converted to float32.
        boxes: ``[..., N, 4]`` x1, y1, x2, y2.
        max: none: distances are not clamped. In units of bins, 15.9 for 17 bins.

    Returns:
        ``[..., N, 4]`` left, top, right, bottom, differentiable in the ways of PyTorch's own operations, of which it is
        made.

    Raises:
        ShapeError: if shapes do not go together.
        TypeError: if they are not floats.
        ValueError: if ``max`` is negative or not finite.

    >>> import torch, gfocal
    >>> gfocal.box_to_distances(torch.tensor([[10.0, 20.0]]), torch.tensor([[9.0, 21.0, 13.0, 44.0]]), max=16.0)
    tensor([[ 1.,  0.,  3., 16.]])
    """
    points, boxes = _check(points, "boxes", boxes)
    distances = torch.cat([points - boxes[..., :2], boxes[..., 2:] - points], -1)
    if max is None:
        return distances
    if not 0 <= max < float("inf"):
        raise ValueError(f"max is {max}, it must be a finite number of 0 or more")
    return distances.clamp(0, max)
