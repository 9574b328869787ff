"""Generalized Focal Loss for PyTorch: fused losses of dense object detectors, on CPU and CUDA tensors."""

from __future__ import annotations

try:
    import torch as _torch
except ImportError as error:
    raise ImportError("gfocal works on PyTorch's tensors; install it: pip install 'gfocal[torch]'") from error
if _torch.__version__ < "2.4":  # which compares versions
    raise ImportError(f"gfocal needs PyTorch 2.4 or newer, this is {_torch.__version__}: pip install 'gfocal[torch]'")

from ._assign import Assignment, atss, fcos
from ._boxes import CIoULoss, DIoULoss, GIoULoss, IoULoss, box_loss
from ._decode import decode
from ._dfl import DistributionFocalLoss, distribution_focal_loss
from ._geometry import box_to_distances, distances_to_box, iou
from ._gfl import gfl
from ._head import GFLHeadLoss, HeadLosses, head_loss
from ._integral import Integral, integral
from ._native import CudaError, ShapeError, __version__, info, set_num_threads
from ._qfl import QualityFocalLoss, quality_focal_loss
from ._status import Status

__all__ = [
    "Assignment",
    "CIoULoss",
    "CudaError",
    "DIoULoss",
    "DistributionFocalLoss",
    "GFLHeadLoss",
    "GIoULoss",
    "HeadLosses",
    "Integral",
    "IoULoss",
    "QualityFocalLoss",
    "ShapeError",
    "Status",
    "__version__",
    "atss",
    "box_loss",
    "box_to_distances",
    "decode",
    "distances_to_box",
    "distribution_focal_loss",
    "fcos",
    "gfl",
    "head_loss",
    "info",
    "integral",
    "iou",
    "quality_focal_loss",
    "set_num_threads",
]
