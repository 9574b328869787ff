"""Arguments that are tensors, as the native calls take them."""

from __future__ import annotations

import torch
from torch import Tensor


def loss_dtype(dtype: torch.dtype) -> torch.dtype:
    """What losses, and what is beside logits of a type, come in."""
    return torch.float64 if dtype is torch.float64 else torch.float32


def logits(name: str, value: object) -> Tensor:
    """What has a gradient; row after row."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, not {type(value).__name__}")
    return value if value.is_contiguous() else value.contiguous()


def beside(name: str, value: object, pred: Tensor) -> Tensor:
    """A tensor of numbers beside logits, which has no gradient."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, not {type(value).__name__}")
    if value.requires_grad:
        raise ValueError(f"{name} requires a gradient, which gfocal does not compute; detach it")
    dtype = loss_dtype(pred.dtype)
    if value.dtype is not dtype:
        if value.is_complex():
            raise TypeError(f"{name} is {value.dtype}, it must be of real numbers")
        value = value.to(dtype)
    return value if value.is_contiguous() else value.contiguous()


def optional(name: str, value: object, pred: Tensor) -> Tensor | None:
    return None if value is None else beside(name, value, pred)


def levels(name: str, values: object) -> list[Tensor]:
    """Logits of each level, wherever they are."""
    if not isinstance(values, (list, tuple)):
        raise TypeError(f"{name} must be a list of torch.Tensor, one a level, not {type(values).__name__}")
    for level, value in enumerate(values):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}[{level}] must be a torch.Tensor, not {type(value).__name__}")
    return list(values)


def all_beside(name: str, values: object, pred: Tensor) -> list[Tensor]:
    """What is :func:`beside` the logits of each level."""
    dtype = loss_dtype(pred.dtype)
    return [
        value
        if value.dtype is dtype and value.is_contiguous() and not value.requires_grad
        else beside(f"{name}[{level}]", value, pred)
        for level, value in enumerate(levels(name, values))
    ]


def whole_numbers(name: str, value: object) -> Tensor:
    """Labels, or numbers of images."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, not {type(value).__name__}")
    if value.dtype is not torch.int64 and value.dtype is not torch.int32:
        if value.is_floating_point() or value.is_complex() or value.dtype is torch.bool:
            raise TypeError(f"{name} is {value.dtype}, it must be torch.int64 or torch.int32")
        value = value.long()
    return value if value.is_contiguous() else value.contiguous()


def labels(name: str, values: object) -> list[Tensor]:
    """Those of each level."""
    return [
        value if value.dtype is torch.int64 and value.is_contiguous() else whole_numbers(f"{name}[{level}]", value)
        for level, value in enumerate(levels(name, values))
    ]


def average(value: float | Tensor | None, pred: Tensor) -> tuple[Tensor | None, float | None]:
    """An average factor: a tensor, which nobody waits for, or a number."""
    if value is None:
        return None, None
    if isinstance(value, Tensor):
        return beside("avg_factor", value, pred), None
    return None, float(value)
