"""gfocal in NanoDet-Plus: ``gfocal.nanodet.swap(model.head)`` after the model is built."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

import gfocal

Head = TypeVar("Head", bound=nn.Module)


class _Swapped:
    """What ``NanoDetPlusHead`` computes from an assignment, by :func:`gfocal.head_loss`; its assigner stays. The
    auxiliary head's losses are computed by the same method."""

    def get_single_level_center_priors(self, *args: Any, **kwargs: Any) -> Tensor:
        """The head's own, kept for the loss, which is not given them."""
        priors: Tensor = super().get_single_level_center_priors(*args, **kwargs)  # type: ignore[misc]
        self.gfocal_priors = [*getattr(self, "gfocal_priors", []), priors][-len(self.strides) :]  # type: ignore[attr-defined]
        return priors

    def _get_loss_from_assign(
        self: Any, cls_preds: Tensor, reg_preds: Tensor, decoded_bboxes: Tensor, assign: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        labels, label_scores, bbox_targets, _, _ = assign
        priors = torch.cat(self.gfocal_priors, 1)
        strides = priors[..., 2:3]
        # All levels lie in one tensor: to gfocal they are one level, in units of the strides.
        losses = gfocal.head_loss(
            [cls_preds.transpose(1, 2)],
            [reg_preds.transpose(1, 2)],
            [torch.stack(tuple(labels))],
            [torch.stack(tuple(bbox_targets)) / strides],
            [1.0],
            quality=[torch.stack(tuple(label_scores))],
            points=[priors[..., :2] / strides],
            profile="nanodet",
            reg_max=self.reg_max,
            beta=self.loss_qfl.beta,
            cls_weight=self.loss_qfl.loss_weight,
            box_weight=self.loss_bbox.loss_weight,
            dfl_weight=self.loss_dfl.loss_weight,
        )
        qfl, bbox, dfl = losses[0].unbind()
        return losses.sum(), {"loss_qfl": qfl, "loss_bbox": bbox, "loss_dfl": dfl}


def swap(head: Head) -> Head:
    """Lets a ``NanoDetPlusHead`` compute its loss by gfocal: the head itself, whose weights stay as they are."""
    kind = type(head)
    needed = ("_get_loss_from_assign", "get_single_level_center_priors", "strides", "reg_max", "loss_qfl", "loss_dfl")
    missing = [name for name in needed if not hasattr(head, name)]
    if missing:
        raise TypeError(f"head is a {kind.__name__} without {', '.join(missing)}; it must be a NanoDetPlusHead")
    if not isinstance(head, _Swapped):
        head.__class__ = type(f"Gfocal{kind.__name__}", (_Swapped, kind), {})
    return head


__all__ = ["swap"]
