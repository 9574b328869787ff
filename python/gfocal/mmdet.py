"""gfocal in mmdetection 3: ``custom_imports = dict(imports=["gfocal.mmdet"])`` in a config, then by type name.

Losses alone, in a head's config::

    loss_cls=dict(type="GfocalQualityFocalLoss", use_sigmoid=True, beta=2.0, loss_weight=1.0)
    loss_dfl=dict(type="GfocalDistributionFocalLoss", loss_weight=0.25)
    loss_bbox=dict(type="GfocalGIoULoss", loss_weight=2.0)

The whole head, assignment included, which is many times faster: ``bbox_head=dict(type="GfocalGFLHead", …)``, with all
else as it was.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from mmdet.models.dense_heads import GFLHead
from mmdet.models.losses import DistributionFocalLoss, GIoULoss, QualityFocalLoss
from mmdet.models.task_modules.assigners import ATSSAssigner, BboxOverlaps2D
from mmdet.registry import MODELS
from torch import Tensor

import gfocal

for _loss in (
    gfocal.QualityFocalLoss, gfocal.DistributionFocalLoss,
    gfocal.IoULoss, gfocal.GIoULoss, gfocal.DIoULoss, gfocal.CIoULoss,
):  # fmt: skip
    MODELS.register_module(name=f"Gfocal{_loss.__name__}", module=_loss)


def _single(value: float | Sequence[float]) -> float:
    """Of a pair of equal numbers."""
    first, second = (value, value) if isinstance(value, (int, float)) else value
    if first != second:
        raise ValueError(f"a stride of {value}: height and width must be alike")
    return float(first)


@MODELS.register_module()
class GfocalGFLHead(GFLHead):  # type: ignore[misc]
    """``GFLHead`` whose training loss is :func:`gfocal.atss` and :func:`gfocal.head_loss`: the same numbers, without
    the assigner's and the losses' many operations. Its weights, outputs and predictions are ``GFLHead``'s.

    What gfocal has not (another assigner, another loss, ``allowed_border``, regions to ignore) is computed by
    ``GFLHead`` as ever, and a warning says so once.
    """

    _told = False

    def loss_by_feat(
        self,
        cls_scores: Sequence[Tensor],
        bbox_preds: Sequence[Tensor],
        batch_gt_instances: Sequence[Any],
        batch_img_metas: Sequence[dict[str, Any]],
        batch_gt_instances_ignore: Sequence[Any] | None = None,
    ) -> dict[str, list[Tensor]]:
        """The losses of each level: ``loss_cls``, ``loss_bbox``, ``loss_dfl``."""
        missing = self._missing(batch_gt_instances_ignore)
        if missing:
            if not self._told:
                self._told = True
                warnings.warn(f"GfocalGFLHead leaves the loss to GFLHead: {missing}", stacklevel=2)
            losses: dict[str, list[Tensor]] = super().loss_by_feat(
                cls_scores, bbox_preds, batch_gt_instances, batch_img_metas, batch_gt_instances_ignore
            )
            return losses
        strides = [_single(stride) for stride in self.prior_generator.strides]
        sizes = [tuple(scores.shape[2:]) for scores in cls_scores]
        device = cls_scores[0].device
        targets = gfocal.atss(
            sizes,
            strides,
            torch.cat([instances.bboxes for instances in batch_gt_instances]).to(device),
            torch.cat([instances.labels for instances in batch_gt_instances]).to(device),
            torch.cat([torch.full_like(of.labels, image) for image, of in enumerate(batch_gt_instances)]).to(device),
            len(batch_gt_instances),
            self.num_classes,
            topk=self.train_cfg["assigner"]["topk"],
            scale=self.prior_generator.octave_base_scale,
            offset=self.prior_generator.center_offset,
            image_sizes=_image_sizes(batch_img_metas, sizes, strides, device),
        )
        pos_weight = self.train_cfg["pos_weight"]
        weights = targets.label_weights
        if pos_weight > 0:
            weights = [
                torch.where(labels < self.num_classes, weight * pos_weight, weight)
                for labels, weight in zip(targets.labels, weights)
            ]
        losses_of = gfocal.head_loss(
            cls_scores,
            bbox_preds,
            targets.labels,
            targets.boxes,
            strides,
            label_weights=weights,
            offset=self.prior_generator.center_offset,
            reg_max=self.reg_max,
            beta=self.loss_cls.beta,
            cls_weight=self.loss_cls.loss_weight,
            box_weight=self.loss_bbox.loss_weight,
            iou_eps=self.loss_bbox.eps,
            dfl_weight=self.loss_dfl.loss_weight,
        )
        cls, bbox, dfl = (list(of_levels.unbind()) for of_levels in losses_of.unbind(1))
        return {"loss_cls": cls, "loss_bbox": bbox, "loss_dfl": dfl}

    def _missing(self, ignored: Sequence[Any] | None) -> str | None:
        """What the config has that gfocal has not."""
        assigner, losses = self.assigner, [self.loss_cls, self.loss_dfl, self.loss_bbox]
        known = [
            (QualityFocalLoss, gfocal.QualityFocalLoss),
            (DistributionFocalLoss, gfocal.DistributionFocalLoss),
            (GIoULoss, gfocal.GIoULoss),
        ]
        found = [
            (
                f"a {type(loss).__name__} of reduction {loss.reduction!r}",
                type(loss) in kinds and loss.reduction == "mean",
            )
            for loss, kinds in zip(losses, known)
        ]
        ignored = [instances for instances in ignored or () if len(instances.bboxes)]
        border, priors = self.train_cfg["allowed_border"], self.prior_generator.num_base_priors
        found += [
            ("probabilities in place of logits", not getattr(self.loss_cls, "activated", False)),
            (
                f"the assigner {type(assigner).__name__}",
                type(assigner) is ATSSAssigner
                and assigner.alpha is None
                and type(assigner.iou_calculator) is BboxOverlaps2D,
            ),
            ("regions to ignore", not ignored or getattr(assigner, "ignore_iof_thr", -1) <= 0),
            (f"allowed_border={border}", border < 0),
            (f"{priors} anchors at a position", set(priors) == {1}),
        ]
        return next((what for what, supported in found if not supported), None)


def _image_sizes(
    metas: Sequence[dict[str, Any]], sizes: Sequence[tuple[int, ...]], strides: Sequence[float], device: torch.device
) -> Tensor | None:
    """Heights and widths; ``None`` where no image ends before the outputs do."""
    found = [tuple(meta["pad_shape"][:2]) for meta in metas]
    whole = all(
        -(-length // stride) >= positions
        for image in found
        for size, stride in zip(sizes, strides)
        for length, positions in zip(image, size)
    )
    if whole:
        return None
    told = torch.tensor(found, dtype=torch.int64)
    # From pinned memory nobody waits for the copy.
    return told.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else told.to(device)


__all__ = ["GfocalGFLHead"]
