"""Mistakes: what kind of error, and that it says in Python's words what is wrong."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import gfocal
from gfocal import _native

PRED = torch.zeros(4, 3)
LABELS = torch.tensor([0, 1, 2, 3])
SCORE = torch.full((4,), 0.5)


def qfl(pred: Any = PRED, target: Any = (LABELS, SCORE), **options: Any) -> Any:
    return gfocal.quality_focal_loss(pred, target, **options)


def dfl(pred: Any = PRED, label: Any = SCORE, **options: Any) -> Any:
    return gfocal.distribution_focal_loss(pred, label, **options)


def giou(avg_factor: Any) -> Any:
    return gfocal.GIoULoss()(torch.zeros(4, 4), torch.zeros(4, 4), avg_factor=avg_factor)


def atss(**options: Any) -> Any:
    none = torch.zeros(0, dtype=torch.int64)
    return gfocal.atss(
        **{"sizes": [(4, 4)], "strides": [8], "gt_boxes": torch.zeros(0, 4), "gt_labels": none, "gt_image": none,
           "images": 1, "classes": 3, **options}
    )  # fmt: skip


GRAD = SCORE.clone().requires_grad_()
Shape, Value, Kind = gfocal.ShapeError, ValueError, TypeError

MISTAKES: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: qfl(torch.zeros(4)), Shape, "pred has shape [4], it must be [N, classes]"),
    (lambda: qfl(target=(LABELS[:3], SCORE)), Shape, "labels has shape [3], pred [4, 3] needs [4]"),
    (lambda: qfl(target=(LABELS, SCORE[:2])), Shape, "score has shape [2], pred [4, 3] needs [4]"),
    (lambda: qfl(target=torch.zeros(4, 2)), Shape, "target has shape [4, 2], pred [4, 3] needs [4, 3]"),
    (lambda: qfl(target=(LABELS,)), Value, "target has 1 parts, it must be (labels, score) or a tensor"),
    (lambda: qfl(weight=torch.ones(5)), Shape, "weight has shape [5], pred [4, 3] needs [4]"),
    (lambda: qfl(class_weights=torch.ones(4)), Shape, "class_weights has shape [4], pred [4, 3] needs [3]"),
    (lambda: qfl(element_weights=torch.ones(4)), Shape, "element_weights has shape [4], pred [4, 3] needs [4, 3]"),
    (lambda: qfl(avg_factor=torch.ones(2)), Shape, "avg_factor has shape [2], it must have one element"),
    (lambda: qfl(torch.zeros(4, 0), target=(LABELS, SCORE)), Shape, "0 classes, it must have 1 to"),
    (lambda: qfl(PRED.long()), Kind, "pred is int64, it must be float32, float16, bfloat16"),
    (lambda: qfl(PRED.numpy()), Kind, "pred must be a torch.Tensor, not ndarray"),
    (lambda: qfl(target=(SCORE, SCORE)), Kind, "labels is torch.float32, it must be torch.int64 or torch.int32"),
    (lambda: qfl(target=(LABELS, [0.5] * 4)), Kind, "score must be a torch.Tensor, not list"),
    (lambda: qfl(target=(LABELS, GRAD)), Value, "score requires a gradient, which gfocal does not compute; detach it"),
    (lambda: qfl(weight=GRAD), Value, "weight requires a gradient"),
    (lambda: qfl(beta=-1.0), Value, "beta is -1, it must be from 0 to 10^6"),
    (lambda: qfl(beta=float("nan")), Value, "beta is NaN"),
    (lambda: qfl(loss_weight=float("inf")), Value, "loss_weight is inf, it must be a finite number"),
    (lambda: qfl(alpha=2.0), Value, "alpha is 2, it must be from 0 to 1"),
    (lambda: qfl(reduction="avg"), Value, 'reduction is "avg", it must be "none", "sum" or "mean"'),
    (lambda: qfl(policy="min"), Value, 'policy is "min", it must be "eps", "exact" or "at_least"'),
    (
        lambda: qfl(policy="at_least", avg_factor=1.0, minimum=0.0),
        Value,
        "minimum is 0, it must be a finite number above 0",
    ),
    (lambda: qfl(avg_factor=-1.0), Value, "avg_factor is -1, it must be a finite number, 0 or more"),
    (lambda: qfl(avg_factor=1.0, reduction="sum"), Value, 'avg_factor can not be used with reduction="sum"'),
    (lambda: qfl(background="none"), Value, 'background is "none", it must be "last" or "first"'),
    (lambda: dfl(torch.zeros(4, 1)), Shape, "1 bins, it must have 2 to"),
    (lambda: dfl(label=SCORE[:1]), Shape, "label has shape [1], pred [4, 3] needs [4]"),
    (lambda: dfl(label=GRAD), Value, "label requires a gradient"),
    (lambda: dfl(target_eps=-0.1), Value, "target_eps is -0.1, it must be a finite number, 0 or more"),
    (lambda: dfl(target_eps=9.0), Value, "target_eps is 9, it must be at most the number of bins less one"),
    (lambda: gfocal.integral(torch.zeros(4, 1)), Shape, "1 bins, it must have 2 to"),
    (lambda: gfocal.integral(torch.zeros(())), Shape, "logits has shape [], it must be [..., bins]"),
    (lambda: gfocal.Integral(16)(torch.zeros(2, 30)), Shape, "x has shape [2, 30], reg_max 16 needs [..., 4 * 17]"),
    (lambda: gfocal.Integral(0), Value, "reg_max is 0, it must be 1 or more"),
    (lambda: gfocal.box_loss(torch.zeros(4, 3), torch.zeros(4, 3)), Shape, "pred has shape [4, 3]"),
    (lambda: gfocal.box_loss(torch.zeros(4, 4), torch.zeros(3, 4)), Shape, "target has shape [3, 4]"),
    (lambda: gfocal.box_loss(torch.zeros(4, 4), torch.zeros(4, 4), "siou"), Value, 'kind is "siou", it must be'),
    (
        lambda: gfocal.box_loss(torch.zeros(4, 4), torch.zeros(4, 4), eps=0.0),
        Value,
        "eps is 0, it must be from 1e-30 to 1",
    ),
    (lambda: gfocal.GIoULoss()(torch.zeros(4, 4), torch.zeros(4, 4), torch.ones(3)), Shape, "weight has shape [3]"),
    (lambda: gfocal.IoULoss(mode="cube"), Value, "mode is 'cube'"),
    (lambda: gfocal.QualityFocalLoss(use_sigmoid=False), Value, "only a sigmoid is defined"),
    (lambda: gfocal.QualityFocalLoss(beta=-1), Value, "beta is -1"),
    (lambda: gfocal.set_num_threads(-1), Value, "threads is -1, it must be 0"),
    (lambda: qfl(target=SCORE), Shape, "target has shape [4], pred [4, 3] needs [4, 3], or a pair (labels, score)"),
    (lambda: qfl(PRED > 0), Kind, "pred is bool, which gfocal does not take"),
    (lambda: qfl(PRED.to(torch.complex64)), Kind, "pred is complex64, which gfocal does not take"),
    (lambda: qfl(PRED.to(torch.float8_e4m3fn)), Kind, "pred is a type of 8 bits (DLPack's code"),
    (lambda: qfl(PRED.to_sparse()), Kind, "pred is torch.sparse_coo, it must be torch.strided: pred.to_dense()"),
    (lambda: qfl(target=(LABELS > 0, SCORE)), Kind, "labels is torch.bool, it must be torch.int64 or torch.int32"),
    (lambda: qfl(target=(LABELS[:, None], SCORE)), Shape, "labels has shape [4, 1], pred [4, 3] needs [4]"),
    (lambda: qfl(weight=2.0), Kind, "weight must be a torch.Tensor, not float"),
    (lambda: qfl(avg_factor="7"), Kind, "avg_factor must be a number or a torch.Tensor, not str"),
    (lambda: qfl(avg_factor=torch.tensor(-2)), Value, "avg_factor is -2, it must be a finite number, 0 or more"),
    (lambda: qfl(avg_factor=float("nan")), Value, "avg_factor is NaN, it must be a finite number, 0 or more"),
    (lambda: qfl(status={}), Kind, "status must be a gfocal.Status, not dict"),
    (lambda: gfocal.QualityFocalLoss(reduction="avg"), Value, "reduction is 'avg', it must be"),
    (lambda: gfocal.DistributionFocalLoss(reduction="avg"), Value, "reduction is 'avg', it must be"),
    (lambda: gfocal.GIoULoss(reduction="avg"), Value, "reduction is 'avg', it must be"),
    (lambda: giou(-1.0), Value, "avg_factor is -1.0, it must be a finite number, 0 or more"),
    (lambda: giou("7"), Kind, "avg_factor must be a number or a torch.Tensor, not str"),
    (lambda: giou(torch.ones(2)), Shape, "avg_factor has shape [2], it must have one element"),
    (lambda: atss(strides=[(8, 8)]), Kind, "strides is [(8, 8)], it must be a list of numbers, one a level"),
    (lambda: atss(sizes=[4, 4]), Shape, "sizes[0] is 4, it must be (height, width)"),
    (lambda: atss(images=-1), Value, "images is -1, it must be 0 or more"),
    (lambda: atss(images=1.0), Kind, "images is 1.0, it must be an int"),
]


@pytest.mark.parametrize("number", range(len(MISTAKES)))
def test_mistakes(number: int) -> None:
    call, kind, message = MISTAKES[number]
    with pytest.raises(kind) as caught:
        call()
    assert type(caught.value) in {kind, gfocal.ShapeError, ValueError, RuntimeError}
    assert message in str(caught.value)


def test_native_calls_check_for_themselves() -> None:
    qfl = _native.Qfl(2.0, 1.0, None, False, "last", None)
    pred, labels, score = (tensor.numpy() for tensor in (PRED, LABELS, SCORE))
    loss, grad = np.zeros(1, np.float32), np.zeros((4, 3), np.float32)

    def fails(kind: type[Exception], message: str, *arguments: Any, **options: Any) -> None:
        with pytest.raises(kind) as caught:
            qfl.run(*arguments, **options)
        assert message in str(caught.value)

    qfl.run(pred, labels, score, loss=loss, grad=grad)
    assert loss[0] > 0 and (grad != 0).any()
    fails(ValueError, "neither loss nor grad", pred, labels, score)
    fails(TypeError, "pred must be a tensor or an array, not list", [[0.0]], labels, score, loss=loss)
    fails(TypeError, "score is float64, it must be float32", pred, labels, score.astype(np.float64), loss=loss)
    fails(TypeError, "labels is int16, which gfocal does not take", pred, labels.astype(np.int16), score, loss=loss)
    fails(TypeError, "pred is complex64", pred.astype(np.complex64), labels, score, loss=loss)
    fails(ValueError, "pred is not contiguous", pred.repeat(2, 0)[::2], labels, score, loss=loss)
    fails(gfocal.ShapeError, "pred has 5 dimensions", pred.reshape(4, 3, 1, 1, 1), labels, score, loss=loss)
    fails(ValueError, "grad overlaps pred by 48 bytes", pred, labels, score, grad=pred)
    fails(ValueError, "loss overlaps weight by 4 bytes", pred, labels, score, weight=score, loss=score[:1])
    fails(gfocal.ShapeError, "grad has shape [3, 4]", pred, labels, score, grad=grad.reshape(3, 4))
    fails(TypeError, "grad is float64", pred, labels, score, grad=grad.astype(np.float64))
    read_only = np.zeros(1, np.float32)
    read_only.flags.writeable = False
    fails((ValueError, BufferError), "", pred, labels, score, loss=read_only)
    odd = np.zeros(4 * 12 + 1, np.uint8)[1:].view(np.float32).reshape(4, 3)
    fails(ValueError, "which is no place for its type", odd, labels, score, loss=loss)


class WithoutTable:
    """What a tensor of an older PyTorch is: ``__dlpack__`` alone, and not of what requires a gradient."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor, self.requires_grad = tensor, tensor.requires_grad

    def detach(self) -> WithoutTable:
        return WithoutTable(self.tensor.detach())

    def __dlpack_device__(self) -> Any:
        return self.tensor.__dlpack_device__()

    def __dlpack__(self, stream: int | None = None) -> Any:
        assert stream is None
        return self.tensor.__dlpack__()


def test_tensors_without_the_table() -> None:
    qfl = _native.Qfl(2.0, 1.0, None, False, "last", None)
    pred, loss, grad = PRED.clone().requires_grad_(), torch.zeros(()), torch.zeros(4, 3)
    qfl.run(*map(WithoutTable, (pred, LABELS, SCORE)), loss=WithoutTable(loss), grad=WithoutTable(grad))
    want = gfocal.quality_focal_loss(pred, (LABELS, SCORE))
    want.backward()
    assert torch.equal(loss, want.detach()) and pred.grad is not None and torch.equal(grad, pred.grad)


def test_exceptions_can_be_pickled() -> None:
    for error in (gfocal.ShapeError("a"), gfocal.CudaError("b")):
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error) and again.args == error.args
    assert issubclass(gfocal.ShapeError, ValueError) and issubclass(gfocal.CudaError, RuntimeError)


def test_without_pytorch_it_says_so() -> None:
    old = "import torch, torch.torch_version as of; torch.__version__ = of.TorchVersion('2.3.1+cu121')"
    for start, message in [
        ("import sys; sys.modules['torch'] = None", "install it: pip install 'gfocal[torch]'"),
        (old, "gfocal needs PyTorch 2.4 or newer, this is 2.3.1+cu121: pip install 'gfocal[torch]'"),
    ]:
        program = [sys.executable, "-c", f"{start}; import gfocal"]
        run = subprocess.run(program, capture_output=True, text=True, check=False)
        assert run.returncode != 0 and message in run.stderr
