"""The native module. Tensors are PyTorch's, NumPy's arrays, or whatever has ``__dlpack__``; calls write into those that
are given as results, and wait for nothing. ``stream`` is a CUDA stream's address, for arrays whose library does not
tell."""

from collections.abc import Callable, Sequence
from typing import Any, final

__all__ = [
    "Assigner",
    "Boxes",
    "CudaError",
    "Dfl",
    "Gfl",
    "Head",
    "Qfl",
    "ShapeError",
    "__version__",
    "decode",
    "info",
    "integral",
    "integral_backward",
    "iou",
    "read_status",
    "scale",
    "set_allocator",
    "set_num_threads",
]

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
class Gfl:
    """Both losses with their options."""

    def __new__(cls, qfl: Qfl, dfl: Dfl) -> Gfl: ...
    def run(
        self,
        pred: Any,
        labels: Any,
        target: Any,
        sides: Any,
        label: Any,
        losses: Any,
        weight: Any = None,
        side_weight: Any = None,
        class_weights: Any = None,
        element_weights: Any = None,
        reduction: str = "mean",
        qfl_avg_factor: Any = None,
        dfl_avg_factor: Any = None,
        policy: str = "eps",
        minimum: float = 1.0,
        pred_scale: Any = None,
        side_scale: Any = None,
        grad: Any = None,
        side_grad: Any = None,
        status: Any = None,
        side_status: Any = None,
        stream: int | None = None,
    ) -> None:
        """Writes ``losses [3]``: QFL, DFL and their sum; and ``grad`` and ``side_grad``, both or neither.

        ``pred_scale`` and ``side_scale`` are one number each, which multiply the gradients before they are rounded;
        ``status`` and ``side_status`` are ``[9]`` int64.
        """

@final
class Boxes:
    """1 − IoU or a variant, with its options, which are checked when it is made."""

    def __new__(cls, kind: str, eps: float) -> Boxes: ...
    def run(
        self, pred: Any, target: Any, loss: Any, *, upstream: Any = None, grad: Any = None, stream: int | None = None
    ) -> None:
        """Writes ``loss [N]``, and ``grad [N, 4]`` if it is given."""

@final
class Head:
    """The head loss with its options, which are checked when it is made; None: the profile's."""

    def __new__(
        cls,
        profile: str,
        coding: str,
        bins: int | None,
        beta: float | None,
        alpha: float | None,
        cls_weight: float | None,
        background: str,
        ignore_label: int | None,
        iou: str | None,
        box_weight: float | None,
        iou_eps: float | None,
        dfl_weight: float | None,
        target_eps: float | None,
        quality_source: str | None,
        box_weighting: str | None,
        normaliser: str | None,
    ) -> Head: ...
    def run(
        self,
        cls: Sequence[Any],
        boxes: Sequence[Any],
        labels: Sequence[Any],
        targets: Sequence[Any],
        strides: Sequence[float],
        *,
        offset: float = 0.0,
        label_weights: Sequence[Any] = ...,
        quality: Sequence[Any] = ...,
        box_weights: Sequence[Any] = ...,
        box_scores: Sequence[Any] = ...,
        scores: Sequence[Any] = ...,
        element_weights: Sequence[Any] = ...,
        points: Sequence[Any] = ...,
        class_weights: Any = None,
        normalisers: Any = None,
        upstream: Any = None,
        counted: Any = None,
        losses: Any = None,
        cls_grads: Sequence[Any] | None = None,
        box_grads: Sequence[Any] | None = None,
        found_inf: Any = None,
        status: Any = None,
        workspace: Any = None,
        resume: bool = False,
        stream: int | None = None,
    ) -> None:
        """Writes ``losses [levels, 3]`` and gradients, those that are given; with ``counted [2]``, float64 on the CPU
        and float32 on CUDA, what to divide by and nothing else, as phase one. ``normalisers`` replaces that.

        Lists have a tensor for each level, or none. Gradients have the shapes and types of their logits, and strides of
        their own. On CUDA ``workspace`` is uint8 to work in; with ``resume`` it is as an earlier phase has left it, and
        that is used.
        """

@final
class Assigner:
    """A rule of assignment with its options, which are checked when it is made."""

    @staticmethod
    def atss(topk: int, scale: float, offset: float, ignore_iof: float, fallback: int, background: str) -> Assigner: ...
    @staticmethod
    def fcos(
        regress_ranges: Sequence[tuple[float, float]],
        center_sampling: float | None,
        offset: float,
        ignore_iof: float,
        fallback: int,
        background: str,
    ) -> Assigner: ...
    def run(
        self,
        gt_boxes: Any,
        gt_labels: Any,
        gt_image: Any,
        sizes: Sequence[tuple[int, int]],
        strides: Sequence[float],
        images: int,
        classes: int,
        *,
        weights: Any = None,
        ignore_boxes: Any = None,
        ignore_image: Any = None,
        image_sizes: Any = None,
        labels: Any,
        boxes: Any,
        label_weights: Any = None,
        box_weights: Any = None,
        centerness: Any = None,
        status: Any = None,
        stream: int | None = None,
    ) -> None:
        """Writes the targets of all levels, one level after the other, images × H·W of each: ``labels [A]`` of the type
        of ``gt_labels``, ``boxes [A, 4]`` float32, and those of the others that are given, ``[A]``."""

def decode(
    bbox_preds: Sequence[Any],
    strides: Sequence[float],
    boxes: Any,
    *,
    coding: str = "bins",
    bins: int = 17,
    offset: float = 0.0,
    points: Sequence[Any] = ...,
    grads: Sequence[Any] | None = None,
    stream: int | None = None,
) -> None:
    """Writes ``boxes [B, A, 4]``; or with ``grads``, in the strides of the logits, reads their gradient from it."""

def info() -> dict[str, Any]:
    """What there is to know of this build and machine, for a report: ``version``, ``kernels`` (where the embedded ones
    come from), ``cuda_driver`` as ``(major, minor)``, ``devices`` (name, compute capability, memory, multiprocessors,
    whether they can be used, which images they would take), and ``cuda_error``: why there are none, or None."""

def integral(logits: Any, expectation: Any, *, stream: int | None = None) -> None:
    """Writes the expectations ``[N]`` of logits ``[N, bins]``."""

def integral_backward(logits: Any, upstream: Any, grad: Any, *, stream: int | None = None) -> None:
    """Writes the gradient ``[N, bins]``, given that of the expectations."""

def scale(grad: Any, upstream: Any, *, stream: int | None = None) -> None:
    """Multiplies a gradient where it is; by 1 it ends at once."""

def iou(a: Any, b: Any, iou: Any, *, eps: float = 1e-6) -> None:
    """Writes ``iou [N]`` of boxes ``[N, 4]``, on the CPU. On CUDA it is what is left of 1 when the loss ``"iou"`` is
    taken away."""

def read_status(words: list[int] | tuple[int, ...]) -> dict[str, int | None]:
    """What the nine words of a status say."""

def set_num_threads(threads: int) -> None:
    """How many threads calls on the CPU run on from now on; 0: as many as there are cores. Until it is called they are
    as many as ``torch.get_num_threads()`` says at the first call."""

def set_allocator(allocator: Callable[[int, int], Any] | None) -> None:
    """What gives device memory to work in, ``(device, bytes)`` to a uint8 tensor; without one the driver does."""
