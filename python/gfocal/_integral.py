"""The integral of a distribution over bins: its expectation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from . import _arguments as arguments
from . import _native
from ._autograd import mapped
from ._library import operator


def _room(logits: Tensor) -> Tensor:
    return torch.empty(logits.shape[0], dtype=arguments.loss_dtype(logits.dtype), device=logits.device)


def _forward(logits: Tensor) -> Tensor:
    expectation = _room(logits)
    _native.integral(logits, expectation)
    return expectation


def _backward(logits: Tensor, upstream: Tensor) -> Tensor:
    grad = torch.empty_like(logits)
    _native.integral_backward(logits, upstream.contiguous(), grad)
    return grad


_integral = operator("integral(Tensor logits) -> Tensor", _forward, _room)
_integral_backward = operator(
    "integral_backward(Tensor logits, Tensor upstream) -> Tensor",
    _backward,
    lambda logits, _: torch.empty_like(logits),
)


def integral(logits: Tensor) -> Tensor:
    r"""The expectation of a distribution over bins, in units of bins.

    For the K logits z of a box side (*Generalized Focal Loss*, Li et al., NeurIPS 2020, equation 5)::

        E(z) = Σ_j j·p_j,   p = softmax(z)

    Args:
        logits: ``[…, K]``, float32, float16 or bfloat16, on the CPU also float64.

    Returns:
        ``[…]``, float32 (float64 for float64).

    Raises:
        ShapeError: if there are less than 2 bins.
        TypeError: if the dtype cannot be used.

    >>> import torch, gfocal
    >>> gfocal.integral(torch.zeros(2, 4))
    tensor([1.5000, 1.5000])
    """
    logits = arguments.logits("logits", logits)
    if logits.dim() == 0:
        raise _native.ShapeError("logits has shape [], it must be [..., bins]")
    rows = logits.reshape(-1, logits.shape[-1]) if logits.numel() else logits.reshape(0, logits.shape[-1])
    return mapped(rows, _integral, _integral_backward, (), ()).reshape(logits.shape[:-1])


class Integral(nn.Module):
    """See :func:`integral`; as mmdetection's ``Integral``: ``[N, 4·(reg_max + 1)]`` to ``[N, 4]``."""

    def __init__(self, reg_max: int = 16) -> None:
        super().__init__()
        if reg_max < 1:
            raise ValueError(f"reg_max is {reg_max}, it must be 1 or more")
        self.reg_max = reg_max

    def forward(self, x: Tensor) -> Tensor:
        """See :func:`integral`."""
        bins = self.reg_max + 1
        if x.dim() == 0 or x.shape[-1] % bins:
            raise _native.ShapeError(f"x has shape {list(x.shape)}, reg_max {self.reg_max} needs [..., 4 * {bins}]")
        return integral(x.reshape(*x.shape[:-1], x.shape[-1] // bins, bins))

    def extra_repr(self) -> str:
        return f"reg_max={self.reg_max}"
