"""Arguments that are tensors, as the native calls take them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ._native import ShapeError

# Every call goes through here: what is right as it is is seen at once, by constants of this module.
_F32, _F64, _I32, _I64, _STRIDED = torch.float32, torch.float64, torch.int32, torch.int64, torch.strided


def loss_dtype(dtype: torch.dtype) -> torch.dtype:
    """What losses, and what is beside logits of a type, come in."""
    return _F64 if dtype is _F64 else _F32


def _tensor(name: str, value: object) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, not {type(value).__name__}")
    if value.layout is not _STRIDED:
        raise TypeError(f"{name} is {value.layout}, it must be torch.strided: {name}.to_dense()")
    return value


def logits(name: str, value: object) -> Tensor:
    """What has a gradient; row after row."""
    if isinstance(value, Tensor) and value.layout is _STRIDED and value.is_contiguous():
        return value
    return _tensor(name, value).contiguous()


def beside(name: str, value: object, pred: Tensor) -> Tensor:
    """A tensor of numbers beside logits, which has no gradient."""
    dtype = _F64 if pred.dtype is _F64 else _F32
    if (
        isinstance(value, Tensor)
        and value.dtype is dtype
        and value.layout is _STRIDED
        and not value.requires_grad
        and value.is_contiguous()
    ):
        return value
    tensor = _tensor(name, value)
    if tensor.requires_grad:
        raise ValueError(f"{name} requires a gradient, which gfocal does not compute; detach it")
    if tensor.is_complex():
        raise TypeError(f"{name} is {tensor.dtype}, it must be of real numbers")
    return tensor.to(dtype).contiguous()


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
    if isinstance(value, Tensor) and value.dtype is _I64 and value.layout is _STRIDED and value.is_contiguous():
        return value
    tensor = _tensor(name, value)
    if tensor.dtype is not _I64 and tensor.dtype is not _I32:
        if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype is torch.bool:
            raise TypeError(f"{name} is {tensor.dtype}, it must be torch.int64 or torch.int32")
        tensor = tensor.long()
    return tensor.contiguous()


def labels(name: str, values: object) -> list[Tensor]:
    """Those of each level."""
    return [
        value if value.dtype is torch.int64 and value.is_contiguous() else whole_numbers(f"{name}[{level}]", value)
        for level, value in enumerate(levels(name, values))
    ]


def target(value: object, pred: Tensor) -> tuple[Tensor | None, Tensor]:
    """Labels and scores, or none and a target for each logit."""
    if not isinstance(value, (tuple, list)):
        if isinstance(value, Tensor) and value.dim() == 1:
            needed = f"{list(pred.shape)}, or a pair (labels, score)"
            raise ShapeError(f"target has shape {list(value.shape)}, pred {list(pred.shape)} needs {needed}")
        return None, beside("target", value, pred)
    if len(value) != 2:
        raise ValueError(f"target has {len(value)} parts, it must be (labels, score) or a tensor")
    return whole_numbers("labels", value[0]), beside("score", value[1], pred)


def average(name: str, value: object, pred: Tensor) -> tuple[Tensor | None, float | None]:
    """An average factor: a tensor, which nobody waits for, or a number."""
    if value is None:
        return None, None
    if isinstance(value, Tensor):
        return beside(name, value, pred), None
    if not hasattr(value, "__float__"):
        raise TypeError(f"{name} must be a number or a torch.Tensor, not {type(value).__name__}")
    return None, float(value)


def strides(values: Iterable[float]) -> list[float]:
    """Pixels from one position to the next, of each level."""
    try:
        return [float(value) for value in values]
    except (TypeError, ValueError):
        raise TypeError(f"strides is {values!r}, it must be a list of numbers, one a level") from None


def reduction(value: str) -> str:
    """One that a module is made with."""
    if value not in {"none", "mean", "sum"}:
        raise ValueError(f'reduction is {value!r}, it must be "none", "sum" or "mean"')
    return value
