"""The head loss: all three losses of a detector of the GFL family, from its raw outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Union

import torch
import torch.distributed
from torch import Tensor, nn

from . import _arguments as arguments
from . import _native
from ._assign import atss
from ._head_autograd import head_loss_of, head_normalisers
from ._status import Status, is_counted

Reduce = Union[Callable[[Tensor], Tensor], bool, None]


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def mean_over_processes(normalisers: Tensor) -> Tensor:
    """What mmdetection's ``reduce_mean`` does."""
    torch.distributed.all_reduce(normalisers)
    return normalisers / torch.distributed.get_world_size()


def _reducer(reduce: Reduce) -> Callable[[Tensor], Tensor] | None:
    if callable(reduce):
        return reduce
    wanted = _is_distributed() and torch.distributed.get_world_size() > 1 if reduce is None else reduce
    return mean_over_processes if wanted else None


def _bins(profile: str, coding: str, bins: int | None, reg_max: int | None) -> int | None:
    if coding != "bins" and not (bins is None and reg_max is None):
        raise ValueError(f"coding={coding!r} has one logit a side; leave bins and reg_max out")
    if reg_max is None:
        return bins
    if bins is not None:
        raise ValueError(f"bins is {bins} and reg_max {reg_max}; give one of them")
    return reg_max if profile == "ultralytics" else reg_max + 1


def head_loss(
    cls_scores: Sequence[Tensor],
    bbox_preds: Sequence[Tensor],
    labels: Sequence[Tensor],
    box_targets: Sequence[Tensor],
    strides: Sequence[float],
    *,
    label_weights: Sequence[Tensor] = (),
    quality: Sequence[Tensor] = (),
    box_weights: Sequence[Tensor] = (),
    box_scores: Sequence[Tensor] = (),
    scores: Sequence[Tensor] = (),
    element_weights: Sequence[Tensor] = (),
    class_weights: Tensor | None = None,
    points: Sequence[Tensor] = (),
    offset: float | None = None,
    profile: str = "mmdetection",
    reg_max: int | None = None,
    bins: int | None = None,
    coding: str = "bins",
    beta: float | None = None,
    alpha: float | None = None,
    background: str = "last",
    ignore_label: int | None = None,
    cls_weight: float | None = None,
    iou: str | None = None,
    box_weight: float | None = None,
    iou_eps: float | None = None,
    dfl_weight: float | None = None,
    target_eps: float | None = None,
    quality_source: str | None = None,
    box_weighting: str | None = None,
    normaliser: str | None = None,
    normalisers: Tensor | None = None,
    reduce: Reduce = None,
    status: Status | None = None,
) -> Tensor:
    r"""Classification, box and distribution loss of each level, from a detector's outputs where they are: nothing is
    permuted, concatenated or gathered.

    For each level, with stride s and anchor points c (in units of s)::

        p     = softmax of the K bins of each box side;   E = Σ_j j·p_j          (the integral)
        box   = (c_x − E_l, c_y − E_t, c_x + E_r, c_y + E_b)
        q     = IoU(box, target box / s)                                        (the quality, detached)
        v     = max over classes of σ(cls)                                      (the weight, detached)

        loss_cls  = w_cls · Σ_anchors label_weight · Σ_classes QFL(cls, q at the label, else 0) / N
        loss_bbox = w_box · Σ_positives v · (1 − GIoU(box, target box / s)) / W
        loss_dfl  = w_dfl · Σ_positives v · Σ_sides DFL(side, target distance) / (4 W)
        N = number of positives,   W = max(Σ_positives v, 1)                    (over all levels)

    (*Generalized Focal Loss*, Li et al., NeurIPS 2020, equations 4 to 6; ``GFLHead.loss_by_feat`` of mmdetection 3.)

    Lists have a tensor for each level, at most 8. Logits are read where they are: NCHW, channels last, channels or
    positions of something larger; their gradients have their strides, or are dense where those have holes. What is
    beside them is float32 (float64 beside float64), and converted if it is not.

    Args:
        cls_scores: ``[B, C, H, W]`` class logits, float32, float16 or bfloat16, on the CPU also float64; or
            ``[B, C, A]``, with ``points``.
        bbox_preds: ``[B, 4·K, H, W]`` or ``[B, 4·K, A]`` box logits, channel side·K + bin, sides left, top, right,
            bottom; of the same type or another.
        labels: ``[B, H·W]``, int64 or int32: a class, or background.
        box_targets: ``[B, H·W, 4]`` x1, y1, x2, y2 in pixels; read for positives.
        strides: pixels from one position to the next.
        label_weights: ``[B, H·W]``, multiply the classification loss; 0 masks.
        quality: ``[B, H·W]``, q, for ``quality_source="given"``.
        box_weights: ``[B, H·W]``, multiply the box losses of positives; 0 masks.
        box_scores: ``[B, H·W]``, v, for ``box_weighting="given"``.
        scores: ``[B, H·W, C]``, targets of the classification loss in place of q at the label.
        element_weights: ``[B, H·W, C]``, multiply the classification loss; 0 masks.
        class_weights: ``[C]``; 0 masks a class.
        points: ``[H·W, 2]`` or ``[B, H·W, 2]``, anchor points in pixels, in place of ``((x, y) + offset)·stride``.
        offset: of anchor points, in strides; 0.5 with ``profile="ultralytics"``, else 0.
        profile: ``"mmdetection"`` (GFL), ``"nanodet"`` (NanoDet-Plus) or ``"ultralytics"`` (YOLOv8 to 12): where all
            that follows comes from if it is not given.
        reg_max: K − 1; with ``profile="ultralytics"`` K, as it is called there.
        bins: K.
        coding: ``"bins"``; or without bins, with one logit z a side, ``"exp"``: E = exp(z), ``"relu"``: E = max(z, 0).
        beta, alpha, background, ignore_label: see :func:`quality_focal_loss`.
        cls_weight, box_weight, dfl_weight: w of each loss.
        iou: ``"iou"``, ``"giou"``, ``"diou"``, ``"ciou"`` or ``"ciou_ultralytics"``; see :func:`box_loss`.
        iou_eps: its ε, in squared strides.
        target_eps: target distances are clamped to K − 1 − ``target_eps``.
        quality_source: ``"iou"`` or ``"given"``.
        box_weighting: what v is: ``"max_score"``, ``"quality"`` or ``"given"``.
        normaliser: ``"mmdetection"``, ``"nanodet"`` or ``"ultralytics"``: how N and W come from counts.
        normalisers: ``[2]``: the number of positives and Σv to divide by, in place of those of this batch.
        reduce: what is done to the two, ``[2]`` float64 (on CUDA float32), before they are divided by: a function;
            ``False``: nothing; ``None``: their mean over the processes of ``torch.distributed``, if there are several.
        status: counts labels, qualities and targets that could not be used.

    Returns:
        ``[levels, 3]``, float32 (float64 for float64), whose gradient goes to all logits. Each of the losses may be
        weighted in what follows. They have no second derivatives.

    Raises:
        ShapeError: if shapes do not go together.
        TypeError: if a dtype cannot be used.
        ValueError: if an option is outside its range, tensors are on different devices, or anything but logits requires
            a gradient.

    >>> import torch, gfocal
    >>> cls, boxes = torch.zeros(1, 1, 1, 1, requires_grad=True), torch.zeros(1, 8, 1, 1, requires_grad=True)
    >>> labels, targets = torch.zeros(1, 1, dtype=torch.int64), torch.tensor([[[0.0, 0.0, 4.0, 4.0]]])
    >>> losses = gfocal.head_loss([cls], [boxes], [labels], [targets], [8.0], offset=0.5, bins=2)
    >>> losses  # 0.25²·ln 2, 2·0.5·(1 − 0.25), 0.25·0.5·ln 2
    tensor([[0.0433, 0.7500, 0.0866]], grad_fn=<HeadBackward>)
    >>> losses.sum().backward()
    >>> boxes.grad[0, 4:6].flatten()  # of the right side
    tensor([-0.0781,  0.0781])
    """
    cls, boxes = arguments.levels("cls_scores", cls_scores), arguments.levels("bbox_preds", bbox_preds)
    if not cls:
        raise _native.ShapeError("cls_scores has no levels")
    pred = cls[0]
    if normalisers is not None:
        if reduce is not None and reduce is not False:
            raise ValueError("normalisers are given, and nothing is left to reduce; give one of the two")
        normalisers = _as_divisors("normalisers", normalisers, pred)
    lists = (
        cls,
        boxes,
        arguments.labels("labels", labels),
        arguments.all_beside("box_targets", box_targets, pred),
        arguments.all_beside("label_weights", label_weights, pred),
        arguments.all_beside("quality", quality, pred),
        arguments.all_beside("box_weights", box_weights, pred),
        arguments.all_beside("box_scores", box_scores, pred),
        arguments.all_beside("scores", scores, pred),
        arguments.all_beside("element_weights", element_weights, pred),
        arguments.all_beside("points", points, pred),
    )
    of_classes = arguments.optional("class_weights", class_weights, pred)
    if offset is None:
        offset = 0.5 if profile == "ultralytics" else 0.0
    options = (
        arguments.strides(strides), offset, profile, coding, _bins(profile, coding, bins, reg_max), beta, alpha,
        cls_weight, background, ignore_label, iou, box_weight, iou_eps, dfl_weight, target_eps, quality_source,
        box_weighting, normaliser,
    )  # fmt: skip
    counts, workspace = is_counted(status), None
    reducer = None if normalisers is not None else _reducer(reduce)
    if reducer is not None:
        # On CUDA phase one is run once, and counts.
        early_counts = counts and pred.is_cuda
        with torch.no_grad():
            normalisers, workspace, words = head_normalisers(*lists, of_classes, *options, early_counts)
            normalisers = _as_divisors("what reduce gives", reducer(normalisers), pred)
        if not pred.is_cuda:
            workspace = None
        if early_counts and status is not None:
            status.add(words)
        counts = counts and not early_counts
    losses, words = head_loss_of(lists, of_classes, normalisers, workspace, options, counts)
    if status is not None and counts:
        status.add(words)
    return losses


def _as_divisors(name: str, value: object, pred: Tensor) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, not {type(value).__name__}")
    if value.requires_grad:
        raise ValueError(f"{name} requires a gradient, which gfocal does not compute; detach it")
    return value.to(torch.float32 if pred.is_cuda else torch.float64).contiguous()


class HeadLosses(NamedTuple):
    """Of each level."""

    cls: Tensor
    """``[levels]``: classification."""
    bbox: Tensor
    """``[levels]``: boxes."""
    dfl: Tensor
    """``[levels]``: distributions."""


class GFLHeadLoss(nn.Module):
    """Everything behind the outputs of a GFL head: :func:`atss`, then :func:`head_loss`.

    Args:
        strides: of each level, in pixels.
        num_classes: how many classes there are.
        reg_max: the largest distance that the bins can say, in strides.
        topk: of :func:`atss`.
        octave_scale: how many strides an anchor is wide.
        center_offset: of anchors and points, in strides.
        profile, beta, cls_weight, iou, box_weight, dfl_weight, target_eps: of :func:`head_loss`.
        sync_normalisers: whether N and W are the means over all processes; ``None``: if there are several.

    >>> import torch, gfocal
    >>> head = gfocal.GFLHeadLoss(strides=[8, 16], num_classes=3)
    >>> cls = [torch.zeros(2, 3, 8, 8, requires_grad=True), torch.zeros(2, 3, 4, 4, requires_grad=True)]
    >>> boxes = [torch.zeros(2, 68, 8, 8, requires_grad=True), torch.zeros(2, 68, 4, 4, requires_grad=True)]
    >>> gt_boxes, gt_labels = torch.tensor([[4.0, 4.0, 60.0, 44.0]]), torch.tensor([1])
    >>> losses = head(cls, boxes, gt_boxes, gt_labels, gt_image=torch.tensor([0]))
    >>> sum(sum(level) for level in losses).backward()
    >>> losses.dfl.shape
    torch.Size([2])
    """

    def __init__(
        self,
        strides: Sequence[float],
        num_classes: int,
        reg_max: int = 16,
        topk: int = 9,
        octave_scale: float = 8.0,
        center_offset: float = 0.0,
        profile: str = "mmdetection",
        beta: float | None = None,
        cls_weight: float | None = None,
        iou: str | None = None,
        box_weight: float | None = None,
        dfl_weight: float | None = None,
        target_eps: float | None = None,
        sync_normalisers: bool | None = None,
    ) -> None:
        super().__init__()
        self.strides, self.num_classes, self.reg_max = arguments.strides(strides), num_classes, reg_max
        self.topk, self.octave_scale, self.center_offset = topk, octave_scale, center_offset
        self.profile, self.beta, self.cls_weight, self.iou = profile, beta, cls_weight, iou
        self.box_weight, self.dfl_weight, self.target_eps = box_weight, dfl_weight, target_eps
        self.sync_normalisers = sync_normalisers
        _native.Assigner.atss(topk, octave_scale, center_offset, -1.0, 0, "last")
        _native.Head(
            profile, "bins", _bins(profile, "bins", None, reg_max), beta, None, cls_weight, "last", None, iou,
            box_weight, None, dfl_weight, target_eps, "iou", None, None,
        )  # fmt: skip

    def forward(
        self,
        cls_scores: Sequence[Tensor],
        bbox_preds: Sequence[Tensor],
        gt_boxes: Tensor,
        gt_labels: Tensor,
        gt_image: Tensor,
        image_sizes: Tensor | None = None,
        status: Status | None = None,
    ) -> HeadLosses:
        """``gt_boxes [N, 4]``, ``gt_labels [N]`` and ``gt_image [N]`` are those of all images; ``image_sizes [B, 2]``
        heights and widths of images that are smaller than the batch. See :func:`atss` and :func:`head_loss`."""
        cls = arguments.levels("cls_scores", cls_scores)
        for level, scores in enumerate(cls):
            if scores.dim() != 4:
                raise _native.ShapeError(f"cls_scores[{level}] has shape {list(scores.shape)}, it must be [B, C, H, W]")
        if not cls or cls[0].shape[1] != self.num_classes:
            got = f"{cls[0].shape[1]} channels" if cls else "no levels"
            raise _native.ShapeError(f"cls_scores has {got}, the head {self.num_classes} classes")
        targets = atss(
            [tuple(scores.shape[2:]) for scores in cls], self.strides, gt_boxes, gt_labels, gt_image,
            cls[0].shape[0], self.num_classes, topk=self.topk, scale=self.octave_scale, offset=self.center_offset,
            image_sizes=image_sizes, status=status,
        )  # fmt: skip
        losses = head_loss(
            cls, bbox_preds, targets.labels, targets.boxes, self.strides,
            label_weights=() if image_sizes is None else targets.label_weights, offset=self.center_offset,
            profile=self.profile, reg_max=self.reg_max, beta=self.beta, cls_weight=self.cls_weight, iou=self.iou,
            box_weight=self.box_weight, dfl_weight=self.dfl_weight, target_eps=self.target_eps, quality_source="iou",
            reduce=self.sync_normalisers, status=status,
        )  # fmt: skip
        return HeadLosses(*losses.unbind(1))

    def extra_repr(self) -> str:
        return (
            f"strides={self.strides}, num_classes={self.num_classes}, reg_max={self.reg_max}, profile={self.profile!r}"
        )


__all__ = ["GFLHeadLoss", "HeadLosses", "head_loss"]
