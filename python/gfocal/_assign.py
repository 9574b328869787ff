"""Assignment of targets to anchors."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Optional

import torch
from torch import Tensor

from . import _arguments as arguments
from . import _native
from ._library import operator
from ._status import WORDS, Status, is_counted

_atss_rule = lru_cache(maxsize=64)(_native.Assigner.atss)
_fcos_rule = lru_cache(maxsize=64)(_native.Assigner.fcos)

PAPERS_RANGES = ((-1.0, 64.0), (64.0, 128.0), (128.0, 256.0), (256.0, 512.0), (512.0, float("inf")))


class Assignment(NamedTuple):
    """What anchors are to be trained on, level by level; of a level with H·W anchors, in B images."""

    labels: list[Tensor]
    """``[B, H·W]``, of the type of ``gt_labels``: that of the box that has the anchor, or background."""
    boxes: list[Tensor]
    """``[B, H·W, 4]``: that box; zeros for background."""
    label_weights: list[Tensor]
    """``[B, H·W]``: 1, or 0 for anchors that take no part."""
    box_weights: list[Tensor]
    """``[B, H·W]``: that box's weight; 0 for background."""
    centerness: list[Tensor] | None = None
    """``[B, H·W]``, of :func:`fcos` alone."""


Results = tuple[Tensor, Tensor, Tensor, Tensor, Optional[Tensor]]


def _results(gt_boxes: Tensor, gt_labels: Tensor, sizes: Sequence[int], images: int, with_status: bool) -> Results:
    count = images * sum(height * width for height, width in zip(sizes[::2], sizes[1::2]))
    return (
        gt_labels.new_empty(count),
        gt_boxes.new_empty((count, 4)),
        gt_boxes.new_empty(count),
        gt_boxes.new_empty(count),
        gt_labels.new_empty(WORDS, dtype=torch.int64) if with_status else None,
    )


def _run(
    rule: _native.Assigner, tensors: tuple[Any, ...], sizes: Sequence[int], args: Any, results: tuple[Any, ...]
) -> None:
    gt_boxes, gt_labels, gt_image, weights, ignore_boxes, ignore_image, image_sizes = tensors
    labels, boxes, label_weights, box_weights, status = results[:5]
    rule.run(
        gt_boxes, gt_labels, gt_image, list(zip(sizes[::2], sizes[1::2])), *args,
        weights=weights, ignore_boxes=ignore_boxes, ignore_image=ignore_image, image_sizes=image_sizes,
        labels=labels, boxes=boxes, label_weights=label_weights, box_weights=box_weights, status=status,
        centerness=results[5] if len(results) > 5 else None,
    )  # fmt: skip


_TENSORS = (
    "Tensor gt_boxes, Tensor gt_labels, Tensor gt_image, Tensor? weights, Tensor? ignore_boxes, Tensor? ignore_image, "
    "Tensor? image_sizes, SymInt[] sizes, float[] strides, SymInt images, int classes"
)
_INPUTS = 7  # tensors


def _atss(*args: Any) -> Results:
    tensors, (sizes, strides, images, classes, *options, with_status) = args[:_INPUTS], args[_INPUTS:]
    results = _results(tensors[0], tensors[1], sizes, images, with_status)
    _run(_atss_rule(*options), tensors, sizes, (strides, images, classes), results)
    return results


def _fake_atss(*args: Any) -> Results:
    return _results(args[0], args[1], args[_INPUTS], args[_INPUTS + 2], args[-1])


def _fcos(*args: Any) -> Any:
    tensors, (sizes, strides, images, classes, ranges, *options, _) = args[:_INPUTS], args[_INPUTS:]
    results = _fake_fcos(*args)
    rule = _fcos_rule(tuple(zip(ranges[::2], ranges[1::2])), *options)
    _run(rule, tensors, sizes, (strides, images, classes), results)
    return results


def _fake_fcos(*args: Any) -> Any:
    results = _fake_atss(*args)
    return *results, torch.empty_like(results[2])


_atss_op = operator(
    f"atss({_TENSORS}, int topk, float scale, float offset, float ignore_iof, int fallback, str background, "
    "bool with_status) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _atss,
    _fake_atss,
)
_fcos_op = operator(
    f"fcos({_TENSORS}, float[] regress_ranges, float? center_sampling, float offset, float ignore_iof, int fallback, "
    "str background, bool with_status) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _fcos,
    _fake_fcos,
)


def _single(name: str, value: Any) -> Tensor:
    """Numbers in float32, which assignments are made in."""
    if isinstance(value, Tensor) and value.dtype is torch.float64 and not value.requires_grad:
        value = value.float()
    return arguments.beside(name, value, value if isinstance(value, Tensor) else torch.empty(0))


def _inputs(
    gt_boxes: Tensor,
    gt_labels: Tensor,
    gt_image: Tensor,
    weights: Tensor | None,
    ignore_boxes: Tensor | None,
    ignore_image: Tensor | None,
    image_sizes: Tensor | None,
) -> tuple[Tensor | None, ...]:
    boxes, labels = _single("gt_boxes", gt_boxes), arguments.whole_numbers("gt_labels", gt_labels)

    def whole(name: str, value: Tensor | None) -> Tensor | None:
        return None if value is None else arguments.whole_numbers(name, value).to(labels.dtype)

    return (
        boxes,
        labels,
        whole("gt_image", gt_image),
        None if weights is None else _single("weights", weights),
        None if ignore_boxes is None else _single("ignore_boxes", ignore_boxes),
        whole("ignore_image", ignore_image),
        whole("image_sizes", image_sizes),
    )


def _levels(sizes: Sequence[Sequence[int]], images: int, tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """The targets of each level."""
    anchors = [height * width for height, width in sizes]
    counts = [images * count for count in anchors]
    return [
        [part.view(images, count, *part.shape[1:]) for part, count in zip(torch.split(tensor, counts), anchors)]
        for tensor in tensors
    ]


def _flat(sizes: Sequence[Sequence[int]]) -> list[int]:
    flat: list[int] = []
    for level, size in enumerate(sizes):
        if not hasattr(size, "__len__") or len(size) != 2:
            raise _native.ShapeError(f"sizes[{level}] is {size!r}, it must be (height, width)")
        flat += size
    return flat


def _count(images: int) -> int:
    if isinstance(images, float):
        raise TypeError(f"images is {images}, it must be an int")
    if images < 0:
        raise ValueError(f"images is {images}, it must be 0 or more")
    return images


def atss(
    sizes: Sequence[Sequence[int]],
    strides: Sequence[float],
    gt_boxes: Tensor,
    gt_labels: Tensor,
    gt_image: Tensor,
    images: int,
    classes: int,
    *,
    topk: int = 9,
    scale: float = 8.0,
    offset: float = 0.0,
    image_sizes: Tensor | None = None,
    weights: Tensor | None = None,
    ignore_boxes: Tensor | None = None,
    ignore_image: Tensor | None = None,
    ignore_iof: float = -1.0,
    fallback: int = 0,
    background: str = "last",
    status: Status | None = None,
) -> Assignment:
    r"""ATSS, adaptive training sample selection, of all images of a batch at once.

    For a box g, with the square anchors of every level::

        candidates(g) = of each level, the k anchors whose centres are nearest to the centre of g
        t(g)          = mean + standard deviation of IoU(a, g) over all candidates a
        positive(a,g) : a is a candidate, IoU(a, g) ≥ t(g), and the centre of a is inside g

    An anchor that is positive for several boxes is given to the one with the highest IoU; all others are background
    (*Bridging the Gap Between Anchor-based and Anchor-free Detection*, Zhang et al., CVPR 2020; mmdetection's
    ``ATSSAssigner``).

    Args:
        sizes: height and width of each level, at most 8.
        strides: of each level, in pixels.
        gt_boxes: ``[N, 4]`` x1, y1, x2, y2 in pixels, of all images.
        gt_labels: ``[N]``, int64 or int32.
        gt_image: ``[N]``, the image that each box is in; −1 is padding.
        images: how many images there are.
        classes: how many classes there are.
        topk: k, 1 to 256.
        scale: how many strides an anchor is wide.
        offset: of the anchors' centres, in strides.
        image_sizes: ``[images, 2]`` height and width in pixels of images that are smaller than the batch: anchors
            beyond take no part.
        weights: ``[N]``, for ``box_weights``; ones otherwise.
        ignore_boxes: ``[M, 4]``: anchors of which more than the part ``ignore_iof`` is in one take no part.
        ignore_image: ``[M]``.
        ignore_iof: above 0 and at most 1, or −1: nothing is ignored.
        fallback: how many of the nearest anchors a box gets that has none otherwise.
        background: ``"last"``: its label is ``classes``; ``"first"``: it is 0, and classes are 1 to ``classes``.
        status: counts boxes that could not be used, and those without an anchor.

    Returns:
        :class:`Assignment`.

    Raises:
        ShapeError: if shapes do not go together.
        TypeError: if a dtype cannot be used.
        ValueError: if an option is outside its range, tensors are on different devices, or one requires a gradient.

    >>> import torch, gfocal
    >>> box, label, image = torch.tensor([[4.0, 4.0, 28.0, 28.0]]), torch.tensor([2]), torch.tensor([0])
    >>> targets = gfocal.atss([(4, 4)], [8], box, label, image, images=1, classes=80)
    >>> targets.labels[0].view(4, 4)
    tensor([[80, 80, 80, 80],
            [80,  2,  2,  2],
            [80,  2,  2,  2],
            [80,  2,  2,  2]])
    """
    tensors = _inputs(gt_boxes, gt_labels, gt_image, weights, ignore_boxes, ignore_image, image_sizes)
    *results, words = _atss_op(
        *tensors, _flat(sizes), arguments.strides(strides), _count(images), classes, topk, scale, offset, ignore_iof,
        fallback, background, is_counted(status),
    )  # fmt: skip
    if status is not None:
        status.add(words)
    return Assignment(*_levels(sizes, images, results))


def fcos(
    sizes: Sequence[Sequence[int]],
    strides: Sequence[float],
    gt_boxes: Tensor,
    gt_labels: Tensor,
    gt_image: Tensor,
    images: int,
    classes: int,
    *,
    regress_ranges: Sequence[tuple[float, float]] = PAPERS_RANGES,
    center_sampling: float | None = None,
    offset: float = 0.5,
    image_sizes: Tensor | None = None,
    weights: Tensor | None = None,
    ignore_boxes: Tensor | None = None,
    ignore_image: Tensor | None = None,
    ignore_iof: float = -1.0,
    fallback: int = 0,
    background: str = "last",
    status: Status | None = None,
) -> Assignment:
    r"""FCOS' rule, of all images of a batch at once. With l, t, r, b the distances of a point to the sides of a box::

        inside     : min(l, t, r, b) > 0; with centre sampling of radius ρ, within ρ strides of the box's centre
        in range   : low ≤ max(l, t, r, b) ≤ high, by the level's range
        target     = of the boxes that the point is inside of, and that are in range, the one of the least area
        centerness = √(min(l, r) / max(l, r) · min(t, b) / max(t, b))

    (*FCOS: Fully Convolutional One-Stage Object Detection*, Tian et al., ICCV 2019; mmdetection's ``FCOSHead``.)

    Args:
        regress_ranges: low and high of each level, in pixels.
        center_sampling: radius ρ in strides, 1.5 in FCOS' later versions; None: all of a box is its middle.
        offset: of the points, in strides.

    The other arguments and errors are those of :func:`atss`.

    >>> import torch, gfocal
    >>> box, label, image = torch.tensor([[0.0, 0.0, 24.0, 32.0]]), torch.tensor([2]), torch.tensor([0])
    >>> targets = gfocal.fcos([(4, 4)], [8], box, label, image, 1, 80, regress_ranges=[(-1, 64)], center_sampling=1.0)
    >>> targets.labels[0].view(4, 4)
    tensor([[80, 80, 80, 80],
            [80,  2, 80, 80],
            [80,  2, 80, 80],
            [80, 80, 80, 80]])
    """
    tensors = _inputs(gt_boxes, gt_labels, gt_image, weights, ignore_boxes, ignore_image, image_sizes)
    ranges = [float(end) for both in regress_ranges for end in both]
    *results, words, centerness = _fcos_op(
        *tensors, _flat(sizes), arguments.strides(strides), _count(images), classes, ranges, center_sampling, offset,
        ignore_iof, fallback, background, is_counted(status),
    )  # fmt: skip
    if status is not None:
        status.add(words)
    return Assignment(*_levels(sizes, images, [*results, centerness]))
