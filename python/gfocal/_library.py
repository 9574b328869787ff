"""How operators are registered with PyTorch.

By ``Library.define`` and ``impl``: ``custom_op`` costs twice as much a call. What is registered so can be
compiled, exported and run on fake tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import library

from . import _native

_LIBRARY = library.Library("gfocal", "FRAGMENT")  # type: ignore[no-untyped-call]


# Whether `torch.func` is at work.
in_transforms: Callable[[], bool] = torch._C._are_functorch_transforms_active

Run = TypeVar("Run", bound=Callable[..., Any])


def differentiable(run: Run) -> Run:
    """What applies an autograd function. The compiler of PyTorch 2.4 fails on those, and is to call it as it is."""
    if torch.__version__ < "2.5":
        return torch.compiler.disable(run)  # type: ignore[no-any-return,no-untyped-call]
    return run


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether it has memory, and nobody traces or intercepts what is done with it."""
    return (
        not torch.compiler.is_compiling()
        and type(tensor) is torch.Tensor
        and not tensor.is_meta
        and torch._C._len_torch_dispatch_stack() == 0
        and not in_transforms()
        and torch._C._get_tracing_state() is None
    )


class Operator:
    """An operator, to be called. ``overload`` is what PyTorch's dispatcher has."""

    def __init__(self, run: Callable[..., Any], overload: Callable[..., Any]) -> None:
        self.run, self.overload = run, overload

    def of(self, tensor: torch.Tensor) -> Callable[..., Any]:
        """What to call with this tensor first, or in the list that is first."""
        return self.run if is_plain(tensor) else self.overload

    def __call__(self, first: Any, *args: Any) -> Any:
        return self.of(first[0] if isinstance(first, (list, tuple)) else first)(first, *args)


def operator(schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> Operator:
    """Registers an operator: its schema, what runs it on the CPU and on CUDA, and what it does to shapes alone.

    The result runs it. Where nobody looks it goes past PyTorch's dispatcher, which takes longer for so many arguments
    than a small loss does; what was not asked for is None then.
    """
    name = schema.partition("(")[0]
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))  # type: ignore[no-untyped-call]
    overload = getattr(torch.ops.gfocal, name).default

    def autograd(keys: Any, *args: Any, **kwargs: Any) -> Any:
        # Only the functions of this package know the gradient: without them it would be missing, in silence.
        if torch.is_grad_enabled():
            tensors = torch.utils._pytree.tree_iter((args, kwargs))
            if any(isinstance(tensor, torch.Tensor) and tensor.requires_grad for tensor in tensors):
                raise RuntimeError(
                    f"torch.ops.gfocal.{name} has no gradient of its own; call gfocal's functions, or detach its inputs"
                )
        with torch._C._AutoDispatchBelowAutograd():
            return overload.redispatch(keys & torch._C._after_autograd_keyset, *args, **kwargs)

    def filled(result: Any, first: Any) -> Any:
        # What was not asked for: an operator's results are tensors, always.
        if not isinstance(result, tuple):
            return result
        device = (first[0] if isinstance(first, (list, tuple)) else first).device
        return tuple(torch.empty(0, device=device) if part is None else part for part in result)

    def dispatched(first: Any, *args: Any) -> Any:
        return filled(run(first, *args), first)

    def faked(first: Any, *args: Any) -> Any:
        return filled(fake(first, *args), first)

    for key in ("CPU", "CUDA"):
        _LIBRARY.impl(name, dispatched, key)  # type: ignore[no-untyped-call]
    _LIBRARY.impl(name, autograd, "Autograd", with_keyset=True)  # type: ignore[no-untyped-call]
    library.register_fake(f"gfocal::{name}", faked, lib=_LIBRARY)
    return Operator(run, overload)


def _allocate(device: int, size: int) -> torch.Tensor:
    """Memory that native calls work in comes from PyTorch's allocator: in a graph's pool while one is captured."""
    return torch.empty(size, dtype=torch.uint8, device=torch.device("cuda", device))


if torch.version.hip is None:
    _native.set_allocator(_allocate)
