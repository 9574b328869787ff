"""The native module. Tensors are PyTorch's, NumPy's arrays, or whatever has ``__dlpack__``; calls write into those that
are given as results, and wait for nothing. ``stream`` is a CUDA stream's address, for arrays whose library does not
tell."""

from collections.abc import Callable
from typing import Any, final

__version__: str

class ShapeError(ValueError): ...

class CudaError(RuntimeError):
    code: int | None
    name: str | None

@final
class Qfl:
    """Quality Focal Loss with its options, which are checked when it is made."""

    def __new__(
        cls,
        beta: float,
        loss_weight: float,
        alpha: float | None,
        activated: bool,
        background: str,
        ignore_label: int | None,
    ) -> Qfl: ...
    def run(
        self,
        pred: Any,
        labels: Any,
        target: Any,
        *,
        weight: Any = None,
        class_weights: Any = None,
        element_weights: Any = None,
        upstream: Any = None,
        grad_scale: Any = None,
        reduction: str = "mean",
        avg_factor: Any = None,
        policy: str = "eps",
        minimum: float = 1.0,
        loss: Any = None,
        grad: Any = None,
        found_inf: Any = None,
        status: Any = None,
        stream: int | None = None,
    ) -> None:
        """Writes ``loss`` (one element, or ``[N]`` for ``"none"``) and ``grad`` (as ``pred``), those that are given.

        ``upstream`` is ``[N]``, for ``"none"``; ``grad_scale`` one number, which multiplies the gradient before it is
        rounded; ``found_inf`` ``[1]`` float32 becomes 1 if a gradient is not finite; ``status`` is ``[9]`` int64.
        """

@final
class Dfl:
    """Distribution Focal Loss with its options, which are checked when it is made."""

    def __new__(cls, loss_weight: float, target_eps: float) -> Dfl: ...
    def run(
        self,
        pred: Any,
        label: Any,
        *,
        weight: Any = None,
        upstream: Any = None,
        grad_scale: Any = None,
        reduction: str = "mean",
        avg_factor: Any = None,
        policy: str = "eps",
        minimum: float = 1.0,
        loss: Any = None,
        grad: Any = None,
        found_inf: Any = None,
        status: Any = None,
        stream: int | None = None,
    ) -> None:
        """As :meth:`Qfl.run`."""

@final
class Boxes:
    """1 − IoU or a variant, with its options, which are checked when it is made."""

    def __new__(cls, kind: str, eps: float) -> Boxes: ...
    def run(
        self, pred: Any, target: Any, loss: Any, *, upstream: Any = None, grad: Any = None, stream: int | None = None
    ) -> None:
        """Writes ``loss [N]``, and ``grad [N, 4]`` if it is given."""

def integral(logits: Any, expectation: Any, *, stream: int | None = None) -> None:
    """Writes the expectations ``[N]`` of logits ``[N, bins]``."""

def integral_backward(logits: Any, upstream: Any, grad: Any, *, stream: int | None = None) -> None:
    """Writes the gradient ``[N, bins]``, given that of the expectations."""

def scale(grad: Any, upstream: Any, *, stream: int | None = None) -> None:
    """Multiplies a gradient where it is; by 1 it ends at once."""

def read_status(words: list[int] | tuple[int, ...]) -> dict[str, int | None]:
    """What the nine words of a status say."""

def set_num_threads(threads: int) -> None:
    """How many threads calls on the CPU run on from now on; 0: as many as there are cores. Until it is called they are
    as many as ``torch.get_num_threads()`` says at the first call."""

def set_allocator(allocator: Callable[[int, int], Any] | None) -> None:
    """What gives device memory to work in, ``(device, bytes)`` to a uint8 tensor; without one the driver does."""
