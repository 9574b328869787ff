"""How far results may be from the truth: the numeric contract, in one place."""

from __future__ import annotations

import torch
from torch import Tensor

RELATIVE = 1e-5
"""Of float32 gradients and of losses that are not reduced; what the golden files are good for."""

ABSOLUTE = 2e-7
"""Where the prediction is near the target, terms cancel."""

LOSS = 2e-6
"""Of a reduced loss, whatever the number of rows."""


def ulp(truth: Tensor, dtype: torch.dtype) -> Tensor:
    """The distance of neighbours of a number in a type."""
    info = torch.finfo(dtype)
    exponent = torch.frexp(truth.abs().clamp(min=info.smallest_normal)).exponent - 1
    return torch.ldexp(torch.full_like(truth, info.eps), exponent)


def assert_close(
    actual: Tensor, truth: Tensor, what: str, relative: float = RELATIVE, absolute: float = ABSOLUTE
) -> None:
    """Also refuses NaN. A 16-bit result may be one step from the truth besides."""
    assert actual.shape == truth.shape, f"{what}: shape {list(actual.shape)}, not {list(truth.shape)}"
    truth = truth.double()
    limit = relative * truth.abs() + absolute
    if actual.dtype in {torch.float16, torch.bfloat16}:
        limit = limit + ulp(truth, actual.dtype)
    error = (actual.double() - truth).abs()
    wrong = ~(error <= limit)
    if wrong.any():
        worst = torch.where(wrong, error / limit, 0).argmax().item()
        place = torch.unravel_index(torch.tensor(worst), truth.shape) if truth.dim() else ()
        at = [int(i) for i in place]
        raise AssertionError(
            f"{what}: {int(wrong.sum())} of {truth.numel()} are wrong, at {at} {actual.flatten()[worst].item()} "
            f"instead of {truth.flatten()[worst].item()}, limit {limit.flatten()[worst].item()}"
        )
