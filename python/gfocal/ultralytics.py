"""gfocal in Ultralytics (YOLOv8, YOLO11, YOLO12)::

    model = YOLO("yolov8n.yaml").model
    model.criterion = gfocal.ultralytics.DetectionLoss(model)

A trainer makes its criterion by ``model.init_criterion()``: let that return one of these.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from ultralytics.utils.loss import v8DetectionLoss
from ultralytics.utils.tal import make_anchors

import gfocal


class DetectionLoss(v8DetectionLoss):  # type: ignore[misc]
    """``v8DetectionLoss`` with its assigner, and :func:`gfocal.head_loss` behind it: the outputs are read where they
    are, once. Heads without bins (``reg_max`` 1) have ``v8DetectionLoss``'s own loss."""

    def get_assigned_targets_and_loss(
        self, preds: dict[str, Tensor], batch: dict[str, Any], **assign_kwargs: Any
    ) -> tuple[tuple[Tensor, ...], Tensor, dict[str, Tensor]]:
        """The assignment, the losses (box, cls, dfl) without the batch size, and the losses by name."""
        if not self.use_dfl:
            found: tuple[tuple[Tensor, ...], Tensor, dict[str, Tensor]] = super().get_assigned_targets_and_loss(
                preds, batch, **assign_kwargs
            )
            return found
        boxes, scores = preds["boxes"], preds["scores"]
        with torch.no_grad():
            anchor_points, strides = make_anchors(preds["feats"], self.stride, 0.5)
            assigned = self._assign(preds, batch, anchor_points, strides, assign_kwargs)
            labels, target_bboxes, target_scores, fg_mask, target_gt_idx = assigned
            quality = target_scores.sum(-1)
        # All levels lie in one tensor: to gfocal they are one level, in units of the strides.
        losses = gfocal.head_loss(
            [scores],
            [boxes],
            [torch.where(fg_mask, labels.long(), self.nc)],
            [target_bboxes / strides],
            [1.0],
            quality=[quality],
            points=[anchor_points],
            class_weights=None if self.class_weights is None else self.class_weights.reshape(-1),
            profile="ultralytics",
            reg_max=self.reg_max,
            cls_weight=self.hyp.cls,
            box_weight=self.hyp.box,
            dfl_weight=self.hyp.dfl,
            reduce=False,
        )
        loss = losses[0, [1, 0, 2]]
        return (
            (fg_mask, target_gt_idx, target_bboxes, anchor_points, strides),
            loss,
            dict(zip(self.loss_names, loss.detach())),
        )

    def _assign(
        self,
        preds: dict[str, Tensor],
        batch: dict[str, Any],
        anchor_points: Tensor,
        strides: Tensor,
        assign_kwargs: dict[str, Any],
    ) -> tuple[Tensor, ...]:
        """What ``v8DetectionLoss`` assigns."""
        boxes, scores = preds["boxes"].permute(0, 2, 1), preds["scores"].permute(0, 2, 1)
        height, width = preds["feats"][0].shape[2:]
        scale = torch.tensor([width, height, width, height], device=self.device, dtype=scores.dtype) * self.stride[0]
        targets = torch.cat((batch["batch_idx"].view(-1, 1), batch["cls"].view(-1, 1), batch["bboxes"]), 1)
        targets = self.preprocess(targets.to(self.device), scores.shape[0], scale_tensor=scale)
        gt_labels, gt_bboxes = targets.split((1, 4), 2)
        distances = gfocal.integral(boxes.reshape(-1, self.reg_max)).reshape(*boxes.shape[:2], 4)
        decoded = torch.cat((anchor_points - distances[..., :2], anchor_points + distances[..., 2:]), -1)
        assigned: tuple[Tensor, ...] = self.assigner(
            scores.sigmoid(),
            (decoded * strides).type(gt_bboxes.dtype),
            anchor_points * strides,
            gt_labels,
            gt_bboxes,
            gt_bboxes.sum(2, keepdim=True).gt_(0.0),
            **assign_kwargs,
        )
        return assigned


__all__ = ["DetectionLoss"]
